"""The plugin that is trained."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ValidationError

from ..config import explain
from ..discovery import catalog
from ..errors import ConfigError, MissingExtra, UnknownPlugin, nearest
from ..interfaces import Kind, PluginConfig, Trainable
from ..loading import Found
from .settings import TrainConfig

Lesson = Literal["unpaired", "labelled"]


def find_trainable(name: str) -> Found:
    """Return the plugin of this name that can be trained.

    Raises
    ------
    UnknownPlugin
        If there is none; names the nearest.
    PluginUnavailable
        If it exists and could not be loaded.
    MissingExtra
        If its library is not installed.
    """
    listed = catalog()
    for kind in get_args(Kind):
        try:
            found = listed.find(kind, name)
        except UnknownPlugin:
            continue
        if isinstance(found.cls, Trainable):
            _check_libraries(name)
            return found
    known = sorted(one.name for one in listed.found if isinstance(one.cls, Trainable))
    there = any(one.name == name for one in listed.found)
    what = f"{name!r} has nothing to train." if there else f"No plugin is named {name!r}.{nearest(name, known)}"
    raise UnknownPlugin(
        f"{what}\nCan be trained: {', '.join(known) or 'none of those installed'}.\nSee: stainbridge plugins"
    )


def lesson_settings(found: Found, config: TrainConfig) -> PluginConfig:
    """Return the settings of the learner; check that the pictures named are those that it learns from.

    Raises
    ------
    ConfigError
        If a setting is unknown or out of range, or the pictures are of the wrong kind.
    """
    _check_pictures(found, config)
    schema: type[PluginConfig] = found.cls.Training
    try:
        return schema.model_validate(config.learner)
    except ValidationError as error:
        raise explain(error, schema, f"learner of {found.name!r}") from None


def _check_libraries(name: str) -> None:
    registry = catalog().registry
    if missing := registry.missing(name):
        raise MissingExtra.of(f"Training {name!r}", missing[0], registry.plugins[name].extra)


def _check_pictures(found: Found, config: TrainConfig) -> None:
    lesson: Lesson = found.cls.learns_from
    wanted, other = (("ihc", "he"), ("pictures",)) if lesson == "unpaired" else (("pictures",), ("ihc", "he"))
    missing = [key for key in wanted if not getattr(config, key)]
    extra = [key for key in other if getattr(config, key)]
    what = "pictures of IHC and of H&E, unpaired" if lesson == "unpaired" else "pictures with instance labels"
    if missing or extra:
        faults = [f"--{key} is missing" for key in missing] + [f"--{key} is not for it" for key in extra]
        options = " and ".join(f"--{key} FOLDER" for key in wanted)
        raise ConfigError(f"{found.name!r} learns from {what}: {'; '.join(faults)}.\nPass {options}.")


def built(found: Found, settings: dict[str, Any], weights: Any, device: str) -> Any:
    """Return the plugin with settings and weight files, as a run constructs it; ConfigError where a setting does not fit."""
    try:
        config = found.cls.Config.model_validate(settings)
    except ValidationError as error:
        raise explain(error, found.cls.Config, f"{found.kind} {found.name!r}, as its training exports it") from None
    return found.cls(config, weights=weights, device=device)
