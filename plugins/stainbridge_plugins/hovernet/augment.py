"""Change the look of H&E pictures as scanners and laboratories do; nuclei stay where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stainbridge.torchkit import import_torch

if TYPE_CHECKING:
    import torch

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE_DEGREES = 26.0, 0.25, 0.2, 16.0
_NOISE, _BLUR_SIGMA_PX = 12.75, (0.3, 1.2)


def recoloured(pixels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return float32 (N, 3, H, W), 0..255, each picture with a look of its own.

    Brightness by up to 26 grey levels, contrast by 25 %, saturation by 20 %, hue by 16 degrees around the grey axis, and then one of:
    blur, noise, neither. Ranges are those of the original (dataloader/train_loader.py), where contrast changes nothing by mistake.

    Parameters
    ----------
    rng : of the CPU; the numbers drawn do not depend on the device
    """
    drawn = _Drawn(rng, len(pixels), pixels)
    x = _rotated(pixels, drawn.between(-_HUE_DEGREES, _HUE_DEGREES))
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * drawn.between(1 - _SATURATION, 1 + _SATURATION)
    level = x.mean(dim=(1, 2, 3), keepdim=True)
    x = level + (x - level) * drawn.between(1 - _CONTRAST, 1 + _CONTRAST)
    x = x + drawn.between(-_BRIGHTNESS, _BRIGHTNESS)
    choice = drawn.between(0, 3)
    noisy = x + drawn.noise() * drawn.between(0, _NOISE)
    blurred = _blurred(x, drawn.between(*_BLUR_SIGMA_PX))
    return x.where(choice < 1, noisy.where(choice < 2, blurred)).clamp(0, 255)


class _Drawn:
    """Random numbers, one for each picture of a batch, on its device."""

    def __init__(self, rng: torch.Generator, count: int, like: torch.Tensor) -> None:
        self._rng, self._count, self._like = rng, count, like
        self._torch = import_torch("hovernet")

    def between(self, low: float, high: float) -> torch.Tensor:
        drawn = self._torch.rand(self._count, 1, 1, 1, generator=self._rng)
        found: torch.Tensor = (low + (high - low) * drawn).to(self._like)
        return found

    def noise(self) -> torch.Tensor:
        found: torch.Tensor = self._torch.randn(self._like.shape, generator=self._rng).to(self._like)
        return found


def _rotated(x: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Turn colours around the grey axis (Rodrigues' formula)."""
    angle = degrees * (3.141592653589793 / 180)
    grey = x.mean(dim=1, keepdim=True)
    across = (x.roll(1, dims=1) - x.roll(-1, dims=1)) / 3**0.5
    return grey + (x - grey) * angle.cos() + across * angle.sin()


def _blurred(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each picture with a Gaussian of its own, cut off at 2 px."""
    torch = import_torch("hovernet")
    steps = torch.arange(-2, 3, dtype=x.dtype, device=x.device)
    weights = torch.exp(-(steps**2) / (2 * sigma.flatten()[:, None] ** 2))
    weights = weights / weights.sum(dim=1, keepdim=True)
    count, channels, height, width = x.shape
    kernel = weights.repeat_interleave(channels, dim=0)[:, None]
    flat = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect").reshape(1, -1, height + 4, width + 4)
    flat = torch.nn.functional.conv2d(flat, kernel[..., None], groups=count * channels)
    flat = torch.nn.functional.conv2d(flat, kernel[..., None, :], groups=count * channels)
    return flat.reshape(count, channels, height, width)
