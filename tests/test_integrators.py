"""Integrators: orders of convergence, structure, and what reaches the ode."""

import math
from itertools import pairwise

import pytest
import torch
from torch.func import jacrev

import ocp
from ocp.integrators import rk4_step

F64 = torch.float64
NO_P: dict = {}


def integrate(make, ode, x, seconds, steps, u=None):
    step = make(ode, seconds / steps)
    u = torch.zeros(1, dtype=F64) if u is None else u
    for t in range(steps):
        x = step(x, u, torch.tensor(t), NO_P)
    return x


def nonautonomous(x, u, time):
    """x' = cos(time) x: x(s) = x(0) exp(sin s)."""
    return torch.cos(time) * x


ORDERS = {
    ocp.euler: 1,
    ocp.midpoint: 2,
    ocp.rk4: 4,
    ocp.implicit_midpoint: 2,
}


@pytest.mark.parametrize(("make", "order"), ORDERS.items(), ids=lambda v: getattr(v, "__name__", v))
def test_order_of_convergence_with_an_ode_that_depends_on_time(make, order):
    x0, exact = torch.ones(2, dtype=F64), math.exp(math.sin(1.5))
    errors = [
        float((integrate(make, nonautonomous, x0, 1.5, n) - exact).abs().max())
        for n in (20, 40, 80)
    ]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.12)


def oscillator(x, u):
    return torch.stack((x[1], -x[0]))


def test_semi_implicit_euler_has_order_one_and_keeps_the_area():
    x0 = torch.tensor([1.0, 0.3], dtype=F64)
    exact = torch.tensor(
        [math.cos(1) + 0.3 * math.sin(1), 0.3 * math.cos(1) - math.sin(1)]
    ).double()
    errors = [
        float((integrate(ocp.semi_implicit_euler, oscillator, x0, 1.0, n) - exact).norm())
        for n in (50, 100)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    pendulum = lambda x, u: torch.stack((x[1], -9.81 * torch.sin(x[0])))
    for make in (ocp.semi_implicit_euler, ocp.implicit_midpoint):
        step = make(pendulum, 0.1)
        J = jacrev(lambda x, step=step: step(x, torch.zeros(1).double(), torch.tensor(0), NO_P))(x0)
        assert float(torch.linalg.det(J)) == pytest.approx(1.0, abs=1e-12), "not symplectic"
    J = jacrev(lambda x: ocp.euler(pendulum, 0.1)(x, x[:1], torch.tensor(0), NO_P))(x0)
    assert abs(float(torch.linalg.det(J)) - 1) > 1e-3


def test_implicit_midpoint_keeps_the_energy_of_an_oscillator():
    x0 = torch.tensor([1.0, 0.3], dtype=F64)
    after = integrate(ocp.implicit_midpoint, oscillator, x0, 40.0, 80)
    assert float(after.norm()) == pytest.approx(float(x0.norm()), rel=1e-12)


def test_implicit_midpoint_is_stable_on_a_stiff_system_where_rk4_is_not():
    stiff = lambda x, u: torch.stack((-1e4 * (x[0] - torch.cos(x[1])), torch.ones_like(x[1])))
    x0 = torch.tensor([1.0, 0.0], dtype=F64)
    implicit = integrate(ocp.implicit_midpoint, stiff, x0, 1.0, 50)
    assert float(implicit[0]) == pytest.approx(math.cos(1.0), abs=1e-3)
    assert not bool(torch.isfinite(integrate(ocp.rk4, stiff, x0, 1.0, 50)).all())


def test_implicit_midpoint_is_nan_where_its_equation_has_no_solution():
    explosive = lambda x, u: 1e3 * (1 + x**2)
    step = ocp.implicit_midpoint(explosive, 10.0)
    after = step(torch.ones(1).double(), torch.zeros(1).double(), torch.tensor(0), NO_P)
    assert bool(torch.isnan(after).all())


def test_derivatives_of_an_implicit_step_are_those_of_its_equation():
    """x' = x + dt f((x + x')/2): dx'/dx = (I - dt/2 J)^-1 (I + dt/2 J), and d2 by differences."""
    ode = lambda x, u: torch.stack((x[1] + u[0], -torch.sin(x[0]) - 0.1 * x[1] ** 3))
    step, dt = ocp.implicit_midpoint(ode, 0.2), 0.2
    x, u = torch.tensor([0.8, -0.5], dtype=F64), torch.tensor([0.4], dtype=F64)
    after = step(x, u, torch.tensor(0), NO_P)
    J = jacrev(ode)((x + after) / 2, u)
    eye = torch.eye(2, dtype=F64)
    expected = torch.linalg.solve(eye - dt / 2 * J, eye + dt / 2 * J)
    fx = jacrev(step)(x, u, torch.tensor(0), NO_P)
    torch.testing.assert_close(fx, expected, rtol=1e-12, atol=1e-12)
    second = jacrev(jacrev(step))(x, u, torch.tensor(0), NO_P)
    h = 1e-5
    columns = [
        (jacrev(step)(x + h * e, u, 0, NO_P) - jacrev(step)(x - h * e, u, 0, NO_P)) / (2 * h)
        for e in eye
    ]
    torch.testing.assert_close(second, torch.stack(columns, dim=-1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [ocp.euler, ocp.midpoint, ocp.rk4, ocp.implicit_midpoint])
def test_time_and_parameters_reach_the_ode(make):
    """x' = p time: exact for every scheme of order 2, from stage t on at t dt seconds."""
    ode = lambda x, u, time, p: p["slope"] * time + 0 * x
    after = make(ode, 0.5)(torch.zeros(1).double(), None, torch.tensor(3), {"slope": 2.0})
    expected = 2.0 * (1.5 * 0.5 if make is ocp.euler else (2.0**2 - 1.5**2) / 2)
    assert float(after) == pytest.approx(expected, abs=1e-13)


def test_an_integrated_ode_is_dynamics_and_the_control_is_held():
    ode = lambda x, u: torch.stack((x[1], u[0]))
    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)
    x0 = torch.tensor([1.0, 2.0], dtype=F64)
    problem = ocp.Problem(ocp.rk4(ode, 0.1), cost, x0, 3, 1)
    after = problem.f(x0, torch.tensor([4.0]).double(), 0, {})
    torch.testing.assert_close(after, torch.tensor([1 + 0.2 + 0.02, 2.4], dtype=F64))


def test_free_time_makes_the_duration_a_control():
    """Double integrator from rest at 1 m to rest at 0, J = integral of 18 + u^2/2.

    With N equal steps of constant u the least energy in time s is 6 / s^3 / (1 - 1/N^2), hence
    the best time s^4 = 1 / (1 - 1/N^2).
    """
    N, ode = 4, lambda x, u: torch.stack((x[1], u[0]))
    cost = ocp.FunctionCost(lambda x, u, t: u[1] * (18 + u[0] ** 2 / 2), lambda x: 1e3 * (x @ x))
    x0 = torch.tensor([1.0, 0.0], dtype=F64)
    limits = ([-100.0, 0.01], [100.0, 1.0])
    problem = ocp.Problem(ocp.free_time(ode), cost, x0, N, 2, control_bounds=limits)
    start = torch.tensor([[-4, 0.3], [-1, 0.3], [1, 0.3], [4, 0.3]], dtype=F64)
    solution = ocp.solve(problem, "ddp", controls=start)
    assert solution.status == ocp.Status.CONVERGED
    seconds = solution.controls[:, 1]
    assert float(seconds.sum()) == pytest.approx((1 - 1 / N**2) ** -0.25, abs=0.005)
    torch.testing.assert_close(seconds, seconds.mean().expand(N), rtol=1e-3, atol=0)


def test_free_time_equals_the_fixed_step_of_that_length():
    ode = lambda x, u, time, p: torch.stack((x[1] + time, p["k"] * u[0] - x[0]))
    x, p = torch.tensor([0.3, 0.2], dtype=F64), {"k": 1.7}
    u = torch.tensor([0.5, 0.25], dtype=F64)
    free = ocp.free_time(ode)(x, u, torch.tensor(0), p)
    fixed = ocp.rk4(ode, 0.25)(x, u[:1], torch.tensor(0), p)
    torch.testing.assert_close(free, fixed)


def test_own_scheme():
    heun = lambda flow, x, dt: (
        x
        + dt
        / 2
        * (flow(x, x.new_zeros(())) + flow(x + dt * flow(x, x.new_zeros(())), x.new_zeros(()) + dt))
    )
    make = lambda ode, dt: ocp.discretise(ode, dt, heun)
    x0, exact = torch.ones(1, dtype=F64), math.exp(math.sin(1.0))
    errors = [float(integrate(make, nonautonomous, x0, 1.0, n) - exact) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    same = ocp.discretise(nonautonomous, 0.1, rk4_step)(x0, None, torch.tensor(2), NO_P)
    torch.testing.assert_close(same, ocp.rk4(nonautonomous, 0.1)(x0, None, torch.tensor(2), NO_P))


@pytest.mark.parametrize("dt", [0.0, -0.1, math.nan])
def test_a_step_that_is_not_positive_is_refused(dt):
    with pytest.raises(ValueError, match="dt must be a positive"):
        ocp.rk4(oscillator, dt)


def test_an_ode_with_other_arguments_is_refused():
    with pytest.raises(TypeError, match="takes 1 arguments"):
        ocp.rk4(lambda x: x, 0.1)
    ocp.rk4(lambda x, u, gain=2.0: x, 0.1)  # defaults stay defaults


def test_an_odd_state_is_refused_by_the_semi_implicit_scheme():
    with pytest.raises(ValueError, match="dynamics"):
        ocp.Problem(
            ocp.semi_implicit_euler(lambda x, u: x, 0.1),
            ocp.FunctionCost(),
            torch.ones(3, dtype=F64),
            2,
            1,
        )
