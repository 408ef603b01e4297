"""Hessians of scalar functions by edge pushing (Gower & Mello, Optim. Methods Softw. 27, 2012).

One pass backwards over the nodes keeps, beside the adjoints, the second derivatives with respect
to the nodes that are still to be eliminated: symmetric, and sparse where the function is a chain
of stages (Runge-Kutta) with a narrow passage between them. Forward tangents of a gradient program
compute every one of those products for each direction anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.graph import Graph

WHOLE = frozenset(("solve", "matvec", "entry"))  # operations with many results: no edge pushing


def pushed_hessian(
    of: Derivatives, outputs: Sequence[int], seeds: Sequence[int]
) -> list[list[int]]:
    """Symmetric d2 (seeds . outputs) / d wrt2; the operations must not be of `WHOLE`."""
    with of.graph.zeros_vanish():
        return Pushing(of, outputs, seeds).run()


def can_push(g: Graph, outputs: Sequence[int]) -> bool:
    return not any(g.ops[i] in WHOLE for i in g.reachable(outputs))


class Pushing:
    """The nodes not yet eliminated: their adjoints, and second derivatives between them."""

    def __init__(self, of: Derivatives, outputs: Sequence[int], seeds: Sequence[int]) -> None:
        self.of, self.graph = of, of.graph
        self.order = [i for i in of.graph.reachable(outputs) if of.depends(i)]
        self.adjoints: dict[int, int] = {}
        self.curved: dict[int, dict[int, int]] = {i: {} for i in self.order}
        self.local = Locals(of.graph)
        for y, seed in zip(outputs, seeds, strict=True):
            self.adjoin(y, seed)

    def run(self) -> list[list[int]]:
        leaves = set(self.of.wrt)
        for i in reversed(self.order):
            if i not in leaves:
                self.eliminate(i)
        g, wrt = self.graph, self.of.wrt
        return [[self.curved.get(a, {}).get(b, g.zero) for b in wrt] for a in wrt]

    def eliminate(self, i: int) -> None:
        g = self.graph
        slopes, bends = self.local(i, self.of.depends)
        row = self.curved.pop(i)
        itself = row.pop(i, g.zero)
        for p, w in row.items():
            del self.curved[p][i]
            for a, slope in slopes.items():
                amount = g.mul(slope, w)
                self.bend(a, p, g.add(amount, amount) if a == p else amount)
        above = list(slopes)
        adjoint = self.adjoints.pop(i, g.zero)
        for k, a in enumerate(above):
            along = g.mul(slopes[a], itself)
            for b in above[: k + 1]:
                self.bend(a, b, g.mul(along, slopes[b]))
        for (a, b), bend in bends.items():
            self.bend(a, b, g.mul(adjoint, bend))
        for a, slope in slopes.items():
            self.adjoin(a, g.mul(adjoint, slope))

    def adjoin(self, a: int, amount: int) -> None:
        if self.of.depends(a) and amount != self.graph.zero:
            self.adjoints[a] = self.graph.add(self.adjoints.get(a, self.graph.zero), amount)

    def bend(self, a: int, b: int, amount: int) -> None:
        g = self.graph
        if amount != g.zero:
            total = g.add(self.curved[a].get(b, g.zero), amount)
            self.curved[a][b] = self.curved[b][a] = total


class Form(NamedTuple):
    """An operation on leaves, and its derivatives by them: nodes of a graph of its own.

    Attributes:
        known: the leaves, one for each argument that differs, and the operation itself.
        first: derivative by each leaf.
        second: derivatives of those.
    """

    known: list[int]
    first: list[int]
    second: list[list[int]]


class Locals:
    """First and second derivatives of nodes by their own arguments."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.small = graph, Graph(graph.dtype)
        self._forms: dict[tuple[str, tuple[int, ...]], Form] = {}

    def __call__(
        self, i: int, depends: Callable[[int], int]
    ) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
        """By argument, and by pair of arguments (each pair once); those that are not 0."""
        g = self.graph
        distinct = list(dict.fromkeys(g.args[i]))
        pattern = tuple(distinct.index(a) for a in g.args[i])
        key = (g.ops[i], pattern)
        if key not in self._forms:
            self._forms[key] = self._form(g.ops[i], pattern, [g.is_mask(a) for a in distinct])
        form, zero = self._forms[key], self.small.zero
        known = dict(zip(form.known, [*distinct, i], strict=True))
        put = lambda node: copied(self.small, node, g, known)
        live = [k for k, a in enumerate(distinct) if depends(a) and form.first[k] != zero]
        pairs = [(k, j) for k in live for j in live if j <= k and form.second[k][j] != zero]
        slopes = {distinct[k]: put(form.first[k]) for k in live}
        return slopes, {(distinct[k], distinct[j]): put(form.second[k][j]) for k, j in pairs}

    def _form(self, op: str, pattern: tuple[int, ...], masks: list[bool]) -> Form:
        g = self.small
        leaves = [g.true if is_mask else g.leaf("argument", k) for k, is_mask in enumerate(masks)]
        if op == "select":  # by hand: a mask that is known would be folded
            leaves[0] = g.node("eq", (g.leaf("left"), g.leaf("right")))
        value = g.node(op, tuple(leaves[k] for k in pattern))
        of = Derivatives(g, leaves)
        with g.zeros_vanish():
            first = of.gradient([value], [g.one])
            second = [of.gradient([slope], [g.one]) for slope in first]
        return Form([*leaves, value], first, second)


def copied(small: Graph, node: int, g: Graph, known: dict[int, int]) -> int:
    """A node of another graph; ``known``: what has a counterpart already, added to."""
    if node not in known:
        op, args = small.ops[node], [copied(small, a, g, known) for a in small.args[node]]
        if op == "number":
            known[node] = g.number(float(small.data[node]))
        else:
            known[node] = g.largest(args) if op == "amax" else g.apply(op, *args)
    return known[node]
