"""Discrete-time optimal control on PyTorch: PMP, iLQR and DDP on one problem type."""

from ocp import starts
from ocp.costs import FunctionCost, QuadraticCost, smooth_abs
from ocp.integrators import (
    discretise,
    euler,
    free_time,
    implicit_midpoint,
    midpoint,
    rk4,
    semi_implicit_euler,
)
from ocp.problem import Cost, Dynamics, Problem
from ocp.solution import Policy, Solution, Status, Value
from ocp.solve import make_solver, solve
from ocp.solvers import METHODS, Report, Rules, Solver

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Cost",
    "Dynamics",
    "FunctionCost",
    "Policy",
    "Problem",
    "QuadraticCost",
    "Report",
    "Rules",
    "Solution",
    "Solver",
    "Status",
    "Value",
    "discretise",
    "euler",
    "free_time",
    "implicit_midpoint",
    "make_solver",
    "midpoint",
    "rk4",
    "semi_implicit_euler",
    "smooth_abs",
    "solve",
    "starts",
]
