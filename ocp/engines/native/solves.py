"""Linear systems of the graph as elimination with partial pivoting, free of branches."""

from __future__ import annotations

from collections.abc import Sequence

from ocp.engines.native.graph import Graph

Step = tuple[int, int, int, bool]  # (row, pivot row, mask or multiplier, whether a swap)


def expand_solves(g: Graph, roots: Sequence[int]) -> list[int]:
    """The roots with every linear system eliminated; systems with one matrix share its factors."""
    if not any(g.ops[i] == "solve" for i in g.reachable(roots)):
        return list(roots)
    new: dict[int, int] = {}
    systems: dict[int, list[int]] = {}
    with g.zeros_vanish():
        for i in g.reachable(roots):
            op, args = g.ops[i], tuple(new[a] for a in g.args[i] if a in new)
            if op == "solve":
                n = g.data[i]
                rows = [list(args[r * n : (r + 1) * n]) for r in range(n)]
                systems[i] = eliminate(g, rows, list(args[n * n :]))
            elif op == "entry" and g.args[i][0] in systems:
                new[i] = systems[g.args[i][0]][g.data[i]]
            else:
                new[i] = i if args == g.args[i] else g.node(op, args, g.data[i])
    return [new[r] for r in roots]


def eliminate(g: Graph, A: Sequence[Sequence[int]], b: list[int]) -> list[int]:
    """x of A x = b. The steps on A do not see b: for equal A they are the same nodes."""
    steps, U, reciprocals = factor(g, A)
    b = list(b)
    for i, k, what, swap in steps:
        if swap:
            b[k], b[i] = g.select(what, b[i], b[k]), g.select(what, b[k], b[i])
        else:
            b[i] = g.sub(b[i], g.mul(what, b[k]))
    n = len(b)
    x = [g.zero] * n
    for i in reversed(range(n)):
        known = g.sum(g.mul(U[i][j], x[j]) for j in range(i + 1, n))
        x[i] = g.mul(g.sub(b[i], known), reciprocals[i])
    return x


def factor(g: Graph, A: Sequence[Sequence[int]]) -> tuple[list[Step], list[list[int]], list[int]]:
    """Steps that make A upper triangular, what they make of it, and 1 / its diagonal.

    The row with the largest entry comes to the pivot by exchanges with every row below it, each
    a selection: the program has no branch for a lane to disagree about.
    """
    n = len(A)
    U = [list(row) for row in A]
    steps: list[Step] = []
    reciprocals = []
    for k in range(n):
        for i in range(k + 1, n):
            if U[i][k] == g.zero:
                continue
            larger = g.apply("lt", g.apply("abs", U[k][k]), g.apply("abs", U[i][k]))
            for j in range(k, n):
                a, b = U[k][j], U[i][j]
                U[k][j], U[i][j] = g.select(larger, b, a), g.select(larger, a, b)
            steps.append((i, k, larger, True))
        reciprocals.append(g.div(g.one, U[k][k]))
        for i in range(k + 1, n):
            multiplier = g.mul(U[i][k], reciprocals[k])
            if multiplier == g.zero:
                continue
            steps.append((i, k, multiplier, False))
            for j in range(k + 1, n):
                U[i][j] = g.sub(U[i][j], g.mul(multiplier, U[k][j]))
    return steps, U, reciprocals
