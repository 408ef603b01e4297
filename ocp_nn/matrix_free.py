"""Large r: conjugate gradients on ``S_t z = w``, with S_t as an operator and never formed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_nn.coordinates import Linear, MetricOf, value_gradient
from ocp_nn.metrics import Metric
from ocp_nn.model import Model

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(
    A: Operator, b: Tensor, guess: Tensor | None, tolerance: float, most: int
) -> tuple[Tensor, int]:
    """Solve A x = b for A symmetric positive definite.

    Args:
        A: product with a vector (r,). b: (r,). guess: start, or None for zero.
        tolerance: on |b - A x| relative to |b|.
        most: iterations at most; the last x is returned, a descent step all the same.

    Returns:
        x and the number of iterations. Source: Hestenes, Stiefel (1952).
    """
    x = torch.zeros_like(b) if guess is None else guess
    residual = b if guess is None else b - A(guess)
    goal = (tolerance * b.norm()) ** 2
    p, square = residual, residual @ residual
    for iteration in range(most):
        if bool(square <= goal):
            return x, iteration
        Ap = A(p)
        step = square / (p @ Ap)
        x = x + step * p
        residual = residual - step * Ap
        before, square = square, residual @ residual
        p = residual + (square / before) * p
    return x, most


@dataclass(eq=False)
class MatrixFree:
    """The proximal form with S_t an operator; the z of the stage before starts each solve.

    With a linear roll-out z is the same at every stage, so what is left to solve after the first
    is the response to what the roll-out has of non-linearity.

    Attributes:
        iterations: of the last roll-out, all stages together.
    """

    model: Model
    metrics: dict[int, Metric]
    operators: dict[int, Operator]
    ws: dict[int, Tensor]
    decrease: Tensor
    definite: Tensor
    feedback: bool | str
    tolerance: float
    most: int
    first: Tensor  # z at the first active stage without deviation
    iterations: int = 0

    def z(self, t: int, v: Tensor | None, alpha: float, guess: Tensor | None) -> Tensor:
        if guess is None or self.feedback == "linear":
            return self.first if alpha == 1 else alpha * self.first
        w = self.ws[t] if alpha == 1 else alpha * self.ws[t]
        if v is not None and self.feedback:
            w = w + v
        z, count = conjugate_gradients(self.operators[t], w, guess, self.tolerance, self.most)
        self.iterations += count
        return z


def matrix_free(
    model: Model, metric_of: MetricOf, feedback: bool | str, tolerance: float, most: int
) -> MatrixFree:
    """Backward pass without any kernel: the metrics, w_t, and one solve for the whole step."""
    linear = Linear(model)
    metrics: dict[int, Metric] = {}
    operators: dict[int, Operator] = {}
    ws: dict[int, Tensor] = {}
    parts: list[Operator] = []
    z: Callable[[], Tensor] = lambda: model.rho
    for t in reversed(model.active):
        metric = metrics[t] = metric_of(t, value_gradient(model, t + 1, z))
        parts.append(model.operator(t, metric))
        linear.absorb(t, metric)
        ws[t], operators[t] = linear.w, plus_identity(tuple(parts))
        z = lambda t=t: conjugate_gradients(operators[t], ws[t], None, tolerance, most)[0]  # type: ignore[misc]
    first = model.active[0]
    z0, count = conjugate_gradients(operators[first], ws[first], None, tolerance, most)
    decrease = (linear.square + model.rho @ model.rho - ws[first] @ z0) / 2
    fine = torch.isfinite(decrease)
    return MatrixFree(
        model, metrics, operators, ws, decrease, fine, feedback, tolerance, most, z0, count
    )


def plus_identity(parts: tuple[Operator, ...]) -> Operator:
    """``z -> z + sum of Gamma z``."""

    def product(z: Tensor) -> Tensor:
        total = z
        for part in parts:
            total = total + part(z)
        return total

    return product
