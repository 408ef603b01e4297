"""The backward pass of LQR, iLQR, DDP and Newton's method: one recursion, several models.

Sources: Tassa, Erez, Todorov, IROS 2012 (eq. 5-11: model, gains, value, regularisation); Tassa,
Mansard, Todorov, ICRA 2014 (bounds); Mastalli et al., ICRA 2020 (gaps).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.engines.base import Curvature, Expansion, Policy, Sweep
from ocp.engines.box_qp import box_qp
from ocp.problem import Stages
from ocp.stages import each, pack, where


def matvec(A: Tensor, v: Tensor) -> Tensor:
    """(..., i, j), (..., j) -> (..., i)."""
    return (A @ v[..., None])[..., 0]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def sweep(
    expansion: Expansion,
    gaps: Stages | None,
    damping: Tensor,
    curvature: Curvature | None,
    box: tuple[Stages, Stages] | None,
    on_state: bool,
    proximal: bool = False,
) -> Sweep:
    """Turn a quadratic model of every stage into a policy and a value model.

    Args:
        expansion: derivatives at the current trajectory.
        gaps: ``f(x[t], u[t]) - x[t+1]``, (B, n') for each t; None if there are none.
        damping: (B,) regularisation that shortens the step: added to the diagonal of Q_uu, or of
            V_xx inside Q_uu and Q_ux if ``on_state`` (Tassa 2012, eq. 10). It never enters the
            value model, unless it is ``proximal``.
        curvature: the second-order term ``V_x . f_zz``, contracted; None for Gauss-Newton.
        box: what u may change by, (lo - u, hi - u) for each t; None without bounds.
        proximal: the damping is a term 1/2 damping |du|^2 of every stage's cost, as for networks:
            on Q_uu, in the value model and in the decrease that the model promises.
    """
    uniform = isinstance(expansion.fz, Tensor)
    T = len(expansion.fz)
    vx, vxx = expansion.phix, expansion.phixx
    p = vx  # gradient of J for the policy without its k: gives the slope when gaps are open
    slope, change = torch.zeros_like(damping), torch.zeros_like(damping)
    residual = torch.zeros_like(damping)
    failed = torch.full_like(damping, -1, dtype=torch.int64)
    ks, Ks, vxs, vxxs = [], [], [vx], [vxx]
    for t in range(T - 1, -1, -1):
        fz, lz = expansion.fz[t], expansion.lz[t]
        n = expansion.n[t]
        if gaps is not None:
            moved = matvec(vxx, gaps[t])
            change = change + dot(gaps[t], vx + moved / 2)
            slope = slope + dot(gaps[t], p)
            vx = vx + moved
        q = lz + matvec(fz.mT, vx)
        Q = expansion.lzz[t] + fz.mT @ (vxx @ fz)
        if curvature is not None:
            Q = Q + curvature(t, vx)
        qx, qu = q[:, :n], q[:, n:]
        qxx, qux, quu = Q[:, :n, :n], Q[:, n:, :n], Q[:, n:, n:]
        limits = None if box is None else (box[0][t], box[1][t])
        damped = regularised(quu, qux, fz[..., :n], fz[..., n:], damping, on_state)
        k, K, definite = gains(*damped, qu, limits)
        if proximal:
            quu = damped[0]
        failed = torch.where((failed < 0) & ~definite, t, failed)
        residual = torch.maximum(residual, projected(qu, limits))
        along = lz + matvec(fz.mT, p)
        slope = slope + dot(k, along[:, n:])
        p = along[:, :n] + matvec(K.mT, along[:, n:])
        quuk = matvec(quu, k)
        change = change + dot(k, qu + quuk / 2)
        # The value of this very policy, with the undamped Q_uu: the damping of a trajectory
        # shortens the step but must not bias the model that earlier stages see. A proximal one
        # is part of the model.
        vx = qx + matvec(K.mT, quuk + qu) + matvec(qux.mT, k)
        vxx = qxx + K.mT @ (quu @ K + qux) + qux.mT @ K
        vxx = (vxx + vxx.mT) / 2
        ks.append(k)
        Ks.append(K)
        vxs.append(vx)
        vxxs.append(vxx)
    policy = Policy(pack(ks[::-1], uniform), pack(Ks[::-1], uniform))
    values = pack(vxs[::-1], uniform), pack(vxxs[::-1], uniform)
    return Sweep(policy, *values, slope, 2 * (change - slope), residual, failed)


def regularised(
    quu: Tensor, qux: Tensor, fx: Tensor, fu: Tensor, damping: Tensor, on_state: bool
) -> tuple[Tensor, Tensor]:
    mu = damping[:, None, None]
    if on_state:
        return quu + mu * (fu.mT @ fu), qux + mu * (fu.mT @ fx)
    return quu + mu * torch.eye(quu.shape[-1], dtype=quu.dtype, device=quu.device), qux


def gains(
    quu: Tensor, qux: Tensor, qu: Tensor, limits: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """k (B, m), K (B, m, n) and whether Q_uu is positive definite on the free controls (B,).

    Where it is not, k = 0 and K = 0.
    """
    if limits is None:
        L, info = torch.linalg.cholesky_ex(quu)
        both = -torch.cholesky_solve(torch.cat((qu[..., None], qux), dim=-1), L)
        k, K, definite = both[..., 0], both[..., 1:], info == 0
    else:
        k, free, L, definite = box_qp(quu, qu, *limits)
        K = -torch.cholesky_solve(torch.where(free[..., None], qux, 0), L)
    return (
        torch.where(definite[:, None], k, 0),
        torch.where(definite[:, None, None], K, 0),
        definite,
    )


def projected(qu: Tensor, limits: tuple[Tensor, Tensor] | None) -> Tensor:
    """Largest ``|u - clip(u - Q_u, lo, hi)|``: (B,)."""
    if limits is not None:
        qu = torch.minimum(torch.maximum(-qu, limits[0]), limits[1])
    if qu.shape[-1] == 0:
        return qu.new_zeros(qu.shape[:-1])
    return qu.abs().amax(dim=-1)


def largest_projected(gradient: Stages, limits: tuple[Stages, Stages] | None) -> Tensor:
    """Largest ``|u - clip(u - g, lo, hi)|`` over the stages: (B,)."""
    if isinstance(gradient, Tensor):  # all stages at once
        return projected(gradient, limits).amax(dim=0)  # type: ignore[arg-type]
    parts = []
    for t, g in enumerate(gradient):
        parts.append(projected(g, None if limits is None else (limits[0][t], limits[1][t])))
    return torch.stack(parts).amax(dim=0)


def costates(expansion: Expansion) -> tuple[Stages, Stages]:
    """``p[T] = phi_x``, ``p[t] = H_x``; and H_u: the exact gradient of J (Theorem 1, eq. 4).

    Returns:
        p (B, n), T + 1 of them; H_u (B, m), T of them.
    """
    p, hus = expansion.phix, []
    ps = [p]
    for t in range(len(expansion.fz) - 1, -1, -1):
        h = expansion.lz[t] + matvec(expansion.fz[t].mT, p)
        n = expansion.n[t]
        p = h[:, :n]
        ps.append(p)
        hus.append(h[:, n:])
    uniform = isinstance(expansion.fz, Tensor)
    return pack(ps[::-1], uniform), pack(hus[::-1], uniform)


def linear_rollout(
    expansion: Expansion, policy: Policy, gaps: Stages | None
) -> tuple[Stages, Stages]:
    """Changes of state (T + 1) and control under the linearised dynamics: the full step."""
    dx = torch.zeros_like(expansion.lz[0][:, : expansion.n[0]])
    dxs, dus = [dx], []
    for t in range(len(expansion.fz)):
        du = policy.k[t] if policy.K is None else policy.k[t] + matvec(policy.K[t], dx)
        dx = matvec(expansion.fz[t], torch.cat((dx, du), dim=-1))
        dx = dx if gaps is None else dx + gaps[t]
        dxs.append(dx)
        dus.append(du)
    uniform = isinstance(expansion.fz, Tensor)
    return pack(dxs, uniform), pack(dus, uniform)


def merge(mask: Tensor, a: Sweep, b: Sweep) -> Sweep:
    """Problem by problem: a where the mask holds, else b."""

    def matrices(p: Stages, q: Stages) -> Stages:
        return each(lambda v, w: torch.where(mask[:, None, None], v, w), p, q)

    assert a.policy.K is not None and b.policy.K is not None
    return Sweep(
        Policy(where(mask, a.policy.k, b.policy.k), matrices(a.policy.K, b.policy.K)),
        where(mask, a.vx, b.vx),
        matrices(a.vxx, b.vxx),
        *(torch.where(mask, p, q) for p, q in zip(a[3:], b[3:], strict=True)),
    )
