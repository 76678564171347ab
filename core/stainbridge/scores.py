"""The records that an evaluation gives: pictures, cells of the table, paired comparisons, the whole benchmark.

A value is named "METRIC/KEY", such as "matching/f1@0.50". Everything here is plain data: it goes to JSON and back unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import pandas

Role = Literal["method", "control"]
Status = Literal["done", "failed"]

ORACLE, EMPTY = "oracle", "empty"
"""The truth itself and no nucleus at all, where a segmenter's name stands."""


@dataclass(frozen=True)
class Combination:
    """What one cell of the table is made of.

    Parameters
    ----------
    dataset, translator, segmenter, classifier : names; a stage that is skipped is None
    role : "control" for identity, baseline, oracle and empty prediction
    """

    dataset: str
    translator: str | None
    segmenter: str
    classifier: str | None = None
    role: Role = "method"

    @property
    def method(self) -> str:
        """Name without the data set: "deconvolution + instanseg/brightfield", and the classifier where there is one."""
        return " + ".join(part for part in (self.translator, self.segmenter, self.classifier) if part)


@dataclass(frozen=True)
class ImageScore:
    """One picture in one cell.

    Parameters
    ----------
    picture : unique within the data set
    status : "failed" rows have an `error` and no values
    values : by "METRIC/KEY"; NaN where a value is not defined for this picture
    nuclei : how many were predicted
    seconds : wall time by stage: translate, segment, classify, evaluate
    peak_mb : largest resident memory of the process while the picture was at hand, 10^6 bytes
    subset : part of the data set that the picture belongs to, or an empty string
    finished_ms : when it was finished, milliseconds since 1970
    made_by : git commit, or version, of the stainbridge that made the prediction
    """

    picture: str
    status: Status = "done"
    error: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    nuclei: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_mb: float | None = None
    subset: str = ""
    finished_ms: int = 0
    made_by: str = ""


@dataclass(frozen=True)
class Scores:
    """One cell: a combination on a data set.

    Parameters
    ----------
    combination : what was combined
    images : every picture of the data set, in its order, the failed ones too
    pooled : values over all pictures that were done, by "METRIC/KEY"
    intervals : 95 % bootstrap intervals over pictures of some of the pooled values, (low, high)
    subsets : pooled values by subset, where the data set has subsets
    flags : "trained on the evaluation data: MoNuSeg", "weights not for commercial use: ..."
    facts : provenance: plugins, configuration, software, device, data; plain JSON values
    error : why the whole cell failed, or an empty string
    """

    combination: Combination
    images: tuple[ImageScore, ...] = ()
    pooled: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    subsets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def done(self) -> tuple[ImageScore, ...]:
        """The pictures that were finished."""
        return tuple(image for image in self.images if image.status == "done")

    @property
    def failed(self) -> tuple[ImageScore, ...]:
        """The pictures that failed."""
        return tuple(image for image in self.images if image.status == "failed")

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per picture, the values as columns."""
        import pandas

        return pandas.DataFrame([_image_row(image) for image in self.images])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN as None."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the mapping that `to_dict` returns."""
        rest = dict(values)
        return cls(
            combination=Combination(**rest.pop("combination")),
            images=tuple(image_from_dict(one) for one in rest.pop("images")),
            pooled=_floats(rest.pop("pooled")),
            intervals={key: (_float(low), _float(high)) for key, (low, high) in rest.pop("intervals").items()},
            subsets={key: _floats(one) for key, one in rest.pop("subsets").items()},
            flags=tuple(rest.pop("flags")),
            **rest,
        )


@dataclass(frozen=True)
class Difference:
    """A paired comparison: the same value of two methods on the same pictures, resampled together.

    Parameters
    ----------
    a, b : methods as `Combination.method` names them
    value : "METRIC/KEY"
    difference : value of a minus value of b, over the pictures that both finished
    low, high : 95 % bootstrap interval over pictures
    images : how many pictures
    """

    dataset: str
    a: str
    b: str
    value: str
    difference: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Benchmark:
    """A whole suite.

    Parameters
    ----------
    name : of the suite
    cells : in the order of the suite
    differences : paired comparisons
    folder : where predictions, tables and figures lie
    """

    name: str
    cells: tuple[Scores, ...]
    differences: tuple[Difference, ...] = ()
    folder: Path | None = None

    def to_pandas(self) -> pandas.DataFrame:
        """Return one row per cell, the pooled values as columns."""
        import pandas

        return pandas.DataFrame([cell_row(cell) for cell in self.cells])


def cell_row(cell: Scores) -> dict[str, Any]:
    """Return a cell as one flat row: names, counts of pictures, flags, error, pooled values, ``NAME low`` and ``NAME high``."""
    named = cell.combination
    row: dict[str, Any] = {
        "dataset": named.dataset,
        "translator": named.translator,
        "segmenter": named.segmenter,
        "classifier": named.classifier,
        "role": named.role,
        "images_done": len(cell.done),
        "images_failed": len(cell.failed),
        "flags": "; ".join(cell.flags),
        "error": cell.error,
    }
    for key, value in cell.pooled.items():
        row[key] = value
        if key in cell.intervals:
            row[f"{key} low"], row[f"{key} high"] = cell.intervals[key]
    return row


def image_to_dict(image: ImageScore) -> dict[str, Any]:
    """Return plain JSON values; NaN as None."""
    return dict(_plain(asdict(image)))


def image_from_dict(values: Mapping[str, Any]) -> ImageScore:
    """Build from the mapping that `image_to_dict` returns."""
    return ImageScore(**{**values, "values": _floats(values["values"])})


def _image_row(image: ImageScore) -> dict[str, Any]:
    row = {key: value for key, value in asdict(image).items() if key not in ("values", "seconds")}
    return row | {f"seconds/{stage}": value for stage, value in image.seconds.items()} | dict(image.values)


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: _float(value) for key, value in values.items()}


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None if isinstance(value, float) and math.isnan(value) else value
    return [_plain(inner) for inner in value]
