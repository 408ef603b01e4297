"""Networks as optimal control problems: stages = layers, state = activation, control = weights."""

from ocp_nn.baselines import make_optimizer
from ocp_nn.compile import (
    compile,
    initial_controls,
    network_of,
    samples_of,
    stage_table,
    with_data,
    write_back,
)
from ocp_nn.cost import LossCost
from ocp_nn.layers import StageError
from ocp_nn.losses import Loss, make_loss
from ocp_nn.optimizer import DDPOptimizer
from ocp_nn.stages import Network, Slot, Stage

__all__ = [
    "DDPOptimizer",
    "Loss",
    "LossCost",
    "Network",
    "Slot",
    "Stage",
    "StageError",
    "compile",
    "initial_controls",
    "make_loss",
    "make_optimizer",
    "network_of",
    "samples_of",
    "stage_table",
    "with_data",
    "write_back",
]
