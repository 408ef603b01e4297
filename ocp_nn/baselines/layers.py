"""Inputs and output gradients of linear and convolutional layers, as Kronecker factors need them.

A layer is ``z = W a``: for each sample L rows a (bias: a last entry 1), L = 1 for a plain Linear,
the number of positions for a convolution or a Linear on sequences. Per-sample gradients are
``dW = sum_l g_l a_l'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_nn.losses import Loss

STATISTICS = ("exact", "sampled", "empirical")


@dataclass
class Layer:
    """A module with a weight matrix, and what was recorded of it in one forward pass.

    Attributes:
        name: dotted name in the model.
        module: Linear or Conv2d.
        inputs: rows a (B, L, n_in [+ 1 if there is a bias]).
        outputs: the module's output, in the graph of the forward pass.
    """

    name: str
    module: nn.Module
    inputs: Tensor = field(init=False)
    outputs: Tensor = field(init=False)
    calls: int = 0
    version: int = 0

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        return self.module.bias  # type: ignore[return-value]

    def matrix(self) -> Tensor:
        """Gradient of the weight, beside it that of the bias: (n_out, n_in [+ 1])."""
        assert self.weight.grad is not None
        W = self.weight.grad.flatten(1)
        if self.bias is None:
            return W
        assert self.bias.grad is not None
        return torch.cat((W, self.bias.grad[:, None]), dim=1)

    def rows(self, gradient: Tensor) -> Tensor:
        """Gradients (..., B, *output) as rows g: (..., B, L, n_out)."""
        extra = gradient.ndim - self.outputs.ndim
        if isinstance(self.module, nn.Conv2d):
            return gradient.flatten(-2).mT
        return gradient.flatten(1 + extra, -2) if self.outputs.ndim > 2 else gradient[..., None, :]


def layers_of(model: nn.Module, method: str, rest: bool) -> dict[str, Layer]:
    """The layers with Kronecker structure.

    Args:
        method: name of the optimiser, for the message.
        rest: other parameters may exist.

    Raises:
        ValueError: a trainable parameter is in no such layer, or a weight is used by two.
    """
    found, owned = {}, dict[int, str]()
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        )
        if not plain or not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        if not all(p.requires_grad for p in module.parameters(recurse=False)):
            raise ValueError(f"{method}: {name} is partly frozen; freeze its weight and bias both.")
        for p in module.parameters(recurse=False):
            if id(p) in owned:
                raise ValueError(
                    f"{method}: {name} and {owned[id(p)]} share a parameter, which Kronecker "
                    "factors do not model; untie them."
                )
            owned[id(p)] = name
        found[name] = Layer(name, module)
    left = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in owned]
    if left and not rest:
        raise ValueError(
            f"{method} has Kronecker factors for Linear and Conv2d (groups=1) only; no place for "
            f"{', '.join(left)}. Freeze them, or give rest_lr= to train them by plain gradient."
        )
    if not found:
        raise ValueError(f"{method} needs a Linear or Conv2d layer, the model has none.")
    return found


@contextmanager
def recording(layers: dict[str, Layer]) -> Iterator[None]:
    """Note what goes through the layers while the model is called once.

    Raises:
        ValueError: a layer was called twice, or its output was overwritten.
    """

    def hook(layer: Layer):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            layer.calls += 1
            layer.inputs, layer.outputs = input_rows(module, args[0].detach()), output
            layer.version = output._version

        return note

    for layer in layers.values():
        layer.calls = 0
    handles = [layer.module.register_forward_hook(hook(layer)) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers.values():
        if layer.calls != 1:
            raise ValueError(
                f"layer {layer.name} was called {layer.calls} times in one forward pass; Kronecker "
                "factors need exactly once."
            )
        if layer.outputs._version != layer.version:
            raise ValueError(
                f"the output of {layer.name} is overwritten by what follows it: use inplace=False."
            )


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """A layer's input (B, ...) as rows (B, L, n_in [+ 1])."""
    if isinstance(module, nn.Conv2d):
        rows = F.unfold(padded(module, x), module.kernel_size, module.dilation, 0, module.stride).mT
    else:
        rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
    return rows if module.bias is None else torch.cat((rows, torch.ones_like(rows[..., :1])), -1)


def padded(module: nn.Conv2d, x: Tensor) -> Tensor:
    if module.padding == "valid":
        return x
    if module.padding == "same":  # what is missing on both sides, the odd one behind
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, (*sides[1], *sides[0]), mode=mode)


def cotangents(
    loss: Loss,
    outputs: Tensor,
    targets: Tensor,
    statistics: str,
    generator: torch.Generator,
) -> Tensor:
    """Output gradients whose second moment is the curvature wanted: (k, B, c).

    "exact": columns of the loss's factor, so that sums over k are the generalised Gauss-Newton
    matrix (the Fisher matrix). "sampled": one draw with that covariance, from targets of the
    model's own distribution where the loss has one. "empirical": the gradient of the loss.
    """
    if statistics == "exact":
        return loss.factor(outputs, targets).movedim(-1, 0)
    if statistics == "empirical":
        return loss.gradient(outputs, targets)[None]
    try:
        drawn = loss.sample_targets(outputs.cpu(), generator).to(outputs.device)
    except ValueError:  # no distribution: huber, a user's function
        z = loss.sample_gradient(outputs.cpu(), targets.cpu(), generator)
        return z.to(outputs.device)[None]
    return loss.gradient(outputs, drawn)[None]


def check_statistics(statistics: str) -> None:
    if statistics not in STATISTICS:
        raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, got {statistics!r}.")
