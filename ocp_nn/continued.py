"""What a step of `DDPOptimizer` takes over from the steps before, and from a checkpoint."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ocp.problem import Problem
from ocp.solution import Status
from ocp.solvers.loop import State
from ocp_nn.statistics import Memory


def running(state: State) -> State:
    """The state of before, as if nothing had been done yet."""
    return state._replace(
        status=torch.full_like(state.status, int(Status.RUNNING)),
        iterations=torch.zeros_like(state.iterations),
        rows=(),
    )


def with_weights(state: State, problem: Problem, weights: list[Tensor]) -> State:
    """The state with other weights, a flat tensor a stage; rolled out if its data are the same."""
    us = [u[None] for u in weights]
    state = state._replace(us=us)
    if state.engine.problem is not problem:
        return state
    xs = state.engine.rollout(us)
    return state._replace(xs=xs, cost=state.engine.total_cost(xs, us))


def kept(state: State) -> dict[str, Any]:
    """What a checkpoint has of a state: copies."""
    memory = state.memory
    return {
        "damping": float(state.damping),
        "memory": deepcopy(vars(memory)) if isinstance(memory, Memory) else None,
    }


def restored(state: State, own: dict[str, Any]) -> State:
    """A fresh state with what `kept` gave."""
    if own.get("memory") is not None:
        state = state._replace(memory=Memory(**own["memory"]))  # type: ignore[arg-type]
    if "damping" in own:
        state = state._replace(damping=torch.full_like(state.damping, own["damping"]))
    return state
