"""Receding-horizon control: a few iterations at every measured state, from the last controls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp import engines, layout
from ocp.feedback import Plan, follow, plan_of, shifted
from ocp.problem import Problem
from ocp.solution import Solution, Status
from ocp.solve import make_solver
from ocp.solvers.loop import Solver, State, zero_controls
from ocp.solvers.run import steps_of
from ocp.validation import numbers


class RecedingHorizon:
    """Model predictive control by real-time iterations (Diehl, Bock, Schlöder 2005).

    Every call drops the stages that have passed, repeats the last control, rolls out from the
    measured state, makes the iterations and returns the first control. With the native engine a
    call of one iteration costs about as much as the iteration.

    Args:
        problem: what is solved at every call; its x0 is replaced. Sizes do not change by stage.
        method: "ilqr", "ddp", ... or a solver object.
        start: a `Solution` of the problem, or controls (T, m) or (B, T, m); zero if None.
        iterations: of the method at every call, at most.
        shift: stages that pass between two calls.
        options: of the method, as in `ocp.solve`.

    Raises:
        ValueError, TypeError: an argument is wrong.

    Attributes:
        status: `Status` after the last call, per problem; RUNNING where iterations were left.
    """

    def __init__(
        self,
        problem: Problem,
        method: str | Solver = "ilqr",
        start: Any = None,
        *,
        iterations: int = 1,
        shift: int = 1,
        **options: Any,
    ) -> None:
        if not problem.uniform:
            raise ValueError(
                "RecedingHorizon shifts controls by stages: their sizes must not change by stage."
            )
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations!r}.")
        if not 0 <= shift <= problem.horizon:
            raise ValueError(f"shift must be in 0..{problem.horizon}, got {shift!r}.")
        self._problem, self.iterations, self.shift = problem, iterations, shift
        self._shape, m = problem.x0.shape, problem.control_dims[0]
        self._control = (problem.batch, m) if problem.batched else (m,)
        self.solver = make_solver(method, **options)
        if isinstance(start, Solution):
            self._plan = plan_of(problem, start)
        else:
            none = start is None
            us = zero_controls(problem) if none else layout.controls_in(problem, start)
            self._plan = Plan(us, us, None)
        self._status: Tensor | None = None
        self._prepared: engines.Prepared | None = None
        self._fresh = True  # the guess is for the first state: nothing has passed yet

    def __call__(self, x0: Any, **data: Any) -> Tensor:
        """The control at the measured state: (m,), or (B, m) in a batch.

        Args:
            x0: of the shape of the problem's.
            data: parameters, per_problem or goal that changed, as in `Problem.replace`.

        Raises:
            ValueError, TypeError: the state is not finite or has another shape; nothing is changed.
        """
        problem = self._problem.replace(**data) if data else self._problem
        prepared, plan = self._prepared, None
        usual = prepared is not None and isinstance(x0, Tensor) and x0.shape == self._shape
        if prepared is not None and usual and prepared.begins_at(x0) and prepared.renew(problem):
            self._problem, self._status = problem, prepared.status
            if prepared():
                return prepared.first_control(self._control)
            plan = Plan(*prepared.plan)
        x0 = numbers("x0", x0, problem.x0.dtype)
        if x0.shape != self._shape:
            raise ValueError(f"x0 must have shape {tuple(self._shape)}, got {tuple(x0.shape)}.")
        problem = problem.replace(x0=x0)
        if plan is None:
            plan = shifted(self._trajectory(), 0 if self._fresh else self.shift)
        us = self._iterate(problem, plan)
        return us[0].clone() if problem.batched else us[0, 0].clone()

    def _trajectory(self) -> Plan:
        """Of the last call, with its feedback."""
        kept = self._prepared
        return (
            self._plan if kept is None else Plan(kept.xs.clone(), kept.us.clone(), kept.K.clone())
        )

    def _iterate(self, problem: Problem, plan: Plan) -> Tensor:
        """By the pieces, on any engine; what a prepared call does."""
        us, left = follow(engines.make(problem, self.solver.engine), plan), self.iterations
        state = self.solver.init(problem, layout.stages_out(problem, us))
        while state.running and left > 0:
            state = self.solver.steps(problem, state, left)
            left = self.iterations - steps_of(state)
        self._problem, self._status, self._fresh = problem, state.status, False
        self._plan = Plan(state.xs, state.us, state.feedback)
        self._prepare(state)
        return torch.as_tensor(state.us)

    def _prepare(self, state: State) -> None:
        """What later calls begin from, if the engine can do them at once."""
        recipe, whole = self.solver.recipe(state), [v for v in self._plan if isinstance(v, Tensor)]
        if recipe is None or len(whole) < 3:
            self._prepared = None
            return
        settings = self.solver.rules.damping_start, self.iterations, self.shift
        prepared = state.engine.prepare(recipe, *settings)
        if prepared is not None:
            prepared.load(*whole)
            prepared.begins_at(self._problem.x0)
        self._prepared = prepared

    @property
    def problem(self) -> Problem:
        """With the last state as its x0."""
        if self._prepared is None:
            return self._problem
        return self._problem.replace(x0=self._prepared.x0.reshape(self._shape))

    @property
    def controls(self) -> Tensor:
        """Those of the last call (T, m) or (B, T, m); of the guess before the first."""
        return layout.stages_out(self._problem, self._trajectory().us)

    @property
    def status(self) -> Any:
        if self._status is None:
            return None
        several = [Status(code) for code in self._status.tolist()]
        return several if self._problem.batched else several[0]

    def solution(self) -> Solution:
        """The last call's trajectory with its certificate and policy, as `ocp.solve` returns it.

        Its status says RUNNING where the iterations did not suffice.
        """
        problem = self.problem
        return self.solver.result(problem, self.solver.init(problem, self.controls))
