"""Some problems of a batch: to keep the best of several starts, and to drop what is finished."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp import engines
from ocp.problem import Problem
from ocp.solvers.loop import Solver, State


def take(state: State, index: Tensor, problem: Problem, solver: Solver) -> State:
    """Problems ``index`` of a state, as a state of ``problem``, which has just those."""

    def rows(value: Any) -> Any:
        if isinstance(value, list):  # stages
            return [v[index] for v in value]
        if not isinstance(value, Tensor):
            return value
        return value[index] if value.ndim == 1 else value[:, index]

    fields = {k: rows(v) for k, v in state._asdict().items() if k not in ("engine", "rows")}
    history = tuple({k: v[:, index] for k, v in block.items()} for block in state.rows)
    return State(engine=engines.make(problem, solver.engine), rows=history, **fields)


def put(whole: State, part: State, index: Tensor) -> State:
    """``whole`` with the problems ``index`` replaced by those of ``part``, its history extended.

    In rows that only ``part`` has, the other problems stand still: their last row, not running.
    """

    def merge(old: Any, new: Any) -> Any:
        if old is None and isinstance(new, Tensor):  # kept only since the batch shrank
            old = new.new_zeros(new.shape[0], whole.cost.shape[0], *new.shape[2:])
        if isinstance(old, list) and isinstance(new, list):  # stages, (B, .) each
            return [o.index_copy(0, index, n) for o, n in zip(old, new, strict=True)]
        if not isinstance(new, Tensor) or not isinstance(old, Tensor):
            return old
        result = old.clone()
        if old.ndim == 1:
            result[index] = new
        else:
            result[:, index] = new
        return result

    fields = {k: merge(v, getattr(part, k)) for k, v in whole._asdict().items() if k != "rows"}
    if whole.gaps is not None and part.gaps is None:  # closed everywhere in the part
        zeros = [torch.zeros_like(g[index]) for g in whole.gaps]
        same = isinstance(whole.gaps, Tensor)
        fields["gaps"] = merge(whole.gaps, torch.stack(zeros) if same else zeros)
    rows = list(whole.rows)
    for new in part.rows[len(rows) :]:
        steps = new["running"].shape[0]
        rows.append({k: merge(v, new[k]) for k, v in still(whole, rows, steps).items()})
    return State(**{**fields, "engine": whole.engine, "rows": tuple(rows)})


def still(state: State, rows: list[dict[str, Tensor]], steps: int) -> dict[str, Tensor]:
    """Rows in which nothing moves."""
    zero = torch.zeros_like(state.cost)
    last = {k: v[-1] for k, v in rows[-1].items()}
    fixed = {"expected": zero, "decrease": zero, "step_size": zero, "running": zero > 0}
    row = {**last, "cost": state.cost, "gap": state.gap, "damping": state.damping, **fixed}
    return {k: v.expand(steps, -1) for k, v in row.items()}


def subproblem(problem: Problem, index: Tensor) -> Problem:
    """The problems ``index`` of a batch."""
    goal = problem.goal
    return problem.replace(
        x0=problem.x0[index],
        per_problem={k: v[index] for k, v in problem.per_problem.items()},
        goal=goal if goal is None or goal.ndim == 1 else goal[index],
    )
