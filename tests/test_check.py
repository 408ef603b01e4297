"""`check_derivatives` passes what is right and finds what is wrong, with its name and place."""

import pytest
import torch
from models import cartpoles, guess, resizing, rich

import ocp
from ocp.check import check_derivatives

BLOCKS = ["f_x", "f_u", "l_x", "l_u", "l_xx", "l_ux", "l_uu"]
BLOCKS += ["v.f_xx", "v.f_ux", "v.f_uu", "phi_x", "phi_xx"]


class Wrong(torch.autograd.Function):
    """sin(x) whose derivative is 1 % too large, from the first or only from the second on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, first):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.first = inputs[1]

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = torch.cos(x)
        wrong = 1.01 * slope if ctx.first else slope + 0.01 * (slope - slope.detach())
        return g * wrong, None


def bad_sine(x, first=True):
    return Wrong.apply(x, first)


@pytest.mark.parametrize("make", [rich, resizing, cartpoles])
def test_right_derivatives_pass_and_every_block_is_there(make):
    report = check_derivatives(make(batch=2))
    assert report.ok, str(report)
    assert sorted(report.worst) == sorted(BLOCKS)
    stages = {e.stage for e in report.entries}
    assert stages == set(range(make(batch=2).horizon + 1))
    report.raise_if_bad()
    # The differences are good enough to see an error in the eighth digit.
    assert max(e.error for e in report.entries) < 1e-8


def test_the_table_has_a_row_for_each_block():
    text = str(check_derivatives(rich(name="rich")))
    print(text)
    assert "rich" in text and "all agree" in text
    assert all(f"  {block} " in text for block in BLOCKS)


def costing(stage=lambda x, u, t: x @ x + u @ u, terminal=lambda x: x @ x):
    return {"cost": ocp.FunctionCost(stage, terminal)}


def moving(f):
    return {"dynamics": f}


WRONG = {
    "f_x": (moving(lambda x, u, t: torch.stack((x[0] + u[0], x[1] + bad_sine(x[0])))), (1, 0)),
    "f_u": (moving(lambda x, u, t: x + 0.1 * bad_sine(u[0])), None),
    "l_x": (costing(lambda x, u, t: bad_sine(x[1]) + u @ u), (1,)),
    "l_u": (costing(lambda x, u, t: x @ x + bad_sine(u[0])), (0,)),
    "phi_x": (costing(terminal=lambda x: bad_sine(x[1])), (1,)),
}


@pytest.mark.parametrize("block", WRONG)
def test_a_wrong_derivative_is_found_and_placed(block):
    changes, entry = WRONG[block]
    arguments = {
        "dynamics": lambda x, u, t: x + 0.1 * u.sum(),
        "cost": ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x),
    }
    x0 = torch.tensor([0.7, -0.4], dtype=torch.float64)
    problem = ocp.Problem(**{**arguments, **changes}, x0=x0, horizon=3, control_dim=1)
    report = check_derivatives(problem)
    print(report)
    assert not report.ok
    worst = report.worst[block]
    assert not worst.ok
    assert entry is None or worst.entry == entry
    # The second derivatives follow from the wrong first ones and agree with their differences.
    assert {k for k, e in report.worst.items() if not e.ok} == {block}
    with pytest.raises(ValueError, match=block):
        report.raise_if_bad()


SECOND = {
    "l_xx": costing(lambda x, u, t: bad_sine(x[1], False) + u @ u),
    "l_uu": costing(lambda x, u, t: bad_sine(u[0], False) + u @ u),
    "v.f_xx": moving(lambda x, u, t: x + bad_sine(x, False) + u.sum()),
    "v.f_uu": moving(lambda x, u, t: x + bad_sine(u[0], False)),
    "phi_xx": costing(terminal=lambda x: bad_sine(x[1], False)),
}


@pytest.mark.parametrize("block", SECOND)
def test_a_wrong_second_derivative_is_found_where_the_first_is_right(block):
    arguments = {
        "dynamics": lambda x, u, t: x + 0.1 * u.sum(),
        "cost": ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x),
    }
    x0 = torch.tensor([0.7, -0.4], dtype=torch.float64)
    problem = ocp.Problem(**{**arguments, **SECOND[block]}, x0=x0, horizon=3, control_dim=1)
    report = check_derivatives(problem)
    assert {k for k, e in report.worst.items() if not e.ok} == {block}, str(report)


def test_only_the_wrong_stage_and_row_are_blamed():
    def f(x, u, t, p):
        wrong = x + 0.1 * bad_sine(x) + u.sum()
        right = x + 0.1 * torch.sin(x) + u.sum()
        return torch.where((p["bad"] > 0) & (t == 2), wrong, right)

    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x)
    x0 = torch.tensor([[0.7, -0.4], [0.2, 0.1], [0.3, 0.3]], dtype=torch.float64)
    problem = ocp.Problem(f, cost, x0, 4, 1, per_problem={"bad": [0.0, 1.0, 0.0]})
    report = check_derivatives(problem)
    assert {(e.block, e.stage, e.problem) for e in report.entries if not e.ok} == {("f_x", 2, 1)}
    assert "stage 2" in str(report)


def test_shared_controls_are_checked_sample_by_sample():
    problem = rich(batch=3, shared_controls=True)
    report = check_derivatives(problem, controls=torch.stack(guess(problem))[:, 0])
    assert report.ok and {e.problem for e in report.entries} <= {0, 1, 2}


def test_given_points_are_used():
    problem = rich()
    us = torch.zeros(5, 2, dtype=torch.float64)
    xs = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    a = check_derivatives(problem, controls=us)
    b = check_derivatives(problem, states=xs, controls=us)
    assert a.ok and b.ok
    assert a.worst["phi_x"].derivative != b.worst["phi_x"].derivative


def test_a_roll_out_that_is_not_finite_is_an_error_that_says_where():
    problem = rich()
    steep = problem.replace(dynamics=lambda x, u, t: x + 1e3 * x**3 + u.sum())
    with pytest.raises(ValueError, match="not finite at stage"):
        check_derivatives(steep.replace(horizon=5, x0=problem.x0 * 10))


def test_float32_passes_with_its_own_tolerance():
    problem = rich()
    low = problem.replace(
        x0=problem.x0.float(),
        parameters={k: v.float() for k, v in problem.parameters.items()},
        per_problem={k: v.float() for k, v in problem.per_problem.items()},
    )
    report = check_derivatives(low)
    assert report.ok, str(report)
