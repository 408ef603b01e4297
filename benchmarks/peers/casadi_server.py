"""CasADi's IPOPT and FATROP, one solve at a time on request; see `crocoddyl_server.cpp`.

    PYTHONPATH=PEERS_DIR python casadi_server.py

Multiple shooting with the scalar graph of the step; the guess is the roll-out of the first
controls. Runs in an environment with CasADi, which needs neither torch nor this package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import casadi as ca
import numpy as np
import problems as definitions


class Symbols:
    sin, cos, sqrt, asin = ca.sin, ca.cos, ca.sqrt, ca.asin


Solve = Callable[[], "tuple[bool, int, float, np.ndarray]"]


def program(p: Any, solver: str) -> tuple[Any, dict[str, Any]]:
    """The non-linear program of a problem as a CasADi solver, and its bounds."""
    x, u = ca.SX.sym("x", p.n), ca.SX.sym("u", p.m)
    lists = ca.vertsplit(x), ca.vertsplit(u)
    step = ca.Function("S", [x, u], [ca.vertcat(*p.step(*lists, Symbols)), p.run(*lists, Symbols)])
    end = ca.Function("F", [x], [p.term(ca.vertsplit(x), Symbols)])
    xs = [ca.MX.sym(f"x{t}", p.n) for t in range(p.T + 1)]
    us = [ca.MX.sym(f"u{t}", p.m) for t in range(p.T)]
    free_x, free_u = [np.inf] * p.n, [np.inf] * p.m
    low_u = [-v for v in free_u] if p.lo is None else list(p.lo)
    high_u = free_u if p.hi is None else list(p.hi)
    variables, equations, low, high, cost = [], [], [], [], end(xs[-1])
    for t in range(p.T):
        after, stage_cost = step(xs[t], us[t])
        cost = cost + stage_cost
        variables += [xs[t], us[t]]
        low += [-v for v in free_x] + low_u
        high += free_x + high_u
        # FATROP finds the stages by itself if a stage's own equations follow its dynamics.
        both = [xs[t + 1] - after] + ([xs[0] - p.x0] if t == 0 else [])
        equations += both
    low += [-v for v in free_x]
    high += free_x
    variables.append(xs[-1])
    nlp: dict[str, Any] = {"x": ca.vertcat(*variables), "f": cost, "g": ca.vertcat(*equations)}
    options: dict[str, Any] = {"print_time": 0, "expand": True}
    if solver == "ipopt":
        options["ipopt"] = {"print_level": 0, "sb": "yes", "max_iter": 500}
    else:
        count = (p.T + 1) * p.n
        options |= {"structure_detection": "auto", "equality": [True] * count, "debug": False}
        options["fatrop"] = {"print_level": 0, "max_iter": 500}
    return ca.nlpsol("s", solver, nlp, options), {"lbx": low, "ubx": high, "lbg": 0, "ubg": 0}


def solve_with(p: Any, solver: str) -> Solve:
    made, bounds = program(p, solver)
    states, _ = definitions.rollout(p, p.x0, p.U0)
    controls = p.U0 if p.lo is None else np.clip(p.U0, p.lo, p.hi)
    guess = np.concatenate((np.hstack((states[:-1], controls)).ravel(), states[-1]))

    def solve() -> tuple[bool, int, float, np.ndarray]:
        found = made(x0=guess, **bounds)
        stats = made.stats()
        rows = np.array(found["x"]).ravel()[: p.T * (p.n + p.m)].reshape(p.T, -1)
        facts = bool(stats["success"]), int(stats["iter_count"]), float(found["f"])
        return *facts, rows[:, p.n :]

    return solve


def answer(solve: Solve, repeats: int) -> dict[str, Any]:
    cpu, wall = [], []
    for _ in range(repeats):
        a, w = time.process_time(), time.perf_counter()
        converged, iterations, cost, controls = solve()
        cpu.append(time.process_time() - a)
        wall.append(time.perf_counter() - w)
    facts = {"converged": converged, "iterations": iterations, "cost": cost}
    return {**facts, "cpu": cpu, "wall": wall, "controls": controls.ravel().tolist()}


def main() -> None:
    known: dict[tuple[str, str], Solve] = {}
    for line in sys.stdin:
        problem, solver, repeats = line.split()[:3]
        key = problem, solver
        if key not in known:
            known[key] = solve_with(definitions.make(problem), solver.lower())
        print(json.dumps(answer(known[key], int(repeats))), flush=True)


if __name__ == "__main__":
    main()
