"""Figures of a comparison of solvers and of a robustness study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ocp.curves import costate_differences, same_layout
from ocp.plot import new_figure

if TYPE_CHECKING:
    from ocp.compare import Comparison
    from ocp.monte_carlo import Robustness

COMPONENTS = 4  # states whose costates are drawn; more curves cannot be told apart
MARKERS = "osD^vP*X"
GAP = 1e-6  # above it a trajectory is not one
PRINCIPLE = ("pmp", "indirect", "emsa", "msa")  # methods that work with costates


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """An empty figure and its axes (rows, columns)."""
    drawing = new_figure(*size)
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def save(drawing: Any, path: str | Path) -> Path:
    path = Path(path)
    drawing.savefig(path, dpi=130)
    return path


# -- comparison --------------------------------------------------------------------------------
def plot_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Cost and residual over iterations and seconds, costates against V_x; any matplotlib format.

    A batch shows the median over its problems, and the first problem's costates.

    Raises:
        ImportError: matplotlib is missing.
    """
    drawing, axes = figure(3, 2, (11, 11))
    name = comparison.problem.name or "problem"
    many = f" (median of {comparison.problem.batch} problems)" if comparison.problem.batched else ""
    drawing.suptitle(f"{name}: {', '.join(comparison.solutions)}{many}")
    costs = {m: middle(feasible_excess(comparison, m)) for m in comparison.solutions}
    residuals = {m: middle(c.residual) for m, c in comparison.curves.items()}
    for row, values, label in (
        (0, costs, "cost above the best, relative"),
        (1, residuals, "largest projected gradient of the step"),
    ):
        iterations = lambda m: comparison.curves[m].iterations.amax(dim=-1)
        seconds = lambda m: comparison.curves[m].seconds
        curves(axes[row, 0], values, iterations, "iteration", label)
        curves(axes[row, 1], values, seconds, "seconds", label)
    axes[0, 0].legend()
    draw_costates(axes[2, 0], comparison)
    draw_costate_differences(axes[2, 1], comparison)
    return save(drawing, path)


def feasible_excess(comparison: Comparison, method: str) -> Tensor:
    """Cost above the best; nan, which is not drawn, while gaps are open: that cost says nothing."""
    excess, gap = comparison.excess(method), comparison.curves[method].gap
    return torch.where(gap <= GAP, excess, torch.nan)


def middle(values: Tensor) -> Tensor:
    """Median over problems, (K + 1, B) -> (K + 1,)."""
    return values.double().median(dim=-1).values


def curves(
    axis: Any, values: dict[str, Tensor], over: Callable[[str], Tensor], x_label: str, y_label: str
) -> None:
    """One logarithmic curve a method. What is exactly 0 (the best itself) is drawn at the edge."""
    positive = [v[torch.isfinite(v) & (v > 0)] for v in values.values()]
    smallest = min((float(p.min()) for p in positive if p.numel()), default=1e-16)
    for i, (method, value) in enumerate(values.items()):
        y = torch.where(value <= 0, smallest / 3, value)
        marker = MARKERS[i % len(MARKERS)]
        # Many iterations: a marker at some of them, not a band of markers.
        axis.plot(
            over(method), y, marker=marker, ms=4, markevery=max(1, len(y) // 15), label=method
        )
    axis.set_yscale("log")
    axis.set(xlabel=x_label, ylabel=y_label)
    if x_label == "seconds":
        positive_times = [over(m)[over(m) > 0] for m in values]
        if all(len(t) for t in positive_times):
            axis.set_xscale("log")
    axis.grid(alpha=0.3)


def draw_costates(axis: Any, comparison: Comparison) -> None:
    """p of a method of the maximum principle over V_x of the best from dynamic programming."""
    problem, pair = comparison.problem, costates_and_values(comparison)
    if pair is None:
        axis.set_axis_off()
        return
    other, best = pair
    p = same_layout(problem, comparison.solutions[other].costates)
    v = same_layout(problem, comparison.solutions[best].value.vx)
    for i in range(min(COMPONENTS, *(len(s[0]) for s in v))):
        color = f"C{i}"
        axis.plot([float(s[0, i]) for s in v], color=color, lw=4, alpha=0.35)
        axis.plot([float(s[0, i]) for s in p], color=color, lw=1.2, label=f"component {i}")
    axis.set(xlabel="stage", title=f"p of {other} (thin) over V_x of {best} (wide)")
    axis.legend()
    axis.grid(alpha=0.3)


def costates_and_values(comparison: Comparison) -> tuple[str, str] | None:
    """Whose costates to draw over whose V_x: of each kind the best method that converged."""
    best, solutions = comparison.best_method, comparison.solutions
    if best is None:
        return None

    def rank(method: str) -> tuple[int, int]:
        converged = int(torch.as_tensor(solutions[method].converged).sum())
        return converged, comparison.wins(method)

    def first(methods: list[str]) -> str:
        return best if best in methods else max(methods or list(solutions), key=rank)

    principle = [m for m in solutions if solutions[m].method in PRINCIPLE]
    return first(principle), first([m for m in solutions if m not in principle])


def draw_costate_differences(axis: Any, comparison: Comparison) -> None:
    """|p - V_x| at each stage, every method's costates against V_x of the best one."""
    best = comparison.best_method
    if best is None:
        axis.set_axis_off()
        return
    vx = comparison.solutions[best].value.vx
    differences = {
        method: costate_differences(comparison.problem, s.costates, vx)[:, :1]
        for method, s in comparison.solutions.items()
    }
    values = {method: middle(d) for method, d in differences.items()}
    curves(axis, values, lambda m: torch.arange(len(values[m])), "stage", "relative difference")
    axis.set(title=f"|p - V_x|, V_x of {best}")


# -- robustness --------------------------------------------------------------------------------
def plot_robustness(robustness: Robustness, path: str | Path) -> Path:
    """Cost (median, and 5 to 95 %) and share of runs within the factor, over the noise.

    Raises:
        ImportError: matplotlib is missing.
    """
    from ocp.monte_carlo import STRATEGIES

    drawing, axes = figure(1, 2, (11, 4.2))
    name = robustness.problem_name or "problem"
    drawing.suptitle(f"{name}: replayed controls against feedback, {robustness.kind} noise")
    noise = torch.tensor(robustness.noise)
    low, median, high = (robustness.quantile(q) for q in (0.05, 0.5, 0.95))
    ceiling = median[torch.isfinite(median)].max() if torch.isfinite(median).any() else median.max()
    for i, strategy in enumerate(STRATEGIES):
        style = {"color": f"C{i}", "marker": MARKERS[i], "label": strategy}
        axes[0, 0].plot(noise, median[i], **style)
        axes[0, 0].fill_between(
            noise, low[i], high[i].clamp_max(10 * ceiling.abs()), color=f"C{i}", alpha=0.2
        )
        axes[0, 1].plot(noise, 100 * robustness.within[i], **style)
    axes[0, 0].axhline(float(robustness.nominal.median()), color="gray", ls=":", label="no noise")
    axes[0, 0].set(ylabel="cost: median, 5 to 95 %")
    axes[0, 1].set(ylabel=f"runs within {robustness.factor:g} times the cost [%]", ylim=(-3, 103))
    if bool((low > 0).all()):
        axes[0, 0].set_yscale("log")
    for axis in axes[0]:
        axis.set(xlabel=f"standard deviation of the {robustness.kind} noise")
        if bool((noise > 0).all()) and len(noise) > 1:
            axis.set_xscale("log")
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    return save(drawing, path)
