"""What the README shows works as it stands."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import stainbridge
from stainbridge import cli
from stainbridge.testing.synthetic import synthetic_he, synthetic_ihc

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
COMMANDS = [line for line in README.splitlines() if line.startswith("stainbridge ")]
TOML = re.findall(r"^```toml\n(.*?)^```", README, re.M | re.S)
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)


# A training of minutes on a GPU, as seconds on a processor.
SMALL = [
    part
    for setting in ("epochs=1", "steps=1", "patch_px=64", "learner.channels=8", "learner.blocks=1", "watch.size_px=128")
    for part in ("--set", setting)
]


def test_its_first_two_commands_install_and_are_one_line_each():
    assert len(SHELL) == 2
    for command in SHELL:
        assert command.count("\n") == 1
        assert "-m venv" in command
        assert "pip install" in command
    assert "stainbridge demo" in SHELL[0]
    assert "pytest" in SHELL[1]


def exit_code():
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.heavy
@pytest.mark.filterwarnings("default")  # MLflow's own
def test_its_commands_run(tmp_path, monkeypatch, capsys):
    """The first takes the default segmenter, whatever is installed; weights come from the package index."""
    monkeypatch.chdir(tmp_path)
    for folder in ("slides", "study", "ihc", "he"):
        Path(folder).mkdir()
        make = synthetic_he if folder == "he" else synthetic_ihc
        pixels = make(shape=(256, 256), nuclei=25).source.pixels
        tifffile.imwrite(f"{folder}/one.tif", pixels, photometric="rgb")
    Path("tiles").mkdir()
    sample = synthetic_ihc(shape=(256, 256), nuclei=25)
    tifffile.imwrite("tiles/one.tif", sample.source.pixels, photometric="rgb")
    tifffile.imwrite("tiles/one_labels.tif", sample.truth.array.astype(np.uint16))
    (suite,) = TOML
    Path("suite.toml").write_text(suite)
    for command in COMMANDS:
        _, *arguments = shlex.split(command.replace(" --device cuda", ""))
        small = SMALL if arguments[0] == "train" else []
        monkeypatch.setattr(sys, "argv", ["stainbridge", *arguments, *small])
        assert exit_code() == 0, f"{command}: {capsys.readouterr().err}"
    assert json.loads(Path("study_results/one/summary.json").read_text())["scores"]["rescored"]["threshold"] == 0.25


def test_its_python_example_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas", reason="the example makes a pandas table")
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("slide.tif", synthetic_ihc(shape=(256, 256), nuclei=25).source.pixels, photometric="rgb")
    names = {}
    exec(PYTHON[0], names)
    assert len(names["table"]) == len(names["result"].nuclei) > 10
    assert (tmp_path / "results" / "slide" / "summary.json").is_file()
    assert float(capsys.readouterr().out.split()[0]) == names["result"].scores["percent_positive"]


def test_its_plugin_example_is_a_plugin():
    names = {}
    exec(PYTHON[-1], names)
    (dark,) = names["register_segmenters"]()
    sample = synthetic_ihc(shape=(256, 256), nuclei=25)
    found = stainbridge.run(sample.source, "identity", dark(), "dab")
    assert len(found.nuclei) > 5
    assert np.asarray(found.labels).dtype == np.int32


def test_its_suite_is_a_suite_and_its_evaluation_names_things_that_exist():
    import tomllib

    suite = stainbridge.Suite(**tomllib.loads(TOML[0]))
    registry = stainbridge.catalog().registry
    for choice in (*suite.translators, *suite.segmenters, *suite.classifiers):
        registry.resolve(choice.name)
    data, *named = re.search(r'evaluate\("(.*?)", "(.*?)", "(.*?)"\)', PYTHON[1]).groups()
    assert registry.dataset(data).layout == "deepliif"
    for name in named:
        registry.resolve(name)
