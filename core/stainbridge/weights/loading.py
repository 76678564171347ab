"""Load weights without running what is in them: no pickle is ever executed.

A loader that is given the registered sha256 hashes the very bytes that it then parses. Files above `IN_MEMORY_BYTES`
are hashed and then loaded by path, so there a file that changes in between would not be seen.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import MissingExtra, WeightsCorrupt, WeightsUnavailable

if TYPE_CHECKING:
    import torch

IN_MEMORY_BYTES = 2 * 2**30
TORCH_AT_LEAST = (2, 10)
"""Older versions of torch run code from some files in spite of weights_only (CVE-2025-32434, CVE-2026-24747)."""


def load_state_dict(
    path: Path, sha256: str | None = None, *, entry: str | None = None, finite: bool = True
) -> dict[str, torch.Tensor]:
    """Read tensors by name, on the CPU, from a .safetensors file or a torch checkpoint.

    Parameters
    ----------
    path : the file
    sha256 : what its bytes must hash to; None for a file that was just verified or that the user vouches for
    entry : key of the state dict inside a checkpoint that holds more
    finite : refuse NaN and infinity

    Raises WeightsCorrupt (wrong hash, broken, no state dict, a pickle with anything else in it, not finite),
    WeightsUnavailable (no such file), MissingExtra (torch absent or too old, safetensors absent).
    """
    source = _checked(path, sha256)
    state = _read_safetensors(path, source) if path.suffix == ".safetensors" else _read_torch(path, source)
    if entry is not None:
        if not isinstance(state, Mapping) or entry not in state:
            keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else type(state).__name__
            raise _corrupt(path, sha256, f"it has no entry {entry!r}; found {keys}")
        state = state[entry]
    _check_state(path, sha256, state, finite)
    return dict(state)


def load_torchscript(path: Path, sha256: str | None = None, *, device: str = "cpu", finite: bool = True) -> Any:
    """Load a TorchScript module in evaluation mode.

    Python's pickle takes no part, but TorchScript is a program of its own that runs when called: give only files whose
    hash is registered or that you trust. Parameters and errors as in `load_state_dict`.
    """
    torch = _torch(path)
    source = _checked(path, sha256)
    try:
        with warnings.catch_warnings():
            # torch deprecates the format; published models are in it all the same.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(source) if isinstance(source, Path) else source, map_location=device)
    except Exception as error:  # the C++ reader raises RuntimeError, ValueError, and more
        raise _corrupt(path, sha256, f"it is not a TorchScript module ({_first_line(error)})", unread=True) from error
    if finite:
        _check_finite(path, sha256, {**dict(module.named_parameters()), **dict(module.named_buffers())})
    return module.eval()


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], *, file: str) -> None:
    """Put tensors into a torch module; each name and shape must fit.

    Raises WeightsCorrupt, the module then being unchanged.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} has {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "not known": extra, "of another shape": shapes}
    found = [f"{len(names)} {fault}: {', '.join(names[:3])}" for fault, names in faults.items() if names]
    if found:
        raise WeightsCorrupt(
            f"{file!r} does not fit {type(module).__name__}: {'; '.join(found)}.\nIs it for another architecture?"
        )
    module.load_state_dict(dict(state))


def read_npz(path: Path, sha256: str | None = None, *, finite: bool = True) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file by name; pickled objects are refused. Errors as in `load_state_dict`."""
    source = _checked(path, sha256)
    try:
        with zipfile.ZipFile(source) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
            if claimed > IN_MEMORY_BYTES:
                raise ValueError(f"it unpacks to {claimed:,} bytes")
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # zipfile, zlib and numpy's own header parser each have their errors
        raise _corrupt(
            path, sha256, f"it is not an archive of plain arrays ({_first_line(error)})", unread=True
        ) from error
    bad = [name for name, array in arrays.items() if array.dtype.kind in "fc" and not np.isfinite(array).all()]
    if finite and bad:
        raise _corrupt(path, sha256, f"{bad[0]!r} holds NaN or infinity")
    return arrays


def read_h5(path: Path, sha256: str | None = None, *, finite: bool = True) -> dict[str, NDArray[Any]]:
    """Read the data sets of an HDF5 file (Keras weights) by their path in it; links to other files are not followed.

    Errors as in `load_state_dict`; MissingExtra names h5py.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise MissingExtra.of(repr(path.name), "h5py", "stardist") from None
    source = _checked(path, sha256)
    arrays: dict[str, NDArray[Any]] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            arrays[name] = np.asarray(item[()])

    try:
        with h5py.File(source, "r") as file:
            file.visititems(keep)
    except Exception as error:  # h5py raises OSError, KeyError and RuntimeError from the C library
        raise _corrupt(path, sha256, f"it is not an HDF5 file ({_first_line(error)})", unread=True) from error
    bad = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if finite and bad:
        raise _corrupt(path, sha256, f"{bad[0]!r} holds NaN or infinity")
    return arrays


def _checked(path: Path, sha256: str | None) -> io.BytesIO | Path:
    """Return what to load: the bytes that were hashed, or the path where there is no hash or too many bytes."""
    if not path.is_file():
        raise WeightsUnavailable(f"There is no weight file {path}.\nSee: stainbridge models fetch, models where")
    if path.stat().st_size == 0:
        raise _corrupt(path, sha256, "it is empty", unread=True)
    if sha256 is None:
        return path
    with path.open("rb") as file:
        if path.stat().st_size > IN_MEMORY_BYTES:
            found, source = hashlib.file_digest(file, "sha256").hexdigest(), path
        else:
            data = file.read()
            found, source = hashlib.sha256(data).hexdigest(), io.BytesIO(data)  # type: ignore[assignment]
    if found != sha256:
        raise _corrupt(path, sha256, f"its sha256 is {found}", unread=True)
    return source


def _read_torch(path: Path, source: io.BytesIO | Path) -> Any:
    torch = _torch(path)
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and the C++ reader each have their errors
        other = "weights_only" in str(error)
        found = _refusal(error) if other else _first_line(error)
        raise _corrupt(path, None, f"torch refuses it as plain weights ({found})", unread=not other) from error


def _read_safetensors(path: Path, source: io.BytesIO | Path) -> Any:
    _torch(path)
    try:
        tensors = importlib.import_module("safetensors.torch")
    except ImportError:
        raise MissingExtra.of(repr(path.name), "safetensors", "torch") from None
    try:
        if isinstance(source, Path):
            return tensors.load_file(source)
        return tensors.load(source.getvalue())
    except Exception as error:  # SafetensorError, and ValueError or KeyError from its header
        raise _corrupt(path, None, f"it is not a safetensors file ({_first_line(error)})", unread=True) from error


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtra.of(repr(path.name), "torch", "torch") from None
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < TORCH_AT_LEAST:
        raise MissingExtra(
            f"Loading {path.name!r} safely needs torch 2.10 or newer; found {torch.__version__}.\n"
            "Run: pip install 'torch>=2.10,<2.14'"
        )
    return torch


def _check_state(path: Path, sha256: str | None, state: Any, finite: bool) -> None:
    import torch

    if not isinstance(state, Mapping) or not state:
        raise _corrupt(path, sha256, f"it is not a state dict but holds {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _corrupt(path, sha256, f"it is not a state dict: {name!r} is {type(value).__name__}, not a tensor")
        if value.layout is not torch.strided or value.is_meta or value.is_nested or value.is_quantized:
            raise _corrupt(
                path, sha256, f"{name!r} is a sparse, nested, quantised or empty tensor; weights are plain dense ones"
            )
    if finite:
        _check_finite(path, sha256, state)


def _check_finite(path: Path, sha256: str | None, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        # The types of one byte have no test of their own.
        if not bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all()):
            raise _corrupt(path, sha256, f"{name!r} holds NaN or infinity")


def _corrupt(path: Path, sha256: str | None, fault: str, *, unread: bool = False) -> WeightsCorrupt:
    """Return the error; with what to do where `unread`, since the file may have been whole once."""
    expected = f" (expected sha256 {sha256})" if sha256 else ""
    step = "It may have been cut short or changed on its way: fetch or copy the file again.\n" if unread else ""
    return WeightsCorrupt(f"{path.name!r} cannot be used as weights: {fault}{expected}.\n{step}Path: {path}")


def _refusal(error: Exception) -> str:
    """Return what torch found, without its advice on how to load the file unsafely."""
    found = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "unsupported" in line]
    return _whole(found[0].partition(" was not an allowed")[0]) if found else "it holds something other than tensors"


def _first_line(error: Exception) -> str:
    return _whole(str(error).strip().partition("\n")[0]) or type(error).__name__


def _whole(text: str, longest: int = 200) -> str:
    """Return a text without its full stop, of a longer one whole sentences of it, or else whole words."""
    if len(text) > longest:
        sentences, _, _ = text[:longest].rpartition(". ")
        text = sentences or f"{text[:longest].rpartition(' ')[0] or text[:longest]} ..."
    return text.removesuffix(".") if not text.endswith("...") else text
