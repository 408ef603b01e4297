"""Our methods and other people's solvers on the same problems, solve by solve in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ocp import layout
from ocp.compare import prepare, status_text, zeros
from ocp.engines.eager import Eager
from ocp.peers.answers import Answer, Solve, arrays, first_guess, first_line, stages
from ocp.peers.expressions import Unfit, model
from ocp.peers.packages import Package
from ocp.problem import Problem
from ocp.solution import Solution
from ocp.solve import make_solver, solve
from ocp.tables import Row, Table, number

SAME = 1e-6  # relative difference of costs that are of one minimum
OURS = "ocp"
A_TURN = 3  # solves: the first of them finds the caches full of somebody else's numbers
LONG = 0.1  # seconds of a turn


@dataclass
class Contestant:
    """A solver on one problem, and the turns it has had: its answers' last, seconds of all."""

    package: str
    solver: str
    solve: Solve
    how: str = ""
    answer: Answer | None = None
    failure: str = ""
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def turn(self, timed: bool) -> None:
        """A few solves, one where it takes long; who fails has no more turns."""
        begin = time.perf_counter()
        for _ in range(A_TURN if timed else 1):
            self.once(timed)
            if self.failure or time.perf_counter() - begin > LONG:
                return

    def once(self, timed: bool) -> None:
        if self.failure:
            return
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            answer = self.solve()
        except Exception as error:  # whatever somebody else's solver may raise
            if self.package == OURS:
                raise
            self.failure = first_line(error)
            return
        if timed:
            self.cpu.append(time.process_time() - cpu)
            self.wall.append(time.perf_counter() - wall)
        self.answer = answer()


def contest(
    name: str,
    problem: Problem,
    methods: Sequence[str],
    packages: Sequence[Package],
    engine: str,
    repeats: int,
    options: Row,
) -> tuple[list[Row], list[str]]:
    """Rows of one problem, the first method's first, and what a reader must know beside them.

    Raises:
        ValueError: a batch, or shared controls.
    """
    if problem.batch > 1 or problem.shared_controls:
        raise ValueError(f"peers solve one problem at a time: {name} has an x0 of several rows.")
    entered = [own(problem, method, engine, options) for method in methods]
    most = make_solver(methods[0], engine=engine, **options).rules.max_iterations
    others, notes = rivals(problem, packages, most)
    entered += others
    for turn in range(repeats + 1):
        for contestant in entered:
            contestant.turn(timed=turn > 0)
    rows = [row(name, problem, contestant) for contestant in entered]
    rows = [r | against(r, rows[0]) for r in rows]
    return rows, [f"{name}: {note}" for note in notes + remarks(rows)]


def own(problem: Problem, method: str, engine: str, options: Row) -> Contestant:
    """One of our methods, its program made."""
    solver, controls = make_solver(method, engine=engine, **options), zeros(problem)
    prepare(problem, solver, controls)

    def solved() -> Callable[[], Answer]:
        solution = solve(problem, solver, controls, engine=engine, progress=False)
        return lambda: told(problem, solution)

    return Contestant(OURS, method, solved)


def told(problem: Problem, solution: Solution) -> Answer:
    xs = arrays(layout.states_in(problem, solution.states))
    us = arrays(layout.controls_in(problem, solution.controls))
    status, count, cost = status_text(solution), int(solution.iterations), float(solution.cost)
    return Answer(bool(solution.converged), status, count, cost, xs, us)


def rivals(
    problem: Problem, packages: Sequence[Package], most: int
) -> tuple[list[Contestant], list[str]]:
    """Those that can be given the problem, and why others cannot."""
    try:
        made, guess = model(problem), first_guess(problem)
    except Unfit as error:
        return [], [f"given to no peer: {error}"]
    found, notes = [], []
    for package in packages:
        for solver in package.names(made):
            try:
                ready = package.prepare(made, solver, guess, most)
            except Unfit as error:
                notes.append(f"not given to {package.name} {solver}: {error}")
                continue
            found.append(Contestant(package.name, solver, ready, package.how(made)))
    return found, notes


# -- verdicts --------------------------------------------------------------------------------------
@torch.no_grad()
def row(name: str, problem: Problem, contestant: Contestant) -> Row:
    """Plain facts; costs are those of our own functions, but for ``reported_cost``."""
    facts: Row = {"problem": name, "package": contestant.package, "solver": contestant.solver}
    facts["how"] = contestant.how
    answer = contestant.answer
    if answer is None or contestant.failure:
        nothing = (
            "iterations",
            "cost",
            "reported_cost",
            "replayed_cost",
            "gap",
            "cpu_ms",
            "wall_ms",
        )
        return facts | {"status": contestant.failure, "converged": False} | dict.fromkeys(nothing)
    engine = Eager(problem)
    xs, us = stages(answer.xs, problem), stages(answer.us, problem)
    replayed = float(engine.total_cost(engine.rollout(us), us))
    along = float(engine.total_cost(xs, us))
    # Who holds an unstable equilibrium with gaps at his tolerance replays at another cost, which
    # is no reason not to count him; who does not call himself converged is worth what he replays.
    return facts | {
        "status": answer.status,
        "converged": answer.converged,
        "iterations": answer.iterations,
        "cost": along if answer.converged else replayed,
        "reported_cost": answer.cost,
        "replayed_cost": replayed,
        "gap": max(float(torch.as_tensor(g).abs().max()) for g in engine.gaps(xs, us)),
        "cpu_ms": 1e3 * statistics.median(contestant.cpu),
        "wall_ms": 1e3 * statistics.median(contestant.wall),
    }


def against(r: Row, ours: Row) -> Row:
    """Where its cost is compared with ours, and the ratio of times where it is the same."""
    verdict = compared(r, ours)
    counts = verdict == "same" and ours["converged"] and r["package"] != OURS
    return {"verdict": verdict, "ratio": ours["cpu_ms"] / r["cpu_ms"] if counts else None}


def compared(r: Row, ours: Row) -> str:
    """ "same", "lower", "higher" (other minima), or "failed"."""
    cost = r["cost"]
    if cost is None or not math.isfinite(cost):
        return "failed"
    if abs(cost - ours["cost"]) <= SAME * abs(ours["cost"]):
        return "same"
    if not r["converged"]:
        return "failed"
    return "lower" if cost < ours["cost"] else "higher"


def remarks(rows: Sequence[Row]) -> list[str]:
    """About answers that are not what the cells say by themselves."""
    ours, lines = rows[0], []
    others = [r for r in rows if r["verdict"] in ("lower", "higher")]
    if others:
        away = (
            f"{called(r)} ({(r['cost'] - ours['cost']) / abs(ours['cost']):+.1e})" for r in others
        )
        lines = [f"at another cost than {called(ours)}, not counted: {', '.join(away)}, relative"]
    for r in rows:
        if r["converged"] and abs(r["replayed_cost"] - r["cost"]) > SAME * abs(r["cost"]):
            lines.append(
                f"{called(r)}: its controls alone, rolled out, cost {number(r['replayed_cost'])} "
                f"(gaps of its states: up to {r['gap']:.0e})"
            )
    return lines


def called(r: Row) -> str:
    return f"{r['package']} {r['solver']}"


# -- the table -------------------------------------------------------------------------------------
def table(rows: Sequence[Row], settings: Row, notes: Sequence[str]) -> Table:
    cells, last = [], ""
    for r in rows:
        failed = r["verdict"] == "failed"
        status = r["status"] if r["package"] == OURS else r["status"].replace("_", " ")
        cells.append(
            (
                "" if r["problem"] == last else r["problem"],
                called(r),
                f"failed: {status}" if failed else status,
                number(r["iterations"], "d"),
                number(r["cost"], ".8g"),
                number(r["cpu_ms"], ".4g"),
                number(r["ratio"], ".3g"),
            )
        )
        last = r["problem"]
    s = settings
    return Table(
        f"Solves from zero controls ({s['engine']} engine, medians of {s['repeats']} in turn, "
        f"threads: {s['threads']})",
        ("problem", "solver", "status", "iter.", "cost", "CPU ms", "ours/theirs"),
        cells,
        notes=notes,
        align="<<<",
    )


def ratio_notes(rows: Sequence[Row]) -> list[str]:
    """The geometric mean over the problems, each against its fastest peer."""
    problems: dict[str, list[Row]] = {}
    for r in rows:
        problems.setdefault(r["problem"], []).append(r)
    best = [ratio for found in problems.values() if (ratio := against_fastest(found)) is not None]
    own = f"ours/theirs: CPU time of {called(rows[0])} to theirs, where costs agree to {SAME:.0e}"
    if not best:
        return [own, "no peer is counted: none has the cost of ours, or one has a lower one"]
    mean = math.exp(statistics.fmean(map(math.log, best)))
    count = f"{len(best)} of {len(problems)} problems"
    return [own, f"against the fastest peer: {mean:.3g}, the geometric mean of {count}"]


def against_fastest(rows: Sequence[Row]) -> float | None:
    """None where nobody else has our cost, or somebody a lower one."""
    if any(r["package"] != OURS and r["verdict"] == "lower" for r in rows):
        return None
    ratios = [r["ratio"] for r in rows if r["ratio"] is not None]
    return max(ratios, default=None)
