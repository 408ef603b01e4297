"""Losses: torch's own values, autograd's derivatives, factors of the whole Hessian."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import hessian, vmap

from ocp_nn.losses import (
    CrossEntropy,
    FunctionLoss,
    Huber,
    Loss,
    SquaredError,
    make_loss,
)

F64 = torch.float64


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    return torch.log(torch.cosh(output - target)).sum()


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def classes(B: int, c: int, *positions: int) -> Tensor:
    return torch.randint(c, (B, *positions), generator=torch.Generator().manual_seed(1))


def half_squares(y: Tensor, t: Tensor) -> Tensor:
    return 0.5 * (y - t).square().flatten(1).sum(dim=1).mean()


# name, loss, output shape, targets of B samples, torch's own loss of the batch
CASES: list[tuple[str, object, tuple[int, ...], Callable, Callable]] = [
    ("ce", "cross_entropy", (5,), lambda B: classes(B, 5), F.cross_entropy),
    ("ce2", "cross_entropy", (2,), lambda B: classes(B, 2), F.cross_entropy),
    ("ce_map", "cross_entropy", (3, 2, 2), lambda B: classes(B, 3, 2, 2), F.cross_entropy),
    ("ce_soft", "cross_entropy", (4,), lambda B: numbers(1, B, 4).softmax(1), F.cross_entropy),
    (
        "ce_smooth",
        nn.CrossEntropyLoss(label_smoothing=0.2),
        (4,),
        lambda B: classes(B, 4),
        nn.CrossEntropyLoss(label_smoothing=0.2),
    ),
    (
        "bce",
        "binary_cross_entropy",
        (3,),
        lambda B: classes(B, 2, 3).double(),
        F.binary_cross_entropy_with_logits,
    ),
    (
        "bce_soft",
        "binary_cross_entropy",
        (1,),
        lambda B: torch.rand(B, 1, dtype=F64),
        F.binary_cross_entropy_with_logits,
    ),
    ("mse", "mse", (4,), lambda B: numbers(1, B, 4), F.mse_loss),
    ("mse_map", nn.MSELoss(), (2, 3), lambda B: numbers(1, B, 2, 3), F.mse_loss),
    ("squared_error", "squared_error", (4,), lambda B: numbers(1, B, 4), half_squares),
    ("huber", "huber", (4,), lambda B: numbers(1, B, 4), F.huber_loss),
    (
        "huber3",
        nn.HuberLoss(delta=0.3),
        (4,),
        lambda B: numbers(1, B, 4),
        nn.HuberLoss(delta=0.3),
    ),
    ("function", log_cosh, (4,), lambda B: numbers(1, B, 4), lambda y, t: log_cosh(y, t) / len(y)),
]
IDS = [case[0] for case in CASES]


def case(entry: tuple, B: int, scale: float = 1.0) -> tuple[Loss, Tensor, Tensor, Callable]:
    _, given, shape, draw, reference = entry
    loss = make_loss(given, shape)
    outputs = scale * numbers(0, B, *shape)
    targets = loss.prepare(draw(B), shape, outputs)
    return loss, outputs.flatten(1), targets, lambda y: reference(y.reshape(B, *shape), targets)


@pytest.mark.parametrize("B", [1, 3, 16])
@pytest.mark.parametrize("entry", CASES, ids=IDS)
def test_the_mean_over_samples_is_torchs_loss_and_its_gradient_autograds(entry, B):
    loss, outputs, targets, reference = case(entry, B)
    outputs.requires_grad_()
    expected = reference(outputs)
    torch.testing.assert_close(loss.value(outputs, targets).mean(), expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected, outputs)
    actual = loss.gradient(outputs.detach(), targets) / B
    torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("entry", CASES, ids=IDS)
def test_the_factor_squared_is_the_hessian_of_each_sample(entry):
    loss, outputs, targets, _ = case(entry, 3)
    H = vmap(hessian(lambda y, t: loss.value(y[None], t[None])[0]))(outputs, targets)
    Y = loss.factor(outputs, targets)
    assert H.abs().max() > 0.01
    torch.testing.assert_close(Y @ Y.mT, H, rtol=0, atol=1e-12)


def test_softmax_needs_one_column_less_than_classes():
    loss = CrossEntropy()
    assert loss.factor(numbers(0, 3, 6), classes(3, 6)).shape == (3, 6, 5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("entry", CASES, ids=IDS)
def test_the_residual_gives_the_gradient_also_where_the_loss_is_saturated(entry, scale):
    loss, outputs, targets, _ = case(entry, 5, scale)
    rho = loss.residual(outputs, targets)
    if rho is None:
        assert isinstance(loss, Huber | FunctionLoss)
        return
    actual = (loss.factor(outputs, targets) @ rho[..., None])[..., 0]
    torch.testing.assert_close(actual, loss.gradient(outputs, targets), rtol=1e-9, atol=1e-12)


def test_saturated_logits_in_single_precision_stay_finite():
    y = torch.tensor([[80.0, -80.0, 0.0]])
    binary = make_loss("binary_cross_entropy")
    for loss, t in (
        (CrossEntropy(), torch.tensor([1])),
        (binary, torch.tensor([[0.0, 1.0, 1.0]])),
    ):
        rho = loss.residual(y, t)
        for value in (loss.value(y, t), loss.gradient(y, t), loss.factor(y, t), rho):
            assert torch.isfinite(value).all()
        actual = (loss.factor(y, t) @ rho[..., None])[..., 0]
        torch.testing.assert_close(actual, loss.gradient(y, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse", "squared_error"])
def test_gradients_of_sampled_targets_have_the_hessian_as_covariance(name):
    """E[g g'] over the model's distribution: 40 000 draws, five standard errors."""
    loss, N = make_loss(name, (3,)), 40_000
    outputs = numbers(3, 1, 3).expand(N, 3)
    targets = loss.sample_targets(outputs, torch.Generator().manual_seed(0))
    g = loss.gradient(outputs, targets)
    Y = loss.factor(outputs[:1], targets[:1])[0]
    covariance = loss.draws(outputs) * g.T @ g / N
    torch.testing.assert_close(covariance, Y @ Y.T, rtol=0, atol=0.03)
    torch.testing.assert_close(g.mean(dim=0), torch.zeros(3, dtype=F64), rtol=0, atol=0.02)


def test_positions_draw_a_target_each():
    drawn = CrossEntropy(positions=4).sample_targets(numbers(0, 3, 8))
    assert drawn.shape == (3, 4)


def test_sampled_gradients_have_the_hessian_as_covariance_for_any_loss():
    loss = Huber(delta=5.0)
    y, t = numbers(0, 1, 3).expand(40_000, 3), torch.zeros(40_000, 3, dtype=F64)
    g = loss.sample_gradient(y, t, torch.Generator().manual_seed(0))
    Y = loss.factor(y[:1], t[:1])[0]
    torch.testing.assert_close(g.T @ g / len(g), Y @ Y.T, rtol=0, atol=0.03)
    with pytest.raises(ValueError, match="no distribution"):
        loss.sample_targets(y)


# -- wrong use -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("loss", "shape", "targets", "message"),
    [
        ("cross_entropy", (3,), torch.tensor([0, 3]), "between 0 and 3.*3 classes"),
        ("cross_entropy", (3,), torch.tensor([-1, 2]), "between -1 and 2"),
        ("cross_entropy", (3,), torch.tensor([[0], [1]]), r"shape \(2, 1\); .* needs \(B,\)"),
        ("cross_entropy", (1,), torch.tensor([0, 0]), "binary_cross_entropy"),
        ("cross_entropy", (2,), torch.tensor([0.0, 1.0], dtype=F64), "shape"),
        ("cross_entropy", (2,), torch.ones(2, 2, dtype=F64), "sum 1"),
        ("mse", (1,), torch.zeros(2, dtype=F64), r"needs \(B, 1\)"),
        ("mse", (2,), torch.full((2, 2), torch.nan, dtype=F64), "not finite in sample 0"),
        ("binary_cross_entropy", (2,), torch.full((2, 2), 2.0, dtype=F64), "between 0 and 1"),
    ],
)
def test_targets_that_do_not_fit_are_refused_with_what_is_needed(loss, shape, targets, message):
    with pytest.raises(ValueError, match=message):
        make_loss(loss, shape).prepare(targets, shape, torch.zeros(1, dtype=F64))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2, 3), "float32.*float64"),
        (torch.zeros(2, 3, dtype=torch.complex64), "complex"),
    ],
)
def test_targets_of_another_dtype_are_refused(targets, message):
    with pytest.raises(TypeError, match=message):
        SquaredError().prepare(targets, (3,), torch.zeros(1, dtype=F64))


def test_a_loss_without_curvature_or_convexity_is_refused():
    y, t = numbers(0, 4, 3), numbers(1, 4, 3)
    with pytest.raises(ValueError, match="no curvature"):
        FunctionLoss(lambda y, t: (y - t).abs().sum(), (3,)).check_curvature(y, t)
    dent = FunctionLoss(lambda y, t: torch.sin(y - t).sum(), (3,))
    with pytest.raises(ValueError, match="not convex"):
        dent.check_curvature(y, t)
    clipped = FunctionLoss(dent.function, (3,), indefinite="clip")
    clipped.check_curvature(y, t)
    Y = clipped.factor(y, t)
    expected = torch.diag_embed((-torch.sin(y - t)).clamp_min(0))
    torch.testing.assert_close(Y @ Y.mT, expected)


def test_what_is_no_loss_is_refused():
    for bad, error, message in (
        ("l1", ValueError, "cross_entropy, binary"),
        (3, TypeError, "got int"),
        (nn.MSELoss, TypeError, "the class MSELoss"),
        (nn.MSELoss(reduction="sum"), ValueError, "reduction='mean'"),
    ):
        with pytest.raises(error, match=message):
            make_loss(bad, (3,))
