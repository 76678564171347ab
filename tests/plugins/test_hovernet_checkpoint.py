"""HoVer-Net's files: what is read from them, what is filled in, and what is refused."""

import collections
import hashlib
import pickle
import shlex
from itertools import pairwise

import numpy as np
import pytest

from stainbridge import RunConfig
from stainbridge.discovery import build as build_plugin
from stainbridge.discovery import resolved
from stainbridge.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from stainbridge_plugins.hovernet.checkpoint import read_network
from stainbridge_plugins.hovernet.network import Design, build

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.heavy

DESIGNS = [Design("original", 5, 8), Design("original", 0, 8), Design("fast", 6, 8), Design("fast", 0, 4)]


def state_of(design, *, seed=0):
    torch.manual_seed(seed)
    state = build(design).state_dict()
    return {name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def as_converted(state):
    """Return what the converter from TensorFlow writes: no counters, no pattern, a plain dict."""
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name and "unpool" not in name}


@pytest.fixture(scope="module")
def fast():
    state = state_of(Design("fast", 6, 8))
    state["upsample2x.unpool_mat"] = torch.ones(2, 2)
    return state


def assert_holds(network, state):
    own = network.state_dict()
    for name, tensor in state.items():
        if "num_batches" not in name:
            assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: f"{design.mode}-{design.types}")
def test_mode_types_and_width_are_read_from_the_file(tmp_path, design):
    torch.save({"desc": state_of(design)}, tmp_path / "net.tar")
    network = read_network(tmp_path / "net.tar")
    assert network.design == design
    assert not network.training


class TestForms:
    def test_the_original_saves_under_desc(self, tmp_path, fast):
        torch.save({"desc": collections.OrderedDict(fast)}, tmp_path / "net.tar")
        assert_holds(read_network(tmp_path / "net.tar"), fast)

    def test_old_torch_wrote_no_archives(self, tmp_path, fast):
        torch.save({"desc": fast}, tmp_path / "net.tar", _use_new_zipfile_serialization=False)
        assert_holds(read_network(tmp_path / "net.tar"), fast)

    def test_several_devices_leave_a_prefix(self, tmp_path, fast):
        torch.save({"desc": {f"module.{name}": tensor for name, tensor in fast.items()}}, tmp_path / "net.tar")
        assert_holds(read_network(tmp_path / "net.tar"), fast)

    def test_what_the_converter_from_tensorflow_leaves_out_is_filled_in(self, tmp_path, fast):
        torch.save({"desc": as_converted(fast)}, tmp_path / "net.tar")
        network = read_network(tmp_path / "net.tar")
        assert_holds(network, fast)
        counters = [tensor for name, tensor in network.state_dict().items() if "num_batches" in name]
        assert counters
        assert all(tensor == 0 and tensor.dtype == torch.int64 for tensor in counters)

    def test_a_state_dict_with_metadata_needs_no_counters_either(self, tmp_path, fast):
        state = build(Design("fast", 6, 8)).state_dict()
        for name in [name for name in state if "num_batches" in name]:
            del state[name]
        assert state._metadata["conv0.bn"] == {"version": 2}
        torch.save({"desc": state}, tmp_path / "net.tar")
        assert_holds(read_network(tmp_path / "net.tar"), state)

    def test_a_bare_state_dict_will_do(self, tmp_path, fast):
        torch.save(fast, tmp_path / "net.pth")
        assert_holds(read_network(tmp_path / "net.pth"), fast)

    def test_safetensors_will_do(self, tmp_path, fast):
        safetensors_torch.save_file(fast, tmp_path / "hovernet.safetensors")
        assert_holds(read_network(tmp_path / "hovernet.safetensors"), fast)

    def test_half_precision_is_read_as_single(self, tmp_path, fast):
        halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in fast.items()}
        torch.save({"desc": halved}, tmp_path / "net.tar")
        network = read_network(tmp_path / "net.tar")
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}


class TestRefused:
    @pytest.fixture
    def tar(self, tmp_path, fast):
        torch.save({"desc": fast}, tmp_path / "net.tar")
        return tmp_path / "net.tar"

    def refused(self, state, path, error=WeightsCorrupt):
        torch.save(state, path)
        with pytest.raises(error) as caught:
            read_network(path)
        assert path.name in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"mode": "original"}, "asked for was mode 'original'."),
            ({"types": 5}, "asked for was 5 types."),
            ({"types": 0}, "asked for was no types."),
            ({"mode": "original", "types": 5}, "asked for was mode 'original' with 5 types."),
        ],
    )
    def test_another_mode_or_number_of_types_and_what_was_found_is_said(self, tar, asked, message):
        with pytest.raises(ConfigError) as caught:
            read_network(tar, **asked)
        assert "holds a HoVer-Net, mode 'fast' with 6 types, background included" in str(caught.value)
        assert message in str(caught.value)
        assert "--set segmenter.mode=fast --set segmenter.types=6 --set 'segmenter.type_names=[]'" in str(caught.value)

    @pytest.mark.parametrize("model", ["hovernet/consep", "hovernet/pannuke", "hovernet/kumar"])
    @pytest.mark.parametrize("design", [Design("fast", 0, 8), Design("fast", 6, 8), Design("original", 5, 8)], ids=str)
    def test_what_is_advised_works_as_it_is_written(self, tmp_path, model, design):
        torch.save({"desc": state_of(design)}, tmp_path / "net.tar")
        given = [f"segmenter.path={tmp_path / 'net.tar'}"]
        config = resolved(RunConfig(segmenter=model), given)
        try:
            built = build_plugin("segmenter", config.segmenter)
        except ConfigError as error:
            words = shlex.split(str(error).splitlines()[-1])
            advised = [value for option, value in pairwise(words) if option == "--set"]
            built = build_plugin("segmenter", resolved(config, [*given, *advised]).segmenter)
        assert built.plugin.design == design

    def test_what_is_asked_and_found_is_taken(self, tar):
        assert read_network(tar, mode="fast", types=6).design.types == 6

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(WeightsUnavailable, match=r"no weight file .*nowhere\.tar"):
            read_network(tmp_path / "nowhere.tar")

    def test_a_file_cut_short_anywhere(self, tmp_path, tar):
        whole = tar.read_bytes()
        for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
            short = tmp_path / "short.tar"
            short.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(WeightsCorrupt, match=r"short\.tar"):
                read_network(short)

    def test_one_flipped_bit_where_the_hash_is_known(self, tar):
        whole = bytearray(tar.read_bytes())
        expected = hashlib.sha256(whole).hexdigest()
        assert read_network(tar, expected).design.types == 6
        rng = np.random.default_rng(0)
        for place in rng.integers(0, len(whole), 5):
            whole[place] ^= 1 << int(rng.integers(8))
            tar.write_bytes(whole)
            with pytest.raises(WeightsCorrupt, match=expected):
                read_network(tar, expected)

    def test_a_pickle_that_runs_something(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return (open, (str(tmp_path / "was-run"), "w"))

        for number, content in enumerate((Payload(), {"desc": Payload()}, {"desc": {"conv0./.weight": Payload()}})):
            for zipped in (True, False):
                path = tmp_path / f"payload{number}{zipped}.tar"
                torch.save(content, path, _use_new_zipfile_serialization=zipped)
                with pytest.raises(WeightsCorrupt, match=path.name):
                    read_network(path)
        (tmp_path / "plain.tar").write_bytes(pickle.dumps(Payload()))
        with pytest.raises(WeightsCorrupt, match=r"plain\.tar"):
            read_network(tmp_path / "plain.tar")
        assert not (tmp_path / "was-run").exists()

    def test_objects_beside_the_weights(self, tmp_path, fast):
        message = self.refused({"desc": {**fast, "run": object}}, tmp_path / "net.tar")
        assert "cannot be used as weights" in message

    def test_another_network_is_named(self, tmp_path):
        generator = {f"model.{n}.weight": torch.zeros(2, 2, 3, 3) for n in (1, 4)}
        generator["model.10.conv_block.1.weight"] = torch.zeros(2, 2, 3, 3)
        message = self.refused(generator, tmp_path / "other.pth")
        assert "it is not a HoVer-Net" in message
        assert "a generator of CycleGAN" in message

    def test_an_encoder_alone(self, tmp_path, fast):
        encoder = {name: tensor for name, tensor in fast.items() if not name.startswith("decoder")}
        assert "no kernel 'decoder.np.u3.conva.weight'" in self.refused({"desc": encoder}, tmp_path / "resnet.tar")

    def test_a_missing_a_misshapen_and_a_strange_tensor(self, tmp_path, fast):
        name = "decoder.hv.u2.convf.weight"
        missing = {key: tensor for key, tensor in fast.items() if key != name}
        assert f"it has no tensor {name!r}" in self.refused({"desc": missing}, tmp_path / "missing.tar")
        shaped = {**fast, name: fast[name][:, :-1]}
        assert f"{name!r} has the shape (32, 31, 1, 1)" in self.refused({"desc": shaped}, tmp_path / "shaped.tar")
        strange = {**fast, "decoder.np.u4.conv.weight": torch.zeros(1)}
        assert "'decoder.np.u4.conv.weight'" in self.refused({"desc": strange}, tmp_path / "strange.tar")

    def test_nan_and_infinity(self, tmp_path, fast):
        for value in (float("nan"), float("inf")):
            broken = {**fast, "d2.shortcut.weight": torch.full_like(fast["d2.shortcut.weight"], value)}
            assert "'d2.shortcut.weight' holds NaN" in self.refused({"desc": broken}, tmp_path / "nan.tar")

    def test_kernels_that_no_mode_has(self, tmp_path, fast):
        wide = {**fast, "decoder.np.u3.conva.weight": torch.zeros(32, 128, 7, 7)}
        assert "kernels of 7 px instead of 5 or 3" in self.refused({"desc": wide}, tmp_path / "seven.tar")
