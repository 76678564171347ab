"""The nine networks together: a tile of IHC becomes one segmentation, and the picture of the marker."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stainbridge import RGB
from stainbridge.errors import ContractViolation
from stainbridge.torchkit import autocast, import_torch, in_batches, resolve_device

from .files import MARKER, SEGMENTATIONS, STAIN_OF, ModelFiles
from .networks import TILE_PX, set_dropout
from .rules_current import brightness
from .settings import NetworkSettings, SegWeights

if TYPE_CHECKING:
    import torch

Pictures: TypeAlias = NDArray[np.uint8]
"""uint8 (..., H, W, 4): red, green and blue of the segmentation, and the brightness of the marker, 0 where it is not made."""

_EMPTY = (0, 0, 0, 10)
_LEAST_VARIANCE = 9.0


class Ensemble:
    """The networks on one device.

    Parameters
    ----------
    files : of the model
    shares : of each segmentation in the sum; networks that the sum does not need are neither loaded nor run
    settings : how they are run
    device : "cpu", "cuda" or "cuda:N"

    Raises
    ------
    WeightsCorrupt, WeightsUnavailable
        From the files.
    DeviceUnavailable
        If there is no such device, or the precision is not for it.
    """

    def __init__(self, files: ModelFiles, shares: SegWeights, settings: NetworkSettings, device: str) -> None:
        torch = import_torch("DeepLIIF")
        self._settings, self._device = settings, resolve_device(device)
        with autocast(self._device, settings.precision):  # refuses now what it would refuse at the first tile
            pass
        on_gpu = self._device.type == "cuda"
        self._order = torch.channels_last if on_gpu else torch.contiguous_format
        self._at_once = settings.batch_size if on_gpu and not settings.dropout else 1
        self._shares = {name: share for name, share in zip(SEGMENTATIONS, shares, strict=True) if share > 0}
        own = settings.batch_norm == "batch"
        self._networks: dict[str, torch.nn.Module] = {}
        for name in files.by_network:
            network = files.network(name, own_statistics=own).to(self._device, memory_format=self._order)
            set_dropout(network, settings.dropout)
            self._networks[name] = network

    def __call__(self, tiles: RGB) -> Pictures:
        """Return the pictures of uint8 (N, 512, 512, 3) IHC; a tile gives the same whatever else is in the batch.

        Raises
        ------
        DeviceUnavailable
            If one tile does not fit into the memory of the device.
        ContractViolation
            If the networks give values that are not finite.
        """
        pictures = np.full((*tiles.shape[:3], 4), _EMPTY, np.uint8)
        seen = [i for i, tile in enumerate(tiles) if not (self._settings.skips_empty and is_empty(tile))]
        if seen:
            pictures[seen] = in_batches(self._run, tiles[seen], self._at_once)
        return pictures

    def _run(self, tiles: RGB) -> Pictures:
        torch = import_torch("DeepLIIF")
        with torch.inference_mode(), autocast(self._device, self._settings.precision), self._chance(tiles):
            pixels = torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))).to(self._device)
            ihc = ((pixels.float() / 255 - 0.5) / 0.5).contiguous(memory_format=self._order)
            seg, marker = self._summed(ihc)
        if not all(bool(one.isfinite().all()) for one in (seg, marker) if one is not None):
            raise ContractViolation(
                f"DeepLIIF gave values that are not finite, in {self._settings.precision}.\n"
                "Set precision = 'fp32'; if it is that already, the weights are no good."
            )
        pictures = np.zeros((*tiles.shape[:3], 4), np.uint8)
        pictures[..., :3] = _as_picture(seg)
        if marker is not None:
            pictures[..., 3] = brightness(_as_picture(marker))
        return pictures

    def _summed(self, ihc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        seg, marker = None, None
        for name, share in self._shares.items():
            given = ihc if name not in STAIN_OF else self._networks[STAIN_OF[name]](ihc)
            if STAIN_OF.get(name) == MARKER:
                marker = given
            part = self._networks[name](given).float() * share
            seg = part if seg is None else seg + part
        assert seg is not None  # five shares have the sum 1
        return seg, marker

    @contextmanager
    def _chance(self, tiles: RGB) -> Iterator[None]:
        """Let dropout follow from the seed and the tile, and chance go on as before afterwards."""
        if not self._settings.dropout:
            yield
            return
        torch = import_torch("DeepLIIF")
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(zlib.crc32(np.ascontiguousarray(tiles), self._settings.seed & 0xFFFFFFFF))
            yield


def is_empty(tile: RGB) -> bool:
    """Return whether a tile is of even colour: the variance of its grey, black and white left out, is under 9."""
    grey = brightness(tile)
    inner = grey[(grey != 0) & (grey != 255)]
    return bool(inner.size == 0 or inner.var() < _LEAST_VARIANCE)


def to_tile(pixels: RGB) -> RGB:
    """Mirror uint8 (H, W, 3) of up to 512 x 512 px at its lower right to a whole tile."""
    extra = [TILE_PX - side for side in pixels.shape[:2]]
    return np.pad(pixels, ((0, extra[0]), (0, extra[1]), (0, 0)), mode="symmetric") if any(extra) else pixels


def _as_picture(output: torch.Tensor) -> RGB:
    """Return uint8 (N, H, W, 3) for float (N, 3, H, W) in [-1, 1]; fractions are cut off."""
    picture: RGB = ((output.float() + 1) / 2 * 255).to("cpu").numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    return picture
