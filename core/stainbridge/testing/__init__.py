"""Synthetic pictures with known nuclei, and the conformance kit that every plugin is held against.

Names are imported on first use: its pytest plugin is loaded in every pytest run where stainbridge is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conformance import Check, CheckReport, check_plugin, checks_for, run_checks
    from .synthetic import blank_glass, dark_tissue, synthetic_he, synthetic_ihc, synthetic_labels

_HOMES = {
    "Check": "conformance",
    "CheckReport": "conformance",
    "blank_glass": "synthetic",
    "check_plugin": "conformance",
    "checks_for": "conformance",
    "dark_tissue": "synthetic",
    "run_checks": "conformance",
    "synthetic_he": "synthetic",
    "synthetic_ihc": "synthetic",
    "synthetic_labels": "synthetic",
}

__all__ = [
    "Check",
    "CheckReport",
    "blank_glass",
    "check_plugin",
    "checks_for",
    "dark_tissue",
    "run_checks",
    "synthetic_he",
    "synthetic_ihc",
    "synthetic_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stainbridge.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
