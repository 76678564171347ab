"""CycleGAN's learning rate over the epochs. Source: `linear` of the original's models/networks.py and its order of calls in train.py."""

from __future__ import annotations


def share(epoch: int, *, constant: int, decay: int, legacy: bool = False) -> float:
    """Return the share of the learning rate that an epoch trains with, in [0, 1].

    Parameters
    ----------
    epoch : from 1
    constant : epochs at the full rate
    decay : epochs after them, over which the rate falls in equal steps
    legacy : steps the schedule before the first epoch as the original does: all is one epoch early, and the last epoch learns nothing
    """
    late = epoch - constant + (1 if legacy else 0)
    return max(0.0, 1.0 - max(0, late) / (decay + 1))
