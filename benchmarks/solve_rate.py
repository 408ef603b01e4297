"""Solve rate from random starts: how often the best known minimum is reached, at what cost.

    python benchmarks/solve_rate.py PEERS_DIR [--problems pendulum,...] [--count 200]
                                    [--starts portfolio,default,zero] [--engine native] [--out F]

PEERS_DIR holds `problems.py` (definitions on lists of scalars, initial states `rand_x0`) and
`best_costs.json` (the best cost any peer found). A result counts when its cost is within 1 % of
the best, its largest defect is at most 1e-9, and its policy, followed from x0 in independent
numpy arithmetic, costs within 1 % of what is reported. Sweeps and roll-outs are counted against
one plain iLQR solve from zero controls on the same initial states.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from peers.definitions import closed_loop, load, problem_of

import ocp


def judge(
    module: ModuleType, peer: Any, solution: ocp.Solution, best: np.ndarray
) -> dict[str, float]:
    cost, gap = solution.cost.numpy(), solution.gap.numpy()
    replay = closed_loop(module, peer, solution)
    tight = gap <= 1e-9
    same = np.abs(replay - cost) <= 0.01 * np.abs(cost)
    good = cost <= 1.01 * best
    return {
        "solved": float((good & tight & same).mean()),
        "cost within 1 %": float((good & tight).mean()),
        "replays within 1 %": float((tight & same).mean()),
        "better by 1 %": float(((cost < 0.99 * best) & tight & same).mean()),
        "iterations": float(solution.iterations.double().mean()),
        "sweeps": float(solution.sweeps.double().mean()),
        "rollouts": float(solution.rollouts.double().mean()),
    }


def configurations(names: list[str]) -> dict[str, dict[str, Any]]:
    every: dict[str, dict[str, Any]] = {
        "plain iLQR": {"method": "ilqr", "starts": ocp.starts.zero},
        "portfolio": {"starts": "portfolio"},
        "default": {},
        "zero": {"starts": ocp.starts.zero},
        "weights": {"starts": ocp.starts.weight_continuation()},
    }
    return {name: every[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problems", default="pendulum,cartpole,acrobot")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--starts", default="plain iLQR,portfolio,default")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = load(options.folder)
    best = json.loads((options.folder / "best_costs.json").read_text())
    rows = []
    for name in options.problems.split(","):
        peer, count = module.make(name), options.count
        problem = problem_of(peer, module.rand_x0(name, 200)[:count])
        for label, arguments in configurations(options.starts.split(",")).items():
            begin = time.process_time()
            solution = ocp.solve(problem, engine=options.engine, **arguments)
            seconds = time.process_time() - begin
            facts = judge(module, peer, solution, np.array(best[name][:count]))
            rows.append({"problem": name, "start": label, **facts, "seconds": seconds})
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in facts.items())
            print(f"{name:9s} {label:11s} {numbers}  {seconds:.0f} s", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
