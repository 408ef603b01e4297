"""Kronecker factors of convolutions, and of linear layers on sequences, in DDP."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import F64

import ocp_nn
from ocp_nn import DDPOptimizer
from ocp_nn.baselines import EKFAC, KFAC
from ocp_nn.forms import Form, PositionsForm, form_of


class Skip(nn.Module):
    """A convolution while the input waits for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(50, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end((x + torch.tanh(self.conv(x))).flatten(1))


def net(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs, classes; its first layer with parameters is the one looked at."""
    torch.manual_seed(0)
    y = torch.tensor([0, 3, 1])
    if kind == "sequence":
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 4))
        return model.double(), torch.randn(3, 5, 4, dtype=F64), y
    if kind == "conv1d":
        model = nn.Sequential(
            nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2, bias=False),
            nn.Tanh(), nn.Flatten(), nn.Linear(12, 4),
        )  # fmt: skip
        return model.double(), torch.randn(3, 2, 8, dtype=F64), y
    x = torch.randn(3, 2, 5, 5, dtype=F64)
    if kind == "skip":
        return Skip().double(), x, y
    options = {"padding": "same", "padding_mode": "reflect"} if kind == "same" else {"stride": 2}
    size = 75 if kind == "same" else 12
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, **options), nn.Tanh(), nn.Flatten(), nn.Linear(size, 4)
    )
    return model.double(), x, y


KINDS = ("conv2d", "same", "conv1d", "sequence", "skip")


def first_layer(model: nn.Module) -> nn.Module:
    return next(m for m in model.modules() if hasattr(m, "weight"))


def statistics(optimizer: DDPOptimizer) -> dict[str, Tensor]:
    return optimizer.solver_state.memory.stages[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_factors_are_those_of_the_baseline(kind):
    """Which are tested against loops over positions and against curvlinops."""
    model, x, y = net(kind)
    reference = KFAC(model, statistics="exact", lr=1e-12)
    reference.step(x, y)
    state = reference.state[first_layer(model).weight]
    optimizer = DDPOptimizer(model, metric="kfac", lr=1e-12)
    optimizer.step(x, y)
    assert isinstance(form_of(optimizer.problem.dynamics.stages[0]), PositionsForm)
    for name in ("A", "G"):
        torch.testing.assert_close(statistics(optimizer)[name], state[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_second_moments_are_the_diagonal_of_the_fisher_matrix_in_the_eigenbasis(kind):
    model, x, y = net(kind)
    optimizer = DDPOptimizer(model, metric="ekfac", lr=1e-9, decay=0.0)
    optimizer.step(x, y)
    optimizer.step(x, y)  # in the basis of the first step
    engine, state = optimizer.solver_state.engine, optimizer.solver_state
    known = statistics(optimizer)
    model_of = engine.expand(state.xs, state.us)
    form = model_of.forms[0]
    J = Form.rows(form, model_of.xs[0], model_of.us[0], model_of.y(1))
    U, W = known["U"], known["W"]
    columns = W.shape[0] - form.has_bias
    G = J[:, : U.shape[0] * columns].view(-1, U.shape[0], columns)
    if form.has_bias:
        G = torch.cat((G, J[:, U.shape[0] * columns :, None]), dim=2)
    expected = (U.T @ G @ W).square().sum(dim=0)
    torch.testing.assert_close(known["second"], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("metric", "base"), [("kfac", KFAC), ("ekfac", EKFAC)])
@pytest.mark.parametrize("kind", KINDS)
def test_without_coupling_the_step_is_that_of_the_base_method(metric, base, kind):
    ours, x, y = net(kind)
    theirs = net(kind)[0]
    kind_of = {"statistics": "gradient"} if metric == "ekfac" else {}
    name = {"statistics": "empirical"} if metric == "ekfac" else {"statistics": "exact"}
    DDPOptimizer(ours, metric=metric, form="gradient", lr=0.1, damping=0.2, **kind_of).step(x, y)
    base(theirs, lr=0.1, damping=0.2, **name).step(x, y)
    if metric == "ekfac":  # in a new basis ours starts from the eigenvalues alone
        return
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_of_one_sample_and_one_position_the_factors_are_the_whole_fisher_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 4), nn.Flatten()).double()
    x, y = torch.randn(1, 2, 4, 4, dtype=F64), torch.tensor([1])
    optimizer = DDPOptimizer(model, metric="kfac", lr=1e-12)
    optimizer.step(x, y)
    known = statistics(optimizer)
    engine, state = optimizer.solver_state.engine, optimizer.solver_state
    model_of = engine.expand(state.xs, state.us)
    J = Form.rows(model_of.forms[0], model_of.xs[0], model_of.us[0], model_of.y(1))
    F = torch.kron(known["G"], known["A"])  # weight and bias of an output lie together
    order = torch.arange(3 * 33).view(3, 33)
    order = torch.cat((order[:, :32].reshape(-1), order[:, 32]))
    torch.testing.assert_close(J.T @ J, F[order][:, order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["cholesky", "cg", "primal"])
@pytest.mark.parametrize("metric", ["kfac", "ekfac"])
def test_the_step_is_that_of_the_dense_matrices(metric, solver):
    """``(D + J'J) du = -g`` for the linear roll-out, D from the metrics, J by torch.func."""
    model, x, y = net("conv2d")
    optimizer = DDPOptimizer(
        model, metric=metric, lr=0.5, damping=0.3, feedback="linear", solver=solver
    )
    problem = optimizer.prepared(x, y)
    ddp = optimizer.solver_now()
    state = ddp.current(problem, optimizer.begin(problem, ddp))
    model_of = state.engine.expand(state.xs, state.us)
    metrics = ddp.direction(state, model_of).policy.source.metrics
    us = ocp_nn.initial_controls(problem)
    blocks = [metrics[t].dense() for t in model_of.active]
    J = torch.cat(
        [
            Form.rows(model_of.forms[t], model_of.xs[t], us[t], model_of.y(t + 1))
            for t in model_of.active
        ],
        dim=1,
    )
    g = torch.cat([model_of.gradient(t) for t in model_of.active])
    expected = -torch.linalg.solve(torch.block_diag(*blocks) + J.T @ J, g)
    optimizer.step(x, y)
    moved = [b - a for a, b in zip(us, ocp_nn.initial_controls(problem), strict=True)]
    tolerance = 1e-6 if solver == "cg" else 1e-9
    torch.testing.assert_close(torch.cat(moved), expected, rtol=tolerance, atol=tolerance * 1e-2)


def test_grouped_convolutions_and_those_before_batch_norm_keep_the_diagonal():
    torch.manual_seed(0)
    x, y = torch.randn(3, 2, 5, 5, dtype=F64), torch.tensor([0, 3, 1])
    for layers in (
        [nn.Conv2d(2, 4, 3, groups=2)],
        [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)],
        [nn.ConvTranspose2d(2, 4, 3)],
    ):
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        optimizer = DDPOptimizer(model.double(), metric="ekfac", lr=0.1)
        first = float(optimizer.step(x, y))
        assert "fisher" in statistics(optimizer)
        assert float(optimizer.step(x, y)) < first
