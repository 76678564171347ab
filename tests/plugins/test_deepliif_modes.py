"""The benchmark of DeepLIIF's modes, run on a small model: what it prints and writes is what the segmenter finds in each mode."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stainbridge.testing import synthetic_ihc
from stainbridge_plugins.deepliif.segmenter import DeepLIIF

torch = pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from deepliif_models import MODALITIES, write_model  # noqa: E402

pytestmark = pytest.mark.heavy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NETWORKS = (*MODALITIES, "G51", "G52", "G53", "G54", "G55")
EACH, EACH_DROPPED = "statistics of each tile", "statistics of each tile, dropout"
TRAINED, TRAINED_DROPPED = "statistics of the training", "statistics of the training, dropout"
SHAPES = ((400, 500), (512, 512))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    return write_model(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures of different sizes, the second in a strip of six."""
    made = tmp_path / "pictures"
    made.mkdir()
    first, second = (synthetic_ihc(shape=shape, nuclei=40, mpp=0.25, seed=0).source.pixels for shape in SHAPES)
    Pillow.fromarray(first).save(made / "a.png")
    Pillow.fromarray(np.concatenate([second, *[255 - second] * 5], axis=1)).save(made / "b.png")
    return made, (first, second)


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Run the script; return its figures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("machine"), "RESULTS", tmp_path / "results")

    def call(*arguments):
        importlib.import_module("deepliif_modes").main([str(one) for one in arguments])
        return json.loads((tmp_path / "results" / "deepliif_modes.json").read_text())["figures"]

    return call


@pytest.mark.parametrize("version", ["1.1.2", "current"])
def test_every_mode_is_a_row_of_what_the_segmenter_finds_in_it(folder, pictures, benchmark, capsys, version):
    made, pixels = pictures
    settings = {"version": version, "seg_weights": [0.7, 0, 0, 0, 0.3], "seg_thresh": 100}
    figures = benchmark(folder, made, *(word for item in settings.items() for word in ("--set", "{}={}".format(*item))))
    assert list(figures["modes"]) == [EACH, EACH_DROPPED, TRAINED, TRAINED_DROPPED]
    assert figures["pictures"] == 2
    plain, trained = (
        DeepLIIF(DeepLIIF.Config(path=folder, **settings, batch_norm=norm)) for norm in ("batch", "running")
    )
    ours, theirs = ([one.segmentations(picture[None])[0] for picture in pixels] for one in (plain, trained))
    gap = np.concatenate([np.abs(a.astype(int) - b).ravel() for a, b in zip(ours, theirs, strict=True)])
    nuclei = [
        np.concatenate([one.segment(picture[None]).ravel() for picture in pixels]) > 0 for one in (plain, trained)
    ]
    row = figures["modes"][TRAINED]
    assert (row["mean_grey"], row["max_grey"]) == (pytest.approx(gap.mean()), gap.max())
    assert row["changed_px"] == pytest.approx(np.mean(nuclei[0] != nuclei[1]))
    assert row["changed_px"] > 0
    assert figures["modes"][EACH]["nuclei"] > 0
    assert row["nuclei"] == sum(int(trained.segment(picture[None]).max()) for picture in pixels)
    assert figures["modes"][EACH]["mean_grey"] == figures["modes"][EACH]["changed_px"] == 0
    assert figures["modes"][EACH_DROPPED]["mean_grey"] > 0
    shown = capsys.readouterr().out
    assert f"{row['mean_grey']:.3f}" in shown
    assert f"{row['max_grey']}" in shown
    assert all(name in shown for name in figures["modes"])


def test_networks_without_statistics_of_the_training_have_two_modes_and_it_is_said(folder, pictures, benchmark, capsys):
    for name in NETWORKS:
        path = folder / f"latest_net_{name}.pth"
        state = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in state.items() if ".running_" not in key}, path)
    figures = benchmark(folder, pictures[0] / "a.png", "--set", "version=current")
    assert list(figures["modes"]) == [EACH, EACH_DROPPED]
    assert "has no statistics of the training" in capsys.readouterr().err
