"""The same problem by several methods: what each reached, and what it spent to get there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocp import layout
from ocp.curves import Counter, Curve, costate_difference, curve, reach
from ocp.problem import Problem
from ocp.solution import Solution, Status
from ocp.solve import make_solver, solve
from ocp.solvers.decide import Rules
from ocp.solvers.loop import Solver, zero_controls
from ocp.tables import Row, Table, number, write_csv, write_json

COUNTS = ("iterations", "expansions", "sweeps", "rollouts")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results of several methods on one problem, or on one batch of them.

    In a batch every number is the median over its problems, an unreached tolerance counting as
    infinite: so a method is not flattered by leaving out the problems on which it failed.

    Attributes:
        problem: what was solved.
        solutions: by method, in the order asked for.
        curves: by method, see `Curve`.
        refused: methods without a solution, with the reason: they do not take the problem.
        best: lowest cost that any method reached without gaps, (B,); nan if none did.
        cost_tolerances: relative to |best|. residual_tolerances: absolute.
    """

    problem: Problem
    solutions: dict[str, Solution]
    curves: dict[str, Curve]
    refused: dict[str, str]
    best: Tensor
    cost_tolerances: tuple[float, ...]
    residual_tolerances: tuple[float, ...]
    settings: Row = field(default_factory=dict)

    # -- numbers -------------------------------------------------------------------------------
    def excess(self, method: str) -> Tensor:
        """Cost above the best, relative to |best| (to 1 where that is 0): (K + 1, B)."""
        scale = torch.where(self.best == 0, torch.ones_like(self.best), self.best.abs())
        return (self.curves[method].cost - self.best) / scale

    def spent(self, method: str, tolerance: float, kind: str = "cost") -> dict[str, Tensor]:
        """Work until cost or residual is within a tolerance; (B,), infinite if it never was.

        A cost counts once the trajectory has no gaps. Differences that the rounding of the cost
        explains count as none.

        Raises:
            ValueError: kind is neither "cost" nor "residual".
        """
        c = self.curves[method]
        if kind == "cost":
            rounding = 8 * torch.finfo(c.cost.dtype).eps * (self.best.abs() + c.cost.abs())
            met = c.cost - self.best <= tolerance * self.best.abs() + rounding
            met = met & (c.gap <= Rules().tolerances(c.cost.dtype)[2])
        elif kind == "residual":
            met = c.residual <= tolerance
        else:
            raise ValueError(f"kind must be 'cost' or 'residual', got {kind!r}.")
        return reach(c, met)._asdict()

    def goals(self) -> list[tuple[str, float]]:
        """All tolerances asked for, as (kind, tolerance)."""
        costs = [("cost", tolerance) for tolerance in self.cost_tolerances]
        return costs + [("residual", tolerance) for tolerance in self.residual_tolerances]

    def rows(self) -> list[Row]:
        """One flat dict a method: plain numbers and strings, None where there is no number."""
        return [self.row(method) for method in self.solutions]

    def row(self, method: str) -> Row:
        s, p = self.solutions[method], self.problem
        row: Row = {
            "method": method,
            "engine": s.engine,
            "status": status_text(s),
            "problems": p.batch,
            "converged": int(s.converged.sum()),
            "cost": median(s.cost),
            "cost_above_best": median(self.excess(method)[-1]),
            "found_best": int((self.excess(method)[-1] <= 1e-6).sum()),
            "iterations": count(s.iterations),
            "expansions": count(self.curves[method].expansions[-1]),
            "sweeps": count(s.sweeps),
            "rollouts": count(s.rollouts),
            "seconds": s.seconds,
            "residual": median(s.residual),
            "hamiltonian_residual": median(s.hamiltonian_residual),
            "gap": float(s.gap.max()),
            "costates_vs_own_value": median(costate_difference(p, s.costates, s.value.vx)),
            "costates_vs_best_value": self.against_best(s),
        }
        for kind, tolerance in self.goals():
            spent = self.spent(method, tolerance, kind)
            suffix = f"{kind}_{tolerance:.0e}"
            row[f"reached_{suffix}"] = int(torch.isfinite(spent["iterations"]).sum())
            row |= {f"{name}_to_{suffix}": count(spent[name]) for name in COUNTS}
            row[f"seconds_to_{suffix}"] = median(spent["seconds"])
        return row

    @property
    def best_method(self) -> str | None:
        """The method with the lowest cost in most problems; of equals, the one with the smallest
        |H_u|. None if no method reached anything."""

        def rank(method: str) -> tuple[int, float]:
            residual = median(self.solutions[method].hamiltonian_residual)
            return self.wins(method), -math.inf if residual is None else -residual

        best = max(self.solutions, key=rank)
        return best if self.wins(best) else None

    def wins(self, method: str) -> int:
        """In how many problems the method ended within 1e-9 (relative) of the lowest cost."""
        return int((self.excess(method)[-1] <= 1e-9).sum())

    def against_best(self, solution: Solution) -> float | None:
        """Difference of these costates to V_x of the best method, largest over stages."""
        if self.best_method is None:
            return None
        vx = self.solutions[self.best_method].value.vx
        return median(costate_difference(self.problem, solution.costates, vx))

    # -- words ---------------------------------------------------------------------------------
    def tables(self) -> tuple[Table, Table]:
        """What each method ended with, and its work to each tolerance."""
        rows, many = self.rows(), self.problem.batched
        name = self.problem.name or "one problem"
        title = f"{name}: {self.problem.batch} problems, medians" if many else name
        small = ("cost_above_best", "residual", "hamiltonian_residual", "costates_vs_best_value")
        results = Table(
            f"Comparison of {len(rows)} methods on {title}",
            ("method", "status", "cost", "iter.", "seconds", "excess", "|Q_u|", "|H_u|", "p-V_x"),
            [
                (
                    r["method"],
                    r["status"],
                    number(r["cost"], ".8g"),
                    number(r["iterations"], "d"),
                    number(r["seconds"], ".3g"),
                    *(number(r[key], ".0e") for key in small),
                )
                for r in rows
            ],
            notes=self.notes(),
        )
        work = []
        for kind, tolerance in self.goals():
            suffix, goal = f"{kind}_{tolerance:.0e}", f"{kind} {tolerance:.0e}"
            for r in rows:
                share = (f"{r[f'reached_{suffix}']} of {r['problems']}",) if many else ()
                cells = [number(r[f"{c}_to_{suffix}"], "d") for c in COUNTS]
                seconds = number(r[f"seconds_to_{suffix}"], ".3g")
                work.append((goal, r["method"], *share, *cells, seconds))
                goal = ""
        reached = ("reached",) if many else ()
        return results, Table(
            "Work until cost (relative to the best) or residual is within",
            ("within", "method", *reached, "iter.", "expansions", "sweeps", "rollouts", "seconds"),
            work,
            align="<<",
            notes=['"-": never reached' + (" in half of the problems or more" if many else "")],
        )

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        best = self.best_method
        reference = f"V_x of {best}" if best else "V_x"
        notes = [
            "excess: cost above the best, relative. |Q_u|, |H_u|: projected, largest",
            f"p-V_x: costates against {reference}, relative, largest over stages",
        ]
        for method, s in self.solutions.items():
            if not self.problem.batched and s.status != Status.CONVERGED:
                notes.append(f"{method}: {s.message}")
            if bool((s.gap > Rules().tolerances(s.cost.dtype)[2]).any()):
                notes.append(f"{method}: gaps up to {float(s.gap.max()):.1e} are left")
        return notes + [f"{method} did not run: {why}" for method, why in self.refused.items()]

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in self.tables())

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*self.tables())

    # -- files ---------------------------------------------------------------------------------
    def to_csv(self, path: str | Path) -> Path:
        """Write `rows` with a header line; empty cells where there is no number."""
        return write_csv(path, self.rows())

    def to_json(self, path: str | Path) -> Path:
        """Write settings, rows and curves. Strict JSON: null where a number is not finite."""
        curves = {
            method: {name: value.tolist() for name, value in vars(c).items()}
            for method, c in self.curves.items()
        }
        content = {
            "problem": self.problem.name,
            "settings": self.settings,
            "best": self.best.tolist(),
            "rows": self.rows(),
            "refused": self.refused,
            "curves": curves,
        }
        return write_json(path, content)

    def plot(self, path: str | Path) -> Path:
        """Write a figure: cost and residual over iterations and seconds, costates against V_x.

        Raises:
            ImportError: matplotlib is missing.
        """
        from ocp.plot_compare import plot_comparison

        return plot_comparison(self, path)


def compare(
    problem: Problem,
    methods: Iterable[str | Solver] = ("pmp", "ilqr", "ddp"),
    controls: Any = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    cost_tolerances: Sequence[float] = (1e-2, 1e-4, 1e-6),
    residual_tolerances: Sequence[float] = (1e-3, 1e-6),
    engine: str = "auto",
    warm_up: bool = True,
    progress: bool | None = None,
    **shared: Any,
) -> Comparison:
    """Solve one problem by several methods and collect what they reached and spent.

    Args:
        problem: a problem, or a batch (the numbers are then medians and counts).
        methods: names of `ocp.METHODS`, or solver objects (called by their name, "ddp 2" for the
            second of a name).
        controls: the start of all, as for `ocp.solve`; zero if None. ``starts="portfolio"`` or
            another start, for all or in the options of one, replaces them.
        options: by method, more arguments of `ocp.solve` (states, starts, tolerance, ...).
        cost_tolerances: relative to the best cost found by any of them.
        residual_tolerances: on the largest projected gradient, absolute.
        engine: as for `ocp.solve`.
        warm_up: make one step and a certificate first, so that what PyTorch does once in a
            process is not charged to the method that happens to come first.
        progress: as for `ocp.solve`.
        shared: arguments of `ocp.solve` for all methods (max_iterations, tolerance, ...).

    A method that refuses the problem (ValueError at its start) is listed with its reason.

    Raises:
        ValueError, TypeError: an unknown method or option, wrong controls, or all refused.
    """
    asked = named(methods)
    own = {name: dict(given) for name, given in (options or {}).items()}
    if not asked:
        raise ValueError("methods is empty: name at least one of ocp.METHODS.")
    if unknown := set(own) - set(asked):
        raise ValueError(
            f"options are given for {sorted(unknown)}; the methods compared are {', '.join(asked)}."
        )
    calls = {name: call(m, engine, shared | own.get(name, {})) for name, m in asked.items()}
    # Explicit zeros: all methods start at one point, which `ocp.solve` may choose better.
    first = zeros(problem) if controls is None else controls
    layout.controls_in(problem, first)
    solutions, curves, refused = in_turn(problem, calls, first, warm_up, progress)
    if not solutions:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise ValueError(f"no method takes this problem. {reasons}")
    return Comparison(
        problem,
        solutions,
        curves,
        refused,
        lowest(problem, solutions),
        tuple(cost_tolerances),
        tuple(residual_tolerances),
        surroundings(problem),
    )


# -- pieces ------------------------------------------------------------------------------------
def in_turn(
    problem: Problem,
    calls: Mapping[str, tuple[Solver, Row]],
    first: Any,
    warm_up: bool,
    progress: bool | None,
) -> tuple[dict[str, Solution], dict[str, Curve], dict[str, str]]:
    """By name: solutions, curves, and the reasons of those that were not run or refused."""
    solutions: dict[str, Solution] = {}
    curves: dict[str, Curve] = {}
    refused: dict[str, str] = {}
    for name, (solver, given) in calls.items():
        if any(interrupted(s) for s in solutions.values()):
            refused[name] = "not run after Ctrl-C"
            continue
        start = given if "starts" in given else {"controls": first} | given
        counter = Counter()
        try:
            if warm_up:
                prepare(problem, solver, first)
            solution = solve(
                problem, solver, engine=solver.engine, callback=counter, progress=progress, **start
            )
        except ValueError as error:
            refused[name] = str(error)
            continue
        solutions[name] = solution
        curves[name] = curve(problem, solution, counter)
    return solutions, curves, refused


def named(methods: Iterable[str | Solver]) -> dict[str, str | Solver]:
    """Methods by name; the second of a name is "name 2"."""
    result: dict[str, str | Solver] = {}
    for method in methods:
        plain = method.name if isinstance(method, Solver) else method
        name, count = plain, 1
        while name in result:
            count += 1
            name = f"{plain} {count}"
        result[name] = method
    return result


def call(method: str | Solver, engine: str, options: Row) -> tuple[Solver, Row]:
    """The solver that a method and its options make, and what is left for `ocp.solve`."""
    own = ("controls", "states", "starts", "time_limit")
    solver = make_solver(
        method, engine=engine, **{k: v for k, v in options.items() if k not in own}
    )
    return solver, {k: v for k, v in options.items() if k in own}


def zeros(problem: Problem) -> Any:
    """Zero controls in the user's layout."""
    return layout.stages_out(problem, zero_controls(problem))


def prepare(problem: Problem, solver: Solver, controls: Any) -> None:
    state = solver.init(problem, controls)
    solver.result(problem, solver.step(problem, state))


def interrupted(solution: Solution) -> bool:
    return bool((solution.status_codes == Status.INTERRUPTED).any())


def lowest(problem: Problem, solutions: Mapping[str, Solution]) -> Tensor:
    """Lowest finite cost of a trajectory without gaps, problem by problem: (B,); nan if none."""
    costs = []
    for s in solutions.values():
        fine = torch.isfinite(s.cost) & (s.gap <= Rules().tolerances(s.cost.dtype)[2])
        costs.append(torch.where(fine, s.cost, torch.inf).reshape(problem.batch))
    best = torch.stack(costs).amin(dim=0)
    return torch.where(torch.isfinite(best), best, torch.nan)


def surroundings(problem: Problem) -> Row:
    """What seconds depend on."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": str(problem.x0.device),
        "dtype": str(problem.x0.dtype).removeprefix("torch."),
        "horizon": problem.horizon,
        "problems": problem.batch,
    }


def median(value: Tensor) -> float | None:
    """Median over problems; None where it is not finite. An even count takes the lower middle."""
    values = value.double().flatten()
    middle = float(torch.where(values.isnan(), torch.inf, values).median())
    return middle if math.isfinite(middle) else None


def count(value: Tensor) -> int | None:
    middle = median(value)
    return None if middle is None else int(middle)


def status_text(solution: Solution) -> str:
    """The status, or in a batch how many problems have which."""
    if not isinstance(solution.status, list):
        return solution.status.name
    counts: dict[str, int] = {}
    for status in solution.status:
        counts[status.name] = counts.get(status.name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())
