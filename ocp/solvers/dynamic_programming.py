"""Methods from dynamic programming: iLQR, DDP, Newton's method, and LQR in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ocp.engines import Expansion, Policy, Sweep
from ocp.engines.base import Recipe, SecondOrder
from ocp.problem import Problem
from ocp.solution import Status
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
        regularisation: the damping goes on Q_uu ("control") or on V_xx ("state", Tassa 2012), and
            shortens the step only; or it is a term 1/2 damping |du|^2 of the model ("proximal"),
            in the value and in the expected decrease, as for networks.
    """

    regularisation: Literal["control", "state", "proximal"] = "control"
    name: ClassVar[str] = "ilqr"
    accepts_gaps: ClassVar[bool] = True
    damped: ClassVar[bool] = True

    # -- whole iterations, where the engine makes them -------------------------------------------
    def recipe(self, state: State) -> Recipe | None:
        """What such an engine has to know; None where this step is not one it knows."""
        return None if state.memory is not None else self.whole_iterations(state.cost.dtype)

    def whole_iterations(self, dtype: torch.dtype) -> Recipe | None:
        """What it has to know of a solver that keeps no memory of earlier steps."""
        if not self.iterates_as(ILQR) or self.regularisation == "proximal" or self.mode is None:
            return None
        limits = self.own_rules.limits(dtype)
        return Recipe(self.mode, self.regularisation == "state", self.trials, limits)

    @property
    def mode(self) -> int | None:
        """`Recipe.second_order`; None: the model is another."""
        return 0

    # -- the pieces ------------------------------------------------------------------------------
    def full(self, state: State) -> Tensor:
        """Which problems' model has second-order terms: (B,)."""
        return torch.zeros_like(state.second_order)

    def curvature(self, state: State, expansion: Expansion) -> SecondOrder:
        """Those terms."""
        return state.engine.curvature(state.xs, state.us)

    def direction(self, state: State, expansion: Expansion) -> Direction:
        """One backward pass; a second for the problems whose model it finds indefinite.

        Those drop their second-order terms, or add the measured curvature if they have none.
        """
        running = state.status == Status.RUNNING
        full = self.full(state)
        some = bool((full & running).any())
        curvature = self.curvature(state, expansion).within(full) if some else None
        first_order, none = ~full, torch.zeros_like(full)
        lacking = none if state.memory is None else state.memory[2, :, 0] > 0
        memory = None if state.memory is None else secant(state, expansion, lacking)
        sweep = self.sweep(state, expansion, curvature, memory, first_order)
        again = running & (sweep.failed >= 0) & (full | ~lacking)
        if bool(again.any()):
            lacking = lacking | (again & first_order)
            full = full & ~again
            if bool(lacking.any()):
                memory = secant(state, expansion, lacking)
            curvature = None if curvature is None else curvature.within(full)
            sweep = self.sweep(state, expansion, curvature, memory, first_order)
        usable = sweep.failed < 0
        return Direction(
            sweep.policy, sweep.slope, sweep.curvature, sweep.residual, usable, 1 + again, memory
        )

    def sweep(
        self,
        state: State,
        expansion: Expansion,
        curvature: SecondOrder | None,
        memory: Tensor | None,
        first_order: Tensor,
    ) -> Sweep:
        damping = state.damping
        if memory is not None:
            damping = damping + torch.where(first_order, memory[2, :, 0], 0)
        on_state, proximal = (self.regularisation == kind for kind in ("state", "proximal"))
        return state.engine.sweep(
            expansion, state.us, state.gaps, damping, curvature, on_state, proximal
        )


def secant(state: State, expansion: Expansion, lacking: Tensor) -> Tensor:
    """Controls, their gradient, and the curvature between them, 0 unless ``lacking``: (3, B, N).

    The first curvature lets the largest gradient move its control by about 1; a refused step, or
    one along which there was no positive curvature, changes it tenfold.
    """
    u, g = flat(state.us), flat(state.engine.costates(expansion)[1])
    curvature = g.abs().amax(dim=-1)
    if state.memory is not None:
        before = state.memory[2, :, 0]
        s, y = u - state.memory[0], g - state.memory[1]
        moved, sy = (s != 0).any(dim=-1), (s * y).sum(dim=-1)
        measured = sy / (s * s).sum(dim=-1).clamp_min(torch.finfo(s.dtype).tiny)
        measured = torch.where(sy > 0, measured, before / 10)
        measured = torch.where(moved, measured, before * 10)
        curvature = torch.where(before > 0, measured, curvature)
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

    def full(self, state: State) -> Tensor:
        return state.second_order | (self.second_order == "always")

    @property
    def mode(self) -> int | None:
        return {"hybrid": 1, "always": 2}[self.second_order]


@dataclass(frozen=True)
class Newton(ILQR):
    """Newton's method in the controls: exact second-order model along the costates, solved by the
    same sweep, with a linear roll-out (Pantoja 1988; Liao and Shoemaker 1992). The Gauss-Newton
    model replaces it where it is indefinite.
    """

    name: ClassVar[str] = "newton"
    accepts_gaps: ClassVar[bool] = False

    @property
    def mode(self) -> int | None:
        return None

    def full(self, state: State) -> Tensor:
        return torch.ones_like(state.second_order)

    def curvature(self, state: State, expansion: Expansion) -> SecondOrder:
        return state.engine.curvature_along(state.xs, state.us, state.engine.costates(expansion)[0])

    def direction(self, state: State, expansion: Expansion) -> Direction:
        direction = super().direction(state, expansion)
        _, dus = state.engine.linear_rollout(expansion, direction.policy, None)
        return direction._replace(policy=Policy(dus, None))


@dataclass(frozen=True)
class LQR(ILQR):
    """Exact solution of a linear-quadratic problem: one undamped sweep and one full step.

    Time-varying, affine and cross terms included. Any other problem ends after its first step
    with the status that its certificate deserves.
    """

    name: ClassVar[str] = "lqr"
    damped: ClassVar[bool] = False

    def init(self, problem: Problem, controls: object = None, states: object = None) -> State:
        state = super().init(problem, controls, states)
        return state._replace(damping=torch.zeros_like(state.damping))
