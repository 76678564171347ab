"""Checks on what a plugin says about itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError

from stainbridge.interfaces import API_VERSION, PluginConfig, Wants

from .subject import Subject, require


def declares_name_and_api(subject: Subject) -> None:
    """It has a lower-case name and was written for this version of the contracts."""
    cls = type(subject.plugin)
    name, api = getattr(cls, "name", None), getattr(cls, "api", None)
    ok = isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name)
    require(bool(ok), f"`name` must be lower-case letters and digits, joined by '-', '_' or '.'; found {name!r}.")
    require(api == API_VERSION, f"`api` must be {API_VERSION}; found {api!r}.")


def config_refuses_unknown_keys(subject: Subject) -> None:
    """A misspelt setting is an error, in its `Config` and in every model nested in it."""
    config = type(subject.plugin).Config
    require(issubclass(config, PluginConfig), f"`Config` must derive from PluginConfig; found {config.__mro__[1:]}.")
    for model in _nested(config):
        extra = model.model_config.get("extra")
        require(extra == "forbid", f"{model.__name__} must say extra='forbid'; found {extra!r}.")
    try:
        config.model_validate({"no_such_setting": 1})
    except ValidationError as error:
        refused = any(entry["type"] == "extra_forbidden" for entry in error.errors())
        require(refused, f"{config.__name__} did not name the unknown key: {error}")
        return
    require(False, f"{config.__name__} accepted the unknown key 'no_such_setting'.")


def config_is_frozen(subject: Subject) -> None:
    """Its settings cannot be changed after it was made, nor can those of a nested model."""
    for model in _nested(type(subject.plugin).Config):
        require(model.model_config.get("frozen") is True, f"{model.__name__} must say frozen=True.")
    used = subject.plugin.config
    require(
        isinstance(used, type(subject.plugin).Config),
        f"`self.config` must be an instance of its own Config; found {type(used).__name__}.",
    )


def wants_is_stable(subject: Subject) -> None:
    """`wants` is a Wants, and one configuration always gives the same one."""
    first, again, anew = subject.plugin.wants, subject.plugin.wants, subject.make().wants
    require(isinstance(first, Wants), f"`wants` must be a Wants; found {type(first).__name__}.")
    require(first == again == anew, f"`wants` changed between two readings: {first}, {again}, {anew}.")


def _nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for entry in model.model_fields.values():
        for part in (entry.annotation, *get_args(entry.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _nested(part)


ANY = (declares_name_and_api,)
CONFIGURED = (config_refuses_unknown_keys, config_is_frozen, wants_is_stable)
