"""Open a picture of any kind that is read, told apart by content."""

from __future__ import annotations

import math
from pathlib import Path

from stainbridge.errors import ConfigError, UnreadablePicture, nearest
from stainbridge.records import Source

from .find import SLIDES
from .raster import open_raster
from .slide import open_slide
from .tiff import open_tiff

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_picture(path: str | Path, *, mpp: float | None = None) -> Source:
    """Open an 8-bit RGB picture without decoding it.

    PNG and JPEG are decoded whole on the first read, up to `raster.WHOLE_DECODE_PX` pixels; TIFF and slides are read
    window by window. Of several series or levels in one file, the first series at full resolution is the picture.
    Transparent pixels are laid over white. Rows and columns are as stored: an EXIF orientation is not applied.

    Parameters
    ----------
    path : a PNG, JPEG, TIFF or OME-TIFF (told by content), or a slide (told by suffix; needs the extra `wsi`)
    mpp : micrometres per pixel, which wins over what the file says; None takes the file's, by the rule in `pixelsize`

    Raises
    ------
    UnreadablePicture
        If it is missing, empty, truncated, or not a picture; damage inside PNG and JPEG shows on the first read.
    UnsupportedPicture
        If it is not 8-bit RGB or RGBA, holds several planes, or has pixels that are not square.
    PictureTooLarge
        If it claims more pixels than may be decoded.
    MissingExtra
        If it is a slide and OpenSlide is not installed.
    ConfigError
        If `mpp` is not a positive number.
    """
    path = Path(path)
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ConfigError(f"mpp must be a positive number of micrometres per pixel; found {mpp}.")
    head = _head(path)
    if path.suffix.lower() in SLIDES:
        return open_slide(path, mpp)
    if head.startswith(_TIFF):
        return open_tiff(path, mpp)
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return open_raster(path, mpp)
    raise UnreadablePicture(
        f"{str(path)!r} is not a picture that can be read: it begins with {head[:8]!r}.\n"
        f"Give a PNG, a JPEG, a TIFF, or a slide ({', '.join(SLIDES)})."
    )


def _head(path: Path) -> bytes:
    """Return the first bytes of a file that exists and is not empty."""
    if path.is_dir():
        raise UnreadablePicture(f"{str(path)!r} is a folder, not a picture.\nName a picture inside it.")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        folder = path.parent
        beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise UnreadablePicture(f"{str(path)!r} does not exist.{nearest(path.name, beside)}") from None
    except OSError as error:
        raise UnreadablePicture(f"{str(path)!r} cannot be opened: {error.strerror}.") from error
    if not head:
        raise UnreadablePicture(f"{str(path)!r} is empty (0 bytes).\nCopy or export it again.")
    return head
