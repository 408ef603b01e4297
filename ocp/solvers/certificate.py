"""The certificate: what is recomputed at the returned trajectory, the same for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ocp import layout
from ocp.engines import Engine, Sweep
from ocp.engines.riccati import projected
from ocp.problem import Problem, Stages
from ocp.solution import Policy, Solution, Status, Value
from ocp.stages import each, largest

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
    sweep, ps, hus, indefinite = engine.appraise(xs, us)
    residual = largest_projected(engine.problem, hus, us)
    gap = largest(each(torch.abs, engine.gaps(xs, us)))
    return Certificate(sweep, ps, residual, gap, indefinite)


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
    if bool((certificate.indefinite >= 0).any()):
        state = state._replace(status=with_saddles(solver, state, certificate))
    texts = messages(solver, state, certificate)
    codes = [Status(s) for s in state.status.tolist()]
    out = lambda s: layout.stages_out(problem, s)
    single = lambda v: layout.batch_out(problem, v)
    split = lambda s: layout.stages_out(problem, s, per_sample=True)
    sweep, K = certificate.sweep, certificate.sweep.policy.K
    assert K is not None
    bounds: dict[str, Any] = {}
    if problem.lower is not None and problem.upper is not None:
        bounds = {"lower": flat_bound(problem.lower), "upper": flat_bound(problem.upper)}
    history = {
        key: layout.rows_out(problem, joined([block[key] for block in state.rows]))
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


def with_saddles(solver: Solver, state: State, certificate: Certificate) -> Tensor:
    """The status, SADDLE for what ended where Q_uu is indefinite."""
    ended = torch.zeros_like(state.status, dtype=torch.bool)
    for code in (Status.CONVERGED, Status.PRECISION, Status.STALLED):
        ended = ended | (state.status == code)
    tolerance = solver.rules.tolerances(state.cost.dtype)[0]
    stationary = (state.status == Status.CONVERGED) | (certificate.sweep.residual <= tolerance)
    saddle = (certificate.indefinite >= 0) & ended & stationary
    return torch.where(saddle, int(Status.SADDLE), state.status)


def joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def flat_bound(bound: Stages) -> Any:
    return bound[:, 0] if isinstance(bound, Tensor) else [b[0] for b in bound]
