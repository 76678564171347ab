"""U-GAT-IT's losses (Kim et al. 2020, equations 2-5; least squares, weights and sums as in the original's PyTorch code)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def adversarial(judged: tuple[torch.Tensor, ...], *, real: bool) -> torch.Tensor:
    """Return how far a discriminator's values and logits are from 1 for real, from 0 for fake: the sum of both mean squares.

    Parameters
    ----------
    judged : values (N, 1, h, w) and logits (N, 2), and whatever else a discriminator returns
    """
    import torch

    values, logits = judged[:2]
    return sum(
        (torch.nn.functional.mse_loss(one, torch.full_like(one, float(real))) for one in (values, logits)),
        torch.zeros((), device=values.device),
    )


def attention(translated: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return how badly a generator tells its source stain from its target stain.

    Parameters
    ----------
    translated : logits (N, 2) of pictures of the source stain, which should be called 1
    kept : logits (N, 2) of pictures of the target stain, which should be called 0
    """
    import torch

    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    found: torch.Tensor = entropy(translated, torch.ones_like(translated)) + entropy(kept, torch.zeros_like(kept))
    return found
