"""`plugins check` holds plugins that need a file against their contract: the file is named by --set."""

import json
import re
import sys
from pathlib import Path

import pytest

from stainbridge import cli
from stainbridge.testing import check_plugin, checks_for

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("cv2", reason="opencv is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from deepliif_models import write_model  # noqa: E402
from hovernet_handmade import handmade  # noqa: E402

pytestmark = pytest.mark.heavy

COLOURS = "seg_weights=[1.0, 0.0, 0.0, 0.0, 0.0]"
"""With which the small DeepLIIF finds brown and blue by their colour."""


@pytest.fixture
def check(monkeypatch, capsys):
    """Run `stainbridge plugins check`; return (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stainbridge", "plugins", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file of a HoVer-Net that finds nuclei, with the types of PanNuke."""
    path = tmp_path_factory.mktemp("hovernet") / "pannuke.tar"
    torch.save({"desc": handmade(types=6).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("deepliif"))


def test_a_plugin_that_needs_a_file_is_checked_with_it(check, network):
    options = ("--set", f"segmenter.path={network}", "--set", "normalisation=fixed", "--json")
    code, out, _ = check("hovernet/pannuke", *options)
    reports = json.loads(out)
    assert [one["name"] for one in reports] == [one.name for one in checks_for("segmenter")]
    assert [one for one in reports if one["outcome"] != "passed"] == []
    assert code == 0


def test_a_model_brings_its_settings(check, network):
    code, _, err = check("hovernet/consep", "--set", f"path={network}")
    assert code == 2
    assert "mode 'fast' with 6 types, background included; asked for was mode 'original' with 5 types" in err


def test_what_fails_says_so_by_the_exit_code(check, folder):
    options = ("--set", f"path={folder}", "--set", COLOURS, "--set", "size_px=1000000")
    code, out, _ = check("deepliif", "--kind", "segmenter", *options, "--json")
    failed = [one["name"] for one in json.loads(out) if one["outcome"] == "failed"]
    assert "finds_the_synthetic_nuclei" in failed
    assert code == 1


def test_settings_go_to_every_kind_and_those_of_a_kind_to_it_alone(folder):
    reports = check_plugin(
        "deepliif/current", settings=[f"path={folder}", COLOURS, "segmenter.size_px=40", "classifier.reuse=false"]
    )
    assert {one.kind for one in reports} == {"segmenter", "classifier"}
    assert [one for one in reports if not one.ok] == []


def test_without_the_file_the_message_is_an_option_of_this_command(check, network):
    code, _, err = check("hovernet")
    assert code == 2
    assert "WeightsUnavailable" in err
    assert "--set segmenter.path=FILE" in err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pth=x"], r"unknown key 'pth'\. Did you mean 'path'"),
        (["path"], r"--set path: expected KEY=VALUE, such as path=FILE"),
        (["translator.path=x"], r"--set translator\.path: 'hovernet' is checked as segmenter only"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(settings, message, check):
    options = [word for one in settings for word in ("--set", one)]
    code, _, err = check("hovernet", *options)
    assert code == 2
    assert re.search(message, err), err
