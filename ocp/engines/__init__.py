"""Engines compute roll-outs, expansions and sweeps; solvers only ask for them."""

from ocp.engines.base import Engine, Expansion, Policy, Sweep, Trials
from ocp.engines.eager import Eager
from ocp.problem import Problem

__all__ = ["Eager", "Engine", "Expansion", "Policy", "Sweep", "Trials", "make"]


def make(problem: Problem, name: str = "auto") -> Engine:
    """The engine called ``name``: "eager", or "auto" for the fastest that can do the problem.

    Raises:
        ValueError: there is no engine of that name.
    """
    if name not in ("auto", "eager"):
        raise ValueError(f"engine must be 'auto' or 'eager', got {name!r}.")
    return Eager(problem)
