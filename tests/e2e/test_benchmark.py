"""A suite on synthetic pictures: controls, resuming, failures as rows, leakage, files, MLflow."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image as Pillow

import stainbridge
from stainbridge import Metric, Segmenter, Suite, Wants, hookimpl
from stainbridge.discovery import register
from stainbridge.errors import ConfigError, OutputExists, UnknownPlugin
from stainbridge.testing import synthetic_ihc

pytestmark = pytest.mark.heavy

VALUES = {
    "name": "tiny",
    "translators": ["identity", "deconvolution/nuclear"],
    "segmenters": ["baseline"],
    "metrics": ["dice", "matching"],
    "bootstraps": 50,
    "figure_pictures": 0,
}


def pictures(folder, count=2, side=128):
    """Write synthetic IHC with label images."""
    folder.mkdir()
    for seed in range(count):
        sample = synthetic_ihc(shape=(side, side), nuclei=8, seed=seed)
        Pillow.fromarray(sample.source.read(0, 0, side, side)).save(folder / f"p{seed}.png")
        Pillow.fromarray(sample.truth.array.astype(np.uint16)).save(folder / f"p{seed}_labels.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "mine")


def suite(data, **changes):
    table = {"name": "mine", "layout": "folder", "path": str(data), "mpp": 0.25, "stain": "ihc"}
    return Suite(**{**VALUES, "datasets": [table], **changes})


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return stainbridge.benchmark(suite(data), out, tracking=False)


def cell(found, method):
    return next(one for one in found.cells if one.combination.method == method)


def test_the_truth_scores_one_and_nothing_scores_nought(found):
    oracle, empty = cell(found, "oracle"), cell(found, "empty")
    assert oracle.pooled["dice/dice_pooled"] == oracle.pooled["matching/f1@1.00"] == 1
    assert empty.pooled["dice/dice_pooled"] == empty.pooled["matching/recall@0.50"] == 0
    assert oracle.combination.role == empty.combination.role == "control"


def test_cells_hold_what_a_run_gives(found, data):
    values = cell(found, "deconvolution/nuclear + baseline").images[0].values
    scored = stainbridge.evaluate(
        suite(data).datasets[0], "deconvolution/nuclear", "baseline", metrics=["dice", "matching"]
    )
    assert scored.images[0].values == values
    assert scored.pooled == cell(found, "deconvolution/nuclear + baseline").pooled
    assert len(scored.to_pandas()) == 2


def test_intervals_hold_the_value_and_differences_are_paired(found):
    one = cell(found, "identity + baseline")
    low, high = one.intervals["dice/dice_pooled"]
    assert low <= one.pooled["dice/dice_pooled"] <= high
    pairs = {(d.a, d.b, d.value): d for d in found.differences}
    d = pairs["deconvolution/nuclear + baseline", "identity + baseline", "dice/dice_pooled"]
    other = cell(found, "deconvolution/nuclear + baseline")
    assert d.difference == pytest.approx(other.pooled["dice/dice_pooled"] - one.pooled["dice/dice_pooled"])
    assert d.images == 2


def test_each_reference_is_compared_with_those_before_it(data, tmp_path):
    three = {
        "translators": ["identity", "deconvolution", "deconvolution/nuclear"],
        "reference": ["identity", "deconvolution"],
    }
    chosen = suite(data, controls=False, compared=["dice/dice_pooled"], **three)
    found = stainbridge.benchmark(chosen, tmp_path / "out", tracking=False)
    pairs = {(d.a.removesuffix(" + baseline"), d.b.removesuffix(" + baseline")) for d in found.differences}
    wanted = {
        ("deconvolution", "identity"),
        ("deconvolution/nuclear", "identity"),
        ("deconvolution/nuclear", "deconvolution"),
    }
    assert wanted <= pairs


def test_virtual_he_is_made_once_per_translator_and_picture(found):
    assert len(list((found.folder / "he").glob("*.tif"))) == 4


def test_the_folder_holds_tables_and_csv(found):
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert {"tables/table1-mine.md", "tables/table1-mine.csv", "tables/table1-mine.tex"} <= names
    assert {"combinations.csv", "images.csv", "differences.csv", "suite.json"} <= names
    assert len(found.to_pandas()) == len(found.cells) == 4


def test_a_second_start_does_nothing_again(found, data):
    files = [path for path in found.folder.rglob("*") if path.parent.name in ("images", "predictions", "he")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = stainbridge.benchmark(suite(data), found.folder, tracking=False)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert again.cells == found.cells


def test_another_metric_scores_the_saved_predictions(found, data, tmp_path):
    predictions = {path: path.stat().st_mtime_ns for path in found.folder.rglob("*.npz")}
    again = stainbridge.benchmark(suite(data, metrics=["dice", "count"]), found.folder, tracking=False)
    assert {path: path.stat().st_mtime_ns for path in predictions} == predictions
    assert "count/error_abs_mean" in cell(again, "identity + baseline").pooled


def test_a_changed_picture_is_done_again(data, tmp_path):
    own = pictures(tmp_path / "own")
    first = stainbridge.benchmark(suite(own), tmp_path / "out", tracking=False)
    (own / "p1.png").write_bytes((data / "p0.png").read_bytes())
    (own / "p1_labels.png").write_bytes((data / "p0_labels.png").read_bytes())
    second = stainbridge.benchmark(suite(own), tmp_path / "out", tracking=False)
    one, two = (cell(each, "identity + baseline").images for each in (first, second))
    assert one[0].finished_ms == two[0].finished_ms
    assert two[1].values == two[0].values


def test_a_damaged_picture_is_a_row_and_the_rest_go_on(data, tmp_path):
    own = pictures(tmp_path / "own")
    (own / "p0.png").write_bytes((own / "p0.png").read_bytes()[:200])
    found = stainbridge.benchmark(suite(own), tmp_path / "out", tracking=False)
    for one in found.cells:
        if one.combination.role == "method":
            assert [image.status for image in one.images] == ["failed", "done"]
    assert "UnreadablePicture" in cell(found, "identity + baseline").images[0].error


class Breaking(Segmenter):
    name, api = "breaking", 1
    wants = Wants(stain="ihc")

    def segment(self, batch):
        if batch.mean() >= 0:
            raise ZeroDivisionError("by design")
        return batch[..., 0]


class Brightness(Metric):
    """Cannot pool from rows."""

    name, api = "brightness", 1

    def __init__(self):
        self.seen = []

    def update(self, result, truth):
        self.seen.append(float(result.source.read(0, 0, *result.source.shape).mean()))
        return {"mean": self.seen[-1]}

    def compute(self):
        return {"max": max(self.seen)}


class Unpooled(Brightness):
    """Claims to pool, and does not."""

    name = "unpooled"

    def pool(self, images, weights):
        raise ZeroDivisionError("by design")


class HasHe(Metric):
    """Tells whether it is shown the virtual H&E, each time that it is shown a picture; cannot pool."""

    name, api = "has_he", 1

    def __init__(self):
        self.seen = []

    def update(self, result, truth):
        self.seen.append(float(result.he is not None))
        return {"he": self.seen[-1]}

    def compute(self):
        return {"he": min(self.seen)}


class Module:
    @hookimpl
    def register_segmenters(self):
        return [Breaking]

    @hookimpl
    def register_metrics(self):
        return [Brightness, Unpooled, HasHe]


def test_a_plugin_that_breaks_is_rows_with_its_error(data, tmp_path):
    undo = register(Module(), "breaking")
    try:
        found = stainbridge.benchmark(
            suite(data, segmenters=["breaking", "baseline"], metrics=["dice", "brightness"]),
            tmp_path / "out",
            tracking=False,
        )
    finally:
        undo()
    broken = cell(found, "breaking")
    assert [image.error for image in broken.failed] == ["ZeroDivisionError: by design"] * 2
    one = cell(found, "identity + baseline")
    assert one.pooled["brightness/max"] == max(image.values["brightness/mean"] for image in one.images)


@pytest.fixture
def module():
    undo = register(Module(), "breaking")
    yield
    undo()


def test_a_metric_that_cannot_pool_is_an_error_of_its_cells_and_the_suite_ends(data, tmp_path, module):
    found = stainbridge.benchmark(suite(data, metrics=["dice", "unpooled"]), tmp_path / "out", tracking=False)
    one = cell(found, "identity + baseline")
    assert one.error == "The values of pictures could not be pooled: ZeroDivisionError: by design"
    assert len(one.done) == 2
    assert (found.folder / "combinations.csv").is_file()


def test_a_metric_that_is_shown_the_predictions_again_sees_the_virtual_he_again(data, tmp_path, module):
    found = stainbridge.benchmark(suite(data, metrics=["has_he"]), tmp_path / "out", tracking=False)
    one = cell(found, "deconvolution/nuclear + baseline")
    assert [image.values["has_he/he"] for image in one.images] == [1, 1]
    assert one.pooled["has_he/he"] == 1
    assert cell(found, "oracle").pooled["has_he/he"] == 0


def test_rows_say_what_made_them_and_take_their_subset_from_the_data_set(data, tmp_path):
    out = tmp_path / "out"
    first = stainbridge.benchmark(suite(data), out, tracking=False)
    assert all(image.made_by for image in first.cells[0].images)
    (tmp_path / "subsets.csv").write_text("picture,subset\np0,left\np1,right\n")
    table = {**suite(data).datasets[0], "subsets": str(tmp_path / "subsets.csv")}
    again = stainbridge.benchmark(suite(data, datasets=[table]), out, tracking=False)
    assert [image.finished_ms for image in again.cells[0].images] == [
        image.finished_ms for image in first.cells[0].images
    ]
    assert set(again.cells[0].subsets) == {"left", "right"}


def test_a_segmenter_of_ihc_is_one_cell_whatever_the_translators(data, tmp_path):
    found = stainbridge.benchmark(suite(data, segmenters=["baseline/ihc"]), tmp_path / "out", tracking=False)
    assert [one.combination.method for one in found.cells if one.combination.role == "method"] == ["baseline/ihc"]


def test_misspelt_names_stop_at_once_with_the_nearest(data, tmp_path):
    with pytest.raises(UnknownPlugin, match=r"No segmenter is named 'basline'\. Did you mean 'baseline'"):
        stainbridge.benchmark(suite(data, segmenters=["basline"]), tmp_path / "out", tracking=False)
    with pytest.raises(UnknownPlugin, match=r"No metric is named 'dise'\. Did you mean 'dice'"):
        stainbridge.benchmark(suite(data, metrics=["dise"]), tmp_path / "out", tracking=False)


def test_another_benchmark_is_not_overwritten(found, data, tmp_path):
    with pytest.raises(OutputExists, match="holds the benchmark 'tiny', not 'other'"):
        stainbridge.benchmark(suite(data, name="other"), found.folder, tracking=False)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match="no benchmark"):
        stainbridge.benchmark(suite(data), tmp_path, tracking=False)


class TestGate:
    def registry(self, folder, **facts):
        lines = {"plugin": "baseline", "summary": "x", "licence": "CC-BY-NC-4.0", "commercial": False, **facts}
        text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
        path = folder / "own.toml"
        path.write_text(f'[models."baseline/own"]\n{text}\n')
        return path

    def test_a_model_trained_on_the_evaluation_data_is_flagged(self, data, tmp_path):
        own = self.registry(tmp_path, training=["Mine"])
        asked = suite(data, segmenters=["baseline/own"], registries=[str(own)], translators=["identity"])
        found = stainbridge.benchmark(asked, tmp_path / "out", tracking=False)
        assert cell(found, "identity + baseline/own").flags == (
            "baseline/own was trained on the evaluation data: Mine",
        )
        assert cell(found, "identity + baseline").flags == ()
        with pytest.raises(ConfigError, match=r"strict = true refuses(.|\n)*trained on the evaluation data: Mine"):
            stainbridge.benchmark(asked.replace(strict=True), tmp_path / "other", tracking=False)

    def test_weights_that_are_not_free_are_flagged_for_commercial_use(self, data, tmp_path):
        own = self.registry(tmp_path)
        asked = suite(
            data, segmenters=["baseline/own"], registries=[str(own)], translators=["identity"], use="commercial"
        )
        found = stainbridge.benchmark(asked, tmp_path / "out", tracking=False)
        assert cell(found, "identity + baseline/own").flags == (
            "baseline/own: commercial use is not allowed (CC-BY-NC-4.0)",
        )


@pytest.mark.filterwarnings("default")
def test_mlflow_shows_a_run_per_cell_below_the_suites_run_and_never_twice(data, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    for _ in range(2):
        found = stainbridge.benchmark(suite(data, translators=["identity"]), tmp_path / "out")
    # The suite grows and goes on in the same folder: nothing that MLflow would refuse.
    told = []
    (tmp_path / "more.toml").touch()
    found = stainbridge.benchmark(
        suite(data, translators=["identity", "deconvolution/nuclear"], registries=[tmp_path / "more.toml"]),
        tmp_path / "out",
        tell=lambda *one: told.append(one),
    )
    assert [one for one in told if one[3]] == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["stainbridge.kind"] == "suite"]
    children = [run for run in runs if run.data.tags["stainbridge.kind"] == "cell"]
    assert len(parents) == 1
    assert len(children) == len(found.cells)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    oracle = next(run for run in children if run.data.tags["segmenter"] == "oracle")
    name = next(key for key in oracle.data.metrics if key.startswith("dice/dice_pooled"))
    assert oracle.data.metrics[name] == 1
    assert len(client.get_metric_history(oracle.info.run_id, name)) == 1
    assert any(one.path == "tables" for one in client.list_artifacts(oracle.info.run_id))


@pytest.mark.filterwarnings("default")
def test_a_server_that_is_down_costs_no_result_and_is_told(data, tmp_path):
    pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    told = []
    asked = suite(data, translators=["identity"], tracking={"uri": "http://127.0.0.1:9"})
    found = stainbridge.benchmark(asked, tmp_path / "out", tell=lambda *told_of: told.append(told_of))
    assert cell(found, "oracle").pooled["dice/dice_pooled"] == 1
    assert (tmp_path / "out" / "combinations.csv").is_file()
    what, sent, total, problem = told[-1]
    assert what == "MLflow"
    assert sent < total
    assert "The same command logs the rest" in problem


KILLED = """
import os, sys, time
from pathlib import Path
import stainbridge.benchmarking.running as running
score = running.score_picture
def slow(task, state):
    done = score(task, state)
    time.sleep(0.15)
    return done
running.score_picture = slow
if __name__ == "__main__":
    import stainbridge
    stainbridge.benchmark(sys.argv[1], sys.argv[2], tracking=False)
"""


def test_killed_twice_it_ends_with_the_same_bytes(data, tmp_path):
    script, toml = tmp_path / "killed.py", tmp_path / "suite.toml"
    script.write_text(KILLED)
    toml.write_text(
        'name = "tiny"\ntranslators = ["identity", "deconvolution/nuclear"]\nsegmenters = ["baseline"]\nmetrics = ["dice"]\n'
        f'bootstraps = 50\nfigure_pictures = 0\n[[datasets]]\nname = "mine"\nlayout = "folder"\npath = {json.dumps(str(data))}\n'
        'mpp = 0.25\nstain = "ihc"\n'
    )
    out = tmp_path / "out"
    seen = 0
    for stop_at in (1, 4):
        process = subprocess.Popen([sys.executable, str(script), str(toml), str(out)], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(list(out.glob("cells/*/images/*.json"))) < stop_at and process.poll() is None:
            assert time.monotonic() < deadline, "it did not get so far"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        rows = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/images/*.json")}
        assert len(rows) >= max(stop_at, seen)
        seen = len(rows)
    resumed = stainbridge.benchmark(toml, out, tracking=False)
    assert {path: path.stat().st_mtime_ns for path in rows} == rows, "finished pictures were done again"
    fresh = stainbridge.benchmark(toml, tmp_path / "fresh", tracking=False)
    for one, two in zip(resumed.cells, fresh.cells, strict=True):
        assert one.pooled == two.pooled
        assert one.intervals == two.intervals
        assert [image.values for image in one.images] == [image.values for image in two.images]
    arrays = [
        {p.name: np.load(p)["labels"] for p in sorted(root.glob("cells/*/predictions/*.npz"))}
        for root in (out, tmp_path / "fresh")
    ]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def test_two_workers_of_dask_give_what_one_process_gives(found, data, tmp_path):
    pytest.importorskip("distributed", reason="the dask extra is not installed")
    spread = stainbridge.benchmark(suite(data), tmp_path / "out", tracking=False, workers=2)
    for one, two in zip(found.cells, spread.cells, strict=True):
        assert one.pooled == two.pooled
        assert [image.values for image in one.images] == [image.values for image in two.images]
