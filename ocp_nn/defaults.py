"""What `DDPOptimizer` does where it is told neither a learning rate nor a damping.

Layers, data and losses come in all scales. Where nothing is given, the metric's own numbers below
are a beginning, and three things keep the step in bounds whatever the scale is:

- the *limit*: P of a stage is shortened so that the norm of its kernel is at most `LIMITS`;
- a step that raises the loss of its own batch is shortened, see `BatchDDP.rise`;
- a terminal damping, where the loss can lose its curvature (the cross-entropies).
"""

from __future__ import annotations

from typing import NamedTuple


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
