"""Problems whose functions or sizes change from stage to stage, made at random or by hand."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import ocp

F64 = torch.float64
OPERATIONS = [
    torch.sin, torch.tanh, lambda v: v / (1 + v * v), lambda v: torch.where(v > 0.1, v, v * v),
    lambda v: v.flip(0), lambda v: v.cumsum(0), lambda v: torch.atan(v) * v, torch.softmax,
]  # fmt: skip
NUMBERS = (0.0, 1.0, -1.0, 0.5, 0.3, 2.0, -0.7)  # those that vanish among them


class Random:
    """Sizes, operations, Python numbers and tensors all depend on t; some stages are alike.

    Args:
        seed: of everything.
        horizon: number of stages.
        alike: all stages have n = 3 and m = 2.
    """

    def __init__(self, seed: int, horizon: int, alike: bool = False) -> None:
        rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
        T = horizon
        self.n = [3] * (T + 1) if alike else [rng.randint(1, 4) for _ in range(T + 1)]
        self.m = [2] * T if alike else [rng.randint(0, 3) for _ in range(T)]
        self.m[rng.randrange(T)] = 2
        forms = [[rng.randrange(len(OPERATIONS)) for _ in range(2)] for _ in range(3)]
        self.steps = [rng.choice(forms) for _ in range(T)]
        self.number = [rng.choice(NUMBERS) for _ in range(T)]
        sizes = zip(self.n[1:], self.n, self.m, strict=False)
        self.W = [draw(after, n + m) for after, n, m in sizes]
        self.reference = draw(T, 4)
        self.x0 = draw(5, self.n[0])
        self.mass = 0.5 + torch.rand(5, generator=g, dtype=F64)

    def run(self, z: Tensor, t: int) -> Tensor:
        for k in self.steps[t]:
            z = OPERATIONS[k](z, 0) if OPERATIONS[k] is torch.softmax else OPERATIONS[k](z)
        return z

    def dynamics(self, x: Tensor, u: Tensor, t: int, p: Any) -> Tensor:
        z = torch.cat((x, u))
        after = torch.tanh(self.W[t] @ self.run(z, t) * p["gain"]) + 0.1 * self.number[t]
        return after * (1 + 0.1 * t) + self.number[t] * torch.tanh(x.sum() * z.mean()) / p["mass"]

    def stage(self, x: Tensor, u: Tensor, t: int, p: Any) -> Tensor:
        away = x - self.reference[t, : len(x)]
        cost = 0.5 * (away @ away) * p["mass"] + (0.5 + 0.1 * (t % 3)) * (u @ u)
        if t % 4 == 2:
            cost = cost + torch.cosh(0.3 * x.sum())
        return cost + 0.05 * self.number[t] * u.sum() * x[0]

    def terminal(self, x: Tensor, p: Any) -> Tensor:
        return torch.cosh(x * p["gain"]).sum()


def random_stagewise(
    seed: int, batch: int | None = None, horizon: int = 7, alike: bool = False, **changes: Any
) -> ocp.Problem:
    """Of `Random`; bounds by ``bounds=True``."""
    model = Random(seed, horizon, alike)
    rows = 1 if batch is None else batch
    arguments: dict[str, Any] = {
        "dynamics": model.dynamics,
        "cost": model,
        "x0": model.x0[0] if batch is None else model.x0[:rows],
        "horizon": horizon,
        "control_dim": model.m,
        "parameters": {"gain": torch.tensor(0.6, dtype=F64)},
        "per_problem": {"mass": model.mass[:rows]},
        "stagewise": True,
    }
    if changes.pop("bounds", False):
        arguments["control_bounds"] = tuple(
            [torch.full((m,), s, dtype=F64) for m in model.m] for s in (-0.3, 0.2)
        )
    return ocp.Problem(**{**arguments, **changes})
