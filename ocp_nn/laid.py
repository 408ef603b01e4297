"""Trajectories as the engine works with them, and as the loop sees them.

The loop knows activations as rows (1, B n) and controls as rows (1, m). The engine works with
(B, n) and with open controls. Of the hundred views and copies a step between the two, a step of a
mini-batch needs none: they are made where somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from torch import Tensor


class Laid(Sequence[Tensor]):
    """A list over t of rows (1, n), made when asked for.

    Args:
        parts: what the engine has.
        flat: part of stage t -> its numbers (n,), in a tensor that nobody else changes.
        axes: of size 1 in front: 2 for the trials of one step size.
    """

    def __init__(
        self, parts: Sequence[Any], flat: Callable[[int, Any], Tensor], axes: int = 1
    ) -> None:
        self.parts, self.flat, self.axes = parts, flat, axes

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, t: int) -> Tensor: ...
    @overload
    def __getitem__(self, t: slice) -> list[Tensor]: ...
    def __getitem__(self, t: int | slice) -> Tensor | list[Tensor]:
        if isinstance(t, slice):
            return [self[i] for i in range(len(self))[t]]
        index = range(len(self))[t]
        return self.flat(index, self.parts[index]).view(*[1] * self.axes, -1)


def first(trials: Sequence[Tensor]) -> Sequence[Tensor]:
    """The trial of the first step size: (A, B, n) -> (B, n) for each t."""
    if isinstance(trials, Laid):
        return Laid(trials.parts, trials.flat, trials.axes - 1)
    return [v[0] for v in trials]
