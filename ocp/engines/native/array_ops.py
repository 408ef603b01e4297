"""What PyTorch's operations mean for scalars: reductions and products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ocp.engines.native.graph import Graph
from ocp.engines.native.ops import (
    HANDLERS,
    Ids,
    Symbol,
    Unsupported,
    choose,
    convert,
    each,
    handles,
    masks,
    numbers,
    op,
)

Dims = int | Sequence[int] | None


# -- reductions ----------------------------------------------------------------------------------
def axes_of(dims: Dims, ndim: int) -> tuple[int, ...]:
    """All axes where none are named."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(ndim))
    listed = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(sorted(d % ndim for d in listed)) if ndim else ()


def reduce(
    function: Callable[[list[int]], int], ids: Ids, dims: Dims = None, keepdim: bool = False
) -> Ids:
    """``function`` of the list of nodes along the axes."""
    axes = axes_of(dims, ids.ndim)
    kept = [d for d in range(ids.ndim) if d not in axes]
    rows = ids.transpose(*kept, *axes).reshape(math.prod(ids.shape[d] for d in kept), -1)
    values = np.array([function(row.tolist()) for row in rows], dtype=np.int64)
    shape = [1 if d in axes else ids.shape[d] for d in range(ids.ndim)]
    return values.reshape(shape if keepdim else [ids.shape[d] for d in kept])


@handles("sum")
def _sum(g: Graph, x: Symbol, dim: Dims = None, keepdim: bool = False) -> Ids:
    return reduce(g.total, numbers(g, x), dim, keepdim)


@handles("mean")
def _mean(g: Graph, x: Symbol, dim: Dims = None, keepdim: bool = False) -> Ids:
    total = _sum(g, x, dim, keepdim)
    return op(g, "div", total, float(x.ids.size // max(total.size, 1)))


def product(g: Graph, terms: Sequence[int]) -> int:
    result = g.one
    for term in terms:
        result = g.mul(result, term)
    return result


@handles("prod")
def _prod(g: Graph, x: Symbol, dim: Dims = None, keepdim: bool = False) -> Ids:
    return reduce(lambda row: product(g, row), numbers(g, x), dim, keepdim)


@handles("amax")
def _amax(g: Graph, x: Symbol, dim: Dims = (), keepdim: bool = False) -> Ids:
    return reduce(g.largest, numbers(g, x), dim, keepdim)


@handles("amin")
def _amin(g: Graph, x: Symbol, dim: Dims = (), keepdim: bool = False) -> Ids:
    return op(g, "neg", reduce(g.largest, op(g, "neg", numbers(g, x)), dim, keepdim))


def first_extreme(g: Graph, row: Sequence[int], sign: int) -> tuple[int, int]:
    """The first largest (sign 1) or smallest (-1) of the nodes, and its index; a nan is either."""
    best, index = row[0], g.zero
    for i, candidate in enumerate(row[1:], start=1):
        pair = (best, candidate) if sign > 0 else (candidate, best)
        found = g.not_(g.apply("eq", candidate, candidate))  # nan
        found = g.and_(found, g.apply("eq", best, best))
        better = g.or_(g.apply("lt", *pair), found)
        best = g.select(better, candidate, best)
        index = g.select(better, g.number(i), index)
    return best, index


def extreme(sign: int, whole: Callable[..., Ids]) -> Callable[..., Any]:
    def handler(g: Graph, x: Symbol, dim: Any = None, keepdim: bool = False) -> Any:
        ids = numbers(g, x)
        if dim is None:
            return whole(g, x)
        if isinstance(dim, Symbol):
            return op(g, "max" if sign > 0 else "min", x, dim)
        value = reduce(lambda row: first_extreme(g, row, sign)[0], ids, dim, keepdim)
        return value, reduce(lambda row: first_extreme(g, row, sign)[1], ids, dim, keepdim)

    return handler


def arg_extreme(sign: int) -> Callable[..., Ids]:
    def handler(g: Graph, x: Symbol, dim: int | None = None, keepdim: bool = False) -> Ids:
        ids = numbers(g, x)
        return reduce(lambda row: first_extreme(g, row, sign)[1], ids, dim, keepdim)

    return handler


HANDLERS["max"], HANDLERS["min"] = extreme(1, _amax), extreme(-1, _amin)
HANDLERS["argmax"], HANDLERS["argmin"] = arg_extreme(1), arg_extreme(-1)


@handles("any")
def _any(g: Graph, x: Symbol, dim: Dims = None, keepdim: bool = False) -> Ids:
    def fold(row: Sequence[int]) -> int:
        result = g.false
        for a in row:
            result = g.or_(result, a)
        return result

    return reduce(fold, masks(g, x), dim, keepdim)


@handles("all")
def _all(g: Graph, x: Symbol, dim: Dims = None, keepdim: bool = False) -> Ids:
    none = Symbol(each(g.not_, masks(g, x)), torch.bool)
    return each(g.not_, _any(g, none, dim, keepdim))


def scan(function: Callable[[int, int], int], ids: Ids, dim: int) -> Ids:
    result = np.moveaxis(ids.copy(), dim, 0) if ids.ndim else ids
    for before, after in pairwise(range(result.shape[0] if ids.ndim else 0)):
        result[after] = each(function, result[before], result[after])
    return np.moveaxis(result, 0, dim) if ids.ndim else result


HANDLERS["cumsum"] = lambda g, x, dim: scan(g.add, numbers(g, x), dim)
HANDLERS["cumprod"] = lambda g, x, dim: scan(g.mul, numbers(g, x), dim)


@handles("var")
def _var(
    g: Graph, x: Symbol, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False
) -> Ids:
    mean = _mean(g, x, dim, keepdim=True)
    away = op(g, "sub", x.ids, mean)
    total = reduce(g.total, op(g, "mul", away, away), dim, keepdim)
    count = x.ids.size // max(total.size, 1)
    return op(g, "div", total, float(count - (1 if correction is None else correction)))


@handles("std")
def _std(
    g: Graph, x: Symbol, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False
) -> Ids:
    """Slope 0 where all are equal, as torch."""
    return op(g, "root", _var(g, x, dim, correction=correction, keepdim=keepdim))


@handles("linalg_vector_norm")
def _norm(g: Graph, x: Symbol, ord: float = 2, dim: Dims = None, keepdim: bool = False) -> Ids:
    if ord == 2:
        return op(g, "root", reduce(g.total, op(g, "mul", x, x), dim, keepdim))
    size = op(g, "abs", x)
    if ord == 1:
        return reduce(g.sum, size, dim, keepdim)
    if ord == math.inf:
        return reduce(g.largest, size, dim, keepdim)
    raise Unsupported(f"a norm of order {ord}")


@handles("logsumexp")
def _logsumexp(g: Graph, x: Symbol, dim: Dims, keepdim: bool = False) -> Ids:
    top = op(g, "stop", _amax(g, x, dim, keepdim=True))
    total = reduce(g.sum, op(g, "exp", op(g, "sub", x, top)), dim, keepdim)
    return op(g, "add", op(g, "log", total), top.reshape(total.shape))


def shifted(g: Graph, x: Symbol, dim: int) -> Ids:
    """x minus its maximum, through which no derivative needs to pass."""
    return op(g, "sub", x, op(g, "stop", _amax(g, x, dim, keepdim=True)))


@handles("_softmax")
def _softmax(g: Graph, x: Symbol, dim: int, half_to_float: bool) -> Ids:
    e = op(g, "exp", shifted(g, x, dim))
    return op(g, "div", e, reduce(g.sum, e, dim, keepdim=True))


@handles("_log_softmax")
def _log_softmax(g: Graph, x: Symbol, dim: int, half_to_float: bool) -> Ids:
    s = shifted(g, x, dim)
    return op(g, "sub", s, op(g, "log", reduce(g.sum, op(g, "exp", s), dim, keepdim=True)))


@handles("native_layer_norm")
def _layer_norm(
    g: Graph,
    x: Symbol,
    shape: Sequence[int],
    weight: Symbol | None,
    bias: Symbol | None,
    eps: float,
) -> tuple[Ids, Ids, Ids]:
    dims = tuple(range(-len(shape), 0))
    mean = _mean(g, x, dims, keepdim=True)
    var = _var(g, x, dims, correction=0, keepdim=True)
    scale = op(g, "rsqrt", op(g, "add", var, eps))
    y = op(g, "mul", op(g, "sub", x, mean), scale)
    y = y if weight is None else op(g, "mul", y, weight)
    return y if bias is None else op(g, "add", y, bias), mean, scale


def loss(elementwise: Callable[..., Ids]) -> Callable[..., Ids]:
    """Of a difference; reduction 0 none, 1 mean, 2 sum."""

    def handler(g: Graph, x: Symbol, y: Symbol, reduction: int = 1, width: float = 1.0) -> Ids:
        values = elementwise(g, op(g, "sub", x, y), width)
        if reduction == 0:
            return values
        total = reduce(g.sum, values)
        return op(g, "div", total, float(values.size)) if reduction == 1 else total

    return handler


def _smooth_l1(g: Graph, d: Ids, beta: float) -> Ids:
    size = op(g, "abs", d)
    inner = op(g, "div", op(g, "mul", op(g, "mul", d, d), 0.5), beta or 1.0)
    return choose(g, op(g, "lt", size, beta), inner, op(g, "sub", size, 0.5 * beta))


def _huber(g: Graph, d: Ids, delta: float) -> Ids:
    size = op(g, "abs", d)
    inner = op(g, "mul", op(g, "mul", d, d), 0.5)
    outer = op(g, "mul", op(g, "sub", size, 0.5 * delta), delta)
    return choose(g, op(g, "lt", size, delta), inner, outer)


HANDLERS["mse_loss"] = loss(lambda g, d, _: op(g, "mul", d, d))
HANDLERS["smooth_l1_loss"] = loss(_smooth_l1)
HANDLERS["huber_loss"] = loss(_huber)


@handles("_softmax_backward_data")
def _softmax_backward(g: Graph, grad: Symbol, y: Symbol, dim: int, input_dtype: Any) -> Ids:
    flow = op(g, "mul", grad, y)
    return op(g, "sub", flow, op(g, "mul", y, reduce(g.sum, flow, dim, keepdim=True)))


@handles("_to_copy")
def _to_copy(g: Graph, x: Symbol, *, result: torch.dtype) -> Ids:
    return convert(g, x, result)


@handles("constant_pad_nd")
def _pad(g: Graph, x: Symbol, pad: Sequence[int], value: float = 0) -> Ids:
    widths = [(pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)][::-1]
    if x.dtype == torch.bool or any(w < 0 for pair in widths for w in pair):
        raise Unsupported("padding of bools, or by a negative width")
    full = [(0, 0)] * (x.ids.ndim - len(widths)) + widths
    return np.pad(x.ids, full, constant_values=g.number(value))


# -- products ------------------------------------------------------------------------------------
def dot(g: Graph, a: Sequence[int], b: Sequence[int]) -> int:
    return g.total([g.mul(int(p), int(q)) for p, q in zip(a, b, strict=True)])


def matrix_product(g: Graph, a: Ids, b: Ids) -> Ids:
    """(..., i, k) (..., k, j) with equal leading shapes."""
    rows = np.empty((*a.shape[:-1], b.shape[-1]), dtype=np.int64)
    for place in np.ndindex(*rows.shape):
        *batch, i, j = place
        rows[place] = dot(g, a[(*batch, i)].tolist(), b[(*batch, slice(None), j)].tolist())
    return rows


HANDLERS["mm"] = lambda g, a, b: matrix_product(g, numbers(g, a), numbers(g, b))
HANDLERS["bmm"] = HANDLERS["mm"]
HANDLERS["mv"] = lambda g, a, x: matrix_product(g, numbers(g, a), numbers(g, x)[:, None])[:, 0]
HANDLERS["dot"] = lambda g, a, b: np.asarray(dot(g, a.ids.tolist(), b.ids.tolist()))
HANDLERS["vdot"] = HANDLERS["dot"]


def added(inner: Callable[..., Ids]) -> Callable[..., Ids]:
    """beta c + alpha (a b), for a product of a and b."""

    def handler(g: Graph, c: Symbol, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Ids:
        result = op(g, "mul", inner(g, a, b), alpha)
        return result if beta == 0 else op(g, "add", op(g, "mul", numbers(g, c), beta), result)

    return handler


for _name in ("mm", "bmm", "mv"):
    HANDLERS[{"bmm": "baddbmm"}.get(_name, f"add{_name}")] = added(HANDLERS[_name])


@handles("linalg_cross")
def _cross(g: Graph, a: Symbol, b: Symbol, *, dim: int = -1) -> Ids:
    p, q = np.broadcast_arrays(numbers(g, a), numbers(g, b))
    p, q = np.moveaxis(p, dim, 0), np.moveaxis(q, dim, 0)
    i, j = np.array((1, 2, 0)), np.array((2, 0, 1))
    result = op(g, "sub", op(g, "mul", p[i], q[j]), op(g, "mul", p[j], q[i]))
    return np.moveaxis(result, 0, dim)


@handles("trace")
def _trace(g: Graph, a: Symbol) -> Ids:
    return np.asarray(g.sum(np.diagonal(a.ids).tolist()))
