"""The pytest plugin turns one marked test into one case per check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stainbridge import discovery
from stainbridge.errors import PluginUnavailable, UnknownPlugin
from stainbridge.loading import Catalog, Problem
from stainbridge.testing import check_plugin, checks_for

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = """
from stainbridge import Translator, Wants, hookimpl

class Grey(Translator):
    name, api = "grey", 1
    wants = Wants(stain="ihc")
    expected_failures = {"does_not_depend_on_the_window": "subtracts the mean of its window"}

    def translate(self, batch):
        return (batch - batch.mean((1, 2), keepdims=True) + 128).clip(0, 255).astype("uint8")

@hookimpl
def register_translators():
    return [Grey]
"""

TEST = """
import pytest

@pytest.mark.stainbridge_conformance("translator", "grey")
def test_grey(conformance):
    conformance()

def test_of_something_else():
    pass
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest in a folder with the plugin installed, as a stranger would."""
    info = tmp_path / "site" / "grey-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grey\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[stainbridge]\ngrey = grey_plugin\n")

    def run(plugin, test):
        (tmp_path / "site" / "grey_plugin.py").write_text(plugin)
        (tmp_path / "test_grey.py").write_text(test)
        path = os.pathsep.join([str(tmp_path / "site"), str(ROOT / "core"), str(ROOT / "plugins")])
        # Loaded by hand, so that it is there once whether or not this tree is installed.
        environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        options = ["-p", "stainbridge.testing.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers", "-v", "-rx"]
        command = [
            sys.executable,
            "-m",
            "pytest",
            *options,
            "-c",
            os.devnull,
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_each_check_is_a_case_and_a_declared_failure_an_xfail_with_its_reason(run):
    done = run(PLUGIN, TEST)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [check.name for check in checks_for("translator")]
    assert all(f"test_grey[{name}]" in done.stdout for name in checks)
    assert f"{len(checks)} passed, 1 xfailed" in done.stdout
    assert "subtracts the mean of its window" in done.stdout


def test_a_failing_check_and_an_outlived_declaration_fail(run):
    plugin = PLUGIN.replace("does_not_depend_on_the_window", "is_deterministic")
    done = run(plugin, TEST)
    assert done.returncode == 1
    assert "test_grey[does_not_depend_on_the_window] FAILED" in done.stdout
    assert "The window moved by 16 px gave pixels that differ by up to" in done.stdout
    assert "[XPASS(strict)] subtracts the mean of its window" in done.stdout


def test_a_mark_without_kind_and_name_says_what_to_write(run):
    done = run(PLUGIN, TEST.replace('("translator", "grey")', '("grey")'))
    assert done.returncode != 0
    assert "write @pytest.mark.stainbridge_conformance('segmenter', 'name')" in done.stdout + done.stderr


def test_an_unknown_plugin_is_an_error_that_names_the_nearest():
    with pytest.raises(UnknownPlugin, match=r"No plugin is named 'no-such-plugin'\."):
        check_plugin("no-such-plugin")


def test_a_plugin_that_did_not_load_is_an_error_that_says_why(monkeypatch):
    broken = Problem("grey", "grey-dist", "broken", "'grey_plugin' cannot be loaded: ImportError: no torch")
    monkeypatch.setattr(discovery, "catalog", lambda: Catalog((), (broken,)))
    with pytest.raises(
        PluginUnavailable, match=r"'grey' cannot be used: broken: .* no torch\nSee: stainbridge plugins"
    ):
        check_plugin("grey")


def test_a_plugin_is_checked_by_its_name_in_every_kind_that_has_it():
    module = type(sys)("grey_here")
    exec(PLUGIN, module.__dict__)
    undo = discovery.register(module)
    try:
        reports = check_plugin("grey")
        assert [report.name for report in reports] == [check.name for check in checks_for("translator")]
        assert {report.outcome for report in reports} == {"passed", "expected failure"}
        assert {(report.kind, report.plugin) for report in reports} == {("translator", "grey")}
        with pytest.raises((UnknownPlugin, PluginUnavailable), match="'grey' is a translator"):
            check_plugin("grey", kind="segmenter")
    finally:
        undo()
