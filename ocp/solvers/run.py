"""Repeating `step`: finished problems leave the batch, interruptions keep what there is."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp.engines.native.grid import FEW
from ocp.problem import Problem
from ocp.solution import Status
from ocp.solvers.loop import Callback, Report, Solver, State
from ocp.solvers.subset import put, subproblem, take

SHRINK = 0.5  # of the batch still running: below, the finished ones leave it
LONG = 0.1  # seconds a call may take before the next makes fewer steps
CHUNK = 2**15  # stages, over all problems and iterations, of the first call
SMALL = 8  # problems that are not worth leaving: calls, not arithmetic, are what costs
WIDE = FEW  # on a GPU, where those that have stopped cost little, and fewer need another program


@dataclass
class Working:
    """A batch of which only the problems still running are worked on."""

    solver: Solver
    problem: Problem
    whole: State

    def __post_init__(self) -> None:
        self.active: Problem = self.problem
        self.part: State = self.whole
        self.index: Tensor | None = None  # rows of `whole` that `part` holds; None for all

    def merged(self) -> State:
        return self.part if self.index is None else put(self.whole, self.part, self.index)

    def shrink(self) -> None:
        running = self.part.status == Status.RUNNING
        if len(running) <= SMALL:
            return
        count = int(running.sum())
        if count == 0 or count > SHRINK * len(running):
            return
        if running.is_cuda and count < WIDE:
            return
        self.whole = self.merged()
        self.index = (self.whole.status == Status.RUNNING).nonzero()[:, 0]
        self.active = subproblem(self.problem, self.index)
        self.part = take(self.whole, self.index, self.active, self.solver)

    def step(self, most: int) -> None:
        self.part = self.solver.steps(self.active, self.part, most)
        self.shrink()

    def stop(self, status: Status) -> None:
        running = self.part.status == Status.RUNNING
        self.part = self.part._replace(status=torch.where(running, int(status), self.part.status))


class Budget:
    """When to stop, and why; what a start solves on the way draws on the budget of the solve.

    Attributes:
        callback: of the solve, for a start whose steps are the first of the solve itself.
    """

    def __init__(self, time_limit: float | None = None, callback: Callback | None = None) -> None:
        self.begin, self.time_limit, self.callback = time.perf_counter(), time_limit, callback
        self.status: Status | None = None  # why it is over

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin

    def check(self) -> Status | None:
        late = self.time_limit is not None and self.seconds >= self.time_limit
        if self.status is None and late:
            self.status = Status.TIME_LIMIT
        return self.status


BUDGET: ContextVar[Budget | None] = ContextVar("budget", default=None)
"""Of the solve under way. Not an argument: users write starts, and they call `finish`."""


def run(
    solver: Solver,
    problem: Problem,
    state: State,
    callback: Callback | None = None,
    before: tuple[float, ...] = (),
) -> tuple[State, tuple[float, ...]]:
    """Repeat `step` until every problem has a status. Ctrl-C keeps what there is.

    Without a callback an engine may make many steps in one call, all the faster; Ctrl-C and the
    time limit are seen between calls, and the seconds are divided evenly over their steps.

    Args:
        before: seconds after the last steps of the state, which belong to what is made here.

    Returns:
        The last state, and the seconds since the solve began after each step made here.
    """
    budget, seconds, start = BUDGET.get() or Budget(), list(before), state
    begun, earlier = budget.seconds, steps_of(start) - len(before)
    work = Working(solver, problem, start)
    most = 1 if callback or budget.time_limit is not None else first_chunk(problem)
    try:
        while work.part.running and budget.status is None:
            last = seconds[-1] if seconds else begun
            work.step(most)
            made, now = steps_of(work.part) - earlier - len(seconds), budget.seconds
            seconds += [last + (now - last) * (i + 1) / made for i in range(made)]
            if callback is None:
                most = 2 * most if now - last < LONG else max(1, most // 2)
            if callback is not None and callback(report(work.merged(), seconds, start, begun)):
                budget.status = Status.INTERRUPTED
            budget.check()
    except KeyboardInterrupt:
        budget.status = Status.INTERRUPTED
    if budget.status is not None:
        work.stop(budget.status)
    state = work.merged()
    return state, tuple(seconds[: steps_of(state) - earlier])


def steps_of(state: State) -> int:
    """Rows of its history."""
    return sum(block["running"].shape[0] for block in state.rows)


def first_chunk(problem: Problem) -> int:
    """Iterations that an engine making many at once surely makes within a second or so."""
    return min(256, max(1, CHUNK // (problem.batch * problem.samples * problem.horizon)))


def finish(solver: Solver, problem: Problem, state: State) -> State:
    """`run` without its times: what a start needs that solves something on the way."""
    return run(solver, problem, state)[0]


def report(state: State, seconds: list[float], start: State, begun: float) -> Report:
    facts = state.cost, state.residual, state.gap, state.status
    return Report(len(seconds), *facts, seconds[-1], state, start, begun)
