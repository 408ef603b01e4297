"""Ready-made costs; any object with ``stage(x, u, t)`` and ``terminal(x)`` is as good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class FunctionCost:
    """A cost of two plain functions, ``stage(x, u, t)`` and ``terminal(x)``.

    Args:
        stage: (n,), (m,), t -> 0-dim tensor; None for no running cost.
        terminal: (n,) -> 0-dim tensor; None for no terminal cost.
    """

    def __init__(
        self,
        stage: Callable[..., Tensor] | None = None,
        terminal: Callable[..., Tensor] | None = None,
    ) -> None:
        self.stage = stage or (lambda x, u, t: x.new_zeros(()))
        self.terminal = terminal or (lambda x: x.new_zeros(()))


@dataclass(frozen=True)
class QuadraticCost:
    """``l = 1/2 (x - goal)' Q (x - goal) + 1/2 u' R u``, ``phi`` the same with ``Q_final``.

    Args:
        Q, R, Q_final: symmetric weights (n, n), (m, m), (n, n), or their diagonals (n,), (m,).
        goal: state (n,); zero if None.
    """

    Q: Tensor
    R: Tensor
    Q_final: Tensor
    goal: Tensor | None = None

    def stage(self, x: Tensor, u: Tensor, t: Any) -> Tensor:
        return (square(self.error(x), self.Q) + square(u, self.R)) / 2

    def terminal(self, x: Tensor) -> Tensor:
        return square(self.error(x), self.Q_final) / 2

    def error(self, x: Tensor) -> Tensor:
        return x if self.goal is None else x - self.goal


def square(v: Tensor, weight: Tensor) -> Tensor:
    """``v' W v`` for a matrix W or the diagonal of one."""
    return v @ (weight * v if weight.ndim == 1 else weight @ v)


def smooth_abs(z: Tensor, width: float | Tensor) -> Tensor:
    """``sqrt(z^2 + width^2) - width``: |z| with a rounded corner (Tassa et al. 2014, eq. 17)."""
    return torch.sqrt(z * z + width * width) - width
