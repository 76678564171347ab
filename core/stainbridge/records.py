"""The records that travel between stages: frozen, and checked when made.

Coordinates are (y, x) in pixels; pixel (0, 0) has its centre at (0.0, 0.0). Boxes are half-open.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import ContractViolation, UnsupportedPicture

if TYPE_CHECKING:
    import pandas

    from .overlap import Overlaps

RGB: TypeAlias = NDArray[np.uint8]
"""Colour pixels, uint8, (H, W, 3) or as a batch (N, H, W, 3), 0..255, sRGB."""

LabelMap: TypeAlias = NDArray[np.int32]
"""Instance labels, int32, (H, W) or as a batch (N, H, W); 0 is background, ids 1..n without gaps per image."""

NucleusValues: TypeAlias = Mapping[str, NDArray[np.float64]]
"""What a segmenter tells of its nuclei: float64 (n,) by name, in the order of the ids; NaN where there is no value."""

PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres per pixel that a picture of tissue can have."""


@runtime_checkable
class Source(Protocol):
    """Anything that pixels can be read from: an array, a picture file, a pyramidal slide, a translation."""

    @property
    def name(self) -> str:
        """Short name for messages and folders."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        ...

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel; None when the file does not say."""
        ...

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3); the window lies inside `shape`."""
        ...


@runtime_checkable
class LabelSource(Protocol):
    """Anything that instance labels can be read from, window by window."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        ...

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel."""
        ...

    def read(self, y: int, x: int, height: int, width: int) -> LabelMap:
        """Return the window as int32 (height, width)."""
        ...


@dataclass(frozen=True)
class Image:
    """A picture in memory; a `Source`.

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    mpp : micrometres per pixel, or None when unknown

    Raises
    ------
    UnsupportedPicture
        If the pixels are not uint8 RGB or there are none.
    """

    pixels: RGB
    mpp: float | None = None
    name: str = "image"

    def __post_init__(self) -> None:
        found = np.asarray(self.pixels)
        if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8 or found.size == 0:
            raise UnsupportedPicture(
                f"{self.name!r}: pixels must be uint8 (height, width, 3) with at least one pixel; "
                f"found {found.dtype} {found.shape}."
            )
        _check_mpp(self.mpp, self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window as uint8 (height, width, 3)."""
        return self.pixels[y : y + height, x : x + width]


@dataclass(frozen=True)
class Labels:
    """Instance labels in memory; a `LabelSource`.

    Parameters
    ----------
    array : int32 (H, W), ids 0..n without gaps
    mpp : micrometres per pixel, or None when unknown
    """

    array: LabelMap
    mpp: float | None = None

    def __post_init__(self) -> None:
        check_label_map(self.array, "labels")
        _check_mpp(self.mpp, "labels")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.array.shape[0], self.array.shape[1]

    def read(self, y: int, x: int, height: int, width: int) -> LabelMap:
        """Return the window as int32 (height, width)."""
        return self.array[y : y + height, x : x + width]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class Nuclei:
    """One row per nucleus, as columns of equal length n.

    Parameters
    ----------
    label : int32, id in the label map, 1..n
    y, x : float64, centroid in pixels of the input picture
    area_um2 : float64, square micrometres
    box : int64 (n, 4), y0, x0, y1, x1 in pixels, half-open
    p_positive : float64 in [0, 1], from the classifier
    positive : bool, `p_positive` at or above the operating threshold
    grade : int8, 0, 1, 2 or 3: staining intensity by mean DAB optical density
    clipped : bool, True where a tile's halo may have cut the nucleus
    features : further float64 columns, such as ``dab_od_mean``
    """

    label: NDArray[np.int32]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    area_um2: NDArray[np.float64]
    box: NDArray[np.int64]
    p_positive: NDArray[np.float64]
    positive: NDArray[np.bool_]
    grade: NDArray[np.int8]
    clipped: NDArray[np.bool_]
    features: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) > 1:
            raise ContractViolation(f"The columns of a nuclei table must have one length; found {lengths}.")
        if self.box.shape != (len(self.label), 4):
            raise ContractViolation(f"Boxes must be (n, 4); found {self.box.shape}.")

    def __len__(self) -> int:
        return len(self.label)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return every column by name, in writing order; the box as four columns."""
        flat: dict[str, NDArray[Any]] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "box":
                flat.update(zip(_BOX, value.reshape(-1, 4).T, strict=True))
            elif entry.name == "features":
                flat.update(value)
            else:
                flat[entry.name] = value
        return flat

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> Nuclei:
        """Build from the mapping that `columns` returns; unknown columns become features."""
        rest = dict(columns)
        box = np.stack([np.asarray(rest.pop(name), np.int64) for name in _BOX], axis=1)
        own = {name: np.asarray(rest.pop(name), dtype) for name, dtype in _COLUMN_TYPES.items()}
        return cls(box=box, features={name: np.asarray(value, np.float64) for name, value in rest.items()}, **own)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a pandas DataFrame (pandas is not a dependency of the core)."""
        import pandas

        return pandas.DataFrame(self.columns())


_BOX = ("y0", "x0", "y1", "x1")

MEASURED = ("haematoxylin_od_mean", "dab_od_mean")
"""Features that every table has: mean optical densities on the original IHC."""

_COLUMN_TYPES: dict[str, Any] = {
    "label": np.int32,
    "y": np.float64,
    "x": np.float64,
    "area_um2": np.float64,
    "p_positive": np.float64,
    "positive": np.bool_,
    "grade": np.int8,
    "clipped": np.bool_,
}


@dataclass(frozen=True)
class Result:
    """What one run gives.

    Parameters
    ----------
    source : the IHC picture
    labels : instance labels on the grid of the source
    nuclei : one row per label
    he : the virtual H&E on the translator's grid, or None when no translation was made
    scores : percent positive, H-score, Allred, counts and densities with intervals; plain JSON values
    provenance : everything needed to run it again; plain JSON values
    """

    source: Source
    labels: LabelSource
    nuclei: Nuclei
    he: Source | None
    scores: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A picture with truth.

    Parameters
    ----------
    source : the picture, with mpp
    truth : instance labels on the picture's grid
    positive : bool (n,), class of each truth label, or None when the data set has no classes
    """

    source: Source
    truth: Labels
    positive: NDArray[np.bool_] | None = None
    _counted: tuple[Any, Overlaps] | None = field(default=None, init=False, repr=False, compare=False)

    def overlaps(self, labels: LabelSource) -> Overlaps:
        """Return the shared pixels of truth and predicted `labels`; counted once for the metrics that ask one after another.

        Raises
        ------
        ContractViolation
            If the two differ in size, or `labels` holds anything but non-negative integers.
        """
        from .overlap import overlaps

        if self._counted is None or self._counted[0]() is not labels:
            found = overlaps(self.truth.array, labels.read(0, 0, *labels.shape))
            object.__setattr__(self, "_counted", (_reference(labels), found))
            return found
        return self._counted[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counted": None}

    def __post_init__(self) -> None:
        if self.truth.shape != self.source.shape:
            raise ContractViolation(
                f"{self.source.name!r}: picture {self.source.shape} and truth {self.truth.shape} differ in size."
            )


def _reference(labels: LabelSource) -> Callable[[], LabelSource | None]:
    """Refer to labels without keeping them alive; to those that allow no weak reference, to nothing, so that they are counted anew."""
    try:
        return weakref.ref(labels)
    except TypeError:
        return lambda: None


def check_values(values: NucleusValues, count: int, what: str) -> None:
    """Check what a segmenter tells of `count` nuclei: new names, and float64 (count,) below each.

    Raises
    ------
    ContractViolation
        If a name is one that the table has already, or a column is of another type or length.
    """
    taken = {*_COLUMN_TYPES, *_BOX, *MEASURED}
    for name, column in values.items():
        if name in taken:
            raise ContractViolation(
                f"{what}: {name!r} is a column of every table of nuclei; give the value another name."
            )
        if not isinstance(column, np.ndarray) or column.dtype != np.float64 or column.shape != (count,):
            found = f"{column.dtype} {column.shape}" if isinstance(column, np.ndarray) else type(column).__name__
            raise ContractViolation(
                f"{what}: {name!r} must be float64 ({count},), one value per nucleus; found {found}."
            )


def check_label_map(labels: NDArray[Any], what: str) -> int:
    """Check one (H, W) label map against the contract and return its number of objects.

    Raises
    ------
    ContractViolation
        If it is not int32, not two-dimensional, negative, or has gaps in its ids.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int32 or labels.ndim != 2:
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise ContractViolation(f"{what}: a label map must be an int32 array (height, width); found {found}.")
    if labels.size == 0:
        return 0
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ContractViolation(f"{what}: label ids must not be negative; found {low}.")
    if high > labels.size:
        raise ContractViolation(
            f"{what}: label ids must be 0..n without gaps; found id {high} in {labels.size} pixels."
        )
    seen = np.zeros(high + 1, bool)
    seen[labels.ravel()] = True
    if not seen[1:].all():
        missing = int(np.flatnonzero(~seen[1:])[0]) + 1
        raise ContractViolation(f"{what}: label ids must be 0..n without gaps; id {missing} of {high} is missing.")
    return high


def _check_mpp(mpp: float | None, name: str) -> None:
    if mpp is not None and not (np.isfinite(mpp) and mpp > 0):
        raise UnsupportedPicture(f"{name!r}: micrometres per pixel must be a positive number; found {mpp}.")
