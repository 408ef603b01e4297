"""Checks of `compile`: parameters, data, and every stage against the model itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from ocp.trial_calls import first_sentence
from ocp_nn.layers import StageError
from ocp_nn.losses import FunctionLoss, Loss
from ocp_nn.stages import Network, Stage

LARGEST_ID = 2**24  # whole numbers up to here pass through single precision
ROUNDINGS = 1e4  # of the largest output, that stages and model may differ by


def check_parameters(model: nn.Module) -> Tensor:
    """One of the trainable parameters, which all share dtype and device."""
    values = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    lazy = nn.parameter.is_lazy
    if bad := [n for n, p in values if lazy(p)]:
        raise ValueError(f"{bad} have no shape yet: run one batch through the model first.")
    if not values:
        raise ValueError(
            f"{type(model).__name__} has no parameters with requires_grad=True: nothing to train."
        )
    kinds = {(p.dtype, p.device) for _, p in values}
    if len(kinds) > 1 or values[0][1].dtype not in (torch.float32, torch.float64):
        found = sorted({f"{p.dtype} on {p.device}" for _, p in values})
        raise TypeError(
            f"parameters must share float32 or float64 and one device, got {', '.join(found)}: "
            "model.to(dtype=..., device=...)."
        )
    for name, p in values:
        if not bool(torch.isfinite(p).all()):
            raise ValueError(f"parameter {name} is not finite.")
    return values[0][1]


def check_inputs(inputs: Any, like: Tensor) -> tuple[Tensor, ...]:
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for i, value in enumerate(given):
        name = "inputs" if isinstance(inputs, Tensor) else f"inputs[{i}]"
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")
        if value.ndim == 0 or value.shape[0] == 0 or value.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; (B, ...) with B >= 1 needed.")
        if value.shape[0] != given[0].shape[0]:
            raise ValueError(f"{name} has {value.shape[0]} samples, inputs[0] {len(given[0])}.")
        if value.device != like.device:
            raise TypeError(f"{name} is on {value.device}, the model on {like.device}.")
        if value.is_floating_point():
            if value.dtype != like.dtype:
                raise TypeError(
                    f"{name} has dtype {value.dtype}, the model {like.dtype}: "
                    f"inputs.to({like.dtype})."
                )
            # The sum is finite only if all are, and ten times as cheap to look at.
            bad = None if finite_sum(value) else ~torch.isfinite(value.reshape(len(value), -1))
            if bad is not None and bool(bad.any()):
                rows = bad.any(dim=1)
                raise ValueError(
                    f"{name} is not finite in sample {int(rows.nonzero()[0])} "
                    f"({int(rows.sum())} samples)."
                )
        elif value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}; real or whole numbers are needed.")
        elif value.dtype != torch.bool and int(value.abs().max()) > LARGEST_ID:
            raise ValueError(f"{name}: whole numbers above {LARGEST_ID} do not fit a float state.")
    return tuple(v.detach() for v in given)


def finite_sum(value: Tensor) -> bool:
    """Whether the sum is finite; it can also overflow where every number is."""
    return math.isfinite(float(value.sum()))


def check_targets(targets: Any, X: Tensor) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a tensor, got {type(targets).__name__}.")
    if targets.ndim == 0 or targets.shape[0] != X.shape[0]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}; one for each of the {X.shape[0]} samples "
            "is needed."
        )
    return targets.detach()


@torch.no_grad()
def check_network(net: Network, X: Tensor, us: list[Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """The stages against the model on the data, stage by stage on single samples, differentiated.

    Returns:
        The outputs (B, c).

    Raises:
        StageError: names the stage and what is wrong with it.
    """
    for stage, u in zip(net.stages, us, strict=True):
        before, what = X.clone(), f"{stage.name} ({', '.join(stage.layers)})"
        after = stage(X, u)
        if not torch.equal(X, before):
            raise StageError(f"{what} cannot be a stage: it changes its input in place.")
        if not bool(torch.isfinite(after).all()):
            raise StageError(f"{what}: its output is not finite on this data.")
        if not stage.couples_samples:
            check_stage(stage, what, X, u, after)
        X = after
    if net.drops:  # the model's own masks are random
        return X
    copies = tuple(v.clone() for v in inputs)
    own = functional_call(net.model, copied_buffers(net.model), copies)
    scale = 1 + float(own.abs().max())
    error = float((own.reshape(X.shape) - X).abs().max())
    # Frozen statistics are those of this very batch: the values agree.
    if not error <= ROUNDINGS * torch.finfo(X.dtype).eps * scale:
        copies = tuple(v.clone() for v in inputs)
        again = functional_call(net.model, copied_buffers(net.model), copies)
        why = "the model is random" if not torch.equal(own, again) else "its stages are wrong here"
        raise StageError(
            f"stages and model differ by {error:.3g} on the data (outputs up to {scale:.3g}): "
            f"{why}. A module that draws random numbers, or writes into tensors that others read, "
            "cannot be a stage."
        )
    return X


def copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a forward pass may write to, without the model noticing."""
    return {name: b.clone() for name, b in model.named_buffers()}


def check_stage(stage: Stage, what: str, X: Tensor, u: Tensor, after: Tensor) -> None:
    """One sample at a time gives the same, under vmap too, with a derivative."""
    size = 1 + float(after.abs().max())
    limit = ROUNDINGS * torch.finfo(X.dtype).eps * size
    ends = [0, -1] if X.shape[0] > 1 else [0]
    for i in ends:
        alone = stage(X[i : i + 1] if i == 0 else X[i:], u)[0]
        if float((alone - after[i]).abs().max()) > limit:
            raise StageError(
                f"{what} mixes samples: a sample alone gives another output than in its batch. The "
                "first axis must be the batch throughout; of the layers that couple samples only "
                "BatchNorm1d and 2d are known."
            )
    one = lambda x, u: stage(x[None], u)[0]
    rows = lambda x, u, v: vjp(one, x, u)[1](v)
    cotangents = torch.ones_like(after[ends]).expand(2, -1, -1)
    try:
        with torch.enable_grad():  # as an engine does: over samples, and over cotangents of each
            vmap(vmap(rows, in_dims=(0, None, 0)), in_dims=(None, None, 0))(X[ends], u, cotangents)
    except RuntimeError as error:
        raise StageError(
            f"{what} cannot be a stage: torch.func cannot batch or differentiate it "
            f"({first_sentence(error)})."
        ) from error


def check_loss(
    loss: Loss, given: Any, outputs: Tensor, targets: Tensor, out_shape: tuple[int, ...]
) -> None:
    """A user's loss: its derivatives, and that it averages over samples."""
    if not isinstance(loss, FunctionLoss):
        return
    try:
        values = loss.value(outputs, targets)
        loss.check_curvature(outputs, targets)
    except RuntimeError as error:
        raise ValueError(
            f"loss cannot be batched or differentiated twice: {first_sentence(error)}"
        ) from error
    check_mean(values.detach(), given, outputs, targets, out_shape)


def check_mean(
    values: Tensor,
    given: Any,
    outputs: Tensor,
    targets: Tensor,
    out_shape: tuple[int, ...],
) -> None:
    """A user's loss of the batch is the mean of what it is for each sample, ``values`` (B,).

    Raises:
        ValueError: it is not, or not finite.
    """
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise ValueError(
            f"loss is not finite for sample {int(bad.nonzero()[0])} alone ({int(bad.sum())} "
            "samples): every sample needs a loss of its own. Leave samples to be ignored "
            "(ignore_index) out of the batch."
        )
    if isinstance(given, Loss):
        return
    with torch.no_grad():
        whole = given(outputs.reshape(-1, *out_shape), targets)
    mean = values.mean()
    if whole.shape != () or abs(float(whole - mean)) > 1e-4 * (1 + abs(float(mean))):
        raise ValueError(
            f"loss of the batch is {whole!r:.60}, the mean of the losses of its samples is "
            f"{float(mean):g}: it must be a mean over samples (and a scalar). Weights that "
            "normalise over the batch, and sums, are no such means."
        )
