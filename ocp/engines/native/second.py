"""The second derivatives of f as a table, for the sweep of a single problem.

``v . f_zz`` is wanted with v = V_x of the next stage, one stage after another. The second
derivatives themselves depend on the trajectory alone: they are computed ahead, stages side by side
in the lanes, and what is left for the sweep is a product per entry that is not constant. Which is
less to do, where their common subexpressions keep them from costing n times the contraction.
"""

from __future__ import annotations

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.graph import Graph, TooLarge
from ocp.engines.native.solves import expand_solves

STAGES = 4  # assumed to be computed side by side
GAIN = 0.75  # of the contraction's operations: a table with more is not worth its memory
LONGER = 2.5  # times the contraction's operations: more would take too long to compile
MOST = 4_000  # operations of a contraction for which a table is tried


def table(g: Graph, f: list[int], n: int, m: int, contraction: int) -> tuple[list[int], list[int]]:
    """Entries of the table as functions of x and u, and ``v . f_zz`` (d, d) as one of S and v.

    Args:
        g: the graph of the problem.
        f: the next state.
        n, m: sizes.
        contraction: operations of ``v . f_zz`` by itself.

    Returns:
        Both empty where the table is not worth it.
    """
    if contraction > MOST:
        return [], []
    try:
        entries, combined = made(g, f, n, m)
    except TooLarge:
        return [], []
    ahead, within = (
        sum(g.ops[i] not in ("number", "leaf") for i in g.reachable(ids))
        for ids in (entries, combined)
    )
    worth = ahead / STAGES + len(entries) + within <= GAIN * contraction
    if not entries or not worth or ahead > LONGER * contraction:
        return [], []
    return entries, combined


def made(g: Graph, f: list[int], n: int, m: int) -> tuple[list[int], list[int]]:
    """Both parts of `table`, worth it or not."""
    z = [g.leaf(kind, i) for kind, size in (("x", n), ("u", m)) for i in range(size)]
    by_z, d = Derivatives(g, z), n + m
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
    return expand_solves(g, list(stored)), combined
