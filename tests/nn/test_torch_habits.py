"""What users of torch.optim do to an optimiser and its model between two steps."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import F64

from ocp_nn import DDPOptimizer
from ocp_nn.statistics import METRICS

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = (X[:, :3] ** 2).argmax(dim=1)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["proximal", "paper", "stagewise", "gradient"])
def test_a_run_with_nothing_tuned_resumes_bit_for_bit(metric, form):
    def run(model: nn.Module, optimizer: DDPOptimizer, steps: range) -> None:
        for step in steps:
            x = X + 0.1 * step
            optimizer.step(x, Y)

    straight, parts = net(), net()
    run(straight, DDPOptimizer(straight, metric=metric, form=form), range(7))
    first = DDPOptimizer(parts, metric=metric, form=form)
    run(parts, first, range(3))
    file = io.BytesIO()
    torch.save((parts.state_dict(), first.state_dict()), file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=False)
    fresh = net()
    fresh.load_state_dict(model_state)
    second = DDPOptimizer(fresh, metric=metric, form=form)
    second.load_state_dict(optimizer_state)
    run(fresh, second, range(3, 7))
    assert torch.equal(weights(fresh), weights(straight))


@pytest.mark.parametrize("metric", ["gauss_newton", "adam", "ekfac"])
def test_layers_freeze_and_thaw(metric):
    model = net()
    optimizer = DDPOptimizer(model, metric=metric)
    optimizer.step(X, Y)
    model[0].requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    optimizer.step(X, Y)
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after[:2], before[:2], strict=True))
    assert not torch.equal(after[2], before[2])
    model[0].requires_grad_(True)
    optimizer.step(X, Y)
    assert not torch.equal(model[0].weight, before[0])


def test_a_layer_that_thaws_later_joins_by_a_group():
    model = net()
    model[0].requires_grad_(False)
    optimizer = DDPOptimizer(model)
    optimizer.step(X, Y)
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"'0\.bias', '0\.weight'.*add_param_group"):
        optimizer.step(X, Y)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})
    before = model[0].weight.clone()
    optimizer.step(X, Y)
    assert not torch.equal(model[0].weight, before)
    with pytest.raises(ValueError, match=r"group 2 of params has tensors of shape \[\(2,\)\]"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 2
    optimizer.step(X, Y)


def test_the_model_may_change_its_dtype_and_mode():
    model = net().float()
    optimizer = DDPOptimizer(model, metric="ekfac")
    optimizer.step(X.float(), Y)
    model.double()
    first = float(optimizer.step(X, Y))
    model.eval()
    assert float(optimizer.step(X, Y)) < first
    assert model[0].weight.dtype == F64


def test_a_model_that_torch_compiled_is_trained_by_what_it_wraps():
    model, twin = net(), net()
    DDPOptimizer(torch.compile(model, backend="eager")).step(X, Y)
    DDPOptimizer(twin).step(X, Y)
    assert torch.equal(weights(model), weights(twin))


def test_gradients_of_the_user_are_left_alone():
    model = net()
    optimizer = DDPOptimizer(model)
    F.cross_entropy(model(X), Y).backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step(X, Y)
    assert torch.equal(model[0].weight.grad, gradient)
    optimizer.zero_grad(set_to_none=False)
    assert not model[0].weight.grad.any()
    optimizer.zero_grad()
    assert model[0].weight.grad is None


def test_every_scheduler_of_torch_finds_its_number():
    model = net()
    optimizer = DDPOptimizer(model)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        loss = optimizer.step(X, Y)
        cosine.step()
    plateau.step(float(loss))
    plateau.step(float(loss))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.14644660940672627)
    optimizer.step(X, Y)


def test_what_cannot_be_is_said_in_words():
    model = net()
    optimizer = DDPOptimizer(model)
    with pytest.raises(TypeError, match="no GradScaler"):
        optimizer.step()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=r"under torch\.autocast"),
    ):
        optimizer.step(X, Y)
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(optimizer)
    with pytest.raises(TypeError, match=r"model\.module, and process_group"):
        DDPOptimizer(nn.DataParallel(model))
    with pytest.raises(ValueError, match="no trainable parameters of the model"):
        DDPOptimizer(model, params=[*model.parameters(), nn.Parameter(torch.zeros(2))])
    with pytest.raises(TypeError, match="got generator"):
        DDPOptimizer(model.parameters(), lr=0.1)
    optimizer.step(X, Y)  # none of it did any harm
