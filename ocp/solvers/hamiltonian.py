"""The Hamiltonian of every stage as a function of the controls, and its minimiser.

``H_t(x, u, p') = l_t(x, u) + p' . f_t(x, u)``: Theorem 1 of Liu, Chen, Theodorou (ICLR 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocp.problem import Stages


def flat(stages: Stages) -> Tensor:
    """(B, m) of each stage -> (B, sum of m), stage by stage."""
    return torch.cat(list(stages), dim=-1)


def like(stages: Stages, values: Tensor) -> Stages:
    """(..., sum of m) -> (..., m) of each stage, packed as ``stages`` are."""
    parts = values.split([s.shape[-1] for s in stages], dim=-1)
    return torch.stack(parts) if isinstance(stages, Tensor) else list(parts)
