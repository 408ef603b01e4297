"""What `DDPOptimizer` does where it is told neither a learning rate nor a damping.

Layers, data and losses come in all scales. Where nothing is given, the metric's own numbers below
are a beginning, and three things keep the step in bounds whatever the scale is:

- the *limit*: P of a stage is shortened so that the norm of its kernel is at most `LIMITS`;
- a step that raises the loss of its own batch is shortened, see `BatchDDP.rise`;
- a terminal damping, where the loss can lose its curvature (the cross-entropies).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ocp_nn.arguments import check_number
from ocp_nn.batch_ddp import SOLVERS, BatchDDP
from ocp_nn.statistics import Settings


class Default(NamedTuple):
    """Of a metric."""

    lr: float
    damping: float
    rise: float = 0.0  # of the batch's loss by its own step


DEFAULTS = {
    "gauss_newton": Default(lr=1.0, damping=1.0),
    "sgd": Default(lr=1.0, damping=0.0),
    "rmsprop": Default(lr=0.01, damping=1e-3),
    # Its step follows the mean of many gradients, and may climb for a single batch.
    "adam": Default(lr=0.01, damping=1e-3, rise=1.0),
    "kfac": Default(lr=0.3, damping=0.1),
    "ekfac": Default(lr=0.3, damping=0.1),
}
LIMITS = {"proximal": 30.0, "paper": 0.5, "stagewise": 1.0, "gradient": 0.3}
"""Largest norm of a stage's kernel. The paper's form stays positive definite below 1; without
coupling the stages' steps add up."""
TERMINAL_DAMPING = 0.1


def chosen(
    lr: float | None,
    metric: Settings,
    form: str,
    feedback: bool | str,
    damping: float | str | None,
    terminal_damping: float | None,
    solver: str,
    line_search: bool,
    full_batch: bool,
    saturates: bool,
) -> tuple[float, BatchDDP]:
    """The learning rate to begin with, and the solver, of what `DDPOptimizer` is given.

    Args:
        saturates: whether the loss can lose its curvature.
        others: those of `DDPOptimizer`, None where it is told nothing.

    Raises:
        ValueError, TypeError: an argument, naming what it got and what it needs.
    """
    default, untold = DEFAULTS[metric.kind], lr is None
    automatic = untold and damping is None
    lr = default.lr if lr is None else lr
    check_number("lr", lr)
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
    if isinstance(damping, str) and damping != "adaptive":
        raise ValueError(f"damping must be a number or 'adaptive', got {damping!r}.")
    if automatic and form in LIMITS:
        metric = replace(metric, limit=LIMITS[form] / lr)
    adaptive = damping == "adaptive"
    if terminal_damping is None:
        terminal_damping = TERMINAL_DAMPING if automatic and saturates else 0.0
    check_number("terminal_damping", terminal_damping)
    return lr, BatchDDP(
        metric=metric,
        form=form,
        feedback=feedback,
        damping=float(default.damping if damping is None or isinstance(damping, str) else damping),
        adaptive=adaptive,
        terminal_damping=terminal_damping,
        linear_solver=solver,
        mini_batch=not (line_search or full_batch),
        rise=default.rise if automatic or (untold and adaptive) else None,
        trials=8 if line_search else 6 if untold else 1,
    )
