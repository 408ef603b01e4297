"""Memory of one step for large batches of many classes, beside what the theory says is formed.

    python benchmarks/nn_memory.py [--batch 128] [--classes 100] [--solvers auto,cg,cholesky]
                                   [--widths 784,512,512] [--dtype float32]

A row is a process of its own: `ocp_nn.experiments.memory.Live` has the largest tensor and the most
that lived at once, `resource` what the process took more than before the step. Theory, r = B (k-1)
coordinates, M parameters: every solver holds Y_t, r n_t numbers for each stage downstream of the
first; Cholesky besides one factor (r, r) a layer and the kernel it makes it from; the primal side
one factor (M, M) and the Hessian; conjugate gradients nothing of either size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

import ocp_nn
from ocp.tables import Table
from ocp_nn.batch_ddp import BatchDDP
from ocp_nn.experiments import mlp
from ocp_nn.experiments.memory import Live

MIB = 2**20


def measured(options: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    inputs, *hidden = map(int, options.widths.split(","))
    model = mlp((inputs,), options.classes, hidden, dtype=dtype)
    x = torch.rand(options.batch, inputs, dtype=dtype)
    y = torch.randint(options.classes, (options.batch,))
    problem = ocp_nn.compile(model, "cross_entropy", x, y)
    solver = BatchDDP(damping=1.0, mini_batch=True, linear_solver=options.solvers)
    state = solver.init(problem, ocp_nn.initial_controls(problem))
    engine: Any = state.engine
    chosen = solver.chosen(engine.expand(state.xs, state.us))
    state = solver.init(problem, ocp_nn.initial_controls(problem))  # nothing kept from before
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with Live() as live:
        after = solver.step(problem, state)
    seconds = time.process_time() - begin
    assert bool(after.cost < state.cost)
    r, M = options.batch * (options.classes - 1), sum(p.numel() for p in model.parameters())
    bytes_each, layers = x.element_size(), len(hidden) + 1
    ys = r * (2 * sum(hidden) + options.classes)
    extra = {"cholesky": (layers + 1) * r * r, "primal": 2 * M * M, "cg": 0}[chosen]
    return {
        "solver": options.solvers, "chosen": chosen, "r": r, "M": M, "seconds": seconds,
        "largest": live.largest / MIB, "peak": live.peak / MIB,
        "theory": (ys + extra) * bytes_each / MIB,
        "process": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--widths", default="784,512,512", help="inputs and hidden layers")
    parser.add_argument("--solvers", default="auto,cg,cholesky")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options)))
        return
    rows = []
    for solver in options.solvers.split(","):
        command = [sys.executable, __file__, "--one", "--solvers", solver, "--dtype", options.dtype,
                   "--batch", str(options.batch), "--classes", str(options.classes),
                   "--widths", options.widths]  # fmt: skip
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        numbers = [f"{found[k]:.0f}" for k in ("largest", "peak", "theory", "process")]
        rows.append([solver, found["chosen"], *numbers, f"{found['seconds']:.1f}"])
        r, M = found["r"], found["M"]
    title = f"{options.widths}-{options.classes}, B={options.batch}, {options.dtype}"
    columns = ("solver", "runs", "largest", "peak", "theory", "process", "CPU s")
    print(Table(f"{title}: r = {r:,}, {M:,} parameters; MiB", columns, rows))


if __name__ == "__main__":
    main()
