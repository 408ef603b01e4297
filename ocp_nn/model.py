"""The Gauss-Newton model of a network along a trajectory, before any damping enters it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ocp_nn.cotangents import Cotangents
from ocp_nn.forms import Control, Form
from ocp_nn.metrics import Metric
from ocp_nn.shards import WHOLE, Shards


@dataclass(frozen=True, eq=False)
class Model:
    """What a sweep is made from. T stages, B samples, r = B k coordinates.

    The gradient of the loss is split as ``p_t = Y_t rho + rest_t``: with rest = 0 (every loss whose
    gradient lies in the range of its factor) no difference of large numbers is ever formed, which
    in float32 is what makes small dampings possible.

    Attributes:
        forms: of the stages.
        active: stages with controls, in order.
        xs: activations (B, n), T + 1. us: controls as the forms read them, T.
        ys: Y_t, T + 1; None upstream of the first active stage, where nobody asks.
        rho: (r,).
        rest: (B, n) remainder of the co-states, T + 1, or None where it is zero.
        linear: for each t the gradient ``L_u + F_u' rest[t+1]`` (m,), or None where it is zero.
        shards: where the samples are. Activations and cotangents are of the samples here, B of
            them; coordinates, controls and gradients are of all.
    """

    forms: Sequence[Form]
    active: tuple[int, ...]
    xs: Sequence[Tensor]
    us: Sequence[Control]
    ys: Sequence[Cotangents | None]
    rho: Tensor
    rest: Sequence[Tensor | None] | None
    linear: Sequence[Tensor | None]
    cache: dict[str, Tensor] = field(default_factory=dict)  # what refused steps need not redo
    shards: Shards = WHOLE

    @property
    def r(self) -> int:
        return self.rho.shape[0]

    @property
    def parameters(self) -> int:
        """Number of controls of all stages."""
        return sum(self.forms[t].m for t in self.active)

    def y(self, t: int) -> Cotangents:
        Y = self.ys[t]
        assert Y is not None, "a sweep asks for Y downstream of the first active stage only"
        return Y

    def cotangent(self, t: int, z: Tensor) -> Tensor:
        """``Y_t z`` (B, n)."""
        return self.y(t).apply(self.shards.own(z))

    def adjoint(self, t: int, V: Tensor) -> Tensor:
        """``Y_t' V`` (r,)."""
        return self.shards.joined(self.y(t).adjoint(V))

    def kernel(self, t: int, metric: Metric) -> Tensor:
        """``Gamma_t`` (r, r)."""
        return self.shards.kernel(self.forms[t], self.xs[t], self.us[t], self.y(t + 1), metric)

    def operator(self, t: int, metric: Metric) -> Callable[[Tensor], Tensor]:
        """``z -> Gamma_t z``."""
        return self.shards.operator(self.forms[t], self.xs[t], self.us[t], self.y(t + 1), metric)

    def pulled(self, t: int, z: Tensor) -> Tensor:
        """``F_u' Y_{t+1} z`` of stage t: (m,)."""
        V = self.cotangent(t + 1, z)
        return self.shards.sum(self.forms[t].gradient(self.xs[t], self.us[t], V))

    def gradient(self, t: int) -> Tensor:
        """``g_t = L_u + F_u' p_{t+1}``, the ordinary gradient: (m,)."""
        g, h = self.pulled(t, self.rho), self.linear[t]
        return g if h is None else g + h

    def costate(self, t: int) -> Tensor:
        """``p_t`` (B, n)."""
        p = self.cotangent(t, self.rho)
        if self.rest is None:
            return p
        rest = self.rest[t]
        assert rest is not None
        return p + rest


def linearise(
    forms: Sequence[Form],
    xs: Sequence[Tensor],
    us: Sequence[Control],
    end: Cotangents,
    rho: Tensor,
    rest: Tensor | None,
    control_gradients: Sequence[Tensor | None],
    shards: Shards = WHOLE,
) -> Model:
    """One backward pass: k cotangents a sample, and one more where the gradient has a remainder.

    Args:
        end: Y_T. rho: (r,). rest: (B, n_T) or None, ``Phi_X = Y_T rho + rest``.
        control_gradients: L_u of each stage, or None where it is zero.
    """
    T = len(forms)
    active = tuple(t for t in range(T) if forms[t].m > 0)
    ys: list[Cotangents | None] = [*[None] * T, end]
    rests: list[Tensor | None] = [*[None] * T, rest]
    linear: list[Tensor | None] = list(control_gradients)
    Y, first = end, active[0] if active else T
    for t in range(T - 1, first - 1, -1):
        form, X, u = forms[t], xs[t], us[t]
        if rest is not None and form.m > 0:
            h = shards.sum(form.gradient(X, u, rest))
            own = linear[t]
            linear[t] = h if own is None else h + own
        if t == first:
            break
        Y = form.pull(X, xs[t + 1], u, Y)
        ys[t] = Y
        if rest is not None:
            rest = rests[t] = form.pull_one(X, xs[t + 1], u, rest)
    whole = None if rest is None else rests
    return Model(forms, active, xs, us, ys, rho, whole, linear, shards=shards)
