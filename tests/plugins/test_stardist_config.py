"""What StarDist says without its libraries: settings, files, the network's design, and weights that do not fit."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from stainbridge.errors import ConfigError, MissingExtra, WeightsCorrupt, WeightsUnavailable
from stainbridge_plugins.stardist import keras_weights
from stainbridge_plugins.stardist.design import Design, layers
from stainbridge_plugins.stardist.files import model_files
from stainbridge_plugins.stardist.instances import without_gaps
from stainbridge_plugins.stardist.scaling import Scaling
from stainbridge_plugins.stardist.segmenter import StarDist

HE = {
    "n_dim": 2,
    "backbone": "unet",
    "n_channel_in": 3,
    "n_rays": 32,
    "grid": [2, 2],
    "unet_n_depth": 3,
    "train_epochs": 200,
}
SMALL = {
    "n_channel_in": 1,
    "n_rays": 4,
    "grid": [1, 1],
    "unet_n_depth": 1,
    "unet_n_filter_base": 2,
    "net_conv_after_unet": 3,
}
GREY = Scaling(channels=1, grey="inverted", percentiles=(1, 99.8), jointly=True, least_span=25)
RGB3 = Scaling(channels=3, grey="inverted", percentiles=(1, 99.8), jointly=True, least_span=25)


def folder(path, config=HE, **files):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def arrays(design, rename=str):
    """Return the data sets that Keras 2 would save for a design."""
    found = {}
    for layer in layers(design):
        name = rename(layer.name)
        found[f"{name}/{name}/kernel:0"] = np.zeros(layer.shape, np.float32)
        found[f"{name}/{name}/bias:0"] = np.zeros(layer.shape[3], np.float32)
    return found


@pytest.fixture
def read(monkeypatch, tmp_path):
    def call(design, found):
        monkeypatch.setattr(keras_weights, "read_h5", lambda path: found)
        return keras_weights.read_keras(tmp_path / "weights_best.h5", design)

    return call


def test_percentiles_must_be_in_order():
    with pytest.raises(ValidationError, match="pmin must be below pmax"):
        StarDist.Config(pmin=60, pmax=50)


def test_tensorflow_is_not_asked_for_half_precision():
    with pytest.raises(ValidationError, match="tensorflow backend computes in fp32 only"):
        StarDist.Config(backend="tensorflow", precision="fp16")


def test_the_module_is_imported_without_its_libraries():
    code = (
        "import sys, stainbridge_plugins.stardist as s; s.register_segmenters(); "
        "print(sorted({'torch', 'stardist', 'tensorflow', 'h5py', 'skimage'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_a_missing_stardist_names_the_pip_line(backend, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "stardist", None)
    model = folder(tmp_path / "model", weights_best__h5="")
    with pytest.raises(MissingExtra) as caught:
        StarDist(StarDist.Config(model=str(model), backend=backend))
    assert "stardist needs stardist, which is not installed" in str(caught.value)
    assert "pip install 'stainbridge[stardist]'" in str(caught.value)


def test_a_missing_torch_names_the_pip_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "stardist", type(sys)("stardist"))
    monkeypatch.setitem(sys.modules, "torch", None)
    model = folder(tmp_path / "model", weights_best__h5="")
    with pytest.raises(MissingExtra, match=r"stardist needs torch.*\nRun: pip install 'stainbridge\[torch\]'"):
        StarDist(StarDist.Config(model=str(model)))


def test_a_missing_tensorflow_names_the_pip_line(monkeypatch):
    from stainbridge_plugins.stardist.tensorflow_engine import _place

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        MissingExtra, match=r"'tensorflow' needs tensorflow.*\nRun: pip install 'stainbridge\[stardist\]'"
    ):
        _place("cpu")


def test_without_weights_it_says_where_the_authors_model_is():
    with pytest.raises(WeightsUnavailable) as caught:
        StarDist()
    message = str(caught.value)
    assert "asked for without weights" in message
    assert "python_2D_versatile_he.zip" in message
    assert "--set segmenter.model=FOLDER" in message


def test_a_path_that_is_missing_is_named(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"no StarDist model at .*nowhere"):
        model_files(str(tmp_path / "nowhere"), {})


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(ConfigError, match=r"model\.onnx is not a StarDist model"):
        model_files(str(tmp_path / "model.onnx"), {})


def test_weights_without_their_config_are_refused(tmp_path):
    (tmp_path / "w.h5").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"config\.json is missing: 'w\.h5' needs it"):
        model_files(str(tmp_path / "w.h5"), {})


def test_the_best_weights_of_a_folder_are_taken(tmp_path):
    files = model_files(str(folder(tmp_path / "m", weights_last__h5="", weights_best__h5="", weights_now__h5="")), {})
    assert files.weights.name == "weights_best.h5"


def test_a_choice_between_unknown_weights_is_left_to_the_user(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"found a\.h5, b\.h5.\nOr name the \.h5 itself"):
        model_files(str(folder(tmp_path / "m", a__h5="", b__h5="")), {})


def test_thresholds_come_from_their_file(tmp_path):
    model = folder(tmp_path / "m", weights_best__h5="", thresholds__json='{"prob": 0.692478, "nms": 0.3}')
    assert model_files(str(model), {}).read_thresholds() == (0.692478, 0.3)


def test_without_thresholds_stardists_own_defaults_hold(tmp_path):
    assert model_files(str(folder(tmp_path / "m", weights_best__h5="")), {}).read_thresholds() == (0.5, 0.4)


@pytest.mark.parametrize("text", ['{"prob": 1.5, "nms": 0.3}', '{"prob": 0.5}', "[]", "no json"])
def test_thresholds_that_are_none_are_refused(text, tmp_path):
    model = folder(tmp_path / "m", weights_best__h5="", thresholds__json=text)
    with pytest.raises(WeightsCorrupt, match=r"thresholds\.json"):
        model_files(str(model), {}).read_thresholds()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_dim": 3}, "n_dim: Input should be 2; found 3"),
        ({"backbone": "resnet"}, "backbone: .*found 'resnet'"),
        ({"grid": [3, 2]}, "grid: .*powers of 2"),
        ({"unet_n_depth": 10**9}, "unet_n_depth: .*less than or equal to 8"),
        ({"n_rays": None}, "n_rays"),
    ],
)
def test_a_config_of_something_else_is_refused(change, message, tmp_path):
    with pytest.raises(WeightsCorrupt, match=message):
        Design.read(folder(tmp_path / "m", {**HE, **change}) / "config.json")


def test_a_config_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(WeightsCorrupt, match="does not describe a StarDist2D network"):
        Design.read(folder(tmp_path / "m", "{") / "config.json")


def test_the_network_of_2d_versatile_he_has_its_1425761_parameters():
    found = layers(Design.model_validate(HE))
    assert sum(np.prod(layer.shape) + layer.shape[3] for layer in found) == 1_425_761
    assert [layer.name for layer in found][:4] == ["conv2d 0", "conv2d 1", "down_level_0_no_0", "down_level_0_no_1"]
    assert [layer.name for layer in found if "middle" in layer.name] == ["middle_0", "middle_2"]


def test_its_reach_is_counted_by_hand():
    design = Design.model_validate(HE)
    # Two convolutions each at 1, 2, 4, 8 and 16 px, then at 8, 4 and 2, and one more at 2.
    assert design.reach_px == 2 * (1 + 2 + 4 + 8 + 16 + 8 + 4 + 2) + 2
    assert design.multiple_of == (16, 16)


def test_numbered_layers_are_taken_in_the_order_of_their_numbers(read):
    design = Design.model_validate({**SMALL, "grid": [2, 2]})
    found = arrays(design, lambda name: {"conv2d 0": "conv2d_9", "conv2d 1": "conv2d_10"}.get(name, name))
    found["conv2d_9/conv2d_9/bias:0"][:] = 9
    found["conv2d_10/conv2d_10/bias:0"][:] = 10
    tensors = read(design, found)
    assert (tensors["conv2d 0"].bias[0], tensors["conv2d 1"].bias[0]) == (9, 10)


def test_kernels_are_turned_to_torchs_order(read):
    design = Design.model_validate(SMALL)
    found = arrays(design)
    found["features/features/kernel:0"][0, 2, 1, 2] = 1
    kernel = read(design, found)["features"].kernel
    assert kernel.shape == (3, 2, 3, 3)
    assert kernel[2, 1, 0, 2] == 1
    assert kernel.sum() == 1


def test_batch_normalisation_becomes_part_of_the_convolution(read):
    design = Design.model_validate({**SMALL, "unet_batch_norm": True, "unet_n_conv_per_depth": 1})
    found = arrays(design)
    for number in range(3):
        place = f"batch_normalization_{number}/batch_normalization_{number}"
        for kind, value in {"gamma": 3, "beta": 5, "moving_mean": 7, "moving_variance": 4 - 1e-3}.items():
            found[f"{place}/{kind}:0"] = np.full(2, value, np.float32)
    found["middle_1/middle_1/bias:0"][:] = 11
    found["middle_1/middle_1/kernel:0"][:] = 2
    middle = read(design, found)["middle_1"]
    assert middle.kernel == pytest.approx(2 * 3 / 2)
    assert middle.bias == pytest.approx((11 - 7) * 3 / 2 + 5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda found: found.pop("prob/prob/kernel:0"), "layer 'prob' has no kernel; found bias"),
        (lambda found: [found.pop(f"dist/dist/{kind}:0") for kind in ("kernel", "bias")], "it has no layer 'dist'"),
        (
            lambda found: found.update({"dist/dist/kernel:0": np.zeros((1, 1, 3, 64), np.float32)}),
            r"kernel of layer 'dist' is \(1, 1, 3, 64\) instead of \(1, 1, 3, 4\)",
        ),
        (
            lambda found: found.update({"dense/dense/kernel:0": np.zeros((2, 2), np.float32)}),
            "it has a layer 'dense', which the network has not",
        ),
    ],
)
def test_weights_of_another_network_name_the_first_layer_that_does_not_fit(spoil, message, read):
    design = Design.model_validate(SMALL)
    found = arrays(design)
    spoil(found)
    with pytest.raises(WeightsCorrupt, match=message) as caught:
        read(design, found)
    assert "'weights_best.h5' does not fit its config.json" in str(caught.value)


def test_dark_nuclei_become_bright_for_a_model_of_one_channel():
    pixels = np.array([[[30, 60, 90], [255, 255, 255]]], np.uint8)
    assert GREY.picture(pixels).tolist() == [[[195.0], [0.0]]]


def test_percentiles_become_0_and_1():
    ramp = np.arange(1001, dtype=np.float64) * 0.2
    pixels = np.repeat(np.rint(ramp).astype(np.uint8)[None, :, None], 3, axis=2)
    limits = RGB3.limits(pixels)
    assert (limits.low.item(), limits.high.item()) == (2.0, 200.0)
    assert RGB3.apply(pixels, limits)[0, 10, 0] == 0
    assert RGB3.apply(pixels, limits)[0, 1000, 0] == 1


def test_channels_are_stretched_together_or_each_alone():
    pixels = np.random.default_rng(0).integers(0, (60, 120, 240), (64, 64, 3), np.uint8)
    alone = Scaling(channels=3, grey="mean", percentiles=(0, 100), jointly=False, least_span=0)
    together = Scaling(channels=3, grey="mean", percentiles=(0, 100), jointly=True, least_span=0)
    assert alone.limits(pixels).high.ravel().tolist() == [59, 119, 239]
    assert together.limits(pixels).high.ravel().tolist() == [239]


def test_the_noise_of_glass_is_not_stretched_to_tissue():
    glass = np.random.default_rng(0).integers(230, 240, (64, 64, 3)).astype(np.uint8)
    stretched = RGB3.apply(glass, RGB3.limits(glass))
    assert np.ptp(stretched) <= 9 / 25 + 1e-6
    assert RGB3.is_flat(glass)
    glass[10, 10] = 200
    assert not RGB3.is_flat(glass)


def test_covered_objects_leave_no_gap():
    labels = np.array([[0, 5, 5], [2, 0, 9]], np.int32)
    assert without_gaps(labels).tolist() == [[0, 2, 2], [1, 0, 3]]
    assert without_gaps(np.zeros((2, 2), np.int32)).max() == 0
