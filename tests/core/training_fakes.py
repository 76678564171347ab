"""A plugin that is trained without torch: it learns the colour of the H&E side. Subprocesses import it by name."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image as Pillow

from stainbridge import Exported, PluginConfig, Snapshot, Translator, Wants, hookimpl
from stainbridge.testing import synthetic_he, synthetic_ihc

FILE = "gain.safetensors"


class Training(PluginConfig):
    """Settings of the learner; `nan_at` (a loss), `breaks_at` (the weights, after the loss) and `pause_s` are for tests."""

    lr: float = 0.1
    noise: float = 0.01
    nan_at: int | None = None
    breaks_at: int | None = None
    pause_s: float = 0.0
    accumulate: int = 1


class TintLearner:
    """Moves the mean colour of IHC towards that of H&E, with noise that has to be remembered."""

    def __init__(self, settings, *, device, seed, mpp, patch_px):
        self.settings, self.mpp = settings, mpp
        self.gain = np.ones(3, np.float32)
        self.past = np.zeros((0, 3), np.float32)
        self.steps, self.rate = 0, 0.0
        self.rng = np.random.default_rng(seed)

    def begin(self, epoch, epochs, steps):
        self.rate = self.settings.lr * (1 - (epoch - 1) / epochs)

    def step(self, batch):
        time.sleep(self.settings.pause_s)
        self.steps += 1
        if os.environ.get("RANK") == "1" and os.environ.get("TEST_RANK_1_DIES_AT") == str(self.steps):
            os.kill(os.getpid(), signal.SIGKILL)
        ihc, he = (side.reshape(-1, 3).mean(axis=0, dtype=np.float64) / 255 for side in batch)
        self.past = np.concatenate([self.past, he[None].astype(np.float32)])[-7:]
        target = self.past[int(self.rng.integers(len(self.past)))]
        error = ihc * self.gain - target + self.settings.noise * self.rng.standard_normal(3)
        self.gain = (self.gain - self.rate * error).astype(np.float32)
        loss = float(np.square(error).mean())
        mean = float(self.gain.mean())
        if self.steps == self.settings.breaks_at:
            self.gain = np.full(3, np.nan, np.float32)
        return {"colour": float("nan") if self.steps == self.settings.nan_at else loss, "gain": mean}

    def snapshot(self):
        values = {"steps": self.steps, "rate": self.rate, "rng": self.rng.bit_generator.state}
        return Snapshot({"gain": self.gain.copy(), "past": self.past.copy(), "alike": np.ones(2, np.float32)}, values)

    def restore(self, snapshot):
        self.gain, self.past = snapshot.tensors["gain"], snapshot.tensors["past"]
        self.steps, self.rate = snapshot.values["steps"], snapshot.values["rate"]
        self.rng.bit_generator.state = snapshot.values["rng"]

    def export(self):
        return Exported({FILE: {"gain": self.gain}}, {"mpp": self.mpp})


PRESETS = MappingProxyType({"slow": {"epochs": 4, "batch_size": 2, "patch_px": 32, "learner": {"lr": 0.01}}})


class Tint(Translator):
    """Multiplies each channel."""

    name, api = "tint", 1
    Training, learns_from = Training, "unpaired"
    presets = PRESETS

    class Config(PluginConfig):
        mpp: float = 0.25

    def __init__(self, config=None, *, weights=None, device="cpu"):
        super().__init__(config, weights=weights, device=device)
        self.gain = plain_tensors(self.weights[FILE])["gain"]

    @property
    def wants(self):
        return Wants("ihc", mpp=self.config.mpp)

    def translate(self, batch):
        return np.clip(batch * self.gain, 0, 255).astype(np.uint8)

    @classmethod
    def learner(cls, settings, *, device, seed, mpp, patch_px):
        return TintLearner(settings, device=device, seed=seed, mpp=mpp, patch_px=patch_px)


class TintPlugin:
    @hookimpl
    def register_translators(self):
        return [Tint]


def plain_tensors(path):
    """Read float32 tensors of a safetensors file as its format says."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    places = {name: (entry["shape"], *entry["data_offsets"]) for name, entry in header.items()}
    return {
        name: np.frombuffer(data[start + a : start + b], "<f4").reshape(shape) for name, (shape, a, b) in places.items()
    }


def write_pictures(folder, stain, count=3, side=96):
    """Write synthetic pictures of one stain."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        make = synthetic_ihc if stain == "ihc" else synthetic_he
        Pillow.fromarray(make(shape=(side, side), nuclei=6, seed=seed).source.pixels).save(
            folder / f"{stain}{seed}.png"
        )
    return folder


def main():
    """Train, or go on: ``python training_fakes.py FOLDER SETTINGS``, the settings as JSON."""
    import stainbridge
    from stainbridge.discovery import register

    register(TintPlugin())
    stainbridge.train("tint", sys.argv[1], resume=True, **json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
