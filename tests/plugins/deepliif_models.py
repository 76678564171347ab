"""Small DeepLIIF models for tests: nine networks of 2 channels, of which G51 colours brown red and blue blue."""

import torch

from stainbridge_plugins.deepliif.files import SEGMENTATIONS
from stainbridge_plugins.deepliif.networks import modality_generator, seg_generator

NGF = 2
MODALITIES = ("G1", "G2", "G3", "G4")
OPTIONS = f"----- Options -----\n ngf: {NGF}  \t[default: 64]\n no_dropout: False\n norm: batch\n padding: zero\n----- End -----\n"

FROM_IHC = (1.0, 0.0, 0.0, 0.0, 0.0)
"""Shares with which the sum is what G51 makes."""
FEWER = (0.5, 0.0, 0.0, 0.0, 0.5)
"""Shares that need G4, G51 and G55 alone."""


def random_network(name, *, seed=0, own_statistics=True):
    """A network with weights as training starts from, but with statistics that are not the neutral ones."""
    torch.manual_seed(seed + int(name[1:]))
    make = seg_generator if name in SEGMENTATIONS else modality_generator
    network = make(ngf=NGF, own_statistics=own_statistics)
    for key, buffer in network.named_buffers():
        buffer.copy_(torch.rand(buffer.shape) + (0.5 if key.endswith("var") else 0))
    return network.eval()


def colour_network():
    """A segmentation network that looks at 2 x 2 px: red where red exceeds blue, blue where blue exceeds red, never an outline."""
    network = random_network("G51")
    with torch.no_grad():
        first, last = network.model.model[0], network.model.model[3]
        for weight in (first.weight, last.weight, last.bias):
            weight.zero_()
        for feature, (red, blue) in enumerate(((1, -1), (-1, 1))):
            first.weight[feature, 0, 1:3, 1:3], first.weight[feature, 2, 1:3, 1:3] = red / 4, blue / 4
        last.weight[0, 0, 1:3, 1:3] = last.weight[1, 2, 1:3, 1:3] = 20
        last.bias.fill_(-3)
    return network


def as_saved(network):
    """What the original saves: with counters of trained batches beside the statistics."""
    state = {}
    for key, tensor in network.state_dict().items():
        state[key] = tensor
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(1000)
    return state


def write_model(folder):
    """Write a whole model as checkpoints; return the folder."""
    for name in (*MODALITIES, *SEGMENTATIONS):
        network = colour_network() if name == "G51" else random_network(name)
        torch.save(as_saved(network), folder / f"latest_net_{name}.pth")
    (folder / "train_opt.txt").write_text(OPTIONS)
    return folder
