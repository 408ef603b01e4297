"""The problem type: what is minimised, over what, from where.

minimise  phi(x[T]) + sum_t l_t(x[t], u[t])   subject to  x[t+1] = f_t(x[t], u[t]),  x[0] = x0
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

Stages = Tensor | list[Tensor]
"""Something per stage: one tensor with a leading time axis, or a list over t where sizes change."""

ArrayLike = Tensor | Sequence[Any] | float | int


class Dynamics(Protocol):
    """``x[t+1] = f(x[t], u[t], t)`` for one sample; batching is the package's business.

    x (n,), u (m,) -> (n',). ``t`` is a 0-dim integer tensor, or an int when the problem is
    ``stagewise``. A fourth argument, if there is one, receives the dict of parameters.
    """

    def __call__(self, x: Tensor, u: Tensor, t: Any, /) -> Tensor: ...


class Cost(Protocol):
    """``J = sum_t stage(x[t], u[t], t) + terminal(x[T])`` for one sample; the end has no control.

    Both return a 0-dim tensor. One argument more, if there is one, receives the parameters.
    """

    def stage(self, x: Tensor, u: Tensor, t: Any, /) -> Tensor: ...
    def terminal(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Problem:
    """A discrete-time optimal control problem, or a batch of them.

    Args:
        dynamics: ``f(x, u, t)`` on one sample, see `Dynamics`.
        cost: object with ``stage(x, u, t)`` and ``terminal(x)`` on one sample, see `Cost`.
        x0: initial state (n,), or (B, n) for B problems solved together.
        horizon: number T >= 1 of stages.
        control_dim: size m of the control; one per stage is allowed when ``stagewise``.
        parameters: tensors that every function receives as the dict in its last argument.
        per_problem: tensors with a leading B; each problem (or sample) receives its slice.
        control_bounds: ``(lo, hi)``, each (m,) or (T, m), or a list over t; infinite is allowed.
        goal: optional state (n,) or (B, n) that starts and plots may use; the cost is yours alone.
        shared_controls: one control sequence for all B rows of x0; J is the mean of their costs.
        stagewise: functions get t as int, may branch on it, and sizes may change with t.
        name: for tables and plots.

    Raises:
        ValueError, TypeError: naming the argument, what it got and what it needs.
    """

    dynamics: Callable[..., Tensor]  # a `Dynamics`, with or without the parameters
    cost: Any  # a `Cost`, likewise
    x0: Tensor
    horizon: int
    control_dim: int | Sequence[int]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    per_problem: Mapping[str, Any] = field(default_factory=dict)
    control_bounds: tuple[Any, Any] | None = None
    goal: Tensor | None = None
    shared_controls: bool = False
    stagewise: bool = False
    name: str = ""
    # What follows is derived.
    state_dims: tuple[int, ...] = field(init=False, repr=False)  # of one sample, T+1
    control_dims: tuple[int, ...] = field(init=False, repr=False)  # T
    lower: Stages | None = field(init=False, repr=False)  # (T, 1, m), or a list of (1, m)
    upper: Stages | None = field(init=False, repr=False)
    wants: tuple[bool, bool, bool] = field(init=False, repr=False)  # who takes the parameters

    def __post_init__(self) -> None:
        from ocp.validation import normalise

        for name, value in normalise(self).items():
            object.__setattr__(self, name, value)

    # -- sizes ---------------------------------------------------------------------------------
    @property
    def batched(self) -> bool:
        """Whether results carry a batch axis: x0 is (B, n) and the controls are not shared."""
        return self.x0.ndim == 2 and not self.shared_controls

    @property
    def batch(self) -> int:
        """Number of problems solved: B, or 1 when x0 is (n,) or the controls are shared."""
        return self.x0.shape[0] if self.batched else 1

    @property
    def samples(self) -> int:
        """Rows of x0 behind one control sequence: B when the controls are shared, else 1."""
        return self.x0.shape[0] if self.shared_controls else 1

    @cached_property
    def uniform(self) -> bool:
        """Whether all stages share their sizes, so that trajectories are single tensors."""
        return len(set(self.state_dims)) == 1 and len(set(self.control_dims)) == 1

    # -- user functions with one signature -----------------------------------------------------
    def f(self, x: Tensor, u: Tensor, t: Any, p: Mapping[str, Tensor]) -> Tensor:
        return self.dynamics(x, u, t, p) if self.wants[0] else self.dynamics(x, u, t)

    def l(self, x: Tensor, u: Tensor, t: Any, p: Mapping[str, Tensor]) -> Tensor:
        stage = self.cost.stage
        return stage(x, u, t, p) if self.wants[1] else stage(x, u, t)

    def phi(self, x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        terminal = self.cost.terminal
        return terminal(x, p) if self.wants[2] else terminal(x)

    def compile_report(self) -> str:
        """What ``engine="auto"`` runs for this problem and why: program, or reason for eager."""
        from ocp.engines.native.compiled import report

        return report(self)

    # -- variants ------------------------------------------------------------------------------
    def replace(self, **changes: Any) -> Problem:
        """The same problem with some arguments changed, checked again.

        Other data of the same form (x0, parameters, per_problem, goal) cost microseconds: the
        functions are not tried again.
        """
        from ocp.validation import renewed

        values = renewed(self, changes)
        return dataclasses.replace(self, **changes) if values is None else altered(self, values)

    def refill(self, x0: Tensor, per_problem: Mapping[str, Tensor]) -> Problem:
        """The same problem on other data: only these are looked at, so it costs microseconds.

        Args:
            x0: of the same columns, dtype and device; with shared controls of any number of rows.
            per_problem: all of it, tensors that fit the rows of x0.

        Raises:
            ValueError: x0 has another form, or keys are missing or unknown.
        """
        old = self.x0
        same = x0.dtype == old.dtype and x0.device == old.device and x0.shape[1:] == old.shape[1:]
        if not same or x0.ndim != old.ndim or not (self.shared_controls or len(x0) == len(old)):
            raise ValueError(
                f"refill needs an x0 like the one there is, {tuple(old.shape)} {old.dtype} on "
                f"{old.device}; got {tuple(x0.shape)} {x0.dtype} on {x0.device}."
            )
        if per_problem.keys() != self.per_problem.keys():
            raise ValueError(
                f"refill needs all of per_problem, {sorted(self.per_problem)}; got "
                f"{sorted(per_problem)}."
            )
        return altered(self, {"x0": x0, "per_problem": dict(per_problem)})

    def repeat(self, times: int) -> Problem:
        """``times`` copies in one batch, copy by copy: problem b of copy k is row k * B + b.

        Raises:
            ValueError: if the controls are shared (the batch axis is taken by the samples).
        """
        if self.shared_controls:
            raise ValueError("repeat: a problem with shared_controls has no batch axis to repeat.")

        def tile(v: Tensor) -> Tensor:
            return v.repeat(times, *[1] * (v.ndim - 1))

        x0 = self.x0 if self.batched else self.x0[None]
        goal = self.goal if self.goal is None or self.goal.ndim == 1 else tile(self.goal)
        per_problem = {k: tile(v) for k, v in self.per_problem.items()}
        return self.replace(x0=tile(x0), goal=goal, per_problem=per_problem)


def altered(problem: Problem, values: Mapping[str, Any]) -> Problem:
    """A copy with other fields, which are known to fit: nothing is checked."""
    copied = copy.copy(problem)
    for name, value in values.items():
        object.__setattr__(copied, name, value)
    return copied


def takes_parameters(function: Callable[..., Any], usual: tuple[str, ...]) -> bool:
    """Whether ``function`` wants the dict of parameters after its ``usual`` arguments.

    Arguments with a default do not count: ``lambda x, u, t, gain=2.0: ...`` keeps its gain.

    Raises:
        TypeError: if it can be called neither with the usual arguments nor with one more.
    """
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        arguments = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some built-ins do not tell: then the usual arguments
        return False
    positional = [a for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)]
    required = sum(a.default is a.empty for a in positional)
    open_ended = any(a.kind is a.VAR_POSITIONAL for a in arguments)
    count = len(usual)
    if required > count + 1 or (len(positional) < count and not open_ended):
        name, usually = getattr(function, "__name__", type(function).__name__), ", ".join(usual)
        raise TypeError(
            f"{name} takes {required} arguments; it is called as {name}({usually}) or "
            f"{name}({usually}, p), p being the dict of parameters and per_problem data."
        )
    return required == count + 1 or (required <= count and open_ended)
