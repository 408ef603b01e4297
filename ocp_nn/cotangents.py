"""The factor Y_t of the value Hessian, ``V_XX = Y S^{-1} Y'``, over a batch of B samples.

Where no stage after t couples samples, Y_t is block diagonal: a sample has its own k columns, and
the r = B k coordinates are numbered sample by sample. A stage that couples samples (batch norm in
training mode) fills the blocks: upstream of it a sample sees all r columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Columns of Y_t as cotangents of the activations.

    Attributes:
        rows: (B, k, n) of each sample's own columns, or (B, r, n) where samples are coupled.
        coupled: which of the two.
    """

    rows: Tensor
    coupled: bool = False

    @property
    def r(self) -> int:
        B, k, _ = self.rows.shape
        return k if self.coupled else B * k

    def apply(self, z: Tensor) -> Tensor:
        """Y z: (r,) -> (B, n)."""
        B, k, _ = self.rows.shape
        z = z.expand(B, 1, k) if self.coupled else z.view(B, 1, k)
        return torch.bmm(z, self.rows).view(B, -1)

    def adjoint(self, V: Tensor) -> Tensor:
        """Y' V: (B, n) -> (r,)."""
        inner = torch.bmm(self.rows, V.unsqueeze(2))
        return inner.sum(dim=0).view(-1) if self.coupled else inner.view(-1)

    def couple(self) -> Cotangents:
        """The same columns, with the zeros between samples written out."""
        if self.coupled:
            return self
        B, k, n = self.rows.shape
        eye = torch.eye(B, dtype=self.rows.dtype, device=self.rows.device)
        full = (eye[:, :, None, None] * self.rows[:, None]).reshape(B, B * k, n)
        return Cotangents(full, coupled=True)
