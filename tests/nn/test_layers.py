"""Every layer as a stage: outputs, dense derivatives, costs and gradients of the original model."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from layer_table import committed, compiled, table
from torch import Tensor
from torch.func import functional_call, jacrev, vmap
from zoo import GRAPHS, LAYERS, Entry, data

import ocp
import ocp_nn
from ocp.engines import Eager

REFUSED = {
    "Dropout (training, no seed)",
    "AlphaDropout (training)",
    "MultiheadAttention (batch second)",
    "LSTM",
    "GRU",
}
# Dropout with a seed has tests of its own: the masks of the model itself are random.
ENTRIES = [e for e in (*LAYERS, *GRAPHS) if e.name not in REFUSED and e.seed is None]
IDS = [e.name for e in ENTRIES]
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def alone(entry: Entry, B: int) -> bool:
    """Whether torch itself refuses the batch: normalisation over one number."""
    return B == 1 and entry.name == "BatchNorm1d (training)"


@functools.cache  # what the tests share is not changed by them
def pair(entry: Entry, B: int) -> tuple[ocp.Problem, torch.nn.Module, Tensor]:
    problem = compiled(entry, B)
    return problem, ocp_nn.network_of(problem).model, data(entry, B)[0]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def loss_of(outputs: Tensor, entry: Entry, y: Tensor) -> Tensor:
    if entry.outputs == 3:
        return F.cross_entropy(outputs, y)
    return F.mse_loss(outputs, torch.ones_like(outputs))


@pytest.mark.parametrize("B", [1, 3, 16])
@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_outputs_cost_and_weights_are_the_models(entry, B):
    if alone(entry, B):
        return
    problem, model, x = pair(entry, B)
    net, us = ocp_nn.network_of(problem), ocp_nn.initial_controls(problem)
    X, targets = ocp_nn.samples_of(problem)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    outputs = net.forward(X, us)[-1]
    for name, buffer in model.named_buffers():  # evaluated without the model noticing
        assert torch.equal(buffer, buffers[name]), name
    expected = copy.deepcopy(model)(x)
    close(outputs, expected.flatten(1))
    engine = Eager(problem)
    lines = [u[None] for u in us]
    cost = engine.total_cost(engine.rollout(lines), lines)
    close(cost[0], problem.cost.loss.value(expected.flatten(1), targets).mean())

    draws, other = [torch.randn_like(u) for u in us], copy.deepcopy(model)
    net.unpack(draws, other)
    for u, again in zip(draws, net.pack(other), strict=True):
        assert torch.equal(u, again)
    assert sum(net.control_dims) == sum(p.numel() for p in model.parameters())


def model_jacobian(model: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """d outputs / d parameters by autograd of the model alone: (B c, m) by name."""
    names = [n for n, _ in model.named_parameters()]
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def outputs(*params: Tensor) -> Tensor:
        values = dict(zip(names, params, strict=True))
        return functional_call(model, {**values, **buffers}, (x,)).reshape(-1)

    params = tuple(p.detach() for p in model.parameters())
    columns = torch.autograd.functional.jacobian(outputs, params)
    return {n: J.flatten(1) for n, J in zip(names, columns, strict=True)}


def chained_jacobian(net: ocp_nn.Network, X: Tensor, us: list[Tensor]) -> dict[str, Tensor]:
    """The same from the Jacobians of the stages, multiplied from the end."""
    Xs, B = net.forward(X, us), X.shape[0]
    total = torch.eye(Xs[-1].numel(), dtype=X.dtype)
    result: dict[str, Tensor] = {}
    for t in reversed(range(len(us))):
        stage, n = net.stages[t], Xs[t].shape[1]
        if net.whole_batch:
            f = lambda x, u, s=stage, n=n: s(x.view(B, n), u).reshape(-1)
            Fx, Fu = jacrev(f, argnums=(0, 1))(Xs[t].reshape(-1), us[t])
        else:
            f = lambda x, u, s=stage: s(x[None], u)[0]
            Jx, Ju = vmap(jacrev(f, argnums=(0, 1)), in_dims=(0, None))(Xs[t], us[t])
            Fx, Fu = torch.block_diag(*Jx), Ju.flatten(0, 1)
        J = total @ Fu
        for piece in stage.parameters:
            assert piece.name not in result
            result[piece.name] = J[:, piece.start : piece.stop]
        total = total @ Fx
    return result


@pytest.mark.parametrize("B", [1, 3, 16])
@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_stage_jacobians_multiply_to_the_models(entry, B):
    if alone(entry, B):
        return
    problem, model, x = pair(entry, B)
    net, X = ocp_nn.network_of(problem), ocp_nn.samples_of(problem)[0]
    actual = chained_jacobian(net, X, ocp_nn.initial_controls(problem))
    expected = model_jacobian(model, x)
    assert actual.keys() == expected.keys()
    for name, J in expected.items():
        close(actual[name], J)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_costate_gradients_are_back_propagation(entry, B):
    """Lemma 3 and Proposition 4 of Liu, Chen, Theodorou: H_u along the costates is dJ/du."""
    if alone(entry, B):
        return
    problem, model, x = pair(entry, B)
    engine, net = Eager(problem), ocp_nn.network_of(problem)
    us = [u[None] for u in ocp_nn.initial_controls(problem)]
    xs = engine.rollout(us)
    hus = engine.costates(engine.expand(xs, us))[1]
    params = dict(copy.deepcopy(model).named_parameters())
    outputs = functional_call(copy.deepcopy(model), params, (x,))
    gradients = torch.autograd.grad(loss_of(outputs, entry, data(entry, B)[1]), params.values())
    expected = dict(zip(params, gradients, strict=True))
    for stage, hu in zip(net.stages, hus, strict=True):
        for name, gradient in stage.values(hu[0]).items():
            close(gradient, expected[name])


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_single_precision(entry):
    problem = compiled(entry, 4, torch.float32)
    net, X = ocp_nn.network_of(problem), ocp_nn.samples_of(problem)[0]
    assert X.dtype == torch.float32
    outputs = net.forward(X, ocp_nn.initial_controls(problem))[-1]
    close(outputs, net.model(data(entry, 4, torch.float32)[0]).flatten(1), 1e-4)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_a_stage_is_refused_by_name_with_the_way_out(name):
    entry = next(e for e in LAYERS if e.name == name)
    kind = name.split(" ")[0]
    with pytest.raises(ocp_nn.StageError, match=rf"{kind}\) cannot be a stage: .*(Use|call)"):
        compiled(entry, 3)


def test_the_table_in_the_documentation_is_what_the_layers_do():
    assert committed() == table().strip(), "run tests/nn/layer_table.py"
