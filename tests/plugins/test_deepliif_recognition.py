"""A nucleus is known again by its pixels, in any window, also where it lost a part, and another one is not."""

import numpy as np
import pytest

from stainbridge.testing import synthetic_ihc
from stainbridge_plugins.deepliif import recognition
from stainbridge_plugins.deepliif.recognition import Memory, Traits


@pytest.fixture(scope="module")
def sample():
    made = synthetic_ihc(shape=(512, 512), nuclei=80, mpp=0.25, seed=3)
    return made.source.pixels, made.truth.array


@pytest.fixture
def memory(sample):
    ihc, labels = sample
    n = int(labels.max())
    memory = Memory()
    memory.remember(ihc, labels, Traits(np.arange(n) / n, np.arange(n) % 256))
    return memory


def test_what_was_never_seen_is_not_known(sample):
    traits = Memory().recall(*sample)
    assert len(traits.p_positive) == sample[1].max()
    assert not traits.known.any()


def test_every_nucleus_is_known_and_nothing_is_mixed_up(sample, memory):
    n = int(sample[1].max())
    traits = memory.recall(*sample)
    assert traits.p_positive == pytest.approx(np.arange(n) / n, abs=1e-6)
    assert traits.marker.tolist() == list(range(n))


def test_it_does_not_matter_where_the_window_begins_and_how_nuclei_are_numbered(sample, memory):
    ihc, labels = sample
    window = np.s_[37:301, 53:411]
    ids, local = np.unique(labels[window], return_inverse=True)
    local = local.reshape(labels[window].shape).astype(np.int32)
    whole = [(labels[window] == one).sum() == (labels == one).sum() for one in ids[1:]]
    p = memory.recall(ihc[window], local).p_positive[whole]
    assert len(p) > 10
    assert p == pytest.approx((ids[1:][whole] - 1) / labels.max(), abs=1e-6)


def test_a_nucleus_that_lost_a_fifth_is_known_and_one_that_lost_most_is_not(sample, memory):
    ihc, labels = sample
    for share, known in ((0.2, True), (0.95, False)):
        left = labels.copy()
        for one in range(1, labels.max() + 1):
            pixels = np.flatnonzero(labels == one)
            left.ravel()[pixels[: int(share * len(pixels))]] = 0
        assert (memory.recall(ihc, left).known.mean() > 0.9) == known


def test_other_pixels_are_other_nuclei(sample, memory):
    ihc, labels = sample
    other = ihc.copy()
    other[..., 0] ^= 1
    assert not memory.recall(other, labels).known.any()


def test_the_newest_answer_counts(sample, memory):
    ihc, labels = sample
    n = int(labels.max())
    memory.remember(ihc, labels, Traits(np.ones(n), np.zeros(n)))
    assert (memory.recall(ihc, labels).p_positive == 1).all()


def test_no_nuclei_are_no_nuclei(sample):
    memory, nothing = Memory(), np.zeros((512, 512), np.int32)
    memory.remember(sample[0], nothing, Traits(np.zeros(0), np.zeros(0)))
    assert memory.recall(sample[0], nothing).known.shape == (0,)


def test_of_400_000_nuclei_the_first_are_still_known(monkeypatch):
    # The same at a 128th of the size, in the table and in the nuclei: squares on noise, 125 in a picture.
    monkeypatch.setattr(recognition, "_SLOTS", recognition._SLOTS // 128)
    memory = Memory()
    labels = np.kron(np.arange(1, 126, dtype=np.int32).reshape(5, 25), np.ones((5, 5), np.int32))
    pictures = np.random.default_rng(0).integers(0, 256, (25, *labels.shape, 3), dtype=np.uint8)
    for index, ihc in enumerate(pictures):
        memory.remember(ihc, labels, Traits(np.full(125, index / 25), np.zeros(125)))
    for index, ihc in enumerate(pictures):
        traits = memory.recall(ihc, labels)
        assert traits.known.mean() > 0.8
        assert traits.p_positive[traits.known] == pytest.approx(index / 25, abs=1e-6)
