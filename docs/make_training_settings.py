"""Make docs/training_settings.md from the settings' own descriptions. Run from the top of the checkout."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stainbridge.discovery import catalog
from stainbridge.training.settings import TrainConfig

FILE = Path(__file__).parent / "training_settings.md"
INTRODUCTION = """# Settings of a training

Made by `python docs/make_training_settings.py` from the descriptions in the code; do not edit.

Keys of a training's file (`--config FILE.toml`) and of `--set KEY=VALUE`, as in `--set watch.every=5` or `--set learner.ema=0.999`.
A preset is what its table below says, the file goes over it, and options and `--set` over both. Where the default is None the key is left
out. See [training.md](training.md)."""


def text() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, *_section("Every training", TrainConfig, "")]
    for found in catalog().found:
        if found.distribution == "stainbridge" and hasattr(found.cls, "Training"):
            parts += _section(f"Learner of `{found.name}`", found.cls.Training, "learner.")
            parts += _presets(found.name, found.cls.presets)
    return "\n\n".join(parts) + "\n"


def _section(title: str, model: type[BaseModel], above: str) -> list[str]:
    """Return heading and table of a model, its tables among the rows."""
    head = ["| key | default | values | meaning |", "|---|---|---|---|"]
    return [f"## {title}", "\n".join([*head, *_rows(model, above)])]


def _rows(model: type[BaseModel], above: str) -> Iterator[str]:
    """Yield a row for each description; keys that share one share the row."""
    schemas = model.model_json_schema()["properties"]
    for names, meaning in _described(model).items():
        inner = model.model_fields[names[0]].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{above}{names[0]}.")
            continue
        keys = ", ".join(f"`{above}{name}`" for name in names)
        defaults = "; ".join(dict.fromkeys(_default(model, name) for name in names))
        values = "; ".join(dict.fromkeys(_values(schemas[name]) for name in names))
        yield f"| {keys} | {defaults} | {values} | {meaning.replace('|', chr(92) + '|')} |"


def _described(model: type[BaseModel]) -> dict[tuple[str, ...], str]:
    """Return what fields mean, by their names: from the fields themselves, else from the class's docstring.

    Raises
    ------
    ValueError
        If a field is described in neither.
    """
    own = {name: field.description for name, field in model.model_fields.items()}
    _, _, parameters = inspect.getdoc(model).partition("Parameters\n----------\n")
    entries = re.findall(r"^(\w[\w, ]*) : (.*(?:\n +.*)*)", parameters, flags=re.MULTILINE)
    groups = {tuple(names.split(", ")): " ".join(meaning.split()) for names, meaning in entries}
    grouped = {name: names for names in groups for name in names}
    found: dict[tuple[str, ...], str] = {}
    for name, description in own.items():
        names = (name,) if description else grouped.get(name, ())
        if not names:
            raise ValueError(f"{model.__name__}.{name} has no description")
        found[names] = description or groups[names]
    return found


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    return "None" if value is None else f"`{json.dumps(value, default=str)}`"


def _values(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows besides null."""
    for one in schema.get("anyOf", [schema]):
        if "enum" in one:
            return ", ".join(f"`{value}`" for value in one["enum"])
        if one.get("type") in ("integer", "number"):
            return _numbers(one)
        if one.get("type") != "null":
            return {"boolean": "`true`, `false`", "string": "text", "array": "list", "object": "table"}[one["type"]]
    return ""


def _numbers(schema: Mapping[str, Any]) -> str:
    ends = {"minimum": "from {}", "exclusiveMinimum": "over {}", "maximum": "to {}", "exclusiveMaximum": "under {}"}
    said = [words.format(schema[end]) for end, words in ends.items() if end in schema]
    return " ".join(["integer" if schema["type"] == "integer" else "number", *said])


def _presets(name: str, presets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of a plugin's presets, a key in a row."""
    flat = {preset: dict(_flat(values)) for preset, values in presets.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    head = [f"| preset of `{name}` | {' | '.join(f'`{preset}`' for preset in flat)} |", "|---" * (len(flat) + 1) + "|"]
    rows = [
        f"| `{key}` | {' | '.join(_cell(values[key]) if key in values else '' for values in flat.values())} |"
        for key in keys
    ]
    return ["\n".join([*head, *rows])]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _cell(value: Any) -> str:
    return f"`{json.dumps(value, default=str)}`"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
