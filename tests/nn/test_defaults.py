"""`DDPOptimizer(model, loss)` with nothing tuned, on data of any scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from zoo import F64

from ocp_nn import DDPOptimizer
from ocp_nn.defaults import DEFAULTS, LIMITS
from ocp_nn.metrics import Diagonal, Eigenbasis, Isotropic, Kronecker
from ocp_nn.statistics import METRICS, kernel_norm


def wild(kind: str) -> tuple[nn.Sequential, str, Tensor, Tensor]:
    """Inputs as they come: pixels 0 to 255, or columns of very different scales."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    if kind == "pixels":
        y = torch.randint(4, (240,), generator=g)
        x = 255 * ((torch.rand(4, 80, generator=g) < 0.2).float()[y])
        x = x * torch.rand(240, 80, generator=g)
        return nn.Sequential(nn.Linear(80, 12), nn.ReLU(), nn.Linear(12, 4)), "cross_entropy", x, y
    x = torch.randn(240, 3, generator=g)
    y = 1e3 * (1 + x[:, :1] * x[:, 1:2])
    x = (x + 1) * torch.tensor([1e-2, 30.0, 1e3])
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)), "mse", x, y


@pytest.mark.parametrize("kind", ["pixels", "columns"])
@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("metric", METRICS)
def test_no_metric_in_any_form_diverges_with_its_defaults(metric, form, kind):
    model, loss, x, y = wild(kind)
    optimizer = DDPOptimizer(model, loss, metric=metric, form=form)
    losses = []
    for _ in range(4):
        for rows in torch.randperm(240, generator=torch.Generator().manual_seed(1)).split(24):
            losses.append(float(optimizer.step(x[rows], y[rows])))
    unit = math.log(4) if loss == "cross_entropy" else float(y.square().mean())
    first, last = losses[0], sum(losses[-10:]) / 10
    assert max(losses) < 4 * max(first, unit)
    assert last < (0.75 if kind == "pixels" else 1.02) * max(first, unit)


def test_without_the_defaults_these_runs_do_diverge():
    """What the test above is worth: the same numbers, given by hand."""
    model, loss, x, y = wild("pixels")
    d = DEFAULTS["sgd"]
    optimizer = DDPOptimizer(model, loss, metric="sgd", form="paper", lr=d.lr, damping=d.damping)
    assert optimizer.solver.metric.limit is None and optimizer.solver.rise is None
    with pytest.raises(FloatingPointError):
        for _ in range(40):
            optimizer.step(x[:24], y[:24])


@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("metric", METRICS)
def test_kernels_stay_within_the_limit(metric, form):
    model, loss, x, y = wild("pixels")
    optimizer = DDPOptimizer(model, loss, metric=metric, form=form)
    optimizer.param_groups[0]["lr"] *= 0.5  # a scheduler still moves what is in force
    optimizer.step(x[:24], y[:24])
    model, _, _, _ = wild("pixels")
    optimizer = DDPOptimizer(model, loss, metric=metric, form=form)
    optimizer.param_groups[0]["lr"] *= 0.5
    problem = optimizer.prepared(x[:24], y[:24])
    solver = optimizer.solver_now()
    state = solver.current(problem, optimizer.begin(problem, solver))
    source = solver.direction(state, state.engine.expand(state.xs, state.us)).policy.source
    model_of = state.engine.expand(state.xs, state.us)
    norms = [
        float(torch.linalg.matrix_norm(model_of.kernel(t, source.metrics[t]), 2))
        for t in model_of.active
    ]
    limit = 0.5 * LIMITS[form]
    assert max(norms) <= 1.5 * limit  # measured from below
    assert max(norms) >= 0.5 * limit or metric in ("kfac", "ekfac", "adam")


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_the_norm_of_a_kernel(rank):
    J = torch.randn(9, rank, generator=torch.Generator().manual_seed(rank), dtype=F64)
    exact = float(torch.linalg.matrix_norm(J @ J.T, 2))
    measured = kernel_norm(lambda z: J @ (J.T @ z), torch.zeros(9, dtype=F64))
    assert 0.7 * exact <= measured <= exact * (1 + 1e-12)
    assert kernel_norm(torch.zeros_like, torch.zeros(9)) == 0.0


def test_shortened_metrics():
    A = torch.randn(3, 3, dtype=F64)
    L = torch.linalg.cholesky(A @ A.T + torch.eye(3))
    U = torch.linalg.qr(A)[0]
    g = torch.randn(9, dtype=F64)
    for metric in (
        Isotropic((0.3, 2.0), (6, 3), g),
        Diagonal(torch.rand(9, dtype=F64)),
        Kronecker(L, L, 0.3, False),
        Eigenbasis(U, U, torch.rand(3, 3, dtype=F64), False),
    ):
        torch.testing.assert_close(metric.shortened(0.25).apply(g), 0.25 * metric.apply(g))


def test_a_step_that_raises_its_own_loss_is_shortened_or_refused():
    model, loss, x, y = wild("pixels")
    optimizer = DDPOptimizer(model, loss)
    optimizer.solver = replace_limit(optimizer)  # the whole step leaps far over the minimum
    for _ in range(5):
        before = float(optimizer.step(x[:24], y[:24]))
        with torch.no_grad():
            after = float(nn.functional.cross_entropy(model(x[:24]), y[:24]))
        assert after <= before * (1 + 1e-5)


def replace_limit(optimizer: DDPOptimizer):
    from dataclasses import replace

    settings = replace(optimizer.solver.metric, limit=1e6)
    return replace(optimizer.solver, metric=settings, damping=1e-8)
