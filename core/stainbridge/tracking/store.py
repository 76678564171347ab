"""One MLflow tracking store, spoken to by a client of our own: the only place that imports MLflow."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stainbridge.weights.turns import turn

from .names import TAG_LIMIT, VALUE_LIMIT, cut, metric_name

METRICS_PER_CALL = 1000
PAIRS_PER_CALL = 100  # parameters or tags

_MARK = "stainbridge.mark"
_ANSWER_S = 5.0
_PORTS = {"mssql": 1433, "mysql": 3306, "postgresql": 5432}
_SCHEMA_PATIENCE_S = 120.0
_THUMBNAIL_PX = 256
# MLflow waits 120 s for a server and asks 8 times; a benchmark must not stand still that long.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

Metric = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


class Refused(Exception):
    """The store is there and will never take this."""


@dataclass(frozen=True)
class Place:
    """Where runs go.

    Parameters
    ----------
    uri : "sqlite:////folder/mlflow.db", "http://host:5000"
    experiment : its name; made where it is missing
    artifacts : URI of the folder that gets the files of a new experiment; None: the server knows
    """

    uri: str
    experiment: str
    artifacts: str | None = None

    @property
    def database(self) -> Path | None:
        """The file of an SQLite store."""
        rest = self.uri.partition(":///")[2]
        return Path(rest) if self.uri.startswith("sqlite") and rest and ":memory:" not in rest else None


def installed() -> bool:
    """Return whether MLflow can be imported."""
    from importlib.util import find_spec

    return find_spec("mlflow") is not None


class Store:
    """An MLflow store; connected to at its first use, which may raise anything that MLflow raises."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._client: Any = None
        self._experiment = ""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Connect, and speak within the block: quietly, with short time-outs, none of it left behind."""
        _import_mlflow()
        with _patience(), _quiet():
            _check_answers(self.place)
            if self._client is None:
                self._connect()
            yield

    def knows(self, run_id: str) -> bool:
        """Return whether the run is in the store, deleted ones too."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def find(self, mark: str) -> str | None:
        """Return the id of the run that carries `mark`."""
        found = self._client.search_runs([self._experiment], f"tags.`{_MARK}` = '{mark}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def create(self, mark: str, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """Start a run that carries `mark` and return its id."""
        source = {"mlflow.source.name": "stainbridge", "mlflow.source.type": "LOCAL", _MARK: mark}
        tags = source | {metric_name(key): cut(value, TAG_LIMIT) for key, value in tags.items()}
        with _refusals():
            run = self._client.create_run(self._experiment, start_time=start_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    def carry_on(self, run_id: str, name: str, tags: Mapping[str, str]) -> None:
        """Have a run of earlier go on."""
        with _refusals():
            self._client.update_run(run_id, status="RUNNING", name=name)
        self.log(run_id, tags=tags)

    def log(
        self,
        run_id: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send one batch; what the store holds already stays as it is."""
        from mlflow import entities

        values = [entities.Metric(metric_name(key), value, ms, step) for key, value, ms, step in metrics]
        pairs = [entities.Param(metric_name(key), cut(text, VALUE_LIMIT)) for key, text in (params or {}).items()]
        marks = [entities.RunTag(metric_name(key), cut(text, TAG_LIMIT)) for key, text in (tags or {}).items()]
        with _refusals():
            self._client.log_batch(run_id, values, pairs, marks, synchronous=True)

    def finish(self, run_id: str, status: str, end_ms: int) -> None:
        """End a run."""
        with _refusals():
            self._client.set_terminated(run_id, status, end_time=end_ms)

    def upload(self, run_id: str, path: Path, folder: str = "") -> None:
        """Send a file, or what is in a folder."""
        with _refusals():
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), folder or None)
            else:
                self._client.log_artifact(run_id, str(path), folder or None)

    def table(self, run_id: str, path: Path, folder: str) -> None:
        """Send a table, and say so in the tag by which MLflow's pages find tables."""
        self.upload(run_id, path, folder)
        key = "mlflow.loggedArtifacts"
        known = json.loads(self._client.get_run(run_id).data.tags.get(key, "[]"))
        own = {"path": f"{folder}/{path.name}".lstrip("/"), "type": "table"}
        if own not in known:
            self._client.set_tag(run_id, key, json.dumps([*known, own]))

    def picture(self, run_id: str, path: Path, name: str, *, step: int, ms: int) -> None:
        """Send a picture of a step under the file names by which MLflow's pages show a slider of steps."""
        from PIL import Image

        key = metric_name(name).replace("/", "~")
        stem = f"{key}+step+{step}+timestamp+{ms}+{uuid.uuid5(uuid.NAMESPACE_OID, f'{name} {step}')}"
        with tempfile.TemporaryDirectory() as folder:
            with Image.open(path) as whole:
                small = whole.convert("RGB")
            if path.suffix.lower() == ".png":
                shutil.copyfile(path, Path(folder, f"{stem}.png"))
            else:
                small.save(Path(folder, f"{stem}.png"))
            small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            small.save(Path(folder, f"{stem}+compressed.webp"))
            self.upload(run_id, Path(folder), "images")
        self._client.set_tag(run_id, "mlflow.loggedImages", "True")

    def model(self, run_id: str, path: Path, name: str, tags: Mapping[str, str]) -> None:
        """Send a model's files and register them as a version of the model `name`, once."""
        from mlflow.exceptions import MlflowException

        self.upload(run_id, path, "model")
        with _refusals():
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            if any(one.run_id == run_id for one in self._client.search_model_versions(f"name = '{name}'")):
                return
            source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
            self._client.create_model_version(
                name, source, run_id, tags={k: cut(v, TAG_LIMIT) for k, v in tags.items()}
            )

    def _connect(self) -> None:
        from mlflow import MlflowClient

        database = self.place.database
        if database is None:
            client = MlflowClient(self.place.uri, os.environ.get("MLFLOW_REGISTRY_URI", self.place.uri))
            self._experiment = _experiment(client, self.place)
        else:
            # Two processes that make the tables of one database at once break it.
            lock = database.with_name(f"{database.name}.lock")
            with turn(lock, patience_s=_SCHEMA_PATIENCE_S, progress=lambda: None):
                client = MlflowClient(self.place.uri, os.environ.get("MLFLOW_REGISTRY_URI", self.place.uri))
                self._experiment = _experiment(client, self.place)
        self._client = client


def _experiment(client: Any, place: Place) -> str:
    """Return the id of the experiment, made where it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        try:
            return str(client.create_experiment(place.experiment, place.artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(place.experiment)
    if found.lifecycle_stage == "deleted":
        raise ValueError(f"the experiment {place.experiment!r} was deleted there; restore it, or name another one")
    return str(found.experiment_id)


@contextmanager
def _refusals() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise Refused(str(error).splitlines()[0]) from error
        raise


def _check_answers(place: Place) -> None:
    """Raise within seconds where a database is away or locked; MLflow itself would go on trying for minutes."""
    if place.database is not None:
        place.database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(place.database, timeout=_ANSWER_S, isolation_level=None)) as link:
            link.execute("BEGIN IMMEDIATE")
            link.execute("ROLLBACK")
        return
    address = urlsplit(place.uri)
    port = address.port or _PORTS.get(address.scheme.partition("+")[0])
    if address.hostname and port and not address.scheme.startswith("http"):
        socket.create_connection((address.hostname, port), timeout=_ANSWER_S).close()


def _import_mlflow() -> None:
    """Import MLflow so that it sends nothing to its makers, unless the user set that otherwise."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import mlflow  # noqa: F401  # it sets the levels of its log, so it comes before `_quiet`


@contextmanager
def _patience() -> Iterator[None]:
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's own log, which prints every failure with its traceback, to what cannot be reported otherwise."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
