"""Descent on the Hamiltonian: its gradient, its directions, bounds, and where it ends."""

import models
import numpy as np
import pytest
import references
import torch
from swing import swing, vector

import ocp
from ocp.problems.van_der_pol import van_der_pol
from ocp.solvers.pmp import PMP, cauchy_scale, two_loop


def first_direction(problem, us, **options):
    solver = PMP(**options)
    controls = torch.stack(us).transpose(0, 1) if problem.batched else us
    state = solver.init(problem, controls)
    return solver.direction(state, state.engine.expand(state.xs, state.us))


@pytest.mark.parametrize("search", ["gradient", "lbfgs"])
def test_first_step_is_a_multiple_of_the_gradient_through_the_rollout(search):
    problem = models.rich(3, horizon=5)
    us = models.guess(problem)
    direction = first_direction(problem, us, search=search)
    for b in range(3):
        g = torch.cat(references.gradient(problem, [u[b] for u in us], b))
        k = torch.cat([k[b] for k in direction.policy.k])
        references.close(k * (g @ g) / (k @ g), g)
        assert k @ g < 0
        references.close(direction.slope[b], k @ g)
        references.close(direction.residual[b], g.abs().max())


def test_gradient_where_sizes_change_with_the_stage():
    problem = models.resizing()
    us = models.guess(problem)
    direction = first_direction(problem, [u[0] for u in us])
    g = torch.cat(references.gradient(problem, [u[0] for u in us]))
    k = torch.cat([k[0] for k in direction.policy.k])
    references.close(k * (g @ g) / (k @ g), g)
    assert k @ g < 0


def test_gradient_of_shared_controls_is_that_of_the_mean():
    problem = models.rich(3, horizon=5, shared_controls=True)
    us = [u[0] for u in models.guess(problem)]
    direction = first_direction(problem, us)
    g = torch.cat(references.gradient(problem, us, None))
    k = torch.cat([k[0] for k in direction.policy.k])
    references.close(k * (g @ g) / (k @ g), g)
    assert k @ g < 0


def test_first_scale_minimises_a_quadratic_along_its_gradient():
    stages, *end = references.random_lq([3, 2, 4, 4], [2, 1, 3], seed=0)
    problem = references.lq_problem(stages, *end)
    us = [torch.from_numpy(v) for v in (np.ones(2), np.ones(1), np.ones(3))]
    state = PMP().init(problem, us)
    expansion = state.engine.expand(state.xs, state.us)
    g = torch.cat(references.gradient(problem, us))
    H = references.dense_hessian(problem, us)
    scale = cauchy_scale(state.engine, state.us, expansion, g[None])
    references.close(scale[0], (g @ g) / (g @ H @ g))


def test_two_loop_equals_the_dense_bfgs_update():
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    N, pairs = 5, 3
    A = draw(N, N)
    s = draw(pairs, 2, N)
    y = s @ (A @ A.T + torch.eye(N, dtype=torch.float64))
    y[1, 1] = -y[1, 1]  # negative curvature: left out
    g = draw(2, N)
    actual = two_loop(g, s, y, torch.ones(2, dtype=torch.float64))
    for b in range(2):
        H = torch.eye(N, dtype=torch.float64) * (s[0, b] @ y[0, b]) / (y[0, b] @ y[0, b])
        for i in reversed(range(pairs)):  # oldest first
            if s[i, b] @ y[i, b] <= 0:
                continue
            rho = 1 / (s[i, b] @ y[i, b])
            V = torch.eye(N, dtype=torch.float64) - rho * torch.outer(y[i, b], s[i, b])
            H = V.T @ H @ V + rho * torch.outer(s[i, b], s[i, b])
        references.close(actual[b], H @ g[b])


def test_pendulum_ends_at_the_cost_of_ddp_and_lbfgs_gets_there_sooner():
    problem = swing(T=8)
    ddp = ocp.solve(problem, "ddp")
    few, many = (ocp.solve(problem, "pmp", search=s) for s in ("lbfgs", "gradient"))
    for pmp in (few, many):
        assert pmp.status in (ocp.Status.CONVERGED, ocp.Status.PRECISION)
        references.close(pmp.cost, ddp.cost, 1e-9)
        references.close(pmp.controls, ddp.controls, 1e-4)
    assert 2 * few.iterations < many.iterations


@pytest.mark.parametrize("problem", [swing(T=8), models.rich(horizon=5)], ids=["swing", "rich"])
def test_costates_at_the_optimum_are_the_value_gradient_of_ddp(problem):
    pmp = ocp.solve(problem, "pmp", tolerance=1e-8, max_iterations=1000)
    ddp = ocp.solve(problem, "ddp")
    torch.testing.assert_close(pmp.costates, ddp.value.vx, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("search", ["gradient", "lbfgs"])
def test_bounds_hold_on_the_way_and_the_optimum_is_that_of_scipy(search):
    lo, hi = np.array([-1.2]), np.array([0.9])
    problem = swing(T=8, control_bounds=(lo, hi))
    seen = []
    solution = ocp.solve(
        problem,
        "pmp",
        search=search,
        callback=lambda report: seen.append(report.state.us),
        max_iterations=2000,
    )
    assert all(bool(((us >= lo[0]) & (us <= hi[0])).all()) for us in seen)
    best = references.bounded_minimum(problem, lo, hi)
    assert (np.abs(best - hi[0]) < 1e-9).any()  # a bound is active
    references.close(solution.cost, references.objective(problem)(torch.from_numpy(best)), 1e-7)
    assert solution.hamiltonian_residual < 1e-5


@pytest.mark.parametrize("search", ["gradient", "lbfgs"])
def test_a_direction_stays_within_the_bounds_and_leaves_alone_what_they_hold(search):
    """Half of the controls start at each bound; first without, then with a step to remember."""
    lo, hi = vector(-0.2, -0.5), vector(0.4, 0.1)
    problem = models.rich(horizon=6, control_bounds=(lo, hi))
    start = torch.stack([lo, hi, lo, hi, lo, hi])
    solver = PMP(search=search)
    state, held = solver.init(problem, start), 0
    for _ in range(3):
        direction = solver.direction(state, state.engine.expand(state.xs, state.us))
        us, k = state.us[:, 0], direction.policy.k[:, 0]
        g = torch.stack(references.gradient(problem, list(us)))
        stuck = ((us == lo) & (g > 0)) | ((us == hi) & (g < 0))
        assert bool((k[stuck] == 0).all()) and bool((k[~stuck] != 0).all())
        assert bool(((us + k >= lo - 1e-15) & (us + k <= hi + 1e-15)).all())
        references.close(direction.slope[0], (g * k).sum())
        assert direction.slope < 0
        for bound in (lo, hi):
            held += bool((stuck & (us == bound)).any())
        state = solver.step(problem, state)
    assert held > 2


def test_the_scale_of_a_step_is_measured_along_the_last_and_shrinks_after_a_refusal():
    problem = models.rich(horizon=4)
    for search in ("gradient", "lbfgs"):
        solver = PMP(search=search)
        first = solver.init(problem, torch.full((4, 2), 0.2, dtype=torch.float64))
        second = solver.step(problem, first)
        third = solver.direction(second, second.engine.expand(second.xs, second.us))
        s = (second.us - first.us).flatten()
        g = [torch.cat(references.gradient(problem, list(v.us[:, 0]))) for v in (first, second)]
        y = g[1] - g[0]
        expected = (s @ y) / (y @ y) if search == "lbfgs" else (s @ s) / (s @ y)
        references.close(third.memory[2, 0, 0], expected)
        assert bool(third.memory[3:].any()) == (search == "lbfgs")  # a pair is remembered
        refused = second._replace(memory=third.memory)
        again = solver.direction(refused, second.engine.expand(second.xs, second.us))
        references.close(again.memory[2, 0, 0] * 2.0**solver.trials, expected)
        assert not again.memory[3:].any()


def test_van_der_pol_within_bounds_ends_at_the_cost_of_ddp():
    problem = van_der_pol((-0.3, 1.0), horizon=40, dt=0.1)
    pmp, ddp = ocp.solve(problem, "pmp"), ocp.solve(problem, "ddp")
    assert bool((pmp.controls == -0.3).any() | (pmp.controls == 1.0).any())
    references.close(pmp.cost, ddp.cost, 1e-8)


def test_every_step_lowers_the_cost():
    cost = ocp.solve(swing(), "pmp").history["cost"]
    assert bool((cost.diff() <= 1e-12 * cost[0]).all())


@pytest.mark.parametrize(("build", "batch"), [(models.rich, 10), (models.resizing, 6)])
def test_in_a_batch_each_problem_goes_its_own_way(build, batch):
    """Ten of a kind: those that finish leave the batch."""
    problem = build(batch)
    whole = ocp.solve(problem, "pmp")
    for b in (0, 3, batch - 1):
        alone = ocp.solve(models.single(problem, b), "pmp")
        assert whole.status[b] == alone.status
        references.close(whole.cost[b], alone.cost, 1e-10)
        u = whole.controls
        parts = [v[b] for v in u] if isinstance(u, list) else list(u[b])
        for actual, expected in zip(parts, alone.controls, strict=True):
            references.close(actual, expected, 1e-5)


def test_shared_controls_end_at_the_optimum_of_the_mean():
    problem = models.rich(3, horizon=5, shared_controls=True)
    pmp, ddp = ocp.solve(problem, "pmp"), ocp.solve(problem, "ddp")
    references.close(pmp.cost, ddp.cost, 1e-9)


def test_single_precision():
    problem = swing()
    single = ocp.Problem(
        problem.dynamics,
        ocp.QuadraticCost(
            *(w.float() for w in (problem.cost.Q, problem.cost.R, problem.cost.Q_final)),
            problem.cost.goal.float(),
        ),
        problem.x0.float(),
        problem.horizon,
        1,
    )
    solution = ocp.solve(single, "pmp")
    assert solution.controls.dtype == torch.float32
    references.close(solution.cost.double(), ocp.solve(problem, "ddp").cost, 1e-4)


def test_one_stage_and_a_minimum_at_the_start():
    problem = ocp.Problem(
        lambda x, u, t: x + u[0],
        ocp.QuadraticCost(vector(1.0), vector(1.0), vector(1.0)),
        vector(0.0),
        1,
        1,
    )
    solution = ocp.solve(problem, "pmp")
    assert solution.status is ocp.Status.CONVERGED and solution.iterations == 0


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="'lbfgs' or 'gradient'"):
        PMP(search="newton")
    with pytest.raises(ValueError, match="pairs"):
        PMP(pairs=0)
