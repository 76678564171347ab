"""Reading TIFF window by window."""

import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stainbridge.errors import StainbridgeError, UnreadablePicture, UnsupportedPicture
from stainbridge.io import open_labels, open_picture
from stainbridge.io import segments as segments_module
from stainbridge.records import LabelSource, Source

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (37, 50, 3), np.uint8), np.ones((8, 8, 1), np.uint8))  # 296 x 400
RGB: dict[str, Any] = {"photometric": "rgb"}

LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {"rowsperstrip": 296},
    "strips": {"rowsperstrip": 16},
    "LZW strips": {"rowsperstrip": 7, "compression": "lzw"},
    "LZW strips, predictor": {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "deflate, one strip": {"compression": "zlib", "rowsperstrip": 296},
    "PackBits": {"compression": "packbits", "rowsperstrip": 10},
    "Zstandard tiles": {"compression": "zstd", "tile": (64, 128)},
    "tiles": {"tile": (64, 64)},
    "JPEG 2000 tiles": {"compression": "jpeg2000", "tile": (128, 128)},
    "planes apart": {"planarconfig": "separate", "rowsperstrip": 9, "compression": "zlib"},
    "planes apart, uncompressed": {"planarconfig": "separate"},
    "planes apart, tiles": {"planarconfig": "separate", "tile": (64, 64), "compression": "zlib"},
}


def saved(path: Path, pixels: np.ndarray = PIXELS, *, big: bool = False, order: str = "<", **options: Any) -> Path:
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, 2, 0)
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as writer:
        writer.write(pixels, **{**RGB, "metadata": None, **options})
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("big", "order"), [(False, "<"), (True, "<"), (False, ">")])
def test_every_layout_gives_back_its_pixels(tmp_path: Path, layout: str, big: bool, order: str) -> None:
    picture = open_picture(saved(tmp_path / "slide.tif", big=big, order=order, **LAYOUTS[layout]))
    assert isinstance(picture, Source)
    assert (picture.name, picture.shape, picture.mpp) == ("slide", (296, 400), None)
    for y, x, height, width in [(0, 0, 296, 400), (63, 64, 1, 1), (100, 130, 77, 201), (290, 390, 6, 10)]:
        window = picture.read(y, x, height, width)
        assert window.dtype == np.uint8
        assert np.array_equal(window, PIXELS[y : y + height, x : x + width]), (y, x)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_equal_a_whole_decoding(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    path = saved(tmp_path / "slide.tif", tile=(64, 64), compression="jpeg", subsampling=subsampling)
    whole = tifffile.imread(path)
    assert np.array_equal(open_picture(path).read(33, 60, 200, 222), whole[33:233, 60:282])


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparent_pixels_lie_over_white(tmp_path: Path, kind: str) -> None:
    alpha = np.full((296, 400, 1), 255, np.uint8)
    alpha[:100] = 0
    stored = np.concatenate([PIXELS if kind == "unassalpha" else PIXELS * (alpha > 0), alpha], axis=2)
    window = open_picture(saved(tmp_path / "a.tif", stored, extrasamples=[kind])).read(0, 0, 296, 400)
    assert (window[:100] == 255).all()
    assert np.array_equal(window[100:], PIXELS[100:])


@pytest.mark.parametrize(
    ("pixels", "options", "found"),
    [
        (PIXELS[..., 0], {"photometric": "minisblack"}, "is grey; an 8-bit RGB picture was expected"),
        (PIXELS.astype(np.uint16), {}, "is 16-bit"),
        (np.repeat(PIXELS[..., :1], 4, axis=2), {"photometric": "separated"}, "is CMYK"),
        (PIXELS[..., 0], {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "is a palette"),
        (np.repeat(PIXELS[..., :1], 4, axis=2), {"extrasamples": ["unspecified"]}, "4 channels, the last of unknown"),
        (PIXELS, {"compression": "lerc"}, "is compressed by LERC, which is not read.\nExport it with"),
    ],
)
def test_what_is_not_8_bit_rgb_is_refused_by_its_name(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], found: str
) -> None:
    path = saved(tmp_path / "slide.tif", pixels, **options)
    with pytest.raises(UnsupportedPicture, match=found):
        open_picture(path)


def test_several_planes_are_refused_and_counted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([PIXELS] * 5), photometric="rgb")
    with pytest.raises(UnsupportedPicture, match=r"several planes \(.: 5\); one RGB picture was expected"):
        open_picture(tmp_path / "stack.tif")


@pytest.mark.parametrize("nested", [True, False])
def test_pyramid_is_read_at_full_resolution(tmp_path: Path, nested: bool) -> None:
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif" if nested else tmp_path / "slide.tif", ome=nested) as writer:
        options = {"photometric": "rgb", "tile": (64, 64)}
        writer.write(PIXELS, subifds=2 if nested else None, **options)
        for step in (2, 4):
            writer.write(PIXELS[::step, ::step], subfiletype=1, **options)
    picture = open_picture(next(tmp_path.iterdir()))
    assert picture.name == "slide"
    assert np.array_equal(picture.read(0, 0, 296, 400), PIXELS)


@pytest.mark.parametrize(
    ("size", "unit"), [(0.25, None), (0.25, "µm"), (250, "nm"), (2.5e-4, "mm"), (0.25 / 25400, "in"), (2.5e-5, "cm")]
)
def test_ome_pixel_size_is_read_in_every_unit(tmp_path: Path, size: float, unit: str | None) -> None:
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY" if unit}
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size, **units}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata=metadata, **RGB)
    assert open_picture(tmp_path / "a.ome.tif").mpp == pytest.approx(0.25)


@pytest.mark.parametrize(("size", "unit"), [(1.0, "pixel"), (352.8, "µm"), (0.0, "µm")])
def test_ome_that_knows_no_microscope_gives_no_pixel_size(tmp_path: Path, size: float, unit: str) -> None:
    sizes = {f"PhysicalSize{axis}": size for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "YXS", **sizes}, **RGB)
    assert open_picture(tmp_path / "a.ome.tif").mpp is None


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (101600, 101600), "resolutionunit": "INCH"}, 0.25),
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"description": "Aperio Image Library v1\n400x296|AppMag = 20|MPP = 0.4990|Left = 1"}, 0.499),
        ({}, None),
    ],
)
def test_pixel_size_of_tags_is_read_only_where_a_microscope_could_have_it(
    tmp_path: Path, options: dict[str, Any], mpp: float | None
) -> None:
    path = saved(tmp_path / "slide.tif", **options)
    assert open_picture(path).mpp == (None if mpp is None else pytest.approx(mpp))
    assert open_picture(path, mpp=0.4).mpp == 0.4


def test_ome_that_says_nothing_leaves_it_to_the_tags(tmp_path: Path) -> None:
    options = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER", **RGB}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "YXS"}, **options)
    assert open_picture(tmp_path / "a.ome.tif").mpp == pytest.approx(0.25)


def test_pixel_size_of_imagej_is_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "fiji.tif", PIXELS, imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert open_picture(tmp_path / "fiji.tif").mpp == pytest.approx(0.25)


def test_pixels_that_are_not_square_are_refused_unless_mpp_is_given(tmp_path: Path) -> None:
    path = saved(tmp_path / "slide.tif", resolution=(40000, 20000), resolutionunit="CENTIMETER")
    with pytest.raises(UnsupportedPicture, match=r"0.25 um wide and 0.5 um high.*\n.*--mpp"):
        open_picture(path)
    assert open_picture(path, mpp=0.25).mpp == 0.25


@pytest.mark.parametrize("layout", ["one strip", "LZW strips", "Zstandard tiles"])
@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.8, 0.99])
def test_truncated_tiff_is_refused_when_opened(tmp_path: Path, layout: str, part: float) -> None:
    path = saved(tmp_path / "cut.tif", **LAYOUTS[layout])
    whole = path.read_bytes()
    path.write_bytes(whole[: max(int(part * len(whole)), 9)])
    with pytest.raises(UnreadablePicture, match=r"cut.tif' (is truncated|is damaged|cannot be read).*\n?.*Copy"):
        open_picture(path)


def test_directory_at_the_end_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    path.write_bytes(b"II*\0" + (5000).to_bytes(4, "little") + bytes(100))
    with pytest.raises(UnreadablePicture, match="cannot be read as a TIFF"):
        open_picture(path)


def test_one_damaged_tile_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    path = saved(tmp_path / "slide.tif", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[8], file.pages[0].databytecounts[8]
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(count))
    picture = open_picture(path)
    with pytest.raises(UnreadablePicture, match=r"Tile 8 of '.*slide.tif' is damaged"):
        picture.read(64, 64, 64, 64)
    assert np.array_equal(picture.read(0, 0, 64, 400), PIXELS[:64])
    assert np.array_equal(picture.read(128, 0, 168, 400), PIXELS[128:])


def test_jpeg_tile_that_claims_to_be_larger_is_not_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "slide.tif", tile=(64, 64), compression="jpeg")
    data = path.read_bytes()
    frame = b"\xff\xc0\x00\x11\x08" + (64).to_bytes(2, "big") * 2
    assert frame in data
    path.write_bytes(data.replace(frame, frame[:5] + b"\xff\xff\xff\xff"))
    with pytest.raises(UnreadablePicture, match="claims 65535 x 65535 px in a grid of 64 x 64"):
        open_picture(path).read(0, 0, 5, 5)


def test_file_that_goes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "slide.tif", tile=(64, 64), compression="zlib")
    picture = open_picture(path)
    path.unlink()
    with pytest.raises(UnreadablePicture, match=r"slide.tif' could not be read any more: No such file"):
        picture.read(0, 0, 10, 10)


def test_tile_that_was_left_out_is_white(tmp_path: Path) -> None:
    tiles = iter([PIXELS[:64, :64], None, PIXELS[64:128, :64], PIXELS[64:128, 64:128]])
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, tiles, shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), compression="zlib", **RGB)
    picture = open_picture(path)
    assert (picture.read(0, 64, 64, 64) == 255).all()
    assert np.array_equal(picture.read(64, 0, 64, 128), PIXELS[64:128, :128])


def test_a_pass_over_windows_decodes_each_strip_once(tmp_path: Path) -> None:
    picture: Any = open_picture(saved(tmp_path / "slide.tif", compression="lzw", rowsperstrip=8))
    decode, decoded = picture.segments._decode, []
    picture.segments._decode = lambda data, index, **rest: decoded.append(index) or decode(data, index, **rest)
    for y in range(0, 296, 74):
        for x in range(0, 400, 50):
            picture.read(y, x, 74, 50)
    assert sorted(decoded) == list(range(37))


def test_cache_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "CACHE_BYTES", 50_000)
    picture: Any = open_picture(saved(tmp_path / "slide.tif", compression="zlib", tile=(64, 64)))
    assert np.array_equal(picture.read(0, 0, 296, 400), PIXELS)
    assert sum(block.nbytes for block in picture.segments._cache.values()) <= 50_000


def test_threads_read_one_picture_at_once(tmp_path: Path) -> None:
    picture = open_picture(saved(tmp_path / "slide.tif", compression="zlib", tile=(64, 64)))
    ready = threading.Barrier(4)

    def read(x: int) -> bool:
        ready.wait()
        return all(np.array_equal(picture.read(y, x, 50, 60), PIXELS[y : y + 50, x : x + 60]) for y in range(0, 240, 7))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, (0, 55, 130, 300)))


def test_windows_of_an_8192_px_tiff_need_little_memory(tmp_path: Path) -> None:
    tile = np.kron(RNG.integers(0, 256, (64, 64, 3), np.uint8), np.ones((8, 8, 1), np.uint8))

    def tiles() -> Iterator[np.ndarray]:
        for index in range(256):
            yield np.roll(tile, 8 * index, axis=0)

    path = tmp_path / "large.tif"
    shape = (8192, 8192, 3)
    tifffile.imwrite(path, tiles(), shape=shape, dtype=np.uint8, tile=(512, 512), compression="zlib", **RGB)
    tracemalloc.start()
    try:
        picture = open_picture(path, mpp=0.25)
        for x in range(0, 8192, 1024):
            picture.read(3000, x, 1024, 1024)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80e6  # the cache of 64 MiB, one window of 3 MB, one tile; the whole picture is 201 MB
    assert np.array_equal(picture.read(512, 1024, 512, 512), np.roll(tile, 8 * 18, axis=0))


def test_label_maps_are_read_and_pictures_are_not(tmp_path: Path) -> None:
    ids = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300)
    tifffile.imwrite(tmp_path / "labels.tif", ids, tile=(64, 64), compression="zlib")
    labels = open_labels(tmp_path / "labels.tif")
    assert isinstance(labels, LabelSource)
    assert labels.read(10, 20, 100, 90).dtype == np.int32
    assert np.array_equal(labels.read(10, 20, 100, 90), ids[10:110, 20:110])
    with pytest.raises(UnsupportedPicture, match="is not a label map"):
        open_labels(saved(tmp_path / "rgb.tif"))
    with pytest.raises(UnreadablePicture, match=r"gone\.tif"):
        open_labels(tmp_path / "gone.tif")


@pytest.mark.parametrize("layout", ["strips", "LZW strips", "Zstandard tiles", "JPEG 2000 tiles"])
def test_random_damage_gives_a_typed_error_or_pixels(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = saved(tmp_path / "whole.tif", **LAYOUTS[layout]).read_bytes()
    rng = np.random.default_rng(1)
    outcomes = {"pixels": 0, "error": 0}
    for _ in range(100):
        data = bytearray(whole)
        for place in rng.integers(4, 300, 2):
            data[place] = rng.integers(256)
        path = tmp_path / "damaged.tif"
        path.write_bytes(data)
        try:
            picture = open_picture(path)
            height, width = (min(side, 64) for side in picture.shape)
            assert picture.read(0, 0, height, width).shape == (height, width, 3)
            outcomes["pixels"] += 1
        except StainbridgeError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 5, outcomes
