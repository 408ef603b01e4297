"""Every optimiser behind one interface; ours against dense matrices and other routes."""

import io
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

from ocp_nn.baselines import OPTIMIZERS, make_optimizer, options_of
from ocp_nn.baselines.base import BatchLoss
from ocp_nn.baselines.kronecker import EKFAC, KFAC
from ocp_nn.baselines.levenberg_marquardt import LevenbergMarquardt, Solver
from ocp_nn.baselines.wasserstein import KWNG, metric_factor, mixed_derivatives, natural_gradient

HAS_MUON = hasattr(torch.optim, "Muon")
OWN = [
    name
    for name, entry in OPTIMIZERS.items()
    if entry.module.startswith("ocp_nn.baselines") and (name != "muon" or HAS_MUON)
]
CURVATURE = ("kfac", "ekfac", "kwng", "lm")


def dense_net(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def conv_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 3 * 3, 4, bias=False),
    )
    return net.double()


def batch(B, shape=(5,), classes=3, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(B, *shape, generator=g, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(classes, (B,), generator=g)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# -- the interface -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", torch.optim.SGD),
        ("momentum", partial(torch.optim.SGD, momentum=0.9)),
        ("rmsprop", torch.optim.RMSprop),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_a_batch_step_is_torchs_step_on_the_gradient_of_the_mean_loss(name, reference):
    mine, theirs = dense_net(), dense_net()
    own, other = (
        make_optimizer(name, mine),
        reference(theirs.parameters(), lr=options_of(name)["lr"]),
    )
    x, y = batch(7)
    for _ in range(3):
        loss = own.step(x, y)
        expected = F.cross_entropy(theirs(x), y)
        other.zero_grad()
        expected.backward()
        other.step()
        assert torch.equal(loss, expected.detach()) and not loss.requires_grad
    assert torch.equal(vector(mine), vector(theirs))


def test_torchs_forms_of_a_step_remain_and_schedulers_move_lr():
    mine, theirs = dense_net(), dense_net()
    own, other = make_optimizer("sgd", mine, lr=0.3), torch.optim.SGD(theirs.parameters(), lr=0.3)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (own, other)]
    x, y = batch(7)
    for model, optimizer, schedule in zip((mine, theirs), (own, other), schedules, strict=True):

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule.step()
        closure()
        optimizer.step()
    assert torch.equal(vector(mine), vector(theirs))
    assert own.param_groups[0]["lr"] == 0.15


@pytest.mark.skipif(not HAS_MUON, reason="torch.optim.Muon came with torch 2.9")
def test_muon_moves_matrices_and_adamw_the_rest():
    mine, theirs = dense_net(), dense_net()
    own = make_optimizer("muon", mine, lr=0.02, adamw_lr=0.003)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim != 2]
    parts = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=0.003, weight_decay=0.0),
    ]
    x, y = batch(7)
    for _ in range(3):
        own.step(x, y)
        theirs.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        for part in parts:
            part.step()
    assert torch.equal(vector(mine), vector(theirs))
    assert [g["lr"] for g in own.param_groups] == [0.02, 0.003]


def test_lbfgs_is_torchs_with_its_line_search():
    mine, theirs = dense_net(), dense_net()
    x, y = batch(20)
    own = make_optimizer("lbfgs", mine, max_iter=5)
    other = torch.optim.LBFGS(
        theirs.parameters(), lr=1.0, max_iter=5, line_search_fn="strong_wolfe"
    )

    def closure():
        other.zero_grad()
        loss = F.cross_entropy(theirs(x), y)
        loss.backward()
        return loss

    assert torch.equal(own.step(x, y), other.step(closure).detach())
    assert torch.equal(vector(mine), vector(theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OWN)
def test_a_saved_optimizer_continues_bit_for_bit(name, dtype):
    x, y = batch(6, dtype=dtype)
    options = {"momentum": 0.5, "refresh": 2} if name in ("kfac", "ekfac") else {}
    model = dense_net(dtype)
    optimizer = make_optimizer(name, model, **options)
    for _ in range(3):
        optimizer.step(x, y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = dense_net(dtype, seed=5)
    other.load_state_dict(saved["model"])
    resumed = make_optimizer(name, other, **options)
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        assert torch.equal(optimizer.step(x, y), resumed.step(x, y))
    assert torch.equal(vector(model), vector(other))


@pytest.mark.parametrize("loss", ["mse", "squared_error", "binary_cross_entropy", "huber"])
@pytest.mark.parametrize("name", ["sgd", *CURVATURE])
def test_every_loss_goes_down(name, loss):
    model = dense_net()
    x, _ = batch(12)
    targets = torch.rand(12, 3, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    optimizer = make_optimizer(name, model, loss)
    losses = [float(optimizer.step(x, targets)) for _ in range(20)]
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize(
    ("given", "out", "targets"),
    [
        ("cross_entropy", (3,), torch.tensor([0, 2])),
        ("cross_entropy", (3, 4), torch.tensor([[0, 2, 1, 1], [1, 2, 0, 0]])),
        ("cross_entropy", (3,), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0, 0]], dtype=torch.float64)),
        ("mse", (3, 2), torch.arange(12.0, dtype=torch.float64).reshape(2, 3, 2)),
        ("squared_error", (3,), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)),
        ("huber", (3,), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)),
        ("binary_cross_entropy", (3,), torch.ones(2, 3, dtype=torch.float64)),
        (lambda z, t: ((z - t) ** 4).sum(), (3,), torch.ones(2, 3, dtype=torch.float64)),
    ],
)
def test_the_fused_loss_is_the_mean_of_the_sample_losses(given, out, targets):
    outputs = torch.randn(2, *out, generator=torch.Generator().manual_seed(0)).double()
    batch_loss = BatchLoss(given)
    value = batch_loss(outputs, targets)
    loss, prepared = batch_loss.prepare(outputs, targets)
    torch.testing.assert_close(value, loss.value(outputs.flatten(1), prepared).mean())


# -- KFAC and EKFAC ----------------------------------------------------------------------------
def sample_rows(model, x, classes):
    """Rows of the per-sample curvature factor for every parameter: B lists over k of dicts."""
    values = {k: v.detach() for k, v in model.named_parameters()}
    samples = []
    for one in x:

        def logits(p, one=one):
            return functional_call(model, p, (one[None],))[0]

        J = jacrev(logits)(values)
        p = logits(values).softmax(0)
        # sum over y of p_y (e_y - p)(e_y - p)' is the Fisher matrix of the logits
        Y = (torch.eye(classes, dtype=x.dtype) - p) * p.sqrt()[:, None]
        samples.append({k: torch.tensordot(Y, v, 1) for k, v in J.items()})
    return samples


def layer_rows(samples, name, bias=True):
    """(B, k, n_out, n_in + 1) of one layer."""
    W = torch.stack([s[f"{name}.weight"] for s in samples]).flatten(3)
    if not bias:
        return W
    return torch.cat((W, torch.stack([s[f"{name}.bias"] for s in samples])[..., None]), dim=-1)


def fisher(rows):
    """Dense block (n_out n_in)^2 from (B, k, n_out, n_in)."""
    flat = rows.flatten(2)
    return torch.einsum("bki,bkj->ij", flat, flat) / len(rows)


@pytest.mark.parametrize("name", ["0", "2"])
def test_kfac_is_exact_for_one_sample(name):
    model = dense_net()
    x, y = batch(1)
    expected = fisher(layer_rows(sample_rows(model, x, 3), name))
    optimizer = KFAC(model, statistics="exact")
    optimizer.step(x, y)
    state = optimizer.state[optimizer.layers[name].weight]
    torch.testing.assert_close(torch.kron(state["G"], state["A"]), expected)


def test_kfac_factors_of_a_convolution_equal_loops_over_positions():
    model, (x, y) = conv_net(), batch(3, (2, 5, 5), classes=4)
    conv, B = model[0], 3
    optimizer = KFAC(model, statistics="exact")
    values = {k: v.detach().clone() for k, v in model.named_parameters()}
    padded = F.pad(x, (0, 0, 1, 1))
    heights, widths = range(0, 5, 2), range(3)
    patches = torch.stack(
        [padded[:, :, i : i + 3, j : j + 3 : 2].flatten(1) for i in heights for j in widths], dim=1
    )
    a = torch.cat((patches, torch.ones_like(patches[..., :1])), dim=-1)

    def rest(z):
        return functional_call(model[1:], {"2.weight": values["3.weight"]}, (z[None],))[0]

    G = torch.zeros(3, 3, dtype=x.dtype)
    for z in conv(x).detach():
        J, p = jacrev(rest)(z), rest(z).softmax(0)
        for k in range(4):
            e = (torch.eye(4, dtype=x.dtype)[k] - p) * p[k].sqrt()
            g = torch.tensordot(e, J, 1).flatten(1)  # (channels, positions)
            G += g @ g.mT / (B * g.shape[1])
    optimizer.step(x, y)
    state = optimizer.state[conv.weight]
    torch.testing.assert_close(state["A"], torch.einsum("bli,blj->ij", a, a) / B)
    torch.testing.assert_close(state["G"], G)


@pytest.mark.parametrize("statistics", ["exact", "empirical"])
def test_factors_agree_with_curvlinops(statistics):
    curvlinops = pytest.importorskip("curvlinops")
    model, (x, y) = conv_net(), batch(4, (2, 5, 5), classes=4)
    parameters = list(model.parameters())
    kind = {"exact": curvlinops.FisherType.TYPE2, "empirical": curvlinops.FisherType.EMPIRICAL}
    reference = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(x, y)], fisher_type=kind[statistics],
        separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    dense = reference @ torch.eye(reference.shape[1], dtype=x.dtype)
    optimizer = KFAC(model, statistics=statistics)
    optimizer.step(x, y)
    # curvlinops orders all weights and biases as the model does; compare products with vectors.
    at = 0
    for layer in optimizer.layers.values():
        W, state = layer.weight, optimizer.state[layer.weight]
        size = W.numel() + (0 if layer.bias is None else layer.bias.numel())
        block = dense[at : at + size, at : at + size]
        K = torch.kron(state["G"], state["A"])
        columns = torch.arange(size).reshape(W.shape[0], -1)
        order = columns.reshape(-1)
        if layer.bias is not None:  # ours has the bias as a last column of every row
            order = torch.cat((columns[:, :-1].reshape(-1), columns[:, -1]))
        torch.testing.assert_close(K[order][:, order], block)
        at += size


@pytest.mark.parametrize("net", ["dense", "conv"])
def test_ekfac_scales_are_the_diagonal_of_the_fisher_in_its_basis(net):
    if net == "dense":
        model, (x, y), classes, name = dense_net(), batch(6), 3, "0"
    else:
        model, (x, y), classes, name = conv_net(), batch(3, (2, 5, 5), classes=4), 4, "0"
    rows = layer_rows(sample_rows(model, x, classes), name)
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())[:2])
    before = vector(model)
    optimizer = EKFAC(model, statistics="exact", lr=0.3, damping=0.1)
    optimizer.step(x, y)
    state = optimizer.state[optimizer.layers[name].weight]
    U = torch.kron(state["U_G"], state["U_A"])
    F_dense = fisher(rows)
    torch.testing.assert_close((U.mT @ F_dense @ U).diagonal(), state["s"].flatten())
    # the update, through the dense matrix that EKFAC stands for
    g = torch.cat((gradient[0].flatten(1), gradient[1][:, None]), dim=1)
    metric = U @ torch.diag(state["s"].flatten() + 0.1) @ U.mT
    update = torch.linalg.solve(metric, g.flatten()).view_as(g)
    moved = (before - vector(model))[: g.numel()] / 0.3
    actual = torch.cat((update[:, :-1].flatten(), update[:, -1]))
    torch.testing.assert_close(moved, actual)
    # George et al., Section 3: in Frobenius norm never further from the Fisher than KFAC
    kfac = torch.kron(state["G"], state["A"])
    ekfac = U @ torch.diag(state["s"].flatten()) @ U.mT
    assert (F_dense - ekfac).norm() < (F_dense - kfac).norm()


def test_kfac_update_solves_the_damped_kronecker_system():
    model, (x, y) = dense_net(), batch(6)
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())[:2])
    before = vector(model)
    optimizer = KFAC(model, statistics="exact", lr=0.3, damping=0.04, weight_decay=0.0)
    optimizer.step(x, y)
    state = optimizer.state[model[0].weight]
    A, G = state["A"], state["G"]
    pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
    damped = torch.kron(
        G + 0.2 / pi * torch.eye(4, dtype=G.dtype), A + 0.2 * pi * torch.eye(6, dtype=G.dtype)
    )
    g = torch.cat((gradient[0], gradient[1][:, None]), dim=1)
    update = torch.linalg.solve(damped, g.flatten()).view_as(g)
    expected = torch.cat((update[:, :-1].flatten(), update[:, -1]))
    torch.testing.assert_close((before - vector(model))[: g.numel()] / 0.3, expected)


def test_running_means_follow_the_papers_schedule():
    model = dense_net()
    optimizer = KFAC(model, statistics="exact", decay=0.6)
    weight, expected = model[0].weight, None
    for k in range(1, 5):
        x, y = batch(4, seed=k)
        a = torch.cat((x, torch.ones(4, 1, dtype=x.dtype)), dim=1)
        keep = min(0.6, 1 - 1 / k)
        A = a.mT @ a / 4
        expected = A if expected is None else keep * expected + (1 - keep) * A
        optimizer.step(x, y)
        torch.testing.assert_close(optimizer.state[weight]["A"], expected)


def test_sampled_statistics_have_the_exact_ones_as_their_mean():
    x, y = batch(3)
    repeated = x.repeat(4000, 1), y.repeat(4000)
    models = dense_net(), dense_net()
    exact, sampled = KFAC(models[0], statistics="exact"), KFAC(models[1], statistics="sampled")
    exact.step(x, y)
    sampled.step(*repeated)
    G = [o.state[m[0].weight]["G"] for o, m in zip((exact, sampled), models, strict=True)]
    torch.testing.assert_close(G[1], G[0], rtol=0.1, atol=0.02 * float(G[0].abs().max()))


def test_kfac_trains_other_parameters_by_plain_gradient_when_told_to():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    x, y = batch(6)
    with pytest.raises(ValueError, match=r"no place for 1\.weight, 1\.bias.*rest_lr"):
        KFAC(model)
    g = torch.autograd.grad(F.cross_entropy(model(x), y), model[1].weight)[0]
    before = model[1].weight.detach().clone()
    KFAC(model, rest_lr=0.5).step(x, y)
    torch.testing.assert_close(model[1].weight.detach(), before - 0.5 * g)


# -- Levenberg-Marquardt -----------------------------------------------------------------------
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


# -- mistakes ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adma", {}, "no optimizer 'adma'. Did you mean adam"),
        ("adam", {"beta": 1}, "no option 'beta'. Did you mean betas"),
        ("kfac", {"damping": 0.0}, "damping must be positive"),
        ("kfac", {"lr": -1.0}, "lr must be positive"),
        ("kfac", {"decay": 1.0}, "decay must be less than 1"),
        ("ekfac", {"statistics": "exakt"}, "statistics must be one of exact, sampled, empirical"),
        ("kfac", {"refresh": 0}, "refresh must be at least 1"),
        ("kfac", {"kl_clip": 0.0}, "kl_clip must be positive"),
        ("kwng", {"basis": 0}, "basis must be at least 1"),
        ("kwng", {"scaling": "none"}, "scaling must be"),
        ("lm", {"trials": 0}, "trials must be at least 1"),
        ("sgd", {"lr": -0.1}, "Invalid learning rate"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make_optimizer(name, dense_net(), **options)


def test_models_without_structure_are_refused_by_name():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="2 and 0 share a parameter"):
        KFAC(tied)
    layer = nn.Linear(3, 3).double()
    twice = KFAC(nn.Sequential(layer, nn.Tanh(), layer))
    with pytest.raises(ValueError, match="layer 0 was called 2 times"):
        twice.step(*batch(4, (3,)))
    inplace = KFAC(nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)).double())
    with pytest.raises(ValueError, match="output of 0 is overwritten"):
        inplace.step(*batch(4))
    with pytest.raises(ValueError, match="no parameter to train"):
        make_optimizer("sgd", nn.Tanh())


@pytest.mark.parametrize("name", CURVATURE)
def test_curvature_needs_the_batch(name):
    optimizer = make_optimizer(name, dense_net())
    with pytest.raises(TypeError, match=r"call step\(inputs, targets\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="no state of"):
        optimizer.load_state_dict(make_optimizer("sgd", dense_net()).state_dict())
    with pytest.raises(TypeError, match="needs targets"):
        make_optimizer("sgd", dense_net()).step(batch(3)[0])


def test_targets_that_do_not_fit_are_refused():
    optimizer = make_optimizer("sgd", dense_net())
    x, y = batch(4)
    with pytest.raises(ValueError, match="4 inputs came with 3 targets"):
        optimizer.step(x, y[:3])
    with pytest.raises(ValueError, match="classes"):
        optimizer.step(x, y + 3)


def test_options_list_what_the_class_takes():
    assert options_of("kfac")["damping"] > 0 and options_of("adam")["betas"] == (0.9, 0.999)
    assert options_of("momentum")["momentum"] == 0.9 and "model" not in options_of("sgd")
