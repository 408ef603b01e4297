"""Van der Pol oscillator brought to rest, free or bounded; without units.

    s'' = mu (1 - s^2) s' - s + u

x = (position s, speed s'), u = (force,), J = integral of s^2 + s'^2 + u^2 over 5 time units by
the rectangle rule. Source: Vassiliadis (1993); with -0.3 <= u <= 1 the continuous problem is the
'Van der Pol oscillator' of PROPT, J = 2.8673.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    position, speed = x
    push = p["mu"] * (1 - position * position) * speed
    return torch.stack((speed, push - position + u[0]))


def van_der_pol(
    bound: tuple[float, float] | None = None,
    *,
    horizon: int = 100,
    dt: float = 0.05,
    x0: ArrayLike = (1.0, 0.0),
    goal: ArrayLike = (0.0, 0.0),
    mu: float = 1.0,
    state_weights: ArrayLike = (2.0, 2.0),
    control_weights: ArrayLike = (2.0,),
    final_weights: ArrayLike = (0.0, 0.0),
    per_problem: Data = None,
) -> Problem:
    """Bring a van der Pol oscillator to rest.

    Args:
        bound: smallest and largest force; None for none. (-0.3, 1) is the literature's.
        horizon: stages.
        dt: time step.
        x0: initial state (2,) or (B, 2).
        goal: state (2,).
        mu: strength of the nonlinear damping.
        state_weights, control_weights, final_weights: diagonals of `GoalCost`.
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a time step that is not positive.
    """
    return assemble(
        "van_der_pol" if bound is None else "van_der_pol_bounded",
        rk4_stage(ode),
        GoalCost(),
        x0=x0,
        sizes=(2, 1),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "mu": mu,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
        bounds=None if bound is None else ([bound[0]], [bound[1]]),
    )
