"""Trajectories as the engine works with them, and as the loop sees them.

The loop knows activations as rows (1, B n) and controls as rows (1, m), with an axis of trials in
front while it chooses. The engine works with (B, n) and with open controls. Of the hundred views
and copies a step between the two, a step of a mini-batch needs none: they are made where somebody
looks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

Flat = Callable[[int, Any], Tensor]
"""What the engine has of stage t -> its numbers (n,), in a tensor that nobody else changes."""


class Lazy(Sequence[Tensor]):
    """A list over t whose entries are made when asked for."""

    def __init__(self, length: int) -> None:
        self.length = length

    @abstractmethod
    def entry(self, t: int) -> Tensor: ...

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, t: int) -> Tensor: ...
    @overload
    def __getitem__(self, t: slice) -> list[Tensor]: ...
    def __getitem__(self, t: int | slice) -> Tensor | list[Tensor]:
        index = range(self.length)[t]
        return self.entry(index) if isinstance(index, int) else [self.entry(i) for i in index]


class Laid(Lazy):
    """One trajectory: rows (1, n)."""

    def __init__(self, parts: Sequence[Any], flat: Flat) -> None:
        super().__init__(len(parts))
        self.parts, self.flat = parts, flat

    def entry(self, t: int) -> Tensor:
        return self.flat(t, self.parts[t])[None]


class Tried(Lazy):
    """One trajectory for each of A step sizes: (A, 1, n)."""

    def __init__(self, rolled: Sequence[Sequence[Any]], flat: Flat) -> None:
        super().__init__(len(rolled[0]))
        self.rolled, self.flat = rolled, flat

    def entry(self, t: int) -> Tensor:
        return torch.stack([self.flat(t, parts[t]) for parts in self.rolled])[:, None]

    def trial(self, index: int) -> Laid:
        return Laid(self.rolled[index], self.flat)
