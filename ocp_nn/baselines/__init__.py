"""Optimisers to compare with, all with ``step(inputs, targets)``; see `make_optimizer`."""

from ocp_nn.baselines.base import BatchOptimizer
from ocp_nn.baselines.first_order import LBFGS, SGD, Adam, AdamW, Muon, RMSprop
from ocp_nn.baselines.kronecker import EKFAC, KFAC
from ocp_nn.baselines.levenberg_marquardt import LevenbergMarquardt
from ocp_nn.baselines.registry import OPTIMIZERS, make_optimizer, options_of
from ocp_nn.baselines.wasserstein import KWNG

__all__ = [
    "EKFAC",
    "KFAC",
    "KWNG",
    "LBFGS",
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "BatchOptimizer",
    "LevenbergMarquardt",
    "Muon",
    "RMSprop",
    "make_optimizer",
    "options_of",
]
