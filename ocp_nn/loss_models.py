"""Factor and residual of a batch's loss, as a sweep wants them, in as few operations as there are.

`losses` has both for any loss, sample by sample. Softmax cross-entropy with class numbers, with and
without terminal damping, has closed forms: most networks end in one, and the general way costs as
much as all the layers of a small network.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ocp_nn.losses import CrossEntropy, Loss


def plain_softmax(loss: Loss, target: Tensor) -> bool:
    """Cross-entropy with class numbers and nothing else to it."""
    plain = type(loss) is CrossEntropy and loss.positions == 1 and loss.label_smoothing == 0
    return plain and not target.is_floating_point()


def mean_loss(loss: Loss, outputs: Tensor, target: Tensor) -> Tensor:
    if plain_softmax(loss, target):
        return torch.nn.functional.cross_entropy(outputs, target)
    return loss.value(outputs, target).mean()


def factor_and_residual(
    loss: Loss, outputs: Tensor, target: Tensor, damping: float, scale: float
) -> tuple[Tensor, Tensor | None]:
    """``scale Y'`` (B, k, c) and ``scale rho`` (B, k), or None, of each sample's loss.

    Y Y' is the Hessian in the outputs plus ``damping I``, and ``Y rho`` the gradient.
    """
    if plain_softmax(loss, target):
        if damping > 0:
            return damped_softmax(outputs, target, damping, scale)
        return softmax_model(outputs, target, scale)
    Y = loss.factor(outputs, target)
    if damping == 0:
        rho = loss.residual(outputs, target)
        return scale * Y.mT.contiguous(), None if rho is None else scale * rho
    eye = torch.eye(Y.shape[1], dtype=Y.dtype, device=Y.device)
    L = torch.linalg.cholesky(Y @ Y.mT + damping * eye)
    g = scale * loss.gradient(outputs, target)
    rho = torch.linalg.solve_triangular(L, g[..., None], upper=False)[..., 0]
    return scale * L.mT.contiguous(), rho


def softmax_model(logits: Tensor, target: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """`CrossEntropy.factor`, transposed, and `residual` for class numbers, in one go.

    Rows ``v_k (delta_kc - w_c v_k / (1 + v_j))`` for the classes k other than the likeliest, j.
    """
    v = (torch.log_softmax(logits, dim=1) * 0.5).exp_()
    (v_j, j), k = v.max(dim=1, keepdim=True), numbers(v.shape[1] - 1, v.device)
    others, label = k + (k >= j), target[:, None]
    v_k = v.gather(1, others)
    tail = v_k / (-1 - v_j)  # minus what the reflector has
    weight = (v * v).scatter_add_(1, j, v_j)
    rows = tail[:, :, None] * weight[:, None]
    rows.scatter_add_(2, others[..., None], v_k[..., None])
    at_label = (others == label) / v.gather(1, label)
    rho = tail.addcmul(tail, (j == label) / v_j).add_(at_label)
    return rows.mul_(scale), rho.mul_(-scale)


def damped_softmax(
    logits: Tensor, target: Tensor, damping: float, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A factor of ``diag(p) - p p' + eps I`` and the residual, for class numbers.

    With ``d = p + eps`` and ``w = p / sqrt(d)`` the matrix is ``diag(sqrt d) (I - w w')
    diag(sqrt d)``, and with ``s^2 = 1 - w'w = eps sum p / d``, which does not cancel,

        Y = diag(sqrt d) - p w' / (1 + s)
        rho = (p - e_y) / sqrt(d) + w (eps / d_y - s^2) / (s (1 + s))
    """
    p = torch.softmax(logits, dim=1)
    d, label = p + damping, target[:, None]
    root = d.sqrt()
    w = p / root
    square = (p / d).sum(dim=1, keepdim=True) * damping
    s = square.sqrt()
    rows = torch.diag_embed(root)
    rows.addcmul_((w / (1 + s))[:, :, None], p[:, None], value=-1)
    along = (damping / d.gather(1, label) - square) / (s + square)
    at_label = -1 / root.gather(1, label)
    rho = (w + w * along).scatter_add_(1, label, at_label)
    return rows.mul_(scale), rho.mul_(scale)


@functools.lru_cache(maxsize=64)
def numbers(n: int, device: torch.device) -> Tensor:
    """0 .. n - 1."""
    return torch.arange(n, device=device)
