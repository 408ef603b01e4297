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
from ocp.engines.native.compiled import compare
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
    eager = Eager(problem)
    xs, us, vs = random_points(problem)
    compare("f", *(joined(e.gaps(xs, us)) for e in (engine, eager)))
    compare("cost", *(e.total_cost(xs, us) for e in (engine, eager)))
    ours, curvature = engine.expand(xs, us), engine.curvature_along(xs, us, vs)
    for t in sorted({t for stages in kinds for t in (stages[0], stages[-1])}):
        at = lambda function, *more, t=t: eager._at(function, t, xs[t], us[t], *more)
        lz, lzz = at(gradient_hessian(problem.l))
        along = at(contracted_hessian(problem.f), vs[t + 1])
        for name, ours_t, theirs in (
            ("fz", ours.fz[t], at(jacobian(problem.f))),
            ("lz", ours.lz[t], lz),
            ("lzz", ours.lzz[t], lzz),
            ("v . f_zz", curvature(t, vs[t + 1]), along),
        ):
            compare(f"{name} at stage {t}", ours_t, theirs)
    phix, phixx = eager._end(terminal_gradient_hessian(problem.phi), xs[-1])
    compare("phix", ours.phix, phix)
    compare("phixx", ours.phixx, phixx)


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


def joined(stages: Stages) -> Tensor:
    return torch.cat([s.reshape(-1) for s in stages])
