"""Fields of view that an epoch is judged by: drawn once by seed, where there is tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..records import Image, Labels, Sample, Source
from ..scale import Restated, rescale
from ..tiling import Window
from .domain import TISSUE_SHARE, tissue_share

_TRIES = 48
_PROBE = 4  # a try reads the middle of a field, this fraction of its side


def draw_fields(sources: Sequence[Source], count: int, *, side_px: int, mpp: float, seed: int) -> tuple[Image, ...]:
    """Draw fields with tissue, from as many pictures as possible, none overlapping another.

    Parameters
    ----------
    sources : pictures or slides; one without a scale is taken to be at `mpp`
    count : fields wanted; fewer are returned where there is no room for more
    side_px : of a field, in pixels at `mpp`; of a smaller picture all is taken
    mpp : micrometres per pixel of the fields
    seed : the same seed draws the same fields

    Returns
    -------
    Images at `mpp`, named by their picture and corner; none only where there are no sources.
    """
    rng = np.random.default_rng(seed)
    views = [rescale(one if one.mpp else Restated(one, mpp), mpp) for one in sources]
    taken: list[list[Window]] = [[] for _ in views]
    found: list[tuple[float, Image]] = []
    order = [int(index) for index in rng.permutation(len(views))]
    while len(found) < count and order:
        for index in order[: count - len(found)]:
            window = _draw(views[index], taken[index], side_px, rng)
            if window is None:
                order.remove(index)
                continue
            taken[index].append(window)
            field = _read(views[index], window, mpp)
            found.append((float(tissue_share(field.pixels)), field))
    with_tissue = [field for share, field in found if share >= TISSUE_SHARE]
    return tuple(with_tissue or [field for _, field in found])


def labelled_fields(samples: Sequence[Sample], count: int, *, side_px: int, seed: int) -> tuple[Sample, ...]:
    """Draw up to `count` pictures with truth; of one that is larger than `side_px`, the square with the most nuclear pixels of some.

    The truth of a cut picture is cut too, and its ids are made gapless.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(samples))[:count]
    return tuple(_cut(samples[int(index)], side_px, rng) for index in order)


def _draw(view: Source, taken: Sequence[Window], side_px: int, rng: np.random.Generator) -> Window | None:
    """Return the window with the most tissue in its middle, of some that do not overlap those taken."""
    height, width = (min(side_px, side) for side in view.shape)
    room = (view.shape[0] - height + 1, view.shape[1] - width + 1)
    corners = rng.integers((0, 0), room, size=(1 if room == (1, 1) else _TRIES, 2))
    free = [Window(int(y), int(x), height, width) for y, x in corners]
    free = [one for one in free if not any(_overlap(one, other) for other in taken)]
    if not free:
        return None
    # Of equals the first, which is a random one: most fields of a dense tissue are full of it.
    return max(free, key=lambda window: min(_probe(view, window), 0.75))


def _probe(view: Source, window: Window) -> float:
    h, w = (max(1, side // _PROBE) for side in (window.height, window.width))
    middle = view.read(window.y + (window.height - h) // 2, window.x + (window.width - w) // 2, h, w)
    return float(tissue_share(middle))


def _overlap(a: Window, b: Window) -> bool:
    return abs(a.y - b.y) < a.height and abs(a.x - b.x) < a.width


def _read(view: Source, window: Window, mpp: float) -> Image:
    pixels = view.read(window.y, window.x, window.height, window.width)
    return Image(np.ascontiguousarray(pixels), mpp, f"{view.name} y{window.y} x{window.x}")


def _cut(sample: Sample, side_px: int, rng: np.random.Generator) -> Sample:
    height, width = (min(side_px, side) for side in sample.source.shape)
    room = (sample.source.shape[0] - height + 1, sample.source.shape[1] - width + 1)
    if room == (1, 1):
        return sample
    corners = rng.integers((0, 0), room, size=(_TRIES, 2))
    windows = [Window(int(y), int(x), height, width) for y, x in corners]
    best = max(windows, key=lambda window: np.count_nonzero(sample.truth.array[window.slices]))
    truth = np.unique(np.append(0, sample.truth.array[best.slices].ravel()), return_inverse=True)[1][1:]
    labels = Labels(truth.reshape(height, width).astype(np.int32), sample.truth.mpp)
    pixels = sample.source.read(best.y, best.x, height, width)
    return Sample(Image(pixels, sample.source.mpp, f"{sample.source.name} y{best.y} x{best.x}"), labels)
