"""One step of CycleGAN written plainly after the description of the original, as a reference for tests and for the benchmark of speed.

Single precision unless the networks are cast, NCHW, `torch.nn.InstanceNorm2d`, one forward pass at a time, and every loss read at once, as
the original does for its log.
"""

import itertools

import numpy as np
import torch
from torch import nn


def with_instance_norm(network):
    """Put `torch.nn.InstanceNorm2d` in the place of every group normalisation of one channel per group; return the network."""
    for name, child in network.named_children():
        if isinstance(child, nn.GroupNorm):
            assert child.num_groups == child.num_channels
            assert not child.affine
            setattr(network, name, nn.InstanceNorm2d(child.num_channels))
        else:
            with_instance_norm(child)
    return network


class Pool:
    """Fifty past pictures; draws `random()`, and `integers(50)` where that is below one half."""

    def __init__(self, size, rng):
        self.size, self.rng, self.kept = size, rng, []

    def query(self, images):
        shown = []
        for image in images.detach():
            if len(self.kept) < self.size:
                self.kept.append(image.clone())
                shown.append(image)
            elif self.rng.random() < 0.5:
                place = self.rng.integers(self.size)
                shown.append(self.kept[place].clone())
                self.kept[place] = image.clone()
            else:
                shown.append(image)
        return torch.stack(shown)


class Reference:
    """G_A: A (IHC) to B (H&E); D_A judges B."""

    def __init__(self, g_a, g_b, d_a, d_b, *, lr=2e-4, identity=0.5, pool_size=50, seed=0):
        self.g_a, self.g_b, self.d_a, self.d_b = networks = [with_instance_norm(one) for one in (g_a, g_b, d_a, d_b)]
        for one in networks:
            one.train()
        self.identity = identity
        self.optimizer_g = torch.optim.Adam(itertools.chain(g_a.parameters(), g_b.parameters()), lr, (0.5, 0.999))
        self.optimizer_d = torch.optim.Adam(itertools.chain(d_a.parameters(), d_b.parameters()), lr, (0.5, 0.999))
        self.pool_a = Pool(pool_size, np.random.default_rng([seed, 0, 0]))
        self.pool_b = Pool(pool_size, np.random.default_rng([seed, 0, 1]))
        self.mse, self.l1 = nn.MSELoss(), nn.L1Loss()

    def gan(self, values, target):
        return self.mse(values, torch.tensor(target, dtype=values.dtype, device=values.device).expand_as(values))

    def step(self, ihc, he):
        """Learn from uint8 (N, H, W, 3); return the weighted losses by the names of our learner."""
        weight = next(self.g_a.parameters())
        a, b = (
            torch.from_numpy(np.ascontiguousarray(one.transpose(0, 3, 1, 2))).to(weight.device, weight.dtype) / 255
            for one in (ihc, he)
        )
        a, b = (a - 0.5) / 0.5, (b - 0.5) / 0.5
        fake_b = self.g_a(a)
        rec_a = self.g_b(fake_b)
        fake_a = self.g_b(b)
        rec_b = self.g_a(fake_a)

        self.freeze(True)
        self.optimizer_g.zero_grad()
        losses = {}
        if self.identity:
            losses["identity_he"] = self.l1(self.g_a(b), b) * 10.0 * self.identity
            losses["identity_ihc"] = self.l1(self.g_b(a), a) * 10.0 * self.identity
        losses["adversarial_he"] = self.gan(self.d_a(fake_b), 1.0)
        losses["adversarial_ihc"] = self.gan(self.d_b(fake_a), 1.0)
        losses["cycle_ihc"] = self.l1(rec_a, a) * 10.0
        losses["cycle_he"] = self.l1(rec_b, b) * 10.0
        sum(losses.values()).backward()
        self.optimizer_g.step()

        self.freeze(False)
        self.optimizer_d.zero_grad()
        shown_b, shown_a = self.pool_b.query(fake_b), self.pool_a.query(fake_a)
        for name, judge, real, shown in (("he", self.d_a, b, shown_b), ("ihc", self.d_b, a, shown_a)):
            loss = (self.gan(judge(real), 1.0) + self.gan(judge(shown), 0.0)) * 0.5
            loss.backward()
            losses[f"discriminator_{name}"] = loss
        self.optimizer_d.step()
        return {name: loss.item() for name, loss in losses.items()}

    def freeze(self, frozen):
        for judge in (self.d_a, self.d_b):
            for parameter in judge.parameters():
                parameter.requires_grad = not frozen
