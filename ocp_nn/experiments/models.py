"""Small networks of the studies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def activation_of(name: str) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}.")
    return ACTIVATIONS[name]


def mlp(
    shape: Sequence[int],
    outputs: int,
    hidden: Sequence[int] = (32, 32, 32, 32),
    activation: str = "tanh",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Linear layers with an activation between them; inputs of several axes are flattened.

    Args:
        shape: of one input. outputs: of the last layer. hidden: widths between.
        seed: of the initial weights, torch's default initialisation; the global generator is left
            as it was.

    Raises:
        ValueError: no such activation, or a width that is not positive.
    """
    act, widths = activation_of(activation), (prod(shape), *hidden, outputs)
    if min(widths) < 1:
        raise ValueError(f"widths must be positive, got {widths}.")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), act()]
        return nn.Sequential(*layers[:-1]).to(dtype)


def cnn(
    shape: Sequence[int],
    outputs: int,
    channels: Sequence[int] = (8, 16),
    activation: str = "tanh",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Convolutions 5x5 of stride 2 with an activation each, then one linear layer.

    Raises:
        ValueError: inputs that are no images (channels, height, width), no such activation.
    """
    if len(shape) != 3:
        raise ValueError(f"cnn needs inputs (channels, height, width), got {tuple(shape)}.")
    act = activation_of(activation)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        height, width = shape[1:]
        for a, b in pairwise((shape[0], *channels)):
            layers += [nn.Conv2d(a, b, 5, stride=2, padding=2), act()]
            height, width = (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(), nn.Linear((shape[0], *channels)[-1] * height * width, outputs)]
        return nn.Sequential(*layers).to(dtype)
