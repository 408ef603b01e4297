"""Small solves that an engine makes in few calls: what Python does around them takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocp import engines
from ocp.engines.base import ROWS, Answer, Steps, Whole
from ocp.problem import Problem, Stages
from ocp.report import sentence
from ocp.solution import Policy, Solution, Status, Value
from ocp.solvers.certificate import flat_bound, judged
from ocp.solvers.decide import Limits
from ocp.solvers.dynamic_programming import ILQR
from ocp.solvers.loop import Solver, State
from ocp.solvers.run import LONG, first_chunk

TRUTHS = ("second_order", "running")


@dataclass(frozen=True, eq=False)
class History(Mapping[str, Tensor]):
    """The history of steps that were made in a few calls; columns are made when asked for.

    Attributes:
        answers: of each call.
        spans: steps, when they began and ended, of each call. Its time is divided evenly.
    """

    answers: tuple[Answer, ...]
    spans: tuple[tuple[int, float, float], ...]

    def __getitem__(self, name: str) -> Tensor:
        if name == "seconds":
            return torch.tensor(self.seconds, dtype=torch.float64)
        if name not in ROWS:
            raise KeyError(name)
        column = self.rows[:, ROWS.index(name)]
        return column != 0 if name in TRUTHS else column

    def __iter__(self) -> Iterator[str]:
        return iter((*ROWS, "seconds") if self.steps > 0 else ("seconds",))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))

    @property
    def steps(self) -> int:
        return sum(steps for steps, _, _ in self.spans)

    @property
    def rows(self) -> Tensor:
        """(steps, len(ROWS))."""
        return torch.cat([a.rows for a in self.answers])

    @property
    def seconds(self) -> tuple[float, ...]:
        """Since the solve began, after each step."""
        return tuple(
            begin + (end - begin) * (i + 1) / steps
            for steps, begin, end in self.spans
            for i in range(steps)
        )

    def then(self, later: History) -> History:
        return History(self.answers + later.answers, self.spans + later.spans)


@dataclass
class AtOnce:
    """What calls came to: a solution if it is `finished`, else a state to go on from."""

    solver: Solver
    problem: Problem
    limits: Limits
    solve: Whole
    answer: Answer
    history: History
    asked: int  # steps, of the last call

    @property
    def finished(self) -> bool:
        return self.answer.finished

    @property
    def closed(self) -> bool:
        """Whether the trajectory has no gaps."""
        return self.answer.reals.gap <= self.limits.gap_tolerance

    @property
    def goes_on(self) -> bool:
        """Whether it was only the number of steps that ended the last call."""
        steps, _, _ = self.history.spans[-1]
        return self.answer.counts.status == Status.RUNNING and steps == self.asked

    @property
    def spent(self) -> tuple[int, int, int]:
        """Iterations, roll-outs and sweeps."""
        counts = self.answer.counts
        return counts.iterations, counts.rollouts, counts.sweeps

    def after(self, earlier: History) -> AtOnce:
        """The same with steps before it."""
        return replace(self, history=earlier.then(self.history))

    def learn(self) -> None:
        """A full call that did not take long may make twice as many steps the next time."""
        _, begin, end = self.history.spans[-1]
        full = self.goes_on and self.asked >= usual_chunk(self.solve, self.problem)
        if full and end - begin < LONG:
            self.solve.chunk = min(2 * self.asked, self.solver.rules.max_iterations)

    def further(self, begun: float) -> AtOnce | None:
        """More steps, the more the shorter the last took; None where another program is needed.

        Args:
            begun: seconds since the solve began.
        """
        if not self.solve.renew(self.problem):
            return None
        _, begin, end = self.history.spans[-1]
        least = usual_chunk(self.solve, self.problem)
        most = max(2 * self.asked, least) if end - begin < LONG else max(1, self.asked // 2)
        start = time.perf_counter()
        answer = self.solve.further(self.answer, Steps(most))
        history = timed(answer, begun, start)
        made = AtOnce(self.solver, self.problem, self.limits, self.solve, answer, history, most)
        made.learn()
        return made.after(self.history)

    def state(self) -> State:
        """As the solver's own steps would have left it."""
        a, x0 = self.answer, self.problem.x0
        reals = {k: x0.new_full((1,), v) for k, v in a.reals._asdict().items()}
        counts = {k: torch.tensor([v]) for k, v in a.counts._asdict().items()}
        counts["second_order"] = counts["second_order"] != 0
        open_gaps = a.gaps is not None and a.reals.gap > 0
        block = {k: v[:, None] for k, v in self.history.items() if k != "seconds"}
        return State(
            engine=engines.make(self.problem, self.solver.engine),
            xs=a.part("xs")[:, None],
            us=a.part("us")[:, None],
            gaps=a.gaps[:, None] if open_gaps and a.gaps is not None else None,
            costates=None,
            rows=(block,) if block else (),
            feedback=(a.part("K") if a.feedback is None else a.feedback)[:, None],
            **reals,
            **counts,
        )

    def solution(self, seconds: float) -> Solution:
        """What `Solver.result` says of a finished state; ``seconds`` for the whole solve."""
        a, problem = self.answer, self.problem
        code = judged(a.counts.status, a.indefinite, a.told[1], self.limits.tolerance)
        return Solution.made_when_read(
            MAKERS,
            Finished(a, code, problem.lower, problem.upper),
            status=code,
            history=self.history,
            seconds=seconds,
            method=self.solver.name,
            engine="native",
            problem_name=problem.name,
            extra={},
        )


class Finished(NamedTuple):
    """What the fields of a solution are made of."""

    answer: Answer
    code: Status
    lower: Stages | None
    upper: Stages | None

    def number(self, k: int) -> Tensor:
        block = self.answer.block
        return torch.tensor(self.answer.told[k], dtype=block.dtype, device=block.device)

    def spent(self, name: str) -> Tensor:
        return torch.tensor(getattr(self.answer.counts, name), device=self.answer.block.device)

    def policy(self) -> Policy:
        bounds: dict[str, Any] = {}
        if self.lower is not None and self.upper is not None:
            bounds = {"lower": flat_bound(self.lower), "upper": flat_bound(self.upper)}
        xs, us, k, K = map(self.answer.part, ("policy_xs", "policy_us", "k", "K"))
        return Policy(states=xs, controls=us, k=k, K=K, **bounds)

    def message(self) -> str:
        a = self.answer
        facts = a.told[1], a.told[3], a.indefinite, a.failed, a.told[0], a.reals.damping
        return sentence(self.code, *facts, a.counts.iterations)


MAKERS: dict[str, Callable[[Finished], Any]] = {
    "states": lambda of: of.answer.part("xs"),
    "controls": lambda of: of.answer.part("us"),
    "costates": lambda of: of.answer.part("costates"),
    "cost": lambda of: of.number(0),
    "policy": Finished.policy,
    "value": lambda of: Value(of.answer.part("vx"), of.answer.part("vxx")),
    "message": Finished.message,
    "residual": lambda of: of.number(1),
    "hamiltonian_residual": lambda of: of.number(2),
    "gap": lambda of: of.number(3),
    "iterations": lambda of: of.spent("iterations"),
    "rollouts": lambda of: of.spent("rollouts"),
    "sweeps": lambda of: of.spent("sweeps"),
}


def plain(kind: type[Solver]) -> bool:
    """Whether a kind of solver is ILQR in all that such a call does for it."""
    same = ("init", "step", "steps", "iteration", "advance", "recipe", "record", "result")
    return issubclass(kind, ILQR) and all(getattr(kind, k) is getattr(ILQR, k) for k in same)


def usual_chunk(solve: Whole, problem: Problem) -> int:
    return solve.chunk or first_chunk(problem)


def timed(answer: Answer, begun: float, start: float) -> History:
    """The history of a call that is just over."""
    span = answer.steps, begun, begun + time.perf_counter() - start
    return History((answer,), (span,))


def at_once(
    solver: Solver,
    problem: Problem,
    controls: Any,
    states: Any,
    steps: Steps | None = None,
    spent: Sequence[int] = (0, 0, 0),
    begun: float = 0.0,
) -> AtOnce | None:
    """Iterations in one call; None where they are made one by one.

    Args:
        steps: how many; None for what is usual.
        spent: iterations, roll-outs and sweeps made before.
        begun: seconds since the solve began.

    That is so for batches and other engines, and wherever something has to be complained of.
    """
    if not plain(type(solver)) or solver.rules.max_iterations <= spent[0]:
        return None
    recipe = solver.whole_iterations(problem.x0.dtype)
    if recipe is None or (states is not None and not solver.accepts_gaps):
        return None
    before = time.perf_counter()
    second_order = solver.starts_second_order
    solve = engines.whole(problem, solver.engine, recipe, solver.rules.damping_start, second_order)
    if solve is None:
        return None
    T, n, m = problem.horizon, problem.state_dims[0], problem.control_dims[0]
    for given, shape in ((controls, (T, m)), (states, (T + 1, n))):
        if given is not None and not usable(given, shape, problem.x0):
            return None
    asked, start = steps or Steps(usual_chunk(solve, problem)), time.perf_counter()
    answer = solve(controls, states, asked, spent)
    if answer.counts.status == Status.NON_FINITE:
        return None
    history = timed(answer, begun + start - before, start)  # compiling is none of its time
    made = AtOnce(solver, problem, recipe.limits, solve, answer, history, asked.most)
    made.learn()
    return made


def usable(value: Any, shape: tuple[int, ...], like: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype == like.dtype
        and value.device == like.device
        and value.is_contiguous()
    )
