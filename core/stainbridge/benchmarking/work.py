"""The two kinds of work of a benchmark: translate a picture, and score a picture in a cell.

Both write files under keys of their content, each whole or not there, and return little: repeating them is harmless.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..datasets import Item
from ..errors import UnreadablePicture
from ..evaluation import build_metrics, update_all
from ..execution import WorkerState
from ..interfaces import Metric
from ..io import atomic_write, open_picture
from ..io.tiles import STEP_PX, windows, write_tiff
from ..measure import boxes, regions
from ..pipeline import Stages, construct, run_stages, translated
from ..provenance import software
from ..records import LabelMap, Labels, Nuclei, Result, Sample, Source
from ..scores import EMPTY, ORACLE, ImageScore, image_from_dict, image_to_dict
from .memory import PeakMemory
from .plan import Answer


@dataclass(frozen=True)
class Translation:
    """One picture to translate.

    Parameters
    ----------
    item : the picture
    config : names the translator
    path : of the virtual H&E; a JSON file beside it marks that it is whole
    cell_key : pictures of one translator go to few workers
    """

    item: Item
    config: RunConfig
    path: Path
    cell_key: str

    @property
    def mark(self) -> Path:
        """The file that says that the virtual H&E is whole."""
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class Scoring:
    """One picture to score in one cell.

    Parameters
    ----------
    item : picture and truth
    config : of the run
    answer : where the prediction comes from
    he : the virtual H&E, or None
    folder : of the cell
    name : file name of the picture's row, without suffix
    key : sha256 of all that decides the prediction
    metrics : names
    scored_by : sha256 of what decides the values of a prediction: the metrics and their versions
    """

    item: Item
    config: RunConfig
    answer: Answer
    he: Path | None
    folder: Path
    name: str
    key: str
    metrics: tuple[str, ...]
    scored_by: str
    cell_key: str

    @property
    def row(self) -> Path:
        """The file whose presence says that the picture is finished."""
        return self.folder / "images" / f"{self.name}.json"

    @property
    def prediction(self) -> Path:
        """Labels and calls of the picture."""
        return self.folder / "predictions" / f"{self.name}.npz"


@dataclass
class _Clock:
    """Adds up wall time by stage, as told by the pipeline."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def told(self, stage: str, done: int, total: int) -> None:
        self.lap("segment" if stage == "classify" and done < total else stage)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def translate_picture(task: Translation, state: WorkerState) -> float:
    """Write the virtual H&E of a picture and return the seconds it took."""
    translator = state.keep(
        "model", ("translator", task.cell_key), partial(construct, "translator", task.config)
    ).plugin
    start = time.perf_counter()
    he = translated(task.item.source(), translator, task.config)
    task.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(task.path) as path:
        blocks = (he.read(*window) for window in windows(he.shape, STEP_PX))
        write_tiff(path, blocks, shape=(*he.shape, 3), dtype=np.uint8, mpp=he.mpp, picture=task.path.stem)
    seconds = time.perf_counter() - start
    facts = {"mpp": he.mpp, "seconds": seconds, "core_px": he.core_px}
    _write_json(task.mark, facts)
    return seconds


def score_picture(task: Scoring, state: WorkerState) -> ImageScore:
    """Predict, hold against the truth, write prediction and row; a finished prediction is only scored again."""
    memory, clock = PeakMemory(), _Clock()
    sample = task.item.sample()
    earlier = read_row(task, same_metrics=False)
    if earlier is None:
        result = _predict(task, sample, state, clock)
        save_prediction(task.prediction, result)
    else:
        result = load_prediction(task.prediction, sample, task.he)
    clock.lap("read")
    metrics: dict[str, Metric] = {name: one.plugin for name, one in build_metrics(task.metrics).items()}
    values = update_all(metrics, result, sample)
    clock.lap("evaluate")
    seconds = clock.seconds if earlier is None else {**earlier.seconds, "evaluate": clock.seconds["evaluate"]}
    seconds.pop("read", None)
    if task.he is not None:
        seconds = {"translate": float(read_json(task.he.with_suffix(".json"))["seconds"]), **seconds}
    score = ImageScore(
        task.item.name,
        "done",
        "",
        values,
        len(result.nuclei),
        seconds,
        memory.mb if earlier is None else earlier.peak_mb,
        task.item.subset,
        time.time_ns() // 1_000_000,
        made_by() if earlier is None else earlier.made_by,
    )
    he = task.he and f"he/{task.he.name}"
    _write_json(task.row, {"key": task.key, "scored_by": task.scored_by, "he": he, "image": image_to_dict(score)})
    return score


def read_row(task: Scoring, *, same_metrics: bool = True) -> ImageScore | None:
    """Return the finished row of a task, or None where there is none, of another key, or of other metrics."""
    try:
        row = read_json(task.row)
        if row["key"] != task.key or not task.prediction.is_file():
            return None
        if same_metrics and row["scored_by"] != task.scored_by:
            return None
        return replace(image_from_dict(row["image"]), subset=task.item.subset)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def save_prediction(path: Path, result: Result) -> None:
    """Write labels and nuclei, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {f"nuclei/{name}": column for name, column in result.nuclei.columns().items()}
    labels = result.labels.read(0, 0, *result.labels.shape)
    with atomic_write(path) as new:
        np.savez_compressed(new, labels=labels, **columns)


def load_labels(path: Path) -> LabelMap:
    """Return the labels of a prediction, int32 (H, W)."""
    return _load(path)["labels"].astype(np.int32)


def load_prediction(path: Path, sample: Sample, he: Path | None) -> Result:
    """Return a saved prediction as a result; raises UnreadablePicture where the file is damaged."""
    arrays = _load(path)
    columns = {name.removeprefix("nuclei/"): array for name, array in arrays.items() if name.startswith("nuclei/")}
    labels = Labels(arrays["labels"].astype(np.int32), sample.source.mpp)
    return Result(
        sample.source, labels, Nuclei.from_columns(columns), open_he(he) if he else None, {}, _translation(he)
    )


def open_he(path: Path) -> Source:
    """Open a virtual H&E that was written before."""
    return open_picture(path, mpp=read_json(path.with_suffix(".json"))["mpp"])


def answer_of(labels: LabelMap, sample: Sample, positive: NDArray[np.bool_] | None) -> Result:
    """Return a prediction that consists of given labels, without scores."""
    n, mpp = int(labels.max(initial=0)), sample.source.mpp or 1.0
    found = regions(labels, count=n)
    calls = np.zeros(n, bool) if positive is None else positive
    nuclei = Nuclei(
        label=np.arange(1, n + 1, dtype=np.int32),
        y=found.y,
        x=found.x,
        area_um2=found.area_px * mpp**2,
        box=boxes(labels),
        p_positive=calls.astype(np.float64),
        positive=calls,
        grade=calls.astype(np.int8),
        clipped=np.zeros(n, bool),
    )
    return Result(sample.source, Labels(labels, sample.source.mpp), nuclei, None, {}, {})


def made_by() -> str:
    """Return the commit that stainbridge runs from, or its version."""
    found = software()
    return str(found["commit"] or found["stainbridge"])


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    return dict(json.loads(path.read_text("utf-8")))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as new:
        new.write_text(json.dumps(value, indent=1), "utf-8")


def _predict(task: Scoring, sample: Sample, state: WorkerState, clock: _Clock) -> Result:
    if task.answer == ORACLE:
        return answer_of(sample.truth.array, sample, sample.positive)
    if task.answer == EMPTY:
        return answer_of(np.zeros(sample.truth.shape, np.int32), sample, None)
    stages = state.keep("model", ("cell", task.cell_key), partial(Stages.build, task.config, translate=False))
    he = open_he(task.he) if task.he else None
    clock.lap("read")
    result = run_stages(sample.source, stages, he=he, progress=clock.told)
    clock.lap("classify")
    return replace(result, provenance={**result.provenance, **_translation(task.he)})


def _translation(he: Path | None) -> dict[str, Any]:
    return {} if he is None else {"translation": {"core_px": read_json(he.with_suffix(".json"))["core_px"]}}


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UnreadablePicture(
            f"{str(path)!r} is missing or damaged: {error}.\nRemove it, and the benchmark makes it again."
        ) from error
