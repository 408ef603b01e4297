"""Writes the roots of a graph anew, with one node for each network that is found in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ocp.engines.native import nets
from ocp.engines.native.graph import Graph, Weights
from ocp.engines.native.vectors import Finder, NotAlike, Par, Scalars, Span, Vector

# Tangents of the vectors of all networks, which second derivatives keep on the stack at a time: at
# most 4 MB, with packs of 64 bytes.
MOST = 60_000
ENTRIES = 4_096  # of its Jacobian


@dataclass(eq=False)
class Group:
    """Vectors of one network.

    Attributes:
        outputs: vector and entry of the scalars that are seen of it.
        inputs: scalars that it needs, once `built`.
    """

    vectors: list[Vector] = field(default_factory=list)
    outputs: list[tuple[Vector, int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    call: nets.Call | None = None


def grouped(finder: Finder) -> dict[int, Group]:
    """Networks, by id of each of their vectors; layers without an activation between are none."""
    vectors: dict[int, Vector] = {}
    parent: dict[int, int] = {}

    def top(k: int) -> int:
        while parent.setdefault(k, k) != k:
            k = parent[k]
        return k

    for known in (*finder.products.values(), *finder.totals.values()):
        for v in behind(known):
            vectors[id(v)] = v
            for part in v.parts:
                if isinstance(part, Span):
                    parent[top(id(part.vector))] = top(id(v))
    groups: dict[int, Group] = {}
    for k, v in vectors.items():
        groups.setdefault(top(k), Group()).vectors.append(v)
    worth = lambda group: any(
        v.kind == "map" and any(isinstance(p, Span) for p in v.parts) for v in group.vectors
    )
    return {id(v): group for group in groups.values() if worth(group) for v in group.vectors}


def behind(vector: Vector) -> list[Vector]:
    """A vector and those it is made of, each after what it needs."""
    order: dict[int, Vector] = {}

    def visit(v: Vector) -> None:
        if id(v) not in order:
            for part in v.parts:
                if isinstance(part, Span):
                    visit(part.vector)
            order[id(v)] = v

    visit(vector)
    return list(order.values())


class Builder:
    """The steps of a network, numbered from its outputs: alike for networks that are alike."""

    def __init__(self, group: Group) -> None:
        self.inputs: list[int] = []
        self.steps: list[nets.Step] = []
        self.places: list[tuple[int, int]] = []
        self.number: dict[int, int] = {}
        for vector, _ in group.outputs:
            for v in behind(vector):
                if id(v) not in self.number:
                    step = self.step(v)
                    self.steps.append(step)
                    self.number[id(v)] = len(self.steps)
        self.outputs = [nets.Ref(self.number[id(v)], entry, 1) for v, entry in group.outputs]

    def step(self, v: Vector) -> nets.Step:
        if v.kind == "map":
            assert isinstance(v.data, int)
            operands = tuple(
                nets.Param(self.slot(p.source, p.offset), p.step, p.size)
                if isinstance(p, Par)
                else self.ref(p)
                for p in v.parts
            )
            return nets.Map(len(v.ids), v.data, operands)
        refs = tuple(self.ref(p) for p in v.parts if not isinstance(p, Par))
        if v.kind == "total":
            return nets.Total(refs[0])
        if v.kind == "pack":
            return nets.Joined(refs)
        assert isinstance(v.data, Weights)
        w = v.data
        slot = self.slot(w.source, w.offset)
        return nets.Linear(slot, w.rows, w.row_step, w.columns, w.column_step, refs[0])

    def slot(self, source: int, offset: int) -> int:
        self.places.append((source, offset))
        return len(self.places) - 1

    def ref(self, part: Span | Scalars) -> nets.Ref:
        if isinstance(part, Span):
            return nets.Ref(self.number[id(part.vector)], part.start, part.size)
        self.inputs += [i for i in dict.fromkeys(part.ids) if i not in self.inputs]
        at = [self.inputs.index(i) for i in part.ids]
        runs: list[list[int]] = []
        for k in at:
            follows = runs and k == runs[-1][-1] + 1
            runs[-1].append(k) if follows else runs.append([k])
        pieces = tuple(nets.Ref(0, run[0], len(run)) for run in runs)
        if len(pieces) == 1:
            return pieces[0]
        self.steps.append(nets.Joined(pieces))
        return nets.Ref(len(self.steps), 0, len(at))


class Rewriter:
    """Writes roots anew, with a node for each network."""

    def __init__(self, graph: Graph, finder: Finder) -> None:
        self.graph, self.finder = graph, finder
        self.groups = grouped(finder)
        self.nets: dict[object, nets.Net] = {}
        self.tangents = 0

    def seen(self, i: int) -> tuple[Group, Vector, int] | None:
        """The network that a scalar is an output of."""
        g = self.graph
        vector, entry = self.finder.totals.get(i), 0
        if g.ops[i] == "entry":
            vector, entry = self.finder.products.get(g.args[i][0]), g.data[i]
        group = None if vector is None else self.groups.get(id(vector))
        return None if group is None or vector is None else (group, vector, entry)

    def demand(self, roots: Iterable[int]) -> None:
        """Notes what is seen of each network."""
        stack, known = list(roots), set(roots)
        while stack:
            i = stack.pop()
            found = self.seen(i)
            needed: Iterable[int] = self.graph.args[i]
            if found is not None:
                group, vector, entry = found
                group.outputs.append((vector, entry))
                needed = scalars_behind(vector)
            fresh = set(needed) - known
            known |= fresh
            stack += fresh
        for group in {id(g): g for g in self.groups.values()}.values():
            if group.outputs:
                group.outputs.sort(key=lambda o: (o[0].ids[0], o[1]))
                self.build(group)

    def build(self, group: Group) -> None:
        built = Builder(group)
        key = len(built.inputs), tuple(built.steps), tuple(built.outputs)
        if key not in self.nets:
            self.nets[key] = nets.made(self.graph, *key)
        net = self.nets[key]
        self.tangents += net.inputs * sum(net.sizes)
        if self.tangents > MOST or net.inputs * len(net.outputs) > ENTRIES:
            raise NotAlike("too many inputs and outputs")
        group.inputs, group.call = built.inputs, nets.Call(net, tuple(built.places))

    def run(self, roots: Sequence[int]) -> list[int]:
        """The same values; the roots of a graph with networks."""
        self.demand(roots)
        g = self.graph
        new: dict[int, int] = {}
        stack = list(roots)
        while stack:
            i = stack[-1]
            found = self.seen(i)
            needed = g.args[i] if found is None else tuple(found[0].inputs)
            missing = [a for a in needed if a not in new]
            if i in new or missing:
                stack += missing if i not in new else []
                if i in new:
                    stack.pop()
                continue
            args = tuple(new[a] for a in needed)
            if found is not None:
                group, vector, entry = found
                assert group.call is not None
                k = group.outputs.index((vector, entry))
                new[i] = nets.results(g, "net", group.call, args)[k]
            else:
                new[i] = i if args == g.args[i] else g.node(g.ops[i], args, g.data[i])
        return [new[r] for r in roots]


def scalars_behind(vector: Vector) -> set[int]:
    parts = (p for v in behind(vector) for p in v.parts)
    return {i for p in parts if isinstance(p, Scalars) for i in p.ids}


def with_networks(graph: Graph, values: dict[str, list[int]]) -> dict[str, list[int]]:
    """The roots of the same functions, in which each network is a node; or as they were."""
    roots = [i for ids in values.values() for i in ids]
    order = graph.reachable(roots)
    if not any(graph.ops[i] == "matvec" for i in order):
        return values
    try:
        work = Rewriter(graph, Finder(graph, order))
        new = iter(work.run(roots))
    except NotAlike:
        return values
    return {name: [next(new) for _ in ids] for name, ids in values.items()}
