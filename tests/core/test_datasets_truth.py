"""Truth files: what is read as instances, and the sentence for each file that is not."""

import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from stainbridge.datasets.monuseg import read_outlines
from stainbridge.datasets.outlines import positives, rasterised, read_geojson
from stainbridge.datasets.pannuke import instances
from stainbridge.datasets.truth import classes_of, read_labels, relabelled
from stainbridge.errors import PictureTooLarge, UnusableTruth
from stainbridge.io.geojson import write_geojson
from stainbridge.records import Labels, check_label_map
from stainbridge.testing import synthetic_ihc

SQUARE = [[2, 1], [5, 1], [5, 4], [2, 4], [2, 1]]


def square(x=0):
    """Corners of a square of 3 x 3 px, moved by `x`."""
    return np.array(SQUARE, float) + np.array([x, 0.0])


def two_nuclei(dtype=np.uint16):
    labels = np.zeros((6, 8), dtype)
    labels[1:3, 1:3] = 7
    labels[4:6, 5:8] = 300 if np.dtype(dtype).itemsize > 1 else 200
    return labels


class TestLabelImages:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
    def test_gaps_are_closed_in_the_order_of_the_ids(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        save(path, two_nuclei())
        labels = read_labels(path)
        assert check_label_map(labels, "labels") == 2
        assert (labels[1, 1], labels[5, 7], labels[0, 0]) == (1, 2, 0)

    def test_ids_up_to_2_to_the_31_are_counted_by_objects(self, tmp_path):
        labels = two_nuclei(np.uint32)
        labels[labels == 300] = 2**31
        np.save(tmp_path / "a.npy", labels)
        assert read_labels(tmp_path / "a.npy").max() == 2

    def test_empty_truth_has_no_nuclei_and_full_truth_one(self, tmp_path):
        np.save(tmp_path / "empty.npy", np.zeros((4, 5), np.int32))
        np.save(tmp_path / "full.npy", np.full((4, 5), 9, np.int32))
        np.save(tmp_path / "pixel.npy", np.ones((1, 1), np.uint8))
        assert read_labels(tmp_path / "empty.npy").max() == 0
        assert (read_labels(tmp_path / "full.npy") == 1).all()
        assert read_labels(tmp_path / "pixel.npy").tolist() == [[1]]

    def test_whole_numbers_stored_as_float_are_ids(self, tmp_path):
        np.save(tmp_path / "a.npy", two_nuclei().astype(np.float64))
        assert read_labels(tmp_path / "a.npy").max() == 2

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.array([[0, 0.5]], np.float32), "'a.npy' holds float32 values such as 0.5; ids must be whole numbers"),
            (np.array([[0, np.nan]]), "holds float64 values such as nan"),
            (np.array([[0, np.inf]]), "holds float64 values such as inf"),
            (np.array([[0, -3]]), "'a.npy' holds the negative id -3"),
            (np.array([[0.0, -3.0]]), "holds the negative id -3"),
            (np.array([["a"]]), "ids must be integers"),
            (np.zeros((4, 4, 3), np.uint8), r"one id per pixel.*found uint8 \(4, 4, 3\) \(a colour picture\)"),
            (np.zeros(4, np.uint8), r"found uint8 \(4,\)"),
        ],
    )
    def test_what_is_no_label_map_is_refused(self, tmp_path, array, words):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(UnusableTruth, match=f"(?s){words}"):
            read_labels(tmp_path / "a.npy")

    def test_a_colour_picture_is_refused_as_png_too(self, tmp_path):
        Pillow.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(UnusableTruth, match="colour picture"):
            read_labels(tmp_path / "a.png")

    def test_a_float_tiff_is_refused(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.full((4, 5), 0.3, np.float32))
        with pytest.raises(UnusableTruth, match="Is it a probability map"):
            read_labels(tmp_path / "a.tif")

    def test_a_mask_of_all_nuclei_is_not_taken_for_one_nucleus(self, tmp_path):
        mask = np.zeros((20, 20), np.uint8)
        mask[1::4, 1::4] = 255
        np.save(tmp_path / "a.npy", mask)
        with pytest.raises(UnusableTruth, match="holds one id in 25 separate pieces: it is a mask of all nuclei"):
            read_labels(tmp_path / "a.npy")

    def test_missing_and_damaged_files_are_named(self, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
        (tmp_path / "bad.tif").write_bytes(b"II*\0")
        (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
        for suffix in ("png", "tif", "npy"):
            with pytest.raises(UnusableTruth, match=f"bad.{suffix}' cannot be read as labels"):
                read_labels(tmp_path / f"bad.{suffix}")
            with pytest.raises(UnusableTruth, match=f"none.{suffix}' does not exist"):
                read_labels(tmp_path / f"none.{suffix}")

    def test_pickled_objects_are_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
        with pytest.raises(UnusableTruth, match="cannot be read as labels"):
            read_labels(tmp_path / "a.npy")

    def test_a_huge_claim_is_refused_before_it_is_read(self, tmp_path):
        header = {"descr": "<u2", "fortran_order": False, "shape": (10**5, 10**5)}
        with open(tmp_path / "a.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(3 * 10**10)
        with pytest.raises(PictureTooLarge, match="claims 10,000,000,000 values"):
            read_labels(tmp_path / "a.npy")

    def test_a_png_that_claims_too_much_is_refused_without_a_warning(self, tmp_path):
        chunk = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
        head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / "a.png").write_bytes(head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        with pytest.raises(PictureTooLarge, match="100000000 pixels"):
            read_labels(tmp_path / "a.png")


class TestClasses:
    def test_each_nucleus_has_the_class_of_most_of_its_pixels(self):
        labels = relabelled(two_nuclei())
        classes = np.where(labels == 1, 2, 1)
        classes[1, 1] = 9
        assert classes_of(labels, classes, "types").tolist() == [2, 1]

    def test_no_nuclei_have_no_classes(self):
        assert classes_of(np.zeros((2, 2), np.int32), np.ones((2, 2), int), "types").tolist() == []

    def test_classes_of_another_size_are_refused(self):
        with pytest.raises(UnusableTruth, match="'types' is 3 x 2 px and its labels 8 x 6 px"):
            classes_of(relabelled(two_nuclei()), np.ones((2, 3), int), "types")


class TestOutlines:
    def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre(self):
        labels, kept = rasterised([[[square()]]], (6, 8), "x")
        wanted = np.zeros((6, 8), int)
        wanted[1:4, 2:5] = 1
        assert np.array_equal(labels, wanted)
        assert kept.tolist() == [0]

    @pytest.mark.parametrize(("shift", "columns"), [(0.4, [2, 3, 4]), (0.6, [3, 4, 5])])
    def test_fractions_of_a_pixel_count(self, shift, columns):
        labels, _ = rasterised([[[square(shift)]]], (6, 8), "x")
        assert np.flatnonzero(labels[2]).tolist() == columns

    def test_the_later_outline_lies_on_top_and_a_covered_one_is_no_object(self):
        first, second = square(), square(1)
        labels, kept = rasterised([[[first]], [[second]]], (6, 8), "x")
        assert labels[2].tolist() == [0, 0, 1, 2, 2, 2, 0, 0]
        labels, kept = rasterised([[[first]], [[first]], [[second]]], (6, 8), "x")
        assert (labels.max(), kept.tolist()) == (2, [1, 2])

    def test_a_hole_shows_what_lay_there_before(self):
        outer = np.array([[0, 0], [7, 0], [7, 6], [0, 6]], float)
        inner = square()
        labels, _ = rasterised([[[inner]], [[outer, inner]]], (6, 8), "x")
        assert (labels[2, 3], labels[0, 0], labels[2, 7]) == (1, 2, 0)

    def test_an_outline_of_another_picture_is_refused(self):
        with pytest.raises(UnusableTruth, match=r"'x', object 1 lies at x 102..105, y 1..4, outside .* of 8 x 6 px"):
            rasterised([[[square(100)]]], (6, 8), "x")

    def test_no_outlines_are_no_nuclei(self):
        labels, kept = rasterised([], (3, 4), "x")
        assert (labels.shape, labels.max(), len(kept)) == ((3, 4), 0, 0)


class TestGeoJson:
    def test_what_we_write_is_read_back_pixel_for_pixel(self, tmp_path):
        drawn = synthetic_ihc(shape=(128, 160), nuclei=12, seed=4)
        labels = drawn.truth.array
        nuclei = nuclei_of(labels, drawn.positive)
        write_geojson(tmp_path / "a.geojson", Labels(labels, 0.5), nuclei)
        outlines = read_geojson(tmp_path / "a.geojson")
        again, kept = rasterised([one.parts for one in outlines], labels.shape, "a")
        assert np.array_equal(again, labels)
        assert np.array_equal(positives(outlines, (), "a")[kept], drawn.positive)

    def test_the_nucleus_of_a_qupath_cell_is_taken(self, tmp_path):
        cell = feature(SQUARE) | {"nucleusGeometry": {"type": "Polygon", "coordinates": [[[3, 2], [4, 2], [4, 3]]]}}
        (outline,) = read_geojson(written(tmp_path, [cell]))
        assert outline.parts[0][0].tolist() == [[3, 2], [4, 2], [4, 3]]

    def test_a_multipolygon_is_one_object_and_a_bare_list_is_read(self, tmp_path):
        (tmp_path / "a.geojson").write_text(
            json.dumps([{"geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE]]}}])
        )
        assert [len(one.parts) for one in read_geojson(tmp_path / "a.geojson")] == [2]

    @pytest.mark.parametrize(
        ("feature", "words"),
        [
            ({"geometry": {"type": "Point", "coordinates": [1, 2]}}, "'a.geojson', feature 1 is a Point"),
            ({"geometry": None}, "feature without geometry"),
            ({"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}}, r"no rings of \(x, y\)"),
            ({"geometry": {"type": "Polygon", "coordinates": "x"}}, r"no rings of \(x, y\)"),
            ({"geometry": {"type": "Polygon"}}, r"no rings of \(x, y\)"),
        ],
    )
    def test_what_is_no_polygon_is_named(self, tmp_path, feature, words):
        with pytest.raises(UnusableTruth, match=words):
            read_geojson(written(tmp_path, [feature]))

    @pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000])
    def test_what_is_no_geojson_is_refused(self, tmp_path, text):
        (tmp_path / "a.geojson").write_text(text)
        with pytest.raises(UnusableTruth, match=r"GeoJSON"):
            read_geojson(tmp_path / "a.geojson")

    def test_classes_by_qupaths_names_by_given_names_or_none(self, tmp_path):
        names = ["Tumor: Positive", "2+", "Negative"]
        outlines = read_geojson(written(tmp_path, [feature(SQUARE, name) for name in names]))
        assert positives(outlines, (), "a").tolist() == [True, True, False]
        assert positives(outlines, ("Negative",), "a").tolist() == [False, False, True]
        outlines = read_geojson(written(tmp_path, [feature(SQUARE, "Tumor"), feature(SQUARE)]))
        assert positives(outlines, (), "a") is None
        assert positives([], (), "a").tolist() == []

    def test_half_classified_truth_is_refused(self, tmp_path):
        outlines = read_geojson(written(tmp_path, [feature(SQUARE, "Positive"), feature(SQUARE)]))
        with pytest.raises(UnusableTruth, match="1 of 2 objects have no class, such as object 2"):
            positives(outlines, (), "a")


class TestImageScope:
    def test_regions_in_order_and_those_without_area_left_out(self, tmp_path):
        path = imagescope(tmp_path, [[(2, 1), (5, 1), (5, 4), (2, 4)], [(1, 1)], [(0.5, 0.5), (1.5, 0.5), (1, 2)]])
        rings = [parts[0][0] for parts in read_outlines(path)]
        assert [len(ring) for ring in rings] == [4, 3]
        assert rings[1][0].tolist() == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "cannot be read as XML"),
            ("<a/>", "<Annotations> was expected, found <a>"),
            ('<!DOCTYPE a [<!ENTITY x "y">]><Annotations/>', "declares XML entities"),
            ('<Annotations><Region Id="4" NegativeROA="1"/></Annotations>', "negative regions.*region 4"),
            ('<Annotations><Region Id="4"><Vertex X="a" Y="1"/></Region></Annotations>', "region 4: a vertex needs"),
            ('<Annotations><Region Id="4"><Vertex Y="1"/></Region></Annotations>', "region 4: a vertex needs"),
        ],
    )
    def test_what_is_no_annotation_is_refused(self, tmp_path, text, words):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(UnusableTruth, match=words):
            read_outlines(tmp_path / "a.xml")


class TestPannuke:
    def test_channels_are_joined_and_the_background_is_not_one(self):
        masks = np.zeros((4, 5, 6))
        masks[0, 0, 0] = masks[3, 4, 1] = 3
        masks[..., 5] = 1
        labels = instances(masks)
        assert (labels.max(), labels[0, 0] != labels[3, 4]) == (2, True)

    def test_the_later_channel_wins(self):
        masks = np.zeros((1, 3, 6))
        masks[0, :2, 0] = 1
        masks[0, 1:, 4] = 1
        labels = instances(masks)[0]
        assert labels[1] == labels[2] != labels[0]

    @pytest.mark.parametrize(
        ("value", "words"), [(0.5, "such as 0.5"), (-1, "negative id -1"), (np.nan, "such as nan")]
    )
    def test_values_that_are_no_ids_are_refused(self, value, words):
        with pytest.raises(UnusableTruth, match=words):
            instances(np.full((2, 2, 6), float(value)))


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30))
def test_relabelling_keeps_which_pixels_belong_together(ids):
    array = np.array([ids], np.int64)
    labels = relabelled(array)
    check_label_map(labels, "labels")
    assert ((labels == 0) == (array == 0)).all()
    assert ((labels == labels.T) == (array == array.T)).all()


def save(path, labels):
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, labels)
    else:
        Pillow.fromarray(labels).save(path)


def feature(ring, name=None):
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def written(folder, features):
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def imagescope(folder, regions):
    def region(index, corners):
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
        return f'<Region Id="{index}" NegativeROA="0"><Vertices>{vertices}</Vertices></Region>'

    inner = "".join(region(index + 1, corners) for index, corners in enumerate(regions))
    path = folder / "a.xml"
    path.write_text(f"<Annotations><Annotation><Regions>{inner}</Regions></Annotation></Annotations>")
    return path


def nuclei_of(labels, positive):
    from skimage.measure import regionprops

    from stainbridge.records import Nuclei

    found = regionprops(labels)
    n = len(found)
    return Nuclei(
        label=np.arange(1, n + 1, dtype=np.int32),
        y=np.array([one.centroid[0] for one in found]),
        x=np.array([one.centroid[1] for one in found]),
        area_um2=np.array([float(one.area) for one in found]),
        box=np.array([one.bbox for one in found], np.int64).reshape(-1, 4),
        p_positive=positive.astype(float),
        positive=positive,
        grade=np.zeros(n, np.int8),
        clipped=np.zeros(n, bool),
    )
