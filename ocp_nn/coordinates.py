"""Policies in the r coordinates of function space: which z_t a deviation of the state asks for.

Every form of a step is ``du_t = -P_t [alpha h_t + F_u' Y_{t+1} z_t]`` with h_t the part of the
gradient that is not in the range of Y. They differ in z_t alone, v = Y_t' dX_t:

    proximal     z_t = S_t^{-1} (alpha w_t + v)                 S_t = S_{t+1} + Gamma_t, S_T = I
    paper        z_t = alpha (rho + c_{t+1}) + C_{t+1} v        Q_uu^{-1} := P (eq. 15)
    stagewise    z_t = alpha (I + Gamma_t)^{-1} (rho - l_t)     Q_ux = 0 (Prop. 5): no feedback
    gradient     z_t = alpha rho                              Q_ux = 0, Q_uu^{-1} = P: base method

Each class here has z_t as ``z(t, v, alpha, guess)`` (r,), v None for no deviation and guess the z
of the stage before; ``metrics``, P_t of each active stage; ``decrease``, what the model promises
for the full step; ``definite``, whether every system was; ``feedback``, True where v matters.

where l_t = Y_{t+1}' F_u P h_t and w_t = rho - sum_{s >= t} l_s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ocp_nn.metrics import Metric
from ocp_nn.model import Model

MetricOf = Callable[[int, Callable[[], Tensor]], Metric]
"""``(t, value_gradient) -> P_t``; value_gradient() is V_X at t + 1 as the sweep has it."""


@dataclass(eq=False)
class Linear:
    """The part of a sweep that comes from h: l_t, w_t, and sum h'Ph, as the sweep goes back."""

    model: Model
    w: Tensor = field(init=False)  # rho - sum of l
    square: Tensor = field(init=False)  # sum of h'Ph

    def __post_init__(self) -> None:
        self.w = self.model.rho
        self.square = self.w.new_zeros(())

    def absorb(self, t: int, metric: Metric) -> Tensor | None:
        """l_t (r,), or None where h_t is zero."""
        h = self.model.linear[t]
        if h is None:
            return None
        model, moved = self.model, metric.apply(h)
        l = model.adjoint(t + 1, model.forms[t].push(model.xs[t], model.us[t], moved))
        self.w = self.w - l
        self.square = self.square + h @ moved
        return l


def value_gradient(model: Model, t: int, z: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """V_X at t as ``Y_t z + rest_t``, when asked."""

    def of_sweep() -> Tensor:
        V, rest = model.cotangent(t, z()), None if model.rest is None else model.rest[t]
        return V if rest is None else V + rest

    return of_sweep


def identity_plus(gamma: Tensor) -> Tensor:
    gamma.diagonal().add_(1)
    return gamma


@dataclass(eq=False)
class Proximal:
    """Cholesky factors of S_t. ``feedback`` "linear": one factor, the Gauss-Newton step."""

    model: Model
    metrics: dict[int, Metric]
    factors: dict[int, Tensor]
    ws: dict[int, Tensor]
    first: Tensor  # z at the first active stage without deviation
    decrease: Tensor
    definite: Tensor
    feedback: bool | str

    def z(self, t: int, v: Tensor | None, alpha: float, guess: Tensor | None) -> Tensor:
        if guess is None or self.feedback == "linear":
            # A linear roll-out has the same z at every stage.
            return self.first if alpha == 1 else alpha * self.first
        w = self.ws[t] if alpha == 1 else alpha * self.ws[t]
        if v is not None and self.feedback:
            w = w + v
        return torch.cholesky_solve(w[:, None], self.factors[t])[:, 0]


def proximal(model: Model, metric_of: MetricOf, feedback: bool | str) -> Proximal:
    """Backward pass ``S_t = S_{t+1} + Gamma_t`` with a factorisation a stage."""
    linear, S = Linear(model), None
    metrics: dict[int, Metric] = {}
    factors: dict[int, Tensor] = {}
    ws: dict[int, Tensor] = {}
    infos = []
    z: Callable[[], Tensor] = lambda: model.rho
    first = model.active[0]
    for t in reversed(model.active):
        metric = metrics[t] = metric_of(t, value_gradient(model, t + 1, z))
        gamma = model.kernel(t, metric)
        linear.absorb(t, metric)
        ws[t] = linear.w
        S = identity_plus(gamma) if S is None else S.add_(gamma)
        if feedback == "linear" and t != first:
            z = lambda S=S, w=linear.w: torch.linalg.solve(S, w)  # type: ignore[misc]
            continue
        factors[t], info = torch.linalg.cholesky_ex(S)
        infos.append(info)
        z = lambda L=factors[t], w=linear.w: torch.cholesky_solve(w[:, None], L)[:, 0]  # type: ignore[misc]
    whole = z()
    decrease = (linear.square + model.rho @ model.rho - ws[first] @ whole) / 2
    definite = torch.stack(infos).amax() == 0
    return Proximal(model, metrics, factors, ws, whole, decrease, definite, feedback)


LEVELS = 4  # of C as a product: 2^level - 1 products with kernels, cheaper than two of matrices

Gain = Callable[[Tensor], Tensor]
"""``v -> C v``."""


@dataclass(eq=False)
class Paper:
    """``V_XX = Y C Y'``, ``V_X = p + Y c``: C_{t+1} and rho + c_{t+1} of each active stage."""

    model: Model
    metrics: dict[int, Metric]
    Cs: dict[int, Gain]
    zs: dict[int, Tensor]
    definite: Tensor
    feedback: bool

    def z(self, t: int, v: Tensor | None, alpha: float, guess: Tensor | None) -> Tensor:
        z = self.zs[t] if alpha == 1 else alpha * self.zs[t]
        return z if v is None or not self.feedback else z + self.Cs[t](v)

    @cached_property
    def decrease(self) -> Tensor:
        """``1/2 sum of Q_u' P Q_u``, with ``Q_u = h + F_u' Y z``: one more product a stage."""
        total = self.model.rho.new_zeros(())
        for t, metric in self.metrics.items():
            g, h = self.model.pulled(t, self.zs[t]), self.model.linear[t]
            g = g if h is None else g + h
            total = total + g @ metric.apply(g) / 2
        return total


def paper(model: Model, metric_of: MetricOf, feedback: bool) -> Paper:
    """Backward pass of eq. 15: ``C_t = C - C Gamma C``, ``c_t = c - C (q + Gamma c)``.

    With ``q + Gamma c = Gamma (rho + c) + l``. C can turn indefinite: this form is not safe.
    """
    metrics: dict[int, Metric] = {}
    Cs: dict[int, Gain] = {}
    zs: dict[int, Tensor] = {}
    as_products = len(model.active) - 2 < LEVELS
    C: Any = None  # stands for I
    z, first = model.rho, model.active[0]
    for t in reversed(model.active):
        metric = metrics[t] = metric_of(t, value_gradient(model, t + 1, lambda z=z: z))  # type: ignore[misc]
        Cs[t], zs[t] = C or identity, z
        if t == first:  # nothing deviates there, and nobody asks for z before it
            break
        gamma = model.kernel(t, metric)
        moved, l = gamma @ z, None
        if model.linear[t] is not None:
            l = Linear(model).absorb(t, metric)
        if l is not None:
            moved = moved + l
        z = z - Cs[t](moved)
        C = less_by(C, gamma) if as_products else Formed(C, gamma)
    return Paper(model, metrics, Cs, zs, torch.isfinite(z @ z), feedback)


def identity(v: Tensor) -> Tensor:
    return v


def less_by(C: Gain | None, gamma: Tensor) -> Gain:
    """``C - C Gamma C`` from two products with C."""
    if C is None:
        return lambda v: torch.addmv(v, gamma, v, alpha=-1)

    def product(v: Tensor) -> Tensor:
        return C(torch.addmv(v, gamma, C(v), alpha=-1))

    return product


@dataclass(eq=False)
class Formed:
    """The same as a matrix, where somebody asks."""

    before: Formed | None
    gamma: Tensor

    @cached_property
    def matrix(self) -> Tensor:
        if self.before is None:
            return identity_plus(-self.gamma)
        C = self.before.matrix
        return torch.addmm(C, C @ self.gamma, C, alpha=-1)

    def __call__(self, v: Tensor) -> Tensor:
        return self.matrix @ v


@dataclass(eq=False)
class Separate:
    """Stages that do not know of each other: stage-wise Newton, or the base method itself."""

    metrics: dict[int, Metric]
    zs: dict[int, Tensor]
    decrease: Tensor
    definite: Tensor
    feedback: bool = False

    def z(self, t: int, v: Tensor | None, alpha: float, guess: Tensor | None) -> Tensor:
        return self.zs[t] if alpha == 1 else alpha * self.zs[t]


def stagewise(model: Model, metric_of: MetricOf, curvature: bool) -> Separate:
    """Q_ux = 0 (Prop. 5): ``Q_uu = D + F_u' Phi_XX F_u`` with curvature, or D alone without.

    The expected decrease is the sum of what the stages' own models promise.
    """
    metrics: dict[int, Metric] = {}
    zs: dict[int, Tensor] = {}
    infos, decrease = [], model.rho.new_zeros(())
    for t in reversed(model.active):
        metric = metrics[t] = metric_of(t, value_gradient(model, t + 1, lambda: model.rho))
        h, rho = model.linear[t], model.rho
        if not curvature:
            g = model.gradient(t)
            zs[t] = rho
            decrease = decrease + g @ metric.apply(g) / 2
            continue
        gamma = model.kernel(t, metric)
        L, info = torch.linalg.cholesky_ex(identity_plus(gamma))
        infos.append(info)
        part = Linear(model)
        part.absorb(t, metric)
        zs[t] = torch.cholesky_solve(part.w[:, None], L)[:, 0]
        decrease = decrease + (rho @ rho - part.w @ zs[t]) / 2
        if h is not None:
            decrease = decrease + part.square / 2
    definite = torch.stack(infos).amax() == 0 if infos else torch.isfinite(decrease)
    return Separate(metrics, zs, decrease, definite)
