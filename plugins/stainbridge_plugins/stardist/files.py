"""Which files make up a StarDist model, and its thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stainbridge.errors import ConfigError, WeightsCorrupt, WeightsUnavailable

KERAS = (".h5", ".hdf5")
TORCH = (".t7", ".pt", ".pth", ".safetensors")
HE_ARCHIVE = "https://github.com/stardist/stardist-models/releases/download/v0.1/python_2D_versatile_he.zip"
_PREFERRED = ("weights_best.h5", "weights_last.h5")
_FORMS = "a folder with config.json and weights_best.h5, such a .h5 file, or a state dict of stardist_pytorch (.t7, .pt, .pth)"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model.

    Parameters
    ----------
    weights : a Keras .h5, or a torch state dict
    config, thresholds : of the official format; None where there is none
    """

    weights: Path
    config: Path | None = None
    thresholds: Path | None = None

    @property
    def by_name(self) -> dict[str, Path]:
        """The files by their own names, as a plugin lists its weights."""
        return {path.name: path for path in (self.config, self.thresholds, self.weights) if path is not None}

    def read_thresholds(self) -> tuple[float, float]:
        """Return the thresholds of probability and overlap that belong to the model.

        Where it has none: those of stardist (0.5 and 0.4), or those that stardist_pytorch predicts with (0.4 and 0.5).

        Raises
        ------
        WeightsCorrupt
            If thresholds.json does not hold two numbers between 0 and 1.
        """
        if self.thresholds is None:
            return (0.4, 0.5) if self.config is None else (0.5, 0.4)
        try:
            found = json.loads(self.thresholds.read_text("utf-8"))
            prob, nms = float(found["prob"]), float(found["nms"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WeightsCorrupt(f"{self.thresholds} does not hold 'prob' and 'nms': {error!r}.") from None
        if not (0 < prob < 1 and 0 < nms < 1):
            raise WeightsCorrupt(f"{self.thresholds}: thresholds must lie between 0 and 1; found {found}.")
        return prob, nms


def model_files(model: str | None, weights: Mapping[str, Path]) -> ModelFiles:
    """Return the files of the model at the path `model`, or else those that the registry gave.

    Raises
    ------
    ConfigError
        If it is something else than a model.
    WeightsUnavailable
        If there is neither, or the path or a file that must be there is missing.
    """
    if model is not None:
        return _at(Path(model).expanduser())
    if not weights:
        raise WeightsUnavailable(
            f"stardist was asked for without weights.\nSet model to {_FORMS}, or name a model that brings its own "
            "(see: stainbridge models list).\n2D_versatile_he, the authors' model for H&E: download and unpack "
            f"{HE_ARCHIVE}, then --set segmenter.model=FOLDER with stardist/he."
        )
    keras = [path for path in weights.values() if path.suffix in KERAS]
    if len(keras) == 1 and "config.json" in weights:
        return ModelFiles(keras[0], weights["config.json"], weights.get("thresholds.json"))
    other = [path for path in weights.values() if path.suffix in TORCH]
    if len(other) == 1 and not keras:
        return ModelFiles(other[0])
    raise ConfigError(
        f"A StarDist model is config.json with one .h5, or one state dict; found {', '.join(sorted(weights))}."
    )


def _at(path: Path) -> ModelFiles:
    if path.is_dir():
        return _official(path, _weights_in(path))
    if not path.exists():
        raise WeightsUnavailable(f"There is no StarDist model at {path}.\nIt should be {_FORMS}.")
    if path.suffix in KERAS:
        return _official(path.parent, path)
    if path.suffix in TORCH:
        return ModelFiles(path)
    raise ConfigError(f"{path} is not a StarDist model.\nIt should be {_FORMS}.")


def _official(folder: Path, weights: Path) -> ModelFiles:
    config, thresholds = folder / "config.json", folder / "thresholds.json"
    if not config.is_file():
        raise WeightsUnavailable(
            f"{config} is missing: {weights.name!r} needs it, since it says which network it is for."
        )
    return ModelFiles(weights, config, thresholds if thresholds.is_file() else None)


def _weights_in(folder: Path) -> Path:
    found = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in KERAS}
    for name in _PREFERRED:
        if name in found:
            return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    named = ", ".join(found) or "none"
    raise WeightsUnavailable(
        f"{folder} must hold weights_best.h5, or one .h5 file; found {named}.\nOr name the .h5 itself."
    )
