"""Instance labels from files: what is no whole number, negative or a picture is refused; gaps are closed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import PictureTooLarge, UnusableTruth
from stainbridge.io.raster import WHOLE_DECODE_PX
from stainbridge.records import LabelMap

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
"""Files that hold an array of labels."""

MASK_PIECES = 5
"""A single id in this many separate pieces or more is taken for a mask of all nuclei, which cannot be scored."""

_TABLE_IDS = 1 << 20


def read_labels(path: Path) -> LabelMap:
    """Read instance labels from a PNG, TIFF or .npy file, as ids 1..n without gaps, in the order of the file's ids.

    Returns
    -------
    labels : int32 (H, W)

    Raises
    ------
    UnusableTruth
        If the file is missing or damaged, has another number of axes, is float and not whole, is negative, or is a mask
        of all nuclei (see `MASK_PIECES`).
    """
    labels = relabelled(whole_numbers(read_array(path), path.name))
    if labels.max(initial=0) == 1 and _pieces(labels) >= MASK_PIECES:
        raise UnusableTruth(
            f"{path.name!r} holds one id in {_pieces(labels)} separate pieces: it is a mask of all nuclei, "
            "not instance labels.\nGive each nucleus an id of its own, such as by scipy.ndimage.label."
        )
    return labels


def read_array(path: Path) -> NDArray[Any]:
    """Read one two-dimensional array as it is stored; errors as `read_labels`."""
    readers = {".png": _read_png, ".npy": _read_npy}
    try:
        array = readers.get(path.suffix.lower(), _read_tiff)(path)
    except PictureTooLarge:
        raise
    except FileNotFoundError:
        raise UnusableTruth(f"The truth {str(path)!r} does not exist.") from None
    except Exception as error:  # Pillow, tifffile and numpy each have their own
        raise UnusableTruth(f"{str(path)!r} cannot be read as labels: {error or type(error).__name__}.") from error
    if array.ndim != 2:
        colour = " (a colour picture)" if array.ndim == 3 and array.shape[2] in (3, 4) else ""
        raise UnusableTruth(
            f"{path.name!r} must hold one id per pixel, (height, width); found {array.dtype} {array.shape}{colour}.\n"
            "Export instance labels as a 16-bit or 32-bit single-channel image."
        )
    return array


def whole_numbers(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return unsigned or signed integers, none below 0; floats pass where each is a whole number.

    Raises
    ------
    UnusableTruth
        If the array holds something else.
    """
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array) | (array != np.floor(array)) | (np.abs(array) > 2**53)
        if bad.any():
            raise UnusableTruth(
                f"{name!r} holds {array.dtype} values such as {array[bad][0]:g}; ids must be whole numbers.\n"
                "Is it a probability map? Export instance labels as integers."
            )
        array = array.astype(np.int64)
    elif array.dtype.kind not in "biu":
        raise UnusableTruth(f"{name!r} holds {array.dtype}; ids must be integers.")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise UnusableTruth(f"{name!r} holds the negative id {array.min()}; ids must be 0 for background, else above.")
    return array


def relabelled(array: NDArray[Any]) -> LabelMap:
    """Return ids 1..n without gaps, int32, in the order of the ids; integer or bool (H, W), not negative."""
    if array.dtype == bool:
        return array.astype(np.int32)
    high = int(array.max(initial=0))
    if high > max(array.size, _TABLE_IDS):  # too sparse for a table of all ids
        ids, inverse = np.unique(array, return_inverse=True)
        start = 0 if ids[0] == 0 else 1
        dense: LabelMap = (inverse.reshape(array.shape) + start).astype(np.int32)
        return dense
    present = np.zeros(high + 1, bool)
    present[array] = True
    present[0] = False
    labels: LabelMap = (np.cumsum(present) * present).astype(np.int32)[array]
    return labels


def classes_of(labels: LabelMap, classes: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return the class of each label 1..n: the most frequent value of `classes` on its pixels, the lower of equals.

    Raises
    ------
    UnusableTruth
        If the two differ in size.
    """
    check_size(classes.shape, labels.shape, name, "labels")
    values, inverse = np.unique(classes, return_inverse=True)
    n = int(labels.max(initial=0))
    if n == 0:
        return np.zeros(0, np.int64)
    pairs = labels.ravel().astype(np.int64) * len(values) + inverse.ravel()
    votes = np.bincount(pairs, minlength=(n + 1) * len(values)).reshape(n + 1, len(values))
    winners: NDArray[np.int64] = values[votes[1:].argmax(axis=1)].astype(np.int64)
    return winners


def check_size(found: tuple[int, ...], wanted: tuple[int, ...], name: str, of: str) -> None:
    """Raise UnusableTruth, naming both sizes, where a truth has another size than its `of`."""
    if tuple(found) != tuple(wanted):
        raise UnusableTruth(
            f"{name!r} is {found[1]} x {found[0]} px and its {of} {wanted[1]} x {wanted[0]} px; "
            "they must have one size.\nExport the labels at full resolution."
        )


def _pieces(labels: LabelMap) -> int:
    from scipy.ndimage import label

    return int(label(labels > 0, np.ones((3, 3), bool))[1])


def _read_png(path: Path) -> NDArray[Any]:
    from PIL import Image as Pillow

    with warnings.catch_warnings():
        warnings.simplefilter("error", Pillow.DecompressionBombWarning)
        try:
            with Pillow.open(path, formats=("PNG",)) as picture:
                return np.asarray(picture)
        except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError) as error:
            raise PictureTooLarge(f"{str(path)!r}: {error}\nConvert it to TIFF.") from error


def _read_tiff(path: Path) -> NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        _check_pixels(path, series.shape)
        return np.asarray(series.asarray())


def _read_npy(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_pixels(path, array.shape)
    return np.array(array)


def _check_pixels(path: Path, shape: tuple[int, ...]) -> None:
    claimed = int(np.prod(shape, dtype=np.float64))
    if claimed > 4 * WHOLE_DECODE_PX:
        raise PictureTooLarge(f"{str(path)!r} claims {claimed:,} values; at most {4 * WHOLE_DECODE_PX:,} are read.")
