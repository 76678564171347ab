"""Make docs/translations.jpg: scikit-image's IHC and what translators make of it. Run from the top of the checkout.

python docs/make_translations.py cyclegan/run/model ugatit/run/model   # folders that `stainbridge train` wrote
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import immunohistochemistry

from stainbridge import run

GAP_PX, MPP = 8, 0.5


def main() -> None:
    """Put the IHC and its translations side by side."""
    ihc = immunohistochemistry()
    translators = ["deconvolution/cytoplasmic", *sys.argv[1:]]
    panels = [ihc, *(virtual(ihc, translator) for translator in translators)]
    gap = np.full((len(ihc), GAP_PX, 3), 255, np.uint8)
    joined = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    Image.fromarray(joined).save(Path(__file__).parent / "translations.jpg", quality=88)


def virtual(ihc: np.ndarray, translator: str) -> np.ndarray:
    """Return the virtual H&E as uint8 (H, W, 3), on the grid of the IHC."""
    he = run(ihc, translator, "baseline/he", mpp=MPP).he
    pixels = he.read(0, 0, *he.shape)
    return np.asarray(Image.fromarray(pixels).resize(ihc.shape[1::-1], Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
