"""What Liu, Chen, Theodorou, "DDPNOpt" (ICLR 2021) state, each against its own reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from zoo import F64

import ocp
import ocp_nn
from ocp.engines import Eager
from ocp.solvers.hamiltonian import Hamiltonian
from ocp_nn.batch_ddp import BatchDDP
from ocp_nn.optimizer import DDPOptimizer
from ocp_nn.statistics import Settings


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Sigmoid(), nn.Linear(3, 5)
    ).double()


def batch(B: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, 4, generator=g, dtype=F64), torch.randint(0, 5, (B,), generator=g)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# -- the maximum principle and back-propagation ----------------------------------------------------
@pytest.mark.parametrize("B", [1, 3, 16])
def test_a_gradient_step_on_every_hamiltonian_is_back_propagation(B):
    """Lemma 3, Propositions 4 and 6: along the co-states, of one sample or a batch, H_u is the
    gradient of the loss, so that PMP with gradient steps is (mini-batch) SGD."""
    model, (x, y) = net(), batch(B)
    problem = ocp_nn.compile(model, "cross_entropy", x, y)
    us = [u[None] for u in ocp_nn.initial_controls(problem)]
    engine = Eager(problem)
    xs = engine.rollout(us)
    ps, hus = engine.costates(engine.expand(xs, us))
    of_hamiltonian = Hamiltonian(engine, xs, ps).derivatives(us)[0]
    F.cross_entropy(model(x), y).backward()
    parameters = iter(model.parameters())
    for t, u in enumerate(us):
        if u.shape[1] == 0:
            continue
        expected = torch.cat([next(parameters).grad.reshape(-1) for _ in range(2)])
        close(hus[t][0], expected, 1e-14)
        close(of_hamiltonian[t][0], expected, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_coupling_and_with_the_metric_of_sgd_training_is_sgd_to_rounding(dtype, decay):
    """Table 2, Q_ux = 0 and Q_uu^{-1} = eta I, over ten mini-batches."""
    ours, theirs = net().to(dtype), net().to(dtype)
    a = DDPOptimizer(ours, lr=0.3, metric="sgd", form="gradient", damping=0.0, weight_decay=decay)
    b = torch.optim.SGD(theirs.parameters(), lr=0.3, weight_decay=decay)
    if decay > 0:  # the proximal Q_uu has the curvature of the decay too: the implicit step
        for group in b.param_groups:
            group["lr"] = 1 / (1 / 0.3 + decay)
    for i in range(10):
        x, y = batch(4, seed=i)
        x = x.to(dtype)
        loss = a.step(x, y)
        b.zero_grad()
        expected = F.cross_entropy(theirs(x), y)
        expected.backward()
        b.step()
        close(loss, expected.detach(), 1e-5 if dtype == torch.float32 else 1e-12)
    close(weights(ours), weights(theirs), 1e-5 if dtype == torch.float32 else 1e-12)


def test_with_the_metric_of_rmsprop_it_is_rmsprop():
    ours, theirs = net(), net()
    a = DDPOptimizer(ours, lr=0.01, metric="rmsprop", form="gradient", damping=1e-3, decay=0.9)
    b = torch.optim.RMSprop(theirs.parameters(), lr=0.01, alpha=0.9, eps=1e-3)
    for i in range(10):
        x, y = batch(4, seed=i)
        a.step(x, y)
        b.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        b.step()
    close(weights(ours), weights(theirs), 1e-12)


def test_with_the_metric_of_adam_it_is_adam():
    ours, theirs = net(), net()
    a = DDPOptimizer(
        ours, lr=0.01, metric="adam", form="gradient", damping=1e-3, decay=0.99, momentum=0.8
    )
    b = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.8, 0.99), eps=1e-3)
    for i in range(10):
        x, y = batch(4, seed=i)
        a.step(x, y)
        b.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        b.step()
    close(weights(ours), weights(theirs), 1e-11)


# -- stage-wise Newton -----------------------------------------------------------------------------
@pytest.mark.parametrize("B", [1, 3, 16])
def test_without_coupling_ddp_is_newton_stage_by_stage(B):
    """Proposition 5, with the Gauss-Newton Hessian of the loss in one layer's weights."""
    model, (x, y) = net(), batch(B)
    damping, expected = 0.2, []
    parameters = dict(model.named_parameters())
    for layer in ("0", "2", "4"):
        names = f"{layer}.weight", f"{layer}.bias"
        own = torch.cat([parameters[n].detach().reshape(-1) for n in names])

        def outputs(u: Tensor, names: tuple[str, str] = names) -> Tensor:
            shapes = [parameters[n].shape for n in names]
            parts = u.split([s.numel() for s in shapes])
            values = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            return functional_call(model, {**parameters, **values}, (x,))

        z = outputs(own).detach()
        J = jacrev(outputs)(own)
        H = torch.stack([hessian(F.cross_entropy)(z[i], y[i]) for i in range(B)]) / B
        A = torch.einsum("bcm,bcd,bdn->mn", J, H, J) + damping * torch.eye(len(own), dtype=F64)
        g = torch.einsum("bcm,bc->m", J, jacrev(F.cross_entropy)(z, y))
        expected.append(own - torch.linalg.solve(A, g))
    DDPOptimizer(model, damping=damping, form="stagewise").step(x, y)
    close(weights(model), torch.cat(expected).detach())


# -- the structure of the expansion ----------------------------------------------------------------
def test_the_expansion_of_a_linear_layer_has_the_structure_of_eq_13_and_14():
    """Q_uu = x x' (x) V_hh, Q_ux = x (x) V_hh W, and V_h in the off-diagonal block of g_ux."""
    model, (x, y) = net(), batch(1)
    problem = ocp_nn.compile(model, "cross_entropy", x, y)
    us = [u[None] for u in ocp_nn.initial_controls(problem)]
    engine = Eager(problem)
    xs = engine.rollout(us)
    expansion = engine.expand(xs, us)
    A = torch.randn(3, 3, dtype=F64)
    V, v, t = A @ A.T, torch.randn(3, dtype=F64), 2
    X, W = xs[t][0], us[t][0, :18].view(3, 6)
    fx, fu = expansion.fz[t][0].split([6, 21], dim=1)
    one = torch.cat((X, X.new_ones(1)))
    reorder = torch.cat((torch.arange(21).view(3, 7)[:, :6].reshape(-1), torch.arange(6, 21, 7)))
    close(fu.T @ V @ fu, torch.kron(V, torch.outer(one, one))[reorder][:, reorder])
    close(fu.T @ V @ fx, torch.kron(V @ W, one[:, None])[reorder].reshape(21, 6))
    second = engine.curvature(xs, us)(t, v[None])[0]
    mixed = second[6:, :6]
    expected = torch.zeros(21, 6, dtype=F64)
    for row in range(3):
        expected[6 * row : 6 * row + 6] = v[row] * torch.eye(6, dtype=F64)
    close(mixed, expected)
    close(second[6:, 6:], torch.zeros(21, 21, dtype=F64))


@pytest.mark.parametrize("B", [2, 5])
def test_value_hessians_of_a_batch_lose_their_block_structure(B):
    """Eq. 37: dense recursion and ``Y S^{-1} Y'`` agree, and samples couple before the end."""
    model, (x, y) = net(), batch(B)
    problem = ocp_nn.compile(model, "cross_entropy", x, y)
    us = [u[None] for u in ocp_nn.initial_controls(problem)]
    engine = Eager(problem)
    xs = engine.rollout(us)
    damping = torch.full((1,), 0.3, dtype=F64)
    sweep = engine.sweep(engine.expand(xs, us), us, None, damping, None, proximal=True)
    solver = BatchDDP(damping=0.3)
    state = solver.init(problem, [u[0] for u in us])
    expansion = state.engine.expand(state.xs, state.us)
    source = solver.direction(state, expansion).policy.source
    for t in (2, 4):
        Y = expansion.y(t).couple().rows.movedim(1, 2).reshape(-1, expansion.r)
        V = Y @ torch.cholesky_solve(Y.T, source.factors[t])
        close(V, sweep.vxx[t][0])
        n = V.shape[0] // B
        assert V[:n, n:].abs().max() > 1e-3 * V.abs().max()
        vx = Y @ torch.cholesky_solve(source.ws[t][:, None], source.factors[t])[:, 0]
        close(vx, sweep.vx[t][0])
    last = sweep.vxx[-1][0]
    assert torch.equal(last[:5, 5:], torch.zeros_like(last[:5, 5:]))


def test_with_one_sample_and_two_classes_value_hessians_are_outer_products():
    """Eq. 16: ``V_xx = z z'`` with ``z_t = sqrt(1 - q_u' Q_uu^{-1} q_u) q_x`` stage by stage.

    Follows from ``V_xx = Q_xx - Q_xu Q_uu^{-1} Q_ux`` with ``Q = (q_x, q_u) (q_x, q_u)'``.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(),
        nn.Linear(4, 2),
    ).double()  # fmt: skip
    x, eta = torch.randn(1, 4, dtype=F64), 0.05
    problem = ocp_nn.compile(model, "cross_entropy", x, torch.tensor([1]))
    us = [u[None] for u in ocp_nn.initial_controls(problem)]
    dense = Eager(problem)
    expansion = dense.expand(dense.rollout(us), us)
    values, vectors = torch.linalg.eigh(expansion.phixx[0])
    z = values[-1].sqrt() * vectors[:, -1]
    solver = BatchDDP(metric=Settings("sgd"), form="paper", damping=0.0, lr=eta)
    state = solver.init(problem, [u[0] for u in us])
    model_of = state.engine.expand(state.xs, state.us)
    source = solver.direction(state, model_of).policy.source
    for t in reversed(range(4, 7)):
        n = expansion.n[t]
        fz = expansion.fz[t][0]
        q_x, q_u = fz[:, :n].T @ z, fz[:, n:].T @ z
        z = (1 - eta * q_u @ q_u).sqrt() * q_x
        if t in (4, 6):  # C at 2 is nobody's: the first stage has no deviation
            Y = model_of.y(t).rows[0]
            C = source.Cs[t - 2](torch.ones(1, dtype=F64))[:, None]  # r = 1
            close(Y.T @ C @ Y, torch.outer(z, z))


@pytest.mark.parametrize("metric", ["sgd", "rmsprop"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_papers_form_is_the_dense_recursion_with_that_quu(metric, decay):
    """Eq. 15: Q_uu^{-1} replaced by P in gains and value, without L_uu."""
    model, (x, y) = net(), batch(3)
    problem = ocp_nn.compile(model, "cross_entropy", x, y, weight_decay=decay)
    us = ocp_nn.initial_controls(problem)
    solver = BatchDDP(metric=Settings(metric), form="paper", damping=0.5, lr=0.05, mini_batch=True)
    state = solver.init(problem, us)
    metrics = solver.direction(state, state.engine.expand(state.xs, state.us)).policy.source.metrics
    actual = solver.step(problem, state).us
    engine, lines = Eager(problem), [u[None] for u in us]
    xs = engine.rollout(lines)
    e = engine.expand(xs, lines)
    vx, vxx = e.phix[0], e.phixx[0]
    gains = []
    for t in reversed(range(problem.horizon)):
        n, fz = e.n[t], e.fz[t][0]
        q, Q = e.lz[t][0] + fz.T @ vx, fz.T @ vxx @ fz
        P = metrics[t].apply(torch.eye(len(us[t]), dtype=F64)) if len(us[t]) else Q[n:, n:]
        k, K = -P @ q[n:], -P @ Q[n:, :n]
        gains.append((k, K))
        vx, vxx = q[:n] + Q[n:, :n].T @ k, Q[:n, :n] + Q[n:, :n].T @ K
    X = xs[0]
    for t, (k, K) in enumerate(reversed(gains)):
        u = lines[t] + k + K @ (X - xs[t])[0]
        close(actual[t], u, 1e-9)
        X = engine.step(X, u, t)


@pytest.mark.slow
def test_second_order_ddp_converges_where_the_papers_does_not_yet():
    """V_h . g_ux and sigma_hh: the dense engine has them, for small networks."""
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5)).double(), batch(6)
    problem = ocp_nn.compile(model, "cross_entropy", x, y, weight_decay=0.05)
    us = ocp_nn.initial_controls(problem)
    full = ocp.solve(problem, "ddp", controls=us, engine="eager", max_iterations=40)
    first = ocp.solve(problem, "ilqr", controls=us, engine="eager", max_iterations=40)
    assert bool(full.converged)
    assert int(full.iterations) < int(first.iterations)
