"""Scalar expressions as a directed acyclic graph: shared, folded, and evaluated in NumPy.

A node is an operation on earlier nodes, so that ids are a topological order. Equal nodes are one
node. Numbers stand for floats and integers; masks (bools) are a kind of their own, as the
generated program keeps them in registers of another type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ocp.engines.native.arithmetic import COMPARISONS, LOGIC, Number, evaluate_op, solved

Leaf = tuple[Any, ...]  # what a leaf reads: ("x", 0), ("par", source, offset), ...

MASKS = frozenset((*COMPARISONS, *LOGIC))
COMMUTE = frozenset(("add", "mul", "min", "max", "eq", "and", "or"))
EXPONENT_LIMIT = 16  # integer powers up to this are products
NETWORK = frozenset(("net", "net_jacobian", "net_gradient", "net_curvature"))  # see nets.py


WIDE = 8  # entries from which numbers made alike are a vector
DEEP = 8  # operations between products, as in activations


class Weights(NamedTuple):
    """A matrix that is read at run time: entry (i, j) is number
    ``offset + i row_step + j column_step`` of a shared source."""

    source: int
    offset: int
    rows: int
    row_step: int
    columns: int
    column_step: int

    @property
    def transposed(self) -> Weights:
        return self._replace(
            rows=self.columns, row_step=self.column_step,
            columns=self.rows, column_step=self.row_step,
        )  # fmt: skip


class TooLarge(ValueError):  # noqa: N818
    """More nodes than the limit: scalar code is not the form for this model."""


class Graph:
    """Nodes ``ops[i]`` of ``args[i]`` with ``data[i]``: the value of a constant, a leaf's name.

    Args:
        dtype: numbers are folded and evaluated in it.
        limit: number of nodes, used or not, at which to stop.
        folds: whether 0 and 1 vanish; else the form of an expression does not depend on the
            values of its numbers.
    """

    def __init__(
        self, dtype: Any = np.float64, limit: int = 400_000, *, folds: bool = True
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.folds = folds
        self.limit = limit
        self.ops: list[str] = []
        self.args: list[tuple[int, ...]] = []
        self.data: list[Any] = []
        self._known: dict[Any, int] = {}
        self._zeros_vanish = False
        self.zero = self.number(0.0)  # id 0: what data movement fills with
        self.one = self.number(1.0)
        self.true = self.node("true")
        self.false = self.node("false")

    def __len__(self) -> int:
        return len(self.ops)

    # -- making nodes --------------------------------------------------------------------------
    def node(self, op: str, args: tuple[int, ...] = (), data: Any = None) -> int:
        """The node, a new one or the one there is; nothing is folded here."""
        if op in COMMUTE and args[0] > args[1]:
            args = (args[1], args[0])
        key = (op, args, data.tobytes() if op == "number" else data)
        known = self._known.get(key)
        if known is None:
            if len(self.ops) >= self.limit:
                raise TooLarge(f"more than {self.limit} scalar operations")
            known = self._known[key] = len(self.ops)
            self.ops.append(op)
            self.args.append(args)
            self.data.append(data)
        return known

    def number(self, value: float) -> int:
        return self.node("number", (), self.dtype.type(value))

    def mask(self, value: bool) -> int:
        return self.true if value else self.false

    def leaf(self, *name: Any) -> int:
        return self.node("leaf", (), name)

    def is_mask(self, a: int) -> bool:
        return self.ops[a] in MASKS

    def constant(self, a: int) -> Number | None:
        """The value of a number known now, else None."""
        return self.data[a] if self.ops[a] == "number" else None

    @contextmanager
    def zeros_vanish(self) -> Iterator[None]:
        """0 x = 0 whatever x is: right for derivatives, wrong for values (0 nan is nan)."""
        before, self._zeros_vanish = self._zeros_vanish, True
        try:
            yield
        finally:
            self._zeros_vanish = before

    @contextmanager
    def at_most(self, more: int) -> Iterator[None]:
        """Raises `TooLarge` within, once so many nodes were made."""
        before, self.limit = self.limit, min(self.limit, len(self.ops) + more)
        try:
            yield
        finally:
            self.limit = before

    def apply(self, op: str, *args: int) -> int:
        """Any operation by name, folded: what `add`, `mul`, ... do."""
        special = getattr(self, SPECIAL.get(op, ""), None)
        return special(*args) if special else self._plain(op, *args)

    def _plain(self, op: str, *args: int) -> int:
        values = [self.constant(a) for a in args]
        if all(v is not None for v in values):
            with np.errstate(all="ignore"):
                value = evaluate_op(op, values)
            return self.mask(value) if op in MASKS else self.number(value)
        return self.node(op, args)

    # -- arithmetic ----------------------------------------------------------------------------
    def add(self, a: int, b: int) -> int:
        if self.folds and self.zero in (a, b):
            return b if a == self.zero else a
        if self.ops[b] == "neg":
            return self.sub(a, self.args[b][0])
        if self.ops[a] == "neg":
            return self.sub(b, self.args[a][0])
        return self.mul(self.number(2.0), a) if a == b else self._plain("add", a, b)

    def sub(self, a: int, b: int) -> int:
        if self.folds and b == self.zero:
            return a
        if self.folds and a == self.zero:
            return self.neg(b)
        if self.ops[b] == "neg":
            return self.add(a, self.args[b][0])
        return self._plain("sub", a, b)

    def neg(self, a: int) -> int:
        if self.ops[a] == "neg":
            return self.args[a][0]
        return self._plain("neg", a)

    def mul(self, a: int, b: int) -> int:
        if self._zeros_vanish and self.zero in (a, b):
            return self.zero
        for one, other in ((a, b), (b, a)):
            value = self.constant(one)
            if not self.folds or value is None:
                continue
            if abs(value) == 1 and self.constant(other) is None:
                return other if value > 0 else self.neg(other)
        if self.ops[a] == "neg":  # exact, and products that differ by a sign are shared
            return self.neg(self.mul(self.args[a][0], b))
        if self.ops[b] == "neg":
            return self.neg(self.mul(a, self.args[b][0]))
        return self._plain("mul", a, b)

    def div(self, a: int, b: int) -> int:
        if self._zeros_vanish and a == self.zero:
            return self.zero
        value = self.constant(b)
        if not self.folds:
            return self._plain("div", a, b)
        if value is not None and value != 0 and np.isfinite(value) and is_power_of_two(value):
            return self.mul(a, self.number(1 / value))  # exact
        if self.ops[a] == "neg":
            return self.neg(self.div(self.args[a][0], b))
        if self.ops[b] == "neg":
            return self.neg(self.div(a, self.args[b][0]))
        return self._plain("div", a, b)

    def pow(self, a: int, b: int) -> int:
        exponent = self.constant(b)
        if exponent is None or self.constant(a) is not None:
            return self._plain("pow", a, b)
        if exponent == 0.5:
            return self.apply("sqrt", a)
        if exponent == int_or_nan(exponent) and abs(exponent) <= EXPONENT_LIMIT:
            power = self._integer_power(a, abs(int(exponent)))
            return power if exponent >= 0 else self.div(self.one, power)
        return self._plain("pow", a, b)

    def _integer_power(self, a: int, exponent: int) -> int:
        if exponent == 0:
            return self.one
        if exponent in (1, 3):  # as torch: x x x
            return a if exponent == 1 else self.mul(self.mul(a, a), a)
        half = self._integer_power(a, exponent // 2)
        square = self.mul(half, half)
        return self.mul(square, a) if exponent % 2 else square

    def largest(self, args: Sequence[int]) -> int:
        """Maximum of several, whose derivative is shared by all that attain it."""
        return args[0] if len(args) == 1 else self._plain("amax", *args)

    def total(self, terms: Sequence[int]) -> int:
        """The sum; one node where the terms are entries of a product's result or made of them."""
        if len(terms) < WIDE or not (self.made_of_product(terms[0], DEEP)):
            return self.sum(terms)
        return self.node("total", tuple(terms))

    def made_of_product(self, a: int, depth: int) -> bool:
        """Whether operations, at most ``depth`` deep, lead to a product with run-time numbers."""
        if self.ops[a] == "entry":
            return self.ops[self.args[a][0]] == "matvec"
        return depth > 0 and any(self.made_of_product(b, depth - 1) for b in self.args[a])

    def sum(self, terms: Iterable[int]) -> int:
        total = self.zero
        for term in terms:
            total = self.add(total, term)
        return total

    # -- masks ---------------------------------------------------------------------------------
    def not_(self, a: int) -> int:
        if a in (self.true, self.false):
            return self.mask(a == self.false)
        return self.args[a][0] if self.ops[a] == "not" else self.node("not", (a,))

    def and_(self, a: int, b: int) -> int:
        if self.false in (a, b):
            return self.false
        if a in (self.true, b):
            return b
        return a if b == self.true else self.node("and", (a, b))

    def or_(self, a: int, b: int) -> int:
        if self.true in (a, b):
            return self.true
        if a in (self.false, b):
            return b
        return a if b == self.false else self.node("or", (a, b))

    def select(self, mask: int, a: int, b: int) -> int:
        """a where the mask holds, else b; both numbers or both masks."""
        if a == b or mask == self.true:
            return a
        if mask == self.false:
            return b
        if self.is_mask(a):
            return self.or_(self.and_(mask, a), self.and_(self.not_(mask), b))
        if self.ops[mask] == "not":
            return self.select(self.args[mask][0], b, a)
        return self.node("select", (mask, a, b))

    def as_number(self, a: int) -> int:
        return self.select(a, self.one, self.zero) if self.is_mask(a) else a

    def as_mask(self, a: int) -> int:
        return a if self.is_mask(a) else self.not_(self.apply("eq", a, self.zero))

    # -- linear systems ------------------------------------------------------------------------
    def solve(self, A: Sequence[int], b: Sequence[int]) -> list[int]:
        """x of A x = b, A given row by row: one node, and one for each entry of x.

        Kept whole so that its derivatives are solves with the same matrix; `expand_solves` turns
        it into elimination with pivoting, where the systems that share A share its factors.
        """
        n = len(b)
        if all(v == self.zero for v in b) and self._zeros_vanish:
            return [self.zero] * n
        system = self.node("solve", (*A, *b), n)
        return [self.node("entry", (system,), i) for i in range(n)]

    def system(self, node: int) -> tuple[list[int], list[int]]:
        """A (row by row) and b of a solve."""
        n, args = self.data[node], self.args[node]
        return list(args[: n * n]), list(args[n * n :])

    # -- products with matrices of run-time numbers --------------------------------------------
    def matvec(self, weights: Weights, x: Sequence[int]) -> list[int]:
        """W x: one node, and one for each entry. A loop of the program, whatever the size of W."""
        if self._zeros_vanish and all(v == self.zero for v in x):
            return [self.zero] * weights.rows
        product = self.node("matvec", tuple(x), weights)
        return [self.node("entry", (product,), i) for i in range(weights.rows)]

    # -- asking --------------------------------------------------------------------------------
    def reachable(self, roots: Iterable[int]) -> list[int]:
        """Everything the roots are made of, in topological order."""
        stack = list(roots)
        seen = set(stack)
        while stack:
            for a in self.args[stack.pop()]:
                if a not in seen:
                    seen.add(a)
                    stack.append(a)
        return sorted(seen)

    def evaluate(self, roots: Sequence[int], leaves: Callable[[Leaf], Any]) -> list[Any]:
        """Values of nodes, given those of the leaves: numbers, or arrays of equal shape."""
        values: dict[int, Any] = {}
        matrices: dict[Any, Any] = {}
        with np.errstate(all="ignore"):
            for i in self.reachable(roots):
                op = self.ops[i]
                if op == "number":
                    values[i] = self.data[i]
                elif op == "leaf":
                    values[i] = np.asarray(leaves(self.data[i]), self.dtype)
                elif op == "entry":
                    values[i] = values[self.args[i][0]][self.data[i]]
                elif op == "solve":
                    A, b = self.system(i)
                    values[i] = solved([values[a] for a in A], [values[a] for a in b])
                elif op == "matvec":
                    if (W := matrices.get(self.data[i])) is None:
                        W = matrices[self.data[i]] = self._matrix(self.data[i], leaves)
                    inputs = np.stack(np.broadcast_arrays(*(values[a] for a in self.args[i])))
                    values[i] = np.tensordot(W, inputs, 1)
                elif op in NETWORK:
                    from ocp.engines.native.nets import evaluate  # which needs this module

                    given = [values[a] for a in self.args[i]]
                    values[i] = evaluate(self, i, given, leaves, matrices)
                else:
                    values[i] = evaluate_op(op, [values[a] for a in self.args[i]])
        return [values[r] for r in roots]

    def _matrix(self, w: Weights, leaves: Callable[[Leaf], Any]) -> Any:
        offset = lambda i, j: w.offset + i * w.row_step + j * w.column_step
        rows = [
            [leaves(("par", w.source, offset(i, j), 0)) for j in range(w.columns)]
            for i in range(w.rows)
        ]
        return np.asarray(rows, self.dtype)


SPECIAL: Mapping[str, str] = {
    name: name for name in ("add", "sub", "mul", "div", "neg", "pow", "select")
} | {"not": "not_", "and": "and_", "or": "or_"}


def flat(rows: Iterable[Sequence[int]]) -> list[int]:
    return [entry for row in rows for entry in row]


def tri_size(size: int) -> int:
    """Entries of a lower triangle."""
    return size * (size + 1) // 2


def is_power_of_two(value: float) -> bool:
    return math.frexp(abs(float(value)))[0] == 0.5 and 2.0**-100 < abs(value) < 2.0**100


def int_or_nan(value: float) -> float:
    return float(int(value)) if np.isfinite(value) else math.nan
