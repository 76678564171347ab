"""stainbridge: IHC to virtual H&E to scored nuclei, by plugins.

Names are imported on first use, so that `import stainbridge` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benchmarking import benchmark
    from .capabilities import Batched, Calibrated, Deriving, Described, Describing, Poolable
    from .config import RunConfig
    from .datasets import open_dataset
    from .discovery import build, catalog
    from .evaluation import evaluate
    from .hookspecs import hookimpl
    from .interfaces import (
        API_VERSION,
        Exported,
        Labelled,
        Learner,
        Metric,
        Plugin,
        PluginConfig,
        PositivityClassifier,
        Reconstructing,
        Segmenter,
        Snapshot,
        Trainable,
        Translator,
        Unpaired,
        Wants,
    )
    from .io import open_picture, save
    from .pipeline import run
    from .records import RGB, Image, LabelMap, Labels, Nuclei, Result, Sample, Source
    from .scores import Benchmark, Scores
    from .scoring import rescore, score
    from .suite import Suite
    from .training import TrainConfig, train

__version__ = "0.1.0"

_HOMES = {
    "API_VERSION": "interfaces",
    "Batched": "capabilities",
    "Benchmark": "scores",
    "Calibrated": "capabilities",
    "Described": "capabilities",
    "Describing": "capabilities",
    "Deriving": "capabilities",
    "Exported": "interfaces",
    "Image": "records",
    "LabelMap": "records",
    "Labelled": "interfaces",
    "Labels": "records",
    "Learner": "interfaces",
    "Metric": "interfaces",
    "Nuclei": "records",
    "Plugin": "interfaces",
    "PluginConfig": "interfaces",
    "Poolable": "capabilities",
    "PositivityClassifier": "interfaces",
    "RGB": "records",
    "Reconstructing": "interfaces",
    "Result": "records",
    "RunConfig": "config",
    "Sample": "records",
    "Scores": "scores",
    "Segmenter": "interfaces",
    "Snapshot": "interfaces",
    "Source": "records",
    "Streaming": "capabilities",
    "Suite": "suite",
    "TrainConfig": "training",
    "Trainable": "interfaces",
    "Translator": "interfaces",
    "Unpaired": "interfaces",
    "Wants": "interfaces",
    "benchmark": "benchmarking",
    "build": "discovery",
    "catalog": "discovery",
    "evaluate": "evaluation",
    "hookimpl": "hookspecs",
    "open_dataset": "datasets",
    "open_picture": "io",
    "rescore": "scoring",
    "run": "pipeline",
    "save": "io",
    "score": "scoring",
    "train": "training",
}

__all__ = [
    "API_VERSION",
    "RGB",
    "Batched",
    "Benchmark",
    "Calibrated",
    "Deriving",
    "Described",
    "Describing",
    "Exported",
    "Image",
    "LabelMap",
    "Labelled",
    "Labels",
    "Learner",
    "Metric",
    "Nuclei",
    "Plugin",
    "PluginConfig",
    "Poolable",
    "PositivityClassifier",
    "Reconstructing",
    "Result",
    "RunConfig",
    "Sample",
    "Scores",
    "Segmenter",
    "Snapshot",
    "Source",
    "Streaming",
    "Suite",
    "TrainConfig",
    "Trainable",
    "Translator",
    "Unpaired",
    "Wants",
    "benchmark",
    "build",
    "catalog",
    "evaluate",
    "hookimpl",
    "open_dataset",
    "open_picture",
    "rescore",
    "run",
    "save",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stainbridge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
