"""Box-constrained quadratic programs of a batch, by projected Newton steps.

minimise 1/2 x' H x + g' x  subject to  lo <= x <= hi   (Tassa, Mansard, Todorov 2014, sec. III-B)

Where a component is a last bit off its limit, the other components' Newton step counts on a move
that the limit cuts off, and may climb whatever its length (Bertsekas 1982, sec. II). There the
gradient is followed, each component scaled by its curvature: that always descends, and puts such
components on their limits.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 50
ARMIJO = 0.1
TRIALS = 10


def box_qp(H: Tensor, g: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve a batch: H (B, m, m), g, lo, hi (B, m) with lo <= hi; infinite limits are allowed.

    Returns:
        x (B, m); free (B, m) bool, the components not held by a limit; L (B, m, m), the Cholesky
        factor of H on the free components and of the identity on the others; and whether H is
        positive definite on the free components and x optimal (B,).
    """
    x = torch.minimum(torch.maximum(torch.zeros_like(g), lo), hi)
    eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
    rounding = 16 * torch.finfo(g.dtype).eps
    done = torch.zeros(g.shape[0], dtype=torch.bool, device=g.device)
    for _ in range(ITERATIONS):
        slope = g + (H @ x[..., None])[..., 0]
        free = ~(((x <= lo) & (slope > 0)) | ((x >= hi) & (slope < 0)))
        L, info = torch.linalg.cholesky_ex(torch.where(free[:, :, None] & free[:, None, :], H, eye))
        open_slope = torch.where(free, slope, 0)
        step = -torch.cholesky_solve(open_slope[..., None], L)[..., 0]
        size = g.abs() + (H.abs() @ x.abs()[..., None])[..., 0]
        done = done | (open_slope.abs() <= rounding * size).all(dim=-1) | (info > 0)
        if bool(done.all()):
            break
        picked, found, cut = search(H, x, slope, step, lo, hi)
        stuck = cut & ~found & ~done
        if bool(stuck.any()):
            diagonal = torch.where(free, H.diagonal(dim1=1, dim2=2), 1)
            scaled, less, _ = search(H, x, slope, -open_slope / diagonal, lo, hi)
            picked, found = torch.where(stuck[:, None], scaled, picked), found | (stuck & less)
        done = done | ~found  # no step decreases: optimal to rounding
        x = torch.where(done[:, None], x, picked)
    return x, free, L, (info == 0) & done


def search(
    H: Tensor, x: Tensor, slope: Tensor, step: Tensor, lo: Tensor, hi: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x after the largest of the projected steps 1, 1/2, ... that brings enough decrease (B, m),
    whether there is one, and whether the limits cut even the smallest: (B,) each."""
    shrink = 0.5 ** torch.arange(TRIALS, dtype=x.dtype, device=x.device)[:, None, None]
    wanted = x + shrink * step
    trials = torch.minimum(torch.maximum(wanted, lo), hi)
    moved = trials - x
    gain = (slope * moved).sum(dim=-1)
    rise = gain + (moved * (H @ moved[..., None])[..., 0]).sum(dim=-1) / 2
    good = rise <= ARMIJO * gain
    first = good.to(torch.uint8).argmax(dim=0)
    picked = trials[first, torch.arange(x.shape[0], device=x.device)]
    return picked, good.any(dim=0), (trials[-1] != wanted[-1]).any(dim=-1)
