"""How a model is cut: stages, slots of the state, kernels; batch norm, dropout, tied weights."""

from __future__ import annotations

import copy
import types

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from layer_table import compiled
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from zoo import (
    F64,
    GRAPHS,
    LAYERS,
    Dense,
    Entry,
    NormalisedResidual,
    Residual,
    Tied,
    UShaped,
    data,
    made,
)

import ocp_nn
from ocp_nn.layers import StageError, uniform


def network(model: nn.Module, x: Tensor, **options: object) -> ocp_nn.Network:
    y = copy.deepcopy(model)(x)
    problem = ocp_nn.compile(model, "mse", x, torch.zeros_like(y), **options)
    return ocp_nn.network_of(problem)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def entry(name: str) -> Entry:
    return next(e for e in (*LAYERS, *GRAPHS) if e.name == name)


# -- cutting -----------------------------------------------------------------------------------
def test_a_chain_is_one_stage_a_layer_and_one_for_what_lies_between():
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.Sequential(nn.Tanh(), nn.Linear(5, 8, bias=False), nn.Unflatten(1, (2, 4))),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    net = network(model, draw(2, 2, 3))
    assert [s.layers for s in net.stages] == [
        ("Flatten", "Linear"),
        ("Tanh",),
        ("Linear", "Unflatten"),
        ("ReLU", "AvgPool1d", "Flatten"),
        ("Linear",),
    ]
    assert [s.name for s in net.stages] == ["1", "2.0", "2.1", "3", "6"]
    assert net.state_dims == (6, 5, 5, 8, 4, 3)
    assert net.control_dims == (35, 0, 40, 0, 15)
    assert [s.kernel for s in net.stages] == ["linear", "none", "linear", "none", "linear"]
    assert [s.elementwise for s in net.stages] == [False, True, False, False, False]
    assert net.stages[0].in_shape == (2, 3)
    assert net.stages[2].out_shape == (2, 4)
    assert net.stages[2].parameter_names == ("2.1.weight",)


@pytest.mark.parametrize("name", [e.name for e in GRAPHS] + ["Linear", "Flatten", "Unflatten"])
def test_a_linear_kernel_is_that_map_between_its_slots_and_nothing_else(name):
    problem = compiled(entry(name), 4)
    net, X = ocp_nn.network_of(problem), ocp_nn.samples_of(problem)[0]
    us = ocp_nn.initial_controls(problem)
    for stage, before, after, u in zip(net.stages, net.forward(X, us), net.forward(X, us)[1:], us,
                                       strict=False):  # fmt: skip
        if stage.linear is None:
            assert stage.kernel == ("rows" if stage.m else "none")
            continue
        layout = stage.linear
        W = u[: layout.outputs * layout.inputs].view(layout.outputs, layout.inputs)
        b = u[layout.outputs * layout.inputs :]
        assert len(b) == layout.outputs * layout.has_bias
        y = before[:, layout.in_columns] @ W.T + (b if layout.has_bias else 0)
        torch.testing.assert_close(after[:, layout.out_columns], y, rtol=0, atol=1e-13)
        kept = {s.name: s for s in stage.in_slots}
        for slot in stage.out_slots:
            if slot.columns != layout.out_columns:
                own = kept[slot.name]
                assert torch.equal(after[:, slot.columns], before[:, own.columns])


@pytest.mark.parametrize(
    ("name", "linear"),
    [("residual", 4), ("dense", 4), ("transformer", 1), ("tied", 2), ("single layer", 1)],
)
def test_how_many_stages_are_linear(name, linear):
    stages = ocp_nn.network_of(compiled(entry(name), 3)).stages
    assert sum(s.kernel == "linear" for s in stages) == linear


def test_a_linear_output_that_is_read_in_two_shapes_is_no_linear_kernel():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            pairs = h.view(-1, 3, 2)
            return self.b(h) + pairs.square().sum(dim=2)

    net = network(Twice().double(), draw(3, 4))
    assert [s.kernel for s in net.stages] == ["rows", "linear", "none"]
    assert net.stages[0].n_out == 12


def test_elementwise_stages_have_diagonal_jacobians():
    for e in LAYERS:
        if e.name not in ("Tanh", "ReLU", "GELU", "Softmax", "GLU"):
            continue
        stage = ocp_nn.network_of(compiled(e, 3)).stages[1]
        x = draw(stage.n_in)
        J = jacrev(lambda x, s=stage: s(x[None], x.new_zeros(0))[0])(x)
        diagonal = J.shape[0] == J.shape[1] and torch.equal(J, torch.diag(J.diagonal()))
        assert stage.elementwise == diagonal, e.name


def test_skips_are_carried_only_while_they_are_needed():
    net = network(Residual().double(), draw(3, 4))
    held = {s.name: s.carried for s in net.stages}
    assert held == {"a": 4, "act": 0, "b": 4, "tanh": 4, "c": 6, "add_1": 0, "out": 0}
    assert net.state_dims == (4, 8, 4, 10, 10, 12, 6, 3)
    net = network(UShaped().double(), draw(2, 1, 4, 4))
    skip = 2 * 16
    carried = [s.carried for s in net.stages]
    assert carried == [0, 0, skip, skip, skip, 0, 0]
    # the last layer joins what it has itself made: nothing is carried into the output
    assert network(Dense().double(), draw(2, 4)).stages[-1].carried == 0


def test_the_graph_names_every_operation_with_its_stage():
    net = network(Residual().double(), draw(3, 4))
    assert nx.is_directed_acyclic_graph(net.graph)
    stages = nx.get_node_attributes(net.graph, "stage")
    assert set(stages.values()) == {-1, *range(len(net.stages))}
    for a, b in net.graph.edges:
        assert stages[a] <= stages[b]
    assert net.graph.nodes["a"] == {"label": "Linear", "stage": 0, "shape": (4,)}


def test_tied_weights_make_one_stage_of_all_between_their_uses():
    model = Tied().double()
    net = network(model, draw(3, 4))
    shared = [s for s in net.stages if "encoder.weight" in s.parameter_names]
    assert len(shared) == 1
    assert shared[0].kernel == "rows"
    assert "matmul" in shared[0].layers
    assert sum(net.control_dims) == sum(p.numel() for p in model.parameters())


def test_a_module_used_twice_counts_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Tanh(), layer, nn.Linear(4, 3)).double()
    net = network(model, draw(3, 4))
    assert [s.m for s in net.stages] == [20, 20, 15]
    assert net.stages[1].layers == ("Linear", "Tanh", "Linear")


def test_weights_of_one_tensor_under_two_names_are_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    net = network(model, draw(3, 4))
    assert [s.m for s in net.stages] == [24]
    u = [draw(24)]
    net.unpack(u)
    assert model[2].weight is model[0].weight
    assert torch.equal(net.pack()[0], u[0])


def test_frozen_parameters_are_constants_read_when_a_stage_runs():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    x = draw(3, 4)
    net = network(model, x)
    assert [s.m for s in net.stages] == [0, 15]
    assert net.stages[1].kernel == "rows"
    with torch.no_grad():
        model[0].weight.mul_(2)
    X = net.forward(net.states((x,)), net.pack())[-1]
    torch.testing.assert_close(X, model(x), rtol=0, atol=1e-12)


def test_leaves_stay_whole_and_unknown_ones_are_refused():
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 3))).double()
    net = network(model, draw(3, 4), leaves=["1"])
    assert [s.layers for s in net.stages] == [("Linear",), ("Sequential",)]
    with pytest.raises(ValueError, match="no module \\['2'\\]"):
        network(model, draw(3, 4), leaves=["2"])


def test_an_error_without_a_text_is_told_by_its_kind():
    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(x, Tensor):
                raise NotImplementedError
            return super().forward(x)

    with pytest.raises(StageError, match=r"cannot trace Picky.forward: NotImplementedError\."):
        network(Picky(4, 3).double(), draw(2, 4))


def test_tracing_leaves_no_trace_on_the_model():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            x = x if scale is None else x * scale
            return self.a(x) + torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)

    model = Constant().double()
    before = set(vars(model))
    net = network(model, draw(2, 4))
    assert set(vars(model)) == before
    assert isinstance(torch.zeros, types.BuiltinFunctionType)
    torch.testing.assert_close(net.forward(draw(2, 4), net.pack())[-1], model(draw(2, 4)))


def test_stages_can_be_mapped_over_weights_and_samples():
    net = network(Residual().double(), draw(3, 4))
    us = [torch.stack((u, 2 * u)) for u in net.pack()]
    x = draw(2, 4)
    for t in range(len(us)):
        both = torch.func.vmap(lambda x, u, t=t: net(x, u, t))(x, us[t])
        alone = [net(x[i], us[t][i], t) for i in range(2)]
        torch.testing.assert_close(both, torch.stack(alone))
        x = both


def test_pack_copies_and_unpack_checks_sizes():
    model = nn.Sequential(nn.Linear(4, 3)).double()
    net = network(model, draw(2, 4))
    us = net.pack()
    us[0].zero_()
    assert model[0].weight.abs().sum() > 0
    with pytest.raises(ValueError, match=r"sizes \[15\]"):
        net.unpack([us[0][:-1]])
    other = copy.deepcopy(model)
    net.unpack(us, other)
    assert other[0].weight.abs().sum() == 0


# -- batch norm ----------------------------------------------------------------------------------
def normalised() -> tuple[NormalisedResidual, Tensor]:
    return made(entry("normalised residual")), data(entry("normalised residual"), 4)[0]


def test_exact_batch_norm_is_a_map_of_the_whole_batch():
    model, x = normalised()
    problem = ocp_nn.compile(model, "cross_entropy", x, torch.tensor([0, 1, 2, 0]))
    net = ocp_nn.network_of(problem)
    assert net.whole_batch
    assert problem.x0.shape == (1, 64)
    assert problem.state_dims == tuple(4 * n for n in net.state_dims)
    assert [s.name for s in net.stages if s.couples_samples] == ["n1", "n2"]
    x, u, t = draw(4, 48), net.pack()[1], 1
    rows = net.batch(x[:, :32], u, t)
    moved = x[:, :32].clone()
    moved[0] += 1
    assert (net.batch(moved, u, t)[1:] - rows[1:]).abs().max() > 1e-3


def test_frozen_statistics_are_constants_and_those_of_the_batch():
    model, x = normalised()
    y = torch.tensor([0, 1, 2, 0])
    problem = ocp_nn.compile(model, "cross_entropy", x, y, batch_norm="frozen")
    net, us = ocp_nn.network_of(problem), ocp_nn.initial_controls(problem)
    assert not net.whole_batch
    assert problem.x0.shape == (4, 16)
    X = ocp_nn.samples_of(problem)[0]
    torch.testing.assert_close(net.forward(X, us)[-1], model(x), rtol=0, atol=1e-12)
    alone = net.forward(X[:1], us)[-1]
    torch.testing.assert_close(alone, net.forward(X, us)[-1][:1], rtol=0, atol=1e-12)

    frozen = copy.deepcopy(model).eval()  # the same net with these statistics as running ones
    record = net.measure(X, us)
    for norm, name in ((frozen.n1, "n1"), (frozen.n2, "n2")):
        norm.running_mean, norm.running_var = record[name][:2]
    f = lambda c: functional_call(frozen, {"c1.weight": c}, (x,)).reshape(-1)
    expected = jacrev(f)(frozen.c1.weight.detach())
    g = lambda u: net.forward(X, [u, *us[1:]])[-1].reshape(-1)
    actual = jacrev(g)(us[0]).view(expected.shape)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)

    us[0] = 2 * us[0]  # other weights: the statistics stay, until they are measured again
    before = net.forward(X, us)[-1]
    net.freeze(X, us)
    assert (net.forward(X, us)[-1] - before).abs().max() > 1e-3


@pytest.mark.parametrize("batch_norm", ["exact", "frozen"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_updated_as_torch_does(batch_norm, momentum):
    model, x = normalised()
    model.n1.momentum = momentum
    net = network(model, x, batch_norm=batch_norm)
    twin = copy.deepcopy(model)
    for i in range(3):
        other = x * (i + 2) + i
        twin(other)
        net.update_running_statistics(net.states((other,)), net.pack())
    for (name, expected), actual in zip(twin.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12, msg=name)


def test_batch_norm_in_eval_mode_couples_nothing():
    model, x = normalised()
    net = network(model.eval(), x)
    assert not any(s.couples_samples for s in net.stages)
    net.update_running_statistics(net.states((x,)), net.pack())  # as torch: nothing to do
    assert model.n1.num_batches_tracked == 0


# -- dropout -------------------------------------------------------------------------------------
class Fixed(nn.Module):
    """Dropout with a mask that is given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_dropout_is_a_fixed_mask_for_each_sample_and_layer():
    model = nn.Sequential(
        *(nn.Linear(4, 40), nn.Tanh(), nn.Dropout(0.25), nn.Linear(40, 40), nn.Dropout(0.25)),
        nn.Linear(40, 3),
    ).double()
    x, y = draw(16, 4), torch.zeros(16, dtype=torch.int64)
    problem = ocp_nn.compile(model, "cross_entropy", x, y, dropout=7)
    net, us = ocp_nn.network_of(problem), ocp_nn.initial_controls(problem)
    X = ocp_nn.samples_of(problem)[0]
    assert [s.layers[-1] for s in net.stages] == [
        "Linear",
        "Dropout",
        "Linear",
        "Dropout",
        "Linear",
    ]
    large = torch.cat((torch.full((16, 40), 100.0, dtype=F64), X[:, -1:]), dim=1)  # tanh is 1
    first = net.stages[1](large, us[1])[:, :40]
    second = net.stages[3](large, us[3])[:, :40] / 100
    reference = copy.deepcopy(model)
    reference[2], reference[4] = Fixed(first), Fixed(second)
    torch.testing.assert_close(net.forward(X, us)[-1], reference(x), rtol=0, atol=1e-12)
    assert not torch.equal(first, second)
    for mask in (first, second):
        torch.testing.assert_close(mask.unique(), torch.tensor([0, 1 / 0.75], dtype=F64))
        kept = (mask > 0).to(F64)
        assert abs(kept.mean() - 0.75) < 4 * (0.75 * 0.25 / kept.numel()) ** 0.5
        assert len({tuple(row) for row in kept.tolist()}) == 16  # each sample has its own
    one = torch.stack([net.forward(X[i : i + 1], us)[-1][0] for i in range(16)])
    torch.testing.assert_close(one, net.forward(X, us)[-1])

    again = ocp_nn.with_data(problem, x, y, seed=7)
    assert torch.equal(again.x0, problem.x0)
    other = ocp_nn.with_data(problem, x, y, seed=8)
    assert not torch.equal(net.forward(other.x0, us)[-1], net.forward(X, us)[-1])


def test_dropout_of_channels_drops_them_whole():
    problem = compiled(entry("Dropout2d (training, seed)"), 16)
    net, us = ocp_nn.network_of(problem), ocp_nn.initial_controls(problem)
    dropped = net.forward(ocp_nn.samples_of(problem)[0], us)[2][:, :32].view(16, 2, 16)
    zero = dropped == 0
    assert torch.equal(zero.all(dim=-1), zero.any(dim=-1))
    assert 0 < zero.all(dim=-1).sum() < 32


def test_masks_are_fair_and_neighbours_independent():
    """Mean, and correlations between keys, places and layers: five standard errors."""
    keys = torch.arange(200)
    u = uniform(keys, 1, 500)
    limit = 5 / u.numel() ** 0.5
    assert abs(u.mean() - 0.5) < limit * 12**-0.5
    assert abs((u < 0.1).double().mean() - 0.1) < limit * 0.3
    z = (u - 0.5) * 12**0.5
    other = (uniform(keys, 2, 500) - 0.5) * 12**0.5
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z, other), (z[:, :250], z[:, 250:])):
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5


# -- inputs --------------------------------------------------------------------------------------
class Two(nn.Module):
    """Whole numbers and vectors together."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(100, 3), nn.Bilinear(3, 2, 3)

    def forward(self, ids: Tensor, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.mix(self.table(ids), x) * scale


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_several_inputs_lie_end_to_end_and_whole_numbers_stay_exact(dtype):
    model = Two().to(dtype)
    ids, x = torch.tensor([0, 99, 57]), draw(3, 2).to(dtype)
    problem = ocp_nn.compile(model, "cross_entropy", (ids, x), torch.tensor([0, 1, 2]))
    net = ocp_nn.network_of(problem)
    assert problem.x0.shape == (3, 3)
    assert [s.dtype for s in net.input_slots] == [torch.int64, dtype]
    outputs = net.forward(problem.x0, ocp_nn.initial_controls(problem))[-1]
    torch.testing.assert_close(outputs, model(ids, x))
    with pytest.raises(ValueError, match="2 inputs, got 1"):
        ocp_nn.with_data(problem, ids, torch.tensor([0, 1, 2]))


def test_functions_of_torch_are_reshapes_and_activations_like_modules():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(6, 4), nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.a(x.flatten(1))).reshape(-1, 4), self.w)

    net = network(Plain().double(), draw(5, 2, 3))
    assert [s.kernel for s in net.stages] == ["linear", "none", "linear"]
    assert net.stages[1].elementwise
