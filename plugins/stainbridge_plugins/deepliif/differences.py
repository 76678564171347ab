"""How much the ways to run the networks differ on pictures at hand: statistics of each tile or of the training, dropout on or off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from stainbridge import RGB

from .cells import Cells
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
    pictures: Iterable[RGB],
    *,
    modes: Sequence[Mode] = MODES,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
) -> list[Difference]:
    """Run pictures, each uint8 (H, W, 3) IHC, in each mode and compare with the mode of `config`; over all of them together.

    Errors are those of the constructor of `DeepLIIF`.
    """
    pictures = list(pictures)
    asked = _run(DeepLIIF(config, weights=weights, device=device), pictures)
    rows = []
    for batch_norm, dropout in modes:
        other = config.model_copy(update={"batch_norm": batch_norm, "dropout": dropout})
        found = _run(DeepLIIF(other, weights=weights, device=device), pictures)
        rows.append(_compared((batch_norm, dropout), asked, found))
    return rows


def _run(plugin: DeepLIIF, pictures: Sequence[RGB]) -> list[tuple[RGB, Cells]]:
    """Return the segmentation of each picture, and its cells; tiles that were seen are not computed again."""
    return [(plugin.segmentations(one[None])[0], plugin.cells(one[None])[0]) for one in pictures]


def _compared(mode: Mode, asked: list[tuple[RGB, Cells]], found: list[tuple[RGB, Cells]]) -> Difference:
    pairs = list(zip(asked, found, strict=True))
    gaps = [np.abs(theirs.astype(np.int16) - ours) for (ours, _), (theirs, _) in pairs]
    changed = [(ours.labels > 0) != (theirs.labels > 0) for (_, ours), (_, theirs) in pairs]
    return Difference(
        mode,
        mean_grey=sum(int(gap.sum()) for gap in gaps) / max(sum(gap.size for gap in gaps), 1),
        max_grey=max((int(gap.max()) for gap in gaps), default=0),
        nuclei=sum(len(cells.p_positive) for _, cells in found),
        positive=sum(int(cells.positive.sum()) for _, cells in found),
        changed_px=sum(int(one.sum()) for one in changed) / max(sum(one.size for one in changed), 1),
    )
