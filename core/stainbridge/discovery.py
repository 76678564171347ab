"""Find what is installed, once per process, and construct the plugins that a run names."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from .config import Choice, RunConfig, explain
from .errors import ConfigError, ContractViolation, MissingExtra, PluginUnavailable, StainbridgeError
from .hookspecs import GROUP
from .interfaces import Kind, Metric, Plugin, PluginConfig
from .loading import HOOKS, IN_PROCESS, Catalog, Found, Problem, load_plugin
from .registry import Model, PluginFacts, Registry, load_registry
from .resources import announced


@dataclass(frozen=True)
class Built:
    """A constructed plugin and the facts of it for the provenance of a result.

    Parameters
    ----------
    plugin : a `Plugin` or a `Metric`
    facts : plain JSON values: kind, name, model, distribution, version, api, config (defaults included),
        weights (file, sha256, size), licence, commercial (None: unknown), training, citation
    """

    plugin: Any
    facts: Mapping[str, Any]


# The one piece of state: discovery imports every plugin's module, which is worth doing once per process.
_cache: dict[Literal["catalog"], Catalog] = {}


def catalog(*, refresh: bool = False) -> Catalog:
    """Return what is installed; looked up once per process, and again with `refresh`."""
    if refresh or "catalog" not in _cache:
        _cache["catalog"] = _discover()
    return _cache["catalog"]


def register(plugin: Any, name: str = "") -> Callable[[], None]:
    """Make the plugins of a module or object known to this process, and return a function that takes it back.

    Raises
    ------
    PluginUnavailable
        If something is wrong with them; nothing is registered then.
    """
    before = catalog()
    after = before.with_plugin(plugin, name)
    wrong = [one for one in after.problems if one not in before.problems]
    if wrong:
        raise PluginUnavailable("\n".join(f"{one.failure}: {one.message}" for one in wrong))
    _cache["catalog"] = after

    def undo() -> None:
        _cache["catalog"] = before

    return undo


def get(kind: Kind, name: str) -> type[Any]:
    """Return the class of an installed plugin; raises as `Catalog.find` does."""
    return catalog().get(kind, name)


def build(
    kind: Kind,
    choice: Choice | str | Plugin | Metric,
    *,
    registries: Sequence[str | Path] = (),
    device: str = "cpu",
    offline: bool = False,
) -> Built:
    """Construct the plugin or model that `choice` names; an instance is taken as it is.

    The settings of a choice go over those of the model, and these over the plugin's defaults.

    Raises
    ------
    UnknownPlugin, PluginUnavailable
        If there is no such plugin or model, or it cannot be loaded or constructed.
    ConfigError
        If a setting is unknown or out of range.
    MissingExtra
        If its library is not installed.
    WeightsUnavailable, WeightsCorrupt
        From the weight store.
    """
    if isinstance(choice, Plugin | Metric):
        return _taken(kind, choice)
    try:
        choice = Choice.of(choice)
    except ConfigError as error:
        raise ConfigError(f"{kind} = {choice!r}: {error}.") from None
    choice, registries = _out_of_its_folder(choice, registries)
    listed = catalog()
    registry = listed.registry.merge(*(Registry.read(path) for path in registries))
    name, model = registry.resolve(choice.name)
    found = listed.find(kind, name)
    facts = registry.plugins.get(name)
    config = _config(found, _layered(model.config if model else {}, choice.config), f"{kind} {choice.name!r}")
    # Before weights are fetched for nothing.
    if absent := registry.missing(name):
        raise _missing_library(found, facts, absent[0])
    arguments = {"weights": _weights(choice.name, model, offline), "device": device}
    cls: Callable[..., Any] = found.cls
    construct = cls if kind == "metric" else partial(cls, config, **arguments)
    plugin = _constructed(found, facts, construct)
    record = _provenance(found, config, facts, model=model, asked=choice.name)
    return Built(plugin, record if record["weights"] else record | {"weights": _own_weights(plugin)})


def resolved(config: RunConfig, settings: Iterable[str] = ()) -> RunConfig:
    """Return `config` with a segmenter and a translator: where none is named, those of the registry's defaults.

    A folder that a training wrote may stand for the model in it: its registry file joins those of the run.
    A segmenter without a default of its own is given the IHC itself. `settings` are as in `RunConfig.with_overrides`; those of a
    plugin ("segmenter.key=value") apply to the plugin that was found.
    """
    settings = list(settings)
    config = _without_folders(config.with_overrides(one for one in settings if "." not in one.partition("=")[0]))
    registry = catalog().registry.merge(*(Registry.read(path) for path in config.registries))
    default = registry.default_for(config.segmenter.name if config.segmenter else None)
    segmenter = config.segmenter or Choice.of(default.segmenter if default else "baseline")
    translator = config.translator or Choice.of(default.translator if default else "identity")
    config = config.replace(segmenter=segmenter, translator=translator)
    return config.with_overrides(one for one in settings if "." in one.partition("=")[0])


def _without_folders(config: RunConfig) -> RunConfig:
    """Return `config` with models by name where it names the folders that they lie in."""
    for kind in ("translator", "segmenter", "classifier"):
        choice: Choice | None = getattr(config, kind)
        if choice is not None:
            named, registries = _out_of_its_folder(choice, config.registries)
            if named is not choice:
                config = config.replace(**{kind: named, "registries": tuple(registries)})
    return config


def _out_of_its_folder(choice: Choice, registries: Sequence[str | Path]) -> tuple[Choice, Sequence[str | Path]]:
    """Return the model of a folder that holds one, and the registries with its own; anything else as it is."""
    listed = catalog()
    known = {*listed.registry.models, *listed.registry.plugins, *(one.name for one in listed.found)}
    if choice.name in known or not Path(choice.name).is_dir():
        return choice, registries
    places = [Path(choice.name, "registry.toml"), Path(choice.name, "model", "registry.toml")]
    path = next((place for place in places if place.is_file()), None)
    if path is None and Path(choice.name, "training.json").is_file():
        raise ConfigError(
            f"{choice.name!r} holds a training without a model yet: its first epoch is not finished.\n"
            "Go on with it: the same `stainbridge train` command with --resume."
        )
    if path is None:
        return choice, registries
    models = list(Registry.read(path).models)
    if len(models) != 1:
        raise ConfigError(
            f"{path} holds {len(models)} models ({', '.join(models) or 'none'}), so the folder does not say which one.\n"
            f"Name it: --registry {path} and one of its models."
        )
    named = {Path(one).resolve() for one in registries}
    return Choice(models[0], choice.config), registries if path.resolve() in named else [*registries, path]


def _discover() -> Catalog:
    registry = load_registry()
    outcome: list[Found | Problem] = [
        Problem(one.entry_point, one.distribution, "registry", one.message) for one in registry.problems
    ]
    for entry in announced():
        if entry.failure:
            outcome.append(Problem(entry.name, entry.distribution, "broken", entry.failure))
        else:
            outcome += load_plugin(entry, importlib.metadata.EntryPoint(entry.name, entry.value, GROUP).load)
    return Catalog.of(outcome, registry)


def _taken(kind: Kind, plugin: Plugin | Metric) -> Built:
    base = HOOKS[kind][1]
    if not isinstance(plugin, base):
        raise ContractViolation(f"A {kind} must be a {base.__name__}; found an instance of {type(plugin).__name__}.")
    listed = catalog()
    installed = next((one for one in listed.found if one.cls is type(plugin)), None)
    name = str(getattr(plugin, "name", type(plugin).__name__))
    found = installed or Found(kind, name, type(plugin), IN_PROCESS, "", "", getattr(plugin, "api", 0))
    facts = listed.registry.plugins.get(name) if installed else None
    config = getattr(plugin, "config", None)
    record = _provenance(found, config if isinstance(config, PluginConfig) else PluginConfig(), facts)
    return Built(plugin, record | {"weights": _own_weights(plugin)})


def _own_weights(plugin: Any) -> list[dict[str, Any]]:
    """Return the facts of files that did not come from the registry: named in the settings, or in an instance."""
    return [_hashed(*item) for item in getattr(plugin, "weights", {}).items()]


def _hashed(file: str, path: Path) -> dict[str, Any]:
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"file": file, "sha256": digest, "size": path.stat().st_size}


def _layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the settings of `above` over it, table by table."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _layered(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _config(found: Found, settings: Mapping[str, Any], where: str) -> PluginConfig:
    schema: type[PluginConfig] = PluginConfig if found.kind == "metric" else found.cls.Config
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        raise explain(error, schema, where) from None


def _weights(name: str, model: Model | None, offline: bool) -> dict[str, Path]:
    if model is None or not model.weights:
        return {}
    from rich.console import Console

    from .weights import Store

    shown = Console(stderr=True)
    store = Store(offline=offline, console=shown if shown.is_terminal else None)
    return {one.file: store.fetch(one, model=name, licence=model.licence) for one in model.weights}


def _constructed(found: Found, facts: PluginFacts | None, construct: Callable[[], Any]) -> Any:
    try:
        return construct()
    except StainbridgeError:
        raise
    except ImportError as error:
        raise _missing(found, facts, error) from error
    except Exception as error:  # whatever a stranger's constructor raises, the user learns which plugin it was
        raise PluginUnavailable(
            f"The {found.kind} {found.name!r} of {found.distribution} could not be constructed: "
            f"{type(error).__name__}: {error}\nSee: stainbridge plugins check {found.name}"
        ) from error


def _missing(found: Found, facts: PluginFacts | None, error: ImportError) -> StainbridgeError:
    library = (error.name or "a library").split(".")[0]
    if library == found.cls.__module__.split(".")[0]:
        return PluginUnavailable(f"The {found.kind} {found.name!r} is broken: {error}\nSee: stainbridge plugins doctor")
    if not isinstance(error, ModuleNotFoundError):
        return MissingExtra(f"{found.kind} {found.name!r}: {library} is installed but cannot be imported: {error}")
    return _missing_library(found, facts, library)


def _missing_library(found: Found, facts: PluginFacts | None, library: str) -> MissingExtra:
    extra = facts.extra if facts else ""
    wanted = f"{found.distribution}[{extra}]" if extra else library
    return MissingExtra(
        f"{found.kind} {found.name!r} needs {library}, which is not installed.\nRun: pip install '{wanted}'"
    )


def _provenance(
    found: Found, config: PluginConfig, facts: PluginFacts | None, *, model: Model | None = None, asked: str = ""
) -> dict[str, Any]:
    known = [one for one in (facts, model) if one is not None]
    named = model or facts
    return {
        "kind": found.kind,
        "name": found.name,
        "model": asked if model else None,
        "distribution": found.distribution,
        "version": found.version,
        "api": found.api,
        "config": config.model_dump(mode="json"),
        "weights": [one.model_dump(include={"file", "sha256", "size"}) for one in model.weights] if model else [],
        "licence": named.licence if named else None,
        # A free method with weights that are not free is not free.
        "commercial": all(one.commercial for one in known) if known else None,
        "training": list(model.training) if model else [],
        "citation": next((one.citation for one in reversed(known) if one.citation), ""),
    }
