"""Train HoVer-Net. Source: Graham et al. 2019, section 3.3; models/hovernet/opt.py and run_desc.py of the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stainbridge import Exported, Labelled, Snapshot
from stainbridge.errors import ConfigError
from stainbridge.torchkit import autocast, import_torch, parallel, resolve_device
from stainbridge.torchkit.states import (
    adam,
    copied,
    joined,
    moved,
    of_network,
    of_optimiser,
    part,
    to_network,
    to_optimiser,
)
from stainbridge.torchkit.training import EMA, LearnerSettings, resolve_precision

from .augment import recoloured
from .checkpoint import read_state
from .losses import Axes, total
from .network import Design, Mode, build
from .postprocessing import Normalisation
from .targets import distance_maps, middle

if TYPE_CHECKING:
    import torch

FILE = "hovernet.safetensors"
"""Name of the exported weights."""

_ENCODER = ("d0", "d1", "d2", "d3")
_DECAY_EPOCHS, _DECAY = 25, 0.1

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "phase1": {"epochs": 50, "batch_size": 16, "patch_px": 256, "flips": "all", "learner": {"phase": 1}},
    "phase2": {"epochs": 50, "batch_size": 4, "patch_px": 256, "flips": "all", "learner": {"phase": 2}},
    "scratch": {"epochs": 100, "batch_size": 8, "patch_px": 256, "flips": "all"},
}
"""The paper's two phases, each of which must start from a file (`learner.start`), and one without any start."""

_ENCODER_FILE = "ImageNet-ResNet50-Preact_pytorch.tar"
_NEEDED = {
    1: f"the original's encoder, learned on ImageNet: {_ENCODER_FILE}, which its README links to",
    2: "the model of phase 1: FOLDER/model/hovernet.safetensors, where FOLDER is what phase 1 was trained into",
}


class Training(LearnerSettings):
    """Network, losses and schedule of a training."""

    channels_last: bool | None = Field(True, description="memory format of pictures and weights")
    mode: Mode = Field("fast", description="fast: 256 -> 164 px; original: 270 -> 80 px")
    types: int = Field(0, ge=0, description="types of nuclei, background included; 0: none are learned")
    lr: float = Field(
        1e-4, gt=0, description="learning rate of Adam; a tenth of it after 25 epochs of a phase, and so on"
    )
    phase: Literal[1, 2] | None = Field(
        None,
        description="of the paper's two: 1 keeps the units of d0, and d1 to d3, as they are, 2 learns all; either needs a start",
    )
    frozen_epochs: int = Field(
        0, ge=0, description="both phases in one training: epochs at first that are phase 1, which needs a start"
    )
    start: Path | None = Field(
        None,
        description="checkpoint to start from: of the encoder alone, or of the whole network, which phase 2 must have",
    )
    recolour: bool = Field(True, description="vary colours, sharpness and noise")
    gradient: Axes = Field(
        "original", description="derivatives compared: across each map's axis as in the original, or along it"
    )
    normalisation: Normalisation = Field(
        "fixed",
        description="of the exported model: a network of a short training has single steep pixels, by which 'original' loses whole tiles",
    )
    slimming: int = Field(1, description="the original's channels are divided by it: 1, 2, 4 or 8")


class HoVerNetLearner:
    """HoVer-Net in training; see `stainbridge.Learner`.

    Parameters
    ----------
    settings : network and losses
    device : "cpu", "cuda" or "cuda:N"
    seed : of the first weights and of the recolouring
    mpp : micrometres per pixel of the batches
    patch_px : side of their pictures, which must be one that the network takes

    Raises
    ------
    ConfigError
        If the network does not take pictures of that size, a phase of the paper has no start, or the start is a file of another network.
    """

    def __init__(self, settings: Training, *, device: str, seed: int, mpp: float, patch_px: int) -> None:
        torch = import_torch("train hovernet")
        _check_start(settings)
        self.settings, self._mpp, self._device = settings, mpp, resolve_device(device)
        self._precision = resolve_precision(settings.precision, self._device)
        self._design = Design(settings.mode, settings.types, settings.slimming)
        self._output_px = _output_px(self._design, patch_px)
        self._rng = torch.Generator().manual_seed(seed + parallel.rank())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = build(self._design)
        if settings.start is not None:
            _begin_from(self._network, settings.start, whole=settings.phase == 2)
        layout = torch.channels_last if settings.keeps_channels_last(self._device) else torch.contiguous_format
        self._network.to(self._device, memory_format=layout)
        self._ema = EMA(self._network, settings.ema) if settings.ema else None
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._precision == "fp16")
        self._enter(frozen=self._is_frozen(1))

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """Set the learning rate of an epoch; the first after the frozen ones starts a phase with an optimiser of its own."""
        frozen = self._is_frozen(epoch)
        if frozen != self._frozen:
            self._enter(frozen=frozen)
        past = epoch - 1 - (0 if frozen else self.settings.frozen_epochs)
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.lr * _DECAY ** (past // _DECAY_EPOCHS)

    def step(self, batch: Labelled) -> Mapping[str, float]:
        """Learn from uint8 (N, H, W, 3), int32 (N, H, W) and types uint8 (N, H, W), which a network with types needs.

        Raises
        ------
        ConfigError
            If types are missing, or are more than the network has.
        """
        torch = import_torch("train hovernet")
        self._check_types(batch)
        self._network.train()
        self._optimiser.zero_grad(set_to_none=True)
        parts = np.array_split(np.arange(len(batch.pixels)), min(self.settings.accumulate, len(batch.pixels)))
        losses: dict[str, torch.Tensor] = {}
        for index, rows in enumerate(parts):
            share = len(rows) / len(batch.pixels)
            with parallel.gathering([self._wrapped], last=index == len(parts) - 1):
                found = self._losses(batch, rows)
                self._scaler.scale(found["loss"] * share).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach() * share
        if moved(self._optimiser, self._scaler) and self._ema is not None:
            self._ema.update()
        values = parallel.averaged(torch.stack(list(losses.values()))).tolist()
        return dict(zip(losses, values, strict=True))

    def snapshot(self) -> Snapshot:
        """Return network, optimiser, average, the scale of the gradients and the state of the random numbers."""
        parts = {
            "network": of_network(self._network),
            "optimiser": of_optimiser(self._optimiser),
            "own": Snapshot({"rng": self._rng.get_state()}, {"frozen": self._frozen}),
            "scaler": Snapshot({}, self._scaler.state_dict()),
        }
        return joined(parts if self._ema is None else {**parts, "ema": self._ema.snapshot()})

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot; raises ConfigError if it is that of another network."""
        own = part(snapshot, "own")
        to_network(self._network, part(snapshot, "network"))
        self._enter(frozen=bool(own.values["frozen"]))
        to_optimiser(self._optimiser, part(snapshot, "optimiser"))
        if self._ema is not None:
            self._ema.restore(part(snapshot, "ema"))
        if scale := part(snapshot, "scaler").values:
            self._scaler.load_state_dict(dict(scale))
        self._rng.set_state(own.tensors["rng"])

    def export(self) -> Exported:
        """Return the network's weights under the original's names, and the scale that they are for."""
        tensors = self._network.state_dict() if self._ema is None else self._ema.tensors()
        config = {"mpp": self._mpp, "normalisation": self.settings.normalisation}
        return Exported({FILE: {name: copied(tensor) for name, tensor in tensors.items()}}, config)

    def _is_frozen(self, epoch: int) -> bool:
        return self.settings.phase == 1 or epoch <= self.settings.frozen_epochs

    def _enter(self, *, frozen: bool) -> None:
        """Start a phase: with the encoder frozen or free, and an optimiser that knows what learns."""
        self._frozen = self._network.frozen = frozen
        still = [self._network.d0["units"], *(getattr(self._network, name) for name in _ENCODER[1:])]
        for module in still:
            module.requires_grad_(not frozen)
        self._optimiser = adam([self._network], lr=self.settings.lr, betas=(0.9, 0.999), fused=self.settings.fused)
        self._wrapped = parallel.wrapped(self._network, self._device)
        if self.settings.compile:
            self._wrapped = import_torch("train hovernet").compile(self._wrapped)

    def _losses(self, batch: Labelled, rows: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
        torch = import_torch("train hovernet")
        pixels = torch.from_numpy(np.ascontiguousarray(batch.pixels[rows])).to(self._device).permute(0, 3, 1, 2).float()
        labels = torch.from_numpy(batch.labels[rows].astype(np.int64)).to(self._device)
        types = None
        if self.settings.types:
            types = middle(torch.from_numpy(batch.types[rows].astype(np.int64)).to(self._device), self._output_px)
        hv, nuclear = distance_maps(labels, self._output_px)
        if self.settings.recolour:
            pixels = recoloured(pixels, self._rng)
        if self.settings.keeps_channels_last(self._device):
            pixels = pixels.to(memory_format=torch.channels_last)
        with autocast(self._device, self._precision):
            maps = self._wrapped(pixels)
        return total(maps, hv, nuclear, types, axes=self.settings.gradient)

    def _check_types(self, batch: Labelled) -> None:
        if not self.settings.types:
            return
        if batch.types is None:
            raise ConfigError(
                f"{self.settings.types} types are to be learned, but the pictures have none.\n"
                "Put NAME_types.png beside NAME.png and NAME_labels.png, or set learner.types=0."
            )
        if int(batch.types.max()) >= self.settings.types:
            raise ConfigError(
                f"The pictures have a type {batch.types.max()}; learner.types={self.settings.types} has 0 to "
                f"{self.settings.types - 1}, background included.\nSet learner.types={batch.types.max() + 1} or more."
            )


def learner(settings: Training, *, device: str, seed: int, mpp: float, patch_px: int) -> HoVerNetLearner:
    """Return HoVer-Net with fresh weights, or those that the settings start from."""
    return HoVerNetLearner(settings, device=device, seed=seed, mpp=mpp, patch_px=patch_px)


def _check_start(settings: Training) -> None:
    """Refuse a phase of the paper from weights that nothing was learned by."""
    phase = settings.phase or (1 if settings.frozen_epochs else None)
    if phase is None or settings.start is not None:
        return
    why = "keeps the encoder as it is" if phase == 1 else "goes on from what phase 1 learned"
    raise ConfigError(
        f"Phase {phase} of HoVer-Net {why}, so that it has to start from a file; learner.start names none.\n"
        f"Wanted is {_NEEDED[phase]}: --set learner.start=FILE\n"
        "To train without such a file: --preset scratch"
    )


def _output_px(design: Design, patch_px: int) -> int:
    try:
        return design.output_of(patch_px)
    except ConfigError as error:
        raise ConfigError(f"{error}\nPass --set patch_px={design.window_px}") from None


def _begin_from(network: torch.nn.Module, path: Path, *, whole: bool) -> None:
    """Take over what a checkpoint holds of the network: the encoder, and the decoders of nuclei where it has them; types may be new.

    The decoders must be there where `whole`.
    """
    state = read_state(path)
    own = network.state_dict()
    known = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    parts = ["conv0.", *(f"{level}." for level in _ENCODER)]
    branches = ("decoder.np.", "decoder.hv.")
    parts += [branch for branch in branches if whole or any(name.startswith(branch) for name in state)]
    needed = [name for name in own if name.startswith(tuple(parts)) and not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in known]
    if missing:
        wanted = _NEEDED[2] if whole else "a checkpoint of HoVer-Net in the same mode, or of its encoder alone"
        raise ConfigError(
            f"{path.name!r} cannot be started from: it has no {missing[0]!r} of this mode and width "
            f"(and {len(missing) - 1} more do not fit).\nName {wanted}."
        )
    network.load_state_dict({**own, **known})
