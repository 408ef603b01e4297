"""Numbers that programs read at run time: lookups by stage, parameters, what functions see."""

import numpy as np
import pytest
import torch
from native_text import agree, small, unchecked
from torch import nn

import ocp
from ocp.engines.native import emit
from ocp.engines.native.sources import Changed
from ocp.engines.native.values import Untraceable

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


# -- lookups by stage ----------------------------------------------------------------------------
REFERENCE = torch.randn(9, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
LOOKUPS = {
    "t": lambda r, t: r[t],
    "t + 1": lambda r, t: r[t + 1] - r[t],
    "2 t - 1, from the end at 0": lambda r, t: r[(2 * t - 1).clamp(max=8)],
    "clamped": lambda r, t: r[(t + 5).clamp(max=8)],
    "periodic": lambda r, t: r[t % 2] + r[t // 2],
    "computed first": lambda r, t: (2 * r + 1)[t] + torch.cos(r)[t, 1],
    "a column": lambda r, t: r[:, 1][t] + r[t, :] + r.T[:, t],
    "gather": lambda r, t: torch.gather(r, 0, t.expand(1, 3))[0] + r.index_select(0, t[None])[0],
    "interpolated": lambda r, t: r[t // 2] * (1 - (t % 2) * 0.5) + r[t // 2 + 1] * (t % 2) * 0.5,
    "single precision": lambda r, t: r[0] * torch.sin(0.1 * t) + r.float()[t],
    "remainder of seconds": lambda r, t: r[0] * torch.remainder(t.to(F64) * 0.05, 0.1),
    "constants": lambda r, t: r[0] * torch.tensor([1.0, 0.5, 2.0, 3.0, 4.0, 5.0], dtype=F64)[t],
    "where": lambda r, t: torch.where(t < 3, r[0], r[1]) * (t == 2) + t * r[2],
}


@pytest.mark.parametrize("how", LOOKUPS)
@pytest.mark.parametrize("kind", ["closed over", "parameter", "per problem"])
def test_lookups_by_stage(how, kind):
    look_up = LOOKUPS[how]
    if kind == "per problem" and how in ("computed first", "single precision"):
        pytest.skip("a table per problem that is computed: node by node only")
    if kind == "closed over":
        problem = small(lambda x, u, t: x * look_up(REFERENCE, t) + u.sum())
    else:
        f = lambda x, u, t, p: x * look_up(p["r"], t) + u.sum()
        data = (
            {"parameters": {"r": REFERENCE}}
            if kind == "parameter"
            else {"per_problem": {"r": torch.stack((REFERENCE, 2 * REFERENCE))},
                  "x0": torch.rand(2, 3, dtype=F64)}
        )  # fmt: skip
        problem = small(f, **data)
    agree(problem, count=12, tolerance=1e-12)


def test_lookups_read_the_tensor_itself_where_they_can():
    problem = small(lambda x, u, t: x - REFERENCE[t + 1] * REFERENCE[t] + u.sum())
    program = emit.model(problem)
    assert program.par.size == REFERENCE.numel()
    assert "c.par_at(3, 3)" in program.text and "c.par_at(0, 3)" in program.text


def test_a_stage_without_an_entry_is_refused():
    short = REFERENCE[:4]
    with pytest.raises(Untraceable, match="looks up what is not there"):
        emit.model(unchecked(lambda x, u, t: x + short[4 - t]))


def test_lookups_by_computed_integers_choose_among_rows():
    table = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]], dtype=F64)

    def f(x, u, t, p):
        i = (x[0] > 0.3).long() + (x[1] > 0.3).long()
        pair = torch.stack((x[:2], u))[t % 2]
        return torch.cat((pair * table[i], (x[2] * table[p["label"], 1] + table[-i - 1, 0])[None]))

    data = {"label": torch.tensor([2, 0])}
    problem = unchecked(f, per_problem=data, x0=torch.rand(2, 3, dtype=F64))
    agree(problem, count=12)


# -- run-time numbers ----------------------------------------------------------------------------
def test_changed_tensors_are_seen_without_another_text():
    net = nn.Linear(5, 3).double()
    goal, scale = tensor(0.1, 0.2, 0.3), torch.tensor([2.0])
    W = torch.randn(3, 3, dtype=F64)
    make = lambda: small(
        lambda x, u, t, p: (
            (x - goal) * scale + net(torch.cat((x, u))) + torch.linalg.inv(W) @ p["b"]
        ),
        phi=lambda x: ((x - goal) ** 2).sum(),
        parameters={"b": tensor(1.0, 2.0, 3.0)},
    )
    problem = make()
    program = agree(problem)
    assert program.par.size == 3 + 1 + 18 + 9 + 3  # goal once; the inverse, not W
    with torch.no_grad():
        goal += 1.0
        scale.fill_(3.0)
        W[0] *= 2
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(5, dtype=F64)).sum().backward()
    optimiser.step()
    problem.parameters["b"] = tensor(-1.0, 0.0, 5.0)
    agree(problem, program=program)
    assert emit.model(problem).text == program.text
    problem.parameters["b"] = tensor(-1.0, 0.0)
    with pytest.raises(Changed, match=r"parameters\['b'\]"):
        program.shared(problem)


def test_arrays_of_numpy_are_read_where_they_lie():
    array = np.array([1.0, 2.0, 3.0])
    problem = small(lambda x, u, t: x * torch.from_numpy(array) + torch.as_tensor(array) + u.sum())
    program = agree(problem)
    array *= 3
    agree(problem, program=program)


def test_numbers_made_in_the_function_are_constants():
    f = lambda x, u, t: x * torch.tensor([1.0, 2.0, 3.0], dtype=F64) + x.new_ones(3) + 2 * u.sum()
    program = agree(small(f))
    assert program.par.size == 0 and "V(3.0)" in program.text


def test_data_of_each_problem_reaches_the_program():
    f = lambda x, u, t, p: p["mass"] * x + p["M"] @ x * p["on"] + u.sum()
    data = {
        "mass": torch.rand(3, dtype=F64),
        "M": torch.rand(3, 3, 3, dtype=F64),
        "on": torch.tensor([True, False, True]),
    }
    problem = small(f, per_problem=data, x0=torch.rand(3, 3, dtype=F64))
    assert agree(problem, count=7).dat.size == 11


class Tracking:
    """A cost with a goal and a width that users change between solves."""

    weight = 0.5

    def __init__(self):
        self.goal, self.width, self.calls = tensor(0.1, 0.2, 0.3), 2.0, 0

    def stage(self, x, u, t):
        self.calls += 1
        return self.weight * ((x - self.goal) ** 2).sum() * self.width + u @ u

    def terminal(self, x):
        return ((x - self.goal) ** 2).sum()


def test_another_tensor_in_the_place_of_one_is_seen():
    cost, gain, weights = Tracking(), tensor(1.0, 2.0, 3.0), {"W": torch.eye(3, dtype=F64)}

    def f(x, u, t):
        return x * gain + weights["W"] @ x + u.sum()

    problem = ocp.Problem(f, cost, torch.ones(3, dtype=F64), 6, 2)
    program = agree(problem)
    cost.goal, gain, weights["W"] = tensor(5.0, 6.0, 7.0), tensor(0.0, 1.0, 0.0), 2 * weights["W"]
    agree(problem, program=program)
    assert program.stale() is None  # the counter of calls does not count
    cost.goal = None
    with pytest.raises(Changed, match="NoneType"):
        program.shared(problem)


def test_another_number_makes_a_program_stale():
    cost, scale = Tracking(), 2.0
    problem = ocp.Problem(lambda x, u, t: x * scale + u.sum(), cost, tensor(1.0, 2.0, 3.0), 6, 2)
    program = agree(problem)
    cost.width = 3.0
    assert program.stale() == "cost.width"
    cost.width = 2.0
    assert program.stale() is None
    scale = 4.0
    assert program.stale() is not None
    agree(problem)
