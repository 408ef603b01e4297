"""Programs of problems: traced, compiled and checked once, found again by what they depend on."""

from __future__ import annotations

import ctypes
import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocp.engines.eager import Eager
from ocp.engines.native import abi, build, emit
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem

TRIALS = 12  # step sizes of the compiled loop; a solver with others uses the pieces
KEPT = 64  # programs remembered in a process
REAL = {torch.float64: "double", torch.float32: "float"}
EXACT = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative to the largest entry


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program that was checked, and what it was made from.

    Attributes:
        program: text and sources of its numbers.
        library, info: the loaded library.
        functions: the user's, kept alive: programs are found by their identity.
        captured: what these functions refer to, by identity; another object means another program.
    """

    program: emit.Program
    library: ctypes.CDLL
    info: abi.Info
    functions: tuple[Any, ...]
    captured: tuple[Any, ...]


class Refused(ValueError):  # noqa: N818
    """A problem has no program; says why."""


_known: OrderedDict[tuple[Any, ...], Compiled | str] = OrderedDict()


def compiled_for(problem: Problem) -> Compiled:
    """The program of a problem, made now or earlier in this process.

    Raises:
        Refused: it cannot be traced, compiled or trusted.
    """
    if reason := unsupported(problem):
        raise Refused(reason)
    key, captured = key_of(problem), captured_by(problem)
    found = _known.get(key)
    if isinstance(found, Compiled) and not same(found.captured, captured):
        found = None
    if found is None:
        try:
            found = make(problem, captured)
        except (Untraceable, build.BuildError, Refused) as error:
            found = str(error)
        _known[key] = found
        while len(_known) > KEPT:
            _known.popitem(last=False)
    _known.move_to_end(key)
    if isinstance(found, str):
        raise Refused(found)
    return found


def unsupported(problem: Problem) -> str:
    """Why a problem cannot be compiled, told without tracing; empty if it may be."""
    if problem.x0.device.type != "cpu":
        return f"tensors on {problem.x0.device}: compiled programs run on the CPU"
    if problem.x0.dtype not in REAL:
        return f"dtype {problem.x0.dtype}"
    if problem.stagewise or not problem.uniform:
        return "functions or sizes that change by stage are not compiled yet"
    if problem.shared_controls:
        return "controls shared by a batch are not compiled yet"
    if problem.control_dims[0] == 0:
        return "there are no controls"
    return ""


def make(problem: Problem, captured: tuple[Any, ...]) -> Compiled:
    program = emit.model(problem)
    dtype = problem.x0.dtype
    text = build.program(
        program.text,
        decide(TRIALS, dtype),
        real=REAL[dtype],  # type: ignore[arg-type]
        single=problem.batch == 1,
        bounds=problem.lower is not None,
    )
    library = build.load(text)
    functions = (problem.dynamics, problem.cost)
    made = Compiled(program, library, abi.declare(library), functions, captured)
    check(problem, made)
    return made


@functools.lru_cache(maxsize=4)
def decide(trials: int, dtype: torch.dtype) -> str:
    return emit.decide_text(trials, dtype)


# -- identity --------------------------------------------------------------------------------------
def key_of(problem: Problem) -> tuple[Any, ...]:
    """What a program depends on beside values: functions, sizes, kinds of data."""

    def shapes(data: Any, skip: int) -> tuple[Any, ...]:
        return tuple((k, tuple(v.shape[skip:]), v.dtype) for k, v in data.items())

    return (
        id(problem.dynamics),
        id(problem.cost),
        problem.state_dims[0],
        problem.control_dims[0],
        problem.horizon,
        problem.x0.dtype,
        problem.batch == 1,
        problem.lower is not None,
        shapes(problem.parameters, 0),
        shapes(problem.per_problem, 1),
    )


def captured_by(problem: Problem) -> tuple[Any, ...]:
    """Objects the functions refer to: closures, globals, defaults, attributes.

    A program has Python numbers as constants and reads tensors at run time; either is seen to
    change when the function refers to another object.
    """
    found: list[Any] = []
    collect(problem.dynamics, found, set())
    collect(problem.cost, found, set())
    return tuple(found)


def collect(thing: Any, found: list[Any], seen: set[int], depth: int = 4) -> None:
    if id(thing) in seen or depth == 0:
        return
    seen.add(id(thing))
    if isinstance(thing, (Tensor, str, int, float, complex, bool, type(None))):
        found.append(thing)
        return
    parts: list[Any] = []
    if isinstance(thing, functools.partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif hasattr(thing, "__func__"):  # a bound method
        parts = [thing.__func__, thing.__self__]
    elif hasattr(thing, "__code__"):
        cells = [c.cell_contents for c in thing.__closure__ or () if filled(c)]
        names = thing.__code__.co_names
        globals_ = [thing.__globals__[n] for n in names if n in thing.__globals__]
        parts = [*cells, *(thing.__defaults__ or ()), *globals_]
    elif isinstance(thing, (list, tuple)):
        parts = list(thing)
    elif isinstance(thing, dict):
        parts = list(thing.values())
    elif hasattr(thing, "__dict__") and not isinstance(thing, type) and not is_module(thing):
        parts = list(vars(thing).values())
    for part in parts:
        collect(part, found, seen, depth if isinstance(thing, (list, tuple, dict)) else depth - 1)
    found.append(type(thing))


def filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that has no value yet
        return False


def is_module(thing: Any) -> bool:
    return type(thing).__name__ == "module"


def same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Tensors by identity, what else there is by value."""
    if len(before) != len(now):
        return False
    return all(
        a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(before, now, strict=True)
    )


# -- trust -----------------------------------------------------------------------------------------
@torch.no_grad()
def check(problem: Problem, made: Compiled) -> None:
    """Compare f, l, phi and all derivatives with eager ones at random points near x0.

    Raises:
        Refused: they differ.
    """
    from ocp.engines.native.engine import Native
    from ocp.solvers.subset import subproblem

    small = problem
    if problem.batch > 2:
        small = subproblem(problem, torch.tensor([0, problem.batch - 1]))
    T, B, n, m = small.horizon, small.batch, made.info.n, made.info.m
    g = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(small.x0)
    x0 = small.x0.reshape(B, n)
    xs = x0 + 0.3 * (1 + x0.abs()) * noise(T + 1, B, n)
    us, vs = 0.5 * noise(T, B, m), noise(T + 1, B, n)
    if small.lower is not None and small.upper is not None:
        lower, upper = torch.as_tensor(small.lower), torch.as_tensor(small.upper)
        us = torch.minimum(torch.maximum(us, lower), upper)
    both = Native(small, made), Eager(small)
    expansions = [engine.expand(xs, us) for engine in both]
    compare("f", *(torch.as_tensor(engine.gaps(xs, us)) for engine in both))
    compare("cost", *(engine.total_cost(xs, us) for engine in both))
    for name in ("fz", "lz", "lzz", "phix", "phixx"):
        compare(name, *(getattr(expansion, name) for expansion in expansions))
    compare("v . f_zz", *(stacked(engine, xs, us, vs) for engine in both))


def compare(name: str, ours: Tensor, theirs: Tensor) -> None:
    scale = torch.nan_to_num(theirs, 0, 0, 0).abs().amax() + torch.finfo(theirs.dtype).tiny
    fine = (ours - theirs).abs() <= EXACT[ours.dtype] * scale
    fine |= ~torch.isfinite(ours) & ~torch.isfinite(theirs)
    if not bool(fine.all()):
        raise Refused(
            f"the compiled {name} differs from the eager one by "
            f"{float((ours - theirs).abs().max()):.1e}; this is a bug of the native engine"
        )


def stacked(engine: Eager, xs: Tensor, us: Tensor, vs: Tensor) -> Tensor:
    curvature = engine.curvature_along(xs, us, vs)
    return torch.stack([curvature(t, vs[t + 1]) for t in range(len(us))])
