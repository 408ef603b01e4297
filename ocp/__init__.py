"""Discrete-time optimal control on PyTorch: PMP, iLQR and DDP on one problem type."""

from ocp import problems, starts
from ocp.animate import animate
from ocp.check import check_derivatives
from ocp.compare import Comparison, compare
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
from ocp.linear_quadratic import linear_quadratic
from ocp.monte_carlo import Robustness, monte_carlo
from ocp.plot import plot_solution
from ocp.problem import Cost, Dynamics, Problem
from ocp.receding import RecedingHorizon
from ocp.sharded import solve_sharded
from ocp.solution import Policy, Solution, Status, Value
from ocp.solve import make_solver, solve
from ocp.solvers import METHODS, Report, Rules, Solver

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Comparison",
    "Cost",
    "Dynamics",
    "FunctionCost",
    "Policy",
    "Problem",
    "QuadraticCost",
    "RecedingHorizon",
    "Report",
    "Robustness",
    "Rules",
    "Solution",
    "Solver",
    "Status",
    "Value",
    "animate",
    "check_derivatives",
    "compare",
    "discretise",
    "euler",
    "free_time",
    "implicit_midpoint",
    "linear_quadratic",
    "make_solver",
    "midpoint",
    "monte_carlo",
    "plot_solution",
    "problems",
    "rk4",
    "semi_implicit_euler",
    "smooth_abs",
    "solve",
    "solve_sharded",
    "starts",
]
