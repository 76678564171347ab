"""A plugin written outside the repository: made from the template, built as a wheel, installed, listed, checked, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from stainbridge.scaffold import new_plugin
from stainbridge.testing import checks_for, synthetic_ihc

ROOT = Path(__file__).resolve().parents[2]
NUCLEI = 80

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def wheel(project: Path, out: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, project, cwd=out.parent)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    return new_plugin("red-cell", tmp_path_factory.mktemp("outside") / "red-cell")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory, plugin):
    folder = tmp_path_factory.mktemp("wheels")
    return wheel(ROOT, folder / "host"), wheel(plugin, folder / "plugin")


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheels):
    """Return the scripts of a new environment that holds both wheels.

    It borrows the libraries of this one, which would take minutes to install again; stainbridge itself is the wheel's.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps", *wheels, cwd=home)
    own = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home)
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(own.stdout.strip(), "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    where = run(scripts / "python", "-c", "import stainbridge; print(stainbridge.__file__)", cwd=home)
    assert Path(where.stdout.strip()).is_relative_to(home)
    return scripts


def test_the_wheel_of_stainbridge_holds_the_whole_template(wheels):
    template = ROOT / "plugins" / "template"
    files = [path.relative_to(template) for path in template.rglob("*") if path.is_file()]
    expected = {f"stainbridge/template/{path.as_posix()}" for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheels[0]) as archive:
        assert {name for name in archive.namelist() if name.startswith("stainbridge/template/")} == expected


def test_the_plugin_is_listed_and_nothing_is_broken(installed, tmp_path):
    listed = json.loads(run(installed / "stainbridge", "plugins", "--json", cwd=tmp_path).stdout)
    found = {(one["kind"], one["name"]): one for one in listed["plugins"]}
    assert found["segmenter", "red-cell"]["distribution"] == "stainbridge-red-cell"
    assert found["segmenter", "red-cell"]["licence"] == "Apache-2.0"
    assert listed["problems"] == []


def test_the_plugin_passes_the_checks_of_the_command_line(installed, tmp_path):
    done = run(installed / "stainbridge", "plugins", "check", "red-cell", "--json", cwd=tmp_path)
    assert [(one["name"], one["outcome"]) for one in json.loads(done.stdout)] == [
        (check.name, "passed") for check in checks_for("segmenter")
    ]


def test_its_own_tests_pass_where_it_is_installed(installed, plugin):
    done = run(installed / "python", "-m", "pytest", "-p", "no:cacheprovider", cwd=plugin)
    assert f"{len(checks_for('segmenter')) + 2} passed" in done.stdout


@pytest.mark.parametrize("segmenter", ["red-cell", "red-cell/large"])
def test_a_run_with_it_finds_the_nuclei_of_a_picture(installed, tmp_path, segmenter):
    from PIL import Image

    sample = synthetic_ihc(nuclei=NUCLEI, positive_fraction=0.3)
    Image.fromarray(sample.source.pixels).save(tmp_path / "field.png")
    options = ["--mpp", "0.25", "--segmenter", segmenter, "-o", "out", "--json"]
    (entry,) = json.loads(run(installed / "stainbridge", "run", "field.png", *options, cwd=tmp_path).stdout)
    assert entry["status"] != "failed"
    assert 0.8 * NUCLEI <= entry["nuclei"] <= 1.2 * NUCLEI
    assert 25 <= entry["percent_positive"] <= 35


def test_the_installed_command_makes_the_same_plugin(installed, plugin, tmp_path):
    made = Path(run(installed / "stainbridge", "new-plugin", "blue-cell", cwd=tmp_path).stdout.strip())
    assert made == tmp_path / "stainbridge-blue-cell"
    ours = (plugin / "src" / "stainbridge_red_cell" / "segmenter.py").read_text()
    theirs = (made / "src" / "stainbridge_blue_cell" / "segmenter.py").read_text()
    assert theirs == ours.replace("red-cell", "blue-cell").replace("RedCell", "BlueCell").replace(
        "red_cell", "blue_cell"
    )
