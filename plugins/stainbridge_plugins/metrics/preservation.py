"""What a translation keeps: virtual H&E and IHC side by side, without any truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stainbridge import Image, Metric, Result, Sample, run
from stainbridge.preservation import (
    BROWN_OD,
    brown_density,
    kept,
    nuclear_density_agreement,
    seam_ratio,
    side_by_side,
)

from .pooling import Columns, Tally, Weights, mean, ratio, total

_COUNTS = ("before", "after", "kept", "brown", "brown_kept")
_MEANS = ("density_agreement", "brown_density", "seam_ratio")


class Preservation(Metric):
    """Whether the nuclei of the IHC are still there on the virtual H&E.

    Nuclei are found by one fixed segmenter, the watershed of `baseline`, on the IHC and on the virtual H&E, whatever segmenter the
    result comes from. `count_ratio`: after over before. `centroid_recall`: share of those of the IHC found again within 3 um.
    `brown_retention`: the same of those whose mean DAB optical density is above that of 1+. `density_agreement`, `brown_density` and
    `seam_ratio`: see `stainbridge.preservation`. NaN where nothing was translated.
    """

    name = "preservation"
    api = 1
    expected_failures: ClassVar[Mapping[str, str]] = {
        "returns_named_floats": "it is about the virtual H&E, and the results of this check have none",
        "tells_perfect_from_empty": "it looks at the translation, not at the prediction",
    }

    def __init__(self) -> None:
        names = (*_COUNTS, "count_ratio", "centroid_recall", "brown_retention", *_MEANS)
        self._tally = Tally(names, self.pool)

    def update(self, result: Result, truth: Sample) -> dict[str, float]:
        """Return the values of this image, and the numbers of nuclei that they are made of."""
        if result.he is None:
            return self._tally.add(dict.fromkeys(self._tally.names, np.nan))
        ihc, he, mpp = side_by_side(result.source, result.he)
        before = run(Image(ihc, mpp), "identity", "baseline/ihc")
        after = run(Image(he, mpp), "identity", "baseline/he")
        points = (np.stack([one.nuclei.y, one.nuclei.x], axis=1) for one in (before, after))
        again = kept(*points, mpp=mpp)
        brown = before.nuclei.features["dab_od_mean"] >= BROWN_OD
        counts = (len(before.nuclei), len(after.nuclei), again.sum(), brown.sum(), (again & brown).sum())
        row = {name: float(count) for name, count in zip(_COUNTS, counts, strict=True)}
        labels = before.labels.read(0, 0, *before.labels.shape)
        core_px = _core_px(result.provenance)
        row |= {name: float(values[0]) for name, values in _shares({k: np.array([v]) for k, v in row.items()}).items()}
        return self._tally.add(
            row
            | {
                "density_agreement": nuclear_density_agreement(ihc, he, mpp=mpp),
                "brown_density": brown_density(he, labels, brown),
                "seam_ratio": seam_ratio(he, step_px=core_px) if core_px else np.nan,
            }
        )

    def compute(self) -> dict[str, float]:
        """Return shares over the nuclei of all images, and means over images of the others."""
        return self._tally.compute()

    def pool(self, images: Columns, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Pool the values of pictures; see `stainbridge.Poolable`."""
        shares = _shares({name: total(images[name], weights) for name in _COUNTS})
        translated = weights @ np.isfinite(images["before"]).astype(np.float64)
        return {**shares, **{name: mean(images[name], weights) for name in _MEANS}, "images_translated": translated}


def _shares(counts: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {
        "count_ratio": ratio(counts["after"], counts["before"]),
        "centroid_recall": ratio(counts["kept"], counts["before"]),
        "brown_retention": ratio(counts["brown_kept"], counts["brown"]),
    }


def _core_px(provenance: Mapping[str, Any]) -> int | None:
    """Return the side of the tiles that the virtual H&E was made of, where the result says."""
    core_px = provenance.get("translation", {}).get("core_px")
    return int(core_px) if core_px else None
