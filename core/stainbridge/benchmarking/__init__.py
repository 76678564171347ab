"""Every translator with every segmenter on every data set: resumable, each failure a row."""

from .running import benchmark

__all__ = ["benchmark"]
