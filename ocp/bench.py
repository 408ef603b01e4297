"""How long problems take, by method; and beside other people's solvers that are installed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ocp.compare import prepare, status_text, surroundings, zeros
from ocp.problem import Problem
from ocp.problems import REGISTRY
from ocp.solution import Solution
from ocp.solve import make_solver, solve
from ocp.tables import Row, Table, number, write_csv, write_json

PROBLEMS = ("pendulum", "cartpole", "quadrotor2d", "masses")
METHODS = ("ilqr", "ddp")
AGAINST = ("ddp", "ilqr")  # with peers, whose times are compared with those of the first


@dataclass(frozen=True)
class Bench:
    """Rows of times; ``settings`` says what they depend on."""

    rows: list[Row]
    settings: Row = field(default_factory=dict)

    def table(self) -> Table:
        cells = [
            (
                r["problem"],
                r["method"],
                r["status"],
                number(r["iterations"], "d"),
                number(r["seconds"], ".3g"),
                number(r["ms_per_iteration"], ".3g"),
                number(r["cpu_ms_per_iteration"], ".3g"),
            )
            for r in self.rows
        ]
        s = self.settings
        return Table(
            f"Times ({s['engine']} engine, medians of {s['repeats']}, threads: {s['threads']})",
            ("problem", "method", "status", "iter.", "seconds", "ms/iter.", "CPU ms/iter."),
            cells,
            align="<<",
        )

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table()

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows with a header line."""
        return write_csv(path, self.rows)

    def to_json(self, path: str | Path) -> Path:
        """Write settings and rows."""
        return write_json(path, {"settings": self.settings, "rows": self.rows})


@dataclass(frozen=True)
class PeerBench(Bench):
    """The same beside other people's solvers.

    Attributes:
        notes: what a reader has to know beside the numbers.
    """

    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        from ocp.peers.contest import table

        return table(self.rows, self.settings, self.notes)


def bench(
    problems: Sequence[str | Problem] = PROBLEMS,
    methods: Sequence[str] | None = None,
    *,
    engine: str = "auto",
    repeats: int = 3,
    peers: str | Iterable[str] | None = None,
    **options: Any,
) -> Bench:
    """Solve each problem by each method from zero controls, several times, and take medians.

    Args:
        problems: names of `ocp.problems.REGISTRY`, or problems.
        methods: names of `ocp.METHODS`; by default `METHODS`, with peers `AGAINST`.
        engine: as for `ocp.solve`.
        repeats: timed solves of each, after one step (with peers, one solve) that is not timed.
        peers: packages of `ocp.peers.packages.PACKAGES` to compare with, or "all" of them that
            are installed. They are given the same functions, translated, and the same start, keep
            their own stopping rules, and solve in turn with ours; see `PeerBench`.
        options: of all methods (max_iterations, tolerance, ...); the most iterations hold for
            peers too.

    ``seconds`` is the whole solve with its certificate. Per iteration: the loop alone by the
    clock, and the CPU time of the process (all threads) for the whole solve.

    Raises:
        ValueError, TypeError: an unknown problem, method, peer or option; repeats < 1; with peers,
            a batch.
        ImportError: a peer asked for by name is not installed; says how to install it.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    if unknown := [p for p in problems if isinstance(p, str) and p not in REGISTRY]:
        raise ValueError(f"no problem {unknown[0]!r}; there are {', '.join(REGISTRY)}.")
    if peers is not None:
        return against_peers(problems, methods or AGAINST, peers, engine, repeats, options)
    rows, settings = [], {}
    for name, problem in named(problems):
        settings = {k: v for k, v in surroundings(problem).items() if k not in PER_PROBLEM}
        rows += [row(name, problem, m, engine, repeats, options) for m in methods or METHODS]
    return Bench(rows, {**settings, "engine": engine, "repeats": repeats})


def named(problems: Sequence[str | Problem]) -> Iterator[tuple[str, Problem]]:
    """Made one by one."""
    for p in problems:
        problem = REGISTRY[p].factory() if isinstance(p, str) else p
        yield (p if isinstance(p, str) else problem.name or "the problem"), problem


def against_peers(
    problems: Sequence[str | Problem],
    methods: Sequence[str],
    peers: str | Iterable[str],
    engine: str,
    repeats: int,
    options: Row,
) -> PeerBench:
    """`bench` with peers."""
    from ocp.peers.contest import contest, ratio_notes
    from ocp.peers.packages import chosen

    packages, absent = chosen(peers)
    rows: list[Row] = []
    notes: list[str] = []
    settings: Row = {}
    for name, problem in named(problems):
        settings = {k: v for k, v in surroundings(problem).items() if k not in PER_PROBLEM}
        found, told = contest(name, problem, methods, packages, engine, repeats, options)
        rows, notes = rows + found, notes + told
    ways = dict.fromkeys(f"{r['package']}: {r['how']}" for r in rows if r["how"])
    last = [*ways, *(f"left out: {line}" for line in absent)]
    settings |= {"engine": engine, "repeats": repeats, "peers": [p.name for p in packages]}
    return PeerBench(rows, settings, (*ratio_notes(rows), *notes, *last))


PER_PROBLEM = ("horizon", "problems", "device", "dtype")


def row(name: str, problem: Problem, method: str, engine: str, repeats: int, options: Row) -> Row:
    solver = make_solver(method, engine=engine, **options)
    controls = zeros(problem)
    prepare(problem, solver, controls)
    solutions, cpu = [], []
    for _ in range(repeats):
        begin = time.process_time()
        solutions.append(solve(problem, solver, controls, engine=engine, progress=False))
        cpu.append(time.process_time() - begin)
    last = solutions[-1]
    steps = max(1, len(last.history["seconds"]))
    where = {k: v for k, v in surroundings(problem).items() if k in PER_PROBLEM}
    return {
        "problem": name,
        "method": method,
        "engine": last.engine,
        "status": status_text(last),
        "cost": float(last.cost.double().median()),
        "iterations": int(last.iterations.max()),
        "seconds": statistics.median(s.seconds for s in solutions),
        "ms_per_iteration": 1e3 * statistics.median(loop_seconds(s) for s in solutions) / steps,
        "cpu_ms_per_iteration": 1e3 * statistics.median(cpu) / steps,
        **where,
    }


def loop_seconds(solution: Solution) -> float:
    seconds = solution.history["seconds"]
    return float(seconds[-1]) if len(seconds) else 0.0
