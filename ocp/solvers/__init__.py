"""Solvers: one loop, several ways to make a step."""

from ocp.solvers.decide import Rules
from ocp.solvers.dynamic_programming import DDP, ILQR, LQR, Newton
from ocp.solvers.loop import Report, Solver, State

METHODS: dict[str, type[Solver]] = {kind.name: kind for kind in (ILQR, DDP, Newton, LQR)}

__all__ = ["DDP", "ILQR", "LQR", "METHODS", "Newton", "Report", "Rules", "Solver", "State"]
