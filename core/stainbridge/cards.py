"""Data cards: what a registry says about a data set before any of it is on the disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .interfaces import Stain
from .records import PLAUSIBLE_MPP

Layout = Literal["deepliif", "folder", "monuseg", "pannuke", "pictures"]
"""How the files of a data set lie; "pictures" is a folder without truth."""

Filled = Annotated[str, Field(min_length=1)]

Mpp = Annotated[float, Field(ge=PLAUSIBLE_MPP[0], le=PLAUSIBLE_MPP[1], allow_inf_nan=False)]
"""Micrometres per pixel."""

_URL = r"https://[^/\s#]+/[^\s#]+|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?/[^\s#]+"


class Facts(BaseModel):
    """A table of a registry file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(Facts):
    """One split, and the zip or tar archive that holds it.

    Parameters
    ----------
    split : "train", "test", "fold1", ...
    urls : tried in order; empty where it has to be brought by hand
    sha256, md5 : hexadecimal; md5 only where nobody has published a sha256; without either nothing is fetched
    size : bytes, where known
    folder : of the pictures, inside the archive
    truth : of the truth files, inside the archive, where it is another folder
    into : name of the unpacked folder, for splits that share an archive; empty takes the split's name
    """

    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    urls: tuple[str, ...] = ()
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    folder: str = ""
    truth: str = ""
    into: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")] = ""

    @field_validator("urls")
    @classmethod
    def _fetched_safely(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not re.fullmatch(_URL, url):
                raise ValueError(f"{url!r} must be an address https://HOST/PATH")
        return urls

    @field_validator("folder", "truth")
    @classmethod
    def _stays_inside(cls, folder: str) -> str:
        path = PurePosixPath(folder)
        if path.is_absolute() or ".." in path.parts or "\\" in folder:
            raise ValueError(f"{folder!r} leaves the archive")
        return folder

    @property
    def unpacked(self) -> str:
        """Name of the folder that the archive becomes."""
        return self.into or self.split

    @property
    def hashed(self) -> bool:
        """Whether an archive can be checked."""
        return bool(self.sha256 or self.md5)

    @property
    def fetchable(self) -> bool:
        """Whether it can be fetched and checked."""
        return bool(self.urls) and self.hashed


class DataCard(Facts):
    """A data set.

    Parameters
    ----------
    summary : one line
    layout : how its files lie, see `Layout`
    stain : "ihc" or "he"
    mpp : micrometres per pixel; None where the source does not state it
    licence, commercial : of the data; `commercial` is False where the licence does not say
    citation : the paper, or an empty string
    homepage : where people get it, for messages
    hashes : who published the hashes, where it is not the source itself
    note : what to know before using it
    aliases : other names under which models list it in `training`
    contains : data sets that are part of it
    archives : by split, the first is the default
    pictures : how many each split has, as published
    reading : of the truth, where the layout has several
    positive : ids or names of the classes that are positive, where truth has classes
    """

    summary: Filled
    layout: Layout
    stain: Stain
    mpp: Mpp | None = None
    licence: Filled
    commercial: bool
    citation: str = ""
    homepage: str = ""
    hashes: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    pictures: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    reading: str | None = None
    positive: tuple[int | str, ...] = ()

    @model_validator(mode="after")
    def _splits_are_known(self) -> DataCard:
        if len(set(self.splits)) < len(self.archives):
            raise ValueError("archives must have a different split each")
        unknown = self.pictures.keys() - set(self.splits)
        if unknown:
            raise ValueError(f"pictures counts the splits {sorted(unknown)}, which no archive has")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; the first is the default."""
        return tuple(archive.split for archive in self.archives)


def trained_on(name: str, card: DataCard, training: Iterable[str], *, split: str | None = None) -> tuple[str, ...]:
    """Return which data sets of a model's `training` are the data set called `name`, a part of it, or hold it.

    Upper case and separators do not count: "MoNuSeg 2018" is "monuseg_2018". A name "DATASET/SPLIT" means that split
    only; with `split` None it counts too.
    """
    own = {_plain(one) for one in (name, *card.aliases, *card.contains)}
    found = []
    for entry in training:
        base, _, part = entry.partition("/")
        if _plain(base) in own and (not part or split is None or _plain(part) == _plain(split)):
            found.append(entry)
    return tuple(found)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
