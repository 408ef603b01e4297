"""The stages of `gpu.py`: what each measures, as figures."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import ocp  # noqa: E402
from ocp.problems.registry import REGISTRY  # noqa: E402

FORMS = ((False, 32, 1), (False, 64, 2), (False, 128, 4), (False, 256, 8), (True, 32, 1))
GOAL = 2e6  # problem-iterations a second, 16 384 cart-poles in float64


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    what: str
    value: float | str
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Sizes:
    """Of the sitting, or of a trial of the script."""

    many: int = 16_384
    batches: tuple[int, ...] = (256, 1024, 2048, 4096, 8192, 16_384, 65_536)
    large: tuple[int, ...] = (1, 64, 1024)
    named: tuple[str, ...] = ("quadrotor3d", "masses")
    steps: int = 20
    repeats: int = 3
    rounds: int = 5


SMALL = Sizes(6, (2, 6), (1, 2), ("pendulum",), 2, 1, 1)


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


# -- stages ----------------------------------------------------------------------------------------
def facts(device: str, sizes: Sizes) -> Iterator[Figure]:
    yield Figure("PyTorch", torch.__version__, note=f"Python {sys.version.split()[0]}")
    if device == "cpu":
        return
    from ocp.engines.native import nvrtc

    found = torch.cuda.get_device_properties(0)
    memory = f"{found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}"
    yield Figure("GPU", found.name, note=f"{found.multi_processor_count} multiprocessors, {memory}")
    yield Figure("NVRTC", "{}.{}".format(*nvrtc.version()), note=str(nvrtc.library()._name))


def rate(problem: ocp.Problem, device: str, sizes: Sizes, **more: Any) -> dict[str, Any]:
    """As throughput.measure."""
    from throughput import measure

    options = {"method": "ilqr", "steps": sizes.steps, "repeats": sizes.repeats, **more}
    return measure(problem, device, argparse.Namespace(**options))


def rows_of(what: str, found: dict[str, Any], note: str = "") -> Figure:
    said = f"{found['seconds'] * 1e3:.1f} ms, {found['rollouts']:.2f} roll-outs an iteration"
    return Figure(
        what, found["rate"], "problem-iterations/s", "; ".join(filter(None, (said, note)))
    )


def cartpoles(count: int, device: str, dtype: torch.dtype = torch.float64) -> ocp.Problem:
    from throughput import batch_of

    return batch_of(count, device, dtype)


def programs(device: str, sizes: Sizes) -> Iterator[Figure]:
    """Into the cache, as many at a time as there are processors."""
    from ocp.engines.native.compiled import form_of
    from ocp.engines.native.grid import Form

    problems = [
        cartpoles(count, device, dtype)
        for dtype in (torch.float64, torch.float32)
        for count in sizes.batches
    ]
    problems += [many_of(name, count, device) for name in sizes.named for count in sizes.large]
    wanted = [(text_in(p, form_of(p)), form_of(p)) for p in problems]
    if device != "cpu":
        many = cartpoles(sizes.many, device)
        wanted += [(text_in(many, Form(*form)), Form(*form)) for form in FORMS]
    texts = dict(wanted)
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda text: load(text, texts[text], torch.device(device)), texts))
    yield Figure("compiling", time.perf_counter() - begin, "s", f"{len(texts)} programs at a time")
    for count in sizes.batches:
        report = cartpoles(count, device).compile_report().splitlines()
        taken = next((line for line in report if "SIMD" in line), report[0])
        yield Figure(f"program of {count} cart-poles", " ".join(taken.split()[1:]))


def text_in(problem: ocp.Problem, form: Any) -> str:
    from ocp.engines.native import emit
    from ocp.engines.native.compiled import text_of

    return text_of(problem, emit.model(problem), form)


def load(text: str, form: Any, device: torch.device) -> Any:
    from ocp.engines.native import build, driver

    return build.load(text) if form is None else driver.load(text, form, device)


def loaded(problem: ocp.Problem, form: tuple[bool, int, int]) -> Any:
    """The kernels of a problem in a form of our choice."""
    from ocp.engines.native.grid import Form

    return load(text_in(problem, Form(*form)), Form(*form), problem.x0.device)


def tests(device: str, sizes: Sizes) -> Iterator[Figure]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda"]
    done = subprocess.run(
        [*command, "tests/test_native_cuda.py", "tests/nn"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-20_000:], done.stderr[-2_000:])
    counted = re.findall(r"(\d+) (passed|failed|skipped|deselected|errors?)", done.stdout)
    told = ", ".join(f"{n} {what}" for n, what in counted if what != "deselected")
    yield Figure("tests on the GPU", told or f"pytest ended with {done.returncode}")
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            yield Figure("test failed", line[:150])


def sanitize(device: str, sizes: Sizes) -> Iterator[Figure]:
    tool = shutil.which("compute-sanitizer")
    if device == "cpu" or tool is None:
        yield Figure("compute-sanitizer", "not run", note="not here" if tool is None else "no GPU")
        return
    script = (
        f"import sys; sys.path[:0] = {sys.path[:2]!r}\n"
        "from gpu import FORMS, cartpoles, follow_form\n"
        "for form in FORMS[0], FORMS[2], FORMS[4]:\n"
        "    follow_form(cartpoles(70, 'cuda').replace(horizon=12), form, 3)\n"
    )
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = [v for v in done.stdout.splitlines() if "SUMMARY" in v]
        yield Figure(f"compute-sanitizer {kind}", last[-1].strip("= ") if last else "no summary")
        if done.returncode or not last:
            print(done.stdout[-3_000:], done.stderr[-1_500:])


def follow_form(problem: ocp.Problem, form: tuple[bool, int, int], steps: int) -> tuple[Any, float]:
    """The state after so many iterations in a form, and seconds."""
    from throughput import advance, clock

    from ocp.engines.native.compiled import compiled_for
    from ocp.engines.native.cuda import Cuda

    made = compiled_for(problem)
    kernels = loaded(problem, form)
    engine = Cuda(
        problem, type(made)(made.program, kernels, made.info, made.functions, kernels.form)
    )
    solver = ocp.make_solver("ilqr", engine="native", max_iterations=10**6)
    start = solver.init(problem)._replace(engine=engine)
    advance(solver, problem, start, 1)
    begin = clock("cuda")
    state = advance(solver, problem, start, steps)
    return state, clock("cuda") - begin


def forms(device: str, sizes: Sizes) -> Iterator[Figure]:
    if device == "cpu":
        yield Figure("forms", "not run", note="they are of GPUs")
        return
    from ocp.engines.native.grid import LOOP, Form

    problem = cartpoles(sizes.many, device)
    for form in FORMS:
        runs = [follow_form(problem, form, sizes.steps) for _ in range(sizes.repeats)]
        state, _ = runs[0]
        seconds = sorted(s for _, s in runs)[len(runs) // 2]
        usage = loaded(problem, form).usage(LOOP)
        yield Figure(
            f"{sizes.many} cart-poles, {Form(*form)}",
            int(state.iterations.sum()) / seconds, "problem-iterations/s", str(usage),
        )  # fmt: skip


def batches(device: str, sizes: Sizes) -> Iterator[Figure]:
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for count in sizes.batches:
            goal = "goal 2 000 000" if count == 16_384 and dtype == torch.float64 else ""
            found = rate(cartpoles(count, device, dtype), device, sizes)
            yield rows_of(f"{count} cart-poles, iLQR, {name}", found, goal)


def methods(device: str, sizes: Sizes) -> Iterator[Figure]:
    problem = cartpoles(sizes.many, device)
    yield rows_of(f"{sizes.many} cart-poles, DDP", rate(problem, device, sizes, method="ddp"))
    limit = torch.full((1,), 10.0, dtype=torch.float64, device=device)
    bounded = problem.replace(control_bounds=(-limit, limit))
    yield rows_of(f"{sizes.many} cart-poles, |u| <= 10 N", rate(bounded, device, sizes))
    staged = problem.replace(stagewise=True, horizon=20)
    yield rows_of(f"{sizes.many} cart-poles, stagewise, T = 20", rate(staged, device, sizes))


def eager(device: str, sizes: Sizes) -> Iterator[Figure]:
    problem = cartpoles(sizes.many, device)
    few = Sizes(steps=2, repeats=1)
    slow, fast = (rate(problem, device, few, engine=name) for name in ("eager", "native"))
    yield rows_of(f"{sizes.many} cart-poles, eager", slow)
    yield Figure("compiled to eager, the same two steps", fast["rate"] / slow["rate"], "times")


def many_of(name: str, count: int, device: str) -> ocp.Problem:
    """A classic problem from states about its own."""
    one = REGISTRY[name].factory()
    noise = torch.randn(count, one.x0.shape[-1], generator=torch.Generator().manual_seed(0))
    x0 = (one.x0.reshape(1, -1) + 0.02 * noise.to(one.x0)).to(device)
    move = lambda data: {k: torch.as_tensor(v).to(device) for k, v in data.items()}
    limits = None
    if one.lower is not None and one.upper is not None:
        limits = tuple(torch.as_tensor(b)[0, 0].to(device) for b in (one.lower, one.upper))
    goal = None if one.goal is None else one.goal.to(device)
    data = {"parameters": move(one.parameters), "control_bounds": limits, "goal": goal}
    return one.replace(x0=x0, **data)


def large(device: str, sizes: Sizes) -> Iterator[Figure]:
    for name in sizes.named:
        for count in sizes.large:
            problem = many_of(name, count, device)
            d = problem.state_dims[0] + problem.control_dims[0]
            found = rate(problem, device, sizes)
            yield rows_of(f"{count} x {name} (n + m = {d}), iLQR", found)


def networks(device: str, sizes: Sizes) -> Iterator[Figure]:
    rounds = str(sizes.rounds)
    for width, names in (("32", "sgd,ddp,ddp-sgd,ekfac,ddp-ekfac"), ("1024", "sgd,ddp")):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "steps.json"
            command = [sys.executable, str(ROOT / "benchmarks" / "nn_steps.py")]
            more = ["--device", device, "--rounds", rounds, "--steps", "5", "--width", width]
            more += ["--optimizers", names, "--out", str(out)]
            subprocess.run([*command, *more], check=True, env=environment())
            rows = json.loads(out.read_text())
        for row in rows["rows"] if isinstance(rows, dict) else rows:
            ratio, base = row["to sgd"], row.get("to its base")
            note = f"{row['milliseconds']:.2f} ms" + (f", to its base {base:.2f}" if base else "")
            yield Figure(f"step of {row['optimizer']}, width {width}", ratio, "of SGD's", note)


def distributed(device: str, sizes: Sizes) -> Iterator[Figure]:
    import torch.distributed as dist

    from ocp_nn.baselines import make_optimizer
    from ocp_nn.experiments import mlp

    backend = "gloo" if device == "cpu" else "nccl"
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
        try:
            problem = cartpoles(min(sizes.many, 64), device)
            whole = ocp.solve(problem, "ilqr", max_iterations=5)
            shared = ocp.solve_sharded(problem, "ilqr", max_iterations=5)
            same = bool(torch.equal(shared.cost, whole.cost))
            yield Figure(f"{backend}, one process: solve_sharded", "same" if same else "DIFFERS")
            torch.manual_seed(0)
            model = mlp((6,), 3, (8,)).to(device)
            x, y = torch.randn(8, 6, device=device), torch.arange(8, device=device) % 3
            made = make_optimizer("ddp", model)
            losses = [float(torch.as_tensor(made.step(x, y))) for _ in range(3)]
            fine = losses[-1] < losses[0]
            yield Figure(f"{backend}, one process: training", "loss falls" if fine else str(losses))
        finally:
            dist.destroy_process_group()


Stage = Callable[[str, Sizes], Iterator[Figure]]
STAGES: dict[str, tuple[Stage, int]] = {  # what is wanted most first; seconds at most
    "facts": (facts, 30),
    "compile": (programs, 150),
    "batches": (batches, 90),
    "tests": (tests, 150),
    "forms": (forms, 60),
    "eager": (eager, 60),
    "large": (large, 60),
    "networks": (networks, 60),
    "methods": (methods, 90),
    "distributed": (distributed, 45),
    "sanitize": (sanitize, 90),
}
