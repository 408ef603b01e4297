"""``tensor[..., i, ...]`` with an i that was computed from the stage.

PyTorch asks a 0-dim index tensor for its value, which transforms of functions cannot give; a 1-dim
one it takes as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


class ComputedIndices(TorchFunctionMode):
    """Within it, ``reference[t + 1]`` works under `vmap` and `jacrev`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and (picks := computed_picks(args[1])):
            picked = pick(args[0], args[1], picks)
            if picked is not None:
                return picked
        return func(*args, **(kwargs or {}))


def batched_indices() -> AbstractContextManager[Any]:
    """Within it, ``reference[t]`` works under `vmap` over t, which PyTorch 2.6 cannot do."""
    return nullcontext() if indexes_by_batches() else ComputedIndices()


@functools.cache
def indexes_by_batches() -> bool:
    """Whether PyTorch itself indexes by a batch of 0-dim integers."""
    table = torch.zeros(2)
    try:
        torch.func.vmap(lambda t: table[t])(torch.arange(2))
    except RuntimeError:
        return False
    return True


def computed_picks(index: Any) -> list[int]:
    """Which items of an index are 0-dim integer tensors."""
    items = index if isinstance(index, tuple) else (index,)
    return [
        k
        for k, i in enumerate(items)
        if isinstance(i, Tensor) and i.ndim == 0 and i.dtype in INTEGERS
    ]


def pick(tensor: Tensor, index: Any, picks: list[int]) -> Tensor | None:
    """``tensor[index]``; None where such integers stand among other arrays."""
    items = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(i, int | slice | None | EllipsisType | Tensor) for i in items) or any(
        isinstance(i, Tensor) and k not in picks for k, i in enumerate(items)
    ):
        return None
    rest = tensor[tuple(slice(None) if k in picks else i for k, i in enumerate(items))]
    used = sum(i is not None and i is not Ellipsis for i in items)
    axis, axes = 0, {}
    for k, item in enumerate(items):
        axes[k] = axis
        integer = isinstance(item, int) and not isinstance(item, bool)
        axis += tensor.ndim - used if item is Ellipsis else 0 if integer else 1
    for k in reversed(picks):
        whole = (slice(None),) * axes[k]
        rest = rest[(*whole, items[k].reshape(1))].squeeze(axes[k])
    return rest
