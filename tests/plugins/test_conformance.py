"""Every built-in plugin and model, with its real weights, keeps the contract: one case per check."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import pytest

from stainbridge.errors import MissingExtra, WeightsUnavailable
from stainbridge.loading import Found, Problem, load_plugin
from stainbridge.registry import Model, Registry
from stainbridge.resources import Announced, locate
from stainbridge.testing import checks_for
from stainbridge.testing.conformance import run_check
from stainbridge.testing.subject import Subject
from stainbridge.weights import fetch

ROOT = Path(__file__).resolve().parents[2]


def loaded() -> list[Found | Problem]:
    """Load what pyproject.toml announces, so that the cases do not depend on how the tree was installed."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["stainbridge"]
    entries = [Announced(name, value, "stainbridge", "") for name, value in points.items()]
    return [one for entry in entries for one in load_plugin(entry, partial(import_module, entry.value))]


def cases() -> Iterator[object]:
    registry = Registry.read(locate("registry.toml"))
    for found in (one for one in LOADED if isinstance(one, Found) and one.name not in IN_TESTS_OF_THEIR_OWN):
        models = {name: model for name, model in registry.models.items() if model.plugin == found.name}
        weighted = any(model.weights for model in models.values())
        names = [] if weighted else [found.name]
        names += [name for name, model in models.items() if model.weights or (model.config and not weighted)]
        heavy = bool(registry.plugins[found.name].extra)
        for name in names:
            make = cache(partial(constructed, found, name, models.get(name)))
            for check in checks_for(found.kind):
                case = f"{found.kind}-{name}-{check.name}"
                yield pytest.param(name, check, make, id=case, marks=[pytest.mark.heavy] if heavy else [])


def constructed(found: Found, name: str, model: Model | None) -> Subject:
    """Make the plugin as the registry says, its weights from the cache or the package index."""
    if found.kind == "metric":
        return Subject.of(found.cls())
    config = found.cls.Config.model_validate(dict(model.config) if model else {})
    weights = {one.file: fetch(one, model=name) for one in model.weights} if model else {}
    return Subject.of(found.cls(config, weights=weights))


LOADED = loaded()
IN_TESTS_OF_THEIR_OWN = {
    "cyclegan": "test_gan_translators.py",
    "ugatit": "test_gan_translators.py",
    "hovernet": "test_hovernet_segmenter.py",
    "deepliif": "test_deepliif_plugin.py",
}
"""Plugins whose weights nobody can fetch, and the file that runs the checks over them with small networks."""
WEAK = {
    ("cellpose/cp-tu", "finds_the_synthetic_nuclei"): "the network cuts synthetic nuclei into pieces",
    (
        "cellpose/cp-tu",
        "does_not_depend_on_the_window",
    ): "unsure of them, it decides otherwise where its tiles lie otherwise",
}
"""What a model's weights, and not its plugin, are known to fail; a plugin's own failures are declared in its class."""


def test_every_built_in_loads():
    assert [one for one in LOADED if isinstance(one, Problem)] == []
    assert {one.kind for one in LOADED} == {"translator", "segmenter", "classifier", "metric"}


@pytest.mark.parametrize(("name", "file"), IN_TESTS_OF_THEIR_OWN.items())
def test_plugins_without_public_weights_are_checked_elsewhere(name, file):
    text = Path(__file__).with_name(file).read_text("utf-8")
    assert re.search(r"\brun_checks?\(|\bchecks_for\(", text)
    assert name in text.lower()


@pytest.mark.parametrize(("name", "check", "make"), list(cases()))
def test_a_built_in_keeps_the_contract(name, check, make):
    try:
        subject = make()
    except (MissingExtra, WeightsUnavailable) as error:
        pytest.skip(str(error))
    report = run_check(check, subject)
    if (name, check.name) in WEAK:
        assert not report.ok, "it passes now: take it out of WEAK"
        pytest.xfail(WEAK[name, check.name])
    assert report.ok, report.message
    if report.outcome == "expected failure":
        pytest.xfail(report.message)
