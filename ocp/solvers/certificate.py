"""The certificate: what is recomputed at the returned trajectory, the same for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ocp import layout
from ocp.problem import Problem, Stages
from ocp.solution import Policy, Solution, Status, Value

if TYPE_CHECKING:
    from ocp.solvers.loop import Solver, State


def conclude(solver: Solver, problem: Problem, state: State) -> Solution:
    """Certificate, messages and the user's layout."""
    from ocp.report import messages

    engine = state.engine
    certificate = engine.appraise(state.xs, state.us)
    tolerance = solver.rules.tolerances(state.cost.dtype)[0]
    facts = state.status, certificate.indefinite, certificate.sweep.residual
    code, indefinite, residual = (v.tolist() for v in facts)
    codes = [judged(*of, tolerance) for of in zip(code, indefinite, residual, strict=True)]
    texts = messages(state, certificate, codes)
    out = lambda s: layout.stages_out(problem, s, fresh=True)
    single = lambda v: layout.batch_out(problem, v)
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
        states=layout.stages_out(problem, state.xs, per_sample=True),
        controls=layout.stages_out(problem, state.us),
        costates=layout.stages_out(problem, certificate.costates, per_sample=True, fresh=True),
        cost=single(state.cost),
        policy=Policy(
            states=layout.stages_out(problem, state.xs),
            controls=layout.stages_out(problem, state.us),
            k=out(sweep.policy.k),
            K=out(K),
            **bounds,
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


def judged(code: int, indefinite: int, residual: float, tolerance: float) -> Status:
    """The status, SADDLE for what ended stationary where Q_uu is indefinite."""
    ended = code in (Status.CONVERGED, Status.PRECISION, Status.STALLED)
    stationary = code == Status.CONVERGED or residual <= tolerance
    return Status.SADDLE if indefinite >= 0 and ended and stationary else Status(code)


def joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def flat_bound(bound: Stages) -> Any:
    return bound[:, 0] if isinstance(bound, Tensor) else [b[0] for b in bound]
