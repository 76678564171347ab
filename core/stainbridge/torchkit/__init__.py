"""What the plugins that run on torch share; torch itself is imported on first use.

Here: device, precision and batch size. The files beside it hold the rest: `normalisation`, `checkpoints`, `generators` with `prepared` and
`engines`, `training`, `parallel`.
"""

from .devices import (
    TORCH_AT_LEAST,
    AskedPrecision,
    Precision,
    autocast,
    cpu_has_bf16,
    cuda_has_bf16,
    dtype_of,
    import_torch,
    in_batches,
    inference_precision,
    resolve_device,
)

__all__ = [
    "TORCH_AT_LEAST",
    "AskedPrecision",
    "Precision",
    "autocast",
    "cpu_has_bf16",
    "cuda_has_bf16",
    "dtype_of",
    "import_torch",
    "in_batches",
    "inference_precision",
    "resolve_device",
]
