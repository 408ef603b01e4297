"""Metrics and their statistics against dense matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from zoo import F64

import ocp
import ocp_nn
from ocp.engines import Eager
from ocp_nn.batch_ddp import BatchDDP
from ocp_nn.statistics import Maker, Memory, Settings


def problem_and_model(
    weight_decay: float = 0.0,
) -> tuple[ocp.Problem, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    x = torch.randn(7, 4, dtype=F64)
    y = torch.randint(0, 3, (7,))
    return ocp_nn.compile(model, "cross_entropy", x, y, weight_decay=weight_decay), model, x, y


def metric_at(solver: BatchDDP, problem, t: int, memory: Memory | None = None):
    state = solver.init(problem, ocp_nn.initial_controls(problem))
    model = state.engine.expand(state.xs, state.us)
    scales = solver.scales(state.engine, model)
    maker = Maker(solver.metric, model, memory or Memory(), scales, solver.damping)
    return maker(t, lambda: model.costate(t + 1)), model, maker


def per_sample_gradients(model: nn.Module, x: Tensor, y: Tensor, name: str) -> Tensor:
    """Of the loss of each sample in one weight: (B, n', n)."""
    parameters = dict(model.named_parameters())

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {**parameters, name: w}, (x[None],)), y[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters[name], x, y).detach()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_gauss_newton_is_damping_over_lr_plus_decay():
    problem, *_ = problem_and_model(weight_decay=0.3)
    metric, *_ = metric_at(BatchDDP(damping=0.4, lr=0.5), problem, 0)
    close(metric.dense(), (0.3 + 0.4 / 0.5) * torch.eye(25, dtype=F64))


@pytest.mark.parametrize("form", ["proximal", "paper"])
def test_only_the_proximal_form_has_the_curvature_of_the_decay(form):
    problem, *_ = problem_and_model(weight_decay=0.3)
    solver = BatchDDP(metric=Settings("sgd"), form=form, damping=0.0, lr=0.5)
    metric, *_ = metric_at(solver, problem, 0)
    close(metric.dense(), (2.0 + 0.3 * (form == "proximal")) * torch.eye(25, dtype=F64))


@pytest.mark.parametrize("statistics", ["fisher", "gradient", "value"])
def test_kfac_is_the_product_of_covariances(statistics):
    """With factored Tikhonov damping; Fisher: expected over the model's own labels, exactly."""
    problem, model, x, y = problem_and_model()
    solver = BatchDDP(metric=Settings("kfac", statistics), damping=0.01, lr=0.5)
    metric, *_ = metric_at(solver, problem, 2)
    h = model[1](model[0](x)).detach()
    p = model(x).softmax(dim=1).detach()
    A = h.T @ h / 7
    if statistics == "fisher":
        G = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(dim=0)
    else:
        g = p - F.one_hot(y, 3)
        G = g.T @ g / 7
    pi = ((A.trace() / 5) / (G.trace() / 3)).sqrt()
    left = G + 0.1 / pi * torch.eye(3, dtype=F64)
    right = A + 0.1 * pi * torch.eye(5, dtype=F64)
    close(metric.dense(), torch.kron(left, right) / 0.5)


def test_ekfac_has_the_exact_second_moments_in_its_basis():
    problem, model, x, y = problem_and_model()
    settings = Settings("ekfac", "gradient", decay=0.0, refresh=10)
    solver = BatchDDP(metric=settings, damping=0.01)
    first, _, maker = metric_at(solver, problem, 2)
    metric, *_ = metric_at(solver, problem, 2, maker.next_memory)
    W = per_sample_gradients(model, x, y, "2.weight")
    rotated = metric.left.T @ W @ metric.right
    close(1 / metric.p - 0.01, rotated.square().mean(dim=0))
    assert torch.equal(metric.left, first.left)  # the basis is kept between refreshes
    basis = torch.kron(metric.left, metric.right)
    expected = (basis * (rotated.square().mean(dim=0).reshape(-1) + 0.01)) @ basis.T
    close(metric.dense(), expected)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_in_the_eigenbasis_is_that_of_the_dense_metric(decay):
    """Kernel and roll-out use X W; the reference has Q_uu = D + Gauss-Newton (m, m)."""
    problem, *_ = problem_and_model(weight_decay=decay)
    solver = BatchDDP(metric=Settings("ekfac"), damping=0.2, lr=0.7, mini_batch=True)
    us = ocp_nn.initial_controls(problem)
    state = solver.init(problem, us)
    actual = solver.step(problem, state).us
    lines = [u[None] for u in us]
    engine = Eager(problem)
    xs = engine.rollout(lines)
    e = engine.expand(xs, lines)
    for t in (0, 2):
        metric, *_ = metric_at(solver, problem, t)
        n = e.n[t]
        e.lzz[t][0, n:, n:] = metric.dense()
    sweep = engine.sweep(e, lines, None, torch.zeros(1, dtype=F64), None)
    expected = engine.follow(xs, lines, None, sweep.policy, torch.ones(1, dtype=F64)).us
    for t in (0, 2):
        close(actual[t], expected[t][0])


def test_running_means_and_steps_are_kept_and_nothing_is_changed_in_place():
    problem, *_ = problem_and_model()
    solver = BatchDDP(metric=Settings("kfac", decay=0.5, refresh=2), damping=0.1)
    _, _, maker = metric_at(solver, problem, 0)
    memory = maker.next_memory
    before = {k: v.clone() for k, v in memory.of(0).items()}
    _, _, again = metric_at(solver, problem, 0, memory)
    assert (memory.steps, again.next_memory.steps) == (1, 2)
    for name, value in before.items():
        assert torch.equal(memory.of(0)[name], value)
    assert again.next_memory.of(0)["LA"] is memory.of(0)["LA"]


def test_kfac_refuses_two_learning_rates_in_a_layer():
    problem, *_ = problem_and_model()
    solver = BatchDDP(metric=Settings("ekfac"), damping=0.1, lr=((0.1, 0.2), (), (0.1,)))
    with pytest.raises(ValueError, match="one learning rate for the weight and the bias"):
        metric_at(solver, problem, 0)
