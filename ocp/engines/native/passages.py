"""Second derivatives of all outputs, through the narrow passages of their expressions.

A Runge-Kutta step is a chain of stages, and what one stage hands on to the next is a few numbers.
Of each of those, first and second derivatives by what the passage before hands on are short; the
chain rule then makes those by z of them. Other ways differentiate every operation by z.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.graph import Graph
from ocp.engines.native.pushing import copied, pushed_hessian

LINEAR = frozenset(("add", "sub", "neg", "total"))
Row = dict[int, int]  # derivatives of a node by z that are not 0
PARTS = 2  # at least so many does a passage have to make of an expression
Key = TypeVar("Key")


class Taylor(NamedTuple):
    """Derivatives of a number by z that are not 0: ``first[i]``, ``second[i, j]`` with j <= i."""

    first: dict[int, int]
    second: dict[tuple[int, int], int]


def bends(g: Graph, of: Derivatives, i: int, a: int) -> bool:
    """Whether node i is no linear function of its argument a."""
    op = g.ops[i]
    if op == "mul":
        return all(of.depends(b) for b in g.args[i])
    return bool(of.depends(g.args[i][1])) if op == "div" else op not in LINEAR


def crossings(g: Graph, of: Derivatives, outputs: Sequence[int]) -> tuple[list[int], list[int]]:
    """The nodes that depend on z, in order, and for each how many earlier ones, no leaves, it and
    what follows are nonlinear functions of."""
    order = [i for i in g.reachable(outputs) if of.depends(i)]
    place = {i: k for k, i in enumerate(order)}
    leaves = set(of.wrt)
    last: dict[int, int] = {}  # place of the last consumer that leads to a nonlinear operation
    for c in reversed(order):
        for a in g.args[c]:
            if a in place and (c in last or bends(g, of, c, a)):
                last[a] = max(last.get(a, 0), place[c])
    count = [0] * (len(order) + 1)
    for a, until in last.items():
        if a not in leaves:
            count[place[a] + 1] += 1
            count[until + 1] -= 1
    for k in range(1, len(count)):
        count[k] += count[k - 1]
    return order, count[:-1]


def passages(g: Graph, of: Derivatives, outputs: Sequence[int]) -> list[int]:
    """Nodes to go by, in order: what crosses the narrowest passages that part the expression well;
    none where it has none."""
    order, count = crossings(g, of, outputs)
    place = {i: k for k, i in enumerate(order)}
    until = {a: place[c] for c in order for a in g.args[c] if a in place}
    curved = [k for k, c in enumerate(count) if c]
    if not curved:
        return []
    begin, end = curved[0], curved[-1] + 1
    for width in sorted(set(count[begin:end])):
        ends = [k for k in range(begin, end - 1) if count[k] <= width < count[k + 1]]
        longest = max(b - a for a, b in pairwise([begin, *ends, end]))
        if longest <= (end - begin) / PARTS:
            crossing = [i for i in order if any(place[i] < k <= until.get(i, -1) for k in ends)]
            return [i for i in crossing if i not in of.wrt]
    return []


def arguments(g: Graph, of: Derivatives, nodes: Sequence[int]) -> list[int]:
    """The nodes, instead of functions of one number that number, less those that depend on a single
    one of the rest, in order."""
    found = {argument(g, of, node) for node in nodes}
    known = {*found, *of.wrt}
    for node in sorted(found):
        if len([i for i in origins(g, node, known) if i in known and i != node]) <= 1:
            known.remove(node)
    return sorted(known - set(of.wrt))


def argument(g: Graph, of: Derivatives, node: int) -> int:
    """What the node is a function of, if that is one other node and no leaf; else the node."""
    while True:
        on = {a for a in g.args[node] if of.depends(a)}
        if len(on) != 1 or on & set(of.wrt):
            return node
        (node,) = on


def origins(g: Graph, node: int, known: Collection[int]) -> set[int]:
    """The node and what it is made of, back to what is known."""
    cone = {node}
    stack = [*g.args[node]]
    while stack:
        i = stack.pop()
        if i not in cone:
            cone.add(i)
            stack.extend(() if i in known else g.args[i])
    return cone


@dataclass(frozen=True, eq=False)
class Part:
    """A node as a function of others that are known: ``ends``, and the derivatives by them."""

    node: int
    ends: list[int]
    slopes: list[int]
    local: Graph  # with the function alone, where `of` differentiates its node `root`
    of: Derivatives
    root: int
    back: dict[int, int]  # from there to the graph

    def curved(self, g: Graph) -> list[list[int]]:
        """The second derivatives."""
        rows = pushed_hessian(self.of, [self.root], [self.local.one])
        return [[copied(self.local, h, g, self.back) for h in row] for row in rows]


def part(g: Graph, node: int, known: Collection[int]) -> Part:
    local = Graph(g.dtype)
    new: dict[int, int] = {}
    cone = sorted(origins(g, node, known))
    for i in cone:
        if g.ops[i] == "number":
            new[i] = local.number(float(g.data[i]))
        elif i in known or not g.args[i]:
            new[i] = local.leaf("known", i)
        else:
            new[i] = local.node(g.ops[i], tuple(new[a] for a in g.args[i]), g.data[i])
    ends = [i for i in cone if i in known]
    of = Derivatives(local, [new[i] for i in ends])
    back = {there: here for here, there in new.items()}
    slopes = of.gradient([new[node]], [local.one])
    return Part(node, ends, [copied(local, s, g, back) for s in slopes], local, of, new[node], back)


def divided(g: Graph, of: Derivatives, outputs: Sequence[int], by: Sequence[int]) -> list[Part]:
    """The outputs and the nodes ``by``, which are in order, each by those before it and wrt."""
    known = set(of.wrt)
    parts = []
    for node in sorted({*by, *outputs}):
        if node not in known:
            parts.append(part(g, node, known))
            known.add(node)
    return parts


def first_derivatives(g: Graph, of: Derivatives, parts: Sequence[Part]) -> dict[int, Row]:
    """By wrt, of the node of each part."""
    known: dict[int, Row] = {leaf: {k: g.one} for k, leaf in enumerate(of.wrt)}
    with g.zeros_vanish():
        for p in parts:
            known[p.node] = {}
            for slope, end in zip(p.slopes, p.ends, strict=True):
                add_to(g, known[p.node], slope, known[end])
    return known


def taylor(g: Graph, of: Derivatives, outputs: Sequence[int], by: Sequence[int]) -> list[Taylor]:
    """Derivatives of the outputs by way of the nodes ``by``, which are in order."""
    known = {leaf: Taylor({k: g.one}, {}) for k, leaf in enumerate(of.wrt)}
    with g.zeros_vanish():
        for p in divided(g, of, outputs, by):
            known[p.node] = chained(g, known, p.ends, p.slopes, p.curved(g))
    return [known[y] for y in outputs]


def chained(
    g: Graph, known: Mapping[int, Taylor], ends: list[int], slopes: list[int], h: list[list[int]]
) -> Taylor:
    """By z, from the derivatives by what is known."""
    first: dict[int, int] = {}
    second: dict[tuple[int, int], int] = {}
    inputs = [known[i] for i in ends]
    for slope, inner in zip(slopes, inputs, strict=True):
        add_to(g, first, slope, inner.first)
        add_to(g, second, slope, inner.second)
    for row, inner in zip(h, inputs, strict=True):  # T' h T
        along: dict[int, int] = {}
        for entry, other in zip(row, inputs, strict=True):
            add_to(g, along, entry, other.first)
        for i, t in inner.first.items():
            add_to(g, second, t, {(i, j): w for j, w in along.items() if j <= i})
    return Taylor(first, second)


def add_to(g: Graph, sums: dict[Key, int], factor: int, terms: Mapping[Key, int]) -> None:
    for key, term in terms.items():
        amount = g.mul(factor, term)
        if amount != g.zero:
            sums[key] = g.add(sums[key], amount) if key in sums else amount
