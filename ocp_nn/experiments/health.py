"""Seeing that a run diverges, where it does, and keeping the weights it had before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Diverged(Exception):  # noqa: N818  a fact about a run, which training turns into a status
    """Loss or weights are no longer finite, or the loss left all bounds."""


class Guard:
    """The weights of the last two steps, and the verdict on each.

    Buffers (running statistics) are kept like parameters.

    Args:
        model: watched.
        limit: a loss above ``limit * max(1, first loss)`` counts as diverged.
    """

    def __init__(self, model: nn.Module, limit: float = 1e6) -> None:
        self.model, self.limit = model, limit
        self.watched = list(model.state_dict(keep_vars=True).values())
        self.kept = [[v.detach().clone() for v in self.watched] for _ in range(2)]
        self.steps = 0
        self.bound = math.inf

    def before(self) -> None:
        """Note the weights that a step starts from."""
        self.kept.reverse()
        copy(self.kept[0], self.watched)
        self.steps += 1

    def after(self, loss: float) -> None:
        """Judge a step by the loss at its start and the weights at its end.

        Raises:
            Diverged: names the layer; the model has its last good weights again.
        """
        if self.steps == 1 and math.isfinite(loss):
            self.bound = self.limit * max(1.0, abs(loss))
        if not loss <= self.bound:  # nan too
            # This loss is of the weights before the step: those before the last step were fine.
            where = self.blame()
            copy(self.watched, self.kept[min(1, self.steps - 1)])
            raise Diverged(f"the loss is {loss:.3g}{where}")
        bad = first_bad(self.model)
        if bad:
            copy(self.watched, self.kept[0])
            raise Diverged(f"{bad} is not finite after the step")

    def blame(self) -> str:
        """Where the weights at the start of the step are worst, in words."""
        with torch.no_grad():
            named = dict(self.model.named_parameters())
            sizes = {name: float(p.abs().max()) for name, p in named.items() if p.numel()}
        if not sizes:
            return ""
        largest = max(sizes, key=lambda name: math.inf if math.isnan(sizes[name]) else sizes[name])
        return f"; the largest weight, {sizes[largest]:.3g}, is in {largest}"

    def restore(self) -> None:
        """Back to the weights before the step that failed."""
        copy(self.watched, self.kept[0])


def first_bad(model: nn.Module) -> str:
    """Name of the first parameter or buffer that is not finite, in the model's order; or ""."""
    named = [
        (k, v)
        for k, v in model.state_dict(keep_vars=True).items()
        if v.is_floating_point() and v.numel()
    ]
    if not named:
        return ""
    # One reduction and one synchronisation for all.
    with torch.no_grad():
        norms = torch._foreach_norm([v for _, v in named], math.inf)
        finite = torch.stack(norms).isfinite()
        if bool(finite.all()):
            return ""
    return named[int((~finite).nonzero()[0])][0]


@torch.no_grad()
def copy(to: list[Tensor], source: list[Tensor]) -> None:
    """In place, a few calls for all."""
    floats = [(a, b) for a, b in zip(to, source, strict=True) if a.is_floating_point()]
    if floats:
        torch._foreach_copy_([a for a, _ in floats], [b for _, b in floats])
    for a, b in zip(to, source, strict=True):
        if not a.is_floating_point():
            a.copy_(b)
