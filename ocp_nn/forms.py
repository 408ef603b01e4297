"""How one stage ``X' = F(X, u)`` is evaluated and differentiated, the whole batch at a time.

`Form` takes any stage, by `torch.func`. The stages that make up most networks have closed forms of
the same products (`LinearForm`, `PointwiseForm`): these are what the cost of a step hangs on, and
they are tested against `Form`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from ocp_nn.cotangents import Cotangents
from ocp_nn.kernels import activation_kernel, linear_kernel, linear_rows, rows_kernel
from ocp_nn.metrics import Eigenbasis, Isotropic, Kronecker, Metric, as_vector, with_one
from ocp_nn.positions import applies_one_matrix, input_rows, output_rows

Control = Any
"""Of one stage as its form reads it, see `Form.open`: flat, or `Weights`."""


class Weights(NamedTuple):
    """Control of a linear stage: weight (n', n) and bias (n',)."""

    W: Tensor
    b: Tensor | None


class Form:
    """Products with the derivatives of a stage.

    A roll-out reads the same controls several times, and to find the weights in a flat vector
    costs as much as half a product: it is done once, by `open`. Below, u is an open control.

    Attributes:
        stage: the map of X (B, n) and u (m,) to (B, n').
        m: size of its controls.
        couples: whether it couples samples.
    """

    def __init__(self, stage: Any) -> None:
        self.stage, self.m, self.couples = stage, stage.m, stage.couples_samples

    def open(self, u: Tensor) -> Control:
        """A control (m,) as this form reads it."""
        return u

    def close(self, u: Control) -> Tensor:
        """The inverse of `open`: (m,)."""
        return u

    def parameters(self, u: Control) -> list[Tensor]:
        """The stage's parameters, in order and of their shapes."""
        return [u[p.start : p.stop].view(p.shape) for p in self.stage.parameters]

    def moved(self, X: Tensor, u: Control, V: Tensor, metric: Metric) -> Control:
        """``u - P F_u' V`` for cotangents V (B, n')."""
        return metric.step(u, self.gradient(X, u, V))

    def forward(self, X: Tensor, u: Control) -> Tensor:
        return self.stage(X, u)

    def pull(self, X: Tensor, after: Tensor, u: Control, Y: Cotangents) -> Cotangents:
        """``F_X' Y``; ``after`` is F(X, u)."""
        if self.couples:
            Y = Y.couple()
        with torch.enable_grad():
            _, product = reverse(lambda x: self.stage(x, u), X)
            rows = vmap(product, in_dims=1, out_dims=1)(Y.rows)
        return Cotangents(rows.detach(), Y.coupled)

    def pull_one(self, X: Tensor, after: Tensor, u: Control, V: Tensor) -> Tensor:
        """``F_X' V`` of one cotangent a sample: (B, n') -> (B, n)."""
        with torch.enable_grad():
            _, product = reverse(lambda x: self.stage(x, u), X)
            return product(V).detach()

    def gradient(self, X: Tensor, u: Control, V: Tensor) -> Tensor:
        """``F_u' V``: (B, n') -> (m,)."""
        with torch.enable_grad():
            _, product = reverse(lambda v: self.stage(X, v), u)
            return product(V).detach()

    def push(self, X: Tensor, u: Control, du: Tensor) -> Tensor:
        """``F_u du``: (m,) -> (B, n')."""
        return forward_product(lambda v: self.stage(X, v), u, du)

    def push_state(self, X: Tensor, u: Control, dX: Tensor) -> Tensor:
        """``F_X dX``: (B, n) -> (B, n')."""
        return forward_product(lambda x: self.stage(x, u), X, dX)

    def rows(self, X: Tensor, u: Control, Y: Cotangents) -> Tensor:
        """``Y' F_u``, per-sample gradients: (r, m)."""
        if self.couples:
            Y = Y.couple()
        with torch.enable_grad():
            if Y.coupled:
                _, product = reverse(lambda v: self.stage(X, v), u)
                return vmap(product, in_dims=1)(Y.rows).detach()

            def one(x: Tensor, cotangents: Tensor) -> Tensor:
                _, product = reverse(lambda v: self.stage(x[None], v)[0], u)
                return vmap(product)(cotangents)

            return vmap(one)(X, Y.rows).flatten(0, 1).detach()

    def kernel(self, X: Tensor, u: Control, Y: Cotangents, metric: Metric) -> Tensor:
        """``Gamma = Y' F_u P F_u' Y``: (r, r)."""
        return rows_kernel(self.rows(X, u, Y), metric)

    def operator(
        self, X: Tensor, u: Control, Y: Cotangents, metric: Metric
    ) -> Callable[[Tensor], Tensor]:
        """``z -> Gamma z`` without Gamma: one product with F_u' and one with F_u."""

        def product(z: Tensor) -> Tensor:
            g = metric.apply(self.gradient(X, u, Y.apply(z)))
            return Y.adjoint(self.push(X, u, g))

        return product


def reverse(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """f(x), and the product of a cotangent with its derivative."""
    y, product, *_ = vjp(f, x)
    return y, lambda V: product(V)[0]


def forward_product(f: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor) -> Tensor:
    """``f_x dx``, by differentiating the reverse product: forward mode lacks some operations."""
    with torch.enable_grad():
        y, product = reverse(f, x)
        _, transposed = reverse(product, torch.zeros_like(y))
        return transposed(dx).detach()


class LinearForm(Form):
    """``X' = X W' + b``, u = (W row by row, b)."""

    def __init__(self, stage: Any, outputs: int, inputs: int, has_bias: bool) -> None:
        super().__init__(stage)
        self.outputs, self.inputs, self.has_bias = outputs, inputs, has_bias

    def activations(self, X: Tensor) -> Tensor:
        """What the weight acts on: (B, n)."""
        return X

    def outgoing(self, Y: Cotangents) -> Cotangents:
        """Cotangents of what the weight gives."""
        return Y

    def open(self, u: Tensor) -> Weights:
        end = self.outputs * self.inputs
        W = u[:end].view(self.outputs, self.inputs)
        return Weights(W, u[end:] if self.has_bias else None)

    def close(self, u: Weights) -> Tensor:
        return u.W.reshape(-1) if u.b is None else torch.cat((u.W.reshape(-1), u.b))

    def parameters(self, u: Weights) -> list[Tensor]:
        return [u.W] if u.b is None else [u.W, u.b]

    def moved(self, X: Tensor, u: Weights, V: Tensor, metric: Metric) -> Weights:
        if isinstance(metric, Isotropic):
            W = torch.addmm(u.W, V.t(), X, alpha=-metric.values[0])
            if u.b is None:
                return Weights(W, None)
            return Weights(W, torch.sub(u.b, V.sum(dim=0), alpha=metric.values[1]))
        if isinstance(metric, Kronecker | Eigenbasis):
            G = metric.along(X, V)
            if u.b is None:
                return Weights(u.W - G, None)
            return Weights(u.W - G[:, :-1], u.b - G[:, -1])
        return self.open(metric.step(self.close(u), self.gradient(X, u, V)))

    def forward(self, X: Tensor, u: Weights) -> Tensor:
        return F.linear(X, u.W, u.b)

    def pull(self, X: Tensor, after: Tensor, u: Weights, Y: Cotangents) -> Cotangents:
        B, k, n = Y.rows.shape
        return Cotangents(torch.mm(Y.rows.reshape(B * k, n), u.W).view(B, k, -1), Y.coupled)

    def pull_one(self, X: Tensor, after: Tensor, u: Weights, V: Tensor) -> Tensor:
        return V @ u.W

    def gradient(self, X: Tensor, u: Control, V: Tensor) -> Tensor:
        G = (V.mT @ X).view(-1)
        return torch.cat((G, V.sum(dim=0))) if self.has_bias else G

    def push(self, X: Tensor, u: Control, du: Tensor) -> Tensor:
        return LinearForm.forward(self, X, LinearForm.open(self, du))

    def push_state(self, X: Tensor, u: Weights, dX: Tensor) -> Tensor:
        return dX @ u.W.mT

    def rows(self, X: Tensor, u: Control, Y: Cotangents) -> Tensor:
        J = linear_rows(with_one(X, self.has_bias), Y.rows, Y.coupled)
        return as_vector(J.unflatten(-1, (self.outputs, -1)), self.has_bias)

    def kernel(self, X: Tensor, u: Control, Y: Cotangents, metric: Metric) -> Tensor:
        return linear_kernel(X, Y, metric, self.outputs, self.has_bias)

    def operator(
        self, X: Tensor, u: Control, Y: Cotangents, metric: Metric
    ) -> Callable[[Tensor], Tensor]:
        """With an isotropic P through the (B, B) kernel of the activations, whatever m is."""
        if not isinstance(metric, Isotropic):
            return Form.operator(self, X, u, Y, metric)
        K = activation_kernel(X, metric, self.has_bias)
        return lambda z: Y.adjoint(K @ Y.apply(z))


class AugmentedLinearForm(LinearForm):
    """A linear layer from some columns of the state to some columns of the next; others pass by."""

    def __init__(self, stage: Any, layout: Any) -> None:
        super().__init__(stage, layout.outputs, layout.inputs, layout.has_bias)
        self.layout = layout

    open, close, parameters, moved = Form.open, Form.close, Form.parameters, Form.moved
    forward, pull, pull_one = Form.forward, Form.pull, Form.pull_one
    push_state = Form.push_state

    def activations(self, X: Tensor) -> Tensor:
        return X[:, self.layout.in_columns]

    def outgoing(self, Y: Cotangents) -> Cotangents:
        return Cotangents(Y.rows[..., self.layout.out_columns], Y.coupled)

    def gradient(self, X: Tensor, u: Control, V: Tensor) -> Tensor:
        return super().gradient(self.activations(X), u, V[:, self.layout.out_columns])

    def push(self, X: Tensor, u: Control, du: Tensor) -> Tensor:
        moved = X.new_zeros(X.shape[0], self.stage.n_out)
        moved[:, self.layout.out_columns] = super().push(self.activations(X), u, du)
        return moved

    def rows(self, X: Tensor, u: Control, Y: Cotangents) -> Tensor:
        return super().rows(self.activations(X), u, self.outgoing(Y))

    def kernel(self, X: Tensor, u: Control, Y: Cotangents, metric: Metric) -> Tensor:
        return super().kernel(self.activations(X), u, self.outgoing(Y), metric)

    def operator(
        self, X: Tensor, u: Control, Y: Cotangents, metric: Metric
    ) -> Callable[[Tensor], Tensor]:
        if not isinstance(metric, Isotropic):
            return Form.operator(self, X, u, Y, metric)
        return super().operator(self.activations(X), u, self.outgoing(Y), metric)


class PositionsForm(Form):
    """One matrix at many positions: a convolution, or a linear layer on sequences.

    Differentiated like any stage; what it adds are the rows that Kronecker factors are made of.
    """

    def __init__(self, stage: Any, operation: Any) -> None:
        super().__init__(stage)
        self.operation, self.module = operation, operation.module
        self.has_bias = len(stage.parameters) == 2

    def activations(self, X: Tensor, u: Tensor) -> Tensor:
        """What the matrix acts on, with its 1: (B, L, n [+ 1])."""
        return input_rows(self.module, self.stage.argument(self.operation, X, u), self.has_bias)

    def outgoing(self, V: Tensor) -> Tensor:
        """Cotangents of what the matrix gives: (..., n') -> (..., L, n_out)."""
        known = {s.name for s in self.stage.in_slots}
        (slot,) = (s for s in self.stage.out_slots if s.name not in known)
        return output_rows(self.module, V[..., slot.columns])


def positions(stage: Any) -> Any:
    """The one operation with parameters of a stage that `PositionsForm` is for, or None.

    What follows it may only change shapes, and the weight may not be frozen alone.
    """
    order = list(stage.operations)
    first = next((i for i, op in enumerate(order) if op.params), None)
    if first is None or stage.couples_samples or not applies_one_matrix(order[first].module):
        return None
    op, rest = order[first], order[first + 1 :]
    expected = [n for n in ("weight", "bias") if getattr(op.module, n) is not None]
    trained = [n for n in expected if getattr(op.module, n).requires_grad]
    new = {s.name for s in stage.out_slots} - {s.name for s in stage.in_slots}
    plain = trained == expected and len(stage.parameters) == len(expected) and len(new) == 1
    return op if plain and not any(o.params or not o.reshape for o in rest) else None


class PointwiseForm(Form):
    """Activations without parameters: F_X is diagonal."""

    def slope(self, X: Tensor) -> Tensor:
        with torch.enable_grad():
            x = X.detach().requires_grad_()
            y = self.stage(x, x.new_empty(0))
            return torch.autograd.grad(y, x, torch.ones_like(y))[0]

    def pull(self, X: Tensor, after: Tensor, u: Control, Y: Cotangents) -> Cotangents:
        return Cotangents(Y.rows * self.slope(X)[:, None], Y.coupled)

    def pull_one(self, X: Tensor, after: Tensor, u: Control, V: Tensor) -> Tensor:
        return V * self.slope(X)


BACKWARD: dict[tuple[str, ...], Callable[[Tensor, Tensor], Tensor]] = {
    ("Tanh",): torch.ops.aten.tanh_backward.default,
    ("Sigmoid",): torch.ops.aten.sigmoid_backward.default,
    ("ReLU",): lambda V, y: torch.ops.aten.threshold_backward.default(V, y, 0),
}
"""Product of a cotangent with the derivative, from the activation's value: one kernel each."""

FORWARD: dict[tuple[str, ...], Callable[[Tensor], Tensor]] = {
    ("Tanh",): torch.tanh,
    ("Sigmoid",): torch.sigmoid,
    ("ReLU",): torch.relu,
}


class PlainForm(PointwiseForm):
    """One of the activations of `FORWARD`, called without the stage's book-keeping."""

    def __init__(self, stage: Any) -> None:
        super().__init__(stage)
        kind = tuple(stage.layers)
        self.function, self.backward = FORWARD[kind], BACKWARD[kind]

    def forward(self, X: Tensor, u: Control) -> Tensor:
        return self.function(X)

    def pull(self, X: Tensor, after: Tensor, u: Control, Y: Cotangents) -> Cotangents:
        return Cotangents(self.backward(Y.rows, after.unsqueeze(1)), Y.coupled)

    def pull_one(self, X: Tensor, after: Tensor, u: Control, V: Tensor) -> Tensor:
        return self.backward(V, after)


def form_of(stage: Any) -> Form:
    """The closed form of a `Stage` where it has one, else `Form`."""
    layout = stage.linear
    if layout is not None and not stage.couples_samples:
        if stage.plain_linear:
            return LinearForm(stage, layout.outputs, layout.inputs, layout.has_bias)
        return AugmentedLinearForm(stage, layout)
    if stage.elementwise and not stage.couples_samples:
        return PlainForm(stage) if tuple(stage.layers) in FORWARD else PointwiseForm(stage)
    operation = positions(stage)
    return Form(stage) if operation is None else PositionsForm(stage, operation)
