"""Finds networks in scalar expressions: numbers made alike, between products with weights.

A traced layer is a node for its product and then scalars, an activation for each. Here those that
are made alike become vectors again: the operands of a product, or the terms of a sum, are followed
back through elementwise operations to the results of earlier products. Vectors that depend on each
other are one network (nets.py). What separates networks are scalars: the state between the
evaluations of an integrator, what the user computes from single outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ocp.engines.native import nets
from ocp.engines.native.graph import (
    BINARY,
    COMMUTE,
    COMPARISONS,
    LOGIC,
    UNARY,
    WIDE,
    Graph,
    Weights,
)

ELEMENTWISE = frozenset((*UNARY, *BINARY, *COMPARISONS, *LOGIC, "select")) - {"true", "false"}
MOST = 60_000  # tangents of the vectors of a network: what its second derivatives keep at a time
ENTRIES = 4_096  # of its Jacobian

Ids = tuple[int, ...]


class Par(NamedTuple):
    """Run-time numbers ``offset, offset + step, ...`` of a source."""

    source: int
    offset: int
    step: int
    count: int


class Scalars(NamedTuple):
    """Numbers that come from outside."""

    ids: Ids


@dataclass(eq=False)
class Vector:
    """Numbers made alike; ``ids`` are the scalars they stand for.

    Attributes:
        kind: "linear", "map", "total" or "pack".
        parts: what it is made of.
        data: the weights, or the expression.
        rank: of a network whose inputs depend on another's outputs, one more than that of the
            other; vectors of different ranks are in different networks.
    """

    kind: str
    ids: Ids
    parts: Sequence[Part]
    data: Weights | int | None = None
    rank: int = 0


class Span(NamedTuple):
    """Some entries of a vector."""

    vector: Vector
    start: int
    count: int

    @property
    def ids(self) -> Ids:
        return self.vector.ids[self.start : self.start + self.count]


Part = Span | Par | Scalars


class NotAlike(ValueError):  # noqa: N818
    """Numbers that are no vector."""


# -- vectors ---------------------------------------------------------------------------------------
class Finder:
    """Makes the vectors behind the products and sums of a graph."""

    def __init__(self, graph: Graph, order: Sequence[int]) -> None:
        self.graph = graph
        self.made: dict[Ids, Vector] = {}
        self.products: dict[int, Vector] = {}  # by matvec node
        self.totals: dict[int, Vector] = {}
        self._rank: dict[int, int] = {}
        self._signs: dict[tuple[int, int], tuple[object, ...]] = {}
        for i in order:
            op = graph.ops[i]
            if op == "matvec":
                source = self.operand(graph.args[i])
                rows = graph.data[i].rows
                ids = tuple(graph.node("entry", (i,), r) for r in range(rows))
                self.products[i] = self.vector("linear", ids, [source], graph.data[i])
            elif op == "total":
                source = self.operand(graph.args[i])
                if isinstance(source, Span):
                    self.totals[i] = self.vector("total", (i,), [source])

    def vector(
        self, kind: str, ids: Ids, parts: Sequence[Part], data: Weights | int | None = None
    ) -> Vector:
        rank = max((self.rank_of(p) for p in parts), default=0)
        own = [Scalars(p.ids) if isinstance(p, Span) and p.vector.rank < rank else p for p in parts]
        made = Vector(kind, ids, own, data, rank)
        self.made.setdefault(ids, made)
        return made

    # -- ranks
    def rank_of(self, part: Part) -> int:
        if isinstance(part, Span):
            return part.vector.rank
        return max((self.rank(i) for i in part.ids), default=0) if isinstance(part, Scalars) else 0

    def rank(self, i: int) -> int:
        """Of a scalar, as seen from outside of networks."""
        g, known = self.graph, self._rank
        stack = [i]
        while stack:
            top = stack[-1]
            vector = self.totals.get(top)
            if g.ops[top] == "entry":
                vector = self.products.get(g.args[top][0])
            missing = [] if vector else [a for a in g.args[top] if a not in known]
            if missing:
                stack += missing
                continue
            inner = max((known[a] for a in g.args[top]), default=0) if vector is None else 0
            known[top] = inner if vector is None else vector.rank + 1
            stack.pop()
        return known[i]

    # -- what numbers are
    def operand(self, ids: Ids) -> Part:
        """Of a product or a sum: a vector if the numbers are made of others, else scalars."""
        if (part := self.known(ids)) is not None:
            return part
        if len(ids) < WIDE:
            return Scalars(ids)
        parts: list[Part] = []
        try:
            expression = self.expression(ids, parts)
        except NotAlike:
            return self.joined(ids)
        outside = sum(len(p.ids) for p in parts if isinstance(p, Scalars))
        if not any(isinstance(p, Span) for p in parts) and 2 * outside > len(ids):
            return Scalars(ids)
        return Span(self.vector("map", ids, parts, expression), 0, len(ids))

    def known(self, ids: Ids) -> Part | None:
        """A vector that is there, entries of a product, run-time numbers one after another."""
        g, count = self.graph, len(ids)
        if ids in self.made:
            return Span(self.made[ids], 0, count)
        first = ids[0]
        if g.ops[first] == "entry":
            product = self.products.get(g.args[first][0])
            begin = g.data[first]
            if product is not None and product.ids[begin : begin + count] == ids:
                return Span(product, begin, count)
        if all(g.ops[i] == "leaf" and g.data[i][0] == "par" and not g.data[i][3] for i in ids):
            _, source, offset, _ = g.data[first]
            step = g.data[ids[1]][2] - offset if count > 1 else 0
            if all(g.data[i][1:3] == (source, offset + k * step) for k, i in enumerate(ids)):
                return Par(source, offset, step, count)
        return None

    def expression(self, ids: Ids, parts: list[Part]) -> int:
        """A node over leaves ("a", q) for the operands, which are added to ``parts``.

        Raises:
            NotAlike: there is none.
        """
        g = self.graph
        first = ids[0]
        if all(i == first for i in ids):
            return self.broadcast(first, parts)
        if (part := self.known(ids)) is not None:
            return self.leaf(part, parts)
        op = g.ops[first]
        if op not in ELEMENTWISE or any(g.ops[i] != op for i in ids):
            whole = self.outside(ids)
            return self.leaf(self.joined(ids) if len(ids) >= WIDE else whole, parts)
        rows = [self.ordered(i) for i in ids]
        return g.node(op, tuple(self.expression(c, parts) for c in zip(*rows, strict=True)))

    def broadcast(self, i: int, parts: list[Part]) -> int:
        """One number for all entries: a constant, or an operand of one entry."""
        if self.graph.ops[i] in ("number", "true", "false"):
            return i
        part = self.known((i,))
        if part is None and self.from_totals(i):
            inner: list[Part] = []
            expression = self.of_totals(i, inner)
            part = Span(self.vector("map", (i,), inner, expression), 0, 1)
        return self.leaf(part or self.outside((i,)), parts)

    def outside(self, ids: Ids) -> Scalars:
        if any(self.graph.is_mask(i) for i in ids):
            raise NotAlike("masks from outside")
        return Scalars(ids)

    def from_totals(self, i: int) -> bool:
        """Whether a number is made of sums and run-time numbers alone, and of one sum at least."""
        g = self.graph
        leaves, stack, seen = [], [i], {i}
        while stack:
            top = stack.pop()
            if top in self.totals or g.ops[top] not in ELEMENTWISE:
                leaves.append(top)
                continue
            fresh = set(g.args[top]) - seen
            stack += fresh
            seen |= fresh
        plain = lambda a: g.ops[a] in ("number", "true", "false") or self.parameter(a)
        return any(a in self.totals for a in leaves) and all(
            a in self.totals or plain(a) for a in leaves
        )

    def parameter(self, i: int) -> bool:
        leaf = self.graph.data[i]
        return self.graph.ops[i] == "leaf" and leaf[0] == "par" and not leaf[3]

    def of_totals(self, i: int, parts: list[Part]) -> int:
        g = self.graph
        if g.ops[i] in ("number", "true", "false"):
            return i
        if (part := self.known((i,))) is not None:
            return self.leaf(part, parts)
        return g.node(g.ops[i], tuple(self.of_totals(a, parts) for a in self.ordered(i)))

    def leaf(self, part: Part, parts: list[Part]) -> int:
        if part not in parts:
            parts.append(part)
        return self.graph.leaf("a", parts.index(part))

    # -- numbers of several kinds
    def joined(self, ids: Ids) -> Part:
        """Vectors and scalars one after another."""
        runs: list[list[int]] = []
        for i in ids:
            alike = runs and self.sign(i, 2) == self.sign(runs[-1][-1], 2)
            runs[-1].append(i) if alike else runs.append([i])
        if len(runs) == 1:
            return Scalars(ids)
        pieces = [self.operand(tuple(run)) for run in runs]
        if not any(isinstance(p, Span) for p in pieces):
            return Scalars(ids)
        pieces = [
            Scalars(tuple(run)) if isinstance(p, Par) else p
            for p, run in zip(pieces, runs, strict=True)
        ]
        return Span(self.vector("pack", ids, pieces), 0, len(ids))

    def sign(self, i: int, depth: int) -> tuple[object, ...]:
        """What a number looks like: equal for those made alike."""
        key = i, depth
        if key not in self._signs:
            g = self.graph
            op = g.ops[i]
            if op == "entry":
                sign: tuple[object, ...] = (op, g.args[i][0])
            elif op == "leaf":
                sign = (op, g.data[i][0], *g.data[i][1:2] * (g.data[i][0] in ("par", "dat")))
            elif op == "number":
                sign = (op,)
            else:
                inner = (self.sign(a, depth - 1) for a in g.args[i]) if depth else ()
                sign = (op, *(sorted(inner, key=str) if op in COMMUTE else inner))
            self._signs[key] = sign
        return self._signs[key]

    def ordered(self, i: int) -> Ids:
        """Arguments; those that commute in an order that numbers made alike share."""
        args = self.graph.args[i]
        if self.graph.ops[i] not in COMMUTE:
            return args
        return tuple(sorted(args, key=lambda a: str(self.sign(a, 2))))


# -- networks --------------------------------------------------------------------------------------
@dataclass(eq=False)
class Group:
    """Vectors of one network.

    Attributes:
        outputs: vector and entry of the scalars that are seen of it.
        inputs: scalars that it needs, once `built`.
    """

    vectors: list[Vector] = field(default_factory=list)
    outputs: list[tuple[Vector, int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    call: nets.Call | None = None


def grouped(finder: Finder) -> dict[int, Group]:
    """Networks, by id of each of their vectors; layers without an activation between are none."""
    vectors: dict[int, Vector] = {}
    parent: dict[int, int] = {}

    def top(k: int) -> int:
        while parent.setdefault(k, k) != k:
            k = parent[k]
        return k

    for known in (*finder.products.values(), *finder.totals.values()):
        for v in behind(known):
            vectors[id(v)] = v
            for part in v.parts:
                if isinstance(part, Span):
                    parent[top(id(part.vector))] = top(id(v))
    groups: dict[int, Group] = {}
    for k, v in vectors.items():
        groups.setdefault(top(k), Group()).vectors.append(v)
    worth = lambda group: any(
        v.kind == "map" and any(isinstance(p, Span) for p in v.parts) for v in group.vectors
    )
    return {id(v): group for group in groups.values() if worth(group) for v in group.vectors}


def behind(vector: Vector) -> list[Vector]:
    """A vector and those it is made of, each after what it needs."""
    order: dict[int, Vector] = {}

    def visit(v: Vector) -> None:
        if id(v) not in order:
            for part in v.parts:
                if isinstance(part, Span):
                    visit(part.vector)
            order[id(v)] = v

    visit(vector)
    return list(order.values())


class Builder:
    """The steps of a network, numbered from its outputs: alike for networks that are alike."""

    def __init__(self, group: Group) -> None:
        self.inputs: list[int] = []
        self.steps: list[nets.Step] = []
        self.places: list[tuple[int, int]] = []
        self.number: dict[int, int] = {}
        for vector, _ in group.outputs:
            for v in behind(vector):
                if id(v) not in self.number:
                    step = self.step(v)
                    self.steps.append(step)
                    self.number[id(v)] = len(self.steps)
        self.outputs = [nets.Ref(self.number[id(v)], entry, 1) for v, entry in group.outputs]

    def step(self, v: Vector) -> nets.Step:
        if v.kind == "map":
            assert isinstance(v.data, int)
            operands = tuple(
                nets.Param(self.slot(p.source, p.offset), p.step, p.count)
                if isinstance(p, Par)
                else self.ref(p)
                for p in v.parts
            )
            return nets.Map(len(v.ids), v.data, operands)
        refs = tuple(self.ref(p) for p in v.parts if not isinstance(p, Par))
        if v.kind == "total":
            return nets.Total(refs[0])
        if v.kind == "pack":
            return nets.Joined(refs)
        assert isinstance(v.data, Weights)
        w = v.data
        slot = self.slot(w.source, w.offset)
        return nets.Linear(slot, w.rows, w.row_step, w.columns, w.column_step, refs[0])

    def slot(self, source: int, offset: int) -> int:
        self.places.append((source, offset))
        return len(self.places) - 1

    def ref(self, part: Span | Scalars) -> nets.Ref:
        if isinstance(part, Span):
            return nets.Ref(self.number[id(part.vector)], part.start, part.count)
        self.inputs += [i for i in dict.fromkeys(part.ids) if i not in self.inputs]
        at = [self.inputs.index(i) for i in part.ids]
        runs: list[list[int]] = []
        for k in at:
            follows = runs and k == runs[-1][-1] + 1
            runs[-1].append(k) if follows else runs.append([k])
        pieces = tuple(nets.Ref(0, run[0], len(run)) for run in runs)
        if len(pieces) == 1:
            return pieces[0]
        self.steps.append(nets.Joined(pieces))
        return nets.Ref(len(self.steps), 0, len(at))


class Rewriter:
    """Writes roots anew, with a node for each network."""

    def __init__(self, graph: Graph, finder: Finder) -> None:
        self.graph, self.finder = graph, finder
        self.groups = grouped(finder)
        self.nets: dict[object, nets.Net] = {}
        self.entries: dict[tuple[int, int, int], int] = {}  # of a group: vector, entry: new node

    def seen(self, i: int) -> tuple[Group, Vector, int] | None:
        """The network that a scalar is an output of."""
        g = self.graph
        vector, entry = self.finder.totals.get(i), 0
        if g.ops[i] == "entry":
            vector, entry = self.finder.products.get(g.args[i][0]), g.data[i]
        group = None if vector is None else self.groups.get(id(vector))
        return None if group is None or vector is None else (group, vector, entry)

    def demand(self, roots: Iterable[int]) -> None:
        """Notes what is seen of each network."""
        stack, known = list(roots), set(roots)
        while stack:
            i = stack.pop()
            found = self.seen(i)
            needed: Iterable[int] = self.graph.args[i]
            if found is not None:
                group, *output = found
                group.outputs.append((output[0], output[1]))
                needed = scalars_behind(output[0])
            fresh = set(needed) - known
            known |= fresh
            stack += fresh
        for group in {id(g): g for g in self.groups.values()}.values():
            if group.outputs:
                group.outputs.sort(key=lambda o: (o[0].ids[0], o[1]))
                self.build(group)

    def build(self, group: Group) -> None:
        built = Builder(group)
        key = len(built.inputs), tuple(built.steps), tuple(built.outputs)
        if key not in self.nets:
            self.nets[key] = nets.made(self.graph, *key)
        net = self.nets[key]
        if net.inputs * sum(net.sizes) > MOST or net.inputs * len(net.outputs) > ENTRIES:
            raise NotAlike("too many inputs and outputs")
        group.inputs, group.call = built.inputs, nets.Call(net, tuple(built.places))

    def run(self, roots: Sequence[int]) -> list[int]:
        """The same values; the roots of a graph with networks."""
        self.demand(roots)
        g = self.graph
        new: dict[int, int] = {}
        stack = list(roots)
        while stack:
            i = stack[-1]
            found = self.seen(i)
            needed = g.args[i] if found is None else tuple(found[0].inputs)
            missing = [a for a in needed if a not in new]
            if i in new or missing:
                stack += missing if i not in new else []
                if i in new:
                    stack.pop()
                continue
            args = tuple(new[a] for a in needed)
            if found is not None:
                group, vector, entry = found
                assert group.call is not None
                k = group.outputs.index((vector, entry))
                new[i] = nets.results(g, "net", group.call, args)[k]
            else:
                new[i] = i if args == g.args[i] else g.node(g.ops[i], args, g.data[i])
        return [new[r] for r in roots]


def scalars_behind(vector: Vector) -> set[int]:
    parts = (p for v in behind(vector) for p in v.parts)
    return {i for p in parts if isinstance(p, Scalars) for i in p.ids}


def with_networks(graph: Graph, values: dict[str, list[int]]) -> dict[str, list[int]]:
    """The roots of the same functions, in which each network is a node; or as they were."""
    roots = [i for ids in values.values() for i in ids]
    order = graph.reachable(roots)
    if not any(graph.ops[i] == "matvec" for i in order):
        return values
    try:
        work = Rewriter(graph, Finder(graph, order))
        new = iter(work.run(roots))
    except NotAlike:
        return values
    return {name: [next(new) for _ in ids] for name, ids in values.items()}
