"""DeepLIIF's options file is text, its settings belong together, and its files are found or named: none of it needs torch."""

import pytest
from pydantic import ValidationError

from stainbridge.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from stainbridge_plugins.deepliif.classifier import DeepLIIFCalls
from stainbridge_plugins.deepliif.files import model_files, needed
from stainbridge_plugins.deepliif.options import Options
from stainbridge_plugins.deepliif.segmenter import DeepLIIF
from stainbridge_plugins.deepliif.settings import NetworkSettings

ALL = ("G1", "G2", "G3", "G4", "G51", "G52", "G53", "G54", "G55")

NAN, INFINITE = float("nan"), float("inf")

WRITTEN = """----------------- Options ---------------
               batch_size: 1                             \t[default: 4]
          checkpoints_dir: C:\\models: old                \t[default: ./checkpoints]
                 input_nc: 3
                    model: DeepLIIF
                     name: __import__('pathlib').Path('{mark}').touch()
                      ngf: 32                            \t[default: 64]
               no_dropout: True                          \t[default: False]
                     norm: batch
                output_nc: 3
                  padding: reflect                       \t[default: zero]
----------------- End -------------------
"""


@pytest.fixture
def read(tmp_path):
    def write_and_read(text):
        path = tmp_path / "train_opt.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Options.read(path)

    return write_and_read


class TestOptions:
    def test_what_decides_the_layers_is_read(self, read):
        assert read(WRITTEN) == Options(ngf=32, dropout=False, padding="reflect")

    def test_an_empty_file_leaves_the_defaults(self, read):
        assert read("") == Options(ngf=64, dropout=True, padding="zero", seg_weights=None)

    @pytest.mark.parametrize(
        "written",
        ["[0.5, 0.0, 0.0, 0.0, 0.5]", "0.5,0,0,0,.5", "0.5 0. 0. 0. 0.5", "[0.5, 0.0, 0.0, 0.0, 0.5]  [default: None]"],
    )
    def test_shares_of_segmentations_are_read(self, read, written):
        assert read(f"seg_weights: {written}\n").seg_weights == (0.5, 0, 0, 0, 0.5)

    @pytest.mark.parametrize("written", ["None", "", "None [default: x]"])
    def test_no_shares_are_none(self, read, written):
        assert read(f"seg_weights: {written}\n").seg_weights is None

    def test_code_where_nobody_looks_is_not_run(self, read, tmp_path):
        mark = tmp_path / "was run"
        read(WRITTEN.format(mark=mark))
        assert not mark.exists()

    @pytest.mark.parametrize(
        "key", ["ngf", "no_dropout", "padding", "norm", "input_nc", "seg_weights", "model", "net_g"]
    )
    @pytest.mark.parametrize(
        "code",
        [
            "__import__('pathlib').Path('{mark}').touch()",
            "(lambda: open('{mark}', 'w'))()",
            "64 if open('{mark}', 'w') else 64",
        ],
    )
    def test_code_in_a_value_that_counts_is_refused_and_not_run(self, read, tmp_path, key, code):
        mark = tmp_path / "was run"
        with pytest.raises(WeightsCorrupt, match=rf"says {key}: .*needed is .*\n.*nothing in it is run"):
            read(f"{key}: {code.format(mark=mark)}\n")
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("line", "wanted"),
        [
            ("norm: instance", "'batch': the networks here have batch normalisation"),
            ("net_gs: unet_256", "'unet_512'"),
            ("net_g: ['resnet_9blocks', 'unet_512']", "'resnet_9blocks'"),
            ("model: SDG", "'DeepLIIF'"),
            ("input_nc: 1", "'3'"),
            ("input_no: 2", "'1': the networks here take one picture"),
            ("modalities_no: 3", "'4': there are four virtual stains here"),
            ("modalities_no: 5  \t[default: 4]", "'4': there are four virtual stains here"),
            ("targets_no: 4", "'5': there are four virtual stains and one segmentation"),
            ("seg_gen: False", "'True': nuclei are read from a segmentation, which such a model does not make"),
            ("seg_no: 0", "'1': there is one segmentation here"),
            ("ngf: 0", "a number of channels"),
            ("ngf: ٦٤", "a number of channels"),
            ("padding: circular", "one of zero, reflect, replicate"),
            ("seg_weights: [1, 1, 0, 0, 0]", "five shares with the sum 1"),
            ("seg_weights: [0.5, 0.5]", "five shares"),
            ("seg_weights: [1e0, 0, 0, 0, 0]", "five shares"),
        ],
    )
    def test_other_networks_are_refused_with_what_is_needed(self, read, line, wanted):
        with pytest.raises(WeightsCorrupt) as caught:
            read(line)
        assert wanted in str(caught.value)

    def test_what_says_that_they_are_the_networks_of_deepliif_is_taken(self, read):
        lines = ("modalities_no: 4", "seg_gen: True", "seg_no: 1", "input_no: 1", "targets_no: 5  \t[default: 5]")
        assert read("\n".join(lines)) == Options()

    def test_an_older_key_counts_only_where_the_newer_is_not_there(self, read):
        assert read("targets_no: 1\nmodalities_no: 4\n") == Options()

    def test_keys_of_the_training_do_not_count(self, read):
        assert read("net_d: n_layers\nnet_ds: n_layers\nbatch_size: 7\nn_epochs: 3\noptimizer: sgd\n") == Options()

    @pytest.mark.parametrize("data", [b"\xff\xfe\x00\x01", bytes(range(256)) * 40])
    def test_bytes_that_are_no_text_hold_no_options(self, read, data):
        assert read(data) == Options()

    def test_a_file_that_is_too_long_is_not_read(self, read):
        with pytest.raises(WeightsCorrupt, match="longer than an options file"):
            read(b"x" * (2 << 20))


class TestShares:
    def test_each_version_has_its_own(self):
        assert NetworkSettings().shares(None) == (0.25, 0.25, 0.15, 0.25, 0.10)
        assert NetworkSettings(version="current").shares(None) == (0.2,) * 5

    def test_those_of_the_model_hold_for_current_alone_and_those_that_are_set_always(self):
        of_the_model = (0.5, 0, 0, 0, 0.5)
        assert NetworkSettings().shares(of_the_model) == (0.25, 0.25, 0.15, 0.25, 0.10)
        assert NetworkSettings(version="current").shares(of_the_model) == of_the_model
        assert NetworkSettings(version="current", seg_weights=(1, 0, 0, 0, 0)).shares(of_the_model) == (1, 0, 0, 0, 0)

    def test_networks_without_a_share_are_not_needed(self):
        assert list(needed((0.5, 0, 0, 0, 0.5))) == ["G4", "G51", "G55"]
        assert sorted(needed((0.2,) * 5)) == sorted(ALL)


class TestSettings:
    @pytest.mark.parametrize(
        "shares",
        [(0.5, 0.5, 0.5, 0, 0), (-0.5, 1.5, 0, 0, 0), (NAN,) * 5, (1, 0, 0, 0, NAN), (INFINITE, 0, 0, 0, -INFINITE)],
    )
    def test_shares_must_be_shares(self, shares):
        with pytest.raises(ValidationError, match="five shares, none negative, with the sum 1"):
            NetworkSettings(seg_weights=shares)

    @pytest.mark.parametrize(
        ("plugin", "settings", "belongs"),
        [
            (DeepLIIF, {"version": "current", "reading": "refined"}, "1.1.2"),
            (DeepLIIF, {"size_upper_px": 500}, "current"),
            (DeepLIIFCalls, {"marker_thresh": 100}, "current"),
            (DeepLIIFCalls, {"version": "current", "marker_thresh": 300}, "0..255"),
            (DeepLIIF, {"seg_thresh": 300}, "at most 254"),
        ],
    )
    def test_settings_of_another_version_are_refused(self, plugin, settings, belongs):
        with pytest.raises(ValidationError, match=belongs):
            plugin.Config(**settings)


class TestFiles:
    def find(self, settings, weights=None):
        return model_files(settings, weights or {}, "segmenter 'deepliif'")

    def fill(self, folder, names, pattern="latest_net_{}.pth"):
        for name in names:
            (folder / pattern.format(name)).write_bytes(b"")
        return NetworkSettings(path=folder)

    def test_without_a_folder_and_files_it_says_where_to_get_them(self):
        with pytest.raises(WeightsUnavailable, match=r"no networks: .*\n.*4751737.*--set segmenter.path=FOLDER"):
            self.find(NetworkSettings())

    @pytest.mark.parametrize(("name", "found"), [("absent", "is not there"), ("file", "is a file")])
    def test_a_path_that_is_no_folder_is_named(self, tmp_path, name, found):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=f"must be a folder .*{name} {found}"):
            self.find(NetworkSettings(path=tmp_path / name))

    def test_missing_files_are_named(self, tmp_path):
        settings = self.fill(tmp_path, [name for name in ALL if name not in ("G3", "G54")])
        with pytest.raises(
            WeightsUnavailable, match=r"needs 9 networks; missing in .*: latest_net_G3.pth, latest_net_G54.pth\."
        ):
            self.find(settings)

    def test_missing_torchscript_files_are_named_where_the_others_are_torchscript(self, tmp_path):
        settings = self.fill(tmp_path, ALL[:-1], "{}.pt")
        with pytest.raises(WeightsUnavailable, match=r"missing in .*: G55\.pt\."):
            self.find(settings)

    def test_checkpoints_go_before_torchscript_and_the_options_file_is_among_the_files(self, tmp_path):
        self.fill(tmp_path, ALL, "{}.pt")
        settings = self.fill(tmp_path, ALL)
        (tmp_path / "train_opt.txt").write_text("ngf: 8\n")
        files, shares = self.find(settings)
        assert files.kind == "checkpoint"
        assert files.options.ngf == 8
        assert set(files.by_name) == {"train_opt.txt", *(f"latest_net_{name}.pth" for name in ALL)}
        assert shares == (0.25, 0.25, 0.15, 0.25, 0.10)

    def test_only_what_the_shares_need_must_be_there(self, tmp_path):
        settings = self.fill(tmp_path, ["G51"]).model_copy(update={"seg_weights": (1, 0, 0, 0, 0)})
        assert list(self.find(settings)[0].by_network) == ["G51"]

    def test_files_of_the_registry_will_do(self, tmp_path):
        self.fill(tmp_path, ALL, "{}.pt")
        files, _ = self.find(NetworkSettings(), {f"{name}.pt": tmp_path / f"{name}.pt" for name in ALL})
        assert files.kind == "torchscript"
