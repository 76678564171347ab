"""Run many pictures with plugins built once; a failure is a row of the ledger and the others go on."""

from __future__ import annotations

import csv
import hashlib
import io as text_io
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from .config import RunConfig
from .errors import ConfigError, OutputExists, UnreadablePicture
from .io import atomic_write, check_output, open_picture, save
from .io.atomic import take_back, write_failed
from .pipeline import Progress, Stages, run_stages
from .records import Source

LEDGER, SUMMARY = "ledger.csv", "summary.json"


@dataclass(frozen=True)
class Entry:
    """One picture of a batch, as in `ledger.csv`.

    Parameters
    ----------
    picture, folder : a byte of a name that is not UTF-8 is written as a backslash escape
    status : "done", "failed" or "kept" (finished by an earlier run)
    nuclei, positive, percent_positive : None if failed
    seconds : wall time of this picture, of the earlier run if kept
    error : what went wrong, with the kind of error; empty unless failed
    """

    picture: str
    folder: str
    status: str
    nuclei: int | None = None
    positive: int | None = None
    percent_positive: float | None = None
    seconds: float = 0.0
    error: str = ""


OnStart: TypeAlias = Callable[[Path], Progress | None]
_COLUMNS = [field.name for field in fields(Entry)]


def run_batch(
    pictures: Sequence[Path],
    out: Path,
    config: RunConfig,
    *,
    existing: str = "refuse",
    on_start: OnStart | None = None,
) -> Iterator[Entry]:
    """Run every picture into a folder of its own below `out`, and yield its ledger entry when it is finished.

    Parameters
    ----------
    existing : what to do about results that are there: "refuse" (before anything is computed), "overwrite", or "resume"
        (keep what is finished, of the same picture with the same settings, and do the others)
    on_start : called before each picture; may return a `Progress` to be told of its steps

    Raises
    ------
    OutputExists
        If `out` has something in it and `existing` is "refuse".
    WriteFailed
        If `out` cannot be written to; that is tried before the plugins are built.
    StainbridgeError
        If the plugins cannot be built. Errors of single pictures are entries.
    """
    if existing not in ("refuse", "overwrite", "resume"):
        raise ConfigError(f"existing = {existing!r}: must be 'refuse', 'overwrite' or 'resume'.")
    require_free(out, existing)
    stages = Stages.build(config)
    rows = {row["folder"]: row for row in _read_rows(out)}
    for picture, name in zip(pictures, folder_names(pictures), strict=True):
        progress = on_start(picture) if on_start else None
        entry = _run_one(picture, out / name, stages, existing=existing, progress=progress)
        if entry.status == "kept":
            entry = replace(entry, seconds=_seconds(rows.get(entry.folder, {})))
        rows[entry.folder] = _row(entry)
        _write_rows(rows.values(), out)
        yield entry


def require_free(out: Path, existing: str) -> None:
    """Raise unless results may be written to `out`; it is tried, and nothing is left behind.

    Raises
    ------
    OutputExists
        If `out` is a file, or has something in it and `existing` is "refuse".
    WriteFailed
        If the folder cannot be made or written to.
    """
    try:
        _check_unused(out, existing)
        _probe(out)
    except OutputExists:
        raise
    except OSError as error:
        raise write_failed(out, error) from error


def folder_names(pictures: Sequence[Path]) -> list[str]:
    """Return one folder name per picture: its stem, longer only where that is not free; never hidden."""
    names = [picture.stem.lstrip(".") for picture in pictures]
    for longer in (lambda p: p.name, lambda p: f"{p.parent.name}__{p.name}"):
        taken = _taken(names)
        names = [
            longer(picture).lstrip(".") if name.casefold() in taken else name
            for picture, name in zip(pictures, names, strict=True)
        ]
    taken = _taken(names)
    return [f"{index:04d}__{name}" if name.casefold() in taken else name for index, name in enumerate(names, start=1)]


def write_ledger(entries: Iterable[Entry], out: Path) -> Path:
    """Write `ledger.csv` below `out`, atomically."""
    return _write_rows(map(_row, entries), out)


def refresh_ledger(out: Path, folders: Iterable[Path]) -> None:
    """Bring the counts in `out`'s ledger up to the summaries of `folders`; rows that failed, and others, stay.

    Nothing happens where `out` has no ledger of ours.

    Raises
    ------
    UnreadablePicture
        If a folder with a row has no whole summary.
    WriteFailed
        If the ledger cannot be written; the old one then stays.
    """
    rows = _read_rows(out)
    if not rows:
        return
    by_name = {printable(os.path.basename(os.path.abspath(folder))): folder for folder in folders}
    for row in rows:
        if row["folder"] in by_name and row["status"] != "failed":
            counts = _counts(_summary(by_name[row["folder"]]))
            row |= {name: _cell(value) for name, value in counts.items()}
    _write_rows(rows, out)


def printable(text: object) -> str:
    """Return `text` with what UTF-8 cannot say, as in the name of a file that is not UTF-8, as backslash escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _run_one(picture: Path, folder: Path, stages: Stages, *, existing: str, progress: Progress | None) -> Entry:
    start = time.perf_counter()
    entry = Entry(printable(picture), printable(folder.name), "done")
    try:
        take_back(folder)
        if existing == "resume" and (folder / SUMMARY).exists():
            return replace(entry, status="kept", **_counts(_same(picture, folder, stages.config)))
        check_output(folder, overwrite=existing == "overwrite")
        source: Source = open_picture(picture, mpp=stages.config.mpp)
        result = run_stages(source, stages, progress=progress)
        save(result, folder, overwrite=existing == "overwrite")
    except (Exception, SystemExit) as error:
        # A plugin may raise anything, or try to exit; the other pictures must not pay for it.
        message = printable(f"{type(error).__name__}: {error}")
        return replace(entry, status="failed", seconds=round(time.perf_counter() - start, 3), error=message)
    return replace(
        entry,
        nuclei=len(result.nuclei),
        positive=int(result.nuclei.positive.sum()),
        percent_positive=result.scores["percent_positive"],
        seconds=round(time.perf_counter() - start, 3),
    )


def _same(picture: Path, folder: Path, config: RunConfig) -> dict[str, Any]:
    """Return the summary in `folder`, or raise `OutputExists` if it is of another picture or of other settings."""
    summary = _summary(folder)
    record = summary["provenance"]
    differing = ["the picture (its sha256)"] if record["input"].get("sha256") != _sha256(picture) else []
    differing += _settings_that_differ(record, config)
    if differing:
        raise OutputExists(
            f"{str(folder)!r} holds a result that cannot be kept, since this differs: {', '.join(differing)}.\n"
            "Pass --overwrite instead of --resume to replace it, or choose another -o."
        )
    return summary


def _settings_that_differ(record: Mapping[str, Any], config: RunConfig) -> list[str]:
    there, now = dict(_flat(record["config"])), dict(_flat(json.loads(json.dumps(config.to_dict()))))
    if config.mpp is not None:
        # What counts is the scale that was used, whether it was given or the picture's own.
        there["mpp"] = record["input"].get("mpp")
    # Where the weights may come from does not change a result.
    keys = [key for key in {**now, **there} if key != "offline" and now.get(key) != there.get(key)]
    return [f"{key} ({there.get(key)!r} there, {now.get(key)!r} now)" for key in keys]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sha256(picture: Path) -> str:
    try:
        with open(picture, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadablePicture(
            f"{str(picture)!r} cannot be read: {error.strerror or error}.\nIts earlier result can then not be kept."
        ) from error


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        parts = summary["provenance"]["input"], summary["provenance"]["config"], summary["scores"]["counts"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(folder) from error
    if not all(isinstance(part, dict) for part in parts):
        raise _damaged(folder)
    return dict(summary)


def _damaged(folder: Path) -> UnreadablePicture:
    return UnreadablePicture(
        f"{str(folder / SUMMARY)!r} is missing or damaged.\nRun the picture again with --overwrite instead of --resume."
    )


def _counts(summary: Mapping[str, Any]) -> dict[str, Any]:
    scores = summary["scores"]
    counts = scores["counts"]
    return {
        "nuclei": counts.get("total"),
        "positive": counts.get("positive"),
        "percent_positive": scores.get("percent_positive"),
    }


def _check_unused(out: Path, existing: str) -> None:
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out} is a file; results need a folder. Choose another -o.")
    if existing == "refuse" and out.exists() and any(out.iterdir()):
        raise OutputExists(
            f"{out} already holds files. Choose another -o, or pass --resume to finish an interrupted run, "
            "or --overwrite to replace its results."
        )


def _probe(out: Path) -> None:
    """Make `out` and a file in it, and take away again what was made."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _taken(names: Iterable[str]) -> set[str]:
    """Return what may not name a folder, in lower case: what is there twice, nothing, and our own file."""
    count = Counter(name.casefold() for name in names)
    return {name for name, times in count.items() if times > 1} | {"", LEDGER}


def _read_rows(out: Path) -> list[dict[str, str]]:
    """Return the rows of `out`'s ledger; none if there is no ledger, or it is not ours."""
    try:
        with open(out / LEDGER, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if table.fieldnames != _COLUMNS:
                return []
            return [{name: row[name] or "" for name in _COLUMNS} for row in table]
    except (OSError, ValueError, csv.Error):
        return []


def _write_rows(rows: Iterable[Mapping[str, str]], out: Path) -> Path:
    table = text_io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / LEDGER) as path:
        path.write_text(printable(table.getvalue()), "utf-8")
    return out / LEDGER


def _row(entry: Entry) -> dict[str, str]:
    return {name: _cell(value) for name, value in asdict(entry).items()}


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _seconds(row: Mapping[str, str]) -> float:
    try:
        return float(row["seconds"])
    except (LookupError, ValueError):
        return 0.0
