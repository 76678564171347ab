"""Run many pictures with plugins built once; a failure is a row of the ledger and the others go on."""

from __future__ import annotations

import csv
import io as text_io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias

from .config import RunConfig
from .errors import ConfigError, OutputExists
from .io import atomic_write, open_picture, save
from .pipeline import Progress, Stages, run_stages
from .records import Source

LEDGER = "ledger.csv"


@dataclass(frozen=True)
class Entry:
    """One picture of a batch, as in `ledger.csv`.

    Parameters
    ----------
    status : "done", "failed" or "kept" (finished by an earlier run)
    nuclei, positive, percent_positive : None unless done
    seconds : wall time of this picture
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
        (keep finished pictures, do the others)
    on_start : called before each picture; may return a `Progress` to be told of its steps

    Raises
    ------
    OutputExists
        If `out` has something in it and `existing` is "refuse".
    StainbridgeError
        If the plugins cannot be built. Errors of single pictures are entries.
    """
    if existing not in ("refuse", "overwrite", "resume"):
        raise ConfigError(f"existing = {existing!r}: must be 'refuse', 'overwrite' or 'resume'.")
    require_free(out, existing)
    stages = Stages.build(config)
    ledger: list[Entry] = []
    for picture, name in zip(pictures, folder_names(pictures), strict=True):
        progress = on_start(picture) if on_start else None
        entry = _run_one(picture, out / name, stages, existing=existing, progress=progress)
        ledger.append(entry)
        write_ledger(ledger, out)
        yield entry


def require_free(out: Path, existing: str) -> None:
    """Raise `OutputExists` unless results may be written to `out`."""
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out} is a file; results need a folder. Choose another -o.")
    if existing == "refuse" and out.exists() and any(out.iterdir()):
        raise OutputExists(
            f"{out} already holds files. Choose another -o, or pass --resume to finish an interrupted run, "
            "or --overwrite to replace its results."
        )


def folder_names(pictures: Sequence[Path]) -> list[str]:
    """Return one folder name per picture: its stem, longer only where that is not unique."""
    names = [picture.stem for picture in pictures]
    for longer in (lambda p: p.name, lambda p: f"{p.parent.name}__{p.name}"):
        count = Counter(name.casefold() for name in names)
        names = [longer(p) if count[name.casefold()] > 1 else name for p, name in zip(pictures, names, strict=True)]
    count = Counter(name.casefold() for name in names)
    return [f"{index:04d}__{name}" if count[name.casefold()] > 1 else name for index, name in enumerate(names, start=1)]


def write_ledger(entries: Iterable[Entry], out: Path) -> Path:
    """Write `ledger.csv` below `out`, atomically."""
    table = text_io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in entries)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / LEDGER) as path:
        path.write_text(table.getvalue(), "utf-8")
    return out / LEDGER


def _run_one(picture: Path, folder: Path, stages: Stages, *, existing: str, progress: Progress | None) -> Entry:
    start = time.perf_counter()
    if existing == "resume" and (folder / "summary.json").exists():
        return Entry(str(picture), folder.name, "kept")
    try:
        source: Source = open_picture(picture, mpp=stages.config.mpp)
        result = run_stages(source, stages, progress=progress)
        save(result, folder, overwrite=existing == "overwrite")
    except Exception as error:
        # A plugin may raise anything; the other pictures must not pay for it.
        seconds = round(time.perf_counter() - start, 3)
        return Entry(str(picture), folder.name, "failed", seconds=seconds, error=f"{type(error).__name__}: {error}")
    return Entry(
        str(picture),
        folder.name,
        "done",
        nuclei=len(result.nuclei),
        positive=int(result.nuclei.positive.sum()),
        percent_positive=result.scores["percent_positive"],
        seconds=round(time.perf_counter() - start, 3),
    )
