"""The demo: a real IHC picture that scikit-image carries, run and saved like any other."""

from __future__ import annotations

from pathlib import Path

from .io import save
from .pipeline import run
from .records import Image, Result

DEMO_MPP = 0.5
"""Micrometres per pixel assumed for scikit-image's picture, which does not say: its nuclei are then 6 to 9 um across."""

# FHL2 is a marker of the cytoplasm: brown there, over nuclei that stay blue.
DEMO_TRANSLATOR, DEMO_CLASSIFIER = "deconvolution/cytoplasmic", "hsi/cytoplasmic"


def demo_picture() -> Image:
    """Return scikit-image's ``immunohistochemistry``: colon, FHL2 in DAB over haematoxylin, 512 x 512 px."""
    from skimage.data import immunohistochemistry

    return Image(immunohistochemistry(), DEMO_MPP, "skimage_ihc")


def demonstrate(
    out: Path, *, translator: str = DEMO_TRANSLATOR, segmenter: str | None = None, classifier: str = DEMO_CLASSIFIER
) -> tuple[Result, Path]:
    """Run the demo picture and save it in a folder below `out`; an older demo there is replaced."""
    picture = demo_picture()
    result = run(picture, translator, segmenter, classifier)
    return result, save(result, out / picture.name, overwrite=True)
