"""A HoVer-Net whose weights were not learned but written down: what is dark in red is nucleus, and its slope tells the way to the centre.

It finds well separated nuclei in H&E, and none on glass, so the plugin can be tested where no published weights are at hand.
"""

from __future__ import annotations

import torch

from stainbridge_plugins.hovernet.network import Design, build

DARK_AT = 0.35
_SHARPNESS = 40.0
_SLOPES = slice(8, 12)
"""Channels of the slopes, beside those of the encoder that are added on the way: right, left, down, up."""


def handmade(mode="fast", types=0):
    """Return the network, an eighth as wide as the original."""
    network = build(Design(mode, types, 8)).eval()
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.fill_(1 - 1e-5)
        elif tensor.ndim == 1 and name.endswith(("bn.weight",)):
            tensor.fill_(1)
        elif "unpool" not in name:
            tensor.zero_()
    _encode(state)
    _decode_distances(state)
    for branch in network.decoder:
        _keep_darkness(state, branch)
    _classify(state, types)
    network.load_state_dict(state)
    return network


def _encode(state):
    """Darkness, 1 less the mean red of 7 x 7 px, in the first channel of every level."""
    state["conv0./.weight"][0, 0] = -1 / 49
    state["conv0.bn.bias"][0] = 1
    for level in ("d0", "d1", "d2"):
        state[f"{level}.shortcut.weight"][0, 0] = 1


def _decode_distances(state):
    """Slopes of the darkness at a quarter of the size, each sign in a channel of its own, smoothed on the way up."""
    conva = state["decoder.hv.u3.conva.weight"]
    side = conva.shape[-1]
    rise, even = torch.linspace(-1, 1, side), torch.ones(side) / side
    across, down = even[:, None] * rise, rise[:, None] * even
    for channel, kernel in enumerate((across, -across, down, -down), start=_SLOPES.start):
        conva[channel, 0] = kernel
    for name in ("u3.convf", "u2.convf"):
        state[f"decoder.hv.{name}.weight"][_SLOPES, _SLOPES, 0, 0] = torch.eye(4)
    smooth = torch.ones(side, side) / side**2
    for channel in range(_SLOPES.start, _SLOPES.stop):
        state["decoder.hv.u2.conva.weight"][channel, channel] = smooth
        state["decoder.hv.u1.conva.weight"][channel - _SLOPES.start + 1, channel] = smooth
    # Dark lies to the right of a left rim: there the distance to the centre is negative.
    out = state["decoder.hv.u0.conv.weight"][:, :, 0, 0]
    out[0, 1:3] = torch.tensor([-3.0, 3.0])
    out[1, 3:5] = torch.tensor([-3.0, 3.0])


def _keep_darkness(state, branch):
    weight = state[f"decoder.{branch}.u1.conva.weight"]
    middle = weight.shape[-1] // 2
    weight[0, 0, middle, middle] = 1


def _classify(state, types):
    state["decoder.np.u0.conv.weight"][1, 0] = _SHARPNESS
    state["decoder.np.u0.conv.bias"][1] = -_SHARPNESS * DARK_AT
    if types:  # the last for the dark, background for the bright
        state["decoder.tp.u0.conv.weight"][-1, 0] = _SHARPNESS
        state["decoder.tp.u0.conv.bias"][-1] = -_SHARPNESS * DARK_AT
