"""DeepLIIF's networks against recorded outputs of the original, and its files: what is read from them, and what is refused."""

import json
import os
import pickle
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from stainbridge.errors import DeviceUnavailable, WeightsCorrupt
from stainbridge_plugins.deepliif.ensemble import Ensemble, is_empty, to_tile
from stainbridge_plugins.deepliif.files import model_files
from stainbridge_plugins.deepliif.networks import modality_generator, seg_generator, set_dropout
from stainbridge_plugins.deepliif.options import Options
from stainbridge_plugins.deepliif.settings import NetworkSettings

torch = pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from deepliif_models import FEWER, FROM_IHC, MODALITIES, NGF, OPTIONS, as_saved, random_network, write_model  # noqa: E402

pytestmark = pytest.mark.heavy

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
ALL = (*MODALITIES, "G51", "G52", "G53", "G54", "G55")
original = pytest.mark.skipif(
    not GOLDEN.exists(), reason="needs the recorded outputs of ../shared, which are not shipped"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("deepliif"))


@pytest.fixture(scope="module")
def tile():
    coarse = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def opened(settings):
    return model_files(settings, {}, "segmenter 'deepliif'")


def ensemble(path, **settings):
    chosen = NetworkSettings(path=path, **settings)
    return Ensemble(*opened(chosen), chosen, "cpu")


def filled(name, shape):
    """A tensor of the deterministic fill that the recorded outputs were made with."""
    rng, last = np.random.default_rng(zlib.crc32(f"dev/{name}".encode())), name.rpartition(".")[2]
    if last == "running_var":
        return torch.from_numpy((0.5 + rng.random(shape)).astype(np.float32))
    values = rng.standard_normal(shape)
    scaled = (last == "weight") + 0.1 * values if len(shape) < 2 else values * np.sqrt(1.4 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(scaled, np.float32))


@original
@pytest.mark.parametrize(
    ("entry", "make", "shape", "parameters"),
    [
        ("deepliif_modality_generator", modality_generator, (1, 3, 96, 128), 11_383_427),
        ("deepliif_seg_generator", seg_generator, (1, 3, 512, 512), 66_998_915),
    ],
)
def test_networks_and_their_names_are_the_original_s(entry, make, shape, parameters):
    written = json.loads((GOLDEN / "state_dict_keys.json").read_text())[entry]
    keys = {name: tuple(size) for name, size in written if not name.endswith("num_batches_tracked")}
    with torch.device("meta"):
        network = make(own_statistics=False)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == keys
    assert sum(one.numel() for one in network.parameters()) == parameters
    network.load_state_dict({name: filled(name, size) for name, size in keys.items()}, assign=True)
    pixels = np.random.default_rng(zlib.crc32(b"dev/input")).uniform(-1, 1, shape).astype(np.float32)
    with torch.inference_mode():
        output = network.eval()(torch.from_numpy(pixels)).numpy()
    expected = np.load(GOLDEN / "networks.npz")[f"{entry}_eval"]
    shown = output if make is modality_generator else output[:, :, 192:320, 192:320]
    assert np.abs(shown - expected).max() < 1e-4


class TestNormalisation:
    @pytest.fixture
    def network(self):
        return random_network("G1")

    def trained(self, network):
        """The same layers with torch's own batch normalisation, in training as release 1.1.2 traces it, dropout left out."""
        for module in list(network.modules()):
            for name, child in module.named_children():
                if type(child).__name__ == "Norm":
                    norm = torch.nn.BatchNorm2d(len(child.weight), track_running_stats=False)
                    norm.load_state_dict({"weight": child.weight, "bias": child.bias})
                    setattr(module, name, norm.train())
        return network

    @pytest.mark.parametrize("name", ["G1", "G52"])
    def test_statistics_of_a_picture_are_those_of_a_batch_of_one_in_training(self, name):
        pixels = torch.rand(1, 3, 512 if name == "G52" else 64, 512 if name == "G52" else 64) * 2 - 1
        with torch.inference_mode():
            ours = random_network(name)(pixels)
            theirs = self.trained(random_network(name))(pixels)
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert ours.std() > 0.01

    def test_a_picture_does_not_see_the_others_of_its_batch(self, network):
        pixels = torch.rand(3, 3, 64, 64) * torch.tensor([1, 2, 0.2]).reshape(3, 1, 1, 1)
        with torch.inference_mode():
            together = network(pixels)
            for index in range(3):
                assert torch.allclose(together[index], network(pixels[index : index + 1])[0], atol=1e-5)

    def test_statistics_of_the_training_are_another_result(self, network):
        pixels = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            assert (network(pixels) - random_network("G1", own_statistics=False)(pixels)).abs().max() > 0.05


class TestEnsemble:
    def test_it_is_the_weighted_sum_of_five_segmentations_of_four_stains(self, model, tile):
        shares = (0.1, 0.3, 0.2, 0.25, 0.15)
        picture = ensemble(model, seg_weights=shares)(tile[None])[0]
        pixels = torch.from_numpy(tile).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            net = {name: opened(NetworkSettings(path=model))[0].network(name, own_statistics=True) for name in ALL}
            parts = [net["G51"](pixels)]
            parts += [net[f"G5{index}"](net[f"G{index - 1}"](pixels)) for index in (2, 3, 4, 5)]
            summed = sum(share * part for share, part in zip(shares, parts, strict=True))
            marker = ((net["G4"](pixels)[0].permute(1, 2, 0) + 1) * 127.5).numpy().astype(np.uint8)
        expected = ((summed[0].permute(1, 2, 0) + 1) * 127.5).numpy()
        assert np.abs(picture[..., :3].astype(float) + 0.5 - expected).max() < 0.51
        assert np.abs(picture[..., 3] - marker @ [0.299, 0.587, 0.114]).max() < 1.5
        assert picture[..., :3].std() > 1

    def test_the_shares_of_1_1_2_are_mixed_up_as_that_release_mixes_them_up(self, model, tile):
        as_it_does = ensemble(model)(tile[None])
        as_trained = ensemble(model, seg_weights=(0.25, 0.15, 0.25, 0.1, 0.25))(tile[None])
        explicit = ensemble(model, seg_weights=(0.25, 0.25, 0.15, 0.25, 0.1))(tile[None])
        assert np.array_equal(as_it_does, explicit)
        assert not np.array_equal(as_it_does, as_trained)

    def test_without_a_share_nothing_is_loaded_and_there_is_no_marker(self, model, tile):
        one = ensemble(model, seg_weights=FROM_IHC)
        assert list(one._networks) == ["G51"]
        assert not one(tile[None])[..., 3].any()

    def test_a_batch_is_its_tiles(self, model, tile):
        one = ensemble(model, seg_weights=FEWER)
        tiles = np.stack([tile, tile[::-1], tile // 2])
        together = one(tiles)
        for index in range(3):
            assert np.array_equal(together[index], one(tiles[index : index + 1])[0])

    def test_it_is_the_same_again_without_dropout(self, model, tile):
        assert np.array_equal(ensemble(model)(tile[None]), ensemble(model)(tile[None]))

    def test_dropout_is_chance_that_a_seed_repeats(self, model, tile):
        plain = ensemble(model, seg_weights=FEWER)(tile[None])
        first = ensemble(model, seg_weights=FEWER, dropout=True, seed=1)
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        drawn = first(np.stack([tile, tile[::-1]]))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not np.array_equal(drawn[:1], plain)
        assert np.array_equal(first(tile[::-1][None]), drawn[1:])
        assert np.array_equal(ensemble(model, seg_weights=FEWER, dropout=True, seed=1)(tile[None]), drawn[:1])
        assert not np.array_equal(ensemble(model, seg_weights=FEWER, dropout=True, seed=2)(tile[None]), drawn[:1])

    @pytest.mark.parametrize(("version", "skipped"), [("1.1.2", False), ("current", True)])
    def test_even_tiles_are_skipped_by_current_alone(self, model, version, skipped):
        glass = np.full((1, 512, 512, 3), 240, np.uint8)
        picture = ensemble(model, version=version)(glass)
        assert (picture == (0, 0, 0, 10)).all() == skipped

    def test_a_tile_is_even_if_its_grey_varies_by_less_than_nine(self):
        rng = np.random.default_rng(0)
        grey = np.repeat(rng.normal(200, 1, (512, 512, 1)), 3, axis=2)
        assert is_empty(grey.round().astype(np.uint8))
        assert not is_empty((200 + 4 * (grey - 200)).round().astype(np.uint8))
        assert is_empty(np.where(rng.random((512, 512, 1)) < 0.5, 0, 255).astype(np.uint8).repeat(3, axis=2))

    def test_a_part_of_a_tile_is_mirrored(self):
        part = np.arange(6, dtype=np.uint8).reshape(1, 6, 1).repeat(3, axis=2)
        assert to_tile(part)[0, :14, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 0, 1]

    def test_half_precision_on_a_cpu_is_refused_when_it_is_made(self, model):
        with pytest.raises(DeviceUnavailable, match="fp16"):
            ensemble(model, precision="fp16")

    def test_cuda_that_is_absent_is_named(self, model):
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        settings = NetworkSettings(path=model)
        with pytest.raises(DeviceUnavailable, match="'cuda' was asked for"):
            Ensemble(*opened(settings), settings, "cuda")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
class TestTorchScript:
    """Folders as `deepliif serialize` writes them."""

    NEEDED = ("G4", "G51", "G55")

    @pytest.fixture
    def folders(self, tmp_path):
        """Folders for TorchScript and with checkpoints of the same networks."""
        serialised, checkpoints = tmp_path / "serialised", tmp_path / "checkpoints"
        for folder in (serialised, checkpoints):
            folder.mkdir()
            (folder / "train_opt.txt").write_text(OPTIONS)
        for name in self.NEEDED:
            torch.save(as_saved(random_network(name)), checkpoints / f"latest_net_{name}.pth")
        return serialised, checkpoints

    def trace(self, folder, *, without_statistics=False):
        """Write the networks as release 1.1.2 does: traced in training, with dropout on."""
        for name in self.NEEDED:
            network = random_network(name)
            set_dropout(network, True)
            for key in [key for key, _ in network.named_buffers() if without_statistics]:
                owner, _, buffer = key.rpartition(".")
                delattr(network.get_submodule(owner), buffer)
            torch.jit.trace(network, torch.rand(1, 3, 512, 512), check_trace=False).save(str(folder / f"{name}.pt"))

    def test_networks_traced_in_training_give_what_their_checkpoints_give_in_every_mode(self, folders, tile):
        self.trace(folders[0])
        for mode in ({}, {"batch_norm": "running"}, {"dropout": True, "seed": 4}):
            serialised, checkpoints = (ensemble(folder, seg_weights=FEWER, **mode)(tile[None]) for folder in folders)
            assert np.array_equal(serialised, checkpoints)

    def test_without_statistics_they_run_by_those_of_the_tile_alone(self, folders, tile):
        self.trace(folders[0], without_statistics=True)
        serialised, checkpoints = (ensemble(folder, seg_weights=FEWER)(tile[None]) for folder in folders)
        assert np.array_equal(serialised, checkpoints)
        with pytest.raises(WeightsCorrupt, match=r"no statistics of the training(.|\n)*batch_norm = \"batch\""):
            ensemble(folders[0], seg_weights=FEWER, batch_norm="running")

    def test_a_checkpoint_under_that_name_is_refused(self, folders):
        for name in self.NEEDED:
            torch.save(as_saved(random_network(name)), folders[0] / f"{name}.pt")
        with pytest.raises(WeightsCorrupt, match=r"'G4.pt' cannot be used as weights: it is not a TorchScript module"):
            ensemble(folders[0], seg_weights=FEWER)


class TestOtherDesigns:
    @pytest.mark.parametrize(
        ("dropout", "padding", "second"),
        [(True, "zero", 4), (False, "zero", 3), (True, "reflect", 6), (False, "replicate", 5)],
    )
    def test_dropout_and_padding_shift_the_names(self, dropout, padding, second):
        keys = modality_generator(ngf=NGF, dropout=dropout, padding=padding).state_dict()
        convolutions = [key for key in keys if key.startswith("model.10.") and keys[key].ndim == 4]
        assert convolutions == [
            f"model.10.conv_block.{0 if padding == 'zero' else 1}.weight",
            f"model.10.conv_block.{second}.weight",
        ]

    @pytest.mark.parametrize("padding", ["zero", "reflect", "replicate"])
    def test_every_padding_keeps_the_size(self, padding):
        with torch.inference_mode():
            assert modality_generator(ngf=NGF, padding=padding)(torch.rand(1, 3, 32, 48)).shape == (1, 3, 32, 48)

    def test_a_model_with_another_width_and_padding_loads_by_its_options(self, tmp_path, tile):
        torch.manual_seed(0)
        for name in ALL:
            make = seg_generator if name in ALL[4:] else modality_generator
            extra = {} if name in ALL[4:] else {"padding": "reflect"}
            torch.save(as_saved(make(ngf=3, dropout=False, **extra)), tmp_path / f"latest_net_{name}.pth")
        (tmp_path / "train_opt.txt").write_text("ngf: 3\npadding: reflect\nno_dropout: True\n")
        one = ensemble(tmp_path)
        assert opened(NetworkSettings(path=tmp_path))[0].options == Options(ngf=3, padding="reflect", dropout=False)
        assert one(tile[None]).shape == (1, 512, 512, 4)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class TestWrongFiles:
    @pytest.fixture
    def broken(self, tmp_path):
        return write_model(tmp_path)

    def test_another_network_is_refused_with_the_first_tensor_that_does_not_fit(self, broken):
        (broken / "latest_net_G52.pth").write_bytes((broken / "latest_net_G1.pth").read_bytes())
        with pytest.raises(WeightsCorrupt) as caught:
            ensemble(broken)
        message = str(caught.value)
        assert (
            "'latest_net_G52.pth' does not fit: it is not G52 of DeepLIIF, a segmentation network of 2 channels"
            in message
        )
        assert "it has no tensor 'model.model.0.weight'" in message

    def test_the_width_in_the_options_must_be_that_of_the_files(self, broken):
        (broken / "train_opt.txt").write_text("ngf: 8\n")
        with pytest.raises(
            WeightsCorrupt, match=r"'model.1.weight' has the shape \(2, 3, 7, 7\) instead of \(8, 3, 7, 7\)"
        ):
            ensemble(broken)

    @pytest.mark.parametrize("left", [0, 1, 1000, 0.5, -1])
    def test_a_truncated_file_is_refused_by_name(self, broken, left):
        path = broken / "latest_net_G4.pth"
        data = path.read_bytes()
        path.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
        with pytest.raises(WeightsCorrupt, match=r"latest_net_G4\.pth"):
            ensemble(broken)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
    def test_a_pickle_with_something_else_in_it_is_refused_and_not_run(self, broken, tmp_path, write):
        mark = tmp_path / "was run"
        write({"model.1.weight": Payload(mark)}, broken / "latest_net_G1.pth")
        with pytest.raises(WeightsCorrupt, match=r"latest_net_G1\.pth"):
            ensemble(broken)
        assert not mark.exists()

    def test_weights_that_are_not_numbers_are_refused(self, broken):
        state = torch.load(broken / "latest_net_G53.pth", weights_only=True)
        state["model.model.3.bias"][1] = float("nan")
        torch.save(state, broken / "latest_net_G53.pth")
        with pytest.raises(WeightsCorrupt, match=r"'model.model.3.bias' holds NaN or infinity"):
            ensemble(broken)

    def test_a_checkpoint_saved_from_several_devices_will_do(self, broken, tile):
        expected = ensemble(broken)(tile[None])
        path = broken / "latest_net_G1.pth"
        torch.save({f"module.{key}": value for key, value in torch.load(path, weights_only=True).items()}, path)
        assert np.array_equal(ensemble(broken)(tile[None]), expected)
