"""What the plugins that run on torch share; torch itself is imported on first use.

Here: device, precision and batch size. The files beside it hold the rest: `normalisation`, `checkpoints`, `generators`, `training`,
`parallel`.
"""

from .devices import TORCH_AT_LEAST, Precision, autocast, import_torch, in_batches, resolve_device

__all__ = ["TORCH_AT_LEAST", "Precision", "autocast", "import_torch", "in_batches", "resolve_device"]
