"""What a plugin may offer beyond its interface; core asks for the capability and never for the plugin's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .interfaces import Segmenter
from .records import RGB, LabelMap, NucleusValues


@runtime_checkable
class Batched(Protocol):
    """Capability: takes several tiles of one shape at once."""

    @property
    def batch_size(self) -> int:
        """Largest N worth passing; the output must not depend on N."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """Capability: has values (stain scales, percentiles) that belong to the whole picture, not to a tile."""

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy fitted to one picture.

        `sample` is uint8 (N, H, W, 3): windows spread evenly over the picture at the scale and stain of `wants`, or the whole
        picture as one window where it is small. Called once per picture, before any tile; self stays as it is.
        """
        ...


class Described(NamedTuple):
    """What a segmenter finds in a batch of N pictures.

    Parameters
    ----------
    labels : int32 (N, H, W), ids 0..n without gaps per image
    values : per image, float64 (n,) by name: one value per nucleus, in the order of the ids; NaN where there is none
    """

    labels: LabelMap
    values: Sequence[NucleusValues]


@runtime_checkable
class Describing(Protocol):
    """Capability of a segmenter: the pass that finds nuclei also tells something about each.

    The values ride with the labels through stitching and become columns of the table.
    """

    def describe(self, batch: RGB) -> Described:
        """Segment uint8 (N, H, W, 3); the labels are those of `segment`, and the names are the same for all pictures."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """Capability of a segmenter: its network runs on the next batch while nuclei are made of what it gave for the last."""

    def stream(self, batches: Iterable[RGB]) -> Iterator[Described]:
        """Yield for each batch of uint8 (N, H, W, 3), in their order, what `describe` gives; batches are taken ahead of results."""
        ...


@runtime_checkable
class Deriving(Protocol):
    """Capability of a classifier: its calls follow from what a segmenter told, without a look at the picture."""

    def derives_from(self, segmenter: Segmenter) -> bool:
        """Return whether the calls follow from the values of this `Describing` segmenter."""
        ...

    def derive(self, values: NucleusValues) -> NDArray[np.float64]:
        """Return P(positive) in [0, 1] per nucleus, float64 (n,), from the segmenter's values float64 (n,) by name."""
        ...


@runtime_checkable
class Poolable(Protocol):
    """Capability of a metric: its pooled values follow from the values of the pictures.

    That makes bootstrap intervals and paired comparisons possible, and pooling from a table on disk.
    """

    def pool(
        self, images: Mapping[str, NDArray[np.float64]], weights: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return pooled values float64 (B,) by name, as `compute` names them, without any state.

        `images` are the values of n pictures as `update` returned them, float64 (n,) by name; `weights` float64 (B, n) says how
        often each picture counts in each of B drawings. `compute` equals one drawing of ones.
        """
        ...
