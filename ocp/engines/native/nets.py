"""Networks inside scalar expressions: functions of a few numbers that are loops over arrays within.

A network takes scalars and gives scalars; between them are vectors, made of each other by
products with matrices of run-time numbers and by elementwise expressions. In the graph it is one
node, whatever its width: ``net`` with its inputs as arguments. The nodes of its derivatives are

    net_jacobian   (inputs)            J, row by row
    net_gradient   (inputs, weights)   J' w
    net_curvature  (inputs, weights)   sum_r w_r d2 y_r / dx2, the lower triangle by rows

so that what surrounds it is differentiated as scalars. First derivatives take a tangent for each
input or an adjoint for each output, whichever are fewer. Second derivatives are the sum, over the
elementwise expressions, of adjoint times second partial times tangents of two operands ("edge
pushing": Gower, Mello, Optimization Methods and Software 27, 2012): one adjoint and a tangent for
each input, instead of an adjoint with its own tangents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ocp.engines.native.arithmetic import Number
from ocp.engines.native.derive import Derivatives
from ocp.engines.native.graph import Graph, Leaf, tri_size


class Ref(NamedTuple):
    """Entries ``start .. start + size - 1`` of the vector of a step; the inputs are step 0."""

    step: int
    start: int
    size: int


class Param(NamedTuple):
    """Run-time numbers from place number ``slot`` on, ``stride`` apart."""

    slot: int
    stride: int
    size: int


class Linear(NamedTuple):
    """W times a vector; W begins at place number ``slot``."""

    slot: int
    rows: int
    row_step: int
    columns: int
    column_step: int
    source: Ref


class Map(NamedTuple):
    """An elementwise expression, of leaves ("a", q); an operand of one entry is for all."""

    size: int
    expression: int
    operands: tuple[Ref | Param, ...]


class Total(NamedTuple):
    """The sum of a vector's entries."""

    source: Ref


class Joined(NamedTuple):
    """Pieces one after another."""

    pieces: tuple[Ref, ...]


Step = Linear | Map | Total | Joined


def size_of(step: Step) -> int:
    if isinstance(step, Linear):
        return step.rows
    if isinstance(step, Map):
        return step.size
    return 1 if isinstance(step, Total) else sum(p.size for p in step.pieces)


@dataclass(frozen=True, eq=False)
class Net:
    """The structure of a network, the same for all that differ in where their weights are.

    Attributes:
        inputs: number of them.
        steps: step k + 1 is ``steps[k]``.
        outputs: entries of steps.
        slopes: of each step that is a map, node by operand number; zeros are left out.
        bends: of each such step, second partials by a pair (q, r), r <= q.
    """

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[Ref, ...]
    slopes: dict[int, dict[int, int]] = field(repr=False)
    bends: dict[int, dict[tuple[int, int], int]] = field(repr=False)

    @property
    def sizes(self) -> list[int]:
        """Of all steps, the inputs first."""
        return [self.inputs, *(size_of(step) for step in self.steps)]

    @property
    def reverse(self) -> bool:
        """Whether first derivatives take adjoints."""
        return len(self.outputs) <= self.inputs


class Call(NamedTuple):
    """What a node of the graph holds: a network, and (source, offset) of each slot."""

    net: Net
    places: tuple[tuple[int, int], ...]


def made(graph: Graph, inputs: int, steps: Sequence[Step], outputs: Sequence[Ref]) -> Net:
    """The network with the derivatives of its expressions."""
    slopes: dict[int, dict[int, int]] = {}
    bends: dict[int, dict[tuple[int, int], int]] = {}
    for k, step in enumerate(steps, start=1):
        if not isinstance(step, Map):
            continue
        numbers = [q for q, operand in enumerate(step.operands) if isinstance(operand, Ref)]
        of = Derivatives(graph, [graph.leaf("a", q) for q in numbers])
        gradient = of.gradient([step.expression], [graph.one])
        hessian = of.hessian(gradient)
        slopes[k] = {q: e for q, e in zip(numbers, gradient, strict=True) if e != graph.zero}
        bends[k] = {
            (q, r): hessian[i][j]
            for i, q in enumerate(numbers)
            for j, r in enumerate(numbers[: i + 1])
            if hessian[i][j] != graph.zero
        }
    return Net(inputs, tuple(steps), tuple(outputs), slopes, bends)


# -- nodes ---------------------------------------------------------------------------------------
def results(graph: Graph, op: str, call: Call, args: Sequence[int]) -> list[int]:
    """The entries of a node about a network."""
    k, r = call.net.inputs, len(call.net.outputs)
    count = {"net": r, "net_jacobian": r * k, "net_gradient": k, "net_curvature": tri_size(k)}[op]
    node = graph.node(op, tuple(args), call)
    return [graph.node("entry", (node,), i) for i in range(count)]


# -- in NumPy ------------------------------------------------------------------------------------
def evaluate(
    graph: Graph,
    node: int,
    values: Sequence[Any],
    leaves: Callable[[Leaf], Any],
    known: dict[Any, Any],
) -> list[Number]:
    """Entries of a node about a network, for values of its arguments; ``known`` keeps matrices."""
    call, op = graph.data[node], graph.ops[node]
    net = call.net
    given = np.stack(np.broadcast_arrays(*(np.asarray(v, graph.dtype) for v in values)))
    flat = given.reshape(len(values), -1)
    columns = [
        _Run(graph, call, leaves, column[: net.inputs], known).entries(op, column[net.inputs :])
        for column in flat.T
    ]
    return list(np.stack(columns, axis=-1).reshape(-1, *given.shape[1:]))


class _Run:
    """One sample, by tangents of everything; for tests, not for speed."""

    def __init__(
        self,
        graph: Graph,
        call: Call,
        leaves: Callable[[Leaf], Any],
        x: np.ndarray,
        known: dict[Any, Any],
    ) -> None:
        self.known = known
        self.graph, self.call, self.leaves, self.net = graph, call, leaves, call.net
        self.values, self.tangents = [x], [np.eye(len(x), dtype=graph.dtype)]
        for k, step in enumerate(self.net.steps, start=1):
            value, tangent = self.step(k, step)
            self.values.append(value)
            self.tangents.append(tangent)

    def param(self, slot: int, offsets: np.ndarray) -> np.ndarray:
        source, begin = self.call.places[slot]
        key = source, begin, offsets.shape, offsets.tobytes()
        if key in self.known:
            return np.asarray(self.known[key])
        read = lambda o: float(self.leaves(("par", source, begin + int(o), 0)))
        self.known[key] = np.vectorize(read, otypes=[self.graph.dtype])(offsets)
        return np.asarray(self.known[key])

    def matrix(self, step: Linear) -> np.ndarray:
        down = np.arange(step.rows) * step.row_step
        return self.param(step.slot, down[:, None] + np.arange(step.columns) * step.column_step)

    def partials(self, k: int, step: Map, nodes: Sequence[int]) -> list[np.ndarray]:
        operands = [
            self.values[o.step][o.start : o.start + o.size]
            if isinstance(o, Ref)
            else self.param(o.slot, o.stride * np.arange(o.size))
            for o in step.operands
        ]
        found = self.graph.evaluate(list(nodes), lambda leaf: operands[leaf[1]])
        return [np.broadcast_to(e, (step.size,)) for e in found]

    def step(self, k: int, step: Step) -> tuple[np.ndarray, np.ndarray]:
        part = lambda ref: slice(ref.start, ref.start + ref.size)
        of = lambda arrays, ref: arrays[ref.step][part(ref)]
        if isinstance(step, Linear):
            W = self.matrix(step)
            return W @ of(self.values, step.source), W @ of(self.tangents, step.source)
        if isinstance(step, Total):
            source = step.source
            return tuple(of(a, source).sum(0, keepdims=True) for a in (self.values, self.tangents))
        if isinstance(step, Joined):
            return tuple(
                np.concatenate([of(a, p) for p in step.pieces])
                for a in (self.values, self.tangents)
            )  # type: ignore[return-value]
        slopes = self.net.slopes[k]
        value, *found = self.partials(k, step, [step.expression, *slopes.values()])
        tangent = np.zeros((step.size, self.net.inputs), self.graph.dtype)
        for q, slope in zip(slopes, found, strict=True):
            tangent = tangent + slope[:, None] * of(self.tangents, step.operands[q])
        return value, tangent

    def entries(self, op: str, weights: np.ndarray) -> np.ndarray:
        rows = [self.tangents[r.step][r.start] for r in self.net.outputs]
        if op == "net":
            return np.array([self.values[r.step][r.start] for r in self.net.outputs])
        if op == "net_jacobian":
            return np.concatenate(rows)
        if op == "net_gradient":
            return np.asarray(weights @ np.array(rows))
        H = self.curvature(weights)
        return H[np.tril_indices(len(H))]

    def curvature(self, weights: np.ndarray) -> np.ndarray:
        """By second-order tangents: not as the program does it."""
        k = self.net.inputs
        seconds: list[np.ndarray] = [np.zeros((k, k, k))]
        for number, step in enumerate(self.net.steps, start=1):
            of = lambda ref: seconds[ref.step][ref.start : ref.start + ref.size]
            if isinstance(step, Linear):
                seconds.append(np.tensordot(self.matrix(step), of(step.source), 1))
            elif isinstance(step, Total):
                seconds.append(of(step.source).sum(0, keepdims=True))
            elif isinstance(step, Joined):
                seconds.append(np.concatenate([of(p) for p in step.pieces]))
            else:
                seconds.append(self.map_curvature(number, step, of))
        return np.asarray(
            sum(
                w * seconds[r.step][r.start] for w, r in zip(weights, self.net.outputs, strict=True)
            )
        )

    def map_curvature(self, k: int, step: Map, of: Callable[[Ref], np.ndarray]) -> np.ndarray:
        slopes, bends = self.net.slopes[k], self.net.bends[k]
        found = self.partials(k, step, [*slopes.values(), *bends.values()])
        total = np.zeros((step.size, self.net.inputs, self.net.inputs))
        for q, slope in zip(slopes, found, strict=False):
            total = total + slope[:, None, None] * of(step.operands[q])  # type: ignore[arg-type]
        tangent = lambda ref: self.tangents[ref.step][ref.start : ref.start + ref.size]
        for (q, r), bend in zip(bends, found[len(slopes) :], strict=True):
            first, second = (tangent(step.operands[i]) for i in (q, r))
            outer = bend[:, None, None] * first[:, :, None] * second[:, None, :]
            total = total + outer + (0 if q == r else outer.swapaxes(1, 2))
        return total
