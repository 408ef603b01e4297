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
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import ocp


def load(folder: Path) -> tuple[ModuleType, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("problems", folder / "problems.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["problems"] = module
    spec.loader.exec_module(module)
    return module, json.loads((folder / "best_costs.json").read_text())


class Torch:
    sin, cos, sqrt, asin = torch.sin, torch.cos, torch.sqrt, torch.asin


def problem_of(peer: Any, x0: np.ndarray) -> ocp.Problem:
    """A peer's problem, its scalars stacked, for a batch of initial states."""
    return ocp.Problem(
        lambda x, u, t: torch.stack(peer.step(list(x), list(u), Torch)),
        ocp.FunctionCost(lambda x, u, t: peer.run(x, u, Torch), lambda x: peer.term(x, Torch)),
        torch.from_numpy(x0),
        peer.T,
        peer.m,
        control_bounds=None if peer.lo is None else (peer.lo, peer.hi),
        goal=torch.from_numpy(peer.xg),
        name=peer.name,
    )


def closed_loop(module: ModuleType, peer: Any, solution: ocp.Solution) -> np.ndarray:
    """Cost of each policy followed from x0, in numpy: (B,)."""
    xs, us, K = (v.numpy() for v in (solution.states, solution.controls, solution.policy.K))
    x, cost = xs[:, 0].copy(), np.zeros(len(xs))
    with np.errstate(all="ignore"):
        for t in range(peer.T):
            u = us[:, t] + np.einsum("bij,bj->bi", K[:, t], x - xs[:, t])
            if peer.lo is not None:
                u = np.clip(u, peer.lo, peer.hi)
            lists = list(x.T), list(u.T)
            cost = cost + peer.run(*lists, module.NP)
            x = np.stack(peer.step(*lists, module.NP), axis=-1)
        return cost + peer.term(list(x.T), module.NP)


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
    module, best = load(options.folder)
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
