"""Small problems of the tests, in which every derivative block is there and n != m."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import ocp

F64 = torch.float64


def f_rich(x: Tensor, u: Tensor, t: Any, p: Any) -> Tensor:
    """n = 3, m = 2: f_xx, f_ux, f_uu, t, a parameter and per-problem data all matter."""
    force = u[0] * torch.cos(x[1]) + 0.3 * u[1] ** 2
    return torch.stack(
        (
            x[0] + 0.2 * (torch.sin(x[1]) + u[1] * x[2]),
            x[1] + 0.2 * (p["gain"] * x[2] + 0.5 * u[0] * u[1]),
            x[2] + 0.2 * (force / p["mass"] - 0.5 * x[0] * x[2]) + 0.02 * t,
        )
    )


class RichCost:
    """l_xx, l_ux and l_uu vary with x and u; positive definite near the origin."""

    def stage(self, x: Tensor, u: Tensor, t: Any, p: Any) -> Tensor:
        error = x - p["reference"][t]
        running = 0.5 * error @ error + torch.cosh(0.3 * x[0]) + 0.1 * u[1] * x[2] * x[0]
        return running + u @ u + 0.05 * u[0] ** 4 + 0.1 * u[0] * x[1]

    def terminal(self, x: Tensor, p: Any) -> Tensor:
        return p["mass"] * (x @ x) + 0.3 * torch.sin(x[0] + x[2]) ** 2


def rich(batch: int | None = None, horizon: int = 5, seed: int = 0, **changes: Any) -> ocp.Problem:
    """x0, mass and (through the mass) the cost differ from problem to problem."""
    g = torch.Generator().manual_seed(seed)
    rows = 1 if batch is None else batch
    x0 = 0.5 * torch.randn(rows, 3, generator=g, dtype=F64)
    arguments: dict[str, Any] = {
        "dynamics": f_rich,
        "cost": RichCost(),
        "x0": x0[0] if batch is None else x0,
        "horizon": horizon,
        "control_dim": 2,
        "parameters": {
            "gain": 0.8,
            "reference": 0.3 * torch.randn(horizon, 3, generator=g).double(),
        },
        "per_problem": {"mass": 0.5 + torch.rand(rows, generator=g, dtype=F64)},
    }
    return ocp.Problem(**{**arguments, **changes})


SIZES, CONTROLS = (3, 2, 4, 4, 1), (1, 0, 2, 3)


class Resizing:
    """Sizes change with t (`SIZES`, `CONTROLS`); stage 1 has no control."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
        self.W = [normal(b, a) for a, b in pairwise(SIZES)]
        self.V = [normal(b, m) for b, m in zip(SIZES[1:], CONTROLS, strict=True)]

    def dynamics(self, x: Tensor, u: Tensor, t: int, p: Any) -> Tensor:
        return torch.tanh(self.W[t] @ x) * p["scale"] + self.V[t] @ u * (1 + 0.2 * x[0] ** 2)

    def stage(self, x: Tensor, u: Tensor, t: int) -> Tensor:
        if t == 2:
            return 0.5 * (x @ x) + 0.7 * (u @ u) + 0.1 * u[0] * x[1]
        return 0.3 * (x @ x) + 0.5 * (u @ u)

    def terminal(self, x: Tensor) -> Tensor:
        return torch.cosh(x).sum()


def resizing(batch: int | None = None, seed: int = 0, **changes: Any) -> ocp.Problem:
    g = torch.Generator().manual_seed(seed + 1)
    rows = 1 if batch is None else batch
    model, x0 = Resizing(seed), torch.randn(rows, SIZES[0], generator=g, dtype=F64)
    arguments: dict[str, Any] = {
        "dynamics": model.dynamics,
        "cost": model,
        "x0": x0[0] if batch is None else x0,
        "horizon": len(CONTROLS),
        "control_dim": CONTROLS,
        "per_problem": {"scale": 0.5 + torch.rand(rows, generator=g, dtype=F64)},
        "stagewise": True,
    }
    return ocp.Problem(**{**arguments, **changes})


def guess(problem: ocp.Problem, seed: int = 0, size: float = 0.3) -> list[Tensor]:
    """Random controls in the layout of the solvers: a list over t of (B, m)."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda m: torch.randn(problem.batch, m, generator=g, dtype=F64)
    return [size * draw(m).to(problem.x0.dtype) for m in problem.control_dims]


def cartpole(x: Tensor, u: Tensor, t: Any, p: Any) -> Tensor:
    """x = (position [m], angle from hanging [rad], rates), u = (force [N],); dt = 0.05 s."""

    def ode(x: Tensor, u: Tensor, time: Any, p: Any) -> Tensor:
        sine, cosine = torch.sin(x[1]), torch.cos(x[1])
        mass, length, gravity = p["mass"], 0.5, 9.81
        total = 1.0 + mass * sine**2
        push = u[0] + mass * sine * (length * x[3] ** 2 + gravity * cosine)
        turn = -u[0] * cosine - mass * length * x[3] ** 2 * cosine * sine
        turn = (turn - (1.0 + mass) * gravity * sine) / (length * total)
        return torch.stack((x[2], x[3], push / total, turn))

    return ocp.rk4(ode, 0.05)(x, u, t, p)


def cartpoles(batch: int, horizon: int = 20, seed: int = 0, spread: float = 0.3) -> ocp.Problem:
    """Cartpoles that differ in x0, mass and goal; from near hanging towards a goal near it."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
    cost = ocp.FunctionCost(
        lambda x, u, t, p: 0.05 * ((x - p["goal"]).square().sum() + 0.1 * u.square().sum()),
        lambda x, p: 5 * (x - p["goal"]).square().sum(),
    )
    goal = torch.cat((draw(batch, 1), torch.zeros(batch, 3, dtype=F64)), dim=1)
    mass = 0.2 + 0.3 * torch.rand(batch, generator=g, dtype=F64)
    return ocp.Problem(
        cartpole,
        cost,
        spread * draw(batch, 4),
        horizon,
        1,
        per_problem={"mass": mass, "goal": goal},
    )


def single(problem: ocp.Problem, b: int) -> ocp.Problem:
    """Problem b of a batch as a problem of its own."""
    data = {k: v[b : b + 1] for k, v in problem.per_problem.items()}
    return problem.replace(x0=problem.x0[b], per_problem=data)
