"""One picture in, scored nuclei out: the only place where the stages meet.

Read, translate, segment, stitch, bring back, classify, score. Everything runs window by window, so memory depends on the tile and
not on the picture; a 512 px tile and a whole slide take the same path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from . import provenance
from .config import Choice, RunConfig
from .discovery import Built, build, resolved
from .errors import ContractViolation, ScaleUnknown
from .interfaces import Kind, Plugin, PositivityClassifier, Segmenter, Translator
from .io import open_picture
from .records import RGB, Image, NucleusValues, Result, Source
from .scale import Restated, rescale
from .scoring import score
from .stages import (
    NUCLEUS_REACH_UM,
    batches,
    calibrated,
    check_wants,
    derive,
    layout,
    read_all,
    segment_each,
)
from .stitching import Stitcher
from .table import tabulate
from .tiling import Canvas, tiles
from .torchkit import resolve_device
from .virtual import Translated

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all)."""


@dataclass(frozen=True)
class Stages:
    """The plugins of a run, constructed once and used for any number of pictures.

    Parameters
    ----------
    config : resolved: it names a segmenter and a translator
    translator : None where the segmenter wants IHC
    """

    config: RunConfig
    translator: Built | None
    segmenter: Built
    classifier: Built

    @classmethod
    def build(
        cls, config: RunConfig, instances: Mapping[str, Plugin] | None = None, *, translate: bool = True
    ) -> Stages:
        """Construct the plugins that `config` names; an instance given for a kind is used as it is.

        With `translate` False there is no translator: `run_stages` is given the virtual H&E.

        Raises
        ------
        UnknownPlugin, PluginUnavailable, MissingExtra, ConfigError, WeightsUnavailable, WeightsCorrupt
        """
        given, named, config = instances or {}, config.translator is not None, resolved(config)

        def make(kind: Kind) -> Built:
            return construct(kind, config, given.get(kind))

        segmenter = make("segmenter")
        if not translate:
            return cls(config, None, segmenter, make("classifier"))
        wants_he = segmenter.plugin.wants.stain == "he"
        # A translator that is named is built even where it is not needed: a misspelt name is an error all the same.
        translator = make("translator") if wants_he or named else None
        if wants_he:
            return cls(config, translator, segmenter, make("classifier"))
        return cls(config.replace(translator=None), None, segmenter, make("classifier"))

    def plugins(self) -> dict[str, Built | None]:
        """Return what was built by kind."""
        return {"translator": self.translator, "segmenter": self.segmenter, "classifier": self.classifier}


def construct(kind: Kind, config: RunConfig, instance: Plugin | None = None) -> Built:
    """Construct the plugin of one kind that `config` names, or take the instance; errors as `Stages.build`."""
    if config.device != "cpu":
        resolve_device(config.device)
    built = build(
        kind,
        instance or getattr(config, kind),
        registries=config.registries,
        device=config.device,
        offline=config.offline,
    )
    check_wants(kind, built.plugin)
    return built


def run(
    source: str | Path | RGB | Source,
    translator: str | Choice | Plugin | None = None,
    segmenter: str | Choice | Plugin | None = None,
    classifier: str | Choice | Plugin | None = None,
    *,
    mpp: float | None = None,
    config: RunConfig | None = None,
) -> Result:
    """Find, classify and score every nucleus of one IHC picture.

    Parameters
    ----------
    source : a path, uint8 (H, W, 3) pixels, or a `Source`
    translator, segmenter, classifier : names as in `stainbridge plugins` or `models`, choices with settings, or plugins;
        None takes those of `config`
    mpp : micrometres per pixel; needed where the picture does not say
    config : everything else that can be set

    Raises
    ------
    ScaleUnknown
        If neither the picture nor `mpp` gives the pixel size.
    StainbridgeError
        Any other error of `stainbridge.errors`, by what was wrong.

    Examples
    --------
    >>> from skimage.data import immunohistochemistry
    >>> result = run(immunohistochemistry(), mpp=0.5)
    >>> sorted(result.scores)[:3]
    ['allred', 'area_mm2', 'counts']
    """
    named = {"translator": translator, "segmenter": segmenter, "classifier": classifier}
    instances = {kind: given for kind, given in named.items() if isinstance(given, Plugin)}
    changes = {**named, **{kind: _choice(one) for kind, one in instances.items()}, "mpp": mpp}
    config = (config or RunConfig()).replace(**{key: value for key, value in changes.items() if value is not None})
    opened = as_source(source, mpp=config.mpp)
    return run_stages(opened, Stages.build(config, instances))


def run_stages(source: Source, stages: Stages, *, he: Source | None = None, progress: Progress | None = None) -> Result:
    """Run constructed plugins on one source that has an mpp; see `run`.

    Parameters
    ----------
    he : virtual H&E of the same field that was made before; no translator is asked then
    """
    mpp, config = _require_mpp(source, stages.segmenter.plugin), stages.config
    tell = progress or _silent
    if he is None and stages.translator is not None:
        he = translated(source, stages.translator.plugin, config)
    segmenter = _fitted_segmenter(he or source, stages.segmenter.plugin)
    stitched, facts = _segmented(he or source, segmenter, config, tell)
    assert isinstance(stages.classifier.plugin, PositivityClassifier)
    classifier = calibrated(stages.classifier.plugin, rescale(source, stages.classifier.plugin.wants.mpp))
    tell("classify", 0, 1)
    threshold = classifier.threshold if config.threshold is None else config.threshold
    cuts = config.grade_cuts or classifier.grade_cuts
    p = derive(classifier, segmenter, stitched.values(), len(stitched))
    nuclei, labels = tabulate(source, stitched, classifier, grade_cuts=cuts, threshold=threshold, p_positive=p)
    tell("classify", 1, 1)
    facts |= {"lost_in_resampling": len(stitched) - len(nuclei), "threshold": threshold, "grade_cuts": list(cuts)}
    facts["calls"] = "from the image" if p is None else "from the segmenter's pass"
    area_mm2 = source.shape[0] * source.shape[1] * mpp**2 / 1e6
    scores = score(nuclei, area_mm2=area_mm2, mpp=mpp, seed=config.seed, bootstraps=config.bootstraps)
    translator = he.translator if isinstance(he, Translated) else None
    fitted = {"translator": translator, "segmenter": segmenter, "classifier": classifier}
    record = provenance.describe(source, stages.plugins(), config, facts, fitted=fitted)
    if isinstance(he, Translated):
        record["translation"] = {"mpp": he.mpp, "core_px": he.core_px, "halo_px": he.halo_px, "blend_px": he.blend_px}
    return Result(source, labels, nuclei, he, scores, record)


def as_source(source: str | Path | RGB | Source, *, mpp: float | None = None) -> Source:
    """Return a `Source` for a path, an array uint8 (H, W, 3) or a source; `mpp` replaces what it says of its scale."""
    if isinstance(source, str | Path):
        return open_picture(source, mpp=mpp)
    if isinstance(source, np.ndarray):
        return Image(source, mpp=mpp)
    if isinstance(source, Image) and mpp is not None:
        return replace(source, mpp=mpp)
    if isinstance(source, Source):
        return source if mpp is None else Restated(source, mpp)
    raise ContractViolation(
        f"A source is a path, a uint8 array (height, width, 3) or an object with name, shape, mpp and read; "
        f"found {type(source).__name__}."
    )


def _choice(plugin: Plugin) -> Choice:
    return Choice(plugin.name, plugin.config.model_dump(mode="json"))


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _require_mpp(source: Source, segmenter: Plugin) -> float:
    if source.mpp is not None:
        return source.mpp
    raise ScaleUnknown(
        f"{source.name!r} has no pixel size; segmenter {segmenter.name!r} and every area need micrometres per pixel.\n"
        "Pass --mpp 0.25 (mpp=0.25 in Python) with the scanner's value, or write it into the file's resolution tags."
    )


def translated(source: Source, translator: Plugin, config: RunConfig) -> Translated:
    """Return the virtual H&E of `source`, made tile by tile when it is read."""
    assert isinstance(translator, Translator)
    ihc = rescale(source, translator.wants.mpp)
    return Translated(ihc, calibrated(translator, ihc), core_px=config.tile_px)


def _fitted_segmenter(source: Source, segmenter: Plugin) -> Segmenter:
    assert isinstance(segmenter, Segmenter)
    return calibrated(segmenter, rescale(source, segmenter.wants.mpp))


def _segmented(
    source: Source, segmenter: Segmenter, config: RunConfig, tell: Progress
) -> tuple[Stitcher, dict[str, Any]]:
    """Segment and stitch the whole of `source`; return the stitched labels and the facts of the tiling."""
    view = rescale(source, segmenter.wants.mpp)
    assert view.mpp is not None
    least = math.ceil(NUCLEUS_REACH_UM / view.mpp) if config.halo_px is None else config.halo_px
    core_px, halo_px = layout(segmenter, view, core_px=config.tile_px, least_halo_px=least)
    grid = tiles(view.shape, core_px, halo_px)
    stitcher = Stitcher(Canvas(view.shape, np.int32, view.mpp))
    done, names = 0, None
    groups = list(batches(segmenter, grid))
    pixels = (read_all(view, [tile.outer for tile in batch]) for batch in groups)
    for batch, found in zip(groups, segment_each(segmenter, pixels), strict=True):
        for tile, (labels, values) in zip(batch, found, strict=True):
            names = _same_names(segmenter, values, names)
            stitcher.add(labels, tile, values)
        done += len(batch)
        tell("segment", done, len(grid))
    stitcher.finish()
    facts = {"mpp": view.mpp, "core_px": core_px, "halo_px": halo_px, "tiles": len(grid)}
    return stitcher, {**facts, "clipped": sum(stitcher.clipped), "duplicates_removed": stitcher.duplicates}


def _same_names(segmenter: Segmenter, values: NucleusValues, names: list[str] | None) -> list[str]:
    """Return the names of what is told of a tile's nuclei, which are those of the first tile."""
    told = list(values)
    if names is not None and told != names:
        told_of, first = (", ".join(map(repr, some)) or "nothing" for some in (told, names))
        raise ContractViolation(f"Segmenter {segmenter.name!r} told {told_of} of a tile and {first} of the first.")
    return told
