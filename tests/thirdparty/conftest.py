"""A folder on sys.path that fake distributions are installed into."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stainbridge import discovery

GOOD = """
import numpy as np
from stainbridge import PluginConfig, Segmenter, Wants, hookimpl


class Blank(Segmenter):
    name = "NAME"
    api = 1

    class Config(PluginConfig):
        min_area_um2: float = 5.0

    @property
    def wants(self):
        return Wants(stain="he")

    def segment(self, batch):
        return np.zeros(batch.shape[:3], np.int32)


@hookimpl
def register_segmenters():
    return [Blank]
"""


@dataclass
class Site:
    folder: Path

    def add(self, distribution, source, *, registry=None, version="1.0", entry_points=None, single_file=False):
        """Install a package named after the distribution, and its metadata."""
        module = distribution.replace("-", "_")
        home = self.folder if single_file else self.folder / module
        home.mkdir(exist_ok=True)
        (self.folder / f"{module}.py" if single_file else home / "__init__.py").write_text(source)
        if registry is not None:
            (home / "registry.toml").write_text(registry)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points or f"[stainbridge]\n{module} = {module}\n")
        return home

    def add_good(self, distribution, name, **options):
        """Install a distribution with one segmenter."""
        return self.add(distribution, GOOD.replace("NAME", name), **options)

    def catalog(self):
        """Look again at what is installed."""
        importlib.invalidate_caches()
        return discovery.catalog(refresh=True)

    def problem(self, distribution):
        """Return the only problem of a distribution, after checking that the good one still works."""
        catalog = self.catalog()
        assert catalog.get("segmenter", "fine").name == "fine"
        (problem,) = [one for one in catalog.problems if one.distribution == distribution]
        return problem


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site, but for one good plugin named "fine"."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made = Site(folder)
    made.add_good("good-one", "fine")
    yield made
    monkeypatch.undo()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()
    discovery.catalog(refresh=True)
