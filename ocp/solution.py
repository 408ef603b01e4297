"""What a solve returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor


class Status(IntEnum):
    """Why a problem stopped. Only CONVERGED claims a minimum."""

    RUNNING = -1
    CONVERGED = 0  # residual, expected decrease and gaps within tolerance
    MAX_ITERATIONS = 1
    STALLED = 2  # no step accepted at the largest damping
    PRECISION = 3  # the expected decrease is below the rounding of J, the residual is not
    SADDLE = 4  # stationary, but Q_uu is indefinite: no minimum
    NON_FINITE = 5  # nan or inf in the roll-out or a derivative
    UNBOUNDED = 6  # the cost falls without end
    INTERRUPTED = 7  # Ctrl-C, or a callback's wish
    TIME_LIMIT = 8


@dataclass(frozen=True)
class Policy:
    """Feedback ``u = u[t] + K[t] (x - x[t])`` about a trajectory, within the bounds.

    states (T+1, n), controls (T, m), k (T, m), K (T, m, n), with a leading B in a batch and lists
    over t where sizes change. k is what one more sweep would add: near 0 at an optimum. Where
    controls are shared, the state is that of all samples, end to end.
    """

    states: Any
    controls: Any
    k: Any
    K: Any
    lower: Any = None
    upper: Any = None

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """Control for the state x (n,) at stage t; (B, n) in a batch."""
        if not 0 <= t < stages_of(self.K, 2):
            raise IndexError(f"policy: stage {t} is not in 0..{stages_of(self.K, 2) - 1}.")
        dx = x - at(self.states, t, 1)
        u = at(self.controls, t, 1) + (at(self.K, t, 2) @ dx[..., None])[..., 0]
        if self.lower is not None and self.upper is not None:
            u = torch.minimum(torch.maximum(u, self.lower[t]), self.upper[t])
        return u


def at(value: Any, t: int, trailing: int) -> Tensor:
    """Stage t of a list, or of a tensor with ``trailing`` axes behind the time axis."""
    return value[t] if isinstance(value, list) else value.select(-1 - trailing, t)


def stages_of(value: Any, trailing: int) -> int:
    return len(value) if isinstance(value, list) else value.shape[-1 - trailing]


@dataclass(frozen=True)
class Value:
    """Quadratic model of the cost-to-go at each stage: vx (T+1, n), vxx (T+1, n, n)."""

    vx: Any
    vxx: Any


@dataclass(frozen=True, eq=False)
class Solution:
    """A trajectory, how good it is, and why the solver stopped.

    Shapes for x0 (n,); with x0 (B, n) everything has a leading B. Lists over t where sizes change.

    Attributes:
        states (T+1, n), controls (T, m), costates (T+1, n): p[t] = H_x, the exact costates.
        cost: J of these states and controls.
        policy, value: of one undamped sweep at this trajectory, second order where definite.
        status: `Status` per problem. message: the same in words, with stage and quantity.
        residual: largest projected |Q_u| of that sweep.
        hamiltonian_residual: largest projected |H_u| along the costates, the exact gradient of J;
            on strongly unstable systems rounding limits it.
        gap: largest |x[t+1] - f(x[t], u[t])|.
        iterations, rollouts, sweeps: per problem; a roll-out for each step size that a sequential
            line search would have tried, a sweep for each backward pass.
        history: (iterations, ...) tensors by name: cost, expected, decrease, step_size, damping,
            residual, gap, second_order, running; and seconds.
    """

    states: Any
    controls: Any
    costates: Any
    cost: Tensor
    policy: Policy
    value: Value
    status: Any
    message: Any
    residual: Tensor
    hamiltonian_residual: Tensor
    gap: Tensor
    iterations: Tensor
    rollouts: Tensor
    sweeps: Tensor
    history: Mapping[str, Tensor]
    seconds: float
    method: str
    engine: str
    problem_name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def made_when_read(
        cls, makers: Mapping[str, Callable[[Any], Any]], source: Any, **known: Any
    ) -> Solution:
        """With fields ``makers[name](source)``, each made when it is first read, and known ones.

        To make all of them takes as long as several iterations of a small problem.
        """
        made = object.__new__(cls)
        made.__dict__.update(known, _makers=makers, _source=source)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            make = self.__dict__.get("_makers", {}).get(name)
            if make is None:
                raise AttributeError(f"a {type(self).__name__} has no {name!r}")
            return self.__dict__.setdefault(name, make(self.__dict__["_source"]))

    def __getstate__(self) -> dict[str, Any]:
        return values(self)

    @property
    def converged(self) -> Tensor:
        """Whether the status is CONVERGED: bool, () or (B,)."""
        return self.status_codes == Status.CONVERGED

    @property
    def status_codes(self) -> Tensor:
        """The statuses as integers: () or (B,)."""
        return torch.as_tensor(self.status, device=self.cost.device)

    def __str__(self) -> str:
        from ocp.report import table

        return table(self)

    def __repr__(self) -> str:
        return f"Solution({self.method}, cost={self.cost}, status={self.status})"

    # -- files ---------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write everything to one ``.npz`` file; the suffix is added where it is missing."""
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        for name, value in flatten(self).items():
            if isinstance(value, Tensor):
                arrays[name] = value.detach().cpu().numpy()
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                meta[f"list:{name}"] = len(value)
                arrays |= {f"{name}/{t}": v.detach().cpu().numpy() for t, v in enumerate(value)}
            else:
                meta[name] = value
        np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
        return path

    @staticmethod
    def load(path: str | Path) -> Solution:
        """Read what `save` wrote, onto the CPU."""
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            flat: dict[str, Any] = {
                k: torch.from_numpy(data[k].copy()) for k in data.files if k != "meta"
            }
        for key, count in [(k, v) for k, v in meta.items() if k.startswith("list:")]:
            name = key.removeprefix("list:")
            flat[name] = [flat.pop(f"{name}/{t}") for t in range(count)]
        flat |= {k: v for k, v in meta.items() if not k.startswith("list:")}
        nested: dict[str, dict[str, Any]] = {"policy": {}, "value": {}, "history": {}, "extra": {}}
        for key in [k for k in flat if "." in k]:
            group, name = key.split(".", 1)
            nested[group][name] = flat.pop(key)
        status = flat.pop("status")
        flat["status"] = [Status(s) for s in status] if isinstance(status, list) else Status(status)
        return Solution(
            **flat,
            policy=Policy(**nested["policy"]),
            value=Value(**nested["value"]),
            history=nested["history"],
            extra=nested["extra"],
        )


def values(solution: Solution) -> dict[str, Any]:
    """All fields by name."""
    return {f.name: getattr(solution, f.name) for f in fields(solution)}


def flatten(solution: Solution) -> dict[str, Any]:
    """Fields by name, those of nested records as ``group.name``."""
    flat: dict[str, Any] = {}
    for name, value in values(solution).items():
        if isinstance(value, Policy | Value):
            flat |= {f"{name}.{k}": v for k, v in vars(value).items()}
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{k}": v for k, v in value.items()}
        elif name == "status":
            flat[name] = [int(s) for s in value] if isinstance(value, list) else int(value)
        else:
            flat[name] = value
    return flat
