"""Engines compute roll-outs, expansions and sweeps; solvers only ask for them."""

import functools
import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType

import torch

from ocp.engines.base import Engine, Expansion, Policy, Prepared, Recipe, Sweep, Trials, Whole
from ocp.engines.eager import Eager
from ocp.problem import Problem
from ocp.trial_calls import check_batched

__all__ = [
    "Eager",
    "Engine",
    "Expansion",
    "Policy",
    "Prepared",
    "Recipe",
    "Sweep",
    "Trials",
    "Whole",
    "make",
    "whole",
]


def make(problem: Problem, name: str = "auto") -> Engine:
    """The engine called ``name``: "eager", "native" (compiled), or "auto".

    Compiled programs run where the tensors are, on the CPU or an NVIDIA GPU.

    "auto" is what the environment variable OCP_ENGINE says, or else native where the problem can
    be compiled. Where it cannot, though its tensors are on the CPU or an NVIDIA GPU, a warning says
    why, once for each reason. Dynamics with engines of their own (networks) are asked for any other
    name: ``dynamics.make_engine(problem, name)``.

    Raises:
        ValueError: there is no engine of that name, or it cannot do the problem: says why.
    """
    chosen = chosen_name(name)
    own = getattr(problem.dynamics, "make_engine", None)
    if own is not None and chosen not in ("auto", "eager", "native"):
        return own(problem, chosen)
    if chosen not in ("auto", "eager", "native"):
        raise ValueError(f"engine must be 'auto', 'eager' or 'native', got {chosen!r}.")
    if chosen == "eager":
        return make_eager(problem)
    from ocp.engines.native.compiled import Refused
    from ocp.engines.native.engine import make_native

    if chosen == "auto" and problem.x0.device.type not in ("cpu", "cuda"):
        return make_eager(problem)
    try:
        return make_native(problem)
    except Refused as error:
        if chosen == "native":
            raise
        warn_once(f"{problem.name or 'the problem'} is solved in eager PyTorch: {error}")
        return make_eager(problem)


def chosen_name(name: str) -> str:
    return os.environ.get("OCP_ENGINE", "auto") if name == "auto" else name


def whole(
    problem: Problem, name: str, recipe: Recipe, damping: float, second_order: bool
) -> Whole | None:
    """What solves a small problem in one call; None where its pieces have to be asked for.

    Args:
        name: as of `make`.
        recipe: of the solver.
        damping, second_order: what the solve begins with.
    """
    if chosen_name(name) not in ("auto", "native") or problem.x0.device.type != "cpu":
        return None
    if problem.x0.ndim != 1 or not problem.uniform or problem.stagewise or problem.shared_controls:
        return None
    return native_whole()(problem, recipe, damping, second_order)


@functools.cache
def native_whole() -> Callable[[Problem, Recipe, float, bool], Whole | None]:
    """Imported when it is needed, and once: that statement takes as long as an iteration."""
    from ocp.engines.native.whole import whole_for

    return whole_for


def make_eager(problem: Problem) -> Eager:
    """Raises ValueError where a function of the user's has no second derivatives under vmap."""
    check_batched(problem)
    return Eager(problem)


_warned: set[str] = set()
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # of this package
OURS = (ROOT + os.sep, f"{ROOT}_nn{os.sep}", os.path.dirname(torch.__file__) + os.sep)


def warn_once(message: str) -> None:
    """A warning that points at the line of the caller, however deep in the package it is given."""
    if message not in _warned:
        _warned.add(message)
        frame: FrameType | None = sys._getframe(1)
        level = 2
        while frame is not None and frame.f_code.co_filename.startswith(OURS):
            frame, level = frame.f_back, level + 1
        warnings.warn(message, RuntimeWarning, stacklevel=level)
