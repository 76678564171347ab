"""HoVer-Net in training: it learns, goes on where it stopped, and says what does not fit."""

import re

import numpy as np
import pytest

from stainbridge import Labelled, Learner, Snapshot
from stainbridge.errors import ConfigError
from stainbridge.training import train
from stainbridge.training.settings import put_together

pytestmark = pytest.mark.heavy
torch = pytest.importorskip("torch", reason="needs the torch extra")

from stainbridge_plugins.hovernet import learner as hovernet_learner  # noqa: E402
from stainbridge_plugins.hovernet.augment import recoloured  # noqa: E402
from stainbridge_plugins.hovernet.learner import Training, learner  # noqa: E402
from stainbridge_plugins.hovernet.network import Design  # noqa: E402
from stainbridge_plugins.hovernet.segmenter import HoVerNet  # noqa: E402

SMALL = {"slimming": 8, "precision": "fp32"}


def batch(seed=0, count=2, types=False):
    """Dark disks on a pale ground, and where they are."""
    rng = np.random.default_rng(seed)
    pixels = np.full((count, 256, 256, 3), 220, np.uint8)
    labels = np.zeros((count, 256, 256), np.int32)
    y, x = np.mgrid[:256, :256]
    for picture, truth in zip(pixels, labels, strict=True):
        for index, (cy, cx) in enumerate(
            rng.permutation([(a, b) for a in range(20, 256, 40) for b in range(20, 256, 40)])
        ):
            inside = (y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(8, 14) ** 2
            picture[inside] = (90, 60, 140)
            truth[inside] = index + 1
    return Labelled(pixels, labels, (labels % 2 + 1).astype(np.uint8) * (labels > 0) if types else None)


def made(**settings):
    return learner(Training(**SMALL, **settings), device="cpu", seed=3, mpp=0.25, patch_px=256)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of a whole network, which a phase can start from."""
    path = tmp_path_factory.mktemp("start") / "trained.tar"
    torch.save({"desc": made()._network.state_dict()}, path)
    return path


def state(one):
    snapshot = one.snapshot()
    return {name: tensor.clone() for name, tensor in snapshot.tensors.items()}


def test_it_is_a_learner_whose_losses_fall():
    one = made(lr=1e-3)
    assert isinstance(one, Learner)
    one.begin(1, 1, 12)
    losses = [one.step(batch())["loss"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_types_are_learned_and_named_among_the_losses():
    one = made(types=3)
    one.begin(1, 1, 1)
    found = one.step(batch(types=True))
    assert found["loss"] == pytest.approx(sum(value for name, value in found.items() if name != "loss"), rel=1e-5)
    assert {"tp_entropy", "tp_dice"} < set(found)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"frozen_epochs": 1}])
def test_what_is_restored_goes_on_bit_for_bit(settings, trained):
    settings = {**settings, "start": trained}
    one, other = made(**settings), made(**settings)
    one.begin(1, 2, 2)
    one.step(batch(1))
    one.begin(2, 2, 2)
    one.step(batch(2))
    other.restore(one.snapshot())
    for each in (one, other):
        each.begin(2, 2, 2)
        each.step(batch(3))
    before, after = state(one), state(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_phase_one_leaves_the_encoder_as_it_is_and_phase_two_does_not(trained):
    one = made(frozen_epochs=1, start=trained)
    start = state(one)
    changed = []
    for epoch in (1, 2):
        one.begin(epoch, 2, 1)
        one.step(batch(epoch))
        now = state(one)
        changed.append(
            {
                name
                for name in start
                if name.endswith("weight") and "bn" not in name and not torch.equal(start[name], now[name])
            }
        )
    assert not any(
        name.startswith(("network/d0.units", "network/d1", "network/d2", "network/d3")) for name in changed[0]
    )
    assert {"network/conv0./.weight", "network/d0.shortcut.weight"} <= changed[0]
    assert any(name.startswith("network/decoder") for name in changed[0])
    assert any(name.startswith("network/d1") for name in changed[1])


def test_a_training_of_phase_one_alone_never_frees_the_encoder(trained):
    one = made(phase=1, start=trained)
    one.begin(60, 60, 1)
    assert not any(one_weight.requires_grad for one_weight in one._network.d1.parameters())
    assert one.snapshot().values["optimiser"]["lr"][0] == pytest.approx(1e-6)


def test_the_rate_falls_to_a_tenth_after_25_epochs_of_each_phase(trained):
    one = made(frozen_epochs=30, start=trained)
    rates = []
    for epoch in (1, 25, 26, 30, 31, 55, 56):
        one.begin(epoch, 60, 1)
        rates.append(one.snapshot().values["optimiser"]["lr"][0])
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-4, 1e-4, 1e-5])


class TestHalfPrecision:
    """The bookkeeping, on a CPU: only a GPU computes in half precision."""

    def scaled(self, scale=8.0, **settings):
        one = made(**settings)
        one._scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        one.begin(1, 1, 3)
        return one

    def weights(self, one):
        return {name: weight.detach().clone() for name, weight in one._network.named_parameters()}

    @pytest.mark.parametrize(("precision", "scales"), [("fp32", False), ("bf16", False), ("fp16", True)])
    def test_gradients_are_scaled_in_half_precision_only(self, monkeypatch, precision, scales):
        monkeypatch.setattr(hovernet_learner, "resolve_precision", lambda asked, device: precision)
        assert made()._scaler.is_enabled() == scales

    def test_scaled_gradients_move_the_weights_as_plain_ones(self):
        plain, scaled = made(accumulate=2), self.scaled(accumulate=2)
        plain.begin(1, 1, 3)
        gradients = []
        for one in (plain, scaled):
            one._network.conv0[0].weight.register_hook(lambda gradient: gradients.append(gradient.abs().max()))
            one.step(batch(1))
        assert float(gradients[2] / gradients[0]) == pytest.approx(8.0)
        before, after = state(plain), state(scaled)
        # Adam moves by a gradient's sign at first, so its own averages tell whether they were scaled back.
        assert any(name.endswith("exp_avg") for name in before)
        assert all(torch.allclose(before[name], after[name], rtol=1e-4, atol=1e-6) for name in before)

    def test_a_step_whose_gradients_overflow_is_not_taken_nor_averaged(self):
        one = self.scaled(ema=0.5)
        before, average = self.weights(one), one._ema.snapshot().tensors
        overflow = one._network.conv0[0].weight.register_hook(lambda gradient: gradient * torch.inf)
        one.step(batch(1))
        after = self.weights(one)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(torch.equal(average[name], tensor) for name, tensor in one._ema.snapshot().tensors.items())
        assert one._scaler.get_scale() == 4.0
        overflow.remove()
        one.step(batch(1))
        name = "conv0./.weight"
        assert not torch.equal(before[name], self.weights(one)[name])
        assert any(not torch.equal(average[name], tensor) for name, tensor in one._ema.snapshot().tensors.items())

    def test_the_scale_goes_on_where_it_stopped_and_may_be_missing(self):
        one, other, older = (self.scaled() for _ in range(3))
        for seed in (1, 2):
            one.step(batch(seed))
        saved = one.snapshot()
        assert saved.values["scaler"]["scale"] == 16.0
        other.restore(saved)
        assert other._scaler.get_scale() == 16.0
        # As snapshots were before gradients were scaled.
        values = {name: one for name, one in saved.values.items() if name != "scaler"}
        older.restore(Snapshot(saved.tensors, values))
        assert older._scaler.get_scale() == 8.0
        older.step(batch(3))


def test_parts_of_a_batch_learn_from_every_picture():
    whole, parts = made(recolour=False), made(recolour=False, accumulate=2)
    for one in (whole, parts):
        one.begin(1, 1, 1)
    # Batch statistics differ between parts, so the two are near and not equal.
    assert parts.step(batch(count=4))["loss"] == pytest.approx(whole.step(batch(count=4))["loss"], rel=0.1)


def test_recolouring_keeps_the_mean_picture_and_changes_each():
    pixels = torch.from_numpy(batch(count=8).pixels).permute(0, 3, 1, 2).float()
    changed = recoloured(pixels, torch.Generator().manual_seed(0))
    assert changed.shape == pixels.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    shift = (changed.mean(dim=(1, 2, 3)) - pixels.mean(dim=(1, 2, 3))).abs()
    assert shift.max() > 3
    assert shift.max() <= 30
    again = recoloured(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)


class TestPhasesNeedAStart:
    def refused(self, preset, **settings):
        chosen = {**HoVerNet.presets[preset]["learner"], **settings} if preset else settings
        with pytest.raises(ConfigError) as caught:
            made(**chosen)
        assert "\nTo train without such a file: --preset scratch" in str(caught.value)
        assert "--set learner.start=FILE" in str(caught.value)
        return str(caught.value)

    def test_phase_one_wants_the_encoder_of_imagenet(self):
        for message in (self.refused("phase1"), self.refused(None, frozen_epochs=1)):
            assert message.startswith("Phase 1 of HoVer-Net keeps the encoder as it is")
            assert "ImageNet-ResNet50-Preact_pytorch.tar" in message

    def test_phase_two_wants_the_model_of_phase_one(self):
        message = self.refused("phase2")
        assert message.startswith("Phase 2 of HoVer-Net goes on from what phase 1 learned")
        assert "model/hovernet.safetensors" in message

    def test_from_scratch_wants_none(self):
        assert made(**HoVerNet.presets["scratch"].get("learner", {})).settings.start is None

    def test_an_encoder_alone_will_do_for_phase_one_and_not_for_phase_two(self, tmp_path):
        state = {name: one for name, one in made()._network.state_dict().items() if not name.startswith("decoder")}
        path = tmp_path / "encoder.tar"
        torch.save({"desc": state}, path)
        made(phase=1, start=path)
        with pytest.raises(ConfigError, match=r"it has no 'decoder\.np\..*\nName the model of phase 1"):
            made(phase=2, start=path)

    @pytest.mark.parametrize("preset", ["phase1", "phase2"])
    def test_a_training_is_refused_before_its_folder_says_anything(self, preset, tmp_path):
        from PIL import Image as Pillow

        given = batch(count=1)
        Pillow.fromarray(given.pixels[0]).save(tmp_path / "a.png")
        Pillow.fromarray(given.labels[0].astype(np.uint16)).save(tmp_path / "a_labels.png")
        with pytest.raises(ConfigError, match=r"learner\.start names none"):
            train("hovernet", tmp_path / "run", preset=preset, pictures=str(tmp_path), mpp=0.25, tracking=False)
        assert not (tmp_path / "run" / "training.json").exists()


class TestBadInput:
    def test_a_size_that_the_network_does_not_take(self):
        with pytest.raises(ConfigError, match=r"takes pictures of 256 px.*found 250 px\.\nPass --set patch_px=256"):
            learner(Training(**SMALL), device="cpu", seed=0, mpp=0.25, patch_px=250)

    @pytest.mark.parametrize("preset", HoVerNet.presets)
    def test_the_other_mode_with_a_preset_says_what_else_to_set(self, preset, trained):
        config = put_together(
            "hovernet", HoVerNet.presets, options={"preset": preset}, settings=["learner.mode=original"]
        )
        settings = Training(**SMALL, **config.learner, start=trained)
        with pytest.raises(ConfigError) as caught:
            learner(settings, device="cpu", seed=0, mpp=0.25, patch_px=config.patch_px)
        (advice,) = re.findall(r"--set (\S+)", str(caught.value))
        assert advice == "patch_px=270"
        Design(settings.mode).output_of(config.with_overrides([advice]).patch_px)

    def test_types_that_are_missing(self):
        one = made(types=3)
        one.begin(1, 1, 1)
        with pytest.raises(
            ConfigError, match=r"3 types are to be learned, but the pictures have none\.\nPut NAME_types"
        ):
            one.step(batch())

    def test_more_types_than_the_network_has(self):
        one = made(types=2)
        one.begin(1, 1, 1)
        with pytest.raises(ConfigError, match=r"have a type 2; learner.types=2 has 0 to 1.*\nSet learner.types=3"):
            one.step(batch(types=True))

    def test_a_start_that_is_another_network(self, tmp_path):
        torch.save({"model.1.weight": torch.zeros(3)}, tmp_path / "other.pth")
        with pytest.raises(ConfigError, match=r"'other.pth' cannot be started from: it has no 'conv0"):
            made(start=tmp_path / "other.pth")

    def test_a_start_of_the_other_mode_is_refused(self, tmp_path):
        other = learner(Training(**SMALL, mode="original"), device="cpu", seed=0, mpp=0.25, patch_px=270)
        torch.save({"desc": other._network.state_dict()}, tmp_path / "original.tar")
        with pytest.raises(ConfigError, match=r"it has no 'decoder\.np\.u3\.conva\.weight' of this mode and width"):
            made(start=tmp_path / "original.tar")


class TestStart:
    def started(self, path):
        return learner(Training(**SMALL, start=path), device="cpu", seed=99, mpp=0.25, patch_px=256)

    @pytest.mark.parametrize("part", ["encoder", "all"])
    def test_a_file_of_the_original_is_taken_over(self, tmp_path, part):
        first = made()
        state = {
            f"module.{name}": tensor
            for name, tensor in first._network.state_dict().items()
            if (part == "all" or not name.startswith(("decoder", "conv_bot")))
            and not name.endswith("num_batches_tracked")
        }
        torch.save({"desc": state}, tmp_path / "first.tar")
        before, after = first.snapshot().tensors, self.started(tmp_path / "first.tar").snapshot().tensors
        taken = {name for name in before if name.startswith("network") and torch.equal(before[name], after[name])}
        assert {"network/conv0./.weight", "network/d3.shortcut.weight"} < taken
        assert ("network/decoder.np.u3.conva.weight" in taken) == (part == "all")

    def test_an_export_of_ours_is_taken_over_and_may_get_types(self, tmp_path):
        from safetensors.torch import save_file

        first = made()
        save_file(dict(first.export().files["hovernet.safetensors"]), tmp_path / "own.safetensors")
        typed = learner(
            Training(**SMALL, types=3, start=tmp_path / "own.safetensors"), device="cpu", seed=9, mpp=0.25, patch_px=256
        )
        assert torch.equal(
            typed.snapshot().tensors["network/decoder.hv.u0.conv.weight"],
            first.snapshot().tensors["network/decoder.hv.u0.conv.weight"],
        )
