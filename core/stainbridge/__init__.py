"""stainbridge: IHC to virtual H&E to scored nuclei, by plugins.

Names are imported on first use, so that `import stainbridge` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RunConfig
    from .discovery import build, catalog
    from .hookspecs import hookimpl
    from .interfaces import (
        API_VERSION,
        Batched,
        Calibrated,
        Metric,
        Plugin,
        PluginConfig,
        PositivityClassifier,
        Segmenter,
        Trainable,
        Translator,
        Wants,
    )
    from .io import open_picture, save
    from .pipeline import run
    from .records import RGB, Image, LabelMap, Labels, Nuclei, Result, Sample, Source
    from .scoring import rescore, score

__version__ = "0.1.0"

_HOMES = {
    "API_VERSION": "interfaces",
    "Batched": "interfaces",
    "Calibrated": "interfaces",
    "Image": "records",
    "LabelMap": "records",
    "Labels": "records",
    "Metric": "interfaces",
    "Nuclei": "records",
    "Plugin": "interfaces",
    "PluginConfig": "interfaces",
    "PositivityClassifier": "interfaces",
    "RGB": "records",
    "Result": "records",
    "RunConfig": "config",
    "Sample": "records",
    "Segmenter": "interfaces",
    "Source": "records",
    "Trainable": "interfaces",
    "Translator": "interfaces",
    "Wants": "interfaces",
    "build": "discovery",
    "catalog": "discovery",
    "hookimpl": "hookspecs",
    "open_picture": "io",
    "rescore": "scoring",
    "run": "pipeline",
    "save": "io",
    "score": "scoring",
}

__all__ = [
    "API_VERSION",
    "RGB",
    "Batched",
    "Calibrated",
    "Image",
    "LabelMap",
    "Labels",
    "Metric",
    "Nuclei",
    "Plugin",
    "PluginConfig",
    "PositivityClassifier",
    "Result",
    "RunConfig",
    "Sample",
    "Segmenter",
    "Source",
    "Trainable",
    "Translator",
    "Wants",
    "build",
    "catalog",
    "hookimpl",
    "open_picture",
    "rescore",
    "run",
    "save",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stainbridge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
