"""The MXNet importer, the scale of grey, the settings and the messages of the cellpose segmenter; no torch, no cellpose."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stainbridge.errors import ConfigError, MissingExtra, PluginUnavailable, WeightsCorrupt, WeightsUnavailable
from stainbridge.testing.synthetic import blank_glass
from stainbridge_plugins.cellpose import drawing, networks
from stainbridge_plugins.cellpose.fourth import Fourth
from stainbridge_plugins.cellpose.mxnet import is_mxnet, read_arrays
from stainbridge_plugins.cellpose.scaling import fit, planes, scaled
from stainbridge_plugins.cellpose.segmenter import Cellpose, _of_area

VERSIONS = {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}


def packed(arrays: dict[str, np.ndarray], *, version: int = 2) -> bytes:
    """Write arrays as MXNet 1.x does, independently of the reader."""
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        out += struct.pack("<I", VERSIONS[version]) + (b"" if version == 1 else struct.pack("<i", 0))
        out += struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape) + struct.pack("<iii", 1, 0, 0)
        out += array.astype("<f4").tobytes()
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    return out


ARRAYS = {"a.weight": np.arange(24.0).reshape(2, 3, 4), "a.bias": np.array([0.5, -1.0])}


@pytest.fixture
def mxnet_file(tmp_path):
    def write(data: bytes) -> Path:
        path = tmp_path / "net_0"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("version", VERSIONS)
def test_arrays_come_back_as_they_were_written(mxnet_file, version):
    path = mxnet_file(packed(ARRAYS, version=version))
    found = read_arrays(path)
    assert is_mxnet(path)
    assert list(found) == list(ARRAYS)
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_a_file_that_is_cut_off_anywhere_is_refused(mxnet_file):
    whole = packed(ARRAYS)
    for length in range(len(whole)):
        with pytest.raises(WeightsCorrupt, match="net_0"):
            read_arrays(mxnet_file(whole[:length]))


@given(st.integers(0, len(packed(ARRAYS)) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_arrays_or_a_typed_error(tmp_path_factory, at, change):
    data = bytearray(packed(ARRAYS))
    data[at] ^= change
    path = tmp_path_factory.mktemp("changed") / "net_0"
    path.write_bytes(bytes(data))
    try:
        read_arrays(path)
    except WeightsCorrupt as error:
        assert "net_0" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (packed(ARRAYS) + b"x", "1 bytes follow its end"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "which 0 bytes cannot hold"),
        (packed({"a": np.array([np.nan])}), "'a' holds NaN or infinity"),
        (packed(ARRAYS).replace(struct.pack("<q", 3), struct.pack("<q", 2**62)), "it ends at byte"),
        (packed(ARRAYS).replace(struct.pack("<q", 3), struct.pack("<q", -3)), r"the shape \(2, -3, 4\)"),
        (packed(ARRAYS).replace(struct.pack("<I", VERSIONS[2]), struct.pack("<I", 7)), "unknown version 0x7"),
        (packed(ARRAYS).replace(b"a.bias", b"a.bia\xff"), "a name is not UTF-8"),
        (packed({"aa": np.ones(1), "ab": np.ones(1)}).replace(b"ab", b"aa"), "2 arrays and 1 different names"),
        (b"PK\x03\x04 and so on", "does not begin with the number 0x112"),
    ],
)
def test_a_hostile_file_is_refused_with_what_is_wrong(mxnet_file, data, fault):
    with pytest.raises(WeightsCorrupt, match=fault):
        read_arrays(mxnet_file(data))


@pytest.mark.parametrize(
    ("gluon", "torch"),
    [
        ("downsample.down.3.conv.2.0.gamma", "downsample.down.res_down_3.conv.conv_2.0.weight"),
        ("downsample.down.0.proj.0.beta", "downsample.down.res_down_0.proj.0.bias"),
        ("upsample.up.1.conv.0.2.weight", "upsample.up.res_up_1.conv.conv_0.2.weight"),
        ("upsample.up.2.conv.3.conv.0.running_var", "upsample.up.res_up_2.conv.conv_3.conv.0.running_var"),
        ("upsample.up.2.conv.3.full.bias", "upsample.up.res_up_2.conv.conv_3.full.bias"),
        ("output.2.weight", "output.2.weight"),
    ],
)
def test_gluon_names_become_torch_names(gluon, torch):
    assert networks.torch_name(gluon) == torch


def test_dark_nuclei_become_bright_and_glass_dark():
    picture = np.full((1, 20, 20, 3), 240, np.uint8)
    picture[:, :10] = 90
    values = planes(picture, (0,))
    seen = scaled(values, fit(values, (1, 99), least=25, dark=True), invert=True)
    assert seen[0, 0, 0, 0] == 1
    assert seen[0, -1, -1, 0] == 0


def test_noise_of_glass_is_not_stretched():
    values = planes(blank_glass((64, 64))[None], (0,))
    seen = scaled(values, fit(values, (1, 99), least=25, dark=True), invert=True)
    assert seen.max() < 0.4


def test_channels_are_grey_red_green_and_blue():
    picture = np.array([[[[30, 60, 120]]]], np.uint8)
    assert planes(picture, (0, 1, 2, 3)).tolist() == [[[[70, 30, 60, 120]]]]


def test_small_objects_go_by_their_own_area_whatever_the_gaps():
    labels = np.zeros((20, 20), np.int32)
    labels[:5, :5], labels[8, 8], labels[10:15, 10:15] = 2, 3, 4
    assert np.unique(_of_area(labels, 10)).tolist() == [0, 1, 2]
    assert _of_area(labels, 10)[2, 2] == 1
    assert _of_area(labels, 10)[8, 8] == 0


@pytest.mark.parametrize("setting", [{"nucleus_diameter_um": 0}, {"channels": (4, 0)}, {"scaling": "slide"}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValidationError):
        Cellpose.Config.model_validate(setting)


def test_without_a_network_it_says_how_to_name_one():
    with pytest.raises(WeightsUnavailable, match=r"(?s)has no network.*cellpose/cyto.*segmenter.path=FILE"):
        Cellpose()


def test_two_networks_are_one_too_many(tmp_path):
    with pytest.raises(ConfigError, match="runs one network; given are a, b"):
        Cellpose(Cellpose.Config(path=tmp_path / "b"), weights={"a": tmp_path / "a"})


def test_a_missing_file_is_an_error_and_not_a_download(tmp_path):
    with pytest.raises(WeightsUnavailable, match="There is no weight file"):
        Cellpose(Cellpose.Config(path=tmp_path / "cpsam"))


def test_a_missing_library_gives_the_pip_line(monkeypatch, mxnet_file):
    monkeypatch.setitem(sys.modules, "cellpose", None)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'stainbridge\[cellpose\]'"):
        Cellpose(Cellpose.Config(path=mxnet_file(packed(ARRAYS))))


def absent(name):
    raise ModuleNotFoundError(name)


def installed(monkeypatch, *, third: bool) -> None:
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: object() if third else None)
    monkeypatch.setattr(networks.importlib.metadata, "version", lambda name: "3.1.1.3" if third else "4.2.1.1")


def test_a_transformer_under_cellpose_3_says_so(monkeypatch, mxnet_file):
    installed(monkeypatch, third=True)
    monkeypatch.setattr(networks, "load_state_dict", lambda path: {"W2": 0, "encoder.pos_embed": 0})
    with pytest.raises(PluginUnavailable, match=r"(?s)cellpose 4\.x; installed is cellpose 3\.1.*'cellpose>=4'"):
        networks.load(mxnet_file(b"torch"), device="cpu", diameter_px=None)


@pytest.mark.parametrize("data", [b"torch", packed(ARRAYS)])
def test_an_older_network_under_cellpose_4_says_so(monkeypatch, mxnet_file, data):
    installed(monkeypatch, third=False)
    monkeypatch.setattr(networks, "load_state_dict", lambda path: {"output.2.weight": 0})
    with pytest.raises(PluginUnavailable, match=r"(?s)cellpose 3\.x.*installed is cellpose 4\.2.*'cellpose>=3\.1,<4'"):
        networks.load(mxnet_file(data), device="cpu", diameter_px=None)


def test_a_file_of_something_else_is_no_network(monkeypatch, mxnet_file):
    installed(monkeypatch, third=True)
    monkeypatch.setattr(networks, "load_state_dict", lambda path: {"conv1.weight": 0})
    with pytest.raises(WeightsCorrupt, match=r"holds no network of cellpose.*\nFound 1 tensors: conv1.weight"):
        networks.load(mxnet_file(b"torch"), device="cpu", diameter_px=None)


class FakeModel:
    """Stands for `CellposeModel` of cellpose 4: labels what is above one half, and remembers how it was called."""

    def __init__(self, *, pretrained_model, device):
        self.file, self.device, self.calls = pretrained_model, device, []

    def eval(self, planes, **options):
        self.calls.append(options)
        return (planes.mean(axis=-1) > 0.5).astype(np.uint16), None, None


def test_cellpose_4_is_given_three_planes_a_real_path_and_no_normalisation(monkeypatch, mxnet_file):
    models = ModuleType("cellpose.models")
    models.CellposeModel = FakeModel
    monkeypatch.setitem(sys.modules, "cellpose", ModuleType("cellpose"))
    monkeypatch.setitem(sys.modules, "cellpose.models", models)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(OutOfMemoryError=MemoryError, cuda=None))
    monkeypatch.setattr("stainbridge_plugins.cellpose.fourth.resolve_device", lambda name: name)
    path = mxnet_file(b"torch")
    network = Fourth(path, device="cpu")
    monkeypatch.setattr("stainbridge_plugins.cellpose.segmenter.load", lambda *_, **__: network)
    segmenter = Cellpose(Cellpose.Config(path=path, mpp=0.5))
    picture = np.full((2, 32, 32, 3), 240, np.uint8)
    picture[:, 8:24, 8:24] = 90
    labels = segmenter.segment(picture)
    assert labels.shape == (2, 32, 32)
    assert labels.dtype == np.int32
    assert labels[:, 16, 16].tolist() == [1, 1]
    assert labels[:, 0, 0].tolist() == [0, 0]
    assert network.model.file == str(path.resolve())
    options = network.model.calls[0]
    assert (options["normalize"], options["channel_axis"], options["min_size"]) == (False, -1, -1)
    assert options["diameter"] == pytest.approx(15)  # 7.5 um at 0.5 um per pixel
    assert segmenter.weights == {"net_0": path}


def test_the_number_of_tiles_halves_when_memory_runs_out(monkeypatch):
    class OutOfMemory(RuntimeError):
        pass

    freed = SimpleNamespace(empty_cache=lambda: None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(OutOfMemoryError=OutOfMemory, cuda=freed))
    tried = []

    def run(tiles: int) -> int:
        tried.append(tiles)
        if tiles > 2:
            raise OutOfMemory
        return tiles

    assert drawing.with_fewer_tiles(run, 8) == 2
    assert tried == [8, 4, 2]
