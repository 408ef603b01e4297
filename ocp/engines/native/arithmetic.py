"""What the operations of the graph compute, in NumPy: for folding, and for tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Number = Any  # a NumPy scalar of the graph's dtype, or a bool

UNARY: dict[str, Callable[[Number], Number]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "sqrt": np.sqrt,
    "root": np.sqrt,  # a square root whose derivative at 0 is 0: the norm of torch
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),  # scipy.special takes 0.2 s to import
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "stop": lambda a: a,  # no derivative passes: detach
}
BINARY: dict[str, Callable[[Number, Number], Number]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "atan2": np.arctan2,
    "min": np.minimum,
    "max": np.maximum,
}
COMPARISONS: dict[str, Callable[[Number, Number], Number]] = {
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
}
LOGIC = ("true", "false", "not", "and", "or")

OTHERS: dict[str, Callable[..., Any]] = {
    "select": np.where,
    "amax": lambda *values: np.maximum.reduce(np.broadcast_arrays(*values)),
    "total": lambda *values: np.add.reduce(np.broadcast_arrays(*values)),
    "true": lambda: np.True_,
    "false": lambda: np.False_,
    "not": np.logical_not,
    "and": np.logical_and,
    "or": np.logical_or,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {**UNARY, **BINARY, **COMPARISONS, **OTHERS}


def evaluate_op(op: str, values: Sequence[Any]) -> Any:
    return FUNCTIONS[op](*values)


def solved(A: Sequence[Number], b: Sequence[Number]) -> Any:
    """Entries of x first: (n, ...)."""
    n = len(b)
    columns = np.stack(np.broadcast_arrays(*A, *b), axis=-1)
    matrix = columns[..., : n * n].reshape(*columns.shape[:-1], n, n)
    try:
        x = np.linalg.solve(matrix, columns[..., n * n :, None])[..., 0]
    except np.linalg.LinAlgError:
        x = np.full_like(columns[..., n * n :], np.nan)
    return np.moveaxis(x, -1, 0)
