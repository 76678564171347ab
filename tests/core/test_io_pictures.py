"""Opening PNG and JPEG, and refusing what is not an RGB picture."""

import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stainbridge.errors import ConfigError, PictureTooLarge, UnreadablePicture, UnsupportedPicture
from stainbridge.io import open_picture
from stainbridge.records import Source

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 90, 3), np.uint8)


def saved(path: Path, pixels: np.ndarray = PIXELS, **options: object) -> Path:
    Pillow.fromarray(pixels).save(path, **options)
    return path


def png_that_claims(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def tiff_that_claims(side: int, *, compression: int = 1, tile: int | None = None) -> bytes:
    """A classic TIFF whose every strip or tile is the same few bytes."""
    stored = zlib.compress(bytes(1000))
    count = 1 if tile is None else (side // tile) ** 2
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, compression), (262, 3, 2), (277, 3, 3)]
    arrays = [(273, 279)] if tile is None else [(324, 325)]
    tags += [(278, 4, side)] if tile is None else [(322, 4, tile), (323, 4, tile)]
    lists_at = 8 + len(stored)
    directory_at = lists_at + (0 if count == 1 else 8 * count)
    for offsets, counts in arrays:
        tags += [
            (offsets, 4, 8 if count == 1 else lists_at),
            (counts, 4, len(stored) if count == 1 else lists_at + 4 * count),
        ]
    lists = b"" if count == 1 else struct.pack("<I", 8) * count + struct.pack("<I", len(stored)) * count
    entries = [
        struct.pack("<HHII", tag, kind, count if tag in (324, 325) else 1, value) for tag, kind, value in sorted(tags)
    ]
    return (
        b"II*\0" + struct.pack("<I", directory_at) + stored + lists
        + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    )  # fmt: skip


def test_png_gives_back_its_pixels_window_by_window(tmp_path: Path) -> None:
    picture = open_picture(saved(tmp_path / "field.png"))
    assert isinstance(picture, Source)
    assert (picture.name, picture.shape, picture.mpp) == ("field", (60, 90), None)
    assert np.array_equal(picture.read(0, 0, 60, 90), PIXELS)
    assert np.array_equal(picture.read(11, 7, 20, 30), PIXELS[11:31, 7:37])


def test_jpeg_is_read_whatever_its_suffix_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "field.png", format="JPEG", quality=95)
    assert np.array_equal(open_picture(path).read(0, 0, 60, 90), np.asarray(Pillow.open(path)))


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((60, 90, 1), np.uint8)
    alpha[30:] = 255
    window = open_picture(saved(tmp_path / "clear.png", np.concatenate([PIXELS, alpha], axis=2))).read(0, 0, 60, 90)
    assert (window[:30] == 255).all()
    assert np.array_equal(window[30:], PIXELS[30:])


def test_transparent_colour_of_an_rgb_png_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = (10, 20, 30)
    window = open_picture(saved(tmp_path / "key.png", pixels, transparency=(10, 20, 30))).read(0, 0, 4, 4)
    assert (window[0] == 255).all()
    assert (window[1:] == 0).all()


def test_palette_png_is_rgb(tmp_path: Path) -> None:
    flat = np.repeat(np.repeat(PIXELS[:6, :9], 10, axis=0), 10, axis=1)
    Pillow.fromarray(flat).quantize(64).save(tmp_path / "palette.png")
    assert np.array_equal(open_picture(tmp_path / "palette.png").read(0, 0, 60, 90), flat)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: Pillow.fromarray(PIXELS[..., 0]).save(path, "PNG"), "grey"),
        (lambda path: Pillow.fromarray(PIXELS[..., 0].astype(np.uint16) * 9).save(path, "PNG"), "grey"),
        (lambda path: path.write_bytes(png_that_claims(8, 8, bits=16)), "16-bit"),
        (lambda path: path.write_bytes(png_that_claims(8, 8, colour=4)), "grey with alpha"),
        (lambda path: Pillow.fromarray(PIXELS[..., 0]).save(path, "JPEG"), "grey"),
        (lambda path: Pillow.fromarray(PIXELS).convert("CMYK").save(path, "JPEG"), "CMYK"),
    ],
)
def test_what_is_not_8_bit_rgb_is_refused_by_its_name(tmp_path: Path, make: object, found: str) -> None:
    path = tmp_path / "picture.png"
    make(path)  # type: ignore[operator]
    with pytest.raises(
        UnsupportedPicture, match=f"picture.png' is {found}; an 8-bit RGB picture was expected"
    ) as caught:
        open_picture(path)
    assert "Export it as 8-bit RGB" in str(caught.value)


def test_animation_is_refused(tmp_path: Path) -> None:
    frames = [Pillow.fromarray(PIXELS), Pillow.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedPicture, match="several frames"):
        open_picture(tmp_path / "film.png")


@pytest.mark.parametrize("dpi", [72, 96, 300, 600])
def test_resolution_of_screens_and_printers_is_no_pixel_size(tmp_path: Path, dpi: int) -> None:
    assert open_picture(saved(tmp_path / "field.png", dpi=(dpi, dpi))).mpp is None
    assert open_picture(saved(tmp_path / "field.jpg", dpi=(dpi, dpi))).mpp is None


def test_resolution_of_a_microscope_is_read_and_mpp_wins_over_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "field.png", dpi=(101600, 101600))
    assert open_picture(path).mpp == pytest.approx(0.25)
    assert open_picture(path, mpp=0.5).mpp == 0.5


def test_pixels_that_are_not_square_are_refused_unless_mpp_is_given(tmp_path: Path) -> None:
    path = saved(tmp_path / "field.png", dpi=(101600, 50800))
    with pytest.raises(UnsupportedPicture, match=r"0.25 um wide and 0.5 um high.*\n.*--mpp"):
        open_picture(path)
    assert open_picture(path, mpp=0.25).mpp == 0.25


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_mpp_must_be_a_positive_number(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(ConfigError, match="positive number of micrometres per pixel"):
        open_picture(saved(tmp_path / "field.png"), mpp=mpp)


def test_missing_picture_names_the_nearest(tmp_path: Path) -> None:
    saved(tmp_path / "slide_07.png")
    with pytest.raises(UnreadablePicture, match=r"slide_7.png' does not exist. Did you mean 'slide_07.png'\?"):
        open_picture(tmp_path / "slide_7.png")
    with pytest.raises(UnreadablePicture, match="does not exist"):
        open_picture(tmp_path / "no" / "such" / "folder.png")


def test_empty_file_folder_and_text_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("id,score\n1,2\n")
    for path, message in [
        (tmp_path / "empty.png", r"is empty \(0 bytes\)"),
        (tmp_path, "is a folder, not a picture"),
        (tmp_path / "text.png", r"begins with b'id,score'.\nGive a PNG, a JPEG, a TIFF, or a slide"),
    ]:
        with pytest.raises(UnreadablePicture, match=message):
            open_picture(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("part", [0.002, 0.1, 0.4, 0.7, 0.95])
def test_truncated_picture_never_gives_pixels(tmp_path: Path, suffix: str, part: float) -> None:
    path = saved(tmp_path / f"cut.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(int(part * len(whole)), 9)])
    with pytest.raises(UnreadablePicture, match=f"cut.{suffix}' (is truncated|cannot be read)"):
        open_picture(path).read(0, 0, 10, 10)


def test_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "flip.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(UnreadablePicture, match="90 x 60 px were expected"):
        open_picture(path).read(0, 0, 60, 90)


BOMBS = {
    "square_13400.png": png_that_claims(13400, 13400),
    "square_60000.png": png_that_claims(60000, 60000),
    "one_strip.tif": tiff_that_claims(46341, compression=8),
    "tiles.tif": tiff_that_claims(65536, compression=8, tile=512),
    "one_tile.tif": tiff_that_claims(65536, compression=8, tile=65536),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_before_decoding(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BOMBS[name])
    start = time.perf_counter()
    with pytest.raises(PictureTooLarge, match=f"{name}' claims [0-9]+ x [0-9]+ px"):
        open_picture(tmp_path / name)
    assert time.perf_counter() - start < 1


def test_uncompressed_tiff_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lie.tif").write_bytes(tiff_that_claims(5000))
    with pytest.raises(UnreadablePicture, match="truncated: its pixels end at byte 75000008, and it has"):
        open_picture(tmp_path / "lie.tif")


MEASURE = """
import sys
from pathlib import Path
from stainbridge.errors import PictureTooLarge
from stainbridge.io import open_picture
import PIL.Image, tifffile

def peak_kb():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

small, *bombs = map(Path, sys.argv[1:])
limit = PIL.Image.MAX_IMAGE_PIXELS
open_picture(small).read(0, 0, 5, 5)
before = peak_kb()
for bomb in bombs:
    try:
        open_picture(bomb)
    except PictureTooLarge:
        continue
    raise SystemExit(f"{bomb} was opened")
assert PIL.Image.MAX_IMAGE_PIXELS == limit is not None
print(peak_kb() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_bombs_cost_less_than_50_mb(tmp_path: Path) -> None:
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    paths = [saved(tmp_path / "small.png"), *(tmp_path / name for name in BOMBS)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000
