"""What the commands print and write."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ocp.problem import Problem
from ocp.solution import Solution
from ocp.tables import Row, Table, finite

if TYPE_CHECKING:
    from ocp.compare import Comparison
    from ocp.monte_carlo import Robustness


def facts(solution: Solution) -> Row:
    """A solution without its trajectory; lists over the problems of a batch."""
    many = isinstance(solution.status, list)
    row: Row = {
        "problem": solution.problem_name,
        "method": solution.method,
        "engine": solution.engine,
        "status": [s.name for s in solution.status] if many else solution.status.name,
        "message": solution.message,
    }
    for key in ("converged", "cost", "iterations", "rollouts", "sweeps", "residual"):
        row[key] = getattr(solution, key).tolist()
    for key in ("hamiltonian_residual", "gap"):
        row[key] = getattr(solution, key).tolist()
    return row | {"seconds": solution.seconds}


def write_solution(
    problem: Problem,
    solution: Solution,
    plot: Path | None,
    animate: Path | None,
    save: Path | None,
) -> list[str]:
    files = []
    if save is not None:
        files.append(str(solution.save(save)))
    if plot is not None:
        from ocp.plot import plot_solution

        plot_solution(problem, solution, plot)
        files.append(str(plot))
    if animate is not None:
        from ocp.animate import animate as write_animation

        files.append(str(write_animation(problem, solution, animate)))
    return files


def write_comparison(
    out: Path, result: Comparison, robustness: Robustness | None, animate: bool
) -> list[str]:
    """Tables and figures into a folder, which is made; the paths written."""
    out.mkdir(parents=True, exist_ok=True)
    files = [result.to_csv(out / "table.csv"), result.to_json(out / "table.json")]
    files.append(result.plot(out / "comparison.png"))
    if robustness is not None:
        files.append(robustness.to_csv(out / "robustness.csv"))
        files.append(robustness.to_json(out / "robustness.json"))
        files.append(robustness.plot(out / "robustness.png"))
    written = [str(file) for file in files]
    if result.best_method is not None:
        best = result.solutions[result.best_method]
        gif = out / "solution.gif" if animate else None
        written += write_solution(result.problem, best, out / "solution.png", gif, None)
    return written


def show(table: Table) -> None:
    """On a terminal with rich's lines; into a file as plain text, not cut to a terminal's width."""
    if sys.stdout.isatty():
        Console().print(table, end="\n\n")
    else:
        typer.echo(f"{table}\n")


def report_files(files: Sequence[str]) -> None:
    for file in files:
        typer.echo(f"wrote {file}")


def print_json(content: Any) -> None:
    typer.echo(json.dumps(finite(content), indent=1, allow_nan=False, default=str))
