"""Pendulum swing-up by a torque at the pivot.

    m l^2 a'' = u - b a' - m g l sin a

x = (angle a from hanging [rad], rate a' [rad/s]), u = (torque [N m],). The textbook problem; these
constants and weights are those of the package's benchmark.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    angle, rate = x
    m, l, b, g = p["mass"], p["length"], p["damping"], p["gravity"]
    torque = u[0] - b * rate - m * g * l * torch.sin(angle)
    return torch.stack((rate, torque / (m * l * l)))


def pendulum(
    *,
    horizon: int = 100,
    dt: float = 0.05,
    x0: ArrayLike = (0.0, 0.0),
    goal: ArrayLike = (math.pi, 0.0),
    mass: float = 1.0,
    length: float = 1.0,
    damping: float = 0.1,
    gravity: float = 9.81,
    state_weights: ArrayLike = (1.0, 0.1),
    control_weights: ArrayLike = (0.1,),
    final_weights: ArrayLike = (100.0, 10.0),
    per_problem: Data = None,
) -> Problem:
    """Swing a pendulum up and hold it there.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (2,) or (B, 2).
        goal: state (2,); pi is upright.
        mass: of the bob [kg].
        length: of the massless rod [m].
        damping: viscous, at the pivot [N m s].
        gravity: [m/s^2].
        state_weights, control_weights, final_weights: diagonals of `GoalCost`.
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a mass that is not positive, ...
    """
    return assemble(
        "pendulum",
        rk4_stage(ode),
        GoalCost(),
        x0=x0,
        sizes=(2, 1),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "mass": mass,
            "length": length,
            "damping": damping,
            "gravity": gravity,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
    )
