"""Which patch is learned from at which place of an epoch: a pure function of seed, side, epoch and number, whoever asks and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UnreadablePicture
from ..records import RGB
from .settings import Flips
from .sources import Listed
from .tissue import Places, share_of

TRIES = 8
"""Corners that are tried in a picture until a patch has enough tissue; of less, the one with the most is taken."""

Maps = tuple[NDArray[np.generic], ...]
"""Pixels uint8 (side, side, 3), and maps (side, side) of the same patch: labels, types."""

_CORNER, _CHANGE, _ORDER = range(3)


class Cuttable(Protocol):
    """A picture that patches can be cut from."""

    @property
    def listed(self) -> Listed:
        """What is written down of it."""
        ...

    @property
    def places(self) -> Places:
        """Where patches have tissue."""
        ...

    def window(self, y: int, x: int, side_px: int) -> Maps:
        """Return the pixels, and maps, at a corner."""
        ...


@dataclass(frozen=True)
class Cutting:
    """How patches are cut.

    Parameters
    ----------
    seed : of corners, order and changes
    mpp : micrometres per pixel
    patch_px, resize_px, flips, tissue, resize_by : see `settings.TrainConfig`
    """

    seed: int
    mpp: float
    patch_px: int
    resize_px: int | None = None
    flips: Flips = "none"
    tissue: float = 0.0
    resize_by: Literal["bicubic", "bilinear"] = "bicubic"


class Patches:
    """The patches of one side.

    A round goes through strata of equal tissue, each once in a random order: from pictures as large as the patch, each picture once. The
    picture is drawn by its tissue, the corner uniformly among those with enough tissue.

    Parameters
    ----------
    pictures : in a fixed order
    cutting : how
    side : number that tells the sides apart
    fixed : so many patches, drawn once; None: as many as the tissue holds, drawn anew in each round
    """

    def __init__(
        self, pictures: Sequence[Cuttable], cutting: Cutting, *, side: int = 0, fixed: int | None = None
    ) -> None:
        self.pictures, self.cutting, self._side, self._fixed = tuple(pictures), cutting, side, fixed
        self._until = np.cumsum([one.listed.patches for one in self.pictures])
        self.count = fixed or max(1, round(float(self._until[-1])))
        self.damaged: dict[str, str] = {}
        """What was wrong with windows that could not be read, by file."""
        self._order = lru_cache(maxsize=4)(self._permutation)

    def patch(self, epoch: int, number: int) -> Maps:
        """Return patch `number` of an epoch, counted from 0, changed at random: contiguous pixels, and labels without gaps."""
        change = _generator(self.cutting.seed, _CHANGE, self._side, epoch, number)
        maps = changed(self._cut(epoch, number), self.cutting, change)
        if len(maps) == 1:
            return maps
        from ..datasets.truth import relabelled

        return (maps[0], relabelled(maps[1]), *maps[2:])

    def corners(self, epoch: int, number: int) -> Iterator[tuple[int, int, int]]:
        """Yield (picture, y, x): where a patch lies, then where it is looked for in the same picture if that has too little tissue."""
        again, place = divmod(number, self.count)
        stratum = int(self._order(epoch, again)[place])
        drawn = (0, 0) if self._fixed else (epoch, again)
        rng = _generator(self.cutting.seed, _CORNER, self._side, *drawn, stratum)
        at = (stratum + rng.random()) / self.count * self._until[-1]
        picture = min(int(np.searchsorted(self._until, at, side="right")), len(self.pictures) - 1)
        places = self.pictures[picture].places
        for _ in range(min(TRIES, places.count)):
            yield picture, *places.corner(int(rng.integers(places.count)))

    def _cut(self, epoch: int, number: int) -> Maps:
        best: tuple[float, Maps] | None = None
        failure: UnreadablePicture | None = None
        for index, y, x in self.corners(epoch, number):
            picture = self.pictures[index]
            try:
                maps = picture.window(y, x, self.cutting.patch_px)
            except UnreadablePicture as error:
                self.damaged[picture.listed.file] = str(error).partition("\n")[0]
                failure = error
                continue
            share = share_of(_pixels(maps), self.cutting.mpp, picture.places.glass)
            if best is None or share > best[0]:
                best = (share, maps)
            if share >= self.cutting.tissue:
                break
        if best is None:
            assert failure is not None
            raise failure
        return best[1]

    def _permutation(self, epoch: int, again: int) -> NDArray[np.int64]:
        return _generator(self.cutting.seed, _ORDER, self._side, epoch, again).permutation(self.count)


def changed(maps: Maps, cutting: Cutting, rng: np.random.Generator) -> Maps:
    """Return a patch resized and cut, mirrored and turned at random; pixels by Pillow's bicubic filter, maps by nearest neighbour."""
    if cutting.resize_px is not None and cutting.resize_px != cutting.patch_px:
        y, x = (int(at) for at in rng.integers(cutting.resize_px - cutting.patch_px + 1, size=2))
        cut = slice(y, y + cutting.patch_px), slice(x, x + cutting.patch_px)
        maps = tuple(_resized(one, cutting.resize_px, cutting.resize_by)[cut] for one in maps)
    across, down, turn = (bool(bit) for bit in rng.integers(2, size=3))
    if cutting.flips != "none" and across:
        maps = tuple(one[:, ::-1] for one in maps)
    if cutting.flips == "all":
        maps = tuple(one[::-1] for one in maps) if down else maps
        maps = tuple(one.swapaxes(0, 1) for one in maps) if turn else maps
    return tuple(np.ascontiguousarray(one) for one in maps)


def _resized(one: NDArray[np.generic], side_px: int, by: str) -> NDArray[np.generic]:
    if one.ndim == 2:
        nearest = np.floor((np.arange(side_px) + 0.5) * (len(one) / side_px)).astype(np.intp)
        return one[np.ix_(nearest, nearest)]
    from PIL import Image as Pillow

    picture = Pillow.fromarray(np.ascontiguousarray(one))
    return np.asarray(picture.resize((side_px, side_px), Pillow.Resampling[by.upper()]))


def _pixels(maps: Maps) -> RGB:
    pixels: RGB = maps[0]  # type: ignore[assignment]
    return pixels


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
