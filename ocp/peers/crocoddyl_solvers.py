"""Crocoddyl's and mim_solvers' solvers, their action models calling CasADi from Python.

The solvers are C++; the model of each stage is a Python object, as their interface has it. A call
costs microseconds in Python, which is most of their time on small models: times are those of this
way of using them, not of models written in C++.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ocp.peers.answers import Answer, Guess, Solve
from ocp.peers.expressions import Model, Unfit

if TYPE_CHECKING:
    import casadi as ca

FREE, BOUNDED = ("DDP", "FDDP"), ("BoxDDP", "BoxFDDP")


def names(model: Model) -> tuple[str, ...]:
    return FREE if model.problem.lower is None else BOUNDED


def sqp_names(model: Model) -> tuple[str, ...]:
    """Of mim_solvers."""
    return ("SQP",)


def prepare(model: Model, name: str, guess: Guess, most: int) -> Solve:
    """A solver of Crocoddyl: class ``Solver{name}``.

    Raises:
        Unfit: sizes of states differ.
    """
    import crocoddyl

    return solve_of(
        getattr(crocoddyl, f"Solver{name}")(shooting_problem(model, guess)), guess, most
    )


def prepare_sqp(model: Model, name: str, guess: Guess, most: int) -> Solve:
    """The same of mim_solvers.

    Raises:
        Unfit: bounds, or sizes of states differ.
    """
    if guess.bounded:
        raise Unfit("it takes no bounds")
    import mim_solvers

    return solve_of(
        getattr(mim_solvers, f"Solver{name}")(shooting_problem(model, guess)), guess, most
    )


def solve_of(solver: Any, guess: Guess, most: int) -> Solve:
    follows = True  # the states from the controls

    def solve() -> Callable[[], Answer]:
        converged = bool(solver.solve(guess.xs, guess.us, most, follows))
        return lambda: read(solver, converged)

    return solve


def read(solver: Any, converged: bool) -> Answer:
    xs, us = ([np.array(v) for v in part] for part in (solver.xs, solver.us))
    status = "converged" if converged else "not converged"
    return Answer(converged, status, int(solver.iter), float(solver.cost), xs, us)


# -- the model -------------------------------------------------------------------------------------
class Evaluation:
    """A CasADi function with vectors in and matrices out, called without copies of CasADi's own."""

    def __init__(self, function: ca.Function) -> None:
        self.buffer: Any  # the stub of set_arg asks for one argument more than the function
        self.buffer, self.trigger = function.buffer()
        self.inputs = [np.zeros(function.size1_in(i)) for i in range(function.n_in())]
        sizes = [function.size_out(i) for i in range(function.n_out())]
        self.outputs = [np.zeros(size, order="F") for size in sizes]
        for i, vector in enumerate(self.inputs):
            self.buffer.set_arg(i, vector.data)
        for i, matrix in enumerate(self.outputs):
            self.buffer.set_res(i, matrix.reshape(-1, order="F").data)

    def __call__(self, *values: np.ndarray) -> list[np.ndarray]:
        for array, value in zip(self.inputs, values, strict=True):
            array[:] = value
        self.trigger()
        return self.outputs


def with_derivatives(step: ca.Function) -> tuple[Evaluation, Evaluation]:
    """f and l; f_x, f_u, l_x, l_u, l_xx, l_xu, l_uu."""
    import casadi as ca

    x, u, w = (ca.SX.sym(name, step.size1_in(i)) for i, name in enumerate("xuw"))
    f, l = step(x, u, w)
    lz = ca.gradient(l, ca.vertcat(x, u))
    lx, lu = lz[: x.numel()], lz[x.numel() :]
    second = ca.jacobian(lx, x), ca.jacobian(lx, u), ca.jacobian(lu, u)
    parts = ca.jacobian(f, x), ca.jacobian(f, u), lx, lu, *second
    made = [
        ca.Function(name, [x, u, w], [ca.densify(p) for p in found])
        for name, found in (("values", (f, l)), ("derivatives", parts))
    ]
    return Evaluation(made[0]), Evaluation(made[1])


def end_with_derivatives(end: ca.Function) -> tuple[Evaluation, Evaluation]:
    """phi; phi_x and phi_xx."""
    import casadi as ca

    x = ca.SX.sym("x", end.size1_in(0))
    phi = end(x)
    gradient = ca.gradient(phi, x)
    parts = ca.densify(gradient), ca.densify(ca.jacobian(gradient, x))
    functions = ca.Function("value", [x], [phi]), ca.Function("derivatives", [x], parts)
    return Evaluation(functions[0]), Evaluation(functions[1])


def shooting_problem(model: Model, guess: Guess) -> Any:
    """``crocoddyl.ShootingProblem`` with a Python object for each stage."""
    import crocoddyl

    problem = model.problem
    if len(set(problem.state_dims)) > 1:
        raise Unfit("Crocoddyl needs states of one size at all stages")
    state = crocoddyl.StateVector(problem.state_dims[0])

    class Stage(crocoddyl.ActionModelAbstract):
        """One stage: f and l with their derivatives."""

        def __init__(self, t: int, evaluations: tuple[Evaluation, Evaluation]) -> None:
            super().__init__(state, problem.control_dims[t], 0)
            (self.values, self.derivatives), self.w = evaluations, model.numbers[t]
            if guess.bounded:
                self.u_lb, self.u_ub = guess.lower[t], guess.upper[t]

        def calc(self, data: Any, x: np.ndarray, u: np.ndarray) -> None:
            f, l = self.values(x, u, self.w)
            data.xnext, data.cost = f[:, 0], l[0, 0]

        def calcDiff(self, data: Any, x: np.ndarray, u: np.ndarray) -> None:
            fx, fu, lx, lu, lxx, lxu, luu = self.derivatives(x, u, self.w)
            data.Fx, data.Fu, data.Lx, data.Lu = fx, fu, lx[:, 0], lu[:, 0]
            data.Lxx, data.Lxu, data.Luu = lxx, lxu, luu

    class End(crocoddyl.ActionModelAbstract):
        """The terminal cost."""

        def __init__(self) -> None:
            super().__init__(state, problem.control_dims[-1], 0)
            self.value, self.derivatives = end_with_derivatives(model.end)

        def calc(self, data: Any, x: np.ndarray, u: np.ndarray | None = None) -> None:
            data.xnext, data.cost = x, self.value(x)[0][0, 0]

        def calcDiff(self, data: Any, x: np.ndarray, u: np.ndarray | None = None) -> None:
            phix, phixx = self.derivatives(x)
            data.Lx, data.Lxx = phix[:, 0], phixx

    known: dict[int, tuple[Evaluation, Evaluation]] = {}
    for step in model.steps:
        if id(step) not in known:
            known[id(step)] = with_derivatives(step)
    stages = [Stage(t, known[id(step)]) for t, step in enumerate(model.steps)]
    return crocoddyl.ShootingProblem(guess.xs[0], stages, End())
