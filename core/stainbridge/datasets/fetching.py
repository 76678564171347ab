"""Fetch the archive of a split, check it, unpack it: the folder appears whole or not at all.

<root>/datasets/<name>/<split>/            the unpacked archive
<root>/datasets/<name>/unverified/<split>/  what is on its way; an interrupted download goes on from here
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stainbridge.cards import Archive, DataCard
from stainbridge.errors import DataCorrupt, DataUnavailable, StainbridgeError, UnknownDataset, WriteFailed, nearest
from stainbridge.weights.scratch import scratch_folder
from stainbridge.weights.store import default_folder, to_stderr
from stainbridge.weights.transfer import SourceError, Transfer, download, shown

from .unpacking import UNPACKED_LIMIT_BYTES, unpack

PATIENCE_S = 600.0
"""How long in seconds to wait for another process that is at work on the same archive but does not get on."""


@dataclass(frozen=True)
class Fetch:
    """How to fetch.

    Parameters
    ----------
    root : where data sets lie; None takes the folder of the weight cache
    offline : never touch the network
    console : a rich console on which progress is drawn; None draws nothing
    notice : called with the licence before a download
    timeout_s : longest wait in seconds for a server to answer or to go on
    limit_bytes : most bytes that an archive may unpack to
    """

    root: Path | None = None
    offline: bool = False
    console: Any = None
    notice: Callable[[str], None] = to_stderr
    timeout_s: float = 30.0
    limit_bytes: int = UNPACKED_LIMIT_BYTES

    def home(self, name: str) -> Path:
        """Return the folder of a data set."""
        return (default_folder() if self.root is None else self.root) / "datasets" / name


def archive_of(name: str, card: DataCard, split: str | None) -> Archive | None:
    """Return the archive of a split, by default the first; None for a data set without archives.

    Raises
    ------
    UnknownDataset
        If there is no such split; names the nearest.
    """
    if not card.archives:
        return None
    found = next((one for one in card.archives if split in (None, one.split)), None)
    if found is None:
        raise UnknownDataset(
            f"{name} has no split {split!r}.{nearest(str(split), card.splits)}\nIts splits: {', '.join(card.splits)}."
        )
    return found


def fetch_split(
    name: str, card: DataCard, split: str | None = None, *, how: Fetch | None = None, by_hand: Path | None = None
) -> Path:
    """Return the folder of an unpacked split, fetching it where it is not there.

    Parameters
    ----------
    split : by default the card's first
    by_hand : an archive that was downloaded already; it is checked and unpacked, and stays

    Raises
    ------
    UnknownDataset
        If there is no such split.
    DataUnavailable
        If it cannot be fetched: no address or hash is known, offline, or no server delivers it.
    DataCorrupt
        If what was delivered has another hash, or the archive is hostile.
    WriteFailed
        If the folder cannot be written.
    """
    how = how or Fetch()
    archive = archive_of(name, card, split)
    if archive is None:
        raise DataUnavailable(f'{name} has no archives; set path = "FOLDER" in the data set\'s table.')
    target = how.home(name) / archive.unpacked
    if target.is_dir():
        return target
    _check_possible(name, card, archive, how, by_hand)
    how.notice(f"{name}: its pictures are under this licence: {card.licence}")
    job = _Job(f"{name}/{archive.split}", archive, how, card.hashes)
    try:
        with scratch_folder(target.parent, archive.unpacked, patience_s=PATIENCE_S) as scratch:
            if not target.is_dir():  # another process may have brought it while we waited
                _bring(job, scratch, target, by_hand)
    except StainbridgeError:
        raise
    except OSError as error:
        raise WriteFailed(
            f"{str(target.parent)!r} cannot be written: {error.strerror or error}.\n"
            "Make room or give permission there, or name another folder by --data-dir."
        ) from error
    return target


def by_hand_advice(name: str, card: DataCard, archive: Archive) -> str:
    """Return how a person gets a split that cannot be fetched."""
    where = f" from {card.homepage}" if card.homepage else ""
    check = ""
    if archive.hashed:
        command = f"stainbridge datasets fetch {name} --split {archive.split} --archive FILE"
        check = f"\nOr have the archive checked and unpacked: {command}"
    return f'Bring it by hand{where}, and set path = "FOLDER" in the data set\'s table or pass --data-dir.{check}'


def _check_possible(name: str, card: DataCard, archive: Archive, how: Fetch, by_hand: Path | None) -> None:
    named = f"{name}/{archive.split}"
    if not archive.hashed and (by_hand or archive.urls):
        raise DataUnavailable(
            f"{named}: no hash of its archive is known, so it is not unpacked unchecked.\n"
            f'Unpack it yourself, and set path = "FOLDER" in the data set\'s table or pass --data-dir.'
        )
    if by_hand is not None:
        return
    if not archive.fetchable:
        raise DataUnavailable(f"{named} cannot be fetched: no address is known.\n{by_hand_advice(name, card, archive)}")
    if how.offline:
        raise DataUnavailable(
            f"{named} is not in {str(how.home(name))!r}, and was not fetched: offline.\n"
            f"Run once without --offline. {by_hand_advice(name, card, archive)}"
        )


@dataclass(frozen=True)
class _Job:
    """One archive on its way; `origin` says who published its hash, where that is not the source."""

    named: str
    archive: Archive
    how: Fetch
    origin: str

    def wrong(self, text: str) -> DataCorrupt:
        """Return the error for bytes that are not the published ones."""
        return DataCorrupt(f"{text}\nThe hash is not from the source itself: {self.origin}." if self.origin else text)


def _bring(job: _Job, scratch: Path, target: Path, by_hand: Path | None) -> None:
    """Put the checked and unpacked archive at `target`."""
    whole = _checked(job, by_hand) if by_hand else _download(job, scratch)
    unpacked = scratch / "unpacked"
    try:
        unpack(whole, unpacked, limit_bytes=job.how.limit_bytes)
        os.replace(unpacked, target)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        if not by_hand:
            _forget(whole)


def _checked(job: _Job, by_hand: Path) -> Path:
    if not by_hand.is_file():
        raise DataUnavailable(f"{job.named}: the archive {str(by_hand)!r} does not exist.")
    fault = _difference(by_hand, job.archive)
    if fault:
        raise job.wrong(f"{job.named}: {str(by_hand)!r} is not the published archive: {fault}.")
    return by_hand


def _download(job: _Job, scratch: Path) -> Path:
    failures: list[tuple[str, SourceError]] = []
    for url in job.archive.urls:
        part = scratch / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
        try:
            return _download_one(job, url, part)
        except SourceError as failure:
            failures.append((url, failure))
    lines = [f"{job.named} could not be fetched:", *(f"  {shown(url)}: {failure}" for url, failure in failures)]
    if all(failure.wrong for _, failure in failures):
        raise job.wrong("\n".join(lines))
    raise DataUnavailable("\n".join([*lines, "Try again: what has come so far is kept."]))


def _download_one(job: _Job, url: str, part: Path) -> Path:
    # A download that was whole when its process died is not asked for again.
    if part.exists() and not _difference(part, job.archive):
        return part
    resumed = part.exists()
    with _progress(job.how.console, job.named, job.archive.size) as report:
        download(Transfer(url, part, job.archive.size, job.how.timeout_s, report))
    fault = _difference(part, job.archive)
    if not fault:
        return part
    _forget(part)
    if resumed:  # the first half may have been the wrong one: once more from the start
        return _download_one(job, url, part)
    raise SourceError(f"delivered something else: {fault}", wrong=True)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".validator").unlink(missing_ok=True)


def _difference(path: Path, archive: Archive) -> str:
    """Return how a file differs from the card's hash, the sha256 where there is one; an empty string where it does not."""
    kind, wanted = ("sha256", archive.sha256) if archive.sha256 else ("md5", archive.md5)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=kind == "sha256")).hexdigest()
    return "" if found == wanted else f"{kind} {found} instead of {wanted} ({path.stat().st_size:,} bytes)"


@contextmanager
def _progress(console: Any, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draw a bar on a rich console and yield what is to be called with the bytes present; no console, no bar."""
    if console is None:
        yield lambda done: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)
