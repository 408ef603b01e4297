"""What a solve achieved after each iteration, and what it had spent by then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ocp.problem import Problem
from ocp.solution import Solution, at
from ocp.solvers.loop import Report, State


@dataclass(frozen=True, eq=False)
class Curve:
    """Point k describes the iterate after k steps of the loop; K + 1 points, B problems (or 1).

    Attributes:
        iterations: made until then (K + 1, B). From 0 unless the start itself iterated.
        cost, gap: of the iterate (K + 1, B); gap is sum |f(x, u) - x'|.
        residual: largest projected gradient that the method's own step saw at the iterate
            (K + 1, B): |Q_u| of its sweep, or |H_u|. nan where no step was made from it.
        seconds: since the solve was called (K + 1,); point 0 has what the start took.
        expansions, sweeps, rollouts: spent until the iterate was there (K + 1, B), point 0 by
            starts that solve easier problems first (an expansion for each of their sweeps). The
            certificate, the same for every method, is not counted.
    """

    iterations: Tensor
    cost: Tensor
    gap: Tensor
    residual: Tensor
    seconds: Tensor
    expansions: Tensor
    sweeps: Tensor
    rollouts: Tensor


class Spent(NamedTuple):
    """Work until a tolerance was met; each (B,), infinite where it never was."""

    iterations: Tensor
    expansions: Tensor
    sweeps: Tensor
    rollouts: Tensor
    seconds: Tensor


class Counter:
    """Callback that notes what was spent before the first step and after each.

    Lists of (M B,), M starts of a portfolio one after another.
    """

    def __init__(self) -> None:
        self.begun = 0.0  # seconds until the first step began
        self.iterations: list[Tensor] = []
        self.expansions: list[Tensor] = []
        self.sweeps: list[Tensor] = []
        self.rollouts: list[Tensor] = []

    def __call__(self, report: Report) -> None:
        if not self.sweeps:
            self.begun = report.start_seconds
            self.note(report.start, report.start.sweeps)
        now = report.state.rows[-1]["running"][-1].to(torch.int64)
        before = self.expansions[-1]
        if before.shape != now.shape:  # the best of a portfolio goes on alone
            before = before.reshape(-1, now.shape[0]).sum(dim=0)
        self.note(report.state, before + now)

    def note(self, state: State, expansions: Tensor) -> None:
        self.expansions.append(expansions)
        self.iterations.append(state.iterations)
        self.sweeps.append(state.sweeps)
        self.rollouts.append(state.rollouts)


def curve(problem: Problem, solution: Solution, counter: Counter) -> Curve:
    """The curve of a finished solve that ``counter`` watched.

    A history has a row a step, written with the cost before it. The last step of a problem that
    converged is a test that counts as no iteration, so its row has the final cost; a solve that
    ended for another reason moved in its last step, and the final point is appended.
    """
    history, B = solution.history, problem.batch
    steps = max(len(counter.sweeps) - 1, 0)
    final = solution.cost.reshape(1, B)
    rows = {
        k: history[k][:steps].reshape(steps, B).to(final.dtype) if steps else final[:0]
        for k in ("cost", "gap", "residual")
    }
    one = final.new_zeros(1, B)
    start = torch.as_tensor(solution.extra.get("start", 0), device=final.device).reshape(-1)
    winner = start.expand(B)[None]  # of a portfolio's members
    each_start = [v.reshape(-1, B) for v in counter.iterations]
    made = [(v.gather(0, winner) if len(v) > 1 else v).to(one) for v in each_start]
    iterations = torch.cat(made or [one])
    append = steps == 0 or bool((iterations[-1] != iterations[-2]).any())
    last = slice(0, steps + append)

    def spent(counts: list[Tensor]) -> Tensor:
        # A portfolio's starts are all paid for, though the curve is that of the winner.
        return torch.cat([v.reshape(1, -1, B).sum(dim=1).to(one) for v in counts] or [one])[last]

    return Curve(
        iterations=(iterations + solution.iterations.reshape(1, B) - iterations[-1:])[last],
        cost=torch.cat((rows["cost"], final))[last],
        gap=torch.cat((rows["gap"], solution.gap.reshape(1, B)))[last],
        residual=torch.cat((rows["residual"], one + torch.nan))[last],
        seconds=torch.tensor([counter.begun, *history["seconds"].tolist()], dtype=torch.float64)[
            last
        ],
        expansions=spent(counter.expansions),
        sweeps=spent(counter.sweeps),
        rollouts=spent(counter.rollouts),
    )


def reach(curve: Curve, met: Tensor) -> Spent:
    """Work until ``met`` (K + 1, B) first holds."""
    first, ever = met.to(torch.uint8).argmax(dim=0), met.any(dim=0)
    never = torch.full_like(curve.cost[0], torch.inf)

    def until(spent: Tensor) -> Tensor:
        return torch.where(ever, spent.gather(0, first[None])[0], never)

    seconds = curve.seconds.to(never)[:, None].expand_as(curve.cost)
    spent = (curve.iterations, curve.expansions, curve.sweeps, curve.rollouts, seconds)
    return Spent(*(until(s) for s in spent))


def same_layout(problem: Problem, value: object) -> list[Tensor]:
    """Costates or V_x of a solution, stages 0..T of (B, n); augmented where controls are shared."""
    return [at(value, t, 1).reshape(problem.batch, -1) for t in range(problem.horizon + 1)]


def costate_difference(problem: Problem, costates: object, vx: object) -> Tensor:
    """Largest |p - V_x| over stages and components, relative to the largest |V_x|: (B,)."""
    return costate_differences(problem, costates, vx).amax(dim=0)


def costate_differences(problem: Problem, costates: object, vx: object) -> Tensor:
    """|p[t] - V_x[t]| at each stage, relative to the largest |V_x| of any: (T+1, B)."""
    p, v = same_layout(problem, costates), same_layout(problem, vx)
    size = torch.stack([w.abs().amax(dim=-1) for w in v]).amax(dim=0)
    tiny = torch.finfo(size.dtype).tiny
    return torch.stack(
        [(a - b).abs().amax(dim=-1) / size.clamp_min(tiny) for a, b in zip(p, v, strict=True)]
    )
