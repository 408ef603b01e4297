"""Levenberg-Marquardt and KWNG against dense matrices."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from nets import batch, dense_net, sample_rows, vector
from torch import nn
from torch.func import functional_call, hessian, jacrev

from ocp_nn.baselines.levenberg_marquardt import LevenbergMarquardt, Solver
from ocp_nn.baselines.wasserstein import KWNG, metric_factor, mixed_derivatives, natural_gradient


@pytest.mark.parametrize("B", [1, 3, 40])  # r = 2 B against m = 39: both sides
@pytest.mark.parametrize("scaling", ["identity", "diagonal"])
def test_lm_step_solves_the_damped_gauss_newton_system(B, scaling):
    model, (x, y) = dense_net(), batch(B)
    names = [k for k, _ in model.named_parameters()]
    rows = sample_rows(model, x, 3)
    J = torch.stack([torch.cat([s[k].flatten(1) for k in names], dim=1) for s in rows]).flatten(
        0, 1
    )
    H = J.mT @ J / B
    g = torch.cat(
        [v.flatten() for v in torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())]
    )
    _, quadratic = LevenbergMarquardt(model, scaling=scaling).expand(x, y)
    torch.testing.assert_close(quadratic.gradient, g)
    torch.testing.assert_close(quadratic.J.mT @ quadratic.J, H)
    D = torch.diag(quadratic.scale)
    if scaling == "diagonal":
        torch.testing.assert_close(quadratic.scale, H.diagonal(), atol=1e-12, rtol=1e-8)
    expected = -torch.linalg.solve(H + 0.03 * D, g)
    solver = Solver(quadratic)
    assert solver.primal == (2 * B >= 39)
    torch.testing.assert_close(solver(0.03), expected, rtol=1e-6, atol=1e-9)


def test_gauss_newton_matrix_is_the_hessian_where_the_net_is_linear():
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    x, y = batch(8)
    H = hessian(lambda W: F.cross_entropy(x @ W.mT, y))(model.weight.detach()).reshape(15, 15)
    _, quadratic = LevenbergMarquardt(model).expand(x, y)
    torch.testing.assert_close(quadratic.J.mT @ quadratic.J, H)


def test_lm_never_raises_the_loss_and_finds_the_least_squares_solution():
    from scipy.optimize import least_squares

    torch.manual_seed(2)
    teacher, model = (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(2))
    teacher, model = teacher.double(), model.double()
    x = 2 * batch(60, (2,))[0]
    y = (teacher(x) + 0.02 * torch.sin(9 * x[:, :1])).detach()
    with torch.no_grad():  # far from flat valleys, where both need hundreds of steps
        for p, near in zip(model.parameters(), teacher.parameters(), strict=True):
            p.mul_(0.1).add_(near)
    names = [k for k, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def residuals(u):
        pieces = torch.from_numpy(u).split([s.numel() for s in shapes])
        values = {k: v.view(s) for k, v, s in zip(names, pieces, shapes, strict=True)}
        return functional_call(model, values, (x,)).sub(y).flatten().detach().numpy()

    start = vector(model).numpy().copy()
    optimizer = LevenbergMarquardt(model, "squared_error")
    losses = [float(optimizer.step(x, y)) for _ in range(30)]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    best = least_squares(residuals, start, method="lm", max_nfev=500)
    assert losses[-1] <= best.cost / 60 * (1 + 1e-6)


def test_lm_damping_follows_nielsens_rule():
    optimizer = LevenbergMarquardt(dense_net(), damping=1.0)
    group = optimizer.param_groups[0]
    assert optimizer.move(group, actual=1.0, predicted=1.0)
    assert group["damping"] == pytest.approx(1 / 3)
    assert optimizer.move(group, actual=0.5, predicted=1.0)
    assert group["damping"] == pytest.approx(1 / 3)
    assert not optimizer.move(group, actual=-1.0, predicted=1.0)
    assert not optimizer.move(group, actual=float("nan"), predicted=1.0)
    assert group["damping"] == pytest.approx(8 / 3)


# -- KWNG --------------------------------------------------------------------------------------
def test_mixed_derivatives_of_the_kernel_equal_autograd():
    g = torch.Generator().manual_seed(0)
    y, x = torch.randn(2, 3, generator=g).double(), torch.randn(4, 3, generator=g).double()
    axes, squared = torch.tensor([2, 0]), torch.tensor(0.7, dtype=torch.float64)

    def kernel(a, b):
        return torch.exp(-(a - b).square().sum() / (2 * squared))

    second = jacrev(jacrev(kernel), argnums=1)
    expected = torch.stack(
        [torch.stack([second(y[m], x[n])[axes[m]] for n in range(4)]) for m in range(2)]
    )
    torch.testing.assert_close(mixed_derivatives(y, axes, x, squared), expected)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("diagonal", [False, True])
def test_kwng_step_equals_the_dense_estimator(ridge, diagonal):
    model, (x, y) = dense_net(), batch(9)
    before = vector(model)
    optimizer = KWNG(
        model, lr=0.5, damping=0.02, basis=4, ridge=ridge, clip=None, adapt_every=0, seed=7,
        scaling="diagonal" if diagonal else "identity",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    chosen = torch.randperm(9, generator=generator)[:4]
    axes = torch.randint(3, (4,), generator=generator)
    z = model(x).detach()
    Y = z[chosen]
    squared = (Y[:, None] - z).square().sum(-1).mean()

    def kernel(a, b):
        return torch.exp(-(a - b).square().sum() / (2 * squared))

    first, second = jacrev(kernel), jacrev(jacrev(kernel), argnums=1)
    values = {k: v.detach() for k, v in model.named_parameters()}

    def tau(p):  # mean over the batch of the basis functions: (M,)
        out = functional_call(model, p, (x,))
        return torch.stack(
            [torch.stack([first(Y[m], o)[axes[m]] for o in out]).mean() for m in range(4)]
        )

    J = jacrev(tau)(values)
    T = torch.cat([J[k].flatten(1) for k in values], dim=1)
    C = torch.stack(
        [torch.stack([second(Y[m], o)[axes[m]] for o in z]).flatten() for m in range(4)]
    )
    K = torch.stack(
        [torch.stack([second(Y[m], Y[k])[axes[m], axes[k]] for k in range(4)]) for m in range(4)]
    )
    G = T.mT @ torch.linalg.pinv(ridge * K + C @ C.mT / 9, hermitian=True) @ T
    D = G.diagonal().clamp_min(0).sqrt() if diagonal else torch.ones(len(before)).double()
    D = D + 1e-8 * D.max() * diagonal
    g = torch.cat(
        [v.flatten() for v in torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())]
    )
    expected = before - 0.5 * torch.linalg.solve(0.02 * torch.diag(D) + G, g)
    optimizer.step(x, y)
    torch.testing.assert_close(vector(model), expected, rtol=1e-4, atol=1e-6)


def test_wasserstein_metric_of_a_shift_tends_to_the_identity():
    """x + u moves every output by u; the transport cost is |u|^2, so the exact metric is I."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(400, 2, generator=g).double()
    points = torch.cat((z[:60], z[:60]))
    axes = torch.arange(2).repeat_interleave(60)
    C = mixed_derivatives(points, axes, z, torch.tensor(4.0, dtype=torch.float64))
    factor = metric_factor(C.mean(dim=1), C.flatten(1) @ C.flatten(1).mT / 400)
    metric = factor.mT @ factor
    torch.testing.assert_close(metric, torch.eye(2).double(), rtol=0, atol=0.05)
    few = metric_factor(C[:3].mean(dim=1), C[:3].flatten(1) @ C[:3].flatten(1).mT / 400)
    assert (few.mT @ few).trace() < metric.trace()  # a smaller span sees less of the movement


def test_natural_gradient_is_the_damped_solve():
    g = torch.Generator().manual_seed(0)
    factor, v = torch.randn(3, 6, generator=g).double(), torch.randn(6, generator=g).double()
    for damping in (1e-3, 10.0):
        expected = torch.linalg.solve(damping * torch.eye(6) + factor.mT @ factor, v)
        torch.testing.assert_close(natural_gradient(v, factor, damping, False), expected)
