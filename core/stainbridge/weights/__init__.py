"""Weight files: fetch them from several sources into a checked cache, and load them without running what is in them."""

from __future__ import annotations

from .entry import WeightLike
from .loading import fill, load_state_dict, load_torchscript, read_h5, read_npz
from .store import Store, default_folder, fetch

__all__ = [
    "Store",
    "WeightLike",
    "default_folder",
    "fetch",
    "fill",
    "load_state_dict",
    "load_torchscript",
    "read_h5",
    "read_npz",
]
