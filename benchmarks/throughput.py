"""Problem-iterations a second of batches of cartpoles: RK4, n = 4, m = 1, T = 100.

    python benchmarks/throughput.py [--device cpu,cuda] [--batches 1024,16384]
                                    [--dtype float64] [--method ilqr] [--steps 20]
                                    [--repeats 5] [--out F]

Every problem has an initial state of its own and starts from zero controls. The numbers count
iterations that were made: a problem that has stopped adds none. Times are medians of wall time on a
GPU, after synchronising, and of process time on a CPU, whose threads are given by OMP_NUM_THREADS.
What is compiled is compiled before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import ocp
from ocp.problems import cartpole
from ocp.solvers.loop import Solver, State


def batch_of(count: int, device: str, dtype: torch.dtype) -> ocp.Problem:
    """Cartpoles from random states about hanging at rest."""
    one = cartpole()
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(count, one.x0.shape[-1], generator=g, dtype=torch.float64)
    x0 = (one.x0.double().reshape(1, -1) + 0.3 * noise).to(device, dtype)
    assert one.goal is not None
    move = lambda data: {k: torch.as_tensor(v).to(device, dtype) for k, v in data.items()}
    return one.replace(x0=x0, goal=one.goal.to(device, dtype), parameters=move(one.parameters))


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def advance(solver: Solver, problem: ocp.Problem, state: State, steps: int) -> State:
    """``steps`` iterations of every problem that does not stop."""
    made = 0
    while made < steps and state.running:
        before = sum(block["running"].shape[0] for block in state.rows)
        state = solver.steps(problem, state, steps - made)
        made += sum(block["running"].shape[0] for block in state.rows) - before
    return state


def measure(problem: ocp.Problem, device: str, options: argparse.Namespace) -> dict[str, Any]:
    engine = getattr(options, "engine", "native")
    solver = ocp.make_solver(options.method, engine=engine, max_iterations=10**6)
    start = solver.init(problem)
    advance(solver, problem, start, 1)
    seconds = []
    for _ in range(options.repeats):
        begin = clock(device)
        state = advance(solver, problem, start, options.steps)
        seconds.append(clock(device) - begin)
    made = int(state.iterations.sum())
    median = statistics.median(seconds)
    return {
        "engine": state.engine.name,
        "iterations": made,
        "seconds": median,
        "rate": made / median,
        "rollouts": float(state.rollouts.sum()) / max(made, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    found = "cpu,cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found)
    parser.add_argument("--batches", default="1024,4096,16384")
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"))
    parser.add_argument("--method", default="ilqr", choices=("ilqr", "ddp"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for device in options.device.split(","):
        for count in map(int, options.batches.split(",")):
            problem = batch_of(count, device, getattr(torch, options.dtype))
            facts = measure(problem, device, options)
            if not rows or rows[-1]["device"] != device:
                print(problem.compile_report(), flush=True)
            rows.append({"device": device, "batch": count, "dtype": options.dtype, **facts})
            print(
                f"{facts['engine']:6s} {device:4s} B={count:6d} {options.dtype} {options.method}: "
                f"{facts['rate']:12,.0f} problem-iterations/s  ({facts['seconds']:.3f} s, "
                f"{facts['rollouts']:.2f} roll-outs each)",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
