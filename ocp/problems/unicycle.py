"""Unicycle: drive to a pose.

    x' = v cos h,   y' = v sin h,   h' = w

x = (position x [m], y [m], heading h [rad]), u = (speed v [m/s], turn rate w [rad/s]).
Source: the model of LaValle, Planning Algorithms (2006), sec. 13.1.2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    heading, (speed, turning) = x[2], u
    return torch.stack((speed * torch.cos(heading), speed * torch.sin(heading), turning))


def unicycle(
    *,
    horizon: int = 50,
    dt: float = 0.1,
    x0: ArrayLike = (-2.0, -1.0, 1.0),
    goal: ArrayLike = (0.0, 0.0, 0.0),
    state_weights: ArrayLike = (1.0, 1.0, 0.1),
    control_weights: ArrayLike = (0.5, 0.5),
    final_weights: ArrayLike = (100.0, 100.0, 100.0),
    per_problem: Data = None,
) -> Problem:
    """Drive a unicycle to a pose.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (3,) or (B, 3).
        goal: pose (3,). Headings are not wrapped: give the turn that is meant.
        state_weights, control_weights, final_weights: diagonals of `GoalCost`.
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a time step that is not positive.
    """
    return assemble(
        "unicycle",
        rk4_stage(ode),
        GoalCost(),
        x0=x0,
        sizes=(3, 2),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
    )
