"""Settings that every test shares."""

from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine can stall for a second; a test's own time-out is the bound that counts.
settings.register_profile("stainbridge", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("stainbridge")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of real pictures and recorded outputs beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with real pictures does not lie beside this checkout")
    return SHARED
