"""What PyTorch's operations mean for scalars: element by element.

A handler takes the arguments of an aten operation with every tensor replaced by a `Symbol`, and
returns node ids of the result's shape. What a handler does not name in its signature is refused.
Ops that only move data have no handler: PyTorch itself moves the ids (`MOVES`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ocp.engines.native.graph import Graph

Ids = NDArray[np.int64]
Handler = Callable[..., Any]


class Symbol(NamedTuple):
    ids: Ids
    dtype: torch.dtype


class Unsupported(ValueError):  # noqa: N818
    """An operation, or its arguments, without a translation."""


HANDLERS: dict[str, Handler] = {}


def words(text: str) -> list[str]:
    return text.split()


# Data movement: the positions of arguments that are indices, not data.
MOVES: dict[str, tuple[int, ...]] = dict.fromkeys(
    words(
        """
        alias cat clone contiguous detach diagonal diagonal_scatter diag_embed expand flip
        lift_fresh lift_fresh_copy narrow permute repeat reshape roll rot90 select select_scatter
        slice slice_scatter split split_with_sizes squeeze stack t transpose tril triu unbind
        unfold unsqueeze view _unsafe_view _reshape_alias select_backward slice_backward
        diagonal_backward
        """
    ),
    (),
) | {
    "index": (1,),
    "gather": (2,),
    "index_select": (2,),
    "index_put": (1,),
    "take": (1,),
    "scatter": (2,),
    "embedding": (1,),
}
# They put id 0, the number 0.0, where nothing is moved to.
ZERO_FILL = frozenset(
    words("diag_embed tril triu select_backward slice_backward diagonal_backward")
)
# Results that hold nothing of their arguments but shape and kind.
CONSTANT = frozenset(
    words(
        "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty "
        "new_empty_strided"
    )
)
# Keywords that change no values: the result's dtype is read off what PyTorch returned.
IGNORED = frozenset(words("dtype layout device pin_memory memory_format non_blocking check_errors"))


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


# -- arrays of nodes -----------------------------------------------------------------------------
def each(function: Callable[..., int], *arrays: Any) -> Ids:
    """``function`` of nodes, element by element with broadcasting."""
    result = np.frompyfunc(function, len(arrays), 1)(*arrays)
    return np.asarray(result, dtype=np.int64)


def numbers(g: Graph, value: Any) -> Ids:
    """Node ids of numbers; bools become 0 and 1."""
    if not isinstance(value, Symbol):
        assert isinstance(value, bool | int | float), "an id is no number"
        return np.asarray(g.number(value), dtype=np.int64)
    return each(g.as_number, value.ids) if value.dtype == torch.bool else value.ids


def masks(g: Graph, value: Any) -> Ids:
    if not isinstance(value, Symbol):
        return np.asarray(g.mask(bool(value)), dtype=np.int64)
    return value.ids if value.dtype == torch.bool else each(g.as_mask, value.ids)


def is_integral(value: Any) -> bool:
    if isinstance(value, Symbol):
        return not value.dtype.is_floating_point
    return isinstance(value, int)


def convert(g: Graph, value: Symbol, dtype: torch.dtype) -> Ids:
    """To another kind of number, as ``Tensor.to``."""
    if dtype == torch.bool:
        return masks(g, value)
    if dtype.is_floating_point or is_integral(value):
        return numbers(g, value)
    return each(lambda a: truncated(g, a), value.ids)


def truncated(g: Graph, a: int) -> int:
    down = g.apply("floor", g.apply("abs", a))
    return g.select(g.apply("lt", a, g.zero), g.neg(down), down)


def op(g: Graph, name: str, *values: Any) -> Ids:
    """A graph operation on symbols, ids and Python numbers."""
    arrays = [v if isinstance(v, np.ndarray) else numbers(g, v) for v in values]
    return each(lambda *a: g.apply(name, *a), *arrays)


def choose(g: Graph, mask: Ids, a: Any, b: Any) -> Ids:
    return op(g, "select", mask, a, b)


# -- elementwise ---------------------------------------------------------------------------------
def unary(name: str) -> Handler:
    return lambda g, x: op(g, name, x)


for _name in words(
    "neg sign sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp expm1 log log1p erf "
    "sqrt rsqrt abs floor sigmoid"
):
    HANDLERS[_name] = unary(_name)
HANDLERS["sgn"] = unary("sign")


def are_bools(*values: Any) -> bool:
    return all(
        isinstance(v, bool) or (isinstance(v, Symbol) and v.dtype == torch.bool) for v in values
    )


@handles("add")
def _add(g: Graph, x: Any, y: Any, *, alpha: float = 1, negative: bool = False) -> Ids:
    if are_bools(x, y) and alpha in (1, True) and not negative:
        return op(g, "or", masks(g, x), masks(g, y))
    scaled = op(g, "mul", numbers(g, y), alpha)
    return op(g, "sub" if negative else "add", x, scaled)


@handles("mul")
def _mul(g: Graph, x: Any, y: Any) -> Ids:
    if are_bools(x, y):
        return op(g, "and", masks(g, x), masks(g, y))
    return op(g, "mul", x, y)


HANDLERS["sub"] = lambda g, x, y, *, alpha=1: _add(g, x, y, alpha=alpha, negative=True)
HANDLERS["rsub"] = lambda g, x, y, alpha=1: _add(g, y, x, alpha=alpha, negative=True)
HANDLERS["minimum"] = lambda g, x, y: op(g, "min", x, y)
HANDLERS["maximum"] = lambda g, x, y: op(g, "max", x, y)
HANDLERS["atan2"] = lambda g, y, x: op(g, "atan2", y, x)
HANDLERS["reciprocal"] = lambda g, x: op(g, "div", 1.0, x)
HANDLERS["square"] = lambda g, x: op(g, "mul", x, x)
HANDLERS["log2"] = lambda g, x: op(g, "mul", op(g, "log", x), 1 / math.log(2))
HANDLERS["log10"] = lambda g, x: op(g, "mul", op(g, "log", x), 1 / math.log(10))
HANDLERS["exp2"] = lambda g, x: op(g, "pow", 2.0, x)
HANDLERS["deg2rad"] = lambda g, x: op(g, "mul", x, math.pi / 180)
HANDLERS["rad2deg"] = lambda g, x: op(g, "mul", x, 180 / math.pi)
HANDLERS["addcmul"] = lambda g, x, a, b, *, value=1: op(
    g, "add", x, op(g, "mul", op(g, "mul", numbers(g, a), value), b)
)
HANDLERS["addcdiv"] = lambda g, x, a, b, *, value=1: op(
    g, "add", x, op(g, "mul", op(g, "div", a, b), value)
)
HANDLERS["hypot"] = lambda g, x, y: op(
    g, "sqrt", op(g, "add", op(g, "mul", x, x), op(g, "mul", y, y))
)


@handles("div", "true_divide", "floor_divide")
def _div(g: Graph, x: Any, y: Any, *, rounding_mode: str | None = None) -> Ids:
    quotient = op(g, "div", x, y)
    if rounding_mode is None:
        return quotient
    if rounding_mode == "floor":
        return op(g, "floor", quotient)
    return each(lambda a: truncated(g, a), quotient)


HANDLERS["floor_divide"] = lambda g, x, y: _div(g, x, y, rounding_mode="floor")


@handles("remainder")
def _remainder(g: Graph, x: Any, y: Any) -> Ids:
    """x - y floor(x / y): the sign of y."""
    return op(g, "sub", x, op(g, "mul", y, op(g, "floor", op(g, "div", x, y))))


@handles("fmod")
def _fmod(g: Graph, x: Any, y: Any) -> Ids:
    """x - y trunc(x / y): the sign of x."""
    return op(g, "sub", x, op(g, "mul", y, _div(g, x, y, rounding_mode="trunc")))


@handles("pow")
def _pow(g: Graph, x: Any, y: Any) -> Ids:
    if is_integral(x) and is_integral(y) and isinstance(y, Symbol):
        raise Unsupported("an integer to the power of an integer that is not a number known now")
    return op(g, "pow", x, y)


@handles("ceil")
def _ceil(g: Graph, x: Symbol) -> Ids:
    return op(g, "neg", op(g, "floor", op(g, "neg", x)))


@handles("trunc", "fix")
def _trunc(g: Graph, x: Symbol) -> Ids:
    return each(lambda a: truncated(g, a), numbers(g, x))


@handles("frac")
def _frac(g: Graph, x: Symbol) -> Ids:
    return op(g, "sub", x, op(g, "stop", _trunc(g, x)))


@handles("round")
def _round(g: Graph, x: Symbol) -> Ids:
    """Half to even."""
    down = op(g, "floor", x)
    rest = op(g, "sub", x, op(g, "stop", down))
    half = op(g, "mul", down, 0.5)
    odd = op(g, "not", op(g, "eq", op(g, "floor", half), half))
    up = op(g, "or", op(g, "lt", 0.5, rest), op(g, "and", op(g, "eq", rest, 0.5), odd))
    return choose(g, up, op(g, "add", down, 1.0), down)


@handles("lerp")
def _lerp(g: Graph, a: Any, b: Any, weight: Any) -> Ids:
    """As torch: from the nearer end."""
    span = op(g, "sub", b, a)
    near = op(g, "lt", op(g, "abs", weight), 0.5)
    from_a = op(g, "add", a, op(g, "mul", weight, span))
    return choose(g, near, from_a, op(g, "sub", b, op(g, "mul", span, op(g, "sub", 1.0, weight))))


@handles("xlogy")
def _xlogy(g: Graph, x: Any, y: Any) -> Ids:
    return choose(g, op(g, "eq", x, 0.0), 0.0, op(g, "mul", x, op(g, "log", y)))


# -- limits --------------------------------------------------------------------------------------
@handles("clamp", "clamp_min", "clamp_max")
def _clamp(g: Graph, x: Symbol, min: Any = None, max: Any = None) -> Ids:
    """Slope 1 at the limits themselves, unlike minimum and maximum."""
    result = numbers(g, x)
    for limit, beyond in ((min, "lt"), (max, "gt")):
        if limit is None:
            continue
        if isinstance(limit, Symbol):
            bound = numbers(g, limit)
        elif math.isnan(limit):
            raise Unsupported("a limit that is nan")
        else:
            bound = numbers(g, limit)
        order = (result, bound) if beyond == "lt" else (bound, result)
        result = choose(g, op(g, "lt", *order), bound, result)
    return result


HANDLERS["clamp_max"] = lambda g, x, max: _clamp(g, x, None, max)


@handles("hardtanh")
def hardtanh(g: Graph, x: Symbol, min_val: float = -1, max_val: float = 1) -> Ids:
    """Slope 0 at the limits themselves, unlike clamp."""
    above = choose(g, op(g, "le", x, min_val), min_val, x)
    return choose(g, op(g, "le", max_val, x), max_val, above)


HANDLERS["relu6"] = lambda g, x: hardtanh(g, x, 0, 6)


# -- comparisons and masks -----------------------------------------------------------------------
HANDLERS["lt"] = lambda g, x, y: op(g, "lt", x, y)
HANDLERS["le"] = lambda g, x, y: op(g, "le", x, y)
HANDLERS["gt"] = lambda g, x, y: op(g, "lt", y, x)
HANDLERS["ge"] = lambda g, x, y: op(g, "le", y, x)
HANDLERS["eq"] = lambda g, x, y: op(g, "eq", x, y)
HANDLERS["ne"] = lambda g, x, y: op(g, "not", op(g, "eq", x, y))
HANDLERS["isnan"] = lambda g, x: op(g, "not", op(g, "eq", x, x))
HANDLERS["isfinite"] = lambda g, x: op(g, "eq", op(g, "sub", x, x), 0.0)
HANDLERS["isinf"] = lambda g, x: op(g, "eq", op(g, "abs", x), math.inf)


def logical(name: str, bitwise: bool) -> Handler:
    def handler(g: Graph, x: Any, y: Any) -> Ids:
        if bitwise and not are_bools(x, y):
            raise Unsupported("bits of integers")
        a, b = masks(g, x), masks(g, y)
        if name == "xor":
            return op(g, "and", op(g, "or", a, b), op(g, "not", op(g, "and", a, b)))
        return op(g, name, a, b)

    return handler


for _name in ("and", "or", "xor"):
    HANDLERS[f"logical_{_name}"] = logical(_name, bitwise=False)
    HANDLERS[f"bitwise_{_name}"] = HANDLERS[f"__{_name}__"] = logical(_name, bitwise=True)


@handles("logical_not")
def _not(g: Graph, x: Symbol) -> Ids:
    return op(g, "not", masks(g, x))


@handles("bitwise_not")
def _bitwise_not(g: Graph, x: Symbol) -> Ids:
    if x.dtype != torch.bool:
        raise Unsupported("bits of integers")
    return _not(g, x)


@handles("where")
def _where(g: Graph, mask: Symbol, a: Any, b: Any) -> Ids:
    kind = masks if are_bools(a, b) else numbers
    return choose(g, masks(g, mask), kind(g, a), kind(g, b))


@handles("masked_fill")
def _masked_fill(g: Graph, x: Symbol, mask: Symbol, value: Any) -> Ids:
    kind = masks if x.dtype == torch.bool else numbers
    return choose(g, masks(g, mask), kind(g, value), x.ids)


@handles("fill")
def _fill(g: Graph, x: Symbol, value: Any) -> Ids:
    kind = masks if x.dtype == torch.bool else numbers
    return np.broadcast_to(kind(g, value), x.ids.shape)


@handles("copy")
def _copy(g: Graph, x: Symbol, source: Symbol) -> Ids:
    return np.broadcast_to(convert(g, source, x.dtype), x.ids.shape)


@handles("nan_to_num")
def _nan_to_num(
    g: Graph, x: Symbol, nan: float | None = None, posinf: float | None = None,
    neginf: float | None = None,
) -> Ids:  # fmt: skip
    largest = float(torch.finfo(x.dtype).max)
    result = choose(g, op(g, "eq", x, x), x, nan or 0.0)
    result = choose(g, op(g, "eq", x, math.inf), largest if posinf is None else posinf, result)
    return choose(g, op(g, "eq", x, -math.inf), -largest if neginf is None else neginf, result)
