"""Metrics D_t of a stage's controls, as their inverses P_t: what damps, scales and conditions.

``D_t`` is Q_uu without the Gauss-Newton term: damping, weight decay, and what RMSprop, Adam, KFAC
or EKFAC precondition with. Controls u (m,) of a linear stage are its weight (n', n), row by row,
then its bias (n',); as a matrix they are [weight bias], (n', n + 1), and the activation that
matrix acts on is x with a 1 appended.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Metric(Protocol):
    """P = D^{-1} of one stage."""

    def apply(self, g: Tensor) -> Tensor:
        """P g for vectors (..., m)."""
        ...

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        """u - P g: (m,)."""
        ...

    def shortened(self, factor: float) -> Metric:
        """Of ``factor P``."""
        ...

    def dense(self) -> Tensor:
        """D (m, m): for small stages and for tests."""
        ...


@dataclass(frozen=True, eq=False)
class Isotropic:
    """One number a parameter tensor: ``P = diag(p_0 I, p_1 I, ...)``.

    Attributes:
        values: p of each parameter. sizes: their numbers of entries.
        like: a tensor with the dtype and device of the controls.
    """

    values: tuple[float, ...]
    sizes: tuple[int, ...]
    like: Tensor

    @cached_property
    def of_bias(self) -> Tensor:
        """p of the bias: (1, 1)."""
        return self.like.new_full((1, 1), self.values[1])

    def apply(self, g: Tensor) -> Tensor:
        if len(set(self.values)) == 1:
            return g * self.values[0]
        return g * self.diagonal()

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        if len(set(self.values)) == 1:
            return torch.sub(u, g, alpha=self.values[0])
        return u - self.apply(g)

    def diagonal(self) -> Tensor:
        """Of P: (m,)."""
        parts = [self.like.new_full((s,), p) for s, p in zip(self.sizes, self.values, strict=True)]
        return torch.cat(parts)

    def shortened(self, factor: float) -> Isotropic:
        return replace(self, values=tuple(factor * p for p in self.values))

    def dense(self) -> Tensor:
        return torch.diag(1 / self.diagonal())


@dataclass(frozen=True, eq=False)
class Diagonal:
    """P = diag(p), p (m,)."""

    p: Tensor

    def apply(self, g: Tensor) -> Tensor:
        return g * self.p

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        return torch.addcmul(u, g, self.p, value=-1)

    def diagonal(self) -> Tensor:
        """Of P: (m,)."""
        return self.p

    def shortened(self, factor: float) -> Diagonal:
        return Diagonal(factor * self.p)

    def dense(self) -> Tensor:
        return torch.diag(1 / self.p)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """``P G = scale L^{-1} G R^{-1}`` for a linear stage's controls as a matrix G (n', n + 1).

    Attributes:
        left, right: Cholesky factors of L (n', n') and R (n + 1, n + 1), R (n, n) without bias.
        scale: the learning rate.
        has_bias: whether the stage has one.
    """

    left: Tensor
    right: Tensor
    scale: float
    has_bias: bool
    kept: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def matrix(self, G: Tensor) -> Tensor:
        """P G for a gradient as a matrix (n', n + 1)."""
        G = torch.cholesky_solve(G, self.left)
        return self.scale * torch.cholesky_solve(G.mT, self.right).mT

    def apply(self, g: Tensor) -> Tensor:
        G = self.matrix(as_matrix(g, self.left.shape[0], self.has_bias))
        return as_vector(G, self.has_bias)

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        return u - self.apply(g)

    def left_inverse(self, Y: Tensor) -> Tensor:
        """Rows y -> L^{-1} y, (N, n'), scaled."""
        return self.scale * torch.cholesky_solve(Y.mT, self.left).mT

    def halves(self, X: Tensor) -> Tensor:
        """``L_R^{-1} X'`` of activations X (B, n [+ 1]); kept for the step along the same X."""
        if "X" not in self.kept or self.kept["X"] is not X:
            half = torch.linalg.solve_triangular(
                self.right, with_one(X, self.has_bias).mT, upper=False
            )
            self.kept.update(X=X, half=half)
        return self.kept["half"]

    def right_inner(self, X: Tensor) -> Tensor:
        """``x_i' R^{-1} x_j`` of activations (B, n): (B, B)."""
        half = self.halves(X)
        return half.mT @ half

    def along(self, X: Tensor, V: Tensor) -> Tensor:
        """P G for the gradient ``G = V' [X 1]``: B right sides for R instead of n'."""
        solved = torch.linalg.solve_triangular(self.right.mT, self.halves(X), upper=True)
        return self.scale * torch.cholesky_solve((solved @ V).mT, self.left)

    def shortened(self, factor: float) -> Kronecker:
        return Kronecker(self.left, self.right, factor * self.scale, self.has_bias, self.kept)

    def dense(self) -> Tensor:
        D = torch.kron(self.left @ self.left.mT, self.right @ self.right.mT) / self.scale
        return reorder(D, self.left.shape[0], self.has_bias)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """``P G = U (p * (U' G W)) W'``: diagonal in the eigenbasis of a Kronecker product.

    Attributes:
        left, right: orthogonal U (n', n') and W (n + 1, n + 1), (n, n) without bias.
        p: (n', n + 1), diagonal of P in that basis.
        rotated: ``X W`` (B, n + 1) of the activations of this step, where it is known.
    """

    left: Tensor
    right: Tensor
    p: Tensor
    has_bias: bool
    rotated: Tensor | None = None

    def along(self, X: Tensor, V: Tensor) -> Tensor:
        """P G for the gradient ``G = V' [X 1]``, from X W: one product with W less."""
        if self.rotated is None:
            return self.matrix(V.mT @ with_one(X, self.has_bias))
        inner = (V @ self.left).mT @ self.rotated
        return self.left @ (self.p * inner) @ self.right.mT

    def matrix(self, G: Tensor) -> Tensor:
        """P G for a gradient as a matrix (n', n + 1)."""
        return self.left @ (self.p * (self.left.mT @ G @ self.right)) @ self.right.mT

    def apply(self, g: Tensor) -> Tensor:
        G = self.matrix(as_matrix(g, self.left.shape[0], self.has_bias))
        return as_vector(G, self.has_bias)

    def step(self, u: Tensor, g: Tensor) -> Tensor:
        return u - self.apply(g)

    def shortened(self, factor: float) -> Eigenbasis:
        return replace(self, p=factor * self.p)

    def dense(self) -> Tensor:
        basis = torch.kron(self.left, self.right)
        D = (basis / self.p.reshape(-1)) @ basis.mT
        return reorder(D, self.left.shape[0], self.has_bias)


# -- the controls of a linear stage as a matrix ------------------------------------------------
def as_matrix(u: Tensor, outputs: int, has_bias: bool) -> Tensor:
    """(..., m) -> [weight bias] (..., n', n + 1), or the weight (..., n', n)."""
    if not has_bias:
        return u.unflatten(-1, (outputs, -1))
    weight = u[..., :-outputs].unflatten(-1, (outputs, -1))
    return torch.cat((weight, u[..., -outputs:, None]), dim=-1)


def as_vector(U: Tensor, has_bias: bool) -> Tensor:
    """The inverse of `as_matrix`."""
    if not has_bias:
        return U.flatten(-2)
    return torch.cat((U[..., :-1].flatten(-2), U[..., -1]), dim=-1)


def reorder(D: Tensor, outputs: int, has_bias: bool) -> Tensor:
    """Rows and columns in the order of matrix entries -> in the order of the controls."""
    rows = as_vector(D.mT.unflatten(-1, (outputs, -1)), has_bias)
    return as_vector(rows.mT.unflatten(-1, (outputs, -1)), has_bias)


def with_one(X: Tensor, has_bias: bool) -> Tensor:
    """Activations (B, n) -> (B, n + 1) where there is a bias."""
    if not has_bias:
        return X
    return torch.cat((X, X.new_ones(X.shape[0], 1)), dim=-1)
