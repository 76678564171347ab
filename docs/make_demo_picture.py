"""Make docs/demo.jpg: scikit-image's IHC, its virtual H&E, and the nuclei found. Run from the top of the checkout."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from stainbridge.demonstration import demonstrate

GAP_PX = 8


def main() -> None:
    """Put the three pictures side by side."""
    with tempfile.TemporaryDirectory() as folder:
        result, saved = demonstrate(Path(folder))
        height, width = result.source.shape
        panels = [
            result.source.read(0, 0, height, width),
            np.asarray(Image.open(saved / "virtual_he.png").convert("RGB")),
            np.asarray(Image.open(saved / "overlay.png").convert("RGB")),
        ]
    gap = np.full((height, GAP_PX, 3), 255, np.uint8)
    joined = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    Image.fromarray(joined).save(Path(__file__).parent / "demo.jpg", quality=88)


if __name__ == "__main__":
    main()
