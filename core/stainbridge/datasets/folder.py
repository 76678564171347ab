"""Folders of pictures: with label images or GeoJSON outlines as truth, or without truth.

The truth of ``NAME.png`` is ``NAME_labels.png`` (or .tif, .npy) or ``NAME.geojson`` beside it, or ``NAME.*`` in a folder
of its own: the one that is named, else ``labels`` or ``masks`` beside a folder ``images``. Classes per pixel are
``NAME_types.*``, beside the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import ConfigError, DataCorrupt, DataUnavailable
from stainbridge.io.find import SUFFIXES
from stainbridge.records import LabelMap, Labels, Sample, Source

from .item import Item, Place, listed, opened, truth_of
from .outlines import positives, rasterised, read_geojson
from .truth import LABEL_SUFFIXES, check_size, classes_of, read_array, read_labels, whole_numbers

LABELS, TYPES, GEOJSON = "_labels", "_types", ".geojson"
_TRUTH_FOLDERS = ("labels", "masks")


@dataclass(frozen=True)
class FolderItem(Item):
    """A picture of a folder.

    Parameters
    ----------
    types : the file with the class of each pixel, where it is used
    positive : classes that are positive
    """

    types: Path | None = None
    positive: tuple[int | str, ...] = ()

    def source(self) -> Source:
        """Open the picture."""
        return opened(self)

    def sample(self) -> Sample:
        """Read picture and truth."""
        truth, source = truth_of(self), self.source()
        if truth.suffix.lower() == GEOJSON:
            labels, positive = self._drawn(truth, source.shape)
        else:
            labels, positive = self._read(truth, source.shape)
        return Sample(source, Labels(labels, source.mpp), positive)

    def _drawn(self, truth: Path, shape: tuple[int, int]) -> tuple[LabelMap, NDArray[np.bool_] | None]:
        outlines = read_geojson(truth)
        labels, kept = rasterised([one.parts for one in outlines], shape, truth.name)
        positive = positives(outlines, [str(name) for name in self.positive], truth.name)
        return labels, None if positive is None else positive[kept]

    def _read(self, truth: Path, shape: tuple[int, int]) -> tuple[LabelMap, NDArray[np.bool_] | None]:
        labels = read_labels(truth)
        check_size(labels.shape, shape, truth.name, f"picture {self.picture.name!r}")
        if self.types is None:
            return labels, None
        classes = classes_of(labels, whole_numbers(read_array(self.types), self.types.name), self.types.name)
        return labels, np.isin(classes, list(self.positive))


def folder_items(place: Place) -> list[Item]:
    """List pictures with truth.

    Raises
    ------
    DataUnavailable
        If there is no picture, or no truth at all.
    DataCorrupt
        If pictures lack truth, truth lacks its picture, or a picture has two truths.
    """
    folder, truth_folder = _sides(place)
    pictures = [path for path in _pictures(folder) if not path.stem.endswith((LABELS, TYPES))]
    if not pictures:
        raise DataUnavailable(f"{str(folder)!r} holds no picture.\nLooked for {', '.join(SUFFIXES)}.")
    truths = _truths(truth_folder, apart=truth_folder != folder)
    if not truths:
        raise DataUnavailable(
            f"{str(truth_folder)!r} holds no truth: expected NAME{LABELS}.png, .tif or .npy, or NAME{GEOJSON}, for the "
            f"picture NAME.\nSet truth = FOLDER where it lies elsewhere, or layout = 'pictures' where there is none."
        )
    check_pairs(pictures, truths, place)
    types = _types(truth_folder, [path for path in pictures if place.wants(path)], truths, place)
    return [
        FolderItem(
            path.stem, path, place.mpp, truth=truths[path.stem], types=types.get(path.stem), positive=place.positive
        )
        for path in pictures
        if place.wants(path)
    ]


def picture_items(place: Place) -> list[Item]:
    """List pictures without truth; raises DataUnavailable where there is none."""
    pictures = _pictures(place.folder)
    if not pictures:
        raise DataUnavailable(f"{str(place.folder)!r} holds no picture.\nLooked for {', '.join(SUFFIXES)}.")
    return [FolderItem(path.stem, path, place.mpp) for path in pictures if place.wants(path)]


def check_pairs(pictures: Sequence[Path], truths: Mapping[str, Path], place: Place) -> None:
    """Raise DataCorrupt where a chosen picture has no truth or, unless there are patterns, a truth no picture."""
    names = {path.stem for path in pictures}
    without = [path.name for path in pictures if place.wants(path) and path.stem not in truths]
    orphans = [] if place.patterns else [truths[name].name for name in sorted(truths.keys() - names)]
    faults = []
    if without:
        faults.append(f"{len(without)} pictures have no truth: {listed(without)}")
    if orphans:
        faults.append(f"{len(orphans)} truth files have no picture: {listed(orphans)}")
    if faults:
        raise DataCorrupt(
            f"{str(place.folder)!r}: {'; '.join(faults)}.\n"
            "Complete or remove them, or choose by pictures = [PATTERN, ...] in the data set's table."
        )


def _sides(place: Place) -> tuple[Path, Path]:
    """Return the folder of the pictures and that of the truth."""
    images = place.folder / "images"
    folder = images if place.truth is None and images.is_dir() and not _pictures(place.folder) else place.folder
    if place.truth is not None:
        if not place.truth.is_dir():
            raise DataUnavailable(f"The folder of the truth, {str(place.truth)!r}, does not exist.")
        return folder, place.truth
    beside = [folder.parent / name for name in _TRUTH_FOLDERS if (folder.parent / name).is_dir()]
    return folder, beside[0] if folder.name == "images" and beside else folder


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _truths(folder: Path, *, apart: bool) -> dict[str, Path]:
    """Return the truth file of each picture's name; in a folder of its own it may be named like the picture."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        suffix, name = path.suffix.lower(), path.stem.removesuffix(LABELS)
        is_labels = suffix in LABEL_SUFFIXES and not path.stem.endswith(TYPES) and (apart or name != path.stem)
        if not is_labels and suffix != GEOJSON:
            continue
        if name in found:
            raise DataCorrupt(f"The picture {name!r} has two truths: {found[name]} and {path}.\nRemove one of them.")
        found[name] = path
    return found


def _types(folder: Path, chosen: list[Path], truths: Mapping[str, Path], place: Place) -> dict[str, Path]:
    """Return the file of classes of each picture; none where no class is said to be positive."""
    labelled = [path.stem for path in chosen if truths[path.stem].suffix.lower() != GEOJSON]
    if not place.positive or not labelled:
        return {}
    names = [entry for entry in place.positive if not isinstance(entry, int)]
    if names:
        raise ConfigError(
            f"positive = {list(place.positive)}: classes in {TYPES} files are whole numbers, not {names}."
        )
    found = {path.stem.removesuffix(TYPES): path for path in _files(folder) if path.stem.endswith(TYPES)}
    without = [name for name in labelled if name not in found]
    if without:
        raise DataCorrupt(
            f"positive = {list(place.positive)} needs the class of each pixel; {len(without)} pictures have no "
            f"NAME{TYPES} file: {listed(without)}."
        )
    return {name: found[name] for name in labelled}
