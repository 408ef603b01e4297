"""Two small problems of the tests: a nonlinear one, and a linear one with its matrices."""

import torch

import ocp

DOUBLE = torch.float64


def vector(*values):
    return torch.tensor(values, dtype=DOUBLE)


def swing(x0=(0.5, 0.0), T=12, **arguments):
    """A pendulum of two states pushed by one torque; nonlinear enough for several iterations."""

    def dynamics(x, u, t):
        rate = x[1] + 0.2 * (u[0] - 4 * torch.sin(x[0]))
        return torch.stack((x[0] + 0.2 * rate, rate))

    cost = ocp.QuadraticCost(vector(1.0, 0.1), vector(0.1), vector(20.0, 2.0), vector(2.5, 0.0))
    return ocp.Problem(dynamics, cost, vector(*x0), T, 1, name="swing", **arguments)


def linear(T=5, seed=0):
    """n = 3, m = 2: returns the problem and its matrices A, B, Q, R, Q_final."""
    g = torch.Generator().manual_seed(seed)
    A = torch.eye(3, dtype=DOUBLE) + 0.2 * torch.randn(3, 3, generator=g, dtype=DOUBLE)
    B = torch.randn(3, 2, generator=g, dtype=DOUBLE)
    Q, R, Qf = vector(1.0, 2.0, 0.5).diag(), vector(0.7, 1.3).diag(), vector(3.0, 1.0, 2.0).diag()
    problem = ocp.Problem(
        lambda x, u, t: A @ x + B @ u, ocp.QuadraticCost(Q, R, Qf), vector(1.0, -2.0, 0.5), T, 2
    )
    return problem, (A, B, Q, R, Qf)
