"""The decisions of the loop: step size, damping, penalty, second order, stop.

`decide` is a pure function of per-problem numbers, written with `torch.where`: no problem's
numbers touch another's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ocp.solution import Status

MODEL_ERROR = 0.1  # relative: more, and a promise of decrease was no prediction


@dataclass(frozen=True)
class Rules:
    """The numbers that decide. Tolerances None take the dtype's default, see `tolerances`."""

    tolerance: float | None = None  # on the largest projected |Q_u|
    cost_tolerance: float | None = None  # on the expected decrease, relative to 1 + |J|
    gap_tolerance: float | None = None  # on the sum of gaps, relative to 1 + |x|
    max_iterations: int = 1000
    armijo: float = 0.1  # fraction of the expected decrease that must come true
    damping_start: float = 0.0  # none: one step is exact where the problem is linear-quadratic
    damping_min: float = 1e-8  # the least there is beside none
    damping_max: float = 1e10
    damping_down: float = 0.2  # after an accepted step of at least 1/2
    damping_up: float = 10.0  # after a refused one
    first_damping: float = 0.1  # after a first step that the model did not predict; 0: no matter
    short_step: float = 0.25  # an accepted step so short counts like a refused one
    second_order_below: float = 1e-2  # decrease, relative to 1 + |J|, that ends Gauss-Newton
    penalty_margin: float = 1.1  # over the smallest penalty under which the merit descends
    unbounded: float = 1e12  # fall below -unbounded (1 + |J|) of the start: no minimum there

    def tolerances(self, dtype: torch.dtype) -> tuple[float, float, float]:
        """(residual, cost, gap) in force for a dtype."""
        single = dtype != torch.float64
        defaults = (1e-3, 1e-6, 1e-5) if single else (1e-7, 1e-10, 1e-10)
        given = (self.tolerance, self.cost_tolerance, self.gap_tolerance)
        return tuple(d if g is None else g for d, g in zip(defaults, given, strict=True))  # type: ignore[return-value]

    @functools.lru_cache(maxsize=64)  # noqa: B019  (rules are few, small and immutable)
    def limits(self, dtype: torch.dtype) -> Limits:
        """The numbers in force for a dtype."""
        own = {k: float(getattr(self, k)) for k in Limits._fields[3:-1]}
        return Limits(*self.tolerances(dtype), **own, calm=max(1e-3, self.damping_start))


class Limits(NamedTuple):
    """`Rules` for one dtype, as plain numbers: what a compiled `decide` is given at run time."""

    tolerance: float
    cost_tolerance: float
    gap_tolerance: float
    max_iterations: float
    armijo: float
    damping_min: float
    damping_max: float
    damping_down: float
    damping_up: float
    first_damping: float
    short_step: float
    second_order_below: float
    penalty_margin: float
    unbounded: float
    calm: float  # the damping up to which a small promise says that little is left to gain


class Record(NamedTuple):
    """What is known after a sweep and its trials; (B,) unless said otherwise."""

    cost: Tensor
    gap: Tensor  # sum |f - x'|
    slope: Tensor  # model of the cost: a slope + a^2/2 curvature
    curvature: Tensor
    residual: Tensor
    usable: Tensor  # bool: the direction exists (Q_uu positive definite)
    finite: Tensor  # bool: so are the derivatives
    trial_cost: Tensor  # (A, B)
    trial_finite: Tensor  # (A, B) bool
    start_cost: Tensor
    damping: Tensor
    penalty: Tensor
    second_order: Tensor  # bool
    weak: Tensor  # steps in a row whose expected decrease was below rounding
    status: Tensor
    iterations: Tensor


class Decision(NamedTuple):
    """What to do; (B,)."""

    choice: Tensor  # index into the trials
    accepted: Tensor  # bool
    step_size: Tensor  # 0 where refused
    expected: Tensor  # decrease of the merit the model promised for it
    decrease: Tensor  # decrease it brought
    damping: Tensor
    penalty: Tensor
    second_order: Tensor
    weak: Tensor
    status: Tensor
    iterations: Tensor
    rollouts: Tensor  # step sizes a sequential search would have tried


def decide(r: Record, step_sizes: Tensor, rules: Rules) -> Decision:
    """`decide_within` the limits of ``rules``."""
    return decide_within(r, step_sizes, rules.limits(r.cost.dtype))


def decide_within(r: Record, step_sizes: Tensor, rules: Limits) -> Decision:
    """Choose the largest step size with enough decrease, move the damping, say when to stop.

    Merit ``J + penalty sum|gap|``; a step a leaves (1 - a) of the gaps. The penalty is raised
    where J is predicted to grow (Nocedal, Wright 2006, eq. 18.36 with rho = 1/2).
    """
    running = r.status == Status.RUNNING
    scale = 1 + r.cost.abs()
    rise = (r.slope + r.curvature / 2) / (0.5 * r.gap).clamp_min(torch.finfo(r.gap.dtype).tiny)
    needed = torch.where((r.gap > 0) & (rise > 0), rules.penalty_margin * rise, 0)
    penalty = torch.maximum(r.penalty, torch.where(torch.isfinite(needed), needed, 0))

    a = step_sizes[:, None]
    expected = -(a * r.slope + a * a / 2 * r.curvature) + a * penalty * r.gap
    merit = r.cost + penalty * r.gap
    decrease = merit - (r.trial_cost + penalty * (1 - a) * r.gap)
    # Differences of costs below this mean nothing; the sum over stages rounds at every term.
    rounding = 8 * torch.finfo(r.cost.dtype).eps * (merit.abs() + r.cost.abs())
    enough = decrease >= rules.armijo * expected - rounding
    good = enough & (expected > -rounding) & r.trial_finite & r.usable
    accepted = good.any(dim=0) & running
    choice = good.to(torch.uint8).argmax(dim=0)
    pick = lambda v: v.gather(0, choice[None])[0]
    chosen_expected = torch.where(accepted, pick(expected), expected[0])
    chosen_decrease = torch.where(accepted, pick(decrease), 0)

    weak = torch.where(expected[0] <= rounding, r.weak + 1, 0)
    weak = torch.where(r.usable, weak, r.weak)  # without a direction there is nothing to expect
    small = expected[0] <= rules.cost_tolerance * scale
    closed = r.gap <= rules.gap_tolerance
    calm = r.damping <= rules.calm  # a large damping hides what is left to gain
    converged = (r.residual <= rules.tolerance) & small & closed & r.usable & calm
    less = torch.where(r.damping > rules.damping_min, r.damping * rules.damping_down, 0)
    more = (r.damping * rules.damping_up).clamp_min(rules.damping_min * rules.damping_up)
    taken = torch.where(accepted, step_sizes[choice], 0)
    damping = torch.where(taken > rules.short_step, r.damping, more)
    damping = torch.where(taken >= 0.5, less, damping)
    # An undamped first step is exact where the problem is linear-quadratic. Where the model is far
    # off, the step leaps out of the valley the guess is in, to wherever: it is taken back.
    far = (chosen_decrease - chosen_expected).abs() > MODEL_ERROR * chosen_expected.abs()
    leap = accepted & far & (r.iterations == 0) & (r.damping == 0) & (r.gap == 0)
    leap = leap & (rules.first_damping > 0)
    damping = torch.where(leap, rules.first_damping, damping)
    iterations = r.iterations + (running & ~converged & r.finite).to(r.iterations.dtype)

    stop = r.status
    for condition, status in (
        (iterations >= rules.max_iterations, Status.MAX_ITERATIONS),
        (damping > rules.damping_max, Status.STALLED),
        ((weak >= 3) & closed & (calm | (r.residual <= rules.tolerance)), Status.PRECISION),
        (
            accepted & (pick(r.trial_cost) < -rules.unbounded * (1 + r.start_cost.abs())),
            Status.UNBOUNDED,
        ),
        (converged, Status.CONVERGED),
        (~r.finite, Status.NON_FINITE),
    ):
        stop = torch.where(running & condition, torch.full_like(stop, int(status)), stop)
    accepted = accepted & ~converged & r.finite & ~leap
    little = accepted & (chosen_decrease < rules.second_order_below * scale)
    return Decision(
        choice=choice,
        accepted=accepted,
        step_size=torch.where(accepted, step_sizes[choice], 0),
        expected=chosen_expected,
        decrease=torch.where(accepted, chosen_decrease, 0),
        damping=torch.where(running & ~converged, damping, r.damping),
        penalty=penalty,
        second_order=r.second_order | little,
        weak=weak,
        status=stop,
        iterations=iterations,
        rollouts=torch.where(
            running & ~converged, torch.where(accepted | leap, choice + 1, step_sizes.shape[0]), 0
        ),
    )
