"""TIFF, BigTIFF and OME-TIFF by tifffile's parser: pictures, and the label maps that we write ourselves."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import UnreadablePicture, UnsupportedPicture
from stainbridge.records import RGB, LabelMap

from .pixelsize import MICROMETRES, square_mpp
from .segments import Segments

_RGB, _YCBCR = 2, 6
_PHOTOMETRIC = {0: "grey", 1: "grey", 3: "a palette", 5: "CMYK", 8: "CIE Lab"}
_ALPHA = {1: "associated", 2: "unassociated"}
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


@dataclass(eq=False)
class TiffPicture:
    """The first series of a TIFF at full resolution; a `Source`. Tiles that the file leaves out are white.

    Parameters
    ----------
    path : the file
    mpp : micrometres per pixel, or None
    segments : its tiles or strips
    """

    path: Path
    mpp: float | None
    segments: Segments

    @property
    def name(self) -> str:
        """File name without its suffixes."""
        return self.path.name.removesuffix(self.path.suffix).removesuffix(".ome")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.segments.shape

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3); raise `UnreadablePicture` where a tile in it is damaged."""
        pixels = self.segments.read(y, x, height, width)
        if pixels.shape[2] == 3:
            return pixels
        return _over_white(pixels, premultiplied=self.segments.page.extrasamples[0] == 1)


@dataclass(eq=False)
class SavedLabels:
    """A label map in a TIFF of one grey page; a `LabelSource`."""

    path: Path
    mpp: float | None
    segments: Segments

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.segments.shape

    def read(self, y: int, x: int, height: int, width: int) -> LabelMap:
        """Return the window as int32 (height, width); raise `UnreadablePicture` where a tile in it is damaged."""
        return self.segments.read(y, x, height, width)[..., 0].astype(np.int32)


def open_tiff(path: Path, mpp: float | None) -> TiffPicture:
    """Open a TIFF and return it unread; errors as `open_picture`."""
    page, found_um = _parse(path)
    _check_rgb(path, page)
    if mpp is None:
        mpp = square_mpp(*found_um, path.name)
    return TiffPicture(path, mpp, Segments(path, page, fill=255))


def open_labels(path: str | Path) -> SavedLabels:
    """Open a label map of 8, 16 or 32-bit whole numbers in a TIFF, such as ``labels.ome.tif`` of a result.

    Raises
    ------
    UnreadablePicture
        If it is missing, truncated, or not a TIFF.
    UnsupportedPicture
        If it is not one plane of whole numbers.
    """
    path = Path(path)
    page, found_um = _parse(path)
    if page.samplesperpixel != 1 or page.dtype is None or page.dtype.kind not in "iu":
        raise UnsupportedPicture(f"{str(path)!r} is not a label map: one plane of whole numbers was expected.")
    return SavedLabels(path, square_mpp(*found_um, path.name), Segments(path, page, fill=0))


def _parse(path: Path) -> tuple[Any, tuple[float | None, float | None]]:
    """Return the page at full resolution of the first series, and the (x, y) size of its pixels in micrometres."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0].levels[0]
            planes = {a: n for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXS" and n > 1}
            page = series.keyframe
            if planes:
                counts = ", ".join(f"{axis}: {count}" for axis, count in planes.items())
                raise UnsupportedPicture(
                    f"{str(path)!r} holds several planes ({counts}); one RGB picture was expected.\n"
                    "Export the plane to score as an 8-bit RGB picture."
                )
            _ = page.decode  # needs the open file
            return page, _pixel_um(file, page)
    except UnsupportedPicture:
        raise
    except _broken(tifffile) as error:
        raise UnreadablePicture(
            f"{str(path)!r} cannot be read as a TIFF ({error}): it is truncated or damaged.\nCopy or export it again."
        ) from error


def _broken(tifffile: Any) -> tuple[type[Exception], ...]:
    """Return what the parser raises on a damaged file."""
    lookups = (LookupError, AttributeError, AssertionError, TypeError, ArithmeticError)
    return (tifffile.TiffFileError, OSError, ValueError, struct.error, MemoryError, *lookups)


def _check_rgb(path: Path, page: Any) -> None:
    found = _not_rgb(page)
    if found:
        raise UnsupportedPicture(
            f"{str(path)!r} is {found}; an 8-bit RGB picture was expected.\nExport it as 8-bit RGB."
        )


def _not_rgb(page: Any) -> str:
    """Return in words why the page is not 8-bit RGB or RGBA, or nothing."""
    if page.photometric not in (_RGB, _YCBCR):
        return _PHOTOMETRIC.get(int(page.photometric), f"of photometric kind {int(page.photometric)}")
    if page.bitspersample != 8 or page.dtype != np.uint8:
        return f"{page.bitspersample}-bit"
    if page.imagedepth != 1:
        return f"a volume of {page.imagedepth} planes"
    if page.photometric == _YCBCR and page.compression != 7:
        return "YCbCr without JPEG compression"
    if page.samplesperpixel == 4 and not (page.extrasamples and int(page.extrasamples[0]) in _ALPHA):
        return "of 4 channels, the last of unknown meaning"
    return "" if page.samplesperpixel in (3, 4) else f"of {page.samplesperpixel} channels"


def _over_white(pixels: NDArray[np.uint8], *, premultiplied: bool) -> RGB:
    """Lay uint8 (H, W, 4) over white; return uint8 (H, W, 3)."""
    alpha = pixels[..., 3:].astype(np.uint16)
    colour = pixels[..., :3].astype(np.uint16)
    if not premultiplied:
        colour = ((colour * alpha + 127) // 255).astype(np.uint16)
    return np.minimum(colour + 255 - alpha, 255).astype(np.uint8)


def _pixel_um(file: Any, page: Any) -> tuple[float | None, float | None]:
    """Return the (x, y) size of a pixel in micrometres as the first that speaks says: OME, Aperio, resolution tags."""
    ome = _ome_um(file.ome_metadata) if file.is_ome and file.ome_metadata else (None, None)
    if None not in ome:
        return ome
    aperio = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description)
    if aperio:
        return _number(aperio[1]), _number(aperio[1])
    unit = _RESOLUTION_UNITS.get(int(page.tags.valueof("ResolutionUnit", 1)))
    if unit is None and file.is_imagej:
        unit = str(file.imagej_metadata.get("unit", ""))
    um = MICROMETRES.get(unit or "")
    per_unit = [page.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY"]
    sides = [um * down / up if um and up else None for up, down in per_unit]
    return sides[0], sides[1]


def _ome_um(xml: str) -> tuple[float | None, float | None]:
    try:
        pixels = next(node for node in ElementTree.fromstring(xml).iter() if node.tag.endswith("}Pixels"))
    except (ElementTree.ParseError, StopIteration):
        return None, None
    sides: list[float | None] = []
    for axis in "XY":
        size = _number(pixels.get(f"PhysicalSize{axis}"))
        um = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sides.append(size * um if size is not None and um is not None else None)
    return sides[0], sides[1]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
