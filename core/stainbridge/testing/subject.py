"""What a conformance check is given: a plugin, a way to construct it anew, and pictures at the scale it wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from stainbridge.capabilities import Calibrated
from stainbridge.errors import ContractViolation
from stainbridge.interfaces import (
    Kind,
    Metric,
    Plugin,
    PositivityClassifier,
    Segmenter,
    Stain,
    Translator,
    Wants,
)
from stainbridge.records import RGB, Image, Sample

from .synthetic import synthetic_he, synthetic_ihc

MPP = 0.25
"""Scale of the pictures for a plugin that works on any grid: micrometres per pixel of a 40x scan."""

_SIDE_PX = 256
_AREA_UM2 = 250.0  # tissue per nucleus: dense, and loose enough that the asked number always fits


class ConformanceError(AssertionError):
    """A plugin does not do what a check claims."""


@dataclass(frozen=True)
class Subject:
    """A plugin under test.

    Parameters
    ----------
    plugin : constructed as users get it
    make : constructs the same anew
    """

    plugin: Any
    make: Callable[[], Any]

    @classmethod
    def of(cls, given: Plugin | Metric | type[Plugin] | type[Metric]) -> Subject:
        """Take an instance, or a class whose defaults can be constructed."""
        if isinstance(given, type):
            return cls(given(), given)
        if isinstance(given, Metric):
            return cls(given, type(given))
        config, weights, device = given.config, given.weights, given.device
        return cls(given, lambda: type(given)(config, weights=weights, device=device))

    @property
    def kind(self) -> Kind:
        """The interface that the plugin implements."""
        return kind_of(type(self.plugin))

    @property
    def wants(self) -> Wants:
        """What it wants to be given."""
        wanted: Wants = self.plugin.wants
        return wanted

    @property
    def mpp(self) -> float:
        """Scale of the pictures it is given, in micrometres per pixel."""
        return self.wants.mpp or MPP

    def side_px(self, at_least: int = _SIDE_PX) -> int:
        """Return a side in pixels that the plugin accepts: its tile, or `at_least` rounded up to its multiple."""
        return self.wants.tile or -(-at_least // self.wants.multiple_of) * self.wants.multiple_of

    def sample(self, *, seed: int = 0, side_px: int | None = None) -> Sample:
        """Return a synthetic picture with truth, of the stain, scale and size that the plugin wants."""
        side = side_px or self.side_px()
        nuclei = max(4, round((side * self.mpp) ** 2 / _AREA_UM2))
        return picture(self.wants.stain, (side, side), nuclei, self.mpp, seed)

    def batch(self, *, seed: int = 0) -> RGB:
        """Return the pixels of `sample` as uint8 (1, H, W, 3), read-only."""
        return pixels(self.sample(seed=seed))[None]

    def moved(self, *, at_least: int) -> tuple[RGB, int, int]:
        """Return a picture uint8 (1, S, S, 3) for two overlapping windows, the side of a window and how far it moves.

        The second window, at (shift, shift), sees a strip of blank glass at its rim that the first does not see.
        """
        shift = -(-16 // self.wants.multiple_of) * self.wants.multiple_of
        side = self.side_px(at_least=at_least + shift)
        whole = pixels(self.sample(side_px=side + shift)).copy()
        whole[side:] = whole[:, side:] = 245
        return whole[None], side, shift

    def fitted(self, batch: RGB, *, plugin: Plugin | None = None) -> Callable[[RGB], Any]:
        """Return the plugin's `translate` or `segment`, calibrated to `batch` first where it can be."""
        chosen: Any = plugin or self.plugin
        return calling(chosen.calibrate(batch.copy()) if isinstance(chosen, Calibrated) else chosen)


def kind_of(cls: type) -> Kind:
    """Return the kind of a plugin class.

    Raises
    ------
    ContractViolation
        If it implements none of the interfaces.
    """
    kinds: dict[type, Kind] = {
        Translator: "translator",
        Segmenter: "segmenter",
        PositivityClassifier: "classifier",
        Metric: "metric",
    }
    for interface, kind in kinds.items():
        if issubclass(cls, interface):
            return kind
    names = ", ".join(interface.__name__ for interface in kinds)
    raise ContractViolation(f"A plugin derives from one of {names}; {cls.__name__} derives from none of them.")


@lru_cache(maxsize=8)
def picture(stain: Stain, shape: tuple[int, int], nuclei: int, mpp: float, seed: int) -> Sample:
    """Return a synthetic picture whose arrays are read-only; checks ask for the same few again and again."""
    make = synthetic_ihc if stain == "ihc" else synthetic_he
    sample = make(shape=shape, nuclei=nuclei, mpp=mpp, seed=seed)
    for array in (pixels(sample), sample.truth.array):
        array.setflags(write=False)
    return sample


def calling(plugin: Any) -> Callable[[RGB], Any]:
    """Return the method of a translator or segmenter that maps a batch."""
    function: Callable[[RGB], Any] = plugin.translate if isinstance(plugin, Translator) else plugin.segment
    return function


def pixels(sample: Sample) -> RGB:
    """Return the pixels of a synthetic sample, uint8 (H, W, 3)."""
    assert isinstance(sample.source, Image)
    return sample.source.pixels


def require(holds: bool, message: str) -> None:
    """Fail the running check with `message` unless `holds`."""
    if not holds:
        raise ConformanceError(message)


def require_array(found: object, dtype: type, shape: tuple[int, ...], what: str) -> None:
    """Fail the running check unless `found` is an array of this type and shape."""
    described = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
    expected = f"{np.dtype(dtype)} {shape}"
    require(described == expected, f"{what} returned {described}; it must return {expected}.")
