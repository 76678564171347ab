"""Instance normalisation and statistics of a whole picture, held against formulas in numpy and against torch in double precision."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stainbridge.errors import ConfigError
from stainbridge.torchkit.normalisation import fix, gather, instance_norm, moments

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.heavy

FORMATS = ("contiguous_format", "channels_last")


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(3.0, 2.0, shape).astype(np.float32))


def network(seed=0):
    """Two convolutions, each with a normalisation."""
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(3, 4, 3), instance_norm(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3), instance_norm(5)]
    return torch.nn.Sequential(*layers).requires_grad_(False)


def by_hand(x, eps=1e-5):
    """Instance normalisation of a numpy (N, C, H, W) in double precision."""
    x = x.astype(np.float64)
    return (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + eps)


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def gradients(norm, x, upstream):
    """Gradient at x, with the upstream gradient in x's own memory format, as convolutions hand it back."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    norm(x).backward(upstream)
    return x.grad


class TestInstanceNorm:
    def test_it_is_the_formula(self):
        x = noise(2, 3, 5, 7)
        assert np.abs(instance_norm(3)(x).numpy() - by_hand(x.numpy())).max() < 1e-5

    def test_a_case_worked_by_hand(self):
        x = torch.tensor([[[[1.0, 3.0]]]])  # mean 2, biased variance 1
        assert instance_norm(1)(x).flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)

    def test_it_is_a_group_normalisation_with_nothing_in_its_state_dict(self):
        norm = instance_norm(6)
        assert isinstance(norm, torch.nn.GroupNorm)
        assert not norm.state_dict()
        assert not list(norm.parameters())

    def test_it_keeps_channels_last(self):
        x = noise(2, 8, 6, 6).to(memory_format=torch.channels_last)
        assert instance_norm(8)(x).is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("order", FORMATS)
    def test_its_gradient_is_right_in_either_memory_format(self, order, batch):
        wanted, x, upstream = self.problem(batch)
        order = getattr(torch, order)
        found = gradients(instance_norm(6), x.to(memory_format=order), upstream.to(memory_format=order))
        assert relative(found, wanted) < 1e-5

    def test_torchs_own_instance_norm_fails_that_check(self):
        """Says why a group normalisation stands here; a torch that has mended it makes this a skip."""
        wanted, x, upstream = self.problem(1)
        own, last = torch.nn.InstanceNorm2d(6), torch.channels_last
        error = relative(gradients(own, x.to(memory_format=last), upstream.to(memory_format=last)), wanted)
        if error < 1e-4:
            pytest.skip(f"torch {torch.__version__} computes this gradient rightly")
        assert error > 0.1

    def problem(self, batch):
        """The gradient by elementary operations in double precision, and what it is the gradient of."""
        x, upstream = noise(batch, 6, 9, 11), noise(batch, 6, 9, 11, seed=1)

        def explicit(x):
            centred = x - x.mean((2, 3), keepdim=True)
            return centred / ((centred**2).mean((2, 3), keepdim=True) + 1e-5).sqrt()

        return gradients(explicit, x.double(), upstream.double()), x, upstream


class TestMoments:
    @pytest.mark.parametrize("correction", [0, 1])
    @pytest.mark.parametrize("pooled", [False, True])
    def test_they_are_numpys(self, pooled, correction):
        x = noise(3, 4, 6, 5)
        axes = (0, 2, 3) if pooled else (2, 3)
        mean, variance = moments(x, pooled=pooled, correction=correction).numpy()
        assert mean.shape == ((1 if pooled else 3), 4, 1, 1)
        assert np.allclose(mean, x.numpy().mean(axes, keepdims=True), rtol=1e-5)
        assert np.allclose(variance, x.numpy().var(axes, keepdims=True, ddof=correction), rtol=1e-5)

    def test_a_mean_far_from_zero_does_not_spoil_the_variance(self):
        x = noise(1, 2, 64, 64) + 4096.0
        assert np.allclose(
            moments(x, pooled=False, correction=0)[1].flatten(), x.double().numpy().var((2, 3)).ravel(), rtol=1e-3
        )

    def test_half_precision_is_summed_in_single(self):
        found = moments(torch.full((1, 1, 512, 512), 300.0, dtype=torch.float16), pooled=False, correction=0)
        assert found.dtype == torch.float32
        assert found.flatten().tolist() == [300.0, 0.0]


class TestStatistics:
    def test_of_a_batch_are_those_of_all_its_pixels(self):
        net, batch = network(), noise(3, 3, 12, 10)
        seen = net[0](batch).numpy()
        mean, variance = gather(net, batch)["1"].numpy().reshape(2, 4)
        assert np.allclose(mean, seen.mean((0, 2, 3)), atol=1e-6)
        assert np.allclose(variance, seen.var((0, 2, 3)), rtol=1e-5)

    def test_deeper_layers_see_what_the_pooled_ones_before_them_put_out(self):
        net, batch = network(), noise(3, 3, 12, 10)
        first = net[0](batch).numpy()
        first = (first - first.mean((0, 2, 3), keepdims=True)) / np.sqrt(first.var((0, 2, 3), keepdims=True) + 1e-5)
        second = net[3](torch.from_numpy(np.maximum(first, 0))).numpy()
        mean, variance = gather(net, batch)["4"].numpy().reshape(2, 5)
        assert np.allclose(mean, second.mean((0, 2, 3)), atol=1e-5)
        assert np.allclose(variance, second.var((0, 2, 3)), rtol=1e-4)

    def test_on_the_picture_that_they_are_from_nothing_changes(self):
        net, picture = network(), noise(1, 3, 20, 24)
        assert (fix(net, gather(net, picture))(picture) - net(picture)).abs().max() < 1e-5

    def test_a_window_comes_out_as_it_does_in_the_whole(self):
        net, picture = network(), noise(1, 3, 20, 24)
        fixed = fix(net, gather(net, picture))
        window = fixed(picture[:, :, 4:14, 6:20])
        assert (window - fixed(picture)[:, :, 4:10, 6:16]).abs().max() < 1e-6
        assert (net(picture[:, :, 4:14, 6:20]) - window).abs().max() > 0.01

    def test_the_network_that_they_are_gathered_from_stays_as_it_is(self):
        net, picture = network().train(), noise(2, 3, 16, 16)
        before = net(picture)
        fixed = fix(net, gather(net, picture))
        assert torch.equal(net(picture), before)
        assert net.training
        assert all(
            own.data_ptr() == its.data_ptr() for own, its in zip(net.parameters(), fixed.parameters(), strict=True)
        )
        assert fixed.state_dict().keys() == net.state_dict().keys()

    def test_threads_do_not_see_each_others(self):
        net = network()
        batches = [noise(2, 3, 40, 40, seed=seed) * (1 + seed) for seed in range(8)]
        alone = [gather(net, batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda batch: gather(net, batch), batches * 4))
        for found, wanted in zip(together, alone * 4, strict=True):
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    def test_they_follow_a_network_that_is_copied_or_converted(self):
        net, picture = network(), noise(1, 3, 16, 16)
        fixed = fix(net, gather(net, picture))
        double = copy.deepcopy(fixed).double()
        found = double(picture.double())
        assert found.dtype == torch.float64
        assert (found - fixed(picture)).abs().max() < 1e-5

    def test_the_type_of_the_map_is_kept(self):
        net, picture = network(), noise(1, 3, 16, 16)
        fixed = fix(net, gather(net, picture))
        assert fixed[1](noise(1, 4, 8, 8).bfloat16()).dtype == torch.bfloat16

    def test_those_of_another_network_are_refused(self):
        other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), instance_norm(4)).requires_grad_(False)
        with pytest.raises(ConfigError, match=r"gathered from another network: '4' is a layer of one of the two"):
            fix(network(), gather(other, noise(1, 3, 8, 8)))
