"""Look at a training after an epoch: values, a grid of pictures, and which epoch is best."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..errors import ConfigError
from ..interfaces import Learner, Plugin, Segmenter
from ..overlap import dice_counts, match_counts, overlaps
from ..pipeline import Stages, run_stages
from ..records import RGB, Sample, Source
from .choosing import Highest, Rule, Selection, Values
from .fields import labelled_fields
from .grids import write_grid

if TYPE_CHECKING:
    from .settings import TrainConfig

SELECTION = "selection.json"


@dataclass(frozen=True)
class Look:
    """What was seen of an epoch.

    Parameters
    ----------
    values : by name
    rows : pictures by the name of their row, one for each field
    captions : a line for each field
    """

    values: dict[str, float]
    rows: Mapping[str, Sequence[RGB]]
    captions: Sequence[str]


class Watcher(ABC):
    """Measures epochs on a few fixed fields, and keeps ``grids/epoch_0001.png`` and ``selection.json`` in the folder of the run.

    Parameters
    ----------
    folder : of the run
    rule : by which the best epoch is found
    facts : further facts for ``selection.json``
    """

    remarks: tuple[str, ...] = ()
    """What the user should know before the first epoch."""

    def __init__(self, folder: Path, rule: Rule, facts: Mapping[str, Any]) -> None:
        self.folder, self.rule = folder, rule
        self.selection = Selection(folder / SELECTION, rule, facts)

    @staticmethod
    def open(
        config: TrainConfig,
        ihc: Sequence[Source],
        he: Sequence[Source],
        folder: Path,
        *,
        labelled: Sequence[Sample] = (),
        held_out: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Watcher:
        """Draw the fields and measure what stays the same over the epochs.

        Parameters
        ----------
        config : of the training
        ihc, he : the two sides of an unpaired training, or what of them was held out
        folder : of the run, where it exists
        labelled : pictures with truth; given, the plugin is a segmenter and is held against them
        held_out : files of each side that are not learned from, to be written down

        Raises
        ------
        ConfigError
            If there is nothing to look at.
        UnknownPlugin, PluginUnavailable, MissingExtra, WeightsUnavailable
            If the segmenter of `config.watch` cannot be had.
        """
        if labelled:
            watch = config.watch
            samples = labelled_fields(labelled, watch.pictures, side_px=watch.size_px, seed=config.seed)
            return SegmentationWatcher(folder, samples, RunConfig(device=config.device, bootstraps=0), held_out)
        if not ihc or not he:
            raise ConfigError(
                f"Watching a training needs pictures of both stains; found {len(ihc)} of IHC and {len(he)} of H&E."
            )
        from .translation import TranslationWatcher

        return TranslationWatcher.of(config, ihc, he, folder, held_out=held_out)

    @property
    def grid_title(self) -> str:
        """What the title of every grid ends with."""
        return ""

    def watch(self, plugin: Plugin, learner: Learner, epoch: int) -> dict[str, float]:
        """Measure `plugin`, made from what `learner` exports after `epoch`; write the grid and the selection; return the values.

        Raises
        ------
        WriteFailed
            If the disk is full.
        ContractViolation
            If the plugin breaks its contract.
        """
        look = self.look(plugin, learner)
        self.selection.add(epoch, look.values)
        shown = "   ".join(f"{name} {value:.3f}" for name, value in look.values.items() if name in self.shown)
        title = f"epoch {epoch}   {shown}{self.grid_title}"
        write_grid(self.grid(epoch), look.rows, title=title, captions=look.captions)
        return look.values

    def grid(self, epoch: int) -> Path:
        """Return where the grid of an epoch is written."""
        return self.folder / "grids" / f"epoch_{epoch:04d}.png"

    def is_better(self, values: Values, best: Values | None) -> bool:
        """Tell whether an epoch beats the best of those before it; None: there is none."""
        return self.rule.is_better(values, best)

    shown: tuple[str, ...] = ()
    """Names of the values in the title of the grid."""

    @abstractmethod
    def look(self, plugin: Plugin, learner: Learner) -> Look:
        """Measure one state of the training."""


class SegmentationWatcher(Watcher):
    """Holds a segmenter in training against pictures with truth: F1 at IoU 0.5 and Dice of the pooled counts."""

    shown = ("f1", "dice")

    def __init__(
        self, folder: Path, samples: Sequence[Sample], config: RunConfig, held_out: Mapping[str, Sequence[str]]
    ) -> None:
        facts = {"fields": [sample.source.name for sample in samples], "held_out": dict(held_out)}
        super().__init__(folder, Highest(("f1", "dice")), facts)
        self.samples, self._config = tuple(samples), config

    def look(self, plugin: Plugin, learner: Learner) -> Look:
        """Segment every field as a run would, and match."""
        assert isinstance(plugin, Segmenter)
        from ..report.panels import paint

        stages = Stages.build(self._config, {"segmenter": plugin}, translate=False)
        counts, pixels = np.zeros(3), np.zeros(3)
        rows: dict[str, list[RGB]] = {"picture": [], "found blue, invented red, missed green": []}
        captions = []
        for sample in self.samples:
            result = run_stages(sample.source, stages, he=sample.source)
            found = result.labels.read(0, 0, *result.labels.shape)
            shared = overlaps(sample.truth.array, found)
            one = match_counts(shared, [50])[0]
            counts, pixels = counts + one, pixels + dice_counts(shared)
            picture = sample.source.read(0, 0, *sample.source.shape)
            painted = paint(picture, sample.truth.array, found)
            for row, shown in zip(rows.values(), (picture, painted), strict=True):
                row.append(shown)
            captions.append("TP {}  FP {}  FN {}".format(*one))
        return Look(_rates(counts, pixels), rows, captions)


def _rates(counts: NDArray[np.float64], pixels: NDArray[np.float64]) -> dict[str, float]:
    """Return rates of pooled counts (tp, fp, fn) and pixels (both, truth, prediction); NaN with neither truth nor prediction."""
    tp, fp, fn = (float(count) for count in counts)
    both, truth, found = (float(count) for count in pixels)
    return {
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
        "precision": tp / (tp + fp) if tp + fp else math.nan,
        "recall": tp / (tp + fn) if tp + fn else math.nan,
        "dice": 2 * both / (truth + found) if truth + found else math.nan,
    }
