"""From a suite to its cells: what is combined, under which key, and what speaks against it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..cards import trained_on
from ..config import Choice, RunConfig
from ..datasets import Dataset, open_dataset
from ..discovery import Built, build
from ..errors import ConfigError, StainbridgeError, UnknownPlugin
from ..interfaces import Kind, Plugin
from ..scores import EMPTY, ORACLE, Combination, Role
from ..suite import Suite

Answer = Literal["run", "oracle", "empty"]
"""Where a prediction comes from: a run, the truth itself, or nowhere."""

CONTROLS = Choice("identity"), Choice("baseline")
"""The controls that every suite has: no translation, and the segmenter without weights."""


@dataclass(frozen=True)
class Part:
    """A plugin or model of the suite as it was found.

    Parameters
    ----------
    choice : as the suite names it
    facts : its provenance, see `Built`
    wants_he : whether a segmenter wants H&E
    error : why it cannot be used, or an empty string
    """

    choice: Choice
    facts: Mapping[str, Any] = field(default_factory=dict)
    wants_he: bool = True
    error: str = ""

    @property
    def label(self) -> str:
        """The name, with the settings where the suite gives some."""
        settings = ", ".join(f"{key}={value}" for key, value in self.choice.config.items())
        return f"{self.choice.name} ({settings})" if settings else self.choice.name

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its output."""
        kept = ("kind", "name", "distribution", "version", "config")
        hashes = [one["sha256"] for one in self.facts.get("weights", ())]
        return {key: self.facts.get(key) for key in kept} | {"weights": hashes}


@dataclass(frozen=True)
class Cell:
    """One combination on one data set.

    Parameters
    ----------
    combination : its names
    config : of the run
    answer : where predictions come from
    parts : by kind; None where a stage is skipped
    key : sha256 of everything that decides its predictions, apart from the pictures
    flags : what speaks against using its figures
    error : why it cannot be run, or an empty string
    """

    combination: Combination
    config: RunConfig
    answer: Answer
    parts: Mapping[str, Part | None]
    key: str
    flags: tuple[str, ...] = ()
    error: str = ""

    @property
    def slug(self) -> str:
        """Name of its folder."""
        named = self.combination
        words = [named.dataset, *filter(None, (named.translator, named.segmenter, named.classifier))]
        return f"{slug('__'.join(words))[:120]}__{self.key[:8]}"

    @property
    def translator_key(self) -> str:
        """sha256 of what decides the virtual H&E, apart from the picture; an empty string where there is none."""
        part = self.parts.get("translator")
        return digest({"part": part.identity, "tile_px": self.config.tile_px, "version": __version__}) if part else ""

    @property
    def facts(self) -> dict[str, Any]:
        """Return its parts as plain JSON values."""
        return {kind: dict(part.facts) if part else None for kind, part in self.parts.items()}


def open_datasets(suite: Suite, data_dir: str | Path | None = None) -> list[Dataset]:
    """Open every data set of the suite.

    Raises
    ------
    ConfigError
        If two have one name, or one has no truth.
    """
    found: list[Dataset] = []
    for choice in suite.datasets:
        one = open_dataset(choice, data_dir=data_dir, offline=suite.run.offline, registries=suite.registries)
        if not one.has_truth:
            missing = next(item.name for item in one.items if item.truth is None)
            raise ConfigError(
                f"The data set {one.name!r} has no truth for {missing!r}, so that it cannot be scored.\n"
                "Run it with `stainbridge run` and export its detections."
            )
        if not one.items:
            raise ConfigError(f"The data set {one.name!r} has no picture in {one.folder}.")
        if any(other.name == one.name for other in found):
            raise ConfigError(f"Two data sets of the suite are named {one.name!r}; give one of them another name.")
        found.append(one)
    return found


def plan(suite: Suite, datasets: Sequence[Dataset]) -> list[Cell]:
    """Return the cells of the suite in order: the methods, then the controls, for each data set.

    Each plugin is constructed once, to learn its facts; one that cannot be is an error of its cells.

    Raises
    ------
    ConfigError
        If the suite is strict and something is flagged.
    """
    parts = _parts(suite)
    cells = [cell for dataset in datasets for cell in _cells_of(suite, dataset, parts)]
    flagged = [cell for cell in cells if cell.flags]
    if suite.strict and flagged:
        listed = "\n".join(
            f"{one.combination.dataset}: {one.combination.method}: {'; '.join(one.flags)}" for one in flagged
        )
        raise ConfigError(f"strict = true refuses what is flagged:\n{listed}\nLeave these out, or set strict = false.")
    return cells


def slug(text: str) -> str:
    """Return text that can name a file on any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def digest(value: Any) -> str:
    """Return the sha256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_names(dataset: Dataset) -> list[str]:
    """Return one file name per picture; a name that is not free on every system gets a part of its hash."""
    names = [slug(item.name) for item in dataset.items]
    folded = [name.casefold() for name in names]
    return [
        name if folded.count(name.casefold()) == 1 else f"{name}-{digest(item.name)[:8]}"
        for name, item in zip(names, dataset.items, strict=True)
    ]


def _parts(suite: Suite) -> dict[tuple[Kind, str], Part]:
    wanted: list[tuple[Kind, Choice]] = [("translator", one) for one in suite.translators]
    wanted += [("segmenter", one) for one in suite.segmenters]
    wanted += [("classifier", one) for one in suite.classifiers]
    if suite.controls:
        wanted += [("translator", CONTROLS[0]), ("segmenter", CONTROLS[1])]
    return {(kind, repr(choice)): _part(kind, choice, suite) for kind, choice in wanted}


def _part(kind: Kind, choice: Choice, suite: Suite) -> Part:
    try:
        built: Built = build(
            kind, choice, registries=suite.registries, device=suite.run.device, offline=suite.run.offline
        )
        plugin: Plugin = built.plugin
        return Part(choice, built.facts, plugin.wants.stain == "he")
    except (ConfigError, UnknownPlugin):
        raise  # a mistake in the suite, not a failure
    except StainbridgeError as error:
        return Part(choice, error=f"{type(error).__name__}: {error}")


def _cells_of(suite: Suite, dataset: Dataset, parts: Mapping[tuple[Kind, str], Part]) -> Iterator[Cell]:
    seen: set[tuple[str, str]] = set()
    for translator, segmenter, classifier, role in _combined(suite):
        chosen = {
            "translator": parts["translator", repr(translator)],
            "segmenter": parts["segmenter", repr(segmenter)],
            "classifier": parts["classifier", repr(classifier)],
        }
        cell = _cell(suite, dataset, chosen, role)
        # A segmenter that wants IHC gives one cell, whatever the translators; so does a control that is a method already.
        if (cell.combination.method, cell.key) not in seen:
            seen.add((cell.combination.method, cell.key))
            yield cell
    if suite.controls:
        first = parts["classifier", repr(suite.classifiers[0])]
        yield from (_control(suite, dataset, answer, first) for answer in (ORACLE, EMPTY))


def _combined(suite: Suite) -> Iterator[tuple[Choice, Choice, Choice, Role]]:
    for classifier in suite.classifiers:
        for segmenter in suite.segmenters:
            yield from ((translator, segmenter, classifier, "method") for translator in suite.translators)
    if suite.controls:
        for segmenter in (*suite.segmenters, CONTROLS[1]):
            yield CONTROLS[0], segmenter, suite.classifiers[0], "control"


def _cell(suite: Suite, dataset: Dataset, chosen: Mapping[str, Part], role: Role) -> Cell:
    segmenter, translator = chosen["segmenter"], chosen["translator"]
    parts: dict[str, Part | None] = {**chosen, "translator": translator if segmenter.wants_he else None}
    config = suite.run_config(translator.choice, segmenter.choice, chosen["classifier"].choice)
    names = {kind: part.label if part else None for kind, part in parts.items()}
    classifier = names["classifier"] if len(suite.classifiers) > 1 else None
    combination = Combination(dataset.name, names["translator"], segmenter.label, classifier, role)
    error = "\n".join(part.error for part in parts.values() if part and part.error)
    key = digest(
        {
            "parts": {kind: part and (part.identity if part.facts else part.label) for kind, part in parts.items()},
            "run": suite.run.model_dump(exclude={"device", "offline"}),
            "data": _identity(dataset),
            "version": __version__,
        }
    )
    return Cell(combination, config, "run", parts, key, _flags(suite, dataset, parts), error)


def _control(suite: Suite, dataset: Dataset, answer: Any, classifier: Part) -> Cell:
    config = suite.run_config(CONTROLS[0], CONTROLS[1], classifier.choice)
    key = digest(
        {"answer": answer, "data": _identity(dataset), "classifier": classifier.identity, "version": __version__}
    )
    combination = Combination(dataset.name, None, answer, None, "control")
    parts: dict[str, Part | None] = {"translator": None, "segmenter": None, "classifier": classifier}
    return Cell(combination, config, answer, parts, key, error=classifier.error)


def _identity(dataset: Dataset) -> dict[str, Any]:
    return {"name": dataset.name, "split": dataset.split, "reading": dataset.reading}


def _flags(suite: Suite, dataset: Dataset, parts: Mapping[str, Part | None]) -> tuple[str, ...]:
    flags: list[str] = []
    for part in filter(None, parts.values()):
        leaked = trained_on(dataset.name, dataset.card, part.facts.get("training", ()), split=dataset.split)
        flags += [f"{part.choice.name} was trained on the evaluation data: {one}" for one in leaked]
        if suite.use == "commercial" and part.facts and part.facts.get("commercial") is not True:
            allowed = "not stated" if part.facts.get("commercial") is None else "not allowed"
            flags.append(
                f"{part.choice.name}: commercial use is {allowed} ({part.facts.get('licence') or 'no licence known'})"
            )
    if suite.use == "commercial" and not dataset.card.commercial:
        flags.append(f"data {dataset.name}: commercial use is not allowed ({dataset.card.licence})")
    return tuple(flags)
