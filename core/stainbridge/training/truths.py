"""Pictures with instance labels, and types where they have them, at the scale of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..datasets.folder import TYPES, FolderItem, folder_items
from ..datasets.item import Place
from ..datasets.truth import LABEL_SUFFIXES, check_size, read_array, whole_numbers
from ..errors import DataUnavailable, NoPictures, ScaleUnknown, UnusableTruth
from ..io import open_picture
from ..records import LabelMap, Labels, Sample
from ..scale import RescaledLabels
from .sources import Listed, Opened, Opening, Picture, Skipped, each, fingerprint, patches_in, placed
from .tissue import Places

SIDE = "pictures"


@dataclass(frozen=True)
class UsableTruth:
    """A picture with truth and room for patches.

    Parameters
    ----------
    picture, places, listed : as of `sources.Usable`
    item : where its labels are
    types : the file with the type of each pixel, or None
    """

    picture: Picture
    places: Places
    listed: Listed
    item: FolderItem
    types: Path | None

    @property
    def name(self) -> str:
        """Path for messages."""
        return self.listed.file

    def window(self, y: int, x: int, side_px: int) -> tuple[NDArray[np.generic], ...]:
        """Return pixels uint8 (side, side, 3), labels int32 and, where there are some, types uint8, each (side, side)."""
        pixels = self.picture.view().read(y, x, side_px, side_px)
        maps = self.picture.opening.memory.get((self.picture.path, "truth"), self._maps)
        return (pixels, *(one[y : y + side_px, x : x + side_px] for one in maps))

    def sample(self) -> Sample:
        """Return picture and truth at the picture's own scale."""
        labels = self.item.sample().truth.array
        return Sample(self.picture, Labels(labels, self.picture.mpp))

    def _maps(self) -> tuple[tuple[LabelMap, ...], int]:
        labels = self.item.sample().truth.array
        maps = [self._at_scale(labels)]
        if self.types is not None:
            maps.append(self._at_scale(_types(self.types, labels.shape)).astype(np.uint8))
        return tuple(maps), sum(one.nbytes for one in maps)

    def _at_scale(self, whole: LabelMap) -> LabelMap:
        view = self.picture.view()
        scaled = RescaledLabels(_Plain(whole, self.picture.mpp), view.shape, view.mpp)
        return scaled.read(0, 0, *view.shape)


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """Pictures with truth that are read when they are asked for."""

    usable: Sequence[UsableTruth]

    def __len__(self) -> int:
        return len(self.usable)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        return Samples(self.usable[index]) if isinstance(index, slice) else self.usable[index].sample()


def open_truths(folders: Sequence[Path], mpp: float | None, opening: Opening) -> Opened[UsableTruth]:
    """Open folders of pictures with truth, in the layout of `datasets.folder`; types are ``NAME_types.*`` beside the labels.

    Types are used where any picture has them; those without are then skipped. Errors as `sources.open_side`, and

    Raises
    ------
    DataUnavailable, DataCorrupt
        If a folder has no truth, or pictures and truth do not belong together.
    """
    items = {
        item.picture: (item, f"{folder.name}/{item.picture.name}") for folder in folders for item in _items(folder)
    }
    types = {path: found for path, (item, _) in items.items() if (found := _types_of(item)) is not None}
    files = [(path, file) for path, (_, file) in items.items()]

    def open_one(path: Path, file: str) -> UsableTruth | Skipped:
        if types and path not in types:
            return Skipped(SIDE, file, f"it has no {path.stem}{TYPES} file, which others have")
        return _open(items[path][0], file, types.get(path), mpp=mpp, opening=opening)

    return each(SIDE, files, open_one, opening)


def _items(folder: Path) -> list[FolderItem]:
    if not folder.is_dir():
        raise NoPictures(
            f"The {SIDE} side is empty: {str(folder)!r} is no folder.\nName folders of pictures with --{SIDE}."
        )
    try:
        return [item for item in folder_items(Place(folder)) if isinstance(item, FolderItem)]
    except DataUnavailable as error:
        raise DataUnavailable(str(error).replace("layout = 'pictures'", "another plugin")) from None


def _open(
    item: FolderItem, file: str, types: Path | None, *, mpp: float | None, opening: Opening
) -> UsableTruth | Skipped:
    source = open_picture(item.picture)
    scale = source.mpp or mpp
    if scale is None:
        raise ScaleUnknown(f"{file!r} has no pixel size.\nPass --mpp 0.25 with the scanner's value.")
    picture = Picture(item.picture, source.shape, scale, opening)
    places = placed(SIDE, file, picture.view(), opening)
    if isinstance(places, Skipped):
        return places
    assert item.truth is not None
    files = [item.picture, item.truth, *([types] if types else [])]
    size, sha256 = fingerprint(files) if opening.hashed else (0, "")
    listed = Listed(SIDE, file, size, sha256, scale, *source.shape, patches_in(places, opening))
    # The data set's own reading needs a scale, and this picture's is known here.
    found = UsableTruth(picture, places, listed, replace(item, mpp=scale), types)
    found.window(0, 0, 1)
    return found


def _types_of(item: FolderItem) -> Path | None:
    assert item.truth is not None
    beside = (item.truth.with_name(f"{item.picture.stem}{TYPES}{suffix}") for suffix in LABEL_SUFFIXES)
    return next((path for path in beside if path.is_file()), None)


def _types(path: Path, shape: tuple[int, ...]) -> NDArray[np.int32]:
    types = whole_numbers(read_array(path), path.name)
    check_size(types.shape, shape, path.name, "labels")
    if types.max(initial=0) > 255:
        raise UnusableTruth(f"{path.name!r} holds the type {types.max()}; types are 0 to 255, 0 for background.")
    return types.astype(np.int32)


@dataclass(frozen=True)
class _Plain:
    """Numbers of pixels as a `LabelSource`."""

    array: NDArray[np.int32]
    mpp: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    def read(self, y: int, x: int, height: int, width: int) -> LabelMap:
        return self.array[y : y + height, x : x + width]
