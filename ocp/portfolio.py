"""A solve from one start, or from several as one batch of which the cheapest goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ocp import layout
from ocp.problem import Problem, Stages
from ocp.solution import Solution, Status
from ocp.solvers.at_once import AtOnce
from ocp.solvers.loop import Callback, Solver, State, zero_controls
from ocp.solvers.run import BUDGET, Budget, run
from ocp.solvers.subset import take
from ocp.stages import pack
from ocp.starts import (
    SPENT,
    Guess,
    Start,
    at_most,
    begin,
    charged,
    going_on,
    interpolate,
    pursued,
    quick,
    warm,
    weight_continuation,
    zero,
)

PATIENCE = 200  # iterations each start of several may take; the best then goes on alone
PORTFOLIO: tuple[Start, ...] = (zero, interpolate(0.125), weight_continuation())


def chosen(problem: Problem, starts: Any) -> list[Start]:
    """The starts meant by an argument: a name, a start, a solution, or a list of those."""
    if isinstance(starts, str):
        if starts != "portfolio":
            raise ValueError(f"starts must be 'portfolio', a start or a list, got {starts!r}.")
        return [s for s in PORTFOLIO if problem.goal is not None or not isinstance(s, interpolate)]
    if isinstance(starts, Solution):
        return [warm(starts)]
    if isinstance(starts, Guess):
        return [lambda problem, solver: starts]
    if callable(starts):
        return [starts]
    if not isinstance(starts, Sequence) or not starts or not all(callable(s) for s in starts):
        raise ValueError(f"starts must be 'portfolio', a start or a list of them, got {starts!r}.")
    return list(starts)


def solve_from(
    problem: Problem,
    solver: Solver,
    starts: Any,
    callback: Callback | None = None,
    time_limit: float | None = None,
) -> Solution:
    """Solve from one start or several; ``extra["start"]`` says which won, per problem.

    Iterations, roll-outs and sweeps of the result count all starts and what led to them.
    """
    members, best = chosen(problem, starts), None
    budget = Budget(time_limit, callback)
    token = BUDGET.set(budget)
    try:
        if len(members) > 1:
            state, best, seconds = race(problem, solver, members, callback)
        else:
            guess = members[0](problem, solver)
            made = guess.reached or quick(solver, problem, guess)
            if isinstance(made, AtOnce):
                made = pursued(made)
                if made.finished:
                    return made.solution(budget.seconds)
            state, seconds = going_on(solver, problem, guess, made)
            state, seconds = run(solver, problem, state, callback, seconds)
    except KeyboardInterrupt:  # between two solves: what there is, is the simplest start
        state, seconds = begin(solver, problem, zero(problem, solver)), ()
        state = state._replace(status=torch.full_like(state.status, int(Status.INTERRUPTED)))
    finally:
        BUDGET.reset(token)
    solution = solver.result(problem, state)
    history = {**solution.history, "seconds": torch.tensor(seconds, dtype=torch.float64)}
    extra = {} if best is None else {"start": layout.batch_out(problem, best)}
    return replace(solution, history=history, seconds=budget.seconds, extra=extra)


def race(
    problem: Problem, solver: Solver, members: list[Start], callback: Callback | None
) -> tuple[State, Tensor, tuple[float, ...]]:
    """All starts as one batch, `PATIENCE` iterations each at most; the cheapest goes on alone.

    Returns:
        The state of the cheapest, with the counts of all; which it is (B,); seconds after each
        step.
    """
    limit = solver.rules.max_iterations
    first = at_most(solver, min(limit, PATIENCE))
    guesses = [start(problem, first) for start in members]
    many = problem.repeat(len(members))
    state, seconds = run(first, many, joined(many, problem, first, guesses), callback)
    best = cheapest(state, len(members), problem.batch, solver)
    every = {k: getattr(state, k).reshape(len(members), -1).sum(dim=0) for k in SPENT}
    index = best * problem.batch + torch.arange(problem.batch, device=best.device)
    state = take(state, index, problem, solver)
    own = state.iterations
    more = (state.status == Status.MAX_ITERATIONS) & (own < limit)
    status = torch.where(more, int(Status.RUNNING), state.status)
    state = state._replace(status=status, sweeps=every["sweeps"], rollouts=every["rollouts"])
    state, later = run(solver, problem, state, callback)
    state = state._replace(iterations=every["iterations"] + state.iterations - own)
    return state, best, seconds + later


def joined(many: Problem, problem: Problem, solver: Solver, guesses: list[Guess]) -> State:
    """One state of all guesses, copy by copy; those without states are rolled out first."""
    if len(guesses) == 1:
        return begin(solver, problem, guesses[0])
    us = [
        zero_controls(problem) if g.controls is None else layout.controls_in(problem, g.controls)
        for g in guesses
    ]
    controls, states = layout.stages_out(many, beside(us, problem)), None
    if any(g.states is not None for g in guesses):
        xs = [
            solver.init(problem, g.controls).xs
            if g.states is None
            else layout.states_in(problem, g.states)
            for g in guesses
        ]
        states = layout.stages_out(many, beside(xs, problem))
    return charged(solver.init(many, controls, states), solver, guesses)


def beside(parts: list[Stages], problem: Problem) -> Stages:
    return pack([torch.cat(stage) for stage in zip(*parts, strict=True)], problem.uniform)


def cheapest(state: State, members: int, batch: int, solver: Solver) -> Tensor:
    """Per problem, the member of lowest cost among the feasible; of smallest gap if none is."""
    gap_tolerance = solver.rules.tolerances(state.cost.dtype)[2]
    gap, cost = (v.reshape(members, batch) for v in (state.gap, state.cost))
    feasible = (gap <= gap_tolerance) & torch.isfinite(cost)
    by_cost = torch.where(feasible, cost, torch.inf).argmin(dim=0)
    by_gap = torch.where(torch.isnan(gap), torch.inf, gap).argmin(dim=0)
    return torch.where(feasible.any(dim=0), by_cost, by_gap)
