"""Eigenbases of covariances."""

from __future__ import annotations

import torch
from torch import Tensor


def eigenbasis(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in ascending order (n,) and orthonormal eigenvectors as columns (n, n).

    LAPACK's single precision routine gives up on some covariances with many silent features, such
    as pixels that are hardly ever lit, or returns vectors of nan without a word (seen on every
    third batch of MNIST): these are decomposed in double precision.

    Raises:
        torch.linalg.LinAlgError: not finite.
    """
    try:
        eigenvalues, U = torch.linalg.eigh(covariance)
        if bool(U.isfinite().all()):
            return eigenvalues, U
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if covariance.dtype == torch.float64:
            raise
    eigenvalues, U = torch.linalg.eigh(covariance.double())
    return eigenvalues.to(covariance), U.to(covariance)
