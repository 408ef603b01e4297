"""The second derivatives of f as a table, for the sweep of a single problem.

``v . f_zz`` is wanted with v = V_x of the next stage, one stage after another. The second
derivatives themselves depend on the trajectory alone: they are computed ahead, stages side by side
in the lanes, and what is left for the sweep is a product per entry that is not constant. Which is
less to do, where their common subexpressions keep them from costing n times the contraction.
"""

from __future__ import annotations

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.forms import MADE, Matrix, all_ids, operations, scalar_code
from ocp.engines.native.graph import Graph, TooLarge
from ocp.engines.native.solves import expand_solves

STAGES = 4  # assumed to be computed side by side
GAIN = 0.75  # of the contraction's operations: a table with more is not worth its memory
LONGER = 2.5  # times the contraction's operations: more would take too long to compile
LONGEST = 3_000  # operations of a table: acrobot's 7 000 took 30 s to compile instead of 5
MOST = 4_000  # operations of a contraction for which a table is tried


def table(g: Graph, f: list[int], n: int, m: int) -> tuple[list[int], list[int]]:
    """Entries of the table as functions of x and u, and ``v . f_zz`` (d, d) as one of S and v.

    Args:
        g: the graph of the problem.
        f: the next state.
        n, m: sizes.

    Returns:
        Both empty where the table is not worth it.
    """
    contraction = operations_of_contraction(g, f, n, m)
    if contraction is None:
        return [], []
    try:
        with g.at_most(MADE * MOST):
            entries, combined = made(g, f, n, m)
    except TooLarge:
        return [], []
    ahead, within = operations(g, entries), operations(g, combined)
    worth = ahead / STAGES + len(entries) + within <= GAIN * contraction
    if not entries or not worth or ahead > min(LONGEST, LONGER * contraction):
        return [], []
    return entries, combined


def operations_of_contraction(g: Graph, f: list[int], n: int, m: int) -> int | None:
    """Of ``v . f_zz`` as scalar code; None where they are more than `MOST`, or loops."""
    if any(g.ops[i] in ("matvec", "net") for i in g.reachable(f)):
        return None
    by_z = Derivatives(g, variables(g, n, m))
    along = by_z.gradient(f, [g.leaf("v", k) for k in range(n)])
    pieces, _ = scalar_code(g, [], Matrix("H", along, by_z, symmetric=True), MOST)
    return None if pieces is None else operations(g, all_ids(pieces))


def variables(g: Graph, n: int, m: int) -> list[int]:
    return [g.leaf(kind, i) for kind, size in (("x", n), ("u", m)) for i in range(size)]


def made(g: Graph, f: list[int], n: int, m: int) -> tuple[list[int], list[int]]:
    """Both parts of `table`, worth it or not."""
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
    return expand_solves(g, list(stored)), combined
