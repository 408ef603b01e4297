"""What `BatchDDP` answers: weights, certificate and gains; or what was not finite, and where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp.engines.base import Trials
from ocp.problem import Problem
from ocp.solution import Policy, Solution, Status, Value
from ocp.solvers.loop import State
from ocp_nn.gains import Gains
from ocp_nn.model import Model
from ocp_nn.statistics import Memory


def solution_of(
    problem: Problem, state: State, model: Model, gains: Gains | None, method: str
) -> Solution:
    """The solution at a state, of which ``model`` is the expansion."""
    engine: Any = state.engine
    gradients = [model.gradient(t).abs().amax() for t in model.active]
    residual = torch.stack(gradients).amax() if gradients else state.cost.new_zeros(())
    controls = [u[0] for u in state.us]
    states = engine.split(state.xs)
    keys = state.rows[0].keys() if state.rows else ()
    return Solution(
        states=states,
        controls=controls,
        costates=[
            model.costate(t) if model.ys[t] is not None else None for t in range(len(states))
        ],
        cost=state.cost[0],
        policy=Policy(
            states=[x[0] for x in state.xs],
            controls=controls,
            k=None if gains is None else gains.k,
            K=None if gains is None else gains.K,
        ),
        value=Value(None, None) if gains is None else Value(gains.vx, gains.vxx),
        status=Status(int(state.status)),
        message=message(state, residual),
        residual=residual,
        hamiltonian_residual=residual,
        gap=torch.zeros_like(state.cost[0]),
        iterations=state.iterations[0],
        rollouts=state.rollouts[0],
        sweeps=state.sweeps[0],
        history={key: torch.cat([row[key] for row in state.rows])[:, 0] for key in keys},
        seconds=0.0,
        method=method,
        engine=engine.name,
        problem_name=problem.name,
    )


def message(state: State, residual: Tensor) -> str:
    """Why it stopped, and how stationary that is."""
    status, memory = Status(int(state.status)), state.memory
    texts = {
        Status.CONVERGED: "converged",
        Status.MAX_ITERATIONS: f"stopped after {int(state.iterations)} iterations",
        Status.STALLED: f"no step accepted up to damping {float(state.damping):.0e}",
        Status.PRECISION: "nothing left to gain above the rounding of the cost",
        Status.NON_FINITE: f"not finite: {memory.fault if isinstance(memory, Memory) else ''}",
    }
    return f"{texts.get(status, status.name.lower())}: residual {float(residual):.1e}"


def locate(state: State, trials: Trials) -> str:
    """The first quantity of a refused step that is not finite, by the name of its layer."""
    engine: Any = state.engine
    if not bool(torch.isfinite(state.cost)):
        for t, x in enumerate(state.xs):
            if not bool(torch.isfinite(x).all()):
                stage = engine.network.stages[max(t - 1, 0)]
                return f"the output of stage {t - 1} ({stage.name}), before the step"
        return "the loss before the step"
    for t, stage in enumerate(engine.network.stages):
        if not bool(torch.isfinite(trials.us[t]).all()):
            return f"the new weights of stage {t} ({stage.name})"
        if not bool(torch.isfinite(trials.xs[t + 1]).all()):
            return f"the output of stage {t} ({stage.name}) with the new weights"
    if not bool(torch.isfinite(trials.cost).all()):
        return "the loss with the new weights"
    return "a curvature matrix of the sweep, which is not positive definite"
