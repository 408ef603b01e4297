"""One interface for every optimiser: ``step(inputs, targets)`` returns the loss of the batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ocp.processes import group_of
from ocp_nn.checks import check_mean
from ocp_nn.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    FunctionLoss,
    Huber,
    Loss,
    SquaredError,
    make_loss,
)
from ocp_nn.shards import WHOLE, Shards, Spread, spread_weights

LossName = str | Loss | Callable[..., Tensor]


@runtime_checkable
class BatchOptimizer(Protocol):
    """What training needs of an optimiser; `ocp_nn.DDPOptimizer` and every baseline have it."""

    param_groups: list[dict[str, Any]]

    def step(self, inputs: Any, targets: Any) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class BatchLoss:
    """The loss of a batch, made for the shape of the model's outputs when the first one comes.

    Targets are checked whenever their shape or dtype is new.

    Args:
        given: name, callable or `Loss`, as `ocp_nn.losses.make_loss` takes it.
    """

    def __init__(self, given: LossName) -> None:
        self.given = given
        self.loss = make_loss(given)
        self._seen: tuple[Any, ...] = ()
        self._dtype = torch.int64

    def prepare(self, outputs: Tensor, targets: Tensor) -> tuple[Loss, Tensor]:
        """The loss for these outputs (B, ...), and the targets as it wants them.

        Raises:
            ValueError, TypeError: targets that do not fit.
        """
        seen = outputs.shape[1:], targets.shape[1:], targets.dtype, len(outputs) == len(targets)
        if seen != self._seen:
            if len(outputs) != len(targets):
                raise ValueError(f"{len(outputs)} inputs came with {len(targets)} targets.")
            self.loss = make_loss(self.given, outputs.shape[1:])
            flat = outputs.detach().flatten(1)
            prepared = self.loss.prepare(targets, outputs.shape[1:], flat)
            if isinstance(self.loss, FunctionLoss):
                values = self.loss.value(flat, prepared)
                check_mean(values, self.given, flat, prepared, tuple(outputs.shape[1:]))
            self._dtype = prepared.dtype
            self._seen = seen
        return self.loss, targets.to(outputs.device, self._dtype)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch, by torch's fused function where it has the loss: scalar."""
        loss, targets = self.prepare(outputs, targets)
        if isinstance(loss, CrossEntropy):
            return F.cross_entropy(outputs, targets, label_smoothing=loss.label_smoothing)
        if isinstance(loss, SquaredError):
            half = 1.0 if loss.mean else outputs[0].numel() / 2
            return half * F.mse_loss(outputs, targets)
        if isinstance(loss, BinaryCrossEntropy):
            return F.binary_cross_entropy_with_logits(outputs, targets)
        if isinstance(loss, Huber):
            return F.huber_loss(outputs, targets, delta=loss.delta)
        return loss.value(outputs.flatten(1), targets).mean()


class Parallel:
    """Several processes with a part of the batch each, which take the step of the whole batch.

    Args:
        model: gets the weights and buffers of the first process.
        group: of torch.distributed, "default", or None for this process alone. Every process of it
            makes the same optimiser and calls ``step`` with its own samples, as many as it likes.
    """

    def __init__(self, model: nn.Module, group: Any) -> None:
        self.model = model
        self.group = None if group is None else group_of("process_group", group)
        if self.group is not None:
            spread_weights(model, self.group)

    def shards(self, batch: Tensor) -> Shards:
        """Of a batch of which this process has ``batch``.

        Raises:
            ValueError: batch norm on the statistics of a part of the batch.
        """
        if self.group is None:
            return WHOLE
        for name, module in self.model.named_modules():
            alone = isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
            if alone and module.training:
                raise ValueError(
                    f"process_group: {name} is batch norm on the statistics of its batch, of which "
                    "each process has a part only. Put it into evaluation mode (module.eval()), "
                    "make it a SyncBatchNorm (on GPUs) or use GroupNorm or LayerNorm."
                )
        return Spread(self.group, len(batch), batch.device)


def share(mean: Tensor, B: int, shards: Shards) -> Tensor:
    """What the mean over the B samples here adds to the mean over all."""
    return mean if shards is WHOLE else mean * (B / shards.count(B))


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], shards: Shards) -> None:
    """Of each process, into the ``grad`` of all, in one message."""
    if shards is WHOLE:
        return
    chosen = list(parameters)  # one without a gradient here may have one elsewhere
    whole = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in chosen])
    pieces = shards.sum(whole).split([p.numel() for p in chosen])
    for p, piece in zip(chosen, pieces, strict=True):
        p.grad = piece.view_as(p)


class BatchStep(torch.optim.Optimizer):
    """Gives an optimiser of torch a ``step(inputs, targets)`` beside its ``step(closure)``.

    Mixed in before the class it extends.

    Args:
        model: whose parameters with ``requires_grad`` are trained.
        loss: name, callable or `Loss`; the mean over the batch is minimised.
        params: parameters or groups of them, as torch takes them; all of the model if None.
        process_group: see `Parallel`.
        options: of the torch class.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName = "cross_entropy",
        params: Iterable[Any] | None = None,
        *,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        self.model, self.loss = model, BatchLoss(loss)
        self.parallel = Parallel(model, process_group)
        chosen = list(trainable(model).values()) if params is None else params
        super().__init__(chosen, **options)

    def step(self, inputs: Any = None, targets: Any = None) -> Any:
        """One step on a batch; or torch's own form, ``step()`` and ``step(closure)``.

        Args:
            inputs, targets: a batch; its loss before the step is returned, a scalar.

        Raises:
            TypeError: inputs without targets that are no closure.
        """
        return super().step(self.closure(inputs, targets))  # type: ignore[arg-type]

    def closure(self, inputs: Any, targets: Any) -> Callable[[], Tensor] | None:
        """What torch's step wants: the loss of the batch and its gradient; or what was given."""
        if targets is None:
            if isinstance(inputs, Tensor):
                raise TypeError("step(inputs, targets) needs targets, got inputs alone.")
            return inputs

        shards = self.parallel.shards(targets)

        def evaluate() -> Tensor:
            with torch.enable_grad():
                self.zero_grad()
                loss = share(self.loss(self.model(inputs), targets), len(targets), shards)
                loss.backward()
            sum_gradients(trainable(self.model).values(), shards)
            return shards.sum(loss.detach())

        return evaluate


class CurvatureOptimizer(torch.optim.Optimizer, ABC):
    """Base of our own optimisers: curvature comes from the batch, so a step needs the batch.

    Random numbers come from a generator of the optimiser's own, part of its state, so that a run
    that is resumed draws what it would have drawn.

    Attributes:
        shards: where the samples of the present batch are.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName,
        defaults: dict[str, Any],
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        for name in ("lr", "damping"):
            if not defaults.get(name, 1.0) > 0:
                raise ValueError(f"{name} must be positive, got {defaults[name]}.")
        for name in ("momentum", "weight_decay", "decay"):
            if not defaults.get(name, 0.0) >= 0:
                raise ValueError(f"{name} must not be negative, got {defaults[name]}.")
        for name in ("momentum", "decay"):
            if not defaults.get(name, 0.0) < 1:
                raise ValueError(f"{name} must be less than 1, got {defaults[name]}.")
        self.model, self.loss = model, BatchLoss(loss)
        self.parallel, self.shards = Parallel(model, process_group), WHOLE
        self.parameters = trainable(model)
        self.generator = torch.Generator().manual_seed(seed)
        super().__init__(list(self.parameters.values()), defaults)

    def step(self, inputs: Any = None, targets: Any = None) -> Tensor:  # type: ignore[override]
        """One step on a batch; the loss before it, a scalar.

        Raises:
            TypeError: called without a batch.
        """
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            raise TypeError(
                f"{type(self).__name__} needs the batch for its curvature: call "
                "step(inputs, targets). A closure hides the batch."
            )
        self.shards = self.parallel.shards(targets)
        with torch.enable_grad():
            return self.update(inputs, targets).detach()

    @abstractmethod
    def update(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Change the parameters in place; the loss before that."""

    def carried(self) -> dict[str, Any]:
        """What else, besides torch's state and the generator, a resumed run needs."""
        return {}

    def carry_on(self, carried: dict[str, Any]) -> None:
        """Take back what `carried` gave."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and ``own``: numbers and the state of the generator."""
        # Inside "state" torch would cast the generator's bytes to the dtype of a parameter.
        return {
            **super().state_dict(),
            "own": {"generator": self.generator.get_state(), **self.carried()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where the state was taken.

        Raises:
            ValueError: it is the state of another optimiser.
        """
        if "own" not in state_dict:
            raise ValueError(f"this is no state of {type(self).__name__}: it has no 'own'.")
        own = dict(state_dict["own"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "own"})
        self.generator.set_state(own.pop("generator"))
        self.carry_on(own)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, those with ``requires_grad`` only.

    Raises:
        ValueError: there is none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameter to train.")
    return found


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All elements one after another."""
    return torch.cat([t.reshape(-1) for t in tensors])


@torch.no_grad()
def add_flat(parameters: Iterable[Tensor], step: Tensor) -> None:
    """Add consecutive pieces of a flat vector to the parameters, in place."""
    parameters = list(parameters)
    pieces = step.split([p.numel() for p in parameters])
    for p, piece in zip(parameters, pieces, strict=True):
        p.add_(piece.view_as(p))
