"""The second-order terms of f in two parts, for the sweep of a single problem.

``v . f_zz`` is wanted with v = V_x of the next stage, one stage after another. What does not depend
on v depends on the trajectory alone: it is computed ahead, stages side by side in the lanes, and
kept in a table for the sweep. There are three ways to draw the line; the one that leaves the least
to do is taken. The table has

- the second derivatives themselves: the sweep has a product for each entry that is not constant;
  where their common subexpressions keep them from costing n times the contraction;
- or what the contraction, by edge pushing or by tangents of the gradient, is made of besides v.
"""

from __future__ import annotations

from typing import NamedTuple

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.forms import MADE, flat, operations
from ocp.engines.native.graph import Graph, TooLarge
from ocp.engines.native.pushing import can_push, pushed_hessian
from ocp.engines.native.solves import expand_solves

STAGES = 4  # assumed to be computed side by side
LONGEST = 3_000  # operations of a table: acrobot's 7 000 took 30 s to compile instead of 5
MOST = 4_000  # operations within the sweep


class Split(NamedTuple):
    """Entries of the table as functions of x and u, and ``v . f_zz`` (d, d) as one of S and v."""

    entries: list[int]
    combined: list[int]


def table(g: Graph, f: list[int], n: int, m: int) -> Split:
    """The split with the least to do.

    Args:
        g: the graph of the problem.
        f: the next state.
        n, m: sizes.

    Returns:
        Both empty where f is linear, has products with matrices, or all ways are too long.
    """
    splits = []
    if not any(g.ops[i] in ("matvec", "net") for i in g.reachable(f)):
        for way in (by_pushing, by_tangents, by_entries):
            try:
                with g.at_most(MADE * MOST):
                    split = way(g, f, n, m)
            except TooLarge:
                continue
            ahead, within = operations(g, split.entries), operations(g, split.combined)
            if split.entries and ahead <= LONGEST and within <= MOST:
                splits.append((ahead / STAGES + len(split.entries) + within, split))
    return min(splits, key=lambda pair: pair[0])[1] if splits else Split([], [])


def variables(g: Graph, n: int, m: int) -> list[int]:
    return [g.leaf(kind, i) for kind, size in (("x", n), ("u", m)) for i in range(size)]


def seeds(g: Graph, n: int) -> list[int]:
    return [g.leaf("v", k) for k in range(n)]


def by_pushing(g: Graph, f: list[int], n: int, m: int) -> Split:
    if not can_push(g, f):
        return Split([], [])
    return divided(g, flat(pushed_hessian(Derivatives(g, variables(g, n, m)), f, seeds(g, n))))


def by_tangents(g: Graph, f: list[int], n: int, m: int) -> Split:
    by_z = Derivatives(g, variables(g, n, m))
    return divided(g, expand_solves(g, flat(by_z.hessian(by_z.gradient(f, seeds(g, n))))))


def divided(g: Graph, H: list[int]) -> Split:
    """Everything that does not depend on v into the table, as far as the rest reads it."""
    order = g.reachable(H)
    along: set[int] = set()
    for i in order:
        if (g.ops[i] == "leaf" and g.data[i][0] == "v") or any(a in along for a in g.args[i]):
            along.add(i)
    stored: dict[int, int] = {}
    new: dict[int, int] = {}

    def read(i: int) -> int:
        """A number, what depends on v, or what is read from the table."""
        if i in along or g.ops[i] == "number":
            return new.get(i, i)
        return g.leaf("S", stored.setdefault(i, len(stored)))

    for i in order:
        if i in along and g.args[i]:
            new[i] = g.node(g.ops[i], tuple(read(a) for a in g.args[i]), g.data[i])
    combined = [read(h) for h in H]
    return Split(list(stored), combined)


def by_entries(g: Graph, f: list[int], n: int, m: int) -> Split:
    by_z, d = Derivatives(g, variables(g, n, m)), n + m
    tensor = [by_z.hessian(row) for row in by_z.jacobian(f)]
    stored: dict[int, int] = {}  # node: its place
    combined = [g.zero] * (d * d)

    def entry(node: int) -> int:
        """A constant, or what is read from the table."""
        if g.ops[node] == "number":
            return node
        return g.leaf("S", stored.setdefault(node, len(stored)))

    with g.zeros_vanish():
        for i in range(d):
            for j in range(i + 1):
                terms = [
                    g.mul(g.leaf("v", k), entry(hessian[i][j]))
                    for k, hessian in enumerate(tensor)
                    if hessian[i][j] != g.zero
                ]
                combined[i * d + j] = combined[j * d + i] = g.sum(terms)
    return Split(expand_solves(g, list(stored)), combined)
