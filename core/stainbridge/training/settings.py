"""A training as data: preset, file, options and `--set`, each over the one before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..cards import Filled, Mpp
from ..config import explain, overridden, read_toml
from ..errors import ConfigError, nearest

Flips: TypeAlias = Literal["none", "horizontal", "all"]
"""How patches are mirrored; "all" turns them by quarters too."""

SCALES = ("ihc_mpp", "he_mpp", "pictures_mpp")
_PATHS = {"ihc", "he", "pictures"}


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


_Paths = Annotated[tuple[Path, ...], BeforeValidator(_several)]
_Names = Annotated[tuple[Filled, ...], BeforeValidator(_several)]


class WatchTable(BaseModel):
    """How epochs are looked at.

    Parameters
    ----------
    every : epochs from one look to the next; 0 never looks, and the last epoch is then the best
    segmenter : plugin or model that finds nuclei on both stains
    pictures, size_px : fields that are looked at, and their side in pixels at the scale of the training
    kid_limit : distance to the H&E side under which an epoch may be best; None sets it from the pictures
    held_out : patterns of pictures that are looked at and not learned from: of file names, such as "case_07*", or with a "/" of ends of
        paths below the folder that was named, such as "case_07/*"
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(1, ge=0)
    segmenter: Filled = "baseline"
    pictures: int = Field(4, ge=1)
    size_px: int = Field(512, ge=64)
    kid_limit: float | None = Field(None, gt=0, allow_inf_nan=False)
    held_out: _Names = ()


class TrainConfig(BaseModel):
    """Everything that decides a training, and how it is carried out.

    Parameters
    ----------
    plugin : what is trained
    learner : settings of its learner that differ from the defaults
    ihc, he : folders (with those inside), files or patterns of pictures and slides, for a plugin that learns from unpaired pictures
    pictures : folders of pictures with truth, for one that learns from labelled pictures
    mpp : micrometres per pixel of the patches
    ihc_mpp, he_mpp, pictures_mpp : of pictures that do not say
    patch_px : side of the patches
    resize_px : patches are resized to this side first and cut at random to `patch_px`, as CycleGAN does; None: they are not
    resize_by : how pixels are interpolated then: "bicubic" in CycleGAN, "bilinear" in U-GAT-IT
    flips : "none", "horizontal", or "all", which turns by quarters too
    tissue : least share of a patch that is tissue
    ihc_patches, he_patches : a fixed set of so many patches, drawn once; None draws fresh ones in each epoch, as many as the tissue holds
    epochs : how often all patches are gone through
    batch_size : of each process; n processes together learn from n times as many
    steps : of an epoch; None goes once through the larger side
    seed : of patches, flips and first weights
    device : "cpu", "cuda" or "cuda:N"
    keep_every : epochs whose checkpoints are kept; the last two and the best are kept anyway
    checkpoint_steps : steps from one checkpoint to the next within an epoch; None: only at its end
    workers, memory_mb : threads that read patches (None: this process's share of the processors, 8 at most), and memory for decoded
        pictures, of each process
    watch : how epochs are looked at
    name : of the model, after the plugin's; None takes the folder's
    licence, commercial : of the weights
    datasets : names of the data sets that the pictures are of, so that leakage can be flagged; empty takes the names of the folders
    experiment, tracking : in MLflow; whether to log there
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plugin: Filled
    learner: dict[str, Any] = Field(default_factory=dict)
    ihc: _Paths = ()
    he: _Paths = ()
    pictures: _Paths = ()
    mpp: Mpp = 0.25
    ihc_mpp: Mpp | None = None
    he_mpp: Mpp | None = None
    pictures_mpp: Mpp | None = None
    patch_px: int = Field(256, ge=16)
    resize_px: int | None = None
    resize_by: Literal["bicubic", "bilinear"] = "bicubic"
    flips: Flips = "horizontal"
    tissue: float = Field(0.25, ge=0, le=1)
    ihc_patches: int | None = Field(None, ge=1)
    he_patches: int | None = Field(None, ge=1)
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    keep_every: int = Field(10, ge=1)
    checkpoint_steps: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=1)
    memory_mb: int = Field(1024, ge=0)
    watch: WatchTable = Field(default_factory=lambda: WatchTable.model_validate({}))
    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    licence: Filled = "unstated: as the training pictures allow"
    commercial: bool = False
    datasets: _Names = ()
    experiment: str | None = None
    tracking: bool = True

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, TrainConfig) from None

    @model_validator(mode="after")
    def _room_for_the_crop(self) -> Self:
        if self.resize_px is not None and self.resize_px < self.patch_px:
            raise ValueError(f"resize_px = {self.resize_px} must be at least patch_px, which is {self.patch_px}")
        return self

    def replace(self, **values: Any) -> Self:
        """Return a copy with other values, checked."""
        return type(self)(**{**self.to_dict(), **values})

    def with_overrides(self, settings: Iterable[str]) -> Self:
        """Return a copy changed by texts such as "learner.lambda_identity=0"; the value is read as TOML, else as a string.

        Raises
        ------
        ConfigError
            If a text has no "=", or its key or value is not allowed.
        """
        return type(self)(**overridden(self.to_dict(), settings, example="batch_size=2"))

    @property
    def threads(self) -> int:
        """Threads that read patches in this process."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.workers or max(1, min(8, (os.cpu_count() or 1) // here))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, defaults included; `TrainConfig(**values)` gives the same training."""
        return self.model_dump(mode="json")


def put_together(
    plugin: str,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
) -> TrainConfig:
    """Return the training of a preset, with a file over it, then options, then texts as of `--set`.

    Parameters
    ----------
    plugin : what is trained
    presets : of the plugin, by name
    file : TOML with the keys of `TrainConfig`, and `preset`; relative paths start at its folder
    options : values by key, and `preset`; an `mpp` among them is also that of pictures that do not say, where nothing else is said
    settings : see `TrainConfig.with_overrides`

    Raises
    ------
    ConfigError
        If there is no such preset, or a key or a value is not allowed; names the nearest.
    """
    given, written = dict(options or {}), {} if file is None else _written(plugin, file)
    chosen = given.pop("preset", None) or written.get("preset")
    values = _over(_preset(plugin, presets, chosen), {key: one for key, one in written.items() if key != "preset"})
    if file is not None:
        try:
            TrainConfig(**{**values, "plugin": plugin})
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    values = _over(values, given)
    if "mpp" in given:
        values = {**dict.fromkeys(SCALES, given["mpp"]), **values}
    return TrainConfig(**{**values, "plugin": plugin}).with_overrides(settings)


def _written(plugin: str, file: Path) -> dict[str, Any]:
    """Return the values of a file, its paths from where it lies."""
    values = read_toml(file, ConfigError)
    if values.get("plugin", plugin) != plugin:
        raise ConfigError(f"{file} is a training of {values['plugin']!r}; {plugin!r} was asked for.")
    folder = file.resolve().parent
    for key in _PATHS & values.keys():
        if isinstance(values[key], str | list):
            values[key] = [folder / Path(str(one)).expanduser() for one in _several(values[key])]
    return values


def _preset(plugin: str, presets: Mapping[str, Mapping[str, Any]], chosen: str | None) -> dict[str, Any]:
    if chosen is None:
        return {}
    if chosen not in presets:
        known = ", ".join(presets) or "none"
        raise ConfigError(f"{plugin!r} has no preset {chosen!r}.{nearest(chosen, presets)} Presets: {known}.")
    return dict(presets[chosen])


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` over it; tables key by key."""
    tables = {
        key: {**below[key], **above[key]}
        for key in below.keys() & above.keys()
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping)
    }
    return {**below, **above, **tables}
