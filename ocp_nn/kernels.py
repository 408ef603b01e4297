"""Kernels of a stage, ``Gamma = Y' F_u P F_u' Y`` (r, r), without forming F_u or P.

For a linear stage every metric gives a sum of products of a kernel of the cotangents and a kernel
of the activations:

    Gamma[(i,c),(j,d)] = sum_a  <y_ic, y_jd>_a  K_a[i, j]

with one term for an isotropic or Kronecker P, and one a row of the weight for a diagonal P or one
diagonal in a Kronecker eigenbasis (EKFAC). Other stages: J = the rows Y' F_u, Gamma = J P J'.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ocp_nn.cotangents import Cotangents
from ocp_nn.metrics import (
    Diagonal,
    Eigenbasis,
    Isotropic,
    Kronecker,
    Metric,
    as_matrix,
    with_one,
)

CHUNK = 2**24  # entries of an intermediate: bounds memory, costs nothing below


def rows_kernel(J: Tensor, metric: Metric, others: Tensor | None = None) -> Tensor:
    """``J P J'``, or with the rows of others ``J P others'``; J (r, m)."""
    return metric.apply(J) @ (J if others is None else others).mT


def linear_kernel(X: Tensor, Y: Cotangents, metric: Metric, outputs: int, has_bias: bool) -> Tensor:
    """Of a linear stage with activations X (B, n) and cotangents Y (., ., n') of its outputs."""
    if isinstance(metric, Isotropic):
        return product_kernel(Y, Y.rows, activation_kernel(X, metric, has_bias))
    if isinstance(metric, Kronecker):
        Z = metric.left_inverse(Y.rows.flatten(0, 1)).view_as(Y.rows)
        return product_kernel(Y, Z, metric.right_inner(X))
    X = with_one(X, has_bias)
    if isinstance(metric, Eigenbasis):
        rotated = Cotangents(Y.rows @ metric.left, Y.coupled)
        XW = X @ metric.right if metric.rotated is None else metric.rotated
        return sum_kernel(XW, rotated, metric.p)
    if isinstance(metric, Diagonal):
        return sum_kernel(X, Y, as_matrix(metric.p, outputs, has_bias))
    raise TypeError(f"no kernel of a linear stage for the metric {type(metric).__name__}.")


def activation_kernel(X: Tensor, metric: Isotropic, has_bias: bool) -> Tensor:
    """``p_weight x_i'x_j + p_bias``: (B, B)."""
    if not has_bias:
        return metric.values[0] * (X @ X.t())
    return torch.addmm(metric.of_bias, X, X.t(), alpha=metric.values[0])


def product_kernel(Y: Cotangents, Z: Tensor, K: Tensor) -> Tensor:
    """``<y_ic, z_jd> K_ij``, or where samples are coupled the sum of it over i and j: (r, r)."""
    B, k, n = Y.rows.shape
    if Y.coupled:
        KZ = (K @ Z.reshape(B, k * n)).view(B, k, n)
        return Y.rows.movedim(1, 0).reshape(k, B * n) @ KZ.movedim(1, 0).reshape(k, B * n).mT
    # Columns repeated first: a broadcast over the last axis would be a loop of k numbers.
    columns = K.index_select(1, repeats(B, k, K.device)).unsqueeze(1)
    inner = torch.mm(Y.rows.reshape(B * k, n), Z.reshape(B * k, n).t())
    inner.view(B, k, B * k).mul_(columns)
    return inner


@functools.lru_cache(maxsize=64)
def repeats(B: int, k: int, device: torch.device) -> Tensor:
    """0 .. B - 1, each k times: (B k,)."""
    return torch.arange(B, device=device).repeat_interleave(k)


def sum_kernel(X: Tensor, Y: Cotangents, p: Tensor) -> Tensor:
    """``sum_a y_ica y_jda sum_b p_ab x_ib x_jb``; p (n', n): diagonal of P as a matrix."""
    B, k, n = Y.rows.shape
    if Y.coupled:
        J = linear_rows(X, Y.rows, coupled=True)
        return (J * p.reshape(-1)) @ J.mT
    blocks, step = [], max(1, CHUNK // (B * max(X.shape[1], k * n)))
    for i in range(0, B, step):
        left = slice(i, i + step)
        K = (X[left, None] * X).flatten(0, 1) @ p.mT  # (b B, n'): K_a[i, j] for each a
        weighted = Y.rows[left, None] * K.view(-1, B, 1, n)  # (b, B, k, n')
        block = torch.matmul(weighted, Y.rows.mT)  # (b, B, k, k)
        blocks.append(block.movedim(1, 2).reshape(-1, B * k))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def linear_rows(X: Tensor, rows: Tensor, coupled: bool) -> Tensor:
    """Rows Y' F_u in the order of matrix entries, (r, n' n); X with its 1 where there is a bias."""
    if coupled:
        return torch.einsum("ica,ib->cab", rows, X).flatten(1)
    return (rows[..., None] * X[:, None, None, :]).flatten(2).flatten(0, 1)
