"""Finds vectors in scalar expressions: numbers made alike, between products with weights.

A traced layer is a node for its product and then scalars, an activation for each. Here those that
are made alike become vectors again: the operands of a product, or the terms of a sum, are followed
back through elementwise operations to the results of earlier products. Vectors that depend on each
other are one network (nets.py). What separates networks are scalars: the state between the
evaluations of an integrator, what the user computes from single outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ocp.engines.native.arithmetic import BINARY, COMPARISONS, LOGIC, UNARY
from ocp.engines.native.graph import COMMUTE, WIDE, Graph, Weights

ELEMENTWISE = frozenset((*UNARY, *BINARY, *COMPARISONS, *LOGIC, "select")) - {"true", "false"}

Ids = tuple[int, ...]


class Par(NamedTuple):
    """Run-time numbers ``offset, offset + step, ...`` of a source."""

    source: int
    offset: int
    step: int
    size: int


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
    size: int

    @property
    def ids(self) -> Ids:
        return self.vector.ids[self.start : self.start + self.size]


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
