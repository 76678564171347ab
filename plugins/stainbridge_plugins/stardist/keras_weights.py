"""The tensors of a StarDist network out of a Keras .h5 file, checked against the network's design.

Keras numbers some layers by itself (conv2d_7), by what was built before in the same process; only their order means
something. Three layouts are read: Keras 2 and Keras 3 by name of layer, and the .weights.h5 of Keras 3, where every layer
is numbered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge.errors import WeightsCorrupt
from stainbridge.weights import read_h5

from .design import Design, Layer, layers

_EPSILON = 1e-3  # of Keras' BatchNormalization
_CONVOLUTION = ("kernel", "bias")
_NORMALISATION = ("gamma", "beta", "moving_mean", "moving_variance")
_NUMBERED = {"conv2d": _CONVOLUTION, "batch_normalization": _NORMALISATION}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tensors:
    """One convolution, batch normalisation worked in: kernel float32 (out, in, kh, kw) and bias float32 (out,)."""

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]


def read_keras(path: Path, design: Design) -> dict[str, Tensors]:
    """Read the weights that Keras saved, by layer of the design.

    Raises
    ------
    WeightsCorrupt
        If a layer is missing, too many or of another shape; names the first.
    """
    wanted = layers(design)
    known = _with_classes(design, [layer.name for layer in wanted])
    found = _by_layer(read_h5(path), known)
    tensors = {layer.name: _tensors(path, layer, found) for layer in wanted}
    known += [layer.normalisation for layer in wanted]
    for name in found:
        if name not in known:
            raise _unfit(path, f"it has a layer {name!r}, which the network has not")
    return tensors


def _with_classes(design: Design, names: list[str]) -> list[str]:
    """Put in the layers that tell kinds of objects apart; they are known and not used, since labels hold no kind."""
    if design.n_classes is None:
        return names
    body, heads = names[:-2], names[-2:]
    return [*body, *(["features_class"] if design.net_conv_after_unet else []), *heads, "prob_class"]


def _by_layer(arrays: Arrays, names: Sequence[str]) -> dict[str, Arrays]:
    """Group arrays by layer and kind, under the design's names.

    `names` are those of all convolutions in their order, for the layout in which each of them is numbered.
    """
    grouped: dict[str, dict[str, NDArray[Any]]] = {}
    for place, array in arrays.items():
        group, kind = _place(place)
        if array.dtype.kind == "f":
            grouped.setdefault(group, {})[kind] = array
    renamed: dict[str, Arrays] = {group: found for group, found in grouped.items() if not _base(group)}
    for base, kinds in _NUMBERED.items():
        own = sorted((group for group in grouped if _base(group) == base), key=_number)
        for position, group in enumerate(own):
            native = {
                kinds[int(kind)]: a for kind, a in grouped[group].items() if kind.isdigit() and int(kind) < len(kinds)
            }
            by_order = native and base == "conv2d" and position < len(names)
            renamed[names[position] if by_order else f"{base} {position}"] = native or grouped[group]
    return renamed


def _place(place: str) -> tuple[str, str]:
    """Return layer and kind: model_weights/conv2d/conv2d/kernel:0, conv2d/conv2d/kernel, layers/conv2d/vars/0."""
    parts = PurePosixPath(place).parts
    inner = [part for part in parts[:-1] if part not in ("model_weights", "layers")]
    return inner[0] if inner else parts[0], parts[-1].split(":")[0]


def _base(group: str) -> str:
    match = re.fullmatch(rf"({'|'.join(_NUMBERED)})(_\d+)?", group)
    return match[1] if match else ""


def _number(group: str) -> int:
    return int(group.removeprefix(_base(group)).strip("_") or 0)


def _tensors(path: Path, layer: Layer, found: Mapping[str, Arrays]) -> Tensors:
    channels = layer.shape[3:]
    parts = _parts(path, layer.name, {"kernel": layer.shape, "bias": channels}, found)
    kernel, bias = parts["kernel"].transpose(3, 2, 0, 1), parts["bias"]
    if layer.normalisation:
        norm = _parts(path, layer.normalisation, dict.fromkeys(_NORMALISATION, channels), found)
        factor = norm["gamma"] / np.sqrt(norm["moving_variance"] + _EPSILON)
        kernel = kernel * factor[:, None, None, None]
        bias = (bias - norm["moving_mean"]) * factor + norm["beta"]
    return Tensors(np.ascontiguousarray(kernel, np.float32), np.ascontiguousarray(bias, np.float32))


def _parts(path: Path, name: str, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Arrays]) -> Arrays:
    """Return the named arrays of one layer in double precision, after a look at their shapes."""
    if name not in found:
        raise _unfit(path, f"it has no layer {name!r}")
    arrays = found[name]
    for kind, shape in shapes.items():
        if kind not in arrays:
            raise _unfit(path, f"layer {name!r} has no {kind}; found {', '.join(sorted(arrays))}")
        if arrays[kind].shape != shape:
            raise _unfit(path, f"{kind} of layer {name!r} is {arrays[kind].shape} instead of {shape}")
    return {kind: arrays[kind].astype(np.float64) for kind in shapes}


def _unfit(path: Path, fault: str) -> WeightsCorrupt:
    return WeightsCorrupt(
        f"{path.name!r} does not fit its config.json: {fault}.\nIs it for another network? Path: {path}"
    )
