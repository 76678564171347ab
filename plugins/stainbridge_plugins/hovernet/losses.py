"""The losses of HoVer-Net, each of weight 1. Source: models/hovernet/utils.py of the original; Graham et al. 2019, section 3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from stainbridge.torchkit import import_torch

if TYPE_CHECKING:
    import torch

Axes: TypeAlias = Literal["original", "along"]
"""Derivatives that the gradient loss compares: across each map's own axis, as the original's kernels do, or along it."""

_LEAST = 10e-8
_SMOOTH = 1e-3


def cross_entropy(probabilities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the mean over pixels of the cross-entropy of float (N, C, H, W) and one-hot float of that shape."""
    clamped = probabilities.clamp(_LEAST, 1 - _LEAST)
    return -(truth * clamped.log()).sum(dim=1).mean()


def dice(probabilities: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return 1 - Dice of float (N, C, H, W) and one-hot float, over batch and pixels, summed over the channels."""
    shared = (probabilities * truth).sum(dim=(0, 2, 3))
    total = probabilities.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    return (1 - (2 * shared + _SMOOTH) / (total + _SMOOTH)).sum()


def gradient_error(hv: torch.Tensor, truth: torch.Tensor, nuclear: torch.Tensor, *, axes: Axes) -> torch.Tensor:
    """Return the squared error of the gradients of the distance maps inside nuclei.

    Parameters
    ----------
    hv, truth : float32 (N, 2, H, W): horizontal, vertical
    nuclear : bool (N, H, W)
    axes : the original means to differentiate each map along its own axis, but its kernels are transposed
    """
    torch = import_torch("hovernet")
    along_rows = _kernel(hv)
    kernels = [along_rows, along_rows.T] if axes == "original" else [along_rows.T, along_rows]
    stacked = torch.stack(kernels)[:, None]
    gradients = torch.nn.functional.conv2d(hv - truth, stacked, padding=2, groups=2)
    inside = nuclear[:, None].float()
    return (inside * gradients**2).sum() / (2 * inside.sum() + 1e-8)


def total(
    maps: dict[str, torch.Tensor],
    hv: torch.Tensor,
    nuclear: torch.Tensor,
    types: torch.Tensor | None,
    *,
    axes: Axes = "original",
) -> dict[str, torch.Tensor]:
    """Return every loss by name, and their sum as "loss".

    Parameters
    ----------
    maps : the network's output: "np" and "tp" logits, "hv" distances, float (N, C, h, w)
    hv : float32 (N, 2, h, w), true distances
    nuclear : bool (N, h, w)
    types : int64 (N, h, w), or None for a network without types
    """
    torch = import_torch("hovernet")
    predicted = maps["hv"].float()
    losses = {
        **_classes("np", maps["np"], nuclear.long()),
        "hv_mse": torch.nn.functional.mse_loss(predicted, hv),
        "hv_gradient": gradient_error(predicted, hv, nuclear, axes=axes),
    }
    if types is not None:
        losses |= _classes("tp", maps["tp"], types)
    return losses | {"loss": torch.stack(list(losses.values())).sum()}


def _classes(name: str, logits: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    torch = import_torch("hovernet")
    probabilities = logits.float().softmax(dim=1)
    wanted = torch.nn.functional.one_hot(truth, logits.shape[1]).permute(0, 3, 1, 2).float()
    return {f"{name}_entropy": cross_entropy(probabilities, wanted), f"{name}_dice": dice(probabilities, wanted)}


def _kernel(like: torch.Tensor) -> torch.Tensor:
    """Return the 5 x 5 kernel a / (a^2 + b^2), whose a runs along the rows' index (from top to bottom)."""
    torch = import_torch("hovernet")
    steps = torch.arange(-2, 3, dtype=like.dtype, device=like.device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    kernel: torch.Tensor = down / (down**2 + right**2 + 1e-15)
    return kernel
