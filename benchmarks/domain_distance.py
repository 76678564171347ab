"""Measure the distance to H&E on real pictures: is it near zero for H&E, smaller for virtual H&E than for IHC, growing with every fault?

python benchmarks/domain_distance.py [FOLDER]

FOLDER holds he_tcga_v5 (one slide), he_monuseg (six patients of other laboratories) and ihc_deepliif; it is `../shared/data` beside the
checkout by default. Everything is taken as 0.25 um/px. The side that is measured against is every second tile of the slide; the tiles
between are clean H&E, and are then blurred, turned in hue, made noisy, paler and squeezed by JPEG, each in four strengths. Virtual H&E is
made by `deconvolution`, which is trained on nothing. Stops where an order does not hold. Also the seconds of a watch over four fields of
512 px, apart from the translation. Writes benchmarks/results/domain_distance.json.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from machine import write
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv

from stainbridge import RGB, Image, run
from stainbridge.config import RunConfig
from stainbridge.pipeline import construct
from stainbridge.training.domain import Distance, Domain, windows_of, with_tissue
from stainbridge.training.settings import TrainConfig
from stainbridge.training.watching import Watcher

SIDE_PX, MPP = 512, 0.25
IHC = ("22_2_IHC", "34_3_IHC", "6_2_IHC", "Lung1")


def blurred(pixels: RGB, px: float) -> RGB:
    """Blur by a Gaussian."""
    return np.rint(gaussian_filter(pixels.astype(float), (px, px, 0))).astype(np.uint8)


def turned(pixels: RGB, turn: float) -> RGB:
    """Turn the hue."""
    return np.rint(255 * hsv2rgb((rgb2hsv(pixels) + np.array([turn, 0, 0])) % (1, 9, 9))).astype(np.uint8)


def noisy(pixels: RGB, levels: float) -> RGB:
    """Add noise, grey levels of standard deviation."""
    noise = np.random.default_rng(int(pixels[::7, ::7].sum())).normal(0, levels, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def paler(pixels: RGB, share: float) -> RGB:
    """Take away a share of the colour."""
    return np.rint(255 - (255 - pixels.astype(float)) * (1 - share)).astype(np.uint8)


def squeezed(pixels: RGB, loss: float) -> RGB:
    """Go through JPEG of quality 100 - `loss`."""
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, format="JPEG", quality=round(100 - loss))
    return np.asarray(Pillow.open(file))


FAULTS: dict[str, tuple[Callable[[RGB, float], RGB], tuple[float, ...]]] = {
    "blur, px": (blurred, (0.5, 1, 2, 4)),
    "hue, turns": (turned, (0.025, 0.05, 0.1, 0.2)),
    "noise, grey levels": (noisy, (3, 6, 12, 24)),
    "paler, share": (paler, (0.1, 0.2, 0.4, 0.6)),
    "JPEG, 100 - quality": (squeezed, (30, 60, 80, 95)),
}


def read(folder: Path, *names: str) -> list[RGB]:
    """Read pictures, at most 512 px of each."""
    return [np.asarray(Pillow.open(folder / name).convert("RGB"))[:SIDE_PX, :SIDE_PX] for name in names]


def tissue(pictures: Sequence[RGB]) -> RGB:
    """Return the windows with tissue."""
    windows = np.concatenate([windows_of(one) for one in pictures])
    return windows[with_tissue(windows)]


def told(found: Distance) -> dict[str, float]:
    """Return a distance as figures."""
    return {"kid": round(found.kid, 4), "spread": round(found.spread, 4)}


def restained(ihc: RGB) -> RGB:
    """Return the virtual H&E of `deconvolution`."""
    he = run(Image(ihc, MPP), "deconvolution", "baseline/he").he
    assert he is not None
    return he.read(0, 0, *he.shape)


def seconds(ihc: Sequence[RGB], he: Sequence[RGB]) -> dict[str, float]:
    """Time the opening of a watch and one epoch of it with a translator that costs nothing."""
    sides = [[Image(pixels, MPP, f"{number}") for number, pixels in enumerate(side)] for side in (ihc, he)]
    identity = construct("translator", RunConfig(translator="identity")).plugin
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        watcher = Watcher.open(TrainConfig(plugin="cyclegan"), *sides, Path(folder))
        opened = time.perf_counter()
        watcher.watch(identity, object(), 1)  # type: ignore[arg-type]
        return {"opening": opened - start, "an epoch": time.perf_counter() - opened}


def in_order(what: str, *values: float) -> None:
    """Stop unless each value is above the one before."""
    if any(later <= earlier for earlier, later in pairwise(values)):
        raise SystemExit(f"{what} does not grow: {values}")


def main() -> None:
    """Measure, check, print, write."""
    data = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parents[2] / "shared" / "data"
    tiles = read(data / "he_tcga_v5", *sorted(path.name for path in (data / "he_tcga_v5").glob("*.jpg")))
    others = read(data / "he_monuseg", *sorted(path.name for path in (data / "he_monuseg").glob("TCGA-*[0-9A].png")))
    ihc = read(data / "ihc_deepliif", *(f"{name}.png" for name in IHC))
    side, clean = Domain.of(tiles[::2]), tiles[1::2]
    kinds = {
        "H&E, other tiles of the slide": clean,
        "virtual H&E by deconvolution": [restained(one) for one in ihc],
        "IHC": ihc,
    }
    kinds |= {"H&E of other laboratories": others, "H&E inverted": [255 - one for one in clean]}
    figures = {name: told(side.distance(tissue(pictures))) for name, pictures in kinds.items()}
    figures["H&E, halves of the side"] = told(side.own())
    names = ("H&E, other tiles of the slide", "virtual H&E by deconvolution", "IHC", "H&E inverted")
    in_order("H&E, virtual H&E, IHC, inverted", *(figures[name]["kid"] for name in names))
    for name, (fault, strengths) in FAULTS.items():
        found = [side.distance(tissue([fault(one, strength) for one in clean])) for strength in strengths]
        in_order(name, figures[names[0]]["kid"], *(one.kid for one in found))
        figures[name] = {f"{strength:g}": round(one.kid, 4) for strength, one in zip(strengths, found, strict=True)}
    wide = Domain.of(others)
    figures["against H&E of other laboratories"] = {
        name: told(wide.distance(tissue(kinds[name])))["kid"] for name in (*names[:3],)
    } | {"halves of the side": told(wide.own())["kid"]}
    figures["seconds of a watch"] = {name: round(value, 2) for name, value in seconds(ihc, tiles).items()}
    print(figures)
    print(
        write(
            "domain_distance",
            " ".join(["python benchmarks/domain_distance.py", *sys.argv[1:]]),
            figures,
            "scipy",
            "scikit-image",
        )
    )


if __name__ == "__main__":
    main()
