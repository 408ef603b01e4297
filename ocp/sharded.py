"""A batch of problems spread over the processes of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ocp import layout
from ocp.problem import Problem, Stages
from ocp.processes import group_of
from ocp.solution import Policy, Solution, Value
from ocp.solve import solve
from ocp.solvers.loop import Solver
from ocp.solvers.subset import subproblem
from ocp.starts import SPENT, Guess, warm

Rows = slice
"""Of the batch that a process solves, one after another."""

PER_PROBLEM = (
    "states",
    "controls",
    "costates",
    "cost",
    "status",
    "message",
    "residual",
    "hamiltonian_residual",
    "gap",
    "iterations",
    "rollouts",
    "sweeps",
)
OF_POLICY = ("states", "controls", "k", "K")


def solve_sharded(
    problem: Problem,
    method: str | Solver = "ddp",
    controls: Any = None,
    states: Any = None,
    *,
    group: Any = "default",
    starts: Any = None,
    progress: bool | None = None,
    **options: Any,
) -> Solution:
    """`solve` with each process solving its share of the batch; all get the whole solution.

    Every process of the group calls it with the same arguments, those of the whole batch. The
    shares are equal to one problem; a process beyond the batch only receives.

    Args:
        problem: a batch, x0 (B, n).
        method, controls, states, starts, options: as for `solve`. A start that is a function is
            called with the share, a solution or a guess is divided.
        group: of torch.distributed, or "default".
        progress: as for `solve`, in the first process.

    Returns:
        The solution of `solve`. In its history, problems whose process stopped earlier stand
        still; ``seconds`` are those of the process that made the most steps.

    Raises:
        ValueError, TypeError: as `solve` does, or the problem is no batch, or there is no group.
    """
    group = group_of("group", group)
    if not problem.batched:
        raise ValueError(
            f"problem is no batch, x0 has shape {tuple(problem.x0.shape)}"
            f"{' and controls are shared' if problem.shared_controls else ''}: ocp.solve."
        )
    rank, size, B = dist.get_rank(group), dist.get_world_size(group), problem.batch
    rows = slice(rank * B // size, (rank + 1) * B // size)
    mine = None
    if rows.start < rows.stop:
        controls = None if controls is None else divided(problem, controls, rows)
        states = None if states is None else divided(problem, states, rows, states=True)
        mine = solve(
            subproblem(problem, torch.arange(B, device=problem.x0.device)[rows]),
            method,
            controls,
            states,
            starts=share(problem, starts, rows),
            progress=progress if rank == 0 else False,
            **options,
        )
        mine = mapped(Tensor.cpu, mine)
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, mine, group=group)
    whole = joined([part for part in parts if part is not None])
    seconds = whole.history["seconds"]  # on the CPU, as `solve` has them
    whole = mapped(lambda v: v.to(problem.x0.device), whole)
    return replace(whole, history={**whole.history, "seconds": seconds})


# -- dividing what is given ------------------------------------------------------------------------
def divided(problem: Problem, value: Any, rows: Rows, states: bool = False) -> Any:
    """Rows of controls or states, in the layout of the user."""
    stages: Stages = (layout.states_in if states else layout.controls_in)(problem, value)
    if isinstance(stages, Tensor):
        return layout.stages_out(problem, stages[:, rows])
    return layout.stages_out(problem, [s[rows] for s in stages])


def share(problem: Problem, starts: Any, rows: Rows) -> Any:
    """What a start for the batch is for some of its rows."""
    if isinstance(starts, Guess):
        spent = {k: v[rows] for k, v in starts._asdict().items() if k in SPENT and has_rows(v)}
        if starts.controls is not None:
            spent["controls"] = divided(problem, starts.controls, rows)
        if starts.states is not None:
            spent["states"] = divided(problem, starts.states, rows, states=True)
        return starts._replace(**spent)
    if isinstance(starts, Solution):
        p = starts.policy
        own = {
            k: mapped(lambda v: v[rows], getattr(p, k)) for k in ("states", "controls", "k", "K")
        }
        return replace(starts, policy=replace(p, **own))
    if isinstance(starts, warm):
        return replace(starts, solution=share(problem, starts.solution, rows))
    if isinstance(starts, list | tuple):
        return [share(problem, start, rows) for start in starts]
    return starts


def has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


# -- joining what comes back -----------------------------------------------------------------------
def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value of nested records, lists and dicts, with its tensors changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [mapped(function, v) for v in value]
    if isinstance(value, dict):
        return {k: mapped(function, v) for k, v in value.items()}
    if isinstance(value, Solution | Policy | Value):
        return replace(value, **{k: mapped(function, v) for k, v in vars(value).items()})
    return value


def joined(parts: Sequence[Solution]) -> Solution:
    """Solutions of consecutive rows of a batch as one."""

    def beside(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(list(values))
        if isinstance(first, list) and first and isinstance(first[0], Tensor):
            return [torch.cat(stage) for stage in zip(*values, strict=True)]
        return None if first is None else [v for value in values for v in value]

    def fields(records: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: beside([getattr(r, name) for r in records]) for name in names}

    policies, values = [p.policy for p in parts], [p.value for p in parts]
    engines = dict.fromkeys(p.engine for p in parts)
    return replace(
        parts[0],
        **fields(parts, PER_PROBLEM),
        policy=replace(policies[0], **fields(policies, OF_POLICY)),
        value=Value(**fields(values, ("vx", "vxx"))),
        history=histories(parts),
        seconds=max(p.seconds for p in parts),
        engine=", ".join(engines),
        extra={name: beside([p.extra[name] for p in parts]) for name in parts[0].extra},
    )


def histories(parts: Sequence[Solution]) -> dict[str, Tensor]:
    """Rows (iterations, B) of the longest history; those of shorter ones stand still after it."""
    longest = max(parts, key=lambda p: len(p.history["seconds"]))
    length = len(longest.history["seconds"])
    lasting = [lengthened(p, length) for p in parts]
    names = [name for name in longest.history if name != "seconds"]
    rows = {name: torch.cat([h[name] for h in lasting if name in h], dim=1) for name in names}
    return {**rows, "seconds": longest.history["seconds"]}


def lengthened(part: Solution, length: int) -> dict[str, Tensor]:
    """A history with rows added in which nothing moves."""
    zero = torch.zeros_like(part.cost)
    still = {"cost": part.cost, "gap": part.gap, "residual": part.residual}
    still |= dict.fromkeys(("expected", "decrease", "step_size"), zero)
    still["running"] = zero > 0
    rows = {}
    for name, value in part.history.items():
        if name == "seconds":
            continue
        last = still.get(name, value[-1] if len(value) else zero)
        rows[name] = torch.cat((value, last.expand(length - len(value), -1).to(value.dtype)))
    return rows
