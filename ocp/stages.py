"""What is indexed by stage: one tensor (T, B, ...) where sizes agree, else a list over t."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ocp.problem import Stages


def pack(parts: Sequence[Tensor], uniform: bool) -> Stages:
    return torch.stack(list(parts)) if uniform else list(parts)


def each(function: Callable[..., Tensor], *stages: Stages) -> Stages:
    """``function`` of the whole tensor, or of each stage: it must act on trailing axes only."""
    if all(isinstance(s, Tensor) for s in stages):
        return function(*stages)
    return [function(*parts) for parts in zip(*stages, strict=True)]


def largest(stages: Stages) -> Tensor:
    """Largest entry over stages and components of (T, B, k): (B,). nan if there is one; 0 if empty.

    Sizes may be 0 at some stages (no control), hence the padding.
    """
    if isinstance(stages, Tensor) and stages.shape[-1] > 0:
        return stages.amax(dim=(0, -1))
    if isinstance(stages, Tensor):
        return stages.new_zeros(stages.shape[1])
    return torch.cat([torch.nn.functional.pad(s, (0, 1)) for s in stages], dim=-1).amax(dim=-1)


def absolute_sum(stages: Stages) -> Tensor:
    """Sum of magnitudes over stages and components: (..., B)."""
    if isinstance(stages, Tensor):
        return stages.abs().sum(dim=(0, -1))
    return torch.stack([s.abs().sum(dim=-1) for s in stages]).sum(dim=0)


def finite(stages: Stages) -> Tensor:
    """Whether every entry is finite: (..., B) bool."""
    if isinstance(stages, Tensor):
        return torch.isfinite(stages).all(dim=-1).all(dim=0)
    parts = [s[None] for s in stages]
    return torch.stack([torch.isfinite(s).all(dim=-1).all(dim=0) for s in parts]).all(dim=0)


def choose(trials: Stages, index: Tensor) -> Stages:
    """Trial ``index[b]`` of each problem b: (T, A, B, k), (B,) -> (T, B, k)."""
    b = torch.arange(index.shape[0], device=index.device)
    if isinstance(trials, Tensor):
        return trials[:, index, b]
    return [s[index, b] for s in trials]


def where(mask: Tensor, a: Stages, b: Stages) -> Stages:
    """Problem by problem: a where ``mask`` (B,) holds, else b."""
    return each(lambda p, q: torch.where(mask[:, None], p, q), a, b)


def later(stages: Stages) -> Stages:
    """Stages 1..T of something with T + 1."""
    return stages[1:]


def earlier(stages: Stages) -> Stages:
    """Stages 0..T-1 of something with T + 1."""
    return stages[:-1]
