"""HoVer-Net as a segmenter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from stainbridge import RGB, Described, LabelMap, Learner, PluginConfig, Segmenter, Wants
from stainbridge.errors import ConfigError, WeightsUnavailable
from stainbridge.torchkit import AskedPrecision

from .beside import Beside, Place
from .checkpoint import read_network
from .engines import Engine, EngineName, Maps
from .learner import PRESETS, Training, learner
from .network import Design, Mode
from .nuclei import Found, Nuclei, found_in, nuclei_of
from .postprocessing import Normalisation, Rules, require_cv2
from .windows import joined, windows_of

# A window sees 46 or 95 px beyond its output, and nuclei are up to 40 px from their centre to their rim.
_HALO_PX = 96
_TILES_AT_ONCE = 4
_BATCHES_AHEAD = 2


class HoVerNet(Segmenter):
    """Finds nuclei and their types with the network of Graham et al., Medical Image Analysis 58 (2019).

    The network runs window by window as the original does, without blending, and a tile is post-processed as a whole. With
    `normalisation = "original"` the extent that gradients are measured over is that tile: in a picture of one tile the labels are the
    original's, in a larger one they depend on where its tiles lie. With "fixed" they do so only as far as the network does: its windows
    start where a tile does, and see it mirrored at its rim.
    """

    name = "hovernet"
    api = 1
    expected_failures: ClassVar[Mapping[str, str]] = {
        "does_not_depend_on_the_window": "the original measures gradients against the extremes of each tile"
    }
    Training = Training
    presets = PRESETS
    learns_from = "labelled"

    class Config(PluginConfig):
        """The network, how it is run, and what counts as a nucleus."""

        path: Path | None = Field(
            None, description="a checkpoint: .tar of the original program, or hovernet.safetensors of a training here"
        )
        mode: Literal["auto"] | Mode = Field(
            "auto",
            description="which network the file must hold: original (270 -> 80 px), fast (256 -> 164 px), or either",
        )
        types: int | None = Field(
            None, ge=0, description="how many types the file must have, background included; 0: none; unset: any number"
        )
        type_names: tuple[str, ...] = Field((), description="names of the types in their order, background first")
        mpp: float = Field(0.25, gt=0, le=10, description="micrometres per pixel that the network was trained on")
        normalisation: Normalisation = Field(
            "original",
            description="original: gradients are measured against the extremes of each tile, so one bright spot can erase nuclei far from "
            "it; fixed: against constants, which is not what the paper did",
        )
        least_probability: float = Field(0.5, gt=0, lt=1, description="a pixel is in a nucleus from this value up")
        edge: float = Field(0.4, gt=0, lt=1, description="a pixel parts two nuclei from this value up")
        least_px: int = Field(10, ge=1, description="smaller pieces of foreground, and cores of nuclei, are left out")
        engine: EngineName = Field(
            "torch", description="what runs the network: torch, its compiler, or OpenVINO on a CPU"
        )
        precision: AskedPrecision = Field(
            "fp32", description="fp32, bf16, fp16 (CUDA only), or auto, the fastest that the device has"
        )
        batch_size: int = Field(16, ge=1, le=1024, description="windows at once on a GPU; a CPU takes one")
        workers: int = Field(2, ge=1, le=64, description="how many make nuclei of maps while the network goes on")
        beside: Place = Field(
            "auto",
            description="where: threads, or processes, which keep a GPU busy; auto: processes beside a GPU, threads on a CPU",
        )

        @model_validator(mode="after")
        def _as_many_names(self) -> HoVerNet.Config:
            if self.type_names and self.types not in (None, len(self.type_names)):
                raise ValueError(f"type_names has {len(self.type_names)} names, and types is {self.types}")
            return self

    def __init__(
        self,
        config: PluginConfig | None = None,
        *,
        weights: Mapping[str, Path] | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(config, weights=weights, device=device)
        require_cv2()
        if self.config.normalisation == "fixed":
            self.expected_failures = {}
        self._file = self._one_file()
        self.weights = {self._file.name: self._file}
        network = read_network(self._file, mode=self.config.mode, types=self.config.types)
        self.design: Design = network.design  # type: ignore[assignment]
        self._check_names()
        self._engine = Engine(
            network,
            device=device,
            name=self.config.engine,
            precision=self.config.precision,
            batch_size=self.config.batch_size,
        )
        processes = self._engine.on_gpu if self.config.beside == "auto" else self.config.beside == "processes"
        self._beside = Beside(self.config.workers, processes=processes)
        self._rules = Rules(
            **self.config.model_dump(include={"normalisation", "least_probability", "edge", "least_px"})
        )

    @classmethod
    def learner(cls, settings: Any, *, device: str, seed: int, mpp: float, patch_px: int) -> Learner:
        """Return HoVer-Net with fresh weights, ready to learn; see `stainbridge.Trainable`."""
        return learner(settings, device=device, seed=seed, mpp=mpp, patch_px=patch_px)

    @property
    def wants(self) -> Wants:
        """H&E at the network's scale, with room for what it sees beyond a nucleus; any size."""
        return Wants(stain="he", mpp=self.config.mpp, halo=_HALO_PX)

    @property
    def batch_size(self) -> int:
        """Tiles at once."""
        return _TILES_AT_ONCE

    @property
    def type_names(self) -> tuple[str, ...]:
        """The names of the types, background first; numbers where none were configured, and nothing without types."""
        return self.config.type_names or tuple(map(str, range(self.design.types)))

    def segment(self, batch: RGB) -> LabelMap:
        """Segment uint8 (N, H, W, 3) H&E into int32 (N, H, W), ids 0..n without gaps per image.

        Raises
        ------
        ConfigError, WeightsCorrupt
            If the network gives values that are not finite.
        DeviceUnavailable
            If a single window does not fit into the memory of the device.
        """
        return self.describe(batch).labels

    def describe(self, batch: RGB) -> Described:
        """Segment uint8 (N, H, W, 3) H&E, and tell of each nucleus its type, a position in `type_names`, and the type's share.

        A network without types tells nothing. Errors are those of `segment`.
        """
        return next(self.stream([batch]))

    def stream(self, batches: Iterable[RGB]) -> Iterator[Described]:
        """Yield what `describe` gives for each batch; the network runs on later ones while the nuclei of a batch are made."""
        begun: deque[list[Future[Nuclei]]] = deque()
        for batch in batches:
            begun.append([self._beside.submit(nuclei_of, *self._task(picture)) for picture in batch])
            if len(begun) > _BATCHES_AHEAD:
                yield _described(begun.popleft())
        yield from map(_described, begun)

    def segment_with_types(self, batch: RGB) -> list[Found]:
        """Segment uint8 (N, H, W, 3) H&E and measure each nucleus; the labels are those of `segment`, and so are the errors.

        Types are positions in `type_names`.
        """
        begun = [self._beside.submit(found_in, *self._task(picture)) for picture in batch]
        return [one.result() for one in begun]

    def _task(self, picture: RGB) -> tuple[Maps, Rules]:
        return self._maps(picture), self._rules

    def _maps(self, picture: RGB) -> Maps:
        windows = windows_of(picture, self.design.window_px, self.design.output_px)
        return joined(self._engine.maps(windows, file=self._file), *picture.shape[:2])

    def _one_file(self) -> Path:
        if self.config.path is not None:
            return Path(self.config.path).expanduser()
        if len(self.weights) == 1:
            return next(iter(self.weights.values()))
        if self.weights:
            raise ConfigError(f"hovernet takes one weight file; found {', '.join(sorted(self.weights))}.")
        raise WeightsUnavailable(
            "segmenter 'hovernet' has no network.\nSet path to a checkpoint of the original (.tar, see stainbridge models list) "
            "or of a training here (hovernet.safetensors): --set segmenter.path=FILE"
        )

    def _check_names(self) -> None:
        names = self.config.type_names
        if names and len(names) != self.design.types:
            raise ConfigError(
                f"type_names has {len(names)} names; {self._file.name!r} has {self.design.types or 'no'} types "
                f"{'with background' if self.design.types else ''}".rstrip()
                + ".\nName each type, background first."
            )


def _described(made: list[Future[Nuclei]]) -> Described:
    found = [one.result() for one in made]
    return Described(np.stack([labels for labels, _ in found]), [values for _, values in found])
