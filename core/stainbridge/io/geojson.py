"""Write nuclei as GeoJSON that QuPath 0.4 and later opens as detections: one feature a line, never the whole in memory.

QuPath's keys are objectType, classification, isLocked and measurements (qupath.lib.io, GeoJSON of PathObjects).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import ContractViolation, UnreadablePicture
from stainbridge.records import LabelSource, Nuclei

from .overlay import COLOURS
from .polygons import Polygon, Ring, trace

WINDOW_PX = 1024
"""Nuclei are traced together where the corners of their boxes lie in one window of this side."""

_NAMES = {"area_um2": "Area um^2", "p_positive": "P positive", "grade": "Grade", "clipped": "Clipped"}
_ACRONYMS = {"dab": "DAB", "od": "OD"}
_NUCLEUS = uuid.uuid5(uuid.NAMESPACE_URL, "urn:stainbridge:nucleus")
_FEATURE = '{"type":"Feature",'


def write_geojson(path: Path, labels: LabelSource, nuclei: Nuclei, *, picture: str = "") -> None:
    """Write every nucleus as a polygon on the full-resolution grid of `labels`, pixel corners as coordinates.

    A nucleus without pixels on that grid (an empty box) has no feature.

    Parameters
    ----------
    picture : what tells the picture from others; the ids of its nuclei depend on it and on their labels

    Raises
    ------
    ContractViolation
        If a label is not where its box says.
    """
    write, space = _Properties(nuclei), uuid.uuid5(_NUCLEUS, picture).bytes
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for row, polygons in _outlines(labels, nuclei):
            identity = _identity(space, int(nuclei.label[row]))
            file.write(
                f'{separator}{_FEATURE}"id":"{identity}","geometry":{_geometry(polygons)},"properties":{write(row)}}}'
            )
            separator = ",\n"
        file.write("\n]}\n")


def rewrite_geojson(old: Path, new: Path, nuclei: Nuclei) -> None:
    """Copy `old`, written by `write_geojson`, to `new` with the classes and measurements of `nuclei`.

    Raises
    ------
    UnreadablePicture
        If `old` is missing, was changed by another program, or holds other nuclei.
    """
    try:
        with open(old, encoding="utf-8") as source, open(new, "w", encoding="utf-8", newline="\n") as target:
            _rewrite(source, target, nuclei)
    except (FileNotFoundError, LookupError, UnicodeDecodeError) as error:
        raise UnreadablePicture(
            f"{str(old)!r} does not hold the nuclei of this result ({error}).\nRun the picture again."
        ) from error


def _rewrite(source: IO[str], target: IO[str], nuclei: Nuclei) -> None:
    rows = {label: row for row, label in enumerate(nuclei.label.tolist())}
    write = _Properties(nuclei)
    for line in source:
        head, found, tail = line.partition('"properties":')
        if not found:
            target.write(line)
            continue
        label = re.search(r'"Label":(\d+)', tail)
        if label is None or not head.startswith(_FEATURE):
            raise LookupError("a feature has no label")
        comma = "," if line.rstrip().endswith(",") else ""
        target.write(f"{head}{found}{write(rows[int(label[1])])}}}{comma}\n")


class _Properties:
    """Writes the properties of a row of the table as JSON."""

    def __init__(self, nuclei: Nuclei) -> None:
        columns = nuclei.columns()
        names = [*_NAMES, *nuclei.features]
        self._labels, self._positive = nuclei.label.tolist(), nuclei.positive.tolist()
        titles = [json.dumps(_NAMES.get(name) or _words(name)) for name in names]
        self._parts = [f"{title.replace('%', '%%')}:%.6g" for title in titles]
        self._whole = ",".join(self._parts)
        self._values = list(zip(*(columns[name].astype(float).tolist() for name in names), strict=True))
        self._classes = {positive: _classification(positive) for positive in (True, False)}

    def __call__(self, row: int) -> str:
        values, template = self._values[row], self._whole
        if not math.isfinite(sum(values)):  # JSON has no NaN: a value that is not known is left out
            known = [index for index, value in enumerate(values) if math.isfinite(value)]
            values, template = tuple(values[index] for index in known), ",".join(self._parts[index] for index in known)
        return (
            f'{{"objectType":"detection","classification":{self._classes[self._positive[row]]},"isLocked":false,'
            f'"measurements":{{"Label":{self._labels[row]},{template % values}}}}}'
        )


def _identity(space: bytes, label: int) -> str:
    """Return ``uuid5(UUID(bytes=space), str(label))`` as text, six times faster than the `uuid` module makes it."""
    digest = bytearray(hashlib.sha1(space + str(label).encode(), usedforsecurity=False).digest()[:16])
    digest[6], digest[8] = digest[6] & 0x0F | 0x50, digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _classification(positive: bool) -> str:
    name = "Positive" if positive else "Negative"
    return json.dumps({"name": name, "color": list(COLOURS[positive])}, separators=(",", ":"))


def _words(column: str) -> str:
    """Return a column's name as QuPath shows one: ``dab_od_mean`` as ``DAB OD mean``."""
    words = [_ACRONYMS.get(word, word) for word in column.split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def _outlines(labels: LabelSource, nuclei: Nuclei) -> Iterator[tuple[int, list[Polygon]]]:
    """Yield each row of the table with its polygons, window by window."""
    for rows in _groups(nuclei.box):
        y0, x0 = nuclei.box[rows, :2].min(axis=0).tolist()
        y1, x1 = nuclei.box[rows, 2:].max(axis=0).tolist()
        polygons = trace(labels.read(y0, x0, y1 - y0, x1 - x0), nuclei.label[rows], (y0, x0))
        for row, label in zip(rows.tolist(), nuclei.label[rows].tolist(), strict=True):
            if label not in polygons:
                raise ContractViolation(f"Label {label} has no pixel in its box {nuclei.box[row].tolist()}.")
            yield row, polygons[label]


def _groups(box: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """Yield the rows of each window in reading order; then each that is larger than a window by itself."""
    side = (box[:, 2:] - box[:, :2]).reshape(-1, 2)
    whole = np.flatnonzero((side > 0).all(axis=1) & (side <= WINDOW_PX).all(axis=1))
    if len(whole):
        y, x = (box[whole, :2] // WINDOW_PX).T
        window = y * (int(x.max()) + 1) + x
        order = np.argsort(window, kind="stable")
        yield from np.split(whole[order], np.flatnonzero(np.diff(window[order])) + 1)
    yield from np.flatnonzero((side > WINDOW_PX).any(axis=1) & (side > 0).all(axis=1))[:, None]


def _geometry(polygons: list[Polygon]) -> str:
    texts = ["[" + ",".join([_ring(ring) for ring in polygon]) + "]" for polygon in polygons]
    if len(texts) == 1:
        return f'{{"type":"Polygon","coordinates":{texts[0]}}}'
    return f'{{"type":"MultiPolygon","coordinates":[{",".join(texts)}]}}'


def _ring(ring: Ring) -> str:
    return _template(len(ring)) % tuple(ring.ravel().tolist())


@lru_cache(maxsize=1024)
def _template(corners: int) -> str:
    return "[" + ",".join(["[%d,%d]"] * corners) + "]"
