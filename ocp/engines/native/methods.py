"""Which method runs how on a compiled problem: lines of a report."""

from __future__ import annotations

from ocp.engines.native import emit, grid, hamiltonians
from ocp.engines.native.compiled import Refused
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem

MINIMISING = {"msa": False, "emsa": True}  # whether the augmented H


def lines(problem: Problem, program: emit.Program, form: grid.Form | None) -> list[str]:
    """Methods that make whole iterations in the program; those that call its pieces; and what of
    them runs in eager PyTorch, with the reason."""
    whole = [] if problem.shared_controls else ["ilqr", "ddp", "lqr"]
    if form is None and whole:
        whole.append("pmp")
    every = ("ilqr", "ddp", "lqr", "newton", "pmp", "indirect", "msa", "emsa")
    pieces = [name for name in every if name not in whole]
    found = {
        "whole loops": ", ".join(whole) or "none: samples share their controls",
        "by pieces": ", ".join(pieces),
    }
    reasons = {f"H of {name}": minimised(problem, name, program, form) for name in MINIMISING}
    reasons["linear systems of indirect"] = corrected(problem, form)
    left = [f"{what} ({why})" for what, why in reasons.items() if why]
    found["in eager PyTorch"] = "; ".join(left) or "nothing"
    return [f"  {name:15s} {text}" for name, text in found.items()]


def corrected(problem: Problem, form: grid.Form | None) -> str:
    """Why corrections of `Indirect` are not compiled; empty if they are."""
    if form is not None:
        return "on a GPU"
    if problem.shared_controls:
        return "samples share their controls"
    return "" if problem.uniform else "sizes change by stage"


def minimised(problem: Problem, name: str, program: emit.Program, form: grid.Form | None) -> str:
    """Why H is not minimised by a program; empty if it is."""
    if problem.shared_controls:
        return "samples share their controls"
    if why := hamiltonians.unsupported(program, form):
        return why
    n, m = problem.state_dims[0], problem.control_dims[0]
    try:
        hamiltonians.functions(program, n, m, MINIMISING[name])
    except (Refused, Untraceable) as error:
        return str(error)
    return ""
