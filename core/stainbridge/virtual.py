"""Virtual H&E of a whole picture, translated tile by tile when it is read."""

from __future__ import annotations

from itertools import product

import numpy as np

from .interfaces import Translator
from .records import RGB, Source
from .stages import batches, layout, read_all, translate
from .tiling import Blended, Canvas, Tile, tiles, up_to


class Translated:
    """The virtual H&E of a source; a `Source` whose tiles are translated when first read, on one grid for the whole picture.

    Parameters
    ----------
    source : IHC at the translator's scale
    translator : already fitted to the picture
    core_px : side of a tile's core where the translator takes any size
    """

    def __init__(self, source: Source, translator: Translator, *, core_px: int | None = None) -> None:
        self.source, self.translator = source, translator
        wants = translator.wants
        # A network that halves its input sees other pixels together where a tile starts between two multiples.
        step = wants.multiple_of if wants.tile is None else 1
        core, halo = (up_to(length, step) for length in layout(translator, source, core_px=core_px))
        grid = tiles(source.shape, core, halo, multiple_of=step)
        self._core, self._halo = core, halo
        self._blend = min(wants.blend, core // 2) if len(grid) > 1 else 0
        self._tiles = {(t.core.y // core, t.core.x // core): t for t in grid}
        self._done: set[tuple[int, int]] = set()
        shape = (*source.shape, 3)
        self._canvas = Blended(shape, self._blend) if self._blend else Canvas(shape, np.uint8)

    @property
    def name(self) -> str:
        """Name of the picture."""
        return self.source.name

    @property
    def core_px(self) -> int:
        """Side of a tile's core, where neighbouring tiles meet."""
        return self._core

    @property
    def halo_px(self) -> int:
        """Context of a tile that is cut off or blended, on each side."""
        return self._halo

    @property
    def blend_px(self) -> int:
        """Pixels on either side of a border between cores over which tiles fade into one another; 0 for a hard border."""
        return self._blend

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels at the translator's scale."""
        return self.source.shape

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel."""
        return self.source.mpp

    def read(self, y: int, x: int, height: int, width: int) -> RGB:
        """Return the window of virtual H&E as uint8 (height, width, 3)."""
        touching = product(self._touching(y, height), self._touching(x, width))
        missing = [key for key in touching if key in self._tiles and key not in self._done]
        for batch in batches(self.translator, [self._tiles[key] for key in missing]):
            self._paint(batch)
        return self._canvas.read(y, x, height, width)

    def _touching(self, start: int, length: int) -> range:
        """Return the rows or columns of tiles that contribute to a stretch of the picture; some may lie outside it."""
        return range((start - self._blend) // self._core, (start + length - 1 + self._blend) // self._core + 1)

    def _paint(self, batch: list[Tile]) -> None:
        he = translate(self.translator, read_all(self.source, [tile.outer for tile in batch]))
        for tile, pixels in zip(batch, he, strict=True):
            if isinstance(self._canvas, Blended):
                self._canvas.add(tile, pixels)
            else:
                self._canvas.write(tile.core.y, tile.core.x, pixels[tile.core.relative_to(tile.outer).slices])
            self._done.add((tile.core.y // self._core, tile.core.x // self._core))
