"""Metrics that hold nuclei against truth."""

from stainbridge import Metric, hookimpl


@hookimpl
def register_metrics() -> list[type[Metric]]:
    from .metrics import InstanceMatching, PixelDice

    return [InstanceMatching, PixelDice]
