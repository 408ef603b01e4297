"""IPOPT and FATROP through CasADi: multiple shooting with exact derivatives.

Where there is a C compiler and stages are alike and not too large, CasADi writes the derivatives as
C and they are compiled; else its virtual machine evaluates them, which takes two to four times as
long.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ocp.peers.answers import Answer, Guess, Solve, first_line
from ocp.peers.expressions import Model, Unfit

QUIET: dict[str, dict[str, Any]] = {
    "ipopt": {"print_level": 0, "sb": "yes"},
    "fatrop": {"print_level": 0},
}
COMPILERS = ("cc", "gcc", "clang")
LARGEST = 5_000  # operations of a stage that are compiled; a thousand take about 5 s
FLAGS = ("-O2",)  # measured: -O3 -march=native -ffast-math gains 5 % and compiles for longer


def names(model: Model) -> tuple[str, ...]:
    """Solvers that this CasADi was built with."""
    import casadi as ca

    return tuple(name for name in QUIET if ca.has_nlpsol(name))


def compiler() -> str | None:
    """For C; None where there is none."""
    return next((name for name in COMPILERS if shutil.which(name)), None)


def how(model: Model) -> str:
    """Who evaluates the derivatives, in words."""
    cc = compiler()
    if cc is None or not compiles(model):
        return "derivatives by CasADi's virtual machine"
    return f"derivatives as C by CasADi, {cc} {' '.join(FLAGS)}"


def prepare(model: Model, name: str, guess: Guess, most: int) -> Solve:
    """The solver, made once; each call of the result solves from the guess.

    Raises:
        Unfit: CasADi refuses the problem.
    """
    return prepare_with(model, name, guess, most, compiler())


def prepare_with(model: Model, name: str, guess: Guess, most: int, cc: str | None) -> Solve:
    """With a compiler of its own, or none."""
    import casadi as ca

    compiled = cc is not None and compiles(model)
    nlp = repeated(model, guess) if compiled else unrolled(model, guess)
    options: dict[str, Any] = {"print_time": False, name: QUIET[name] | {"max_iter": most}}
    if name == "fatrop":
        # It finds the stages by itself if a stage's own equations follow its dynamics.
        equality = [True] * int(nlp["g"].numel())
        options |= {"structure_detection": "auto", "equality": equality}
    try:
        if compiled:
            assert cc is not None
            made = through_c(ca.nlpsol("peer", name, nlp, options), name, options, cc)
        else:
            made = ca.nlpsol("peer", name, nlp, options | {"expand": True})
    except RuntimeError as error:
        raise Unfit(f"{name}: {first_line(error)}") from error
    T, dims = model.problem.horizon, (model.problem.state_dims, model.problem.control_dims)
    free = [np.full(n, np.inf) for n in dims[0]]
    bounds = {"lbx": woven([-v for v in free], guess.lower), "ubx": woven(free, guess.upper)}
    first = woven(guess.xs, guess.us)
    ends = np.cumsum(list(weave(*dims)))[: 2 * T]

    def solve() -> Callable[[], Answer]:
        found = made(x0=first, lbg=0, ubg=0, **bounds)
        return lambda: read(found, made.stats(), ends)

    return solve


def read(found: dict[str, Any], stats: dict[str, Any], ends: np.ndarray) -> Answer:
    parts = np.split(np.asarray(found["x"]).reshape(-1), ends)
    fine, status = bool(stats["success"]), stats.get("return_status")
    told = status if isinstance(status, str) else f"{'solved' if fine else 'failed'} ({status})"
    count, cost = int(stats["iter_count"]), float(found["f"])
    return Answer(fine, told, count, cost, parts[::2], parts[1::2])


def through_c(made: Any, name: str, options: dict[str, Any], cc: str) -> Any:
    """The same solver with its functions compiled. (CasADi's option ``jit`` would do it too, but
    leaves files in the current directory.)

    Raises:
        Unfit: the compiler fails.
    """
    import casadi as ca

    with tempfile.TemporaryDirectory(prefix="ocp-peer-") as folder:
        code = ca.CodeGenerator("nlp")
        code.add(made.oracle())
        for function in made.get_function():
            code.add(made.get_function(function))
        code.generate(f"{folder}/")
        text, library = f"{folder}/nlp.c", f"{folder}/nlp.so"
        command = [cc, *FLAGS, "-fPIC", "-shared", text, "-o", library, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unfit(f"{cc} does not compile CasADi's text: {done.stderr.strip()[:200]}")
        return ca.nlpsol("peer", name, library, options)


# -- the program -----------------------------------------------------------------------------------
def weave(xs: Any, us: Any) -> Iterator[Any]:
    """x0, u0, x1, u1, ..., xT: the order of the unknowns."""
    for x, u in zip(xs, us, strict=False):
        yield x
        yield u
    yield xs[-1]


def woven(xs: Any, us: Any) -> np.ndarray:
    return np.concatenate(list(weave(xs, us)))


def compiles(model: Model) -> bool:
    """Whether all stages have one function, and one that a compiler is done with soon."""
    return all(s is model.steps[0] for s in model.steps) and model.operations <= LARGEST


def repeated(model: Model, guess: Guess) -> dict[str, Any]:
    """The non-linear program with one function mapped over the stages: little text to compile."""
    import casadi as ca

    problem = model.problem
    T, n, m = problem.horizon, problem.state_dims[0], problem.control_dims[0]
    z = ca.MX.sym("z", T * (n + m) + n)
    stages, last = ca.reshape(z[: T * (n + m)], n + m, T), z[T * (n + m) :]
    xs, us = stages[:n, :], stages[n:, :]
    after, costs = model.steps[0].map(T)(xs, us, ca.DM(model.numbers.T))
    gaps = ca.horzcat(xs[:, 1:], last) - after
    equations = ca.vertcat(gaps[:, 0], xs[:, 0] - guess.xs[0], ca.vec(gaps[:, 1:]))
    return {"x": z, "f": ca.sum2(costs) + model.end(last), "g": equations}


def unrolled(model: Model, guess: Guess) -> dict[str, Any]:
    """The same with a function for each stage."""
    import casadi as ca

    problem = model.problem
    xs = [ca.MX.sym(f"x{t}", n) for t, n in enumerate(problem.state_dims)]
    us = [ca.MX.sym(f"u{t}", m) for t, m in enumerate(problem.control_dims)]
    equations, cost = [], model.end(xs[-1])
    for t, step in enumerate(model.steps):
        after, stage_cost = step(xs[t], us[t], model.numbers[t])
        cost = cost + stage_cost
        equations += [xs[t + 1] - after] + ([xs[0] - guess.xs[0]] if t == 0 else [])
    return {"x": ca.vertcat(*weave(xs, us)), "f": cost, "g": ca.vertcat(*equations)}
