"""Where a solve begins. On swing-ups the start decides more than the globalisation does.

A start is a function ``(problem, solver) -> Guess``. Several can be tried as one batch, see
`ocp.portfolio`.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from ocp import engines, feedback, layout
from ocp.engines.base import Steps
from ocp.problem import Problem, altered
from ocp.solution import Solution, Status
from ocp.solvers.at_once import AtOnce, at_once
from ocp.solvers.loop import Solver, State, zero_controls
from ocp.solvers.run import BUDGET, Budget, finish, run
from ocp.solvers.subset import put, subproblem


class Guess(NamedTuple):
    """Controls (T, m) or (B, T, m), or lists over t, or None for zero; states likewise, or None to
    roll out.

    What solves on the way to the guess cost, per problem, is counted with the solve itself. A start
    that has solved a part of the problem itself says how far: the solve goes on from there.
    """

    controls: Any
    states: Any = None
    iterations: Tensor | int = 0
    rollouts: Tensor | int = 0
    sweeps: Tensor | int = 0
    reached: tuple[State, tuple[float, ...]] | AtOnce | None = None  # and the seconds of its steps

    def charged(self, spent: Mapping[str, Any]) -> Guess:
        """With what was spent before it."""
        return self._replace(**{k: getattr(self, k) + v for k, v in spent.items()})


Start = Callable[[Problem, Solver], Guess]
SPENT = ("iterations", "rollouts", "sweeps")


def zero(problem: Problem, solver: Solver) -> Guess:
    """Zero controls, rolled out."""
    return Guess(layout.stages_out(problem, zero_controls(problem), fresh=True))


@dataclass(frozen=True)
class interpolate:  # noqa: N801  (used like a function)
    """States on the straight line from x0 to the goal in a fraction of the horizon, then held.

    Zero controls; the states leave gaps, which the solver closes.

    Args:
        fraction: of the horizon spent on the way, in (0, 1].
    """

    fraction: float = 0.125

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction!r}.")

    def __call__(self, problem: Problem, solver: Solver) -> Guess:
        if problem.goal is None:
            raise ValueError("interpolate needs a problem with a goal: Problem(..., goal=state).")
        if not problem.uniform:
            raise ValueError("interpolate needs a state of the same size at every stage.")
        x0, goal = problem.x0.unsqueeze(-2), problem.goal.unsqueeze(-2)
        part = ramp(problem.horizon, self.fraction, x0.dtype, x0.device)
        return Guess(None, torch.lerp(x0, goal, part))


@functools.lru_cache(maxsize=16)
def ramp(T: int, fraction: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """From 0 to 1 in a fraction of T stages, and 1 from there on: (T + 1, 1)."""
    steps = torch.arange(T + 1, dtype=dtype, device=device)
    return (steps / max(1.0, fraction * T)).clamp_max(1.0)[:, None]


@dataclass(frozen=True)
class weight_continuation:  # noqa: N801
    """Controls of easier problems solved first: the running cost of the state weighs more.

    ``l(x, u, t) + (weight - 1) l(x, 0, t)`` for each weight in turn, each from the controls of the
    one before, loosely; the last controls start the problem itself.

    Args:
        weights: factors on the running cost of the state, descending to 1 (which is left out).
        cost_tolerance: where the solves on the way stop.
    """

    weights: Sequence[float] = (30.0, 5.0)
    cost_tolerance: float = 1e-3

    def __call__(self, problem: Problem, solver: Solver) -> Guess:
        loose = replace(
            solver,
            rules=replace(solver.rules, tolerance=torch.inf, cost_tolerance=self.cost_tolerance),
        )
        guess = zero(problem, solver)
        f_wants, stage_wants, terminal_wants = problem.wants
        cost = weighted(problem.cost, stage_wants, terminal_wants)
        for weight in self.weights:
            parameters = {**problem.parameters, WEIGHT: problem.x0.new_full((), weight)}
            fields = {"cost": cost, "parameters": parameters, "wants": (f_wants, True, True)}
            easier = altered(problem, fields)
            made = pursued(quick(loose, easier, guess))
            if made is not None and made.finished:
                guess = Guess(made.answer.part("us"), None, *made.spent)
                continue
            state = finish(loose, easier, going_on(loose, easier, guess, made)[0])
            guess = Guess(layout.stages_out(problem, state.us), None, *spent_by(state))
        return guess


@dataclass(frozen=True)
class settle:  # noqa: N801
    """A start that leaves gaps, for a few iterations; where the gaps stay open, another start.

    Where the gaps of a guess close, they close early, and the minimum is a good one; where they
    do not, hundreds of iterations are lost. After half of its iterations it has to be `ON_THE_WAY`.

    Args:
        first: a start with states.
        patience: iterations it has to close the gaps.
        otherwise: the start of the problems where it does not; one that rolls out.
    """

    first: Start
    otherwise: Start
    patience: int = 8

    def __call__(self, problem: Problem, solver: Solver) -> Guess:
        limit, guess = solver.rules.max_iterations, self.first(problem, solver)
        most = min(self.patience, limit)
        half = (most + 1) // 2
        made = quick(solver, problem, guess, Steps(most, half, ON_THE_WAY))
        if made is not None and made.closed:
            return got_to(made)
        if made is None:
            state, seconds = settled(solver, problem, guess, half, most)
        else:
            second = self.otherwise(problem, at_most(solver, limit - most))
            spent = dict(zip(SPENT, made.spent, strict=True))
            again = quick(solver, problem, second.charged(spent))
            if again is not None:
                return got_to(again.after(made.history))
            state, seconds = made.state(), made.history.seconds
        gap_tolerance = solver.rules.tolerances(problem.x0.dtype)[2]
        left = (~((state.gap <= gap_tolerance) & torch.isfinite(state.cost))).nonzero()[:, 0]
        more = (state.status == Status.MAX_ITERATIONS) & (state.iterations < limit)
        state = state._replace(status=torch.where(more, int(Status.RUNNING), state.status))
        if len(left) > 0 and Status.INTERRUPTED not in state.status.tolist():
            rest = subproblem(problem, left) if problem.batched else problem
            second = self.otherwise(rest, at_most(solver, limit - most))
            spent = {k: getattr(state, k)[left] for k in SPENT}
            state = put(state, begin(solver, rest, second.charged(spent)), left)
        states = layout.stages_out(problem, state.xs, per_sample=True)
        controls = layout.stages_out(problem, state.us)
        return Guess(controls, states, *spent_by(state), reached=(state, seconds))


ON_THE_WAY = 0.85  # of the gaps at first: with more left, half of the patience was enough


def settled(
    solver: Solver, problem: Problem, guess: Guess, half: int, most: int
) -> tuple[State, tuple[float, ...]]:
    """So many iterations, the second half where the first was of use; seconds after each."""
    budget = BUDGET.get() or Budget()
    first = begin(at_most(solver, half), problem, guess)
    state, seconds = run(at_most(solver, half), problem, first, budget.callback)
    hopeful = (state.status == Status.MAX_ITERATIONS) & (state.gap <= ON_THE_WAY * first.gap)
    if most == half or not bool(hopeful.any()):
        return state, seconds
    state = state._replace(status=torch.where(hopeful, int(Status.RUNNING), state.status))
    return run(at_most(solver, most), problem, state, budget.callback, seconds)


def got_to(made: AtOnce) -> Guess:
    return Guess(made.answer.part("us"), made.answer.part("xs"), *made.spent, reached=made)


def spent_by(state: State) -> tuple[Tensor, Tensor, Tensor]:
    return state.iterations, state.rollouts, state.sweeps


def at_most(solver: Solver, iterations: int) -> Solver:
    return replace(solver, rules=replace(solver.rules, max_iterations=iterations))


WEIGHT = "weight of weight_continuation"


@dataclass(frozen=True, eq=False)
class Weighted:
    """A cost with the state's running part, ``l(x, 0, t)``, times the parameter `WEIGHT`."""

    cost: Any
    stage_wants: bool  # the parameters
    terminal_wants: bool

    def stage(self, x: Tensor, u: Tensor, t: Any, p: Any) -> Tensor:
        more = (p,) if self.stage_wants else ()
        state_part = self.cost.stage(x, torch.zeros_like(u), t, *more)
        return self.cost.stage(x, u, t, *more) + (p[WEIGHT] - 1) * state_part

    def terminal(self, x: Tensor, p: Any) -> Tensor:
        return self.cost.terminal(x, *((p,) if self.terminal_wants else ()))


_weighted: OrderedDict[int, Weighted] = OrderedDict()


def weighted(cost: Any, stage_wants: bool, terminal_wants: bool) -> Weighted:
    """The same object for the same cost: an engine that compiles finds its program by it."""
    made = _weighted.get(id(cost))
    if made is None or made.cost is not cost:
        made = _weighted[id(cost)] = Weighted(cost, stage_wants, terminal_wants)
        if len(_weighted) > 16:
            _weighted.popitem(last=False)
    return made


@dataclass(frozen=True)
class warm:  # noqa: N801
    """An earlier solution: its controls and feedback, followed from this problem's x0.

    Without the feedback an unstable system is far away after a few stages.

    Args:
        solution: of a problem with the same sizes.
        shift: stages to drop at the front (receding horizon); the last control is repeated.
    """

    solution: Solution
    shift: int = 0

    def __call__(self, problem: Problem, solver: Solver) -> Guess:
        if self.shift != 0 and not problem.uniform:
            raise ValueError("warm(..., shift=) needs sizes that do not change by stage.")
        plan = feedback.shifted(feedback.plan_of(problem, self.solution), self.shift)
        engine = engines.make(problem, solver.engine)
        return Guess(layout.stages_out(problem, feedback.follow(engine, plan)))


LINE = settle(interpolate(0.35), weight_continuation())


def default(problem: Problem, solver: Solver) -> Guess:
    """What `ocp.solve` starts from when it is given nothing.

    Where the problem states a goal, its sizes are constant, its controls are free and the method
    closes gaps: the way to the goal in a third of the horizon, or weight continuation where that
    does not settle. Zero controls otherwise: a line that asks for more than bounds allow leads to
    worse minima. A dynamics that has controls of its own (`initial_controls`, the weights of
    a network) starts from them.
    """
    own = getattr(problem.dynamics, "initial_controls", None)
    if own is not None:
        return Guess(own())
    if problem.goal is None or not problem.uniform or not solver.accepts_gaps:
        return zero(problem, solver)
    if problem.lower is not None or problem.shared_controls or solver.name == "lqr":
        return zero(problem, solver)
    return LINE(problem, solver)


def going_on(
    solver: Solver,
    problem: Problem,
    guess: Guess,
    made: tuple[State, tuple[float, ...]] | AtOnce | None,
) -> tuple[State, tuple[float, ...]]:
    """Where a guess, or what was made of it, leads the solver; and seconds after each step."""
    if made is None:
        return begin(solver, problem, guess), ()
    return (made.state(), made.history.seconds) if isinstance(made, AtOnce) else made


def quick(
    solver: Solver, problem: Problem, guess: Guess, steps: Steps | None = None
) -> AtOnce | None:
    """See `at_once`; None also where somebody looks at the clock, or at each step."""
    budget = BUDGET.get() or Budget()
    if problem.batched or budget.callback is not None or budget.time_limit is not None:
        return None
    if budget.status is not None:
        return None
    spent = [int(getattr(guess, k)) for k in SPENT]
    given = guess.controls, guess.states
    return at_once(solver, problem, *given, steps, spent, budget.seconds)


@overload
def pursued(made: AtOnce) -> AtOnce: ...
@overload
def pursued(made: None) -> None: ...
def pursued(made: AtOnce | None) -> AtOnce | None:
    """Further calls until it stops by itself, or Ctrl-C stops it."""
    budget = BUDGET.get()
    seconds = (budget or Budget()).seconds
    try:
        while made is not None and made.goes_on:
            more = made.further(seconds)
            if more is None:
                break
            made, seconds = more, (budget or Budget()).seconds
    except KeyboardInterrupt:
        if budget is None:
            raise
        budget.status = Status.INTERRUPTED
    return made


def begin(solver: Solver, problem: Problem, guess: Guess) -> State:
    """`Solver.init` from a guess; what led to it counts."""
    return charged(solver.init(problem, guess.controls, guess.states), solver, [guess])


def charged(state: State, solver: Solver, guesses: Sequence[Guess]) -> State:
    """The state with the counts of its guesses; without iterations left it does not run."""
    free = all(getattr(g, k) is Guess._field_defaults[k] for g in guesses for k in SPENT)
    if free and solver.rules.max_iterations > 0:
        return state
    none = torch.zeros_like(state.iterations.reshape(len(guesses), -1)[0])
    counts: dict[str, Any] = {k: torch.cat([none + getattr(g, k) for g in guesses]) for k in SPENT}
    out = (state.status == Status.RUNNING) & (counts["iterations"] >= solver.rules.max_iterations)
    status = torch.where(out, int(Status.MAX_ITERATIONS), state.status)
    return state._replace(status=status, **counts)
