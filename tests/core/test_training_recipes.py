"""The recipes of benchmarks/training are trainings as they stand."""

from pathlib import Path
from typing import get_args

import pytest

from stainbridge.config import read_toml
from stainbridge.discovery import catalog
from stainbridge.errors import ConfigError, UnknownPlugin
from stainbridge.interfaces import Kind
from stainbridge.training.settings import put_together

RECIPES = sorted((Path(__file__).parents[2] / "benchmarks" / "training").glob("*.toml"))


def plugin(name):
    for kind in get_args(Kind):
        try:
            return catalog().find(kind, name).cls
        except UnknownPlugin:
            continue
    raise LookupError(name)


def test_there_are_some():
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
class TestARecipe:
    def test_it_is_a_training_of_the_plugin_that_it_names(self, file):
        cls = plugin(read_toml(file, ConfigError)["plugin"])
        config = put_together(cls.name, cls.presets, file=file)
        cls.Training.model_validate(config.learner)
        assert config.plugin == cls.name

    def test_it_says_the_command_that_it_is_for(self, file):
        command = f"stainbridge train {read_toml(file, ConfigError)['plugin']} --config benchmarks/training/{file.name}"
        assert command in file.read_text("utf-8")
