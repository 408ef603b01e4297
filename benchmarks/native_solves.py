"""Whole solves of the native engine against the eager one: trajectories, or status and cost.

    python benchmarks/native_solves.py [--problems a,b] [--cases CASES_DIR] [--methods ilqr,ddp]
                                       [--kinds plain,bounds,states] [--iterations 300]
                                       [--seconds S] [--out F] [--table | --explain]

Kinds of solves: `plain` from given controls; `bounds` with controls held to a part of what the
plain solution uses (a problem's own bounds are kept); `states` from states that do not follow from
the controls. CASES_DIR is that of `reference_cases.py`. Rows are appended to F (JSON lines), and
what stands there already is not run again; `--table` prints them as a Markdown table.

A row says where two solves part: the first iteration at which another step size, damping or order
is chosen, and how far costs and residuals of the iterations before it were apart. `--explain` sets
beside every row that is not equal what the native engine does against itself, from starts whose
controls differ in their last bits: where that parts as early, rounding is amplified by the problem.

The cheap solves come first: the native engine says how many iterations a solve takes, two of the
eager engine how long they take there. With `--seconds` a solve that would take longer has as many
iterations, in both engines, as fit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import ocp
from ocp.problems.registry import REGISTRY

METHODS = ("ilqr", "ddp", "newton", "pmp", "msa", "emsa", "indirect")
KINDS = ("plain", "bounds", "states")
SHARE = 0.6  # of the largest control of the plain solution, that the bounds leave
EXACT, SAME = 1e-9, 1e-6
NEAR = 1e-14  # relative: about what engines differ by in a first iteration


def start(problem: ocp.Problem) -> list[torch.Tensor]:
    """Controls in no special position, within the bounds."""
    us = []
    for t, m in enumerate(problem.control_dims):
        k = torch.arange(1, m + 1, dtype=problem.x0.dtype)
        u = 0.1 * torch.sin(1.3 * k + 0.2 * t)
        if problem.lower is not None and problem.upper is not None:
            u = torch.minimum(torch.maximum(u, problem.lower[t][0]), problem.upper[t][0])
        us.append(u)
    return us


def arguments(
    problem: ocp.Problem, kind: str, method: str
) -> tuple[ocp.Problem, dict[str, Any]] | None:
    """The problem of a kind of solve with its start; None where there is no such kind."""
    us = start(problem)
    if kind == "plain":
        knows = method != "indirect" or problem.lower is None
        return (problem, {"controls": us}) if knows else None
    if kind == "states":
        solver: Any = ocp.METHODS[method]
        if not problem.uniform or not solver.accepts_gaps:
            return None
        x0, T = problem.x0.reshape(-1, problem.state_dims[0])[0], problem.horizon
        goal = x0.new_zeros(len(x0)) if problem.goal is None else problem.goal.reshape(-1)
        part = torch.linspace(0, 1, T + 1, dtype=x0.dtype)[:, None]
        return problem, {"controls": us, "states": x0 + 0.5 * part * (goal - x0)}
    if method == "indirect" or problem.lower is not None or not problem.uniform:
        return None
    free = ocp.solve(problem, "ilqr", controls=us, engine="native", max_iterations=100)
    most = SHARE * free.controls.abs().reshape(-1, problem.control_dims[0]).amax(0)
    if not bool((most > 0).all()):
        return None
    problem = problem.replace(control_bounds=(-most, most))
    return problem, {"controls": start(problem)}


def difference(a: Any, b: Any) -> float:
    """Largest entry of a - b, relative to 1 + the largest of b."""
    a, b = (v if isinstance(v, torch.Tensor) else torch.cat([s.reshape(-1) for s in v])
            for v in (a, b))  # fmt: skip
    return float((a - b).abs().max() / (1 + b.abs().max()))


def compare(problem: ocp.Problem, method: str, kind: str, most: int) -> dict[str, Any] | None:
    """One row; None where there is no such solve."""
    found = arguments(problem, kind, method)
    if found is None:
        return None
    problem, given = found
    eager, native = (
        ocp.solve(problem, method, engine=engine, max_iterations=most, **given)
        for engine in ("eager", "native")
    )
    return {
        "method": method,
        "kind": kind,
        "status": [s.status.name for s in (eager, native)],
        "iterations": [int(s.iterations) for s in (eager, native)],
        "cost": [float(s.cost) for s in (eager, native)],
        "states": difference(native.states, eager.states),
        "controls": difference(native.controls, eager.controls),
        "ran": native.engine,
        "most": most,
        **parting(eager.history, native.history),
    }


def parting(
    eager: Mapping[str, torch.Tensor], native: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The first iteration with another decision, None if there is none, and what went before.

    ``apart``: log10 of the largest of the differences of cost and residual, relative to the eager
    ones, at each iteration up to that one. Equal first decisions and a steady growth from 1e-16:
    rounding, amplified. A jump: something else.
    """
    steps = min(len(eager["cost"]), len(native["cost"]))
    other = torch.zeros(steps, dtype=torch.bool)
    for name in ("step_size", "damping", "second_order"):
        a, b = eager[name][:steps], native[name][:steps]
        other |= (a != b) if name == "second_order" else (a - b).abs() > 1e-6 * a.abs()
    first = int(other.nonzero()[0]) if bool(other.any()) else None
    upto = steps if first is None else first + 1
    apart = torch.zeros(upto, dtype=torch.float64)
    for name in ("cost", "residual"):
        a, b = eager[name][:upto].double(), native[name][:upto].double()
        apart = torch.maximum(apart, (a - b).abs() / a.abs().clamp_min(1e-300))
    logs = apart.clamp_min(1e-18).log10()
    return {"parted": first, "apart": [round(v, 1) for v in logs.tolist()]}


def from_last_bits_away(
    problem: ocp.Problem, method: str, kind: str, most: int, draws: int = 8
) -> list[dict[str, Any]]:
    """What a row says, of native solves against the first, their starts a last bit away."""
    found = arguments(problem, kind, method)
    assert found is not None
    problem, given = found
    g = torch.Generator().manual_seed(0)
    solve = lambda us: ocp.solve(
        problem, method, engine="native", max_iterations=most, **{**given, "controls": us}
    )
    first, rows = solve(given["controls"]), []
    for _ in range(draws):
        near = [
            u * (1 - NEAR * torch.rand(u.shape, generator=g, dtype=u.dtype))
            for u in given["controls"]
        ]
        other = solve(near)
        rows.append(
            {
                "iterations": int(other.iterations),
                "cost": abs(float(other.cost - first.cost)) / max(abs(float(first.cost)), 1e-12),
                "away": max(
                    difference(other.states, first.states),
                    difference(other.controls, first.controls),
                ),
                "parted": parting(first.history, other.history)["parted"],
            }
        )
    return rows


def explained(rows: list[dict[str, Any]], problems: dict[str, ocp.Problem]) -> str:
    """A line for each row that is not equal: eager and native, and native against itself."""
    lines = [
        "| problem | kind | method | iterations | part at | cost | trajectory "
        "| iterations | part at | cost | trajectory |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        if verdict(row) == "equal" or row["problem"] not in problems:
            continue
        own = from_last_bits_away(problems[row["problem"]], row["method"], row["kind"], row["most"])
        span = lambda name, own=own: [r[name] for r in own if r[name] is not None] or ["never"]
        eager, native = row["cost"]
        cells = [
            row["problem"], row["kind"], row["method"],
            " / ".join(map(str, row["iterations"])), str(row["parted"]),
            f"{abs(native - eager) / max(abs(eager), 1e-12):.0e}",
            f"{max(row['states'], row['controls']):.0e}",
            f"{min(span('iterations'))} to {max(span('iterations'))}",
            f"{min(span('parted'))} to {max(span('parted'))}",
            f"{max(span('cost')):.0e}", f"{max(span('away')):.0e}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(row: dict[str, Any]) -> str:
    """equal: trajectories to `EXACT`; same: status, and cost to `SAME`; cut: neither side ended."""
    eager, native = row["cost"]
    if row["status"][0] != row["status"][1]:
        return "differs"
    if max(row["states"], row["controls"]) <= EXACT:
        return "equal"
    if abs(native - eager) <= SAME * max(abs(eager), 1e-12):
        return "same"
    return "cut" if row["status"][0] == "MAX_ITERATIONS" else "differs"


def classic() -> Iterator[tuple[str, ocp.Problem]]:
    for name, entry in REGISTRY.items():
        yield name, entry.factory()


def reference(folder: Path) -> Iterator[tuple[str, ocp.Problem]]:
    from reference_cases import load, problem_of

    module, _ = load(folder)
    for name, case in module.CASES.items():
        if not (case.path or case.term_eq or case.term_ineq):
            yield name, problem_of(module, case)


def table(rows: list[dict[str, Any]]) -> str:
    """A line a problem and kind, a column a method; where solves are not equal, how they differ."""
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = ["| problem | kind | " + " | ".join(methods) + " |", "|---" * (2 + len(methods)) + "|"]
    for problem, kind in dict.fromkeys((r["problem"], r["kind"]) for r in rows):
        cells = []
        for method in methods:
            key = problem, kind, method
            mine = [r for r in rows if (r["problem"], r["kind"], r["method"]) == key]
            cells.append(cell(mine[0]) if mine else "")
        lines.append(f"| {problem} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    found, (eager, native) = verdict(row), row["cost"]
    if found == "equal":
        unfinished = f" at {row['iterations'][0]}" if row["status"][0] == "MAX_ITERATIONS" else ""
        return f"equal{unfinished}, {max(row['states'], row['controls']):.0e}"
    away = f"{abs(native - eager) / max(abs(eager), 1e-12):.0e}"
    if found == "cut":
        return f"cut at {row['iterations'][0]}, cost {away}"
    if found == "same":
        return f"same, cost {away}, trajectory {max(row['states'], row['controls']):.0e}"
    statuses = " / ".join(s.lower().replace("_", " ") for s in row["status"])
    return f"**differs**, cost {away}, {statuses}, iterations {row['iterations']}"


class Planned(NamedTuple):
    """A solve, what it is expected to take in the eager engine, and its limit of iterations."""

    seconds: float
    name: str
    problem: ocp.Problem
    method: str
    kind: str
    most: int


def planned(
    solves: Iterable[tuple[str, ocp.Problem, str, str]], most: int, limit: float
) -> list[Planned]:
    """The solves that exist, the cheapest first; ``limit`` in seconds for each."""
    found = []
    for name, problem, method, kind in solves:
        given = arguments(problem, kind, method)
        if given is None:
            continue
        used, start_ = given
        native = ocp.solve(used, method, engine="native", max_iterations=most, **start_)
        begin = time.process_time()
        ocp.solve(used, method, engine="eager", max_iterations=2, **start_)
        each = (time.process_time() - begin) / 3  # its ends take about as long as an iteration
        fit = int(min(most, max(10, limit / each)))
        expected = each * min(fit, int(native.iterations))
        found.append(Planned(expected, name, problem, method, kind, fit))
    return sorted(found, key=lambda solve: solve.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default="")
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="limit of one solve")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--explain", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    if options.out and options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    if options.table:
        print(table(rows))
        return
    done = {(r["problem"], r["method"], r["kind"]) for r in rows}
    problems = list(reference(options.cases) if options.cases else classic())
    if options.explain:
        print(explained(rows, dict(problems)))
        return
    wanted = options.problems.split(",") if options.problems else [name for name, _ in problems]
    solves = (
        (name, problem, method, kind)
        for method in options.methods.split(",")
        for kind in options.kinds.split(",")
        for name, problem in problems
        if name in wanted and (name, method, kind) not in done
    )
    for solve in planned(solves, options.iterations, options.seconds):
        row = compare(solve.problem, solve.method, solve.kind, solve.most)
        assert row is not None
        row = {"problem": solve.name, **row}
        print(f"{solve.name:22s} {solve.method:8s} {solve.kind:7s} {cell(row)}", flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
