"""What learners share: the pool, the average, Adam in every memory format, states that go and come back, networks side by side."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from stainbridge.errors import ConfigError, DeviceUnavailable

pytestmark = pytest.mark.heavy
torch = pytest.importorskip("torch", reason="torch is not installed")

from stainbridge.interfaces import Snapshot  # noqa: E402
from stainbridge.torchkit import parallel  # noqa: E402
from stainbridge.torchkit.states import aligned, to_tensors  # noqa: E402
from stainbridge.torchkit.training import (  # noqa: E402
    EMA,
    Ensemble,
    ImagePool,
    LearnerSettings,
    Losses,
    adam,
    joined,
    of_network,
    of_optimiser,
    part,
    resolve_precision,
    to_network,
    to_optimiser,
)

CPU = torch.device("cpu")


class Draws:
    """Random numbers written down beforehand."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)

    def integers(self, high):
        number = self.numbers.pop(0)
        assert number < high
        return number


def images(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)


def values(shown):
    return shown[:, 0, 0, 0].tolist()


def convolutions(seed=0, channels_last=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 2, 3))
    return network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class TestImagePool:
    def test_new_pictures_are_shown_until_it_is_full(self):
        pool = ImagePool(3, rng=Draws())
        assert values(pool.exchange(images(1, 2))) == [1, 2]
        assert values(pool.exchange(images(3))) == [3]

    def test_then_a_past_one_is_shown_and_replaced_or_the_new_one_passes(self):
        # Below one half: number 1 is shown for 3 and 3 kept; then 4 passes; then 3 itself is shown for 5.
        pool = ImagePool(2, rng=Draws(0.49, 1, 0.5, 0.0, 1))
        pool.exchange(images(1, 2))
        assert values(pool.exchange(images(3, 4, 5))) == [2, 4, 3]

    def test_one_of_size_0_passes_everything(self):
        pool = ImagePool(0, rng=Draws())
        some = images(1, 2)
        assert pool.exchange(some) is some

    def test_half_of_what_it_shows_is_past(self):
        pool = ImagePool(50, rng=np.random.default_rng(0))
        shown = [values(pool.exchange(images(float(number))))[0] for number in range(4050)]
        past = sum(one != number for number, one in enumerate(shown))
        assert past / 4000 == pytest.approx(0.5, abs=0.03)

    def test_what_it_keeps_does_not_change_with_the_batch_that_it_came_in(self):
        pool = ImagePool(1, rng=Draws(0.0, 0))
        first = images(1).contiguous()
        pool.exchange(first)
        first.zero_()
        assert values(pool.exchange(images(2))) == [1]

    def test_no_gradient_passes_and_the_memory_format_stays(self):
        some = torch.rand(2, 3, 4, 4, requires_grad=True).to(memory_format=torch.channels_last)
        shown = ImagePool(1, rng=Draws(0.0, 0)).exchange(some)
        assert not shown.requires_grad
        assert shown.stride() == some.stride()

    def test_after_an_interruption_it_shows_what_it_would_have_shown(self):
        pool, other = (ImagePool(5, rng=np.random.default_rng(seed)) for seed in (1, 2))
        for number in range(20):
            pool.exchange(torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(number)))
        saved = pool.snapshot()
        other.restore(Snapshot(saved.tensors, json.loads(json.dumps(saved.values))), CPU)
        for number in range(20, 40):
            new = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(number))
            assert torch.equal(pool.exchange(new), other.exchange(new))

    def test_an_empty_one_can_be_saved_and_empties_another(self):
        full = ImagePool(1, rng=np.random.default_rng(0))
        full.exchange(images(1))
        full.restore(ImagePool(1, rng=np.random.default_rng(0)).snapshot(), CPU)
        assert values(full.exchange(images(7))) == [7]
        assert values(full.snapshot().tensors["images"]) == [7]


class TestEMA:
    def test_the_average_follows_the_weights_by_hand(self):
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(network.weight, 0.0)
        average = EMA(network, 0.25)
        torch.nn.init.constant_(network.weight, 1.0)
        average.update()
        first = 1 - 2 / 11  # (1 + 1) / (10 + 1) of the past
        assert float(average.tensors()["weight"]) == pytest.approx(first)
        average.update()
        assert float(average.tensors()["weight"]) == pytest.approx(first * 0.25 + 0.75)

    def test_counters_are_taken_over_as_they_are(self):
        network = torch.nn.BatchNorm2d(2)
        average = EMA(network, 0.5)
        network.num_batches_tracked += 7
        average.update()
        assert average.tensors()["num_batches_tracked"] == 7

    def test_it_goes_on_from_a_snapshot(self):
        network = convolutions()
        first, second = EMA(network, 0.9), EMA(convolutions(seed=1), 0.9)
        first.update()
        second.restore(first.snapshot())
        assert {name: tensor.tolist() for name, tensor in second.tensors().items()} == {
            name: tensor.tolist() for name, tensor in first.tensors().items()
        }
        assert second.snapshot().values == {"updates": 1}

    def test_a_snapshot_of_another_network_is_refused(self):
        with pytest.raises(ConfigError, match=r"'0.bias' is \(6,\) in the snapshot and is missing in the learner"):
            EMA(torch.nn.Linear(1, 1), 0.9).restore(EMA(convolutions(), 0.9).snapshot())


class TestAdam:
    def moved(self, gradient_format, *, fused, steps=3):
        network = convolutions()
        optimiser = adam([network], lr=1e-2, weight_decay=1e-2, fused=fused)
        for number in range(steps):
            generator = torch.Generator().manual_seed(number)
            for parameter in network.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient.to(memory_format=gradient_format) if gradient.dim() == 4 else gradient
            aligned(optimiser)
            optimiser.step()
        return network, optimiser

    @pytest.mark.parametrize("gradient_format", [torch.contiguous_format, torch.channels_last])
    def test_fused_and_plain_move_alike_whatever_the_formats(self, gradient_format):
        plain, _ = self.moved(torch.channels_last, fused=False)
        fused, _ = self.moved(gradient_format, fused=True)
        for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
            assert (one - other).abs().max() <= 1e-6

    def test_gradients_of_other_strides_are_what_fused_would_get_wrong(self):
        parameter = torch.nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
        parameter.grad = torch.arange(24.0).reshape(2, 3, 2, 2)
        fused, plain = (torch.optim.Adam([parameter], fused=one) for one in (True, None))
        aligned(plain)
        assert parameter.grad.stride() != parameter.stride()
        aligned(fused)
        assert parameter.grad.stride() == parameter.stride()
        assert torch.equal(parameter.grad.flatten(), torch.arange(24.0))

    @pytest.mark.parametrize("fused", [False, True])
    def test_after_an_interruption_it_moves_on_as_it_would_have(self, fused):
        network, optimiser = self.moved(torch.channels_last, fused=fused)
        again, fresh = self.moved(torch.channels_last, fused=fused, steps=0)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3
        saved = of_optimiser(optimiser)
        to_network(again, of_network(network))
        to_optimiser(fresh, Snapshot(saved.tensors, json.loads(json.dumps(saved.values))))
        assert fresh.param_groups[0]["lr"] == 3e-3
        for one, other in zip(network.parameters(), again.parameters(), strict=True):
            assert fresh.state[other]["exp_avg"].stride() == optimiser.state[one]["exp_avg"].stride() == other.stride()
            one.grad = torch.ones_like(one)
            other.grad = torch.ones_like(other)
        optimiser.step()
        fresh.step()
        for one, other in zip(network.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_one_that_has_not_moved_yet_can_be_saved(self):
        _, optimiser = self.moved(torch.channels_last, fused=False)
        to_optimiser(optimiser, of_optimiser(self.moved(torch.channels_last, fused=False, steps=0)[1]))
        assert not optimiser.state

    def test_the_state_of_another_is_refused(self):
        _, optimiser = self.moved(torch.channels_last, fused=False)
        with pytest.raises(ConfigError, match=r"its optimiser has '0/exp_avg' of \(6, 3, 3, 3\)"):
            to_optimiser(adam([torch.nn.Linear(1, 1)], lr=1.0), of_optimiser(optimiser))


class TestStates:
    def test_parts_come_back_from_the_whole(self):
        inner = joined({"a": Snapshot({"x": 1}, {}), "b": Snapshot({}, {"n": 2})})
        whole = joined({"inner": inner, "c": Snapshot({"x": 3}, {"m": [4]})})
        assert whole == Snapshot({"inner/a/x": 1, "c/x": 3}, {"inner": {"b": {"n": 2}}, "c": {"m": [4]}})
        assert part(part(whole, "inner"), "b") == Snapshot({}, {"n": 2})
        assert part(whole, "inner").tensors == {"a/x": 1}
        assert part(whole, "nothing") == Snapshot({}, {})

    def test_tensors_keep_their_own_memory_format(self):
        network = convolutions()
        to_network(network, of_network(convolutions(seed=1)))
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(network[0].weight, convolutions(seed=1)[0].weight)

    def test_what_does_not_fit_is_named_and_nothing_is_changed(self):
        own = {"a": torch.zeros(2), "b": torch.zeros(3)}
        with pytest.raises(ConfigError, match=r"'b' is missing in the snapshot and is \(3,\) in the learner"):
            to_tensors(own, {"a": torch.ones(2)})
        with pytest.raises(ConfigError, match=r"'b' is \(4,\) in the snapshot and is \(3,\) in the learner"):
            to_tensors(own, {"a": torch.ones(2), "b": torch.ones(4)})
        assert not own["a"].any()


class TestLosses:
    def test_they_wait_until_one_is_looked_at_and_are_then_read_once(self, monkeypatch):
        losses = Losses({"a": torch.tensor(0.5), "b": torch.tensor(math.nan)})
        read = []
        own = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (read.append(1), own(self))[1])
        assert list(losses) == ["a", "b"]
        assert len(losses) == 2
        assert not read
        assert losses["a"] == 0.5
        assert math.isnan(dict(losses)["b"])
        assert len(read) == 1

    def test_an_unknown_name_is_an_error(self):
        with pytest.raises(KeyError, match="c"):
            Losses({"a": torch.tensor(0.5)})["c"]


class TestEnsemble:
    def ensemble(self, **options):
        networks = {"left": convolutions(0, False), "right": convolutions(1, False)}
        made = Ensemble(networks, device=CPU, **options)
        made.team("left", "left", lr=1e-2)
        made.team("right", "right", lr=1e-2)
        return made

    def objective(self, one):
        def losses(part):
            (x,) = part
            return {"mean": one.run("right", one.run("left", x).repeat(1, 2, 1, 1)[:, :3]).square().mean()}, len(x)

        return losses

    def test_pictures_become_signals_and_back(self):
        one = self.ensemble(channels_last=True)
        pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3).repeat(5, 1).repeat(7, 2)
        signal = one.signal(pixels)
        assert signal.shape == (1, 3, 5, 7)
        assert signal.is_contiguous(memory_format=torch.channels_last)
        assert signal[0, :, 2, 3].tolist() == pytest.approx([-1.0, -0.6, 1.0])
        assert self.ensemble().signal(pixels).is_contiguous()

    def test_read_only_pictures_are_taken_without_a_warning(self):
        pixels = np.zeros((1, 4, 4, 3), np.uint8)
        pixels.flags.writeable = False
        assert self.ensemble().signal(pixels).max() == -1.0

    def test_only_the_team_moves_and_gradients_stay_out_of_the_others(self):
        one = self.ensemble()
        before = {name: of_network(network).tensors for name, network in one.networks.items()}
        one.descend("left", [(torch.rand(2, 3, 9, 9),)], self.objective(one))
        after = {name: of_network(network).tensors for name, network in one.networks.items()}
        assert all(not torch.equal(before["left"][key], after["left"][key]) for key in before["left"])
        assert all(torch.equal(before["right"][key], after["right"][key]) for key in before["right"])
        assert all(parameter.grad is None for parameter in one.networks["right"].parameters())
        assert all(parameter.requires_grad for network in one.networks.values() for parameter in network.parameters())

    def test_an_objective_that_fails_leaves_every_network_able_to_learn(self):
        one = self.ensemble()
        with pytest.raises(ZeroDivisionError):
            one.descend("left", [(torch.rand(2, 3, 9, 9),)], lambda part: 1 / 0)
        assert all(parameter.requires_grad for parameter in one.networks["right"].parameters())

    def test_parts_of_different_size_weigh_by_their_pictures(self):
        whole, split = self.ensemble(), self.ensemble()
        x = torch.rand(3, 3, 9, 9)
        losses, _ = whole.descend("left", [(x,)], self.objective(whole))
        found, made = split.descend("left", [(x[:1],), (x[1:],)], self.objective(split))
        assert float(found["mean"]) == pytest.approx(float(losses["mean"]))
        assert made == [1, 2]
        for one, other in zip(whole.networks["left"].parameters(), split.networks["left"].parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-7)

    def test_a_batch_is_split_into_no_more_parts_than_it_has_pictures(self):
        pixels = np.zeros((3, 4, 4, 3), np.uint8)
        parts = self.ensemble().parts(pixels, pixels, count=2)
        assert [tuple(len(stain) for stain in one) for one in parts] == [(2, 2), (1, 1)]
        assert len(self.ensemble().parts(pixels, pixels, count=9)) == 3

    def test_scaled_gradients_move_the_weights_as_plain_ones(self):
        plain, scaled = self.ensemble(), self.ensemble()
        scaled._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for _ in range(2):
            x = torch.rand(2, 3, 9, 9)
            for one in (plain, scaled):
                one.descend("left", [(x,)], self.objective(one))
        for one, other in zip(plain.networks["left"].parameters(), scaled.networks["left"].parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        saved = scaled.snapshot()
        assert saved.values["scaler"]["scale"] == 16.0
        again = self.ensemble()
        again._scaler = torch.amp.GradScaler("cpu")
        again.restore(saved)
        assert again._scaler.get_scale() == 16.0

    def test_gradients_that_overflow_move_nothing(self):
        one = self.ensemble()
        one._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = of_network(one.networks["left"]).tensors
        one.descend("left", [(torch.full((2, 3, 9, 9), math.inf),)], self.objective(one))
        assert all(torch.equal(tensor, before[key]) for key, tensor in of_network(one.networks["left"]).tensors.items())
        assert one._scaler.get_scale() == 4.0
        assert one.moved == {"left": False}
        one.descend("left", [(torch.rand(2, 3, 9, 9),)], self.objective(one))
        assert one.moved == {"left": True}

    def test_the_search_for_fast_convolutions_is_put_back_as_it_was(self):
        one = self.ensemble()
        before = torch.backends.cudnn.benchmark
        with one.tuned():
            assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark == before
        torch.use_deterministic_algorithms(True)
        try:
            with one.tuned():
                assert not torch.backends.cudnn.benchmark
        finally:
            torch.use_deterministic_algorithms(False)

    def test_compiled_networks_keep_their_names_and_compute_the_same(self, monkeypatch):
        used = []

        def compiled(call, **options):
            def run(*args):
                used.append(1)
                return call(*args)

            return run

        monkeypatch.setattr(torch, "compile", compiled)
        one, plain = self.ensemble(compiled=["left"]), self.ensemble()
        x = torch.rand(1, 3, 9, 9)
        assert torch.equal(one.run("left", x), plain.run("left", x))
        assert used
        assert one.networks["left"].state_dict().keys() == plain.networks["left"].state_dict().keys()

    def test_tiles_of_a_preview_are_put_back_where_they_were(self):
        one = self.ensemble()
        one.networks["left"] = torch.nn.Identity()
        pixels = np.random.default_rng(0).integers(0, 256, (2, 21, 13, 3), np.uint8)
        found = one.pictures("left", pixels, side=8)
        # Down to whole grey levels, as the original; rounding in between may fall just short of one.
        assert found.shape == pixels.shape
        assert set(np.unique(pixels.astype(int) - found)) <= {0, 1}


class TestSettings:
    @pytest.mark.parametrize(
        "wrong", [{"precision": "fp8"}, {"ema": 1.0}, {"ema": -0.1}, {"accumulate": 0}, {"batch": 3}]
    )
    def test_what_is_unknown_or_out_of_range_is_refused(self, wrong):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            LearnerSettings(**wrong)

    def test_auto_is_single_precision_on_a_cpu_and_half_is_refused_there(self):
        assert resolve_precision("auto", CPU) == "fp32"
        assert resolve_precision("fp32", CPU) == "fp32"
        with pytest.raises(DeviceUnavailable, match="is for CUDA devices"):
            resolve_precision("fp16", CPU)

    @pytest.mark.parametrize(
        ("capability", "hip", "chosen"),
        [
            ((6, 0), None, "fp32"),
            ((7, 0), None, "fp32"),
            ((7, 5), None, "fp32"),
            ((8, 0), None, "bf16"),
            ((6, 0), "6.4", "bf16"),
        ],
    )
    def test_auto_is_bf16_on_the_cards_that_do_not_emulate_it(self, monkeypatch, capability, hip, chosen):
        asked = torch.device("cuda:1")
        # A second card of another kind, which is the current one; and torch counts emulation.
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device=None: capability if device == asked else (9, 0)
        )
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert resolve_precision("auto", asked) == chosen


class TestOneProcess:
    def test_it_is_rank_0_of_1_and_everything_passes_through(self):
        network, losses = convolutions(), torch.ones(2)
        assert (parallel.rank(), parallel.world()) == (0, 1)
        assert parallel.wrapped(network, CPU) is network
        assert parallel.averaged(losses) is losses
        with parallel.gathering([network], last=False):
            network(torch.rand(1, 3, 9, 9)).sum().backward()
        assert network[0].weight.grad is not None


class TestInstanceNormalisation:
    """The gradient of what learners normalise with, where that of `torch.nn.InstanceNorm2d` was found wrong."""

    @pytest.mark.parametrize("pictures", [1, 2])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_its_gradient_is_that_of_the_formula_in_double_precision(self, pictures, channels_last):
        from stainbridge.torchkit.normalisation import instance_norm

        order = torch.channels_last if channels_last else torch.contiguous_format
        x, pull = (torch.rand(pictures, 5, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        exact = x.double().requires_grad_()
        centred = exact - exact.mean((2, 3), keepdim=True)
        (centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()).backward(pull.double())
        found = x.to(memory_format=order, copy=True).requires_grad_()
        instance_norm(5)(found).backward(pull.to(memory_format=order))
        assert (found.grad - exact.grad).norm() <= 1e-4 * exact.grad.norm()


def test_one_state_after_another_is_never_the_same_object():
    """A snapshot that shared memory with the network would change under whoever writes it."""
    network = convolutions()
    for one, other in pairwise([network.state_dict(), of_network(network).tensors, of_network(network).tensors]):
        assert all(one[name].data_ptr() != other[name].data_ptr() for name in one)


def test_a_gpu_keeps_channels_last_only_where_networks_are_compiled_or_it_is_asked_to():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert LearnerSettings().keeps_channels_last(cpu)
    assert not LearnerSettings().keeps_channels_last(gpu)
    assert LearnerSettings(compile=True).keeps_channels_last(gpu)
    assert LearnerSettings(channels_last=True).keeps_channels_last(gpu)
    assert not LearnerSettings(channels_last=False).keeps_channels_last(cpu)
