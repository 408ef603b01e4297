"""Wrong use is refused at construction, and the error names what is wrong and what to do."""

import functools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import ocp

F64 = torch.float64
X0 = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
A = torch.eye(3, dtype=F64)
WEIGHT = torch.tensor([1.0, 2.0], dtype=F64)


def dynamics(x, u, t):
    return x + 0.1 * torch.sin(x) + 0.1 * u.sum()


COST = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x)


def build(**changes):
    arguments = {"dynamics": dynamics, "cost": COST, "x0": X0, "horizon": 4, "control_dim": 2}
    return ocp.Problem(**{**arguments, **changes})


def refused(words, kinds=(ValueError, TypeError), **changes):
    """Building raises one of ``kinds`` with all of ``words`` in the message."""
    with pytest.raises(kinds) as caught:
        build(**changes)
    text = str(caught.value)
    print(text)
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert len(text) < 500


def in_f(f):
    return {"dynamics": f}


def in_l(l):
    return {"cost": ocp.FunctionCost(l, lambda x: x @ x)}


def in_phi(phi):
    return {"cost": ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, phi)}


def test_the_problem_that_the_mistakes_are_made_in_is_right():
    assert build().state_dims == (3,) * 5


DATA = [
    (["x0", "int64", "x0.double()"], {"x0": torch.tensor([1, 2, 3])}),
    (["x0", "float16"], {"x0": X0.half()}),
    (["x0", "complex"], {"x0": X0.to(torch.complex128)}),
    (["x0", "str"], {"x0": "upright"}),
    (["x0", "(batch, state)", "(2, 2, 3)"], {"x0": torch.zeros(2, 2, 3, dtype=F64)}),
    (["x0", "()"], {"x0": torch.tensor(1.0, dtype=F64)}),
    (["x0", "state >= 1"], {"x0": torch.zeros(0, dtype=F64)}),
    (["x0", "no rows"], {"x0": torch.zeros(0, 3, dtype=F64)}),
    (["x0", "not finite", "[1]", "nan"], {"x0": torch.tensor([0.0, math.nan, 0.0])}),
    (["x0", "not finite", "[1, 2]", "inf"], {"x0": torch.tensor([[0.0] * 3, [0, 0, math.inf]])}),
    (["shared_controls", "(batch, state)", "(3,)"], {"shared_controls": True}),
    (["stagewise", "True or False"], {"stagewise": "yes"}),
    (["horizon", ">= 1", "0"], {"horizon": 0}),
    (["horizon", ">= 1", "-3"], {"horizon": -3}),
    (["horizon", "integer", "2.5"], {"horizon": 2.5}),
    (["horizon", "integer", "True"], {"horizon": True}),
    (["control_dim", "integer", "1.0"], {"control_dim": 1.0}),
    (["control_dim", ">= 0", "-1"], {"control_dim": -1}),
    (["control_dim", "stagewise=True"], {"control_dim": [2, 2, 2, 2]}),
    (["control_dim", "4 stages", "3 sizes"], {"control_dim": [2, 2, 2], "stagewise": True}),
    (["control_dim[1]", "integer"], {"control_dim": [2, "2", 2, 2], "stagewise": True}),
    (["parameters", "dict", "list"], {"parameters": [1.0]}),
    (["parameters", "strings", "3"], {"parameters": {3: 1.0}}),
    (["parameters['mass']", "str"], {"parameters": {"mass": "heavy"}}),
    (["parameters['mass']", "list", "length 1"], {"parameters": {"mass": [[1.0], [1.0, 2.0]]}}),
    (["per_problem['mass']", "axis of 1", "(2,)"], {"per_problem": {"mass": torch.ones(2)}}),
    (["per_problem['mass']", "parameters"], {"per_problem": {"mass": 1.0}}),
    (["['k']", "both"], {"parameters": {"k": 1.0}, "per_problem": {"k": [1.0]}}),
    (["goal", "(3,)", "(2,)"], {"goal": torch.zeros(2)}),
    (["goal", "not finite", "nan"], {"goal": torch.tensor([0.0, 0.0, math.nan])}),
    (["goal", "str"], {"goal": "top"}),
]
LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
BOUNDS = [
    (["pair", "Tensor"], {"control_bounds": LOW}),
    (["pair", "3 of them"], {"control_bounds": (LOW, LOW, HIGH)}),
    (["lo > hi", "stage 0", "component 0"], {"control_bounds": (HIGH, LOW)}),
    (
        ["lo > hi", "stage 2", "component 1"],
        {
            "control_bounds": (
                torch.tensor([[-1.0, -1.0], [-1, -1], [-1, 3], [-1, -1]]),
                torch.ones(2),
            )
        },
    ),
    (["lower", "nan", "stage 0", "-inf"], {"control_bounds": (LOW * math.nan, HIGH)}),
    (["upper", "None", "inf"], {"control_bounds": (LOW, None)}),
    (["nothing is above lo"], {"control_bounds": (torch.full((2,), math.inf), [math.inf] * 2)}),
    (["upper", "(3,)", "(2,)"], {"control_bounds": (LOW, torch.ones(3))}),
    (["lower", "(T, m)"], {"control_bounds": (-torch.ones(3, 2), HIGH)}),
    (["lower", "(T, m)"], {"control_bounds": (-1.0, 1.0)}),
    (["list over 3", "horizon is 4"], {"control_bounds": ([LOW] * 3, [HIGH] * 3)}),
]


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=F64)
        self.dropout = nn.Dropout()

    def forward(self, x, u, t):
        return self.dropout(self.layer(x)) + u.sum()


class ACost:
    def stage(self, x, u, t):
        return x @ x

    def terminal(self, x):
        return x @ x


def increment(x, u, t):
    x += 0.1 * u.sum()
    return x


def assign(x, u, t):
    y = x.clone()
    u[0] = 0.0
    return y


def without_grad(x, u, t):
    with torch.no_grad():
        return x + u.sum()


class OnceDifferentiable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if g.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(g):
            raise RuntimeError("no second derivative")
        return 2 * x * g


class Counter:
    calls = 0.0

    def __call__(self, x, u, t):
        self.calls += 1.0
        return x + self.calls


@functools.lru_cache
def cached(t):
    return 1.0


TABLE = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
FUNCTIONS = [
    (["dynamics", "callable", "Tensor", "rk4"], in_f(A)),
    (["dynamics", "class Counter", "Counter(...)"], in_f(Counter)),
    (["dynamics", "(2,)", "(3,)", "stagewise"], in_f(lambda x, u, t: x[:2])),
    (["dynamics", "(1, 3)", "ONE sample"], in_f(lambda x, u, t: x[None])),
    (["dynamics", "()", "(3,)"], in_f(lambda x, u, t: x.sum())),
    (["dynamics", "tuple", "torch.stack"], in_f(lambda x, u, t: (x[0], x[1], x[2]))),
    (["dynamics", "ndarray"], in_f(lambda x, u, t: np.zeros(3))),
    (["dynamics", "float32", "float64"], in_f(lambda x, u, t: (x + u.sum()).float())),
    (["dynamics", "int64"], in_f(lambda x, u, t: torch.tensor([1, 2, 3]))),
    (["dynamics", "float64"], in_f(lambda x, u, t: torch.eye(3) @ x)),
    (["dynamics", "ONE sample", "IndexError"], in_f(lambda x, u, t: torch.stack((x[:, 0],) * 3))),
    (["arguments", "(x, u, t, p)"], in_f(lambda x: x)),
    (["dynamics", "'masss'", "parameters"], in_f(lambda x, u, t, p: x * p["masss"])),
    (["dynamics", "x in place", "torch.stack"], in_f(increment)),
    (["dynamics", "u in place", "torch.stack"], in_f(assign)),
    (["dynamics", "two answers", "deterministic"], in_f(lambda x, u, t: x + torch.randn(3))),
    (["two answers"], in_f(lambda x, u, t: x + random.random())),
    (["two answers"], in_f(lambda x, u, t: x + torch.from_numpy(np.random.randn(3)))),
    (["dynamics", "model.eval()"], in_f(Random())),  # refused even if two masks happen to agree
    (["two answers", "state between calls"], in_f(Counter())),
    (["dynamics", "numpy"], in_f(lambda x, u, t: x + torch.from_numpy(np.sin(x.numpy())))),
    (["dynamics", "torch"], in_f(lambda x, u, t: x + np.sin(x))),
    (["dynamics", "torch"], in_f(lambda x, u, t: x + math.sin(x[0]))),
    (["dynamics", "torch.stack"], in_f(lambda x, u, t: torch.tensor([x[0], x[1], x[2]]))),
    (["dynamics", "torch.where"], in_f(lambda x, u, t: x if x[0] > 0 else -x)),
    (["dynamics", "torch.where"], in_f(lambda x, u, t: x * max(u[0], u[1]))),
    (["dynamics", "batched"], in_f(lambda x, u, t: x * x[0].item())),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x if t == 0 else x + u.sum())),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x if t < 2 else x + u.sum())),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + [1.0, 2.0, 3.0, 4.0][t])),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + TABLE[t])),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + TABLE.get(t, 0.0))),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + (1.0 if t in {1, 2} else 0.0))),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + (1.0 if t in (1, 2) else 0.0))),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + cached(t))),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + float(t))),
    (["dynamics", "numpy"], in_f(lambda x, u, t: x + t.numpy())),
    (["dynamics", "stagewise=True"], in_f(lambda x, u, t: x + sum(range(t)))),
    (["dynamics", "t = 0 and 3", "out of"], in_f(lambda x, u, t: x + WEIGHT[t])),
    (["dynamics[0]", "x[0]", "autograd"], in_f(lambda x, u, t: x.detach() + u.sum())),
    (
        ["dynamics[1]", "u[0]", "autograd"],
        in_f(lambda x, u, t: torch.stack((x[0] + u[0], x[1] + u[0].detach(), x[2] + u[1]))),
    ),
    (["dynamics[0]", "autograd"], in_f(without_grad)),
    (
        ["dynamics[2]", "x[1]"],
        in_f(lambda x, u, t: torch.cat((x[:2], x[2:] + x[1].detach() * x[2]))),
    ),
    (["cost", "FunctionCost", "tuple"], {"cost": (COST.stage, COST.terminal)}),
    (["cost", "class ACost"], {"cost": ACost}),
    (["cost", "no terminal"], {"cost": type("Half", (), {"stage": lambda s, x, u, t: x @ x})()}),
    (["cost.stage", "scalar", "(3,)"], in_l(lambda x, u, t: x * x)),
    (["cost.stage", "scalar", "(1,)"], in_l(lambda x, u, t: (x @ x)[None])),
    (["cost.stage", "float", "x.new_zeros(())"], in_l(lambda x, u, t: 0.0)),
    (["cost.stage", "NoneType"], in_l(lambda x, u, t: None)),
    (["cost.stage", "autograd"], in_l(lambda x, u, t: x @ x + (u @ u).detach())),
    (["cost.stage", "stagewise=True"], in_l(lambda x, u, t: (x @ x) * TABLE.get(t, 1.0))),
    (["cost.terminal", "scalar", "(3,)"], in_phi(lambda x: x * x)),
    (["cost.terminal", "autograd", "x[0]"], in_phi(lambda x: x.detach() @ x.detach())),
    (["cost.terminal", "torch.where"], in_phi(lambda x: x @ x if x[0] > 0 else -x @ x)),
    (["cost.terminal", "ONE sample"], in_phi(lambda x: (x[:, 0] ** 2).sum())),
    (["cost.terminal", "in place"], in_phi(lambda x: x.mul_(2) @ x)),
]


def named(cases):
    return [pytest.param(*case, id=f"{i}-{'-'.join(case[0])[:40]}") for i, case in enumerate(cases)]


@pytest.mark.parametrize(("words", "changes"), named(DATA))
def test_wrong_data_is_refused(words, changes):
    refused(words, **changes)


@pytest.mark.parametrize(("words", "changes"), named(BOUNDS))
def test_wrong_bounds_are_refused(words, changes):
    refused(words, **changes)


@pytest.mark.filterwarnings("ignore:Converting a tensor", "ignore:__array_wrap__")
@pytest.mark.parametrize(("words", "changes"), named(FUNCTIONS))
def test_wrong_functions_are_refused(words, changes):
    refused(words, **changes)


def test_numpy_integers_plain_lists_and_integer_tables_are_welcome():
    problem = build(
        dynamics=lambda x, u, t, p: x + p["gain"] * p["table"][t] + u[p["which"]],
        x0=[0.3, -0.2, 0.5],
        horizon=np.int64(4),
        control_dim=np.int32(2),
        parameters={"gain": 2, "table": np.arange(4), "which": np.array(1)},
        per_problem={"mass": [1]},
        control_bounds=([-1, -1], [1, 1]),
        goal=[0, 0, 1],
    )
    assert problem.horizon == 4 and type(problem.horizon) is int
    assert problem.x0.dtype == problem.parameters["gain"].dtype == problem.lower.dtype == F64
    assert problem.parameters["table"].dtype == torch.int64
    assert problem.goal.dtype == F64


def test_later_writes_into_x0_do_not_reach_the_problem():
    x0 = X0.clone()
    problem = build(x0=x0)
    x0[0] = 99.0
    assert float(problem.x0[0]) == 0.3


def test_building_a_problem_changes_no_argument():
    x0, data = X0.clone(), torch.ones(2, dtype=F64)
    build(dynamics=lambda x, u, t, p: x * p["a"].sum() + u.sum(), x0=x0, parameters={"a": data})
    assert torch.equal(x0, X0) and torch.equal(data, torch.ones(2))


def test_kinks_saturation_and_a_singular_origin_are_no_mistakes():
    """Derivatives that are zero or nan at x0 or at u = 0 are not taken for a detached graph."""
    build(
        dynamics=lambda x, u, t: torch.relu(x) + torch.clamp(x, -0.1, 0.1) + torch.floor(x),
        cost=ocp.FunctionCost(
            lambda x, u, t: x.norm() + u.square().sum(), lambda x: (x[0] - 0.3).abs()
        ),
        x0=torch.zeros(3, dtype=F64),
    )
    build(dynamics=lambda x, u, t: x * 0)  # constant


def test_a_module_in_eval_mode_is_dynamics():
    model = Random().eval()
    assert build(dynamics=model, control_dim=1).state_dims == (3,) * 5


def test_an_engine_method_or_start_of_an_unknown_name_is_refused():
    problem = build()
    for words, arguments in (
        (["ilqr", "ddp", "'sqp'"], {"method": "sqp"}),
        (["engine", "'gpu'"], {"engine": "gpu"}),
        (["'tol'", "tolerance"], {"tol": 1e-3}),
        (["starts", "controls"], {"starts": "portfolio", "controls": torch.zeros(4, 2)}),
    ):
        with pytest.raises((ValueError, TypeError)) as caught:
            ocp.solve(problem, **arguments)
        assert all(word in str(caught.value) for word in words), caught.value


GUESSES = [
    (["controls", "(4, 2)", "(4, 3)"], {"controls": torch.zeros(4, 3)}),
    (["controls", "(4, 2)", "(3, 2)"], {"controls": torch.zeros(3, 2)}),
    (["controls", "floating"], {"controls": torch.zeros(4, 2, dtype=torch.int64)}),
    (
        ["controls", "stage 1", "nan"],
        {"controls": torch.tensor([[0.0, 0], [0, math.nan], [0, 0], [0, 0]])},
    ),
    (["controls", "list"], {"controls": [[0.0, 0.0], [0.0]]}),
    (["states", "(5, 3)", "(4, 3)"], {"states": torch.zeros(4, 3)}),
    (
        ["states", "stage 2", "inf"],
        {"states": torch.tensor([[0.0] * 3] * 2 + [[math.inf] * 3] + [[0.0] * 3] * 2)},
    ),
]


@pytest.mark.parametrize(("words", "guess"), named(GUESSES))
def test_wrong_guesses_are_refused(words, guess):
    with pytest.raises((ValueError, TypeError)) as caught:
        ocp.solve(build(), "ilqr", **guess)
    print(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_newton_takes_no_states():
    with pytest.raises(ValueError, match="takes no states"):
        ocp.solve(build(), "newton", states=torch.zeros(5, 3))


def test_the_same_functions_are_tried_once_and_other_data_of_another_form_again():
    calls = []

    def counted(x, u, t, p):
        calls.append(tuple(x.shape))
        return x + p["a"].sum() + u.sum()

    problem = build(dynamics=counted, parameters={"a": torch.ones(2, dtype=F64)})
    first = len(calls)
    problem.replace(x0=X0 + 1.0, parameters={"a": torch.zeros(2, dtype=F64)})
    assert len(calls) == first > 0
    problem.replace(parameters={"a": torch.zeros(3, dtype=F64)})
    assert len(calls) > first
    with pytest.raises(ValueError, match="needs"):
        problem.replace(dynamics=lambda x, u, t: x[:2])


def test_the_eager_engine_refuses_what_has_no_second_derivative_under_vmap():
    problem = ocp.Problem(lambda x, u, t: OnceDifferentiable.apply(x), COST, X0, 4, 2)
    with pytest.raises(ValueError, match=r"second derivative of dynamics .* no second"):
        ocp.solve(problem, engine="eager")


class Slotted:
    """What cannot be referred to weakly."""

    __slots__ = ()

    def __call__(self, x, u, t):
        return x + 0.1 * torch.cat((u, u[:1]))


def test_functions_without_weak_references_are_solved_eagerly_too():
    problem = build(dynamics=Slotted())
    assert ocp.solve(problem, engine="eager").converged
