"""Cart-pole swing-up by a horizontal force on the cart, free or bounded.

A point mass m hangs from a cart of mass M by a massless rod of length l (angle a from hanging):

    (M + m sin^2 a) s''   = u + m sin a (l a'^2 + g cos a)
    l (M + m sin^2 a) a'' = -u cos a - m l a'^2 cos a sin a - (M + m) g sin a

x = (position s [m], angle a [rad], speed s' [m/s], rate a' [rad/s]), u = (force [N],).
Source: Tedrake, Underactuated Robotics, ch. 3; constants of the swing-up of ALTRO (Howell,
Jackson, Manchester 2019), weights of the package's benchmark.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage, symmetric


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    _, angle, speed, rate = x
    M, m, l, g = p["mass"], p["pole_mass"], p["length"], p["gravity"]
    s, c = torch.sin(angle), torch.cos(angle)
    inertia = M + m * s * s
    pull = l * rate * rate
    acceleration = (u[0] + m * s * (pull + g * c)) / inertia
    turning = (-u[0] * c - m * pull * c * s - (M + m) * g * s) / (l * inertia)
    return torch.stack((speed, rate, acceleration, turning))


def cartpole(
    bound: float | None = None,
    *,
    horizon: int = 100,
    dt: float = 0.05,
    x0: ArrayLike = (0.0, 0.0, 0.0, 0.0),
    goal: ArrayLike = (0.0, math.pi, 0.0, 0.0),
    mass: float = 1.0,
    pole_mass: float = 0.2,
    length: float = 0.5,
    gravity: float = 9.81,
    state_weights: ArrayLike = (1.0, 1.0, 0.1, 0.1),
    control_weights: ArrayLike = (0.1,),
    final_weights: ArrayLike = (100.0, 100.0, 10.0, 10.0),
    per_problem: Data = None,
) -> Problem:
    """Swing the pole of a cart up, the cart back at its place.

    Args:
        bound: largest force [N]; None for none. With 7 N the swing-up saturates.
        horizon: stages.
        dt: time step [s].
        x0: initial state (4,) or (B, 4).
        goal: state (4,); the angle pi is upright.
        mass: of the cart [kg].
        pole_mass: of the point at the end of the rod [kg].
        length: of the rod [m].
        gravity: [m/s^2].
        state_weights, control_weights, final_weights: diagonals of `GoalCost`.
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a mass that is not positive, ...
    """
    return assemble(
        "cartpole" if bound is None else "cartpole_bounded",
        rk4_stage(ode),
        GoalCost(),
        x0=x0,
        sizes=(4, 1),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "mass": mass,
            "pole_mass": pole_mass,
            "length": length,
            "gravity": gravity,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
        bounds=symmetric(bound, 1),
    )
