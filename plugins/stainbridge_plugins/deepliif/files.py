"""The files of a DeepLIIF model: which are there, which are needed, and the tensors in them.

Source: github.com/nadeemlab/DeepLIIF, deepliif/models/__init__.py. A folder holds checkpoints `latest_net_G1.pth` and so on, or
TorchScript modules `G1.pt` and so on. Of the latter only the tensors are taken: the program in them is not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stainbridge.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from stainbridge.torchkit.checkpoints import cleaned, fit_or_refuse
from stainbridge.weights import load_state_dict, load_torchscript

from . import options
from .networks import modality_generator, seg_generator
from .options import Options
from .settings import NetworkSettings, SegWeights

if TYPE_CHECKING:
    import torch

SEGMENTATIONS = ("G51", "G52", "G53", "G54", "G55")
"""Networks that segment, in the order of the shares: from IHC, haematoxylin, DAPI, Lap2 and marker."""
STAIN_OF = {"G52": "G1", "G53": "G2", "G54": "G3", "G55": "G4"}
"""The network that makes the virtual stain which a segmentation is given; G51 is given the IHC."""
MARKER = "G4"

_PATTERNS = {"checkpoint": "latest_net_{}.pth", "torchscript": "{}.pt"}
_MODEL_PAGE = "zenodo.org/records/4751737 (DeepLIIF_Latest_Model.zip)"


@dataclass(frozen=True)
class ModelFiles:
    """A model on the disk.

    Parameters
    ----------
    by_network : the file of each network that is needed
    kind : of those files
    options : of the model
    options_file : where they are from, if there is such a file
    """

    by_network: Mapping[str, Path]
    kind: Literal["checkpoint", "torchscript"]
    options: Options
    options_file: Path | None

    @property
    def by_name(self) -> dict[str, Path]:
        """All files by their names, for the provenance of a result."""
        found = [*self.by_network.values(), *([self.options_file] if self.options_file else [])]
        return {path.name: path for path in found}

    def network(self, name: str, *, own_statistics: bool) -> torch.nn.Module:
        """Return a network with its weights, on the CPU and in evaluation.

        Raises
        ------
        WeightsCorrupt
            If the file is broken, is a pickle of other things, or holds another network: with the first tensor that does not fit.
        WeightsUnavailable
            If it is gone.
        """
        import torch

        path, made = self.by_network[name], self.options
        layers = {"ngf": made.ngf, "dropout": made.dropout, "own_statistics": own_statistics}
        with torch.device("meta"):
            network = (
                seg_generator(**layers) if name in SEGMENTATIONS else modality_generator(padding=made.padding, **layers)
            )
        state = self._state(path)
        absent = [key for key in network.state_dict() if ".running_" in key and key not in state]
        if (
            own_statistics
        ):  # those of the training are not looked at, and absent from what releases from 1.1.6 on serialise
            state |= {key: torch.zeros(network.get_buffer(key).shape) for key in absent}
        elif absent and not any(".running_" in key for key in state):
            raise WeightsCorrupt(
                f"{path.name!r} has no statistics of the training, as networks serialised by releases from 1.1.6 on.\n"
                f'Run it with batch_norm = "batch".\nPath: {path}'
            )
        what = "a segmentation network" if name in SEGMENTATIONS else "a network of virtual stains"
        fit_or_refuse(network, state, path, name=f"{name} of DeepLIIF, {what} of {made.ngf} channels")
        return network.eval()

    def _state(self, path: Path) -> dict[str, torch.Tensor]:
        state = load_state_dict(path) if self.kind == "checkpoint" else load_torchscript(path).state_dict()
        # Counters of trained batches are of no use here, and the networks have none.
        return {key: tensor for key, tensor in cleaned(state).items() if not key.endswith("num_batches_tracked")}


def model_files(settings: NetworkSettings, weights: Mapping[str, Path], plugin: str) -> tuple[ModelFiles, SegWeights]:
    """Find the files of the networks that the settings need, and the shares of their segmentations.

    A folder that is named goes before `weights`, the files that the registry gives. A network whose share is 0 is not needed.

    Raises
    ------
    WeightsUnavailable
        If there is no folder and no file, or some are missing; names them.
    ConfigError
        If `path` is no folder.
    WeightsCorrupt
        If the options file cannot be used.
    """
    here = dict(weights) if settings.path is None else _in_folder(settings.path, plugin)
    if not here:
        raise WeightsUnavailable(
            f"{plugin} has no networks: neither a folder nor registered files were given.\n"
            f"Unpack {_MODEL_PAGE} and name its folder: --set segmenter.path=FOLDER --set classifier.path=FOLDER"
        )
    opened = Options.read(here[options.FILE]) if options.FILE in here else Options()
    shares = settings.shares(opened.seg_weights)
    kind, by_network = _complete(here, list(needed(shares)), settings.path, plugin)
    return ModelFiles(by_network, kind, opened, here.get(options.FILE)), shares


def needed(shares: SegWeights) -> Iterable[str]:
    """Yield the networks that a sum with these shares is made by, virtual stains first."""
    segmentations = [name for name, share in zip(SEGMENTATIONS, shares, strict=True) if share > 0]
    yield from (STAIN_OF[name] for name in segmentations if name in STAIN_OF)
    yield from segmentations


def _in_folder(path: Path, plugin: str) -> dict[str, Path]:
    if not path.is_dir():
        found = "is a file" if path.exists() else "is not there"
        raise ConfigError(
            f"{plugin}: path must be a folder with latest_net_G1.pth and so on, or G1.pt and so on; {path} {found}."
        )
    return {file.name: file for file in sorted(path.iterdir()) if file.is_file()}


def _complete(
    here: Mapping[str, Path], networks: list[str], folder: Path | None, plugin: str
) -> tuple[Literal["checkpoint", "torchscript"], dict[str, Path]]:
    """Return the kind of which every file is there, checkpoints first, and the files."""
    missing: dict[str, list[str]] = {}
    for kind, pattern in _PATTERNS.items():
        files = {network: pattern.format(network) for network in networks}
        missing[kind] = [file for file in files.values() if file not in here]
        if not missing[kind]:
            return kind, {network: here[file] for network, file in files.items()}  # type: ignore[return-value]
    closest = min(missing.values(), key=len)
    where = folder or "the registered files"
    raise WeightsUnavailable(
        f"{plugin} needs {len(networks)} networks; missing in {where}: {', '.join(closest)}.\n"
        f"Needed are latest_net_G1.pth and so on, or all as TorchScript: G1.pt and so on. See {_MODEL_PAGE}."
    )
