"""Networks as dynamics: what compiling costs and what an iteration takes, by width.

    python benchmarks/native_networks.py [--cases 2x32,2x128 ...] [--repeats 5] [--activation tanh]
        [--euler] [--eager] [--float32] [--batch B]

A row a network: seconds of CPU (compiler included) to the first program, microseconds of CPU for
an iteration of iLQR and of DDP with its second-order terms, T = 100, and what the products of
f and f_z alone would take at the rate of a large `torch.matmul`. The network gives the two
accelerations of a cart-pole in 5 features; RK4 calls it four times a stage, Euler once.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import ocp
from ocp.problems.cartpole import cartpole

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
CASES = "2x16,2x32,2x64,2x128,3x256"


def network(depth: int, width: int, activation: str, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [5, *[width] * depth, 2]
    layers: list[nn.Module] = []
    for k, r in pairwise(sizes):
        layers += [nn.Linear(k, r, dtype=dtype), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def learned(net: nn.Module, batch: int | None, dtype: torch.dtype, euler: bool) -> ocp.Problem:
    true = cartpole()

    def ode(x: Tensor, u: Tensor, time: Any) -> Tensor:
        _, angle, speed, rate = x
        features = torch.stack((angle.cos(), angle.sin(), speed / 6, rate / 12, u[0] / 25))
        return torch.cat((x[2:], 10 * net(features)))

    step = (lambda x, u, t: x + 0.02 * ode(x, u, t)) if euler else ocp.rk4(ode, 0.02)
    count = 1 if batch is None else batch
    x0 = true.x0.reshape(1, 4) + 0.1 * torch.randn(
        count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    x0 = x0[0] if batch is None else x0
    parameters = {k: v.to(dtype) for k, v in true.parameters.items()}
    return ocp.Problem(step, true.cost, x0.to(dtype), 100, 1, parameters=parameters)


def used() -> float:
    """Seconds of CPU of this process and those it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(k).ru_utime + resource.getrusage(k).ru_stime for k in kinds)


def median(work: Callable[[], Any], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def iteration(problem: ocp.Problem, method: str, repeats: int, **options: Any) -> float:
    """Seconds; a batch counts once. Of DDP, iterations with second-order terms."""
    if method == "ddp":
        options["second_order"] = "always"
    solver = ocp.make_solver(method, **options)
    B = 1 if problem.x0.ndim == 1 else problem.batch
    u = torch.zeros(B, problem.horizon, 1, dtype=problem.x0.dtype)
    state = solver.init(problem, u if problem.x0.ndim == 2 else u[0])
    made = int(solver.steps(problem, state, 5).iterations.max() - state.iterations.max())
    return median(lambda: solver.steps(problem, state, 5), repeats) / made


def rate(dtype: torch.dtype) -> float:
    """Operations a second of a large product."""
    A = torch.randn(512, 512, dtype=dtype)
    return float(2 * 512**3 / median(lambda: A @ A, 9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--activation", default="tanh", choices=ACTIVATIONS)
    parser.add_argument("--batch", type=int)
    for flag in ("euler", "eager", "float32"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OCP_CACHE_DIR"] = tempfile.mkdtemp()
    dtype = torch.float32 if options.float32 else torch.float64
    flops = rate(dtype)
    print(f"torch.matmul: {flops / 1e9:.1f} Gflop/s")
    print(f"{'network':10s} {'compile s':>9s} {'ilqr us':>9s} {'ddp us':>9s} {'f, f_z us':>9s}")
    for case in options.cases.split(","):
        depth, width = map(int, case.split("x"))
        net = network(depth, width, options.activation, dtype)
        problem = learned(net, options.batch, dtype, options.euler)
        begin = used()
        report = problem.compile_report()
        compiled = used() - begin
        if not report.startswith("native"):
            print(case, report.splitlines()[0])
            continue
        times = [iteration(problem, method, options.repeats) for method in ("ilqr", "ddp")]
        if options.eager:
            slow = iteration(problem, "ilqr", 1, engine="eager")
            print(f"{case:10s} eager: {1e6 * slow:.0f} us an iteration of ilqr")
        products = sum(w.numel() for w in net.parameters() if w.ndim == 2)
        passes = (1 if options.euler else 4) * 100 * problem.batch
        bound = 2 * products * passes * (1 + 2) / flops  # two adjoints are fewer than five tangents
        print(
            f"{case:10s} {compiled:9.1f} {1e6 * times[0]:9.0f} {1e6 * times[1]:9.0f}"
            f" {1e6 * bound:9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
