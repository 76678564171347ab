"""Generators of CycleGAN and U-GAT-IT from files: official ones, broken ones, hostile ones and those of other networks."""

import hashlib
import io
import os
import time
from collections import OrderedDict

import numpy as np
import pytest

from stainbridge.errors import WeightsCorrupt, WeightsUnavailable
from stainbridge.torchkit.checkpoints import cleaned, fit_or_refuse
from stainbridge_plugins.cyclegan import checkpoint as cyclegan_files
from stainbridge_plugins.cyclegan import networks as cyclegan
from stainbridge_plugins.ugatit import checkpoint as ugatit_files
from stainbridge_plugins.ugatit import networks as ugatit

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.heavy

READERS = {"cyclegan": cyclegan_files.read_generator, "ugatit": ugatit_files.read_generator}


def generator(kind, **options):
    torch.manual_seed(3)
    build = {"cyclegan": cyclegan.generator, "ugatit": ugatit.generator}[kind]
    return (
        build(channels=4, blocks=1, **({"light": True} if kind == "ugatit" else {}), **options)
        .eval()
        .requires_grad_(False)
    )


def full(size):
    torch.manual_seed(4)
    return ugatit.generator(channels=4, blocks=1, size=size).eval().requires_grad_(False)


def saved(path, state):
    """Write a state dict, or a dict of them, in the format of the name."""
    if path.suffix == ".safetensors":
        safetensors.save_file(dict(state), path)
    else:
        torch.save(state, path)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(found, wanted, side=32):
    x = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    outputs = [network(x) for network in (found, wanted)]
    return all(
        torch.equal(*pair)
        for pair in zip(*([each] if torch.is_tensor(each) else each for each in outputs), strict=True)
    )


def refusal(read, path, *args):
    """Return the message of the refusal, which is to come within a second."""
    started = time.perf_counter()
    with pytest.raises(WeightsCorrupt) as caught:
        read(path, *args)
    assert time.perf_counter() - started < 1.0
    assert path.name in str(caught.value)
    return str(caught.value)


class TestCycleGAN:
    @pytest.mark.parametrize("name", ["latest_net_G_A.pth", "net.pt", "generator.safetensors"])
    @pytest.mark.parametrize("hashed", [True, False])
    def test_a_generator_comes_back_as_it_was_saved(self, tmp_path, name, hashed):
        own = generator("cyclegan")
        path = saved(tmp_path / name, own.state_dict())
        network, facts = cyclegan_files.read_generator(path, digest(path) if hashed else None)
        assert same(network, own)
        assert facts == {"channels": 4, "blocks": 1, "dropout": False}
        assert not network.training

    @pytest.mark.parametrize("blocks", [1, 6, 9])
    @pytest.mark.parametrize("dropout", [False, True])
    def test_blocks_channels_and_dropout_are_those_of_the_file(self, tmp_path, blocks, dropout):
        own = cyclegan.generator(channels=2, blocks=blocks, dropout=dropout).eval().requires_grad_(False)
        network, facts = cyclegan_files.read_generator(saved(tmp_path / "a.pth", own.state_dict()))
        assert facts == {"channels": 2, "blocks": blocks, "dropout": dropout}
        assert same(network, own)

    def test_an_official_file_from_before_torch_0_4_loads(self, tmp_path):
        """With `_metadata`, names behind `module.`, and statistics of instance normalisations that have none."""
        own = generator("cyclegan")
        state = own.state_dict()
        assert isinstance(state, OrderedDict)
        assert state._metadata
        for norm in ("model.2", "model.10.conv_block.6", "model.15"):
            width = 4 if norm == "model.15" else 8
            state[f"{norm}.running_mean"] = torch.rand(width)
            state[f"{norm}.running_var"] = torch.rand(width)
            state[f"{norm}.num_batches_tracked"] = torch.tensor(3)
        behind = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
        behind._metadata = state._metadata
        network, _ = cyclegan_files.read_generator(saved(tmp_path / "old.pth", behind))
        assert same(network, own)

    def test_half_precision_is_read_into_single(self, tmp_path):
        state = {name: tensor.half() for name, tensor in generator("cyclegan").state_dict().items()}
        network, _ = cyclegan_files.read_generator(saved(tmp_path / "half.safetensors", state))
        assert all(torch.equal(tensor, state[name].float()) for name, tensor in network.state_dict().items())

    def test_tensors_do_not_hang_on_the_file(self, tmp_path):
        path = saved(tmp_path / "generator.safetensors", generator("cyclegan").state_dict())
        network, _ = cyclegan_files.read_generator(path)
        with path.open("r+b") as file:
            file.truncate(8)
        assert same(network, generator("cyclegan"))


class TestUgatit:
    def together(self, **changed):
        """The file of the original: six networks by name."""
        names = ("genA2B", "genB2A", "disGA", "disGB", "disLA", "disLB")
        networks = [generator("ugatit"), full(32), *(ugatit.discriminator(channels=2, layers=4) for _ in names[2:])]
        return {name: network.state_dict() for name, network in zip(names, networks, strict=True)} | changed

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("direction", ["A2B", "B2A"])
    def test_a_file_of_all_networks_gives_the_generator_of_the_direction(self, tmp_path, direction, legacy):
        path = tmp_path / "stain_params_latest.pt"
        torch.save(self.together(), path, _use_new_zipfile_serialization=not legacy)
        network, facts = ugatit_files.read_generator(path, digest(path), direction)
        assert same(network, generator("ugatit") if direction == "A2B" else full(32))
        assert facts["light"] == (direction == "A2B")

    def test_it_is_read_once(self, tmp_path, monkeypatch):
        path = saved(tmp_path / "all.pt", self.together())
        calls, load = [], torch.load
        monkeypatch.setattr(torch, "load", lambda *args, **kwargs: calls.append(1) or load(*args, **kwargs))
        ugatit_files.read_generator(path)
        assert calls == [1]

    @pytest.mark.parametrize("name", ["genA2B.pt", "generator.safetensors"])
    def test_a_generator_alone_is_taken_too(self, tmp_path, name):
        network, facts = ugatit_files.read_generator(saved(tmp_path / name, generator("ugatit").state_dict()))
        assert same(network, generator("ugatit"))
        assert facts == {"channels": 4, "blocks": 1, "size": 256, "light": True}
        assert network.size is None
        assert not network.training

    @pytest.mark.parametrize("size", [32, 64])
    def test_a_full_one_says_its_only_size(self, tmp_path, size):
        network, facts = ugatit_files.read_generator(saved(tmp_path / "a.safetensors", full(size).state_dict()))
        assert facts == {"channels": 4, "blocks": 1, "size": size, "light": False}
        assert network.size == size
        assert same(network, full(size), side=size)

    def test_blocks_and_channels_are_those_of_the_file(self, tmp_path):
        own = ugatit.generator(channels=3, blocks=4, light=True).eval().requires_grad_(False)
        network, facts = ugatit_files.read_generator(saved(tmp_path / "a.pt", own.state_dict()))
        assert facts == {"channels": 3, "blocks": 4, "size": 256, "light": True}
        assert same(network, own)

    def test_an_official_file_with_prefix_and_stale_statistics_loads(self, tmp_path):
        state = generator("ugatit").state_dict() | {"DownBlock.2.running_mean": torch.rand(4)}
        state = {f"module.{name}": tensor for name, tensor in state.items()}
        network, _ = ugatit_files.read_generator(saved(tmp_path / "a.pt", self.together(genA2B=state)))
        assert same(network, generator("ugatit"))

    def test_a_file_without_the_direction_says_which_networks_it_has(self, tmp_path):
        state = self.together()
        del state["genB2A"]
        found = refusal(ugatit_files.read_generator, saved(tmp_path / "a.pt", state), None, "B2A")
        assert "it has no entry 'genB2A'; found genA2B, disGA" in found

    def test_a_style_matrix_of_no_square_map_is_refused(self, tmp_path):
        state = generator("ugatit").state_dict() | {"FC.0.weight": torch.zeros(16, 16 * 5)}
        found = refusal(ugatit_files.read_generator, saved(tmp_path / "a.pt", state))
        assert "'FC.0.weight' has the shape (16, 80) instead of (16, 64)" in found


class TestCleaning:
    def test_a_prefix_goes_only_where_every_name_has_it(self):
        x = torch.zeros(1)
        assert list(cleaned({"module.a": x, "module.b": x})) == ["a", "b"]
        assert list(cleaned({"module.module.a": x})) == ["a"]
        assert list(cleaned({"module.a": x, "b": x})) == ["module.a", "b"]

    def test_statistics_go_only_from_layers_that_have_none(self):
        state = {f"{layer}.running_mean": torch.zeros(1) for layer in ("1", "11", "2")}
        assert list(cleaned(state, norms=["1"])) == ["11.running_mean", "2.running_mean"]

    def test_statistics_of_a_batch_normalisation_stay(self, tmp_path):
        network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
        state = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).state_dict() | {"0.running_mean": torch.ones(3)}
        del state["0.num_batches_tracked"]
        with pytest.raises(WeightsCorrupt, match=r"it has no tensor '0\.num_batches_tracked'"):
            fit_or_refuse(network, state, tmp_path / "a.pth")

    def test_a_network_with_counters_takes_them(self, tmp_path):
        network, other = (torch.nn.Sequential(torch.nn.BatchNorm2d(3)) for _ in range(2))
        other[0].num_batches_tracked += 7
        fit_or_refuse(network, other.state_dict(), tmp_path / "a.pth")
        assert int(network[0].num_batches_tracked) == 7

    def test_what_it_is_given_stays_as_it_is(self):
        state = {"module.a.running_var": torch.zeros(1)}
        cleaned(state, norms=["a"])
        assert list(state) == ["module.a.running_var"]

    def test_a_network_that_is_refused_something_keeps_its_weights(self, tmp_path):
        network = generator("cyclegan")
        state = generator("cyclegan").state_dict()
        state = {name: tensor + 1 for name, tensor in state.items()} | {"model.15.weight": torch.zeros(1)}
        with pytest.raises(WeightsCorrupt):
            fit_or_refuse(network, state, tmp_path / "a.pth")
        assert same(network, generator("cyclegan"))

    def test_a_network_in_use_keeps_its_parameters_and_takes_the_values(self, tmp_path):
        network, state = generator("cyclegan"), cyclegan.generator(channels=4, blocks=1).state_dict()
        before = list(network.parameters())
        fit_or_refuse(network, state, tmp_path / "a.pth")
        assert all(old is new for old, new in zip(before, network.parameters(), strict=True))
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


class TestWhatDoesNotFit:
    """The first key that does not fit is named, and what the file looks like."""

    def changed(self, tmp_path, kind, **changes):
        state = generator(kind).state_dict()
        for name, tensor in changes.items():
            name = name.replace("__", ".")
            state.pop(name) if tensor is None else state.update({name: tensor})
        return refusal(READERS[kind], saved(tmp_path / "a.pth", state))

    def test_a_missing_key(self, tmp_path):
        found = self.changed(tmp_path, "cyclegan", model__4__bias=None, model__11__bias=None)
        assert "it is not a generator of CycleGAN (channels 4, blocks 1): it has no tensor 'model.4.bias'" in found

    def test_a_key_too_many(self, tmp_path):
        found = self.changed(tmp_path, "ugatit", UpBlock9__weight=torch.zeros(1))
        assert "U-GAT-IT (light, channels 4, blocks 1): it has a tensor 'UpBlock9.weight', which that" in found

    def test_another_shape(self, tmp_path):
        found = self.changed(tmp_path, "cyclegan", model__7__weight=torch.zeros(16, 8, 5, 5))
        assert "'model.7.weight' has the shape (16, 8, 5, 5) instead of (16, 8, 3, 3)" in found

    def test_the_first_of_several_in_the_order_of_the_network(self, tmp_path):
        found = self.changed(
            tmp_path, "cyclegan", other=torch.zeros(1), model__14__bias=None, model__4__weight=torch.zeros(1)
        )
        assert "'model.4.weight' has the shape (1,) instead of (8, 4, 3, 3)" in found

    def test_whole_numbers(self, tmp_path):
        found = self.changed(tmp_path, "cyclegan", model__4__bias=torch.zeros(8, dtype=torch.int8))
        assert "'model.4.bias' holds torch.int8 instead of torch.float32" in found

    @pytest.mark.parametrize(
        ("make", "fault"),
        [
            (lambda x: x.to_sparse(), "is a sparse, nested, quantised or empty tensor"),
            (lambda x: x.to("meta"), "is a sparse, nested, quantised or empty tensor"),
            (lambda x: x.to(torch.complex64), "holds torch.complex64 instead of torch.float32"),
            (lambda x: x.bool(), "holds torch.bool instead of torch.float32"),
            (lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "holds NaN or infinity"),
        ],
        ids=["sparse", "meta", "complex", "truth", "too large"],
    )
    @pytest.mark.parametrize("kind", READERS)
    def test_tensors_of_another_nature(self, tmp_path, kind, make, fault):
        state = generator(kind).state_dict()
        name = list(state)[3]
        path = saved(tmp_path / "a.pth", dict(state) | {name: make(state[name])})
        assert f"{name!r} {fault}" in refusal(READERS[kind], path)

    def test_the_hash_is_in_the_message(self, tmp_path):
        path = saved(tmp_path / "a.pth", {"w": torch.zeros(1)})
        for read in READERS.values():
            assert digest(path) in refusal(read, path, digest(path))

    @pytest.mark.parametrize(
        ("other", "kind", "like"),
        [
            ("cyclegan", "ugatit", "a generator of CycleGAN"),
            ("ugatit", "cyclegan", "a generator of U-GAT-IT"),
            ("cyclegan discriminator", "cyclegan", "a discriminator of CycleGAN or pix2pix"),
            ("cyclegan discriminator", "ugatit", "a discriminator of CycleGAN or pix2pix"),
            ("ugatit discriminator", "ugatit", "a discriminator of U-GAT-IT"),
            ("ugatit discriminator", "cyclegan", "a discriminator of U-GAT-IT"),
            ("hovernet", "cyclegan", "a HoVer-Net"),
            ("unet", "cyclegan", "a U-Net generator of pix2pix"),
            ("batch norm", "cyclegan", "a generator with batch normalisation, as DeepLIIF's"),
        ],
    )
    def test_another_network_is_called_by_its_name(self, tmp_path, other, kind, like):
        state = {
            "cyclegan": lambda: generator("cyclegan").state_dict(),
            "ugatit": lambda: generator("ugatit").state_dict(),
            "cyclegan discriminator": lambda: cyclegan.discriminator(channels=2).state_dict(),
            "ugatit discriminator": lambda: ugatit.discriminator(channels=2).state_dict(),
            "hovernet": lambda: {"conv0./.weight": torch.zeros(64, 3, 7, 7)},
            "unet": lambda: {"model.model.0.weight": torch.zeros(64, 3, 4, 4)},
            "batch norm": self.with_batch_norm,
        }[other]()
        for name in ("a.pth", "a.safetensors"):
            assert f"It looks like {like}." in refusal(READERS[kind], saved(tmp_path / name, state))

    def with_batch_norm(self):
        state = {name: tensor for name, tensor in generator("cyclegan").state_dict().items() if "bias" not in name}
        return state | {f"model.2.{part}": torch.ones(4) for part in ("weight", "bias", "running_mean", "running_var")}

    def test_ugatits_file_given_to_cyclegan(self, tmp_path):
        path = saved(tmp_path / "all.pt", {"genA2B": generator("ugatit").state_dict()})
        assert "a file of U-GAT-IT with all its networks.\nUse it with translator 'ugatit'" in refusal(
            cyclegan_files.read_generator, path
        )

    @pytest.mark.parametrize("kind", READERS)
    def test_a_file_of_something_else_says_what_it_begins_with(self, tmp_path, kind):
        found = refusal(READERS[kind], saved(tmp_path / "a.pth", {"encoder.w": torch.zeros(1), "b": torch.zeros(2)}))
        assert "It begins with encoder.w, b." in found

    @pytest.mark.parametrize("kind", READERS)
    def test_a_kernel_without_channels_or_sides(self, tmp_path, kind):
        key = {"cyclegan": "model.1.weight", "ugatit": "DownBlock.1.weight"}[kind]
        for shape in ((0, 3, 7, 7), (4,), ()):
            state = generator(kind).state_dict() | {key: torch.zeros(shape)}
            refusal(READERS[kind], saved(tmp_path / "a.pth", state))


class TestFaults:
    @pytest.mark.parametrize("kind", READERS)
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_no_flipped_bit_is_loaded(self, tmp_path, kind, suffix):
        """Two hundred trials in all."""
        path = saved(tmp_path / f"net{suffix}", generator(kind).state_dict())
        expected, whole = digest(path), path.read_bytes()
        READERS[kind](path, expected)
        rng = np.random.default_rng(5)
        for place in rng.integers(0, 8 * len(whole), 50):
            data = bytearray(whole)
            data[place // 8] ^= 1 << (place % 8)
            path.write_bytes(data)
            assert expected in refusal(READERS[kind], path, expected)

    @pytest.mark.parametrize("kind", READERS)
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("hashed", [True, False])
    def test_a_truncated_file_is_refused_with_and_without_a_hash(self, tmp_path, kind, suffix, hashed):
        path = saved(tmp_path / f"net{suffix}", generator(kind).state_dict())
        expected, whole = digest(path), path.read_bytes()
        for length in np.linspace(0, len(whole) - 1, 20).astype(int):
            path.write_bytes(whole[:length])
            refusal(READERS[kind], path, expected if hashed else None)

    def test_a_truncated_file_of_all_networks_is_refused(self, tmp_path):
        path = saved(tmp_path / "all.pt", {"genA2B": generator("ugatit").state_dict()})
        whole = path.read_bytes()
        for length in np.linspace(0, len(whole) - 1, 20).astype(int):
            path.write_bytes(whole[:length])
            refusal(ugatit_files.read_generator, path)

    @pytest.mark.parametrize("kind", READERS)
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers_are_refused(self, tmp_path, kind, bad):
        state = generator(kind).state_dict()
        name = list(state)[5]
        state[name].view(-1)[-1] = bad
        assert f"{name!r} holds NaN or infinity" in refusal(READERS[kind], saved(tmp_path / "a.pth", state))

    @pytest.mark.parametrize("kind", READERS)
    def test_a_file_that_is_not_there_is_said_to_be_not_there(self, tmp_path, kind):
        with pytest.raises(WeightsUnavailable, match=r"There is no weight file .*none\.pth"):
            READERS[kind](tmp_path / "none.pth")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def around(payload):
    """Checkpoints with the payload in several places."""
    state = generator("ugatit").state_dict()
    return {
        "alone": payload,
        "as a tensor": state | {"gap_fc.weight": payload},
        "beside the tensors": dict(state) | {"optimiser": payload},
        "as a network": {"genA2B": payload, "genB2A": state},
        "as a tensor of a network": {"genA2B": dict(state) | {"gap_fc.weight": payload}},
        "in the other network": {"genA2B": state, "genB2A": {"x": payload}},
    }


class TestHostileFiles:
    @pytest.mark.parametrize("kind", READERS)
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("place", list(around(None)))
    def test_no_pickle_is_executed(self, tmp_path, kind, legacy, place):
        trace = tmp_path / "executed"
        data = io.BytesIO()
        torch.save(around(Touch(trace))[place], data, _use_new_zipfile_serialization=not legacy)
        for suffix in (".pth", ".pt", ".safetensors"):
            path = tmp_path / f"evil{suffix}"
            path.write_bytes(data.getvalue())
            for expected in (None, digest(path)):
                refusal(READERS[kind], path, expected)
        assert not trace.exists()

    def test_the_payload_would_have_been_executed(self, tmp_path):
        """The test above tests something."""
        path = saved(tmp_path / "evil.pt", Touch(tmp_path / "executed"))
        torch.load(path, weights_only=False)
        assert (tmp_path / "executed").exists()
