"""Fewer controls than coordinates: the same policy from one Cholesky factor of ``D + J'J``.

With the stages in reverse order the leading block of ``D + J'J`` that holds the stages t, t+1, ...
is the Hessian of what is still to be decided at t, and the factor of the whole contains the factor
of every block. With v = Y_t' dX_t a deviation, the controls from t on minimise

    1/2 |alpha-step|^2:  (D + J'J)_{>=t} du = -(alpha h + J'(alpha rho + v))_{>=t}

and of these du_t alone is applied.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_nn.coordinates import MetricOf
from ocp_nn.forms import LinearForm
from ocp_nn.kernels import linear_rows
from ocp_nn.metrics import Diagonal, Isotropic, Metric, as_matrix, as_vector, with_one
from ocp_nn.model import Model


@dataclass(eq=False)
class Primal:
    """Factor of the damped Hessian, stages in reverse, controls of a linear stage as a matrix."""

    model: Model
    metrics: dict[int, Metric]
    L: Tensor  # (M, M)
    ends: dict[int, int]  # of the block of each active stage
    decrease: Tensor
    definite: Tensor
    feedback: bool | str

    def change(self, t: int, v: Tensor | None, alpha: float, plan: Tensor | None) -> Tensor:
        """du_t (m,); `plan` is the whole step of a linear roll-out, see `whole`."""
        if plan is not None:
            return alpha * self.block(plan, t)
        model, end = self.model, self.ends[t]
        z = alpha * model.rho
        if v is not None and self.feedback:
            z = z + v
        right = torch.cat([self.right(s, z, alpha) for s in reversed(model.active) if s >= t])
        y = torch.linalg.solve_triangular(self.L[:end, :end], right[:, None], upper=False)
        begin = end - model.forms[t].m
        own = self.L[begin:end, begin:end].mT
        return self.ordered(t, torch.linalg.solve_triangular(own, -y[begin:], upper=True)[:, 0])

    def whole(self) -> Tensor:
        """The damped Gauss-Newton step of all controls, in the order of the factor: (M,)."""
        model = self.model
        right = torch.cat([self.right(s, model.rho, 1.0) for s in reversed(model.active)])
        return -torch.cholesky_solve(right[:, None], self.L)[:, 0]

    def block(self, plan: Tensor, t: int) -> Tensor:
        end = self.ends[t]
        return self.ordered(t, plan[end - self.model.forms[t].m : end])

    def ordered(self, t: int, du: Tensor) -> Tensor:
        """Order of the factor -> order of the controls."""
        form = self.model.forms[t]
        if not isinstance(form, LinearForm):
            return du
        return as_vector(du.unflatten(0, (form.outputs, -1)), form.has_bias)

    def right(self, t: int, z: Tensor, alpha: float) -> Tensor:
        """``alpha h + F_u' Y_{t+1} z`` in the order of the factor."""
        g, h = self.model.pulled(t, z), self.model.linear[t]
        return flat_order(self.model, t, g if h is None else g + alpha * h)


def flat_order(model: Model, t: int, g: Tensor) -> Tensor:
    """Order of the controls (m,) -> order of the factor."""
    form = model.forms[t]
    if not isinstance(form, LinearForm):
        return g
    return as_matrix(g, form.outputs, form.has_bias).reshape(-1)


def primal(
    model: Model, metric_of: MetricOf, feedback: bool | str, hessian: Tensor | None = None
) -> Primal:
    """Factor ``D + J'J``; ``hessian`` is J'J where it is known from before."""
    metrics = {t: metric_of(t, not_here) for t in reversed(model.active)}
    damped = gauss_newton_matrix(model) if hessian is None else hessian.clone()
    ends, end = {}, 0
    for t in reversed(model.active):
        begin, end = end, end + model.forms[t].m
        ends[t] = end
        add_metric(damped[begin:end, begin:end], model, t, metrics[t])
    L, info = torch.linalg.cholesky_ex(damped)
    solver = Primal(model, metrics, L, ends, model.rho.new_zeros(()), info == 0, feedback)
    right = torch.cat([solver.right(t, model.rho, 1.0) for t in reversed(model.active)])
    half = torch.linalg.solve_triangular(L, right[:, None], upper=False)[:, 0]
    solver.decrease = half @ half / 2
    return solver


def not_here() -> Tensor:
    raise ValueError(
        "statistics='value' needs the gradient of the value during the sweep, which the primal "
        "side does not have: solver='cholesky' or 'cg'."
    )


def add_metric(block: Tensor, model: Model, t: int, metric: Metric) -> None:
    """Add D_t to its block, in place."""
    if isinstance(metric, Isotropic | Diagonal):
        block.diagonal().add_(1 / flat_order(model, t, metric.diagonal()))
        return
    form, D = model.forms[t], metric.dense()
    if isinstance(form, LinearForm):
        rows = as_matrix(D.mT, form.outputs, form.has_bias).flatten(-2)
        D = as_matrix(rows.mT, form.outputs, form.has_bias).flatten(-2)
    block.add_(D)


# -- J'J ---------------------------------------------------------------------------------------
def gauss_newton_matrix(model: Model) -> Tensor:
    """Lower triangle of ``J'J`` (M, M), stages in reverse; no J where all stages are linear.

    For linear stages a and b ``J_a'J_b = sum_i (Y_ia' Y_ib) (x) (x_ia x_ib')``: one product of the
    (B, n'_a n'_b) and (B, n_a n_b) matrices of products, k times fewer operations than with J, and
    four times fewer again on the diagonal, where both factors are symmetric.
    """
    order = list(reversed(model.active))
    M = model.parameters
    N = model.rho.new_zeros(M, M)
    rows = {t: rows_of(model, t) for t in order if not structured(model, t)}
    end_a = 0
    for i, a in enumerate(order):
        begin_a, end_a, end_b = end_a, end_a + model.forms[a].m, 0
        for b in order[: i + 1]:
            begin_b, end_b = end_b, end_b + model.forms[b].m
            block = N[begin_a:end_a, begin_b:end_b]
            if a in rows or b in rows:
                Ja = rows[a] if a in rows else rows_of(model, a)
                block.copy_(Ja.mT @ (rows[b] if b in rows else rows_of(model, b)))
            elif a == b:
                diagonal_block(model, a, block)
            else:
                linear_block(model, a, b, block)
    return model.shards.sum(N)


def structured(model: Model, t: int) -> bool:
    return isinstance(model.forms[t], LinearForm) and not model.y(t + 1).coupled


def rows_of(model: Model, t: int) -> Tensor:
    """J_t in the order of the factor: (r, m)."""
    form, Y = model.forms[t], model.y(t + 1)
    if isinstance(form, LinearForm):
        return linear_rows(activations(model, t), form.outgoing(Y).rows, Y.coupled)
    return form.rows(model.xs[t], model.us[t], Y)


def activations(model: Model, t: int) -> Tensor:
    form = model.forms[t]
    assert isinstance(form, LinearForm)
    return with_one(form.activations(model.xs[t]), form.has_bias)


def outgoing(model: Model, t: int) -> Tensor:
    """Cotangents of what the weight of a linear stage gives: (B, k, n')."""
    form = model.forms[t]
    assert isinstance(form, LinearForm)
    return form.outgoing(model.y(t + 1)).rows


def linear_block(model: Model, a: int, b: int, block: Tensor) -> None:
    """Write the block (m_a, m_b) of two linear stages."""
    Ya, Yb = outgoing(model, a), outgoing(model, b)
    Xa, Xb = activations(model, a), activations(model, b)
    outer = torch.bmm(Ya.mT, Yb).flatten(1)  # (B, n'_a n'_b)
    inner = (Xa[:, :, None] * Xb[:, None, :]).flatten(1)
    by_pairs = (outer.mT @ inner).view(Ya.shape[2], Yb.shape[2], Xa.shape[1], Xb.shape[1])
    write(block, by_pairs)


def diagonal_block(model: Model, t: int, block: Tensor) -> None:
    """Write the block (m, m) of one linear stage, from the upper triangles of both factors."""
    Y, X = outgoing(model, t), activations(model, t)
    outer, y_index = triangle(Y.shape[2], Y.device)
    inner, x_index = triangle(X.shape[1], X.device)
    products = torch.bmm(Y.mT, Y).flatten(1).mT[outer[0] * Y.shape[2] + outer[1]]  # (pairs, B)
    columns = X.mT.contiguous()
    packed = (columns[inner[0]] * columns[inner[1]]) @ products.mT
    full = packed[x_index].mT[y_index]
    write(block, full.view(Y.shape[2], Y.shape[2], X.shape[1], X.shape[1]))


def write(block: Tensor, by_pairs: Tensor) -> None:
    """(n'_a, n'_b, n_a, n_b) -> (n'_a n_a, n'_b n_b), into the block."""
    outputs_a, outputs_b, inputs_a, inputs_b = by_pairs.shape
    view = block.unflatten(1, (outputs_b, inputs_b)).unflatten(0, (outputs_a, inputs_a))
    view.copy_(by_pairs.transpose(1, 2))


@functools.lru_cache(maxsize=64)
def triangle(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pairs i <= j (2, n (n + 1) / 2), and for every (i, j) the number of its pair (n n,)."""
    pairs = torch.triu_indices(n, n, device=device)
    number = torch.zeros(n, n, dtype=torch.int64, device=device)
    count = torch.arange(pairs.shape[1], device=device)
    number[pairs[0], pairs[1]] = count
    number[pairs[1], pairs[0]] = count
    return pairs, number.reshape(-1)
