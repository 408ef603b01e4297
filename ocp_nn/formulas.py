"""Layers as their formulas: where torch's kernel cannot be batched or differentiated as we must.

`torch.func` needs of a stage: vmap over samples, and vmap over cotangents of its vjp. Several fused
kernels fail at one of them, or loop (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Statistics = tuple[Tensor, Tensor]  # mean and biased variance of each channel


@dataclass
class Context:
    """What a module's function may read besides its inputs.

    Attributes:
        params: trainable parameters by their name in the model.
        statistics: of frozen batch norms, by the name of the operation.
        keys: dropout key of each sample, (B,) whole numbers.
        record: where batch norms leave the statistics they computed, and over how many numbers.
        total: sum over processes that have a part of the batch each, where there are such.
    """

    params: Mapping[str, Tensor]
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    keys: Tensor | None = None
    record: dict[str, tuple[Tensor, Tensor, int]] | None = None
    total: Callable[[Tensor], Tensor] | None = None


Value = Callable[[Context, str], Any]  # a parameter of a module by its name there, or None
Formula = Callable[..., Any]  # (context, *inputs) -> output


def affine(y: Tensor, value: Value, context: Context) -> Tensor:
    """``y * weight + bias`` channel by channel, where the module has them."""
    weight, bias = value(context, "weight"), value(context, "bias")
    channel = (1, -1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.reshape(channel)
    return y if bias is None else y + bias.reshape(channel)


def linear(module: nn.Linear, value: Value) -> Formula:
    return lambda c, x: F.linear(x, value(c, "weight"), value(c, "bias"))


def bilinear(module: nn.Bilinear, value: Value) -> Formula:
    def run(c: Context, x: Tensor, y: Tensor) -> Tensor:
        out = torch.einsum("...i,oij,...j->...o", x, value(c, "weight"), y)
        bias = value(c, "bias")
        return out if bias is None else out + bias

    return run


def embedding(module: nn.Embedding, value: Value) -> Formula:
    return lambda c, index: F.embedding(index, value(c, "weight"), module.padding_idx)


def prelu(module: nn.PReLU, value: Value) -> Formula:
    def run(c: Context, x: Tensor) -> Tensor:
        slope = value(c, "weight").reshape(-1, *[1] * max(0, x.ndim - 2))
        return torch.where(x > 0, x, slope * x)

    return run


def group_norm(module: nn.GroupNorm, value: Value) -> Formula:
    def run(c: Context, x: Tensor) -> Tensor:
        z = x.reshape(x.shape[0], module.num_groups, -1)
        z = z - z.mean(dim=-1, keepdim=True)
        z = z / (z.square().mean(dim=-1, keepdim=True) + module.eps).sqrt()
        return affine(z.reshape(x.shape), value, c)

    return run


# -- recurrent cells -------------------------------------------------------------------------------
def gates(c: Context, value: Value, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What input and state contribute to the gates."""
    return (
        F.linear(x, value(c, "weight_ih"), value(c, "bias_ih")),
        F.linear(h, value(c, "weight_hh"), value(c, "bias_hh")),
    )


def zeros(x: Tensor, size: int) -> Tensor:
    return x.new_zeros(*x.shape[:-1], size)


def rnn_cell(module: nn.RNNCell, value: Value) -> Formula:
    squash = torch.tanh if module.nonlinearity == "tanh" else torch.relu

    def run(c: Context, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = zeros(x, module.hidden_size) if h is None else h
        return squash(sum(gates(c, value, x, h), start=x.new_zeros(())))

    return run


def gru_cell(module: nn.GRUCell, value: Value) -> Formula:
    def run(c: Context, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = zeros(x, module.hidden_size) if h is None else h
        from_x, from_h = (g.chunk(3, dim=-1) for g in gates(c, value, x, h))
        reset, update = ((a + b).sigmoid() for a, b in zip(from_x[:2], from_h[:2], strict=True))
        new = torch.tanh(from_x[2] + reset * from_h[2])
        return new + update * (h - new)

    return run


def lstm_cell(module: nn.LSTMCell, value: Value) -> Formula:
    def run(
        c: Context, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        h, cell = (zeros(x, module.hidden_size),) * 2 if state is None else state
        from_x, from_h = gates(c, value, x, h)
        enter, forget, new, leave = (from_x + from_h).chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * torch.tanh(new)
        return leave.sigmoid() * torch.tanh(cell), cell

    return run


FORMULAS: dict[type[nn.Module], Callable[[Any, Value], Formula]] = {
    nn.Linear: linear,
    nn.Bilinear: bilinear,
    nn.Embedding: embedding,
    nn.PReLU: prelu,
    nn.GroupNorm: group_norm,
    nn.RNNCell: rnn_cell,
    nn.GRUCell: gru_cell,
    nn.LSTMCell: lstm_cell,
}
