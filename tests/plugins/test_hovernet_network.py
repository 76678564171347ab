"""HoVer-Net's network against recorded outputs of the original under a deterministic fill."""

import json
import math
import zlib

import numpy as np
import pytest

from stainbridge.errors import ConfigError
from stainbridge_plugins.hovernet.network import Design, build

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.heavy

DESIGNS = {
    "hovernet_original_5types": Design("original", 5),
    "hovernet_original_0types": Design("original"),
    "hovernet_fast_6types": Design("fast", 6),
}


@pytest.fixture(scope="module")
def keys(shared):
    return json.loads((shared / "golden" / "state_dict_keys.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "networks.npz")


def filled(keys):
    """Return a state dict whose values follow from the names alone, as the recorded outputs were made."""
    state = {}
    for name, shape in keys:
        rng = np.random.default_rng(zlib.crc32(f"dev/{name}".encode()))
        last = name.rpartition(".")[2]
        if last == "num_batches_tracked":
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if last == "running_var":
            value = 0.5 + rng.random(shape)
        elif len(shape) < 2:
            value = (1 if last == "weight" else 0) + 0.1 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) * math.sqrt(1.4 / math.prod(shape[1:]))
        state[name] = torch.from_numpy(np.asarray(value, np.float32))
    return state


def pictures(shape):
    rng = np.random.default_rng(zlib.crc32(b"dev/input"))
    return torch.from_numpy(rng.integers(0, 256, shape).astype(np.float32))


@pytest.mark.parametrize("name", DESIGNS)
def test_the_state_dict_has_the_names_order_and_shapes_of_the_original(name, keys):
    own = [[key, list(value.shape)] for key, value in build(DESIGNS[name]).state_dict().items()]
    assert own == keys[name]


@pytest.mark.parametrize(("name", "millions"), [("original_0types", 45.028676), ("fast_6types", 37.639626)])
def test_the_number_of_parameters_is_that_of_the_original(name, millions):
    count = sum(parameter.numel() for parameter in build(DESIGNS[f"hovernet_{name}"]).parameters())
    assert count == round(millions * 1e6)


@pytest.mark.parametrize("name", DESIGNS)
def test_outputs_equal_the_original(name, keys, golden):
    design = DESIGNS[name]
    network = build(design).eval()
    network.load_state_dict(filled(keys[name]))
    with torch.inference_mode():
        maps = network(pictures((1, 3, design.window_px, design.window_px)))
    assert list(maps) == list(design.branches)
    for branch, found in maps.items():
        expected = golden[f"{name}_{branch}"]
        assert found.shape[-2:] == (design.output_px, design.output_px)
        assert np.abs(found[..., ::2, ::2].numpy() - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.fixture(scope="module", params=["original", "fast"])
def network(request):
    torch.manual_seed(0)
    return build(Design(request.param, 3, slimming=8)).eval()


class TestSlim:
    """A network with an eighth of the channels is the same network otherwise."""

    def test_eight_pixels_more_give_eight_more(self, network):
        design = network.design
        for extra in (0, 8):
            side = design.window_px + extra
            with torch.inference_mode():
                maps = network(pictures((1, 3, side, side)))
            assert maps["np"].shape == (1, 2, design.output_of(side), design.output_of(side))
            assert maps["tp"].shape[1] == 3

    def test_bfloat16_follows_float32(self, network):
        """The original stops here: its upsampling multiplies by a matrix that stays in float32."""
        side = network.design.window_px
        with torch.inference_mode():
            exact = network(pictures((1, 3, side, side)))
            with torch.autocast("cpu", torch.bfloat16):
                rounded = network(pictures((1, 3, side, side)))
        for branch in exact:
            assert rounded[branch].dtype == torch.bfloat16
            error = (rounded[branch].float() - exact[branch]).abs().mean()
            assert 0 < error < 0.1 * exact[branch].std()

    def test_an_output_depends_on_no_pixel_of_another_picture(self, network):
        side = network.design.window_px
        both = pictures((2, 3, side, side))
        with torch.inference_mode():
            together, alone = network(both)["hv"][1:], network(both[1:])["hv"]
        assert torch.allclose(together, alone, atol=1e-4)

    def test_every_parameter_learns(self, network):
        side = network.design.window_px
        network.zero_grad()
        sum(value.square().mean() for value in network(pictures((1, 3, side, side))).values()).backward()
        assert all(one.grad is not None and one.grad.abs().max() > 0 for one in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slow"}, "one of original, fast; found 'slow'"),
        ({"mode": "fast", "types": 1}, "2 or more types"),
        ({"mode": "fast", "slimming": 3}, "1, 2, 4 or 8; found 3"),
    ],
)
def test_a_design_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Design(**options)


@pytest.mark.parametrize(("mode", "side"), [("original", 256), ("fast", 270), ("fast", 64)])
def test_a_side_that_the_network_does_not_take_is_refused(mode, side):
    with pytest.raises(ConfigError, match=f"found {side} px"):
        Design(mode).output_of(side)
