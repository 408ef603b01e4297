"""A chain of masses between two walls, joined by springs and dampers: linear-quadratic.

Of N masses m, the displacements s_i obey, with s_0 = s_{N+1} = 0 at the walls,

    m s_i'' = k (s_{i+1} - 2 s_i + s_{i-1}) + c (s'_{i+1} - 2 s'_i + s'_{i-1}) + force_i

and forces act on every second mass (the 1st, 3rd, ...), so n = 2 N and m = ceil(N / 2).

x = (displacements [m] (N), speeds [m/s] (N)), u = (forces [N]). A Runge-Kutta step of a linear ODE
is linear in (x, u): one iteration of any second-order method is exact. Source: the oscillating
masses of Wang, Boyd, Fast model predictive control using online optimization (2010), sec. V-A,
with forces in place of tensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocp.problem import ArrayLike, Problem
from ocp.problems.common import Data, GoalCost, Parameters, assemble, rk4_stage


def second_difference(v: Tensor) -> Tensor:
    """``v[i+1] - 2 v[i] + v[i-1]`` with zeros at the walls: (N,) -> (N,)."""
    return torch.diff(torch.nn.functional.pad(v, (1, 1)), n=2)


def ode(x: Tensor, u: Tensor, p: Parameters) -> Tensor:
    displacements, speeds = x.chunk(2)
    forces = p["actuation"] @ u
    springs = p["stiffness"] * second_difference(displacements)
    dampers = p["damping"] * second_difference(speeds)
    return torch.cat((speeds, (springs + dampers + forces) / p["masses"]))


def masses(
    count: int = 6,
    *,
    horizon: int = 100,
    dt: float = 0.1,
    x0: ArrayLike | None = None,
    goal: ArrayLike | None = None,
    mass: float | Sequence[float] = 1.0,
    stiffness: float = 1.0,
    damping: float = 0.0,
    state_weights: ArrayLike | None = None,
    control_weights: ArrayLike | None = None,
    final_weights: ArrayLike | None = None,
    per_problem: Data = None,
) -> Problem:
    """Bring a chain of masses to rest.

    Args:
        count: number N of masses.
        horizon: stages.
        dt: time step [s].
        x0: initial state (2 N,) or (B, 2 N); by default the first half pushed out, at rest.
        goal: state (2 N,); zero if None.
        mass: [kg], one for all or one each; the parameter is ``masses`` (N,).
        stiffness: of the N + 1 springs [N/m].
        damping: of the N + 1 dampers [N s/m].
        state_weights, control_weights, final_weights: diagonals of `GoalCost`; by default 1, 0.5
            and 10 for all.
        per_problem: any of the parameters from dt on, with a leading B: what the batch differs in.

    Raises:
        ValueError: count < 1, wrong shapes, an unknown parameter, a mass that is not positive, ...
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"masses: count must be an integer >= 1, got {count!r}.")
    n, m = 2 * count, (count + 1) // 2
    one_each = [mass] * count if isinstance(mass, float | int) else mass
    pushed = [1.0] * m + [0.0] * (n - m)
    return assemble(
        "masses",
        rk4_stage(ode),
        GoalCost(),
        x0=pushed if x0 is None else x0,
        sizes=(n, m),
        horizon=horizon,
        parameters={
            "dt": dt,
            "goal": [0.0] * n if goal is None else goal,
            "masses": one_each,
            "stiffness": stiffness,
            "damping": damping,
            "actuation": torch.eye(count)[:, ::2],
            "state_weights": [1.0] * n if state_weights is None else state_weights,
            "control_weights": [0.5] * m if control_weights is None else control_weights,
            "final_weights": [10.0] * n if final_weights is None else final_weights,
        },
        per_problem=per_problem,
    )
