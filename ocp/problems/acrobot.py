"""Acrobot: two links swing up, driven at the elbow only.

Equations in `ocp.problems.two_link`, with uniform rods and viscous friction in both joints:

    torques = (-b a1', u - b a2')

x = (shoulder a1 from hanging [rad], elbow a2 [rad], and their rates [rad/s]), u = (torque [N m],).
Source: Spong, The swing up control problem for the acrobot (1995); constants and weights of the
package's benchmark. Hard: minima are many and the upright hold is strongly unstable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage
from ocp.problems.two_link import accelerations, rods


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    angles, rates, b = x[:2], x[2:], p["damping"]
    torques = (-b * rates[0], u[0] - b * rates[1])
    change = accelerations(angles, rates, torques, rods(p), p["gravity"])
    return torch.cat((rates, torch.stack(change)))


def acrobot(
    *,
    horizon: int = 200,
    dt: float = 0.05,
    x0: ArrayLike = (0.0, 0.0, 0.0, 0.0),
    goal: ArrayLike = (math.pi, 0.0, 0.0, 0.0),
    masses: ArrayLike = (1.0, 1.0),
    lengths: ArrayLike = (1.0, 1.0),
    damping: float = 0.1,
    gravity: float = 9.81,
    state_weights: ArrayLike = (0.1, 0.1, 0.05, 0.05),
    control_weights: ArrayLike = (0.1,),
    final_weights: ArrayLike = (200.0, 200.0, 20.0, 20.0),
    per_problem: Data = None,
) -> Problem:
    """Swing two links up with a motor at the elbow.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (4,) or (B, 4).
        goal: state (4,); (pi, 0, 0, 0) is upright.
        masses: of the two uniform rods (2,) [kg].
        lengths: of the two rods (2,) [m].
        damping: viscous, in both joints [N m s].
        gravity: [m/s^2].
        state_weights, control_weights, final_weights: diagonals of `GoalCost`.
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a mass that is not positive, ...
    """
    return assemble(
        "acrobot",
        rk4_stage(ode),
        GoalCost(),
        x0=x0,
        sizes=(4, 1),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "masses": masses,
            "lengths": lengths,
            "damping": damping,
            "gravity": gravity,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
    )
