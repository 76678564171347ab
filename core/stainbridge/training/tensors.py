"""Tensors in a safetensors file, hashed as they are written; of numpy or of torch, which is imported only for its own.

Format: eight bytes with the length of a JSON header, the header with type, shape and place of each tensor, then the bytes, little-endian.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import WeightsCorrupt

_TYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_NAMES = {code: name for name, code in _TYPES.items()}
_ARRAYS = "numpy"


@dataclass(frozen=True)
class Written:
    """A file of tensors: its name, bytes and sha256."""

    file: str
    size: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"file": self.file, "size": self.size, "sha256": self.sha256}


def not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor, of numpy or of torch, that holds NaN or infinity; None where there is none."""
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            bad = tensor.dtype.kind == "f" and not np.isfinite(tensor).all()
        else:
            bad = tensor.is_floating_point() and not bool(tensor.isfinite().all())
        if bad:
            return name
    return None


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> Written:
    """Write torch tensors and numpy arrays by name, and return the file with the hash of what was written.

    The header's metadata names the arrays, so that each comes back as what it was.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    arrays = [name for name, one in tensors.items() if not _is_torch(one)]
    header: dict[str, Any] = {"__metadata__": {_ARRAYS: json.dumps(arrays)}} if arrays else {}
    at = 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape, dtype=np.int64)) * tensor.itemsize
        kind = _TYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        parts: Iterator[Any] = chain((len(text).to_bytes(8, "little"), text), map(_bytes_of, tensors.values()))
        for part in parts:
            digest.update(part)
            file.write(part)
    return Written(path.name, 8 + len(text) + at, digest.hexdigest())


def read_tensors(path: Path, written: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `write_tensors` wrote; nothing is looked at before the bytes have the right hash.

    Parameters
    ----------
    written : size and sha256 as of `Written.to_dict`

    Raises
    ------
    WeightsCorrupt
        If the file is missing, cut short, or not what was written.
    """
    try:
        data = bytearray(path.stat().st_size)
        with open(path, "rb") as file:
            del data[file.readinto(data) :]
    except OSError as error:
        raise WeightsCorrupt(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != written["sha256"]:
        raise WeightsCorrupt(
            f"{str(path)!r} is not what was written: {len(data):,} bytes with sha256 {found}, expected {written['size']:,} "
            f"with {written['sha256']}."
        )
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    arrays = json.loads(header.pop("__metadata__", {}).get(_ARRAYS, "[]"))
    return {name: _tensor(data, start, entry, torch=name not in arrays) for name, entry in header.items()}


def digests(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each tensor with its type and shape."""
    found = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(_bytes_of(tensor))
        found[name] = digest.hexdigest()
    return found


def _is_torch(tensor: Any) -> bool:
    return not isinstance(tensor, np.ndarray)


def _bytes_of(tensor: Any) -> Any:
    assert sys.byteorder == "little"
    if _is_torch(tensor):
        import torch

        tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    flat: NDArray[np.uint8] = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return flat.data


def _tensor(data: bytearray, origin: int, entry: Mapping[str, Any], *, torch: bool) -> Any:
    start, stop = entry["data_offsets"]
    name, shape = _NAMES[entry["dtype"]], entry["shape"]
    # Copied: tensors in a file need not lie where their type wants them.
    part = np.frombuffer(data, np.uint8, stop - start, origin + start).copy()
    if not torch:
        return part.view(name).reshape(shape)
    import torch as library

    return library.from_numpy(part).view(getattr(library, name)).reshape(shape)
