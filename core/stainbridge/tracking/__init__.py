"""Log runs: results are first on disk, and MLflow is a mirror of a journal there."""

from .mirror import Flushed
from .names import metric_name, value_name
from .tracker import Run, Status, Tracker, open_tracker

__all__ = ["Flushed", "Run", "Status", "Tracker", "metric_name", "open_tracker", "value_name"]
