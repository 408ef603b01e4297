"""Figures of a solution: states, controls with their bounds, cost and residual by iteration.

matplotlib is optional (``pip install "torch-ocp[plot]"``) and imported when a figure is made.
Figures are made without pyplot: no display, no global state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ocp.problem import Problem
from ocp.problems import REGISTRY
from ocp.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")  # of the members of a batch
COMPONENTS = 8  # lines in one panel before the rest is left out
HINT = 'it needs matplotlib and pillow: pip install "torch-ocp[plot]"'


class Panel(NamedTuple):
    """Components that share their axes because they share a unit."""

    title: str
    components: list[int]
    labels: list[str]


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """An empty figure with its own Agg canvas, in inches.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra that has it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"no figure: {HINT}") from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_solution(
    problem: Problem,
    solution: Solution,
    path: str | Path | None = None,
    *,
    member: int | Sequence[int] | None = None,
    dt: float | None = None,
) -> Figure:
    """States, controls and the history of a solve in one figure.

    Args:
        problem: what was solved; its goal and bounds are drawn, and a classic problem
            (`ocp.problems.REGISTRY`) has labels with units.
        solution: of that problem.
        path: file to write, in any format of matplotlib; none if None.
        member: which problems of a batch (or samples behind shared controls); the first 4 if None.
        dt: seconds per stage for the time axis; by default the problem's parameter ``dt`` if it is
            a classic one, else the axis counts stages.

    Raises:
        ImportError: matplotlib is not installed.
        IndexError: no such member.
    """
    members = which(problem, member)
    entry = REGISTRY.get(problem.name)
    n, m = max(problem.state_dims), max(problem.control_dims)
    states = panels("states", n, entry.state_labels if entry else (), "x")
    controls = panels("controls", m, entry.control_labels if entry else (), "u") if m else []
    columns = max(len(states), len(controls), 2)
    columns = min(columns, 4) if columns != 6 else 3
    state_rows, control_rows = rows_of(states, columns), rows_of(controls, columns)
    figure = new_figure(3.4 * columns + 0.6, 2.3 * (state_rows + control_rows + 1))
    grid = figure.add_gridspec(state_rows + control_rows + 1, 2 * columns)
    for panel, axes in zip(states, spread(figure, grid, 0, len(states), columns), strict=True):
        draw_states(axes, problem, solution, panel, members, dt)
    below = spread(figure, grid, state_rows, len(controls), columns)
    for panel, axes in zip(controls, below, strict=True):
        draw_controls(axes, problem, solution, panel, members, dt)
    left, right = spread(figure, grid, state_rows + control_rows, 2, 2, width=columns)
    draw_cost(left, problem, solution, members)
    draw_residual(right, problem, solution, members)
    figure.suptitle(heading(problem, solution, members))
    if path is not None:
        figure.savefig(path)
    return figure


def heading(problem: Problem, solution: Solution, members: list[int]) -> str:
    name = problem.name or "problem"
    if isinstance(solution.status, list):
        shown = f"{len(members)} of {len(solution.status)} problems: {members}"
        return f"{name} · {solution.method} · {shown}"
    iterations = int(solution.iterations)
    cost = float(solution.cost)
    status = solution.status.name.lower().replace("_", " ")
    return f"{name} · {solution.method} · cost {cost:.6g} · {status}, {iterations} iterations"


def which(problem: Problem, member: int | Sequence[int] | None) -> list[int]:
    """Rows of x0 to draw."""
    count = problem.x0.shape[0] if problem.x0.ndim == 2 else 1
    if member is None:
        return list(range(min(count, len(STYLES))))
    members = [member] if isinstance(member, int) else list(member)
    if not members or not all(0 <= b < count for b in members):
        raise IndexError(f"member must be in 0..{count - 1}, got {member}.")
    return members


# -- panels ------------------------------------------------------------------------------------
def panels(what: str, size: int, labels: Sequence[str], letter: str) -> list[Panel]:
    """Components grouped by the unit in their labels, in the order of their first component."""
    if len(labels) != size:
        shown = list(range(min(size, COMPONENTS)))
        more = f" (first {COMPONENTS} of {size})" if size > COMPONENTS else ""
        return [Panel(what + more, shown, [f"{letter}[{i}]" for i in shown])]
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(unit(label), []).append(i)
    return [Panel(u, g, [labels[i].rpartition(" [")[0] for i in g]) for u, g in groups.items()]


def unit(label: str) -> str:
    return label.rpartition("[")[2].rstrip("]")


def rows_of(panels: Sequence[Panel], columns: int) -> int:
    return -(-len(panels) // columns)


def spread(
    figure: Figure, grid: Any, row: int, count: int, columns: int, width: int = 2
) -> list[Axes]:
    """Axes for ``count`` panels from a row of the grid on; a row not full is widened to fill it."""
    total, result = columns * width, []
    for start in range(0, count, columns):
        here = min(columns, count - start)
        edges = [round(total * i / here) for i in range(here + 1)]
        r = row + start // columns
        result += [figure.add_subplot(grid[r, a:b]) for a, b in itertools.pairwise(edges)]
    return result


def array_of(trajectory: Any, size: int, member: int | None) -> np.ndarray:
    """(stages, size) of one member; nan where a stage has fewer components."""
    parts = list(trajectory) if isinstance(trajectory, list) else None
    if parts is None:
        whole = trajectory if member is None else trajectory[member]
        return whole.detach().cpu().double().numpy()
    result = np.full((len(parts), size), np.nan)
    for t, part in enumerate(parts):
        values = (part if member is None else part[member]).detach().cpu().double().numpy()
        result[t, : values.shape[0]] = values
    return result


def time_axis(problem: Problem, member: int, dt: float | None, count: int) -> tuple[Any, str]:
    """Where the first ``count`` stages lie, and the label of the axis."""
    step = seconds_per_stage(problem, member) if dt is None else dt
    if step is None:
        return np.arange(count), "stage"
    entry = REGISTRY.get(problem.name)
    bare = dt is None and entry is not None and not entry.time_unit
    return np.arange(count) * step, "time" if bare else "time [s]"


def seconds_per_stage(problem: Problem, member: int = 0) -> float | None:
    """Of a classic problem; None for any other, whose parameters may mean anything."""
    if problem.name not in REGISTRY:
        return None
    if "dt" in problem.per_problem:
        return float(problem.per_problem["dt"][member])
    return float(problem.parameters["dt"]) if "dt" in problem.parameters else None


# -- drawing -----------------------------------------------------------------------------------
def draw_states(
    axes: Axes,
    problem: Problem,
    solution: Solution,
    panel: Panel,
    members: list[int],
    dt: float | None,
) -> None:
    split = problem.x0.ndim == 2
    for k, b in enumerate(members):
        values = array_of(solution.states, max(problem.state_dims), b if split else None)
        times, label = time_axis(problem, b, dt, len(values))
        goal = None
        if problem.goal is not None:
            goal = (problem.goal[b] if problem.goal.ndim == 2 else problem.goal).cpu().numpy()
        for c, (i, name) in enumerate(zip(panel.components, panel.labels, strict=True)):
            style = look(panel, c, k)
            axes.plot(times, values[:, i], label=None if k else name, **style)
            if goal is not None and i < len(goal):
                mark = {"color": style["color"], "clip_on": False, "zorder": 3}
                axes.plot(times[-1], goal[i], "x", **mark)
    finish(axes, panel, label)


def draw_controls(
    axes: Axes,
    problem: Problem,
    solution: Solution,
    panel: Panel,
    members: list[int],
    dt: float | None,
) -> None:
    for k, b in enumerate(members if problem.batched else members[:1]):
        chosen = b if problem.batched else None
        values = array_of(solution.controls, max(problem.control_dims), chosen)
        values = np.concatenate((values, values[-1:]))  # the last one holds to the end
        times, label = time_axis(problem, b, dt, len(values))
        for c, (i, name) in enumerate(zip(panel.components, panel.labels, strict=True)):
            shown = None if k else name
            axes.step(times, values[:, i], where="post", label=shown, **look(panel, c, k))
    draw_bounds(axes, problem, panel, times)
    finish(axes, panel, label)


def draw_bounds(axes: Axes, problem: Problem, panel: Panel, times: np.ndarray) -> None:
    """Dashed limits; one grey line where components share them."""
    for bound in (problem.lower, problem.upper):
        if bound is None:
            continue
        limits = np.full((len(times), max(problem.control_dims)), np.nan)
        for t, row in enumerate(bound):
            limits[t, : row.shape[-1]] = row[0].cpu().numpy()
        limits[-1] = limits[-2]
        limits[~np.isfinite(limits)] = np.nan
        columns = limits[:, panel.components]
        same = all(np.array_equal(c, columns[:, 0], equal_nan=True) for c in columns.T)
        for color, column in enumerate(columns.T[:1] if same else columns.T):
            tint = "0.45" if same else f"C{color}"
            axes.step(times, column, where="post", color=tint, linestyle="--", linewidth=1)


def draw_cost(axes: Axes, problem: Problem, solution: Solution, members: list[int]) -> None:
    shown = []
    for k, b, rows, final in histories(problem, solution, members, "cost"):
        # The last row of a converged solve is its final iterate; else the last step follows it.
        values = rows if rows.size and rows[-1] == final else np.append(rows, final)
        shown.append(values)
        draw_history(axes, values, k, str(b))
    values = np.concatenate(shown) if shown else np.zeros(1)
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    decorate(axes, "cost", problem.batched and len(members) > 1)


def draw_residual(axes: Axes, problem: Problem, solution: Solution, members: list[int]) -> None:
    """Largest |Q_u|, and the sum of the gaps, thin, where there are any."""
    several, name = problem.batched and len(members) > 1, "residual |Q_u|"
    for k, b, rows, _ in histories(problem, solution, members, "residual"):
        draw_history(axes, positive(rows), k, str(b) if several else name)
    gaps = [h for h in histories(problem, solution, members, "gap") if (h[2] > 0).any()]
    for k, _, rows, _ in gaps:
        axes.plot(positive(rows), "x", color=f"C{k}", markersize=5)
    if any(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any() for line in axes.lines):
        axes.set_yscale("log")
    decorate(axes, f"{name}, gap (x)" if gaps else name, several)


def draw_history(axes: Axes, values: np.ndarray, k: int, label: str) -> None:
    marker = "." if len(values) < 40 else ""
    axes.plot(values, STYLES[k % len(STYLES)], color=f"C{k}", marker=marker, label=label)


def positive(values: np.ndarray) -> np.ndarray:
    """nan where a logarithm has nothing to show."""
    return np.where(values > 0, values, np.nan)


def histories(
    problem: Problem, solution: Solution, members: list[int], key: str
) -> list[tuple[int, int, np.ndarray, float]]:
    """(place k in members, member, rows while it ran, final cost) of each member."""
    if key not in solution.history:
        return []
    result = []
    for k, b in enumerate(members if problem.batched else members[:1]):
        pick = (slice(None), b) if problem.batched else slice(None)
        running = solution.history["running"][pick].cpu().numpy().astype(bool)
        rows = solution.history[key][pick].cpu().double().numpy()[running]
        final = solution.cost[b] if problem.batched else solution.cost
        result.append((k, b, rows, float(final)))
    return result


def look(panel: Panel, component: int, k: int) -> dict[str, Any]:
    """Colours tell components apart where there are several, else the k-th member drawn."""
    color = component if len(panel.components) > 1 else k
    return {"color": f"C{color}", "linestyle": STYLES[k % len(STYLES)]}


def finish(axes: Axes, panel: Panel, time_label: str) -> None:
    title = panel.title
    single = len(panel.labels) == 1
    units = "" if title.startswith(("states", "controls")) or title == "1" else f" [{title}]"
    bare = "dimensionless" if title == "1" else ""
    axes.set_ylabel(f"{panel.labels[0]}{units}" if single else (units.strip() or bare))
    if title.startswith(("states", "controls")):
        axes.set_title(title, fontsize=10)
    axes.set_xlabel(time_label)
    axes.locator_params(axis="x", integer=time_label == "stage")
    axes.grid(True, color="0.9")
    axes.margins(x=0.02)
    if not single:
        axes.legend(fontsize=8, ncols=2 if len(panel.labels) > 3 else 1)


def decorate(axes: Axes, label: str, legend: bool) -> None:
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    axes.grid(True, color="0.9")
    axes.locator_params(axis="x", integer=True)
    if legend:
        axes.legend(title="problem", fontsize=8, title_fontsize=8, ncols=2)
