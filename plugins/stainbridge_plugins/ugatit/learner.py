"""U-GAT-IT in training: IHC and H&E, each turned into the other and back. Source: UGATIT.py of the original's PyTorch code."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from stainbridge import RGB, Exported, Snapshot, Unpaired
from stainbridge.errors import ConfigError
from stainbridge.torchkit import import_torch, resolve_device
from stainbridge.torchkit.generators import FILE, MULTIPLE_OF
from stainbridge.torchkit.training import (
    EMA,
    Ensemble,
    LearnerSettings,
    Losses,
    distance,
    joined,
    part,
    resolve_precision,
)

from .losses import adversarial, attention
from .networks import clip_rho, discriminator, generator

if TYPE_CHECKING:
    import torch

STAINS = ("he", "ihc")
REACHES = ("global", "local")
GENERATORS = tuple(f"generator_{stain}" for stain in STAINS)

_DATA = {"patch_px": 256, "resize_px": 286, "resize_by": "bilinear", "flips": "horizontal"}
# The original knows no mixed precision.
_FULL = {"light": False, "precision": "fp32"}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # The paper does not name the mode; "uses more memory since it has fully connected layers" is the full one.
        "paper": {"epochs": 20, "batch_size": 2, **_DATA, "learner": _FULL},
        "light": {"epochs": 20, "batch_size": 2, **_DATA, "learner": {"light": True}},
        "original": {"epochs": 100, "steps": 10_000, "batch_size": 1, **_DATA, "learner": _FULL},
    }
)
"""Trainings of the paper, of the paper with a network of a twentieth of the size, and of the original: 1,000,000 steps.

That of the paper and that of the original are in single precision.
"""


class Training(LearnerSettings):
    """Networks and losses; the defaults are the original's."""

    channels: int = Field(64, ge=1, description="of the first convolution of each network")
    blocks: int = Field(
        4, ge=1, description="residual blocks of a generator before its attention, and as many after it"
    )
    light: bool = Field(False, description="style from averages: a generator of 11 instead of 279 million weights")
    local_layers: int = Field(5, ge=3, description="of the local discriminators; 5 judge patches of 70 px")
    global_layers: int = Field(7, ge=3, description="of the global discriminators; 7 judge patches of 286 px")
    lambda_adversarial: float = Field(1.0, ge=0, description="weight of the discriminators' judgement, for both sides")
    lambda_cycle: float = Field(10.0, ge=0, description="weight of one stain -> the other -> back")
    lambda_identity: float = Field(10.0, ge=0, description="weight of leaving a picture of the target's stain as it is")
    lambda_cam: float = Field(1000.0, ge=0, description="weight of the attention's telling one stain from the other")
    lr: float = Field(1e-4, gt=0, description="learning rate in the first half of all steps; it then falls to 0")
    decay: bool = Field(True, description="let the learning rate fall in the second half")
    beta1: float = Field(0.5, ge=0, lt=1, description="decay of Adam's first moment")
    weight_decay: float = Field(1e-4, ge=0, description="coupled L2 decay of all parameters")


def share(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step of `steps`, from 1: whole in the first half, 0 at the last."""
    half = steps // 2
    return max(0.0, 1.0 - max(0, step - half) / half) if half else 1.0


class _Made(NamedTuple):
    """What a generator makes of pictures of its source stain and of its target stain: (N, 3, H, W) each, and their logits (N, 2)."""

    fake: torch.Tensor
    same: torch.Tensor
    fake_logits: torch.Tensor
    same_logits: torch.Tensor


class _Translated(NamedTuple):
    """Real pictures of both stains, and what the generators make of them."""

    ihc: torch.Tensor
    he: torch.Tensor
    made_ihc: _Made
    made_he: _Made


class UGATITLearner:
    """Two generators and, for each stain, a local and a global discriminator.

    "he" and "ihc" in the names of networks and losses are the stain that a network makes or judges: `generator_he` is the original's
    genA2B, `local_he` and `global_he` its disLB and disGB.
    """

    def __init__(self, settings: Training, *, device: str, seed: int, mpp: float, patch_px: int) -> None:
        layers = max(settings.local_layers, settings.global_layers)
        least = 3 * 2 ** (layers - 2)
        if patch_px % MULTIPLE_OF or patch_px < least:
            raise ConfigError(
                f"U-GAT-IT learns from patches whose side is a multiple of {MULTIPLE_OF} and, for discriminators of {layers} layers, "
                f"{least} px or more; found {patch_px}.\nSet patch_px = 256, as the original."
            )
        self.settings = settings
        rim_px = min(16, patch_px // 8)
        self._exported = {"mpp": mpp, "tile_px": patch_px, "halo_px": rim_px, "blend_px": rim_px}
        place = resolve_device(device)
        self.ensemble = Ensemble(
            _networks(settings, seed, patch_px),
            device=place,
            precision=resolve_precision(settings.precision, place),
            channels_last=settings.keeps_channels_last(place),
            compiled=GENERATORS if settings.compile else (),  # power iterations change discriminators at each call
        )
        judges = [f"{reach}_{stain}" for stain, reach in product(STAINS, REACHES)]
        adam = {"lr": settings.lr, "betas": (settings.beta1, 0.999), "weight_decay": settings.weight_decay}
        self.ensemble.team("generators", *GENERATORS, **adam, fused=settings.fused)
        self.ensemble.team("discriminators", *judges, **adam, fused=settings.fused)
        self._average = EMA(self.ensemble.networks["generator_he"], settings.ema) if settings.ema else None
        self._done, self._steps = 0, 0

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """Take note of how long the training is; the learning rate follows the steps done."""
        self._steps = epochs * steps

    def step(self, batch: Unpaired) -> Losses:
        """Learn from pictures of both stains, discriminators first; return the weighted losses, whose sums are what is learnt."""
        self._done += 1
        if self.settings.decay and self._steps:
            self.ensemble.rate(self.settings.lr * share(self._done, self._steps))
        parts = self.ensemble.parts(batch.ihc, batch.he, count=self.settings.accumulate)
        # Generators stand still while discriminators learn: one part is translated once for both steps. Several parts are translated
        # for each step, or the activations of all of them would be kept.
        once: list[Any] = [self._translated(*one) for one in parts] if len(parts) == 1 else parts
        judged, _ = self.ensemble.descend("discriminators", once, self._judge)
        losses, _ = self.ensemble.descend("generators", once, self._generate)
        for name in GENERATORS:
            clip_rho(self.ensemble.networks[name])
        if self._average and self.ensemble.moved["generators"]:
            self._average.update()
        return Losses({**losses, **judged})

    def reconstruct(self, he: RGB) -> RGB:
        """Return uint8 (N, H, W, 3) IHC for virtual H&E of that shape, in tiles of the training's size."""
        return self.ensemble.pictures("generator_ihc", he, side=self._exported["tile_px"])

    def snapshot(self) -> Snapshot:
        """Return everything it takes to go on from here."""
        average = {"average": self._average.snapshot()} if self._average else {}
        steps = Snapshot({}, {"done": self._done, "of": self._steps})
        return joined({"networks": self.ensemble.snapshot(), "steps": steps, **average})

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of a learner with the same settings."""
        self.ensemble.restore(part(snapshot, "networks"))
        steps = part(snapshot, "steps").values
        self._done, self._steps = int(steps["done"]), int(steps["of"])
        if self._average:
            self._average.restore(part(snapshot, "average"))

    def export(self) -> Exported:
        """Return the generator of H&E, its averaged weights where there are some."""
        return Exported({FILE: self.ensemble.weights("generator_he", self._average)}, self._exported)

    def _translated(self, ihc: torch.Tensor, he: torch.Tensor) -> _Translated:
        """Let each generator translate its source stain and keep its target stain, both in one pass: no layer mixes pictures."""
        import torch

        made = {}
        for stain, source, target in (("he", ihc, he), ("ihc", he, ihc)):
            pictures, logits, _ = self.ensemble.run(f"generator_{stain}", torch.cat([source, target]))
            made[stain] = _Made(*pictures.split(len(source)), *logits.split(len(source)))
        return _Translated(ihc, he, made["ihc"], made["he"])

    def _judge(self, one: Any) -> tuple[dict[str, torch.Tensor], None]:
        found = one if isinstance(one, _Translated) else self._translated(*one)
        losses = {}
        for stain, real, made in (("he", found.he, found.made_he), ("ihc", found.ihc, found.made_ihc)):
            for reach in REACHES:
                # One after the other: a discriminator moves its power iteration on at each call.
                truly = self.ensemble.run(f"{reach}_{stain}", real)
                falsely = self.ensemble.run(f"{reach}_{stain}", made.fake.detach())
                losses[f"discriminator_{reach}_{stain}"] = self.settings.lambda_adversarial * (
                    adversarial(truly, real=True) + adversarial(falsely, real=False)
                )
        return losses, None

    def _generate(self, one: Any) -> tuple[dict[str, torch.Tensor], None]:
        found = one if isinstance(one, _Translated) else self._translated(*one)
        losses = {}
        for stain, back, real, made in (
            ("he", "ihc", found.he, found.made_he),
            ("ihc", "he", found.ihc, found.made_ihc),
        ):
            for reach in REACHES:
                judged = self.ensemble.run(f"{reach}_{stain}", made.fake)
                losses[f"adversarial_{reach}_{stain}"] = self.settings.lambda_adversarial * adversarial(
                    judged, real=True
                )
            source = found.ihc if stain == "he" else found.he
            cycled = self.ensemble.run(f"generator_{back}", made.fake)[0]
            losses[f"cycle_{back}"] = self.settings.lambda_cycle * distance(cycled, source)
            losses[f"identity_{stain}"] = self.settings.lambda_identity * distance(made.same, real)
            losses[f"cam_{stain}"] = self.settings.lambda_cam * attention(made.fake_logits, made.same_logits)
        return losses, None


def learner(settings: Training, *, device: str, seed: int, mpp: float, patch_px: int) -> UGATITLearner:
    """Return a learner with fresh networks; see `stainbridge.Trainable`."""
    return UGATITLearner(settings, device=device, seed=seed, mpp=mpp, patch_px=patch_px)


def _networks(settings: Training, seed: int, patch_px: int) -> dict[str, torch.nn.Module]:
    """Return networks with the first weights that torch gives them, without a trace in its random numbers."""
    torch = import_torch("training")
    layers = {"global": settings.global_layers, "local": settings.local_layers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generators = {
            name: generator(channels=settings.channels, blocks=settings.blocks, size=patch_px, light=settings.light)
            for name in GENERATORS
        }
        judges = {
            f"{reach}_{stain}": discriminator(channels=settings.channels, layers=layers[reach])
            for stain, reach in product(STAINS, REACHES)
        }
    return {**generators, **judges}
