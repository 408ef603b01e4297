"""Car parking with bounded steering and acceleration.

Discrete as in the source: in one step the front wheels roll f = dt v metres, and with the wheel
angle w and the wheelbase d the rear axle rolls

    b = d + f cos w - sqrt(d^2 - f^2 sin^2 w)

    x += b cos h,   y += b sin h,   h += asin(sin w f / d),   v += dt a

x = (position x [m], y [m], heading h [rad], speed v [m/s]), u = (wheel angle w [rad], |w| <= 0.5;
acceleration a [m/s^2], |a| <= 2). The cost is made of z(e, width) = sqrt(e^2 + width^2) - width,
quadratic near the goal and linear far from it (not multiplied by dt):

    l   = c1 w^2 + c2 a^2 + 1e-3 (z(x, 0.1) + z(y, 0.1))
    phi = 0.1 z(x, 0.01) + 0.1 z(y, 0.01) + z(h, 0.01) + 0.3 z(v, 1)

Source: Tassa, Mansard, Todorov, Control-limited differential dynamic programming (2014), sec. IV.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ocp.costs import smooth_abs
from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, Parameters, assemble


def dynamics(x: Tensor, u: Tensor, t: Tensor, p: Parameters) -> Tensor:
    east, north, heading, speed = x
    wheels, acceleration = u
    d, dt = p["wheelbase"], p["dt"]
    front = dt * speed
    sideways = front * torch.sin(wheels)
    rear = d + front * torch.cos(wheels) - torch.sqrt(d * d - sideways * sideways)
    return torch.stack(
        (
            east + rear * torch.cos(heading),
            north + rear * torch.sin(heading),
            heading + torch.asin(sideways / d),
            speed + dt * acceleration,
        )
    )


class ParkingCost:
    """Tassa's smooth-abs cost about the goal."""

    def stage(self, x: Tensor, u: Tensor, t: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        near = smooth_abs(x - p["goal"], p["widths"])
        return u @ (p["control_weights"] * u) + p["state_weights"] @ near

    def terminal(self, x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        return p["final_weights"] @ smooth_abs(x - p["goal"], p["final_widths"])


def car_parking(
    *,
    horizon: int = 500,
    dt: float = 0.03,
    x0: ArrayLike = (1.0, 1.0, 1.5 * math.pi, 0.0),
    goal: ArrayLike = (0.0, 0.0, 0.0, 0.0),
    wheelbase: float = 2.0,
    bound: tuple[float, float] = (0.5, 2.0),
    control_weights: ArrayLike = (1e-2, 1e-4),
    state_weights: ArrayLike = (1e-3, 1e-3, 0.0, 0.0),
    widths: ArrayLike = (0.1, 0.1, 1.0, 1.0),
    final_weights: ArrayLike = (0.1, 0.1, 1.0, 0.3),
    final_widths: ArrayLike = (0.01, 0.01, 0.01, 1.0),
    per_problem: Data = None,
) -> Problem:
    """Park a car at the origin, facing east, at rest.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (4,) or (B, 4).
        goal: state (4,). Headings are not wrapped: give the turn that is meant.
        wheelbase: distance of the axles [m].
        bound: largest wheel angle [rad] and acceleration [m/s^2].
        control_weights: c1, c2 (2,).
        state_weights, widths, final_weights, final_widths: of the smooth absolute values (4,).
        per_problem: any of the above but the bound from dt on, with a leading B.

    Raises:
        ValueError: wrong shapes, an unknown parameter, a wheelbase that is not positive, ...
    """
    limits = list(bound)
    return assemble(
        "car_parking",
        dynamics,
        ParkingCost(),
        x0=x0,
        sizes=(4, 2),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "wheelbase": wheelbase,
            "control_weights": control_weights,
            "state_weights": state_weights,
            "widths": widths,
            "final_weights": final_weights,
            "final_widths": final_widths,
        },
        per_problem=per_problem,
        bounds=([-b for b in limits], limits),
    )
