"""Methods from dynamic programming: iLQR, DDP, Newton's method, and LQR in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ocp.engines import Expansion, Policy, Sweep
from ocp.engines.base import Curvature
from ocp.engines.riccati import costates, linear_rollout
from ocp.problem import Problem
from ocp.solvers.loop import Direction, Solver, State


@dataclass(frozen=True)
class ILQR(Solver):
    """Iterative LQR: Gauss-Newton model, nonlinear roll-out with feedback (Li, Todorov 2004).

    Args:
        regularisation: the damping goes on Q_uu ("control") or on V_xx ("state", Tassa 2012).
    """

    regularisation: Literal["control", "state"] = "control"
    name: ClassVar[str] = "ilqr"
    accepts_gaps: ClassVar[bool] = True

    def direction(self, state: State, expansion: Expansion) -> Direction:
        return promise(self.sweep(state, expansion, None), 1)

    def sweep(self, state: State, expansion: Expansion, curvature: Curvature | None) -> Sweep:
        on_state = self.regularisation == "state"
        return state.engine.sweep(
            expansion, state.us, state.gaps, state.damping, curvature, on_state
        )


@dataclass(frozen=True)
class DDP(ILQR):
    """Differential dynamic programming: the model keeps V_x . f_zz (Mayne 1966).

    Args:
        second_order: "hybrid" starts with Gauss-Newton and adds the second-order terms once a
            step lowers the cost by less than ``rules.second_order_below`` (relative); "always"
            has them from the start. Where Q_uu is then indefinite at any stage, the backward pass
            of that problem is redone with the Gauss-Newton terms.
    """

    second_order: Literal["hybrid", "always"] = "hybrid"
    name: ClassVar[str] = "ddp"

    def direction(self, state: State, expansion: Expansion) -> Direction:
        full = state.second_order | (self.second_order == "always")
        if not bool((full & (state.status < 0)).any()):
            return super().direction(state, expansion)
        curvature = masked(state.engine.curvature(state.xs, state.us), full)
        return hybrid(self, state, expansion, curvature, full)


@dataclass(frozen=True)
class Newton(ILQR):
    """Newton's method in the controls: exact second-order model along the costates, solved by the
    same sweep, with a linear roll-out (Pantoja 1988; Liao and Shoemaker 1992). The Gauss-Newton
    model replaces it where it is indefinite.
    """

    name: ClassVar[str] = "newton"
    accepts_gaps: ClassVar[bool] = False

    def direction(self, state: State, expansion: Expansion) -> Direction:
        ps, _ = costates(expansion)
        curvature = state.engine.curvature_along(state.xs, state.us, ps)
        direction = hybrid(self, state, expansion, curvature, state.status < 0)
        _, dus = linear_rollout(expansion, direction.policy, None)
        return direction._replace(policy=Policy(dus, None))


@dataclass(frozen=True)
class LQR(ILQR):
    """Exact solution of a linear-quadratic problem: one undamped sweep and one full step.

    Time-varying, affine and cross terms included. Any other problem ends after its first step
    with the status that its certificate deserves.
    """

    name: ClassVar[str] = "lqr"

    def init(self, problem: Problem, controls: object = None, states: object = None) -> State:
        state = super().init(problem, controls, states)
        return state._replace(damping=torch.zeros_like(state.damping))


def promise(sweep: Sweep, sweeps: int) -> Direction:
    usable = sweep.failed < 0
    return Direction(sweep.policy, sweep.slope, sweep.curvature, sweep.residual, usable, sweeps)


def masked(curvature: Curvature, full: Tensor) -> Curvature:
    """The second-order terms of the problems in ``full``, zero for the others."""
    keep = full.to(torch.get_default_dtype())[:, None, None]
    return lambda t, v: curvature(t, v) * keep.to(v.dtype)


def hybrid(
    solver: ILQR, state: State, expansion: Expansion, curvature: Curvature, full: Tensor
) -> Direction:
    """The full model; where that is indefinite, the whole backward pass as Gauss-Newton."""
    sweep = solver.sweep(state, expansion, curvature)
    indefinite = full & (sweep.failed >= 0)
    if not bool((indefinite & (state.status < 0)).any()):
        return promise(sweep, 1)
    again = solver.sweep(state, expansion, masked(curvature, full & ~indefinite))
    return promise(again, 2)
