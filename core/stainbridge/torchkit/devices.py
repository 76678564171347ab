"""Device, precision and batch size for the plugins that run on torch; torch itself is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DeviceUnavailable, MissingExtra, nearest

if TYPE_CHECKING:
    import torch

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of a network: single, or mixed with bfloat16 or half."""

AskedPrecision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
"""A precision, or the fastest that a device has arithmetic for."""

TORCH_AT_LEAST = (2, 10)
"""Older versions of torch run code from some weight files in spite of weights_only."""

_CPUINFO = Path("/proc/cpuinfo")


def import_torch(who: str) -> Any:
    """Return the torch module for `who`, a plugin's name in messages.

    Raises
    ------
    MissingExtra
        If it is not installed, or older than `TORCH_AT_LEAST`.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtra.of(who, "torch", "torch") from None
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < TORCH_AT_LEAST:
        oldest = ".".join(map(str, TORCH_AT_LEAST))
        raise MissingExtra(
            f"{who} needs torch {oldest} or newer; found {torch.__version__}.\nRun: pip install 'torch>={oldest},<2.14'"
        )
    return torch


def resolve_device(name: str) -> torch.device:
    """Return the device called "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ConfigError
        If it is called something else.
    DeviceUnavailable
        If this machine, or this build of torch, does not have it; says which devices there are.
    MissingExtra
        As `import_torch`.
    """
    torch = import_torch(f"device {name!r}")
    kind, colon, number = name.partition(":")
    known = kind == "cuda" and (number.isdecimal() or not colon)
    if name != "cpu" and not known:
        raise ConfigError(
            f"A device is 'cpu', 'cuda' or 'cuda:N'; found {name!r}.{nearest(name, ('cpu', 'cuda', 'cuda:0'))}"
        )
    if kind == "cuda":
        _check_cuda(torch, name, int(number or 0))
    return torch.device(name)


def inference_precision(asked: AskedPrecision, device: torch.device) -> Precision:
    """Return the precision that `asked` means on a device.

    "auto" is bf16 where the device has arithmetic for it, else fp16 on CUDA and fp32 on a CPU.

    Raises
    ------
    ConfigError
        If there is no such precision.
    DeviceUnavailable
        If fp16 is asked of a CPU, or bf16 of one without arithmetic for it: there torch is slower by far than in fp32.
    """
    if asked not in get_args(AskedPrecision):
        raise ConfigError(f"A precision is one of {', '.join(get_args(AskedPrecision))}; found {asked!r}.")
    if device.type == "cuda":
        if asked != "auto":
            return asked
        return "bf16" if cuda_has_bf16(device) else "fp16"
    if asked == "auto":
        return "bf16" if cpu_has_bf16() else "fp32"
    if asked == "fp16":
        raise DeviceUnavailable(
            f"Precision 'fp16' is for CUDA devices; the device is {device.type!r}.\n"
            "Set precision = 'fp32', or pass --device cuda on a machine that has one."
        )
    if asked == "bf16" and not cpu_has_bf16():
        raise DeviceUnavailable(
            "Precision 'bf16' needs a CUDA device or a processor with bf16 arithmetic (AVX512-BF16 or AMX); this one has none.\n"
            "Set precision = 'fp32', or pass --device cuda on a machine that has one."
        )
    return asked


def cuda_has_bf16(device: torch.device) -> bool:
    """Return whether a card computes in bfloat16 itself: NVIDIA's since compute capability 8.0, and AMD's that torch runs on.

    `torch.cuda.is_bf16_supported` also says yes of older cards, which emulate it more slowly than fp32, and asks the current device.
    """
    torch = import_torch("precision")
    return bool(torch.version.hip) or tuple(torch.cuda.get_device_capability(device)) >= (8, 0)


def cpu_has_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 matrices itself; elsewhere torch does it in fp32, with conversions."""
    torch = import_torch("precision")
    told = getattr(torch.cpu, "get_capabilities", None)
    # Versions of torch that do not tell: Linux does.
    can = told() if told else dict.fromkeys(_CPUINFO.read_text().split(), True) if _CPUINFO.exists() else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def autocast(device: torch.device, precision: AskedPrecision) -> AbstractContextManager[Any]:
    """Return the context in which a network runs at `precision`; "fp32" changes nothing. Errors as `inference_precision`."""
    chosen = inference_precision(precision, device)
    if chosen == "fp32":
        return nullcontext()
    torch = import_torch(f"precision {precision!r}")
    context: AbstractContextManager[Any] = torch.autocast(device.type, dtype_of(chosen))
    return context


def dtype_of(precision: Precision) -> torch.dtype:
    """Return torch's type of the numbers that a network computes with at a precision."""
    torch = import_torch(f"precision {precision!r}")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def in_batches(run: Callable[[NDArray[Any]], NDArray[Any]], batch: NDArray[Any], size: int) -> NDArray[Any]:
    """Return `run` of the whole batch, computed `size` pictures at a time, and half as many whenever memory runs out.

    Parameters
    ----------
    run : maps (n, ...) to an array of length n, each element by itself
    batch : (N, ...) with N of at least 1
    size : pictures at once, at least 1; log2(size) halvings at most

    Raises
    ------
    DeviceUnavailable
        If a single picture does not fit into the memory of the device.
    """
    torch = import_torch("A batch")
    done: list[NDArray[Any]] = []
    start, size = 0, max(1, min(size, len(batch)))
    while start < len(batch):
        # Handled outside `except`, where the traceback would keep the tensors of the failed attempt alive.
        found = _attempt(torch.OutOfMemoryError, run, batch[start : start + size])
        if found is not None:
            done.append(found)
            start += size
            continue
        if size == 1:
            height, width = batch.shape[1:3]
            raise DeviceUnavailable(
                f"One tile of {height} x {width} px does not fit into the memory of the device.\n"
                "Take smaller tiles (--set tile_px=512), close what else uses the device, or pass --device cpu."
            )
        size //= 2
        torch.cuda.empty_cache()
    return np.concatenate(done)


def _attempt(
    out_of_memory: type[Exception], run: Callable[[NDArray[Any]], NDArray[Any]], part: NDArray[Any]
) -> NDArray[Any] | None:
    try:
        return run(part)
    except out_of_memory:
        return None


def _check_cuda(torch: Any, name: str, number: int) -> None:
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise DeviceUnavailable(
            f"Device {name!r} was asked for, but {why} (torch {torch.__version__}).\n"
            "Pass --device cpu, or install a driver and a CUDA build of torch (pytorch.org, 'Get started')."
        )
    count = torch.cuda.device_count()
    if number >= count:
        there = ", ".join(f"cuda:{index}" for index in range(count))
        raise DeviceUnavailable(f"Device {name!r} was asked for; this machine has {there}.\nPass one of them, or cpu.")
