"""Log runs: on disk at once, in MLflow when it answers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote

from stainbridge.errors import ConfigError
from stainbridge.io.atomic import atomic_write

from .journal import Event, Journal
from .mirror import Flushed, Mirror
from .store import Place, Store, installed

Status = Literal["FINISHED", "FAILED", "KILLED"]

NOT_INSTALLED = "MLflow is not installed, so the runs are kept on disk only.\nRun: pip install 'stainbridge[mlflow]'"


def open_tracker(
    folder: str | Path, *, uri: str | None = None, experiment: str | None = None, enabled: bool = True
) -> Tracker:
    """Return a tracker that keeps its journal in ``folder/tracking``.

    Parameters
    ----------
    folder : of the results; artifacts inside it are noted by relative path
    uri : of the MLflow store; else MLFLOW_TRACKING_URI, else ``folder/mlflow.db`` with artifacts in ``folder/mlartifacts``
    experiment : its name; else MLFLOW_EXPERIMENT_NAME, else "stainbridge"
    enabled : False: nothing is written or sent

    Raises
    ------
    ConfigError
        If `uri` names a folder, or nothing that could be a store.
    WriteFailed
        If the journal cannot be made.
    """
    if not enabled:
        return Tracker(None, None, Path(folder))
    root = Path(os.path.abspath(folder))
    place = _place(root, uri or os.environ.get("MLFLOW_TRACKING_URI"), experiment)
    journal = Journal(root / "tracking")
    return Tracker(journal, Mirror(journal, Store(place), root) if installed() else None, root)


class Tracker:
    """Gives out runs and sends them on; made by `open_tracker`."""

    def __init__(self, journal: Journal | None, mirror: Mirror | None, root: Path) -> None:
        self.journal = journal
        self.mirror = mirror
        self.root = root
        self._before: dict[str, set[int]] | None = None

    @property
    def uri(self) -> str:
        """Where runs are sent; an empty string for nowhere."""
        return self.mirror.store.place.uri if self.mirror else ""

    def run(self, key: str, name: str, *, parent: Run | None = None, tags: Mapping[str, str] | None = None) -> Run:
        """Start the run `key`, or carry on with it where this folder had one before.

        Parameters
        ----------
        key : stays the same when the work is resumed
        name : shown in MLflow
        parent : the run that this one stands under
        tags : shown and searchable in MLflow
        """
        run = Run(self, key, self._known().get(key, set()))
        above = parent.key if parent else None
        run._append("run", name=name, parent=above, tags=_texts(tags or {}), ms=_now_ms())
        return run

    def flush(self, *, now: bool = False) -> Flushed:
        """Send what waits to MLflow; never raises because of MLflow.

        After a failure the store is left alone for half a minute, then longer, unless `now`.
        """
        if self.journal is None:
            return Flushed()
        self.journal.sync()
        if self.mirror is None:
            return Flushed(0, sum(event is not None for event, _ in self.journal.events()), (), NOT_INSTALLED)
        return self.mirror.flush(now=now)

    def close(self) -> Flushed:
        """Send what waits, now, and let the journal go."""
        flushed = self.flush(now=True)
        if self.journal is not None:
            self.journal.close()
        return flushed

    def __enter__(self) -> Self:
        """Return itself; the end of the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _known(self) -> dict[str, set[int]]:
        """Return what earlier processes logged, by run; read once."""
        if self._before is None:
            self._before = {}
            for event, _ in self.journal.events() if self.journal else ():
                if event is not None:
                    seen = self._before.setdefault(event["run"], set())
                    if event["do"] == "metrics":
                        seen.update(_print(name, value, event["step"]) for name, value in event["values"].items())
        return self._before


class Run:
    """One run: everything it is given is on disk when the call returns; made by `Tracker.run`."""

    def __init__(self, tracker: Tracker, key: str, before: set[int]) -> None:
        self.key = key
        self._tracker = tracker
        self._seen = before

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, once each; nested mappings become "a.b"; MLflow shows 6000 characters of a value."""
        self._append("params", values=_texts(values))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._append("tags", values=_texts(values))

    def metrics(self, values: Mapping[str, float], *, step: int = 0, time_ms: int | None = None) -> None:
        """Log values of a step; one that an earlier process logged for the same step with the same value is passed over.

        Parameters
        ----------
        values : by name, "matching/f1@0.50"; NaN stays NaN, infinity becomes the largest number in MLflow
        step : epoch or iteration
        time_ms : when they were measured, milliseconds since 1970; now, if None
        """
        new = {name: float(value) for name, value in values.items()}
        if self._seen:
            new = {name: value for name, value in new.items() if _print(name, value, step) not in self._seen}
        if new:
            self._append("metrics", values=new, step=step, ms=_now_ms() if time_ms is None else time_ms)

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Log a file, or what is in a folder; it is read when it is sent, so it has to stay."""
        self._append("artifact", path=self._relative(path), folder=folder)

    def figure(self, path: str | Path, *, name: str | None = None, step: int | None = None) -> None:
        """Log a picture, in ``figures``; with a `step`, as one of a series `name` that MLflow shows with a slider."""
        if step is None:
            self.artifact(path, "figures")
            return
        self._append("picture", path=self._relative(path), name=name or Path(path).stem, step=step, ms=_now_ms())

    def table(self, rows: Iterable[Mapping[str, Any]], name: str) -> None:
        """Log rows as the table ``tables/NAME.json``, which MLflow shows and compares between runs; NaN is an empty field."""
        if self._tracker.journal is None:
            return
        slug = hashlib.sha256(self.key.encode()).hexdigest()[:16]
        path = self._tracker.journal.folder / "tables" / slug / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(_split(list(rows))), encoding="utf-8")
        self._append("table", path=self._relative(path), folder="tables")

    def model(self, path: str | Path, name: str, *, tags: Mapping[str, str]) -> None:
        """Log a model's file or folder and register it, one version for each run.

        Parameters
        ----------
        name : of the registered model; "/" and ":" become "-"
        tags : of the version: licence, data, hash of the weights
        """
        plain = re.sub(r"[/:'\"%]", "-", name)
        self._append("model", path=self._relative(path), name=plain, tags=_texts(tags))

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run; `Tracker.run` with the same key carries on with it."""
        self._append("finish", status=status, ms=_now_ms())

    def _append(self, do: str, **values: Any) -> None:
        if self._tracker.journal is not None:
            event: Event = {"do": do, "run": self.key, **values}
            self._tracker.journal.append(event)

    def _relative(self, path: str | Path) -> str:
        whole = Path(os.path.abspath(path))
        return (
            whole.relative_to(self._tracker.root).as_posix() if whole.is_relative_to(self._tracker.root) else str(whole)
        )


def _place(root: Path, uri: str | None, experiment: str | None) -> Place:
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "stainbridge"
    if not uri:
        if "?" in str(root) or unquote(str(root)) != str(root):
            raise ConfigError(
                f"The folder {str(root)!r} has a '%' or '?' in its name, which the address of a database cannot hold.\n"
                "Rename the folder, or name an MLflow store with MLFLOW_TRACKING_URI."
            )
        return Place(f"sqlite:///{(root / 'mlflow.db').as_posix()}", experiment, (root / "mlartifacts").as_uri())
    if uri.startswith("file:") or ("://" not in uri and uri.partition(":")[0] != "databricks"):
        raise ConfigError(
            f"The MLflow store {uri!r} is a folder, or no address at all. MLflow 3 no longer writes to folders.\n"
            f"Name a database, sqlite:///{(root / 'mlflow.db').as_posix()}, or a server, http://127.0.0.1:5000."
        )
    database = Place(uri, experiment).database
    if database is not None:
        database = Path(os.path.abspath(database))
        return Place(f"sqlite:///{database.as_posix()}", experiment, (database.parent / "mlartifacts").as_uri())
    remote = uri.startswith(("http://", "https://", "databricks"))
    return Place(uri, experiment, None if remote else (root / "mlartifacts").as_uri())


def _split(rows: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return columns and rows in the layout of MLflow's tables.

    Its pages take a full stop in a column's name for a path and show an empty column, so it becomes a raised one: "f1@0·50".
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [name.replace(".", "·") for name in columns]
    return {"columns": shown, "data": [[_cell(row.get(name)) for name in columns] for row in rows]}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): _texts(value) if isinstance(value, Mapping) else str(value) for key, value in values.items()}


def _print(name: str, value: float, step: int) -> int:
    return hash((name, repr(value), step))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
