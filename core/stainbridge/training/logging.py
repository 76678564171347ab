"""Log a training: on disk at once, in MLflow when it is installed and answers, each value once however often the training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tracking import Flushed, Run, Status, Tracker, open_tracker
from ..tracking.names import flat

if TYPE_CHECKING:
    from .settings import TrainConfig

MOST_STEPS = 10_000
"""Steps that are logged, at most: of more, every second, third, ... one."""

GRID = "grid"
"""Name of the series of grids, which MLflow shows with a slider of epochs."""

_KEY = "training"  # the folder has one training, and its runs are told from those of other folders by the tracker


def open_log(
    out: str | Path,
    config: TrainConfig,
    *,
    steps: int = 0,
    uri: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Log:
    """Open the log of the training in `out`, or carry on with it.

    Parameters
    ----------
    out : folder of the run; the log is in ``tracking``
    config : of the training; `experiment` names the experiment, and with `tracking` False nothing is written or sent
    steps : of all epochs together; 0 where that is unknown, and then every step is logged
    uri : of the MLflow store; else MLFLOW_TRACKING_URI, else ``out/mlflow.db``
    tags : shown and searchable in MLflow

    Raises
    ------
    ConfigError
        If `uri` names nothing that could be a store.
    WriteFailed
        If the log cannot be written.
    """
    out = Path(out)
    tracker = open_tracker(out, uri=uri, experiment=config.experiment, enabled=config.tracking)
    shown = {"stainbridge.kind": "training", "plugin": config.plugin, **(tags or {})}
    return Log(
        tracker, f"{config.plugin} {out.resolve().name}", every=max(1, math.ceil(steps / MOST_STEPS)), tags=shown
    )


class Log:
    """What a training tells; made by `open_log`.

    A value, grid or parameter that an earlier process logged for the same step is passed over, also where it now comes out
    differently: training that goes on repeats the steps since its last checkpoint.

    Parameters
    ----------
    tracker : to log to
    name : of the run in MLflow
    every : of how many steps one is logged
    tags : of the run
    """

    def __init__(self, tracker: Tracker, name: str, *, every: int = 1, tags: Mapping[str, str] | None = None) -> None:
        self._tracker, self._every = tracker, every
        self._known, self._params = _logged(tracker)
        self._refused: list[str] = []
        self._run: Run = tracker.run(_KEY, name, tags=tags)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones as "a.b"; one that an earlier process logged differently becomes a tag "resumed.a.b"."""
        new = flat(values)
        changed = {f"resumed.{name}": text for name, text in new.items() if self._params.get(name, text) != text}
        new = {name: text for name, text in new.items() if name not in self._params}
        self._params |= new
        if new:
            self._run.params(new)
        if changed:
            self._run.tags(changed)

    def step(self, losses: Mapping[str, float], step: int) -> None:
        """Log the losses of a step, counted from 1 over all epochs, as "loss/NAME"."""
        if step % self._every == 0 or step == 1:
            self._metrics({f"loss/{name}": value for name, value in losses.items()}, step)

    def epoch(self, values: Mapping[str, float], epoch: int, grid: Path | None = None) -> None:
        """Log the values of an epoch as "epoch/NAME", and its grid; then send what waits."""
        self._metrics({f"epoch/{name}": value for name, value in values.items()}, epoch)
        if grid is not None and self._is_new(GRID, epoch):
            self._run.figure(grid, name=GRID, step=epoch)
        self._note(self._tracker.flush())

    def model(self, folder: Path, name: str, tags: Mapping[str, str]) -> None:
        """Log the folder of the model and register it as `name`, one version for each training.

        Parameters
        ----------
        tags : of the version: licence, data, plugin, preservation
        """
        self._run.model(folder, name, tags=tags)

    def close(self, status: Status = "FINISHED") -> str | None:
        """End the run, send what waits, and return what the user should know, or None where all is in MLflow."""
        self._run.finish(status)
        flushed = self._tracker.close()
        self._note(flushed)
        lines = list(self._refused)
        if flushed.waiting:
            rest = (
                ""
                if self._tracker.mirror is None
                else "\nThe results are on the disk. The same command with --resume logs the rest."
            )
            lines.append(f"{flushed.problem}{rest}")
        return "\n".join(lines) or None

    def _metrics(self, values: Mapping[str, float], step: int) -> None:
        new = {name: value for name, value in values.items() if self._is_new(name, step)}
        if new:
            self._run.metrics(new, step=step)

    def _is_new(self, name: str, step: int) -> bool:
        seen = self._known.setdefault(name, set())
        if step in seen:
            return False
        seen.add(step)
        return True

    def _note(self, flushed: Flushed) -> None:
        self._refused += [one for one in flushed.refused if one not in self._refused]


def _logged(tracker: Tracker) -> tuple[dict[str, set[int]], dict[str, str]]:
    """Return the steps of each value, and the parameters, that earlier processes logged."""
    steps: dict[str, set[int]] = {}
    params: dict[str, str] = {}
    for event, _ in tracker.journal.events() if tracker.journal else ():
        if event is None or event["run"] != _KEY:
            continue
        if event["do"] == "params":
            params = flat(event["values"]) | params
        names = event["values"] if event["do"] == "metrics" else [event["name"]] if event["do"] == "picture" else []
        for name in names:
            steps.setdefault(name, set()).add(event["step"])
    return steps, params
