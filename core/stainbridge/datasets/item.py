"""A data set as a list of light items; pixels and truth are read when they are asked for."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stainbridge.cards import DataCard
from stainbridge.errors import DataCorrupt, DataUnavailable, ScaleUnknown
from stainbridge.io import open_picture
from stainbridge.records import Sample, Source

SHOWN = 5
"""Most names that a message lists."""


@dataclass(frozen=True)
class Item(ABC):
    """One picture of a data set: paths and settings only, so it is cheap to send to another process.

    Parameters
    ----------
    name : unique within the data set
    picture : the file that holds the picture
    mpp : micrometres per pixel by the card or the table; None takes the picture's own
    subset : part of the data set that it belongs to, or an empty string
    truth : the file that holds the truth, or None where there is none
    """

    name: str
    picture: Path
    mpp: float | None = None
    subset: str = ""
    truth: Path | None = None

    @abstractmethod
    def source(self) -> Source:
        """Open the picture; its name is that of the item.

        Raises
        ------
        ScaleUnknown
            If neither the data set nor the picture says how large a pixel is.
        """

    @abstractmethod
    def sample(self) -> Sample:
        """Read picture and truth.

        Raises
        ------
        DataUnavailable
            If there is no truth.
        UnusableTruth
            If the truth cannot be read as instance labels or does not fit the picture.
        """


@dataclass(frozen=True)
class Dataset:
    """Pictures, with truth or without.

    Parameters
    ----------
    name : of the card or the table
    card : what is known about it; of a table without a card, what the table says
    split : "test", ...; None where there are no splits
    reading : of the truth, where the layout has several
    items : sorted by name
    folder : where the pictures lie
    remarks : what a reader of the results should know, such as a number of pictures that is not the published one
    """

    name: str
    card: DataCard
    split: str | None
    reading: str | None
    items: tuple[Item, ...]
    folder: Path
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_truth(self) -> bool:
        """Whether every picture has truth."""
        return all(item.truth is not None for item in self.items)


@dataclass(frozen=True)
class Place:
    """Where a data set lies and how its files are read.

    Parameters
    ----------
    folder : of the pictures
    truth : folder of the truth; None takes `folder`, or what the layout says
    patterns : of file names, such as "Lung_*.png"; empty takes every picture
    mpp : micrometres per pixel; None takes each picture's own
    reading : of the truth, where the layout has several
    positive : classes that are positive
    """

    folder: Path
    truth: Path | None = None
    patterns: tuple[str, ...] = ()
    mpp: float | None = None
    reading: str | None = None
    positive: tuple[int | str, ...] = ()

    def wants(self, path: Path) -> bool:
        """Tell whether the patterns choose a picture."""
        return not self.patterns or any(fnmatch.fnmatch(path.name, pattern) for pattern in self.patterns)


def opened(item: Item) -> Source:
    """Open the file of an item, which has to be one picture."""
    source = open_picture(item.picture, mpp=item.mpp)
    if source.mpp is None:
        raise scale_unknown(item.picture)
    return source


def scale_unknown(picture: Path, note: str = "") -> ScaleUnknown:
    """Return the error for a picture without a pixel size."""
    return ScaleUnknown(
        f"{picture.name!r} has no pixel size, and the data set states none.\n"
        f"Set mpp (micrometres per pixel) in the data set's table, such as mpp = 0.25.{note and ' '}{note}"
    )


def truth_of(item: Item) -> Path:
    """Return the truth's file; raises DataUnavailable where there is none."""
    if item.truth is None:
        raise DataUnavailable(
            f"{item.name!r} has no truth to score against; predictions on it can be exported "
            "(stainbridge detections export)."
        )
    return item.truth


def check_unique(items: Sequence[Item]) -> None:
    """Raise DataCorrupt, naming both files, where two pictures have one name."""
    seen: dict[str, Item] = {}
    for item in items:
        other = seen.setdefault(item.name, item)
        if other is not item:
            raise DataCorrupt(
                f"Two pictures of the data set are named {item.name!r}: {other.picture} and {item.picture}.\n"
                "Rename one of them, or choose by pictures = [PATTERN, ...] in the data set's table."
            )


def listed(names: Iterable[object]) -> str:
    """Return up to `SHOWN` names and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
