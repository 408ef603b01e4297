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
from ocp.engines.native.passages import (
    Row,
    add_to,
    arguments,
    divided,
    first_derivatives,
    passages,
)

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
    adjoints: Row = {}
    second: dict[Pair, int] = {}
    parts = divided(g, of, outputs, by)
    known = first_derivatives(g, of, parts)
    with g.zeros_vanish():
        for y, seed in zip(outputs, seeds, strict=True):
            add_to(g, adjoints, seed, {y: g.one})
        for part in reversed(parts):
            weight = adjoints.get(part.node, g.zero)
            add_to(g, adjoints, weight, dict(zip(part.ends, part.slopes, strict=True)))
            for k, row in enumerate(part.curved(g)):
                bends = {(part.ends[k], part.ends[j]): row[j] for j in range(k + 1)}
                add_to(g, second, weight, bends)
    met = sorted({node for pair in second for node in pair})
    place = {node: k for k, node in enumerate(met)}
    pairs = {(place[a], place[b]): entry for (a, b), entry in second.items()}
    first = [known[y].get(j, g.zero) for y in outputs for j in range(len(of.wrt))]
    return Chain(first, [known[node] for node in met], pairs)
