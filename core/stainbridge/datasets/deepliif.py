"""The DeepLIIF data set: Ki-67 IHC with registered stains and a colour-coded segmentation.

Source: Ghahremani et al., Deep learning-inferred multiplex immunofluorescence for immunohistochemical image
quantification, Nature Machine Intelligence 4, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import (
    ConfigError,
    DataCorrupt,
    DataUnavailable,
    StainbridgeError,
    UnreadablePicture,
    UnsupportedPicture,
    nearest,
)
from stainbridge.io import open_picture
from stainbridge.records import RGB, Image, LabelMap, Labels, Sample, Source

from .item import Item, Place, listed, scale_unknown

Reading = Literal["interior", "interior+outline"]
"""What of a nucleus counts: without or with the green outline, which is about a third of its area."""

TILES = ("IHC", "Hematoxylin", "DAPI", "Lap2", "Marker", "Seg")
"""The six tiles of a strip, from left to right."""

MPP = 0.25
"""Micrometres per pixel of the published tiles."""

_IHC, _SEG = "_IHC", "_Seg"


@dataclass(frozen=True)
class DeepliifItem(Item):
    """A strip, or a pair ``NAME_IHC`` and ``NAME_Seg``."""

    reading: Reading = "interior+outline"

    def source(self) -> Source:
        """Read the IHC."""
        if self.mpp is None:
            raise scale_unknown(self.picture)
        return Image(_ihc_and_seg(self.picture)[0], self.mpp, self.name)

    def sample(self) -> Sample:
        """Read IHC and segmentation."""
        if self.mpp is None:
            raise scale_unknown(self.picture)
        return _sample(self.picture, self.name, self.reading, self.mpp)


def deepliif_items(place: Place) -> list[Item]:
    """List the PNG strips and pairs of a folder; only the headers of the strips are read.

    Raises
    ------
    DataUnavailable
        If there is none.
    DataCorrupt
        If a picture is neither, or half of a pair is missing.
    """
    reading = check_reading(place.reading or "interior+outline")
    chosen = [path for path in sorted(place.folder.glob("*.png")) if place.wants(path) or _is_seg(path)]
    pictures = [path for path in chosen if not _is_seg(path)]
    if not pictures:
        raise DataUnavailable(f"{str(place.folder)!r} holds no DeepLIIF picture (*.png).")
    orphans = [path.name for path in chosen if _is_seg(path) and not _other(path, _SEG, _IHC).exists()]
    without = [path.name for path in pictures if _is_ihc(path) and not _other(path, _IHC, _SEG).exists()]
    strange = [found for path in pictures if not _is_ihc(path) and (found := _not_a_strip(path))]
    faults = {
        f"lack NAME{_SEG}.png": without,
        f"lack NAME{_IHC}.png": [] if place.patterns else orphans,
        "are neither strips of six square tiles nor pairs": strange,
    }
    told = [f"{len(names)} files {fault}: {listed(names)}" for fault, names in faults.items() if names]
    if told:
        raise DataCorrupt(
            f"{str(place.folder)!r}: {'; '.join(told)}.\n"
            "Complete or remove them, or choose by pictures = [PATTERN, ...] in the data set's table."
        )
    return [
        DeepliifItem(
            path.stem.removesuffix(_IHC),
            path,
            place.mpp,
            truth=_other(path, _IHC, _SEG) if _is_ihc(path) else path,
            reading=reading,
        )
        for path in pictures
    ]


def check_reading(reading: str) -> Reading:
    """Return a reading that exists; raises ConfigError, naming the nearest."""
    allowed = get_args(Reading)
    if reading not in allowed:
        raise ConfigError(
            f"Unknown reading {reading!r} of a DeepLIIF segmentation; allowed: {', '.join(allowed)}."
            f"{nearest(reading, allowed)}"
        )
    return cast(Reading, reading)


def read_sample(path: Path | str, *, reading: Reading = "interior+outline", mpp: float = MPP) -> Sample:
    """Read one picture with its truth: a strip of six tiles, or ``NAME_IHC.png`` with ``NAME_Seg.png`` beside it.

    Raises
    ------
    UnreadablePicture
        If a file is missing or broken.
    UnsupportedPicture
        If a strip is not six square tiles or a picture and its segmentation differ in size.
    """
    path = Path(path)
    return _sample(path, path.stem, reading, mpp)


def split_strip(strip: RGB, *, name: str = "strip") -> dict[str, RGB]:
    """Split uint8 (S, 6 S, 3) into the six (S, S, 3) tiles of `TILES`, as views.

    Raises
    ------
    UnsupportedPicture
        If it is not six square tiles in one row.
    """
    _check_rgb(strip, name)
    height, width = strip.shape[:2]
    if width != len(TILES) * height:
        raise UnsupportedPicture(
            f"{name!r}: a DeepLIIF strip is six square tiles in a row ({', '.join(TILES)}), so {6 * height} x {height} "
            f"px here; found {width} x {height} px. A picture by itself is read as NAME_IHC.png with NAME_Seg.png."
        )
    return {tile: strip[:, i * height : (i + 1) * height] for i, tile in enumerate(TILES)}


def instances(
    seg: RGB, *, reading: Reading = "interior+outline", min_px: int = 30
) -> tuple[LabelMap, NDArray[np.bool_]]:
    """Read nuclei from a colour-coded segmentation.

    Red is the interior of a positive nucleus, blue of a negative one, green the outline. Off-colour pixels count by
    channel above 127: green first, then the stronger of red and blue; all others are background. Interiors are
    8-connected components of red and of blue separately; those under `min_px` are dropped. With "interior+outline" they
    grow over the green connected to them, by a watershed on the distance to the nearest interior.

    Parameters
    ----------
    seg : uint8 (H, W, 3)
    reading : "interior" or "interior+outline"
    min_px : smallest interior in pixels

    Returns
    -------
    labels : int32 (H, W), positive nuclei first
    positive : bool (n,), class of each label
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import watershed

    _check_rgb(seg, "segmentation")
    check_reading(reading)
    red, green, blue = (seg[..., channel] for channel in range(3))
    outline = green > 127
    positives = _components((red > 127) & (red >= blue) & ~outline, min_px)
    negatives = _components((blue > 127) & (blue > red) & ~outline, min_px)
    n_positive, n_negative = int(positives.max(initial=0)), int(negatives.max(initial=0))
    labels = np.where(negatives > 0, negatives + n_positive, positives).astype(np.int32)
    if reading == "interior+outline" and labels.any():
        relief = distance_transform_edt(labels == 0)
        labels = watershed(relief, labels, connectivity=2, mask=outline | (labels > 0)).astype(np.int32)
    return labels, np.arange(n_positive + n_negative) < n_positive


def _sample(path: Path, name: str, reading: Reading, mpp: float) -> Sample:
    ihc, seg = _ihc_and_seg(path)
    labels, positive = instances(seg, reading=reading)
    return Sample(Image(ihc, mpp, name), Labels(labels, mpp), positive)


def _ihc_and_seg(path: Path) -> tuple[RGB, RGB]:
    """Read the two tiles of a strip, or a picture and the segmentation beside it."""
    if not _is_ihc(path):
        tiles = split_strip(_pixels(path), name=path.name)
        return tiles["IHC"], tiles["Seg"]
    seg_path = _other(path, _IHC, _SEG)
    if not seg_path.exists():
        raise UnreadablePicture(f"{path.name!r} needs its segmentation beside it; {seg_path.name!r} is not there.")
    ihc, seg = _pixels(path), _pixels(seg_path)
    if ihc.shape != seg.shape:
        raise UnsupportedPicture(
            f"{path.name!r}: the IHC and its segmentation must have one size; "
            f"found {ihc.shape[:2]} and {seg.shape[:2]}."
        )
    return ihc, seg


def _is_ihc(path: Path) -> bool:
    return path.stem.endswith(_IHC)


def _is_seg(path: Path) -> bool:
    return path.stem.endswith(_SEG)


def _other(path: Path, own: str, other: str) -> Path:
    return path.with_name(path.stem.removesuffix(own) + other + path.suffix)


def _not_a_strip(path: Path) -> str:
    """Return what is wrong with a picture that should be a strip; a damaged one shows when it is read."""
    try:
        height, width = open_picture(path, mpp=MPP).shape
    except StainbridgeError:
        return ""
    return "" if width == len(TILES) * height else f"{path.name} ({width} x {height} px)"


def _components(mask: NDArray[np.bool_], min_px: int) -> LabelMap:
    """Label 8-connected components of at least `min_px` pixels, 1..n."""
    from scipy.ndimage import label

    components, _ = label(mask, np.ones((3, 3), bool))
    kept = np.bincount(components.ravel()) >= min_px
    kept[0] = False
    new_id = (np.cumsum(kept) * kept).astype(np.int32)
    found: LabelMap = new_id[components]
    return found


def _check_rgb(pixels: RGB, name: str) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UnsupportedPicture(f"{name!r}: expected uint8 (height, width, 3); found {pixels.dtype} {pixels.shape}.")


def _pixels(path: Path) -> RGB:
    source = open_picture(path, mpp=MPP)
    return source.read(0, 0, *source.shape)
