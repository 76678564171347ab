"""The kit passes what keeps the contracts, and every check fails on a plugin made to break it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel
from scipy import ndimage

from stainbridge import Described, Metric, PluginConfig, PositivityClassifier, Segmenter, Translator, Wants
from stainbridge.errors import ContractViolation, UnknownPlugin
from stainbridge.testing import checks_for, run_checks

ROOT = Path(__file__).resolve().parents[2]


class Copy(Translator):
    name, api = "copy", 1
    wants = Wants(stain="ihc")

    def translate(self, batch):
        return batch.copy()


class Dark(Segmenter):
    name, api = "dark", 1
    wants = Wants(stain="he", mpp=0.5, multiple_of=4)

    def segment(self, batch):
        blurred = ndimage.uniform_filter(batch[..., 0].astype(float), (0, 3, 3))
        return np.stack([ndimage.label(one < 150)[0] for one in blurred]).astype(np.int32)


class Brown(PositivityClassifier):
    name, api = "brown", 1
    wants = Wants(stain="ihc")

    def classify(self, ihc, labels):
        n = int(labels.max(initial=0))
        brown = (ihc[..., 0] > ihc[..., 2]).astype(float)
        return np.asarray(ndimage.mean(brown, labels, np.arange(1, n + 1)), np.float64).reshape(n)


class Share(Metric):
    name, api = "share", 1

    def __init__(self):
        self.seen = []

    def update(self, result, truth):
        labels = result.labels.read(0, 0, *result.labels.shape)
        self.seen.append(((labels > 0) & (truth.truth.array > 0)).mean())
        return {"share": float(self.seen[-1])}

    def compute(self):
        return {"share": float(np.mean(self.seen))}


def broken(base, **parts):
    return type("Broken", (base,), parts)


def of_whole(change):
    """Return a `segment` that changes what Dark finds."""
    return lambda self, batch: change(Dark.segment(self, batch), batch)


def telling(change=lambda labels, values: (labels, values)):
    """Return Dark that also tells the area of each nucleus, after a change to what it tells."""

    def describe(self, batch):
        labels = self.segment(batch)
        areas = [{"area": np.bincount(one.ravel())[1:].astype(float)} for one in labels]
        return Described(*change(labels, areas))

    return broken(Dark, describe=describe)


def streaming(change):
    """Return the telling Dark with a `stream` that changes the results."""
    return broken(telling(), stream=lambda self, batches: iter(change([self.describe(one) for one in batches])))


def of_mean(change):
    """Return a `classify` that changes what Brown finds."""
    return lambda self, ihc, labels: change(Brown.classify(self, ihc, labels), ihc, labels)


def of_share(change):
    """Return an `update` that changes what Share finds."""
    return lambda self, result, truth: change(Share.update(self, result, truth), result, truth)


def scribble(array):
    array[0] = 0
    return array


class Loose(BaseModel):
    x: int = 1


class Frozen(PluginConfig):
    part: Loose = Loose()


class Open(PluginConfig, extra="ignore"):
    pass


class Thawed(PluginConfig, frozen=False):
    pass


class Drifting(Copy):
    def calibrate(self, sample):
        self.shift = int(sample.mean())
        return self

    def translate(self, batch):
        return (batch // 2 + self.shift % 7).astype(np.uint8)


COUNTER = iter(range(10**6))
SHARED = []

MUTANTS = [
    (broken(Copy, name="Copy"), "declares_name_and_api", "must be lower-case.*found 'Copy'"),
    (broken(Copy, api=99), "declares_name_and_api", "`api` must be 1; found 99"),
    (
        broken(Copy, expected_failures={"is_deterministik": "?"}),
        "names_only_known_checks",
        "'is_deterministik', which is no check. Did you mean 'is_deterministic'",
    ),
    (broken(Copy, expected_failures={"is_deterministic": " "}), "names_only_known_checks", "gives no reason"),
    (broken(Copy, Config=Open), "config_refuses_unknown_keys", "Open must say extra='forbid'"),
    (broken(Copy, Config=Frozen), "config_refuses_unknown_keys", "Loose must say extra='forbid'"),
    (broken(Copy, Config=Thawed), "config_is_frozen", "Thawed must say frozen=True"),
    (broken(Copy, wants=property(lambda s: Wants("ihc", halo=next(COUNTER)))), "wants_is_stable", "changed between"),
    (broken(Copy, wants=None), "wants_is_stable", "must be a Wants; found NoneType"),
    (broken(Copy, translate=lambda s, b: b / 255), "keeps_shape_and_dtype", "returned float64.*must return uint8"),
    (broken(Copy, translate=lambda s, b: b[:, :-1].copy()), "keeps_shape_and_dtype", "255, 256, 3"),
    (broken(Copy, translate=lambda s, b: b[:, :150].copy()), "accepts_declared_sizes", "of 161 x 16 px returned"),
    (broken(Copy, translate=lambda s, b: (b / b.std()).astype(np.uint8)), "accepts_blank_glass", "RuntimeWarning"),
    (broken(Copy, translate=lambda s, b: (b / b.max()).astype(np.uint8)), "accepts_dark_tissue", "RuntimeWarning"),
    (broken(Copy, translate=lambda s, b: b + np.uint8(next(COUNTER) % 5)), "is_deterministic", "second call"),
    (
        broken(
            Copy,
            __init__=lambda s, *a, **k: (Copy.__init__(s, *a, **k), setattr(s, "n", next(COUNTER) % 99))[0],
            translate=lambda s, b: b + np.uint8(s.n),
        ),
        "is_deterministic",
        "second instance",
    ),
    (broken(Copy, translate=lambda s, b: scribble(b).copy()), "does_not_write_into_its_input", "was changed"),
    (broken(Copy, translate=lambda s, b: b), "does_not_write_into_its_input", "the input itself"),
    (broken(Copy, translate=lambda s, b: scribble(b).copy()), "accepts_read_only_and_strided_input", "read-only"),
    (
        broken(Copy, translate=lambda s, b: np.frombuffer(b.data, np.uint8).reshape(b.shape).copy()),
        "accepts_read_only_and_strided_input",
        "contiguous",
    ),
    (
        broken(Copy, translate=lambda s, b: (b // 2 + int(b.mean())).clip(0, 255).astype(np.uint8)),
        "does_not_depend_on_the_batch",
        "grey levels",
    ),
    (
        broken(Copy, translate=lambda s, b: (b - b.mean((1, 2), keepdims=True) + 128).clip(0, 255).astype(np.uint8)),
        "does_not_depend_on_the_window",
        "moved by 16 px gave pixels that differ by up to",
    ),
    (Drifting, "calibration_leaves_the_plugin_as_it_is", "changed the plugin"),
    (broken(Drifting, calibrate=lambda s, b: "?"), "calibration_leaves_the_plugin_as_it_is", "returned a str"),
    (
        broken(Drifting, shift=0, calibrate=lambda s, b: (scribble(b), s)[1]),
        "calibration_leaves_the_plugin_as_it_is",
        "wrote into its sample",
    ),
    (broken(Dark, segment=of_whole(lambda m, b: m.astype(np.int64))), "keeps_shape_and_dtype", "must return int32"),
    (broken(Dark, segment=of_whole(lambda m, b: m * 2)), "returns_labels_without_gaps", "id 1 of .* is missing"),
    (broken(Dark, segment=of_whole(lambda m, b: m + 1)), "finds_no_nuclei_on_blank_glass", "1 were found"),
    (broken(Dark, segment=of_whole(lambda m, b: m * (m < 9))), "finds_the_synthetic_nuclei", "8 of 66"),
    (
        broken(Dark, segment=of_whole(lambda m, b: np.arange(m.size, dtype=np.int32).reshape(m.shape))),
        "finds_the_synthetic_nuclei",
        "65535 objects were found where there are 66",
    ),
    (
        broken(Dark, segment=of_whole(lambda m, b: m * (len(b) == 1))),
        "does_not_depend_on_the_batch",
        "in the batch it had 0",
    ),
    (
        broken(Dark, segment=of_whole(lambda m, b: np.where(np.arange(m.shape[2]) % 64 < 32, m, 0))),
        "does_not_depend_on_the_window",
        "of the window moved by 16 px",
    ),
    (telling(lambda labels, values: (labels, values[:1])), "describes_its_nuclei_if_it_can", "1 are described"),
    (telling(lambda labels, values: (labels * 0, values)), "describes_its_nuclei_if_it_can", "not those of `segment`"),
    (streaming(lambda found: found[:1]), "describes_its_nuclei_if_it_can", "Of 2 batches, 1 came out"),
    (streaming(lambda found: found[::-1]), "describes_its_nuclei_if_it_can", "not those of `describe`"),
    (
        telling(lambda labels, values: (labels, [{**v, f"n{len(v['area'])}": v["area"]} for v in values])),
        "describes_its_nuclei_if_it_can",
        "names depend on the picture",
    ),
    (
        telling(lambda labels, values: (labels, [{"area": v["area"][1:]} for v in values])),
        "describes_its_nuclei_if_it_can",
        "one value per nucleus",
    ),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p.astype(np.float32))),
        "returns_one_probability_per_nucleus",
        "must return float64",
    ),
    (broken(Brown, classify=of_mean(lambda p, i, m: p + 1)), "returns_one_probability_per_nucleus", "outside"),
    (broken(Brown, classify=of_mean(lambda p, i, m: p * np.nan)), "returns_one_probability_per_nucleus", "NaN"),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p - p.mean())),
        "accepts_a_picture_without_nuclei",
        "Mean of empty",
    ),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p + 1 / i.sum())),
        "accepts_blank_glass_and_dark_tissue",
        "divide by zero",
    ),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p + np.log(np.bincount(m.ravel()).min() - 1))),
        "accepts_a_nucleus_of_one_pixel",
        "divide by zero",
    ),
    (broken(Brown, classify=of_mean(lambda p, i, m: 1 - p)), "calls_brown_above_blue", "In 0% of the pairs"),
    (broken(Brown, threshold=7), "has_a_threshold_between_0_and_1", "must be 0..1; found 7"),
    (broken(Brown, threshold=0.0), "has_a_threshold_between_0_and_1", "100% of brown and 100% of blue"),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p / np.arange(1, len(p) + 1))),
        "does_not_depend_on_the_numbering",
        "With other ids",
    ),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p / max(1.0, p.sum()))),
        "does_not_depend_on_the_window",
        "Cut out",
    ),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: p / (2 + next(COUNTER)))),
        "is_deterministic",
        "second call",
    ),
    (
        broken(Brown, classify=of_mean(lambda p, i, m: (scribble(m), p)[1])),
        "does_not_write_into_its_input",
        "label map was changed",
    ),
    (
        broken(Share, update=of_share(lambda v, r, t: {"share": 1})),
        "returns_named_floats",
        "must return floats by name",
    ),
    (
        broken(Share, update=of_share(lambda v, r, t: {"share": float("inf")})),
        "returns_named_floats",
        "Not finite although there are nuclei: share, share",
    ),
    (
        broken(Share, update=of_share(lambda v, r, t: {f"n{len(r.nuclei)}": 1.0})),
        "returns_named_floats",
        "names changed",
    ),
    (broken(Share, update=of_share(lambda v, r, t: {"share": 0.5})), "tells_perfect_from_empty", "both gave"),
    (
        broken(Share, update=of_share(lambda v, r, t: {"share": float(1 / np.float64(len(r.nuclei)))})),
        "accepts_pictures_without_nuclei",
        "RuntimeWarning",
    ),
    (broken(Share, compute=lambda s: {"share": float(s.seen[-1])}), "pools_in_any_order", "reverse order"),
    (
        broken(Share, update=of_share(lambda v, r, t: {"share": float(r.labels.array[t.truth.array > 0][0])})),
        "does_not_depend_on_the_numbering",
        "Other ids gave",
    ),
    (
        broken(Share, pool=lambda s, images, weights: {"share": weights @ images["share"]}),
        "pools_from_the_values_of_pictures",
        "`pool` gave",
    ),
    (broken(Share, __init__=lambda s: setattr(s, "seen", SHARED)), "instances_do_not_share_state", "of another"),
    (broken(Share, compute=lambda s: {"share": float(s.seen.pop())}), "instances_do_not_share_state", "pop from empty"),
    (
        broken(Share, update=of_share(lambda v, r, t: (scribble(r.labels.array), v)[1])),
        "does_not_write_into_its_input",
        "were changed",
    ),
]


class Tiled(Dark):
    name = "tiled"
    wants = Wants(stain="he", mpp=0.5, tile=128, halo=16, multiple_of=32)


@pytest.mark.parametrize("plugin", [Copy, Dark, Tiled, Brown, Share])
def test_a_plugin_that_keeps_the_contract_passes_every_check(plugin):
    reports = run_checks(plugin)
    assert [report for report in reports if report.outcome != "passed"] == []
    assert [report.name for report in reports] == [check.name for check in checks_for(reports[0].kind)]


@pytest.mark.parametrize(
    ("plugin", "check", "message"), MUTANTS, ids=[f"{n}-{m[0].__base__.__name__}-{m[1]}" for n, m in enumerate(MUTANTS)]
)
def test_a_plugin_that_breaks_a_claim_fails_its_check(plugin, check, message):
    (report,) = run_checks(plugin, only=[check])
    assert report.outcome == "failed"
    assert not report.ok
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(report.message)


@pytest.mark.parametrize("kind", ["translator", "segmenter", "classifier", "metric"])
def test_every_check_is_seen_to_fail_and_says_what_it_claims(kind):
    from stainbridge.testing.subject import kind_of

    broken_by = {check for plugin, check, _ in MUTANTS if kind_of(plugin) == kind}
    of_pixels = {check for plugin, check, _ in MUTANTS if kind_of(plugin) in ("translator", "segmenter")}
    own = {check.name for check in checks_for(kind)}
    common = {check.name for check in checks_for("translator")}
    assert own - common - broken_by == set()
    assert own - broken_by - of_pixels == set()
    assert all(check.claim.endswith(".") for check in checks_for(kind))


def test_a_declared_failure_is_expected_and_its_reason_is_told():
    reason = "fades"
    plugin = broken(Copy, translate=lambda s, b: b / 255, expected_failures={"keeps_shape_and_dtype": reason})
    (report,) = run_checks(plugin, only=["keeps_shape_and_dtype"])
    assert (report.outcome, report.message, report.ok) == ("expected failure", reason, True)


def test_a_declared_failure_that_passes_is_a_failure():
    plugin = broken(Copy, expected_failures={"keeps_shape_and_dtype": "fades"})
    (report,) = run_checks(plugin, only=["keeps_shape_and_dtype"])
    assert (report.outcome, report.ok) == ("unexpected pass", False)
    assert "although `expected_failures` says: fades" in report.message


def test_a_plugin_that_raises_fails_with_its_own_words():
    def raising(self, batch):
        raise OSError("no weights")

    (report,) = run_checks(broken(Copy, translate=raising), only=["is_deterministic"])
    assert (report.outcome, report.message) == ("failed", "OSError: no weights")


def test_an_instance_is_made_anew_with_its_own_configuration():
    class Config(PluginConfig):
        level: int = 0

    plugin = broken(Copy, Config=Config, translate=lambda s, b: np.maximum(b, np.uint8(s.config.level)))
    assert all(report.ok for report in run_checks(plugin(Config(level=9))))


def test_pictures_follow_the_scale_the_tile_and_the_stain_that_are_wanted():
    from stainbridge.testing.subject import Subject

    tiled = broken(Dark, wants=Wants(stain="ihc", mpp=1.0, tile=96, halo=8, multiple_of=32))
    subject = Subject.of(tiled)
    sample = subject.sample()
    assert (sample.source.shape, sample.source.mpp, sample.source.name) == ((96, 96), 1.0, "synthetic_ihc")
    assert Subject.of(Dark).side_px(at_least=257) == 260


def test_warnings_that_are_no_numbers_are_left_alone():
    def warning(self, batch):
        warnings.warn("a library says hello", UserWarning, stacklevel=1)
        return batch.copy()

    with pytest.warns(UserWarning, match="hello"):
        (report,) = run_checks(broken(Copy, translate=warning), only=["keeps_shape_and_dtype"])
    assert report.ok


def test_an_unknown_check_is_an_error_that_names_the_nearest():
    with pytest.raises(UnknownPlugin, match=r"No check of a translator is named 'deterministic'\. Did you mean"):
        run_checks(Copy, only=["deterministic"])


def test_what_is_no_plugin_is_refused():
    with pytest.raises(ContractViolation, match="derives from one of Translator, Segmenter"):
        run_checks(dict)


def test_the_pytest_plugin_imports_nothing_heavy():
    code = (
        "import sys, pytest, stainbridge.testing.pytest_plugin\n"
        "heavy = {'numpy', 'pydantic', 'scipy', 'skimage', 'stainbridge.interfaces'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    path = [str(ROOT / "core"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
