"""All translations of PyTorch's operations in one table, ``HANDLERS``."""

from ocp.engines.native import activations, array_ops, linear_ops
from ocp.engines.native.ops import HANDLERS

__all__ = ["HANDLERS", "activations", "array_ops", "linear_ops"]
