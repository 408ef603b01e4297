"""The one loop. A solver is `init`, `step` and `result`; methods differ in how a step is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ocp import engines, layout
from ocp.engines import Engine, Expansion, Policy, Trials
from ocp.problem import Problem, Stages
from ocp.solution import Solution, Status
from ocp.solvers.certificate import conclude
from ocp.solvers.decide import Decision, Record, Rules, decide
from ocp.stages import choose, each, finite, where

FEW = 64  # numbers up to which Python looks at each: an operation of PyTorch takes microseconds


class Direction(NamedTuple):
    """Where a method wants to go, and what it expects of it; (B,) but for the policy."""

    policy: Policy
    slope: Tensor  # model of the cost's change by a step a: a slope + a^2/2 curvature
    curvature: Tensor
    residual: Tensor
    usable: Tensor  # bool
    sweeps: Tensor | int  # backward passes it took
    memory: Tensor | None = None  # what the next `direction` finds in its state, see `State`


class State(NamedTuple):
    """All a step needs to know. (B,) unless said otherwise; nothing in it is ever modified."""

    engine: Engine
    xs: Stages
    us: Stages
    gaps: Stages | None  # f(x, u) - x' per stage; None once closed everywhere
    costates: Stages | None  # kept by methods that iterate on them
    cost: Tensor
    gap: Tensor
    start_cost: Tensor
    damping: Tensor
    penalty: Tensor
    second_order: Tensor
    weak: Tensor
    status: Tensor
    iterations: Tensor
    rollouts: Tensor
    sweeps: Tensor
    residual: Tensor
    rows: tuple[dict[str, Tensor], ...]  # the history: blocks of k steps, (k, B) each
    feedback: Stages | None = None  # (B, m, n): K of the last backward pass, if it gives one
    memory: Tensor | None = None  # (k, B, ...): what a method keeps of earlier steps

    @property
    def running(self) -> bool:
        if self.status.shape[0] <= FEW:
            return Status.RUNNING in self.status.tolist()
        return bool((self.status == Status.RUNNING).any())


class Report(NamedTuple):
    """What a callback sees after each step."""

    iteration: int
    cost: Tensor  # (B,) as are the next three
    residual: Tensor
    gap: Tensor
    status: Tensor
    seconds: float  # since the solve was called
    state: State
    start: State  # what the first step began from; its counts are those of the start
    start_seconds: float  # that the start took


Callback = Callable[[Report], bool | None]
"""Called after each step; a true answer stops the solve, status INTERRUPTED."""


@dataclass(frozen=True)
class Solver:
    """What all methods share: start, line search, bookkeeping. A method gives `direction`.

    Args:
        rules: tolerances, damping and other numbers of the loop, see `Rules`.
        trials: step sizes tried, 1, 1/2, ... (2 to the minus ``trials - 1``), all in one roll-out.
        engine: "auto" or the name of an engine.
    """

    rules: Rules = field(default_factory=Rules)
    trials: int = 12
    engine: str = "auto"
    name: ClassVar[str] = ""
    starts_second_order: ClassVar[bool] = False
    accepts_gaps: ClassVar[bool] = False
    damped: ClassVar[bool] = False  # whether `State.damping` shortens the steps of the method

    @property
    def own_rules(self) -> Rules:
        """The rules, less what makes no sense for the method."""
        return self.rules if self.damped else replace(self.rules, first_damping=0.0)

    def direction(self, state: State, expansion: Expansion) -> Direction:
        raise TypeError(f"{type(self).__name__} is no method: it has no direction.")

    def step_sizes(self, like: Tensor) -> Tensor:
        """Those tried in every step, of the dtype and device of ``like``: (A,)."""
        return 0.5 ** torch.arange(self.trials, dtype=like.dtype, device=like.device)

    def decide(self, record: Record, step_sizes: Tensor) -> Decision:
        return decide(record, step_sizes, self.own_rules)

    # -- the three functions -------------------------------------------------------------------
    @torch.no_grad()
    def init(self, problem: Problem, controls: Any = None, states: Any = None) -> State:
        """State at a first guess: controls (zero if None), and states that may leave gaps.

        Raises:
            ValueError: a guess of the wrong shape, or states for a method that rolls out.
        """
        engine = engines.make(problem, self.engine)
        us = zero_controls(problem) if controls is None else layout.controls_in(problem, controls)
        if states is not None and not self.accepts_gaps:
            raise ValueError(f"method {self.name!r} rolls its controls out: it takes no states.")
        xs = None if states is None else layout.states_in(problem, states)
        begun = engine.begin(us, xs)
        count = torch.zeros_like(begun.cost, dtype=torch.int64)
        return State(
            engine=engine,
            xs=begun.xs,
            us=begun.us,
            gaps=begun.gaps,
            costates=None,
            cost=begun.cost,
            gap=begun.gap,
            start_cost=begun.cost,
            damping=torch.full_like(begun.cost, self.rules.damping_start),
            penalty=torch.zeros_like(begun.cost),
            second_order=torch.full_like(begun.finite, self.starts_second_order),
            weak=count,
            status=torch.where(begun.finite, int(Status.RUNNING), int(Status.NON_FINITE)),
            iterations=count,
            rollouts=count,
            sweeps=count,
            residual=torch.full_like(begun.cost, torch.inf),
            rows=(),
        )

    def step(self, problem: Problem, state: State) -> State:
        """One iteration of every problem still running."""
        return self.steps(problem, state, 1)

    @torch.no_grad()
    def steps(self, problem: Problem, state: State, most: int) -> State:
        """At least one and up to ``most`` iterations: one, unless the engine makes many at once."""
        state = self.current(problem, state)
        recipe = self.recipe(state)
        after = None if recipe is None else state.engine.iterate(state, recipe, most)
        return self.iteration(state) if after is None else after

    def iterates_as(self, kind: type[Solver]) -> bool:
        """Whether no piece of an iteration of that kind is replaced: engines may make it whole."""
        pieces = ("iteration", "direction", "record", "decide", "advance")
        return all(getattr(type(self), name) is getattr(kind, name) for name in pieces)

    def iteration(self, state: State) -> State:
        """A step by its pieces: expand, sweep, try, decide."""
        engine = state.engine
        expansion = engine.expand(state.xs, state.us)
        direction = self.direction(state, expansion)
        sizes = self.step_sizes(state.cost)
        trials = engine.follow(state.xs, state.us, state.gaps, direction.policy, sizes)
        record = self.record(state, expansion, direction, trials)
        return self.advance(state, direction, trials, self.decide(record, sizes))

    def advance(
        self, state: State, direction: Direction, trials: Trials, decision: Decision
    ) -> State:
        """See `advance`."""
        return advance(state, direction, trials, decision)

    def recipe(self, state: State) -> engines.Recipe | None:
        """What an engine that makes whole iterations has to know; None: it cannot make them."""
        return None

    def whole_iterations(self, dtype: torch.dtype) -> engines.Recipe | None:
        """The same for a solve that begins."""
        return None

    def current(self, problem: Problem, state: State) -> State:
        """The state with an engine of this very problem, whose data may have changed."""
        if state.engine.problem is problem:
            return state
        return state._replace(engine=engines.make(problem, self.engine))

    @torch.no_grad()
    def result(self, problem: Problem, state: State) -> Solution:
        """The iterate with its certificate, recomputed without damping."""
        return conclude(self, problem, state)

    def record(
        self, state: State, expansion: Expansion, direction: Direction, trials: Trials
    ) -> Record:
        fine = finite([expansion.phix, expansion.phixx.flatten(1)]) & finite(expansion.lz)
        for matrices in (expansion.fz, expansion.lzz):
            fine = fine & finite(each(lambda s: s.flatten(-2), matrices))
        tried = torch.isfinite(trials.cost) & finite(trials.xs) & finite(trials.us)
        return record_of(state, direction, trials, fine, tried)


def record_of(
    state: State, direction: Direction, trials: Trials, fine: Tensor, tried: Tensor
) -> Record:
    """What `decide` is asked; ``fine`` (B,): derivatives are finite, ``tried`` (A, B): trials."""
    return Record(
        cost=state.cost,
        gap=state.gap,
        slope=direction.slope,
        curvature=direction.curvature,
        residual=direction.residual,
        usable=direction.usable,
        finite=fine,
        trial_cost=trials.cost,
        trial_finite=tried,
        start_cost=state.start_cost,
        damping=state.damping,
        penalty=state.penalty,
        second_order=state.second_order,
        weak=state.weak,
        status=state.status,
        iterations=state.iterations,
    )


def advance(state: State, direction: Direction, trials: Trials, decision: Decision) -> State:
    """Move the problems whose trial was accepted; write the row of the history."""
    moved, running = decision.accepted, state.status == Status.RUNNING
    gaps = state.gaps
    gap = torch.where(moved, (1 - decision.step_size) * state.gap, state.gap)
    if gaps is not None:
        left = 1 - decision.step_size[:, None]  # 1 where nothing moved
        gaps = each(lambda g: left * g, gaps) if bool((gap > 0).any()) else None
    cost = trials.cost.gather(0, decision.choice[None])[0]
    one = running.to(torch.int64)
    row = {
        "cost": state.cost,
        "expected": decision.expected,
        "decrease": decision.decrease,
        "step_size": decision.step_size,
        "damping": state.damping,
        "residual": direction.residual,
        "gap": state.gap,
        "second_order": state.second_order,
        "running": running,
    }
    return state._replace(
        xs=where(moved, choose(trials.xs, decision.choice), state.xs),
        us=where(moved, choose(trials.us, decision.choice), state.us),
        gaps=gaps,
        cost=torch.where(moved, cost, state.cost),
        gap=gap,
        damping=decision.damping,
        penalty=decision.penalty,
        second_order=decision.second_order,
        weak=decision.weak,
        status=decision.status,
        iterations=decision.iterations,
        rollouts=state.rollouts + decision.rollouts,
        sweeps=state.sweeps + one * direction.sweeps,
        residual=torch.where(running, direction.residual, state.residual),
        rows=(*state.rows, {name: value[None] for name, value in row.items()}),
        feedback=direction.policy.K,
        memory=direction.memory,
    )


def zero_controls(problem: Problem) -> Stages:
    dims, B = problem.control_dims, problem.batch
    if problem.uniform:
        return problem.x0.new_zeros(problem.horizon, B, dims[0])
    return [problem.x0.new_zeros(B, m) for m in dims]
