"""Levenberg-Marquardt: damped Gauss-Newton steps of the whole network on one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from ocp_nn.baselines.base import CurvatureOptimizer, LossName, add_flat, share
from ocp_nn.shards import WHOLE, Shards

SMALLEST, LARGEST = 1e-15, 1e15  # damping


class Model(NamedTuple):
    """Quadratic model of the loss at one point: ``g`` (m,) and the factor ``J`` (r, m).

    With several processes J has the rows of the samples here if there are more rows than
    parameters, and products are summed; else J is gathered.
    """

    gradient: Tensor
    J: Tensor
    shards: Shards
    primal: bool  # m <= r
    scale: Tensor  # (m,): the damping is damping * diag(scale)


class LevenbergMarquardt(CurvatureOptimizer):
    """``(J'J + damping D) step = -g``, the damping moved by how well the model predicted.

    J are the sensitivities of the loss's curvature factor to all parameters, so that J'J is the
    generalised Gauss-Newton matrix of any loss. Whichever side is smaller is factorised: m
    parameters or r = samples x columns of the factor. A step that does not lower the loss of the
    batch is not taken; the damping rises and the same J is tried again.

    Args:
        model: gives each sample's output from that sample alone (no batch norm in training
            mode), the same each time (no active dropout).
        loss: name, callable or `Loss`.
        lr: part of the step that is taken, 1 for all of it.
        damping: at the start. trials: at most so many dampings in one step.
        scaling: "identity" (Levenberg) or "diagonal" of J'J (Marquardt), for D.
        process_group: see `base.Parallel`.

    Raises:
        ValueError: a parameter outside its range.

    Sources: Marquardt 1963; damping by Nielsen, "Damping parameter in Marquardt's method" (1999).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName = "cross_entropy",
        *,
        lr: float = 1.0,
        damping: float = 1e-2,
        trials: int = 8,
        scaling: str = "identity",
        process_group: Any = None,
    ) -> None:
        if scaling not in ("identity", "diagonal"):
            raise ValueError(f"scaling must be 'identity' or 'diagonal', got {scaling!r}.")
        if trials < 1:
            raise ValueError(f"trials must be at least 1, got {trials}.")
        super().__init__(model, loss, {"lr": lr, "damping": damping}, process_group=process_group)
        self.trials, self.scaling = trials, scaling
        self.growth = 2.0

    def carried(self) -> dict[str, Any]:
        return {"growth": self.growth}

    def carry_on(self, carried: dict[str, Any]) -> None:
        self.growth = carried["growth"]

    def update(self, inputs: Tensor, targets: Tensor) -> Tensor:
        group = self.param_groups[0]
        value, model = self.expand(inputs, targets)
        with torch.no_grad():
            before = [p.clone() for p in self.parameters.values()]
            solver = Solver(model)
            for _ in range(self.trials):
                step = solver(group["damping"])
                if step is not None:
                    step = group["lr"] * step
                    curvature = model.shards.sum((model.J @ step).square().sum())
                    predicted = -(model.gradient @ step) - curvature / 2
                    add_flat(self.parameters.values(), step)
                    actual = value - self.value(self.model(inputs), targets)
                    if self.move(group, float(actual), float(predicted)):
                        break
                    for p, old in zip(self.parameters.values(), before, strict=True):
                        p.copy_(old)
                else:
                    self.refuse(group)
        return value

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of all samples."""
        return self.shards.sum(share(self.loss(outputs, targets), len(targets), self.shards))

    def move(self, group: dict[str, Any], actual: float, predicted: float) -> bool:
        """Nielsen's rule; whether the step is taken. A loss that is nan is refused."""
        if not (actual > 0 and predicted > 0):
            self.refuse(group)
            return False
        ratio = actual / predicted
        factor = max(1 / 3, 1 - (2 * ratio - 1) ** 3)
        group["damping"] = min(max(group["damping"] * factor, SMALLEST), LARGEST)
        self.growth = 2.0
        return True

    def refuse(self, group: dict[str, Any]) -> None:
        group["damping"] = min(group["damping"] * self.growth, LARGEST)
        self.growth *= 2

    def expand(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Model]:
        """Loss of the batch and its quadratic model."""
        with torch.no_grad():
            outputs = self.model(inputs)
            value = self.value(outputs, targets)
            loss, targets = self.loss.prepare(outputs, targets)
            B, outputs = self.shards.count(len(outputs)), outputs.flatten(1)
            # One pass has the rows of J and, as a last cotangent, the gradient of the loss.
            Y = loss.factor(outputs, targets).mT / B**0.5
            last = loss.gradient(outputs, targets)[:, None] / B
            rows = sensitivities(self.model, self.parameters, inputs, torch.cat((Y, last), dim=1))
            J, gradient = rows[:, :-1].flatten(0, 1), self.shards.sum(rows[:, -1].sum(dim=0))
            shards, primal = self.shards, J.shape[1] <= B * Y.shape[1]
            if not primal:
                J, shards = shards.joined(J), WHOLE
            scale = torch.ones_like(gradient)
            if self.scaling == "diagonal":
                diagonal = shards.sum(J.square().sum(dim=0))
                scale = diagonal + torch.finfo(J.dtype).eps * diagonal.max()  # silent parameters
        return value, Model(gradient, J, shards, primal, scale)


def sensitivities(
    model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Tensor, cotangents: Tensor
) -> Tensor:
    """Rows ``y' d output / d parameters``: (B, k, c) cotangents -> (B, k, m)."""
    values = {name: p.detach() for name, p in parameters.items()}

    def one(x: Tensor, Y: Tensor) -> Tensor:
        def output(chosen: dict[str, Tensor]) -> Tensor:
            return functional_call(model, chosen, (x[None],)).reshape(-1)

        pull = vjp(output, values)[1]
        (rows,) = vmap(pull)(Y)
        return torch.cat([rows[name].flatten(1) for name in values], dim=1)

    return vmap(one, randomness="error")(inputs, cotangents)


class Solver:
    """``(J'J + damping D) step = -g`` for several dampings, by the smaller side."""

    def __init__(self, model: Model) -> None:
        self.g, self.J, self.D = model.gradient, model.J, model.scale
        self.primal = model.primal
        if self.primal:
            self.gram = model.shards.sum(self.J.mT @ self.J)
        else:
            self.gram = (self.J / self.D) @ self.J.mT

    def __call__(self, damping: float) -> Tensor | None:
        """The step (m,), or None where rounding leaves the matrix indefinite or not finite."""
        shift = damping * self.D if self.primal else self.gram.new_full((len(self.gram),), damping)
        L, info = torch.linalg.cholesky_ex(self.gram + torch.diag_embed(shift))
        if int(info) != 0:
            return None
        if self.primal:
            step = -solve(L, self.g)
        else:  # Woodbury
            weighted = self.g / self.D
            step = -(weighted - (self.J.mT @ solve(L, self.J @ weighted)) / self.D) / damping
        return step if bool(step.isfinite().all()) else None


def solve(L: Tensor, b: Tensor) -> Tensor:
    return torch.cholesky_solve(b[:, None], L)[:, 0]
