"""A run as data: read from TOML, changed by `--set a.b=c`, written back resolved.

`describe` and `explain` turn pydantic's errors into sentences; plugins' configurations and registry files use them too.
"""

from __future__ import annotations

import copy
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from .errors import ConfigError, StainbridgeError, nearest
from .records import PLAUSIBLE_MPP

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Choice:
    """A plugin or model by name, with the settings that differ from its defaults.

    In TOML it is a plain string, or a table whose other keys are the plugin's settings; ``name`` is therefore reserved.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Choice:
        """Return the choice that a string, a table or a choice stands for.

        Raises
        ------
        ConfigError
            If it is something else, or names nothing.
        """
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise ConfigError("must be a name or a table with a name")
        rest = dict(value)
        name = rest.pop("name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError("must have a name: the plugin ('baseline') or model ('baseline/he')")
        return cls(name, rest)

    def to_dict(self) -> dict[str, Any]:
        """Return the table: the name, then the settings."""
        return {"name": self.name, **copy.deepcopy(dict(self.config))}


_Choice = Annotated[Choice, BeforeValidator(Choice.of)]


class RunConfig(BaseModel):
    """Everything that decides the result of a run, apart from the picture.

    Parameters
    ----------
    translator, segmenter, classifier : the plugins or models; None takes the registry's default, see `discovery.resolved`
    mpp : micrometres per pixel of pictures that do not say; None takes the picture's own
    tile_px, halo_px : tile core and least context in pixels of the stage; a plugin that wants more gets more
    seed, bootstraps : of the confidence intervals
    grade_cuts : mean DAB optical density from which a nucleus is 1+, 2+ and 3+; None takes the classifier's own
    threshold : P(positive) from which a nucleus is positive; None takes the classifier's own
    device : "cpu", "cuda" or "cuda:N"
    offline : never touch the network
    registries : further registry files
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    translator: _Choice | None = None
    segmenter: _Choice | None = None
    classifier: _Choice = Choice("hsi")
    mpp: float | None = Field(None, allow_inf_nan=False)
    tile_px: int | None = Field(None, gt=0)
    halo_px: int | None = Field(None, ge=0)
    seed: int = Field(0, ge=0)
    bootstraps: int = Field(1000, ge=0)
    grade_cuts: tuple[float, float, float] | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    device: str = "cpu"
    offline: bool = False
    registries: tuple[Path, ...] = ()

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, RunConfig) from None

    @field_validator("mpp")
    @classmethod
    def _plausible(cls, mpp: float | None) -> float | None:
        low, high = PLAUSIBLE_MPP
        if mpp is not None and not low <= mpp <= high:
            raise ValueError(f"must be micrometres per pixel between {low} and {high}; a 40x scan has about 0.25")
        return mpp

    @field_validator("grade_cuts")
    @classmethod
    def _increasing(cls, cuts: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if cuts is not None and not 0 < cuts[0] < cuts[1] < cuts[2] < math.inf:
            raise ValueError("must be three increasing positive optical densities")
        return cuts

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError("must be 'cpu', 'cuda' or 'cuda:N'")
        return device

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML file; paths of registries are relative to it.

        Raises
        ------
        ConfigError
            If the file cannot be read, is not TOML, or has an unknown key or a value out of range.
        """
        path = Path(path)
        config = read_model(cls, path)
        return config.replace(registries=tuple(path.parent / registry for registry in config.registries))

    def replace(self, **values: Any) -> Self:
        """Return a copy with other values, checked."""
        return type(self)(**{**self.to_dict(), **values})

    def with_overrides(self, settings: Iterable[str]) -> Self:
        """Return a copy changed by texts such as "classifier.threshold=0.4".

        The value is read as TOML, else taken as a string. ``segmenter=stardist/he`` drops the former one's settings.

        Raises
        ------
        ConfigError
            If a text has no "=", or its key or value is not allowed.
        """
        return type(self)(**overridden(self.to_dict(), settings, example="classifier.threshold=0.4"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, defaults included; `RunConfig(**values)` gives the same run."""
        values: dict[str, Any] = {}
        for key in type(self).model_fields:
            value = getattr(self, key)
            values[key] = value.to_dict() if isinstance(value, Choice) else _plain(value)
        return values

    def to_toml(self) -> str:
        """Return the resolved configuration as TOML; keys without a value are left out.

        Raises
        ------
        ConfigError
            If a plugin's setting is None, which TOML cannot say.
        """
        values = {key: value for key, value in self.to_dict().items() if value is not None}
        lines = [assignment(key, value) for key, value in values.items() if not isinstance(value, dict)]
        for key, table in values.items():
            if isinstance(table, dict):
                lines += ["", f"[{key}]", *(assignment(name, value) for name, value in table.items())]
        return "\n".join(lines) + "\n"


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line per mistake: the key, the value found, what is allowed, the nearest name."""
    return "\n".join(_sentence(dict(item), model) for item in error.errors(include_url=False))


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> ConfigError:
    """Return the `ConfigError` that says what is wrong; `where` is the file or plugin it was found in."""
    return ConfigError(f"{where}: {describe(error, model)}" if where else describe(error, model))


def read_model(model: Callable[..., M], path: Path) -> M:
    """Return the model that the values of a TOML file make; a `ConfigError` of either names the file."""
    values = read_toml(path, ConfigError)
    try:
        return model(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_toml(path: Path, failure: type[StainbridgeError]) -> dict[str, Any]:
    """Return the tables of a TOML file; whatever prevents that becomes `failure`, naming the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise failure(f"{path} is not valid TOML: {error}.") from error


def _sentence(item: dict[str, Any], model: type[BaseModel]) -> str:
    *parents, last = item["loc"] or ("",)
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, parents)
        inside = f" in {_dotted(parents)}" if parents else ""
        listed = f" Known keys: {', '.join(known)}." if known else " It takes no keys."
        return f"unknown key {str(last)!r}{inside}.{nearest(str(last), known)}{listed}"
    if item["type"] == "missing" and isinstance(last, str):
        return f"{_dotted(parents) or 'the table'} lacks the key {str(last)!r}."
    allowed = re.sub(r"^\w+ should ", "must ", item["msg"].removeprefix("Value error, "))
    if not item["loc"]:
        return str(allowed)
    found = repr(item["input"])
    return f"{_dotted(item['loc'])} = {found if len(found) <= 80 else found[:77] + '...'}: {allowed}."


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    models = [model]
    for step in path:
        fields = [one.model_fields[str(step)].annotation for one in models if str(step) in one.model_fields]
        # A step that is no field is an index, a table's own name or a union's tag.
        models = [inner for annotation in fields for inner in _models(annotation)] if fields else models
    return [key for one in models for key in one.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(toml_key(str(step)) for step in path)


def overridden(values: dict[str, Any], settings: Iterable[str], *, example: str) -> dict[str, Any]:
    """Return `values` changed by texts "KEY=VALUE", the value read as TOML, else as a string; ConfigError shows the example."""
    changed = copy.deepcopy(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: expected KEY=VALUE, such as {example}.")
        _put(changed, key.strip(), _toml_value(text.strip()), setting)
    return changed


def _put(values: dict[str, Any], key: str, value: Any, setting: str) -> None:
    """Set `key`, "a.b" for a key inside a table, in `values`; `setting` is what the user wrote, for messages."""
    *parents, last = key.split(".")
    table = values
    for parent in parents:
        inner = table.setdefault(parent, {})
        if isinstance(inner, str):  # a plugin's bare name becomes a table
            inner = table[parent] = {"name": inner}
        if inner is None:
            raise ConfigError(f"--set {setting}: no {parent} is named yet; name it too, such as {parent}=NAME.")
        table = inner
        if not isinstance(table, dict):
            raise ConfigError(f"--set {setting}: {parent!r} is a single value, it has no keys.")
    table[last] = value


def _toml_value(text: str) -> Any:
    """Return what a text is as a TOML value, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def assignment(key: str, value: Any) -> str:
    """Return a line of TOML."""
    return f"{toml_key(key)} = {_toml(value, key)}"


def toml_key(key: str) -> str:
    """Return a key as TOML writes it, in quotes where it must be."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def _toml(value: Any, key: str) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(assignment(str(name), inner) for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item, key) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return _quoted(str(value))
    raise ConfigError(f"{key} = {value!r} cannot be written as TOML; leave the key out or give it a plain value.")


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for one character that JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
