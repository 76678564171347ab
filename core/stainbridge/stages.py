"""Call plugins: pad and batch what they are given, and check what they give back, once, at the border."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .capabilities import Batched, Calibrated, Deriving, Described, Describing, Streaming
from .errors import ContractViolation
from .interfaces import Kind, Plugin, PositivityClassifier, Segmenter, Translator, Wants
from .records import RGB, LabelMap, NucleusValues, Source, check_label_map, check_values
from .tiling import Tile, Window, up_to

CORE_PX = 1024
"""Side of a tile's core, in pixels at the plugin's scale, where neither plugin nor user names one."""

NUCLEUS_REACH_UM = 16.0
"""Least halo of a segmentation in micrometres: half the length of the longest nuclei."""

SAMPLE_SIDE_PX, SAMPLE_WINDOWS, SAMPLE_CANDIDATES = 512, 16, 64

P = TypeVar("P", bound=Plugin)


def translate(translator: Translator, batch: RGB) -> RGB:
    """Translate uint8 (N, H, W, 3); the plugin sees padded input, the caller does not.

    Raises
    ------
    ContractViolation
        If the plugin returns another shape or type.
    """
    height, width = batch.shape[1:3]
    padded = pad(batch, translator.wants)
    he = translator.translate(padded)
    if not isinstance(he, np.ndarray) or he.dtype != np.uint8 or he.shape != padded.shape:
        raise ContractViolation(
            f"Translator {translator.name!r} must return uint8 {padded.shape}; found {_describe(he)}."
        )
    return he[:, :height, :width]


class Segmented(NamedTuple):
    """The nuclei of one picture: int32 (H, W), ids 0..n without gaps, and what their segmenter told, float64 (n,) by name."""

    labels: LabelMap
    values: NucleusValues


def segment_each(segmenter: Segmenter, given: Iterable[RGB]) -> Iterator[list[Segmented]]:
    """Segment each batch of uint8 (N, H, W, 3) into the nuclei of N pictures, in the order of the batches.

    A segmenter that is `Streaming` is given batches ahead of its results.

    Raises
    ------
    ContractViolation
        If the plugin returns another shape or type, negative ids or ids with gaps, values that do not belong to the ids, or results
        that are not one per batch.
    """
    shapes: deque[tuple[int, ...]] = deque()

    def padded() -> Iterator[RGB]:
        for batch in given:
            shapes.append(batch.shape[:3])
            yield pad(batch, segmenter.wants)

    for found in _described(segmenter, padded()):
        if not shapes:
            raise ContractViolation(f"Segmenter {segmenter.name!r} gave more results than there were batches.")
        yield _checked(segmenter, found, shapes.popleft())
    if shapes:
        raise ContractViolation(
            f"Segmenter {segmenter.name!r} gave {len(shapes)} results less than there were batches."
        )


def _described(segmenter: Segmenter, given: Iterable[RGB]) -> Iterator[Described]:
    if isinstance(segmenter, Streaming):
        return segmenter.stream(given)
    if isinstance(segmenter, Describing):
        return map(segmenter.describe, given)
    return (Described(segmenter.segment(batch), [{} for _ in batch]) for batch in given)


def _checked(segmenter: Segmenter, found: Described, shape: tuple[int, ...]) -> list[Segmented]:
    """Check what was found in pictures of this shape (N, H, W) after padding, and cut the padding off."""
    who, (labels, values), (count, height, width) = f"Segmenter {segmenter.name!r}", found, shape
    padded = (count, *padded_sides((height, width), segmenter.wants))
    if not isinstance(labels, np.ndarray) or labels.shape != padded:
        raise ContractViolation(f"{who} must return int32 {padded}; found {_describe(labels)}.")
    if len(values) != count:
        raise ContractViolation(f"{who} must describe {count} pictures; found {len(values)}.")
    for one, its in zip(labels, values, strict=True):
        check_label_map(one, who)
        check_values(its, int(one.max(initial=0)), who)
    whole = [Segmented(*pair) for pair in zip(labels, values, strict=True)]
    return whole if padded == shape else [_cut_back(one, height, width) for one in whole]


def _cut_back(padded: Segmented, height: int, width: int) -> Segmented:
    """Return the nuclei of the upper left part; one that lies beyond it is gone."""
    labels = padded.labels[:height, :width]
    ids = np.unique(labels)
    rows = ids[ids > 0] - 1
    return Segmented(_without_gaps(labels), {name: column[rows] for name, column in padded.values.items()})


def classify(classifier: PositivityClassifier, ihc: RGB, labels: LabelMap, count: int) -> NDArray[np.float64]:
    """Return P(positive) float64 (count,) for int32 (H, W) `labels` with ids 0..count.

    Raises
    ------
    ContractViolation
        If the plugin returns another length or values outside [0, 1].
    """
    return _probabilities(classifier, classifier.classify(ihc, labels), count)


def derive(
    classifier: PositivityClassifier, segmenter: Segmenter, values: NucleusValues, count: int
) -> NDArray[np.float64] | None:
    """Return P(positive) float64 (count,) from what the segmenter told of its nuclei; None where it does not follow from that.

    Raises
    ------
    ContractViolation
        As `classify`.
    """
    if not isinstance(segmenter, Describing) or not isinstance(classifier, Deriving):
        return None
    if not classifier.derives_from(segmenter):
        return None
    return _probabilities(classifier, classifier.derive(values), count)


def _probabilities(classifier: Plugin, returned: object, count: int) -> NDArray[np.float64]:
    p = np.asarray(returned)
    what = f"Classifier {classifier.name!r} must return one probability in [0, 1] for each of {count} labels"
    if p.shape != (count,) or p.dtype.kind != "f":
        raise ContractViolation(f"{what}; found {_describe(p)}.")
    outside = p[~((p >= 0) & (p <= 1))]
    if outside.size:
        raise ContractViolation(f"{what}; found {outside.size} other values, such as {outside[0]}.")
    return p.astype(np.float64)


def check_wants(kind: Kind, plugin: Plugin) -> None:
    """Refuse what the pipeline does not give: a translator and a classifier are shown IHC, a classifier windows of any size.

    Raises
    ------
    ContractViolation
        If the plugin wants something else.
    """
    wants = plugin.wants
    if kind != "segmenter" and wants.stain != "ihc":
        raise ContractViolation(f"The {kind} {plugin.name!r} wants {wants.stain!r}; a {kind} is given 'ihc'.")
    if kind == "classifier" and (wants.tile is not None or wants.multiple_of != 1):
        raise ContractViolation(
            f"The classifier {plugin.name!r} wants tile {wants.tile} and multiples of {wants.multiple_of}; "
            "it is given windows as large as their nuclei, so it must take any size."
        )


def pad(batch: RGB, wants: Wants) -> RGB:
    """Mirror uint8 (N, H, W, 3) at its lower right up to the plugin's tile, or to a multiple of its `multiple_of`."""
    sides = batch.shape[1:3]
    extra = [wanted - side for wanted, side in zip(padded_sides(sides, wants), sides, strict=True)]
    if not any(extra):
        return batch
    return np.pad(batch, ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)), mode="symmetric")


def padded_sides(sides: tuple[int, ...], wants: Wants) -> tuple[int, ...]:
    """Return (height, width) as the plugin takes them: its tile, or the next multiples of its `multiple_of`."""
    return tuple(wants.tile or up_to(side, wants.multiple_of) for side in sides)


def layout(plugin: Plugin, source: Source, *, core_px: int | None, least_halo_px: int = 0) -> tuple[int, int]:
    """Return (core, halo) in pixels for a tiled pass of `plugin` over `source`."""
    wants = plugin.wants
    halo = max(wants.halo, least_halo_px)
    if wants.tile is None:
        return core_px or CORE_PX, halo
    if wants.tile - 2 * halo < wants.tile // 4:
        halo = wants.halo
    if max(source.shape) <= wants.tile:
        return wants.tile, halo
    return wants.tile - 2 * halo, halo


def batches(plugin: Plugin, grid: Sequence[Tile]) -> Iterator[list[Tile]]:
    """Group consecutive tiles of one size into batches that the plugin takes at once."""
    size = plugin.batch_size if isinstance(plugin, Batched) else 1
    for _, group in groupby(grid, key=lambda tile: (tile.outer.height, tile.outer.width)):
        while batch := list(islice(group, size)):
            yield batch


def read_all(source: Source, windows: Sequence[Window]) -> RGB:
    """Read windows of one size as uint8 (N, H, W, 3)."""
    return np.stack([source.read(w.y, w.x, w.height, w.width) for w in windows])


def calibrated(plugin: P, source: Source) -> P:
    """Return the plugin fitted to the picture, if it has anything to fit."""
    if not isinstance(plugin, Calibrated):
        return plugin
    return plugin.calibrate(read_all(source, sample_windows(source)))


def sample_windows(source: Source) -> list[Window]:
    """Choose windows that stand for the whole picture.

    A picture of up to 16 windows of 512 px is taken whole. From a larger one come the 16 darkest of an 8 x 8 grid of probes: tissue
    absorbs light, glass does not.
    """
    height, width = source.shape
    side = SAMPLE_SIDE_PX
    if height * width <= SAMPLE_WINDOWS * side * side:
        return [Window(0, 0, height, width)]
    per_axis = round(SAMPLE_CANDIDATES**0.5)
    h, w = min(side, height), min(side, width)
    tops = np.linspace(0, height - h, per_axis).astype(int)
    lefts = np.linspace(0, width - w, per_axis).astype(int)
    candidates = sorted({(int(y), int(x)) for y in tops for x in lefts})
    probe_h, probe_w = max(1, h // 8), max(1, w // 8)
    means = [
        source.read(y + (h - probe_h) // 2, x + (w - probe_w) // 2, probe_h, probe_w).mean() for y, x in candidates
    ]
    chosen = sorted(np.argsort(means, kind="stable")[:SAMPLE_WINDOWS].tolist())
    return [Window(y, x, h, w) for y, x in (candidates[index] for index in chosen)]


def _without_gaps(labels: LabelMap) -> LabelMap:
    ids, inverse = np.unique(labels, return_inverse=True)
    shift = 0 if ids[0] == 0 else 1
    return (inverse.reshape(labels.shape) + shift).astype(np.int32)


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
