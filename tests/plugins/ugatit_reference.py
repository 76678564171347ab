"""One step of U-GAT-IT written plainly after the description of the original's PyTorch code: a reference for tests."""

import itertools

import torch
from torch import nn


class Reference:
    """Networks by the original's names: genA2B makes B (H&E) of A (IHC); disGA and disLA judge A, disGB and disLB judge B."""

    def __init__(self, networks, *, lr=1e-4, weight_decay=1e-4, iteration=10):
        self.net, self.lr, self.iteration, self.done = networks, lr, iteration, 0
        generators, judges = (
            itertools.chain.from_iterable(networks[name].parameters() for name in names)
            for names in (("genA2B", "genB2A"), ("disGA", "disGB", "disLA", "disLB"))
        )
        self.optim_g = torch.optim.Adam(generators, lr=lr, betas=(0.5, 0.999), weight_decay=weight_decay)
        self.optim_d = torch.optim.Adam(judges, lr=lr, betas=(0.5, 0.999), weight_decay=weight_decay)
        self.mse, self.l1, self.bce = nn.MSELoss(), nn.L1Loss(), nn.BCEWithLogitsLoss()

    def step(self, a, b):
        """Learn from signals (N, 3, H, W); return the sums of the losses of discriminators and of generators."""
        self.done += 1
        if self.done > self.iteration // 2:
            for optimiser in (self.optim_g, self.optim_d):
                optimiser.param_groups[0]["lr"] -= self.lr / (self.iteration // 2)
        return self.judge(a, b).item(), self.generate(a, b).item()

    def judge(self, a, b):
        self.optim_d.zero_grad()
        fakes = {"B": self.net["genA2B"](a)[0], "A": self.net["genB2A"](b)[0]}
        reals = {"A": a, "B": b}
        truly = {name: self.net[name](reals[name[-1]]) for name in ("disGA", "disLA", "disGB", "disLB")}
        falsely = {name: self.net[name](fakes[name[-1]]) for name in ("disGA", "disLA", "disGB", "disLB")}
        loss = 0.0
        for name in truly:
            for output in (0, 1):
                real, fake = truly[name][output], falsely[name][output]
                loss = loss + self.mse(real, torch.ones_like(real)) + self.mse(fake, torch.zeros_like(fake))
        loss.backward()
        self.optim_d.step()
        return loss

    def generate(self, a, b):
        self.optim_g.zero_grad()
        a2b, cam_a2b, _ = self.net["genA2B"](a)
        b2a, cam_b2a, _ = self.net["genB2A"](b)
        a2b2a, _, _ = self.net["genB2A"](a2b)
        b2a2b, _, _ = self.net["genA2B"](b2a)
        a2a, cam_a2a, _ = self.net["genB2A"](a)
        b2b, cam_b2b, _ = self.net["genA2B"](b)
        loss = 10 * (self.l1(a2b2a, a) + self.l1(b2a2b, b)) + 10 * (self.l1(a2a, a) + self.l1(b2b, b))
        for translated, kept in ((cam_b2a, cam_a2a), (cam_a2b, cam_b2b)):
            loss = loss + 1000 * (
                self.bce(translated, torch.ones_like(translated)) + self.bce(kept, torch.zeros_like(kept))
            )
        for name, fake in (("disGA", b2a), ("disLA", b2a), ("disGB", a2b), ("disLB", a2b)):
            patches, logits, _ = self.net[name](fake)
            loss = loss + self.mse(patches, torch.ones_like(patches)) + self.mse(logits, torch.ones_like(logits))
        loss.backward()
        self.optim_g.step()
        for generator in (self.net["genA2B"], self.net["genB2A"]):
            for module in generator.modules():
                if hasattr(module, "rho"):
                    module.rho.data = module.rho.data.clamp(0, 1)
        return loss
