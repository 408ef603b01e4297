"""Successive approximations: the minimiser of H, where the map contracts, and elsewhere."""

import models
import numpy as np
import pytest
import references
import scipy.optimize
import torch
from swing import swing

import ocp
from ocp import Status
from ocp.engines.riccati import costates
from ocp.solvers import EMSA, MSA, Hamiltonian, ProjectedNewton
from ocp.solvers.hamiltonian import convex
from ocp.stages import each

F64 = torch.float64


def heavy(weight, sizes=(3, 2, 4, 4), controls=(2, 1, 3), seed=0):
    """An LQ problem whose controls cost ``weight`` times as much, and its matrices."""
    stages, *end = references.random_lq(sizes, controls, seed)
    stages = [s._replace(R=weight * s.R) for s in stages]
    return references.lq_problem(stages, *end), stages, end


def dense(stages, end):
    return torch.tensor(references.dense_kkt(stages, *end)[3], dtype=F64)


def at(problem, us, weights=None):
    """The Hamiltonian along the trajectory of controls us, and the solvers' layout of them."""
    state = MSA().init(problem, us)
    ps, _ = costates(state.engine.expand(state.xs, state.us))
    return Hamiltonian(state.engine, state.xs, ps, weights), state.us


# -- the Hamiltonian and its minimiser ------------------------------------------------------------
@pytest.mark.parametrize("shared", [False, True])
def test_value_and_derivatives_of_the_augmented_hamiltonian(shared):
    """Against sums over samples written out and differentiated on one sample."""
    B = 3
    problem = models.rich(B, horizon=4, shared_controls=shared)
    us = [u[0] for u in models.guess(problem)] if shared else None
    us = us or torch.stack(models.guess(problem)).transpose(0, 1)
    lines = 1 if shared else B
    weights = torch.tensor([[0.7, 0.3]] * lines, dtype=F64)
    plain, controls = at(problem, us)
    h = Hamiltonian(plain.engine, plain.xs, plain.ps, weights)
    tried = each(lambda u: u + 0.3, controls)
    S = B if shared else 1

    def one(t, line, row, u):
        p = references.sample_data(problem, line * S + row)
        part = lambda v, t: v[t][line].reshape(S, -1)[row]
        f = lambda x: problem.f(x, u, torch.tensor(t), p)
        x, after = part(h.xs, t), part(h.ps, t + 1)
        H = lambda x: problem.l(x, u, torch.tensor(t), p) / S + after @ f(x)
        moved, bent = part(h.xs, t + 1) - f(x), part(h.ps, t) - torch.func.grad(H)(x)
        return H(x) + 0.7 / 2 * moved @ moved + 0.3 / 2 * bent @ bent

    by_hand = lambda t, line, u: sum(one(t, line, row, u) for row in range(S))
    value, (first, second) = h.value(tried), h.derivatives(tried)
    for t in range(4):
        for line in range(lines):
            u = tried[t][line]
            H = lambda u, t=t, line=line: by_hand(t, line, u)
            references.close(value[t][line], H(u))
            references.close(first[t][line], torch.func.grad(H)(u))
            references.close(second[t][line], torch.func.hessian(H)(u))


def test_augmentation_vanishes_at_the_trajectory_itself():
    problem = models.resizing(2)
    us = models.guess(problem)
    plain, us = at(problem, us)
    heavy_ = Hamiltonian(plain.engine, plain.xs, plain.ps, torch.full((2, 2), 50.0, dtype=F64))
    for a, b in zip(plain.value(us), heavy_.value(us), strict=True):
        references.close(a, b)


def test_minimiser_is_exact_after_one_step_where_h_is_quadratic():
    problem, stages, _ = heavy(1.0)
    h, us = at(problem, [torch.full((len(s.r),), 0.5, dtype=F64) for s in stages])
    found = ProjectedNewton(iterations=1)(h, us)
    for t, s in enumerate(stages):
        x, p = h.xs[t][0].numpy(), h.ps[t + 1][0].numpy()
        references.close(found[t][0], -np.linalg.solve(s.R, s.r + s.N @ x + s.B.T @ p))


def test_minimiser_within_bounds_is_that_of_scipy():
    stages, *end = references.random_lq((3, 3, 3, 3), (2, 2, 2), 1)
    free, us = at(references.lq_problem(stages, *end), torch.zeros(3, 2, dtype=F64))
    best = ProjectedNewton()(free, us)[:, 0].numpy()
    lo, hi = (np.quantile(best, q, axis=0) for q in (0.2, 0.8))  # some are cut off, some not
    problem = references.lq_problem(stages, *end, control_bounds=(lo, hi))
    h = Hamiltonian(MSA().init(problem).engine, free.xs, free.ps)
    found = ProjectedNewton()(h, torch.from_numpy(np.tile((lo + hi) / 2, (3, 1, 1))))
    active = 0
    for t, s in enumerate(stages):
        x, p = h.xs[t][0].numpy(), h.ps[t + 1][0].numpy()
        expected = references.box_qp(s.R, s.r + s.N @ x + s.B.T @ p, lo, hi)
        references.close(found[t][0], expected, 1e-8)
        active += int(((expected == lo) | (expected == hi)).sum())
    assert 0 < active < 6


@pytest.mark.parametrize("bounds", [None, (np.array([-0.3, -0.4]), np.array([0.2, 0.6]))])
def test_minimiser_of_a_hamiltonian_that_is_not_quadratic(bounds):
    problem = models.rich(3, horizon=4, control_bounds=bounds)
    h, us = at(problem, 0.1 * torch.ones(3, 4, 2, dtype=F64))
    found = ProjectedNewton()(h, us)
    for t in range(4):
        for b in range(3):
            p, x, after = references.sample_data(problem, b), h.xs[t][b], h.ps[t + 1][b]
            step = torch.tensor(t)

            def H(v, p=p, x=x, after=after, step=step):
                u = torch.from_numpy(v.copy()).requires_grad_()
                value = problem.l(x, u, step, p) + after @ problem.f(x, u, step, p)
                return value.item(), torch.autograd.grad(value, u)[0].numpy()

            limits = None if bounds is None else list(zip(*bounds, strict=True))
            options = {"ftol": 1e-15, "gtol": 1e-12}
            best = scipy.optimize.minimize(
                H, us[t, b].numpy(), jac=True, method="L-BFGS-B", bounds=limits, options=options
            )
            references.close(found[t, b], best.x, 1e-5)
            assert H(found[t, b].numpy())[0] <= best.fun + 1e-12


def test_minimiser_searches_where_a_full_newton_step_overshoots():
    """Newton's step for sqrt(1 + u^2) leads from u to -u^3."""
    cost = ocp.FunctionCost(lambda x, u, t: torch.sqrt(1 + u[0] ** 2), None)
    problem = ocp.Problem(lambda x, u, t: x, cost, torch.zeros(1, dtype=F64), 3, 1)
    h, us = at(problem, torch.tensor([[2.0], [-1.5], [0.5]], dtype=F64))
    assert float(ProjectedNewton()(h, us).abs().max()) < 1e-12


def test_an_indefinite_matrix_keeps_its_directions_and_the_size_of_its_curvature():
    g = np.random.default_rng(0)
    V = np.linalg.qr(g.normal(size=(4, 4)))[0]
    H = [(V * w) @ V.T for w in ([1.0, -2.0, 0.5, -0.1], [1.0, 2.0, 0.5, 0.1])]
    expected = (V * [1.0, 2.0, 0.5, 0.1]) @ V.T
    actual = convex(torch.from_numpy(np.stack(H)))
    references.close(actual, np.stack([expected, expected]))


def test_minimiser_of_a_linear_hamiltonian_is_bang_bang_and_a_saddle_is_left_downhill():
    def build(curve):
        cost = ocp.FunctionCost(lambda x, u, t: curve * u[0] ** 2 + 0.3 * u[0] - 0.2 * u[1], None)
        bounds = ([-1.0, -2.0], [3.0, 1.0])
        x0 = torch.zeros(1, dtype=F64)
        return ocp.Problem(lambda x, u, t: x, cost, x0, 2, 2, control_bounds=bounds)

    for curve in (0.0, -0.5):
        h, us = at(build(curve), torch.zeros(2, 2, dtype=F64))
        references.close(ProjectedNewton()(h, us)[:, 0], torch.tensor([[-1.0, 1.0]] * 2, dtype=F64))


# -- plain ---------------------------------------------------------------------------------------
def test_converges_to_the_dense_solution_where_the_map_contracts():
    problem, stages, end = heavy(100.0)
    xs, us, ps, _ = references.dense_kkt(stages, *end)
    solution = ocp.solve(problem, "msa", tolerance=1e-10)
    assert solution.status is Status.CONVERGED
    references.close(solution.cost, dense(stages, end), 1e-10)
    references.lists_close(solution.controls, us, 1e-8)
    references.lists_close(solution.states, xs, 1e-8)
    references.lists_close(solution.costates, ps, 1e-8)


def test_an_iterate_is_the_minimiser_and_relaxation_goes_part_of_the_way():
    problem, stages, _ = heavy(1.0)
    start = [torch.full((len(s.r),), 0.5, dtype=F64) for s in stages]
    h, us = at(problem, start)
    best = ProjectedNewton()(h, us)
    for relaxation in (1.0, 0.25):
        solver = MSA(relaxation=relaxation)
        state = solver.step(problem, solver.init(problem, start))
        for u, v, new in zip(us, best, state.us, strict=True):
            references.close(new, u + relaxation * (v - u))


def test_divergence_is_told_and_the_cheapest_iterate_returned():
    problem, _, _ = heavy(1e-2)
    costs = []
    solution = ocp.solve(problem, "msa", callback=lambda r: costs.append(float(r.cost[0])))
    assert solution.status in (Status.STALLED, Status.MAX_ITERATIONS)
    assert "does not contract" in solution.message and "emsa" in solution.message
    assert costs[-1] > 1e6 * abs(costs[0])
    start = float(references.objective(problem)(torch.zeros(6, dtype=F64)))
    assert abs(float(solution.cost) - min(start, *costs)) <= 1e-9 * abs(start)
    references.close(
        references.objective(problem)(torch.cat(solution.controls)), solution.cost, 1e-9
    )


def test_relaxation_makes_a_map_contract():
    problem, stages, end = heavy(20.0)
    assert ocp.solve(problem, "msa", patience=5).status is Status.STALLED
    relaxed = ocp.solve(problem, "msa", relaxation=0.5)
    assert relaxed.status is Status.CONVERGED
    references.close(relaxed.cost, dense(stages, end), 1e-9)


def test_a_closed_form_may_replace_the_minimiser():
    problem, stages, _ = heavy(100.0)
    calls = []

    def closed_form(h, us):
        calls.append(len(us))
        R = [torch.from_numpy(s.R) for s in stages]
        return [
            -torch.linalg.solve(
                R[t],
                (
                    torch.from_numpy(s.r)
                    + h.xs[t] @ torch.from_numpy(s.N).mT
                    + h.ps[t + 1] @ torch.from_numpy(s.B)
                ).mT,
            ).mT
            for t, s in enumerate(stages)
        ]

    mine = ocp.solve(problem, "msa", minimiser=closed_form)
    references.close(mine.cost, ocp.solve(problem, "msa").cost)
    assert calls and mine.status is Status.CONVERGED


def test_in_a_batch_one_may_diverge_and_another_converge():
    def dynamics(x, u, t, p):
        return x + p["gain"] * u

    cost = ocp.FunctionCost(lambda x, u, t: 0.5 * (x @ x + u @ u), lambda x: 0.5 * x @ x)
    x0 = torch.ones(10, 2, dtype=F64)
    gain = torch.full((10,), 0.2, dtype=F64)
    gain[3] = 5.0
    problem = ocp.Problem(dynamics, cost, x0, 4, 2, per_problem={"gain": gain})
    solution = ocp.solve(problem, "msa")
    codes = [Status.STALLED if b == 3 else Status.CONVERGED for b in range(10)]
    assert solution.status == codes
    references.close(solution.cost[0], ocp.solve(models.single(problem, 0), "lqr").cost, 1e-9)
    references.close(solution.cost[3], ocp.solve(models.single(problem, 3), "msa").cost)


# -- extended ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "problem", [heavy(1e-2)[0], models.rich(horizon=5), swing(T=6)], ids=["lq", "rich", "swing"]
)
def test_extended_form_lowers_the_cost_in_every_step(problem):
    solution = ocp.solve(problem, "emsa", max_iterations=25)
    cost = solution.history["cost"]
    assert bool((cost.diff() <= 1e-13 * cost.abs().max()).all())
    assert cost[-1] < cost[0]


def test_extended_form_ends_at_the_optimum_where_the_plain_one_diverges():
    problem, stages, end = heavy(6.0)
    solution = ocp.solve(problem, "emsa")
    assert solution.status in (Status.CONVERGED, Status.PRECISION)
    references.close(solution.cost, dense(stages, end), 1e-9)
    rich = models.rich(3, horizon=5)
    references.close(ocp.solve(rich, "emsa").cost, ocp.solve(rich, "ddp").cost, 1e-8)


def test_extended_form_within_bounds_and_with_shared_controls():
    bounds = (np.array([-0.2, -0.2]), np.array([0.1, 0.3]))
    problem = models.rich(3, horizon=5, shared_controls=True, control_bounds=bounds)
    emsa, ddp = ocp.solve(problem, "emsa"), ocp.solve(problem, "ddp")
    references.close(emsa.cost, ddp.cost, 1e-8)


def test_extended_form_takes_the_cheapest_of_the_weights_it_tried():
    problem, solver = models.rich(horizon=5), EMSA(weight=0.5, trials=5, growth=8.0)
    state = solver.init(problem)
    after = solver.step(problem, state)
    ps, _ = costates(state.engine.expand(state.xs, state.us))
    scale = state.xs.square().mean() / ps.square().mean()
    costs = []
    for j in range(5):
        rho = 0.5 * 8.0**j
        weights = torch.stack((torch.tensor(rho, dtype=F64), rho * scale))[None]
        us = ProjectedNewton()(Hamiltonian(state.engine, state.xs, ps, weights), state.us)
        costs.append(float(references.objective(problem)(us.flatten())))
    best = int(np.argmin(costs))
    assert 0 < best < 4 and costs[best] < float(state.cost[0])
    assert abs(float(after.cost[0]) - costs[best]) < 1e-9
    assert abs(float(after.damping[0]) - 0.5 * 8.0 ** (best - 1)) < 1e-9


def test_the_weight_falls_after_a_good_step_and_rises_after_a_bad_one():
    solver = EMSA(weight=1e-9, trials=2, growth=10.0)
    problem = swing(T=6)
    state = solver.init(problem)
    state = solver.step(problem, state)
    assert state.iterations == 1 and state.rows[0]["step_size"] == 0  # both too small: diverge
    assert abs(float(state.damping[0]) - 1e-7) < 1e-15
    solver = EMSA(weight=1e3, trials=2, growth=10.0)
    state = solver.step(problem, solver.init(problem))
    assert state.rows[0]["step_size"] == 1
    assert abs(float(state.damping[0]) - 1e2) < 1e-9


@pytest.mark.parametrize("method", ["msa", "emsa"])
def test_single_precision(method):
    problem = ocp.Problem(
        lambda x, u, t: 0.9 * x + 0.1 * u,
        ocp.QuadraticCost(torch.ones(2), torch.ones(2), torch.ones(2)),
        torch.ones(2),
        5,
        2,
    )
    solution = ocp.solve(problem, method)
    assert solution.controls.dtype == torch.float32 and solution.status is Status.CONVERGED
    references.close(solution.cost, ocp.solve(problem, "lqr").cost, 1e-5)


def test_wrong_options_are_refused():
    for wrong in ({"relaxation": 0.0}, {"relaxation": 1.5}, {"patience": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MSA(**wrong)
    for wrong in ({"growth": 1.0}, {"weight": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EMSA(**wrong)
