"""From the maps of one picture to its nuclei and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap

from .measuring import NucleusTable, measure, types_of
from .postprocessing import Rules, find_instances

Nuclei: TypeAlias = tuple[LabelMap, dict[str, NDArray[np.float64]]]
"""int32 (H, W), ids 0..n without gaps, and float64 (n,) by name."""

_WITHOUT_TYPES = 3
"""Channels of `Maps` of a network without types: the probability of nucleus, horizontal and vertical distance."""


@dataclass(frozen=True)
class Found:
    """What HoVer-Net finds in one picture.

    Parameters
    ----------
    labels : int32 (H, W), ids 0..n without gaps
    table : box, centroid, contour and type of the nuclei
    """

    labels: LabelMap
    table: NucleusTable


def nuclei_of(maps: NDArray[np.float32], rules: Rules) -> Nuclei:
    """Return the nuclei of float32 (C, H, W) `Maps`, and where there are types, "type" and "type_share"."""
    labels, types = find_instances(maps[-3], maps[-2:], rules), _types(maps)
    if types is None:
        return labels, {}
    chosen, shares = types_of(labels, types)
    return labels, {"type": chosen.astype(np.float64), "type_share": shares}


def found_in(maps: NDArray[np.float32], rules: Rules) -> Found:
    """Return the nuclei of float32 (C, H, W) `Maps`, measured."""
    labels = find_instances(maps[-3], maps[-2:], rules)
    return Found(labels, measure(labels, _types(maps)))


def _types(maps: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    return None if len(maps) == _WITHOUT_TYPES else maps[0].astype(np.uint8)
