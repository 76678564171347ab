"""The options file of a DeepLIIF model, `train_opt.txt`: read as text, and nothing in it is evaluated.

A line is `key: value`, with `[default: ...]` behind where the value is another. Only the keys that decide which networks the
files hold are looked at, and each has a form that its value must have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stainbridge.errors import WeightsCorrupt

from .settings import SegWeights

FILE = "train_opt.txt"

_LARGEST_BYTES = 1 << 20
_PADDINGS = ("zero", "reflect", "replicate")
_ONLY = {
    "input_nc": ("3", "the networks here take RGB"),
    "output_nc": ("3", "the networks here make RGB"),
    "norm": ("batch", "the networks here have batch normalisation"),
    "model": ("DeepLIIF", "other models of that program have other networks"),
    "net_g": ("resnet_9blocks", "virtual stains are made by resnet_9blocks here"),
    "net_gs": ("unet_512", "segmentations are made by unet_512 here"),
    "input_no": ("1", "the networks here take one picture, the IHC"),
    "modalities_no": ("4", "there are four virtual stains here, haematoxylin, DAPI, Lap2 and marker"),
    "targets_no": ("5", "there are four virtual stains and one segmentation here"),
    "seg_gen": ("True", "nuclei are read from a segmentation, which such a model does not make"),
    "seg_no": ("1", "there is one segmentation here, of five networks"),
}
_REPLACED = {"targets_no": "modalities_no"}
"""Keys of older releases that newer ones do not look at where the key beside them is there."""
_SHARE = re.compile(r"\d(?:\.\d{0,17})?|\.\d{1,17}", re.ASCII)


@dataclass(frozen=True)
class Options:
    """What decides the layers of the networks; the defaults are those of DeepLIIF where a model has no options file.

    Parameters
    ----------
    ngf : channels of the first convolution
    dropout : whether there are dropout layers in the blocks, which shifts the names of what follows
    padding : "zero", "reflect" or "replicate"
    seg_weights : shares of G51..G55, where the file has them
    """

    ngf: int = 64
    dropout: bool = True
    padding: str = "zero"
    seg_weights: SegWeights | None = None

    @classmethod
    def read(cls, path: Path) -> Options:
        """Read a file.

        Raises
        ------
        WeightsCorrupt
            If it is too long for an options file, or a value that is needed has another form or says that the networks are others.
        """
        values = _values(path)
        for key, (only, because) in _ONLY.items():
            if (
                key in values
                and _REPLACED.get(key) not in values
                and set(re.findall(r"[^\s\[\],'\"]+", values[key])) != {only}
            ):
                raise _unusable(path, key, values[key], f"{only!r}: {because}")
        return cls(
            ngf=int(_formed(path, values, "ngf", r"[1-9]\d{0,2}", "64", "a number of channels such as 64")),
            dropout=_formed(path, values, "no_dropout", "True|False", "False", "True or False") == "False",
            padding=_formed(path, values, "padding", "|".join(_PADDINGS), "zero", f"one of {', '.join(_PADDINGS)}"),
            seg_weights=_shares(path, values),
        )


def _values(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        data = file.read(_LARGEST_BYTES + 1)
    if len(data) > _LARGEST_BYTES:
        raise WeightsCorrupt(f"{path.name!r} is longer than an options file can be (1 MB).\nPath: {path}")
    values = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, colon, rest = line.partition(":")
        if colon:
            values[key.strip()] = rest.partition("[default")[0].strip()
    return values


def _formed(path: Path, values: dict[str, str], key: str, form: str, default: str, wanted: str) -> str:
    value = values.get(key, default)
    if not re.fullmatch(form, value, re.ASCII):
        raise _unusable(path, key, value, wanted)
    return value


def _shares(path: Path, values: dict[str, str]) -> SegWeights | None:
    value = values.get("seg_weights", "None")
    if value in ("None", ""):
        return None
    written = value.removeprefix("[").removesuffix("]").replace(",", " ").split()
    numbers = [float(one) for one in written if _SHARE.fullmatch(one)]
    if not len(numbers) == len(written) == 5 or abs(sum(numbers) - 1) > 1e-6:
        raise _unusable(path, "seg_weights", value, "five shares with the sum 1, such as [0.5, 0.0, 0.0, 0.0, 0.5]")
    return tuple(numbers)  # type: ignore[return-value]


def _unusable(path: Path, key: str, value: str, wanted: str) -> WeightsCorrupt:
    return WeightsCorrupt(
        f"{path.name!r} says {key}: {value[:80]!r}; needed is {wanted}.\n"
        f"The file is read as text and nothing in it is run.\nPath: {path}"
    )
