"""Which training is meant: a value, a file or the name of a plugin, with settings over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..loading import Found
from .settings import TrainConfig, put_together
from .subject import find_trainable, lesson_settings


def resolve(config: TrainConfig) -> TrainConfig:
    """Return a training with every default of its learner written out; errors as `train`."""
    found = find_trainable(config.plugin)
    return config.replace(learner=lesson_settings(found, config).model_dump(mode="json"))


def resolved(config: TrainConfig | str | Path, settings: Mapping[str, Any]) -> tuple[Found, TrainConfig]:
    """Return the plugin and the training that `train` was asked for; parameters and errors as there."""
    if isinstance(config, TrainConfig):
        config = config.replace(**settings) if settings else config
    else:
        file = Path(config) if str(config).endswith(".toml") else None
        plugin = _named_in(file) if file else str(config)
        config = put_together(plugin, find_trainable(plugin).cls.presets, file=file, options=settings)
    return find_trainable(config.plugin), resolve(config)


def _named_in(file: Path) -> str:
    from ..config import read_toml

    plugin = read_toml(file, ConfigError).get("plugin")
    if not isinstance(plugin, str):
        raise ConfigError(f"{file} does not say what is trained: it lacks the key 'plugin'.")
    return plugin
