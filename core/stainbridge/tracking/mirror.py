"""Send a journal to an MLflow store, in order, so that every event arrives exactly once.

An event may be sent twice, when the process dies between the sending and the noting; every event is such that the second
time changes nothing: runs are found by their mark, a metric of the same name, step, time and value is one row, parameters and
tags are set to what they are, files replace themselves.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from stainbridge.io.atomic import atomic_write
from stainbridge.weights.turns import turn

from .journal import Event, Journal
from .names import flat
from .store import METRICS_PER_CALL, PAIRS_PER_CALL, Metric, Refused, Store

_EVENTS_PER_NOTE = 2000
_LOCK_PATIENCE_S = 10.0
_RETRY_S = (30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True)
class Flushed:
    """How far the store is.

    Parameters
    ----------
    sent : events that the store confirmed in this call
    waiting : events that are on disk and not there yet
    refused : what the store will never take, and why
    problem : why events are waiting, or an empty string
    """

    sent: int = 0
    waiting: int = 0
    refused: tuple[str, ...] = ()
    problem: str = ""


@dataclass
class _Progress:
    """What the store confirmed: bytes of the journal, ids of runs, and the events that are tried again later."""

    done: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    later: list[Event] = field(default_factory=list)


@dataclass
class _Batch:
    """Values of one run that go in one call."""

    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return len(self.metrics) >= METRICS_PER_CALL or max(len(self.params), len(self.tags)) >= PAIRS_PER_CALL


class Mirror:
    """Sends what `journal` holds to `store`.

    Parameters
    ----------
    root : what the paths of files are relative to
    """

    def __init__(self, journal: Journal, store: Store, root: Path) -> None:
        self.journal = journal
        self.store = store
        self.root = root
        place = f"{store.place.uri} {store.place.experiment}"
        self.note = journal.folder / f"sent-{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"
        self._failures = 0
        self._not_before = 0.0
        self._problem = ""

    def flush(self, *, now: bool = False) -> Flushed:
        """Send what waits; where the store failed a moment ago, only if `now`."""
        if not now and time.monotonic() < self._not_before:
            return Flushed(0, self._waiting(self._read()), (), self._problem)
        lock = self.journal.folder / "sending.lock"
        with turn(lock, patience_s=_LOCK_PATIENCE_S, progress=lambda: None) as ours:
            progress = self._read()
            if not ours:
                return Flushed(0, self._waiting(progress), (), "another process is sending")
            sending = _Sending(self, progress)
            problem = sending.run()
            waiting = self._waiting(self._read())
        self._problem = problem
        self._failures = self._failures + 1 if problem else 0
        rest_s = _RETRY_S[min(self._failures, len(_RETRY_S)) - 1] if problem else 0.0
        self._not_before = time.monotonic() + rest_s
        return Flushed(sending.sent, waiting, tuple(sending.refused), problem)

    def write(self, progress: _Progress) -> None:
        """Note what was confirmed."""
        with atomic_write(self.note) as temporary:
            temporary.write_text(json.dumps(vars(progress)))

    def _read(self) -> _Progress:
        try:
            return _Progress(**json.loads(self.note.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return _Progress()

    def _waiting(self, progress: _Progress) -> int:
        return len(progress.later) + sum(event is not None for event, _ in self.journal.events(progress.done))


class _Sending:
    """One pass over what waits."""

    def __init__(self, mirror: Mirror, progress: _Progress) -> None:
        self.mirror = mirror
        self.store = mirror.store
        self.progress = progress
        self.sent = 0
        self.refused: list[str] = []
        self.batches: dict[str, _Batch] = {}

    def run(self) -> str:
        """Send until nothing waits or the store fails; return why it failed."""
        try:
            with self.store.open():
                self._forget_a_store_that_was_removed()
                while events := list(islice(self.mirror.journal.events(self.progress.done), _EVENTS_PER_NOTE)):
                    whole = [event for event, _ in events if event is not None]
                    late = len(self.progress.later)
                    self._send(whole)
                    self.progress.done = events[-1][1]
                    self.mirror.write(self.progress)
                    self.sent += len(whole) + late - len(self.progress.later)
                return self._again()
        # MLflow lets through what its libraries raise: sockets, SQL drivers, cloud clients. The work must go on.
        except Exception as error:
            return _reason(error)

    def _forget_a_store_that_was_removed(self) -> None:
        if self.progress.runs and not self.store.knows(next(iter(self.progress.runs.values()))):
            vars(self.progress).update(vars(_Progress()))

    def _again(self) -> str:
        """Try once more what failed alone; return why it fails still."""
        waiting, self.progress.later = self.progress.later, []
        if not waiting:
            return ""
        problem = ""
        for event in waiting:
            with self._naming(event):
                problem = self._file(event) or problem
        self.mirror.write(self.progress)
        self.sent += len(waiting) - len(self.progress.later)
        return problem

    def _send(self, events: list[Event]) -> None:
        for event in events:
            with self._naming(event):
                _STEPS.get(event["do"], _Sending._file)(self, event)
        for key in list(self.batches):
            self._send_batch(key)

    def _start(self, event: Event) -> None:
        key = event["run"]
        tags = dict(event["tags"])
        if event["parent"] is not None:
            tags["mlflow.parentRunId"] = self._id(event["parent"])
        known = self.progress.runs.get(key) or self.store.find(self._mark(key))
        if known is None:
            known = self.store.create(self._mark(key), event["name"], tags, event["ms"])
        else:
            self.store.carry_on(known, event["name"], tags)
        self.progress.runs[key] = known

    def _values(self, event: Event) -> None:
        batch = self.batches.setdefault(event["run"], _Batch())
        if event["do"] == "metrics":
            batch.metrics += [(name, value, event["ms"], event["step"]) for name, value in event["values"].items()]
        else:
            (batch.params if event["do"] == "params" else batch.tags).update(flat(event["values"]))
        if batch.full:
            self._send_batch(event["run"])

    def _finish(self, event: Event) -> None:
        self._send_batch(event["run"])
        self.store.finish(self._id(event["run"]), event["status"], event["ms"])

    def _file(self, event: Event) -> str:
        """Send a file; one that fails while the store answers is tried again later and holds nothing up."""
        run_id, path = self._id(event["run"]), self.mirror.root / event["path"]
        if not path.exists():
            raise Refused(f"{str(path)!r} is no longer there")
        try:
            match event["do"]:
                case "table":
                    self.store.table(run_id, path, event["folder"])
                case "picture":
                    self.store.picture(run_id, path, event["name"], step=event["step"], ms=event["ms"])
                case "model":
                    self.store.model(run_id, path, event["name"], event["tags"])
                case _:
                    self.store.upload(run_id, path, event["folder"])
        except Refused:
            raise
        except Exception as error:
            self.store.knows(run_id)  # raises where the store itself is away
            self.progress.later.append(event)
            return f"{path.name}: {_reason(error)}"
        return ""

    def _send_batch(self, key: str) -> None:
        batch = self.batches.pop(key, None)
        if batch is None:
            return
        run_id = self._id(key)
        for part in _parts(batch):
            self._send_part(key, run_id, part)

    def _send_part(self, key: str, run_id: str, part: _Batch) -> None:
        """Send one call's worth; where the store refuses it, each value alone, so that only the bad ones are left out."""
        try:
            self.store.log(run_id, **vars(part))
        except Refused as error:
            singles = list(_singles(part))
            if len(singles) == 1:
                self.refused.append(f"{key}: {error}")
                return
            for single in singles:
                self._send_part(key, run_id, single)

    def _id(self, key: str) -> str:
        if key not in self.progress.runs:
            raise Refused("its run was never started")
        return self.progress.runs[key]

    def _mark(self, key: str) -> str:
        return hashlib.sha256(f"{self.mirror.journal.mark} {key}".encode()).hexdigest()[:32]

    @contextmanager
    def _naming(self, event: Event) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            self.refused.append(f"{event['run']}: {error}")


_STEPS: dict[str, Callable[[_Sending, Event], Any]] = {
    "run": _Sending._start,
    "metrics": _Sending._values,
    "params": _Sending._values,
    "tags": _Sending._values,
    "finish": _Sending._finish,
}


def _parts(batch: _Batch) -> Iterator[_Batch]:
    metrics, params, tags = batch.metrics, list(batch.params.items()), list(batch.tags.items())
    while metrics or params or tags:
        now, then = dict(params[:PAIRS_PER_CALL]), dict(tags[:PAIRS_PER_CALL])
        room = METRICS_PER_CALL - len(now) - len(then)  # MLflow counts them together
        yield _Batch(metrics[:room], now, then)
        metrics, params, tags = metrics[room:], params[PAIRS_PER_CALL:], tags[PAIRS_PER_CALL:]


def _singles(batch: _Batch) -> Iterator[_Batch]:
    for metric in batch.metrics:
        yield _Batch([metric])
    for name, text in batch.params.items():
        yield _Batch(params={name: text})
    for name, text in batch.tags.items():
        yield _Batch(tags={name: text})


def _reason(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"
