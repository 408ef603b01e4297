"""From coordinates to controls: the policy of a sweep, followed on the non-linear network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ocp_nn.coordinates import Coordinates
from ocp_nn.model import Model
from ocp_nn.primal import Primal


@dataclass(frozen=True, eq=False)
class FunctionPolicy:
    """``du_t`` for any deviation of the activations, in function space or on the primal side."""

    model: Model
    source: Coordinates | Primal

    def follow(self, alpha: float) -> tuple[list[Tensor], list[Tensor]]:
        """Roll the network out with the policy: activations (B, n), T + 1; controls (m,), T."""
        model = self.model
        X, xs, us = model.xs[0], [model.xs[0]], []
        memory: Tensor | None = None
        if isinstance(self.source, Primal) and self.source.feedback == "linear":
            memory = self.source.whole()
        for t, form in enumerate(model.forms):
            u = model.us[t]
            if form.m > 0:
                dX = None if t == model.active[0] else X - model.xs[t]
                du, memory = self.change(t, dX, alpha, memory)
                u = u + du
            X = form.forward(X, u)
            us.append(u)
            xs.append(X)
        return xs, us

    def change(
        self, t: int, dX: Tensor | None, alpha: float = 1.0, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """du_t (m,), and what the next stage of the same roll-out may start from.

        Args:
            dX: (B, n) deviation of the activations at t; None for none.
            alpha: size of the open-loop part of the step.
            memory: as the stage before returned it.
        """
        model, source = self.model, self.source
        v = None if dX is None or not getattr(source, "feedback", False) else (
            model.y(t).adjoint(dX)
        )  # fmt: skip
        if isinstance(source, Primal):
            return source.change(t, v, alpha, memory), memory
        z = source.z(t, v, alpha, memory)
        g, h = model.pulled(t, z), model.linear[t]
        if h is not None:
            g = g + (h if alpha == 1 else alpha * h)
        return -source.metrics[t].apply(g), z

    def linear(self, alpha: float = 1.0) -> list[Tensor]:
        """The controls' changes (m,) if the network were linear, T of them."""
        model = self.model
        dX, memory, dus = torch.zeros_like(model.xs[0]), None, []
        for t, form in enumerate(model.forms):
            du = torch.zeros_like(model.us[t])
            if form.m > 0:
                du, memory = self.change(t, dX, alpha, memory)
            after = linear_push(model, t, dX)
            dX = after + form.push(model.xs[t], model.us[t], du) if form.m > 0 else after
            dus.append(du)
        return dus


def linear_push(model: Model, t: int, dX: Tensor) -> Tensor:
    """``F_X dX``: (B, n) -> (B, n')."""
    form, u = model.forms[t], model.us[t]
    with torch.enable_grad():
        return torch.func.jvp(lambda x: form.forward(x, u), (model.xs[t],), (dX,))[1].detach()
