"""Programs of problems whose functions or sizes change from stage to stage.

Every stage is traced; stages of one kind share a function (see `kinds`). All stages are given the
largest sizes n and m: states and controls that a stage does not have are 0 and enter nothing,
results it does not have are 0, and the cost's Hessian is 1 at a missing control, whose gain and
residual are therefore 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.emit import CREATED, LIMIT, SIGNATURES, Program, Writer
from ocp.engines.native.forms import Function, Output, all_ids, operations
from ocp.engines.native.graph import Graph, TooLarge, flat
from ocp.engines.native.kinds import Form, Kind, Slot, Table, form_of, rebuilt
from ocp.engines.native.recorder import Recorder
from ocp.engines.native.solves import expand_solves
from ocp.engines.native.sources import Block, Source
from ocp.engines.native.trace import Sample, described, moved
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem
from ocp.validation import trial_controls

KINDS = 50  # that a program may have
WIDEST = 2_000  # numbers (x, u) of a stage: beyond, tracing would only find out that it is too much
FAR = 1e3  # relative to x0: a trial trajectory that goes further has diverged


@dataclass(frozen=True, eq=False)
class StageProgram(Program):
    """The program of a stagewise problem; ``kinds``: the stages of each."""

    kinds: tuple[tuple[int, ...], ...] = ()


def model(problem: Problem, limit: int = LIMIT) -> StageProgram:
    """Trace every stage, differentiate and write one function for each kind.

    Raises:
        Untraceable: what cannot be translated, with the operation, the stage and the user's line;
            more than `KINDS` kinds or ``limit`` scalar operations.
    """
    n, m = sizes(problem)
    if n + m > WIDEST:
        raise too_large(f"a stage with {n} states and {m} controls", limit)
    recorder = Recorder(problem.x0.dtype, problem.horizon, CREATED * limit, described, problem)
    recorder.products = False  # the weights of a layer may be those of another at other stages
    kinds, phi, phi_slots = traced(problem, recorder, limit)
    numbers = Numbers(recorder, problem, kinds, CREATED * limit)
    g, outputs = numbers.graph, dict[str, list[Output]]()
    try:
        for k, kind in enumerate(kinds):
            f, l = rebuilt(g, kind.form, numbers.of_kind(kind))
            for name, pieces in stage_functions(g, f, l, kind.sizes, (n, m)):
                outputs[f"{name}_{k}"] = settled(g, pieces)
            check_size(g, outputs, limit, len(kinds))
        (end,) = rebuilt(g, phi, [numbers.node(slot) for slot in phi_slots])
        for name, pieces in end_functions(g, end, problem.state_dims[-1], n):
            outputs[name] = settled(g, pieces)
        check_size(g, outputs, limit, len(kinds))
    except TooLarge as error:
        raise too_large(str(error), limit) from error
    recorder.surroundings.settle()
    text = numbers.text(outputs, n, m, len(kinds))
    nodes = {name: operations(g, all_ids(pieces)) for name, pieces in outputs.items()}
    made = {name: Function(pieces, None, None, "") for name, pieces in outputs.items()}
    found = numbers.par, numbers.dat, g, made, recorder.surroundings
    return StageProgram(text, nodes, *found, kinds=tuple(tuple(k.stages) for k in kinds))


def sizes(problem: Problem) -> tuple[int, int]:
    """n and m of the program: the largest of any stage, and a control at least."""
    return max(problem.state_dims), max(1, *problem.control_dims)


def too_large(what: str, limit: int) -> Untraceable:
    return Untraceable("problem", f"{what}; {limit} scalar operations are allowed", "")


def settled(g: Graph, pieces: Sequence[Output]) -> list[Output]:
    return [Output(p.name, expand_solves(g, p.ids)) for p in pieces]


def check_size(g: Graph, outputs: dict[str, list[Output]], limit: int, kinds: int) -> None:
    made = operations(g, flat(all_ids(pieces) for pieces in outputs.values()))
    if made > limit:
        raise too_large(f"{made} scalar operations for some of {kinds} kinds of stages", limit)


# -- tracing ---------------------------------------------------------------------------------------
def traced(problem: Problem, recorder: Recorder, limit: int) -> tuple[list[Kind], Form, list[Slot]]:
    """The kinds, in order of their first stages; form and slots of phi."""
    kinds: dict[tuple[Form, tuple[int, int, int]], Kind] = {}
    states, controls = trial_points(problem)
    dims = problem.state_dims
    for t, (x, u) in enumerate(zip(states, controls, strict=False)):
        recorder.graph = Graph(recorder.graph.dtype, CREATED * limit, folds=False)
        sample = Sample(recorder, problem, (x, u))
        f = lambda x, u, p, t=t: problem.f(x, u, t, p)
        l = lambda x, u, p, t=t: problem.l(x, u, t, p)
        try:
            results = [sample.trace(recorder, (sample.x, sample.u), h).tolist() for h in (f, l)]
        except Untraceable as error:
            reason = f"{error.reason}, at stage {t}"
            raise Untraceable(error.operation, reason, error.line) from error
        form, slots = form_of(recorder.graph, results)
        size = dims[t], u.shape[0], dims[t + 1]
        kind = kinds.setdefault((form, size), Kind(form, size))
        kind.stages.append(t)
        kind.slots.append(slots)
        if len(kinds) > KINDS:
            found = f"{len(kinds)} kinds of stages up to stage {t}, {KINDS} are allowed"
            raise Untraceable("problem", found, "")
    recorder.graph = Graph(recorder.graph.dtype, CREATED * limit)
    sample = Sample(recorder, problem, (states[-1], states[-1][:0]))
    end = sample.trace(recorder, (sample.x,), problem.phi).tolist()
    return list(kinds.values()), *form_of(recorder.graph, [end])


@torch.no_grad()
def trial_points(problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """States (T + 1) and controls (T) of one sample, in no special position: a trajectory, begun
    anew where it diverges."""
    x0 = problem.x0.reshape(-1, problem.x0.shape[-1])[0]
    bounds = [
        None if b is None else [torch.as_tensor(s).reshape(1, -1) for s in b]
        for b in (problem.lower, problem.upper)
    ]
    us = [moved(u, 0.2) for u in trial_controls(problem.control_dims, bounds[0], bounds[1], x0)]
    data = {**problem.parameters, **{k: v[0] for k, v in problem.per_problem.items()}}
    largest = FAR * (1 + float(x0.abs().max()))
    xs = [moved(x0, 0.1)]
    for t, u in enumerate(us):
        x = problem.f(xs[t], u, t, data)
        if not bool((x.abs() <= largest).all()):
            n = problem.state_dims[t + 1]
            x = moved(x0.repeat(-(-n // len(x0)))[:n], 0.1)
        xs.append(x)
    return xs, us


# -- the numbers of all stages -------------------------------------------------------------------
class Numbers:
    """What fills the slots of all kinds, as nodes of one graph that reads two blocks."""

    def __init__(
        self, recorder: Recorder, problem: Problem, kinds: Sequence[Kind], limit: int
    ) -> None:
        self.graph = Graph(recorder.graph.dtype, limit)
        self.par, self.dat = Block(), Block()
        self.sources = {"par": recorder.shared.sources, "dat": recorder.data.sources}
        dtype, T = recorder.dtype, problem.horizon
        tables = {"par": Table(T), "dat": Table(T)}
        if len(kinds) > 1:  # column 0: which kind the stage is of
            for k, kind in enumerate(kinds):
                which = ("number", self.graph.dtype.type(k).tobytes())
                tables["par"].column(kind.stages, (which,) * len(kind.stages))
        self._fillings = {
            id(kind): [filling(kind, contents, tables) for contents in kind.columns()]
            for kind in kinds
        }
        self.tables = {
            name: table.source(self.sources[name], dtype, name == "dat")
            for name, table in tables.items()
            if table.width
        }

    def of_kind(self, kind: Kind) -> list[int]:
        """Nodes that fill its slots."""
        return [self.node(slot) for slot in self._fillings[id(kind)]]

    def node(self, slot: Slot) -> int:
        """A number, one that is read at the same place at every stage, or a column of a table."""
        if slot[0] == "number":
            return self.graph.number(np.frombuffer(slot[1], dtype=self.graph.dtype)[0])
        if slot[0] == "column":
            _, name, column = slot
            return self._leaf(name, self.tables[name], column, self.tables[name].shape[1])
        name, k, offset, _ = slot
        return self._leaf(name, self.sources[name][k], offset, 0)

    def _leaf(self, name: str, source: Source, offset: int, stride: int) -> int:
        return self.graph.leaf(name, self._place(name, source), offset, stride)

    def _place(self, name: str, source: Source) -> int:
        """Number of a source in its block."""
        block = self.par if name == "par" else self.dat
        block.add(source)
        return next(i for i, s in enumerate(block.sources) if s is source)

    def text(self, outputs: dict[str, list[Output]], n: int, m: int, kinds: int) -> str:
        """``struct Model``: a function for each kind, and those that choose among them."""
        k = self._place("par", self.tables["par"]) if kinds > 1 else -1
        writer = Writer(self.graph, self.par.places(), self.dat.places())
        text = f"struct Model {{\n  static constexpr int n = {n}, m = {m};\n"
        for name, pieces in outputs.items():
            text += writer.function(name, SIGNATURES[name.rstrip("_0123456789")], pieces)
        where = f"{self.par.places()[k]}, {self.tables['par'].shape[1]}" if kinds > 1 else ""
        for name in STAGES:
            arrays = [(p.name, len(p.ids)) for p in outputs[f"{name}_0"]]
            text += choice(name, SIGNATURES[name], arrays, kinds, where)
        return text + "};\n"


def filling(kind: Kind, contents: tuple[Slot, ...], tables: dict[str, Table]) -> Slot:
    """What stands in a slot of a kind: what is there at every stage, or a column of a table."""
    if all(slot == contents[0] for slot in contents):
        return contents[0]
    name = "dat" if contents[0][0] == "dat" else "par"
    return "column", name, tables[name].column(kind.stages, contents)


STAGES = ("f", "l", "f_jacobian", "l_expansion", "f_contracted")


# -- functions -------------------------------------------------------------------------------------
def stage_functions(
    g: Graph, f: list[int], l: list[int], own: tuple[int, int, int], whole: tuple[int, int]
) -> Iterator[tuple[str, list[Output]]]:
    """Those of one kind with sizes ``own`` (n, m, n'), their results of the sizes ``whole``."""
    (n, m, after), (wide_n, wide_m) = own, whole
    z = [g.leaf("x", i) for i in range(n)] + [g.leaf("u", i) for i in range(m)]
    by_z = Derivatives(g, z)
    at = [*range(n), *range(wide_n, wide_n + m)]  # where z stands among all states and controls
    d = wide_n + wide_m
    missing = [(i, i) for i in range(wide_n + m, d)]
    yield "f", [Output("y", spread(g, f, [range(after)], (wide_n,)))]
    yield "l", [Output("y", l)]
    gradient = by_z.gradient(l, [g.one])
    hessian = flat(by_z.hessian(gradient))
    yield (
        "l_expansion",
        [
            Output("g", spread(g, gradient, [at], (d,))),
            Output("H", spread(g, hessian, [at, at], (d, d), missing)),
        ],
    )
    jacobian = flat(by_z.jacobian(f))
    yield "f_jacobian", [Output("F", spread(g, jacobian, [range(after), at], (wide_n, d)))]
    along = by_z.gradient(f, [g.leaf("v", i) for i in range(after)])
    yield "f_contracted", [Output("H", spread(g, flat(by_z.hessian(along)), [at, at], (d, d)))]


def end_functions(
    g: Graph, phi: list[int], n: int, wide: int
) -> Iterator[tuple[str, list[Output]]]:
    by_x = Derivatives(g, [g.leaf("x", i) for i in range(n)])
    gradient = by_x.gradient(phi, [g.one])
    hessian = flat(by_x.hessian(gradient))
    at = range(n)
    yield "phi", [Output("y", phi)]
    yield (
        "phi_expansion",
        [
            Output("g", spread(g, gradient, [at], (wide,))),
            Output("H", spread(g, hessian, [at, at], (wide, wide))),
        ],
    )


def spread(
    g: Graph,
    ids: Sequence[int],
    at: Sequence[Sequence[int]],
    shape: tuple[int, ...],
    ones: Sequence[tuple[int, int]] = (),
) -> list[int]:
    """Nodes in a larger array (row by row), elsewhere 0, or 1 at the places ``ones``."""
    whole = np.full(shape, g.zero)
    for place in ones:
        whole[place] = g.one
    whole[np.ix_(*at)] = np.array(ids, dtype=whole.dtype).reshape([len(a) for a in at])
    return whole.reshape(-1).tolist()


def choice(
    name: str, signature: str, outputs: Sequence[tuple[str, int]], kinds: int, where: str
) -> str:
    """A function that calls the one of the lane's kind, which the shared numbers hold ``where``.

    Lanes may be of several kinds: then each is computed for all of them.
    """
    given = [a.split()[-1].lstrip("*&") for a in signature.split(", ")]
    to = [o for o, _ in outputs]
    head = "  template <class V, class C> OCP_FN void "
    results = ", ".join(f"V* {o}" for o in to)
    call = lambda function, *names: f"{function}({', '.join(names)});"
    if kinds == 1:
        return f"{head}{name}({signature}, {results}) {{ {call(name + '_0', *given, *to)} }}\n"
    own = [f"{o}_" for o in to]
    cases = [f"case {k}: return {call(f'{name}_{k}', *given, *to)}" for k in range(1, kinds)]
    lines = [
        f"{head}{name}_of(int kind, {signature}, {results}) {{",
        "    switch (kind) {",
        *(f"      {case}" for case in cases),
        f"      default: return {call(f'{name}_0', *given, *to)}",
        "    }",
        "  }",
        f"{head}{name}({signature}, {results}) {{",
        f"    const V kind = c.par_at({where});",
        f"    if (alike(kind)) return {call(f'{name}_of', 'int(get(kind, 0))', *given, *to)}",
        "    for (int l = 0; l < Of<V>::lanes; ++l) {",
        "      if (met(kind, l)) continue;",
        *(f"      V {o}_[{size}];" for o, size in outputs),
        f"      {call(f'{name}_of', 'int(get(kind, l))', *given, *own)}",
        *(
            f"      blend<{size}>(kind == V(double(get(kind, l))), {o}_, {o});"
            for o, size in outputs
        ),
        "    }",
        "  }",
    ]
    return "\n".join([*lines, ""])
