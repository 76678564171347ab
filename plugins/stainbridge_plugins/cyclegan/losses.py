"""CycleGAN's losses (Zhu et al. 2017, equations 1-3; least squares and the weight of identity as in the original's code)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def adversarial(judged: torch.Tensor, *, real: bool) -> torch.Tensor:
    """Return the mean squared distance of a discriminator's values (N, 1, h, w) from 1 for real, from 0 for fake."""
    import torch

    return torch.nn.functional.mse_loss(judged, torch.full_like(judged, float(real)))


def discrimination(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return what a discriminator wants small, from its values for real and for fake pictures."""
    return 0.5 * (adversarial(real, real=True) + adversarial(fake, real=False))
