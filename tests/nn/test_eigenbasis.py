"""Eigenbases of covariances, also where single precision gives up."""

import pytest
import torch

from ocp_nn.eigenbasis import eigenbasis


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fails", ["never", "loudly", "silently"])
def test_an_eigenbasis_diagonalises_the_covariance_even_if_single_precision_fails(
    dtype, fails, monkeypatch
):
    eigh = torch.linalg.eigh

    def stubborn(A):
        if fails == "never" or A.dtype == torch.float64:
            return eigh(A)
        if fails == "loudly":
            raise torch.linalg.LinAlgError("failed to converge")
        return A[0], torch.full_like(A, float("nan"))

    monkeypatch.setattr(torch.linalg, "eigh", stubborn)
    X = torch.randn(3, 7, dtype=dtype)
    X[:, ::2] = 0  # silent features: rank 3 of 7
    A = X.T @ X
    eigenvalues, U = eigenbasis(A)
    assert eigenvalues.dtype == U.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(U @ torch.diag(eigenvalues) @ U.T, A, **tolerance)
    torch.testing.assert_close(U.T @ U, torch.eye(7, dtype=dtype), **tolerance)
    assert eigenvalues.tolist() == sorted(eigenvalues.tolist())


def test_what_is_not_finite_stays_an_error():
    with pytest.raises(torch.linalg.LinAlgError):
        eigenbasis(torch.full((3, 3), float("nan")))
