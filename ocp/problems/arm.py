"""A two-link arm reaches a point in the horizontal plane, driven by torques.

Equations in `ocp.problems.two_link` without gravity, with the friction of the source:

    torques = u - F a',   F = [[0.05, 0.025], [0.025, 0.05]] N m s

x = (shoulder a1 [rad], elbow a2 [rad], and their rates [rad/s]), u = (two torques [N m]).
The hand is at ``l1 (cos a1, sin a1) + l2 (cos(a1 + a2), sin(a1 + a2))``, and with the
time step dt the cost is

    l   = dt/2 (c_h |hand - target|^2 + c_v |a'|^2 + c_u |u|^2)
    phi = 1/2 (d_h |hand - target|^2 + d_v |a'|^2)

Source: the human arm of Li, Todorov, Iterative linear quadratic regulator design for nonlinear
biological movement systems (2004), sec. 4.1, with a target for the hand instead of the joints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, Parameters, assemble, rk4_stage
from ocp.problems.two_link import Links, accelerations


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    angles, rates = x[:2], x[2:]
    shoulder, elbow = u - p["friction"] @ rates
    links = Links(p["masses"], p["lengths"], p["centres"], p["inertias"])
    still = torch.zeros_like(shoulder)
    change = accelerations(angles, rates, (shoulder, elbow), links, still)
    return torch.cat((rates, torch.stack(change)))


def hand(angles: Tensor, lengths: Tensor) -> Tensor:
    """Position [m] of the hand: (..., 2), (..., 2) -> (..., 2)."""
    first, both = angles[..., 0], angles[..., 0] + angles[..., 1]
    l1, l2 = lengths[..., 0], lengths[..., 1]
    across = l1 * torch.cos(first) + l2 * torch.cos(both)
    along = l1 * torch.sin(first) + l2 * torch.sin(both)
    return torch.stack((across, along), dim=-1)


def reach(target: Tensor, lengths: Tensor) -> Tensor:
    """Joint angles (..., 2) that put the hand at target (..., 2).

    The elbow is in [0, pi], the shoulder in [-pi, pi).

    Raises:
        ValueError: the target is out of reach.
    """
    l1, l2 = lengths[..., 0], lengths[..., 1]
    distance = torch.linalg.vector_norm(target, dim=-1)
    if bool(((distance > l1 + l2) | (distance < (l1 - l2).abs())).any()):
        raise ValueError(
            f"arm: the target {target.tolist()} is out of reach; its distance from the shoulder "
            f"must be between {(l1 - l2).abs().tolist()} and {(l1 + l2).tolist()} m."
        )
    cosine = (distance**2 - l1**2 - l2**2) / (2 * l1 * l2)
    elbow = torch.acos(cosine.clamp(-1, 1))
    aside = torch.atan2(l2 * torch.sin(elbow), l1 + l2 * torch.cos(elbow))
    shoulder = torch.atan2(target[..., 1], target[..., 0]) - aside
    wrapped = torch.remainder(shoulder + math.pi, 2 * math.pi) - math.pi
    return torch.stack((wrapped, elbow), dim=-1)


class ReachCost:
    """Squared distance of the hand from ``p["target"]``, joint rates and torques."""

    def stage(self, x: Tensor, u: Tensor, t: Tensor, p: Parameters) -> Tensor:
        return p["dt"] / 2 * (weighted(x, p["state_weights"], p) + u @ (p["control_weights"] * u))

    def terminal(self, x: Tensor, p: Parameters) -> Tensor:
        return weighted(x, p["final_weights"], p) / 2


def weighted(x: Tensor, weights: Tensor, p: Parameters) -> Tensor:
    miss, rates = hand(x[:2], p["lengths"]) - p["target"], x[2:]
    return weights[0] * (miss @ miss) + weights[1] * (rates @ rates)


def arm(
    *,
    horizon: int = 60,
    dt: float = 0.01,
    x0: ArrayLike = (math.pi / 6, math.pi / 2, 0.0, 0.0),
    target: ArrayLike = (-0.2, 0.3),
    masses: ArrayLike = (1.4, 1.1),
    lengths: ArrayLike = (0.30, 0.33),
    centres: ArrayLike = (0.11, 0.16),
    inertias: ArrayLike = (0.025, 0.045),
    friction: ArrayLike = ((0.05, 0.025), (0.025, 0.05)),
    state_weights: ArrayLike = (0.0, 0.0),
    control_weights: ArrayLike = (0.1, 0.1),
    final_weights: ArrayLike = (1e3, 10.0),
    per_problem: Data = None,
) -> Problem:
    """Reach for a point with a two-link arm, and stop there.

    The problem's goal is the state with the hand at the target and the elbow bent to the left.

    Args:
        horizon: stages.
        dt: time step [s].
        x0: initial state (4,) or (B, 4).
        target: where the hand shall be (2,) [m].
        masses: of upper arm and forearm (2,) [kg].
        lengths: (2,) [m].
        centres: from the joint to the centre of mass (2,) [m].
        inertias: about the centre of mass (2,) [kg m^2].
        friction: viscous, of the joints (2, 2) [N m s].
        state_weights: c_h, c_v (2,).
        control_weights: c_u of each torque (2,).
        final_weights: d_h, d_v (2,).
        per_problem: any of the above from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: wrong shapes, a target out of reach, an unknown parameter, ...
    """

    def goal(p: Parameters) -> Tensor:
        angles = reach(p["target"], p["lengths"])
        return torch.cat((angles, torch.zeros_like(angles)), dim=-1)

    return assemble(
        "arm",
        rk4_stage(ode),
        ReachCost(),
        x0=x0,
        sizes=(4, 2),
        error_size=2,
        horizon=horizon,
        parameters={
            "dt": dt,
            "target": target,
            "masses": masses,
            "lengths": lengths,
            "centres": centres,
            "inertias": inertias,
            "friction": friction,
            "state_weights": state_weights,
            "control_weights": control_weights,
            "final_weights": final_weights,
        },
        per_problem=per_problem,
        goal=goal,
    )
