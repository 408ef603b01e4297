"""Quadrotor in space, attitude by a unit quaternion: fly to a point and hover.

    m r'' = R(q) (0, 0, f1 + f2 + f3 + f4) - (0, 0, m g)
    q'    = 1/2 q * (0, w)
    I w'  = (l (f2 - f4), l (f3 - f1), k (f1 - f2 + f3 - f4)) - w x I w

The controls are deviations from hover, f_i = u_i + m g / 4, so zero controls hover. Rotors 1 and 3
lie on the body's x axis (front, rear), 2 and 4 on its y axis (left, right).

x = (position r [m] (3), quaternion q = (scalar, vector) [1] (4), velocity r' [m/s] (3), angular
velocity w in the body [rad/s] (3)), u = (four thrusts less hover [N]).

Unit norm: each step ends by q / |q|. A Runge-Kutta step leaves the sphere by O(dt^5) only, so this
keeps order 4; it is smooth, and f_x then maps radial perturbations to zero, so that values and
gains have no drift in the one direction that means nothing. An exponential map on the
sphere would be exact, too, but couples the step to the attitude and is a second integrator.

The cost sees twice the vector part of q_goal^-1 * q, the rotation vector to second order: it has
no singular attitude, is the same for q and -q, and its gradient vanishes at half a turn, where
either way is as good. Source: Mellinger, Kumar (2011) for the model; Jackson, Tracy, Manchester,
Planning with attitude (2021) for attitude errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, floating, rk4_stage


def body_z(q: Tensor) -> Tensor:
    """Third column of R(q), where the rotors point: (4,) -> (3,)."""
    w, x, y, z = q
    return torch.stack((2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)))


def spin(q: Tensor, rates: Tensor) -> Tensor:
    """``1/2 q * (0, rates)``: (4,), (3,) -> (4,)."""
    (w, x, y, z), (a, b, c) = q, rates
    product = (
        -x * a - y * b - z * c,
        w * a + y * c - z * b,
        w * b + z * a - x * c,
        w * c + x * b - y * a,
    )
    return torch.stack(product) / 2


def relative_vector(q: Tensor, r: Tensor) -> Tensor:
    """Vector part of ``q^-1 * r`` for unit quaternions: (4,), (4,) -> (3,)."""
    (w, x, y, z), (s, a, b, c) = q, r
    product = (
        w * a - s * x - (y * c - z * b),
        w * b - s * y - (z * a - x * c),
        w * c - s * z - (x * b - y * a),
    )
    return torch.stack(product)


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    q, velocity, rates = x[3:7], x[7:10], x[10:]
    m, g, k, (Ix, Iy, Iz) = p["mass"], p["gravity"], p["drag_ratio"], p["inertias"]
    f1, f2, f3, f4 = u + m * g / 4
    lift = body_z(q) * (f1 + f2 + f3 + f4) / m
    a, b, c = rates
    turning = (
        (p["arm"] * (f2 - f4) - (Iz - Iy) * b * c) / Ix,
        (p["arm"] * (f3 - f1) - (Ix - Iz) * a * c) / Iy,
        (k * (f1 - f2 + f3 - f4) - (Iy - Ix) * a * b) / Iz,
    )
    acceleration = torch.stack((lift[0], lift[1], lift[2] - g))
    return torch.cat((velocity, spin(q, rates), acceleration, torch.stack(turning)))


free_step = rk4_stage(ode)


def dynamics(x: Tensor, u: Tensor, t: Tensor, p: Parameters) -> Tensor:
    after = free_step(x, u, t, p)
    q = after[3:7]
    return torch.cat((after[:3], q / torch.sqrt(q @ q), after[7:]))


class FlightCost(GoalCost):
    """`GoalCost` of (position, rotation, velocity, rates) less the goal's, (12,)."""

    def error(self, x: Tensor, p: Parameters) -> Tensor:
        goal = p["goal"]
        rotation = 2 * relative_vector(goal[3:7], x[3:7])
        return torch.cat((x[:3] - goal[:3], rotation, x[7:] - goal[7:]))


def quadrotor3d(
    *,
    horizon: int = 100,
    dt: float = 0.03,
    x0: ArrayLike = (-2.0, 1.0, -1.0, 0.8775825618903728, 0.0, 0.0, 0.479425538604203, *[0.0] * 6),
    goal: ArrayLike = (0.0, 0.0, 0.0, 1.0, *[0.0] * 9),
    mass: float = 1.0,
    inertias: ArrayLike = (0.01, 0.01, 0.02),
    arm: float = 0.2,
    drag_ratio: float = 0.05,
    gravity: float = 9.81,
    state_weights: ArrayLike = (1.0, 1.0, 1.0, *[0.1] * 6, *[0.05] * 3),
    control_weights: ArrayLike = (0.1, 0.1, 0.1, 0.1),
    final_weights: ArrayLike = (*[200.0] * 3, *[50.0] * 3, *[20.0] * 3, *[5.0] * 3),
    per_problem: Data = None,
) -> Problem:
    """Fly a quadrotor to a point and hover there, facing the goal's way.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (13,) or (B, 13); the default is yawed by one radian.
        goal: state (13,). Quaternions of both have norm 1.
        mass: [kg].
        inertias: principal, about the centre of mass (3,) [kg m^2].
        arm: from the centre to a rotor [m].
        drag_ratio: torque of a rotor about its axis for its thrust [m].
        gravity: [m/s^2].
        state_weights, final_weights: diagonals (12,) for position, rotation, velocity, rates.
        control_weights: diagonal (4,).
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, a quaternion whose norm is not 1, an unknown parameter, ...
    """
    for name, value in (("x0", x0), ("goal", goal), ("goal", (per_problem or {}).get("goal"))):
        if value is not None:
            check_quaternion(name, value)
    return assemble(
        "quadrotor3d",
        dynamics,
        FlightCost(),
        x0=x0,
        sizes=(13, 4),
        error_size=12,
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": goal,
            "mass": mass,
            "inertias": inertias,
            "arm": arm,
            "drag_ratio": drag_ratio,
            "gravity": gravity,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
    )


def check_quaternion(name: str, value: ArrayLike) -> None:
    q = floating(value)[..., 3:7]
    norm = torch.linalg.vector_norm(q, dim=-1)
    if bool(((norm - 1).abs() > 1e-5).any()):
        raise ValueError(
            f"quadrotor3d: the quaternion {name}[3:7] must have norm 1, got {norm.tolist()}: "
            "divide it by its norm."
        )
