"""What a training learns from: batches by epoch and number, and what is written down of the files."""

from __future__ import annotations

import csv
import fnmatch
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataCorrupt, NoPictures
from ..interfaces import Labelled, Unpaired
from ..io import atomic_write
from ..records import Sample, Source
from .memory import Memory
from .patches import Cutting, Patches
from .settings import TrainConfig
from .sources import Listed, Opened, Opening, Skipped, Usable, find_files, open_side
from .subject import Lesson
from .truths import Samples, UsableTruth, open_truths

DATA, SKIPPED = "data.csv", "skipped.csv"

U = TypeVar("U", Usable, UsableTruth)


@dataclass(frozen=True)
class Watched:
    """Pictures by which epochs are judged: of two stains, or with truth."""

    ihc: Sequence[Source] = ()
    he: Sequence[Source] = ()
    labelled: Sequence[Sample] = ()


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
        (ours, ours_watched), (theirs, theirs_watched) = (_split(one, config) for one in (ihc, he))
        listed = [one.listed for one in (*ihc.usable, *he.usable)]
        watched = Watched([one.picture for one in ours_watched], [one.picture for one in theirs_watched])
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
        learned, watched = _split(opened, config)
        super().__init__([one.listed for one in opened.usable], opened.skipped, Watched(labelled=Samples(watched)))
        self._patches = Patches(learned, _cutting(config), side=2)

    @property
    def sides(self) -> Mapping[str, Patches]:
        """The patches of the only side."""
        return {"pictures": self._patches}

    def batch(self, epoch: int, numbers: Sequence[int]) -> Labelled:
        """Return a `Labelled` batch."""
        return Labelled(
            *(_stacked(maps) for maps in zip(*(self._patches.patch(epoch, one) for one in numbers), strict=True))
        )


def open_data(config: TrainConfig, lesson: Lesson, *, hashed: bool = True) -> Data:
    """Open the pictures that a training names.

    Parameters
    ----------
    lesson : kind of batch that the learner takes
    hashed : hash the files too

    Raises
    ------
    NoPictures, ScaleUnknown, MissingExtra, DataUnavailable, DataCorrupt
        See `sources.open_side` and `truths.open_truths`.
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
    found = {"ihc": find_files("ihc", config.ihc), "he": find_files("he", config.he)}
    ihc = open_side("ihc", found["ihc"], config.ihc_mpp, opening)
    return UnpairedData(ihc, open_side("he", found["he"], config.he_mpp, opening), config)


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
        Naming the first that differs.
    """
    with open(folder / DATA, newline="", encoding="utf-8") as file:
        before = list(csv.DictReader(file))
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


def _differs(was: Mapping[str, str] | None, found: Mapping[str, str] | None) -> str:
    if was is None or found is None:
        return "is new" if was is None else "is missing or cannot be used any more"
    key = next(key for key in found if was.get(key) != found[key])
    return f"has {key} {found[key]} instead of {was.get(key)}"


def _split(opened: Opened[U], config: TrainConfig) -> tuple[Sequence[U], Sequence[U]]:
    """Return what is learned from and what is looked at: of a side without any held out, the same."""
    patterns = config.watch.held_out
    learned: list[U] = []
    held: list[U] = []
    for one in opened.usable:
        out = any(fnmatch.fnmatch(one.picture.path.name, pattern) for pattern in patterns)
        (held if out else learned).append(one)
    if not learned:
        raise NoPictures(
            f"The {opened.usable[0].listed.side} side is empty: watch.held_out = {list(patterns)} holds out all of it."
        )
    return learned, held or learned


def _cutting(config: TrainConfig) -> Cutting:
    return Cutting(
        config.seed, config.mpp, config.patch_px, config.resize_px, config.flips, config.tissue, config.resize_by
    )


def _stacked(maps: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(maps)
