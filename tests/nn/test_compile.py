"""The compiled problem: cost, data, one dense step, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_table import compiled
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap
from zoo import F64, GRAPHS, Branching, data, made

import ocp
import ocp_nn
from ocp.engines import Eager
from ocp_nn.losses import FunctionLoss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2), nn.GELU(), nn.Linear(2, 3))


X, Y = draw(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])


def softabs(u: Tensor) -> Tensor:
    return 0.01 * (u.square() + 0.1).sqrt().sum()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def cost_at(problem: ocp.Problem, us: list[Tensor]) -> Tensor:
    engine, lines = Eager(problem), [u[None] for u in us]
    return engine.total_cost(engine.rollout(lines), lines)[0]


# -- the cost ------------------------------------------------------------------------------------
def test_weight_decay_and_regulariser_are_stage_costs_of_the_weights():
    model = small().double()
    problem = ocp_nn.compile(model, "cross_entropy", X, Y, weight_decay=0.3, regulariser=softabs)
    us = ocp_nn.initial_controls(problem)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = F.cross_entropy(model(X), Y) + 0.15 * flat @ flat + softabs(flat)
    close(cost_at(problem, us), expected)
    cost = problem.cost
    assert isinstance(cost, ocp_nn.LossCost)
    for t, u in enumerate(us):
        l = lambda u, t=t: problem.cost.stage(X[0], u, t)
        close(cost.control_gradient(u, t), torch.func.grad(l)(u))
        H = hessian(l)(u)
        close(torch.diag(cost.control_diagonal(u, t)), H)
        close(cost.control_curvature(u, t, u), H @ u)
    assert cost.regularised
    assert not ocp_nn.compile(model, "cross_entropy", X, Y).cost.regularised


def test_weight_decay_may_differ_by_parameter():
    model = small().double()
    problem = ocp_nn.compile(
        model, "cross_entropy", X, Y, weight_decay={"0.weight": 0.4, "4.bias": 0.2}
    )
    W, b = model[0].weight, model[4].bias
    expected = F.cross_entropy(model(X), Y) + 0.2 * W.square().sum() + 0.1 * b.square().sum()
    us = ocp_nn.initial_controls(problem)
    close(cost_at(problem, us), expected)
    assert problem.cost.decay[1] == 0.0
    close(problem.cost.control_gradient(us[0], 0)[:20], 0.4 * W.flatten())


@pytest.mark.parametrize("loss", ["mse", "squared_error", "huber", "binary_cross_entropy"])
def test_losses_of_float_targets(loss):
    model, targets = small().double(), torch.rand(6, 3, dtype=F64)
    problem = ocp_nn.compile(model, loss, X, targets)
    functions: dict[str, Callable[..., Tensor]] = {
        "mse": F.mse_loss,
        "squared_error": lambda y, t: 0.5 * (y - t).square().sum(dim=1).mean(),
        "huber": F.huber_loss,
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    }
    close(cost_at(problem, ocp_nn.initial_controls(problem)), functions[loss](model(X), targets))


def test_a_users_loss_may_see_outputs_of_any_shape():
    def both(output: Tensor, target: Tensor) -> Tensor:
        return torch.log(torch.cosh(output - target)).mean() + (output[:, 0] ** 2).mean()

    targets = draw(3, 3, 4, 4)
    model, x = made(GRAPHS[2]), data(GRAPHS[2], 3)[0]
    problem = ocp_nn.compile(model, both, x, targets)
    close(cost_at(problem, ocp_nn.initial_controls(problem)), both(model(x), targets))


def test_per_position_cross_entropy_of_a_u_shaped_net():
    model, x = made(GRAPHS[2]), data(GRAPHS[2], 2)[0]
    targets = torch.randint(3, (2, 4, 4))
    problem = ocp_nn.compile(model, "cross_entropy", x, targets)
    close(cost_at(problem, ocp_nn.initial_controls(problem)), F.cross_entropy(model(x), targets))


# -- other data ------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_norm", [False, True])
def test_other_data_of_another_size_is_the_problem_compiled_on_it(batch_norm):
    if batch_norm:
        model, (x, y) = made(GRAPHS[8]), data(GRAPHS[8], 3)
        other = data(GRAPHS[8], 5)
    else:
        model, (x, y), other = small().double(), (X, Y), (draw(9, 4), torch.zeros(9).long())
    problem = ocp_nn.compile(model, "cross_entropy", x, y)
    fresh = ocp_nn.compile(model, "cross_entropy", *other)
    again = ocp_nn.with_data(problem, *other)
    assert again.dynamics is problem.dynamics
    assert again.cost is problem.cost
    assert again.state_dims == fresh.state_dims
    us = ocp_nn.initial_controls(problem)
    close(cost_at(again, us), cost_at(fresh, us), 1e-13)
    rows, targets = ocp_nn.samples_of(again)
    assert torch.equal(rows, other[0].flatten(1))
    assert torch.equal(targets, other[1])


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (draw(5, 3), torch.zeros(5).long(), ValueError, r"shape \(5, 3\).*compiled for \(4,\)"),
        (draw(5, 4).float(), torch.zeros(5).long(), TypeError, "float32"),
        (draw(5, 4), torch.zeros(4).long(), ValueError, "each of the 5 samples"),
        (draw(5, 4), torch.full((5,), 3), ValueError, "between 3 and 3"),
        (draw(5, 4) / 0, torch.zeros(5).long(), ValueError, "not finite in sample 0"),
    ],
)
def test_other_data_that_does_not_fit_is_refused(x, y, error, message):
    problem = ocp_nn.compile(small().double(), "cross_entropy", X, Y)
    with pytest.raises(error, match=message):
        ocp_nn.with_data(problem, x, y)


# -- dense oracles ---------------------------------------------------------------------------------
def gauss_newton_step(problem: ocp.Problem, x: Tensor, decay: float) -> Tensor:
    """``-(J'HJ + decay I)^{-1} (J'g + decay u)`` of the model itself, in the order of stages."""
    net = ocp_nn.network_of(problem)
    model, loss = net.model, problem.cost.loss
    targets = ocp_nn.samples_of(problem)[1]
    params = {n: p.detach() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    names = [p.name for s in net.stages for p in s.parameters]

    def outputs(*values: Tensor) -> Tensor:
        given = {**dict(zip(names, values, strict=True)), **buffers}
        return functional_call(model, given, (x,)).flatten(1)

    at = tuple(params[n] for n in names)
    J = torch.cat([j.flatten(2) for j in torch.autograd.functional.jacobian(outputs, at)], dim=2)
    y, B = outputs(*at), x.shape[0]
    one = lambda y, t: loss.value(y[None], t[None])[0]
    g, H = vmap(jacrev(one))(y, targets) / B, vmap(hessian(one))(y, targets) / B
    u = torch.cat([v.flatten() for v in at])
    A = torch.einsum("bcm,bcd,bdn->mn", J, H, J) + decay * torch.eye(len(u), dtype=F64)
    return -torch.linalg.solve(A, torch.einsum("bcm,bc->m", J, g) + decay * u)


@pytest.mark.parametrize("name", ["chain", "residual", "dense", "tied", "normalised residual"])
@pytest.mark.parametrize("B", [1, 3])
def test_a_sweep_with_linear_rollout_is_the_gauss_newton_step_of_the_model(name, B):
    """The dense engine on the compiled problem; Theorem 2 of the paper without approximations."""
    entry, decay = next(e for e in GRAPHS if e.name == name), 0.1
    problem = compiled(entry, B, weight_decay=decay)
    engine = Eager(problem)
    us = [u[None] for u in ocp_nn.initial_controls(problem)]
    expansion = engine.expand(engine.rollout(us), us)
    sweep = engine.sweep(expansion, us, None, torch.zeros(1, dtype=F64), None)
    assert int(sweep.failed) == -1
    step = engine.linear_rollout(expansion, sweep.policy, None)[1]
    actual = torch.cat([du[0] for du in step])
    expected = gauss_newton_step(problem, data(entry, B)[0], decay)
    assert expected.abs().max() > 0.1
    close(actual, expected)


@pytest.mark.parametrize("method", ["ilqr", "ddp"])
def test_the_eager_engine_trains_a_compiled_network(method):
    model = small().double()
    problem = ocp_nn.compile(model, "cross_entropy", X, Y, weight_decay=1e-2)
    us = ocp_nn.initial_controls(problem)
    start = cost_at(problem, us)
    one = ocp.solve(problem, method, controls=us, engine="eager", max_iterations=1)
    assert int(one.iterations) == 1
    solution = ocp.solve(problem, method, controls=us, engine="eager", max_iterations=15)
    assert solution.cost < 0.7 * start
    ocp_nn.write_back(problem, solution.controls)
    penalty = sum(p.square().sum() for p in model.parameters()) / 200
    close(F.cross_entropy(model(X), Y) + penalty, solution.cost)
    assert solution.states[-1].shape == (6, 3)


def test_a_solve_that_is_given_nothing_starts_from_the_models_weights():
    problem = ocp_nn.compile(small().double(), "cross_entropy", X, Y)
    us = ocp_nn.initial_controls(problem)
    one, other = (
        ocp.solve(problem, "ilqr", controls=given, engine="eager", max_iterations=1)
        for given in (None, us)
    )
    close(one.history["cost"][0], cost_at(problem, us))
    assert torch.equal(torch.cat(one.controls), torch.cat(other.controls))
    assert "5 stages, 46 parameters" in repr(problem.dynamics)
    assert repr(problem.dynamics.stages[0]) == "Stage(0: Linear; n 4 -> 5, m 25, linear)"


def test_the_eager_engine_trains_through_batch_norm():
    entry = GRAPHS[8]
    problem = compiled(entry, 4, weight_decay=1e-2)
    us = ocp_nn.initial_controls(problem)
    solution = ocp.solve(problem, "ilqr", controls=us, engine="eager", max_iterations=5)
    assert solution.cost < cost_at(problem, us) - 0.05


def test_the_stage_table_tells_sizes_and_kernels():
    problem = compiled(GRAPHS[1], 3)
    text = str(ocp_nn.stage_table(problem))
    assert "Residual: 101 parameters, 3 samples" in text
    rows = [line.split() for line in text.splitlines()[3:]]
    assert [row[0] for row in rows] == [str(t) for t in range(7)]
    assert rows[0] == ["0", "a", "Linear", "8", "4", "8", "20", "4", "linear"]
    norm = str(ocp_nn.stage_table(compiled(GRAPHS[8], 3)))
    assert "rows (samples coupled)" in norm


# -- wrong use -------------------------------------------------------------------------------------
class Stack(nn.Module):
    """One linear layer, and a function of its output."""

    def __init__(self, after: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.after, self.norm = nn.Linear(4, 3), after, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.a(x))


def assigned(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda x: F.dropout(x, 0.5, training=True), "nn.Dropout"),
        (assigned, "assigns to entries.*torch.where"),
        (branch, "submodule"),
        (lambda x: x * x.abs().max().item(), "reads a number from the data"),
        (lambda x: x - x.mean(dim=0), "mixes samples"),
        (lambda x: x.softmax(dim=0), "mixes samples"),
        (lambda x: x + torch.randn_like(x), "random|mixes"),
        (lambda x: (x, x), "returns a tuple"),
        (lambda x: x.sum(), "no row for each sample|mixes"),
        (lambda x: x / 0, "not finite"),
        (lambda x: x.float(), "float32 would pass"),
    ],
)
def test_what_cannot_be_a_stage_is_refused_with_a_reason(after, message):
    with pytest.raises((ocp_nn.StageError, TypeError, ValueError), match=message):
        ocp_nn.compile(Stack(after).double(), "cross_entropy", X, Y)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(0.5), r"1 \(Dropout\).*compile\(dropout=seed\).*eval"),
        (nn.Sequential(nn.Tanh(), nn.Dropout(0.1)), r"1.1 \(Dropout\)"),
        (nn.RReLU(), r"1 \(RReLU\)"),
        (nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), "Dropout|drops"),
        (nn.SyncBatchNorm(4), "SyncBatchNorm"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "running statistics"),
        (nn.Embedding(3, 4, max_norm=1.0), "max_norm=None"),
        (nn.LazyLinear(3), "no shape yet"),
    ],
)
def test_layers_that_cannot_be_a_stage_are_named_with_the_way_out(layer, message):
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match=message):
        ocp_nn.compile(model, "cross_entropy", X, Y)


class Changes(nn.Module):
    """Cannot be traced, and writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape == torch.Size([int(s) for s in x.shape]):
            x[:, 0] = 0
        return x * 2


def test_a_module_out_of_sight_that_writes_into_its_input_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), Changes(), nn.Linear(4, 3)).double()
    with pytest.raises(ocp_nn.StageError, match=r"1 \(Changes\) .* in place"):
        ocp_nn.compile(model, "cross_entropy", X, Y)


def test_batch_norm_out_of_sight_is_refused():
    model = Branching().double()
    model.inner.linear = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    with pytest.raises(ocp_nn.StageError, match=r"batch norm inside a module that torch.fx"):
        ocp_nn.compile(model, "cross_entropy", X, Y)
    model.eval()
    ocp_nn.compile(model, "cross_entropy", X, Y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, "nn.Module"),
        ({"model": nn.ReLU()}, ValueError, "nothing to train"),
        ({"model": nn.Linear(4, 3)}, TypeError, "inputs has dtype torch.float64.*float32"),
        ({"model": nn.Linear(4, 3).half()}, TypeError, "float32 or float64.*float16"),
        ({"inputs": X.tolist()}, TypeError, "must be a tensor|tuple|got"),
        ({"inputs": X[:0]}, ValueError, "B >= 1"),
        ({"inputs": X * torch.nan}, ValueError, "inputs is not finite in sample 0"),
        ({"inputs": (X, X[:3])}, ValueError, "3 samples"),
        ({"targets": Y[:3]}, ValueError, "each of the 6 samples"),
        ({"targets": Y.tolist()}, TypeError, "targets must be a tensor"),
        ({"targets": Y.double()}, ValueError, "shape"),
        ({"targets": Y + 1}, ValueError, "between 1 and 3"),
        ({"loss": "l1"}, ValueError, "cross_entropy, binary"),
        ({"loss": nn.L1Loss(), "targets": draw(6, 3)}, ValueError, "no curvature"),
        ({"loss": lambda y, t: (y - t).square().sum(), "targets": draw(6, 3)}, ValueError, "mean"),
        ({"loss": lambda y, t: torch.cos(y - t).mean(), "targets": draw(6, 3)}, ValueError,
         "not convex"),
        ({"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]).double())}, ValueError,
         "mean over samples"),
        ({"loss": nn.CrossEntropyLoss(ignore_index=1)}, ValueError, "alone .*ignore_index"),
        ({"loss": lambda y, t: y.mean() if y.sum() > 0 else -y.mean()}, ValueError, "batched"),
        ({"loss": "mse", "targets": draw(6, 1)}, ValueError, r"shape \(6, 1\).*\(B, 3\)"),
        ({"loss": "mse", "targets": draw(6, 3).float()}, TypeError, "float32"),
        ({"loss": "mse", "targets": draw(6, 3) / 0}, ValueError, "targets are not finite"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0"),
        ({"weight_decay": {"nothing": 1.0}}, ValueError, "nothing.*0.weight"),
        ({"regulariser": lambda u: u.sum() ** 2}, ValueError, "not separable"),
        ({"regulariser": lambda u: -u.square().sum()}, ValueError, "not convex"),
        ({"regulariser": lambda u: u.square()}, ValueError, "scalar"),
        ({"batch_norm": "running"}, ValueError, "'exact' or 'frozen'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_with_what_is_needed(change, error, message):
    arguments = {"model": small().double(), "loss": "cross_entropy", "inputs": X, "targets": Y}
    with pytest.raises(error, match=message):
        ocp_nn.compile(**{**arguments, **change})


def test_weights_that_are_not_finite_are_named():
    model = small().double()
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"parameter 2.bias is not finite"):
        ocp_nn.compile(model, "cross_entropy", X, Y)


def test_a_loss_that_is_not_convex_can_be_clipped():
    cosine = lambda y, t: 1 - torch.cos(y - t).mean()
    loss = FunctionLoss(cosine, (3,), indefinite="clip")
    model, targets = small().double(), draw(6, 3)
    problem = ocp_nn.compile(model, loss, X, targets)
    close(cost_at(problem, ocp_nn.initial_controls(problem)), cosine(model(X), targets))


def test_only_compiled_problems_have_a_network():
    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)
    problem = ocp.Problem(lambda x, u, t: x + u, cost, torch.ones(1), 2, 1)
    with pytest.raises(TypeError, match=r"ocp_nn.compile"):
        ocp_nn.initial_controls(problem)


def test_the_example_of_the_documentation_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert "67 parameters, 16 samples" in capsys.readouterr().out
    assert names["solution"].cost < 1.5
    weights = torch.cat([p.flatten() for p in names["model"].parameters()])
    torch.testing.assert_close(weights, torch.cat(names["solution"].controls))
