"""Cellpose, by its own library: the residual U-Nets of 3.x and the transformer of 4.x, whichever is installed."""

from stainbridge import hookimpl


@hookimpl
def register_segmenters():
    """Return the Cellpose segmenter."""
    from .segmenter import Cellpose

    return [Cellpose]
