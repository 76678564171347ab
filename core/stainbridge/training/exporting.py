"""What was trained as a folder that a run takes: weight files, and a registry file that names them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import assignment, toml_key
from ..interfaces import Exported
from ..io.atomic import atomic_folder
from .settings import TrainConfig
from .tensors import Written, write_tensors

REGISTRY = "registry.toml"


@dataclass(frozen=True)
class ModelFacts:
    """What a registry says about a model besides its weights.

    Parameters
    ----------
    plugin, variant : the model is called "plugin/variant"
    licence, commercial : of the weights
    training : names of the data sets that it learned from
    """

    plugin: str
    variant: str
    licence: str
    commercial: bool
    training: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name by which a run asks for it."""
        return f"{self.plugin}/{self.variant}"

    @classmethod
    def of(cls, config: TrainConfig, folder: Path) -> ModelFacts:
        """Return the facts of the model that is trained into `folder`."""
        variant = config.name or _variant(os.path.basename(os.path.abspath(folder)))
        named = [_dataset(one) for one in (*config.ihc, *config.he, *config.pictures)]
        training = config.datasets or tuple(dict.fromkeys(named))
        return cls(config.plugin, variant, config.licence, config.commercial, training)


def _dataset(place: Path) -> str:
    """Return the name of a folder or file, or for a pattern that of the folder it starts from."""
    place = Path(os.path.abspath(place))
    while re.search(r"[*?\[]", place.name):
        place = place.parent
    return place.name


def write_model(folder: Path, exported: Exported, facts: ModelFacts, summary: str) -> dict[str, Path]:
    """Write weights and registry file; what was there before stays until the new is whole. Return the weight files by name.

    Raises
    ------
    WriteFailed
        If the disk is full or may not be written to.
    """
    with atomic_folder(folder, overwrite=True, mark=REGISTRY) as made:
        written = [write_tensors(made / file, tensors) for file, tensors in exported.files.items()]
        (made / REGISTRY).write_text(registry_text(facts, exported.config, written, summary), "utf-8")
    return {file: folder / file for file in exported.files}


def copy_model(source: Path, target: Path) -> None:
    """Put a copy of a model's folder in the place of `target`; raises WriteFailed as `write_model`."""
    with atomic_folder(target, overwrite=True, mark=REGISTRY) as made:
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, made / path.name)


def registry_text(facts: ModelFacts, config: Mapping[str, Any], weights: Sequence[Written], summary: str) -> str:
    """Return the registry file of one model."""
    table = f"models.{toml_key(facts.name)}"
    values = {
        "plugin": facts.plugin,
        "summary": summary,
        "licence": facts.licence,
        "commercial": facts.commercial,
        "training": facts.training,
        "config": {key: value for key, value in config.items() if value is not None},
    }
    lines = [f"[{table}]", *(assignment(key, value) for key, value in values.items())]
    for one in weights:
        entry = {**one.to_dict(), "sources": [f"file:{one.file}"]}
        lines += ["", f"[[{table}.weights]]", *(assignment(key, value) for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _variant(name: str) -> str:
    """Return a folder's name as a registry allows it."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).lstrip("_.-") or "trained"
