"""The pictures of a training: opened, looked at for tissue; those that cannot be used are listed with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import NoPictures, PictureTooLarge, ScaleUnknown, UnreadablePicture, UnsupportedPicture, UnusableTruth
from ..io import open_picture
from ..records import RGB, Image, Source
from ..scale import Restated, rescale
from .memory import Memory
from .tissue import Places, survey

UNUSABLE = (UnreadablePicture, UnsupportedPicture, PictureTooLarge, UnusableTruth)
"""What is wrong with one picture and not with the training."""
WHOLE_PX = 16 << 20
"""Pictures of up to so many pixels at the scale of the training are kept decoded, as far as memory allows."""

Told: TypeAlias = Callable[[str, int, int, str], None]
"""Told (what, done, in all, a message or an empty string)."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not learned from, and why."""

    side: str
    file: str
    reason: str


@dataclass(frozen=True)
class Listed:
    """A file that is learned from.

    Parameters
    ----------
    side : "ihc", "he" or "pictures"
    file : path below the folder that was named
    size, sha256 : bytes, and their hash; of a picture with truth, of all its files together
    mpp, height, width : of the picture as it is stored
    patches : how many its tissue holds
    """

    side: str
    file: str
    size: int
    sha256: str
    mpp: float
    height: int
    width: int
    patches: float


@dataclass(frozen=True)
class Opening:
    """How pictures are opened.

    Parameters
    ----------
    mpp : micrometres per pixel of the patches
    patch_px, tissue : side of a patch, and the least share of it that is tissue
    memory : for decoded pictures
    workers : threads
    hashed : whether files are hashed
    """

    mpp: float
    patch_px: int
    tissue: float
    memory: Memory
    workers: int = 1
    hashed: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture or a slide, opened when it is read; a `Source` at its own scale.

    Parameters
    ----------
    path : the file
    shape : (height, width) in pixels
    mpp : micrometres per pixel, its own or what was given for those that do not say
    opening : how it is opened
    """

    path: Path
    shape: tuple[int, int]
    mpp: float
    opening: Opening = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return self.path.stem

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3); raises UnreadablePicture where the file is damaged."""
        return self._source().read(y, x, height, width)

    def view(self) -> Source:
        """Return it at the scale of the patches, decoded where it is small."""
        found: Source = self.opening.memory.get((self.path, self.opening.mpp), self._view)
        return found

    def _source(self) -> Source:
        def opened() -> tuple[Source, int]:
            source = open_picture(self.path)
            # A TIFF or a slide holds a handle and little else.
            whole = source.shape[0] * source.shape[1] * 3 if _decodes_whole(source) else 1 << 20
            return source if source.mpp is not None else Restated(source, self.mpp), whole

        found: Source = self.opening.memory.get(self.path, opened)
        return found

    def _view(self) -> tuple[Source, int]:
        source = open_picture(self.path)
        view = rescale(source if source.mpp is not None else Restated(source, self.mpp), self.opening.mpp)
        pixels = view.shape[0] * view.shape[1]
        if pixels <= WHOLE_PX:
            return Image(np.ascontiguousarray(view.read(0, 0, *view.shape)), self.opening.mpp, self.name), pixels * 3
        return rescale(self, self.opening.mpp), 1 << 10


def _decodes_whole(source: Source) -> bool:
    from ..io.raster import RasterPicture

    return isinstance(source, RasterPicture)


@dataclass(frozen=True)
class Usable:
    """A picture with room for patches.

    Parameters
    ----------
    picture : the picture
    places : where patches of it have tissue
    listed : what is written down of it
    """

    picture: Picture
    places: Places
    listed: Listed

    @property
    def name(self) -> str:
        """Path for messages."""
        return self.listed.file

    def window(self, y: int, x: int, side_px: int) -> tuple[NDArray[np.uint8], ...]:
        """Return the pixels uint8 (side, side, 3) at a corner, at the scale of the patches."""
        return (self.picture.view().read(y, x, side_px, side_px),)


U = TypeVar("U")


@dataclass(frozen=True)
class Opened(Generic[U]):
    """What was found of one side: what can be used, and what cannot."""

    usable: tuple[U, ...]
    skipped: tuple[Skipped, ...]


def open_side(side: str, files: Sequence[tuple[Path, str]], mpp: float | None, opening: Opening) -> Opened[Usable]:
    """Open the pictures of one side.

    Parameters
    ----------
    side : for messages: "ihc" or "he"
    files : paths, and how they are listed
    mpp : of pictures that do not say

    Raises
    ------
    NoPictures
        If none can be used.
    ScaleUnknown
        If a picture does not say its scale and `mpp` is None.
    MissingExtra
        If there are slides and OpenSlide is not installed.
    """
    return each(side, files, partial(_open, side, mpp=mpp, opening=opening), opening)


def each(
    side: str,
    files: Sequence[tuple[Path, str]],
    open_one: Callable[[Path, str], U | Skipped],
    opening: Opening,
) -> Opened[U]:
    """Open files in threads, in order; a file with something wrong is skipped. Raises NoPictures where none is left."""

    def attempt(file: tuple[Path, str]) -> U | Skipped:
        try:
            return open_one(*file)
        except UNUSABLE as error:
            # The second line says what to do about it.
            return Skipped(side, file[1], str(error).replace("\n", " "))

    usable: list[U] = []
    skipped: list[Skipped] = []
    for one in _in_threads(attempt, files, opening):
        if isinstance(one, Skipped):
            skipped.append(one)
        else:
            usable.append(one)
    if not usable:
        reasons = "\n".join(f"  {one.file}: {one.reason}" for one in skipped[:5])
        more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise NoPictures(f"The {side} side is empty: none of its {len(skipped)} pictures can be used.\n{reasons}{more}")
    return Opened(tuple(usable), tuple(skipped))


def _in_threads(
    attempt: Callable[[tuple[Path, str]], U], files: Sequence[tuple[Path, str]], opening: Opening
) -> Iterator[U]:
    pool = ThreadPoolExecutor(opening.workers, thread_name_prefix="opening")
    try:
        yield from pool.map(attempt, files)
    finally:
        pool.shutdown(cancel_futures=True)


def _open(side: str, path: Path, file: str, *, mpp: float | None, opening: Opening) -> Usable | Skipped:
    source = open_picture(path)
    scale = source.mpp or mpp
    if scale is None:
        raise ScaleUnknown(
            f"{file!r} of the {side} side has no pixel size.\n"
            f"Pass --mpp 0.25 with the scanner's value, or --set {side}_mpp=0.25 where the sides differ."
        )
    picture = Picture(path, source.shape, scale, opening)
    places = placed(side, file, picture.view(), opening)
    if isinstance(places, Skipped):
        return places
    size, sha256 = fingerprint([path]) if opening.hashed else (0, "")
    return Usable(picture, places, Listed(side, file, size, sha256, scale, *source.shape, patches_in(places, opening)))


def placed(side: str, file: str, view: Source, opening: Opening) -> Places | Skipped:
    """Return where a picture has room for patches, or why it has none."""
    least = opening.patch_px
    if min(view.shape) < least:
        height, width = view.shape
        return Skipped(
            side,
            file,
            f"smaller than the crop: {width} x {height} px at {opening.mpp} um per pixel, {least} x {least} needed",
        )
    places = survey(view, patch_px=least, least=opening.tissue)
    if not places.count:
        return Skipped(
            side, file, f"no patch of it is tissue to at least {opening.tissue:.0%} (--set tissue=0 takes any)"
        )
    return places


def patches_in(places: Places, opening: Opening) -> float:
    """Return how many patches the tissue of a picture holds, at least 1."""
    return max(1.0, round(places.area_px / opening.patch_px**2, 3))


def fingerprint(paths: Sequence[Path]) -> tuple[int, str]:
    """Return the size in bytes of some files together, and one sha256: that of the file where it is one, else of their hashes."""
    hashes = []
    for path in paths:
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return sum(path.stat().st_size for path in paths), whole
