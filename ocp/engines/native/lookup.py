"""Lookups whose index is not known while tracing: by the stage, or by a computed integer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocp.engines.native.graph import Graph
from ocp.engines.native.ops import Ids, Unsupported
from ocp.engines.native.sources import Source, gathered

ROWS = 64  # rows among which a computed index may choose


def by_stage(source: Source, entries: Ids) -> tuple[Source, Ids, Ids]:
    """Entries (T, ...) of the source that stage t reads, as source, offsets and strides.

    Where they move by the same step from stage to stage (``reference[t + 1]``) the source itself
    is read; else a table with a row a stage is made of it (``reference[t.clamp(max=9)]``).
    """
    first = entries[0]
    strides = entries[1] - first if len(entries) > 1 else np.zeros_like(first)
    t = np.arange(len(entries)).reshape(-1, *[1] * first.ndim)
    if (entries == first + strides * t).all():
        return source, first, strides
    rows = np.arange(first.size).reshape(first.shape)
    table = gathered(source, entries.reshape(len(entries), -1))
    return table, rows, np.full_like(rows, first.size)


def by_selection(
    g: Graph, subject: Ids, index: Ids, positions: Callable[[Tensor], NDArray[np.int64]]
) -> Ids:
    """What a computed index picks: a chain of selections over all rows there are.

    Args:
        subject: nodes of the tensor looked up in.
        index: nodes of the index; out of range, which PyTorch refuses, gives nan.
        positions: of an index tensor of this shape, the flat position in ``subject`` of each
            entry of the result.

    Raises:
        Unsupported: more than `ROWS` rows.
    """
    zeros = torch.zeros(index.shape, dtype=torch.int64)
    rows = []
    for r in range(ROWS + 1):
        try:
            rows.append(positions(zeros + r))
        except (IndexError, RuntimeError):  # there is no row r
            break
    if not rows or len(rows) > ROWS:
        raise Unsupported(f"an index computed from data into more than {ROWS} rows")
    owner = np.zeros(rows[0].shape, dtype=np.int64)  # which entry of the index decides
    if len(rows) > 1:
        for k in range(index.size):
            one = zeros.clone()
            one.reshape(-1)[k] = 1
            owner[positions(one) != rows[0]] = k
    flat, chosen = subject.reshape(-1), index.reshape(-1)
    result = np.empty(rows[0].shape, dtype=np.int64)
    for place in np.ndindex(*result.shape):
        i = int(chosen[owner[place]])
        from_end = g.add(i, g.number(len(rows)))
        i = g.select(g.apply("lt", i, g.zero), from_end, i)
        first = int(flat[rows[0][place]])
        result[place] = g.false if g.is_mask(first) else g.number(math.nan)
        for r in reversed(range(len(rows))):
            hit = g.apply("eq", i, g.number(r))
            result[place] = g.select(hit, int(flat[rows[r][place]]), int(result[place]))
    return result
