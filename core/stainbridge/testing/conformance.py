"""Runs the named checks of the contracts over a plugin.

A plugin that is known to fail a check says so, with the reason, in `expected_failures`; passing it after all is a
failure too, so that the declaration cannot outlive its cause.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stainbridge.config import Choice, overridden
from stainbridge.errors import ConfigError, PluginUnavailable, StainbridgeError, UnknownPlugin, nearest
from stainbridge.interfaces import Kind, Metric, Plugin

from . import checks_classifier, checks_common, checks_metric, checks_pixels, checks_segmenter, checks_translator
from .subject import ConformanceError, Subject, require

if TYPE_CHECKING:
    from stainbridge.loading import Catalog

Outcome = Literal["passed", "failed", "expected failure", "unexpected pass"]
Conforming = Plugin | Metric | type[Plugin] | type[Metric]


@dataclass(frozen=True)
class Check:
    """One claim about plugins, and the function that fails where it does not hold.

    Parameters
    ----------
    name : by which `expected_failures` names it
    kinds : of plugins that it applies to
    run : raises `ConformanceError`, or whatever the plugin raises
    """

    name: str
    kinds: tuple[Kind, ...]
    run: Callable[[Subject], None]

    @property
    def claim(self) -> str:
        """What is claimed, in a sentence."""
        return inspect.getdoc(self.run) or ""

    def hold(self, subject: Subject) -> None:
        """Run it, a numerical warning counting as an error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            self.run(subject)


@dataclass(frozen=True)
class CheckReport:
    """What became of one check.

    Parameters
    ----------
    name : of the check
    outcome : "passed", "failed", "expected failure" or "unexpected pass"
    message : what was found, or why the failure is expected; empty where it passed
    kind, plugin : what was checked
    """

    name: str
    outcome: Outcome
    message: str
    kind: Kind
    plugin: str

    @property
    def ok(self) -> bool:
        """Whether the plugin does what it says."""
        return self.outcome in ("passed", "expected failure")


def checks_for(kind: Kind) -> list[Check]:
    """Return the checks of a kind of plugin, in the order in which they are run."""
    return [check for check in _CHECKS if kind in check.kinds]


def run_checks(given: Conforming, *, only: Iterable[str] | None = None) -> list[CheckReport]:
    """Run the checks over a plugin: an instance, or a class that can be constructed with its defaults.

    Parameters
    ----------
    given : the plugin
    only : names of checks; None runs all

    Raises
    ------
    UnknownPlugin
        If `only` names a check that is not there.
    """
    subject = Subject.of(given)
    checks = checks_for(subject.kind)
    if only is not None:
        names = {check.name: check for check in checks}
        checks = [names[name] if name in names else _no_such_check(name, subject.kind) for name in only]
    return [run_check(check, subject) for check in checks]


def run_check(check: Check, subject: Subject) -> CheckReport:
    """Run one check and say what became of it."""
    cls = type(subject.plugin)
    # Of the instance: settings may decide what it is known to fail.
    reason = subject.plugin.expected_failures.get(check.name)
    failure = _failure(check, subject)
    if failure is None:
        outcome: Outcome = "passed" if reason is None else "unexpected pass"
        message = "" if reason is None else f"It passed, although `expected_failures` says: {reason}"
    else:
        outcome = "failed" if reason is None else "expected failure"
        message = failure if reason is None else reason
    return CheckReport(check.name, outcome, message, subject.kind, str(getattr(cls, "name", cls.__name__)))


def check_plugin(name: str, *, kind: Kind | None = None, settings: Iterable[str] = ()) -> list[CheckReport]:
    """Run the checks over an installed plugin, or over a model such as "stardist/he".

    Parameters
    ----------
    name : of the plugin or model
    kind : None takes every kind that has this name
    settings : texts such as "path=FILE" for every kind, or "segmenter.path=FILE" for one; values as in `RunConfig.with_overrides`

    Raises
    ------
    UnknownPlugin, PluginUnavailable, MissingExtra, WeightsUnavailable
        If there is none, or it cannot be constructed.
    ConfigError
        If a setting is not one of the plugin, or of a kind that is not checked.
    """
    from stainbridge.discovery import build, catalog

    listed = catalog()
    plugin, _ = listed.registry.resolve(name)
    kinds = [kind] if kind else [one.kind for one in listed.found if one.name == plugin]
    if not kinds:
        raise _absent(listed, plugin)
    given = _by_kind(settings, kinds, name)
    plugins = [build(one, Choice(name, given[one])).plugin for one in kinds]
    return [report for one in plugins for report in run_checks(one)]


def _by_kind(settings: Iterable[str], kinds: Iterable[Kind], name: str) -> dict[Kind, dict[str, Any]]:
    """Return the settings of each kind: those for all, and its own over them."""
    given = overridden({}, settings, example="path=FILE")
    own = {one: given.pop(one) for one in KINDS if isinstance(given.get(one), dict)}
    kinds = list(kinds)
    for one in own:
        if one not in kinds:
            raise ConfigError(f"--set {one}.{next(iter(own[one]))}: {name!r} is checked as {' and '.join(kinds)} only.")
    return {one: {**given, **own.get(one, {})} for one in kinds}


def names_only_known_checks(subject: Subject) -> None:
    """Each expected failure names a check of this kind and gives a reason."""
    known = [check.name for check in checks_for(subject.kind)]
    for name, reason in subject.plugin.expected_failures.items():
        require(name in known, f"`expected_failures` names {name!r}, which is no check.{nearest(name, known)}")
        require(bool(reason.strip()), f"`expected_failures` gives no reason for {name!r}.")


def _failure(check: Check, subject: Subject) -> str | None:
    """Return why a check fails, or None where it passes."""
    try:
        check.hold(subject)
    except ConformanceError as error:
        return str(error)
    except Exception as error:  # whatever a plugin raises is the answer to the check
        return f"{type(error).__name__}: {error}"
    return None


def _absent(listed: Catalog, name: str) -> StainbridgeError:
    doctor = "See: stainbridge plugins doctor"
    for one in listed.problems:
        if name in (one.name, one.entry_point):
            return PluginUnavailable(f"The plugin {name!r} cannot be used: {one.failure}: {one.message}\n{doctor}")
    known = sorted({one.name for one in listed.found})
    return UnknownPlugin(
        f"No plugin is named {name!r}.{nearest(name, known)}\nKnown: {', '.join(known) or 'none'}.\n{doctor}"
    )


def _no_such_check(name: str, kind: Kind) -> Check:
    known = [check.name for check in checks_for(kind)]
    raise UnknownPlugin(f"No check of a {kind} is named {name!r}.{nearest(name, known)}\nKnown: {', '.join(known)}.")


def _checks(functions: Iterable[Callable[[Subject], Any]], *kinds: Kind) -> list[Check]:
    return [Check(function.__name__, kinds, function) for function in functions]


KINDS: tuple[Kind, ...] = ("translator", "segmenter", "classifier", "metric")

_CHECKS = (
    *_checks((*checks_common.ANY, names_only_known_checks), *KINDS),
    *_checks(checks_common.CONFIGURED, "translator", "segmenter", "classifier"),
    *_checks(checks_pixels.CHECKS, "translator", "segmenter"),
    *_checks(checks_translator.CHECKS, "translator"),
    *_checks(checks_segmenter.CHECKS, "segmenter"),
    *_checks(checks_classifier.CHECKS, "classifier"),
    *_checks(checks_metric.CHECKS, "metric"),
)
