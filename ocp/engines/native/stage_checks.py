"""Programs of stagewise problems against the eager engine, before they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocp.engines.derivatives import (
    contracted_hessian,
    gradient_hessian,
    jacobian,
    terminal_gradient_hessian,
)
from ocp.engines.eager import Eager
from ocp.engines.native.compiled import asking_eager, compare, values_of
from ocp.engines.native.engine import Native
from ocp.engines.native.stagewise import trial_points
from ocp.problem import Problem, Stages
from ocp.stages import pack


def check_stages(problem: Problem, engine: Native, kinds: Sequence[Sequence[int]]) -> None:
    """Values at all stages, derivatives at the first and the last of each kind.

    All of these would take as long as an eager iteration: tens of milliseconds a stage.

    Raises:
        Refused: they differ.
    """
    xs, us, vs = random_points(problem)
    stages = sorted({t for same in kinds for t in (same[0], same[-1])})
    with asking_eager():
        theirs = by_autograd(Eager(problem), xs, us, vs, stages)
    ours = compiled(engine, xs, us, vs, stages)
    for name, value in theirs.items():
        compare(name, ours[name], value)


def by_autograd(
    eager: Eager, xs: Stages, us: Stages, vs: Stages, stages: Sequence[int]
) -> dict[str, Tensor]:
    problem, found = eager.problem, values_of(eager, xs, us)
    for t in stages:
        at = lambda function, *more, t=t: eager._at(function, t, xs[t], us[t], *more)
        lz, lzz = at(gradient_hessian(problem.l))
        along = at(contracted_hessian(problem.f), vs[t + 1])
        found |= named(t, at(jacobian(problem.f)), lz, lzz, along)
    phix, phixx = eager._end(terminal_gradient_hessian(problem.phi), xs[-1])
    return {**found, "phix": phix, "phixx": phixx}


def compiled(
    engine: Native, xs: Stages, us: Stages, vs: Stages, stages: Sequence[int]
) -> dict[str, Tensor]:
    found = values_of(engine, xs, us)
    e, curvature = engine.expand(xs, us), engine.curvature_along(xs, us, vs)
    for t in stages:
        found |= named(t, e.fz[t], e.lz[t], e.lzz[t], curvature(t, vs[t + 1]))
    return {**found, "phix": e.phix, "phixx": e.phixx}


def named(t: int, fz: Tensor, lz: Tensor, lzz: Tensor, along: Tensor) -> dict[str, Tensor]:
    values = {"fz": fz, "lz": lz, "lzz": lzz, "v . f_zz": along}
    return {f"{name} at stage {t}": value for name, value in values.items()}


def random_points(problem: Problem) -> tuple[Stages, Stages, Stages]:
    """States and controls near a trajectory, within the bounds, and directions."""
    g = torch.Generator().manual_seed(0)
    B = problem.batch
    noise = lambda k: torch.randn(B, k, generator=g, dtype=torch.float64).to(problem.x0)
    states, controls = trial_points(problem)
    xs = [x + 0.1 * (1 + x.abs()) * noise(len(x)) for x in states]
    us = [u + 0.5 * noise(len(u)) for u in controls]
    if problem.lower is not None and problem.upper is not None:
        bounds = zip(us, problem.lower, problem.upper, strict=True)
        us = [torch.minimum(torch.maximum(u, lo), hi) for u, lo, hi in bounds]
    uniform = problem.uniform
    return pack(xs, uniform), pack(us, uniform), pack([noise(len(x)) for x in states], uniform)
