"""CycleGAN in training: IHC and H&E, each turned into the other and back. Source: models/cycle_gan_model.py of the original."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from stainbridge import RGB, Exported, Snapshot, Unpaired
from stainbridge.errors import ConfigError
from stainbridge.torchkit import parallel, resolve_device
from stainbridge.torchkit.generators import FILE, MULTIPLE_OF
from stainbridge.torchkit.training import (
    EMA,
    Ensemble,
    ImagePool,
    LearnerSettings,
    Losses,
    distance,
    joined,
    part,
    resolve_precision,
)

from .losses import adversarial, discrimination
from .networks import discriminator, generator, initialise
from .schedule import share

if TYPE_CHECKING:
    import torch

_DATA = {"patch_px": 256, "resize_px": 286, "flips": "horizontal"}
# The original knows no mixed precision.
_LEARNER = {"precision": "fp32", "constant_epochs": 100, "decay_epochs": 100, "legacy_schedule": True}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # The paper does not say how its 30 epochs are split; the original's 100 + 100 stopped early is a constant rate.
        "paper": {"epochs": 30, "batch_size": 10, **_DATA, "learner": _LEARNER},
        "original": {"epochs": 200, "batch_size": 1, **_DATA, "learner": _LEARNER},
    }
)
"""Trainings of the paper and of the original implementation, in single precision."""


class Training(LearnerSettings):
    """Networks, losses and schedule; the defaults are the original's, but for the schedule's length and its off-by-one."""

    channels: int = Field(64, ge=1, description="of the first convolution of each network")
    blocks: int = Field(9, ge=1, description="residual blocks of a generator")
    layers: int = Field(3, ge=1, description="convolutions of stride 2 of a discriminator; 3 judge patches of 70 px")
    lambda_ihc: float = Field(10.0, ge=0, description="weight of IHC -> H&E -> IHC (lambda_A)")
    lambda_he: float = Field(10.0, ge=0, description="weight of H&E -> IHC -> H&E (lambda_B)")
    lambda_identity: float = Field(
        0.5, ge=0, description="weight, times those of the cycles, of leaving a picture of the target's stain as it is"
    )
    pool_size: int = Field(50, ge=0, description="past pictures that a discriminator may be shown; 0: new ones only")
    lr: float = Field(2e-4, gt=0, description="learning rate at first")
    beta1: float = Field(0.5, ge=0, lt=1, description="decay of Adam's first moment")
    constant_epochs: int | None = Field(None, ge=0, description="epochs at the full rate; None: those before the decay")
    decay_epochs: int | None = Field(None, ge=0, description="epochs of falling rate; None: those left, or half of all")
    legacy_schedule: bool = Field(
        False, description="the original's: all of it one epoch early, and nothing is learnt in the last"
    )


class _Faked(NamedTuple):
    """Real and, without gradients, fake pictures of both stains."""

    ihc: torch.Tensor
    he: torch.Tensor
    fake_ihc: torch.Tensor
    fake_he: torch.Tensor


class CycleGANLearner:
    """Two generators and two discriminators.

    "he" and "ihc" in the names of networks and losses are the stain that a network makes or judges: `generator_he` is the original's
    G_A, and `discriminator_he` its D_A.
    """

    def __init__(self, settings: Training, *, device: str, seed: int, mpp: float, patch_px: int) -> None:
        least = 3 * 2**settings.layers
        if patch_px % MULTIPLE_OF or patch_px < least:
            raise ConfigError(
                f"CycleGAN learns from patches whose side is a multiple of {MULTIPLE_OF} and, for discriminators of {settings.layers} "
                f"layers, {least} px or more; found {patch_px}.\nSet patch_px = 256, as the original."
            )
        self.settings = settings
        rim_px = min(16, patch_px // 8)
        self._exported = {"mpp": mpp, "tile_px": patch_px, "halo_px": rim_px, "blend_px": rim_px}
        place = resolve_device(device)
        networks = _networks(settings, seed)
        self.ensemble = Ensemble(
            networks,
            device=place,
            precision=resolve_precision(settings.precision, place),
            channels_last=settings.keeps_channels_last(place),
            compiled=networks if settings.compile else (),
        )
        adam = {"lr": settings.lr, "betas": (settings.beta1, 0.999), "fused": settings.fused}
        self.ensemble.team("generators", "generator_he", "generator_ihc", **adam)
        self.ensemble.team("discriminators", "discriminator_he", "discriminator_ihc", **adam)
        # Each process of a group has pools of its own.
        self._pools = {
            stain: ImagePool(settings.pool_size, rng=np.random.default_rng([seed, parallel.rank(), number]))
            for number, stain in enumerate(("ihc", "he"))
        }
        self._average = EMA(self.ensemble.networks["generator_he"], settings.ema) if settings.ema else None

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """Set the learning rate of epoch `epoch` of `epochs`, counted from 1."""
        constant, decay = self._split(epochs)
        self.ensemble.rate(
            self.settings.lr * share(epoch, constant=constant, decay=decay, legacy=self.settings.legacy_schedule)
        )

    def step(self, batch: Unpaired) -> Losses:
        """Learn from pictures of both stains, generators first; return the weighted losses, whose sums are what is learnt."""
        parts = self.ensemble.parts(batch.ihc, batch.he, count=self.settings.accumulate)
        losses, faked = self.ensemble.descend("generators", parts, self._generate)
        if self._average and self.ensemble.moved["generators"]:
            self._average.update()
        judged, _ = self.ensemble.descend("discriminators", [self._exchanged(one) for one in faked], self._judge)
        return Losses({**losses, **judged})

    def reconstruct(self, he: RGB) -> RGB:
        """Return uint8 (N, H, W, 3) IHC for virtual H&E of that shape, in tiles of the training's size."""
        return self.ensemble.pictures("generator_ihc", he, side=self._exported["tile_px"])

    def snapshot(self) -> Snapshot:
        """Return everything it takes to go on from here; the pools are those of this process."""
        pools = {f"pool.{stain}": pool.snapshot() for stain, pool in self._pools.items()}
        average = {"average": self._average.snapshot()} if self._average else {}
        return joined({"networks": self.ensemble.snapshot(), **pools, **average})

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of a learner with the same settings."""
        self.ensemble.restore(part(snapshot, "networks"))
        for stain, pool in self._pools.items():
            pool.restore(part(snapshot, f"pool.{stain}"), self.ensemble.device)
        if self._average:
            self._average.restore(part(snapshot, "average"))

    def export(self) -> Exported:
        """Return the generator of H&E, its averaged weights where there are some."""
        return Exported({FILE: self.ensemble.weights("generator_he", self._average)}, self._exported)

    def _split(self, epochs: int) -> tuple[int, int]:
        constant, decay = self.settings.constant_epochs, self.settings.decay_epochs
        if constant is not None and decay is not None and epochs > constant + decay:
            raise ConfigError(
                f"The learning rate is 0 after {constant} + {decay} epochs (learner.constant_epochs, learner.decay_epochs); "
                f"{epochs} were asked for.\nPass --epochs {constant + decay}, or set both so that they fill all epochs."
            )
        if decay is None:
            decay = epochs // 2 if constant is None else max(0, epochs - constant)
        return (max(0, epochs - decay) if constant is None else constant), decay

    def _generate(self, real: tuple[torch.Tensor, torch.Tensor]) -> tuple[dict[str, torch.Tensor], _Faked]:
        ihc, he = real
        lambdas = {"ihc": self.settings.lambda_ihc, "he": self.settings.lambda_he}
        fake_he, same_he = self._made("generator_he", ihc, he)
        fake_ihc, same_ihc = self._made("generator_ihc", he, ihc)
        losses = {
            "adversarial_he": adversarial(self.ensemble.run("discriminator_he", fake_he), real=True),
            "adversarial_ihc": adversarial(self.ensemble.run("discriminator_ihc", fake_ihc), real=True),
            "cycle_ihc": lambdas["ihc"] * distance(self.ensemble.run("generator_ihc", fake_he), ihc),
            "cycle_he": lambdas["he"] * distance(self.ensemble.run("generator_he", fake_ihc), he),
        }
        if same_he is not None and same_ihc is not None:
            losses["identity_he"] = self.settings.lambda_identity * lambdas["he"] * distance(same_he, he)
            losses["identity_ihc"] = self.settings.lambda_identity * lambdas["ihc"] * distance(same_ihc, ihc)
        return losses, _Faked(ihc, he, fake_ihc.detach(), fake_he.detach())

    def _made(self, name: str, source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a generator's pictures of its source stain, and of its target stain where identity counts.

        Both in one pass: each picture is normalised by itself, so the batch makes no difference.
        """
        import torch

        if not self.settings.lambda_identity:
            return self.ensemble.run(name, source), None
        fake, same = self.ensemble.run(name, torch.cat([source, target])).split(len(source))
        return fake, same

    def _exchanged(self, faked: _Faked) -> _Faked:
        fake_ihc, fake_he = self._pools["ihc"].exchange(faked.fake_ihc), self._pools["he"].exchange(faked.fake_he)
        return faked._replace(fake_ihc=fake_ihc, fake_he=fake_he)

    def _judge(self, faked: _Faked) -> tuple[dict[str, torch.Tensor], None]:
        import torch

        losses = {}
        for stain, real, fake in (("he", faked.he, faked.fake_he), ("ihc", faked.ihc, faked.fake_ihc)):
            values = self.ensemble.run(f"discriminator_{stain}", torch.cat([real, fake]))
            losses[f"discriminator_{stain}"] = discrimination(*values.split(len(real)))
        return losses, None


def learner(settings: Training, *, device: str, seed: int, mpp: float, patch_px: int) -> CycleGANLearner:
    """Return a learner with fresh networks; see `stainbridge.Trainable`."""
    return CycleGANLearner(settings, device=device, seed=seed, mpp=mpp, patch_px=patch_px)


def _networks(settings: Training, seed: int) -> dict[str, torch.nn.Module]:
    made = {
        "generator_he": generator(channels=settings.channels, blocks=settings.blocks),
        "generator_ihc": generator(channels=settings.channels, blocks=settings.blocks),
        "discriminator_he": discriminator(channels=settings.channels, layers=settings.layers),
        "discriminator_ihc": discriminator(channels=settings.channels, layers=settings.layers),
    }
    for network, own in zip(made.values(), np.random.SeedSequence(seed).generate_state(len(made)), strict=True):
        initialise(network, int(own))
    return made
