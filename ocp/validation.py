"""Checks at construction: every mistake is named with what was got, what is needed, what to try.

The arguments are checked here, the user's functions in `ocp.trial_calls`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ocp.problem import Stages, takes_parameters
from ocp.trial_calls import state_sizes

if TYPE_CHECKING:
    from ocp.problem import Problem


def normalise(problem: Problem) -> dict[str, Any]:
    """Check every argument; the values to store, derived ones included."""
    for name in ("shared_controls", "stagewise"):
        if not isinstance(getattr(problem, name), bool):
            raise TypeError(f"{name} must be True or False, got {getattr(problem, name)!r}.")
    x0 = initial_state(problem.x0, problem.shared_controls)
    horizon = integer("horizon", problem.horizon, 1)
    dims = control_dimensions(problem.control_dim, horizon, problem.stagewise)
    lower, upper = bounds(problem.control_bounds, dims, x0)
    parameters = tensors("parameters", problem.parameters, x0)
    per_problem = tensors("per_problem", problem.per_problem, x0)
    check_leading(per_problem, x0)
    if common := parameters.keys() & per_problem.keys():
        raise ValueError(f"{sorted(common)} stand in both parameters and per_problem; keep one.")
    check_callables(problem.dynamics, problem.cost)
    values: dict[str, Any] = {
        "x0": x0,
        "horizon": horizon,
        "control_dims": dims,
        "parameters": parameters,
        "per_problem": per_problem,
        "wants": (
            takes_parameters(problem.dynamics, ("x", "u", "t")),
            takes_parameters(problem.cost.stage, ("x", "u", "t")),
            takes_parameters(problem.cost.terminal, ("x",)),
        ),
    }
    for name, value in values.items():  # so that the user's functions can be called below
        object.__setattr__(problem, name, value)
    state_dims = state_sizes(problem, lambda: trial_controls(dims, lower, upper, x0))
    values["state_dims"] = state_dims
    values["goal"] = goal_state(problem.goal, x0, state_dims[-1])
    uniform = len(set(state_dims)) == 1 and len(set(dims)) == 1
    values["lower"], values["upper"] = (packed(bound, uniform) for bound in (lower, upper))
    return values


DATA = frozenset(("x0", "parameters", "per_problem", "goal"))


def renewed(problem: Problem, changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Checked values for other data of the same form; None where it is more than that."""
    if not changes.keys() <= DATA:
        return None
    x0 = problem.x0
    values: dict[str, Any] = {}
    if "x0" in changes:
        values["x0"] = initial_state(changes["x0"], problem.shared_controls)
        if not alike(x0, values["x0"]):
            return None
        x0 = values["x0"]
    for name in ("parameters", "per_problem"):
        if name in changes:
            old, new = getattr(problem, name), tensors(name, changes[name], x0)
            if old.keys() != new.keys() or not all(alike(old[k], new[k]) for k in old):
                return None
            values[name] = new
    if "goal" in changes:
        values["goal"] = goal_state(changes["goal"], x0, problem.state_dims[-1])
    return values


def alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def check_callables(dynamics: Any, cost: Any) -> None:
    for name, value in (("dynamics", dynamics), ("cost", cost)):
        if isinstance(value, type):
            raise TypeError(
                f"{name} is the class {value.__name__}; give an object: {value.__name__}(...)."
            )
    if not callable(dynamics):
        raise TypeError(
            f"dynamics must be callable as f(x, u, t), got {type(dynamics).__name__}. "
            "An ODE becomes such a function by ocp.rk4(ode, dt)."
        )
    for name in ("stage", "terminal"):
        if not callable(getattr(cost, name, None)):
            raise TypeError(
                f"cost needs the methods stage(x, u, t) and terminal(x); {type(cost).__name__} has "
                f"no {name}. Two functions become a cost by ocp.FunctionCost(stage, terminal)."
            )


# -- data --------------------------------------------------------------------------------------
def initial_state(value: Any, shared: bool) -> Tensor:
    value = numbers("x0", value, torch.float64)
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"x0 has dtype {value.dtype}; states are float32 or float64: use x0.double()."
        )
    if value.ndim not in (1, 2) or value.shape[-1] == 0:
        raise ValueError(
            f"x0 must have shape (state,) or (batch, state) with state >= 1, got "
            f"{tuple(value.shape)}."
        )
    if value.shape[0] == 0:
        raise ValueError("x0 has no rows: a batch needs at least one initial state.")
    if shared and value.ndim != 2:
        raise ValueError(
            f"shared_controls needs x0 of shape (batch, state), one row a sample, got "
            f"{tuple(value.shape)}."
        )
    check_finite("x0", value)
    return value.detach().clone()  # what the caller later writes into x0 is not our problem


def numbers(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor as it is; anything else as a tensor of ``dtype``.

    Raises:
        TypeError: it is not made of numbers, or its rows differ in length.
    """
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor, an array or a list of numbers, got "
            f"{type(value).__name__}: {error}."
        ) from error


def integer(name: str, value: Any, least: int) -> int:
    """Any kind of integer, NumPy's included, as an int >= ``least``."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r}.")
    if count < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {count}.")
    return count


def control_dimensions(value: Any, horizon: int, stagewise: bool) -> tuple[int, ...]:
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        return (integer("control_dim", value, 0),) * horizon
    dims = tuple(integer(f"control_dim[{t}]", m, 0) for t, m in enumerate(value))
    if not stagewise:
        raise ValueError(
            "control_dim is one integer, the same for all stages; sizes may change with t only "
            "with stagewise=True."
        )
    if len(dims) != horizon:
        raise ValueError(
            f"control_dim must give a size for each of the {horizon} stages, got {len(dims)} sizes."
        )
    return dims


def tensors(name: str, values: Any, like: Tensor) -> dict[str, Tensor]:
    """Python numbers and floating-point arrays take the states' dtype; the rest keeps its own.

    Arrays of integers and bools stay what they are: tables to index with, labels, masks.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(values).__name__}.")
    result = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}: keys are strings, got {key!r}.")
        exact = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iub"
        tensor = torch.as_tensor(value) if exact else numbers(f"{name}[{key!r}]", value, like.dtype)
        result[key] = tensor.detach().to(like.device)
    return result


def check_leading(per_problem: Mapping[str, Tensor], x0: Tensor) -> None:
    rows = x0.shape[0] if x0.ndim == 2 else 1
    for key, value in per_problem.items():
        if value.ndim == 0 or value.shape[0] != rows:
            raise ValueError(
                f"per_problem[{key!r}] needs a leading axis of {rows}, one slice for each row of "
                f"x0; got shape {tuple(value.shape)}. What all problems share goes to parameters."
            )


def check_finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        where = (~torch.isfinite(value)).nonzero()[0].tolist()
        raise ValueError(f"{name} is not finite: entry {where} is {value[tuple(where)].item()}.")


def goal_state(goal: Any, x0: Tensor, n: int) -> Tensor | None:
    if goal is None:
        return None
    goal = numbers("goal", goal, x0.dtype).detach().to(x0.device, x0.dtype)
    allowed = [(n,)] + ([(x0.shape[0], n)] if x0.ndim == 2 else [])
    if tuple(goal.shape) not in allowed:
        raise ValueError(
            f"goal must have shape {' or '.join(map(str, allowed))}, got {tuple(goal.shape)}."
        )
    check_finite("goal", goal)
    return goal


# -- bounds ------------------------------------------------------------------------------------
Bound = list[Tensor] | None


def bounds(pair: Any, dims: tuple[int, ...], like: Tensor) -> tuple[Bound, Bound]:
    """(lo, hi), each a list over t of (1, m); (None, None) without bounds."""
    if pair is None:
        return None, None
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} of them" if isinstance(pair, tuple | list) else type(pair).__name__
        raise ValueError(f"control_bounds must be a pair (lo, hi), got {got}.")
    lower = one_bound("the lower bound of control_bounds", pair[0], dims, like)
    upper = one_bound("the upper bound of control_bounds", pair[1], dims, like)
    for t, (lo, hi) in enumerate(zip(lower, upper, strict=True)):
        for wrong, why in (
            (lo > hi, "lo > hi"),
            (lo == torch.inf, "nothing is above lo"),
            (hi == -torch.inf, "nothing is below hi"),
        ):
            if bool(wrong.any()):
                j = int(wrong.nonzero()[0, -1])
                raise ValueError(
                    f"control_bounds at stage {t}, component {j}: {why}, got lo = "
                    f"{lo[0, j].item()} and hi = {hi[0, j].item()}."
                )
    return lower, upper


def one_bound(name: str, value: Any, dims: tuple[int, ...], like: Tensor) -> list[Tensor]:
    T = len(dims)
    if value is None:
        raise ValueError(f"{name} is None; use -inf or inf where there is no bound.")
    if isinstance(value, list | tuple) and any(np.ndim(v) > 0 for v in value):
        if len(value) != T:
            raise ValueError(f"{name} is a list over {len(value)} stages, the horizon is {T}.")
        stages = [numbers(f"{name} at stage {t}", v, like.dtype) for t, v in enumerate(value)]
    else:
        whole = numbers(name, value, like.dtype)
        stages = list(whole) if whole.ndim == 2 and whole.shape[0] == T else [whole] * T
    for t, (stage, m) in enumerate(zip(stages, dims, strict=True)):
        if tuple(stage.shape) != (m,):
            raise ValueError(
                f"{name} at stage {t} has shape {tuple(stage.shape)}, the control has ({m},). "
                "Give (m,), one row per stage (T, m), or a list over t."
            )
        if bool(torch.isnan(stage).any()):
            raise ValueError(f"{name} is nan at stage {t}; use -inf or inf where there is none.")
    return [stage[None].detach().to(like.device, like.dtype) for stage in stages]


def packed(bound: Bound, uniform: bool) -> Stages | None:
    """(T, 1, m) where sizes agree, else the list over t."""
    return torch.stack(bound) if uniform and bound is not None else bound


def trial_controls(dims: tuple[int, ...], lower: Bound, upper: Bound, like: Tensor) -> list[Tensor]:
    """Zero, or the value within the bounds nearest to it: (m,) for each t."""
    zeros = [like.new_zeros(m) for m in dims]
    if lower is None or upper is None:
        return zeros
    return [
        torch.minimum(torch.maximum(u, lo[0]), hi[0])
        for u, lo, hi in zip(zeros, lower, upper, strict=True)
    ]
