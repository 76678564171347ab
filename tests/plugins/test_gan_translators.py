"""CycleGAN and U-GAT-IT as translators: any picture, no seams where that is asked for, and errors that say what to do."""

import subprocess
import sys

import numpy as np
import pytest

from stainbridge import Image, RunConfig, Trainable, Wants, run
from stainbridge.config import Choice
from stainbridge.errors import ConfigError, ContractViolation, DeviceUnavailable, WeightsCorrupt, WeightsUnavailable
from stainbridge.preservation import seam_ratio
from stainbridge.stages import calibrated
from stainbridge.testing import run_checks
from stainbridge.torchkit import devices
from stainbridge.virtual import Translated
from stainbridge_plugins.cyclegan.translator import CycleGAN
from stainbridge_plugins.ugatit.translator import UGATIT

torch = pytest.importorskip("torch", reason="needs torch: pip install 'stainbridge[torch]'")

pytestmark = pytest.mark.heavy

KINDS = ("cyclegan", "ugatit light", "ugatit full")


def smooth(network, seed=0):
    """Fill a generator with random mixtures of channels and kernels that average: a translation in which a seam stands out."""
    draw = torch.Generator().manual_seed(seed)
    for tensor in network.parameters():
        if tensor.ndim in (2, 4) and tensor.shape[:2] != (1, 1):
            mixture = torch.randn(tensor.shape[:2], generator=draw) * (1.4 / tensor.shape[1]) ** 0.5
            area = tensor[0, 0].numel()
            tensor.data = (
                (mixture.reshape(*mixture.shape, *[1] * (tensor.ndim - 2)) / area).expand_as(tensor).contiguous()
            )
    return network


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Small generators as a training exports them, by kind."""
    from safetensors.torch import save_file

    from stainbridge_plugins.cyclegan import networks as cyclegan
    from stainbridge_plugins.ugatit import networks as ugatit

    made = {
        "cyclegan": cyclegan.generator(channels=8, blocks=2),
        "ugatit light": ugatit.generator(channels=8, blocks=1, light=True),
        "ugatit full": ugatit.generator(channels=8, blocks=1, size=64),
    }
    folder, found = tmp_path_factory.mktemp("generators"), {}
    for kind, network in made.items():
        found[kind] = folder / kind / "generator.safetensors"
        found[kind].parent.mkdir()
        save_file(smooth(network).state_dict(), found[kind])
    return found


@pytest.fixture
def make(files):
    def made(kind, **settings):
        cls = CycleGAN if kind == "cyclegan" else UGATIT
        return cls(cls.Config(**{"path": files[kind], "precision": "fp32", **settings}))

    return made


@pytest.fixture(scope="session")
def ihc():
    """A real IHC picture, uint8 (512, 512, 3)."""
    from skimage.data import immunohistochemistry

    return immunohistochemistry()


def translated(translator, pixels, core_px=None):
    source = Image(pixels, mpp=0.25)
    he = Translated(source, calibrated(translator, source), core_px=core_px)
    return he.read(0, 0, *he.shape), he


@pytest.fixture(scope="session")
def whole(files, ihc):
    """The picture translated in one piece, by kind."""
    found = {}
    for kind in KINDS:
        cls = CycleGAN if kind == "cyclegan" else UGATIT
        plugin = cls(cls.Config(path=files[kind], precision="fp32", statistics="slide"))
        found[kind], _ = translated(plugin, ihc, core_px=512)
    return found


class TestContract:
    @pytest.mark.parametrize("statistics", ["tile", "slide"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_check_of_the_kit_holds(self, make, kind, statistics):
        settings = {"statistics": statistics} if kind == "ugatit full" else {"statistics": statistics, "tile_px": 64}
        plugin = make(kind, **settings)
        reports = {report.name: report for report in run_checks(plugin)}
        window = reports.pop("does_not_depend_on_the_window")
        assert [report for report in reports.values() if report.outcome != "passed"] == []
        # Failing is in the nature of statistics of the tile, and of those only.
        assert (window.outcome != "expected failure") == (statistics == "slide"), window
        assert window.outcome != "failed"

    @pytest.mark.parametrize("cls", [CycleGAN, UGATIT])
    def test_it_can_be_trained(self, cls):
        assert isinstance(cls, Trainable)
        assert cls.learns_from == "unpaired"
        assert "paper" in cls.presets
        learner = cls.learner(
            cls.Training(channels=4, blocks=1), device="cpu", seed=0, mpp=0.5, patch_px=96 if cls is UGATIT else 32
        )
        exported = learner.export()
        assert set(exported.files) == {"generator.safetensors"}
        assert cls.Config(**exported.config).mpp == 0.5

    def test_modules_of_the_plugins_come_without_torch(self):
        code = (
            "import sys, stainbridge_plugins.cyclegan.translator, stainbridge_plugins.ugatit.translator\n"
            "assert not {'torch', 'openvino', 'safetensors'} & set(sys.modules), 'heavy libraries were imported'"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


class TestTiles:
    def test_by_default_tiles_are_those_of_training(self, make):
        assert make("cyclegan").wants == Wants("ihc", 0.25, tile=256, halo=16, multiple_of=4, blend=16)

    def test_what_is_set_is_wanted(self, make):
        plugin = make("ugatit light", mpp=0.5, tile_px=128, halo_px=24, blend_px=8)
        assert plugin.wants == Wants("ihc", 0.5, tile=128, halo=24, multiple_of=4, blend=8)
        assert make("cyclegan", tile_px=None, blend_px=0).wants == Wants("ihc", 0.25, halo=16, multiple_of=4)

    @pytest.mark.parametrize(("kind", "halo"), [("cyclegan", 28), ("ugatit light", 32), ("ugatit full", 32)])
    def test_with_statistics_of_the_slide_any_tile_is_taken_with_a_halo_of_the_networks_reach(self, make, kind, halo):
        assert make(kind, statistics="slide").wants == Wants("ihc", 0.25, halo=halo, multiple_of=4)

    def test_a_full_ugatit_takes_the_size_of_its_training(self, make):
        assert make("ugatit full").wants.tile == 64
        assert make("ugatit full", tile_px=64).wants.tile == 64
        for other in (128, None):
            with pytest.raises(
                ConfigError, match=rf"'ugatit' was trained on tiles of 64 px .* tile_px = {other}\.\n.*'slide'"
            ):
                make("ugatit full", tile_px=other)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(40, 50), (64, 64), (101, 83)])
    def test_pictures_smaller_than_a_tile_and_of_odd_sides_keep_their_size(self, make, ihc, kind, shape):
        pixels = np.ascontiguousarray(ihc[: shape[0], : shape[1]])
        for statistics in ("tile", "slide"):
            he, _ = translated(make(kind, statistics=statistics), pixels)
            assert he.shape == pixels.shape
            assert he.std() > 5

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 4), (5, 1), (4, 700), (700, 4)])
    def test_pictures_of_a_few_pixels_are_translated_in_their_size(self, make, ihc, kind, shape):
        pixels = np.ascontiguousarray(np.tile(ihc, (2, 2, 1))[: shape[0], : shape[1]])
        for statistics in ("tile", "slide"):
            he, _ = translated(make(kind, statistics=statistics), pixels)
            assert he.shape == pixels.shape

    def test_a_full_ugatit_shown_another_size_uncalibrated_says_so(self, make, ihc):
        with pytest.raises(ContractViolation, match="takes pictures of 64 x 64 px; found 96 x 96"):
            make("ugatit full", statistics="slide").translate(ihc[None, :96, :96])

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"tile_px": 250}, r"tile must exceed .* multiple of 4; found 250"),
            ({"tile_px": 64, "halo_px": 32}, r"tile must exceed twice the halo \(32\)"),
            ({"halo_px": 8}, r"blend must be 0\.\.halo"),
        ],
    )
    def test_tiles_that_do_not_go_together_are_refused_when_it_is_made(self, make, settings, told):
        with pytest.raises(ConfigError, match=told):
            make("cyclegan", **settings)


class TestSeams:
    """On a real picture, held against the translation in one piece."""

    @pytest.mark.parametrize("precision", ["fp32", "auto"])
    @pytest.mark.parametrize("core_px", [256, 128])
    @pytest.mark.parametrize("kind", KINDS)
    def test_with_statistics_of_the_slide_there_are_none(self, make, ihc, whole, kind, core_px, precision):
        plugin = make(kind, statistics="slide", precision=precision)
        in_one = whole[kind] if precision == "fp32" else translated(plugin, ihc, core_px=512)[0]
        cut, he = translated(plugin, ihc, core_px=core_px)
        assert he.core_px == core_px
        assert np.abs(cut.astype(int) - in_one).max() <= 1
        assert seam_ratio(cut, step_px=core_px) / seam_ratio(in_one, step_px=core_px) <= 1.05

    @pytest.mark.parametrize("kind", KINDS)
    def test_with_statistics_of_the_tile_they_show_and_blending_hides_them(self, make, ihc, whole, kind):
        def seams(**settings):
            tile = {} if kind == "ugatit full" else {"tile_px": 128}
            cut, he = translated(make(kind, **tile, **settings), ihc)
            return seam_ratio(cut, step_px=he.core_px) / seam_ratio(whole[kind], step_px=he.core_px)

        hard, blended = seams(halo_px=0, blend_px=0), seams(halo_px=16, blend_px=16)
        assert hard > 1.05
        assert seams(halo_px=16, blend_px=0) > 1.05
        assert blended < min(hard, 1.2)

    def test_a_picture_with_sides_between_multiples_has_none_either(self, make, ihc):
        pixels, plugin = np.ascontiguousarray(ihc[:301, :223]), make("cyclegan", statistics="slide")
        in_one, _ = translated(plugin, pixels, core_px=512)
        cut, _ = translated(plugin, pixels, core_px=101)
        assert np.abs(cut.astype(int) - in_one).max() <= 1


class TestWeights:
    @pytest.mark.parametrize("cls", [CycleGAN, UGATIT])
    def test_without_a_generator_it_tells_how_to_get_one(self, cls):
        with pytest.raises(WeightsUnavailable) as raised:
            cls()
        told = str(raised.value)
        assert "none is published" in told
        assert f"stainbridge train {cls.name} --ihc" in told
        assert "--set translator.path=FILE" in told

    def test_a_registered_file_is_taken_and_a_path_goes_over_it(self, files, make, ihc):
        batch = ihc[None, :64, :64]
        expected = make("cyclegan").translate(batch)
        registered = CycleGAN(CycleGAN.Config(precision="fp32"), weights={"generator.safetensors": files["cyclegan"]})
        assert np.array_equal(registered.translate(batch), expected)
        named = CycleGAN(
            CycleGAN.Config(precision="fp32", path=files["cyclegan"]),
            weights={"generator.safetensors": files["ugatit light"]},
        )
        assert named.weights == {"generator.safetensors": files["cyclegan"]}

    def test_a_checkpoint_of_the_other_method_is_refused(self, files):
        with pytest.raises(WeightsCorrupt, match="looks like a generator of U-GAT-IT"):
            CycleGAN(CycleGAN.Config(path=files["ugatit light"]))
        with pytest.raises(WeightsCorrupt, match="looks like a generator of CycleGAN"):
            UGATIT(UGATIT.Config(path=files["cyclegan"]))

    def test_of_a_file_with_both_directions_the_one_that_is_asked_for_is_taken(self, tmp_path, ihc):
        from stainbridge_plugins.ugatit.networks import generator

        both = {
            way: smooth(generator(channels=4, blocks=1, light=True), seed) for seed, way in enumerate(("A2B", "B2A"))
        }
        torch.save({f"gen{way}": network.state_dict() for way, network in both.items()}, tmp_path / "params.pt")
        batch = ihc[None, :64, :64]
        found = {
            way: UGATIT(UGATIT.Config(path=tmp_path / "params.pt", direction=way)).translate(batch) for way in both
        }
        assert not np.array_equal(found["A2B"], found["B2A"])
        torch.save(both["B2A"].state_dict(), tmp_path / "alone.pt")
        alone = UGATIT(UGATIT.Config(path=tmp_path / "alone.pt")).translate(batch)
        assert np.array_equal(found["B2A"], alone)


class TestDeviceAndPrecision:
    @pytest.mark.parametrize("cls", [CycleGAN, UGATIT])
    def test_a_device_that_is_absent_is_an_error(self, cls):
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
        with pytest.raises(DeviceUnavailable, match="--device cpu"):
            cls(device="cuda")

    def test_what_a_cpu_does_not_compute_in_is_refused_before_any_weights_are_asked_for(self, monkeypatch):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)
        for precision in ("fp16", "bf16"):
            with pytest.raises(DeviceUnavailable, match=rf"'{precision}' .*\nSet precision = 'fp32'"):
                CycleGAN(CycleGAN.Config(precision=precision))

    @pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
    def test_the_result_tells_the_precision_that_was_used(self, monkeypatch, files, ihc, has, chosen):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has)
        choice = Choice("cyclegan", {"path": str(files["cyclegan"]), "tile_px": 64})
        config = RunConfig(translator=choice, segmenter="baseline", classifier="dab", bootstraps=10)
        result = run(np.ascontiguousarray(ihc[:96, :96]), config=config, mpp=0.25)
        record = result.provenance["plugins"]["translator"]
        assert record["config"]["precision"] == "auto"
        assert record["fitted"]["precision"] == chosen
        assert record["weights"][0]["file"] == "generator.safetensors"

    def test_a_precision_that_was_asked_for_is_not_told_twice(self, make, ihc):
        plugin = make("cyclegan")
        assert plugin.calibrate(ihc[None, :64, :64]).config == plugin.config

    @pytest.mark.skipif(not devices.cpu_has_bf16(), reason="this processor has no bf16 arithmetic")
    @pytest.mark.parametrize("kind", KINDS)
    def test_bf16_is_within_a_few_levels(self, make, ihc, kind):
        batch = ihc[None, :64, :64]
        single, mixed = (make(kind, precision=one).translate(batch).astype(int) for one in ("fp32", "bf16"))
        assert 0 < np.abs(single - mixed).mean() < 2
