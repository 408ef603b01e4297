"""Gains and value models of a sweep as matrices, where they are small: for whoever asks for them.

Training needs none of them: `FunctionPolicy` applies the same policy without forming (m, B n).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocp_nn.coordinates import Paper, Proximal, Separate
from ocp_nn.cotangents import Cotangents
from ocp_nn.model import Model

LARGEST = 2**24  # numbers in all gains, or in all value Hessians


class Gains(NamedTuple):
    """Lists over the stages; the state is that of all samples, end to end."""

    k: list[Tensor]  # (m,)
    K: list[Tensor]  # (m, B n)
    vx: list[Tensor] | None  # (B n,), T + 1; None for forms that keep no value
    vxx: list[Tensor] | None  # (B n, B n)


def fit(model: Model) -> bool:
    """Whether gains and value Hessians are small enough, and all samples here."""
    sizes = [x.numel() for x in model.xs]
    gains = sum(form.m * n for form, n in zip(model.forms, sizes, strict=False))
    return max(gains, sum(n * n for n in sizes)) <= LARGEST and model.shards.count(1) == 1


def cotangents(model: Model) -> list[Cotangents]:
    """Y_t for every t, also upstream of the first stage with controls."""
    ys: list[Cotangents] = [model.y(len(model.forms))]
    for t in range(len(model.forms) - 1, -1, -1):
        known, form = model.ys[t], model.forms[t]
        ys.append(
            form.pull(model.xs[t], model.xs[t + 1], model.us[t], ys[-1]) if known is None else known
        )
    return ys[::-1]


def matrix(Y: Cotangents) -> Tensor:
    """Y' as (r, B n)."""
    return Y.couple().rows.movedim(1, 0).flatten(1)


def gains_of(model: Model, source: Proximal | Paper | Separate) -> Gains:
    """Of ``du = k + K dX``: ``K_t = -P_t F_u' Y_{t+1} Z_t Y_t'`` with Z_t = S_t^{-1} or C_{t+1}.

    For the proximal form the value is ``V_XX = Y S^{-1} Y'``, ``V_X = p - Y S^{-1} b``, written
    ``Y S^{-1} w + rest`` (eq. 29-37 of the paper).
    """
    ys = cotangents(model)
    k, K = [], []
    for t, form in enumerate(model.forms):
        n = model.xs[t].numel()
        if form.m == 0:
            k.append(model.xs[t].new_zeros(0))
            K.append(model.xs[t].new_zeros(0, n))
            continue
        J, h = form.rows(model.xs[t], model.us[t], model.y(t + 1)), model.linear[t]
        z, response = coordinates(source, t)
        g = J.mT @ z
        k.append(-source.metrics[t].apply(g if h is None else g + h))
        if response is None:
            K.append(J.new_zeros(form.m, n))
        else:
            K.append(-source.metrics[t].apply(response.mT @ J).mT @ matrix(ys[t]))
    if not isinstance(source, Proximal):
        return Gains(k, K, None, None)
    vx, vxx = zip(*values(model, source, ys), strict=True)
    return Gains(k, K, list(vx), list(vxx))


def coordinates(source: Proximal | Paper | Separate, t: int) -> tuple[Tensor, Tensor | None]:
    """z_t without deviation (r,), and its derivative by v = Y_t' dX (r, r); None for zero."""
    if isinstance(source, Separate):
        return source.zs[t], None
    if isinstance(source, Proximal):
        L = source.factors[t]
        return torch.cholesky_solve(source.ws[t][:, None], L)[:, 0], torch.cholesky_inverse(L)
    z, C = source.zs[t], source.Cs[t]
    eye = torch.eye(z.shape[0], dtype=z.dtype, device=z.device)
    return z, torch.stack([C(e) for e in eye])


def values(model: Model, source: Proximal, ys: list[Cotangents]) -> list[tuple[Tensor, Tensor]]:
    """V_X (B n,) and V_XX (B n, B n) of every t from 0 to T."""
    found = []
    z, root, rest = model.rho, None, None if model.rest is None else model.rest[-1]
    for t in range(len(model.forms), -1, -1):
        if t < len(model.forms):
            form, X, u = model.forms[t], model.xs[t], model.us[t]
            if form.m > 0:
                root = source.factors[t]
                z = torch.cholesky_solve(source.ws[t][:, None], root)[:, 0]
            rest = None if rest is None else form.pull_one(X, model.xs[t + 1], u, rest)
        Y = matrix(ys[t])
        vx = Y.mT @ z if rest is None else Y.mT @ z + rest.reshape(-1)
        vxx = Y.mT @ (Y if root is None else torch.cholesky_solve(Y, root))
        found.append((vx, vxx))
    return found[::-1]
