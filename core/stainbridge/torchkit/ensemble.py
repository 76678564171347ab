"""Networks that learn side by side, some of them against others: arithmetic, gradients, optimisers and their state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..interfaces import Snapshot
from ..records import RGB
from . import parallel
from .devices import Precision, autocast, import_torch, in_batches
from .states import adam, copied, joined, moved, of_network, of_optimiser, part, to_network, to_optimiser

if TYPE_CHECKING:
    import torch

    from .training import EMA

Part = TypeVar("Part", bound="tuple[Any, ...]")
Made = TypeVar("Made")


class Losses(Mapping[str, float]):
    """Losses by name, which wait on their device until one is looked at; the mean over the processes of a group.

    Parameters
    ----------
    losses : tensors without dimensions
    """

    def __init__(self, losses: Mapping[str, torch.Tensor]) -> None:
        torch = import_torch("training")
        self._names = tuple(losses)
        self._waiting: Any = parallel.averaged(torch.stack([value.float() for value in losses.values()]))
        self._read: list[float] = []

    def __getitem__(self, name: str) -> float:
        if self._waiting is not None:
            self._read, self._waiting = self._waiting.tolist(), None
        try:
            return self._read[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Ensemble:
    """Networks, and the teams of them that an optimiser moves together.

    Parameters
    ----------
    networks : by name; moved to the device and into the memory format
    device : where they learn
    precision : of forward passes; losses and weights are single
    channels_last : memory format of pictures and weights
    compiled : names of networks to compile; none whose buffers change at each call, which compiled gradients do not survive
    """

    def __init__(
        self,
        networks: Mapping[str, torch.nn.Module],
        *,
        device: torch.device,
        precision: Precision = "fp32",
        channels_last: bool = False,
        compiled: Iterable[str] = (),
    ) -> None:
        torch = import_torch("training")
        self.device, self.precision = device, precision
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.networks = {
            name: network.to(device, memory_format=self._format).train() for name, network in networks.items()
        }
        for name in compiled:
            self.networks[name].compile()
        self._calls = {name: parallel.wrapped(network, device) for name, network in self.networks.items()}
        self._teams: dict[str, tuple[str, ...]] = {}
        self._learning = frozenset(self.networks)
        self.optimisers: dict[str, Any] = {}
        self.moved: dict[str, bool] = {}
        """Whether the last step of a team was taken: in half precision one whose gradients overflow is not."""
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def team(self, team: str, *names: str, **options: Any) -> None:
        """Let networks be moved together by an Adam with `options` as for `stainbridge.torchkit.training.adam`."""
        self._teams[team] = names
        self.optimisers[team] = adam([self.networks[name] for name in names], **options)

    def signal(self, pixels: RGB) -> torch.Tensor:
        """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [-1, 1] on the device."""
        import torch

        found = torch.tensor(np.ascontiguousarray(pixels))
        if self.device.type == "cuda":
            found = found.pin_memory().to(self.device, non_blocking=True)
        found = found.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._format)
        signal: torch.Tensor = found.div_(127.5).sub_(1.0)
        return signal

    def parts(self, *pictures: RGB, count: int) -> list[tuple[torch.Tensor, ...]]:
        """Return the signals of a batch in at most `count` parts of at least one picture, each a tuple with one entry per stain."""
        count = min(count, *(len(one) for one in pictures))
        return list(
            zip(*([self.signal(one) for one in np.array_split(stain, count)] for stain in pictures), strict=True)
        )

    def run(self, name: str, x: torch.Tensor) -> Any:
        """Return the output of a network in the precision of its weights: a tensor or a tuple of them.

        Gradients of a network that is learning are averaged over the group's processes.
        """
        torch = import_torch("training")
        learns = name in self._learning and torch.is_grad_enabled()
        # One context per call: casts of weights that it keeps would lack their gradient in another call.
        with self.tuned(), autocast(self.device, self.precision):
            found = (self._calls if learns else self.networks)[name](x)

        def whole(one: Any) -> Any:
            return one if one.dtype == torch.float64 else one.float()

        return tuple(map(whole, found)) if isinstance(found, tuple) else whole(found)

    def descend(
        self,
        team: str,
        parts: Sequence[Part],
        objective: Callable[[Part], tuple[Mapping[str, torch.Tensor], Made]],
    ) -> tuple[dict[str, torch.Tensor], list[Made]]:
        """Move a team one step down the sum of its losses, while the other networks stand still.

        Parameters
        ----------
        team : as given to `team`
        parts : of a batch; the first item of each has a length, its number of pictures
        objective : maps a part to its losses, means over its pictures, and to whatever else it made

        Returns
        -------
        losses : means over the whole batch by name, on the device
        made : per part
        """
        optimiser = self.optimisers[team]
        optimiser.zero_grad()
        calls = [self._calls[name] for name in self._teams[team]]
        whole = sum(len(one[0]) for one in parts)
        losses: dict[str, Any] = {}
        made = []
        with self._only(team), self.tuned():
            for number, one in enumerate(parts, 1):
                share = len(one[0]) / whole
                with parallel.gathering(calls, last=number == len(parts)):
                    found, by_product = objective(one)
                    self._scaler.scale(sum(found.values()) * share).backward()
                losses = {name: losses.get(name, 0.0) + value.detach() * share for name, value in found.items()}
                made.append(by_product)
        self.moved[team] = moved(optimiser, self._scaler)
        return losses, made

    def weights(self, name: str, average: EMA | None = None) -> dict[str, torch.Tensor]:
        """Return a network's tensors, or their average, as contiguous copies on the CPU in single precision."""
        tensors = average.tensors() if average else self.networks[name].state_dict()
        return {name: copied(tensor).float() for name, tensor in tensors.items()}

    def rate(self, lr: float) -> None:
        """Set the learning rate of every optimiser."""
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = lr

    def pictures(self, name: str, pixels: RGB, *, side: int) -> RGB:
        """Return what a generator makes of uint8 (N, H, W, 3), in tiles of `side` without overlap: a preview, of the same shape.

        Values are cut to whole grey levels, as the originals do.
        """
        torch = import_torch("training")

        def run(tiles: RGB) -> RGB:
            # Nothing is compiled for sizes that no step has.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                found = self.run(name, self.signal(tiles))
            signal = found[0] if isinstance(found, tuple) else found
            levels = ((signal + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0).to(torch.uint8)
            return np.asarray(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

        return _in_tiles(run, pixels, side)

    def snapshot(self) -> Snapshot:
        """Return networks, optimisers and the scale of the gradients."""
        networks = {name: of_network(network) for name, network in self.networks.items()}
        optimisers = {f"optimiser.{name}": of_optimiser(one) for name, one in self.optimisers.items()}
        return joined({**networks, **optimisers, "scaler": Snapshot({}, self._scaler.state_dict())})

    def restore(self, state: Snapshot) -> None:
        """Go on from a snapshot; ConfigError if it is that of other networks."""
        for name, network in self.networks.items():
            to_network(network, part(state, name))
        for name, optimiser in self.optimisers.items():
            to_optimiser(optimiser, part(state, f"optimiser.{name}"))
        if scale := part(state, "scaler").values:
            self._scaler.load_state_dict(dict(scale))

    @contextmanager
    def tuned(self) -> Iterator[None]:
        """Let cuDNN time its algorithms for each size, unless results must be the same at every run."""
        torch = import_torch("training")
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark
        cudnn.benchmark = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        try:
            yield
        finally:
            cudnn.benchmark = before

    @contextmanager
    def _only(self, team: str) -> Iterator[None]:
        """Let gradients reach the networks of one team only."""
        others = [network for name, network in self.networks.items() if name not in self._teams[team]]
        everyone, self._learning = self._learning, frozenset(self._teams[team])
        for network in others:
            network.requires_grad_(False)
        try:
            yield
        finally:
            self._learning = everyone
            for network in others:
                network.requires_grad_(True)


def _in_tiles(run: Callable[[RGB], RGB], pictures: RGB, side: int) -> RGB:
    """Return `run` of tiles (n, side, side, 3), put together to (N, H, W, 3); what the rim lacks is the rim repeated."""
    count, height, width = pictures.shape[:3]
    rows, columns = -(-height // side), -(-width // side)
    room = ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0))
    padded = np.pad(pictures, room, mode="edge").reshape(count, rows, side, columns, side, 3)
    tiles = padded.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 3)
    found = in_batches(run, tiles, 4).reshape(count, rows, columns, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(found.reshape(count, rows * side, columns * side, 3)[:, :height, :width])
