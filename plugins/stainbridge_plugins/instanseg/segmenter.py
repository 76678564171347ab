"""The InstanSeg segmenter. Source: Goldsborough et al., arXiv 2408.15954; model zoo of github.com/instanseg/instanseg."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stainbridge import RGB, LabelMap, PluginConfig, Segmenter, Wants
from stainbridge.errors import ConfigError, WeightsUnavailable
from stainbridge.torchkit import Precision, autocast, import_torch, in_batches, resolve_device

from .scaling import Colour, darkest_and_brightest, scaled

FILE = "instanseg.pt"
"""Name of the network's file in the registry."""

# The network halves its input three times and wants room for it.
_MULTIPLE = 16
# Of 83 nuclei of real H&E at 40 px or more from a window's rim, all are the same (IoU 0.9) in a larger window; nearer, some merge.
_HALO_PX = 48


class InstanSeg(Segmenter):
    """Finds nuclei with a network that embeds pixels and a small classifier that groups them around seeds.

    The whole method, grouping included, is in one TorchScript file; its labels are exactly what that file gives. Percentiles for
    the scaling of the input belong to the picture when it is calibrated, and to each image by itself when it is not.
    """

    name = "instanseg"
    api = 1

    class Config(PluginConfig):
        """Scaling of the input, and the parameters of InstanSeg's grouping with the network's own values as defaults."""

        path: Path | None = Field(
            None, description="another InstanSeg TorchScript of 3 channels; it is a program: name only a file you trust"
        )
        scaling: Literal["picture", "tile"] = Field(
            "picture", description="percentiles of the whole picture, or of every tile by itself as InstanSeg does"
        )
        low: Colour | None = Field(None, description="0.1th percentiles, 0..255; calibration sets them")
        high: Colour | None = Field(None, description="99.9th percentiles, 0..255; calibration sets them")
        least_range: float = Field(
            50.0, gt=0, le=255, description="grey levels; a channel of less contrast is not stretched to full contrast"
        )
        seed_threshold: float = Field(0.7, ge=0, le=1, description="a nucleus starts where its centre is this certain")
        peak_distance: int = Field(5, ge=1, le=50, description="least distance of two seeds in pixels")
        mask_threshold: float = Field(0.53, ge=0, le=1, description="a pixel belongs to a nucleus from this value up")
        overlap_threshold: float = Field(0.3, ge=0, le=1, description="two nuclei that overlap by more are one")
        window_size: int = Field(32, ge=8, le=128, description="how far a nucleus may reach from its seed in pixels")
        cleanup_fragments: bool = Field(True, description="keep only the part that holds the seed, and fill its holes")
        batch_size: int = Field(4, ge=1, le=64, description="tiles at once on a GPU; a CPU takes one")
        precision: Precision = Field("fp32", description="bf16 where the device has it, fp16 on CUDA only")

    def __init__(self, config: Config | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        import_torch(f"segmenter {self.name!r}")
        self._device = resolve_device(self.device)
        autocast(self._device, self.config.precision)  # refuses now what it would refuse at the first tile
        if self.config.path is not None:
            self.weights = {FILE: self.config.path}
        if FILE not in self.weights:
            raise WeightsUnavailable(
                f"segmenter {self.name!r} has no network: {FILE!r} was not given.\n"
                "Ask for a model: --segmenter instanseg/brightfield (see: stainbridge models list), "
                "or name a TorchScript file: --set segmenter.path=FILE"
            )
        self._network = _loaded(self.weights[FILE], self.device)

    @property
    def wants(self) -> Wants:
        """H&E at the scale that the network was trained at."""
        return Wants(stain="he", mpp=float(self._network.pixel_size), halo=_HALO_PX, multiple_of=_MULTIPLE)

    @property
    def batch_size(self) -> int:
        """Tiles at once: those of the configuration on a GPU, 1 on a CPU."""
        return 1 if self._device.type == "cpu" else int(self.config.batch_size)

    def calibrate(self, sample: RGB) -> Self:
        """Return a copy that scales by the percentiles of one picture, uint8 (N, H, W, 3); with scaling "tile" as it is."""
        fitted = copy.copy(self)
        if self.config.scaling == "picture":
            low, high = darkest_and_brightest(sample)
            fitted.config = self.config.model_copy(update={"low": low, "high": high})
        return fitted

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) H&E into int32 (N, H, W), ids 0..n without gaps per image."""
        return in_batches(self._segment, batch, self.batch_size)

    def _segment(self, batch: RGB) -> LabelMap:
        torch = import_torch(self.name)
        height, width = batch.shape[1:3]
        pixels = np.stack([self._scaled(image) for image in _with_room(batch, 2 * self.config.window_size)])
        with warnings.catch_warnings(), torch.inference_mode(), autocast(self._device, self.config.precision):
            # The network's own use of sparse tensors is not the user's concern.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            found = self._network(torch.from_numpy(pixels).to(self._device), **self._grouping())
        labels = found[:, 0, :height, :width].to("cpu", torch.int32).numpy()
        return np.stack([_without_gaps(one) for one in labels])

    def _scaled(self, image: RGB) -> NDArray[np.float32]:
        low, high = self.config.low, self.config.high
        if low is None or high is None or self.config.scaling == "tile":
            low, high = darkest_and_brightest(image)
        return scaled(image, low, high, least_range=self.config.least_range)

    def _grouping(self) -> dict[str, Any]:
        return self.config.model_dump(
            include={
                "seed_threshold",
                "peak_distance",
                "mask_threshold",
                "overlap_threshold",
                "window_size",
                "cleanup_fragments",
            }
        )


def _loaded(path: Path, device: str) -> Any:
    """Load a network and check that it is InstanSeg's, for three channels and nuclei alone.

    Raises ConfigError where it is another one; WeightsUnavailable and WeightsCorrupt from the weight store.
    """
    from stainbridge.weights import load_torchscript

    network = load_torchscript(path, device=device)
    pixel_size = getattr(network, "pixel_size", None)
    if pixel_size is None or not hasattr(network, "default_seed_threshold"):
        raise ConfigError(
            f"{path.name!r} is a TorchScript, but not one of InstanSeg: it has no pixel size and no seed threshold.\n"
            "Ask for instanseg/brightfield, or export the network with InstanSeg's own script."
        )
    if not pixel_size > 0:  # not a number where a network takes any scale
        raise ConfigError(
            f"{path.name!r} states no pixel size ({pixel_size}); the segmenter needs one. Export it anew."
        )
    channels = next(value.shape[1] for value in network.parameters() if value.ndim == 4)
    if network.cells_and_nuclei or channels != 3:
        finds = "cells and nuclei" if network.cells_and_nuclei else "nuclei"
        raise ConfigError(
            f"{path.name!r} finds {finds} in {channels}-channel pictures; H&E needs a network for nuclei in RGB.\n"
            "Ask for instanseg/brightfield."
        )
    return network


def _with_room(batch: RGB, least_px: int) -> RGB:
    """Mirror uint8 (N, H, W, 3) at its lower right up to `least_px`: the network looks at windows of that side."""
    extra = [max(0, -(-least_px // _MULTIPLE) * _MULTIPLE - side) for side in batch.shape[1:3]]
    return np.pad(batch, ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)), mode="symmetric") if any(extra) else batch


def _without_gaps(labels: LabelMap) -> LabelMap:
    used = np.bincount(labels.ravel(), minlength=1) > 0
    used[0] = False
    return (np.cumsum(used) * used).astype(np.int32)[labels]
