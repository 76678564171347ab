"""Watch a translator in training: what it keeps of the nuclei, and how near to H&E it has come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..discovery import catalog
from ..interfaces import API_VERSION, Learner, Plugin, Reconstructing, Stain, Translator, Wants
from ..pipeline import Stages, run_stages, translated
from ..preservation import BROWN_OD, Points, count_ratio, kept, nuclear_density_agreement, seam_ratio, side_by_side
from ..records import RGB, Image, Nuclei, Source
from ..scale import rescale
from ..virtual import Translated
from .choosing import UnderLimit, preservation_score
from .domain import Domain, windows_of, with_tissue
from .fields import draw_fields
from .watching import Look, Watcher

if TYPE_CHECKING:
    from .settings import TrainConfig

HE_FIELDS = 16
"""Fields of the H&E side, at least: they are measured once, and the distance needs many."""

_COUNTS = ("before", "after", "kept", "brown", "brown_kept")


@dataclass(frozen=True)
class Field:
    """One field of IHC with what is known of it before any translation.

    Parameters
    ----------
    ihc : the pixels, at the scale of the training
    points : centroids of its nuclei, float64 (n, 2) in micrometres
    brown : bool (n,), which of them are brown
    tissue : bool (k,), which of its windows of `domain.WINDOW_PX` hold tissue
    """

    ihc: Image
    points: Points
    brown: NDArray[np.bool_]
    tissue: NDArray[np.bool_]

    @classmethod
    def of(cls, ihc: Image, stages: Stages) -> Self:
        """Find the nuclei of a field."""
        nuclei = run_stages(ihc, stages, he=ihc).nuclei
        brown = nuclei.features["dab_od_mean"] >= BROWN_OD
        return cls(ihc, _points(nuclei, ihc), brown, with_tissue(windows_of(ihc.pixels)))


@dataclass(frozen=True)
class Seen:
    """One field translated: the virtual H&E on the translator's grid, its windows uint8 (k, 64, 64, 3), counts and values."""

    he: Image
    windows: RGB
    counts: dict[str, int]
    density_agreement: float
    seam_ratio: float


class TranslationWatcher(Watcher):
    """Translates fixed fields of IHC as a run would, and compares.

    Values, over all fields: `preservation` (see `choosing.preservation_score`), `density_agreement`, `count_ratio`, `centroid_recall`
    and `brown_retention` (see `stainbridge.preservation`; nuclei by one fixed segmenter on IHC and virtual H&E), `seam_ratio` (over
    that of the field with its seams elsewhere), `kid` and its `kid_spread` (see `domain`), numbers of nuclei.
    """

    shown = ("preservation", "kid", "centroid_recall", "count_ratio", "brown_retention")

    def __init__(
        self,
        folder: Path,
        fields: Sequence[Field],
        domain: Domain,
        stages: Stages,
        *,
        limit: float | None,
        facts: dict[str, object],
    ) -> None:
        untranslated = np.concatenate([windows_of(field.ihc.pixels)[field.tissue] for field in fields])
        rule = UnderLimit(domain.distance(untranslated), domain.own(), limit)
        super().__init__(folder, rule, facts)
        self.remarks = (rule.remark,) if rule.remark else ()
        self.limit = rule.limit
        self.fields, self.domain = tuple(fields), domain
        self._stages = stages

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        ihc: Sequence[Source],
        he: Sequence[Source],
        folder: Path,
        *,
        held_out: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Self:
        """Draw the fields and segment the IHC, once; parameters and errors as of `Watcher.open`."""
        watch, mpp = config.watch, config.mpp
        ours = draw_fields(ihc, watch.pictures, side_px=watch.size_px, mpp=mpp, seed=config.seed)
        theirs = draw_fields(he, max(HE_FIELDS, watch.pictures), side_px=watch.size_px, mpp=mpp, seed=config.seed)
        on_ihc, on_he = (_segmenting(watch.segmenter, stain, config.device) for stain in ("ihc", "he"))
        facts: dict[str, object] = {
            "segmenter": {"ihc": on_ihc.segmenter.facts["model"], "he": on_he.segmenter.facts["model"]},
            "mpp": mpp,
            "ihc_fields": [one.name for one in ours],
            "he_fields": [one.name for one in theirs],
            "held_out": {side: list(files) for side, files in held_out.items()},
        }
        domain = Domain.of([one.pixels for one in theirs], seed=config.seed)
        fields = [Field.of(one, on_ihc) for one in ours]
        return cls(folder, fields, domain, on_he, limit=watch.kid_limit, facts=facts)

    @property
    def grid_title(self) -> str:
        """The limit that `kid` is held against."""
        return f"   (limit of kid {self.limit:.3f})"

    def look(self, plugin: Plugin, learner: Learner) -> Look:
        """Translate every field and measure."""
        assert isinstance(plugin, Translator)
        seen = [self._seen(field, plugin) for field in self.fields]
        rows = {"IHC": [field.ihc.pixels for field in self.fields], "virtual H&E": [one.he.pixels for one in seen]}
        if isinstance(learner, Reconstructing):
            back = _Back(learner, plugin.wants)
            rows["cycle: IHC again"] = [_whole(Translated(one.he, back)) for one in seen]
        captions = ["{before} nuclei, {after} after, {kept} kept".format(**one.counts) for one in seen]
        return Look(self._values(seen), rows, captions)

    def _seen(self, field: Field, plugin: Translator) -> Seen:
        source = translated(field.ihc, plugin, self._stages.config)
        ihc, he, mpp = side_by_side(field.ihc, source)
        picture = Image(he, mpp, field.ihc.name)
        nuclei = run_stages(picture, self._stages, he=picture).nuclei
        again = kept(field.points, _points(nuclei, picture), mpp=1.0)
        counts = (len(field.points), len(nuclei), again.sum(), field.brown.sum(), (again & field.brown).sum())
        return Seen(
            picture,
            windows_of(_on_grid(picture, field.ihc))[field.tissue],
            {name: int(count) for name, count in zip(_COUNTS, counts, strict=True)},
            nuclear_density_agreement(ihc, he, mpp=mpp),
            _seams(source),
        )

    def _values(self, seen: Sequence[Seen]) -> dict[str, float]:
        before, after, kept_, brown, brown_kept = (sum(one.counts[name] for one in seen) for name in _COUNTS)
        distance = self.domain.distance(np.concatenate([one.windows for one in seen]))
        values = {
            "density_agreement": _mean([one.density_agreement for one in seen]),
            "count_ratio": count_ratio(before, after),
            "centroid_recall": count_ratio(before, kept_),
            "brown_retention": count_ratio(brown, brown_kept),
            "seam_ratio": _mean([one.seam_ratio for one in seen]),
            "kid": distance.kid,
            "kid_spread": distance.spread,
            "nuclei_before": float(before),
            "nuclei_after": float(after),
        }
        return {"preservation": preservation_score(values), **values}


class _Back(Translator):
    """The way back of a learner, in tiles like those of the way there."""

    name, api = "back", API_VERSION

    def __init__(self, learner: Reconstructing, wants: Wants) -> None:
        super().__init__()
        self._learner, self._wants = learner, wants

    @property
    def wants(self) -> Wants:
        return self._wants

    def translate(self, batch: RGB) -> RGB:
        return self._learner.reconstruct(batch)


def _segmenting(name: str, stain: Stain, device: str) -> Stages:
    """Return the stages that segment pictures of one stain: by the model "NAME/STAIN" where there is one, else by `name` itself."""
    model = f"{name}/{stain}"
    known = catalog().registry.models
    return Stages.build(
        RunConfig(segmenter=model if model in known else name, device=device, bootstraps=0), translate=False
    )


def _seams(he: Translated) -> float:
    """Return the seam ratio of a picture over that of the same picture with its seams elsewhere.

    Texture alone gives 0.8 to 1.2, and it is the same in both. Where a run would translate the picture in one piece, it is cut in four
    for this and held against the piece; else against a translation whose tiles start half a tile later. Below 1 where blended borders
    are smoother than what is beside them; NaN where the only tile is larger than the picture.
    """
    side, core = max(he.shape), he.core_px
    if core < side:
        start = core // 2
        part = Image(he.source.read(start, start, *(length - start for length in he.shape)), he.mpp, he.name)
        return _relative(
            _whole(he)[start:, start:], _whole(Translated(part, he.translator, core_px=core)), core - start, core
        )
    if he.translator.wants.tile is not None:
        return math.nan
    tiled = Translated(he.source, he.translator, core_px=-(-side // 2))
    return _relative(_whole(tiled), _whole(he), tiled.core_px, tiled.core_px)


def _relative(he: RGB, other: RGB, first: int, step: int) -> float:
    """Return the seam ratio of one picture over that of another, at lines `first`, `first + step`, ... of both axes."""
    rows, columns = (range(first, length, step) for length in he.shape[:2])
    ratio, texture = (seam_ratio(one, rows=rows, columns=columns) for one in (he, other))
    return ratio / texture if texture > 0 else math.nan


def _whole(source: Source) -> RGB:
    return source.read(0, 0, *source.shape)


def _on_grid(he: Image, ihc: Image) -> RGB:
    """Return the virtual H&E on the grid of the IHC; a last row or column that rounding lost is repeated."""
    view = rescale(he, ihc.mpp)
    pixels = _whole(view)[: ihc.shape[0], : ihc.shape[1]]
    missing = [whole - side for whole, side in zip(ihc.shape, pixels.shape, strict=False)]
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels


def _points(nuclei: Nuclei, picture: Image) -> Points:
    """Return centroids in micrometres from the corner of the picture, whatever its grid; float64 (n, 2)."""
    assert picture.mpp is not None
    return (np.stack([nuclei.y, nuclei.x], axis=1) + 0.5) * picture.mpp


def _mean(values: Sequence[float]) -> float:
    """Return the mean of what is defined; NaN where nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
