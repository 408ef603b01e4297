"""Seeing that a run diverges, where it does, and keeping the weights it had before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ocp_nn.divergence import SUDDEN, Watch


class Diverged(Exception):  # noqa: N818  a fact about a run, which training turns into a status
    """Loss or weights are no longer finite, or the loss left all bounds."""


class Guard:
    """The weights before the last step and the last good ones, and the verdict on each step.

    Buffers (running statistics) are kept like parameters.

    Args:
        model: watched.
        limit: a loss above ``limit`` times the reference, see `ocp_nn.divergence.Watch`, counts as
            diverged at once; three in a row do above 100 times.
        floor: of the reference, such as the loss of outputs that are zero.
    """

    def __init__(self, model: nn.Module, limit: float = SUDDEN, floor: float = 1.0) -> None:
        self.model, self.watch, self.floor = model, Watch(limit), floor
        self.watched = list(model.state_dict(keep_vars=True).values())
        self.current, self.good = ([v.detach().clone() for v in self.watched] for _ in range(2))

    def before(self) -> None:
        """Note the weights that a step starts from."""
        copy(self.current, self.watched)

    def after(self, loss: float) -> None:
        """Judge a step by the loss at its start and the weights at its end.

        Raises:
            Diverged: names the layer; the model has its last good weights again.
        """
        if self.watch.reference == 0:
            self.watch.start(loss, self.floor)
        if self.watch.diverged(loss):  # of the weights before the step
            where = self.blame()
            copy(self.watched, self.good)
            raise Diverged(f"{self.watch.words(loss)}{where}")
        if self.watch.good(loss):
            self.current, self.good = self.good, self.current
        bad = first_bad(self.model)
        if bad:
            copy(self.watched, self.good)
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
        copy(self.watched, self.current)


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
