"""Between the user's layout (batch first, no needless axes) and the stages solvers work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.problem import Problem, Stages
from ocp.stages import pack
from ocp.validation import check_finite, numbers


def stages_in(problem: Problem, name: str, value: Any, sizes: Sequence[int]) -> Stages:
    """Controls or states as the user gives them -> (B, size) per stage.

    Accepted: (stages, size); (B, stages, size); or a list over t of (size,) or (B, size). What has
    no batch axis serves every problem.

    Raises:
        ValueError, TypeError: wrong shape, integer dtype, or an entry that is not finite.
    """
    B, dtype, device = problem.batch, problem.x0.dtype, problem.x0.device
    if isinstance(value, Tensor) and problem.uniform and value.dtype == dtype:
        # The usual case, all stages at once; whatever is wrong is found and named below.
        fits = tuple(value.shape) in ((len(sizes), sizes[0]), (B, len(sizes), sizes[0]))
        if fits and math.isfinite(float(value.detach().sum())):  # then every entry is
            whole = value.detach().to(device)
            whole = whole[:, None] if whole.ndim == 2 else whole.movedim(-2, 0)
            return (whole if whole.shape[1] == B else whole.expand(-1, B, -1)).contiguous()
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor | np.ndarray) for v in value):
        parts = [numbers(f"{name} at stage {t}", v, dtype) for t, v in enumerate(value)]
    else:
        whole = numbers(name, value, dtype)
        parts = list(whole.movedim(-2, 0)) if whole.ndim >= 2 else [whole]
    for part in parts:
        if not part.is_floating_point():
            raise TypeError(f"{name} has dtype {part.dtype}; floating point is needed.")
    parts = [part.detach().to(device, dtype) for part in parts]
    if len(parts) != len(sizes) or any(
        tuple(p.shape) not in ((size,), (B, size)) for p, size in zip(parts, sizes, strict=False)
    ):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{len(parts)} stages"
        same = len(set(sizes)) == 1
        needs = f"({len(sizes)}, {sizes[0]})" if same else f"a list of {len(sizes)} tensors (size,)"
        batch = f" or {B} of them" if problem.batched else ""
        raise ValueError(
            f"{name} needs {needs}{batch}, got {got}; sizes per stage: {summary(sizes)}."
        )
    for t, part in enumerate(parts):
        check_finite(f"{name} at stage {t}", part)
    return pack([p.expand(B, -1).contiguous() for p in parts], problem.uniform)


def controls_in(problem: Problem, value: Any) -> Stages:
    return stages_in(problem, "controls", value, problem.control_dims)


def states_in(problem: Problem, value: Any) -> Stages:
    """States, one trajectory a sample where controls are shared; the first is set to x0."""
    S = problem.samples
    if S > 1 and isinstance(value, Tensor):
        if value.ndim != 3 or value.shape[0] != S:
            raise ValueError(
                f"states needs one trajectory for each of the {S} samples, ({S}, T+1, n), got "
                f"{tuple(value.shape)}."
            )
        value = value.movedim(0, 1).flatten(1)
    elif S > 1:
        value = [v.reshape(-1) for v in value]
    states = stages_in(problem, "states", value, [S * n for n in problem.state_dims])
    first = problem.x0.reshape(problem.batch, -1)
    if isinstance(states, Tensor):
        return torch.cat((first[None], states[1:]))
    return [first, *states[1:]]


def stages_out(
    problem: Problem, stages: Stages, per_sample: bool = False, fresh: bool = False
) -> Any:
    """(B, ...) per stage -> batch first, time next; a list over t where sizes change.

    Args:
        per_sample: split an augmented state into one row a sample.
        fresh: nobody else has the stages, so that no copy is needed.
    """
    split = per_sample and problem.shared_controls
    if isinstance(stages, Tensor):
        if split:
            stages = stages.reshape(len(stages), problem.samples, -1)
        first = stages.movedim(0, 1) if problem.batched or split else stages[:, 0]
        if fresh:
            return first.contiguous()
        return first.clone(memory_format=torch.contiguous_format)
    parts = [s.reshape(problem.samples, -1) if split else s for s in stages]
    return parts if problem.batched or split else [p[0] for p in parts]


def batch_out(problem: Problem, value: Tensor) -> Tensor:
    """(B,) -> (B,), or () for one problem."""
    return value if problem.batched else value[0]


def rows_out(problem: Problem, value: Tensor) -> Tensor:
    """(K, B) -> (K, B), or (K,) for one problem."""
    return value if problem.batched else value[:, 0]


def summary(sizes: Sequence[int]) -> str:
    return (
        str(sizes[0]) if len(set(sizes)) == 1 else str(list(sizes[:8]) + ["..."] * (len(sizes) > 8))
    )
