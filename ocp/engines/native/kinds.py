"""Kinds of stages: expressions that differ in their numbers alone are one function.

A stage is traced by itself, so that ``0.1 * t``, ``weights[t]`` and ``reference[t]`` are numbers
of its expressions. Those numbers are taken out: stages whose expressions are then equal are of one
kind, and what differs among them becomes a column of a table with a row for each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.engines.native.arithmetic import FUNCTIONS
from ocp.engines.native.graph import COMMUTE, Graph
from ocp.engines.native.sources import Source
from ocp.problem import Problem

Slot = tuple[Any, ...]  # ("number", bytes), or the leaf ("par" | "dat", source, offset, 0)
RANK = {"par": 1, "dat": 2, "number": 3}  # of what a slot holds; results of operations come first


@dataclass(frozen=True)
class Form:
    """Expressions without their numbers; those of a stage fill the slots, in order of use.

    Attributes:
        parts: operation, arguments and data of each node. An argument is the number of an earlier
            part, or what the slot that stands there holds.
        roots: of each result, likewise.
    """

    parts: tuple[tuple[str, tuple[Any, ...], Any], ...]
    roots: tuple[tuple[Any, ...], ...]


def form_of(graph: Graph, results: Sequence[Sequence[int]]) -> tuple[Form, list[Slot]]:
    """Of the results (lists of nodes) of one stage. A number has a slot for each of its uses: two
    that are equal at one stage need not be so at another."""
    places: dict[int, int] = {}
    parts: list[tuple[str, tuple[Any, ...], Any]] = []
    slots: list[Slot] = []

    def holds(a: int) -> str:
        if graph.ops[a] == "leaf" and graph.data[a][0] in RANK:
            return str(graph.data[a][0])
        return graph.ops[a] if graph.ops[a] == "number" else ""

    def reference(a: int) -> Any:
        held = holds(a)
        if held:
            data = graph.data[a]
            slots.append((held, data.tobytes()) if held == "number" else data)
        return held or places[a]

    for i in graph.reachable([a for nodes in results for a in nodes]):
        if holds(i):
            continue
        args: Sequence[int] = graph.args[i]
        if graph.ops[i] in COMMUTE:  # ids say which number was met first, which may change
            args = sorted(args, key=lambda a: RANK.get(holds(a), 0))
        places[i] = len(parts)
        parts.append((graph.ops[i], tuple(map(reference, args)), graph.data[i]))
    roots = tuple(tuple(map(reference, nodes)) for nodes in results)
    return Form(tuple(parts), roots), slots


def rebuilt(graph: Graph, form: Form, fillings: Sequence[int]) -> list[list[int]]:
    """The results of a form as nodes of a graph, given the nodes that fill its slots: numbers
    that are the same at all stages are folded now."""
    filling, ids = iter(fillings), list[int]()
    node = lambda reference: next(filling) if isinstance(reference, str) else ids[reference]
    for op, references, data in form.parts:
        args = tuple(map(node, references))
        foldable = op in FUNCTIONS and args
        ids.append(graph.apply(op, *args) if foldable else graph.node(op, args, data))
    return [[node(r) for r in references] for references in form.roots]


@dataclass
class Kind:
    """Stages of one form.

    Attributes:
        form: theirs.
        sizes: n, m and n' of them.
        stages: which they are.
        slots: what fills the slots at each of them.
    """

    form: Form
    sizes: tuple[int, int, int]
    stages: list[int] = field(default_factory=list)
    slots: list[list[Slot]] = field(default_factory=list)

    def columns(self) -> list[tuple[Slot, ...]]:
        """Of each slot, what fills it at every stage."""
        return list(zip(*self.slots, strict=True))


class Table:
    """Numbers that differ from stage to stage, with a row a stage: shared, or per problem.

    Column j of one kind and of another lie in the same place: a stage is of one kind.
    """

    def __init__(self, stages: int) -> None:
        self.rows: list[list[Slot | None]] = [[] for _ in range(stages)]
        self._known: dict[tuple[int, tuple[Slot, ...]], int] = {}

    @property
    def width(self) -> int:
        return max(map(len, self.rows))

    def column(self, stages: Sequence[int], contents: tuple[Slot, ...]) -> int:
        """Where the contents, one for each of a kind's stages, are found in their rows."""
        key = stages[0], contents
        if key not in self._known:
            self._known[key] = len(self.rows[stages[0]])
            for t, slot in zip(stages, contents, strict=True):
                self.rows[t].append(slot)
        return self._known[key]

    def source(self, sources: Sequence[Source], dtype: torch.dtype, per_problem: bool) -> Source:
        """Reads them; ``sources`` are those that slots speak of."""
        filled = [slot for row in self.rows for slot in row if slot is not None]
        used = sorted({slot[1] for slot in filled if slot[0] != "number"})
        starts, total = {}, 0
        for k in used:
            starts[k], total = total, total + sources[k].size
        plain = list(dict.fromkeys(slot[1] for slot in filled if slot[0] == "number"))
        at = {number: total + i for i, number in enumerate(plain)}
        kind = np.float64 if dtype == torch.float64 else np.float32
        constants = torch.from_numpy(np.frombuffer(b"".join(plain), dtype=kind).copy())
        index = np.zeros((len(self.rows), self.width), dtype=np.int64)  # where empty: any number
        for t, row in enumerate(self.rows):
            for j, slot in enumerate(row):
                assert slot is not None
                index[t, j] = at[slot[1]] if slot[0] == "number" else starts[slot[1]] + slot[2]
        flat_index, shape = torch.from_numpy(index.reshape(-1)), index.shape

        def read(problem: Problem) -> Tensor:
            device = problem.x0.device
            flats = [sources[k].flat(problem).to(device, dtype) for k in used]
            own = [constants.to(device)] if constants.numel() else []
            flat = torch.cat([*flats, *own], dim=-1)
            return flat.index_select(-1, flat_index.to(device)).reshape(*flat.shape[:-1], *shape)

        name = "what differs from stage to stage"
        return Source(name, shape, dtype, read, per_problem, table=True)
