"""HoVer-Net as a segmenter: windows, tiles, types, engines, and what it says when something does not fit."""

import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image as Pillow

from stainbridge import Batched, Image, Labelled, Segmenter, Trainable, run
from stainbridge.errors import ConfigError, DeviceUnavailable, MissingExtra, WeightsCorrupt, WeightsUnavailable
from stainbridge.records import check_label_map
from stainbridge.testing import blank_glass, checks_for, synthetic_he
from stainbridge.testing.conformance import run_check
from stainbridge.testing.subject import Subject

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("cv2", reason="needs the hovernet extra")

from stainbridge_plugins.hovernet import segmenter  # noqa: E402
from stainbridge_plugins.hovernet.network import Design, build  # noqa: E402
from stainbridge_plugins.hovernet.nuclei import nuclei_of  # noqa: E402
from stainbridge_plugins.hovernet.segmenter import HoVerNet  # noqa: E402
from stainbridge_plugins.hovernet.windows import joined, windows_of  # noqa: E402

pytestmark = pytest.mark.heavy


def _beside(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


handmade, reference = _beside("hovernet_handmade").handmade, _beside("hovernet_reference")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Checkpoints of the network that was written by hand, by mode and number of types."""
    folder = tmp_path_factory.mktemp("hovernet")
    made = {}
    for mode, types in (("fast", 0), ("fast", 3), ("original", 0)):
        made[mode, types] = folder / f"{mode}{types}.tar"
        torch.save({"desc": handmade(mode, types).state_dict()}, made[mode, types])
    return made


@pytest.fixture(scope="session")
def fast(files):
    return made(files["fast", 3])


def made(path, **config):
    return HoVerNet(HoVerNet.Config(path=path, **config))


def picture(side=256, nuclei=24, seed=0):
    return synthetic_he(shape=(side, side), nuclei=nuclei, seed=seed).source.pixels


def assert_same_up_to_order(labels, expected):
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


class TestContract:
    @pytest.mark.parametrize("check", checks_for("segmenter"), ids=lambda check: check.name)
    def test_it_keeps_the_contract_with_fixed_normalisation(self, check, files):
        report = run_check(check, Subject.of(made(files["fast", 3], normalisation="fixed")))
        assert report.ok, report.message

    def test_with_the_original_s_a_strip_of_glass_changes_nuclei_far_from_it(self, files):
        """Steep gradients at the strip's border are the new extremes, and all others are measured against them."""
        (check,) = [check for check in checks_for("segmenter") if check.name == "does_not_depend_on_the_window"]
        report = run_check(check, Subject.of(made(files["fast", 3])))
        assert (report.outcome, report.message) == (
            "expected failure",
            "the original measures gradients against the extremes of each tile",
        )

    def test_mode_original_finds_the_synthetic_nuclei(self, files):
        (check,) = [check for check in checks_for("segmenter") if check.name == "finds_the_synthetic_nuclei"]
        report = run_check(check, Subject.of(made(files["original", 0])))
        assert report.ok, report.message

    def test_it_takes_several_tiles_and_can_be_trained(self, fast):
        assert isinstance(fast, Segmenter)
        assert isinstance(fast, Batched)
        assert isinstance(HoVerNet, Trainable)


class TestWindows:
    @pytest.mark.parametrize("shape", [(1, 1), (16, 97), (164, 164), (165, 330), (80, 161)])
    @pytest.mark.parametrize("sides", [(270, 80), (256, 164)])
    def test_the_middles_of_the_windows_are_the_picture(self, shape, sides):
        window, output = sides
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        windows = windows_of(pixels, window, output)
        rim = (window - output) // 2
        middles = windows[:, rim : rim + output, rim : rim + output].transpose(0, 3, 1, 2)
        assert len(windows) == np.prod([-(-side // output) for side in shape])
        assert_array_equal(joined(middles, *shape).transpose(1, 2, 0), pixels)

    def test_512_px_are_49_windows_or_16(self):
        pixels = np.zeros((512, 512, 3), np.uint8)
        assert len(windows_of(pixels, 270, 80)) == 49
        assert len(windows_of(pixels, 256, 164)) == 16

    def test_the_rim_is_mirrored_without_repeating_it(self):
        pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        (first, *_) = windows_of(pixels, 256, 164)
        assert_array_equal(first[45, 46:246], pixels[1])
        assert_array_equal(first[0, 46:246], pixels[46])

    def test_labels_are_those_of_windows_put_side_by_side_and_the_plain_post_processing(self, files, fast):
        pixels = picture(250, 24)
        network = handmade("fast", 3)
        padded = np.pad(pixels, ((46, 256), (46, 256), (0, 0)), mode="reflect")
        maps = np.zeros((2 * 164, 2 * 164, 4), np.float32)
        for y in range(0, 250, 164):
            for x in range(0, 250, 164):
                window = torch.from_numpy(padded[y : y + 256, x : x + 256].transpose(2, 0, 1)[None].astype(np.float32))
                with torch.inference_mode():
                    out = network(window)
                parts = [
                    out["tp"].softmax(1).argmax(1)[0],
                    out["np"].softmax(1)[0, 1],
                    out["hv"][0, 0],
                    out["hv"][0, 1],
                ]
                maps[y : y + 164, x : x + 164] = torch.stack([part.float() for part in parts], dim=-1).numpy()
        maps = maps[:250, :250]
        expected = reference.instances(maps[..., 1:])
        (found,) = fast.segment_with_types(pixels[None])
        assert found.labels.max() >= 18
        assert_same_up_to_order(found.labels, expected)
        own = reference.table(found.labels, maps[..., 0].astype(int))
        assert_array_equal(found.table.types, [one["type"] for one in own.values()])
        assert_array_equal(found.table.centroids, [one["centroid"] for one in own.values()])


class TestTypes:
    def test_the_labels_are_those_of_segment(self, fast):
        batch = np.stack([picture(seed=seed) for seed in (0, 1)])
        found = fast.segment_with_types(batch)
        assert_array_equal(np.stack([one.labels for one in found]), fast.segment(batch))
        assert all(set(one.table.types) == {2} and one.table.shares.min() > 0.5 for one in found)

    def test_what_is_told_is_what_is_measured(self, fast):
        batch = np.stack([picture(), picture(seed=1)])
        labels, values = fast.describe(batch)
        for one, told, found in zip(labels, values, fast.segment_with_types(batch), strict=True):
            assert_array_equal(one, found.labels)
            assert_array_equal(told["type"][found.table.ids - 1], found.table.types)
            assert_array_equal(told["type_share"][found.table.ids - 1], found.table.shares)

    def test_names_are_positions_unless_they_are_given(self, files, fast):
        assert fast.type_names == ("0", "1", "2")
        names = ("background", "lymphocyte", "epithelial")
        named = made(files["fast", 3], type_names=names)
        assert named.type_names == names

    def test_a_network_without_types_measures_all_the_same(self, files):
        plain = made(files["fast", 0])
        (found,) = plain.segment_with_types(picture()[None])
        assert found.labels.max() == len(found.table) > 10
        assert found.table.types is None
        assert plain.type_names == ()

    def test_glass_gives_no_labels_and_an_empty_table(self, fast):
        (found,) = fast.segment_with_types(blank_glass((200, 180))[None])
        assert found.labels.shape == (200, 180)
        assert found.labels.max() == len(found.table) == 0


class TestSameResult:
    def test_neither_batch_nor_workers_nor_size_of_batches_change_a_label(self, files, fast):
        batch = np.stack([picture(150, 9, seed=seed) for seed in range(5)])
        alone = np.concatenate([fast.segment(one[None]) for one in batch])
        for options in ({"workers": 1}, {"workers": 5}, {"batch_size": 3}):
            other = made(files["fast", 3], **options)
            assert_array_equal(other.segment(batch), alone)

    def test_the_network_does_not_wait_for_nuclei_to_be_made(self, files, monkeypatch):
        """The nuclei of the first tile are only made once the network has begun on a tile of the batch after next."""
        plugin = made(files["fast", 3], workers=1, beside="threads")
        begun, maps = [], plugin._maps
        last = threading.Event()

        def counted(picture):
            begun.append(picture)
            if len(begun) == 5:
                last.set()
            return maps(picture)

        def waiting(*task):
            assert last.wait(60), "the network waited"
            return nuclei_of(*task)

        monkeypatch.setattr(plugin, "_maps", counted)
        monkeypatch.setattr(segmenter, "nuclei_of", waiting)
        batches = [np.stack([picture(100, 4, seed) for seed in pair]) for pair in ((0, 1), (2, 3), (4, 5))]
        found = list(plugin.stream(batches))
        monkeypatch.undo()
        for batch, one in zip(batches, found, strict=True):
            assert_array_equal(one.labels, plugin.segment(batch))

    def test_processes_and_threads_make_the_same_nuclei(self, files):
        batch = np.stack([picture(150, 9, seed) for seed in range(3)])
        labels, values = made(files["fast", 3], beside="threads").describe(batch)
        others, told = made(files["fast", 3], beside="processes").describe(batch)
        assert labels.max() > 3
        assert_array_equal(labels, others)
        for one, other in zip(values, told, strict=True):
            assert one.keys() == other.keys() == {"type", "type_share"}
            assert all(np.array_equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize(("precision", "share"), [("fp32", 0.999), ("bf16", 0.99)])
    def test_openvino_finds_the_same_nuclei(self, files, fast, precision, share):
        pytest.importorskip("openvino", reason="needs the openvino extra")
        other = openvino(files["fast", 3], precision)
        pixels = picture()[None]
        expected, found = fast.segment(pixels)[0], other.segment(pixels)[0]
        assert found.max() == expected.max()
        assert ((expected > 0) == (found > 0)).mean() >= share

    def test_bfloat16_on_a_cpu_finds_the_same_nuclei(self, files, fast):
        try:
            other = made(files["fast", 3], precision="bf16")
        except DeviceUnavailable:
            pytest.skip("this processor has no bf16 arithmetic")
        pixels = picture()[None]
        assert other.segment(pixels).max() == fast.segment(pixels).max()


def openvino(path, precision):
    try:
        return made(path, engine="openvino", precision=precision)
    except DeviceUnavailable:
        pytest.skip("this processor has no bf16 arithmetic")


class TestSlide:
    """A picture of several tiles through the whole pipeline, against the nuclei that are known to be there."""

    @pytest.fixture(scope="class")
    @classmethod
    def sample(cls):
        return synthetic_he(shape=(340, 300), nuclei=34, seed=5)

    def count(self, files, sample, tile_px, normalisation):
        plugin = made(files["fast", 0], normalisation=normalisation)
        result = run(sample.source, "identity", plugin, config=config(tile_px))
        truth, found = sample.truth.array, result.labels.read(0, 0, *sample.truth.array.shape)
        pairs, counts = np.unique(np.stack([truth[found > 0], found[found > 0]]), axis=1, return_counts=True)
        most = counts > 0.5 * np.bincount(truth.ravel())[pairs[0]]
        return pairs[0][most & (pairs[0] > 0)], int(found.max())

    @pytest.mark.parametrize("tile_px", [1024, 128])
    def test_fixed_finds_each_nucleus_once_wherever_tiles_meet(self, files, sample, tile_px):
        hit, found = self.count(files, sample, tile_px, "fixed")
        assert len(hit) == len(set(hit)) >= 32
        assert found <= 36

    @pytest.mark.parametrize("tile_px", [1024, 128])
    def test_a_run_tells_the_type_of_each_nucleus(self, files, sample, tile_px):
        nuclei = run(sample.source, "identity", made(files["fast", 3]), config=config(tile_px)).nuclei
        assert len(nuclei) > 25
        assert set(nuclei.features["type"]) == {2.0}
        assert (nuclei.features["type_share"] > 0.5).all()
        assert "type" not in run(sample.source, "identity", made(files["fast", 0])).nuclei.features

    def test_a_run_names_the_file(self, files, sample):
        result = run(sample.source, "identity", made(files["fast", 0]))
        assert "fast0.tar" in str(result.provenance)

    def test_a_random_network_says_something_about_a_real_picture(self, shared, tmp_path):
        torch.manual_seed(0)
        torch.save({"desc": build(Design("fast", 5, 8)).state_dict()}, tmp_path / "random.tar")
        pixels = np.asarray(Pillow.open(next((shared / "data" / "he_monuseg").glob("*1.png"))).convert("RGB"))
        plugin = made(tmp_path / "random.tar")
        for found in plugin.segment_with_types(np.stack([pixels[:300, :300], pixels[-300:, -300:]])):
            check_label_map(found.labels, "HoVer-Net")
            assert len(found.table) <= found.labels.max()


def config(tile_px):
    from stainbridge import RunConfig

    return RunConfig(tile_px=tile_px)


class TestWhatWasTrainedHere:
    def test_its_export_is_a_model(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.torch")
        settings = HoVerNet.Training(slimming=8, mode="fast", types=3)
        learner = HoVerNet.learner(settings, device="cpu", seed=0, mpp=0.5, patch_px=256)
        learner.begin(1, 1, 1)
        labels = np.zeros((1, 256, 256), np.int32)
        labels[0, 100:140, 100:140] = 1
        learner.step(Labelled(picture()[None], labels, labels.astype(np.uint8)))
        exported = learner.export()
        ((name, tensors),) = exported.files.items()
        safetensors.save_file(dict(tensors), tmp_path / name)
        plugin = HoVerNet(HoVerNet.Config(**exported.config), weights={name: tmp_path / name})
        assert plugin.design == Design("fast", 3, 8)
        assert plugin.wants.mpp == 0.5
        check_label_map(plugin.segment(picture()[None])[0], "HoVer-Net")

    @pytest.mark.parametrize("preset", HoVerNet.presets)
    def test_the_settings_of_a_preset_are_settings(self, preset):
        HoVerNet.Training(**HoVerNet.presets[preset].get("learner", {}))


class TestRefused:
    def test_no_file(self):
        with pytest.raises(WeightsUnavailable, match=r"has no network.\nSet path to a checkpoint") as caught:
            HoVerNet()
        assert "--set segmenter.path=FILE" in str(caught.value)

    def test_several_files(self, files):
        given = {path.name: path for path in files.values()}
        with pytest.raises(ConfigError, match=r"one weight file; found fast0.tar, fast3.tar, original0.tar"):
            HoVerNet(weights=given)

    def test_a_path_goes_before_the_registered_file(self, files):
        plugin = HoVerNet(HoVerNet.Config(path=files["fast", 3]), weights={"other.tar": files["original", 0]})
        assert plugin.design.mode == "fast"
        assert list(plugin.weights) == ["fast3.tar"]

    def test_a_file_of_another_mode_or_number_of_types(self, files):
        with pytest.raises(
            ConfigError, match=r"mode 'fast' with 3 types.*\n?.*asked for was mode 'original' with 5 types"
        ):
            made(files["fast", 3], mode="original", types=5)

    def test_names_that_are_not_as_many_as_the_types(self, files):
        with pytest.raises(ConfigError, match=r"type_names has 2 names; 'fast3.tar' has 3 types with background"):
            made(files["fast", 3], type_names=("background", "nucleus"))
        with pytest.raises(ConfigError, match=r"type_names has 2 names; 'fast0.tar' has no types\."):
            made(files["fast", 0], type_names=("background", "nucleus"))
        with pytest.raises(ValueError, match="type_names has 1 names, and types is 3"):
            HoVerNet.Config(types=3, type_names=("background",))

    def test_a_device_or_precision_that_is_not_there(self, files):
        path = files["fast", 3]
        if not torch.cuda.is_available():
            with pytest.raises(DeviceUnavailable, match="Device 'cuda' was asked for"):
                HoVerNet(HoVerNet.Config(path=path), device="cuda")
        with pytest.raises(DeviceUnavailable, match="'fp16' is for CUDA"):
            made(path, precision="fp16")

    @pytest.mark.parametrize(
        ("library", "options", "line"),
        [("cv2", {}, r"stainbridge\[hovernet\]"), ("openvino", {"engine": "openvino"}, r"stainbridge\[openvino\]")],
    )
    def test_a_missing_library_and_how_to_install_it(self, files, monkeypatch, library, options, line):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtra, match=line):
            made(files["fast", 3], **options)

    def test_weights_that_overflow(self, tmp_path):
        network = handmade()
        state = network.state_dict()
        state["decoder.hv.u0.conv.weight"].fill_(3e38)
        torch.save({"desc": state}, tmp_path / "huge.tar")
        plugin = made(tmp_path / "huge.tar")
        with pytest.raises(WeightsCorrupt, match=r"'huge.tar' gives values that are not finite"):
            plugin.segment(picture()[None])


def test_a_picture_without_a_scale_is_not_guessed_at(fast):
    from stainbridge.errors import ScaleUnknown

    with pytest.raises(ScaleUnknown):
        run(Image(picture()), "identity", fast)
