"""Every method of `ocp` as a trainer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import F64

import ocp
import ocp_nn
from ocp_nn.baselines import BatchOptimizer, make_optimizer
from ocp_nn.data import clusters
from ocp_nn.experiments import Status, mlp, train
from ocp_nn.trainers import SolverTrainer


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = (X[:, 0] * X[:, 1] > 0).long()


@pytest.mark.parametrize("method", ["ddp", "ilqr", "newton", "pmp", "emsa"])
def test_every_method_of_ocp_lowers_the_loss(method):
    model = small()
    trainer = SolverTrainer(model, method=method, weight_decay=1e-2)
    losses = [float(trainer.step(X, Y)) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_plain_successive_approximations_run_but_nothing_makes_them_descend():
    """Without the augmentation of the extended form; weights that cost much keep it in bounds."""
    model = small()
    trainer = SolverTrainer(model, method="msa", weight_decay=3.0)
    for _ in range(3):
        trainer.step(X, Y)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_step_is_one_iteration_of_solve():
    model = small()
    problem = ocp_nn.compile(model, "cross_entropy", X, Y, weight_decay=0.1)
    us = ocp_nn.initial_controls(problem)
    expected = ocp.solve(problem, "ilqr", controls=us, engine="eager", max_iterations=1)
    loss = SolverTrainer(model, method="ilqr", weight_decay=0.1, max_iterations=1).step(X, Y)
    for u, e in zip(ocp_nn.initial_controls(problem), expected.controls, strict=True):
        assert torch.equal(u, e)
    penalty = 0.05 * sum(p.square().sum() for p in small().parameters())
    torch.testing.assert_close(loss, (F.cross_entropy(small()(X), Y) + penalty).detach())


def test_stages_too_large_for_dense_matrices_are_refused():
    model = nn.Sequential(nn.Linear(80, 80), nn.Tanh(), nn.Linear(80, 2))
    with pytest.raises(ValueError, match="6480 weights"):
        SolverTrainer(model).step(torch.randn(4, 80), torch.tensor([0, 1, 1, 0]))


@pytest.mark.parametrize("name", ["second-order-ddp", "pmp", "msa", "emsa"])
def test_they_train_like_any_optimiser_and_resume_bit_for_bit(name, tmp_path):
    data = clusters(3, 4, 20)
    nets = [mlp((4,), 3, (5,), seed=seed) for seed in (0, 0, 1)]
    whole, part, again = (make_optimizer(name, n, weight_decay=3.0) for n in nets)
    assert isinstance(whole, BatchOptimizer)
    arguments = {"epochs": 3, "batch_size": 24}
    expected = train(nets[0], whole, data, **arguments)
    file = tmp_path / "checkpoint.pt"
    stop = lambda run: run.position.step == 3
    train(nets[1], part, data, save=file, callback=stop, **arguments)
    result = train(nets[2], again, data, resume=file, **arguments)
    assert expected.status is result.status is Status.FINISHED
    for a, b in zip(nets[0].parameters(), nets[2].parameters(), strict=True):
        assert torch.equal(a, b)


def test_options_are_those_of_the_method():
    assert make_optimizer("emsa", small(), weight=0.5).solver.weight == 0.5
    with pytest.raises(ValueError, match="Did you mean weight"):
        make_optimizer("emsa", small(), weigth=0.5)
