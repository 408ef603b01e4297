"""Gains and value models in the solutions of batch DDP."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import F64

import ocp
import ocp_nn
from ocp.engines import Eager
from ocp.solvers.decide import Rules
from ocp_nn.batch_ddp import BatchDDP
from ocp_nn.statistics import Settings


def problem_of(layers: list[nn.Module], loss: str = "cross_entropy", **options):
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=F64)
    y = torch.tensor([0, 2, 1]) if loss == "cross_entropy" else torch.randn(3, 2, dtype=F64)
    return ocp_nn.compile(nn.Sequential(*layers).double(), loss, x, y, **options)


def solved(problem, **options):
    """One iteration, and the state it ends in."""
    solver = BatchDDP(rules=Rules(max_iterations=1), damping=0.4, **options)
    return ocp.solve(problem, solver, controls=ocp_nn.initial_controls(problem))


def test_of_a_linear_layer_they_are_ridge_regression():
    """One stage ``x' = W x`` and half squared error: V and K in closed form."""
    problem = problem_of([nn.Linear(4, 2, bias=False)], "squared_error")
    solution = solved(problem)
    X, target = ocp_nn.samples_of(problem)
    W, e = solution.controls[0].view(2, 4), 0.4
    B = len(X)
    # Minimise |X W' - T|^2 / 2B + e/2 |dW|^2 over dW, the inputs moved by dX:
    R = X @ W.T - target
    Q = X.T @ X / B + e * torch.eye(4, dtype=F64)
    k = -torch.linalg.solve(Q, X.T @ R / B).T
    torch.testing.assert_close(solution.policy.k[0], k.reshape(-1))
    # ... by the chain F_u' (Y Y') F_x with Q_uu, samples together:
    fu = torch.kron(torch.eye(2, dtype=F64), X)  # (2 B, m), outputs first
    fx = torch.kron(W, torch.eye(B, dtype=F64))
    K = -torch.linalg.solve(fu.T @ fu / B + e * torch.eye(8, dtype=F64), fu.T @ fx / B)
    K = K.view(8, 4, B).movedim(1, 2).reshape(8, -1)  # state: sample by sample
    torch.testing.assert_close(solution.policy.K[0], K)
    S = torch.eye(2 * B, dtype=F64) + fu @ fu.T / (e * B)
    r = (R / B**0.5).T.reshape(-1)
    vx = (fx.T @ torch.linalg.solve(S, r) / B**0.5).view(4, B).T.reshape(-1)
    torch.testing.assert_close(solution.value.vx[0], vx)


@pytest.mark.parametrize("solver", ["cholesky", "cg", "primal"])
@pytest.mark.parametrize("loss", ["cross_entropy", "huber"])
def test_they_are_those_of_the_dense_recursion(solver, loss):
    layers = [nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if loss[0] == "c" else 2)]
    problem = problem_of(layers, loss, weight_decay=0.1)
    solution = solved(problem, linear_solver=solver)
    engine, us = Eager(problem), [u[None] for u in solution.controls]
    xs = engine.rollout(us)
    damping = torch.full((1,), 0.4, dtype=F64)
    sweep = engine.sweep(engine.expand(xs, us), us, None, damping, None, proximal=True)
    policy, value = solution.policy, solution.value
    assert [K.shape for K in policy.K] == [(0, 12), (25, 12), (0, 15), policy.K[3].shape]
    for t in range(4):
        torch.testing.assert_close(policy.k[t], sweep.policy.k[t][0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(policy.K[t], sweep.policy.K[t][0], rtol=1e-9, atol=1e-10)
    for t in range(5):
        torch.testing.assert_close(value.vx[t], sweep.vx[t][0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(value.vxx[t], sweep.vxx[t][0], rtol=1e-9, atol=1e-10)
    moved = solution.states[1].reshape(-1) + 0.1
    expected = solution.controls[1] + policy.K[1] @ torch.full((12,), 0.1, dtype=F64)
    torch.testing.assert_close(policy(moved, 1), expected)


@pytest.mark.parametrize("form", ["proximal", "paper", "stagewise", "gradient"])
@pytest.mark.parametrize("metric", ["sgd", "kfac"])
def test_they_are_what_the_roll_out_follows(form, metric):
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
    problem = problem_of(layers)
    solver = BatchDDP(metric=Settings(metric), form=form, damping=0.4, lr=0.3)
    state = solver.init(problem, ocp_nn.initial_controls(problem))
    model = state.engine.expand(state.xs, state.us)
    policy, gains = solver.direction(state, model).policy, solver.gains(state)
    dX = 0.1 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    first, memory = policy.change(0, None)
    torch.testing.assert_close(gains.k[0], first, rtol=1e-9, atol=1e-12)
    later, _ = policy.change(2, dX, 1.0, memory)
    torch.testing.assert_close(
        gains.k[2] + gains.K[2] @ dX.reshape(-1), later, rtol=1e-9, atol=1e-12
    )
    coupled = form in ("proximal", "paper")
    assert bool((gains.K[2] != 0).any()) == coupled
    assert (gains.vxx is not None) == (form == "proximal")


def test_large_ones_are_left_out(monkeypatch):
    monkeypatch.setattr("ocp_nn.gains.LARGEST", 100)
    solution = solved(problem_of([nn.Linear(4, 3)]))
    assert solution.policy.K is None and solution.value.vxx is None
    assert "residual" in solution.message
