"""Layers that apply one matrix at many positions: convolutions, and linear layers on sequences.

Such a layer is ``z = W a``: each sample has L rows a (bias: a last entry 1), L = 1 for a plain
Linear. Its per-sample gradients are ``dW = sum_l g_l a_l'``, its Kronecker factors
``A = E[sum_l a_l a_l']`` and ``G = E[mean_l g_l g_l']`` (Grosse, Martens, ICML 2016).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def applies_one_matrix(module: nn.Module | None) -> bool:
    """Whether `input_rows` and `output_rows` know the module."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, CONVOLUTIONS) and module.groups == 1
    )


def input_rows(module: nn.Module, x: Tensor, has_bias: bool) -> Tensor:
    """A layer's input (B, ...) as rows (B, L, n_in [+ 1])."""
    if isinstance(module, CONVOLUTIONS):
        x = padded(module, x)
        kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
        if isinstance(module, nn.Conv1d):  # one row of pixels
            x, one = x[:, :, None], (1,)
            kernel, dilation, stride = one + kernel, one + dilation, one + stride
        rows = F.unfold(x, kernel, dilation, 0, stride).mT
    else:
        rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    return torch.cat((rows, torch.ones_like(rows[..., :1])), -1) if has_bias else rows


def padded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    if module.padding == "valid":
        return x
    if module.padding == "same":  # what is missing on both sides, the odd one behind
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    flat = [p for side in reversed(sides) for p in side]
    return F.pad(x, flat, mode=mode)


def output_rows(module: nn.Module, flat: Tensor) -> Tensor:
    """Of what belongs to a layer's output, flattened: (..., n') -> (..., L, n_out)."""
    if isinstance(module, CONVOLUTIONS):
        return flat.unflatten(-1, (module.out_channels, -1)).mT
    assert isinstance(module, nn.Linear)
    return flat.unflatten(-1, (-1, module.out_features))


def squares(a: Tensor, g: Tensor) -> Tensor:
    """Sum over samples and k of the squared gradients ``sum_l g_l a_l'``.

    a (B, L, n_in), g (k, B, L, n_out) -> (n_out, n_in).
    """
    if a.shape[1] == 1:
        return g.square().sum(dim=0)[:, 0].mT @ a[:, 0].square()
    total = a.new_zeros(g.shape[-1], a.shape[-1])
    for column in g:
        total += (column.mT @ a).square().sum(dim=0)
    return total
