"""`solve`: a problem, a method, and perhaps a start."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace
from typing import Any

from ocp.portfolio import solve_from
from ocp.problem import Problem
from ocp.progress import watched
from ocp.solution import Solution
from ocp.solvers import METHODS
from ocp.solvers.decide import Rules
from ocp.solvers.loop import Callback, Solver
from ocp.starts import Guess, default


def make_solver(method: str | Solver = "ddp", **options: Any) -> Solver:
    """A solver by name with its options; those of `Rules` may be given by their own names.

    Raises:
        ValueError: no such method.
        TypeError: no such option; the ones there are, are listed.
    """
    if isinstance(method, Solver):
        return replace(method, **options) if options else method
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if not options:
        return usual(method)
    kind = METHODS[method]
    own = {f.name for f in dataclasses.fields(kind)} - {"rules"}
    shared = {f.name for f in dataclasses.fields(Rules)}
    if unknown := set(options) - own - shared - {"rules"}:
        raise TypeError(
            f"method {method!r} has no option {sorted(unknown)}; it has "
            f"{', '.join(sorted(own | shared))}."
        )
    solver = kind(**{k: v for k, v in options.items() if k in own or k == "rules"})
    changed = {k: v for k, v in options.items() if k in shared}
    return replace(solver, rules=replace(solver.rules, **changed)) if changed else solver


@functools.cache
def usual(method: str) -> Solver:
    """One without options: it is immutable."""
    return METHODS[method]()


def solve(
    problem: Problem,
    method: str | Solver = "ddp",
    controls: Any = None,
    states: Any = None,
    *,
    starts: Any = None,
    engine: str | None = None,
    callback: Callback | None = None,
    time_limit: float | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Solution:
    """Solve a problem, or a batch of them in which no member influences another.

    Args:
        problem: what to solve.
        method: "ilqr", "ddp", "newton", "lqr", "pmp", ... (`ocp.METHODS`), or a solver object.
        controls: initial controls (T, m) or (B, T, m), or a list over t.
        states: initial states (T+1, n) or (B, T+1, n), which need not follow from the controls;
            the controls are zero if they are not given.
        starts: instead of these a start of `ocp.starts`, a list of them, an earlier solution, or
            "portfolio". With nothing given: `ocp.starts.default`, which is zero controls unless
            the problem states a goal.
        engine: "auto", "native" (compiled) or "eager"; None for that of the solver, or "auto".
        callback: called with a `Report` after each step; a true answer stops.
        time_limit: seconds.
        progress: a live line; None for one after half a second, in a terminal, if rich is there.
        options: of the method and of `Rules`.

    Raises:
        ValueError, TypeError: an argument is wrong; numerical trouble is a status instead.
        ImportError: progress is True and rich is missing.
    """
    given_engine = {} if engine is None else {"engine": engine}
    solver = make_solver(method, **given_engine, **options)
    if starts is None:
        given = controls is not None or states is not None
        starts = Guess(controls, states) if given else default
    elif controls is not None or states is not None:
        raise ValueError("give either starts, or controls and states.")
    with watched(progress, callback, solver, problem) as watch:
        return solve_from(problem, solver, starts, watch, time_limit)
