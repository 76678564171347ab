"""Whole slides by OpenSlide, from the extra `wsi`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stainbridge.errors import MissingExtra, UnreadablePicture
from stainbridge.records import RGB

from .pixelsize import square_mpp


@dataclass(eq=False)
class SlidePicture:
    """A slide at full resolution; a `Source`. Where it was not scanned, it is white.

    Parameters
    ----------
    path : the file
    shape : (height, width) in pixels of level 0
    mpp : micrometres per pixel, or None
    """

    path: Path
    shape: tuple[int, int]
    mpp: float | None
    _handle: Any = field(default=None, repr=False)
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
            If a stored tile in the window is damaged; other windows can still be read.
        """
        import openslide
        from PIL import Image as Pillow

        with self._lock:
            handle = self._handle = self._handle or _open(self.path)
        try:
            clear = handle.read_region((x, y), 0, (width, height))
        except openslide.OpenSlideError as error:
            self._drop(handle)
            raise UnreadablePicture(
                f"{str(self.path)!r} cannot be read at y {y}, x {x} ({height} x {width} px): {error}.\nCopy it again."
            ) from error
        white = Pillow.new("RGB", clear.size, "white")
        white.paste(clear, mask=clear.getchannel("A"))
        return np.asarray(white)

    def _drop(self, handle: Any) -> None:
        # After one error OpenSlide fails every later read on the same handle, good tiles included.
        with self._lock:
            if self._handle is handle:
                self._handle = None


def open_slide(path: Path, mpp: float | None) -> SlidePicture:
    """Open a slide and return it unread; errors as `open_picture`."""
    handle = _open(path)
    width, height = handle.dimensions
    if mpp is None:
        sides = [_number(handle.properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
        mpp = square_mpp(sides[0], sides[1], path.name)
    return SlidePicture(path, (height, width), mpp, handle)


def _open(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise MissingExtra.of(f"The slide {str(path)!r}", "OpenSlide", "wsi") from error
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise UnreadablePicture(f"{str(path)!r} cannot be read as a slide: {error}.\nCopy it again.") from error


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
