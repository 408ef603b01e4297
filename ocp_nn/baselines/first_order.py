"""Optimisers of torch behind the batch interface: SGD, RMSprop, Adam(W), Muon, L-BFGS."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ocp_nn.baselines.base import BatchStep, LossName, trainable


class SGD(BatchStep, torch.optim.SGD):
    """Stochastic gradient descent, with ``momentum=`` and ``nesterov=`` as torch has them."""


class RMSprop(BatchStep, torch.optim.RMSprop):
    """Tieleman & Hinton 2012, torch's."""


class Adam(BatchStep, torch.optim.Adam):
    """Kingma & Ba 2015, torch's."""


class AdamW(BatchStep, torch.optim.AdamW):
    """Loshchilov & Hutter 2019, torch's."""


class LBFGS(BatchStep, torch.optim.LBFGS):
    """Limited-memory BFGS, torch's, with its strong Wolfe line search unless told otherwise.

    A step is up to ``max_iter`` (20) iterations on the batch given: meant for whole data sets.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName = "cross_entropy",
        params: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss, params, **{"line_search_fn": "strong_wolfe", **options})


class Muon(BatchStep):
    """Momentum with orthogonalised updates for matrices, AdamW for every other parameter.

    Args:
        model, loss: as for every optimiser.
        lr: of the matrices. weight_decay: of the matrices.
        adamw_lr: of biases, filters of convolutions and all else that is no matrix; lr if None.
        adamw_weight_decay: of these.
        process_group: see `base.Parallel`.
        options: of `torch.optim.Muon`.

    Raises:
        RuntimeError: this torch has no Muon (it came with 2.9).

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; `torch.optim.Muon`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName = "cross_entropy",
        *,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        adamw_lr: float | None = None,
        adamw_weight_decay: float = 0.0,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        matrix_optimizer = getattr(torch.optim, "Muon", None)
        if matrix_optimizer is None:
            raise RuntimeError(f"torch {torch.__version__} has no Muon: it needs torch >= 2.9.")
        parameters = list(trainable(model).values())
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                matrix_optimizer(matrices, lr=lr, weight_decay=weight_decay, **options)
            )
        if others:
            rate = lr if adamw_lr is None else adamw_lr
            self._parts.append(torch.optim.AdamW(others, lr=rate, weight_decay=adamw_weight_decay))
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(model, loss, groups, process_group=process_group, defaults={})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimiser's groups and state, which schedulers and
        checkpoints see."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, inputs: Any = None, targets: Any = None) -> Any:
        """As `BatchStep.step`."""
        closure = self.closure(inputs, targets)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
