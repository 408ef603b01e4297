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


@dataclass(eq=False)
class Paper:
    """``V_XX = Y C Y'``, ``V_X = p + Y c``: C_{t+1} and rho + c_{t+1} of each active stage."""

    metrics: dict[int, Metric]
    Cs: dict[int, Tensor | None]  # None stands for I
    zs: dict[int, Tensor]
    decrease: Tensor
    definite: Tensor
    feedback: bool

    def z(self, t: int, v: Tensor | None, alpha: float, guess: Tensor | None) -> Tensor:
        z = self.zs[t] if alpha == 1 else alpha * self.zs[t]
        if v is None or not self.feedback:
            return z
        C = self.Cs[t]
        return z + (v if C is None else C @ v)


def paper(model: Model, metric_of: MetricOf, feedback: bool) -> Paper:
    """Backward pass of eq. 15: ``C_t = C - C Gamma C``, ``c_t = c - C (q + Gamma c)``.

    With ``q + Gamma c = Gamma (rho + c) + l``. C can turn indefinite: this form is not safe.
    """
    metrics: dict[int, Metric] = {}
    Cs: dict[int, Tensor | None] = {}
    zs: dict[int, Tensor] = {}
    C: Tensor | None = None
    z, decrease = model.rho, model.rho.new_zeros(())
    first, second = model.active[0], model.active[min(1, len(model.active) - 1)]
    for t in reversed(model.active):
        metric = metrics[t] = metric_of(t, value_gradient(model, t + 1, lambda z=z: z))  # type: ignore[misc]
        gamma = model.kernel(t, metric)
        Cs[t], zs[t] = C, z
        moved, h = gamma @ z, model.linear[t]
        decrease = decrease + z @ moved / 2  # 1/2 Q_u' P Q_u
        if h is not None:
            l = Linear(model).absorb(t, metric)
            assert l is not None
            decrease = decrease + z @ l + h @ metric.apply(h) / 2
            moved = moved + l
        if t == first:
            break
        z = z - (moved if C is None else C @ moved)
        if t == second:  # at the first stage nothing deviates
            continue
        if C is None:
            C = identity_plus(-gamma)
        else:
            half = C @ gamma
            C = torch.addmm(C, half, C, alpha=-1)
    return Paper(metrics, Cs, zs, decrease, torch.isfinite(decrease), feedback)


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
