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
from torch import Tensor, nn

from ocp_nn.losses import Loss
from ocp_nn.positions import applies_one_matrix, input_rows, output_rows

STATISTICS = ("exact", "sampled", "empirical")


@dataclass
class Layer:
    """A module with a weight matrix, and what was recorded of it in one forward pass.

    Attributes:
        name: dotted name in the model.
        module: Linear, Conv1d or Conv2d.
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
        return output_rows(self.module, gradient.flatten(1 + extra))


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
        if not applies_one_matrix(module) or not any(
            p.requires_grad for p in module.parameters(recurse=False)
        ):
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
            f"{method} has Kronecker factors for Linear, Conv1d and Conv2d (groups=1) only; no "
            f"place for {', '.join(left)}. Freeze them, or give rest_lr= to train them by plain "
            "gradient."
        )
    if not found:
        raise ValueError(f"{method} needs a Linear or convolutional layer, the model has none.")
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
            rows = input_rows(module, args[0].detach(), layer.bias is not None)
            layer.inputs, layer.outputs = rows, output
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
