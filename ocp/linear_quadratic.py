"""Linear-quadratic problems from their matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.problem import Problem
from ocp.validation import integer, numbers

TRAILING = {"A": 2, "B": 2, "Q": 2, "R": 2, "c": 1, "N": 2, "q": 1, "r": 1}  # axes of one stage


def linear_quadratic(
    A: Any,
    B: Any,
    Q: Any,
    R: Any,
    x0: Any,
    *,
    c: Any = None,
    N: Any = None,
    q: Any = None,
    r: Any = None,
    Q_final: Any = None,
    q_final: Any = None,
    horizon: int | None = None,
    control_bounds: tuple[Any, Any] | None = None,
    name: str = "linear-quadratic",
) -> Problem:
    """The problem ``x[t+1] = A x + B u + c`` with the cost

    ``1/2 x' Q x + u' N x + 1/2 u' R u + q' x + r' u`` a stage, and
    ``1/2 x' Q_final x + q_final' x`` at the end.

    One sweep solves it exactly: ``ocp.solve(problem, "lqr")``. Of Q and R only the symmetric part
    counts.

    Args:
        A (n', n), B (n', m), Q (n, n), R (m, m), c (n',), N (m, n), q (n,), r (m,): constant; or
            with a leading axis of T, one for each stage; or a list over t, in which sizes may
            change. Those left out are zero.
        x0: initial state (n,), or (B, n) for a batch.
        Q_final (n, n), q_final (n,): of the last state; zero if None.
        horizon: number T of stages, needed where everything is constant.
        control_bounds: as in `Problem`.

    The matrices become `Problem.parameters` under the names above: data, to be changed by
    ``problem.replace(parameters={...})``. Where sizes change, stage t has "A0", "A1", ...; what is
    left out has no entry.

    Raises:
        ValueError, TypeError: a size that does not fit, or a horizon that is missing or
            contradicts the lists; with the name of the matrix.
    """
    x0 = numbers("x0", x0, torch.float64)
    given = {"A": A, "B": B, "Q": Q, "R": R, "c": c, "N": N, "q": q, "r": r}
    for key in "ABQR":
        if given[key] is None:
            raise ValueError(f"{key} is None; only c, N, q, r, Q_final, q_final may be left out.")
    data = {k: by_stage(k, v, x0) for k, v in given.items() if v is not None}
    T = common_horizon(data, horizon)
    final = {
        key: matrix(key, v, axes, x0)
        for key, v, axes in (("Q_final", Q_final, 2), ("q_final", q_final, 1))
        if v is not None
    }
    stages = [at_stage(data, t) for t in range(T)]
    check_sizes(stages, final, x0.shape[-1])
    controls = [stage["B"].shape[1] for stage in stages]
    resized = (
        any(isinstance(v, list) for v in data.values()) or stages[0]["A"].shape[0] != x0.shape[-1]
    )
    model = LinearQuadratic(
        frozenset(data), frozenset(k for k, v in data.items() if varies(k, v)), resized
    )
    flat = {f"{k}{t}": v for t, stage in enumerate(stages) for k, v in stage.items()}
    return Problem(
        model.dynamics,
        model,
        x0,
        T,
        controls if resized else controls[0],
        parameters={**(flat if resized else data), **final},
        control_bounds=control_bounds,
        stagewise=resized,
        name=name,
    )


@dataclass(frozen=True)
class LinearQuadratic:
    """Dynamics and cost over the matrices in the parameters.

    Args:
        given: names of the matrices there are, those of the end aside.
        varying: names of those with a leading axis over t.
        resized: sizes change with t, and stage t of A is called "A0", "A1", ...
    """

    given: frozenset[str]
    varying: frozenset[str]
    resized: bool

    def dynamics(self, x: Tensor, u: Tensor, t: Any, p: Mapping[str, Tensor]) -> Tensor:
        after = self.at("A", t, p) @ x + self.at("B", t, p) @ u
        return after + self.at("c", t, p) if "c" in self.given else after

    def stage(self, x: Tensor, u: Tensor, t: Any, p: Mapping[str, Tensor]) -> Tensor:
        cost = x @ (self.at("Q", t, p) @ x) / 2 + u @ (self.at("R", t, p) @ u) / 2
        if "N" in self.given:
            cost = cost + u @ (self.at("N", t, p) @ x)
        if "q" in self.given:
            cost = cost + self.at("q", t, p) @ x
        if "r" in self.given:
            cost = cost + self.at("r", t, p) @ u
        return cost

    def terminal(self, x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        cost = x @ (p["Q_final"] @ x) / 2 if "Q_final" in p else x.new_zeros(())
        return cost + p["q_final"] @ x if "q_final" in p else cost

    def at(self, name: str, t: Any, p: Mapping[str, Tensor]) -> Tensor:
        if self.resized:
            return p[f"{name}{t}"]
        return p[name][t] if name in self.varying else p[name]


def by_stage(name: str, value: Any, like: Tensor) -> Tensor | list[Tensor]:
    """A constant or (T, ...) tensor, or a list over t of tensors where sizes change."""
    if isinstance(value, Sequence) and any(isinstance(v, Tensor | np.ndarray) for v in value):
        parts = [
            matrix(f"{name} at stage {t}", v, TRAILING[name], like) for t, v in enumerate(value)
        ]
        return torch.stack(parts) if len({p.shape for p in parts}) == 1 else parts
    tensor = numbers(name, value, like.dtype)
    return matrix(name, tensor, TRAILING[name] + (tensor.ndim > TRAILING[name]), like)


def matrix(name: str, value: Any, axes: int, like: Tensor) -> Tensor:
    tensor = numbers(name, value, like.dtype).detach().to(like.device, like.dtype)
    if tensor.ndim != axes:
        kind = "matrix" if axes == 2 else "vector"
        raise ValueError(f"{name} must be a {kind}, got shape {tuple(tensor.shape)}.")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is not finite.")
    return tensor


def varies(name: str, value: Tensor | list[Tensor]) -> bool:
    return isinstance(value, list) or value.ndim > TRAILING[name]


def at_stage(given: Mapping[str, Tensor | list[Tensor]], t: int) -> dict[str, Tensor]:
    return {k: v if isinstance(v, Tensor) and not varies(k, v) else v[t] for k, v in given.items()}


def common_horizon(given: Mapping[str, Tensor | list[Tensor]], horizon: Any) -> int:
    lengths = {k: len(v) for k, v in given.items() if varies(k, v)}
    if horizon is not None:
        lengths["horizon"] = integer("horizon", horizon, 1)
    if not lengths:
        raise ValueError("all matrices are constant: give the number of stages, horizon=...")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"numbers of stages differ: {lengths}.")
    return next(iter(lengths.values()))


def check_sizes(
    stages: Sequence[Mapping[str, Tensor]], final: Mapping[str, Tensor], n: int
) -> None:
    """Every matrix against the state that arrives and the control, stage by stage."""
    for t, stage in enumerate(stages):
        after, m = stage["A"].shape[0], stage["B"].shape[1]
        needs = {
            "A": (after, n), "B": (after, m), "Q": (n, n), "R": (m, m),
            "c": (after,), "N": (m, n), "q": (n,), "r": (m,),
        }  # fmt: skip
        for key, value in stage.items():
            if tuple(value.shape) != needs[key]:
                raise ValueError(
                    f"{key} at stage {t} has shape {tuple(value.shape)}, needs {needs[key]}: the "
                    f"state has {n} entries there and {after} after it, the control {m}."
                )
        n = after
    for key, needed in (("Q_final", (n, n)), ("q_final", (n,))):
        if key in final and tuple(final[key].shape) != needed:
            raise ValueError(f"{key} has shape {tuple(final[key].shape)}, needs {needed}.")
