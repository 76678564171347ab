"""CycleGAN's training: against the original's step written plainly, against hand-worked losses, and across an interruption."""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stainbridge import Learner, Reconstructing, Snapshot
from stainbridge.errors import ConfigError, DeviceUnavailable
from stainbridge_plugins.cyclegan.learner import PRESETS, Training
from stainbridge_plugins.cyclegan.schedule import share

torch = pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parent))

import learner_cases  # noqa: E402
from cyclegan_reference import Pool, Reference  # noqa: E402
from learner_cases import SIDE, batches, gradients, in_two_ranks, relative, state  # noqa: E402

from stainbridge.torchkit.training import resolve_precision  # noqa: E402

pytestmark = pytest.mark.heavy

NAMES = ("generator_he", "generator_ihc", "discriminator_he", "discriminator_ihc")


def small(**options):
    return learner_cases.small("cyclegan", **options)


def reference_of(ours, **options):
    networks = [copy.deepcopy(ours.ensemble.networks[name]) for name in NAMES]
    return Reference(*(one.to(memory_format=torch.contiguous_format) for one in networks), seed=3, **options)


class TestAgainstTheOriginalsStep:
    @pytest.mark.parametrize(("channels_last", "identity"), [(False, 0.5), (True, 0.5), (True, 0.0)])
    def test_losses_are_those_of_the_plain_step_for_several_steps(self, channels_last, identity):
        ours = small(double=True, channels_last=channels_last, pool_size=3, lambda_identity=identity)
        plain = reference_of(ours, pool_size=3, identity=identity)
        ours.begin(1, 4, 5)
        for batch in batches(5):
            found, truth = dict(ours.step(batch)), plain.step(*batch)
            assert len(found) == (8 if identity else 6)
            assert found == pytest.approx(truth, rel=1e-6)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_in_single_precision_they_drift_no_further_than_rounding_takes_adam(self, channels_last):
        ours = small(channels_last=channels_last)
        plain = reference_of(ours)
        for number, batch in enumerate(batches(5)):
            # Adam moves a weight by the sign of its gradient at first, however small that gradient is.
            assert dict(ours.step(batch)) == pytest.approx(plain.step(*batch), rel=1e-2 if number else 1e-4)

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("pictures", [1, 2])
    def test_gradients_are_those_of_double_precision(self, channels_last, pictures):
        ours = small(channels_last=channels_last)
        plain = reference_of(ours)
        exact = Reference(
            *(copy.deepcopy(one).double() for one in (plain.g_a, plain.g_b, plain.d_a, plain.d_b)), seed=3
        )
        (batch,) = batches(1, pictures)
        ours.step(batch)
        exact.step(*batch)
        for name, network in zip(NAMES, (exact.g_a, exact.g_b, exact.d_a, exact.d_b), strict=True):
            truth = {key: parameter.grad for key, parameter in network.named_parameters()}
            # Rounding turns the sign of an absolute difference at some pixels; a wrong backward pass would be off by 1 and more.
            assert relative(gradients(ours)[name], truth) <= 1e-2

    def test_the_pool_shows_what_the_plain_pool_shows(self):
        from stainbridge.torchkit.training import ImagePool

        ours, plain = (pool(4, rng=np.random.default_rng(0)) for pool in (ImagePool, Pool))
        for seed in range(8):
            images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(ours.exchange(images), plain.query(images))


class TestLossesByHand:
    """One number where the rest is made trivial: networks replaced by what can be added up by hand."""

    @pytest.fixture
    def losses(self):
        one = small()
        pictures = {"generator_he": lambda x: x * 0.5, "generator_ihc": lambda x: x + 0.25}
        judges = {"discriminator_he": lambda x: x.mean((1, 2, 3)), "discriminator_ihc": lambda x: x.mean((1, 2, 3)) * 0}
        one.ensemble.run = lambda name, x: {**pictures, **judges}[name](x)
        ihc, he = torch.full((1, 3, 8, 8), -0.5), torch.full((1, 3, 8, 8), 0.2)
        with torch.no_grad():
            generated, faked = one._generate((ihc, he))
            judged, _ = one._judge(faked)
        return {name: float(value) for name, value in {**generated, **judged}.items()}

    def test_each_has_its_weight(self, losses):
        assert losses == pytest.approx(
            {
                "adversarial_he": (-0.25 - 1) ** 2,  # fake H&E is -0.25 everywhere
                "adversarial_ihc": 1.0,
                "cycle_ihc": 10 * abs(-0.25 + 0.25 + 0.5),
                "cycle_he": 10 * abs(0.45 * 0.5 - 0.2),  # fake IHC is 0.45
                "identity_he": 10 * 0.5 * abs(0.1 - 0.2),
                "identity_ihc": 10 * 0.5 * 0.25,
                "discriminator_he": 0.5 * ((0.2 - 1) ** 2 + 0.25**2),
                "discriminator_ihc": 0.5,
            },
            rel=1e-5,
        )


class TestSchedule:
    @pytest.mark.parametrize(
        ("constant", "decay", "epoch", "truth"),
        [
            (100, 100, 99, 1.0),
            (100, 100, 100, 100 / 101),
            (100, 100, 150, 50 / 101),
            (100, 100, 200, 0.0),
            (15, 15, 14, 1.0),
            (15, 15, 30, 0.0),
            (30, 0, 29, 1.0),
            (30, 0, 30, 0.0),
        ],
    )
    def test_the_originals_is_one_epoch_early(self, constant, decay, epoch, truth):
        assert share(epoch, constant=constant, decay=decay, legacy=True) == pytest.approx(truth)
        assert share(epoch + 1, constant=constant, decay=decay) == pytest.approx(truth)

    def test_the_corrected_one_learns_in_every_epoch(self):
        found = [share(epoch, constant=2, decay=3) for epoch in range(1, 6)]
        assert found == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25])

    @pytest.mark.parametrize(
        ("settings", "rates"),
        [
            ({}, [1, 1, 2 / 3, 1 / 3]),
            ({"decay_epochs": 1}, [1, 1, 1, 0.5]),
            ({"constant_epochs": 1}, [1, 0.75, 0.5, 0.25]),
            ({"constant_epochs": 100, "decay_epochs": 100, "legacy_schedule": True}, [1, 1, 1, 1]),
            ({"decay_epochs": 0, "legacy_schedule": True}, [1, 1, 1, 0]),
        ],
    )
    def test_the_learning_rate_of_both_optimisers_follows_it(self, settings, rates):
        one = small(**settings)
        found = []
        for epoch in range(1, 5):
            one.begin(epoch, 4, 10)
            (rate,) = {group["lr"] for each in one.ensemble.optimisers.values() for group in each.param_groups}
            found.append(rate)
        assert found == pytest.approx([2e-4 * rate for rate in rates])


class TestGoingOn:
    def run(self, one, some):
        return [dict(one.step(batch)) for batch in some]

    def test_after_an_interruption_everything_is_the_same_to_the_bit(self):
        settings = {"pool_size": 3, "ema": 0.9, "channels_last": True}
        before, after = batches(6)[:3], batches(6)[3:]
        whole = small(**settings)
        whole.begin(3, 4, 10)
        self.run(whole, before)
        saved = whole.snapshot()
        saved = Snapshot(saved.tensors, json.loads(json.dumps(saved.values)))
        losses = self.run(whole, after)
        again = small(seed=99, **settings)
        again.restore(saved)
        assert state(again) == (
            {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()},
            json.dumps(saved.values),
        )
        assert self.run(again, after) == losses
        assert state(again) == state(whole)

    def test_a_snapshot_holds_networks_optimisers_pools_average_and_random_numbers(self):
        one = small(ema=0.5)
        self.run(one, batches(1))
        found = one.snapshot()
        assert {name.rpartition("/")[0] for name in found.tensors} >= {
            *(f"networks/{name}" for name in NAMES),
            "average",
        }
        assert found.tensors["pool.he/images"].shape == (2, 3, SIDE, SIDE)
        assert found.tensors["networks/optimiser.generators/0/step"] == 1
        assert found.values["pool.ihc"]["rng"]["bit_generator"] == "PCG64"
        assert all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in found.tensors.values())

    def test_a_snapshot_stays_as_it_is_while_training_goes_on(self):
        one = small(ema=0.5)
        self.run(one, batches(1))
        found = one.snapshot()
        before = {name: tensor.clone() for name, tensor in found.tensors.items()}
        self.run(one, batches(2))
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in before.items())

    def test_a_snapshot_of_other_networks_is_refused_with_the_first_tensor_that_does_not_fit(self):
        with pytest.raises(
            ConfigError, match=r"'model.12.bias' is \(16,\) in the snapshot and is missing in the learner"
        ):
            small(blocks=3).restore(small().snapshot())
        with pytest.raises(ConfigError, match=r"'model.1.bias' is \(8,\) in the snapshot and is \(4,\) in the learner"):
            small(channels=4).restore(small().snapshot())

    def test_the_same_seed_gives_the_same_learner_and_another_seed_another(self):
        assert state(small(seed=1)) == state(small(seed=1))
        first, second = (small(seed=seed).snapshot().tensors for seed in (1, 2))
        assert not torch.equal(*(one["networks/generator_he/model.1.weight"] for one in (first, second)))
        assert not torch.equal(*(first[f"networks/generator_{stain}/model.1.weight"] for stain in ("he", "ihc")))


class TestOptions:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_a_batch_in_two_parts_gives_the_gradients_of_the_whole(self, channels_last):
        whole, parts = (small(double=True, channels_last=channels_last, accumulate=count) for count in (1, 2))
        (batch,) = batches(1, pictures=4)
        losses, found = dict(whole.step(batch)), dict(parts.step(batch))
        assert found == pytest.approx(losses, rel=1e-6)
        for name in NAMES:
            assert relative(gradients(parts)[name], gradients(whole)[name]) <= 1e-5
        assert torch.allclose(*(one.snapshot().tensors["pool.he/images"] for one in (whole, parts)), atol=1e-5)

    def test_parts_may_differ_in_size_and_be_fewer_than_asked_for(self):
        whole = small()
        batch = batches(1, pictures=3)[0]
        losses = dict(whole.step(batch))
        for count in (2, 9):
            assert dict(small(accumulate=count).step(batch)) == pytest.approx(losses, rel=1e-5)

    def test_the_average_is_exported_where_there_is_one(self):
        plain, averaged = small(), small(ema=0.999)
        for batch in batches(2):
            plain.step(batch)
            averaged.step(batch)
        own, mean = (one.export().files["generator.safetensors"]["model.1.weight"] for one in (plain, averaged))
        assert not torch.equal(own, mean)
        assert torch.equal(own, plain.ensemble.networks["generator_he"].model[1].weight.detach())

    def test_a_step_that_half_precision_skips_is_not_averaged(self):
        learner_cases.check_average_of_skipped_steps("cyclegan")

    def test_what_is_exported_can_be_written_and_makes_the_same_pictures(self, tmp_path):
        from safetensors.torch import load_file, save_file

        from stainbridge_plugins.cyclegan.networks import generator

        one = small(channels_last=True)
        one.step(batches(1)[0])
        found = one.export()
        assert found.config == {"mpp": 0.25, "tile_px": SIDE, "halo_px": SIDE // 8, "blend_px": SIDE // 8}
        save_file(dict(found.files["generator.safetensors"]), tmp_path / "generator.safetensors")
        network = generator(channels=8, blocks=2)
        network.load_state_dict(load_file(tmp_path / "generator.safetensors"))
        x = torch.rand(1, 3, SIDE, SIDE)
        with torch.no_grad():
            assert torch.allclose(network(x), one.ensemble.run("generator_he", x), atol=1e-5)

    def test_a_loss_that_is_no_number_is_seen(self):
        one = small()
        with torch.no_grad():
            one.ensemble.networks["generator_he"].model[1].weight[0, 0, 0, 0] = math.nan
        losses = one.step(batches(1)[0])
        assert math.isnan(losses["cycle_ihc"])
        assert math.isnan(losses["discriminator_he"])

    def test_the_way_back_gives_pictures_of_any_size(self):
        one = small()
        he = np.random.default_rng(0).integers(0, 256, (2, 70, 130, 3), np.uint8)
        found = one.reconstruct(he)
        assert found.shape == he.shape
        assert found.dtype == np.uint8
        with torch.no_grad():
            truth = one.ensemble.networks["generator_ihc"](one.ensemble.signal(he[:, :SIDE, :SIDE]))
        assert np.array_equal(found[:, :SIDE, :SIDE], ((truth + 1) / 2 * 255).byte().permute(0, 2, 3, 1).numpy())

    @pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf"
    )  # the compiler looks at inputs
    def test_compiled_networks_learn_the_same(self, monkeypatch):
        learner_cases.check_compiled("cyclegan", monkeypatch)

    def test_it_is_what_a_training_asks_for(self):
        assert isinstance(small(), Learner)
        assert isinstance(small(), Reconstructing)

    @pytest.mark.parametrize("name", ["paper", "original"])
    def test_the_settings_of_the_presets_are_known(self, name):
        preset = PRESETS[name]
        Training(**preset["learner"])
        assert (preset["patch_px"], preset["resize_px"], preset["flips"]) == (256, 286, "horizontal")
        assert (preset["epochs"], preset["batch_size"]) == {"paper": (30, 10), "original": (200, 1)}[name]

    @pytest.mark.parametrize(("preset", "precision"), [("paper", "fp32"), ("original", "fp32")])
    def test_the_paper_and_the_original_train_in_single_precision_on_a_card_with_bf16(
        self, monkeypatch, preset, precision
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        asked = Training(**PRESETS[preset]["learner"]).precision
        assert resolve_precision(asked, torch.device("cuda")) == precision

    @pytest.mark.parametrize(
        "wrong", [{"lamda": 1}, {"lr": -1e-4}, {"ema": 1.0}, {"accumulate": 0}, {"precision": "int8"}]
    )
    def test_settings_that_are_unknown_or_out_of_range_are_refused(self, wrong):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Training(**wrong)

    @pytest.mark.parametrize("side", [62, 16])
    def test_patches_that_do_not_fit_the_networks_are_refused(self, side):
        with pytest.raises(ConfigError, match=f"multiple of 4 and, .* 24 px or more; found {side}"):
            small(patch_px=side)

    def test_half_precision_is_refused_on_a_cpu(self):
        with pytest.raises(DeviceUnavailable, match="precision = 'fp32'"):
            small(precision="fp16")


def test_two_processes_learn_what_one_learns_from_both_halves(tmp_path):
    alone = small(double=True)
    losses = dict(alone.step(batches(1, pictures=4)[0]))
    for found, moved in in_two_ranks("cyclegan", tmp_path, accumulate=2, channels_last=True):
        assert found == pytest.approx(losses, rel=1e-6)
        for name, truth in gradients(alone).items():
            assert relative(moved[name], truth) <= 1e-6


def test_epochs_beyond_the_schedule_are_refused_and_not_trained_for_nothing():
    learner = small(constant_epochs=3, decay_epochs=2)
    with pytest.raises(
        ConfigError, match=r"learning rate is 0 after 3 \+ 2 epochs.*; 6 were asked for\.\nPass --epochs 5"
    ):
        learner.begin(1, 6, 1)
    learner.begin(1, 5, 1)
