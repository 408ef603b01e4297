"""Derivatives of large functions as a tape of tangents: code of the size of the function itself.

The function is linearised once: every node that depends on z is a combination of others, with
scalar coefficients that the straight-line program computes. The tape says how the tangents, one
number for each entry of z that a node depends on, follow from each other; `dual.h` runs it. Nodes
with one predecessor or one successor have no tangent of their own, their coefficients are
multiplied instead (vertex elimination where it never costs more: Griewank, Walther, Evaluating
Derivatives, 2008, chapter 9). What a node does not depend on is neither stored nor computed.

Second derivatives are the tangents of a gradient program: forward over reverse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ocp.engines.native.derive import Derivatives, network_rows
from ocp.engines.native.graph import NETWORK, Graph, Weights

COMBINE, ROW, MATVEC, END = range(4)  # instructions, see dual.h


@dataclass(eq=False)
class Tangent:
    """A tangent that is stored: a combination of others and of unit vectors.

    Attributes:
        terms: coefficient (a node) by what it multiplies: a tangent, or an entry of z by number.
        support: bits of the entries of z it may depend on.
    """

    terms: Terms
    support: int


Base = Tangent | int
Terms = dict[Base, int]


@dataclass(eq=False)
class Product:
    """Tangents ``outputs = W inputs`` of a matvec node, all with one support."""

    weights: Weights
    inputs: list[Tangent]
    outputs: list[Tangent]


@dataclass(eq=False)
class Tape:
    """Linearised outputs.

    Attributes:
        steps: tangents and products, each after what it needs.
        rows: of each output.
        coefficients: nodes, numbered as the tape reads them.
    """

    directions: int
    symmetric: bool
    steps: list[Tangent | Product] = field(default_factory=list)
    rows: list[Terms] = field(default_factory=list)
    coefficients: list[int] = field(default_factory=list)


def support_of(terms: Terms) -> int:
    bits = 0
    for base in terms:
        bits |= 1 << base if isinstance(base, int) else base.support
    return bits


# -- linearisation ---------------------------------------------------------------------------------
class Lineariser:
    """Writes the outputs as combinations; makes nodes for the coefficients."""

    def __init__(self, graph: Graph, of: Derivatives, outputs: Sequence[int]) -> None:
        self.graph, self.of = graph, of
        self.order = [i for i in graph.reachable(outputs) if of.depends(i)]
        self.uses = Counter(outputs)
        for i in self.order:
            self.uses.update(set(graph.args[i]))
        self.steps: list[Tangent | Product] = []
        self.forms: dict[int, Terms] = {leaf: {j: graph.one} for j, leaf in enumerate(of.wrt)}
        self.systems: dict[int, list[Terms]] = {}

    def run(self) -> None:
        g = self.graph
        for i in self.order:
            if i in self.forms:
                continue
            op = g.ops[i]
            if op == "solve":
                self.systems[i] = self.solve(i)
            elif op == "matvec":
                self.systems[i] = self.product(i)
            elif op in NETWORK:
                self.systems[i] = self.network(i)
            elif op == "entry":
                self.forms[i] = self.systems[g.args[i][0]][g.data[i]]
            else:
                terms = self.total(
                    (self.of.coefficient(i, k), a) for k, a in enumerate(g.args[i])
                    if a in self.forms
                )  # fmt: skip
                single = len(terms) <= 1 or self.uses[i] == 1
                self.forms[i] = terms if single else {self.stored(terms): g.one}

    def total(self, scaled: Iterable[tuple[int, int]]) -> Terms:
        """Sum of coefficient times node."""
        g = self.graph
        sums: Terms = {}
        for coefficient, node in scaled:
            for base, inner in self.forms.get(node, {}).items():
                sums[base] = g.add(sums.get(base, g.zero), g.mul(coefficient, inner))
        return {base: c for base, c in sums.items() if c != g.zero}

    def stored(self, terms: Terms, support: int | None = None) -> Tangent:
        tangent = Tangent(terms, support_of(terms) if support is None else support)
        self.steps.append(tangent)
        return tangent

    def solve(self, i: int) -> list[Terms]:
        """x of A x = b: dx = A^-1 (db - dA x), by the entries of A^-1."""
        g = self.graph
        A, b = g.system(i)
        n = len(b)
        x = [g.node("entry", (i,), c) for c in range(n)]
        right = []
        for r in range(n):
            inner = [(g.one, b[r]), *((g.neg(x[c]), A[r * n + c]) for c in range(n))]
            right.append(self.stored(self.total(inner)))
        unit = lambda r: [g.one if k == r else g.zero for k in range(n)]
        columns = [g.solve(A, unit(r)) for r in range(n)]
        return [
            {
                right[r]: columns[r][k]
                for r in range(n)
                if right[r].terms and columns[r][k] != g.zero
            }
            for k in range(n)
        ]

    def network(self, i: int) -> list[Terms]:
        """Every result sees every argument: arguments have tangents of their own."""
        for a in set(self.graph.args[i]):
            if len(terms := self.forms.get(a, {})) > 1:
                self.forms[a] = {self.stored(terms): self.graph.one}
        return [self.total(row) for row in network_rows(self.graph, i)]

    def product(self, i: int) -> list[Terms]:
        g = self.graph
        forms = [self.forms.get(a, {}) for a in g.args[i]]
        support = 0
        for terms in forms:
            support |= support_of(terms)
        if not support:
            return [{}] * g.data[i].rows
        inputs = [Tangent(terms, support) for terms in forms]
        outputs = [Tangent({}, support) for _ in range(g.data[i].rows)]
        self.steps.append(Product(g.data[i], inputs, outputs))
        return [{t: g.one} for t in outputs]


def linearise(
    graph: Graph, of: Derivatives, outputs: Sequence[int], symmetric: bool = False
) -> Tape:
    """The tape of d outputs / d wrt; ``symmetric``: of the lower triangle, mirrored."""
    with graph.zeros_vanish():
        work = Lineariser(graph, of, outputs)
        work.run()
    tape = Tape(len(of.wrt), symmetric, rows=[work.forms.get(y, {}) for y in outputs])
    tape.steps = needed(work.steps, tape.rows)
    known: dict[int, None] = {}
    for terms in all_terms(tape):
        known |= dict.fromkeys(terms.values())
    tape.coefficients = list(known)
    return tape


def all_terms(tape: Tape) -> list[Terms]:
    """Of all combinations, in order."""
    found: list[Terms] = []
    for step in tape.steps:
        found += [t.terms for t in step.inputs] if isinstance(step, Product) else [step.terms]
    return found + tape.rows


def needed(steps: Sequence[Tangent | Product], rows: Iterable[Terms]) -> list[Tangent | Product]:
    """Those that the rows are made of."""
    wanted: set[int] = set()

    def want(terms: Terms) -> None:
        wanted.update(id(base) for base in terms if isinstance(base, Tangent))

    for terms in rows:
        want(terms)
    kept: list[Tangent | Product] = []
    for step in reversed(steps):
        if isinstance(step, Tangent):
            if id(step) in wanted:
                kept.append(step)
                want(step.terms)
        elif any(id(t) in wanted for t in step.outputs):
            kept.append(step)
            for t in step.inputs:
                want(t.terms)
    return kept[::-1]


# -- memory ----------------------------------------------------------------------------------------
class Memory:
    """Hands out places of a block, first fit, and takes them back."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = []  # (begin, end), ascending
        self.size = 0

    def take(self, count: int) -> int:
        for k, (begin, end) in enumerate(self.free):
            if end - begin >= count:
                self.free[k : k + 1] = [(begin + count, end)] if end - begin > count else []
                return begin
        begin = self.size
        self.size += count
        return begin

    def give_back(self, begin: int, count: int) -> None:
        spans = sorted([*self.free, (begin, begin + count)])
        merged = spans[:1]
        for (_, before), (first, last) in pairwise(spans):
            if first == before:
                merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
        self.free = merged


# -- the tape as numbers ---------------------------------------------------------------------------
class Coder:
    """The tape for packs of ``width`` directions: instructions, index lists, memory."""

    def __init__(self, tape: Tape, places: Sequence[int], width: int) -> None:
        self.tape, self.width, self.places_of = tape, width, places
        self.code: list[int] = []
        self.maps: list[int] = []
        self.memory = Memory()
        self._maps: dict[tuple[int, ...], int] = {}
        self._units: dict[int, tuple[int, ...]] = {}
        self._number = {node: k for k, node in enumerate(tape.coefficients)}
        self._at: dict[int, int] = {}  # place of a tangent, by id
        self._used: set[int] = set()
        self.work = 0  # packs multiplied and added

    def units(self, support: int) -> tuple[int, ...]:
        """Packs of directions that a support has, ascending."""
        if support not in self._units:
            bits = [j // self.width for j in range(support.bit_length()) if support >> j & 1]
            self._units[support] = tuple(dict.fromkeys(bits))
        return self._units[support]

    def run(self) -> Coder:
        steps, rows = self.tape.steps, self.rows_after()
        last = self.last_uses(rows)
        for r in rows[-1]:
            self.row(r)
        for k, step in enumerate(steps):
            if isinstance(step, Tangent):
                made = [self.place(step)]
                self.combine(COMBINE, self._at[id(step)], step.terms, step.support)
            else:
                made = self.product(step)
            for r in rows[k]:
                self.row(r)
            for tangent in [*last[k], *(t for t in made if id(t) not in self._used)]:
                self.memory.give_back(self._at[id(tangent)], len(self.units(tangent.support)))
        self.code.append(END)
        return self

    def rows_after(self) -> dict[int, list[int]]:
        """The rows that can be written after each step; -1: before all."""
        made = {}
        for k, step in enumerate(self.tape.steps):
            for t in [step] if isinstance(step, Tangent) else step.outputs:
                made[id(t)] = k
        after: dict[int, list[int]] = {k: [] for k in range(-1, len(self.tape.steps))}
        for r, terms in enumerate(self.tape.rows):
            after[max((made.get(id(base), -1) for base in terms), default=-1)].append(r)
        return after

    def last_uses(self, rows: dict[int, list[int]]) -> dict[int, list[Tangent]]:
        """The tangents nobody reads after a step."""
        seen: dict[int, tuple[int, Tangent]] = {}
        for k, step in enumerate(self.tape.steps):
            read = [t.terms for t in step.inputs] if isinstance(step, Product) else [step.terms]
            for terms in [*read, *(self.tape.rows[r] for r in rows[k])]:
                seen |= {id(base): (k, base) for base in terms if isinstance(base, Tangent)}
        self._used = set(seen)
        last: dict[int, list[Tangent]] = {k: [] for k in range(len(self.tape.steps))}
        for k, tangent in seen.values():
            last[k].append(tangent)
        return last

    def place(self, tangent: Tangent) -> Tangent:
        self._at[id(tangent)] = self.memory.take(len(self.units(tangent.support)))
        return tangent

    # -- instructions
    def combine(self, op: int, target: int, terms: Terms, support: int) -> None:
        """op, target, width; counts of whole terms, of others, of unit vectors; then these."""
        units = self.units(support)
        whole: list[int] = []
        parts: list[int] = []
        ones: list[int] = []
        for base, node in terms.items():
            coefficient = self._number[node]
            if isinstance(base, int):
                lane = units.index(base // self.width) * self.width + base % self.width
                ones += [lane, coefficient]
            elif self.units(base.support) == units:
                whole += [self._at[id(base)], coefficient]
            else:
                inner = self.units(base.support)
                where = self.map(tuple(units.index(j) for j in inner))
                parts += [self._at[id(base)], coefficient, len(inner), where]
            self.work += 1 if isinstance(base, int) else len(self.units(base.support))
        counts = [len(whole) // 2, len(parts) // 4, len(ones) // 2]
        self.code += [op, target, len(units), *counts, *whole, *parts, *ones]

    def row(self, r: int) -> None:
        self.combine(ROW, r, self.tape.rows[r], (1 << self.tape.directions) - 1)

    def product(self, step: Product) -> list[Tangent]:
        """inputs are made in one block, outputs in another."""
        count = len(self.units(step.inputs[0].support))
        size_in, size_out = len(step.inputs) * count, len(step.outputs) * count
        begin, end = self.memory.take(size_in), self.memory.take(size_out)
        for k, t in enumerate(step.inputs):
            self.combine(COMBINE, begin + k * count, t.terms, t.support)
        w = step.weights
        place = self.places_of[w.source] + w.offset
        self.code += [MATVEC, end, begin, count, place]
        self.code += [w.rows, w.row_step, w.columns, w.column_step]
        self.memory.give_back(begin, size_in)
        for k, t in enumerate(step.outputs):
            self._at[id(t)] = end + k * count
        self.work += len(step.outputs) * size_in
        return step.outputs

    def map(self, indices: tuple[int, ...]) -> int:
        """Where the list begins."""
        if indices not in self._maps:
            self._maps[indices] = len(self.maps)
            self.maps += indices
        return self._maps[indices]
