"""U-GAT-IT's training: against the original's step written plainly, against hand-worked losses, and across an interruption."""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stainbridge import Learner, Reconstructing, Snapshot
from stainbridge.errors import ConfigError
from stainbridge_plugins.ugatit.learner import PRESETS, Training, share
from stainbridge_plugins.ugatit.losses import adversarial, attention

torch = pytest.importorskip("torch", reason="torch is not installed")
sys.path.insert(0, str(Path(__file__).parent))

import learner_cases  # noqa: E402
from learner_cases import SIDE, batches, gradients, in_two_ranks, relative, state  # noqa: E402
from ugatit_reference import Reference  # noqa: E402

from stainbridge.torchkit.training import resolve_precision  # noqa: E402

pytestmark = pytest.mark.heavy

NAMES = {
    "genA2B": "generator_he",
    "genB2A": "generator_ihc",
    "disGA": "global_ihc",
    "disLA": "local_ihc",
    "disGB": "global_he",
    "disLB": "local_he",
}


def small(*, light=True, **options):
    return learner_cases.small("ugatit light" if light else "ugatit", **options)


def reference_of(ours, **options):
    return Reference({name: copy.deepcopy(ours.ensemble.networks[own]) for name, own in NAMES.items()}, **options)


def judged(losses):
    return sum(value for name, value in losses.items() if name.startswith("discriminator"))


class TestAgainstTheOriginalsStep:
    @pytest.mark.parametrize(("light", "channels_last"), [(True, False), (True, True), (False, True)])
    def test_losses_are_those_of_the_plain_step_through_the_decay(self, light, channels_last):
        ours = small(light=light, double=True, channels_last=channels_last)
        plain = reference_of(ours, iteration=4)
        ours.begin(1, 2, 2)
        for batch in batches(4):
            found = dict(ours.step(batch))
            truth = plain.step(*(ours.ensemble.signal(one) for one in batch))
            assert (judged(found), sum(found.values()) - judged(found)) == pytest.approx(truth, rel=1e-6)
        for name, own in NAMES.items():
            truth = dict(plain.net[name].state_dict())
            assert relative(dict(ours.ensemble.networks[own].state_dict()), truth) <= 1e-9, name

    def test_in_single_precision_the_first_step_is_the_same_to_1e_4(self):
        ours = small(channels_last=True)
        plain = reference_of(ours)
        (batch,) = batches(1)
        found = dict(ours.step(batch))
        truth = plain.step(*(ours.ensemble.signal(one) for one in batch))
        assert (judged(found), sum(found.values()) - judged(found)) == pytest.approx(truth, rel=1e-4)

    def test_the_share_of_instance_normalisation_stays_between_0_and_1(self):
        one = small(lr=0.3)
        for batch in batches(3):
            one.step(batch)
        rho = [
            tensor.detach()
            for stain in ("he", "ihc")
            for name, tensor in one.ensemble.networks[f"generator_{stain}"].named_parameters()
            if name.endswith("rho")
        ]
        assert rho
        assert min(float(one.min()) for one in rho) == 0.0
        assert max(float(one.max()) for one in rho) == 1.0


class TestLossesByHand:
    def test_a_discriminator_is_judged_by_patches_and_logits(self):
        judged = torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[0.0, 2.0]]), None
        assert adversarial(judged, real=True) == pytest.approx((0.25 + 0.0) / 2 + (1.0 + 1.0) / 2)
        assert adversarial(judged, real=False) == pytest.approx((0.25 + 1.0) / 2 + (0.0 + 4.0) / 2)

    def test_the_attention_tells_source_from_target(self):
        zero, sure = torch.zeros(1, 2), torch.full((1, 2), 50.0)
        assert attention(zero, zero) == pytest.approx(2 * math.log(2))
        assert attention(sure, -sure) == pytest.approx(0.0, abs=1e-6)
        assert attention(-sure, sure) == pytest.approx(100.0)

    @torch.no_grad()
    def test_each_has_its_weight(self):
        one = small()
        logits = torch.zeros(1, 2)
        makes = {"generator_he": lambda x: x * 0.5, "generator_ihc": lambda x: x + 0.25}

        def run(name, x):
            if name in makes:
                return makes[name](x), logits.expand(len(x), 2), None
            return x.mean((1, 2, 3)) * (2 if name.startswith("global") else 1), logits + 0.5, None

        one.ensemble.run = run
        translated = one._translated(torch.full((1, 3, 8, 8), -0.5), torch.full((1, 3, 8, 8), 0.2))
        losses = {**one._generate(translated)[0], **one._judge(translated)[0]}
        # Fake H&E is -0.25 everywhere, fake IHC 0.45; every logit of a discriminator is 0.5.
        assert {name: float(value) for name, value in losses.items()} == pytest.approx(
            {
                "adversarial_global_he": (-0.5 - 1) ** 2 + 0.25,
                "adversarial_local_he": (-0.25 - 1) ** 2 + 0.25,
                "adversarial_global_ihc": (0.9 - 1) ** 2 + 0.25,
                "adversarial_local_ihc": (0.45 - 1) ** 2 + 0.25,
                "cycle_ihc": 10 * abs(-0.25 + 0.25 + 0.5),
                "cycle_he": 10 * abs(0.45 * 0.5 - 0.2),
                "identity_he": 10 * abs(0.1 - 0.2),
                "identity_ihc": 10 * 0.25,
                "cam_he": 1000 * 2 * math.log(2),
                "cam_ihc": 1000 * 2 * math.log(2),
                "discriminator_global_he": (0.4 - 1) ** 2 + 0.5**2 + 2 * 0.25,
                "discriminator_local_he": (0.2 - 1) ** 2 + 0.25**2 + 2 * 0.25,
                "discriminator_global_ihc": (-1.0 - 1) ** 2 + 0.9**2 + 2 * 0.25,
                "discriminator_local_ihc": (-0.5 - 1) ** 2 + 0.45**2 + 2 * 0.25,
            },
            rel=1e-5,
        )


class TestSchedule:
    @pytest.mark.parametrize(
        ("step", "steps", "truth"),
        [
            (1, 1_000_000, 1.0),
            (500_000, 1_000_000, 1.0),
            (500_001, 1_000_000, 1 - 1 / 500_000),
            (750_000, 1_000_000, 0.5),
            (1_000_000, 1_000_000, 0.0),
            (27_940, 27_940, 0.0),
            (1, 1, 1.0),
        ],
    )
    def test_the_rate_falls_over_the_second_half(self, step, steps, truth):
        assert share(step, steps) == pytest.approx(truth)

    def test_of_an_odd_number_of_steps_none_climbs(self):
        assert share(7, 7) == 0.0

    @pytest.mark.parametrize(("decay", "truth"), [(True, [1, 1, 0.5, 0]), (False, [1, 1, 1, 1])])
    def test_the_learning_rate_of_both_optimisers_follows_the_steps_done(self, decay, truth):
        one = small(decay=decay)
        found = []
        for epoch, batch in enumerate(batches(4)):
            if epoch % 2 == 0:
                one.begin(epoch // 2 + 1, 2, 2)
            one.step(batch)
            (rate,) = {group["lr"] for each in one.ensemble.optimisers.values() for group in each.param_groups}
            found.append(rate)
        assert found == pytest.approx([1e-4 * rate for rate in truth])


class TestGoingOn:
    @pytest.mark.parametrize("light", [True, False])
    def test_after_an_interruption_everything_is_the_same_to_the_bit(self, light):
        settings = {"light": light, "ema": 0.9, "channels_last": True}
        before, after = batches(6)[:3], batches(6)[3:]
        whole = small(**settings)
        whole.begin(1, 2, 3)
        for batch in before:
            whole.step(batch)
        saved = whole.snapshot()
        saved = Snapshot(saved.tensors, json.loads(json.dumps(saved.values)))
        whole.begin(2, 2, 3)
        losses = [dict(whole.step(batch)) for batch in after]
        again = small(seed=99, **settings)
        again.restore(saved)
        again.begin(2, 2, 3)
        assert [dict(again.step(batch)) for batch in after] == losses
        assert state(again) == state(whole)

    def test_the_power_iterations_are_part_of_a_snapshot(self):
        one = small()
        one.step(batches(1)[0])
        assert "networks/local_he/model.1.weight_u" in one.snapshot().tensors

    def test_a_snapshot_of_another_size_is_refused(self):
        with pytest.raises(ConfigError, match=r"'FC.0.weight' is \(32, 2048\) in the snapshot and is \(32, 8192\)"):
            small(light=False, patch_px=64).restore(small(light=False).snapshot())

    def test_first_weights_follow_the_seed_and_leave_torchs_random_numbers_alone(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = state(small(seed=1))
        assert torch.equal(torch.get_rng_state(), before)
        assert state(small(seed=1)) == first
        assert state(small(seed=2)) != first


class TestOptions:
    def test_a_batch_in_two_parts_gives_the_gradients_of_the_whole(self):
        whole, parts = (small(double=True, accumulate=count) for count in (1, 2))
        (batch,) = batches(1, pictures=4)
        with torch.no_grad():
            # Each pass moves the power iteration on; once it has come to rest, their number makes no difference.
            for one in (whole, parts):
                for name in ("disGA", "disLA", "disGB", "disLB"):
                    for _ in range(400):
                        one.ensemble.networks[NAMES[name]](torch.zeros(1, 3, SIDE, SIDE).double())
        losses = dict(whole.step(batch))
        assert dict(parts.step(batch)) == pytest.approx(losses, rel=1e-4)
        for name, truth in gradients(whole).items():
            assert relative(gradients(parts)[name], truth) <= 1e-5, name

    def test_a_step_that_half_precision_skips_is_not_averaged(self):
        learner_cases.check_average_of_skipped_steps("ugatit")

    def test_what_is_exported_makes_the_same_pictures(self):
        from stainbridge_plugins.ugatit.networks import generator

        one = small(light=False, channels_last=True)
        one.step(batches(1)[0])
        found = one.export()
        assert found.config == {"mpp": 0.25, "tile_px": SIDE, "halo_px": SIDE // 8, "blend_px": SIDE // 8}
        network = generator(channels=8, blocks=1, size=SIDE)
        network.load_state_dict(dict(found.files["generator.safetensors"]))
        x = torch.rand(1, 3, SIDE, SIDE)
        with torch.no_grad():
            assert torch.allclose(network(x)[0], one.ensemble.run("generator_he", x)[0], atol=1e-5)

    def test_a_loss_that_is_no_number_is_seen(self):
        one = small()
        with torch.no_grad():
            one.ensemble.networks["generator_he"].DownBlock[1].weight[0, 0, 0, 0] = math.nan
        losses = one.step(batches(1)[0])
        assert math.isnan(losses["cycle_ihc"])
        assert math.isnan(losses["discriminator_global_he"])

    @pytest.mark.parametrize("light", [True, False])
    def test_the_way_back_gives_pictures_of_any_size(self, light):
        he = np.random.default_rng(0).integers(0, 256, (2, 70, 130, 3), np.uint8)
        found = small(light=light).reconstruct(he)
        assert found.shape == he.shape
        assert found.dtype == np.uint8
        assert found.std() > 0

    @pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf"
    )  # the compiler looks at inputs
    def test_compiled_networks_learn_the_same(self, monkeypatch):
        learner_cases.check_compiled("ugatit light", monkeypatch)

    def test_it_is_what_a_training_asks_for(self):
        assert isinstance(small(), Learner)
        assert isinstance(small(), Reconstructing)

    def test_the_settings_of_the_presets_are_known(self):
        for preset in PRESETS.values():
            Training(**preset["learner"])
            assert (preset["patch_px"], preset["resize_px"], preset["flips"]) == (256, 286, "horizontal")
        assert (PRESETS["paper"]["epochs"], PRESETS["paper"]["batch_size"]) == (20, 2)
        assert PRESETS["original"]["epochs"] * PRESETS["original"]["steps"] == 1_000_000
        assert Training(**PRESETS["light"]["learner"]).light

    @pytest.mark.parametrize(("preset", "precision"), [("paper", "fp32"), ("original", "fp32"), ("light", "bf16")])
    def test_the_paper_and_the_original_train_in_single_precision_on_a_card_with_bf16(
        self, monkeypatch, preset, precision
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        asked = Training(**PRESETS[preset]["learner"]).precision
        assert resolve_precision(asked, torch.device("cuda")) == precision

    @pytest.mark.parametrize("wrong", [{"lamda": 1}, {"lr": -1e-4}, {"lambda_cam": -1}, {"local_layers": 2}])
    def test_settings_that_are_unknown_or_out_of_range_are_refused(self, wrong):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Training(**wrong)

    @pytest.mark.parametrize("side", [66, 16])
    def test_patches_that_do_not_fit_the_networks_are_refused(self, side):
        with pytest.raises(ConfigError, match=f"multiple of 4 and, .* of 5 layers, 24 px or more; found {side}"):
            small(patch_px=side)


def test_two_processes_learn_what_one_learns_from_both_halves(tmp_path):
    alone = small(double=True)
    losses = dict(alone.step(batches(1, pictures=4)[0]))
    for found, moved in in_two_ranks("ugatit light", tmp_path, channels_last=True):
        assert found == pytest.approx(losses, rel=1e-6)
        for name, truth in gradients(alone).items():
            assert relative(moved[name], truth) <= 1e-6
