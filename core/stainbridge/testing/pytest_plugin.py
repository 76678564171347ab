"""Pytest plugin: one test case per conformance check.

Installed with stainbridge, so that the test file of a plugin is::

    import pytest

    @pytest.mark.stainbridge_conformance("segmenter", "mirror")
    def test_mirror_keeps_the_contract(conformance):
        conformance()

A failure that the plugin declares in `expected_failures` is a strict xfail. Nothing is imported before such a mark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stainbridge.interfaces import Kind

    from .conformance import Check
    from .subject import Subject

MARK = "stainbridge_conformance"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, for `--strict-markers`."""
    config.addinivalue_line("markers", f"{MARK}(kind, name): run the test once per conformance check of a plugin")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a marked test one `conformance` per check."""
    mark = metafunc.definition.get_closest_marker(MARK)
    if mark is None:
        return
    if len(mark.args) != 2 or mark.kwargs or "conformance" not in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: write @pytest.mark.{MARK}('segmenter', 'name') above a test that takes "
            f"`conformance`; found arguments {mark.args}."
        )
    metafunc.parametrize("conformance", conformance_cases(*mark.args))


def conformance_cases(kind: Kind, name: str) -> list[Any]:
    """Return one `pytest.param` per check of an installed plugin: a function that raises where the check fails.

    The functions take no arguments. The plugin is constructed once, when the first case runs.

    Raises
    ------
    UnknownPlugin, PluginUnavailable
        If there is no such plugin, or it cannot be loaded.
    """
    from functools import cache, partial

    from stainbridge.discovery import build, get

    from .conformance import checks_for
    from .subject import Subject

    @cache
    def subject() -> Subject:
        return Subject.of(build(kind, name).plugin)

    expected = get(kind, name.partition("/")[0]).expected_failures
    return [
        pytest.param(
            partial(_hold, check, subject),
            id=check.name,
            marks=[pytest.mark.xfail(reason=expected[check.name], strict=True)] if check.name in expected else [],
        )
        for check in checks_for(kind)
    ]


def _hold(check: Check, subject: Callable[[], Subject]) -> None:
    check.hold(subject())
