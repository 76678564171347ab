"""Nuclei per second and peak memory of a whole run and save, for a 512 px and an 8192 px picture.

The picture is scikit-image's real IHC, repeated; each size runs in a process of its own, so that peak memory is its own.
Run: python benchmarks/speed/throughput.py [--translator identity] [--segmenter baseline]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import write

SIDES = (512, 2048, 8192)


def one(side: int, translator: str, segmenter: str, mpp: float) -> dict[str, float]:
    """Write a tiled TIFF of `side` px, run and save it, and return the figures."""
    import numpy as np
    import tifffile
    from skimage.data import immunohistochemistry

    import stainbridge
    from stainbridge import RunConfig

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ihc.tif"
        tile = immunohistochemistry()
        blocks = (np.ascontiguousarray(tile) for _ in range((side // 512) ** 2))
        tifffile.imwrite(
            path, blocks, shape=(side, side, 3), dtype=np.uint8, tile=(512, 512), photometric="rgb", compression="zlib"
        )
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        config = RunConfig(translator=translator, segmenter=segmenter, mpp=mpp)
        start = time.perf_counter()
        result = stainbridge.run(path, config=config)
        ran = time.perf_counter()
        stainbridge.save(result, Path(folder) / "out")
        saved = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "nuclei": len(result.nuclei),
        "run_s": ran - start,
        "save_s": saved - ran,
        "nuclei_per_s": len(result.nuclei) / (saved - start),
        "megapixels_per_s": side * side / 1e6 / (saved - start),
        "peak_mb": peak,
        "before_mb": base,
    }


def main() -> None:
    """Run each size in its own process, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--translator", default="identity")
    parser.add_argument("--segmenter", default="baseline")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one(options.side, options.translator, options.segmenter, options.mpp)))
        return
    figures = {}
    for side in SIDES:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--side", str(side)], check=True, capture_output=True, text=True
        )
        figures[f"{side} px"] = json.loads(done.stdout)
        print(side, figures[f"{side} px"])
    figures["peak of 8192 px / peak of 2048 px"] = figures["8192 px"]["peak_mb"] / figures["2048 px"]["peak_mb"]
    name = f"throughput_{options.translator}_{options.segmenter}".replace("/", "-")
    print(
        write(name, f"python benchmarks/speed/throughput.py {' '.join(sys.argv[1:])}".strip(), figures, "scikit-image")
    )


if __name__ == "__main__":
    main()
