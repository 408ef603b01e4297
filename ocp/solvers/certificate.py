"""The certificate: what is recomputed at the returned trajectory, the same for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ocp import layout
from ocp.engines import Engine, Expansion, Sweep
from ocp.engines.riccati import projected
from ocp.problem import Problem, Stages
from ocp.solution import Policy, Solution, Status, Value
from ocp.stages import each, largest, where

if TYPE_CHECKING:
    from ocp.solvers.loop import Solver, State


class Certificate(NamedTuple):
    """Facts about a trajectory; (B,) but for the stages."""

    sweep: Sweep
    costates: Stages
    hamiltonian_residual: Tensor
    gap: Tensor  # largest |f - x'|
    indefinite: Tensor  # int: last stage where the second-order Q_uu is truly indefinite, or -1


def certify(engine: Engine, xs: Stages, us: Stages) -> Certificate:
    """One undamped sweep, second order where that is definite, and the costates."""
    expansion, gaps = engine.expand(xs, us), engine.gaps(xs, us)
    ps, hus = engine.costates(expansion)
    sweep, indefinite = undamped(engine, expansion, xs, us)
    return Certificate(
        sweep,
        ps,
        largest_projected(engine.problem, hus, us),
        largest(each(torch.abs, gaps)),
        indefinite,
    )


def undamped(engine: Engine, expansion: Expansion, xs: Stages, us: Stages) -> tuple[Sweep, Tensor]:
    """Second order where definite, else Gauss-Newton; and the stage where it is indefinite.

    A Q_uu that is singular to rounding (a singular arc) is no saddle: it is judged again with a
    damping at the level of rounding.
    """
    curvature = engine.curvature(xs, us)
    zero = torch.zeros_like(expansion.phix[:, 0])
    sweep = engine.sweep(expansion, us, None, zero, curvature)
    if bool((sweep.failed < 0).all()):
        return sweep, sweep.failed
    size = largest(each(lambda H: H.abs().flatten(-2), expansion.lzz))
    tiny = torch.finfo(zero.dtype).eps ** 0.5 * size.clamp_min(torch.finfo(zero.dtype).tiny)
    nearly = engine.sweep(expansion, us, None, tiny, curvature)
    sweep = merge(sweep.failed < 0, sweep, nearly)
    gauss_newton = engine.sweep(expansion, us, None, zero, None)
    return merge(sweep.failed < 0, sweep, gauss_newton), nearly.failed


def merge(mask: Tensor, a: Sweep, b: Sweep) -> Sweep:
    """Problem by problem: a where the mask holds, else b."""

    def matrices(p: Stages, q: Stages) -> Stages:
        return each(lambda v, w: torch.where(mask[:, None, None], v, w), p, q)

    assert a.policy.K is not None and b.policy.K is not None
    return Sweep(
        type(a.policy)(where(mask, a.policy.k, b.policy.k), matrices(a.policy.K, b.policy.K)),
        where(mask, a.vx, b.vx),
        matrices(a.vxx, b.vxx),
        *(torch.where(mask, p, q) for p, q in zip(a[3:], b[3:], strict=True)),
    )


def largest_projected(problem: Problem, gradient: Stages, us: Stages) -> Tensor:
    """Largest ``|u - clip(u - g, lo, hi)|``: (B,)."""
    lower, upper = problem.lower, problem.upper
    limits = None
    if lower is not None and upper is not None:
        limits = each(torch.sub, lower, us), each(torch.sub, upper, us)
    if isinstance(gradient, Tensor):  # all stages at once
        return projected(gradient, limits).amax(dim=0)  # type: ignore[arg-type]
    parts = []
    for t, g in enumerate(gradient):
        parts.append(projected(g, None if limits is None else (limits[0][t], limits[1][t])))
    return torch.stack(parts).amax(dim=0)


def conclude(solver: Solver, problem: Problem, state: State) -> Solution:
    """Certificate, messages and the user's layout."""
    from ocp.report import messages

    engine = state.engine
    certificate = certify(engine, state.xs, state.us)
    ended = torch.zeros_like(state.status, dtype=torch.bool)
    for code in (Status.CONVERGED, Status.PRECISION, Status.STALLED):
        ended = ended | (state.status == code)
    tolerance = solver.rules.tolerances(state.cost.dtype)[0]
    stationary = (state.status == Status.CONVERGED) | (certificate.sweep.residual <= tolerance)
    saddle = (certificate.indefinite >= 0) & ended & stationary
    status = torch.where(saddle, torch.full_like(state.status, int(Status.SADDLE)), state.status)
    state = state._replace(status=status)
    texts = messages(solver, state, certificate)
    codes = [Status(s) for s in status.tolist()]
    out = lambda s: layout.stages_out(problem, s)
    single = lambda v: layout.batch_out(problem, v)
    split = lambda s: layout.stages_out(problem, s, per_sample=True)
    sweep, K = certificate.sweep, certificate.sweep.policy.K
    assert K is not None
    bounds: dict[str, Any] = {}
    if problem.lower is not None and problem.upper is not None:
        bounds = {"lower": flat_bound(problem.lower), "upper": flat_bound(problem.upper)}
    history = {
        key: layout.rows_out(problem, torch.cat([block[key] for block in state.rows]))
        for key in (state.rows or ({},))[0]
    }
    return Solution(
        states=split(state.xs),
        controls=out(state.us),
        costates=split(certificate.costates),
        cost=single(state.cost),
        policy=Policy(
            states=out(state.xs), controls=out(state.us), k=out(sweep.policy.k), K=out(K), **bounds
        ),
        value=Value(out(sweep.vx), out(sweep.vxx)),
        status=codes if problem.batched else codes[0],
        message=texts if problem.batched else texts[0],
        residual=single(sweep.residual),
        hamiltonian_residual=single(certificate.hamiltonian_residual),
        gap=single(certificate.gap),
        iterations=single(state.iterations),
        rollouts=single(state.rollouts),
        sweeps=single(state.sweeps),
        history=history,
        seconds=0.0,
        method=solver.name,
        engine=engine.name,
        problem_name=problem.name,
    )


def flat_bound(bound: Stages) -> Any:
    return bound[:, 0] if isinstance(bound, Tensor) else [b[0] for b in bound]
