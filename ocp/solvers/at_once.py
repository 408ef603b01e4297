"""Small solves that an engine makes in one call: what Python does around them takes its time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp import engines
from ocp.engines.base import Answer
from ocp.problem import Problem
from ocp.report import sentence
from ocp.solution import Policy, Solution, Status, Value
from ocp.solvers.certificate import flat_bound, judged
from ocp.solvers.dynamic_programming import ILQR
from ocp.solvers.loop import Solver, State
from ocp.solvers.run import LONG, first_chunk


@dataclass
class AtOnce:
    """What one call came to: a solution if it is `finished`, else a state to go on from."""

    solver: Solver
    problem: Problem
    answer: Answer
    begun: float  # s since the solve began
    duration: float  # s

    @property
    def finished(self) -> bool:
        return self.answer.finished

    @property
    def seconds(self) -> tuple[float, ...]:
        """Since the solve began; the time of the call is divided evenly over its steps."""
        steps = self.answer.steps
        return tuple(self.begun + self.duration * (i + 1) / steps for i in range(steps))

    @property
    def spent(self) -> tuple[int, int, int]:
        """Iterations, roll-outs and sweeps."""
        counts = self.answer.counts
        return counts["iterations"], counts["rollouts"], counts["sweeps"]

    def rows(self) -> dict[str, Tensor]:
        """The history: (steps,) each."""
        rows = dict(self.answer.rows)
        for name in ("second_order", "running"):
            if name in rows:
                rows[name] = rows[name] != 0
        return rows

    def state(self) -> State:
        """As the solver's own steps would have left it."""
        a, x0 = self.answer, self.problem.x0
        reals = {k: x0.new_full((1,), v) for k, v in a.reals.items()}
        counts = {k: torch.tensor([v]) for k, v in a.counts.items()}
        counts["second_order"] = counts["second_order"] != 0
        open_gaps = a.gaps is not None and a.reals["gap"] > 0
        return State(
            engine=engines.make(self.problem, self.solver.engine),
            xs=a.xs[:, None],
            us=a.us[:, None],
            gaps=a.gaps[:, None] if open_gaps and a.gaps is not None else None,
            costates=None,
            rows=({k: v[:, None] for k, v in self.rows().items()},) if a.rows else (),
            feedback=(a.K if a.feedback is None else a.feedback)[:, None],
            **reals,
            **counts,
        )

    def solution(self, seconds: float) -> Solution:
        """What `Solver.result` says of a finished state; ``seconds`` for the whole solve."""
        a, problem = self.answer, self.problem
        told = a.told.tolist()
        tolerance = self.solver.rules.tolerances(a.told.dtype)[0]
        code = judged(a.counts["status"], a.indefinite, told[1], tolerance)
        facts = told[1], told[3], a.indefinite, a.failed, told[0], a.reals["damping"]
        cost, residual, hamiltonian, gap, _, _ = a.told.unbind()
        iterations, rollouts, sweeps = torch.tensor(self.spent).unbind()
        bounds: dict[str, Any] = {}
        if problem.lower is not None and problem.upper is not None:
            bounds = {"lower": flat_bound(problem.lower), "upper": flat_bound(problem.upper)}
        return Solution(
            states=a.xs,
            controls=a.us,
            costates=a.costates,
            cost=cost,
            policy=Policy(states=a.xs.clone(), controls=a.us.clone(), k=a.k, K=a.K, **bounds),
            value=Value(a.vx, a.vxx),
            status=code,
            message=sentence(code, *facts, a.counts["iterations"]),
            residual=residual,
            hamiltonian_residual=hamiltonian,
            gap=gap,
            iterations=iterations,
            rollouts=rollouts,
            sweeps=sweeps,
            history={**self.rows(), "seconds": torch.tensor(self.seconds, dtype=torch.float64)},
            seconds=seconds,
            method=self.solver.name,
            engine="native",
            problem_name=problem.name,
        )


def plain(kind: type[Solver]) -> bool:
    """Whether a kind of solver is ILQR in all that such a call does for it."""
    same = ("init", "step", "steps", "advance", "recipe", "record", "result")
    return issubclass(kind, ILQR) and all(getattr(kind, k) is getattr(ILQR, k) for k in same)


def at_once(
    solver: Solver,
    problem: Problem,
    controls: Any,
    states: Any,
    most: int | None = None,
    spent: Sequence[int] = (0, 0, 0),
    begun: float = 0.0,
) -> AtOnce | None:
    """Up to ``most`` iterations in one call; None where they are made one by one.

    Args:
        spent: iterations, roll-outs and sweeps made before.
        begun: seconds since the solve began.

    That is so for batches and other engines, and wherever something has to be complained of.
    """
    if not plain(type(solver)) or solver.rules.max_iterations <= spent[0]:
        return None
    recipe = solver.whole_iterations(problem.x0.dtype)
    if recipe is None or (states is not None and not solver.accepts_gaps):
        return None
    start = time.perf_counter()
    second_order = solver.starts_second_order
    solve = engines.whole(problem, solver.engine, recipe, solver.rules.damping_start, second_order)
    if solve is None:
        return None
    T, n, m = problem.horizon, problem.state_dims[0], problem.control_dims[0]
    us = problem.x0.new_zeros(T, m) if controls is None else controls
    for given, shape in ((us, (T, m)), (states, (T + 1, n))):
        if given is not None and not usable(given, shape, problem.x0):
            return None
    chunk = solve.chunk or first_chunk(problem)
    answer = solve(us, states, most or chunk, spent)
    if answer.counts["status"] == Status.NON_FINITE:
        return None
    seconds = time.perf_counter() - start
    if answer.counts["status"] == Status.RUNNING and most is None and seconds < LONG:
        solve.chunk = min(2 * chunk, solver.rules.max_iterations)
    return AtOnce(solver, problem, answer, begun, seconds)


def usable(value: Any, shape: tuple[int, ...], like: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype == like.dtype
        and value.device == like.device
        and value.is_contiguous()
    )
