"""The four hooks that a plugin module may implement. Each takes nothing and returns a list of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .interfaces import Metric, PositivityClassifier, Segmenter, Translator

GROUP = "stainbridge"
"""The entry-point group, and pluggy's project name."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def register_translators() -> list[type[Translator]]:  # type: ignore[empty-body]
    """Return the translator classes of this plugin."""


@hookspec
def register_segmenters() -> list[type[Segmenter]]:  # type: ignore[empty-body]
    """Return the segmenter classes of this plugin."""


@hookspec
def register_classifiers() -> list[type[PositivityClassifier]]:  # type: ignore[empty-body]
    """Return the positivity-classifier classes of this plugin."""


@hookspec
def register_metrics() -> list[type[Metric]]:  # type: ignore[empty-body]
    """Return the metric classes of this plugin."""
