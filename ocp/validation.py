"""Checks at construction: every mistake is named with what was got, what is needed, what to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from ocp.problem import Stages, takes_parameters

if TYPE_CHECKING:
    from ocp.problem import Problem


def normalise(problem: Problem) -> dict[str, Any]:
    """Check every argument; the values to store, derived ones included."""
    x0 = initial_state(problem.x0, problem.shared_controls)
    horizon = positive_integer("horizon", problem.horizon)
    dims = control_dimensions(problem.control_dim, horizon, problem.stagewise)
    parameters = tensors("parameters", problem.parameters, x0)
    per_problem = tensors("per_problem", problem.per_problem, x0)
    check_leading(per_problem, x0)
    if common := parameters.keys() & per_problem.keys():
        raise ValueError(f"{sorted(common)} stand in both parameters and per_problem; keep one.")
    for name in ("stage", "terminal"):
        if not callable(getattr(problem.cost, name, None)):
            raise TypeError(
                f"cost needs the methods stage(x, u, t) and terminal(x); {type(problem.cost)} has "
                f"no {name}. Two plain functions become a cost by ocp.FunctionCost(stage, terminal)."
            )
    if not callable(problem.dynamics):
        raise TypeError(f"dynamics must be callable as f(x, u, t), got {type(problem.dynamics)}.")
    wants = (
        takes_parameters(problem.dynamics, ("x", "u", "t")),
        takes_parameters(problem.cost.stage, ("x", "u", "t")),
        takes_parameters(problem.cost.terminal, ("x",)),
    )
    values: dict[str, Any] = {
        "x0": x0,
        "horizon": horizon,
        "control_dims": dims,
        "parameters": parameters,
        "per_problem": per_problem,
        "wants": wants,
    }
    for name, value in values.items():  # so that the user's functions can be called below
        object.__setattr__(problem, name, value)
    state_dims = check_functions(problem)
    values["state_dims"] = state_dims
    values["goal"] = goal_state(problem.goal, x0, state_dims[-1])
    uniform = len(set(state_dims)) == 1 and len(set(dims)) == 1
    values["lower"], values["upper"] = bounds(problem.control_bounds, dims, uniform, x0)
    return values


# -- data --------------------------------------------------------------------------------------
def initial_state(value: Any, shared: bool) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, dtype=torch.float64)
    if not value.is_floating_point():
        raise TypeError(f"x0 has dtype {value.dtype}; states are floating point: use x0.double().")
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
    return value.detach()


def positive_integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}.")
    return value


def control_dimensions(value: Any, horizon: int, stagewise: bool) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        dims = (value,) * horizon
    elif isinstance(value, Sequence) and all(isinstance(m, int) for m in value):
        dims = tuple(value)
        if not stagewise:
            raise ValueError("control_dim is one int per stage only with stagewise=True.")
    else:
        raise TypeError(f"control_dim must be an int, or a sequence of ints, got {value!r}.")
    if len(dims) != horizon or min(dims) < 0:
        raise ValueError(
            f"control_dim must give a size >= 0 for each of the {horizon} stages, got {value!r}."
        )
    return dims


def tensors(name: str, values: Any, like: Tensor) -> dict[str, Tensor]:
    """Numbers and arrays become tensors of the states' dtype; tensors stay as they are."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(values).__name__}.")
    result = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}: keys are strings, got {key!r}.")
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value, dtype=like.dtype)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"{name}[{key!r}] is no tensor and cannot be made one: {error}.")
        result[key] = value.detach().to(like.device)
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
        raise ValueError(f"{name} is not finite: {name}{where} is {value[tuple(where)].item()}.")


def goal_state(goal: Any, x0: Tensor, n: int) -> Tensor | None:
    if goal is None:
        return None
    goal = torch.as_tensor(goal, dtype=x0.dtype, device=x0.device)
    allowed = [(n,)] + ([(x0.shape[0], n)] if x0.ndim == 2 else [])
    if tuple(goal.shape) not in allowed:
        raise ValueError(
            f"goal must have shape {' or '.join(map(str, allowed))}, got {tuple(goal.shape)}."
        )
    check_finite("goal", goal)
    return goal


def bounds(
    pair: Any, dims: tuple[int, ...], uniform: bool, like: Tensor
) -> tuple[Stages | None, Stages | None]:
    """(lo, hi) per stage: (T, 1, m), or lists over t of (1, m); (None, None) without bounds."""
    if pair is None:
        return None, None
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"control_bounds must be a pair (lo, hi), got {type(pair).__name__}.")
    lower, upper = (one_bound(f"control_bounds[{i}]", v, dims, like) for i, v in enumerate(pair))
    for t, (lo, hi) in enumerate(zip(lower, upper, strict=True)):
        if bool((lo > hi).any()):
            j = int((lo > hi).nonzero()[0, -1])
            raise ValueError(
                f"control_bounds: lo > hi at stage {t}, component {j}: "
                f"{lo[0, j].item()} > {hi[0, j].item()}."
            )
    if uniform:
        return torch.stack(lower), torch.stack(upper)
    return lower, upper


def one_bound(name: str, value: Any, dims: tuple[int, ...], like: Tensor) -> list[Tensor]:
    T = len(dims)
    if isinstance(value, list | tuple) and len(value) == T and T > 1:
        stages = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in value]
        if len(set(dims)) == 1 and dims[0] == T and stages[0].ndim == 0:
            stages = [torch.stack(stages)] * T  # T == m: a plain list is one bound for all stages
    else:
        whole = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        stages = list(whole) if whole.ndim == 2 and whole.shape[0] == T else [whole] * T
    for t, (stage, m) in enumerate(zip(stages, dims, strict=True)):
        if tuple(stage.shape) != (m,):
            raise ValueError(
                f"{name} at stage {t} has shape {tuple(stage.shape)}, the control has ({m},). "
                f"Give ({m},), one row per stage (T, m), or a list over t."
            )
        if bool(torch.isnan(stage).any()):
            raise ValueError(f"{name} is nan at stage {t}; use -inf or inf where there is none.")
    return [stage[None] for stage in stages]


# -- user functions ----------------------------------------------------------------------------
def check_functions(problem: Problem) -> tuple[int, ...]:
    """Call every function on one sample, then batched; the state's size at each stage (T+1)."""
    x = problem.x0[0] if problem.x0.ndim == 2 else problem.x0
    p = {**problem.parameters, **{k: v[0] for k, v in problem.per_problem.items()}}
    sizes, seen = [x.shape[0]], set()
    for t in range(problem.horizon):
        u = x.new_zeros(problem.control_dims[t])
        stage = t if problem.stagewise else torch.tensor(t, device=x.device)
        after = attempt(f"dynamics at stage {t}", problem.f, x, u, stage, p)
        check_vector(f"dynamics at stage {t}", after, x, None if problem.stagewise else sizes[0])
        check_scalar(f"cost.stage at stage {t}", attempt_cost(problem, x, u, stage, t, p), x)
        form = (x.shape[0], u.shape[0], after.shape[0])
        if form not in seen:
            seen.add(form)
            check_graph("dynamics", lambda x, u, t=stage: problem.f(x, u, t, p), x, u)
            check_graph("cost.stage", lambda x, u, t=stage: problem.l(x, u, t, p), x, u)
            check_batched(problem, x, u, stage, p)
        x = after.detach()
        sizes.append(x.shape[0])
        if not problem.stagewise:  # stages are alike: the rest of the horizon has the same sizes
            sizes += [x.shape[0]] * (problem.horizon - 1)
            break
    end = attempt("cost.terminal", problem.phi, x, p)
    check_scalar("cost.terminal", end, x)
    check_graph("cost.terminal", lambda x: problem.phi(x, p), x)
    return tuple(sizes)


def attempt_cost(problem: Problem, x: Tensor, u: Tensor, stage: Any, t: int, p: Any) -> Any:
    return attempt(f"cost.stage at stage {t}", problem.l, x, u, stage, p)


def attempt(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function; a failure becomes an error that says what was passed and why."""
    try:
        with torch.no_grad():
            return function(*args)
    except Exception as error:  # anything a user's function may raise; it stays the cause
        shapes = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args[:-1]]
        raise ValueError(
            f"{what} failed on one sample with arguments of shape {shapes}: "
            f"{type(error).__name__}: {error}. {hint(error)}"
        ) from error


def hint(error: Exception) -> str:
    text = str(error)
    if isinstance(error, KeyError) or "control flow" in text or ".item()" in text:
        return (
            "t is an integer tensor and all stages run in one batched call: index a tensor with it "
            "(reference[t]), choose by torch.where, or pass stagewise=True to get t as an int. A "
            "branch on a state has to become torch.where."
        )
    if "randomness" in text:
        return "Dynamics must be deterministic: call model.eval() or remove the random part."
    if "numpy" in text or "as_subclass" in text:
        return "Only torch operations can be differentiated and batched: replace the numpy ones."
    return "Functions see ONE sample: x (n,), u (m,), without a batch axis."


def check_vector(what: str, value: Any, x: Tensor, size: int | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must return a tensor, got {type(value).__name__}: torch.stack it.")
    if value.ndim != 1 or value.shape[0] == 0 or (size is not None and value.shape[0] != size):
        needs = f"({size},), the size of x0" if size is not None else "(n',) with n' >= 1"
        raise ValueError(
            f"{what} returned shape {tuple(value.shape)}, needs {needs}."
            + ("" if size is None else " Sizes may change with t only with stagewise=True.")
        )
    check_dtype(what, value, x)


def check_scalar(what: str, value: Any, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{what} must return a 0-dim tensor, got {type(value).__name__}; for no cost return "
            "x.new_zeros(())."
        )
    if value.ndim != 0:
        raise ValueError(
            f"{what} must return a scalar, a 0-dim tensor, got shape {tuple(value.shape)}: "
            "sum it, or index it."
        )
    check_dtype(what, value, x)


def check_dtype(what: str, value: Tensor, x: Tensor) -> None:
    if value.dtype != x.dtype or value.device != x.device:
        raise TypeError(
            f"{what} returned {value.dtype} on {value.device}, x0 is {x.dtype} on {x.device}: make "
            "the tensors it uses agree with x0, or pass them as parameters."
        )


def check_graph(what: str, function: Callable[..., Tensor], *args: Tensor) -> None:
    """Refuse a function that changes with an argument of which autograd sees nothing."""
    if not any(torch.isfinite(a).all() for a in args):
        return
    names = ("x", "u")
    with torch.enable_grad():
        inputs = [a.detach().clone().requires_grad_() for a in args]
        value = function(*inputs)
        if value.requires_grad:
            gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        else:
            gradients = (None,) * len(inputs)
    with torch.no_grad():
        before = function(*args)
        for i, gradient in enumerate(gradients):
            if gradient is not None or args[i].numel() == 0:
                continue
            moved = [a + 1e-3 * (1 + a.abs()) if i == j else a for j, a in enumerate(args)]
            if not torch.equal(function(*moved), before):
                raise ValueError(
                    f"{what} changes with {names[i]}, but autograd does not see it: remove "
                    ".detach(), .data, .item(), float(...), torch.tensor(...) and numpy from it."
                )


def check_batched(problem: Problem, x: Tensor, u: Tensor, t: Any, p: Mapping[str, Tensor]) -> None:
    """Call dynamics and stage cost under vmap, over t as well where t is a tensor."""
    xs, us = x.expand(2, -1), u.expand(2, -1)
    ts = t if problem.stagewise else torch.tensor([0, problem.horizon - 1], device=x.device)
    dims = (0, 0, None if problem.stagewise else 0, None)
    for what, function in (("dynamics", problem.f), ("cost.stage", problem.l)):
        attempt(
            f"{what}, batched over stages and problems,",
            vmap(function, in_dims=dims),
            xs,
            us,
            ts,
            p,
        )
