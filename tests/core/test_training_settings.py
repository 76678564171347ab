"""The page of a training's settings says what the code says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from stainbridge.training.settings import TrainConfig, WatchTable

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, PAGE = ROOT / "docs" / "make_training_settings.py", ROOT / "docs" / "training_settings.md"

WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
print(runpy.run_path(sys.argv[1])["text"](), end="")
"""


@pytest.fixture(scope="module")
def script() -> Any:
    specification = importlib.util.spec_from_file_location("make_training_settings", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def rows(page: str, title: str) -> dict[str, list[str]]:
    """Return the cells behind each key of a section's first table."""
    table = page.split(f"## {title}\n\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    return {key.strip("` "): rest for first, *rest in cells for key in first.split(", ")}


def test_the_page_is_what_its_script_makes_without_torch() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT / "plugins")])}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(SCRIPT)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8", env=environment)
    assert made.stdout == PAGE.read_text("utf-8"), "run: python docs/make_training_settings.py"


def test_every_setting_has_a_row() -> None:
    page = PAGE.read_text("utf-8")
    own = {*TrainConfig.model_fields, *(f"watch.{name}" for name in WatchTable.model_fields)} - {"watch"}
    found = rows(page, "Every training")
    assert found.keys() == own
    assert found["keep_every"][0] == "`10`"
    assert found["checkpoint_steps"][0] == "None"
    assert all(cells[-1] for cells in found.values())
    shared = {"precision", "ema", "accumulate", "compile", "channels_last", "fused"}
    for name, more in {
        "cyclegan": {"pool_size", "legacy_schedule"},
        "ugatit": {"light"},
        "hovernet": {"start"},
    }.items():
        assert rows(page, f"Learner of `{name}`").keys() >= {f"learner.{key}" for key in shared | more}


def test_a_setting_without_a_description_is_refused(script: Any) -> None:
    class Silent(BaseModel):
        """Two settings.

        Parameters
        ----------
        told : in words
            on two lines
        """

        told: int = 1
        said: float = Field(0.5, gt=0, le=1, description="of the field | itself")

    assert list(script._rows(Silent, "a.")) == [
        "| `a.told` | `1` | integer | in words on two lines |",
        r"| `a.said` | `0.5` | number over 0 to 1 | of the field \| itself |",
    ]

    class Sulking(Silent):
        hidden: int = 0

    with pytest.raises(ValueError, match=r"Sulking\.\w+ has no description"):
        list(script._rows(Sulking, ""))
