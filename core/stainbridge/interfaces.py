"""The contracts that plugins are written against.

A plugin is a function from arrays to arrays at a scale it declares. It never sees a file, a grid of tiles, a seed or a tracker:
those are core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .errors import ConfigError
from .records import RGB, LabelMap, Result, Sample

API_VERSION = 1
"""The version of these contracts; a plugin states in `api` the version it was written for."""

GRADE_CUTS = (0.2, 0.4, 0.6)
"""Mean DAB optical density of 1+, 2+ and 3+ in QuPath's positive cell detection."""

Stain: TypeAlias = Literal["ihc", "he"]
Kind: TypeAlias = Literal["translator", "segmenter", "classifier", "metric"]


class PluginConfig(BaseModel):
    """Base of every plugin's settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Wants:
    """What a plugin wants to be given.

    Parameters
    ----------
    stain : "ihc" or "he"
    mpp : micrometres per pixel; None for a method that works on the picture's own grid whatever its scale
    tile : side in pixels of the only input size it accepts, halo included; None for any size
    halo : context in pixels that is cut off on each side of a tile
    multiple_of : both sides of an input are padded to a multiple of this
    blend : of a translator: pixels on either side of a border between tiles over which one fades into the other
    """

    stain: Stain
    mpp: float | None = None
    tile: int | None = None
    halo: int = 0
    multiple_of: int = 1
    blend: int = 0

    def __post_init__(self) -> None:
        if self.stain not in ("ihc", "he"):
            raise ConfigError(f"Wants.stain must be 'ihc' or 'he'; found {self.stain!r}.")
        if self.mpp is not None and not self.mpp > 0:
            raise ConfigError(f"Wants.mpp must be positive micrometres per pixel or None; found {self.mpp}.")
        if self.halo < 0 or self.multiple_of < 1:
            raise ConfigError(f"Wants needs halo >= 0 and multiple_of >= 1; found {self.halo} and {self.multiple_of}.")
        if not 0 <= self.blend <= self.halo:
            raise ConfigError(
                f"Wants.blend must be 0..halo: tiles fade where both were computed; found {self.blend}, halo {self.halo}."
            )
        if self.tile is not None and (self.tile <= 2 * self.halo or self.tile % self.multiple_of):
            raise ConfigError(
                f"Wants.tile must exceed twice the halo ({self.halo}) and be a multiple of {self.multiple_of}; "
                f"found {self.tile}."
            )


class Plugin(ABC):
    """Base of translators, segmenters and classifiers.

    Parameters
    ----------
    config : an instance of the class's own `Config`; None takes its defaults
    weights : local, verified files by the file name that the registry gives them
    device : "cpu", "cuda" or "cuda:N"

    Heavy libraries are imported and weights are loaded in the constructor, never at module import.
    """

    name: ClassVar[str]
    """Lower-case name by which users ask for it."""
    api: ClassVar[int]
    """`API_VERSION` that it was written for. Has no default on purpose."""
    Config: ClassVar[type[PluginConfig]] = PluginConfig
    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Conformance checks that it is known to fail, each with the reason."""

    def __init__(
        self,
        config: PluginConfig | None = None,
        *,
        weights: Mapping[str, Path] | None = None,
        device: str = "cpu",
    ) -> None:
        self.config: Any = self.Config() if config is None else config
        self.weights = dict(weights or {})
        self.device = device

    @property
    @abstractmethod
    def wants(self) -> Wants:
        """The stain, scale and tile that it wants."""


class Translator(Plugin):
    """Turns IHC into virtual H&E, pixel for pixel."""

    @abstractmethod
    def translate(self, batch: RGB) -> RGB:
        """Translate uint8 (N, H, W, 3) IHC to uint8 (N, H, W, 3) virtual H&E of the same size."""


class Segmenter(Plugin):
    """Finds nuclei."""

    @abstractmethod
    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) into int32 (N, H, W); ids 0..n without gaps per image."""


class PositivityClassifier(Plugin):
    """Calls nuclei positive or negative, on the original IHC."""

    @property
    def threshold(self) -> float:
        """Operating point: a nucleus is positive where P(positive) is at or above it."""
        return 0.5

    @property
    def grade_cuts(self) -> tuple[float, float, float]:
        """Mean DAB optical density from which a nucleus is 1+, 2+ and 3+; QuPath's by default."""
        return GRADE_CUTS

    @abstractmethod
    def classify(self, ihc: RGB, labels: LabelMap) -> NDArray[np.float64]:
        """Return P(positive) in [0, 1] per label, float64 (n,), for uint8 (H, W, 3) and int32 (H, W) with ids 0..n."""


class Metric(ABC):
    """Holds results against truth, image by image, and pools."""

    name: ClassVar[str]
    api: ClassVar[int]
    expected_failures: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return the values of this image and accumulate."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the values pooled over all images so far."""


class Unpaired(NamedTuple):
    """A batch of two stains whose pictures have nothing to do with each other: uint8 (N, H, W, 3) each."""

    ihc: RGB
    he: RGB


class Labelled(NamedTuple):
    """A batch of pictures with truth: uint8 (N, H, W, 3), instance labels int32 (N, H, W), types uint8 (N, H, W) or None."""

    pixels: RGB
    labels: LabelMap
    types: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Snapshot:
    """Where a training stands.

    Parameters
    ----------
    tensors : networks, optimisers, pools: torch tensors by name
    values : counters and states of random numbers: plain JSON values
    """

    tensors: Mapping[str, Any]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Exported:
    """What the plugin that was trained needs in order to run.

    Parameters
    ----------
    files : torch tensors by name, by the name of the weight file they belong in (safetensors)
    config : the plugin's settings that differ from its defaults: plain JSON values
    """

    files: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]


@runtime_checkable
class Learner(Protocol):
    """Networks in training, driven step by step by `stainbridge.training`; made by a `Trainable`.

    It owns networks, losses, optimisers and schedule, and neither files nor data nor logs. Its state after `restore` equals, bit for
    bit on a CPU, its state at `snapshot`. Where several processes train, each has one and calls `begin`, `step`, `snapshot` and
    `restore` at the same time, so that these may be collective; `export` is called by the first alone.
    """

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """Start epoch `epoch` of `epochs`, counted from 1, of `steps` steps each."""
        ...

    def step(self, batch: Any) -> Mapping[str, float]:
        """Learn from one batch, an `Unpaired` or a `Labelled`; return the losses by name."""
        ...

    def snapshot(self) -> Snapshot:
        """Return everything it takes to go on from here."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of a learner with the same settings."""
        ...

    def export(self) -> Exported:
        """Return the weights and settings that its plugin is used with."""
        ...


@runtime_checkable
class Reconstructing(Protocol):
    """Capability of a learner: it also learns the way back, so that a cycle can be shown."""

    def reconstruct(self, he: RGB) -> RGB:
        """Return uint8 (N, H, W, 3) IHC for virtual H&E of that shape."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """Capability of a plugin class: `stainbridge train` can train its networks."""

    Training: ClassVar[type[PluginConfig]]
    """Settings of the learner: networks, losses, optimisers, precision."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Settings of whole trainings by name: keys of `stainbridge.training.TrainConfig`, and `learner` for those of `Training`."""
    learns_from: ClassVar[Literal["unpaired", "labelled"]]
    """Kind of batch that its learner takes."""

    @classmethod
    def learner(cls, settings: Any, *, device: str, seed: int, mpp: float, patch_px: int) -> Learner:
        """Return a learner with fresh networks.

        Parameters
        ----------
        settings : an instance of `Training`
        device : "cpu", "cuda" or "cuda:N"
        seed : of the first weights, and of whatever the learner draws
        mpp : micrometres per pixel of the batches
        patch_px : side of the batches' pictures
        """
        ...
