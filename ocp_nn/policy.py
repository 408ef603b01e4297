"""From coordinates to controls: the policy of a sweep, followed on the non-linear network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ocp_nn.coordinates import Paper, Proximal, Separate
from ocp_nn.forms import Control
from ocp_nn.matrix_free import MatrixFree
from ocp_nn.model import Model
from ocp_nn.primal import Primal
from ocp_nn.shards import WHOLE

Source = Proximal | Paper | Separate | MatrixFree | Primal
"""What a sweep leaves: z_t in function space, or a factor of the primal side."""


@dataclass(frozen=True, eq=False)
class FunctionPolicy:
    """``du_t`` for any deviation of the activations, in function space or on the primal side.

    Attributes:
        model, source: what the sweep left.
        enough: whether a step size with its cost needs no shorter one to be tried; None: all are.
    """

    model: Model
    source: Source
    enough: Callable[[float, float], bool] | None = None
    K: ClassVar[None] = None  # gains are never formed

    def follow(self, alpha: float) -> tuple[list[Tensor], list[Control]]:
        """Roll the network out with the policy: activations (B, n), T + 1; open controls, T."""
        model = self.model
        X, xs, us = model.xs[0], [model.xs[0]], list[Control]()
        memory: Tensor | None = None
        if isinstance(self.source, Primal) and self.source.feedback == "linear":
            memory = self.source.whole()
        for t, form in enumerate(model.forms):
            u = model.us[t]
            if form.m > 0:
                dX = None if t == model.active[0] else X - model.xs[t]
                u, memory = self.changed(t, dX, alpha, memory)
            X = form.forward(X, u)
            us.append(u)
            xs.append(X)
        return xs, us

    def changed(
        self, t: int, dX: Tensor | None, alpha: float, memory: Tensor | None
    ) -> tuple[Control, Tensor | None]:
        """u_t + du_t, see `change`."""
        source, model = self.source, self.model
        form, u = model.forms[t], model.us[t]
        if isinstance(source, Primal):
            du, memory = self.change(t, dX, alpha, memory)
            return form.open(form.close(u) + du), memory
        if model.linear[t] is None and model.shards is WHOLE:
            z = source.z(t, self.deviation(t, dX), alpha, memory)
            return form.moved(model.xs[t], u, model.y(t + 1).apply(z), source.metrics[t]), z
        g, z = self.slope(t, dX, alpha, memory)
        return form.open(source.metrics[t].step(form.close(u), g)), z

    def change(
        self, t: int, dX: Tensor | None, alpha: float = 1.0, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """du_t (m,), and what the next stage of the same roll-out may start from.

        Args:
            dX: (B, n) deviation of the activations at t; None for none.
            alpha: size of the open-loop part of the step.
            memory: as the stage before returned it.
        """
        source = self.source
        if isinstance(source, Primal):
            return source.change(t, self.deviation(t, dX), alpha, memory), memory
        g, z = self.slope(t, dX, alpha, memory)
        return -source.metrics[t].apply(g), z

    def slope(
        self, t: int, dX: Tensor | None, alpha: float, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``alpha h + F_u' Y z`` (m,), of which du is -P times, and z."""
        assert not isinstance(self.source, Primal)
        z = self.source.z(t, self.deviation(t, dX), alpha, memory)
        g, h = self.model.pulled(t, z), self.model.linear[t]
        if h is not None:
            g = g + (h if alpha == 1 else alpha * h)
        return g, z

    def deviation(self, t: int, dX: Tensor | None) -> Tensor | None:
        """``Y_t' dX`` (r,), where the policy looks at it."""
        if dX is None or self.source.feedback is not True:
            return None
        return self.model.adjoint(t, dX)

    def linear(self, alpha: float = 1.0) -> list[Tensor]:
        """The controls' changes (m,) if the network were linear, T of them."""
        model = self.model
        dX, memory, dus = torch.zeros_like(model.xs[0]), None, []
        for t, form in enumerate(model.forms):
            du = model.rho.new_zeros(form.m)
            if form.m > 0:
                deviation = None if t == model.active[0] else dX
                du, memory = self.change(t, deviation, alpha, memory)
            after = form.push_state(model.xs[t], model.us[t], dX)
            dX = after + form.push(model.xs[t], model.us[t], du) if form.m > 0 else after
            dus.append(du)
        return dus
