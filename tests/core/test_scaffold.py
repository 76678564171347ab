"""`new-plugin` writes a whole distribution, or nothing."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from stainbridge import scaffold
from stainbridge.errors import ConfigError, OutputExists, WriteFailed
from stainbridge.registry import Registry
from stainbridge.scaffold import new_plugin


@pytest.fixture
def made(tmp_path):
    return new_plugin("red-cell", tmp_path / "red-cell")


def test_every_placeholder_is_filled_in_paths_and_in_texts(made):
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    assert files == [
        ".gitignore",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src/stainbridge_red_cell/__init__.py",
        "src/stainbridge_red_cell/registry.toml",
        "src/stainbridge_red_cell/segmenter.py",
        "tests/test_conformance.py",
        "tests/test_segmenter.py",
    ]
    assert not [name for name in files if "TEMPLATE" in (made / name).read_text()]


def test_the_distribution_announces_its_plugin(made):
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert project["name"] == "stainbridge-red-cell"
    assert project["entry-points"]["stainbridge"] == {"red-cell": "stainbridge_red_cell"}


def test_its_registry_is_valid_and_names_the_plugin(made):
    registry = Registry.read(made / "src" / "stainbridge_red_cell" / "registry.toml")
    assert registry.plugins["red-cell"].kinds == ("segmenter",)
    assert registry.models["red-cell/large"].plugin == "red-cell"


def test_what_it_writes_passes_its_own_linter(made):
    pytest.importorskip("ruff", reason="ruff is not installed")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=made, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_folder_is_named_after_the_plugin_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_plugin("mirror") == tmp_path / "stainbridge-mirror"


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputExists, match=r"mine' exists already\.\nName another folder"):
        new_plugin("mirror", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("Red Cell", "red-cell"),
        ("HoVer_Net", "hover-net"),
        ("2fast", "fast"),
        ("../evil", "evil"),
        ("é", "my-segmenter"),
    ],
)
def test_a_name_of_another_form_is_refused_with_the_nearest_valid_one(tmp_path, name, proposal):
    with pytest.raises(ConfigError, match=f"lower-case letters and digits.*\nTry '{proposal}'"):
        new_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_package_of_the_built_ins_is_not_taken(tmp_path):
    with pytest.raises(ConfigError, match=r"'stainbridge_plugins' is installed already.*\nTake another name"):
        new_plugin("plugins", tmp_path / "new")


def test_the_name_of_an_installed_segmenter_is_refused(tmp_path, monkeypatch):
    from types import SimpleNamespace

    taken = SimpleNamespace(kind="segmenter", name="mirror", distribution="somebody-else")
    monkeypatch.setattr("stainbridge.discovery.catalog", lambda: SimpleNamespace(found=(taken,)))
    with pytest.raises(ConfigError, match=r"somebody-else provides a segmenter 'mirror' already.*\n.*'my-mirror'"):
        new_plugin("mirror", tmp_path / "new")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(template, words):
        yield "README.md", "half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scaffold, "_filled", full)
    with pytest.raises(WriteFailed, match="No space left"):
        new_plugin("mirror", tmp_path / "mirror")
    assert list(tmp_path.iterdir()) == []
