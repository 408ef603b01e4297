"""What a loss must tell to be a terminal cost, and checks of targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor


class Loss(ABC):
    """What a network's terminal cost must tell. B samples, c outputs each, k columns of a factor.

    Attributes:
        name: for tables and messages.
    """

    name: ClassVar[str] = ""

    @abstractmethod
    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample: (B, c) -> (B,)."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Its gradient in the outputs: (B, c)."""

    @abstractmethod
    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Y (B, c, k): ``Y Y'`` is the Hessian of each sample's loss in the outputs."""

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """rho (B, k) with ``gradient = Y rho``, or None where the loss has none (Huber)."""
        return None

    def sample_targets(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from the model's own distribution, for Fisher statistics.

        The Hessian is `draws` times the covariance of their gradients.

        Raises:
            ValueError: the loss is no log-likelihood with a known distribution.
        """
        raise ValueError(
            f"loss {self.name!r} has no distribution to draw targets from; sample_gradient draws "
            "gradients with the same covariance."
        )

    def draws(self, outputs: Tensor) -> int:
        """How many independent draws the loss of a sample averages: positions, or outputs."""
        return 1

    def sample_gradient(
        self, outputs: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """``Y z`` (B, c) with z standard normal: its covariance is the Hessian."""
        Y = self.factor(outputs, targets)
        z = torch.randn(Y.shape[0], Y.shape[2], 1, generator=generator, dtype=Y.dtype,
                        device=Y.device)  # fmt: skip
        return (Y @ z)[..., 0]

    @abstractmethod
    def prepare(self, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
        """Targets as the loss wants them, dtype and device of ``like`` where they are floats.

        Args:
            targets: (B, ...) as the user gives them.
            out_shape: shape of one sample's output.

        Raises:
            ValueError, TypeError: wrong shape, dtype or range, or not finite; says what is needed.
        """


# -- checks of targets ---------------------------------------------------------------------------
def check_shape(name: str, targets: Tensor, needs: tuple[int, ...]) -> None:
    if tuple(targets.shape[1:]) != needs:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}; loss {name!r} needs "
            f"{('B', *needs)!r} for this model.".replace("'B'", "B")
        )


def check_finite(targets: Tensor) -> None:
    bad = ~torch.isfinite(targets.reshape(targets.shape[0], -1)).all(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"targets are not finite in sample {row} ({int(bad.sum())} samples).")


def floats(name: str, targets: Tensor, out_shape: Sequence[int], like: Tensor) -> Tensor:
    """Float targets of exactly the outputs' shape; integers and bools are converted.

    Raises:
        ValueError, TypeError: another shape (torch would broadcast it silently), not finite.
    """
    if targets.is_complex():
        raise TypeError(f"targets have dtype {targets.dtype}; real numbers are needed.")
    if targets.is_floating_point() and targets.dtype != like.dtype:
        raise TypeError(
            f"targets have dtype {targets.dtype}, the model {like.dtype}: targets.to({like.dtype})."
        )
    check_shape(name, targets, tuple(out_shape))
    check_finite(targets.to(like.dtype))
    return targets.to(like)
