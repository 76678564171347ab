"""Polygons to labels, and GeoJSON as QuPath writes it.

A pixel belongs to a polygon that holds its centre. Pixel (0, 0) covers the square from (0, 0) to (1, 1), as in QuPath and
ImageScope. Where polygons overlap the later one lies on top; one that is covered whole is no object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import UnusableTruth
from stainbridge.records import LabelMap

from .truth import relabelled

Ring: TypeAlias = NDArray[np.float64]
"""Corners (k, 2) as x, y in pixels."""

Parts: TypeAlias = Sequence[Sequence[Ring]]
"""The polygons of one object, each an exterior and its holes."""

POSITIVE = ("Positive", "1+", "2+", "3+")
NEGATIVE = "Negative"


@dataclass(frozen=True)
class Outline:
    """One object of a GeoJSON file: its polygons, and its class or an empty string."""

    parts: Parts
    name: str = ""


def rasterised(objects: Sequence[Parts], shape: tuple[int, int], name: str) -> tuple[LabelMap, NDArray[np.int64]]:
    """Draw the objects in their order.

    Returns
    -------
    labels : int32 (H, W), ids 1..n without gaps, in the order of the objects
    kept : int64 (n,), which object each label is; those without a pixel of their own are left out

    Raises
    ------
    UnusableTruth
        If an object lies outside the picture altogether: another picture, or another scale.
    """
    canvas = np.zeros(shape, np.int32)
    for index, parts in enumerate(objects):
        _check_inside(parts, shape, f"{name!r}, object {index + 1}")
        _draw(canvas, parts, index + 1)
    kept = np.unique(canvas)
    return relabelled(canvas), kept[kept > 0].astype(np.int64) - 1


def read_geojson(path: Path) -> list[Outline]:
    """Read the polygons of a GeoJSON file; of a QuPath cell, the nucleus.

    Raises
    ------
    UnusableTruth
        If it is not GeoJSON, or holds something else than polygons.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UnusableTruth(f"The truth {str(path)!r} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableTruth(f"{str(path)!r} cannot be read as GeoJSON: {error}.") from error
    return [_outline(feature, f"{path.name!r}, feature {i + 1}") for i, feature in enumerate(_features(document, path))]


def positives(outlines: Sequence[Outline], positive: Sequence[str], name: str) -> NDArray[np.bool_] | None:
    """Return whether each object is positive; None where the file has no such classes.

    Without `positive` the names are QuPath's: Positive, 1+, 2+, 3+ and Negative, also as the last part of
    "Tumor: Positive".

    Raises
    ------
    UnusableTruth
        If some objects are classified so and others not at all.
    """
    wanted = set(positive or POSITIVE)
    names = [one.name if positive else one.name.rpartition(": ")[2] for one in outlines]
    if not positive and names and not wanted.union([NEGATIVE]) & set(names):
        return None
    without = [index + 1 for index, one in enumerate(names) if not one]
    if without:
        raise UnusableTruth(
            f"{name!r}: {len(without)} of {len(names)} objects have no class, such as object {without[0]}.\n"
            "Classify every nucleus, or none."
        )
    return np.array([one in wanted for one in names], bool)


def _draw(canvas: NDArray[np.int32], parts: Parts, value: int) -> None:
    from skimage.draw import polygon

    for rings in parts:
        # Corner coordinates to those of pixel centres.
        drawn = [polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, canvas.shape) for ring in rings]
        under = [canvas[rows, columns] for rows, columns in drawn[1:]]
        canvas[drawn[0]] = value
        for hole, before in zip(drawn[1:], under, strict=True):
            canvas[hole] = before


def _check_inside(parts: Parts, shape: tuple[int, int], name: str) -> None:
    corners = np.concatenate([ring for rings in parts for ring in rings]) if parts else np.zeros((1, 2))
    if not np.isfinite(corners).all():
        raise UnusableTruth(f"{name}: a corner is not a finite number.")
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    if x1 < 0 or y1 < 0 or x0 > shape[1] or y0 > shape[0]:
        raise UnusableTruth(
            f"{name} lies at x {x0:g}..{x1:g}, y {y0:g}..{y1:g}, outside its picture of {shape[1]} x {shape[0]} px.\n"
            "Is it of another picture, or in micrometres?"
        )


def _features(document: Any, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of a collection, a bare list, or a single feature."""
    features = document.get("features", [document]) if isinstance(document, dict) else document
    if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
        raise UnusableTruth(f"{path.name!r} is not GeoJSON: a FeatureCollection of polygons was expected.")
    yield from features


def _outline(feature: dict[str, Any], name: str) -> Outline:
    geometry = feature.get("nucleusGeometry") or feature.get("geometry")
    geometry = geometry if isinstance(geometry, dict) else {}
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise UnusableTruth(f"{name} is a {kind or 'feature without geometry'}; nuclei must be polygons.")
    try:
        coordinates: Any = geometry["coordinates"]
        polygons = [coordinates] if kind == "Polygon" else list(coordinates)
        parts = [[_ring(ring) for ring in rings] for rings in polygons]
    except (LookupError, TypeError, ValueError) as error:
        raise UnusableTruth(f"{name} has coordinates that are no rings of (x, y).") from error
    return Outline(parts, _class_of(feature))


def _ring(corners: Any) -> Ring:
    ring = np.asarray(corners, np.float64)
    if ring.ndim != 2 or ring.shape[0] < 3 or ring.shape[1] < 2:
        raise ValueError
    return ring[:, :2]


def _class_of(feature: dict[str, Any]) -> str:
    properties = feature.get("properties") or {}
    found = properties.get("classification") or {}
    name = found.get("name") if isinstance(found, dict) else found
    return str(name or "")
