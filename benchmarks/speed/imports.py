"""Warm wall time of `import stainbridge` and `stainbridge --help`, against an empty Python.

Run: python benchmarks/speed/imports.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import medians, write


def main() -> None:
    """Print the medians and write them to results."""

    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    calls = {
        "python -c pass": lambda: python("-c", "pass"),
        "import stainbridge": lambda: python("-c", "import stainbridge"),
        "import of the contracts": lambda: python("-c", "from stainbridge import hookimpl, Translator, Wants"),
        "stainbridge --help": lambda: python("-m", "stainbridge.cli", "--help"),
    }
    figures = {f"{name}, s": seconds for name, seconds in medians(calls, repeats=9).items()}
    print(figures)
    print(write("imports", "python benchmarks/speed/imports.py", figures, "pydantic", "typer"))


if __name__ == "__main__":
    main()
