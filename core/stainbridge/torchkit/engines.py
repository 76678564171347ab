"""What runs a prepared network: torch itself, torch's compiler, or OpenVINO."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import ConfigError, MissingExtra, PluginUnavailable
from .devices import Precision, import_torch
from .normalisation import instance_norm

if TYPE_CHECKING:
    import torch

Engine: TypeAlias = Literal["torch", "compile", "openvino"]
"""torch as it is; torch's compiler, which takes half a minute at the first tile of each size; Intel's OpenVINO, on a CPU."""

Run: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""Maps float (N, 3, H, W), in the type that the network computes with, to float32 of that shape."""

_KEPT_SHAPES = 4


def engine(network: torch.nn.Module, name: Engine, *, device: torch.device, precision: Precision) -> Run:
    """Return the function that runs a prepared network, whose first output counts.

    Raises
    ------
    MissingExtra
        If OpenVINO is asked for and not installed.
    ConfigError
        If OpenVINO is asked for with a CUDA device.
    PluginUnavailable
        When called, if torch cannot compile on this machine.
    """
    if name == "torch":
        return lambda x: _first(network(x))
    if name == "compile":
        return _compiled(network)
    return _OpenVINO(network, device, precision)


def import_openvino(who: str) -> Any:
    """Return the openvino module for `who`, a name in messages, without the report that it would send to its makers.

    Raises
    ------
    MissingExtra
        If it is not installed.
    """
    reporter = "openvino_telemetry"
    kept = sys.modules.get(reporter)
    # As if that package were not installed: openvino then has a stub in its place, from its import on.
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        raise MissingExtra.of(who, "openvino", "openvino") from None
    finally:
        del sys.modules[reporter]
        if kept is not None:
            sys.modules[reporter] = kept
    return openvino


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _compiled(network: torch.nn.Module) -> Run:
    torch = import_torch("engine 'compile'")
    with _unwarned():
        compiled = torch.compile(network, dynamic=False)

    def run(x: Any) -> Any:
        # Each number of pictures would be compiled by itself; powers of two are few.
        count = len(x)
        full = torch.cat([x, x[:1].expand((1 << (count - 1).bit_length()) - count, -1, -1, -1)])
        try:
            with _unwarned():
                return _first(compiled(full.contiguous(memory_format=torch.channels_last)))[:count]
        except Exception as error:  # the compiler's own errors derive from several classes, private to torch
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise PluginUnavailable(
                f"Engine 'compile': torch could not compile the network: {str(error).strip().partition(chr(10))[0][:200]}\n"
                "Install a C++ compiler (g++), or set engine = 'torch'."
            ) from error

    return run


@contextmanager
def _unwarned() -> Iterator[None]:
    """Keep back what torch's compiler and tracer have to say about torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _OpenVINO:
    """A network as OpenVINO runs it, compiled for each shape of input; the last few are kept."""

    def __init__(self, network: torch.nn.Module, device: torch.device, precision: Precision) -> None:
        if device.type != "cpu":
            raise ConfigError(
                f"Engine 'openvino' runs on a CPU; the device is {device.type!r}.\nSet engine = 'compile', or pass --device cpu."
            )
        openvino = import_openvino("Engine 'openvino'")
        torch = import_torch("engine 'openvino'")
        self._core, self._network = openvino.Core(), _plainly_normalised(network)
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        torch = import_torch("engine 'openvino'")
        shape = tuple(x.shape)
        if shape not in self._requests:
            self._requests[shape] = self._compiled(x)
            if len(self._requests) > _KEPT_SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shape)
        found = self._requests[shape].infer([x.float().contiguous().numpy()])
        return torch.from_numpy(next(iter(found.values())))

    def _compiled(self, x: torch.Tensor) -> Any:
        from openvino import PartialShape
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        # By its parts: `openvino.convert_model` would report to Intel that it was called.
        frontend = FrontEndManager().load_by_framework("pytorch")
        # Sizes become constants, as is meant: each shape is traced by itself.
        with _unwarned():
            traced = TorchScriptPythonDecoder(self._network, example_input=x.float())
        model = frontend.convert(frontend.load(traced))
        model.reshape(PartialShape(list(x.shape)))
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


def _plainly_normalised(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network, of the same tensors, whose instance normalisations are written as such.

    Of a group normalisation OpenVINO makes two reshapes and reorders of the map, and 2026.4 crashes on one in single precision.
    """
    from torch import nn

    class Plain(nn.Module):  # type: ignore[misc]
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.eps = eps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.instance_norm(x, eps=self.eps)

    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())})
    norm = type(instance_norm(1))
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, norm) and child.fixed is None:
                setattr(module, name, Plain(child.eps))
    return twin
