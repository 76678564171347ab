"""`import stainbridge` and `stainbridge --help` cost next to nothing."""

import os
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "stainbridge"
HEAVY = (
    "PIL",
    "imagecodecs",
    "mlflow",
    "pandas",
    "pooch",
    "pyarrow",
    "scipy",
    "skimage",
    "tensorflow",
    "tifffile",
    "torch",
)
TOUCH = "import stainbridge; stainbridge.hookimpl, stainbridge.Wants, stainbridge.Translator"
HELP = "import sys; sys.argv = ['stainbridge', '--help']; from stainbridge.cli import main; main()"

resource = pytest.importorskip("resource", reason="processor time of children is read as Unix gives it")

needs_cli = pytest.mark.skipif(not (CORE / "cli.py").exists(), reason="there is no command line yet")


def python(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CORE.parent), str(ROOT / "plugins")])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)


def heavy_after(code):
    """Return the heavy libraries that are loaded once `code` has run."""
    report = f"\nimport sys; print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    return python(code + report).stdout.splitlines()[-1].split()[1:]


def seconds_of(code):
    """Return the seconds of processor time of a fresh process; a busy machine stretches it far less than the clock's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def assert_within(limit_s, code):
    """Hold the median of five warm runs against the limit; three chances."""
    python(code)
    medians = []
    for _ in range(3):
        medians.append(statistics.median(seconds_of(code) for _ in range(5)))
        if medians[-1] <= limit_s:
            return
    pytest.fail(f"medians of five: {', '.join(f'{one:.2f}' for one in medians)} s; the limit is {limit_s} s")


def test_importing_loads_nothing_heavy():
    assert heavy_after(TOUCH) == []


def test_a_heavy_import_would_be_seen():
    assert heavy_after("import PIL") == ["PIL"]


def test_discovering_the_built_ins_loads_nothing_heavy():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["stainbridge"]
    taken = "".join(f".with_plugin(importlib.import_module({module!r}))" for module in points.values())
    assert heavy_after(f"import importlib, stainbridge; assert len(stainbridge.catalog(){taken}.found) > 3") == []


@needs_cli
def test_help_loads_nothing_heavy():
    assert heavy_after(f"import contextlib\nwith contextlib.suppress(SystemExit):\n    {HELP}") == []


def test_importing_takes_a_third_of_a_second_at_most():
    assert_within(0.3, "import stainbridge")


def test_the_contracts_cost_little_more_than_the_libraries_they_stand_on():
    ours, theirs = [], []
    for _ in range(8):  # in turns, so that a busy spell meets both
        theirs.append(seconds_of("import inspect, numpy, numpy.typing, pluggy, pydantic.main, pydantic.fields"))
        ours.append(seconds_of(TOUCH))
        if len(ours) >= 3 and min(ours) <= 1.5 * min(theirs):
            return
    pytest.fail(f"{min(ours):.2f} s; the libraries alone take {min(theirs):.2f} s")


@needs_cli
def test_help_takes_half_a_second_at_most():
    assert_within(0.5, HELP)
