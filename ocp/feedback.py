"""A trajectory and its feedback used again: from another state, some stages later."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocp import layout
from ocp.engines import Engine, Policy
from ocp.engines.riccati import matvec
from ocp.problem import Problem, Stages
from ocp.solution import Solution
from ocp.stages import each, finite, where


class Plan(NamedTuple):
    """Controls ``u[t] + K[t] (x - x[t])``; K None stands for no feedback."""

    xs: Stages  # (B, n), T + 1 of them
    us: Stages  # (B, m), T of them
    K: Stages | None  # (B, m, n)


def plan_of(problem: Problem, solution: Solution) -> Plan:
    """The trajectory and the policy of an earlier solution of a problem with the same sizes.

    Raises:
        ValueError: the sizes differ.
    """
    S, policy = problem.samples, solution.policy
    widths = [S * n for n in problem.state_dims]
    xs = layout.stages_in(problem, "states of the solution", policy.states, widths)
    us = layout.stages_in(
        problem, "controls of the solution", policy.controls, problem.control_dims
    )
    sizes = [m * n for m, n in zip(problem.control_dims, widths[:-1], strict=True)]
    flat = (
        policy.K.flatten(-2) if isinstance(policy.K, Tensor) else [K.flatten(-2) for K in policy.K]
    )
    gains = layout.stages_in(problem, "gains of the solution", flat, sizes)
    if isinstance(gains, Tensor):
        return Plan(xs, us, gains.unflatten(-1, (problem.control_dims[0], widths[0])))
    shapes = zip(gains, problem.control_dims, widths[:-1], strict=True)
    return Plan(xs, us, [K.unflatten(-1, (m, n)) for K, m, n in shapes])


def shifted(plan: Plan, stages: int) -> Plan:
    """Without its first stages; the last control is held, without feedback, at the end."""
    if stages == 0:
        return plan
    T = len(plan.us)
    later = [min(t + stages, T) for t in range(T + 1)]
    held = [min(t, T - 1) for t in later[:T]]

    def pick(parts: Stages, index: list[int]) -> Stages:
        return parts[index] if isinstance(parts, Tensor) else [parts[t] for t in index]

    K = plan.K
    if K is not None:
        K = pick(K, held)
        zeros = [torch.zeros_like(K[t]) for t in range(max(T - stages, 0), T)]
        kept = [K[t] for t in range(T - len(zeros))]
        K = torch.stack(kept + zeros) if isinstance(K, Tensor) else kept + zeros
    return Plan(pick(plan.xs, later), pick(plan.us, held), K)


def follow(engine: Engine, plan: Plan) -> Stages:
    """Controls that the plan gives from the x0 of the engine's problem: (B, m) per stage.

    Where its feedback does not lead to finite states, the controls of the plan alone.
    """
    if plan.K is None:
        return plan.us
    x0 = engine.problem.x0.reshape(engine.problem.batch, -1)
    first = plan.us[0] + matvec(plan.K[0], x0 - plan.xs[0])
    about = plan._replace(xs=with_first(plan.xs, x0), us=with_first(plan.us, first))
    none = Policy(each(torch.zeros_like, plan.us), plan.K)
    trials = engine.follow(about.xs, about.us, None, none, x0.new_ones(1))
    xs, us = (each(lambda s: s[..., 0, :, :], v) for v in (trials.xs, trials.us))
    return where(finite(xs), us, plan.us)


def with_first(stages: Stages, first: Tensor) -> Stages:
    if isinstance(stages, Tensor):
        return torch.cat((first[None], stages[1:]))
    return [first, *stages[1:]]
