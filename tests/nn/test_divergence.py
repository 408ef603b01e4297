"""Runs that leave all bounds while their numbers are still finite."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import F64

from ocp_nn import DDPOptimizer, make_optimizer
from ocp_nn.data import Data
from ocp_nn.divergence import Watch, grown
from ocp_nn.experiments.training import Status, train
from ocp_nn.optimizer import DivergedError
from ocp_nn.trainers import SolverTrainer


def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Regression whose second layer is the stiff one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(12, 3, dtype=F64)
    return model, x, x[:, :2] ** 2


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_the_rule():
    watch = Watch()
    watch.start(0.001, 2.0)
    assert watch.reference == 2.0 and watch.good(3.9) and not watch.good(4.1)
    for losses, verdict in (
        ([199.0] * 9, False),
        ([201.0, 201.0, 1.0, 201.0, 201.0], False),  # not in a row
        ([201.0, 201.0, 201.0], True),
        ([2.1e6], True),
        ([math.nan], True),
    ):
        watch.high = 0
        assert any([watch.diverged(loss) for loss in losses]) == verdict, losses
    unset = Watch()
    unset.start(0.0, 0.0)
    assert not unset.diverged(1.0)  # nothing to compare with yet


def test_the_layer_that_moved_most_is_named():
    us = [torch.ones(3), torch.zeros(0), torch.full((2,), 5.0)]
    text = grown(["a", "b", "c"], [us[0] * 1.5, us[1], us[2] * 40], us)
    assert text.startswith("the weights of stage 2 (c) changed most, their norm from 7.07 to 283")
    assert "stage 0 (a)" in grown(["a", "b", "c"], [us[0] * math.nan, us[1], us[2] * 40], us)


@pytest.mark.parametrize("form", ["gradient", "paper"])
def test_a_finite_explosion_is_reported_with_layer_and_step_and_good_weights_return(form):
    model, x, y = problem()
    optimizer = DDPOptimizer(model, "mse", lr=3.0, metric="sgd", form=form, damping=0.0)
    seen, losses = [], []
    with pytest.raises(DivergedError, match=r"stage \d \((0|2)\) changed most") as error:
        for _ in range(100):
            seen.append(weights(model))
            losses.append(float(optimizer.step(x, y)))
    step = error.value.step
    assert step == len(seen) <= 20 and f"step {step} diverged" in str(error.value)
    bound = 2 * max(losses[0], float(y.square().mean()))
    good = [w for w, loss in zip(seen, losses, strict=False) if loss <= bound][-1]
    assert torch.equal(weights(model), good)
    assert float(F.mse_loss(model(x), y).detach()) <= bound
    optimizer.param_groups[0]["lr"] = 0.01  # the run goes on from there
    first = float(optimizer.step(x, y))
    assert first <= bound and float(optimizer.step(x, y)) < first


def test_running_statistics_of_batch_norm_return_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    _, x, y = problem()
    optimizer = DDPOptimizer(model, "mse", lr=50.0, metric="sgd", form="gradient", damping=0.0)
    seen = []
    with pytest.raises(DivergedError):
        for _ in range(100):
            seen.append((weights(model), model[1].running_mean.clone()))
            optimizer.step(x, y)
    after = weights(model)
    (mean,) = [m for w, m in seen if torch.equal(w, after)]
    assert torch.equal(model[1].running_mean, mean)


def test_a_resumed_run_remembers_what_it_is_compared_with():
    model, x, y = problem()
    optimizer = DDPOptimizer(model, "mse")
    optimizer.step(x, y)
    other = DDPOptimizer(model, "mse")
    other.load_state_dict(optimizer.state_dict())
    assert other.course.watch.reference == optimizer.course.watch.reference > 0


def test_a_trainer_by_any_method_says_so_as_well():
    model, x, y = problem()
    trainer = SolverTrainer(model, "mse", "msa")
    start = float(F.mse_loss(model(x), y).detach())
    with pytest.raises(DivergedError, match="diverged") as error:
        for _ in range(50):
            trainer.step(x, y)
    assert "stage" in str(error.value) or "not finite" in str(error.value)
    assert float(F.mse_loss(model(x), y).detach()) <= 2 * max(start, float(y.square().mean()))


@pytest.mark.parametrize("name", ["sgd", "momentum", "kfac", "ddp-sgd"])
def test_training_with_any_optimiser_ends_as_diverged(name):
    model, x, y = problem()
    data = Data("toy", x, y, x, y, classes=0)
    start = float(F.mse_loss(model(x), y).detach())
    options = {"damping": 1e-9, "lr": 30.0} if name == "kfac" else {"lr": 3.0}
    optimizer = make_optimizer(name, model, "mse", **options)
    result = train(model, optimizer, data, loss="mse", epochs=100, batch_size=12)
    assert result.status is Status.DIVERGED and result.rows[-1]["epoch"] < 50
    assert "0." in result.message or "2." in result.message or "stage" in result.message
    assert float(F.mse_loss(model(x), y).detach()) <= 2 * max(start, float(y.square().mean()))
