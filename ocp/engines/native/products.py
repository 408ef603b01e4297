"""Products with matrices of run-time numbers: loops of the program, not scalars.

A layer's weights are read from the block of parameters as they lie there, so that a network of any
size adds a statement a layer to the program, and new weights never compile anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ocp.engines.native.array_ops import added
from ocp.engines.native.graph import Graph, Weights
from ocp.engines.native.ops import Ids, Symbol
from ocp.engines.native.values import SHARED, Place, Value

if TYPE_CHECKING:
    from ocp.engines.native.recorder import Recorder

LEAST = 64  # entries from which a matrix is read by a loop
LONG = 12  # rows or columns: the last layer of a network may have few entries
PRODUCTS: dict[str, tuple[int, int]] = {  # where the factors are
    "mm": (0, 1), "mv": (0, 1), "addmm": (1, 2), "addmv": (1, 2),
}  # fmt: skip


class Weighted(NamedTuple):
    """A translation that leaves a matrix where it is."""

    handler: Callable[..., Ids]
    matrix: Value


def by_weights(recorder: Recorder, name: str, args: Sequence[Any]) -> Weighted | None:
    """If one factor is a matrix of parameters and the other depends on more; else None."""
    if name not in PRODUCTS or not recorder.products:
        return None
    left, right = (args[k] for k in PRODUCTS[name])
    first = left.depends == SHARED
    matrix = left if first else right
    if matrix.depends != SHARED or left.depends == right.depends or matrix.tensor.ndim != 2:
        return None
    weights = weights_of(recorder, matrix)
    if weights is None:
        return None

    def columns(g: Graph, W: Weights, x: Ids) -> Ids:
        made = [np.array(g.matvec(W, c.tolist()), np.int64) for c in x.T]
        return np.stack(made, axis=1)

    def handler(g: Graph, a: Symbol, b: Symbol) -> Ids:
        if not first:
            return columns(g, weights.transposed, a.ids.T).T
        whole = b.ids if b.ids.ndim == 2 else b.ids[:, None]
        return columns(g, weights, whole).reshape(-1, *b.ids.shape[1:])

    return Weighted(added(handler) if name.startswith("add") else handler, matrix)


def weights_of(recorder: Recorder, value: Value) -> Weights | None:
    """None where its entries do not lie evenly, or are few."""
    few = value.tensor.numel() < LEAST and max(value.shape, default=0) < LONG
    if value.tensor.ndim != 2 or few:
        return None
    place = recorder.place(value)
    if place is None or place.source.per_problem or place.strides.any():
        return None
    steps = evenly(place)
    if steps is None:
        return None
    rows, columns = place.offsets.shape
    source = recorder.shared.number_of(place.source)
    return Weights(source, int(place.offsets[0, 0]), rows, steps[0], columns, steps[1])


def evenly(place: Place) -> tuple[int, int] | None:
    """Steps between rows and columns."""
    offsets = place.offsets
    rows, columns = offsets.shape
    down = int(offsets[1, 0] - offsets[0, 0]) if rows > 1 else 0
    right = int(offsets[0, 1] - offsets[0, 0]) if columns > 1 else 0
    lie = offsets[0, 0] + down * np.arange(rows)[:, None] + right * np.arange(columns)
    return (down, right) if (lie == offsets).all() else None
