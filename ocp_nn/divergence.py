"""When a run has diverged although every number of it is still finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GOOD = 2.0  # times the reference: up to here the weights that gave a loss are worth keeping
FACTOR, PATIENCE = 100.0, 3  # so many losses in a row above so many times the reference
SUDDEN = 1e6  # times the reference: one is enough


class DivergedError(FloatingPointError):
    """A run left all bounds, or a step was not finite; the model has its last good weights.

    Attributes:
        step: number of the step, from 1.
        fault: what was not finite or grew, with stage and layer.
    """

    def __init__(self, step: int, fault: str, kept: str = "the weights of before the step") -> None:
        super().__init__(
            f"step {step} diverged: {fault}. The model keeps {kept}; a larger damping or a smaller "
            "lr shortens the steps."
        )
        self.step, self.fault = step, fault


class Watch:
    """Judges a run by the losses of its batches, each at the weights before the step.

    The reference is the larger of the first loss and a `floor`, such as the loss of outputs that
    are zero: a run that starts at a lucky loss of nearly 0 has not diverged when it leaves it.

    Args:
        sudden: times the reference: one loss above it is a divergence.

    Attributes:
        reference: 0 until there was a loss that is not.
        high: losses in a row above ``FACTOR`` times the reference.
    """

    def __init__(self, sudden: float = SUDDEN) -> None:
        self.sudden, self.reference, self.high = sudden, 0.0, 0

    def start(self, loss: float, floor: float) -> None:
        if math.isfinite(loss) and math.isfinite(floor):
            self.reference = max(abs(loss), floor)

    def good(self, loss: float) -> bool:
        """Whether the weights that gave this loss are worth keeping."""
        return loss <= GOOD * self.reference

    def diverged(self, loss: float) -> bool:
        """The verdict on the next loss of the run."""
        if self.reference == 0:
            return math.isnan(loss)
        self.high = self.high + 1 if not loss <= FACTOR * self.reference else 0
        return not loss <= self.sudden * self.reference or self.high >= PATIENCE

    def words(self, loss: float) -> str:
        times = "" if self.reference == 0 else f", {loss / self.reference:.3g} times that at first"
        return f"the loss is {loss:.3g}{times}"


def grown(names: Sequence[str], now: Sequence[Tensor], good: Sequence[Tensor]) -> str:
    """The stage whose weights have moved most, relative to their norm, in words.

    Args:
        names: of the stages. now, good: their controls (m,), of which some may be empty.
    """
    moved = {
        t: float((u.double() - v.double()).norm() / v.double().norm().clamp_min(1e-30))
        for t, (u, v) in enumerate(zip(now, good, strict=True))
        if u.numel()
    }
    worst = max(moved, key=lambda t: math.inf if math.isnan(moved[t]) else moved[t])
    with torch.no_grad():
        before, after = float(good[worst].norm()), float(now[worst].norm())
    return (
        f"the weights of stage {worst} ({names[worst]}) changed most, their norm from {before:.3g} "
        f"to {after:.3g}"
    )
