"""Load plugin modules and ask their hooks; whatever goes wrong, short of Ctrl-C, is kept as data in the catalog."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import pluggy

from . import hookspecs
from .errors import PluginUnavailable, UnknownPlugin, nearest
from .interfaces import API_VERSION, Kind, Metric, PluginConfig, PositivityClassifier, Segmenter, Translator
from .registry import Registry
from .resources import Announced

HOOKS: Mapping[Kind, tuple[str, type[Any]]] = {
    "translator": ("register_translators", Translator),
    "segmenter": ("register_segmenters", Segmenter),
    "classifier": ("register_classifiers", PositivityClassifier),
    "metric": ("register_metrics", Metric),
}
"""The hook and the base class of each kind."""

Failure: TypeAlias = Literal["broken", "duplicate", "misspelt hook", "incompatible", "not a plugin", "registry"]

IN_PROCESS = "(this process)"
"""Stands for the distribution of a plugin that was registered from Python."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True)
class Found:
    """One plugin class that can be used.

    Parameters
    ----------
    kind, name : how users ask for it
    cls : the class
    distribution, version : who ships it
    entry_point : name of the entry point it came by
    api : version of the contracts that it was written for
    """

    kind: Kind
    name: str
    cls: type[Any]
    distribution: str
    version: str
    entry_point: str
    api: int


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong, and with whom.

    Parameters
    ----------
    entry_point, distribution : whose it is
    failure : "broken", "duplicate", "misspelt hook", "incompatible", "not a plugin" or "registry" (its registry file)
    message : what happened and what to do, for people
    traceback : where there was an exception, else an empty string
    kind, name : the plugin that is lost by it, where that is known
    """

    entry_point: str
    distribution: str
    failure: Failure
    message: str
    traceback: str = ""
    kind: str = ""
    name: str = ""


@dataclass(frozen=True)
class Catalog:
    """Every plugin that can be used, every one that cannot and why, and the facts about them.

    Parameters
    ----------
    candidates : plugins that loaded, before their names are compared
    failures : what went wrong while loading
    registry : the built-in registry and those of third parties
    """

    candidates: tuple[Found, ...] = ()
    failures: tuple[Problem, ...] = ()
    registry: Registry = field(default_factory=Registry)

    @classmethod
    def of(cls, outcome: Iterable[Found | Problem], registry: Registry) -> Catalog:
        """Return the catalog of what loading gave."""
        outcome = list(outcome)
        candidates = tuple(one for one in outcome if isinstance(one, Found))
        return cls(candidates, tuple(one for one in outcome if isinstance(one, Problem)), registry)

    @property
    def found(self) -> tuple[Found, ...]:
        """Plugins that can be used, sorted by kind and name; a name that two claim belongs to neither."""
        return tuple(rivals[0] for rivals in self._claims() if len(rivals) == 1)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that went wrong."""
        return self.failures + tuple(_duplicate(rivals) for rivals in self._claims() if len(rivals) > 1)

    def get(self, kind: Kind, name: str) -> type[Any]:
        """Return the class of the plugin `name`; raises as `find` does."""
        return self.find(kind, name).cls

    def find(self, kind: Kind, name: str) -> Found:
        """Return the plugin `name` with where it came from.

        Raises
        ------
        UnknownPlugin
            If there is none; names the nearest, and all of this kind.
        PluginUnavailable
            If there is one that could not be loaded; says why.
        """
        if kind not in HOOKS:
            raise UnknownPlugin(
                f"No kind of plugin is named {kind!r}.{nearest(kind, HOOKS)} Kinds: {', '.join(HOOKS)}."
            )
        for one in self.found:
            if (one.kind, one.name) == (kind, name):
                return one
        raise self._lost(kind, name) or self._unknown(kind, name)

    def with_plugin(self, plugin: Any, name: str = "") -> Catalog:
        """Return a catalog that also has the plugins of `plugin`, a module or object with hooks.

        What was added under the same name before, as when a notebook cell runs twice, is replaced.
        """
        label = name or getattr(plugin, "__name__", None) or type(plugin).__name__
        outcome = load_plugin(Announced(label, label, IN_PROCESS, ""), lambda: plugin)
        mine = (IN_PROCESS, label)
        before: list[Found | Problem] = [*self.candidates, *self.failures]
        kept = [one for one in before if (one.distribution, one.entry_point) != mine]
        return Catalog.of([*kept, *outcome], self.registry)

    def _claims(self) -> list[list[Found]]:
        """Return the different classes behind each kind and name, sorted."""
        claims: dict[tuple[str, str], list[Found]] = {}
        for one in self.candidates:
            rivals = claims.setdefault((one.kind, one.name), [])
            # One distribution's entry points may lead to the same class, and so may a notebook.
            if not any(
                rival.cls is one.cls and one.distribution in (rival.distribution, IN_PROCESS) for rival in rivals
            ):
                rivals.append(one)
        return [claims[key] for key in sorted(claims)]

    def _lost(self, kind: Kind, name: str) -> PluginUnavailable | None:
        doctor = "See: stainbridge plugins doctor"
        for one in self.problems:
            if (one.kind, one.name) == (kind, name) or (not one.name and one.entry_point == name):
                return PluginUnavailable(f"The {kind} {name!r} cannot be used: {one.failure}: {one.message}\n{doctor}")
        facts = self.registry.plugins.get(name)
        if facts is None or kind not in facts.kinds:
            return None
        failed = "".join(f"\n{one.entry_point!r} of {one.distribution}: {one.message}" for one in self.failures)
        origin = self.registry.origins.get(f"plugins.{name}")
        return PluginUnavailable(
            f"The {kind} {name!r} is in {origin}, but nothing installed provides it.{failed}\n{doctor}"
        )

    def _unknown(self, kind: Kind, name: str) -> UnknownPlugin:
        known = [one.name for one in self.found if one.kind == kind]
        other = next((one.kind for one in self.found if one.name == name), None)
        hint = f" {name!r} is a {other}." if other else nearest(name, known)
        failed = sorted({one.distribution for one in self.failures})
        doctor = f"\nNot everything could be loaded ({', '.join(failed)}): stainbridge plugins doctor" if failed else ""
        return UnknownPlugin(
            f"No {kind} is named {name!r}.{hint}\nKnown {kind}s: {', '.join(known) or 'none'}.\n"
            f"See: stainbridge plugins{doctor}"
        )


def load_plugin(entry: Announced, load: Callable[[], Any]) -> list[Found | Problem]:
    """Return the plugins of one entry point, and what went wrong with it."""
    manager = pluggy.PluginManager(hookspecs.GROUP)  # one for each, so that a bad plugin cannot spoil another's hooks
    manager.add_hookspecs(hookspecs)
    # Printing at import must not end up between the data on stdout.
    with contextlib.redirect_stdout(sys.stderr):
        plugin, error = _attempt(load)
        if error is None:
            _, error = _attempt(lambda: manager.register(plugin, f"{entry.distribution}:{entry.name}"))
        if error is not None:
            return [_broken(entry, f"{entry.value!r} cannot be loaded", error)]
        outcome: list[Found | Problem] = list(_misspelt(entry, manager, plugin))
        for kind, (hook, _) in HOOKS.items():
            for implementation in getattr(manager.hook, hook).get_hookimpls():
                outcome += _ask(entry, kind, implementation.function)
        return outcome or [_empty(entry, manager, plugin)]


def _duplicate(rivals: list[Found]) -> Problem:
    """Return the problem of several classes with one kind and name."""
    first = rivals[0]
    who = " and ".join(
        f"{one.distribution} {one.version}".strip() + f" (entry point {one.entry_point!r})" for one in rivals
    )
    return Problem(
        entry_point=", ".join(one.entry_point for one in rivals),
        distribution=", ".join(one.distribution for one in rivals),
        failure="duplicate",
        message=f"{first.kind} {first.name!r} is provided by {who}. Neither is used: uninstall one of them.",
        kind=first.kind,
        name=first.name,
    )


def _attempt(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end its host
        return None, error


def _broken(entry: Announced, what: str, error: BaseException) -> Problem:
    trace = "".join(traceback.format_exception(error))
    text, unprintable = _attempt(partial(str, error))
    message = f"{what}: {type(error).__name__}: {'(it cannot say why)' if unprintable else text}"
    return Problem(entry.name, entry.distribution, "broken", message, trace)


def _misspelt(entry: Announced, manager: pluggy.PluginManager, plugin: Any) -> Iterator[Problem]:
    """Yield what `check_pending` would raise for, all of it, so that the well-spelt hooks of a plugin still count."""
    names = [hook for hook, _ in HOOKS.values()]
    for caller in manager.get_hookcallers(plugin) or []:
        unknown = [one for one in caller.get_hookimpls() if not caller.has_spec() and not one.optionalhook]
        if unknown:
            message = f"there is no hook {caller.name!r}.{nearest(caller.name, names)} Hooks: {', '.join(names)}."
            yield Problem(entry.name, entry.distribution, "misspelt hook", message)


def _empty(entry: Announced, manager: pluggy.PluginManager, plugin: Any) -> Problem:
    names = [hook for hook, _ in HOOKS.values()]
    if manager.get_hookcallers(plugin):
        return Problem(entry.name, entry.distribution, "not a plugin", f"the hooks of {entry.value!r} return nothing.")
    bare = [name for name in names if name in dir(plugin)]
    hint = f" Put @stainbridge.hookimpl above {bare[0]}." if bare else f" Hooks: {', '.join(names)}."
    return Problem(entry.name, entry.distribution, "not a plugin", f"{entry.value!r} has no hook.{hint}")


def _ask(entry: Announced, kind: Kind, hook: Callable[[], Any]) -> list[Found | Problem]:
    """Call one hook and examine the classes that it returns."""
    returned, error = _attempt(hook)
    if error is not None:
        return [_broken(entry, f"{HOOKS[kind][0]} failed", error)]
    if not isinstance(returned, list | tuple):
        message = f"{HOOKS[kind][0]} must return a list of classes; found {_shown(returned)}."
        return [Problem(entry.name, entry.distribution, "not a plugin", message)]
    outcome: list[Found | Problem] = []
    for cls in returned:
        examined, error = _attempt(partial(_examine, entry, kind, cls))
        outcome.append(examined if error is None else _broken(entry, f"{_shown(cls)} cannot be examined", error))
    return outcome


def _examine(entry: Announced, kind: Kind, cls: Any) -> Found | Problem:
    name = getattr(cls, "name", "")
    fault = _fault(kind, cls)
    if fault is None:
        return Found(kind, name, cls, entry.distribution, entry.version, entry.name, cls.api)
    return Problem(entry.name, entry.distribution, *fault, kind=kind, name=name if isinstance(name, str) else "")


def _fault(kind: Kind, cls: Any) -> tuple[Failure, str] | None:
    """Return what forbids using the class; the API version first, because another one may have other methods."""
    hook, base = HOOKS[kind]
    if not (isinstance(cls, type) and issubclass(cls, base)):
        return "not a plugin", f"{hook} returned {_shown(cls)}, which is not a subclass of {base.__name__}."
    api = getattr(cls, "api", None)
    if api != API_VERSION:
        written = "states no API version" if api is None else f"was written for API version {api!r}"
        return "incompatible", (
            f"{_shown(cls)} {written}; this stainbridge has {API_VERSION}. Set `api` in the class once it follows the "
            "contracts of that version, or install releases that fit each other."
        )
    return _unusable(cls)


def _unusable(cls: type[Any]) -> tuple[Failure, str] | None:
    name, config = getattr(cls, "name", None), getattr(cls, "Config", PluginConfig)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        return "not a plugin", f"{_shown(cls)} needs a lower-case name such as 'stardist'; found {name!r}."
    if inspect.isabstract(cls):
        return "not a plugin", f"{_shown(cls)} does not implement {', '.join(sorted(cls.__abstractmethods__))}."
    if not (isinstance(config, type) and issubclass(config, PluginConfig)):
        return "not a plugin", f"{_shown(cls)}.Config must be a subclass of PluginConfig; found {_shown(config)}."
    if "name" in config.model_fields:
        return "not a plugin", f"{_shown(cls)}.Config must not have a setting 'name': in TOML it names the plugin."
    return None


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__}"
    return "None (is the return missing?)" if value is None else f"an instance of {type(value).__name__}"
