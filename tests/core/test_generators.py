"""Generators as they are run on pictures: the originals' arithmetic, whatever the form, the engine and the size of the batch."""

import copy
import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from stainbridge.errors import ConfigError, ContractViolation, DeviceUnavailable, MissingExtra, PluginUnavailable
from stainbridge.torchkit import cpu_has_bf16
from stainbridge.torchkit import generators as module
from stainbridge.torchkit.engines import engine
from stainbridge.torchkit.generators import GeneratorSettings, Runner
from stainbridge.torchkit.normalisation import fix, gather, instance_norm
from stainbridge.torchkit.prepared import prepared

torch = pytest.importorskip("torch", reason="needs torch: pip install 'stainbridge[torch]'")

pytestmark = pytest.mark.heavy

nn = torch.nn
CPU = torch.device("cpu")


def network(channels=8, *, size=None, seed=0):
    """A generator in small: strides, blocks, transposed convolutions, and a style that is taken from the whole map if it has a size."""
    torch.manual_seed(seed)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), instance_norm(channels))

        def forward(self, x):
            return x + self.inner(x)

    layers = [
        nn.ReflectionPad2d(3), nn.Conv2d(3, channels, 7), instance_norm(channels), nn.ReLU(True),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1), instance_norm(channels), nn.ReLU(True),
        Block(),
        nn.ConvTranspose2d(channels, 2 * channels, 3, stride=2, padding=1, output_padding=1),
        instance_norm(2 * channels), nn.ReLU(True),
        nn.ReflectionPad2d(3), nn.Conv2d(2 * channels, 3, 7), nn.Tanh(),
    ]  # fmt: skip
    made = nn.Sequential(*layers).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0, 0.3 if parameter.ndim == 1 else (1.4 / parameter[0].numel()) ** 0.5)
    made.reach_px, made.size = 14, size
    return made


def pictures(count=1, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def original(net, batch):
    """Translate as the original's test script does: one picture at a time, torch's instance normalisation, numpy at the end."""
    plain = copy.deepcopy(net)
    for layer in list(plain.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(layer, name, nn.InstanceNorm2d(child.num_channels))
    found = []
    for picture in batch:
        x = (torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32) / 255) - 0.5) / 0.5
        with torch.no_grad():
            y = plain(x[None])[0].numpy()
        found.append(((np.transpose(y, (1, 2, 0)) + 1) / 2.0 * 255.0).astype(np.uint8))
    return np.stack(found)


def runner(net, *, precision="fp32", **settings):
    return Runner(net, GeneratorSettings(**settings), device=CPU, precision=precision, who="translator 'toy'")


def levels_apart(found, expected):
    return np.abs(found.astype(int) - expected.astype(int))


class Constant(nn.Module):
    """Returns one value in every pixel, and remembers what it was given."""

    reach_px = 0

    def __init__(self, value):
        super().__init__()
        self.value, self.given = value, []

    def forward(self, x):
        self.given.append(x)
        return torch.full_like(x, self.value)


class TestArithmetic:
    def test_in_single_precision_it_is_the_originals(self):
        net, batch = network(), pictures(3)
        apart = levels_apart(runner(net)(batch), original(net, batch))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.001

    @pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bf16 arithmetic")
    def test_in_bf16_it_is_close(self):
        net, batch = network(), pictures(2)
        apart = levels_apart(runner(net, precision="bf16")(batch), original(net, batch))
        assert 0 < apart.mean() < 1.5
        assert apart.max() <= 16

    @pytest.mark.parametrize(("value", "level"), [(-1.0, 0), (1.0, 255), (0.0, 127), (0.5, 191), (0.999, 254)])
    def test_values_are_cut_to_levels_and_not_rounded(self, value, level):
        assert (runner(Constant(value))(pictures()) == level).all()

    def test_the_network_is_given_rgb_planes_between_minus_one_and_one(self):
        net = Constant(0.0)
        picture = np.zeros((1, 8, 12, 3), np.uint8)
        picture[0, 1, 2] = (255, 0, 51)
        toy = runner(net)
        toy(picture)
        (given,) = toy._network.given
        assert given.shape == (1, 3, 8, 12)
        assert given[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, -0.6])
        assert given.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("shape", [(4, 4), (4, 8), (12, 4)])
    def test_a_picture_of_less_than_8_px_is_the_corner_of_a_mirrored_one(self, shape):
        small = pictures(2, *shape)
        wide = np.concatenate([small, small[:, ::-1]], axis=1)[:, : max(8, shape[0])]
        wide = np.concatenate([wide, wide[:, :, ::-1]], axis=2)[:, :, : max(8, shape[1])]
        for toy in (runner(network()), runner(network()).fixed(small)):
            assert np.array_equal(toy(small), toy(wide)[:, : shape[0], : shape[1]])

    def test_a_read_only_view_is_as_good_as_an_array(self):
        wide = np.repeat(pictures(2), 2, axis=2)
        wide.setflags(write=False)
        toy = runner(network())
        assert np.array_equal(toy(wide[:, ::-1, ::2]), toy(np.ascontiguousarray(wide[:, ::-1, ::2])))

    @pytest.mark.parametrize(("precision", "advice"), [("fp32", "weights are of no use"), ("bf16", "precision=fp32")])
    def test_a_value_that_is_not_finite_is_an_error_that_says_what_to_do(self, precision, advice):
        with pytest.raises(
            ContractViolation, match=rf"'toy' gave values that are not finite in {precision}.*\n.*{advice}"
        ):
            runner(Constant(float("nan")), precision=precision)(pictures())


class TestPrepared:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("side", "outs"), [(7, 3), (3, 1), (5, 4)])
    def test_a_packed_convolution_gives_the_same_map(self, side, outs, bias):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(5, outs, side, bias=bias))
        packed = prepared(plain, dtype=torch.float32, device=CPU)
        assert any(isinstance(layer, nn.PixelShuffle) for layer in packed.modules())
        for height, width in ((4, 4), (10, 6)):
            x = torch.randn(2, 5, height + side - 1, width + side - 1)
            with torch.no_grad():
                assert torch.allclose(packed(x), plain(x), atol=1e-5)

    @pytest.mark.parametrize(
        "conv", [nn.Conv2d(5, 8, 3), nn.Conv2d(5, 3, 3, stride=2), nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(5, 3, 1)]
    )
    def test_other_convolutions_stay_as_they_are(self, conv):
        assert not any(
            isinstance(layer, nn.PixelShuffle)
            for layer in prepared(nn.Sequential(conv), dtype=torch.float32, device=CPU).modules()
        )

    def test_fixed_normalisations_vanish_into_the_convolutions(self):
        net = network()
        sample = torch.randn(3, 3, 32, 32)
        fixed = fix(net, gather(net, sample))
        folded = prepared(fixed, dtype=torch.float32, device=CPU)
        x = torch.randn(2, 3, 24, 40)
        with torch.no_grad():
            assert torch.allclose(folded(x), fixed(x), atol=1e-4)
        assert not any(isinstance(layer, nn.GroupNorm) for layer in folded.modules())

    def test_the_network_itself_stays_as_it_is(self):
        net = network()
        before = copy.deepcopy(net.state_dict())
        layers = [type(layer) for layer in net.modules()]
        prepared(net, dtype=torch.bfloat16, device=CPU)
        assert [type(layer) for layer in net.modules()] == layers
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert all(tensor.dtype == torch.float32 for tensor in net.state_dict().values())

    def test_a_second_network_of_the_same_tensors_shares_their_casts(self):
        net, known = nn.Sequential(nn.Linear(8, 8)), {}
        one, other = (prepared(net, dtype=torch.bfloat16, device=CPU, known=known) for _ in range(2))
        assert one[0].weight.data_ptr() == other[0].weight.data_ptr() != net[0].weight.data_ptr()


class TestBatches:
    class Small(nn.Module):
        """Runs out of memory from some number of pictures up."""

        reach_px = 0

        def __init__(self, fits):
            super().__init__()
            self.fits, self.sizes = fits, []

        def forward(self, x):
            self.sizes.append(len(x))
            if len(x) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x.flip(3)

    @pytest.mark.parametrize("fits", [1, 2, 5, 8])
    def test_a_batch_that_does_not_fit_is_halved_and_the_pictures_are_the_same(self, fits):
        batch = pictures(11)
        one, many = runner(self.Small(1)), runner(self.Small(fits))
        many.batch_size = 8
        assert np.array_equal(many(batch), one(batch))
        assert sum(size > fits for size in many._network.sizes) <= 3

    def test_a_single_picture_that_does_not_fit_is_an_error(self):
        with pytest.raises(DeviceUnavailable, match="One tile of 32 x 48 px does not fit"):
            runner(self.Small(0))(pictures())

    def test_a_cpu_takes_one_picture_at_a_time(self):
        toy = runner(self.Small(9), batch_size=8)
        toy(pictures(3))
        assert toy.batch_size == 1
        assert toy._network.sizes == [1, 1, 1]


class TestStatistics:
    def test_on_the_sample_they_change_nothing(self):
        toy, batch = runner(network()), pictures(height=64, width=64)
        assert levels_apart(toy.fixed(batch)(batch), toy(batch)).max() <= 1

    def test_a_pixel_depends_on_its_neighbourhood_alone(self):
        toy = runner(network()).fixed(pictures(height=96, width=96))
        one = pictures(height=96, width=96, seed=1)
        other = one.copy()
        other[:, 60:] = 0
        reach = network().reach_px
        found, changed = toy(one), toy(other)
        assert np.array_equal(found[:, : 60 - reach], changed[:, : 60 - reach])
        assert not np.array_equal(found[:, :60], changed[:, :60])

    def test_a_sample_beyond_the_budget_is_seen_in_windows_spread_evenly(self):
        sample = np.zeros((1, 2048, 2048, 3), np.uint8)
        sample[0, :, :, 0], sample[0, :, :, 1] = np.arange(2048)[:, None] // 8, np.arange(2048) // 8
        windows = module._windows(sample, 8 * 512**2, size=None)
        assert windows.shape == (8, 512, 512, 3)
        corners = [(int(window[0, 0, 0]), int(window[0, 0, 1])) for window in windows]
        assert {y for y, _ in corners} == {0, 64, 128, 192} == {x for _, x in corners}

    def test_a_sample_within_the_budget_is_seen_whole(self):
        sample = pictures(2, 50, 61)
        windows = module._windows(sample, 10**6, size=None)
        assert windows.shape == (2, 52, 64, 3)
        assert np.array_equal(windows[:, :50, :61], sample)

    @pytest.mark.parametrize(
        ("shape", "count"), [((1, 128, 192), 6), ((1, 40, 30), 1), ((3, 64, 64), 3), ((1, 100, 64), 2)]
    )
    def test_a_network_of_one_size_sees_windows_of_that_size(self, shape, count):
        windows = module._windows(pictures(*shape), 8 * 512**2, size=64)
        assert windows.shape == (count, 64, 64, 3)

    @pytest.mark.parametrize(("fits", "seen"), [(8, 8), (5, 4), (1, 1)])
    def test_fewer_windows_are_taken_where_memory_runs_out(self, monkeypatch, fits, seen):
        toy, shown = runner(network()), []

        def limited(net, signal):
            if signal.shape[0] * signal.shape[2] * signal.shape[3] > fits * 64**2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            shown.append(len(signal))
            return gather(net, signal)

        monkeypatch.setattr(module, "gather", limited)
        monkeypatch.setattr(module, "SAMPLE_SIDE_PX", 64)
        assert toy.fixed(pictures(16, 64, 64))(pictures()).shape == (1, 32, 48, 3)
        assert shown == [seen]

    def test_no_window_that_fits_is_an_error_that_says_what_to_do(self, monkeypatch):
        def full(net, signal):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(module, "gather", full)
        with pytest.raises(
            DeviceUnavailable, match=r"'toy' cannot gather .* one window of 512 px.*\n?.*statistics = 'tile'"
        ):
            runner(network()).fixed(pictures())

    def test_a_network_of_one_size_refuses_others_until_it_is_calibrated(self):
        toy = runner(network(size=32))
        assert toy(pictures(height=32, width=32)).shape == (1, 32, 32, 3)
        with pytest.raises(ContractViolation, match=r"takes pictures of 32 x 32 px; found 32 x 48\.\n.*'slide'"):
            toy(pictures())
        assert toy.fixed(pictures())(pictures()).shape == (1, 32, 48, 3)


class TestEngines:
    @pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, which is not installed")
    def test_the_compiler_gives_the_same_picture(self):
        net, batch = network(4), pictures(3, 16, 16)
        assert levels_apart(runner(net, engine="compile")(batch), original(net, batch)).max() <= 1

    def test_the_compiler_is_shown_few_numbers_of_pictures(self, monkeypatch):
        shown = []

        def recorded(net, **_):
            return lambda x: (shown.append(len(x)), net(x))[1]

        monkeypatch.setattr(torch, "compile", recorded)
        run = engine(nn.Identity(), "compile", device=CPU, precision="fp32")
        for count in range(1, 9):
            x = torch.randn(count, 3, 4, 4)
            assert torch.equal(run(x), x)
        assert set(shown) == {1, 2, 4, 8}

    def test_a_compiler_that_fails_is_an_error_that_names_another_engine(self, monkeypatch):
        failure = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

        def compiled(net, **_):
            def fail(x):
                raise failure("no working C++ compiler found\nmore")

            return fail

        monkeypatch.setattr(torch, "compile", compiled)
        with pytest.raises(
            PluginUnavailable, match=r"could not compile .*no working C\+\+ compiler found\n.*engine = 'torch'"
        ):
            runner(network(), engine="compile")(pictures())

    def test_running_out_of_memory_is_not_taken_for_a_failed_compilation(self, monkeypatch):
        def compiled(net, **_):
            def fail(x):
                raise torch.OutOfMemoryError("CUDA out of memory")

            return fail

        monkeypatch.setattr(torch, "compile", compiled)
        with pytest.raises(DeviceUnavailable, match="does not fit"):
            runner(network(), engine="compile")(pictures())

    def test_without_openvino_the_pip_line_is_given(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(
            MissingExtra, match=r"'openvino' needs openvino, .*\nRun: pip install 'stainbridge\[openvino\]'"
        ):
            runner(network(), engine="openvino")

    def test_openvino_is_for_a_cpu(self):
        with pytest.raises(
            ConfigError, match=r"'openvino' runs on a CPU; the device is 'cuda'.*\n.*engine = 'compile'"
        ):
            engine(network(), "openvino", device=torch.device("cuda"), precision="bf16")


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs OpenVINO: pip install 'stainbridge[openvino]'"
)
class TestOpenVINO:
    def test_it_gives_the_same_picture_in_every_shape(self):
        net = network()
        toy = runner(net, engine="openvino")
        for height, width in ((32, 48), (16, 16), (48, 32), (20, 20), (24, 24), (32, 48)):
            batch = pictures(2, height, width)
            assert levels_apart(toy(batch), original(net, batch)).max() <= 1
        assert len(toy._run._requests) == 4

    def test_it_gives_the_same_picture_with_fixed_statistics(self):
        net, sample = network(), pictures(height=64, width=64)
        expected = runner(net).fixed(sample)(pictures())
        assert levels_apart(runner(net, engine="openvino").fixed(sample)(pictures()), expected).max() <= 1

    def test_nothing_is_sent(self, tmp_path):
        """In a process of its own, as openvino reports that it was imported, once."""
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", SPIED], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "translated\n")
        assert list(tmp_path.iterdir()) == []


SPIED = """
import socket, sys, threading
import numpy as np, torch

def refused(*arguments, **options):
    print("a connection was tried", flush=True)
    raise OSError("refused")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
from stainbridge.torchkit.generators import GeneratorSettings, Runner

network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Tanh())
runner = Runner(network, GeneratorSettings(engine="openvino"), device=torch.device("cpu"), precision="fp32", who="toy")
runner(np.zeros((1, 8, 8, 3), np.uint8))
assert "openvino_telemetry" not in sys.modules
print("translated")
"""
