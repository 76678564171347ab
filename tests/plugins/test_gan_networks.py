"""Networks of CycleGAN and U-GAT-IT against recorded outputs of the originals, formulas written out, and double precision."""

import copy
import json
import math
import types
import zlib

import numpy as np
import pytest

from stainbridge.torchkit.normalisation import fix, gather
from stainbridge_plugins.cyclegan import networks as cyclegan
from stainbridge_plugins.ugatit import networks as ugatit
from stainbridge_plugins.ugatit.layers import norms, spectral

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.heavy

# What builds each recorded network, the shape of its input, and the recorded outputs in order.
RECORDED = {
    "cyclegan_generator": (cyclegan.generator, {}, (1, 3, 96, 128), ("",)),
    "cyclegan_discriminator": (cyclegan.discriminator, {}, (1, 3, 96, 128), ("",)),
    "ugatit_generator_light": (ugatit.generator, {"light": True}, (1, 3, 96, 128), ("", "_cam_logit", "_heatmap")),
    "ugatit_generator_full_img64": (ugatit.generator, {"size": 64}, (1, 3, 64, 64), ("", "_cam_logit")),
    "ugatit_discriminator_local": (ugatit.discriminator, {"layers": 5}, (1, 3, 256, 256), ("", "_cam_logit")),
    "ugatit_discriminator_global": (ugatit.discriminator, {"layers": 7}, (1, 3, 256, 256), ("", "_cam_logit")),
}
PARAMETERS = {
    "cyclegan_generator": 11_378_179,
    "cyclegan_discriminator": 2_764_737,
    "ugatit_generator_light": 10_589_888,
    "ugatit_discriminator_local": 3_290_560,
    "ugatit_discriminator_global": 53_130_176,
}


def value(name, shape):
    """Return what the recording put into the entry of that name."""
    rng = np.random.default_rng(zlib.crc32(f"dev/{name}".encode()))
    last = name.rpartition(".")[2]
    if last == "rho":
        return rng.random(shape)
    z = rng.standard_normal(shape)
    if last in ("weight_u", "weight_v"):
        return z / np.linalg.norm(z)
    if last in ("gamma", "beta") or len(shape) < 2:
        return (last in ("weight", "gamma")) + 0.1 * z
    return z * math.sqrt(1.4 / math.prod(shape[1:]))


def noise(*shape):
    rng = np.random.default_rng(zlib.crc32(b"dev/input"))
    return torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))


def filled(network):
    """Return the network with the weights of the recording, in evaluation mode and frozen."""
    own = network.state_dict()
    network.load_state_dict({name: torch.from_numpy(np.float32(value(name, old.shape))) for name, old in own.items()})
    return network.eval().requires_grad_(False)


def image(output):
    return output[0] if isinstance(output, tuple) else output


def small(kind):
    """A network of few channels whose activations neither vanish nor explode."""
    return filled(
        {
            "cyclegan": lambda: cyclegan.generator(channels=4, blocks=2),
            "ugatit light": lambda: ugatit.generator(channels=4, blocks=1, light=True),
            "ugatit full": lambda: ugatit.generator(channels=4, blocks=1, size=48),
        }[kind]()
    )


KINDS = ("cyclegan", "ugatit light", "ugatit full")


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "networks.npz")


@pytest.fixture(scope="module")
def keys(shared):
    return json.loads((shared / "golden" / "state_dict_keys.json").read_text("utf-8"))


class TestRecorded:
    @pytest.mark.parametrize("name", RECORDED)
    def test_state_dict_has_the_names_order_and_shapes_of_the_original(self, name, keys):
        build, options, _, _ = RECORDED[name]
        with torch.device("meta"):
            network = build(**options)
        assert [[key, list(entry.shape)] for key, entry in network.state_dict().items()] == keys[name]

    @pytest.mark.parametrize("name", RECORDED)
    def test_output_is_that_of_the_original(self, name, golden):
        build, options, shape, parts = RECORDED[name]
        found = filled(build(**options))(noise(*shape))
        found = found if isinstance(found, tuple) else (found,)
        for part, own in zip(parts, found, strict=False):
            wanted = golden[name + part]
            assert own.shape == wanted.shape
            # With random vectors of the power iteration the values of these discriminators are huge.
            unit = np.abs(wanted).std() or np.abs(wanted).max() if name.startswith("ugatit_disc") else 1.0
            assert np.abs(own.numpy() - wanted).max() / unit < 1e-4

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_number_of_parameters_is_that_of_the_original(self, name):
        build, options, _, _ = RECORDED[name]
        with torch.device("meta"):
            assert sum(each.numel() for each in build(**options).parameters()) == PARAMETERS[name]

    def test_a_full_generator_of_256_px_has_279_million(self):
        with torch.device("meta"):
            assert sum(each.numel() for each in ugatit.generator().parameters()) == 278_959_808


class TestSizes:
    @pytest.mark.parametrize(("side", "out"), [(64, 64), (63, 64), (65, 68), (60, 60)])
    def test_cyclegan_keeps_sides_that_are_multiples_of_4(self, side, out):
        assert small("cyclegan")(noise(1, 3, side, 64)).shape == (1, 3, out, 64)

    def test_a_light_generator_takes_any_multiple_of_4(self):
        picture, logits, heat = small("ugatit light")(noise(2, 3, 36, 52))
        assert (picture.shape, logits.shape, heat.shape) == ((2, 3, 36, 52), (2, 2), (2, 1, 9, 13))

    @pytest.mark.parametrize(("side", "patches"), [(256, 30), (512, 62)])
    def test_cyclegans_discriminator_judges_patches(self, side, patches):
        assert cyclegan.discriminator(channels=2)(noise(1, 3, side, side)).shape == (1, 1, patches, patches)

    @pytest.mark.parametrize(("layers", "patches"), [(5, 30), (7, 6)])
    def test_ugatits_discriminators_judge_patches(self, layers, patches):
        found, logits, heat = ugatit.discriminator(channels=2, layers=layers)(noise(1, 3, 256, 256))
        assert found.shape == (1, 1, patches, patches)
        assert heat.shape == (1, 1, patches + 1, patches + 1)
        assert logits.shape == (1, 2)

    def test_dropout_moves_the_second_convolution_on(self):
        with_it, without = (set(cyclegan.generator(channels=2, dropout=on).state_dict()) for on in (True, False))
        assert "model.10.conv_block.6.weight" in with_it - without
        assert "model.10.conv_block.5.weight" in without - with_it


class TestInitialising:
    def test_weights_are_normal_and_biases_nothing(self):
        network = cyclegan.generator(channels=16, blocks=1)
        cyclegan.initialise(network, 7)
        weights = torch.cat([each.detach().flatten() for name, each in network.named_parameters() if "weight" in name])
        assert abs(float(weights.mean())) < 1e-3
        assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
        assert all(not each.any() for name, each in network.named_parameters() if "bias" in name)

    def test_the_seed_says_which(self):
        drawn = []
        for seed in (1, 1, 2):
            network = cyclegan.discriminator(channels=2)
            cyclegan.initialise(network, seed)
            drawn.append(network.state_dict()["model.5.weight"])
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


class TestLayersOfUgatit:
    def by_hand(self, x, rho, gamma, beta):
        """Kim et al. 2020, equation 1, with the unbiased variances of the PyTorch version, in double precision."""
        x, rho, gamma, beta = (np.asarray(each, np.float64) for each in (x, rho, gamma, beta))
        parts = [
            (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True, ddof=1) + 1e-5)
            for axes in ((2, 3), (1, 2, 3))
        ]
        return (rho * parts[0] + (1 - rho) * parts[1]) * gamma + beta

    def test_adaptive_normalisation_is_the_formula(self):
        layer, x = filled(norms().AdaILN(5)), noise(2, 5, 7, 6) * 3 + 1
        gamma, beta = noise(2, 5), noise(2, 10)[:, 5:]
        wanted = self.by_hand(x, layer.rho, gamma[:, :, None, None], beta[:, :, None, None])
        assert np.abs(layer(x, gamma, beta).numpy() - wanted).max() < 1e-5

    def test_learned_normalisation_is_the_formula(self):
        layer, x = filled(norms().ILN(5)), noise(2, 5, 7, 6) * 3 + 1
        assert np.abs(layer(x).numpy() - self.by_hand(x, layer.rho, layer.gamma, layer.beta)).max() < 1e-5

    def test_a_fresh_adaptive_one_is_mostly_instance_and_a_learned_one_all_layer_normalisation(self):
        assert norms().AdaILN(3).rho.flatten().tolist() == pytest.approx([0.9] * 3)
        assert norms().ILN(3).rho.flatten().tolist() == [0.0] * 3

    def test_clipping_touches_rho_alone(self):
        network = ugatit.generator(channels=2, blocks=1, light=True)
        with torch.no_grad():
            for each in network.parameters():
                each.fill_(1.5)
            network.UpBlock2[3].rho.fill_(-0.5)
        ugatit.clip_rho(network)
        found = {name: float(each.detach().mean()) for name, each in network.named_parameters()}
        assert found.pop("UpBlock2.3.rho") == 0.0
        assert all(mean == (1.0 if name.endswith("rho") else 1.5) for name, mean in found.items())

    @pytest.mark.parametrize("training", [True, False])
    def test_spectral_normalisation_goes_step_by_step_with_torchs(self, training):
        own = spectral().Conv(3, 5, 4, stride=2).train(training)
        theirs = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 5, 4, stride=2)).train(training)
        theirs.load_state_dict(own.state_dict())
        assert list(own.state_dict()) == list(theirs.state_dict())
        for _ in range(3):
            x = noise(2, 3, 12, 12)
            losses = [layer(x).square().sum() for layer in (own, theirs)]
            assert torch.allclose(losses[0], losses[1], rtol=1e-6)
            mine, others = (
                torch.autograd.grad(loss, layer.weight_orig)[0]
                for loss, layer in zip(losses, (own, theirs), strict=True)
            )
            assert (mine - others).norm() <= 1e-5 * others.norm()
        for name in ("weight_u", "weight_v"):
            assert torch.allclose(own.state_dict()[name], theirs.state_dict()[name], atol=1e-6)

    def test_two_passes_of_a_discriminator_can_be_differentiated_together(self):
        network = ugatit.discriminator(channels=2, layers=4).train()
        sum(network(x)[0].sum() for x in (noise(1, 3, 64, 64), -noise(1, 3, 64, 64))).backward()
        assert all(each.grad is not None for name, each in network.named_parameters() if "fc" not in name)

    def test_the_discriminators_map_is_weighted_by_the_weights_as_they_are_and_its_logits_by_the_normalised(self):
        network, x = filled(ugatit.discriminator(channels=2, layers=4)), noise(1, 3, 64, 64)
        network.conv1x1.bias.zero_()
        _, logits, heat = network(x)
        for layer in (network.gap_fc, network.gmp_fc):
            layer.weight_orig.mul_(10)
        _, same, tenfold = network(x)
        assert torch.allclose(same, logits, rtol=1e-4)
        assert torch.allclose(tenfold, 10 * heat, rtol=1e-4, atol=1e-5)


def explicit_instance(layer, x):
    centred = x - x.mean((2, 3), keepdim=True)
    return centred / ((centred**2).mean((2, 3), keepdim=True) + 1e-5).sqrt()


def explicit_mixed(layer, x, gamma=None, beta=None):
    gamma = layer.gamma if gamma is None else gamma[:, :, None, None]
    beta = layer.beta if beta is None else beta[:, :, None, None]
    parts = []
    for axes in ((2, 3), (1, 2, 3)):
        centred = x - x.mean(axes, keepdim=True)
        count = math.prod(x.shape[axis] for axis in axes) - 1
        parts.append(centred / ((centred**2).sum(axes, keepdim=True) / count + 1e-5).sqrt())
    return (layer.rho * parts[0] + (1 - layer.rho) * parts[1]) * gamma + beta


def reference(block):
    """The block in double precision with its normalisations as elementary operations."""
    twin = copy.deepcopy(block).double()
    for layer in twin.modules():
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = types.MethodType(explicit_instance, layer)
        elif hasattr(layer, "rho"):
            layer.forward = types.MethodType(explicit_mixed, layer)
    return twin


def gradients(block, x, order):
    """Gradients of the input and of every parameter, for upstream gradients in the memory format `order`."""
    x = x.clone(memory_format=order).requires_grad_()
    block = block.to(memory_format=order).requires_grad_()
    outputs = block(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [
        torch.cos(torch.arange(each.numel(), dtype=each.dtype))
        .reshape(each.shape)
        .contiguous(memory_format=order if each.ndim == 4 else torch.contiguous_format)
        for each in outputs
    ]
    named = {"input": x, **dict(block.named_parameters())}
    found = torch.autograd.grad(outputs, list(named.values()), upstream)
    return dict(zip(named, found, strict=True))


def generator_of_cyclegan():
    return cyclegan.generator(channels=4, blocks=1)


def generator_of_ugatit():
    return ugatit.generator(channels=4, blocks=1, light=True)


class Styled(torch.nn.Module):
    """A block with a style of its own."""

    def __init__(self, block, channels):
        super().__init__()
        self.block, self.gamma, self.beta = block, *(torch.nn.Parameter(torch.zeros(2, channels)) for _ in range(2))

    def forward(self, x):
        return self.block(x, self.gamma[: len(x)], self.beta[: len(x)])


BLOCKS = {
    "cyclegan stem": (lambda: generator_of_cyclegan().model[:4], 3),
    "cyclegan down": (lambda: generator_of_cyclegan().model[4:7], 4),
    "cyclegan block": (lambda: generator_of_cyclegan().model[10], 16),
    "cyclegan up": (lambda: generator_of_cyclegan().model[11:14], 16),
    "cyclegan head": (lambda: generator_of_cyclegan().model[17:], 4),
    "cyclegan generator": (generator_of_cyclegan, 3),
    "cyclegan discriminator": (lambda: cyclegan.discriminator(channels=4), 3),
    "ugatit stem": (lambda: generator_of_ugatit().DownBlock[:4], 3),
    "ugatit down": (lambda: generator_of_ugatit().DownBlock[4:8], 4),
    "ugatit block": (lambda: generator_of_ugatit().DownBlock[12], 16),
    "ugatit adaptive block": (lambda: Styled(generator_of_ugatit().UpBlock1_1, 16), 16),
    "ugatit up": (lambda: generator_of_ugatit().UpBlock2[:5], 16),
    "ugatit head": (lambda: generator_of_ugatit().UpBlock2[10:], 4),
    "ugatit light generator": (generator_of_ugatit, 3),
    "ugatit full generator": (lambda: ugatit.generator(channels=4, blocks=1, size=32), 3),
    "ugatit discriminator": (lambda: ugatit.discriminator(channels=4, layers=4), 3),
}


class TestGradients:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("order", ["contiguous_format", "channels_last"])
    @pytest.mark.parametrize("name", BLOCKS)
    def test_of_every_block_are_those_of_double_precision(self, name, order, batch):
        build, channels = BLOCKS[name]
        block = filled(build())
        x = noise(batch, channels, 32, 32)
        wanted = gradients(reference(block), x.double(), torch.contiguous_format)
        found = gradients(block, x, getattr(torch, order))
        # A bias before a normalisation has no gradient but rounding; it is held against the others.
        least = 1e-2 * max(float(each.norm()) for each in wanted.values())
        for key, gradient in wanted.items():
            error = float((found[key].double() - gradient).norm()) / max(float(gradient.norm()), least)
            assert error < 1e-4, key

    @pytest.mark.parametrize("build", [generator_of_cyclegan, generator_of_ugatit], ids=["cyclegan", "ugatit"])
    def test_a_fused_step_of_the_optimiser_equals_a_plain_one_in_channels_last(self, build):
        stepped = []
        for fused in (False, True):
            network = filled(build()).to(memory_format=torch.channels_last).requires_grad_()
            image(network(noise(1, 3, 32, 32).to(memory_format=torch.channels_last))).square().sum().backward()
            torch.optim.Adam(network.parameters(), 2e-4, betas=(0.5, 0.999), fused=fused).step()
            stepped.append(network.state_dict())
        plain, fused = stepped
        assert all((plain[name] - fused[name]).abs().max() <= 1e-6 for name in plain)


class TestFixedStatistics:
    @pytest.mark.parametrize("kind", KINDS)
    def test_on_the_picture_that_they_are_from_nothing_changes(self, kind):
        network, picture = small(kind), noise(1, 3, 48, 48)
        ordinary, fixed = network(picture), fix(network, gather(network, picture))(picture)
        pairs = zip(ordinary, fixed, strict=True) if isinstance(ordinary, tuple) else [(ordinary, fixed)]
        assert all((own - wanted).abs().max() < 1e-5 for wanted, own in pairs)

    @pytest.mark.parametrize("kind", KINDS)
    def test_pooled_over_copies_of_a_picture_they_are_those_of_the_picture(self, kind):
        network, picture = small(kind), noise(1, 3, 48, 48)
        once, thrice = (fix(network, gather(network, picture.repeat(count, 1, 1, 1))) for count in (1, 3))
        # Unbiased variances divide by another number of pixels.
        assert (image(once(picture)) - image(thrice(picture))).abs().max() < 0.01

    @pytest.mark.parametrize("kind", KINDS)
    def test_tiles_with_a_halo_of_the_reach_are_parts_of_the_whole(self, kind):
        network, picture = small(kind), noise(1, 3, 160, 160)
        fixed = fix(network, gather(network, picture[:, :, :48, :48]))
        halo = -(-network.reach_px // 4) * 4
        whole = image(fixed(picture))[:, :, halo:-halo, halo:-halo]
        middle = 160 // 2
        tiles = [picture[:, :, y : y + 80 + halo, :] for y in (0, middle - halo)]
        cut = [image(fixed(tile))[:, :, halo:-halo, halo:-halo] for tile in tiles]
        assert cut[0].shape[2] + cut[1].shape[2] == whole.shape[2]
        assert (torch.cat(cut, dim=2) - whole).abs().max() < 1e-5
        if kind != "ugatit full":
            alone = [image(network(tile))[:, :, halo:-halo, halo:-halo] for tile in tiles]
            assert (torch.cat(alone, dim=2) - whole).abs().max() > 0.01

    def test_a_picture_of_a_batch_does_not_depend_on_the_others(self):
        network, pictures = small("ugatit light"), noise(3, 3, 48, 48)
        fixed = fix(network, gather(network, pictures))
        for index in range(3):
            for own, alone in zip(fixed(pictures), fixed(pictures[index : index + 1]), strict=True):
                assert (own[index] - alone[0]).abs().max() < 1e-5

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_order_of_the_pictures_does_not_matter(self, kind):
        network, pictures = small(kind), noise(3, 3, 48, 48)
        forth, back = (gather(network, each) for each in (pictures, pictures.flip(0)))
        assert all(torch.allclose(forth[name], back[name], rtol=1e-4, atol=1e-4) for name in forth)

    def test_a_full_generator_then_takes_any_size(self):
        network = small("ugatit full")
        fixed = fix(network, gather(network, noise(2, 3, 48, 48)))
        assert image(fixed(noise(1, 3, 64, 80))).shape == (1, 3, 64, 80)

    def test_the_maximum_of_the_attention_is_pooled_as_a_maximum(self):
        network, pictures = small("ugatit light"), noise(3, 3, 48, 48)
        statistics = gather(network, pictures)
        fixed = fix(network, statistics)
        seen = fixed.DownBlock(pictures)
        assert torch.allclose(statistics["maximum"][0], seen.amax((0, 2, 3)), atol=1e-5)
        assert torch.allclose(statistics["average"][0], seen.mean((0, 2, 3)), atol=1e-5)


REACHING = {
    "cyclegan 1": lambda: cyclegan.generator(channels=4, blocks=1),
    "cyclegan 2": lambda: cyclegan.generator(channels=4, blocks=2),
    "cyclegan 9": lambda: cyclegan.generator(channels=2, blocks=9),
    "ugatit 1": lambda: ugatit.generator(channels=4, blocks=1, light=True),
    "ugatit 2": lambda: ugatit.generator(channels=4, blocks=2, light=True),
    "ugatit 4": lambda: ugatit.generator(channels=2, blocks=4, light=True),
}


class TestReach:
    @pytest.mark.parametrize("name", REACHING)
    def test_it_is_the_farthest_pixel_that_a_changed_pixel_changes(self, name):
        network = filled(REACHING[name]()).double()
        side = 256 if network.reach_px > 48 else 128
        picture = noise(1, 3, side, side).double()
        fixed = fix(network, gather(network, picture))
        before, farthest, centre = image(fixed(picture)), 0, side // 2
        for step in range(4):
            changed = picture.clone()
            changed[:, :, centre + step, centre + step] += 3.0
            rows, columns = (image(fixed(changed)) != before).amax((0, 1)).nonzero(as_tuple=True)
            away = [int((found - centre - step).abs().max()) for found in (rows, columns)]
            farthest = max(farthest, *away)
        assert farthest == network.reach_px

    def test_of_the_originals_generators(self):
        with torch.device("meta"):
            assert cyclegan.generator().reach_px == 84
            assert ugatit.generator(light=True).reach_px == 79
