"""Planar quadrotor: fly to a point and hover.

    m x'' = -(f1 + f2) sin a,   m z'' = (f1 + f2) cos a - m g,   I a'' = l (f1 - f2)

The controls are deviations from hover, f_i = u_i + m g / 2, so zero controls hover.

x = (x [m], height z [m], roll a [rad], and their rates [m/s], [m/s], [rad/s]),
u = (right thrust [N], left thrust [N], both less hover). Source: Tedrake, Underactuated Robotics,
ch. 3; constants and weights of the package's benchmark.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    roll, m, g = x[2], p["mass"], p["gravity"]
    right, left = u + m * g / 2
    lift = (right + left) / m
    turning = p["arm"] * (right - left) / p["inertia"]
    change = torch.stack((-lift * torch.sin(roll), lift * torch.cos(roll) - g, turning))
    return torch.cat((x[3:], change))


def quadrotor2d(
    *,
    horizon: int = 100,
    dt: float = 0.03,
    x0: ArrayLike = (-3.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    goal: ArrayLike = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    mass: float = 1.0,
    inertia: float = 0.02,
    arm: float = 0.25,
    gravity: float = 9.81,
    state_weights: ArrayLike = (1.0, 1.0, 0.1, 0.1, 0.1, 0.1),
    control_weights: ArrayLike = (0.05, 0.05),
    final_weights: ArrayLike = (200.0, 200.0, 50.0, 20.0, 20.0, 10.0),
    per_problem: Data = None,
) -> Problem:
    """Fly a planar quadrotor to a point and hover there.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (6,) or (B, 6).
        goal: state (6,).
        mass: [kg].
        inertia: about the centre of mass [kg m^2].
        arm: from the centre to a rotor [m].
        gravity: [m/s^2].
        state_weights, control_weights, final_weights: diagonals of `GoalCost`.
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a mass that is not positive, ...
    """
    return assemble(
        "quadrotor2d",
        rk4_stage(ode),
        GoalCost(),
        x0=x0,
        sizes=(6, 2),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "mass": mass,
            "inertia": inertia,
            "arm": arm,
            "gravity": gravity,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
    )
