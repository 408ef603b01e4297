"""Second-order terms as products with the first derivatives of a few nodes in between.

A Runge-Kutta step is a chain of stages. By the numbers that a stage is given (`passages`) its
second derivatives are few, and their sum, weighted by the adjoints of what it gives, is a small
matrix M. With Y, the derivatives of all those numbers by z, ``v . f_zz = Y' M Y``: only M depends
on v, and the products are done on whole rows. Multiplied out (`taylor`, `pushing`) they are more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.graph import Graph
from ocp.engines.native.passages import add_to, local_derivatives, origins, passages

Row = dict[int, int]  # derivatives of a node by z that are not 0
Pair = tuple[int, int]  # two nodes, the later one first


class Chain(NamedTuple):
    """f_z, Y and M, from f and v.

    Attributes:
        first: f_z (n, d), row by row.
        rows: Y, of each node that M is by.
        pairs: entries of M that are not 0, by places in ``rows``, the larger first.
    """

    first: list[int]
    rows: list[Row]
    pairs: dict[Pair, int]


def chain(g: Graph, of: Derivatives, outputs: Sequence[int], seeds: Sequence[int]) -> Chain | None:
    """Of the outputs, contracted with ``seeds``; None where there is no passage to go by."""
    by = arguments(g, of, passages(g, of, outputs))
    if not by:
        return None
    known: dict[int, Row] = {leaf: {k: g.one} for k, leaf in enumerate(of.wrt)}
    adjoints: Row = {}
    second: dict[Pair, int] = {}
    with g.zeros_vanish():
        parts = []
        for node in sorted({*by, *outputs}):
            if node in known:
                continue
            ends, slopes, curved = local_derivatives(g, node, known)
            parts.append((node, ends, slopes, curved))
            known[node] = {}
            for slope, end in zip(slopes, ends, strict=True):
                add_to(g, known[node], slope, known[end])
        for y, seed in zip(outputs, seeds, strict=True):
            add_to(g, adjoints, seed, {y: g.one})
        for node, ends, slopes, curved in reversed(parts):
            weight = adjoints.get(node, g.zero)
            add_to(g, adjoints, weight, dict(zip(ends, slopes, strict=True)))
            for k, row in enumerate(curved):
                bends = {(ends[k], ends[j]): row[j] for j in range(k + 1)}
                add_to(g, second, weight, bends)
    met = sorted({node for pair in second for node in pair})
    place = {node: k for k, node in enumerate(met)}
    pairs = {(place[a], place[b]): entry for (a, b), entry in second.items()}
    first = [known[y].get(j, g.zero) for y in outputs for j in range(len(of.wrt))]
    return Chain(first, [known[node] for node in met], pairs)


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
