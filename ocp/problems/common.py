"""What the classic problems share: the cost about a goal, the stage map, the assembly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ocp.integrators import rk4_step
from ocp.problem import ArrayLike, Problem

Parameters = Mapping[str, Tensor]
Data = Mapping[str, ArrayLike] | None

POSITIVE = ("dt", "mass", "masses", "length", "lengths", "inertia", "inertias", "arm", "wheelbase")


class GoalCost:
    """Integral of a quadratic about the goal by the rectangle rule, and a quadratic at the end.

    ``l = dt/2 (|x - goal|^2_Q + |u|^2_R)``, ``phi = 1/2 |x - goal|^2_Qf`` with the diagonals
    ``Q = p["state_weights"]``, ``R = p["control_weights"]``, ``Qf = p["final_weights"]``.
    """

    def error(self, x: Tensor, p: Parameters) -> Tensor:
        """What is weighted: zero at the goal."""
        return x - p["goal"]

    def stage(self, x: Tensor, u: Tensor, t: Tensor, p: Parameters) -> Tensor:
        e = self.error(x, p)
        return p["dt"] / 2 * (e @ (p["state_weights"] * e) + u @ (p["control_weights"] * u))

    def terminal(self, x: Tensor, p: Parameters) -> Tensor:
        e = self.error(x, p)
        return e @ (p["final_weights"] * e) / 2


def rk4_stage(ode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``x[t+1]`` by one Runge-Kutta step of ``p["dt"]`` seconds of ``dx/dt = ode(x, u, p)``.

    Unlike `ocp.rk4` the time step is a parameter, so that a batch may differ in it too.
    """

    def dynamics(x: Tensor, u: Tensor, t: Tensor, p: Parameters) -> Tensor:
        return rk4_step(lambda x, _: ode(x, u, p), x, p["dt"])

    return dynamics


def assemble(
    name: str,
    dynamics: Callable[..., Tensor],
    cost: Any,
    *,
    x0: ArrayLike,
    sizes: tuple[int, int],
    error_size: int | None = None,
    horizon: int,
    parameters: Mapping[str, ArrayLike],
    per_problem: Data = None,
    goal: Callable[[Parameters], Tensor] | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
) -> Problem:
    """A problem whose constants are parameters, some of them perhaps one a problem.

    Args:
        x0: (n,) or (B, n). One state (n,) serves the whole batch that ``per_problem`` makes.
        sizes: (n, m).
        error_size: entries of the state weights; n if None.
        parameters: shared constants; those named in ``per_problem`` are replaced.
        per_problem: for some of the parameters, values with a leading B.
        goal: goal state (..., n) from the parameters; by default ``parameters["goal"]``.

    Raises:
        ValueError: wrong shapes, an unknown parameter, or one that has to be positive and is not.
    """
    n, m = sizes
    x0 = floating(x0)
    if x0.ndim not in (1, 2) or x0.shape[-1] != n:
        raise ValueError(f"{name}: x0 must have shape ({n},) or (B, {n}), got {tuple(x0.shape)}.")
    shared = {k: like(x0, v) for k, v in parameters.items()}
    own = {k: like(x0, v) for k, v in (per_problem or {}).items()}
    if unknown := sorted(own.keys() - shared.keys()):
        raise ValueError(f"{name}: no parameter {unknown}; there are {', '.join(sorted(shared))}.")
    if own and x0.ndim == 1:
        rows = max(v.shape[0] if v.ndim else 1 for v in own.values())
        x0 = x0.expand(rows, n).clone()
    forms = {"goal": n, "state_weights": error_size or n, "control_weights": m}
    forms["final_weights"] = forms["state_weights"]
    for key, value in shared.items():
        form = (forms[key],) if key in forms else tuple(value.shape)
        check(f"{name}: {key}", value, form, key in POSITIVE)
        if key in own:
            check(f"{name}: per_problem[{key!r}]", own[key], (x0.shape[0], *form), key in POSITIVE)
    merged = {**shared, **own}
    return Problem(
        dynamics,
        cost,
        x0,
        horizon,
        m,
        parameters={k: v for k, v in shared.items() if k not in own},
        per_problem=own,
        control_bounds=bounds,
        goal=merged["goal"] if goal is None else goal(merged),
        name=name,
    )


def check(what: str, value: Tensor, form: tuple[int, ...], positive: bool) -> None:
    if tuple(value.shape) != form:
        raise ValueError(f"{what} must have shape {form}, got {tuple(value.shape)}.")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{what} is not finite: {value.tolist()}.")
    if positive and not bool((value > 0).all()):
        raise ValueError(f"{what} must be positive, got {value.tolist()}.")


def floating(value: ArrayLike) -> Tensor:
    """A tensor as it is; anything else as float64."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def like(x0: Tensor, value: ArrayLike) -> Tensor:
    return torch.as_tensor(value, dtype=x0.dtype, device=x0.device)


def symmetric(bound: float | None, m: int) -> tuple[list[float], list[float]] | None:
    """``|u| <= bound`` for m controls.

    Raises:
        ValueError: bound is not positive.
    """
    if bound is None:
        return None
    if not bound > 0:
        raise ValueError(f"bound must be positive, got {bound}; None means no bound.")
    return [-bound] * m, [bound] * m
