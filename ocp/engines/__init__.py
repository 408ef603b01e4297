"""Engines compute roll-outs, expansions and sweeps; solvers only ask for them."""

from ocp.engines.base import Engine, Expansion, Policy, Sweep, Trials
from ocp.engines.eager import Eager
from ocp.problem import Problem

__all__ = ["Eager", "Engine", "Expansion", "Policy", "Sweep", "Trials", "make"]


def make(problem: Problem, name: str = "auto") -> Engine:
    """The engine called ``name``: "eager", "native", or "auto" for the default, which is eager.

    Raises:
        ValueError: there is no engine of that name, or it cannot do the problem: says why.
    """
    if name == "native":
        from ocp.engines.native.compiled import compiled_for
        from ocp.engines.native.engine import Native

        return Native(problem, compiled_for(problem))
    if name not in ("auto", "eager"):
        raise ValueError(f"engine must be 'auto', 'eager' or 'native', got {name!r}.")
    return Eager(problem)
