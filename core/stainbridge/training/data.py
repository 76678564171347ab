"""What a training learns from: batches by epoch and number, and what is written down of the files."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataCorrupt
from ..interfaces import Labelled, Unpaired
from ..io import atomic_write
from ..records import Sample, Source
from .finding import find_files
from .held_out import check_each_matches, names_of, split
from .memory import Memory
from .patches import Cutting, Patches
from .settings import TrainConfig
from .sources import Listed, Opened, Opening, Skipped, Usable, open_side
from .subject import Lesson
from .truths import SIDE, Samples, UsableTruth, open_truths

DATA, SKIPPED = "data.csv", "skipped.csv"


@dataclass(frozen=True)
class Watched:
    """Pictures by which epochs are judged: of two stains, or with truth.

    Parameters
    ----------
    ihc, he, labelled : pictures; of a side without any held out, those that are learned from
    held_out : files of each side that are not learned from
    """

    ihc: Sequence[Source] = ()
    he: Sequence[Source] = ()
    labelled: Sequence[Sample] = ()
    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Data(ABC):
    """Batches of a training.

    Parameters
    ----------
    listed : the files that are learned from or looked at
    skipped : those that cannot be used
    watched : pictures by which epochs are judged
    """

    def __init__(self, listed: Sequence[Listed], skipped: Sequence[Skipped], watched: Watched) -> None:
        self.listed, self.skipped, self.watched = tuple(listed), tuple(skipped), watched

    @property
    @abstractmethod
    def sides(self) -> Mapping[str, Patches]:
        """The patches of each side."""

    @abstractmethod
    def batch(self, epoch: int, numbers: Sequence[int]) -> Any:
        """Return patches of an epoch, by number, as the learner takes them."""

    @property
    def patches(self) -> int:
        """Number of patches of the larger side."""
        return max(one.count for one in self.sides.values())


class UnpairedData(Data):
    """Patches of two stains."""

    def __init__(self, ihc: Opened[Usable], he: Opened[Usable], config: TrainConfig) -> None:
        check_each_matches(config.watch.held_out, {"ihc": ihc, "he": he})
        (ours, ours_held), (theirs, theirs_held) = (split(one, config.watch.held_out) for one in (ihc, he))
        listed = [one.listed for one in (*ihc.usable, *he.usable)]
        watched = Watched(
            [one.picture for one in ours_held or ours],
            [one.picture for one in theirs_held or theirs],
            held_out=names_of({"ihc": ours_held, "he": theirs_held}),
        )
        super().__init__(listed, [*ihc.skipped, *he.skipped], watched)
        self._ihc = Patches(ours, _cutting(config), side=0, fixed=config.ihc_patches)
        self._he = Patches(theirs, _cutting(config), side=1, fixed=config.he_patches)

    @property
    def sides(self) -> Mapping[str, Patches]:
        """The patches of IHC and of H&E."""
        return {"ihc": self._ihc, "he": self._he}

    def batch(self, epoch: int, numbers: Sequence[int]) -> Unpaired:
        """Return an `Unpaired` batch."""
        return Unpaired(*(_stacked([side.patch(epoch, one)[0] for one in numbers]) for side in (self._ihc, self._he)))


class LabelledData(Data):
    """Patches with truth."""

    def __init__(self, opened: Opened[UsableTruth], config: TrainConfig) -> None:
        check_each_matches(config.watch.held_out, {SIDE: opened})
        learned, held = split(opened, config.watch.held_out)
        watched = Watched(labelled=Samples(held or learned), held_out=names_of({SIDE: held}))
        super().__init__([one.listed for one in opened.usable], opened.skipped, watched)
        self._patches = Patches(learned, _cutting(config), side=2)

    @property
    def sides(self) -> Mapping[str, Patches]:
        """The patches of the only side."""
        return {SIDE: self._patches}

    def batch(self, epoch: int, numbers: Sequence[int]) -> Labelled:
        """Return a `Labelled` batch."""
        return Labelled(
            *(_stacked(maps) for maps in zip(*(self._patches.patch(epoch, one) for one in numbers), strict=True))
        )


def open_data(config: TrainConfig, lesson: Lesson, *, hashed: bool = True, out: Path | None = None) -> Data:
    """Open the pictures that a training names.

    Parameters
    ----------
    lesson : kind of batch that the learner takes
    hashed : hash the files too
    out : folder of the training, in which no pictures are looked for

    Raises
    ------
    ConfigError
        If pictures to be held out are not there, or both sides have a file in common.
    NoPictures, ScaleUnknown, MissingExtra, DataUnavailable, DataCorrupt
        See `finding.find_files`, `sources.open_side` and `truths.open_truths`.
    """
    opening = Opening(
        config.mpp,
        config.patch_px,
        config.tissue,
        Memory(config.memory_mb << 20),
        config.threads,
        hashed=hashed,
    )
    if lesson == "labelled":
        return LabelledData(open_truths(config.pictures, config.pictures_mpp, opening), config)
    found = {side: find_files(side, getattr(config, side), out=out) for side in ("ihc", "he")}
    ihc, he = (
        _besides(open_side(side, files, getattr(config, f"{side}_mpp"), opening), skipped)
        for side, (files, skipped) in found.items()
    )
    _check_apart(ihc, he, config)
    return UnpairedData(ihc, he, config)


def _besides(opened: Opened[Usable], skipped: Sequence[Skipped]) -> Opened[Usable]:
    return replace(opened, skipped=(*opened.skipped, *skipped))


def _check_apart(ihc: Opened[Usable], he: Opened[Usable], config: TrainConfig) -> None:
    """Refuse a file that is on both sides: whoever gives a folder with both stains in it learns to do nothing."""
    ours = {one.listed.sha256: one.listed.file for one in ihc.usable if one.listed.sha256}
    both = [one.listed for one in he.usable if one.listed.sha256 in ours]
    if not both:
        return
    raise ConfigError(
        f"{both[0].file!r} of the he side is {ours[both[0].sha256]!r} of the ihc side, byte for byte"
        f"{f', and so are {len(both) - 1} more' if len(both) > 1 else ''}.\n{_how_to_part(config)}"
    )


def _how_to_part(config: TrainConfig) -> str:
    places = {side: [Path(one).resolve() for one in getattr(config, side)] for side in ("ihc", "he")}
    for side, other in (("ihc", "he"), ("he", "ihc")):
        above = [one for one in places[side] if any(one in below.parents for below in places[other])]
        if above:
            return f"--{side} {above[0]} holds what --{other} names: give a folder, or a pattern, with pictures of its own stain only."
    return "Give each side a folder, or a pattern such as 'pictures/*_HE.png', with pictures of its own stain only."


def feed(data: Data, epoch: int, steps: Sequence[Sequence[int]], *, workers: int) -> Iterator[Any]:
    """Yield the batches of `steps`, each the numbers of its patches, in order; `workers` threads read ahead, a few batches at most.

    What goes wrong in a thread is raised at the batch that it belongs to.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="patches")
    waiting: deque[Future[Any]] = deque()
    try:
        for numbers in steps:
            waiting.append(pool.submit(data.batch, epoch, numbers))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def numbers_of(step: int, *, batch_size: int, rank: int, world: int) -> list[int]:
    """Return the numbers of the patches of one rank in a step, counted from 0: all ranks together take the next in line."""
    return [(step * batch_size + one) * world + rank for one in range(batch_size)]


def write_lists(folder: Path, data: Data) -> None:
    """Write ``data.csv`` and ``skipped.csv``."""
    for name, kind, rows in ((DATA, Listed, data.listed), (SKIPPED, Skipped, data.skipped)):
        with atomic_write(folder / name) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [one.name for one in fields(kind)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(one) for one in rows)


def check_same(folder: Path, data: Data) -> None:
    """Refuse files other than those that a training began with.

    Raises
    ------
    DataCorrupt
        Naming the first that differs; or if the list of before is missing or damaged.
    """
    before = _read_list(folder / DATA)
    now = [{key: str(value) for key, value in asdict(one).items()} for one in data.listed]
    if before == now:
        return
    was, found = ({(row["side"], row["file"]): row for row in rows} for rows in (before, now))
    keys = [key for key in {**was, **found} if was.get(key) != found.get(key)]
    fault = (
        f"{keys[0][1]!r} of {keys[0][0]!r} {_differs(was.get(keys[0]), found.get(keys[0]))}"
        if keys
        else "they come in another order"
    )
    raise DataCorrupt(
        f"The pictures are not those that the training in {str(folder)!r} began with: {fault}.\n"
        "Bring them back, or start a new training in another folder."
    )


def _read_list(path: Path) -> list[dict[str, str]]:
    names = [one.name for one in fields(Listed)]
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        fault = "" if list(reader.fieldnames or ()) == names else "it has other columns"
    except (OSError, ValueError, csv.Error) as error:
        rows, fault = [], str(error)
    if fault:
        raise DataCorrupt(
            f"{str(path)!r}, the pictures that the training began with, cannot be read: {fault}.\n"
            "Bring the file back, or start a new training in another folder."
        )
    return rows


def _differs(was: Mapping[str, str] | None, found: Mapping[str, str] | None) -> str:
    if was is None or found is None:
        return "is new" if was is None else "is missing or cannot be used any more"
    key = next(key for key in found if was.get(key) != found[key])
    return f"has {key} {found[key]} instead of {was.get(key)}"


def _cutting(config: TrainConfig) -> Cutting:
    return Cutting(
        config.seed, config.mpp, config.patch_px, config.resize_px, config.flips, config.tissue, config.resize_by
    )


def _stacked(maps: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(maps)
