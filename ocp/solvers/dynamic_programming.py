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
from ocp.solvers.hamiltonian import flat
from ocp.solvers.loop import Direction, Solver, State


@dataclass(frozen=True)
class ILQR(Solver):
    """Iterative LQR: Gauss-Newton model, nonlinear roll-out with feedback (Li, Todorov 2004).

    Where a cost has no curvature in the controls and the Gauss-Newton Q_uu is therefore not
    positive definite (Mayer problems: everything in a linear terminal cost), the curvature of the
    last step along itself, measured by the exact gradients at its ends, is added to the damping of
    that problem (Barzilai, Borwein 1988). A fixed damping crawls there.

    Args:
        regularisation: the damping goes on Q_uu ("control") or on V_xx ("state", Tassa 2012).
    """

    regularisation: Literal["control", "state"] = "control"
    name: ClassVar[str] = "ilqr"
    accepts_gaps: ClassVar[bool] = True

    def direction(self, state: State, expansion: Expansion) -> Direction:
        if state.memory is None:
            sweep = self.sweep(state, expansion, None)
            if not bool(((sweep.failed >= 0) & (state.status < 0)).any()):
                return promise(sweep, 1)
            lacking = sweep.failed >= 0
        else:
            lacking = state.memory[2, :, 0] > 0
        memory = secant(state, expansion, lacking)
        damping = state.damping + memory[2, :, 0]
        sweep = self.sweep(state._replace(damping=damping), expansion, None)
        return promise(sweep, 1 if state.memory is not None else 2)._replace(memory=memory)

    def sweep(self, state: State, expansion: Expansion, curvature: Curvature | None) -> Sweep:
        on_state = self.regularisation == "state"
        return state.engine.sweep(
            expansion, state.us, state.gaps, state.damping, curvature, on_state
        )


def secant(state: State, expansion: Expansion, lacking: Tensor) -> Tensor:
    """Controls, their gradient, and the curvature between them, 0 unless ``lacking``: (3, B, N).

    The first curvature lets the largest gradient move its control by about 1; a refused step, or
    one along which there was no positive curvature, changes it tenfold.
    """
    u, g = flat(state.us), flat(costates(expansion)[1])
    if state.memory is None:
        curvature = g.abs().amax(dim=-1)
    else:
        before = state.memory[2, :, 0]
        s, y = u - state.memory[0], g - state.memory[1]
        moved, sy = (s != 0).any(dim=-1), (s * y).sum(dim=-1)
        measured = sy / (s * s).sum(dim=-1).clamp_min(torch.finfo(s.dtype).tiny)
        curvature = torch.where(sy > 0, measured, before / 10)
        curvature = torch.where(moved, curvature, before * 10)
    curvature = torch.where(lacking, curvature.clamp(1e-12, 1e12), 0)
    return torch.stack((u, g, curvature[:, None].expand_as(u)))


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
