"""What HoVer-Net learns, held against the original's recorded maps and against loops written from its description."""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "hovernet_postprocessing.npz"

pytestmark = pytest.mark.heavy
torch = pytest.importorskip("torch", reason="needs the torch extra")

from stainbridge_plugins.hovernet import losses  # noqa: E402
from stainbridge_plugins.hovernet.targets import distance_maps, middle  # noqa: E402


def maps_of(labels, output_px=None):
    hv, nuclear = distance_maps(torch.from_numpy(np.asarray(labels, np.int64))[None], output_px or labels.shape[-1])
    return hv[0].numpy(), nuclear[0].numpy()


def disk(side, centre, radius):
    y, x = np.mgrid[:side, :side]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the recorded outputs of the original are not beside the checkout")
def test_distances_equal_the_original_s_away_from_the_upper_and_left_border():
    # The original loses nuclei that come within 2 px of these borders: it widens their box to a negative index.
    golden = np.load(GOLDEN)
    for name in ("train_1", "train_10"):
        labels, recorded = golden[f"hovernet_labels_{name}"], golden[f"hovernet_hv_target_{name}"]
        lost = np.union1d(labels[:2], labels[:, :2])
        hv, _ = maps_of(labels)
        kept = ~np.isin(labels, lost[lost > 0])
        assert kept.mean() > 0.8
        np.testing.assert_allclose(hv.transpose(1, 2, 0)[kept], recorded[kept], atol=1e-6)
        assert not recorded[~kept].any()


def test_distances_run_from_minus_one_to_one_across_a_nucleus():
    hv, nuclear = maps_of(disk(64, (30, 33), 9))
    assert (hv[0].min(), hv[0].max(), hv[1].min(), hv[1].max()) == (-1, 1, -1, 1)
    assert hv[0, 30, 24] == -1
    assert hv[0, 30, 42] == 1
    assert hv[1, 21, 33] == -1
    assert not hv[:, ~nuclear].any()


def test_a_nucleus_of_29_pixels_in_the_middle_is_nuclear_and_has_no_distances():
    labels = np.zeros((64, 64), np.int64)
    labels[30, 10:39] = 1
    hv, nuclear = maps_of(labels)
    assert nuclear.sum() == 29
    assert not hv.any()
    labels[30, 39] = 1
    assert maps_of(labels)[0].any()


def test_distances_are_those_of_the_whole_nucleus_where_the_output_shows_a_part():
    labels = disk(64, (32, 14), 9).astype(np.int64)
    whole, _ = maps_of(labels)
    part, _ = maps_of(labels, 32)
    np.testing.assert_array_equal(part, whole[:, 16:48, 16:48])


def test_pictures_of_a_batch_do_not_mix():
    pair = np.stack([disk(64, (20, 20), 8), disk(64, (40, 44), 6)]).astype(np.int64)
    both, _ = distance_maps(torch.from_numpy(pair), 64)
    for index in range(2):
        np.testing.assert_array_equal(both[index].numpy(), maps_of(pair[index])[0])


def test_the_middle_of_270_is_cut_95_before_and_95_behind():
    line = torch.arange(270).expand(270, 270)
    cut = middle(line, 80)
    assert (cut.shape, int(cut[0, 0]), int(cut[0, -1])) == ((80, 80), 95, 174)


class TestLosses:
    def test_cross_entropy_by_hand(self):
        p = torch.tensor([0.2, 0.8]).reshape(1, 2, 1, 1)
        truth = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
        assert losses.cross_entropy(p, truth).item() == pytest.approx(-np.log(0.8))

    def test_certain_and_wrong_is_finite(self):
        p = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        assert losses.cross_entropy(p, p.flip(1)).item() == pytest.approx(-np.log(1e-7), rel=1e-4)

    def test_dice_by_hand_is_summed_over_channels(self):
        p = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).reshape(1, 2, 1, 2)
        truth = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
        assert losses.dice(p, truth).item() == pytest.approx(2 * (1 - 1.001 / 2.001))

    def test_gradient_of_the_horizontal_ramp_is_seen_along_and_not_across(self):
        ramp = torch.arange(32.0).expand(32, 32)
        truth, hv = torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32, 32)
        hv[0, 0] = ramp
        inside = torch.zeros(1, 32, 32, dtype=torch.bool)
        inside[:, 8:24, 8:24] = True
        assert losses.gradient_error(hv, truth, inside, axes="original").item() == pytest.approx(0, abs=1e-9)
        # The kernel answers 12 to a ramp of 1 per pixel; 144 is averaged with the 0 of the other map.
        assert losses.gradient_error(hv, truth, inside, axes="along").item() == pytest.approx(72, rel=1e-5)

    def test_gradients_outside_nuclei_do_not_count(self):
        hv, truth = torch.randn(1, 2, 32, 32), torch.zeros(1, 2, 32, 32)
        nowhere = torch.zeros(1, 32, 32, dtype=torch.bool)
        assert losses.gradient_error(hv, truth, nowhere, axes="original").item() == 0

    def test_the_right_answer_costs_next_to_nothing(self):
        labels = torch.from_numpy(disk(64, (30, 33), 9).astype(np.int64))[None]
        hv, nuclear = distance_maps(labels, 64)
        sure = 40.0 * torch.nn.functional.one_hot(nuclear.long(), 2).permute(0, 3, 1, 2)
        found = losses.total({"np": sure, "hv": hv, "tp": sure}, hv, nuclear, nuclear.long())
        assert set(found) == {"np_entropy", "np_dice", "hv_mse", "hv_gradient", "tp_entropy", "tp_dice", "loss"}
        assert found["loss"].item() < 1e-3
        worse = losses.total({"np": -sure, "hv": -hv, "tp": sure}, hv, nuclear, nuclear.long())
        assert worse["loss"].item() > 10
