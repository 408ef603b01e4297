"""Derivatives of scalar expressions, as expressions of the same graph.

Where a function has a kink the derivative is PyTorch's choice: |x| and relu have 0 at 0, equal
arguments of a maximum share it, clamp has 1 at its limits, sqrt has infinity at 0, a norm 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from ocp.engines.native.graph import MASKS, NETWORK, Graph, tri_size
from ocp.engines.native.values import Untraceable

FLAT = MASKS | {"number", "sign", "floor", "stop"}  # no derivative passes
BOTH_BELOW = 20_000  # nodes times directions up to which both modes are tried


class Derivatives:
    """Differentiates with respect to the leaves ``wrt`` (node ids)."""

    def __init__(self, graph: Graph, wrt: Sequence[int]) -> None:
        self.graph, self.wrt = graph, list(wrt)
        self._bits: list[int] = []  # of each node, on which of wrt it depends
        self._own = {leaf: 1 << j for j, leaf in enumerate(self.wrt)}

    # -- what solvers need ---------------------------------------------------------------------
    def jacobian(self, outputs: Sequence[int]) -> list[list[int]]:
        """d outputs / d wrt, row by row; forward or reverse mode, whichever gives less to do."""
        g = self.graph
        size = len(g.reachable(outputs))
        forward, reverse = partial(self._forward, outputs), partial(self._reverse, outputs)
        if size * len(self.wrt) > BOTH_BELOW:
            return forward() if len(self.wrt) <= len(outputs) else reverse()
        candidates = [forward(), reverse()]
        return min(candidates, key=lambda rows: len(g.reachable([e for row in rows for e in row])))

    def gradient(self, outputs: Sequence[int], seeds: Sequence[int]) -> list[int]:
        """d (seeds . outputs) / d wrt, in reverse mode."""
        with self.graph.zeros_vanish():
            return self._adjoints(outputs, seeds)

    def hessian(self, gradient: Sequence[int]) -> list[list[int]]:
        """Symmetric d gradient / d wrt: forward mode over the lower triangle, mirrored."""
        d = len(self.wrt)
        H = [[self.graph.zero] * d for _ in range(d)]
        with self.graph.zeros_vanish():
            for j in range(d):
                for i, entry in enumerate(self._tangents(gradient[j:], j), start=j):
                    H[i][j] = H[j][i] = entry
        return H

    # -- the two modes -------------------------------------------------------------------------
    def _forward(self, outputs: Sequence[int]) -> list[list[int]]:
        with self.graph.zeros_vanish():
            columns = [self._tangents(outputs, j) for j in range(len(self.wrt))]
        return [list(row) for row in zip(*columns, strict=True)]

    def _reverse(self, outputs: Sequence[int]) -> list[list[int]]:
        with self.graph.zeros_vanish():
            return [self._adjoints([y], [self.graph.one], last=True) for y in outputs]

    def _tangents(self, outputs: Sequence[int], j: int) -> list[int]:
        """Derivatives of the outputs along the j-th of wrt."""
        g, bit = self.graph, 1 << j
        of: dict[int, int] = {self.wrt[j]: g.one}
        systems: dict[int, list[int]] = {}
        tangent = lambda a: of.get(a, g.zero)
        for i in g.reachable(outputs):
            if not self.depends(i) & bit or i in of:
                continue
            op, args = g.ops[i], g.args[i]
            if op == "select":
                of[i] = g.select(args[0], tangent(args[1]), tangent(args[2]))
            elif op == "solve":
                systems[i] = self._solve_tangent(i, tangent)
            elif op == "matvec":
                systems[i] = g.matvec(g.data[i], [tangent(a) for a in args])
            elif op in NETWORK:
                systems[i] = [
                    g.sum(g.mul(c, of[a]) for c, a in row if of.get(a, g.zero) != g.zero)
                    for row in network_rows(g, i)
                ]
            elif op == "entry":
                of[i] = systems[args[0]][g.data[i]]
            else:
                of[i] = g.sum(
                    self._scaled(i, k, of[a])
                    for k, a in enumerate(args)
                    if of.get(a, g.zero) != g.zero
                )
        return [tangent(y) for y in outputs]

    def _adjoints(
        self, outputs: Sequence[int], seeds: Sequence[int], last: bool = False
    ) -> list[int]:
        """``last``: what comes out is not differentiated again."""
        g = self.graph
        of: dict[int, int] = {}
        systems: dict[int, dict[int, int]] = {}

        def give(node: int, amount: int) -> None:
            if self.depends(node) and amount != g.zero:
                of[node] = g.add(of[node], amount) if node in of else amount

        for y, seed in zip(outputs, seeds, strict=True):
            give(y, seed)
        for i in reversed(g.reachable(outputs)):
            if i not in of and i not in systems:
                continue
            op, args = g.ops[i], g.args[i]
            if op == "select":
                give(args[1], g.select(args[0], of[i], g.zero))
                give(args[2], g.select(args[0], g.zero, of[i]))
            elif op == "entry":
                systems.setdefault(args[0], {})[g.data[i]] = of[i]
            elif op == "solve":
                self._solve_adjoint(i, systems[i], give)
            elif op in ("matvec", "net"):
                for a, amount in zip(args, self._block(i, systems[i], last), strict=True):
                    give(a, amount)
            else:
                for k, a in enumerate(args):
                    if self.depends(a):
                        give(a, self._scaled(i, k, of[i]))
        return [of.get(leaf, g.zero) for leaf in self.wrt]

    def _block(self, i: int, given: dict[int, int], last: bool) -> list[int]:
        """Adjoints of the arguments of a product or network, from those of its entries."""
        g = self.graph
        if g.ops[i] == "net":
            entries = range(len(g.data[i].net.outputs))
            return network_adjoint(g, i, [given.get(r, g.zero) for r in entries], last)
        weights = g.data[i]
        return g.matvec(weights.transposed, [given.get(r, g.zero) for r in range(weights.rows)])

    def depends(self, node: int) -> int:
        """Bits of wrt that the node's derivative can see."""
        g, bits = self.graph, self._bits
        for i in range(len(bits), node + 1):
            mask = self._own.get(i, 0)
            if g.ops[i] not in FLAT:
                for a in g.args[i]:
                    mask |= bits[a]
            bits.append(mask)
        return bits[node]

    # -- linear systems: A x = b ---------------------------------------------------------------
    def _solve_tangent(self, node: int, tangent: Callable[[int], int]) -> list[int]:
        """dx = A^-1 (db - dA x)."""
        g = self.graph
        A, b = g.system(node)
        x = [g.node("entry", (node,), i) for i in range(len(b))]
        right = [
            g.sub(
                tangent(b[r]), g.sum(g.mul(tangent(A[r * len(b) + c]), v) for c, v in enumerate(x))
            )
            for r in range(len(b))
        ]
        return g.solve(A, right)

    def _solve_adjoint(
        self, node: int, given: dict[int, int], give: Callable[[int, int], None]
    ) -> None:
        """With w = A^-T x_bar: b_bar = w, A_bar = -w x'."""
        g = self.graph
        A, b = g.system(node)
        n = len(b)
        transposed = [A[c * n + r] for r in range(n) for c in range(n)]
        w = g.solve(transposed, [given.get(i, g.zero) for i in range(n)])
        for r in range(n):
            give(b[r], w[r])
            for c in range(n):
                if self.depends(A[r * n + c]):
                    give(A[r * n + c], g.neg(g.mul(w[r], g.node("entry", (node,), c))))

    # -- local derivatives ---------------------------------------------------------------------
    def coefficient(self, i: int, k: int) -> int:
        """The derivative of node i by its k-th argument; 0 where none passes."""
        g = self.graph
        if g.ops[i] == "select":
            here, there = (g.one, g.zero) if k == 1 else (g.zero, g.one)
            return g.zero if k == 0 else g.select(g.args[i][0], here, there)
        return self._scaled(i, k, g.one)

    def _scaled(self, i: int, k: int, d: int) -> int:
        """d times the derivative of node i by its k-th argument."""
        g = self.graph
        op, args = g.ops[i], g.args[i]
        if op in ("add", "total") or (op == "sub" and k == 0):
            return d
        if op in ("sub", "neg"):
            return g.neg(d)
        if op == "mul":
            return g.mul(d, args[1 - k])
        if op == "div":
            along = g.mul(d, g.div(g.one, args[1]))
            return along if k == 0 else g.neg(g.mul(along, i))
        return g.mul(d, self._partial(i, k))

    def _partial(self, i: int, k: int) -> int:
        g = self.graph
        op, args = g.ops[i], g.args[i]
        if op in UNARY_PARTIALS:
            return UNARY_PARTIALS[op](g, args[0], i)
        if op == "amax":
            hit = [g.select(g.apply("eq", a, i), g.one, g.zero) for a in args]
            return g.div(hit[k], g.sum(hit))
        a, b = args
        if op in ("min", "max"):
            this, that = args[k], args[1 - k]
            lost = g.apply("lt", this, that) if op == "max" else g.apply("lt", that, this)
            shared = g.select(g.apply("eq", a, b), g.number(0.5), g.one)
            return g.select(lost, g.zero, shared)
        if op == "atan2":
            squares = g.add(g.mul(a, a), g.mul(b, b))
            recip = g.select(g.apply("eq", squares, g.zero), g.zero, g.div(g.one, squares))
            return g.mul(b, recip) if k == 0 else g.neg(g.mul(a, recip))
        if op != "pow":
            raise Untraceable(op, "its derivative is not known to the native engine", "")
        if k == 0:
            slope = g.mul(b, g.pow(a, g.sub(b, g.one)))
            return g.select(g.apply("eq", b, g.zero), g.zero, slope)
        at_zero = g.and_(g.apply("eq", a, g.zero), g.apply("le", g.zero, b))
        return g.select(at_zero, g.zero, g.mul(i, g.apply("log", a)))


# -- networks -------------------------------------------------------------------------------------
def network_rows(g: Graph, i: int) -> list[list[tuple[int, int]]]:
    """Of each entry of a node about a network, (derivative, argument).

    Raises:
        Untraceable: the node is a second derivative, or a first one that was not to be
            differentiated.
    """
    from ocp.engines.native.nets import results

    call, args = g.data[i], g.args[i]
    k, r = call.net.inputs, len(call.net.outputs)
    J = results(g, "net_jacobian", call, args[:k])
    if g.ops[i] == "net":
        return [[(J[y * k + a], args[a]) for a in range(k)] for y in range(r)]
    if g.ops[i] != "net_gradient":
        raise Untraceable(g.ops[i], "its derivative is not known to the native engine", "")
    H = results(g, "net_curvature", call, args)
    at = lambda a, b: H[tri_size(max(a, b)) + min(a, b)]
    return [
        [(at(a, b), args[b]) for b in range(k)] + [(J[y * k + a], args[k + y]) for y in range(r)]
        for a in range(k)
    ]


def network_adjoint(g: Graph, i: int, given: Sequence[int], last: bool) -> list[int]:
    """Adjoints of a network's inputs, from those of its outputs; ``last``: see `_adjoints`."""
    from ocp.engines.native.nets import results

    call, args = g.data[i], g.args[i]
    if not last:
        return results(g, "net_gradient", call, (*args, *given))
    k = len(args)
    J = results(g, "net_jacobian", call, args)
    return [g.sum(g.mul(w, J[y * k + a]) for y, w in enumerate(given)) for a in range(k)]


# -- y = op(a): dy/da ----------------------------------------------------------------------------
Partial = Callable[[Graph, int, int], int]


def _of_squares(g: Graph, constant: float, sign: int, a: int) -> int:
    """constant + sign a^2."""
    square = g.mul(a, a)
    c = g.number(constant)
    return g.add(c, square) if sign > 0 else g.sub(c, square)


def _root(g: Graph, a: int, y: int) -> int:
    return g.select(g.apply("eq", y, g.zero), g.zero, g.div(g.number(0.5), y))


def _bell(g: Graph, a: int, y: int) -> int:
    return g.mul(g.number(2 / math.sqrt(math.pi)), g.apply("exp", g.neg(g.mul(a, a))))


UNARY_PARTIALS: dict[str, Partial] = {
    "abs": lambda g, a, y: g.apply("sign", a),
    "sqrt": lambda g, a, y: g.div(g.number(0.5), y),
    "root": _root,
    "rsqrt": lambda g, a, y: g.mul(g.number(-0.5), g.mul(y, g.mul(y, y))),
    "sin": lambda g, a, y: g.apply("cos", a),
    "cos": lambda g, a, y: g.neg(g.apply("sin", a)),
    "tan": lambda g, a, y: _of_squares(g, 1.0, 1, y),
    "asin": lambda g, a, y: g.apply("rsqrt", _of_squares(g, 1.0, -1, a)),
    "acos": lambda g, a, y: g.neg(g.apply("rsqrt", _of_squares(g, 1.0, -1, a))),
    "atan": lambda g, a, y: g.div(g.one, _of_squares(g, 1.0, 1, a)),
    "sinh": lambda g, a, y: g.apply("cosh", a),
    "cosh": lambda g, a, y: g.apply("sinh", a),
    "tanh": lambda g, a, y: _of_squares(g, 1.0, -1, y),
    "asinh": lambda g, a, y: g.apply("rsqrt", _of_squares(g, 1.0, 1, a)),
    "acosh": lambda g, a, y: g.apply("rsqrt", _of_squares(g, -1.0, 1, a)),
    "atanh": lambda g, a, y: g.div(g.one, _of_squares(g, 1.0, -1, a)),
    "exp": lambda g, a, y: y,
    "expm1": lambda g, a, y: g.add(y, g.one),
    "log": lambda g, a, y: g.div(g.one, a),
    "log1p": lambda g, a, y: g.div(g.one, g.add(g.one, a)),
    "erf": _bell,
    "sigmoid": lambda g, a, y: g.mul(y, g.sub(g.one, y)),
}
