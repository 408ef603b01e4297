"""A problem as CasADi expressions, from the graph that the native engine traces.

What the functions read at a solve (parameters, closed-over tensors) is written into the
expressions as numbers, as somebody would who writes the model for CasADi; what changes with the
stage is an argument. Stages of their own (``stagewise``) have functions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ocp.engines.native.emit import CREATED, LIMIT
from ocp.engines.native.graph import Graph, Leaf
from ocp.engines.native.recorder import Recorder
from ocp.engines.native.sources import Block
from ocp.engines.native.stagewise import trial_points
from ocp.engines.native.trace import Sample, described, trace_problem
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem

if TYPE_CHECKING:
    import casadi as ca

WHOLE = 2.0**200  # times this, every number down to 1e-45 is an integer
EXACT = 1e-9  # between the expressions and PyTorch, relative


class Unfit(ValueError):  # noqa: N818
    """A problem that a peer cannot be given; says why."""


@dataclass(frozen=True, eq=False)
class Model:
    """The functions of one problem for CasADi, its numbers written in.

    Attributes:
        steps: of each stage, ``(x, u, w) -> (f, l)``; one and the same object for stages alike.
        end: ``x -> phi``.
        numbers: w of each stage, (T, k): what changes with t.
    """

    problem: Problem
    steps: tuple[ca.Function, ...]
    end: ca.Function
    numbers: np.ndarray

    @property
    def operations(self) -> int:
        """Of one stage, the largest."""
        return max(int(step.n_instructions()) for step in self.steps)


def model(problem: Problem) -> Model:
    """Trace and translate a single problem, and compare the result with PyTorch at a few points.

    Raises:
        Unfit: not float64; an operation that cannot be traced or has no translation, by name.
    """
    if problem.x0.dtype != torch.float64:
        raise Unfit(f"{problem.x0.dtype}: peers compute in float64")
    try:
        made = by_stage(problem) if problem.stagewise else alike(problem)
    except Untraceable as error:
        raise Unfit(f"cannot be traced: {error}") from error
    compare(made)
    return made


def alike(problem: Problem) -> Model:
    """One function for all stages."""
    import casadi as ca

    recorder = scalar_recorder(problem)
    ids = {k: v.tolist() for k, v in trace_problem(problem, recorder).items()}
    g, read = recorder.graph, reader(recorder, problem)
    changing = [
        g.data[i]
        for i in g.reachable(ids["f"] + ids["l"])
        if g.ops[i] == "leaf" and by_t(g.data[i])
    ]
    sizes = problem.state_dims[0], problem.control_dims[0], len(changing)
    x, u, w = (ca.SX.sym(name, size) for name, size in zip("xuw", sizes, strict=True))
    number_of = {leaf: j for j, leaf in enumerate(changing)}

    def leaf(name: Leaf) -> Any:
        if name in number_of:
            return w[number_of[name]]
        return {"x": x, "u": u}[name[0]][name[1]] if name[0] in "xu" else read(name, 0)

    values = translate(g, ids["f"] + ids["l"] + ids["phi"], leaf)
    n = len(ids["f"])
    step = ca.Function("step", [x, u, w], [ca.vertcat(*values[:n]), values[n]])
    end = ca.Function("end", [x], [values[-1]])
    rows = [[read(name, t) for name in changing] for t in range(problem.horizon)]
    return Model(problem, (step,) * problem.horizon, end, np.array(rows).reshape(len(rows), -1))


def by_stage(problem: Problem) -> Model:
    """A function for every stage."""
    import casadi as ca

    recorder = scalar_recorder(problem)
    states, controls = trial_points(problem)
    w = ca.SX.sym("w", 0)
    steps = []

    def traced(at: Any, functions: Sequence[Callable[..., Any]]) -> tuple[Any, Any, list[Any]]:
        recorder.graph = Graph(recorder.graph.dtype, CREATED * LIMIT)
        sample = Sample(recorder, problem, at)
        given = (sample.x, sample.u) if len(functions) > 1 else (sample.x,)
        ids = [i for h in functions for i in sample.trace(recorder, given, h).tolist()]
        x, u = ca.SX.sym("x", sample.n), ca.SX.sym("u", sample.m)
        read = reader(recorder, problem)
        leaf = lambda name: {"x": x, "u": u}[name[0]][name[1]] if name[0] in "xu" else read(name, 0)
        return x, u, translate(recorder.graph, ids, leaf)

    for t, at in enumerate(zip(states, controls, strict=False)):
        f = lambda x, u, p, t=t: problem.f(x, u, t, p)
        l = lambda x, u, p, t=t: problem.l(x, u, t, p)
        try:
            x, u, values = traced(at, (f, l))
        except (Untraceable, Unfit) as error:
            raise Unfit(f"stage {t}: {error}") from error
        steps.append(ca.Function("step", [x, u, w], [ca.vertcat(*values[:-1]), values[-1]]))
    x, _, values = traced((states[-1], states[-1][:0]), (problem.phi,))
    end = ca.Function("end", [x], values)
    return Model(problem, tuple(steps), end, np.empty((problem.horizon, 0)))


def scalar_recorder(problem: Problem) -> Recorder:
    recorder = Recorder(problem.x0.dtype, problem.horizon, CREATED * LIMIT, described, problem)
    recorder.products = False  # matrices too become scalars
    return recorder


# -- run-time numbers ------------------------------------------------------------------------------
def by_t(name: Leaf) -> bool:
    return name[0] == "t" or (name[0] in ("par", "dat") and name[3] != 0)


def reader(recorder: Recorder, problem: Problem) -> Callable[[Leaf, int], float]:
    """Values of the leaves that are not arguments, at a stage."""
    blocks = {"par": recorder.shared, "dat": recorder.data}
    known: dict[tuple[str, int], np.ndarray] = {}

    def flat(block: Block, k: int) -> np.ndarray:
        with torch.no_grad():
            return block.sources[k].flat(problem).reshape(-1).double().cpu().numpy()

    def read(name: Leaf, t: int) -> float:
        if name[0] == "t":
            return float(t)
        kind, k, offset, stride = name
        if (kind, k) not in known:
            known[kind, k] = flat(blocks[kind], k)
        return float(known[kind, k][offset + stride * t])

    return read


# -- operations ------------------------------------------------------------------------------------
def translate(graph: Graph, roots: Sequence[int], leaf: Callable[[Leaf], Any]) -> list[Any]:
    """SX of nodes, given that of the leaves.

    Raises:
        Unfit: an operation without a translation.
    """
    import casadi as ca

    table = operations()
    values: dict[int, Any] = {}
    for i in graph.reachable(roots):
        op, args = graph.ops[i], graph.args[i]
        given = [values[a] for a in args]
        if op == "number":
            values[i] = ca.SX(float(graph.data[i]))
        elif op == "leaf":
            values[i] = ca.SX(leaf(graph.data[i]))
        elif op == "entry":
            values[i] = values[args[0]][graph.data[i]]
        elif op == "solve":
            n = graph.data[i]
            values[i] = solution(given[: n * n], given[n * n :])
        elif op in table:
            values[i] = table[op](*given)
        else:
            raise Unfit(f"{op}: this operation has no translation into CasADi")
    return [values[i] for i in roots]


def operations() -> dict[str, Callable[..., Any]]:
    """Each operation of the graph in CasADi."""
    import casadi as ca

    same = "sign floor sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp expm1"
    same += " log log1p erf atan2"
    table: dict[str, Callable[..., Any]] = {name: getattr(ca, name) for name in same.split()}

    def largest(*values: Any) -> Any:
        result = values[0]
        for value in values[1:]:
            result = ca.fmax(result, value)
        return result

    return (
        table
        | {
            "neg": lambda a: -a,
            "abs": ca.fabs,
            "root": lambda a: ca.if_else(a > 0, ca.sqrt(a), 0),  # slope 0 at 0
            "rsqrt": lambda a: 1 / ca.sqrt(a),
            "sigmoid": lambda a: 1 / (1 + ca.exp(-a)),
            "stop": lambda a: ca.floor(a * WHOLE) / WHOLE,  # the same number, of slope 0 to CasADi
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: a * b,
            "div": lambda a, b: a / b,
            "pow": lambda a, b: a**b,
            "min": ca.fmin,
            "max": ca.fmax,
            "amax": largest,
            "total": lambda *values: sum(values[1:], values[0]),
            "lt": lambda a, b: a < b,
            "le": lambda a, b: a <= b,
            "eq": lambda a, b: a == b,
            "true": lambda: ca.SX(1),
            "false": lambda: ca.SX(0),
            "not": ca.logic_not,
            "and": ca.logic_and,
            "or": ca.logic_or,
            "select": ca.if_else,
        }
    )


def solution(A: Sequence[Any], b: Sequence[Any]) -> Any:
    """x of A x = b: by determinants up to two unknowns, else CasADi's own factorisation."""
    import casadi as ca

    n = len(b)
    if n == 1:
        return ca.vertcat(b[0] / A[0])
    if n == 2:
        determinant = A[0] * A[3] - A[1] * A[2]
        both = b[0] * A[3] - A[1] * b[1], A[0] * b[1] - b[0] * A[2]
        return ca.vertcat(*both) / determinant
    return ca.solve(ca.reshape(ca.vertcat(*A), n, n).T, ca.vertcat(*b))


# -- trust -----------------------------------------------------------------------------------------
@torch.no_grad()
def compare(made: Model) -> None:
    """The expressions against the problem's functions, at the first, a middle and the last stage.

    Raises:
        Unfit: they differ.
    """
    p = made.problem
    data = {**p.parameters, **{k: v[0] for k, v in p.per_problem.items()}}
    states, controls = trial_points(p)
    T = p.horizon
    for t in sorted({0, T // 2, T - 1}):
        x, u = states[t], controls[t]
        at = t if p.stagewise else torch.tensor(t)
        theirs = made.steps[t](x.numpy(), u.numpy(), made.numbers[t])
        check(f"f at stage {t}", theirs[0], p.f(x, u, at, data))
        check(f"l at stage {t}", theirs[1], p.l(x, u, at, data))
    check("phi", made.end(states[-1].numpy()), p.phi(states[-1], data))


def check(what: str, theirs: Any, ours: torch.Tensor) -> None:
    a, b = np.asarray(theirs).reshape(-1), ours.reshape(-1).numpy()
    if not np.allclose(a, b, rtol=EXACT, atol=EXACT * np.abs(b).max(initial=1), equal_nan=True):
        raise Unfit(
            f"{what} as CasADi expressions differs from PyTorch by {np.abs(a - b).max():.1e}: a "
            "bug of the translation, or a function that is not the same at every call"
        )
