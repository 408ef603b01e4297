"""The second-order terms of f in two parts, for the sweep of a single problem.

``v . f_zz`` is wanted with v = V_x of the next stage, one stage after another. What does not depend
on v depends on the trajectory alone: it is computed ahead, stages side by side in the lanes, and
kept in a table for the sweep. There are several ways to draw the line; the one that leaves the
least to do is taken. The table has

- the second derivatives themselves: the sweep has a product for each entry that is not constant;
  where passages (`passages`) or their common subexpressions keep them from costing n times the
  contraction. By way of passages the first derivatives are made of the same numbers, and are
  computed with them;
- or what the contraction, by edge pushing or by tangents of the gradient, is made of besides v;
- or, by way of passages again, what a product of matrices in the sweep is made of (`chain`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ocp.engines.native.chain import Pair, chain
from ocp.engines.native.derive import Derivatives
from ocp.engines.native.forms import MADE, operations
from ocp.engines.native.graph import Graph, TooLarge, flat
from ocp.engines.native.passages import Row, arguments, passages, taylor
from ocp.engines.native.pushing import can_push, pushed_hessian
from ocp.engines.native.solves import expand_solves

STAGES = 4  # assumed to be computed side by side
LONGEST = 5_000  # operations of a table: those of acrobot's 4 500 take a second or two to compile
MOST = 4_000  # operations within the sweep
ROW = 2.0  # of an operation on rows, which reads them from memory, beside one on numbers at hand
WRITTEN = 4.0  # of writing a pack of a row
WIDEST = 64  # columns of Y that a machine word has bits for


class Split(NamedTuple):
    """Entries of the table as functions of x and u, and ``v . f_zz`` (d, d) as one of S and v;
    perhaps f_z (n, d), to be computed with the table.

    With ``rows``, Y of the module chain, ``combined`` are the entries of M at ``pairs``.
    """

    entries: list[int]
    combined: list[int]
    first: list[int] = []  # noqa: RUF012
    rows: list[Row] = []  # noqa: RUF012
    pairs: list[Pair] = []  # noqa: RUF012

    @property
    def ahead(self) -> list[int]:
        """All that does not depend on v."""
        return [*self.entries, *self.first, *(entry for row in self.rows for entry in row.values())]


Way = Callable[[Graph, list[int], int, int], Split]


def table(g: Graph, f: list[int], n: int, m: int, jacobian: int) -> Split:
    """The split with the least to do.

    Args:
        g: the graph of the problem.
        f: the next state.
        n, m: sizes.
        jacobian: operations of f_z by itself.

    Returns:
        Both empty where f is linear, has products with matrices, or all ways are too long.
    """
    if any(g.ops[i] in ("matvec", "net") for i in g.reachable(f)):
        return Split([], [])
    splits = [made(way, g, f, n, m) for way in (by_chain, by_pushing, by_passages)]
    if not splits[-1].entries:
        splits += [made(way, g, f, n, m) for way in (by_tangents, by_entries)]
    able = [(least(g, s, jacobian), s) for s in splits if s.entries and fits(g, s)]
    return min(able, key=lambda pair: pair[0])[1] if able else Split([], [])


def made(way: Way, g: Graph, f: list[int], n: int, m: int) -> Split:
    try:
        with g.at_most(MADE * MOST):
            return way(g, f, n, m)
    except TooLarge:
        return Split([], [])


def fits(g: Graph, split: Split) -> bool:
    return operations(g, split.ahead) <= LONGEST and operations(g, split.combined) <= MOST


def least(g: Graph, split: Split, jacobian: int) -> float:
    """Operations for each stage."""
    ahead, within = operations(g, split.ahead), operations(g, split.combined)
    if not split.first:
        ahead += jacobian
    return ahead / STAGES + len(split.entries) + within + row_operations(split)


def row_operations(split: Split) -> float:
    """Of Y' M Y, with packs of `STAGES` columns; Y is written by rows."""
    packs = [{j // STAGES for j in row} for row in split.rows]
    inner = sum(len(packs[b]) + (a != b) * len(packs[a]) for a, b in split.pairs)
    outer = sum(j // STAGES + 1 for row in split.rows for j in row)
    return ROW * (inner + outer) + WRITTEN * sum(map(len, packs))


def variables(g: Graph, n: int, m: int) -> list[int]:
    return [g.leaf(kind, i) for kind, size in (("x", n), ("u", m)) for i in range(size)]


def seeds(g: Graph, n: int) -> list[int]:
    return [g.leaf("v", k) for k in range(n)]


def by_chain(g: Graph, f: list[int], n: int, m: int) -> Split:
    if not can_push(g, f) or n + m > WIDEST:
        return Split([], [])
    found = chain(g, Derivatives(g, variables(g, n, m)), f, seeds(g, n))
    if found is None or all(is_fixed(g, row) for row in found.rows):
        return Split([], [])
    split = divided(g, list(found.pairs.values()))
    return split._replace(first=found.first, rows=found.rows, pairs=list(found.pairs))


def is_fixed(g: Graph, row: Row) -> bool:
    """Whether a row of Y is the same at all stages: numbers of the text."""
    values = [g.constant(i) for i in row.values()]
    return all(v is not None and math.isfinite(v) for v in values)


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
    by_z = Derivatives(g, variables(g, n, m))
    split = contraction(g, [by_z.hessian(row) for row in by_z.jacobian(f)])
    return split._replace(entries=expand_solves(g, split.entries))


def by_passages(g: Graph, f: list[int], n: int, m: int) -> Split:
    of = Derivatives(g, variables(g, n, m))
    by = arguments(g, of, passages(g, of, f)) if can_push(g, f) else []
    if not by:
        return Split([], [])
    found, d = taylor(g, of, f, by), n + m
    at = lambda y, i, j: y.second.get((i, j) if j <= i else (j, i), g.zero)
    split = contraction(g, [[[at(y, i, j) for j in range(d)] for i in range(d)] for y in found])
    return split._replace(first=[y.first.get(j, g.zero) for y in found for j in range(d)])


def contraction(g: Graph, tensor: list[list[list[int]]]) -> Split:
    """The entries of f_zz (n, d, d) that are not constant into the table."""
    d = len(tensor[0])
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
    return Split(list(stored), combined)
