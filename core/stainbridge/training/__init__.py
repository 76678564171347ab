"""Train plugins that learn: `train`, by a `TrainConfig`."""

from .running import Trained, train
from .settings import TrainConfig

__all__ = ["TrainConfig", "Trained", "train"]
