"""Figures of the native engine by itself, each with its unit; medians.

    python benchmarks/native_speed.py [--only iteration,process,...] [--repeats 15] [--out F]

iteration    microseconds of CPU for an iteration of iLQR, cart-pole T=100, Python included
resolve      microseconds of CPU for one iteration from an earlier solution with another x0
process      seconds to the first solution in a new process, after ``import torch``, by the clock
             and of CPU (the compiler too): program compiled, and cached; modules are there as
             bytecode, as an installer leaves them
batch        problems x iterations a second of CPU, 1024 cart-poles, float64 and float32
untraceable  a model that cannot be compiled: CPU time of a solve by "auto" / by "eager", in turn;
             what "auto" takes more in the first solve of a process, to find out; the same bits
threads      1 and 2 threads on a batch: ratio of the clock, and whether the bits are the same
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import ocp
from ocp.engines.native import compiled
from ocp.problems import cartpole

Figures = Iterator[tuple[str, float, str]]
FIRST = """
import os, time, torch
spent = lambda: sum(os.times()[:4])
begin, before = time.perf_counter(), spent()
import ocp
from ocp.problems import cartpole
solution = ocp.solve(cartpole(), "ilqr")
assert solution.engine == "native", solution.engine
print(time.perf_counter() - begin, spent() - before)
"""


def median(work: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of a call, after one that is not timed."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = clock()
        work()
        seconds.append(clock() - begin)
    return statistics.median(seconds)


def median_of(works: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of CPU of each, taken in turn."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, own in zip(works, seconds, strict=True):
            begin = time.process_time()
            work()
            own.append(time.process_time() - begin)
    return [statistics.median(own) for own in seconds]


def random_states(B: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 0.3 * torch.randn(B, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


def iteration(repeats: int) -> Figures:
    problem = cartpole()
    controls = torch.zeros(problem.horizon, 1, dtype=torch.float64)
    count = int(ocp.solve(problem, "ilqr", controls).iterations)
    seconds = median(lambda: ocp.solve(problem, "ilqr", controls), repeats, time.process_time)
    yield f"a whole solve of {count} iterations / {count}", 1e6 * seconds / count, "us"
    solver = ocp.make_solver("ilqr")
    state = solver.init(problem, controls)
    state = solver.steps(problem, state, 10)
    many = lambda: solver.steps(problem, state, 100)
    seconds = median(many, repeats, time.process_time)
    yield "100 iterations in one call / 100", 1e6 * seconds / 100, "us"


def resolve(repeats: int) -> Figures:
    problem = cartpole()
    warm = ocp.solve(problem)
    states = warm.states[0] + 0.01 * random_states(repeats + 2)
    following = iter(states)

    def once() -> ocp.Solution:
        again = problem.replace(x0=next(following))
        return ocp.solve(again, "ilqr", starts=warm, max_iterations=1)

    yield "replace(x0), solve, one iteration", 1e6 * median(once, repeats, time.process_time), "us"
    controller = ocp.RecedingHorizon(problem, "ilqr", start=warm, shift=0)
    more = iter(warm.states[0] + 0.01 * random_states(repeats + 2))
    call = lambda: controller(next(more))
    seconds = median(call, repeats, time.process_time)
    yield "a call of RecedingHorizon, one iteration", 1e6 * seconds, "us"
    solver = ocp.make_solver("ilqr")
    state = solver.init(problem, warm.controls)
    step = lambda: solver.steps(problem, state, 1)
    yield "of the first, solver.steps", 1e6 * median(step, repeats, time.process_time), "us"
    start = lambda: solver.init(problem, warm.controls)
    yield "of the first, solver.init", 1e6 * median(start, repeats, time.process_time), "us"
    end = lambda: solver.result(problem, state)
    yield "of the first, solver.result", 1e6 * median(end, repeats, time.process_time), "us"


def process(repeats: int) -> Figures:
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "OMP_NUM_THREADS": "1"}

        def first(cache: str) -> list[float]:
            command = [sys.executable, "-c", FIRST]
            settings["OCP_CACHE_DIR"] = f"{folder}/{cache}"
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
            return [float(word) for word in done.stdout.split()]

        first("bytecode is written")
        count = min(repeats, 5)
        found = {"compiled": [first(str(k)) for k in range(count)]}
        found["cached"] = [first("0") for _ in range(count)]
        for name, runs in found.items():
            clock, spent = (statistics.median(column) for column in zip(*runs, strict=True))
            yield f"{name}, by the clock", clock, "s"
            yield f"{name}, CPU", spent, "s"


def chain(repeats: int) -> Figures:
    """18 masses with non-linear springs, forces on 12 of them: n = 36, m = 12, T = 100."""

    def ode(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        q, v = x[:18], x[18:]
        stretch = torch.cat((q[:1], q[1:] - q[:-1], -q[-1:]))
        force = stretch + 0.3 * torch.sin(stretch)
        push = force[1:] - force[:-1] - 0.1 * v
        return torch.cat((v, push[:12] + u, push[12:]))

    x0 = torch.randn(36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost = ocp.FunctionCost(lambda x, u, t: x @ x + 0.1 * u @ u, lambda x: 10 * x @ x)
    problem = ocp.Problem(ocp.rk4(ode, 0.05), cost, x0, 100, 12)
    for method in ("ilqr", "ddp"):
        solver = ocp.make_solver(method)
        state = solver.init(problem)
        made = int(solver.steps(problem, state, 4).iterations)
        many = functools.partial(solver.steps, problem, state, 4)
        seconds = median(many, repeats, time.process_time)
        yield f"n = 36, m = 12, {method}, an iteration", 1e3 * seconds / made, "ms"


def batch(repeats: int) -> Figures:
    for dtype in (torch.float64, torch.float32):
        problem = cartpole(x0=random_states(1024, dtype))
        solver = ocp.make_solver("ilqr")
        state = solver.steps(problem, solver.init(problem), 1)
        made = int((solver.steps(problem, state, 10).iterations - state.iterations).sum())
        work = functools.partial(solver.steps, problem, state, 10)
        seconds = median(work, min(repeats, 5), time.process_time)
        yield f"1024 problems, {dtype}", made / seconds, "a second"


def untraceable(repeats: int) -> Figures:
    problem = cartpole(horizon=20)
    dynamics = problem.dynamics

    def branches(x: Any, u: Any, t: Any, *p: Any) -> Any:
        after = dynamics(x, u, t, *p)
        return torch.cat([after[i : i + 1].sort().values for i in range(4)])  # not translated

    hidden = problem.replace(dynamics=branches)
    solve = functools.partial(ocp.solve, hidden, "ilqr", max_iterations=3)
    solve(engine="eager")
    first = median_of([lambda: compiled.report(hidden)], 1)[0]
    found = [solve(engine=engine) for engine in ("eager", "auto")]
    assert [s.engine for s in found] == ["eager", "eager"]
    both = [functools.partial(solve, engine=engine) for engine in ("eager", "auto")]
    eager, auto = median_of(both, repeats)
    yield "auto / eager", auto / eager, ""
    yield "finding out, once", first, "s"
    same = all(
        torch.equal(getattr(found[0], k), getattr(found[1], k)) for k in ("states", "controls")
    )
    yield "same bits", float(same), ""


def threads(repeats: int) -> Figures:
    problem = cartpole(x0=random_states(1024))
    seconds, results = [], []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        solver = ocp.make_solver("ilqr")
        state = solver.steps(problem, solver.init(problem), 1)
        work = functools.partial(solver.steps, problem, state, 10)
        results.append(work())
        seconds.append(median(work, min(repeats, 5), time.perf_counter))
    torch.set_num_threads(before)
    yield "2 threads / 1 thread, by the clock", seconds[1] / seconds[0], ""
    same = all(torch.equal(getattr(results[0], k), getattr(results[1], k)) for k in ("xs", "us"))
    yield "same bits", float(same), ""


KINDS = iteration, resolve, process, chain, batch, untraceable, threads
PARTS = {f.__name__: f for f in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a file for the figures, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.only.split(","):
        for what, value, unit in PARTS[name](options.repeats):
            rows.append({"part": name, "what": what, "value": value, "unit": unit})
            print(f"{name:12s} {what:40s} {value:12.4g} {unit}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
