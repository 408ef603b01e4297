"""How a solution stands disturbances: its controls replayed against its feedback policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ocp.engines import Eager
from ocp.problem import Problem, Stages
from ocp.solution import Solution, at, stages_of
from ocp.stages import pack
from ocp.tables import Row, Table, number, write_csv, write_json

Kind = Literal["state", "control", "initial"]
STRATEGIES = ("open loop", "policy")


@dataclass(frozen=True, eq=False)
class Robustness:
    """Costs under disturbances. Statistics pool the samples (and the problems of a batch).

    Attributes:
        cost: (2, sizes, samples), then (B,) in a batch; strategies in the order of `STRATEGIES`.
            inf where the roll-out was not finite.
        nominal: cost without disturbance, () or (B,).
        noise: standard deviations (sizes,), in units of what ``kind`` disturbs.
        factor: a run is within when J <= nominal + (factor - 1) |nominal|.
    """

    cost: Tensor
    nominal: Tensor
    noise: tuple[float, ...]
    kind: str
    factor: float
    seed: int
    problem_name: str = ""

    @property
    def within(self) -> Tensor:
        """Share of runs within the factor: (2, sizes)."""
        limit = self.nominal + (self.factor - 1) * self.nominal.abs()
        return (self.cost <= limit).double().flatten(2).mean(dim=-1)

    def quantile(self, q: float) -> Tensor:
        """Cost that a share ``q`` of the runs does not exceed, one of those seen: (2, sizes)."""
        runs = self.cost.flatten(2).sort(dim=-1).values
        return runs[..., round(q * (runs.shape[-1] - 1))]

    def rows(self) -> list[Row]:
        """One dict for each size of noise and strategy."""
        low, middle, high = (self.quantile(q) for q in (0.05, 0.5, 0.95))
        mean, within = self.cost.flatten(2).mean(dim=-1), self.within
        return [
            {
                "noise": size,
                "strategy": strategy,
                "runs": self.cost[i, j].numel(),
                "mean": float(mean[i, j]),
                "q05": float(low[i, j]),
                "median": float(middle[i, j]),
                "q95": float(high[i, j]),
                "within": float(within[i, j]),
            }
            for j, size in enumerate(self.noise)
            for i, strategy in enumerate(STRATEGIES)
        ]

    def table(self) -> Table:
        name = f" of {self.problem_name}" if self.problem_name else ""
        rows, previous = [], None
        for r in self.rows():
            size = "" if r["noise"] == previous else number(r["noise"], "g")
            previous = r["noise"]
            costs = [number(r[key], ".5g") for key in ("mean", "q05", "median", "q95")]
            rows.append((size, r["strategy"], *costs, f"{100 * r['within']:.1f} %"))
        runs = self.cost[0, 0].numel()
        nominal = number(float(self.nominal.median()), ".6g")
        return Table(
            f"Cost{name} under {self.kind} noise, {runs} runs each; {nominal} without noise",
            ("noise", "strategy", "mean", "5 %", "median", "95 %", f"within {self.factor:g}x"),
            rows,
            align="<<",
        )

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table()

    def to_csv(self, path: str | Path) -> Path:
        """Write `rows` with a header line."""
        return write_csv(path, self.rows())

    def to_json(self, path: str | Path) -> Path:
        """Write settings and rows; null where a number is not finite."""
        settings = {"kind": self.kind, "factor": self.factor, "seed": self.seed}
        content = {"problem": self.problem_name, "nominal": self.nominal.tolist(), **settings}
        return write_json(path, content | {"rows": self.rows()})

    def plot(self, path: str | Path) -> Path:
        """Write a figure: cost (median and 5 to 95 %) and share within the factor over noise.

        Raises:
            ImportError: matplotlib is missing.
        """
        from ocp.plot_compare import plot_robustness

        return plot_robustness(self, path)


@torch.no_grad()
def monte_carlo(
    problem: Problem,
    solution: Solution,
    noise: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1),
    samples: int = 200,
    kind: Kind = "state",
    *,
    factor: float = 2.0,
    seed: int = 0,
) -> Robustness:
    """Roll a solution out under Gaussian disturbances, open loop and with its policy.

    All sizes, samples and both strategies are lines of one batched roll-out, and all of them see
    the same draws, scaled: differences are due to strategy and size, not to luck.

    Args:
        problem: the problem, or batch, that was solved.
        solution: its solution.
        noise: standard deviations, in units of the state or of the control.
        samples: draws.
        kind: "state": x[t+1] = f(x, u, t) + noise; "control": x[t+1] = f(x, u + noise, t), the
            cost being charged for u (what reaches the plant may leave the bounds);
            "initial": x[0] = x0 + noise.
        factor: what counts as a run that held, see `Robustness`.
        seed: of a CPU generator: the same draws on every device.

    Raises:
        ValueError: kind, noise, samples or factor make no sense, or the solution is of another
            problem.
    """
    sizes = tuple(float(size) for size in noise)
    check_study(sizes, samples, kind, factor)
    check_pair(problem, solution)
    engine, B = Eager(problem), problem.batch
    x0 = engine.initial()
    widths = (
        problem.control_dims
        if kind == "control"
        else tuple(problem.samples * n for n in problem.state_dims)
    )
    generator = torch.Generator().manual_seed(seed)
    scale = x0.new_tensor(sizes)[:, None, None, None]

    def draw(width: int) -> Tensor:
        """Disturbance of every line (sizes, samples, B, width)."""
        w = torch.randn(samples, B, width, generator=generator, dtype=torch.float64)
        return scale * w.to(x0)

    shape = (2, len(sizes), samples, B)
    x = x0.expand(*shape, -1)
    if kind == "initial":
        x = x + draw(widths[0])
    xs, us = [x], []
    for t in range(problem.horizon):
        u = commands(problem, solution, x, t)
        applied = u + draw(widths[t]) if kind == "control" else u
        x = engine.step(x.flatten(0, -2), applied.flatten(0, -2), t).unflatten(0, shape)
        if kind == "state":
            x = x + draw(widths[t + 1])
        xs.append(x)
        us.append(u)
    cost = engine.total_cost(lines(problem, xs), lines(problem, us)).reshape(shape)
    cost = torch.where(torch.isfinite(cost), cost, torch.inf)
    return Robustness(
        cost if problem.batched else cost[..., 0],
        solution.cost,
        sizes,
        kind,
        factor,
        seed,
        problem.name,
    )


def commands(problem: Problem, solution: Solution, x: Tensor, t: int) -> Tensor:
    """What both strategies ask for at states (2, sizes, samples, B, n): the same with m."""
    replayed = at(solution.controls, t, 1)
    state = x[1] if problem.batched else x[1, ..., 0, :]
    feedback = solution.policy(state, t)
    if not problem.batched:
        feedback = feedback[..., None, :]
    return torch.stack((replayed.expand_as(feedback), feedback))


def lines(problem: Problem, stages: list[Tensor]) -> Stages:
    return pack([s.flatten(0, -2) for s in stages], problem.uniform)


def check_study(noise: Sequence[float], samples: int, kind: str, factor: float) -> None:
    """Raises ValueError: an argument of `monte_carlo` makes no sense."""
    if not noise or not all(0 <= size < float("inf") for size in noise):
        raise ValueError(f"noise needs standard deviations >= 0, at least one, got {list(noise)}.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if not factor >= 1:
        raise ValueError(f"factor must be at least 1, got {factor}.")


def check_pair(problem: Problem, solution: Solution) -> None:
    """Raises ValueError: the solution is of another problem."""
    x0, T = at(solution.states, 0, 1), stages_of(solution.controls, 1)
    if x0.shape != problem.x0.shape or problem.horizon != T:
        raise ValueError(
            f"the solution has x0 {tuple(x0.shape)} and {T} stages, the problem "
            f"{tuple(problem.x0.shape)} and {problem.horizon}: pass the problem that was solved."
        )
