"""Stitch 64 tiles of 512 px with a 64 px halo into 4096 x 4096 px with 20,000 nuclei, and against two other ways.

The peers: polygons of the border cells matched through an STRtree, cell by cell (the way of CellViT, on shapely 2), and connected
components of the binary mask in 512 px blocks joined at their faces (dask-image). Run: python benchmarks/speed/stitching.py
Needs: shapely, dask-image.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write

from stainbridge.stages import _without_gaps
from stainbridge.stitching import Stitcher
from stainbridge.testing.synthetic import synthetic_labels
from stainbridge.tiling import Canvas, tiles

SIDE, NUCLEI, CORE, HALO = 4096, 20_000, 512, 64


def ours(grid, pieces):
    """Centroid ownership; returns the number of nuclei and the map."""
    stitcher = Stitcher(Canvas((SIDE, SIDE), np.int32))
    for tile, piece in zip(grid, pieces, strict=True):
        stitcher.add(piece, tile)
    stitcher.finish()
    return len(stitcher), stitcher.canvas


def outlines(grid, pieces):
    """Return per tile the outline of every cell as a polygon in the coordinates of the picture: the peer's input."""
    import shapely
    from skimage.measure import find_contours

    found = []
    for tile, piece in zip(grid, pieces, strict=True):
        origin = np.array([tile.outer.y, tile.outer.x])
        cells = []
        for label, (rows, columns) in enumerate(ndimage.find_objects(piece), start=1):
            mask = np.pad(piece[rows, columns] == label, 1)
            ring = max(find_contours(mask, 0.5), key=len) - 1 + origin + (rows.start, columns.start)
            cells.append(shapely.Polygon(ring[:, ::-1]))
        found.append(cells)
    return found


def strtree(grid, cells):
    """Match the cells of the margins by overlap, one cell at a time; returns the number of nuclei."""
    import shapely

    margin, kept = [], 0
    for tile, polygons in zip(grid, cells, strict=True):
        left, top = tile.core.x + HALO, tile.core.y + HALO
        right, bottom = tile.core.x + tile.core.width - HALO, tile.core.y + tile.core.height - HALO
        for polygon in polygons:
            x0, y0, x1, y1 = polygon.bounds
            if x0 >= left and y0 >= top and x1 <= right and y1 <= bottom:
                kept += 1
            else:
                margin.append(polygon)
    tree, taken = shapely.STRtree(margin), set()
    for index, cell in enumerate(margin):
        if index in taken:
            continue
        kept += 1
        for other in tree.query(cell):
            if other > index and other not in taken:
                both = cell.intersection(margin[other]).area
                if both > 0.5 * min(cell.area, margin[other].area):
                    taken.add(int(other))
    return kept


def dask_label(mask):
    """Label the binary mask block by block."""
    import dask
    import dask.array
    import dask_image.ndmeasure

    with dask.config.set(scheduler="synchronous"):
        labels, count = dask_image.ndmeasure.label(dask.array.from_array(mask, chunks=CORE))
        labels.compute()
        return int(count.compute())


def main() -> None:
    """Print the ratios and write them to results."""
    whole = synthetic_labels((SIDE, SIDE), NUCLEI, rng=0, mpp=0.5).array
    grid = tiles(whole.shape, CORE, HALO)
    pieces = [_without_gaps(whole[tile.outer.slices]) for tile in grid]
    count, canvas = ours(grid, pieces)
    found = np.asarray(canvas)
    pairs = np.unique(np.stack([found.ravel(), whole.ravel()]), axis=1)
    exact = bool(pairs.shape[1] == NUCLEI + 1 and np.array_equal(found > 0, whole > 0))
    cells = outlines(grid, pieces)
    seconds = medians({"ours": lambda: ours(grid, pieces), "strtree": lambda: strtree(grid, cells)}, repeats=5)
    start = time.perf_counter()
    dask_label(whole > 0)
    seconds["dask_image"] = time.perf_counter() - start
    figures = {
        "nuclei": count,
        "identical to the whole": exact,
        "seconds": seconds,
        "strtree / ours": seconds["strtree"] / seconds["ours"],
        "dask-image / ours": seconds["dask_image"] / seconds["ours"],
        "nuclei by strtree": strtree(grid, cells),
    }
    print(figures)
    print(write("stitching", "python benchmarks/speed/stitching.py", figures, "shapely", "dask-image", "scipy"))


if __name__ == "__main__":
    main()
