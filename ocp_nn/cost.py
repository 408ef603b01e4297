"""The cost of a network: the loss at the end, regularisers of the weights at the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from ocp_nn.losses import Loss
from ocp_nn.stages import Network

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Regulariser = Callable[[Tensor], Tensor]
"""Of the control of one stage, (m,) -> scalar; torch, twice differentiable."""


@dataclass(frozen=True, eq=False)
class LossCost:
    """``J = mean over samples of loss + sum over stages of l_t(u_t)``.

    ``l_t(u) = 1/2 sum_i decay_i u_i^2 + regulariser(u)``: the gradient of the first term is torch's
    weight decay.

    Attributes:
        loss: per sample.
        decay: of each stage, one number or one for each entry of the control (m,).
        regulariser: added for every stage with parameters, or None.
        whole_batch: the state is that of all samples, see `Network`.
        out_size: of one sample's output.
        group: the mean is over the samples of all its processes (function-space engine only).
    """

    loss: Loss
    decay: tuple[float | Tensor, ...]
    regulariser: Regulariser | None
    whole_batch: bool
    out_size: int
    group: ProcessGroup | None = None

    def stage(self, x: Tensor, u: Tensor, t: int) -> Tensor:
        return self.control_cost(u, t)

    def terminal(self, x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """Loss of one sample, x (c,); or the mean of all, x (B c,)."""
        targets = p["target"] if self.whole_batch else p["target"][None]
        return self.loss.value(x.reshape(-1, self.out_size), targets).mean()

    # -- of controls alone -----------------------------------------------------------------------
    def control_cost(self, u: Tensor, t: int) -> Tensor:
        """l_t(u): (m,) -> scalar."""
        if u.shape[0] == 0:
            return u.new_zeros(())
        decay = self.decay[t]
        cost = u.new_zeros(()) if isinstance(decay, float) and decay == 0 else (decay * u) @ u / 2
        return cost if self.regulariser is None else cost + self.regulariser(u)

    def control_gradient(self, u: Tensor, t: int) -> Tensor:
        """L_u of stage t: (m,)."""
        gradient = self.decay[t] * u
        if self.regulariser is None or u.shape[0] == 0:
            return gradient
        return gradient + grad(self.regulariser)(u)

    def control_curvature(self, u: Tensor, t: int, v: Tensor) -> Tensor:
        """``L_uu v`` of stage t: (m,)."""
        product = self.decay[t] * v
        if self.regulariser is None or u.shape[0] == 0:
            return product
        return product + jvp(grad(self.regulariser), (u,), (v,))[1]

    def control_diagonal(self, u: Tensor, t: int) -> Tensor:
        """Diagonal of L_uu, which is all of it where the regulariser is separable: (m,).

        `compile` refuses those that are not: their curvature would need (m, m) matrices.
        """
        return self.control_curvature(u, t, torch.ones_like(u))

    @property
    def regularised(self) -> bool:
        """Whether any stage has a cost."""
        none = all(isinstance(d, float) and d == 0 for d in self.decay)
        return self.regulariser is not None or not none


def decays(
    network: Network, weight_decay: float | Mapping[str, float], like: Tensor
) -> tuple[float | Tensor, ...]:
    """The decay of each stage, one number, or (m,) where its parameters differ.

    Raises:
        ValueError, TypeError: negative, or for a parameter that does not exist.
    """
    if not isinstance(weight_decay, Mapping):
        check_decay("weight_decay", weight_decay)
        return (float(weight_decay),) * len(network.stages)
    names = {p.name for s in network.stages for p in s.parameters}
    if unknown := sorted(weight_decay.keys() - names):
        raise ValueError(
            f"weight_decay names {unknown}, the trainable parameters are {sorted(names)}."
        )
    for name, value in weight_decay.items():
        check_decay(f"weight_decay[{name!r}]", value)
    result: list[float | Tensor] = []
    for stage in network.stages:
        values = [float(weight_decay.get(p.name, 0.0)) for p in stage.parameters]
        if len(set(values)) <= 1:
            result.append(values[0] if values else 0.0)
            continue
        sizes = [p.stop - p.start for p in stage.parameters]
        result.append(
            torch.cat([like.new_full((n,), v) for n, v in zip(sizes, values, strict=True)])
        )
    return tuple(result)


def check_decay(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{name} must be a number >= 0, got {value!r}.")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be >= 0 and finite, got {value}.")


def check_regulariser(regulariser: Regulariser, us: list[Tensor]) -> None:
    """Refuse one that is no scalar, not differentiable, not separable, or concave.

    Raises:
        ValueError: says which and at which stage.
    """
    for t, u in enumerate(us):
        if u.shape[0] == 0:
            continue
        value = regulariser(u)
        if not isinstance(value, Tensor) or value.shape != ():
            raise ValueError(
                f"regulariser must return a scalar tensor, got {value!r:.60} at stage {t}."
            )
        try:
            slope = grad(regulariser)
            pull = vjp(slope, u)[1]
            diagonal = pull(torch.ones_like(u))[0]
            signs = torch.sign(torch.sin(1.0 + torch.arange(len(u), device=u.device))).to(u)
            other = pull(signs)[0] * signs
        except RuntimeError as error:
            raise ValueError(
                f"regulariser cannot be differentiated twice at stage {t}: {error}"
            ) from error
        size = diagonal.abs().max()
        limit = 1e3 * torch.finfo(u.dtype).eps * size
        if not bool(torch.isfinite(diagonal).all()):
            raise ValueError(f"regulariser has derivatives that are not finite at stage {t}.")
        if bool((diagonal - other).abs().max() > limit):
            raise ValueError(
                f"regulariser is not separable (stage {t}): its Hessian is no diagonal matrix, and "
                "would be m x m. Use a sum over entries, such as softabs(u).sum()."
            )
        lowest = float(diagonal.min())
        if lowest < -limit:
            raise ValueError(f"regulariser is not convex (stage {t}): curvature {lowest:g}.")
