"""MoNuSeg: TIFF pictures with outlines in ImageScope's XML.

Source: Kumar et al., A multi-organ nucleus segmentation challenge, IEEE Transactions on Medical Imaging 39, 2020. Outlines
overlap in places; the later one lies on top, as in `outlines`. Its training archive has the folders ``Tissue Images`` and
``Annotations``; that of the test has both kinds of file in one folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from stainbridge.errors import DataUnavailable, UnusableTruth
from stainbridge.records import Labels, Sample, Source

from .folder import check_pairs
from .item import Item, Place, opened, truth_of
from .outlines import Parts, rasterised

PICTURES, ANNOTATIONS = "Tissue Images", "Annotations"
_SUFFIXES = (".tif", ".tiff", ".png")


@dataclass(frozen=True)
class MonusegItem(Item):
    """A picture with an XML of outlines."""

    def source(self) -> Source:
        """Open the picture."""
        return opened(self)

    def sample(self) -> Sample:
        """Read the picture and draw the outlines."""
        truth, source = truth_of(self), self.source()
        labels, _ = rasterised(read_outlines(truth), source.shape, truth.name)
        return Sample(source, Labels(labels, source.mpp))


def monuseg_items(place: Place) -> list[Item]:
    """List pictures with their XML.

    Raises
    ------
    DataUnavailable
        If there is no picture.
    DataCorrupt
        If pictures lack an XML or the other way round.
    """
    named = [place.folder / PICTURES, *sorted(place.folder.glob(f"*/{PICTURES}"))]
    folder = next((one for one in named if one.is_dir()), place.folder)
    beside = folder.parent / ANNOTATIONS
    truth_folder = place.truth or (beside if beside.is_dir() else folder)
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not pictures:
        raise DataUnavailable(f"{str(folder)!r} holds no picture.\nLooked for {', '.join(_SUFFIXES)}.")
    truths = {path.stem: path for path in sorted(truth_folder.iterdir()) if path.suffix.lower() == ".xml"}
    check_pairs(pictures, truths, place)
    return [MonusegItem(path.stem, path, place.mpp, truth=truths[path.stem]) for path in pictures if place.wants(path)]


def read_outlines(path: Path) -> list[Parts]:
    """Read the regions of an ImageScope XML, in its order; those of fewer than three corners are no outlines.

    Raises
    ------
    UnusableTruth
        If it is not such an XML, declares entities, or has negative regions.
    """
    regions = list(_tree(path).iter("Region"))
    negative = [region.get("Id", "?") for region in regions if region.get("NegativeROA", "0") == "1"]
    if negative:
        raise UnusableTruth(f"{path.name!r} has negative regions, which are not read, such as region {negative[0]}.")
    rings = [np.array(list(_corners(region, path)), np.float64).reshape(-1, 2) for region in regions]
    return [[[ring]] for ring in rings if len(ring) >= 3]


def _tree(path: Path) -> ElementTree.Element:
    try:
        text = path.read_bytes()
        # Entities can make a small file unpack to any size.
        if b"<!ENTITY" in text:
            raise UnusableTruth(f"{path.name!r} declares XML entities, which no annotation needs; it is not read.")
        root = ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError) as error:
        raise UnusableTruth(f"{str(path)!r} cannot be read as XML: {error}.") from error
    if root.tag != "Annotations":
        raise UnusableTruth(f"{path.name!r} is not an ImageScope XML: <Annotations> was expected, found <{root.tag}>.")
    return root


def _corners(region: ElementTree.Element, path: Path) -> Iterator[tuple[float, float]]:
    for vertex in region.iter("Vertex"):
        try:
            yield float(vertex.attrib["X"]), float(vertex.attrib["Y"])
        except (KeyError, ValueError) as error:
            raise UnusableTruth(
                f"{path.name!r}, region {region.get('Id', '?')}: a vertex needs numbers X and Y; found {vertex.attrib}."
            ) from error
