"""Repeating `step`: finished problems leave the batch, interruptions keep what there is."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp.problem import Problem
from ocp.solution import Status
from ocp.solvers.loop import Callback, Report, Solver, State
from ocp.solvers.subset import put, subproblem, take

SHRINK = 0.5  # of the batch still running: below, the finished ones leave it
SMALL = 8  # problems that are not worth leaving: calls, not arithmetic, are what costs


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
        count = int(running.sum())
        if count == 0 or count > SHRINK * len(running) or len(running) <= SMALL:
            return
        self.whole = self.merged()
        self.index = (self.whole.status == Status.RUNNING).nonzero()[:, 0]
        self.active = subproblem(self.problem, self.index)
        self.part = take(self.whole, self.index, self.active, self.solver)

    def step(self) -> None:
        self.part = self.solver.step(self.active, self.part)
        self.shrink()

    def stop(self, status: Status) -> None:
        running = self.part.status == Status.RUNNING
        self.part = self.part._replace(status=torch.where(running, int(status), self.part.status))


def stopped(state: State, status: Status) -> State:
    """The state with every problem that still runs given a status."""
    running = state.status == Status.RUNNING
    return state._replace(status=torch.where(running, int(status), state.status))


def finish(solver: Solver, problem: Problem, state: State) -> State:
    """Repeat `step` until every problem has a status. Ctrl-C goes to the caller."""
    work = Working(solver, problem, state)
    while work.part.running:
        work.step()
    return work.merged()


def run(
    solver: Solver,
    problem: Problem,
    state: State,
    callback: Callback | None = None,
    time_limit: float | None = None,
) -> tuple[State, tuple[float, ...]]:
    """Repeat `step` until every problem has a status. Ctrl-C keeps what there is.

    Returns:
        The last state, and the seconds since the start after each step.
    """
    begin, seconds = time.perf_counter(), list[float]()
    work = Working(solver, problem, state)
    try:
        while work.part.running:
            work.step()
            seconds.append(time.perf_counter() - begin)
            if callback is not None and callback(report(work.merged(), seconds)):
                work.stop(Status.INTERRUPTED)
            if time_limit is not None and seconds[-1] >= time_limit:
                work.stop(Status.TIME_LIMIT)
    except KeyboardInterrupt:
        work.stop(Status.INTERRUPTED)
    last = work.merged()
    return last, tuple(seconds[: len(last.rows)])


def report(state: State, seconds: list[float]) -> Report:
    return Report(
        len(seconds), state.cost, state.residual, state.gap, state.status, seconds[-1], state
    )
