"""Problems of the native engine's tests, each with its program and the eager engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import native_model as texts
import pytest
import torch
from models import cartpoles, guess, rich
from native_calls import Program
from torch import Tensor

import ocp
from ocp.engines import Eager
from ocp.engines.native import build

F64 = torch.float64


def lacking() -> str:
    """Why nothing can be compiled here, or nothing."""
    try:
        build.compiler()
    except build.BuildError as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(lacking()), reason=lacking())


def broad(batch: int, horizon: int, seed: int = 0) -> ocp.Problem:
    """n = 2, m = 3, no parameters; what `texts.BROAD` says in C++."""

    def f(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
        first = 0.9 * x[0] + torch.sin(x[1] * u[0]) + 0.3 * u[2]
        return torch.stack((first, x[0] * u[1] + 0.5 * torch.cos(u[2]) - 0.4 * x[1]))

    def l(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
        cross = 0.2 * x[0] * u[1] + 0.1 * u[0] * u[2]
        return 0.5 * (x @ x) + 0.4 * (u @ u) + 0.3 * torch.sin(u).sum() + cross

    cost = ocp.FunctionCost(l, lambda x: torch.cosh(x[0] - 1) + x[1] ** 2)
    g = torch.Generator().manual_seed(seed)
    return ocp.Problem(f, cost, torch.randn(batch, 2, generator=g, dtype=F64), horizon, 3)


def chain(batch: int, horizon: int, seed: int = 0) -> ocp.Problem:
    """n = 10, m = 3; what `texts.CHAIN` says in C++."""
    at = torch.arange(10)

    def f(x: Tensor, u: Tensor, t: Tensor, p: dict[str, Tensor]) -> Tensor:
        push = u[at % 3] * x[(at + 3) % 10] + torch.sin(x[(at + 1) % 10])
        return 0.9 * x + p["gain"] * push + 0.05 * u[(at + 1) % 3]

    def l(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
        states = 0.5 * (x @ x) + 0.1 * (x @ x[(at + 4) % 10]) + 0.1 * x[0] * u[2]
        return states + 0.3 * (u @ u) + 0.1 * torch.cosh(u).sum()

    cost = ocp.FunctionCost(
        l, lambda x: torch.cosh(0.3 * x[1]) + x @ x + 0.2 * (x @ x[(at + 7) % 10])
    )
    g = torch.Generator().manual_seed(seed)
    x0 = 0.5 * torch.randn(batch, 10, generator=g, dtype=F64)
    gain = 0.1 + 0.1 * torch.rand(10, generator=g, dtype=F64)
    return ocp.Problem(f, cost, x0, horizon, 3, parameters={"gain": gain})


LIMITS = {
    "chain": (-0.1, 0.15),
    "rich": (-0.2, 0.25),
    "cartpole": (-0.4, 0.6),
    "broad": (-0.3, 0.2),
}


@dataclass(frozen=True)
class Case:
    """A problem, its program, and the eager engine."""

    problem: ocp.Problem
    program: Program
    eager: Eager

    def start(self, gaps: bool, size: float = 0.2) -> tuple[Tensor, Tensor, Tensor | None]:
        """Feasible controls with their states; with gaps, states are moved off the roll-out."""
        p = self.problem
        us = torch.stack(guess(p, 3, size))
        if p.lower is not None:
            us = torch.minimum(torch.maximum(us, p.lower), p.upper)
        xs = self.eager.rollout(us)
        if not gaps:
            return xs, us, None
        g = torch.Generator().manual_seed(4)
        noise = torch.randn(xs.shape, generator=g, dtype=F64).to(xs.dtype)
        xs = torch.cat((xs[:1], xs[1:] + 0.1 * noise[1:]))
        return xs, us, self.eager.gaps(xs, us)


@cache
def case(
    model: str = "rich",
    batch: int = 5,
    horizon: int = 6,
    *,
    single: bool = False,
    bounds: bool = False,
    dtype: torch.dtype = F64,
    threads: int = 1,
) -> Case:
    par = dat = torch.zeros(1, 1, dtype=F64)
    if model == "rich":
        problem, text = rich(batch, horizon), texts.RICH
        p = problem.parameters
        par = torch.cat((torch.as_tensor([p["gain"]], dtype=F64), p["reference"].flatten()))
        dat = problem.per_problem["mass"][:, None]
    elif model == "cartpole":
        problem, text = cartpoles(batch, horizon), texts.CARTPOLE
        p = problem.per_problem
        dat = torch.cat((p["mass"][:, None], p["goal"]), dim=1)
    elif model == "chain":
        problem, text = chain(batch, horizon), texts.CHAIN
        par, dat = problem.parameters["gain"], torch.zeros(batch, 1, dtype=F64)
    else:
        problem, text = broad(batch, horizon), texts.BROAD
        dat = torch.zeros(batch, 1, dtype=F64)
    if bounds:
        m = problem.control_dims[0]
        lo, hi = (torch.full((m,), v, dtype=F64) for v in LIMITS[model])
        problem = problem.replace(control_bounds=(lo, hi))
    if dtype != F64:
        cast = lambda data: {k: torch.as_tensor(v, dtype=dtype) for k, v in data.items()}
        problem = problem.replace(
            x0=problem.x0.to(dtype),
            parameters=cast(problem.parameters),
            per_problem=cast(problem.per_problem),
        )
    program = Program(problem, text, par, dat, single, threads)
    return Case(problem, program, Eager(problem))


KINDS = [
    pytest.param({"model": "rich", "batch": 5}, id="rich"),
    pytest.param({"model": "rich", "batch": 1, "single": True}, id="rich-single"),
    pytest.param({"model": "rich", "batch": 1}, id="rich-alone-in-a-batch"),
    pytest.param({"model": "rich", "batch": 5, "bounds": True}, id="rich-bounds"),
    pytest.param({"model": "rich", "batch": 1, "bounds": True, "single": True}, id="rich-b-single"),
    pytest.param({"model": "cartpole", "batch": 9}, id="cartpole"),
    pytest.param({"model": "cartpole", "batch": 1, "single": True}, id="cartpole-single"),
    pytest.param({"model": "cartpole", "batch": 3, "bounds": True}, id="cartpole-bounds"),
    pytest.param({"model": "broad", "batch": 6, "bounds": True}, id="broad-bounds"),
    pytest.param({"model": "broad", "batch": 1, "single": True}, id="broad-single"),
    pytest.param({"model": "chain", "batch": 5, "bounds": True}, id="chain-bounds"),
    pytest.param({"model": "chain", "batch": 1, "single": True}, id="chain-single"),
]
