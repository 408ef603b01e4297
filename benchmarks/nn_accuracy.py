"""High accuracy: fit a 5-32-32-2 tanh network to the accelerations of cartpole, float64.

    python benchmarks/nn_accuracy.py [--seconds 46] [--seeds 0] [--methods ddp,adam,lbfgs] [--out F]

1 024 samples: (cos, sin of the angle, speed, rate, force) -> accelerations of cart and pole, inputs
and targets with mean 0 and variance 1. The loss is torch's mse. Every method has one thread, the
same start and the same budget of seconds; a table tells the loss over time and the time to reach
what Adam with a cosine schedule ends with.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ocp_nn.optimizer import DDPOptimizer

Trace = list[tuple[float, float]]  # (seconds, loss)


def data(samples: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standardised inputs (samples, 5) and accelerations (samples, 2)."""
    from ocp.problems.cartpole import ode

    generator = torch.Generator().manual_seed(seed)
    unit = 2 * torch.rand(samples, 4, generator=generator, dtype=torch.float64) - 1
    angle, speed, rate, force = (unit * torch.tensor([math.pi, 3.0, 8.0, 10.0]).double()).T
    constants = {"mass": 1.0, "pole_mass": 0.2, "length": 0.5, "gravity": 9.81}
    x = torch.stack((torch.zeros_like(angle), angle, speed, rate))
    accelerations = ode(x, force[None], constants)[2:].T  # type: ignore[arg-type]
    inputs = torch.stack((angle.cos(), angle.sin(), speed, rate, force), dim=1)
    return standardised(inputs), standardised(accelerations)


def standardised(v: Tensor) -> Tensor:
    return (v - v.mean(dim=0)) / v.std(dim=0)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    return nn.Sequential(*layers).double()


def measure(steps: Iterator[float], seconds: float) -> Trace:
    """Loss after each step until the time is over; CPU time of this process."""
    start, trace = time.process_time(), []
    for loss in steps:
        spent = time.process_time() - start
        trace.append((spent, loss))
        if spent >= seconds:
            break
    return trace


def ddp(net: nn.Module, x: Tensor, y: Tensor, seconds: float) -> Iterator[float]:
    """Full-batch DDP, damping by Levenberg and Marquardt, on the primal side."""
    optimizer = DDPOptimizer(net, "mse", damping="adaptive", full_batch=True)
    while True:
        optimizer.step(x, y)
        assert optimizer.solver_state is not None
        yield float(optimizer.solver_state.cost)


def gauss_newton(net: nn.Module, x: Tensor, y: Tensor, seconds: float) -> Iterator[float]:
    """The same without feedback: Levenberg-Marquardt of the whole network."""
    optimizer = DDPOptimizer(net, "mse", damping="adaptive", full_batch=True, feedback="linear")
    while True:
        optimizer.step(x, y)
        assert optimizer.solver_state is not None
        yield float(optimizer.solver_state.cost)


def adam(net: nn.Module, x: Tensor, y: Tensor, seconds: float) -> Iterator[float]:
    """Mini-batches of 64, learning rate 1e-2 down to 0 on a cosine over the whole budget."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    start = time.process_time()
    while True:
        order = torch.randperm(len(x))
        part = min(1.0, (time.process_time() - start) / seconds)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * part)) / 2
        for rows in order.split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            yield float(nn.functional.mse_loss(net(x), y))


def lbfgs(net: nn.Module, x: Tensor, y: Tensor, seconds: float) -> Iterator[float]:
    """torch's L-BFGS with strong Wolfe conditions, the whole set, 100 pairs."""
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=20, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        return loss

    while True:
        optimizer.step(closure)
        with torch.no_grad():
            yield float(nn.functional.mse_loss(net(x), y))


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor, float], Iterator[float]]] = {
    "ddp": ddp,
    "gauss-newton": gauss_newton,
    "lbfgs": lbfgs,
    "adam": adam,
}


def first_time(trace: Trace, goal: float) -> float:
    return next((t for t, loss in trace if loss <= goal), math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=46.0, help="CPU seconds a method")
    parser.add_argument("--seeds", default="0", help="of the initial weights, comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--goal", type=float, default=3e-6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = data()
    results: dict[str, dict[str, Trace]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.methods.split(","):
            net = network(seed)
            trace = measure(METHODS[name](net, x, y, arguments.seconds), arguments.seconds)
            results.setdefault(name, {})[str(seed)] = trace
            quarter, tenth = (first_loss(trace, arguments.seconds / k) for k in (4, 10))
            print(
                f"seed {seed}  {name:12s} steps {len(trace):6d}  loss {trace[-1][1]:.2e}  "
                f"after a quarter {quarter:.2e}, a tenth {tenth:.2e}; "
                f"{arguments.goal:g} after {first_time(trace, arguments.goal):.1f} s",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(results))


def first_loss(trace: Trace, seconds: float) -> float:
    """Loss when that much time was over."""
    return min((loss for t, loss in trace if t <= seconds), default=math.inf)


if __name__ == "__main__":
    main()
