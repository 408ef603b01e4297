"""Training runs that can be stopped and resumed, and studies that compare optimisers."""

from ocp_nn.experiments.models import ACTIVATIONS, cnn, mlp
from ocp_nn.experiments.study import Study, compare
from ocp_nn.experiments.training import Result, Status, evaluate, train

__all__ = [
    "ACTIVATIONS",
    "Result",
    "Status",
    "Study",
    "cnn",
    "compare",
    "evaluate",
    "mlp",
    "train",
]
