"""PanNuke: one fold as three arrays, of which one picture at a time is read.

Source: Gamper et al., PanNuke dataset extension, insights and baselines, arXiv:2003.10778. ``images.npy`` is (N, 256, 256,
3), ``masks.npy`` (N, 256, 256, 6): ids of five classes of nuclei and the background; ``types.npy`` (N,) names the tissue,
which becomes the subset. Both arrays are float64 that hold whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import DataCorrupt, DataUnavailable, UnreadablePicture, UnusableTruth
from stainbridge.records import RGB, Image, LabelMap, Labels, Sample, Source

from .item import Item, Place, scale_unknown, truth_of
from .truth import relabelled, whole_numbers

NUCLEI = 5
"""Channels of nuclei in a mask; the last one is background."""


@dataclass(frozen=True)
class PannukeItem(Item):
    """One row of the arrays."""

    index: int = 0

    def source(self) -> Source:
        """Read the picture."""
        if self.mpp is None:
            raise scale_unknown(self.picture)
        pixels = _mapped(self.picture, UnreadablePicture)[self.index]
        return Image(_colours(np.asarray(pixels), f"{self.picture.name}[{self.index}]"), self.mpp, self.name)

    def sample(self) -> Sample:
        """Read picture and truth."""
        masks = np.asarray(_mapped(truth_of(self), UnusableTruth)[self.index])
        return Sample(self.source(), Labels(instances(masks, f"masks.npy[{self.index}]"), self.mpp))


def instances(masks: NDArray[Any], name: str = "masks") -> LabelMap:
    """Join the channels of nuclei of (H, W, 6) into int32 (H, W), ids 1..n; where two overlap, the later channel wins.

    Raises
    ------
    UnusableTruth
        If the values are not whole numbers from 0.
    """
    ids = whole_numbers(masks[..., :NUCLEI], name).astype(np.int64)
    joined = np.zeros(ids.shape[:2], np.int64)
    for channel in range(NUCLEI):
        plane = ids[..., channel]
        # An id may be used again in another channel.
        joined = np.where(plane > 0, plane * NUCLEI + channel, joined)
    return relabelled(joined)


def pannuke_items(place: Place) -> list[Item]:
    """List the pictures of a fold; nothing but the arrays' headers and the tissues is read.

    Raises
    ------
    DataUnavailable
        If an array is missing, or there are several folds below the folder.
    DataCorrupt
        If the arrays do not fit each other.
    """
    pictures, masks, types = (_only(place.folder, f"{name}.npy") for name in ("images", "masks", "types"))
    images, truth = _mapped(pictures, UnreadablePicture), _mapped(masks, UnusableTruth)
    tissues = [str(tissue) for tissue in _mapped(types, DataCorrupt)]
    wrong = images.ndim != 4 or images.shape[3] != 3 or truth.shape != (*images.shape[:3], NUCLEI + 1)
    if wrong or len(tissues) != len(images):
        raise DataCorrupt(
            f"{str(place.folder)!r}: images.npy must be (N, H, W, 3), masks.npy (N, H, W, {NUCLEI + 1}) and types.npy "
            f"(N,); found {images.shape}, {truth.shape} and ({len(tissues)},)."
        )
    prefix = pictures.parent.name
    rows = [
        PannukeItem(f"{prefix}_{index:05d}", pictures, place.mpp, tissue, masks, index)
        for index, tissue in enumerate(tissues)
    ]
    return [row for row in rows if place.wants(Path(row.name))]


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        what = "is missing" if not found else f"is there {len(found)} times: name the folder of one fold"
        raise DataUnavailable(f"{str(folder)!r}: {name} {what}.\nA fold is images.npy, masks.npy and types.npy.")
    return found[0]


def _mapped(path: Path, failure: type[Exception]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise failure(f"{str(path)!r} cannot be read as an array: {error}.") from error
    return array


def _colours(pixels: NDArray[Any], name: str) -> RGB:
    with np.errstate(invalid="ignore"):  # what does not fit is seen by the comparison
        colours: RGB = pixels.astype(np.uint8)
    if not np.array_equal(colours, pixels):
        raise UnreadablePicture(f"{name!r} holds {pixels.dtype} values that are not whole numbers 0..255.")
    return colours
