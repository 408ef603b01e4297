"""What a contestant is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ocp.engines.eager import Eager
from ocp.problem import Problem, Stages
from ocp.solvers.loop import zero_controls

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Guess:
    """Zero controls, moved within the bounds, and their roll-out; a list over t each.

    Attributes:
        lower, upper: bounds of the controls, infinite where there are none.
        bounded: whether there are any.
    """

    xs: Arrays
    us: Arrays
    lower: Arrays
    upper: Arrays
    bounded: bool


@dataclass(frozen=True)
class Answer:
    """Of one solve; ``status`` in the words of the solver, ``cost`` as it states it."""

    converged: bool
    status: str
    iterations: int
    cost: float
    xs: Arrays
    us: Arrays


Solve = Callable[[], Callable[[], Answer]]
"""Solves; what it returns is called when the clock has stopped."""


@torch.no_grad()
def first_guess(problem: Problem) -> Guess:
    """What everybody begins from."""
    begun = Eager(problem).begin(zero_controls(problem))
    free = [np.full(m, np.inf) for m in problem.control_dims]
    bounded = problem.lower is not None and problem.upper is not None
    lower, upper = [-v for v in free], free
    if problem.lower is not None and problem.upper is not None:
        lower, upper = arrays(problem.lower), arrays(problem.upper)
    return Guess(arrays(begun.xs), arrays(begun.us), lower, upper, bounded)


def arrays(stages: Stages) -> Arrays:
    """Of the only problem, (1, size) for each t."""
    return [stage.reshape(-1).double().cpu().numpy() for stage in stages]


def stages(parts: Arrays, problem: Problem) -> Stages:
    """The opposite."""
    rows = [torch.as_tensor(part).to(problem.x0).reshape(1, -1) for part in parts]
    return torch.stack(rows) if problem.uniform else rows


def first_line(error: BaseException) -> str:
    """Of its message; its kind where there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
