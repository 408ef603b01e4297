"""What PyTorch's operations mean for scalars: linear systems of a few unknowns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ocp.engines.native.array_ops import dot
from ocp.engines.native.graph import Graph
from ocp.engines.native.ops import Ids, Symbol, Unsupported, handles, numbers

LARGEST_DETERMINANT = 4


# -- linear systems ------------------------------------------------------------------------------
def solve_columns(g: Graph, A: Ids, B: Ids) -> Ids:
    """(..., n, n), (..., n, k) -> (..., n, k)."""
    X = np.empty(B.shape, dtype=np.int64)
    for batch in np.ndindex(*A.shape[:-2]):
        for k in range(B.shape[-1]):
            column = (*batch, slice(None), k)
            X[column] = g.solve(A[batch].reshape(-1).tolist(), B[column].tolist())
    return X


@handles("_linalg_solve_ex")
def _solve(g: Graph, A: Symbol, B: Symbol, *, left: bool = True) -> tuple[Ids, None, None, None]:
    a, b = numbers(g, A), numbers(g, B)
    if not left:
        raise Unsupported("a solve from the right")
    vector = b.ndim == 1 or b.shape == a.shape[:-1]  # as torch.linalg.solve decides
    columns = b[..., None] if vector else b
    batch = np.broadcast_shapes(a.shape[:-2], columns.shape[:-2])
    a = np.broadcast_to(a, (*batch, *a.shape[-2:]))
    columns = np.broadcast_to(columns, (*batch, *columns.shape[-2:]))
    X = solve_columns(g, a, columns)
    return X[..., 0] if vector else X, None, None, None


@handles("linalg_inv_ex")
def _inverse(g: Graph, A: Symbol) -> tuple[Ids, None]:
    eye = np.where(np.eye(A.ids.shape[-1], dtype=bool), g.one, g.zero)
    return solve_columns(g, A.ids, np.broadcast_to(eye, A.ids.shape)), None


def triangular_solve(g: Graph, A: Ids, b: Sequence[int], upper: bool, unit: bool) -> list[int]:
    n = len(b)
    x: dict[int, int] = {}
    for i in reversed(range(n)) if upper else range(n):
        known = g.sum(g.mul(int(A[i, j]), x[j]) for j in x)
        x[i] = g.sub(b[i], known)
        x[i] = x[i] if unit else g.div(x[i], int(A[i, i]))
    return [x[i] for i in range(n)]


@handles("linalg_solve_triangular")
def _triangular(
    g: Graph, A: Symbol, B: Symbol, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Ids:
    if not left or A.ids.shape[:-2] != B.ids.shape[:-2]:
        raise Unsupported("a triangular solve from the right, or with a broadcast batch")
    X = np.empty(B.ids.shape, dtype=np.int64)
    for batch in np.ndindex(*A.ids.shape[:-2]):
        for k in range(B.ids.shape[-1]):
            column = (*batch, slice(None), k)
            b = B.ids[column].tolist()
            X[column] = triangular_solve(g, A.ids[batch], b, upper, unitriangular)
    return X


@handles("linalg_cholesky_ex")
def _cholesky(g: Graph, A: Symbol, *, upper: bool = False) -> tuple[Ids, None]:
    L = np.full(A.ids.shape, g.zero, dtype=np.int64)
    n = A.ids.shape[-1]
    for batch in np.ndindex(*A.ids.shape[:-2]):
        a, factor = A.ids[batch], L[batch]
        for j in range(n):
            for i in range(j, n):
                rest = g.sub(int(a[i, j]), dot(g, factor[i, :j].tolist(), factor[j, :j].tolist()))
                diagonal = int(factor[j, j])
                factor[i, j] = g.apply("sqrt", rest) if i == j else g.div(rest, diagonal)
    return L.swapaxes(-1, -2) if upper else L, None


@handles("cholesky_solve")
def _cholesky_solve(g: Graph, B: Symbol, L: Symbol, upper: bool = False) -> Ids:
    factor = Symbol(L.ids.swapaxes(-1, -2), L.dtype) if upper else L
    inner = _triangular(g, factor, B, upper=False)
    transposed = Symbol(factor.ids.swapaxes(-1, -2), L.dtype)
    return _triangular(g, transposed, Symbol(inner, L.dtype), upper=True)


def determinant(g: Graph, a: Ids) -> int:
    """By the first row's minors."""
    if a.shape[0] == 1:
        return int(a[0, 0])
    minors = [determinant(g, np.delete(a[1:], j, axis=1)) for j in range(a.shape[0])]
    terms = [g.mul(int(a[0, j]), minor) for j, minor in enumerate(minors)]
    return g.sum(t if j % 2 == 0 else g.neg(t) for j, t in enumerate(terms))


@handles("_linalg_det")
def _det(g: Graph, A: Symbol) -> tuple[Ids, None, None]:
    if A.ids.shape[-1] > LARGEST_DETERMINANT:
        raise Unsupported(f"a determinant of more than {LARGEST_DETERMINANT} rows")
    flat = [determinant(g, A.ids[batch]) for batch in np.ndindex(*A.ids.shape[:-2])]
    return np.array(flat, dtype=np.int64).reshape(A.ids.shape[:-2]), None, None
