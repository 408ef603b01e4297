"""Which minimum is found from random first controls, ours against other people's solvers.

    python benchmarks/random_controls.py PEERS_DIR --work WORK_DIR [--problem car_box] [--count 60]

One start says little where there are many minima. Everybody solves from the same random controls
(normal, of the size of the definition's), each with its own default stopping rule; PEERS_DIR and
WORK_DIR are those of `against_peers.py`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path

import numpy as np
import torch
from peers.definitions import load, problem_of
from peers.servers import BOUNDED, FREE, Turn, installed, ours

import ocp

NEAR = 0.01  # relative, of the best cost that anybody found from a start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--problem", default="car_box")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--scale", type=float, help="standard deviation; the definition's without")
    parser.add_argument("--first-damping", type=float, nargs="*", default=[0.1, 0.0, 1.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    definition = load(options.folder).make(options.problem)
    problem = problem_of(definition, definition.x0)
    server = installed(options.folder, options.work)["cpp"]
    scale = definition.U0.std() if options.scale is None else options.scale
    random = np.random.default_rng(0)
    turns: dict[str, list[Turn]] = {}
    for k in range(options.count + 1):
        first = scale * random.standard_normal(definition.U0.shape)
        made = {}
        for damping in options.first_damping:
            given = {"controls": torch.from_numpy(first), "first_damping": damping}
            solve = functools.partial(ocp.solve, problem, **given)
            made[f"ours, first_damping={damping:g}"] = ours(solve, 1)
        for name in FREE if definition.lo is None else BOUNDED:
            made[name] = server.solve(definition, name, 1, first)
        for name, turn in made.items() if k > 0 else ():  # the first compiles
            turns.setdefault(name, []).append(turn)
    server.close()
    report(turns)


def report(turns: dict[str, list[Turn]]) -> None:
    """A line for each solver. Who has not converged has found nothing."""
    costs = {k: np.array([t.cost if t.converged else np.inf for t in v]) for k, v in turns.items()}
    best = np.min(list(costs.values()), axis=0)
    lines = [f"{'solver':25s} best  mean cost  iterations  CPU ms  failed"]
    for name, made in turns.items():
        cost = costs[name]
        found = np.isfinite(cost)
        iterations = statistics.median(t.iterations for t in made)
        cpu = 1e3 * statistics.median(t.cpu[0] for t in made)
        lines.append(
            f"{name:25s} {np.mean(cost <= (1 + NEAR) * best):4.0%}  {cost[found].mean():9.4f}  "
            f"{iterations:10.0f}  {cpu:6.1f}  {np.sum(~found):6d}"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
