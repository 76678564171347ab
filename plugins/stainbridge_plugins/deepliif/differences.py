"""How much the ways to run the networks differ on pictures at hand: statistics of each tile or of the training, dropout on or off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from stainbridge import RGB

from .segmenter import DeepLIIF

Mode: TypeAlias = tuple[Literal["batch", "running"], bool]
"""`batch_norm` and `dropout` of a configuration."""

MODES: tuple[Mode, ...] = (("batch", False), ("batch", True), ("running", False), ("running", True))


@dataclass(frozen=True)
class Difference:
    """One way to run the networks, held against the configuration as it is.

    Parameters
    ----------
    mode : of this row
    mean_grey, max_grey : absolute difference of the segmentations in grey levels, over pixels and channels
    nuclei, positive : how many are found, and how many of these are called positive
    changed_px : share of the pixels that are nucleus in one of the two and not in the other
    """

    mode: Mode
    mean_grey: float
    max_grey: int
    nuclei: int
    positive: int
    changed_px: float


def differences(
    config: DeepLIIF.Config,
    batch: RGB,
    *,
    modes: Sequence[Mode] = MODES,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
) -> list[Difference]:
    """Run uint8 (N, H, W, 3) IHC in each mode and compare with the mode of `config`; errors as the constructor of `DeepLIIF`."""
    asked = DeepLIIF(config, weights=weights, device=device)
    seg, cells = asked.segmentations(batch), asked.cells(batch)
    found = np.stack([one.labels for one in cells]) > 0
    rows = []
    for batch_norm, dropout in modes:
        other = config.model_copy(update={"batch_norm": batch_norm, "dropout": dropout})
        plugin = DeepLIIF(other, weights=weights, device=device)
        gap = np.abs(plugin.segmentations(batch).astype(np.int16) - seg)
        theirs = plugin.cells(batch)
        rows.append(
            Difference(
                (batch_norm, dropout),
                mean_grey=float(gap.mean()),
                max_grey=int(gap.max()),
                nuclei=sum(len(one.p_positive) for one in theirs),
                positive=sum(int(one.positive.sum()) for one in theirs),
                changed_px=float(np.mean((np.stack([one.labels for one in theirs]) > 0) != found)),
            )
        )
    return rows
