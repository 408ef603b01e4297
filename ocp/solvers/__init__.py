"""Solvers: one loop, several ways to make a step."""

from ocp.solvers.decide import Rules
from ocp.solvers.dynamic_programming import DDP, ILQR, LQR, Newton
from ocp.solvers.hamiltonian import Hamiltonian, Minimiser, ProjectedNewton
from ocp.solvers.indirect import Indirect
from ocp.solvers.loop import Report, Solver, State
from ocp.solvers.msa import EMSA, MSA
from ocp.solvers.pmp import PMP

METHODS: dict[str, type[Solver]] = {
    kind.name: kind for kind in (ILQR, DDP, Newton, LQR, PMP, MSA, EMSA, Indirect)
}

__all__ = [
    "DDP",
    "EMSA",
    "ILQR",
    "LQR",
    "METHODS",
    "MSA",
    "PMP",
    "Hamiltonian",
    "Indirect",
    "Minimiser",
    "Newton",
    "ProjectedNewton",
    "Report",
    "Rules",
    "Solver",
    "State",
]
