"""What `DDPOptimizer` is given, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def plain_module(model: Any) -> nn.Module:
    """The module itself, where torch.compile has wrapped it.

    Raises:
        TypeError: no module, or one that spreads batches in its own way.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}.")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"model is wrapped in {type(model).__name__}: give model.module, and process_group= "
            "for several processes."
        )
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def check_precision(like: Tensor) -> None:
    if torch.is_autocast_enabled(like.device.type):
        raise TypeError(
            "step was called under torch.autocast: curvature needs the full precision of the "
            "weights. Call it outside."
        )


def check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not 0 <= value < float("inf") or (name == "lr" and value == 0):
        raise ValueError(f"{name} must be {'> 0' if name == 'lr' else '>= 0'}, got {value}.")


def from_closure(closure: Any) -> tuple[Any, Tensor]:
    """The batch that a closure returns.

    Raises:
        TypeError: it is no closure, or returns something else.
    """
    if not callable(closure):
        raise TypeError(
            "step needs inputs and targets: optimizer.step(inputs, targets). It differentiates the "
            "network itself: no loss.backward(), no GradScaler."
        )
    data = closure()
    if not isinstance(data, Sequence) or len(data) != 2 or not isinstance(data[1], Tensor):
        raise TypeError(
            "step(closure): the closure must return (inputs, targets), not a loss: a step of DDP "
            "evaluates the network itself, stage by stage."
        )
    return data[0], data[1]
