"""Write pictures of any size as tiled TIFF, one tile in memory at a time, the same bytes every time."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.records import LabelSource

STEP_PX = 512
"""Side of a written tile, and of the windows of a pass over a picture."""

_FILE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:stainbridge:file")
_CLASSIC_BYTES = 3_500_000_000  # offsets of classic TIFF end at 4 GiB


def windows(shape: tuple[int, int], step_px: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield y, x, height, width of the windows that cover a picture, in reading order."""
    for y in range(0, shape[0], step_px):
        for x in range(0, shape[1], step_px):
            yield y, x, min(step_px, shape[0] - y), min(step_px, shape[1] - x)


def write_labels(path: Path, labels: LabelSource, largest: int, *, picture: str = "") -> None:
    """Write a label map as OME-TIFF: uint16 where the largest id fits, otherwise uint32; `picture` as in `write_tiff`."""
    dtype = np.uint16 if largest < 2**16 else np.uint32
    blocks = (labels.read(*window).astype(dtype) for window in windows(labels.shape, STEP_PX))
    write_tiff(path, blocks, shape=labels.shape, dtype=dtype, mpp=labels.mpp, picture=picture)


def write_tiff(
    path: Path,
    blocks: Iterable[NDArray[Any]],
    *,
    shape: tuple[int, ...],
    dtype: Any,
    mpp: float | None,
    picture: str = "",
) -> None:
    """Write an OME-TIFF, deflated, in tiles of `STEP_PX`.

    Parameters
    ----------
    blocks : the tiles in reading order, cut at the lower and right rim
    shape : (height, width) of one plane, or (height, width, 3) of RGB
    mpp : micrometres per pixel; None writes none
    picture : what tells the picture from others; goes into the UUID
    """
    import tifffile

    # tifffile would draw a random UUID; this one is the same for the same picture and file name.
    identity = uuid.uuid5(_FILE, f"{picture}/{path.name}")
    metadata: dict[str, Any] = {
        "axes": "YXS"[: len(shape)],
        "UUID": f"urn:uuid:{identity}",
    }
    metadata["Creator"] = "stainbridge"
    if mpp is not None:
        metadata |= {f"PhysicalSize{axis}": mpp for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    large = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize > _CLASSIC_BYTES
    with tifffile.TiffWriter(path, ome=True, bigtiff=large) as writer:
        writer.write(
            iter(blocks),
            shape=shape,
            dtype=dtype,
            tile=(STEP_PX, STEP_PX),
            photometric="rgb" if len(shape) == 3 else "minisblack",
            compression="zlib",
            predictor=len(shape) == 3,
            resolution=None if mpp is None else (1e4 / mpp, 1e4 / mpp),
            resolutionunit=None if mpp is None else "CENTIMETER",
            software="stainbridge",
            metadata=metadata,
            maxworkers=1,  # more would hold more tiles
        )
