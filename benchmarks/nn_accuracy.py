"""High accuracy: fit a 5-32-32-2 tanh network to the accelerations of cartpole, float64.

    python benchmarks/nn_accuracy.py [--seconds 46] [--seeds 0,1,2] [--methods ddp,adam,...]
                                     [--out FILE.json] [--figure FILE.png]
    python benchmarks/nn_accuracy.py --tune [--methods adam,lbfgs,...]

1 024 samples: (cos, sin of the angle, speed, rate, force) -> accelerations of cart and pole, inputs
and targets with mean 0 and variance 1. The loss is torch's mse. Every method has one thread, the
same start and the same budget of CPU seconds. `--tune` tries the grids in `GRIDS`, each for the
whole budget from a start of its own; the winners stand in `OPTIONS`. Runs that --out has already
are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocp.tables import Table
from ocp_nn.baselines import make_optimizer
from ocp_nn.optimizer import DDPOptimizer

Trace = list[tuple[float, float]]  # (seconds, loss)
Steps = Iterator[float]  # the loss after every step


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


# -- methods -------------------------------------------------------------------------------------
def ddp(net: nn.Module, x: Tensor, y: Tensor, seconds: float, **options: Any) -> Steps:
    """Full-batch DDP, damping by Levenberg and Marquardt, on the primal side."""
    optimizer = DDPOptimizer(net, "mse", damping="adaptive", full_batch=True, **options)
    while True:
        optimizer.step(x, y)
        assert optimizer.solver_state is not None
        yield float(optimizer.solver_state.cost)


def gauss_newton(net: nn.Module, x: Tensor, y: Tensor, seconds: float) -> Steps:
    """The same without feedback: Levenberg-Marquardt of the whole network."""
    return ddp(net, x, y, seconds, feedback="linear")


def levenberg_marquardt(
    net: nn.Module, x: Tensor, y: Tensor, seconds: float, **options: Any
) -> Steps:
    """The baseline of the package: the Jacobian by autograd, J'J by one product."""
    optimizer = make_optimizer("lm", net, loss="mse", **options)
    while True:
        optimizer.step(x, y)
        with torch.no_grad():
            yield float(nn.functional.mse_loss(net(x), y))


def adam(net: nn.Module, x: Tensor, y: Tensor, seconds: float, *, lr: float, batch: int) -> Steps:
    """Mini-batches, the learning rate down to 0 on a cosine over the whole budget."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    start = time.process_time()
    while True:
        for _ in range(max(1, batch * 128 // len(x))):  # so that measuring costs nothing
            part = min(1.0, (time.process_time() - start) / seconds)
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * part)) / 2
            for rows in torch.randperm(len(x)).split(batch):
                optimizer.zero_grad()
                nn.functional.mse_loss(net(x[rows]), y[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            yield float(nn.functional.mse_loss(net(x), y))


def lbfgs(net: nn.Module, x: Tensor, y: Tensor, seconds: float, *, pairs: int) -> Steps:
    """torch's L-BFGS with strong Wolfe conditions, the whole set."""
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=20, history_size=pairs, line_search_fn="strong_wolfe",
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


METHODS: dict[str, Callable[..., Steps]] = {
    "ddp": ddp,
    "gauss-newton": gauss_newton,
    "lm": levenberg_marquardt,
    "lbfgs": lbfgs,
    "adam": adam,
}
SCIPY = {"scipy-lbfgs": "L-BFGS-B"}
# Winners of --tune; DDP has nothing to tune here.
OPTIONS: dict[str, dict[str, Any]] = {
    "lm": {"scaling": "diagonal"},
    "adam": {"lr": 1e-2, "batch": 256},
    "lbfgs": {"pairs": 100},
    "scipy-lbfgs": {"pairs": 100},
}
GRIDS: dict[str, dict[str, list[Any]]] = {
    "lm": {"scaling": ["identity", "diagonal"]},
    "adam": {"lr": [3e-3, 1e-2, 3e-2], "batch": [64, 256]},
    "lbfgs": {"pairs": [20, 100, 300]},
    "scipy-lbfgs": {"pairs": [20, 100, 300]},
}


def scipy_trace(
    name: str, net: nn.Module, x: Tensor, y: Tensor, seconds: float, pairs: int = 0
) -> Trace:
    """A minimiser of scipy, from where it gives up once more until the time is over."""
    from scipy.optimize import minimize

    parameters, trace, start = list(net.parameters()), Trace(), time.process_time()

    def value(u: Any) -> tuple[float, Any]:
        nn.utils.vector_to_parameters(torch.from_numpy(u), parameters)
        loss = nn.functional.mse_loss(net(x), y)
        gradient = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), torch.cat([g.reshape(-1) for g in gradient]).numpy()

    def note(intermediate_result: Any) -> None:
        trace.append((time.process_time() - start, float(intermediate_result.fun)))
        if trace[-1][0] >= seconds:
            raise StopIteration

    u = nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    limits: dict[str, Any] = {"maxiter": 10**9, "gtol": 0.0}
    if pairs:
        limits |= {"maxcor": pairs, "ftol": 0.0, "maxfun": 10**9}
    while not trace or trace[-1][0] < seconds:
        before = len(trace)
        u = minimize(value, u, jac=True, method=SCIPY[name], callback=note, options=limits).x
        if len(trace) == before:
            break  # not one iteration more: rounding
    return trace


def measure(steps: Steps, seconds: float) -> Trace:
    """Loss after each step until the time is over; CPU time of this process."""
    start, trace = time.process_time(), Trace()
    for loss in steps:
        spent = time.process_time() - start
        trace.append((spent, loss))
        if spent >= seconds:
            break
    return trace


def run(
    name: str, seed: int, x: Tensor, y: Tensor, seconds: float, options: dict[str, Any]
) -> Trace:
    net = network(seed)
    if name in SCIPY:
        return scipy_trace(name, net, x, y, seconds, **options)
    return measure(METHODS[name](net, x, y, seconds, **options), seconds)


# -- what came out ---------------------------------------------------------------------------------
def first_time(trace: Trace, goal: float) -> float:
    return next((t for t, loss in trace if loss <= goal), math.inf)


def loss_at(trace: Trace, seconds: float) -> float:
    """Best loss until that time."""
    return min((loss for t, loss in trace if t <= seconds), default=math.inf)


def thinned(trace: Trace, points: int = 400) -> Trace:
    """Those where the loss is the best so far; of a long one some, evenly in time."""
    best, kept, last = math.inf, Trace(), -math.inf
    for t, loss in trace:
        if loss < best and t - last >= trace[-1][0] / points:
            kept, last = [*kept, (t, loss)], t
        best = min(best, loss)
    return [*kept, (trace[-1][0], best)]


def summary(results: dict[str, dict[str, Trace]], seconds: float, goal: float) -> Table:
    """Median and range over seeds of the losses at three times and the time to the goal."""
    times = (seconds / 10, seconds / 3, seconds)
    lines = []
    for name, by_seed in results.items():
        traces = list(by_seed.values())
        cells = [spread([loss_at(trace, t) for trace in traces], ".1e", "none yet") for t in times]
        lines.append([name, *cells, spread([first_time(t, goal) for t in traces], ".1f", "never")])
    seeds = max(len(v) for v in results.values())
    return Table(
        f"mean squared error after CPU seconds; median (range) over {seeds} seeds",
        ("method", *(f"{t:.3g} s" for t in times), f"s to {goal:g}"),
        lines,
    )


def spread(values: list[float], form: str, missing: str) -> str:
    def text(v: float) -> str:
        return f"{v:{form}}" if math.isfinite(v) else missing

    middle = statistics.median(values)
    if len(values) == 1:
        return text(middle)
    return f"{text(middle)} ({text(min(values))}-{text(max(values))})"


def draw(results: dict[str, dict[str, Trace]], goal: float, file: Path) -> None:
    """Loss over time, a line a seed."""
    from ocp.plot import new_figure

    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    for i, (name, by_seed) in enumerate(results.items()):
        for k, trace in enumerate(by_seed.values()):
            t, loss = zip(*trace, strict=True)
            axis.loglog(t, loss, color=f"C{i}", linewidth=1, label=name if k == 0 else None)
    axis.axhline(goal, color="0.6", linewidth=0.8, linestyle="--")
    axis.set_xlim(left=0.1)
    axis.set_xlabel("CPU seconds")
    axis.set_ylabel("mean squared error")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(file)


def tune(arguments: argparse.Namespace, x: Tensor, y: Tensor) -> None:
    for name in arguments.methods.split(","):
        grid = GRIDS.get(name, {})
        for values in itertools.product(*grid.values()) if grid else ():
            options = dict(zip(grid, values, strict=True))
            trace = run(name, 1000, x, y, arguments.seconds, options)
            print(
                f"{name} {options}: {trace[-1][1]:.2e}, {arguments.goal:g} after "
                f"{first_time(trace, arguments.goal):.1f} s",
                flush=True,
            )


def study(arguments: argparse.Namespace, x: Tensor, y: Tensor) -> None:
    out: Path | None = arguments.out
    results: dict[str, dict[str, Trace]] = {}
    if out is not None and out.exists():
        results = json.loads(out.read_text())
    methods = arguments.methods.split(",")
    for seed, name in itertools.product(arguments.seeds.split(","), methods):
        if seed in results.get(name, {}):
            continue
        trace = run(name, int(seed), x, y, arguments.seconds, OPTIONS.get(name, {}))
        print(
            f"seed {seed}  {name:12s} records {len(trace):6d}  loss {trace[-1][1]:.2e}  "
            f"{arguments.goal:g} after {first_time(trace, arguments.goal):.1f} s",
            flush=True,
        )
        results.setdefault(name, {})[seed] = thinned(trace)
        if out is not None:
            out.write_text(json.dumps(results))
    results = {name: results[name] for name in methods}
    print(f"\n{summary(results, arguments.seconds, arguments.goal)}")
    if arguments.figure is not None:
        draw(results, arguments.goal, arguments.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=46.0, help="CPU seconds a method")
    parser.add_argument("--seeds", default="0,1,2", help="of the initial weights")
    parser.add_argument("--methods", default=",".join([*METHODS, *SCIPY]))
    parser.add_argument("--goal", type=float, default=3e-6)
    parser.add_argument("--tune", action="store_true", help="try the grids instead")
    parser.add_argument("--out", type=Path, help="losses over time, a JSON file")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = data()
    (tune if arguments.tune else study)(arguments, x, y)


if __name__ == "__main__":
    main()
