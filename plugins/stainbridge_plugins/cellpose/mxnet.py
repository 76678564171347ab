"""Read the parameter files of MXNet, without MXNet: a list of named arrays, and nothing in it that runs.

Layout, little-endian: u64 magic 0x112, u64 reserved, u64 number of arrays, the arrays, u64 number of names, each name as u64 length
and UTF-8. An array: u32 version, i32 storage (not in version 1), u32 number of axes, i64 per axis, i32 device, i32 device number,
i32 type, then the values in C order. Source: `NDArray::Save` of Apache MXNet 1.x (src/ndarray/ndarray.cc).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import WeightsCorrupt, WeightsUnavailable

MAGIC = struct.pack("<Q", 0x112)
MOST_BYTES = 2**30
_DENSE_V1, _DENSE_V2, _DENSE_V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_MOST_AXES = 8
_LEAST_ARRAY_BYTES, _LEAST_NAME_BYTES = 20, 8
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}


def is_mxnet(path: Path) -> bool:
    """Return whether the file begins as a list of MXNet arrays does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an MXNet parameter file by name, in the order of the file.

    Raises
    ------
    WeightsUnavailable
        If there is no such file.
    WeightsCorrupt
        If it is cut off, claims more than it holds, has left-over bytes, or holds anything but dense arrays of finite numbers.
    """
    if not path.is_file():
        raise WeightsUnavailable(f"There is no weight file {path}.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _Fault(f"it has more than {MOST_BYTES:,} bytes")
        return _parsed(_Cursor(path.read_bytes()))
    except _Fault as fault:
        raise WeightsCorrupt(
            f"{path.name!r} cannot be used as an MXNet parameter file: {fault}.\nPath: {path}"
        ) from None


class _Fault(Exception):
    """What is wrong with the file, as half a sentence."""


class _Cursor:
    """Bytes that are taken from front to back, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    @property
    def left(self) -> int:
        """How many bytes are still to be taken."""
        return len(self._data) - self._at

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes."""
        if size > self.left:
            raise _Fault(f"it ends at byte {len(self._data):,}, where {size - self.left:,} more are needed")
        self._at += size
        return self._data[self._at - size : self._at]

    def numbers(self, form: str) -> tuple[int, ...]:
        """Return the next integers, by `struct`'s letters."""
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def count(self, what: str, *, at_least_each: int) -> int:
        """Return a number of things of which each takes at least so many bytes; so many must be left."""
        (count,) = self.numbers("Q")
        if count * at_least_each > self.left:
            raise _Fault(f"it claims {count:,} {what}, which {self.left:,} bytes cannot hold")
        return count


def _parsed(cursor: _Cursor) -> dict[str, NDArray[Any]]:
    if bytes(cursor.take(len(MAGIC))) != MAGIC:
        raise _Fault("it does not begin with the number 0x112")
    cursor.take(8)
    arrays = [_array(cursor) for _ in range(cursor.count("arrays", at_least_each=_LEAST_ARRAY_BYTES))]
    names = [_name(cursor) for _ in range(cursor.count("names", at_least_each=_LEAST_NAME_BYTES))]
    if cursor.left:
        raise _Fault(f"{cursor.left:,} bytes follow its end")
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise _Fault(f"it has {len(arrays)} arrays and {len(set(names))} different names")
    named = dict(zip(names, arrays, strict=True))
    for name, array in named.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _Fault(f"{name!r} holds NaN or infinity")
    return named


def _array(cursor: _Cursor) -> NDArray[Any]:
    (version,) = cursor.numbers("I")
    if version not in (_DENSE_V1, _DENSE_V2, _DENSE_V3):
        raise _Fault(f"an array has the unknown version {version:#x}")
    if version != _DENSE_V1 and cursor.numbers("i") != (0,):
        raise _Fault("an array is sparse")
    (axes,) = cursor.numbers("I")
    if not 1 <= axes <= _MOST_AXES:
        raise _Fault(f"an array has {axes} axes")
    shape = cursor.numbers(f"{axes}q")
    if min(shape) < 1:
        raise _Fault(f"an array has the shape {shape}")
    _, _, kind = cursor.numbers("iii")
    if kind not in _DTYPES:
        raise _Fault(f"an array has the unknown type {kind}")
    dtype = np.dtype(_DTYPES[kind])
    # Python's integers do not overflow, so a hostile shape is just too large.
    return np.frombuffer(cursor.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()


def _name(cursor: _Cursor) -> str:
    (length,) = cursor.numbers("Q")
    try:
        return str(cursor.take(length), "utf-8")
    except UnicodeDecodeError:
        raise _Fault("a name is not UTF-8") from None
