"""The original: stardist's StarDist2D on TensorFlow."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stainbridge import LabelMap
from stainbridge.errors import DeviceUnavailable, MissingExtra

from .design import Design
from .files import ModelFiles
from .instances import Thresholds, require_stardist


@dataclass(frozen=True)
class TensorFlowEngine:
    """A model on one device.

    Parameters
    ----------
    model : a `StarDist2D`
    channels : of its input
    place : TensorFlow's name of the device
    """

    model: Any
    channels: int
    place: str

    @classmethod
    def load(cls, files: ModelFiles, design: Design, *, device: str) -> TensorFlowEngine:
        """Load a model of the official format.

        Raises
        ------
        MissingExtra, DeviceUnavailable, WeightsCorrupt
        """
        from .keras_weights import read_keras

        require_stardist()
        read_keras(files.weights, design)  # says what does not fit where Keras would not
        with _silent():
            place = _place(device)
            engine = cls(_model(files, place), design.n_channel_in, place)
            # TensorFlow says more when it first computes.
            engine.maps(np.zeros((1, *design.multiple_of, design.n_channel_in), np.float32))
        return engine

    def maps(self, pictures: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Map float32 (N, H, W, C) to probability (N, h, w) and distances (N, h, w, rays)."""
        import tensorflow

        with _unadvised(), tensorflow.device(self.place):
            prob, dist = zip(*(self.model.predict(picture)[:2] for picture in pictures), strict=True)
        return np.stack(prob), np.stack(dist)

    def labels(self, pictures: NDArray[np.float32], thresholds: Thresholds) -> list[LabelMap]:
        """Segment float32 (N, H, W, C) into N label maps int32 (H, W)."""
        import tensorflow

        chosen = {"prob_thresh": thresholds.prob, "nms_thresh": thresholds.nms}
        with _unadvised(), tensorflow.device(self.place):
            return [self.model.predict_instances(picture, **chosen)[0] for picture in pictures]


def _model(files: ModelFiles, place: str) -> Any:
    import tensorflow
    from stardist.models import StarDist2D

    assert files.config is not None
    # StarDist2D wants its files in one folder and takes the newest .h5; ours may lie apart, or beside others.
    with tempfile.TemporaryDirectory() as folder, tensorflow.device(place):
        for path, name in ((files.config, "config.json"), (files.weights, "weights_best.h5")):
            shutil.copyfile(path, Path(folder, name))
        return StarDist2D(None, name=Path(folder).name, basedir=str(Path(folder).parent))


def _place(device: str) -> str:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
    except ImportError:
        raise MissingExtra.of("stardist with backend 'tensorflow'", "tensorflow", "stardist") from None
    if device == "cpu":
        return "/CPU:0"
    found = len(tensorflow.config.list_physical_devices("GPU"))
    index = int(device.partition(":")[2] or 0)
    if index >= found:
        raise DeviceUnavailable(
            f"{device!r} was asked for, and TensorFlow {tensorflow.__version__} sees {found} GPUs.\n"
            'Take device "cpu", or backend = "torch", or install a TensorFlow with CUDA: pip install "tensorflow[and-cuda]"'
        )
    return f"/GPU:{index}"


@contextlib.contextmanager
def _unadvised() -> Iterator[None]:
    """Keep back TensorFlow's advice on every new size of tile."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep back what stardist and TensorFlow print and warn of, from Python and from C++; an error brings it out."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        try:
            with contextlib.ExitStack() as stack:
                for stream in (1, 2):
                    stack.callback(_restore, stream, os.dup(stream))
                    os.dup2(kept.fileno(), stream)
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                yield
        except BaseException:
            kept.seek(0)
            sys.stderr.write(kept.read().decode(errors="replace"))
            raise


def _restore(stream: int, original: int) -> None:
    os.dup2(original, stream)
    os.close(original)
