"""Programs of problems: traced, compiled and checked once, found again by what they depend on."""

from __future__ import annotations

import ctypes
import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.engines.base import Engine
from ocp.engines.eager import Eager
from ocp.engines.native import abi, build, emit, grid, stagewise
from ocp.engines.native.known import (
    all_derivatives_by_autograd,
    all_derivatives_compiled,
    autograd_at_some_points,
    compiled_at,
)
from ocp.engines.native.trace import described, raising_line
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem, Stages
from ocp.trial_calls import first_sentence

TRIALS = 12  # step sizes of the compiled loop; a solver with others uses the pieces
KEPT = 64  # programs remembered in a process
REAL = {torch.float64: "double", torch.float32: "float"}
EXACT = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative to the largest entry


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program that was checked, and what it was made from.

    Attributes:
        program: text and sources of its numbers.
        library: the loaded library, or the kernels for a GPU.
        info: what it was built for.
        form: how it uses the threads of a GPU; None for a CPU.
        functions: the user's, kept alive: programs are found by their identity.
    """

    program: emit.Program
    library: ctypes.CDLL | grid.Kernels
    info: abi.Info
    functions: tuple[Any, ...]
    form: grid.Form | None = None


@dataclass(frozen=True, eq=False)
class Refusal:
    """That there is no program; remembered like one."""

    reason: str
    functions: tuple[Any, ...]


class Refused(ValueError):  # noqa: N818
    """A problem has no program; says why."""


_known: OrderedDict[tuple[Any, ...], Compiled | Refusal] = OrderedDict()


def compiled_for(problem: Problem) -> Compiled:
    """The program of a problem, made now or earlier in this process.

    Raises:
        Refused: it cannot be traced, compiled or trusted.
    """
    if reason := unsupported(problem):
        raise Refused(reason)
    key = key_of(problem)
    found = _known.get(key)
    if found is None or (isinstance(found, Compiled) and found.program.stale()):
        functions = (problem.dynamics, problem.cost)
        try:
            found = make(problem, functions)
        except (Untraceable, build.BuildError, Refused) as error:
            found = Refusal(str(error), functions)
        _known[key] = found
        while len(_known) > KEPT:
            _known.popitem(last=False)
    _known.move_to_end(key)
    if isinstance(found, Refusal):
        raise Refused(found.reason)
    return found


def report(problem: Problem) -> str:
    """What `engine="auto"` runs for a problem, and why: for people to read."""
    try:
        made = compiled_for(problem)
    except Refused as error:
        return f"eager PyTorch: {error}"
    from ocp.engines.native import methods

    nodes = made.program.nodes
    counts = ", ".join(f"{name} {count}" for name, count in nodes.items())
    shared, own = made.program.par.names(), made.program.dat.names()
    return "\n".join(
        [
            f"native: {sum(nodes.values())} scalar operations ({counts})",
            *made.program.forms(),
            *methods.lines(problem, made.program, made.form),
            f"  SIMD            {how(made)}",
            f"  read at a solve {', '.join(shared) or 'nothing'}",
            f"  a problem's own {', '.join(own) or 'nothing'}",
            f"  compiler        {compiler_of(made)}",
            f"  cache           {build.cache_directory()}",
        ]
    )


def how(made: Compiled) -> str:
    size = f"{made.info.bytes} bytes"
    if made.form is None:
        return f"{made.info.lanes} numbers of {size} at a time"
    assert isinstance(made.library, grid.Kernels)
    loop = grid.LOOP if made.info.trials else "ocp_ensemble_sweep"
    return f"{made.form}, numbers of {size}; {made.library.usage(loop)}"


def compiler_of(made: Compiled) -> str:
    return build.compiler().version if made.form is None else str(made.library)


def forget(problem: Problem) -> None:
    """Let the next `compiled_for` trace the problem anew."""
    _known.pop(key_of(problem), None)


def unsupported(problem: Problem) -> str:
    """Why a problem cannot be compiled, told without tracing; empty if it may be."""
    if problem.x0.device.type not in ("cpu", "cuda"):
        return f"tensors on {problem.x0.device}: compiled programs run on CPUs and NVIDIA GPUs"
    if problem.x0.dtype not in REAL:
        return f"dtype {problem.x0.dtype}"
    if not any(problem.control_dims):
        return "there are no controls"
    return ""


def make(problem: Problem, functions: tuple[Any, ...]) -> Compiled:
    shared, form = problem.shared_controls, form_of(problem)
    problem = rows_of(problem)
    program = stagewise.model(problem) if problem.stagewise else emit.model(problem)
    if form is None:
        text = text_of(problem, program, form, shared)
        library, entry = build.load(text), build.place_of(text)
        made = Compiled(program, library, abi.declare(library), functions)
    else:
        from ocp.engines.native import driver

        text_in = lambda each: text_of(problem, program, each, shared)
        kernels = driver.fitting(text_in, form, problem.x0.device)
        entry = kernels.entry
        made = Compiled(program, kernels, grid.info(kernels, problem.x0), functions, kernels.form)
    known = build.trusted(entry)
    try:
        check(problem, made, known)
    except Refused:
        raise
    except Exception as error:  # a program that cannot even be compared is not used
        raise Refused(
            f"the compiled program cannot be checked: {first_sentence(error)}. This is a bug of "
            "the native engine: please report it"
        ) from error
    if not known:
        build.trust(entry)
    return made


def form_of(problem: Problem) -> grid.Form | None:
    if problem.x0.device.type == "cpu":
        return None
    d = sum(stagewise.sizes(problem))
    return grid.form(d, problem.batch, grid.processors(problem.x0.device))


def text_of(
    problem: Problem,
    program: emit.Program | stagewise.StageProgram,
    form: grid.Form | None,
    shared: bool = False,
) -> str:
    """``shared``: the samples of the problem share their controls."""
    dtype = problem.x0.dtype
    return build.program(
        program.text,
        None if shared else decide(TRIALS, dtype),
        real=REAL[dtype],  # type: ignore[arg-type]
        single=problem.batch == 1 and not shared if form is None else form.single,
        bounds=problem.lower is not None,
        ensemble=shared,
        team=0 if form is None else form.team,
        ranks=1 if form is None else form.ranks,
    )


def rows_of(problem: Problem) -> Problem:
    """Every sample of shared controls as a problem with controls of its own."""
    return problem.replace(shared_controls=False) if problem.shared_controls else problem


@functools.lru_cache(maxsize=4)
def decide(trials: int, dtype: torch.dtype) -> str:
    return emit.decide_text(trials, dtype)


# -- identity --------------------------------------------------------------------------------------
def key_of(problem: Problem) -> tuple[Any, ...]:
    """What a program depends on beside values: functions, sizes, kinds of data."""
    shared, own = problem.parameters, problem.per_problem
    return (
        id(problem.dynamics),
        id(problem.cost),
        *sizes_of(problem),
        problem.horizon,
        problem.x0.dtype,
        problem.x0.device,
        form_of(problem) or problem.batch == 1,
        problem.shared_controls,
        problem.lower is not None,
        shapes(shared, 0) if shared else (),
        shapes(own, 1) if own else (),
    )


def shapes(data: Mapping[str, Tensor], skip: int) -> tuple[Any, ...]:
    return tuple((k, tuple(v.shape[skip:]), v.dtype) for k, v in data.items())


def sizes_of(problem: Problem) -> tuple[Any, ...]:
    if problem.stagewise:
        return problem.state_dims, problem.control_dims
    return problem.state_dims[0], problem.control_dims[0]


# -- trust -----------------------------------------------------------------------------------------
@torch.no_grad()
def check(problem: Problem, made: Compiled, known: bool = False) -> None:
    """Compare f, l, phi and all derivatives with eager ones at random points near x0.

    A program that is ``known`` to be right: see `ocp.engines.native.known`.

    Raises:
        Refused: they differ.
    """
    from ocp.engines.native.engine import native_of
    from ocp.engines.native.stage_checks import check_stages
    from ocp.solvers.subset import subproblem

    small = problem
    if problem.batch > 2:
        small = subproblem(problem, torch.tensor([0, problem.batch - 1]))
    if isinstance(made.program, stagewise.StageProgram):
        return check_stages(small, native_of(small, made), made.program.kinds)
    T, B, n, m = small.horizon, small.batch, made.info.n, made.info.m
    g = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(small.x0)
    x0 = small.x0.reshape(B, n)
    xs = x0 + 0.1 * (1 + x0.abs()) * noise(T + 1, B, n)
    us, vs = 0.5 * noise(T, B, m), noise(T + 1, B, n)
    if small.lower is not None and small.upper is not None:
        lower, upper = torch.as_tensor(small.lower), torch.as_tensor(small.upper)
        us = torch.minimum(torch.maximum(us, lower), upper)
    native = native_of(small, made)
    if known:
        with asking_eager():
            some = autograd_at_some_points(small, xs, us)
        mine = compiled_at(native, xs, us, some)
        for place, theirs in some.items():
            compare(place[0], mine[place], theirs)
        return
    eager = Eager(small)
    with asking_eager():
        all_ = {
            **values_of(eager, xs, us),
            **all_derivatives_by_autograd(eager, xs, us, vs),
        }
    own = {**values_of(native, xs, us), **all_derivatives_compiled(native, xs, us, vs)}
    for name, theirs in all_.items():
        compare(name, own[name], theirs)


@contextmanager
def asking_eager() -> Iterator[None]:
    """For what the eager engine computes: the user's functions under vmap and autograd.

    Raises:
        Refused: they fail there, with whatever error.
    """
    try:
        yield
    except Exception as error:
        line = described(raising_line(error.__traceback__))
        raise Refused(
            "eager PyTorch, which a program is compared with, fails on its functions: "
            f"{first_sentence(error)}" + (f" ({line})" if line else "")
        ) from error


def values_of(engine: Engine, xs: Stages, us: Stages) -> dict[str, Tensor]:
    """Dynamics, as gaps, and costs."""
    gaps = torch.cat([gap.reshape(-1) for gap in engine.gaps(xs, us)])
    return {"f": gaps, "cost": engine.total_cost(xs, us)}


def compare(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Where eager is finite: past an overflow the two may differ in what is left of a number."""
    known = torch.isfinite(theirs)
    if int(known.sum()) < known.numel() / 2:
        raise Refused(f"{name} is not finite at most points near x0, so that it cannot be checked")
    ours, theirs = ours[known], theirs[known]
    if ours.numel() == 0:
        return
    scale = theirs.abs().amax() + torch.finfo(theirs.dtype).tiny
    if not bool(((ours - theirs).abs() <= EXACT[ours.dtype] * scale).all()):
        apart = float((ours - theirs).abs().max())
        raise Refused(
            f"the compiled {name} differs from the eager one by {apart:.1e}. If a function of "
            "yours may answer otherwise when it is called again (a hook, random numbers, something "
            "kept between calls), make it depend on its arguments alone. If not, this is a bug of "
            'the native engine: please report it. engine="eager" runs the functions as they are'
        )
