"""Losses as terminal costs: value, gradient and an exact factor of the curvature, per sample.

A loss acts on outputs (B, c), the model's output flattened per sample, and gives the loss of each
sample; callers take the mean over samples. What torch averages within a sample (`mse_loss` over
outputs, `cross_entropy` over positions) is part of the loss of that sample, so that the mean over
samples is torch's ``reduction="mean"``.

Source: Schraudolph, "Fast curvature matrix-vector products" (2002), for the generalised
Gauss-Newton matrix; the rank c - 1 factor of softmax is `CrossEntropy.factor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from ocp_nn.loss import Loss, check_finite, check_shape, floats

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FunctionLoss",
    "Huber",
    "Loss",
    "SquaredError",
    "make_loss",
]

ROUNDING = 1e3  # curvature of a user's loss below minus so many roundings counts as negative


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy of logits, as `torch.nn.functional.cross_entropy`.

    Outputs are (classes,) or (classes, positions...), targets class indices or probabilities of
    the same shape as the outputs; the mean over positions is part of the loss of a sample.

    Args:
        positions: number of positions, 1 for plain classification.
        label_smoothing: between 0 and 1, as in torch.
    """

    name: ClassVar[str] = "cross_entropy"
    positions: int = 1
    label_smoothing: float = 0.0

    def logits(self, outputs: Tensor) -> Tensor:
        """(B, c) -> (B, positions, classes)."""
        return outputs.unflatten(-1, (-1, self.positions)).mT

    def probabilities(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the targets say, smoothed: (B, positions, classes)."""
        logits = self.logits(outputs)
        classes = logits.shape[-1]
        if targets.is_floating_point():
            q = targets.reshape(outputs.shape).unflatten(-1, (-1, self.positions)).mT
        else:
            index = targets.reshape(logits.shape[:-1])
            q = (index[..., None] == torch.arange(classes, device=index.device)).to(logits.dtype)
        return q * (1 - self.label_smoothing) + self.label_smoothing / classes

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = self.logits(outputs).log_softmax(dim=-1)
        # A class of probability 0 may have log_p = -inf; it counts nothing.
        q = self.probabilities(outputs, targets)
        return -torch.where(q == 0, 0, q * log_p).sum(dim=-1).mean(dim=-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = self.logits(outputs).softmax(dim=-1) - self.probabilities(outputs, targets)
        return error.mT.flatten(-2) / self.positions

    def root(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v = sqrt(p) (B, positions, C), the likeliest class j and the others (B, positions, .)."""
        v = (self.logits(outputs).log_softmax(dim=-1) / 2).exp()
        j = v.argmax(dim=-1, keepdim=True)
        k = torch.arange(v.shape[-1] - 1, device=v.device)
        return v, j, k + (k >= j)

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """diag(v) Q of each position, block diagonal over positions: k = positions (C - 1).

        Q is an orthonormal basis of what is orthogonal to v, so that ``diag(v) Q Q' diag(v) =
        diag(v) (I - v v') diag(v) = diag(p) - p p'``, whatever the target: all but column j of the
        Householder reflector that sends v to -e_j. v_j >= 0, no cancellation; and as j is the
        likeliest class, none in ``Y residual`` either.
        """
        v, j, others = self.root(outputs)
        eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        w = v + eye[j[..., 0]]
        tail = v.gather(-1, others) / (1 + v.gather(-1, j))
        Q = eye[others].mT - w[..., :, None] * tail[..., None, :]
        Y = v[..., None] * Q / self.positions**0.5
        if self.positions == 1:
            return Y[:, 0]
        apart = torch.eye(self.positions, dtype=Y.dtype, device=Y.device)
        # (B, P, C, K) -> rows (C, P) as the outputs lie, columns (P, K)
        return torch.einsum("bpck,pq->bcpqk", Y, apart).flatten(3, 4).flatten(1, 2)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``-Q'(q / v) / sqrt(positions)``: ``diag(v) Q Q'(q / v) = q - p``, as the q sum to 1."""
        v, j, others = self.root(outputs)
        q = self.probabilities(outputs, targets)
        ratio = torch.where(q == 0, 0, q / v)
        v_j, ratio_j = v.gather(-1, j), ratio.gather(-1, j)
        rho = v.gather(-1, others) * (1 + ratio_j) / (1 + v_j) - ratio.gather(-1, others)
        return rho.flatten(1) / self.positions**0.5

    def sample_targets(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        p = self.logits(outputs).softmax(dim=-1)
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator)
        return drawn.reshape(-1) if self.positions == 1 else drawn.reshape(-1, self.positions)

    def draws(self, outputs: Tensor) -> int:
        return self.positions

    def prepare(self, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
        classes = out_shape[0] if out_shape else 1
        if classes < 2:
            raise ValueError(
                f"loss 'cross_entropy' needs at least 2 classes along axis 1 of the outputs, the "
                f"model gives {tuple(out_shape)} a sample; for one logit use "
                "'binary_cross_entropy'."
            )
        if targets.is_floating_point():
            targets = floats(self.name, targets, out_shape, like)
            total = targets.flatten(1).unflatten(-1, (classes, -1)).sum(dim=1)
            if bool((targets < 0).any()) or bool((total - 1).abs().amax() > 1e-3):
                raise ValueError(
                    "targets: floats for 'cross_entropy' are class probabilities: not negative, "
                    "with sum 1 over axis 1. Class numbers are integers: targets.long()."
                )
            return targets
        if targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(
                f"targets for 'cross_entropy' are class numbers (integers) or probabilities "
                f"(floats), got {targets.dtype}: targets.long()."
            )
        needs = tuple(out_shape[1:])
        check_shape(self.name, targets, needs)
        lowest, highest = map(int, torch.aminmax(targets))
        if lowest < 0 or highest >= classes:
            raise ValueError(
                f"targets lie between {lowest} and {highest}; the model's outputs have {classes} "
                f"classes, numbered 0 to {classes - 1}."
            )
        return targets.to(like.device, torch.int64)


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Of logits, mean over outputs: `torch.nn.functional.binary_cross_entropy_with_logits`."""

    name: ClassVar[str] = "binary_cross_entropy"

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        t = targets.reshape(outputs.shape)
        return (F.softplus(outputs) - t * outputs).mean(dim=-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.sigmoid() - targets.reshape(outputs.shape)) / outputs.shape[-1]

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        s = outputs.sigmoid() * (-outputs).sigmoid()
        return torch.diag_embed((s / outputs.shape[-1]).sqrt())

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(s - t) / sqrt(s (1 - s)), without the cancellation in 1 - s."""
        t, half = targets.reshape(outputs.shape), outputs / 2
        return ((1 - t) * half.exp() - t * (-half).exp()) / outputs.shape[-1] ** 0.5

    def sample_targets(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(outputs.sigmoid(), generator=generator)

    def draws(self, outputs: Tensor) -> int:
        return outputs.shape[-1]

    def prepare(self, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
        targets = floats(self.name, targets, out_shape, like)
        if bool((targets < 0).any()) or bool((targets > 1).any()):
            raise ValueError(
                f"targets for 'binary_cross_entropy' are probabilities between 0 and 1, got "
                f"{float(targets.min()):g} to {float(targets.max()):g}."
            )
        return targets


@dataclass(frozen=True)
class SquaredError(Loss):
    """``scale |outputs - targets|^2`` summed, or averaged, over the outputs of a sample.

    Args:
        mean: True for `torch.nn.functional.mse_loss` (mean over outputs, no 1/2); False for
            1/2 the sum, the convention of least squares.
    """

    mean: bool = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return "mse" if self.mean else "squared_error"

    def curvature(self, outputs: Tensor) -> float:
        return 2 / outputs.shape[-1] if self.mean else 1.0

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = outputs - targets.reshape(outputs.shape)
        return self.curvature(outputs) / 2 * error.square().sum(dim=-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.curvature(outputs) * (outputs - targets.reshape(outputs.shape))

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        c = outputs.shape[-1]
        eye = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
        return (self.curvature(outputs) ** 0.5 * eye).expand(len(outputs), c, c)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.curvature(outputs) ** 0.5 * (outputs - targets.reshape(outputs.shape))

    def sample_targets(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian about the outputs with the variance that exp(-loss) has."""
        noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype,
                            device=outputs.device)  # fmt: skip
        return outputs + noise / self.curvature(outputs) ** 0.5

    def prepare(self, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
        return floats(self.name, targets, out_shape, like)


@dataclass(frozen=True)
class Huber(Loss):
    """`torch.nn.functional.huber_loss`, mean over outputs. No curvature where |error| > delta."""

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta of the Huber loss must be positive, got {self.delta}.")

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = outputs - targets.reshape(outputs.shape)
        inner = error.clamp(-self.delta, self.delta)
        return (inner * (error - inner / 2)).mean(dim=-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = outputs - targets.reshape(outputs.shape)
        return error.clamp(-self.delta, self.delta) / outputs.shape[-1]

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        quadratic = (outputs - targets.reshape(outputs.shape)).abs() <= self.delta
        return torch.diag_embed(quadratic.to(outputs.dtype) / outputs.shape[-1] ** 0.5)

    def prepare(self, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
        return floats(self.name, targets, out_shape, like)


@dataclass(frozen=True, eq=False)
class FunctionLoss(Loss):
    """A user's loss; derivatives by autograd, the factor from the eigenvalues of the Hessian.

    Args:
        function: ``function(output, target) -> scalar`` in torch, called with a batch of ONE
            sample, ``(1, *out_shape)`` and (1, ...), so that torch's own losses serve as they are;
            the mean over samples is minimised.
        out_shape: shape of one sample's output.
        indefinite: "refuse" a Hessian with negative eigenvalues (a loss that is not convex in the
            outputs) when the network is compiled, or "clip" them to zero.
    """

    name: ClassVar[str] = "function"
    function: Callable[[Tensor, Tensor], Tensor]
    out_shape: tuple[int, ...]
    indefinite: str = "refuse"

    def __post_init__(self) -> None:
        if self.indefinite not in ("refuse", "clip"):
            raise ValueError(f"indefinite must be 'refuse' or 'clip', got {self.indefinite!r}.")

    def one(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output.reshape(1, *self.out_shape), target[None]).reshape(())

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return vmap(self.one)(outputs, targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return vmap(grad(self.one))(outputs, targets)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        H = vmap(jacrev(grad(self.one)))(outputs, targets)
        return (H + H.mT) / 2

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        eigenvalues, V = torch.linalg.eigh(self.hessian(outputs, targets))
        return V * eigenvalues.clamp_min(0).sqrt()[:, None]

    def prepare(self, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
        if targets.is_floating_point():
            check_finite(targets)
            return targets.to(like)
        return targets.to(like.device)

    def check_curvature(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse a loss without curvature, and one that is not convex unless that is clipped.

        Raises:
            ValueError: says which.
        """
        eigenvalues = torch.linalg.eigvalsh(self.hessian(outputs, targets))
        lowest, highest = float(eigenvalues.min()), float(eigenvalues.abs().max())
        if highest == 0:
            raise ValueError(
                "loss has no curvature in the outputs (its Hessian is 0 for every sample), which "
                "second-order steps are made of. Use a smooth loss: 'huber' or 'mse' for 'l1'."
            )
        limit = ROUNDING * torch.finfo(outputs.dtype).eps * highest
        if self.indefinite == "refuse" and lowest < -limit:
            raise ValueError(
                f"loss is not convex in the outputs (eigenvalue {lowest:.3g} of its Hessian). "
                "losses.FunctionLoss(function, out_shape, indefinite='clip') takes its convex part."
            )


LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "squared_error", "huber")


def make_loss(
    loss: str | Loss | Callable[[Tensor, Tensor], Tensor], out_shape: Sequence[int] = ()
) -> Loss:
    """The loss of that name, torch loss module or function, for outputs ``(B, *out_shape)``.

    Args:
        loss: one of `LOSSES`; a `Loss`; a torch loss module with ``reduction="mean"``; or a
            function, see `FunctionLoss`.
        out_shape: shape of one sample's output; positions of "cross_entropy" are its axes 1 on.

    Raises:
        ValueError, TypeError: no such loss, or a module that does not average.
    """
    positions = prod(out_shape[1:])
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss == "cross_entropy":
            return CrossEntropy(positions)
        if loss in ("mse", "squared_error"):
            return SquaredError(mean=loss == "mse")
        if loss in ("binary_cross_entropy", "huber"):
            return BinaryCrossEntropy() if loss == "binary_cross_entropy" else Huber()
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, or a function; got {loss!r}.")
    if isinstance(loss, type) or not callable(loss):
        what = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
        raise TypeError(
            f"loss must be one of {', '.join(LOSSES)}, or a function (output, target) -> scalar; "
            f"got {what}."
        )
    if getattr(loss, "reduction", "mean") != "mean":
        raise ValueError(
            f"{type(loss).__name__} has reduction={loss.reduction!r}; the loss of a batch is the "  # type: ignore[attr-defined]
            "mean over its samples: reduction='mean'."
        )
    return known_module(loss, positions) or FunctionLoss(loss, tuple(out_shape))


def known_module(loss: object, positions: int) -> Loss | None:
    """The closed form of a torch loss, if there is one for its options."""
    functions: dict[object, Loss] = {
        F.cross_entropy: CrossEntropy(positions),
        F.binary_cross_entropy_with_logits: BinaryCrossEntropy(),
        F.mse_loss: SquaredError(),
        F.huber_loss: Huber(),
    }
    if type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.ignore_index < 0:
        return CrossEntropy(positions, loss.label_smoothing)
    if type(loss) is nn.BCEWithLogitsLoss and loss.weight is None and loss.pos_weight is None:
        return BinaryCrossEntropy()
    if type(loss) is nn.MSELoss:
        return SquaredError()
    return Huber(loss.delta) if type(loss) is nn.HuberLoss else functions.get(loss)
