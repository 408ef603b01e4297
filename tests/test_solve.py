"""Whole solves: exact where theory says so, independent within a batch, honest when they fail."""

import math
from itertools import pairwise

import numpy as np
import pytest
import references
import torch
from models import CONTROLS, cartpoles, guess, resizing, rich, single
from references import close, lists_close

import ocp
from ocp import Status
from ocp.engines import Eager

F64 = torch.float64
SWEEPING = ["ilqr", "ddp", "newton", "lqr"]


def solve(problem, method="ddp", **options):
    return ocp.solve(problem, method, progress=False, **options)


def initial(problem, seed=0, size=0.3):
    us = [u[0] if problem.batch == 1 else u for u in guess(problem, seed, size)]
    return torch.stack(us, dim=-2) if problem.uniform else us


# -- linear-quadratic ---------------------------------------------------------------------------
@pytest.mark.parametrize("method", SWEEPING)
@pytest.mark.parametrize(
    ("sizes", "controls"),
    [((3, 2, 4, 4), (1, 0, 2)), ((3, 3), (2,)), ((1, 1, 1), (1, 1)), ((4, 4, 4), (2, 2))],
)
def test_one_step_solves_a_linear_quadratic_problem(method, sizes, controls):
    matrices = references.random_lq(sizes, controls, seed=2)
    problem = references.lq_problem(*matrices)
    xs, us, ps, J = references.dense_kkt(*matrices)
    solver = ocp.make_solver(method, damping_start=0.0)
    state = solver.step(problem, solver.init(problem, initial(problem)))
    lists_close([u[0] for u in state.us], us)
    lists_close([x[0] for x in state.xs], xs)
    solution = solve(problem, method, controls=initial(problem))
    assert solution.status == Status.CONVERGED and int(solution.iterations) <= 2
    lists_close(solution.controls, us)
    lists_close(solution.costates, ps)
    lists_close(solution.value.vx, ps)
    close(float(solution.cost), J)
    assert float(solution.hamiltonian_residual) < 1e-9 and float(solution.gap) < 1e-13


@pytest.mark.parametrize("method", ["ilqr", "ddp", "lqr"])
def test_one_step_solves_it_from_states_that_do_not_fit_together(method):
    matrices = references.random_lq((3, 2, 4, 4), (1, 0, 2), seed=3)
    problem = references.lq_problem(*matrices)
    states = [torch.full((n,), 0.5, dtype=F64) for n in problem.state_dims]
    solution = solve(problem, method, controls=initial(problem), states=states)
    lists_close(solution.controls, references.dense_kkt(*matrices)[1])
    assert solution.status == Status.CONVERGED and float(solution.gap) < 1e-12


@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton"])
def test_a_bounded_linear_quadratic_problem_agrees_with_scipy(method):
    matrices = references.random_lq((3, 3, 3, 3, 3), (2, 2, 2, 2), seed=4)
    lo, hi = np.array([-1.0, -1.5]), np.array([1.5, 1.0])
    problem = references.lq_problem(*matrices, control_bounds=(lo, hi))
    expected = references.bounded_minimum(problem, lo, hi)
    solution = solve(problem, method)
    assert solution.status == Status.CONVERGED
    close(solution.controls.flatten(), expected, 1e-6)
    at_bound = (solution.controls == problem.lower[:, 0]) | (
        solution.controls == problem.upper[:, 0]
    )
    assert bool(at_bound.any()) and not bool(at_bound.all())


# -- one step, and convergence ------------------------------------------------------------------
@pytest.mark.parametrize("make", [rich, resizing])
@pytest.mark.parametrize(("method", "second"), [("ilqr", False), ("ddp", True)])
def test_one_step_equals_the_independent_one(make, method, second):
    """Sweep with damping, trials with feedback, the step size by Armijo's rule."""
    problem, us = make(), guess(make(), seed=1, size=0.1)
    options = {"second_order": "always"} if method == "ddp" else {}
    solver = ocp.make_solver(method, damping_start=1e-3, **options)
    before = solver.init(problem, [u[0] for u in us])
    after = solver.step(problem, before)
    flat = [u[0] for u in us]
    xs, J = references.roll_out(problem, flat)
    oracle = references.ddp_sweep(problem, xs, flat, second_order=second, damping=1e-3)
    J, trial = float(J), lambda a: references.ddp_trial(problem, xs, flat, oracle, a)
    slope = (trial(1e-5)[2] - trial(-1e-5)[2]) / 2e-5
    for a in (0.5**i for i in range(12)):
        new_xs, new_us, new_J = trial(a)
        if J - new_J >= -0.1 * (a * slope + a**2 * (oracle.change - slope)):
            break
    lists_close([u[0] for u in after.us], new_us)
    lists_close([x[0] for x in after.xs], new_xs)
    close(float(after.cost), new_J)
    close(float(before.cost), J)


def errors_to_the_end(problem, method, controls, **options):
    """Distance of the controls from the converged ones, iteration by iteration."""
    best = solve(problem, "ddp", controls=controls, tolerance=1e-13, cost_tolerance=1e-26)
    seen = []

    def keep(report):
        us = report.state.us
        seen.append(torch.cat([u[0] for u in us]))

    solve(problem, method, controls=controls, callback=keep, **options)
    final = torch.cat(list(best.controls))
    return [float((u - final).abs().max()) for u in seen]


def swing(horizon=30):
    """Pendulum from hanging to upright, weakly damped, expensive torque."""

    def ode(x, u):
        return torch.stack((x[1], u[0] - 9.81 * torch.sin(x[0]) - 0.1 * x[1]))

    target = torch.tensor([math.pi, 0.0], dtype=F64)
    cost = ocp.FunctionCost(
        lambda x, u, t: 0.01 * u.square().sum(), lambda x: 50 * (x - target).square().sum()
    )
    return ocp.Problem(ocp.rk4(ode, 0.05), cost, torch.zeros(2, dtype=F64), horizon, 1)


QUADRATIC = {
    "swing": (swing, {"size": 1.0}),
    "rich": (lambda: rich(horizon=8), {"size": 0.1}),
}


@pytest.mark.parametrize("name", QUADRATIC)
@pytest.mark.parametrize("method", ["ddp", "newton"])
def test_ddp_and_newton_converge_quadratically(name, method):
    """Where it is small, the next error is at most C error^2, by C of the pair before."""
    make, start = QUADRATIC[name]
    problem = make()
    options = {"second_order": "always"} if method == "ddp" else {}
    errors = errors_to_the_end(
        problem, method, initial(problem, **start), damping_start=0.0, damping_min=1e-300,
        first_damping=0.0, tolerance=1e-12, cost_tolerance=1e-24, **options,
    )  # fmt: skip
    last = [e for e in errors if 1e-15 < e < 0.1]
    print(last)
    orders = [
        math.log(c / b) / math.log(b / a)
        for a, b, c in zip(last[:-2], last[1:-1], last[2:], strict=True)
        if c > 1e-13
    ]
    assert max(orders) > 1.7, orders
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("name", QUADRATIC)
def test_ilqr_converges_linearly_where_the_dynamics_curve(name):
    make, start = QUADRATIC[name]
    problem = make()
    errors = errors_to_the_end(
        problem, "ilqr", initial(problem, **start), tolerance=1e-10, cost_tolerance=1e-20
    )
    last = [e for e in errors if 1e-9 < e < 1e-2]
    ratios = [b / a for a, b in pairwise(last)]
    print(ratios)
    assert len(ratios) >= 3 and ratios[-1] < 0.95
    assert ratios[-1] == pytest.approx(ratios[-2], rel=0.3) and ratios[-1] > 1e-3


@pytest.mark.parametrize("method", SWEEPING[:3])
@pytest.mark.parametrize("make", [rich, resizing])
def test_the_result_is_a_minimum_of_the_plain_roll_out(make, method):
    problem = make(batch=2)
    solution = solve(problem, method, controls=initial(problem, size=0.1))
    # What converges linearly may meet the rounding of J before the tolerance on the residual.
    ends = {Status.CONVERGED} | ({Status.PRECISION} if method == "ilqr" else set())
    assert set(solution.status) <= ends, str(solution)
    for b in range(2):
        us = [u[b] for u in solution.controls] if make is resizing else list(solution.controls[b])
        _, J = references.roll_out(problem, us, b)
        close(float(solution.cost[b]), float(J), 1e-12)
        g = torch.cat(references.gradient(problem, us, b))
        assert float(g.abs().max()) < 1e-5
        close(float(solution.hamiltonian_residual[b]), float(g.abs().max()), 1e-9)
        H = references.dense_hessian(problem, us, b)
        assert float(torch.linalg.eigvalsh(H)[0]) > 0


@pytest.mark.parametrize("regularisation", ["control", "state"])
def test_both_regularisations_reach_the_same_minimum(regularisation):
    problem = rich(batch=2)
    solution = solve(problem, "ddp", regularisation=regularisation, damping_start=1e-2)
    reference = solve(problem, "ilqr")
    assert bool(solution.converged.all())
    close(solution.cost, reference.cost, 1e-9)


def test_shared_controls_minimise_the_mean():
    problem = rich(batch=3, shared_controls=True)
    solution = solve(problem)
    us = list(solution.controls)
    J = torch.stack([references.roll_out(problem, us, b)[1] for b in range(3)]).mean()
    close(float(solution.cost), float(J), 1e-12)
    g = torch.cat(references.gradient(problem, us, None))
    assert solution.status == Status.CONVERGED and float(g.abs().max()) < 1e-6
    again = solve(rich(batch=3, shared_controls=True, stagewise=True))
    close(again.controls, solution.controls, 1e-9)


# -- batches ------------------------------------------------------------------------------------
def step_state(problem, controls, method="ddp"):
    solver = ocp.make_solver(method, damping_start=1e-6, **(
        {"second_order": "always"} if method == "ddp" else {}
    ))  # fmt: skip
    return solver.step(problem, solver.init(problem, controls))


def step_equals_single_steps(rows, batch=1000):
    problem = cartpoles(batch, horizon=10)
    controls = initial(problem)
    together = step_state(problem, controls)
    for b in rows:
        alone = step_state(single(problem, b), controls[b])
        close(together.us[:, b], alone.us[:, 0])
        close(together.xs[:, b], alone.xs[:, 0])
        for name in ("cost", "damping", "status", "iterations", "gap"):
            close(getattr(together, name)[b], getattr(alone, name)[0])


def test_a_step_of_1000_cartpoles_equals_single_steps():
    step_equals_single_steps([0, 1, 17, 250, 499, 500, 998, 999])


@pytest.mark.slow
def test_a_step_of_1000_cartpoles_equals_1000_single_steps():
    step_equals_single_steps(range(1000))


@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton"])
def test_solving_in_a_batch_equals_solving_alone(method):
    """12 problems: finished ones leave the batch on the way."""
    problem = cartpoles(12, horizon=12, spread=1.0)
    together = solve(problem, method)
    for b in (0, 5, 11):
        alone = solve(single(problem, b), method)
        assert together.status[b] == alone.status
        close(together.cost[b], alone.cost)
        close(together.controls[b], alone.controls, 1e-6)
        assert int(together.iterations[b]) == int(alone.iterations)


def diverging(bad, batch=10, horizon=6):
    """Row 3 of x0 far out in a cubic instability, if ``bad``."""
    cost = ocp.FunctionCost(lambda x, u, t: 0.1 * (x @ x + u @ u), lambda x: x @ x)
    g = torch.Generator().manual_seed(0)
    x0 = 0.3 * torch.randn(batch, 2, generator=g, dtype=F64)
    if bad:
        x0[3] = 1e30
    f = lambda x, u, t: torch.stack((x[0] + 0.2 * x[1], x[1] + 0.2 * (x[0] ** 3 + u[0])))
    return ocp.Problem(f, cost, x0, horizon, 1)


@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton"])
def test_a_diverging_member_changes_nothing_for_the_rest(method):
    healthy, sick = (solve(diverging(bad), method) for bad in (False, True))
    assert sick.status[3] == Status.NON_FINITE
    assert "problem 3" in sick.message[3] and "stage" in sick.message[3]
    rest = [b for b in range(10) if b != 3]
    assert [sick.status[b] for b in rest] == [healthy.status[b] for b in rest]
    assert [int(sick.iterations[b]) for b in rest] == [int(healthy.iterations[b]) for b in rest]
    close(sick.controls[rest], healthy.controls[rest], 1e-12)
    close(sick.cost[rest], healthy.cost[rest], 1e-13)
    close(sick.policy.K[rest], healthy.policy.K[rest], 1e-11)


def test_finished_problems_leave_a_batch_whose_sizes_change():
    bound = [0.3 * torch.ones(m) for m in CONTROLS]
    problem = resizing(batch=20, control_bounds=([-b for b in bound], bound))
    together = solve(problem)
    for b in (0, 9, 19):
        alone = solve(single(problem, b))
        assert together.status[b] == alone.status
        close(together.cost[b], alone.cost)


def lacking(rows):
    """Row 0 has no curvature in its controls (Mayer), row 1 a concave end at first, row 2 none."""
    rows = torch.tensor(rows)
    data = {"w": [0.0, 1e-3, 0.1], "linear": [1.0, 0.0, 0.0], "well": [0.0, 1.0, 1.0]}
    cost = ocp.FunctionCost(
        lambda x, u, t, p: p["w"] * (u @ u),
        lambda x, p: p["linear"] * x[0] + p["well"] * (x[0] ** 2 - 1) ** 2 + 0.01 * x[0] ** 2,
    )
    x0 = torch.tensor([[0.3], [0.02], [0.9]], dtype=F64)[rows]
    data = {k: torch.tensor(v, dtype=F64)[rows] for k, v in data.items()}
    return ocp.Problem(lambda x, u, t: x + torch.tanh(u), cost, x0, 3, 1, per_problem=data)


@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton"])
def test_an_indefinite_member_changes_nothing_for_the_rest(method):
    together = solve(lacking([0, 1, 2]), method)
    for b in range(3):
        alone = solve(lacking([b]), method)
        assert together.status[b] == alone.status[0]
        for count in ("iterations", "sweeps", "rollouts"):
            assert int(getattr(together, count)[b]) == int(getattr(alone, count)[0]), count
        close(together.cost[b], alone.cost[0])


def test_same_inputs_same_bits():
    a, b = (solve(cartpoles(3, horizon=8)) for _ in range(2))
    assert torch.equal(a.controls, b.controls) and torch.equal(a.states, b.states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_precisions_converge(dtype):
    base = rich(batch=2)
    problem = base.replace(
        x0=base.x0.to(dtype),
        parameters={k: v.to(dtype) for k, v in base.parameters.items()},
        per_problem={k: v.to(dtype) for k, v in base.per_problem.items()},
    )
    solution = solve(problem)
    assert bool(solution.converged.all()) and solution.controls.dtype == dtype
    close(solution.cost.double(), solve(base).cost, 1e-5 if dtype == torch.float32 else 1e-9)


# -- infeasible starts --------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["ilqr", "ddp"])
def test_a_guess_of_states_closes_its_gaps(method):
    problem = swing()
    way = torch.linspace(0, 1, 31, dtype=F64)[:, None] * torch.tensor([math.pi, 0.0]).double()
    solution = solve(problem, method, states=way)
    assert solution.status == Status.CONVERGED and float(solution.gap) < 1e-9
    history = solution.history["gap"]
    assert float(history[0]) > 0.1 and bool((history[1:] <= history[:-1]).all())
    _, J = references.roll_out(problem, list(solution.controls))
    close(float(solution.cost), float(J), 1e-8)


def test_gaps_of_one_problem_do_not_touch_the_other():
    problem = rich(batch=2)
    engine = Eager(problem)
    xs = engine.rollout(torch.zeros(5, 2, 2, dtype=F64)).movedim(0, 1)
    bent = xs.clone()
    bent[1, 2:] += 0.3
    straight, gapped = (solve(problem, states=s) for s in (xs, bent))
    close(gapped.controls[0], straight.controls[0], 1e-12)
    assert bool(gapped.converged.all()) and float(gapped.gap.max()) < 1e-10


# -- trouble is a status ------------------------------------------------------------------------
COST = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x)
ONE = torch.tensor([1.0, 0.5], dtype=F64)


def test_nan_midway_is_named_with_its_stage():
    f = lambda x, u, t: torch.where(t == 3, torch.log(-1 - x**2), x + u.sum())
    solution = solve(ocp.Problem(f, COST, ONE, 6, 1))
    assert solution.status == Status.NON_FINITE
    assert "stage 3" in solution.message and "nan" in solution.message
    assert "dynamics" in solution.message
    assert solution.controls.shape == (6, 1)
    print(solution)


def test_nan_in_a_derivative_is_named():
    cost = ocp.FunctionCost(lambda x, u, t: u @ u + (x @ x) ** 0.5, lambda x: x @ x)
    f = lambda x, u, t: torch.where(t == 1, 0 * x, x) + u.sum() * (t > 5)
    solution = solve(ocp.Problem(f, cost, ONE, 4, 1))
    assert solution.status == Status.NON_FINITE
    assert "stage 2" in solution.message and "cost" in solution.message
    assert "gradient" in solution.message or "Hessian" in solution.message


def test_nan_that_a_step_would_reach_is_avoided():
    """sqrt(1 - u^2) is nan beyond |u| = 1, where the first full step would land."""
    cost = ocp.FunctionCost(lambda x, u, t: -torch.sqrt(1 - u @ u), lambda x: (x - 3) @ (x - 3))
    solution = solve(ocp.Problem(lambda x, u, t: x + u, cost, torch.zeros(1).double(), 4, 1))
    assert solution.status == Status.CONVERGED
    assert bool(torch.isfinite(solution.controls).all())
    assert float(solution.controls.abs().max()) < 1


def test_an_unbounded_cost_is_a_status():
    cost = ocp.FunctionCost(lambda x, u, t: 1e-9 * u @ u, lambda x: -torch.exp(x[0]))
    f = lambda x, u, t: x + u.sum()
    solution = solve(ocp.Problem(f, cost, ONE, 5, 1), max_iterations=200)
    assert solution.status in (Status.UNBOUNDED, Status.STALLED, Status.MAX_ITERATIONS)
    assert solution.status != Status.CONVERGED and float(solution.cost) < -1e3
    concave = ocp.FunctionCost(lambda x, u, t: -(u @ u), lambda x: x @ x)
    solution = solve(ocp.Problem(f, concave, ONE, 5, 1, control_bounds=None))
    assert solution.status != Status.CONVERGED
    print(solution)


def test_a_saddle_is_no_minimum():
    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: (x[0] ** 2 - 1) ** 2)
    f = lambda x, u, t: x + u
    solution = solve(ocp.Problem(f, cost, torch.zeros(1, dtype=F64), 3, 1))
    assert solution.status == Status.SADDLE, str(solution)
    assert "stage" in solution.message and "saddle" in solution.message


def test_beside_a_saddle_the_damping_rises_until_there_is_a_way_down():
    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: (x[0] ** 2 - 1) ** 2)
    x0 = torch.full((1,), 0.01, dtype=F64)
    solution = solve(ocp.Problem(lambda x, u, t: x + u, cost, x0, 3, 1))
    assert solution.status == Status.CONVERGED and float(solution.cost) < 0.5


def test_iterations_and_time_run_out_with_a_status_and_the_best_iterate():
    problem = swing()
    few = solve(problem, max_iterations=3)
    assert few.status == Status.MAX_ITERATIONS and int(few.iterations) == 3
    assert "3 iterations" in few.message
    start = float(references.roll_out(problem, list(torch.zeros(30, 1).double()))[1])
    assert float(few.cost) < start
    late = solve(problem, time_limit=0.0)
    assert late.status == Status.TIME_LIMIT and int(late.iterations) == 1
    assert "time limit" in late.message


def test_what_a_start_solves_on_the_way_counts_and_is_limited():
    problem = swing().replace(goal=torch.tensor([math.pi, 0.0], dtype=F64))
    for limit in (0, 1, 4):
        few = ocp.solve(problem, max_iterations=limit)
        assert int(few.iterations) == limit and few.status == Status.MAX_ITERATIONS
    late = ocp.solve(problem, starts=ocp.starts.weight_continuation(), time_limit=0.0)
    assert late.status == Status.TIME_LIMIT and int(late.iterations) == 1
    watched = []
    whole = ocp.solve(problem, starts=ocp.starts.weight_continuation(), callback=watched.append)
    first = watched[0]
    assert int(first.start.iterations) > 0 and 0 < first.start_seconds < first.seconds
    assert int(whole.iterations) == int(watched[-1].state.iterations)


def test_the_first_steps_of_the_default_start_are_those_of_the_solve():
    problem = swing().replace(goal=torch.tensor([math.pi, 0.0], dtype=F64))
    watched = []
    whole = ocp.solve(problem, callback=watched.append)
    assert [r.iteration for r in watched] == list(range(1, len(watched) + 1))
    assert int(watched[0].start.iterations) == 0
    assert int(whole.iterations) == int(watched[-1].state.iterations)
    assert all(len(v) == len(watched) for v in whole.history.values())
    line = ocp.solve(problem, starts=ocp.starts.interpolate(0.35))
    assert torch.equal(whole.states, line.states)  # the gaps of the line close early


@pytest.mark.parametrize("after", [1, 150, 300])
def test_ctrl_c_in_a_start_returns_an_iterate_that_is_feasible(after):
    problem, calls = swing().replace(goal=torch.tensor([math.pi, 0.0], dtype=F64)), [-1000]

    def f(x, u, t, p):
        calls[0] += 1
        if calls[0] == after:
            raise KeyboardInterrupt
        return problem.dynamics(x, u, t, p)

    watched = problem.replace(dynamics=f)
    assert calls[0] < 0
    calls[0] = 0
    solution = ocp.solve(watched, starts=ocp.starts.weight_continuation())
    assert solution.status == Status.INTERRUPTED and calls[0] > after
    assert float(solution.gap) == 0 and bool(torch.isfinite(solution.cost))


def test_a_callback_sees_each_step_and_may_stop():
    seen = []

    def watch(report):
        seen.append((report.iteration, float(report.cost[0]), report.seconds))
        return report.iteration == 2

    solution = solve(swing(), callback=watch)
    assert solution.status == Status.INTERRUPTED and "interrupted" in solution.message
    assert [i for i, _, _ in seen] == [1, 2]
    assert seen[0][1] >= seen[1][1] == float(solution.cost)
    assert seen[0][2] <= seen[1][2]


@pytest.mark.parametrize("where", ["callback", "dynamics"])
def test_ctrl_c_returns_the_best_iterate(where):
    problem, calls = swing(), []

    def interrupt(report):
        calls.append(report)
        if len(calls) == 2:
            raise KeyboardInterrupt

    if where == "callback":
        solution = solve(problem, callback=interrupt)
    else:
        armed = []

        def f(x, u, t, p):
            if armed and armed.pop():
                raise KeyboardInterrupt
            return problem.dynamics(x, u, t, p)

        def arm(report):
            if report.iteration == 2:
                armed.append(True)

        solution = solve(problem.replace(dynamics=f), callback=arm)
    assert solution.status == Status.INTERRUPTED and int(solution.iterations) == 2
    two = solve(problem, max_iterations=2)
    close(solution.cost, two.cost, 1e-12)
    assert solution.history["cost"].shape == (2,) == solution.history["seconds"].shape


def test_statuses_of_a_batch_are_told_apart():
    solution = solve(diverging(True), max_iterations=2)
    assert set(solution.status) <= {Status.NON_FINITE, Status.MAX_ITERATIONS, Status.CONVERGED}
    assert len(set(solution.status)) >= 2 and len(solution.message) == 10
    assert "problem 3" in str(solution) or "[3]" in str(solution)


def test_no_controls_at_all():
    problem = ocp.Problem(lambda x, u, t: 0.9 * x - 0.1 * x**2, COST, ONE, 4, 0)
    for method in SWEEPING:
        solution = solve(problem, method)
        assert solution.status == Status.CONVERGED and solution.controls.shape == (4, 0)
        close(float(solution.cost), float(references.roll_out(problem, list(solution.controls))[1]))


def test_with_bounds_the_default_start_is_zero_controls():
    limit = torch.full((1,), 3.0, dtype=F64)
    problem = swing().replace(goal=torch.tensor([math.pi, 0.0], dtype=F64))
    bounded = problem.replace(control_bounds=(-limit, limit))
    first = []
    ocp.solve(bounded, callback=lambda r: first.append(r.start) or True)
    assert float(first[0].gap) == 0 and not bool(torch.as_tensor(first[0].us).any())
    ocp.solve(problem, callback=lambda r: first.append(r.start) or True)
    assert float(first[1].gap) > 0
