"""From a problem to the text of its C++ program, and to the numbers the program reads.

The text depends on the functions, sizes and dtype only; the same problem gives the same bytes. It
is straight-line code for scalars or packs of them (``V``), with the functions of ``maths.h``.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ocp.engines.native import second
from ocp.engines.native.derive import Derivatives
from ocp.engines.native.forms import (
    Function,
    Matrix,
    Output,
    all_ids,
    choose,
    operations,
    tape_text,
)
from ocp.engines.native.graph import NETWORK, Graph, TooLarge, Weights
from ocp.engines.native.net_text import Calls, Structs
from ocp.engines.native.recorder import Recorder
from ocp.engines.native.reroll import with_networks
from ocp.engines.native.second_text import APART, second_text
from ocp.engines.native.sources import Block, problem_numbers, shared_numbers
from ocp.engines.native.surroundings import Surroundings
from ocp.engines.native.trace import described, trace_numbers, trace_problem
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem
from ocp.solvers.decide import Limits, Record, Rules, decide_within

LIMIT = 40_000  # scalar operations of all functions together
# Scalar operations of one function's derivatives; beyond, a tape of tangents. Measured (g++ 12, one
# AVX2 core, T = 100; seconds of compiling both parts, microseconds of the evaluation alone):
#                            operations   scalar code      tape
#   cartpole    f_contracted      1 330   3.1 s   52 us    2.8 s  102 us
#   acrobot     f_contracted      3 110   8.2 s  146 us    3.8 s  235 us
#   quadrotor3d f_contracted      8 768   22  s  232 us    6.9 s  232 us
#   quadrotor3d f_jacobian        3 000   6.9 s  106 us    5.2 s  132 us
SCALAR = 2_500
FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "expm1", "log")
) | {"log1p", "erf", "atan2", "pow", "sigmoid", "asinh", "acosh", "atanh"}  # long where inlined
CALLED = 100  # calls of them from which a function of the program does not inline any
SPARING = 3_000  # nodes of a function from which registers decide on the order of statements
MANY = 200  # zeros of an output that are written by a loop
CREATED = 10  # times the limit: nodes that may be made on the way

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "=="}
INFIX |= {"and": "&", "or": "|"}
CALLS = {"abs": "abs_", "min": "min_", "max": "max_", "root": "sqrt"}
CALL = re.compile(r"\b(?!V\b)(?!sqrt\b)(?!sign\b)(?!abs_\b)([a-z_]\w*)\(")
# Functions the headers do not have, from those they have.
COMPOSED = {
    "sigmoid": "V(1.0) / (V(1.0) + exp(-{0}))",
    "asinh": "sign({0}) * log1p(abs_({0}) + {0} * {0} / (V(1.0) + sqrt({0} * {0} + V(1.0))))",
    "acosh": "log1p(({0} - V(1.0)) + sqrt(({0} - V(1.0)) * ({0} + V(1.0))))",
    "atanh": "V(0.5) * (log1p({0}) - log1p(-{0}))",
    "neg": "-{0}",
    "not": "!{0}",
    "select": "select({0}, {1}, {2})",
}


@dataclass(frozen=True, eq=False)
class Program:
    """The text for one problem, and where its run-time numbers come from.

    Attributes:
        text: ``struct Model``.
        nodes: scalar operations in it, by function.
        par: sources of the shared numbers, in order of first use.
        dat: sources of the per-problem numbers.
        graph, functions: the expressions behind the text, and their forms.
        values: of those the ones of f, l and phi; none where they differ by stage.
        surroundings: what the functions see; `stale` asks it.
    """

    text: str
    nodes: dict[str, int]
    par: Block
    dat: Block
    graph: Graph
    functions: dict[str, Function]
    surroundings: Surroundings
    values: dict[str, list[int]] = field(default_factory=dict)

    def stale(self) -> str | None:
        """A Python number that the functions see and that is not what it was: trace anew."""
        return self.surroundings.changed()

    def forms(self) -> list[str]:
        """The form of each function's derivatives, and why: lines for people to read."""
        return [f"  {name:15s} {f.why}" for name, f in self.functions.items() if f.why]

    def shared(self, problem: Problem) -> Tensor:
        """Shared numbers as they are now: (P,). Raises `sources.Changed`."""
        return shared_numbers(self.par, problem)

    def per_problem(self, problem: Problem) -> Tensor:
        """Per-problem numbers as they are now: (B, K). Raises `sources.Changed`."""
        return problem_numbers(self.dat, problem)


# -- the model -----------------------------------------------------------------------------------
def model(problem: Problem, limit: int = LIMIT, scalar: int | None = None) -> Program:
    """Trace, differentiate and write the program of a problem.

    Args:
        limit: scalar operations that are allowed.
        scalar: of them for the derivatives of one function, by default `SCALAR`; a function that
            needs more gets a tape.

    Raises:
        Untraceable: what cannot be translated, with the operation and the user's line; stages or
            samples that are not alike; more than ``limit`` scalar operations.
    """
    if problem.stagewise or not problem.uniform:
        raise Untraceable("problem", "of stagewise problems, `stagewise.model` makes programs", "")
    if problem.shared_controls:
        raise Untraceable("problem", "of shared controls, the samples are compiled: `rows_of`", "")
    n, m = problem.state_dims[0], problem.control_dims[0]
    recorder = Recorder(problem.x0.dtype, problem.horizon, CREATED * limit, described, problem)
    values = {k: v.tolist() for k, v in trace_problem(problem, recorder).items()}
    g = recorder.graph
    made: dict[str, Function] = {}
    nodes: dict[str, int] = {}
    try:
        roots = with_networks(g, values)
        for name, plain, matrix in functions(g, roots, n, m):
            made[name] = choose(g, plain, matrix, SCALAR if scalar is None else scalar)
            nodes[name] = operations(g, all_ids(made[name].outputs))
            if sum(nodes.values()) > limit:
                count = f"{sum(nodes.values())} scalar operations up to {name}"
                raise Untraceable("problem", f"{count}, {limit} are allowed", "")
    except TooLarge as error:
        raise Untraceable("problem", f"{error} on the way, {limit} are allowed", "") from error
    text = model_text(g, made, n, m, recorder.shared.places(), recorder.data.places())
    if problem.batch == 1 and scalar is None:
        found = second.table(g, values["f"], n, m, nodes["f_jacobian"])
        writer = Writer(g, recorder.shared.places(), recorder.data.places())
        text += second_text(writer, found, n + m, SIGNATURES["f"])
    recorder.surroundings.settle()
    return Program(
        text, nodes, recorder.shared, recorder.data, g, made, recorder.surroundings, values
    )


def model_text(
    g: Graph, made: dict[str, Function], n: int, m: int, par: Sequence[int], dat: Sequence[int]
) -> str:
    """``struct Model``."""
    writer = Writer(g, par, dat)
    text = "struct Model {\n" + f"  static constexpr int n = {n}, m = {m};\n"
    for name, function in made.items():
        if function.tape is None:
            text += writer.function(name, SIGNATURES[name], function.outputs)
        else:
            text += writer.function(f"{name}_parts", SIGNATURES[name], function.outputs)
            text += tape_text(name, SIGNATURES[name], function, par)
    second = made["f_contracted"]
    dual = int(second.tape is not None or has_networks(g, second))  # SIMD within one sample
    settings = f"#define OCP_DUAL {dual}\n#define OCP_INNER {int(has_networks(g, made['f']))}\n"
    settings += f"#define OCP_SAME_HESSIAN {int(same_at_all_stages(g, made['l_expansion']))}\n"
    return settings + writer.structs.text(writer) + text + "};\n"


def same_at_all_stages(g: Graph, expansion: Function) -> bool:
    """Whether l_zz, the last output, depends on no state, control or stage: on numbers alone."""
    if expansion.tape is not None:
        return False
    leaves = [g.data[i] for i in g.reachable(expansion.outputs[-1].ids) if g.ops[i] == "leaf"]
    return all(name[0] in ("par", "dat") and not name[-1] for name in leaves)  # the last: of stages


def has_networks(g: Graph, function: Function) -> bool:
    return any(g.ops[i] in NETWORK for i in g.reachable(all_ids(function.outputs)))


SIGNATURES = {
    "f": "const V* x, const V* u, const C& c",
    "l": "const V* x, const V* u, const C& c",
    "phi": "const V* x, const C& c",
    "f_jacobian": "const V* x, const V* u, const C& c",
    "l_expansion": "const V* x, const V* u, const C& c",
    "phi_expansion": "const V* x, const C& c",
    "f_contracted": "const V* x, const V* u, const C& c, const V* v",
}


def functions(
    g: Graph, values: dict[str, list[int]], n: int, m: int
) -> Iterator[tuple[str, list[Output], Matrix | None]]:
    """All functions of the model: values, and derivatives by z = (x, u), row by row."""
    x, u = ([g.leaf(kind, i) for i in range(size)] for kind, size in (("x", n), ("u", m)))
    by_z, by_x = Derivatives(g, x + u), Derivatives(g, x)
    for name, ids in values.items():
        yield name, [Output("y", ids)], None
    for name, of in (("l", by_z), ("phi", by_x)):
        gradient = of.gradient(values[name], [g.one])
        yield f"{name}_expansion", [Output("g", gradient)], Matrix("H", gradient, of, True)
    yield "f_jacobian", [], Matrix("F", values["f"], by_z)
    along = by_z.gradient(values["f"], [g.leaf("v", i) for i in range(n)])
    yield "f_contracted", [], Matrix("H", along, by_z, True)


# -- the decisions -------------------------------------------------------------------------------
def decide_text(trials: int, dtype: torch.dtype) -> str:
    """``struct Decide``: `ocp.solvers.decide.decide_within`, for step sizes 1, 1/2, ....

    Inputs are the fields of `Record` in order, the (A, B) ones with A = ``trials`` entries, then
    those of `Limits`; outputs the fields of `Decision`. Bools and integers are numbers.

    Raises:
        Untraceable: the function cannot be translated.
    """
    graph, ids = decide_graph(trials, dtype)
    count = sum(v.numel() for v in examples(trials, dtype))
    writer = Writer(graph, [], [])
    body = writer.function("run", "const V* in", [Output("out", ids)], context=False)
    sizes = f"  static constexpr int inputs = {count}, outputs = {len(ids)};\n"
    return "struct Decide {\n" + sizes + body + "};\n"


def decide_graph(trials: int, dtype: torch.dtype) -> tuple[Graph, list[int]]:
    """The expressions of `decide_text`; leaf ``("in", i)`` is the i-th input."""

    def outcome(*fields: Tensor) -> Sequence[Tensor]:
        step_sizes = 0.5 ** torch.arange(trials, dtype=dtype)
        record, limits = fields[: len(Record._fields)], fields[len(Record._fields) :]
        return decide_within(Record(*record), step_sizes, Limits(*limits))  # type: ignore[arg-type]

    graph, parts = trace_numbers(outcome, examples(trials, dtype), CREATED * LIMIT)
    return graph, [graph.as_number(i) for part in parts for i in part.tolist()]


def examples(trials: int, dtype: torch.dtype) -> list[Tensor]:
    """Inputs of `decide_within`, as tensors."""
    limits = torch.tensor(Rules().limits(dtype), dtype=dtype)
    return [*example_record(trials, dtype), *limits[:, None]]


def example_record(trials: int, dtype: torch.dtype) -> Record:
    """One problem in the middle of a solve, for shapes and kinds."""
    one = lambda value: torch.full((1,), value, dtype=dtype)
    flag, count = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    falls = one(1.3) - 0.1 * torch.rand(trials, 1, generator=torch.Generator().manual_seed(0))
    return Record(
        cost=one(1.25), gap=one(0.0625), slope=one(-0.5), curvature=one(0.375), residual=one(0.25),
        usable=flag, finite=flag.clone(), trial_cost=falls.to(dtype),
        trial_finite=torch.ones(trials, 1, dtype=torch.bool), start_cost=one(2.5),
        damping=one(1e-3), penalty=one(0.125), second_order=~flag, weak=count,
        status=count.clone(), iterations=count + 1,
    )  # fmt: skip


# -- text ----------------------------------------------------------------------------------------
def missing(g: Graph, root: int, known: Container[int]) -> list[int]:
    """What a node is made of beside what is known, and it: arguments first, depth first."""
    order: dict[int, None] = {}
    stack = [root]
    while stack:
        i = stack[-1]
        wanted = [a for a in g.args[i] if a not in known and a not in order]
        if i in known or i in order or not wanted:
            stack.pop()
            if i not in known:
                order[i] = None
        else:
            stack.append(wanted[0])
    return list(order)


class Writer:
    """Writes functions of the graph; ``par`` and ``dat``: where each source begins."""

    def __init__(self, graph: Graph, par: Sequence[int], dat: Sequence[int]) -> None:
        self.graph = graph
        self.bases = {"par": par, "dat": dat}
        self.structs = Structs()

    def function(
        self, name: str, arguments: str, outputs: Sequence[Output], context: bool = True
    ) -> str:
        """A member function template; arrays of outputs and arguments do not overlap.

        Statements are in the order in which they were thought of, which has independent ones side
        by side. Of a long function there are more than registers hold: there each output is stored
        as soon as what it is made of is there.
        """
        g = self.graph
        targets = ", ".join(f"V* {o.name}" for o in outputs)
        head = "template <class V, class C>" if context else "template <class V>"
        order = g.reachable(all_ids(outputs))
        kind = "OCP_APART" if len(order) > APART else "OCP_FN"
        lines = [f"  {head} {kind} void {name}({arguments}, {targets}) {{"]
        unused = [a.split()[-1].lstrip("*&") for a in arguments.split(", ")]
        lines.append("    " + " ".join(f"(void){a};" for a in unused))
        prefix = "apart::" if sum(g.ops[i] in FUNCTIONS for i in order) > CALLED else ""
        names: dict[int, str] = {}
        nets = Calls(g, order, self.structs, self.bases["par"])
        for a in order if len(order) <= SPARING else []:
            lines += self._statement(a, names, prefix, nets)
        for o in outputs:
            many = sum(i == g.zero for i in o.ids) >= MANY  # assignments that take time to compile
            if many:
                lines.append(f"    for (int k = 0; k < {len(o.ids)}; ++k) {o.name}[k] = V(0.0);")
            for k, i in enumerate(o.ids):
                if many and i == g.zero:
                    continue
                for a in missing(g, i, names):
                    lines += self._statement(a, names, prefix, nets)
                lines.append(f"    {o.name}[{k}] = {names[i]};")
        return "\n".join([*lines, "  }", ""])

    def _statement(self, i: int, names: dict[int, str], prefix: str, nets: Calls) -> list[str]:
        """Names a node; what defines it, if anything is needed."""
        op, data = self.graph.ops[i], self.graph.data[i]
        args = [names[a] for a in self.graph.args[i]]
        if op == "number":
            names[i] = number(data)
        elif op == "stop":
            names[i] = args[0]
        elif op == "entry":
            names[i] = f"{args[0]}[{data}]"
        elif op in NETWORK:
            names[i], made = nets.lines(i, args)
            return [f"    {line}" for line in made]
        else:
            names[i] = f"a{len(names)}"
            if op == "matvec":
                return self._product(names[i], data, args)
            kind = "auto" if self.graph.is_mask(i) else "V"  # GCC keeps a const one in memory
            text = self._expression(i, args)
            if op in FUNCTIONS:
                text = CALL.sub(prefix + r"\1(", text)
            return [f"    {kind} {names[i]} = {text};"]
        return []

    def _product(self, name: str, w: Weights, x: list[str]) -> list[str]:
        sizes = f"{w.rows}, {w.columns}, {w.row_step}, {w.column_step}"
        place = self.bases["par"][w.source] + w.offset
        return [
            f"    const V {name}_in[] = {{{', '.join(x)}}};",
            f"    V {name}[{w.rows}];",
            f"    matvec<{sizes}>(c.shared + {place}, {name}_in, {name});",
        ]

    def _expression(self, i: int, args: list[str]) -> str:
        op = self.graph.ops[i]
        if op == "leaf":
            return self._leaf(*self.graph.data[i])
        if op in INFIX:
            return f"{args[0]} {INFIX[op]} {args[1]}"
        if op in COMPOSED:
            return COMPOSED[op].format(*args)
        if op == "total":
            return " + ".join(args)
        if op == "amax":
            text = args[0]
            for a in args[1:]:
                text = f"max_({text}, {a})"
            return text
        return f"{CALLS.get(op, op)}({', '.join(args)})"

    def _leaf(self, kind: str, k: int = 0, offset: int = 0, stride: int = 0) -> str:
        if kind == "t":
            return "c.t()"
        if kind not in self.bases:
            return f"{kind}[{k}]"
        place = self.bases[kind][k] + offset
        return f"c.{kind}_at({place}, {stride})" if stride else f"c.{kind}({place})"


def number(value: np.floating) -> str:
    """A constant, with all its digits; without the names that only some compilers have."""
    if np.isnan(value):
        return "V(1e308 * 1e308 * 0.0)"
    if np.isinf(value):
        return "V(1e308 * 1e308)" if value > 0 else "V(-1e308 * 1e308)"
    return f"V({float(value)!r})"
