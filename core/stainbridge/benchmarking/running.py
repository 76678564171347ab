"""Run a suite: translate once, score every picture in every cell, put the table together, log it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets import Dataset, Item
from ..discovery import Built
from ..errors import ConfigError, OutputExists
from ..evaluation import build_metrics, metric_names
from ..execution import Executor, open_executor
from ..interfaces import Metric
from ..io import atomic_write
from ..scores import Benchmark, ImageScore, Scores
from ..suite import Suite
from ..tracking import Tracker, open_tracker
from .assembling import assemble, differences
from .plan import Cell, digest, file_names, open_datasets, plan
from .publishing import Publisher, Told
from .work import Scoring, Translation, file_sha256, read_json, read_row, score_picture, translate_picture

MARK = "suite.json"


@dataclass(frozen=True)
class Options:
    """How a suite is run; none of it decides a result.

    Parameters
    ----------
    data_dir : where data sets lie
    scheduler, workers : see `execution.open_executor`
    tracking : log to MLflow
    tell : told of progress
    """

    data_dir: Path | None = None
    scheduler: str | int | None = None
    workers: int | None = None
    tracking: bool = True
    tell: Told | None = None


def benchmark(
    suite: Suite | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    scheduler: str | int | None = None,
    workers: int | None = None,
    tracking: bool = True,
    tell: Told | None = None,
) -> Benchmark:
    """Run every combination of a suite; what an earlier run finished in `out` is kept.

    Parameters
    ----------
    suite : a `Suite`, the path of its TOML file, or its values
    out : folder for predictions, tables, figures and the log
    data_dir : where data sets lie, or are fetched to; None takes the cache
    scheduler, workers : "inline", "local", an address; see `execution.open_executor`
    tracking : log to MLflow, by default to a database in `out`
    tell : told of progress

    Returns
    -------
    Benchmark
        One `Scores` per cell; `.to_pandas()` gives the table. Tables, figures and ``report.html`` lie in `out`.

    Raises
    ------
    ConfigError
        If the suite has a mistake, or is strict and something is flagged.
    OutputExists
        If `out` holds something that is no benchmark.
    StainbridgeError
        If data cannot be had. What goes wrong with a plugin or a picture is a row of the table.
    """
    options = Options(None if data_dir is None else Path(data_dir), scheduler, workers, tracking, tell)
    return _run(_suite(suite), Path(out), options)


def _suite(suite: Suite | str | Path | Mapping[str, Any]) -> Suite:
    if isinstance(suite, Suite):
        return suite
    if isinstance(suite, str | Path):
        return Suite.load(suite)
    if isinstance(suite, Mapping):
        return Suite(**suite)
    raise ConfigError(f"A suite is a Suite, a path or a mapping; found {type(suite).__name__}.")


def _run(suite: Suite, out: Path, options: Options) -> Benchmark:
    names = metric_names(suite.metrics)
    datasets = open_datasets(suite, options.data_dir)
    cells = plan(suite, datasets)
    _claim(out, suite)
    built = build_metrics(names)
    instances: dict[str, Metric] = {name: one.plugin for name, one in built.items()}
    experiment = suite.tracking.experiment or suite.name
    tracker = open_tracker(out, uri=suite.tracking.uri, experiment=experiment, enabled=options.tracking)
    tell = options.tell or _silent
    with (
        _told(tracker, tell),
        open_executor(options.scheduler, workers=options.workers, device=suite.run.device) as executor,
    ):
        job = _Job(suite, out, built, executor, tell)
        publisher = Publisher(tracker, suite, out, datasets, tell)
        scored = job.run(cells, datasets, publisher.cell)
        compared = differences(suite, scored, instances)
        whole = Benchmark(suite.name, tuple(scored), tuple(compared), out)
        publisher.whole(whole, job.cells_by_method)
    return whole


@contextmanager
def _told(tracker: Tracker, tell: Told) -> Iterator[None]:
    """Close the tracker at the end, and say what could not be logged yet."""
    try:
        yield
    finally:
        flushed = tracker.close()
        if flushed.waiting:
            problem = f"{flushed.problem}\nThe results are on the disk. The same command logs the rest."
            tell("MLflow", flushed.sent, flushed.sent + flushed.waiting, problem)
        for refused in flushed.refused:
            tell("MLflow", flushed.sent, flushed.sent, f"MLflow refuses: {refused}")


class _Job:
    """One pass over the cells."""

    def __init__(
        self,
        suite: Suite,
        out: Path,
        metrics: Mapping[str, Built],
        executor: Executor,
        tell: Told,
    ) -> None:
        self._suite, self._out = suite, out
        self._metrics: dict[str, Metric] = {name: one.plugin for name, one in metrics.items()}
        self._scored_by = digest(
            [[name, one.facts["distribution"], one.facts["version"]] for name, one in metrics.items()]
        )
        self._executor, self._tell = executor, tell
        self._hashes: dict[Path, str] = {}
        self.cells_by_method: dict[tuple[str, str], Cell] = {}

    def run(
        self, cells: Sequence[Cell], datasets: Sequence[Dataset], finished: Callable[[Cell, Scores, Path], None]
    ) -> list[Scores]:
        """Return the scores of every cell, in order."""
        by_name = {one.name: one for one in datasets}
        failures = self._translate(cells, by_name)
        scored: list[Scores] = []
        for cell in cells:
            dataset = by_name[cell.combination.dataset]
            self.cells_by_method[dataset.name, cell.combination.method] = cell
            rows = self._score(cell, dataset, failures)
            folder = self._folder(cell)
            scores = assemble(cell, rows, self._metrics, self._suite, dataset, folder)
            with atomic_write(folder / "scores.json") as path:
                path.write_text(json.dumps(scores.to_dict(), indent=1), "utf-8")
            finished(cell, scores, folder)
            scored.append(scores)
        return scored

    def _folder(self, cell: Cell) -> Path:
        folder = self._out / "cells" / cell.slug
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _translate(self, cells: Sequence[Cell], datasets: Mapping[str, Dataset]) -> dict[Path, str]:
        """Make every virtual H&E that is missing; return the failures by its path."""
        tasks: dict[Path, Translation] = {}
        for cell in cells:
            if cell.error or not cell.translator_key:
                continue
            for item in datasets[cell.combination.dataset].items:
                path = self._he(cell, item)
                if path is not None:
                    tasks.setdefault(path, Translation(item, cell.config, path, cell.translator_key))
        waiting = [task for task in tasks.values() if not (task.mark.is_file() and task.path.is_file())]
        failures: dict[Path, str] = {}
        for done, outcome in enumerate(
            self._executor.run(translate_picture, waiting, affinity=_cell_key, name=_picture_name), start=1
        ):
            if not outcome.ok:
                failures[outcome.item.path] = f"translation: {outcome.error}"
            self._tell(
                "virtual H&E", done, len(waiting), outcome.error and f"{outcome.item.item.name}: {outcome.error}"
            )
        return failures

    def _score(self, cell: Cell, dataset: Dataset, failures: Mapping[Path, str]) -> list[ImageScore]:
        if cell.error:
            return [_failed(item, cell.error) for item in dataset.items]
        tasks = [self._task(cell, item, name) for item, name in zip(dataset.items, file_names(dataset), strict=True)]
        rows: dict[str, ImageScore] = {}
        for task in tasks:
            if isinstance(task, ImageScore):
                rows[task.picture] = task
            elif task.he is not None and task.he in failures:
                rows[task.item.name] = _failed(task.item, failures[task.he])
            elif (kept := read_row(task)) is not None:
                rows[task.item.name] = kept
        waiting = [task for task in tasks if isinstance(task, Scoring) and task.item.name not in rows]
        for outcome in self._executor.run(score_picture, waiting, affinity=_cell_key, name=_picture_name):
            item = outcome.item.item
            rows[item.name] = outcome.value if outcome.value is not None else _failed(item, outcome.error)
            failure = outcome.error and f"{cell.combination.method}, {item.name}: {outcome.error}"
            self._tell(cell.combination.method, len(rows), len(tasks), failure)
        return [rows[item.name] for item in dataset.items]

    def _task(self, cell: Cell, item: Item, name: str) -> Scoring | ImageScore:
        """Return what is to be done, or the row of a picture that cannot even be read."""
        try:
            hashes = [self._sha256(path) for path in (item.picture, item.truth) if path is not None]
        except OSError as error:
            return _failed(item, f"UnreadablePicture: {error.filename} cannot be read: {error.strerror}")
        key = digest({"cell": cell.key, "files": hashes, "mpp": item.mpp, "name": item.name})
        he = self._he(cell, item) if cell.translator_key else None
        folder = self._folder(cell)
        names, scored_by = tuple(self._metrics), self._scored_by
        return Scoring(item, cell.config, cell.answer, he, folder, name, key, names, scored_by, cell.key)

    def _he(self, cell: Cell, item: Item) -> Path | None:
        """Return where the virtual H&E of a picture lies; None where the picture cannot be read."""
        try:
            content = self._sha256(item.picture)
        except OSError:
            return None
        key = digest({"translator": cell.translator_key, "picture": content, "name": item.name, "mpp": item.mpp})
        return self._out / "he" / f"{key}.tif"

    def _sha256(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = file_sha256(path)
        return self._hashes[path]


def _claim(out: Path, suite: Suite) -> None:
    """Write the suite into `out`, unless something else lies there."""
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out} is a file; a benchmark needs a folder. Choose another -o.")
    mark = out / MARK
    if out.is_dir() and any(out.iterdir()) and not mark.is_file():
        raise OutputExists(f"{out} holds files, but no benchmark (it has no {MARK}). Choose another -o.")
    if mark.is_file() and (other := read_json(mark).get("name")) != suite.name:
        raise OutputExists(
            f"{out} holds the benchmark {other!r}, not {suite.name!r}. Choose another -o, or the same name to go on with it."
        )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(mark) as path:
        path.write_text(json.dumps(suite.to_dict(), indent=1), "utf-8")


def _failed(item: Item, error: str) -> ImageScore:
    return ImageScore(item.name, "failed", error, subset=item.subset)


def _cell_key(task: Translation | Scoring) -> str:
    return task.cell_key


def _picture_name(task: Translation | Scoring) -> str:
    return task.item.name


def _silent(what: str, done: int, total: int, failure: str) -> None:
    """Report nothing."""
