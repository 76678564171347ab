"""Reading slides by OpenSlide, which is an extra."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stainbridge.errors import MissingExtra, UnreadablePicture
from stainbridge.io import open_picture

SLIDE = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "wsi" / "CMU-1-Small-Region.svs"


@pytest.fixture
def openslide() -> Any:
    return pytest.importorskip("openslide", reason="the extra wsi is not installed")


@pytest.fixture
def slide(openslide: Any) -> Path:
    if not SLIDE.is_file():
        pytest.skip("shared/data/wsi is not beside the repository")
    return SLIDE


def test_slide_without_openslide_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "case.svs").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(MissingExtra, match=r"(?s)case.svs' needs OpenSlide.*pip install 'stainbridge\[wsi\]'"):
        open_picture(tmp_path / "case.svs")


def test_slide_gives_its_pixels_and_its_scale(openslide: Any, slide: Path) -> None:
    picture = open_picture(slide)
    assert (picture.name, picture.shape, picture.mpp) == ("CMU-1-Small-Region", (2967, 2220), pytest.approx(0.499))
    window = picture.read(1000, 500, 120, 200)
    with openslide.OpenSlide(slide) as reference:
        expected = np.asarray(reference.read_region((500, 1000), 0, (200, 120)))[..., :3]
    assert np.array_equal(window, expected)
    assert open_picture(slide, mpp=0.5).mpp == 0.5


def test_one_damaged_tile_leaves_the_others_as_they_were(slide: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(slide) as file:
        offset, count = file.pages[0].dataoffsets[55], file.pages[0].databytecounts[55]
    data = bytearray(slide.read_bytes())
    data[offset : offset + count] = bytes(count)
    (tmp_path / "bad.svs").write_bytes(data)
    clean, bad = open_picture(slide), open_picture(tmp_path / "bad.svs")
    y, x = 55 // 10 * 240, 55 % 10 * 240
    with pytest.raises(UnreadablePicture, match=rf"bad.svs' cannot be read at y {y}, x {x}"):
        bad.read(y, x, 240, 240)
    assert np.array_equal(bad.read(0, 0, 240, 2220), clean.read(0, 0, 240, 2220))


def test_truncated_slide_is_refused(openslide: Any, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.svs").write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    with pytest.raises(UnreadablePicture, match=r"cut.svs' cannot be read as a slide"):
        open_picture(tmp_path / "cut.svs")
