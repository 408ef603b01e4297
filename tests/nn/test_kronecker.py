"""KFAC and EKFAC against dense matrices, loops over positions and curvlinops."""

import pytest
import torch
import torch.nn.functional as F
from nets import batch, conv_net, dense_net, sample_rows, vector
from torch import nn
from torch.func import functional_call, jacrev

from ocp_nn.baselines.kronecker import EKFAC, KFAC


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
