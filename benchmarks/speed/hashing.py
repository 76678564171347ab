"""What the check before every load costs: `python benchmarks/speed/hashing.py [MB]`.

Prints sha256 in GB/s, and the time of a warm `Store.fetch` over that of the bare hash of the same file (minimum of five each).
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stainbridge.registry import Weight
from stainbridge.weights import Store


def fastest(act, repeats: int = 5) -> float:
    """Return the least seconds of several calls."""
    times = []
    for _ in range(repeats):
        since = time.perf_counter()
        act()
        times.append(time.perf_counter() - since)
    return min(times)


def bare(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Measure on a file of random bytes."""
    size = int(sys.argv[1]) * 1_000_000 if len(sys.argv) > 1 else 256_000_000
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.bin")
        source.write_bytes(np.random.default_rng(0).bytes(size))
        weight = Weight(file="net.pt", sha256=bare(source), size=size, sources=(f"file:{source}",))
        store = Store(Path(folder, "cache"))
        path = store.fetch(weight)
        hash_s = fastest(lambda: bare(path))
        fetch_s = fastest(lambda: store.fetch(weight))
    print(
        f"| {size / 1e6:.0f} MB | sha256 {size / hash_s / 1e9:.2f} GB/s | warm fetch / bare hash {fetch_s / hash_s:.3f} |"
    )


if __name__ == "__main__":
    main()
