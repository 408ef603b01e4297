"""KWNG: kernelised Wasserstein natural gradient.

Source: Arbel, Gretton, Li, Montufar, "Kernelized Wasserstein natural gradient", ICLR 2020,
Proposition 3 (the estimator) and Appendix (its damping).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ocp_nn.baselines.base import CurvatureOptimizer, LossName, add_flat, flat, share

DAMPING_RANGE = (1e-10, 1e5)


class KWNG(CurvatureOptimizer):
    """Natural gradient for the Wasserstein-2 metric on the distribution of the model's outputs.

    The metric is estimated in the span of M derivatives of a Gaussian kernel placed at outputs of
    the batch: ``G = T'(ridge K + C C'/B)^+ T``, see `metric_factor`; the step is along
    ``(damping D + G)^-1 g``.

    Args:
        model, loss: as for every optimiser.
        lr: step size. damping: of the metric, at the start.
        basis: M, how many kernel derivatives.
        bandwidth: of the kernel, relative to the root mean squared distance of outputs.
        ridge: lambda of the paper, 0 in its experiments.
        scaling: "diagonal", D the column norms of T as in the paper's experiments, or "identity".
        clip: largest norm of a step before lr; None for no limit.
        adapt_every: steps between two changes of the damping by how well the loss went down
            along the step before; 0 never.
        seed: of the choice of basis points.
        process_group: see `base.Parallel`; outputs of all samples are gathered.

    Raises:
        ValueError: a parameter outside its range.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName = "cross_entropy",
        *,
        lr: float = 0.1,
        damping: float = 1e-5,
        basis: int = 5,
        bandwidth: float = 1.0,
        ridge: float = 0.0,
        scaling: str = "diagonal",
        clip: float | None = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        adapt_every: int = 5,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        if basis < 1:
            raise ValueError(f"basis must be at least 1, got {basis}.")
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {bandwidth}.")
        if scaling not in ("identity", "diagonal"):
            raise ValueError(f"scaling must be 'identity' or 'diagonal', got {scaling!r}.")
        if not ridge >= 0:
            raise ValueError(f"ridge must not be negative, got {ridge}.")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive or None, got {clip}.")
        if adapt_every < 0:
            raise ValueError(f"adapt_every must not be negative, got {adapt_every}.")
        defaults = {
            "lr": lr,
            "damping": damping,
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        super().__init__(model, loss, defaults, seed, process_group)
        self.basis, self.bandwidth, self.ridge = basis, bandwidth, ridge
        self.scaling, self.clip, self.adapt_every = scaling, clip, adapt_every
        self.count, self.best_ratio = 0, 0.0
        self.last: tuple[float, float] | None = None  # loss, and decrease its slope promised

    def carried(self) -> dict[str, Any]:
        return {"count": self.count, "best_ratio": self.best_ratio, "last": self.last}

    def carry_on(self, carried: dict[str, Any]) -> None:
        self.count, self.best_ratio = carried["count"], carried["best_ratio"]
        self.last = carried["last"]

    def update(self, inputs: Tensor, targets: Tensor) -> Tensor:
        group, parameters = self.param_groups[0], list(self.parameters.values())
        outputs = self.model(inputs)
        own = share(self.loss(outputs, targets), len(targets), self.shards)
        with torch.no_grad():
            value = self.shards.sum(own.detach().clone())
            if self.adapt_every:
                self.adapt(group, float(value))
            cotangents, gram = self.kernel_basis(self.shards.joined(outputs.flatten(1)))
            cotangents = self.shards.own(cotangents.movedim(1, 0)).movedim(0, 1)
        T = self.shards.sum(jacobian(outputs.flatten(1), parameters, cotangents))
        gradient = flat(torch.autograd.grad(own, parameters, materialize_grads=True))
        with torch.no_grad():
            gradient = self.shards.sum(gradient)
            if group["weight_decay"]:
                gradient = gradient + group["weight_decay"] * flat(parameters)
            direction = natural_gradient(
                gradient, metric_factor(T, gram), group["damping"], self.scaling == "diagonal"
            )
            slope = gradient @ direction
            # What rounding turned into an ascent direction is replaced, as in the paper.
            direction = torch.where(slope > 0, direction, gradient)
            slope = torch.where(slope > 0, slope, gradient @ gradient)
            if self.clip is not None:
                shrink = (self.clip / direction.norm()).clamp_max(1.0)
                direction, slope = shrink * direction, shrink * slope
            if self.adapt_every:
                self.last = float(value), group["lr"] * float(slope)
            if group["momentum"]:
                state = self.state[parameters[0]]
                old = state.get("momentum", torch.zeros_like(direction))
                direction = state["momentum"] = group["momentum"] * old + direction
            add_flat(parameters, -group["lr"] * direction)
        return value

    def adapt(self, group: dict[str, Any], value: float) -> None:
        """Raise the damping where losses fell by less than a quarter of half the slope, lower it
        above three quarters; best of the last few steps, as in the authors' experiments."""
        if self.last is not None:
            before, promised = self.last
            if promised > 0:
                self.best_ratio = max(self.best_ratio, 2 * (before - value) / promised)
        self.count += 1
        if self.last is None or self.count % self.adapt_every:
            return
        if self.best_ratio < 0.25:
            group["damping"] = min(group["damping"] / 0.85, DAMPING_RANGE[1])
        elif self.best_ratio > 0.75:
            group["damping"] = max(group["damping"] * 0.85, DAMPING_RANGE[0])
        self.best_ratio = 0.0

    def kernel_basis(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents C/B (M, B, c) on the outputs (B, c), and ``ridge K + C C'/B`` (M, M)."""
        B, c = outputs.shape
        M = min(self.basis, B)
        points = outputs[torch.randperm(B, generator=self.generator)[:M].to(outputs.device)]
        axes = torch.randint(c, (M,), generator=self.generator).to(outputs.device)
        spread = (points[:, None] - outputs).square().sum(dim=-1).mean()
        # Equal outputs would give bandwidth 0; then C is the same for any other.
        squared = torch.where(spread > 0, self.bandwidth**2 * spread, torch.ones_like(spread))
        C = mixed_derivatives(points, axes, outputs, squared)
        gram = C.flatten(1) @ C.flatten(1).mT / B
        if self.ridge:
            between = mixed_derivatives(points, axes, points, squared)
            gram = gram + self.ridge * between[:, torch.arange(M), axes]
        return C / B, gram


def mixed_derivatives(points: Tensor, axes: Tensor, x: Tensor, squared: Tensor) -> Tensor:
    """``d/dy_i d/dx_j k(y, x)`` of ``k = exp(-|x - y|^2 / (2 squared))``, i the axis of each y.

    points (M, c), axes (M,), x (N, c) -> (M, N, c) over (point, x, j).
    """
    difference = x - points[:, None]
    kernel = (-difference.square().sum(dim=-1) / (2 * squared)).exp()
    along = difference.gather(-1, axes[:, None, None].expand(-1, len(x), 1))
    one = torch.nn.functional.one_hot(axes, x.shape[-1]).to(x)[:, None]
    return kernel[..., None] / squared * (one - along * difference / squared)


def jacobian(outputs: Tensor, parameters: list[nn.Parameter], cotangents: Tensor) -> Tensor:
    """Rows of vector-Jacobian products: cotangents (M, B, c) -> (M, m)."""
    rows = torch.autograd.grad(
        outputs,
        parameters,
        cotangents,
        retain_graph=True,
        is_grads_batched=True,
        materialize_grads=True,
    )
    return torch.cat([r.flatten(1) for r in rows], dim=1)


def metric_factor(T: Tensor, gram: Tensor) -> Tensor:
    """F (M, m) with ``F'F = T' gram^+ T``, the metric; directions of gram at rounding are left."""
    eigenvalues, V = torch.linalg.eigh(gram.double())
    kept = eigenvalues > len(gram) * torch.finfo(gram.dtype).eps * eigenvalues[-1]
    root = torch.where(kept, eigenvalues, 1).rsqrt() * kept
    return (V * root).mT.to(T) @ T


def natural_gradient(g: Tensor, factor: Tensor, damping: float, diagonal: bool) -> Tensor:
    """``(damping D + F'F)^-1 g`` by Woodbury; D the column norms of F, or the identity."""
    D = torch.ones_like(g)
    if diagonal:
        D = factor.norm(dim=0)
        D = D + torch.finfo(D.dtype).eps ** 0.5 * D.max() + torch.finfo(D.dtype).tiny
    weighted = factor / D
    eye = torch.eye(len(factor), dtype=g.dtype, device=g.device)
    small = weighted @ factor.mT + damping * eye
    inner = torch.linalg.solve(small, weighted @ g)
    return (g / D - weighted.mT @ inner) / damping
