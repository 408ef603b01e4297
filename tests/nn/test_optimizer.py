"""`DDPOptimizer`: one step of the loop, and all that torch expects of an optimiser."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import F64

import ocp
import ocp_nn
from ocp.solvers.decide import Rules
from ocp.solvers.loop import Solver
from ocp_nn.optimizer import DDPOptimizer, DivergedError
from ocp_nn.statistics import METRICS

OPTIONS = [
    {},
    {"metric": "rmsprop", "lr": 0.05},
    {"metric": "adam", "lr": 0.05},
    {"metric": "kfac", "lr": 0.3, "refresh": 3},
    {"metric": "ekfac", "lr": 0.3, "refresh": 3},
    {"metric": "ekfac", "lr": 0.1, "form": "paper", "statistics": "value", "refresh": 3},
    {"damping": "adaptive"},
]


def net(dtype: torch.dtype = F64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    ).to(dtype)


def batch(seed: int = 0, B: int = 8, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, 4, generator=g, dtype=F64)
    return x.to(dtype), (x[:, :3] ** 2).argmax(dim=1)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# -- one step of the loop --------------------------------------------------------------------------
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_is_one_iteration_of_solve_on_the_compiled_problem(options):
    model, (x, y) = net(), batch()
    problem = ocp_nn.compile(model, "cross_entropy", x, y, weight_decay=0.01)
    optimizer = DDPOptimizer(model, weight_decay=0.01, **options)
    us = ocp_nn.initial_controls(problem)
    expected_loss = F.cross_entropy(model(x), y)
    loss = optimizer.step(x, y)
    solver = optimizer.solver
    state = solver.step(problem, solver.init(problem, us))
    for t, u in enumerate(ocp_nn.initial_controls(problem)):
        assert torch.equal(u, state.us[t][0])
    once = replace(solver, rules=Rules(max_iterations=1))
    solution = ocp.solve(problem, once, controls=us)
    assert int(solution.iterations) == 1
    for u, v in zip(solution.controls, ocp_nn.initial_controls(problem), strict=True):
        assert torch.equal(u, v)
    torch.testing.assert_close(loss, expected_loss.detach())


def test_a_step_goes_through_the_loop_of_ocp(monkeypatch):
    """Whoever bypasses `Solver.step` fails here."""
    model, (x, y) = net(), batch()
    optimizer = DDPOptimizer(model)
    optimizer.step(x, y)
    before, calls = weights(model), []

    def nothing(self, problem, state):
        calls.append(problem)
        return state

    monkeypatch.setattr(Solver, "step", nothing)
    optimizer.step(*batch(1))
    assert len(calls) == 1
    assert torch.equal(weights(model), before)


def test_solve_runs_to_a_minimum_with_a_certificate():
    model, (x, y) = net(), batch()
    model[3] = nn.Tanh()  # a kink of ReLU can be a minimum without a small gradient
    problem = ocp_nn.compile(model, "cross_entropy", x, y, weight_decay=0.05)
    solver = DDPOptimizer(model, damping="adaptive", full_batch=True).solver
    us = ocp_nn.initial_controls(problem)
    solution = ocp.solve(problem, solver, controls=us)
    assert solution.status == ocp.Status.CONVERGED
    assert solution.engine == "function-space"
    ocp_nn.write_back(problem, solution.controls)
    loss = F.cross_entropy(model(x), y) + 0.025 * weights(model).square().sum()
    torch.testing.assert_close(solution.cost, loss.detach())
    total = F.cross_entropy(model(x), y) + 0.025 * sum(p.square().sum() for p in model.parameters())
    total.backward()
    largest = max(p.grad.abs().max() for p in model.parameters())
    torch.testing.assert_close(solution.hamiltonian_residual, largest, atol=1e-12, rtol=1e-6)
    assert "converged" in str(solution)


# -- training --------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_trains(metric, dtype):
    lr = {"gauss_newton": 1.0, "sgd": 0.5, "rmsprop": 0.02, "adam": 0.02, "kfac": 0.5, "ekfac": 0.5}
    model, (x, y) = net(dtype), batch(B=64, dtype=dtype)
    optimizer = DDPOptimizer(model, metric=metric, lr=lr[metric])
    first = float(F.cross_entropy(model(x), y))
    for _ in range(10):
        for rows in torch.randperm(64).split(16):
            optimizer.step(x[rows], y[rows])
    assert all(p.dtype == dtype for p in model.parameters())
    assert float(F.cross_entropy(model(x), y)) < 0.95 * first


def test_adaptive_damping_on_the_whole_set_never_lets_the_loss_grow():
    model, (x, y) = net(), batch(B=32)
    optimizer = DDPOptimizer(model, damping="adaptive", full_batch=True)
    losses = [float(optimizer.step(x, y)) for _ in range(25)]
    assert all(b <= a + 1e-12 for a, b in pairwise(losses))
    assert losses[-1] < 1e-2 * losses[0]
    assert optimizer.damping != 1.0


def test_adaptive_damping_judges_a_step_by_the_next_batch():
    """On noise a fit of one batch is worth nothing for the next: the damping grows. A batch judged
    by itself says the opposite."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, 4, generator=g, dtype=F64), torch.randint(0, 3, (60, 8), generator=g)
    data = list(zip(x, y, strict=True))
    model = net()
    optimizer = DDPOptimizer(model, damping="adaptive")
    start = optimizer.damping
    for x, y in data:
        optimizer.step(x, y)
    assert optimizer.damping > 2 * start
    misled = DDPOptimizer(net(), damping="adaptive", full_batch=True)
    for x, y in data:
        misled.step(x, y)
    assert misled.damping < start


def test_line_search_shortens_a_step_that_raises_the_loss():
    model, (x, y) = net(), batch()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    plain, searched = (
        DDPOptimizer(copy.deepcopy(model), damping=1e-4, line_search=s) for s in (False, True)
    )
    after = []
    for optimizer in (plain, searched):
        optimizer.step(x, y)
        after.append(float(F.cross_entropy(optimizer.model(x), y)))
    assert after[1] <= float(F.cross_entropy(model(x), y))
    assert after[1] <= after[0] + 1e-12


def test_batch_norm_in_training_mode_updates_its_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = batch()
    twin = copy.deepcopy(model)
    twin(x)
    optimizer = DDPOptimizer(model)
    optimizer.step(x, y)
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
    torch.testing.assert_close(model[1].running_var, twin[1].running_var)
    frozen = DDPOptimizer(twin, batch_norm="frozen")
    losses = [float(frozen.step(x, y)) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_convolutional_network_with_dropout_trains():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(12, 2),
    ).double()  # fmt: skip
    x = torch.randn(40, 1, 4, 4, dtype=F64)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    optimizer = DDPOptimizer(model, metric="ekfac", lr=0.3, dropout=5)
    losses = [float(optimizer.step(x, y)) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


# -- what torch expects ----------------------------------------------------------------------------
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_saved_run_continues_bit_for_bit(options):
    straight, resumed = net(torch.float32), net(torch.float32)
    a, b = DDPOptimizer(straight, **options), DDPOptimizer(resumed, **options)
    data = [batch(seed, dtype=torch.float32) for seed in range(10)]
    for x, y in data:
        a.step(x, y)
    for x, y in data[:5]:
        b.step(x, y)
    file = io.BytesIO()
    torch.save({"model": resumed.state_dict(), "optimizer": b.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    fresh = net(torch.float32)
    fresh.load_state_dict(saved["model"])
    c = DDPOptimizer(fresh, **options)
    c.load_state_dict(saved["optimizer"])
    assert c.steps == 5
    for x, y in data[5:]:
        c.step(x, y)
    assert torch.equal(weights(fresh), weights(straight))
    assert c.damping == a.damping


def test_schedulers_move_the_learning_rate_which_scales_the_metric():
    model, (x, y) = net(), batch()
    twin = copy.deepcopy(model)
    optimizer = DDPOptimizer(model, lr=1.0, damping=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    optimizer.step(x, y)
    scheduler.step()
    other = DDPOptimizer(twin, lr=1.0, damping=0.5)
    other.step(x, y)
    optimizer.step(x, y)
    expected = DDPOptimizer(twin, lr=1.0, damping=5.0)
    expected.step(x, y)
    torch.testing.assert_close(weights(model), weights(twin))


def test_groups_have_their_own_learning_rate_and_decay():
    model, (x, y) = net(), batch()
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.5, "weight_decay": 0.1},
        {"params": [p for layer in (model[2], model[4]) for p in layer.parameters()]},
    ]
    optimizer = DDPOptimizer(model, lr=2.0, damping=0.4, params=groups)
    before = ocp_nn.initial_controls(ocp_nn.compile(model, "cross_entropy", x, y))
    optimizer.step(x, y)
    decays = {"0.weight": 0.1, "0.bias": 0.1}
    problem = ocp_nn.compile(model, "cross_entropy", x, y, weight_decay=decays)
    engine = ocp.engines.Eager(problem)
    us = [u[None] for u in before]
    xs = engine.rollout(us)
    e = engine.expand(xs, us)
    for t, damping in ((0, 0.4 / 0.5), (2, 0.4 / 2), (4, 0.4 / 2)):
        n = e.n[t]
        e.lzz[t][0, n:, n:] += damping * torch.eye(len(before[t]), dtype=F64)
    sweep = engine.sweep(e, us, None, torch.zeros(1, dtype=F64), None)
    trial = engine.follow(xs, us, None, sweep.policy, torch.ones(1, dtype=F64))
    for t, u in enumerate(ocp_nn.initial_controls(problem)):
        torch.testing.assert_close(u, trial.us[t][0, 0], rtol=1e-9, atol=1e-9)


def test_weights_written_by_others_are_seen():
    model, (x, y) = net(), batch()
    optimizer = DDPOptimizer(model)
    optimizer.step(x, y)
    with torch.no_grad():
        model[0].weight.zero_()
    twin = copy.deepcopy(model)
    optimizer.step(x, y)
    DDPOptimizer(twin).step(x, y)
    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize("metric", METRICS)
def test_a_regulariser_is_a_stage_cost(metric):
    """1/2 a |u|^2 as a regulariser is weight decay; softabs draws weights to zero."""
    half = lambda u: 0.05 * u.square().sum()
    (x, y), one, other = batch(), net(), net()
    decayed = DDPOptimizer(one, weight_decay=0.1, metric=metric)
    regularised = DDPOptimizer(other, regulariser=half, metric=metric)
    for _ in range(3):
        torch.testing.assert_close(decayed.step(x, y), regularised.step(x, y))
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-9, atol=1e-11)
    sparse = net()
    softabs = DDPOptimizer(sparse, regulariser=lambda u: 0.05 * (u.square() + 1e-2).sqrt().sum())
    for _ in range(10):
        softabs.step(x, y)
    assert weights(sparse).abs().sum() < weights(net()).abs().sum()


def test_closures_and_gradients():
    model, (x, y) = net(), batch()
    optimizer = DDPOptimizer(model)
    value = optimizer.step(x, y, closure=lambda: F.cross_entropy(model(x), y))
    assert value.requires_grad
    loss = optimizer.step(lambda: (x, y))
    assert float(loss) < float(value)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(TypeError, match="must return \\(inputs, targets\\)"):
        optimizer.step(lambda: loss)
    with pytest.raises(TypeError, match=r"optimizer.step\(inputs, targets\)"):
        optimizer.step(x)


# -- trouble ---------------------------------------------------------------------------------------
def test_a_diverging_step_is_reported_and_the_last_good_weights_are_kept():
    model, (x, y) = net(torch.float32), batch(dtype=torch.float32)
    optimizer = DDPOptimizer(model, metric="sgd", form="gradient")
    optimizer.step(x, y)
    before = weights(model)
    optimizer.param_groups[0]["lr"] = 3e38
    with pytest.raises(DivergedError, match=r"step 2 diverged: .*stage \d \(") as error:
        for _ in range(3):
            optimizer.step(x, y)
    assert error.value.step == 2
    assert torch.equal(weights(model), before)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step(x, y)
    assert bool(torch.isfinite(weights(model)).all())


def test_data_that_is_not_finite_is_an_error():
    model, (x, y) = net(), batch()
    optimizer = DDPOptimizer(model)
    optimizer.step(x, y)
    bad = x.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        optimizer.step(bad, y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be > 0"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"metric": "newton"}, ValueError, "metric must be one of"),
        ({"form": "other"}, ValueError, "form must be one of"),
        ({"solver": "lu"}, ValueError, "^solver must be one of"),
        ({"terminal_damping": -1.0}, ValueError, "terminal_damping must be >= 0"),
        ({"feedback": "yes"}, ValueError, "feedback must be one of"),
        ({"damping": "auto"}, ValueError, "'adaptive'"),
        ({"damping": -1.0}, ValueError, "damping must be >= 0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0"),
        ({"decay": 1.0}, ValueError, "decay must lie in"),
        ({"refresh": 0}, ValueError, "refresh must be at least 1"),
        ({"form": "paper", "metric": "sgd", "solver": "cg"}, ValueError, "proximal form"),
        ({"form": "paper", "feedback": "linear"}, ValueError, "of the proximal form"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        DDPOptimizer(net(), **options)


def test_parameters_that_are_missing_or_states_of_others_are_refused():
    model, (x, y) = net(), batch()
    with pytest.raises(ValueError, match=r"2\.weight"):
        DDPOptimizer(model, params=[model[0].weight, model[0].bias])
    with pytest.raises(ValueError, match="no entry 'ddp'"):
        DDPOptimizer(model).load_state_dict(torch.optim.SGD(model.parameters(), lr=1).state_dict())
    with pytest.raises(ValueError, match="damping and weight decay are both 0"):
        DDPOptimizer(model, damping=0.0).step(x, y)
