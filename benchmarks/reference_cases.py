"""Solve reference problems with known optima by every method, and print a table.

    python benchmarks/reference_cases.py CASES_DIR [--methods ddp,ilqr,...] [--cases a,b]
                                         [--seconds S] [--engine native] [--out F]

CASES_DIR holds `cases.py` (problem definitions with a namespace argument) and `reference.json`
(optima found by CasADi + IPOPT). Cases with path or terminal constraints are left out. A cost is
recomputed by an independent numpy roll-out of the returned controls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import ocp

METHODS = ("ddp", "ilqr", "newton", "pmp", "msa", "emsa", "indirect")


def load(folder: Path) -> tuple[ModuleType, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("cases", folder / "cases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)
    return module, json.loads((folder / "reference.json").read_text())


def problem_of(module: ModuleType, case: Any) -> ocp.Problem:
    """The case as a problem; stage by stage only where its functions branch on the stage."""
    xp = module.torch_namespace()
    cost = ocp.FunctionCost(
        lambda x, u, t: case.l(x, u, t, case.p, xp), lambda x: case.phi(x, case.p, xp)
    )
    T = case.N
    sizes = [case.m(k) for k in range(T)]
    bounds = None
    if case.lb is not None or case.ub is not None:
        lower, upper = zip(*(case.bounds(k) for k in range(T)), strict=True)
        bounds = ([torch.tensor(v) for v in lower], [torch.tensor(v) for v in upper])
    arguments: dict[str, Any] = {
        "dynamics": lambda x, u, t: case.f(x, u, t, case.p, xp),
        "cost": cost,
        "x0": torch.tensor(case.x0, dtype=torch.float64),
        "horizon": T,
        "control_bounds": bounds,
        "name": case.name,
    }
    if not callable(case.nx) and len(set(sizes)) == 1:
        try:
            return ocp.Problem(control_dim=sizes[0], **arguments)
        except ValueError:  # it branches on the stage: says the message, and asks for stagewise
            pass
    return ocp.Problem(control_dim=sizes, stagewise=True, **arguments)


def verdict(cost: float, reference: dict[str, Any]) -> str:
    """How a cost stands to the reference's minimum from the same start and to those it lists."""
    start = reference["given_start"]["cost"]
    close = lambda a, b: abs(a - b) <= 1e-6 * max(1e-12, abs(b))
    if cost <= start + 1e-6 * abs(start):
        return "reached" if close(cost, start) else "lower minimum"
    others = [m["cost"] for m in reference["minima"] if close(cost, m["cost"])]
    if others and cost < 1.5 * start:
        return "other minimum"
    return "missed"


def rows_of(module: ModuleType, case: Any, reference: dict[str, Any], options: Any) -> Any:
    problem = problem_of(module, case)
    controls = [torch.from_numpy(case.u0(k)) for k in range(case.N)]
    for method in options.methods.split(","):
        if method == "indirect" and problem.lower is not None:
            continue  # it takes no bounds
        begin = time.process_time()
        solution = ocp.solve(
            problem,
            method,
            controls=controls,
            time_limit=options.seconds,
            engine=options.engine,
        )
        seconds = time.process_time() - begin
        us = [u.numpy() for u in solution.controls]
        cost = float(case.rollout(us)[1])
        yield {
            "case": case.name,
            "group": case.group,
            "method": method,
            "status": solution.status.name,
            "cost": cost,
            "reference": reference["given_start"]["cost"],
            "verdict": verdict(cost, reference),
            "iterations": int(solution.iterations),
            "residual": float(solution.residual),
            "hamiltonian_residual": float(solution.hamiltonian_residual),
            "seconds": seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default=",".join(m for m in METHODS if m in ocp.METHODS))
    parser.add_argument("--cases", default="")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of one solve")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, references = load(options.folder)
    wanted = options.cases.split(",") if options.cases else list(module.CASES)
    rows = []
    for name in wanted:
        case = module.CASES[name]
        if case.path or case.term_eq or case.term_ineq:
            continue
        for row in rows_of(module, case, references[name], options):
            rows.append(row)
            print(
                f"{row['case']:24s} {row['method']:9s} {row['status']:14s} {row['cost']:<16.10g} "
                f"{row['reference']:<16.10g} {row['verdict']:14s} {row['iterations']:4d} "
                f"{row['residual']:.1e} {row['hamiltonian_residual']:.1e} {row['seconds']:.1f} s",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
