"""Outlines that give the label map back, in a file that QuPath opens."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.draw import polygon2mask

from stainbridge.errors import ContractViolation, UnreadablePicture
from stainbridge.io.geojson import WINDOW_PX, rewrite_geojson, write_geojson
from stainbridge.io.polygons import trace
from stainbridge.measure import boxes, regions
from stainbridge.records import LabelMap, Labels, Nuclei
from stainbridge.testing.synthetic import synthetic_labels

RING = """
.....
.###.
.#.#.
.###.
....."""
ISLAND = """
#####
#...#
#.#.#
#...#
#####"""
DIAGONAL = """
##...
##...
..##.
..##.
#...."""
PINCHED_HOLES = """
######
#.####
##.###
###..#
######"""
CORNER_HOLE = """
####.
##.#.
#####
.####"""


def drawn(text: str) -> LabelMap:
    return np.array([[character == "#" for character in line] for line in text.split()], np.int32)


def nuclei_of(labels: LabelMap, **features: np.ndarray) -> Nuclei:
    n = int(labels.max())
    table = regions(labels)
    p = np.linspace(0, 1, n)
    return Nuclei(
        label=np.arange(1, n + 1, dtype=np.int32),
        y=table.y,
        x=table.x,
        area_um2=table.area_px * 0.0625,
        box=boxes(labels),
        p_positive=p,
        positive=p >= 0.5,
        grade=np.full(n, 2, np.int8),
        clipped=np.zeros(n, bool),
        features=features,
    )


def filled(polygons: list[list[Any]], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons, given as x, y from the corner of the picture, wherever a pixel's centre lies inside."""
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        for ring in polygon:
            mask ^= polygon2mask(shape, np.asarray(ring, float)[:, ::-1] - 0.5)
    return mask


def assert_valid(polygons: list[list[np.ndarray]]) -> None:
    for polygon in polygons:
        for position, ring in enumerate(polygon):
            x, y = ring.T
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert np.array_equal(ring[0], ring[-1])
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring) - 1, "a ring touches itself"
            assert (area > 0) == (position == 0), "exteriors come first and run the other way than holes"


@pytest.mark.parametrize(
    ("text", "rings"),
    [("#", [1]), (RING, [2]), (ISLAND, [1, 2]), (DIAGONAL, [1, 1, 1]), (PINCHED_HOLES, [4]), (CORNER_HOLE, [2])],
)
def test_pieces_and_holes_of_a_label_are_polygons(text: str, rings: list[int]) -> None:
    labels = drawn(text)
    polygons = trace(labels, np.array([1], np.int32))[1]
    assert sorted(len(polygon) for polygon in polygons) == rings
    assert_valid(polygons)
    assert np.array_equal(filled(polygons, labels.shape), labels > 0)


def test_one_pixel_covers_the_unit_square_of_qupath() -> None:
    labels = np.zeros((5, 5), np.int32)
    labels[2, 3] = 1
    (polygon,) = trace(labels, np.array([1], np.int32), (10, 100))[1]
    assert {tuple(corner) for corner in polygon[0].tolist()} == {(103, 12), (104, 12), (104, 13), (103, 13)}


@settings(max_examples=100, deadline=None)
@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)))
def test_any_label_map_comes_back_from_its_outlines(labels: LabelMap) -> None:
    found = trace(labels, np.array([1, 2, 3], np.int32))
    assert set(found) == set(np.unique(labels).tolist()) - {0}
    for label, polygons in found.items():
        assert_valid(polygons)
        assert np.array_equal(filled(polygons, labels.shape), labels == label)


def test_labels_that_were_not_asked_for_are_background() -> None:
    labels = np.array([[1, 2], [1, 3]], np.int32)
    assert set(trace(labels, np.array([2, 9], np.int32))) == {2}
    assert trace(labels, np.array([9], np.int32)) == {}
    assert trace(np.zeros((3, 3), np.int32), np.array([1], np.int32)) == {}


def test_file_gives_the_label_map_back_across_windows(tmp_path: Path) -> None:
    shape = (WINDOW_PX + 300, WINDOW_PX + 200)
    labels = synthetic_labels(shape, 200, rng=0, gap_px=0).array
    labels[50:52, : WINDOW_PX + 150] = 201  # longer than a window
    kept, relabelled = np.unique(labels, return_inverse=True)
    labels = relabelled.reshape(shape).astype(np.int32)
    write_geojson(tmp_path / "a.geojson", Labels(labels), nuclei_of(labels))
    back = np.zeros(shape, np.int32)
    for feature in json.loads((tmp_path / "a.geojson").read_text())["features"]:
        geometry = feature["geometry"]
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        corners = np.concatenate([np.asarray(ring) for polygon in polygons for ring in polygon])
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        moved = [[np.asarray(ring) - (x0, y0) for ring in polygon] for polygon in polygons]
        back[y0:y1, x0:x1][filled(moved, (y1 - y0, x1 - x0))] = feature["properties"]["measurements"]["Label"]
    assert len(kept) > 150
    assert np.array_equal(back, labels)


def test_feature_has_the_keys_that_qupath_reads(tmp_path: Path) -> None:
    labels = np.array([[1, 1, 0], [0, 0, 2]], np.int32)
    nuclei = nuclei_of(labels, dab_od_mean=np.array([0.125, np.nan]), **{"100%": np.ones(2)})
    write_geojson(tmp_path / "a.geojson", Labels(labels), nuclei, picture="1f3a")
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    first, second = collection["features"]
    assert first["type"] == "Feature"
    namespace = uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, "urn:stainbridge:nucleus"), "1f3a")
    assert [first["id"], second["id"]] == [str(uuid.uuid5(namespace, label)) for label in "12"]
    assert first["geometry"] == {"type": "Polygon", "coordinates": [[[2, 0], [2, 1], [0, 1], [0, 0], [2, 0]]]}
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "Negative", "color": [30, 70, 230]},
        "isLocked": False,
        "measurements": {
            "Label": 1, "Area um^2": 0.125, "P positive": 0, "Grade": 2, "Clipped": 0, "DAB OD mean": 0.125,
            "100%": 1,
        },
    }  # fmt: skip
    assert second["properties"]["classification"] == {"name": "Positive", "color": [220, 30, 30]}
    assert "DAB OD mean" not in second["properties"]["measurements"]


def test_picture_without_nuclei_is_an_empty_collection(tmp_path: Path) -> None:
    labels = np.zeros((4, 4), np.int32)
    write_geojson(tmp_path / "a.geojson", Labels(labels), nuclei_of(labels))
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_label_that_is_not_in_its_box_is_a_violation(tmp_path: Path) -> None:
    labels = np.array([[1, 0, 2]], np.int32)
    nuclei = nuclei_of(labels)
    nuclei.box[1] = (0, 0, 1, 2)
    with pytest.raises(ContractViolation, match=r"Label 2 has no pixel in its box \[0, 0, 1, 2\]"):
        write_geojson(tmp_path / "a.geojson", Labels(labels), nuclei)


def test_rewriting_changes_classes_and_keeps_outlines(tmp_path: Path) -> None:
    labels = synthetic_labels((300, 300), 30, rng=1).array
    nuclei = nuclei_of(labels)
    columns = nuclei.columns() | {"positive": ~nuclei.positive}
    other = Nuclei.from_columns(columns)
    write_geojson(tmp_path / "old.geojson", Labels(labels), nuclei)
    write_geojson(tmp_path / "expected.geojson", Labels(labels), other)
    rewrite_geojson(tmp_path / "old.geojson", tmp_path / "new.geojson", other)
    assert (tmp_path / "new.geojson").read_bytes() == (tmp_path / "expected.geojson").read_bytes()
    assert (tmp_path / "new.geojson").read_bytes() != (tmp_path / "old.geojson").read_bytes()


def test_rewriting_a_foreign_file_is_refused(tmp_path: Path) -> None:
    nuclei = nuclei_of(np.array([[1]], np.int32))
    (tmp_path / "old.geojson").write_text('{"type":"Feature","properties":{}}\n')
    for name in ("old.geojson", "gone.geojson"):
        with pytest.raises(UnreadablePicture, match=rf"{name}' does not hold the nuclei of this result"):
            rewrite_geojson(tmp_path / name, tmp_path / "new.geojson", nuclei)
