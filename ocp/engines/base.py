"""What an engine computes and hands over. Shapes: T stages, B problems, A trial step sizes.

A problem with shared controls is one problem here (B = 1) whose state is the rows of x0 laid end
to end, the augmented state of Liu, Chen, Theodorou (2019), eq. 17; its cost is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ocp.problem import Problem, Stages

if TYPE_CHECKING:
    from ocp.solvers.decide import Limits

Curvature = Callable[[int, Tensor], Tensor]
"""``(t, v) -> v . f_zz`` of stage t, contracted along v (B, n'): (B, n + m, n + m)."""


@dataclass(frozen=True)
class SecondOrder:
    """The `Curvature` along a trajectory, for an engine that knows how it was made.

    Attributes:
        contract: the contraction.
        xs, us: the trajectory.
        full: (B,) problems that have the terms, zero for the others; None for all.
        table: ``p[t+1] . f_zz`` (T, B, n + m, n + m) where v was given beforehand.
    """

    contract: Curvature
    xs: Stages
    us: Stages
    full: Tensor | None = None
    table: Tensor | None = None

    def __call__(self, t: int, v: Tensor) -> Tensor:
        H = self.contract(t, v)
        return H if self.full is None else torch.where(self.full[:, None, None], H, 0)

    def within(self, full: Tensor) -> SecondOrder:
        """For the problems in ``full`` only, whatever was so before."""
        return replace(self, full=full)


class Expansion(NamedTuple):
    """First derivatives of f, first and second of the costs, over t, with ``z = (x, u)``."""

    fz: Stages  # (B, n', n + m)
    lz: Stages  # (B, n + m)
    lzz: Stages  # (B, n + m, n + m)
    phix: Tensor  # (B, n)
    phixx: Tensor  # (B, n, n)
    n: tuple[int, ...]  # size of the state at each stage, T + 1: where z splits


class Policy(NamedTuple):
    """``du = step_size k + K dx``; K None stands for no feedback."""

    k: Stages  # (B, m)
    K: Stages | None  # (B, m, n)


class Sweep(NamedTuple):
    """A policy, the value model it comes from, and what both promise."""

    policy: Policy
    vx: Stages  # (B, n), T + 1 of them
    vxx: Stages  # (B, n, n)
    slope: Tensor  # (B,): model of the cost's change by a step a: a slope + a^2/2 curvature
    curvature: Tensor  # (B,)
    residual: Tensor  # (B,): largest projected |Q_u|
    failed: Tensor  # (B,) int: last stage with Q_uu not positive definite on free controls; -1 none


class Begun(NamedTuple):
    """A guess as a trajectory: controls within their bounds, states rolled out unless given."""

    xs: Stages  # (B, n), T + 1 of them
    us: Stages  # (B, m)
    gaps: Stages | None  # f(x, u) - x' where states were given
    gap: Tensor  # (B,): sum of their magnitudes
    cost: Tensor  # (B,)
    finite: Tensor  # (B,) bool


class Appraisal(NamedTuple):
    """A trajectory judged without damping: what is said of it in a `Solution`.

    Of the models whose Q_uu is definite on free controls the first in: second order; that damped
    at the level of rounding; Gauss-Newton.
    """

    sweep: Sweep
    costates: Stages  # (B, n), T + 1 of them
    hus: Stages  # (B, m): H_u along them
    indefinite: Tensor  # (B,) int: last stage at which both second-order Q_uu are not; or -1
    hamiltonian_residual: Tensor  # (B,): largest projected |H_u|
    gap: Tensor  # (B,): largest |f - x'|


class Trials(NamedTuple):
    xs: Stages  # (A, B, n), T + 1 of them
    us: Stages  # (A, B, m)
    cost: Tensor  # (A, B); nan or inf where the roll-out is


class Recipe(NamedTuple):
    """What an engine that makes whole iterations of iLQR, DDP or PMP has to know of the solver."""

    second_order: int  # 0 never, 1 for problems whose `State.second_order` says so, 2 always
    on_state: bool  # where the damping goes
    trials: int  # step sizes 1, 1/2, ...
    limits: Limits
    pairs: int | None = None  # of PMP, which has no sweep: steps remembered, 0 for the gradient


ROWS = (
    *("cost", "expected", "decrease", "step_size", "damping"),
    *("residual", "gap", "second_order", "running"),
)  # of a history; the last two are truths


class Steps(NamedTuple):
    """How many a call makes."""

    most: int
    half: int | None = None  # after so many it stops where more gaps are left than is
    enough: float = 1.0  # of those at first


class Reals(NamedTuple):
    """Numbers of a `State`."""

    cost: float
    gap: float
    start_cost: float
    damping: float
    penalty: float
    residual: float


class Counts(NamedTuple):
    """The same; the first two are truths."""

    second_order: int
    weak: int
    status: int
    iterations: int
    rollouts: int
    sweeps: int


Place = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and offset


class Answer(NamedTuple):
    """Where a solve of one problem got to. See `Whole`.

    What the engine fills is one block of memory. Its parts become tensors when they are asked for:
    each takes microseconds, and on the way to a start few are of interest.
    """

    finished: bool  # it stopped, and has been appraised
    block: Tensor
    places: Mapping[str, Place]  # of `PARTS`
    reals: Reals
    counts: Counts
    told: tuple[float, ...]  # cost, residual, largest |H_u|, largest gap, if it is finished
    steps: int  # of the last call
    indefinite: int  # as in `Appraisal`, if it is finished
    failed: int
    gaps: Tensor | None  # (T, n), if it is not
    feedback: Tensor | None  # (T, m, n)

    def part(self, name: str) -> Tensor:
        return self.block.as_strided(*self.places[name])

    @property
    def rows(self) -> Tensor:
        """(steps, len(ROWS)): the history of the last call."""
        return self.block.as_strided((self.steps, len(ROWS)), *self.places["rows"][1:])


PARTS = ("xs", "us", "costates", "vx", "k", "vxx", "K", "policy_xs", "policy_us", "rows")
"""Of an `Answer`: all but xs, us and rows are for a trajectory that is finished, see `Appraisal`;
the policy has a copy of it."""


class Whole(Protocol):
    """A small problem solved in one call.

    Attributes:
        chunk: iterations that are known not to take long.
    """

    chunk: int

    def __call__(
        self, controls: Tensor | None, states: Tensor | None, steps: Steps, spent: Sequence[int]
    ) -> Answer:
        """Iterations from controls (T, m), or zero, and states (T + 1, n) unless
        they are rolled out. Contiguous, as the problem's x0 otherwise; they need not be finite.
        ``spent``: iterations, rollouts and sweeps that were made before."""

    def further(self, answer: Answer, steps: Steps) -> Answer:
        """More iterations from where an answer that is not finished got to; its rows alone."""

    def renew(self, problem: Problem) -> bool:
        """Read the problem's data anew; False where another is needed."""


class Prepared(Protocol):
    """A few iterations again and again, see `ocp.RecedingHorizon`."""

    x0: Tensor  # (B, n): where the last call began
    xs: Tensor  # (T + 1, B, n), (T, B, m), (T, B, m, n): a trajectory and its feedback
    us: Tensor
    K: Tensor
    plan: list[Tensor]  # the same three, shifted: what the last call began from
    status: Tensor  # (B,)

    def load(self, xs: Tensor, us: Tensor, K: Tensor) -> None:
        """What the next call begins from."""

    def renew(self, problem: Problem) -> bool:
        """Read the problem's data anew; False where all has to be prepared again."""

    def begins_at(self, x0: Tensor) -> bool:
        """Take a state; False where that should be checked, and complained of, elsewhere."""

    def __call__(self) -> bool:
        """Shift, roll out, iterate; False where pieces have to be asked for instead."""

    def first_control(self, shape: tuple[int, ...]) -> Tensor:
        """A copy, of this shape."""


class Engine(Protocol):
    """The computations a solver is made of. All are batched; none changes its arguments."""

    name: str
    problem: Problem

    def begin(self, us: Stages, xs: Stages | None = None) -> Begun: ...
    def rollout(self, us: Stages) -> Stages: ...
    def total_cost(self, xs: Stages, us: Stages) -> Tensor: ...
    def gaps(self, xs: Stages, us: Stages) -> Stages: ...
    def expand(self, xs: Stages, us: Stages) -> Expansion: ...
    def curvature(self, xs: Stages, us: Stages) -> SecondOrder: ...
    def curvature_along(self, xs: Stages, us: Stages, ps: Stages) -> SecondOrder: ...
    def box(self, us: Stages) -> tuple[Stages, Stages] | None: ...
    def costates(self, expansion: Expansion) -> tuple[Stages, Stages]: ...
    def appraise(self, xs: Stages, us: Stages) -> Appraisal: ...
    def linear_rollout(
        self, expansion: Expansion, policy: Policy, gaps: Stages | None
    ) -> tuple[Stages, Stages]: ...
    def sweep(
        self,
        expansion: Expansion,
        us: Stages,
        gaps: Stages | None,
        damping: Tensor,
        curvature: Curvature | None,
        on_state: bool = False,
        proximal: bool = False,
    ) -> Sweep: ...
    def follow(
        self, xs: Stages, us: Stages, gaps: Stages | None, policy: Policy, step_sizes: Tensor
    ) -> Trials: ...
    def hamiltonian(self, augmented: bool) -> Any:
        """H of every stage as a program, None without one; a ValueError says why it has to be."""

    def boundary(self, expansion: Expansion, curvature: SecondOrder, *rhs: Stages) -> Any:
        """What `indirect.correction` returns, as a flat tuple; None if the engine has none."""

    def iterate(self, state: Any, recipe: Recipe, most: int) -> Any:
        """A solver's `State` after up to ``most`` iterations; None if the engine has none to make:
        the solver then asks for the pieces."""

    def prepare(self, recipe: Recipe, damping: float, steps: int, shift: int) -> Prepared | None:
        """`iterate` for many solves of one form, each from the plan of the one before; None if it
        has nothing of the kind."""
