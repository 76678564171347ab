"""PNG and JPEG by Pillow: the header is checked first, the whole picture is decoded on the first read."""

from __future__ import annotations

import struct
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stainbridge.errors import PictureTooLarge, UnreadablePicture, UnsupportedPicture
from stainbridge.records import RGB

from .codestream import jpeg_size
from .pixelsize import square_mpp

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

WHOLE_DECODE_PX = 89_000_000
"""Most pixels of a PNG or JPEG: 267 MB decoded, and just below where Pillow begins to warn of a bomb."""

_PNG_COLOURS = {0: "grey", 4: "grey with alpha"}
_JPEG_HEAD_BYTES = 4 << 20  # metadata of cameras and editors before the frame header
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error)  # what Pillow raises


@dataclass(eq=False)
class RasterPicture:
    """A PNG or JPEG; a `Source`.

    Parameters
    ----------
    path : the file
    shape : (height, width) in pixels
    mpp : micrometres per pixel, or None
    """

    path: Path
    shape: tuple[int, int]
    mpp: float | None
    _pixels: RGB | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return self.path.stem

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3).

        Raises
        ------
        UnreadablePicture
            If the file is truncated or damaged.
        """
        with self._lock:
            if self._pixels is None:
                self._pixels = _decode(self.path)
        return self._pixels[y : y + height, x : x + width]


def open_raster(path: Path, mpp: float | None) -> RasterPicture:
    """Check the header of a PNG or JPEG against size and kind, and return it unread; errors as `open_picture`."""
    with open(path, "rb") as file:
        head = file.read(_JPEG_HEAD_BYTES)
    shape = _png_shape(path, head) if head.startswith(b"\x89PNG") else _jpeg_shape(path, head)
    if shape[0] * shape[1] > WHOLE_DECODE_PX:
        raise PictureTooLarge(
            f"{str(path)!r} claims {shape[1]} x {shape[0]} px; at most {WHOLE_DECODE_PX:,} of a PNG or JPEG are read.\n"
            "Convert it to a tiled TIFF, which is read window by window."
        )
    with _open(path) as picture:
        per_inch = picture.info.get("dpi") or (0.0, 0.0)
    if mpp is None:
        sides_um = [25400.0 / float(dots) if dots else None for dots in per_inch]
        mpp = square_mpp(sides_um[0], sides_um[1], path.name)
    return RasterPicture(path, shape, mpp)


def _png_shape(path: Path, head: bytes) -> tuple[int, int]:
    """Return (height, width) from the IHDR chunk; refuse grey and 16-bit, which Pillow would convert in silence."""
    if len(head) < 26 or head[12:16] != b"IHDR":
        raise UnreadablePicture(f"{str(path)!r} is truncated: a PNG needs its header of 26 bytes; found {len(head)}.")
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if colour in _PNG_COLOURS:
        raise _not_rgb(path, _PNG_COLOURS[colour])
    if bits > 8:
        raise _not_rgb(path, f"{bits}-bit")
    return height, width


def _jpeg_shape(path: Path, head: bytes) -> tuple[int, int]:
    size = jpeg_size(head)
    if size is None or 0 in size:
        raise UnreadablePicture(
            f"{str(path)!r} is truncated or damaged: a JPEG with no frame header.\nExport it again."
        )
    return size


def _open(path: Path) -> Picture:
    from PIL import Image as Pillow

    try:
        picture = Pillow.open(path, formats=("PNG", "JPEG"))
    except Pillow.DecompressionBombError as error:
        raise PictureTooLarge(f"{str(path)!r}: {error}") from error
    except _DAMAGE as error:
        raise UnreadablePicture(f"{str(path)!r} cannot be read as a picture: {error}.\nExport it again.") from error
    if picture.mode not in ("RGB", "RGBA", "P"):
        picture.close()
        raise _not_rgb(path, {"L": "grey", "CMYK": "CMYK"}.get(picture.mode, f"of mode {picture.mode}"))
    if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
        picture.close()
        raise UnsupportedPicture(f"{str(path)!r} is an animation of several frames; one RGB picture was expected.")
    return picture


def _decode(path: Path) -> RGB:
    """Return all pixels as uint8 (height, width, 3), transparent ones over white."""
    from PIL import Image as Pillow

    with _open(path) as picture:
        try:
            picture.load()
            if picture.mode == "RGB" and "transparency" not in picture.info:
                return np.asarray(picture)
            clear = picture.convert("RGBA")
        except _DAMAGE as error:
            raise UnreadablePicture(
                f"{str(path)!r} is truncated or damaged: {picture.width} x {picture.height} px were expected, "
                f"and decoding stopped with {str(error)!r}.\nCopy or export it again."
            ) from error
    white = Pillow.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    return np.asarray(white)


def _not_rgb(path: Path, found: str) -> UnsupportedPicture:
    return UnsupportedPicture(f"{str(path)!r} is {found}; an 8-bit RGB picture was expected.\nExport it as 8-bit RGB.")
