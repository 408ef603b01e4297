"""The sweep against a dense solve, an independent backward pass and autograd."""

import numpy as np
import pytest
import references
import torch
from models import guess, resizing, rich
from references import close, lists_close

import ocp
from ocp.engines import Eager, Expansion, riccati
from ocp.stages import each

LQ = {
    "sizes change, no control at stage 1": ((3, 2, 4, 4), (1, 0, 2)),
    "one stage": ((3, 3), (2,)),
    "one state, one control": ((1, 1, 1, 1), (1, 1, 1)),
    "more controls than states": ((2, 2, 2), (4, 4)),
    "no controls": ((2, 2, 2), (0, 0)),
}


def lq_sweep(sizes, controls, seed=0, damping=0.0):
    matrices = references.random_lq(sizes, controls, seed)
    problem = references.lq_problem(*matrices)
    engine = Eager(problem)
    us = [0 * u for u in guess(problem)]
    us = torch.stack(us) if problem.uniform else us
    xs = engine.rollout(us)
    expansion = engine.expand(xs, us)
    sweep = engine.sweep(expansion, us, None, torch.full((1,), damping).double(), None)
    return matrices, engine, xs, us, expansion, sweep


@pytest.mark.parametrize(("sizes", "controls"), LQ.values(), ids=LQ.keys())
def test_the_sweep_solves_a_linear_quadratic_problem(sizes, controls):
    matrices, engine, xs, us, expansion, sweep = lq_sweep(sizes, controls)
    expected_xs, expected_us, expected_ps, J = references.dense_kkt(*matrices)
    assert int(sweep.failed) == -1
    trials = engine.follow(xs, us, None, sweep.policy, torch.ones(1).double())
    lists_close([u[0, 0] for u in trials.us], expected_us)
    lists_close([x[0, 0] for x in trials.xs], expected_xs)
    close(float(trials.cost[0, 0]), J)
    dxs, dus = riccati.linear_rollout(expansion, sweep.policy, None)
    lists_close([(u + d)[0] for u, d in zip(us, dus, strict=True)], expected_us)
    lists_close([(x + d)[0] for x, d in zip(xs, dxs, strict=True)], expected_xs)
    # V_x is the costate at the nominal state: at the optimum it is the multiplier.
    moved = [
        v[0] + H[0] @ (torch.from_numpy(e) - x[0])
        for v, H, e, x in zip(sweep.vx, sweep.vxx, expected_xs, xs, strict=True)
    ]
    lists_close(moved, expected_ps)


@pytest.mark.parametrize(("sizes", "controls"), LQ.values(), ids=LQ.keys())
def test_slope_and_curvature_are_those_of_the_cost_along_the_step(sizes, controls):
    _, engine, xs, us, _, sweep = lq_sweep(sizes, controls, seed=3, damping=0.7)
    a = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    cost = engine.follow(xs, us, None, sweep.policy, a).cost[:, 0]
    close(cost - cost[0], a * sweep.slope + a * a / 2 * sweep.curvature)


def test_costates_are_the_multipliers_at_the_optimum_and_the_gradient_anywhere():
    matrices = references.random_lq((3, 2, 4, 4), (1, 0, 2), seed=1)
    problem, (_, us, ps, _) = references.lq_problem(*matrices), references.dense_kkt(*matrices)
    engine, us = Eager(problem), [torch.from_numpy(u)[None] for u in us]
    actual, hus = riccati.costates(engine.expand(engine.rollout(us), us))
    lists_close([p[0] for p in actual], ps)
    assert max(float(h.abs().sum()) for h in hus) < 1e-9


@pytest.mark.parametrize("make", [rich, resizing])
def test_hamiltonian_gradient_equals_autograd_through_the_roll_out(make):
    problem = make(batch=3)
    engine, us = Eager(problem), guess(problem)
    stages = torch.stack(us) if problem.uniform else us
    _, hus = riccati.costates(engine.expand(engine.rollout(stages), stages))
    for b in range(3):
        expected = references.gradient(problem, [u[b] for u in us], b)
        lists_close([h[b] for h in hus], expected, 1e-11)


@pytest.mark.parametrize("make", [rich, resizing])
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(("damping", "on_state"), [(0.0, False), (0.3, False), (0.3, True)])
def test_one_sweep_equals_the_independent_backward_pass(make, second_order, damping, on_state):
    problem = make(batch=2)
    engine, us = Eager(problem), guess(problem, seed=4, size=0.1)
    stages = torch.stack(us) if problem.uniform else us
    xs = engine.rollout(stages)
    curvature = engine.curvature(xs, stages) if second_order else None
    mu = torch.full((2,), damping, dtype=torch.float64)
    sweep = engine.sweep(engine.expand(xs, stages), stages, None, mu, curvature, on_state)
    for b in range(2):
        oracle = references.ddp_sweep(
            problem,
            [x[b] for x in xs],
            [u[b] for u in us],
            b=b,
            second_order=second_order,
            damping=damping,
            on_state=on_state,
        )
        assert int(sweep.failed[b]) == -1
        lists_close([k[b] for k in sweep.policy.k], oracle.k)
        lists_close([K[b] for K in sweep.policy.K], oracle.K)
        lists_close([v[b] for v in sweep.vx], oracle.vx)
        lists_close([v[b] for v in sweep.vxx], oracle.vxx)
        close(float(sweep.slope[b] + sweep.curvature[b] / 2), oracle.change)
        along = [
            references.ddp_trial(problem, [x[b] for x in xs], [u[b] for u in us], oracle, a, b)[2]
            for a in (1e-5, -1e-5)
        ]
        close(float(sweep.slope[b]), (along[0] - along[1]) / 2e-5, 1e-7)


def test_newton_direction_equals_the_dense_newton_step():
    """Along the costates the model is exact: its full linear step is -J_uu^-1 J_u (Pantoja)."""
    problem = rich(horizon=4)
    engine, us = Eager(problem), guess(problem, size=0.1)
    stages = torch.stack(us)
    xs = engine.rollout(stages)
    expansion = engine.expand(xs, stages)
    ps, _ = riccati.costates(expansion)
    curvature = engine.curvature_along(xs, stages, ps)
    sweep = engine.sweep(expansion, stages, None, torch.zeros(1).double(), curvature)
    _, dus = riccati.linear_rollout(expansion, sweep.policy, None)
    flat = [u[0] for u in us]
    H, g = references.dense_hessian(problem, flat), torch.cat(references.gradient(problem, flat))
    close(torch.cat([d[0] for d in dus]), -torch.linalg.solve(H, g), 1e-8)


def test_with_gaps_the_full_step_of_an_lq_problem_is_exact_and_the_model_predicts_each():
    matrices = references.random_lq((3, 3, 3, 3), (2, 2, 2), seed=5)
    problem = references.lq_problem(*matrices)
    engine, us = Eager(problem), torch.stack(guess(problem, seed=6))
    g = torch.Generator().manual_seed(7)
    xs = torch.cat((engine.initial()[None], torch.randn(3, 1, 3, generator=g).double()))
    gaps = engine.gaps(xs, us)
    lists_close(gaps, [engine.step(xs[t], us[t], t) - xs[t + 1] for t in range(3)])
    sweep = engine.sweep(engine.expand(xs, us), us, gaps, torch.zeros(1).double(), None)
    a = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    trials = engine.follow(xs, us, gaps, sweep.policy, a)
    expected_xs, expected_us, _, J = references.dense_kkt(*matrices)
    lists_close(trials.xs[:, 0, 0], expected_xs)
    lists_close(trials.us[:, 0, 0], expected_us)
    close(float(trials.cost[0, 0]), J)
    lists_close(trials.xs[:, 2], xs)  # a step of 0 stays where it is, gaps and all
    predicted = engine.total_cost(xs, us) + a * sweep.slope + a * a / 2 * sweep.curvature
    close(trials.cost[:, 0], predicted)
    half = engine.gaps(trials.xs[:, 1], trials.us[:, 1])
    lists_close(half, 0.5 * gaps)  # a step of a leaves 1 - a of the gaps


def test_bounded_sweep_meets_the_bounds_and_frees_only_the_inner_controls():
    problem = rich(control_bounds=([-0.2, -0.1], [0.1, 0.3]))
    engine, us = Eager(problem), torch.stack(guess(problem, size=0.05))
    xs = engine.rollout(us)
    sweep = engine.sweep(engine.expand(xs, us), us, None, torch.zeros(1).double(), None)
    after = us + sweep.policy.k
    assert bool((after >= problem.lower - 1e-15).all() & (after <= problem.upper + 1e-15).all())
    held = (after - problem.lower < 1e-12) | (problem.upper - after < 1e-12)
    assert bool(held.any()) and not bool(held.all())
    assert bool((sweep.policy.K[held] == 0).all()), "a control at its bound has no feedback"
    assert bool((sweep.policy.K[~held] != 0).any(dim=-1).all())


def test_wide_bounds_change_nothing():
    problem = rich(batch=2)
    wide = problem.replace(control_bounds=([-1e3, -torch.inf], [torch.inf, 1e3]))
    sweeps = []
    for each_problem in (problem, wide):
        engine, us = Eager(each_problem), torch.stack(guess(problem))
        expansion = engine.expand(engine.rollout(us), us)
        sweeps.append(engine.sweep(expansion, us, None, torch.zeros(2).double(), None))
    for a, b in ((0, 0), (1, 1)):
        lists_close(sweeps[0].policy[a], sweeps[1].policy[b])
    close(sweeps[0].residual, sweeps[1].residual)


def test_an_indefinite_stage_is_named_for_its_problem_alone():
    """Problem 1 has a concave control cost at stages 2 and 0; the last one met is stage 2."""
    cost = ocp.FunctionCost(
        lambda x, u, t, p: p["weight"][t] * u @ u + x @ x, lambda x: 0.1 * (x @ x)
    )
    weight = torch.ones(3, 4, dtype=torch.float64)
    weight[1] = torch.tensor([-50.0, 1.0, -50.0, 1.0])
    problem = ocp.Problem(
        lambda x, u, t: x + 0.1 * u.sum(), cost, torch.ones(3, 2).double(), 4, 1,
        per_problem={"weight": weight},
    )  # fmt: skip
    engine, us = Eager(problem), torch.zeros(4, 3, 1, dtype=torch.float64)
    sweep = engine.sweep(
        engine.expand(engine.rollout(us), us), us, None, torch.zeros(3).double(), None
    )
    assert sweep.failed.tolist() == [-1, 2, -1]
    assert bool((sweep.policy.k[[0, 2], 1] == 0).all())
    enough = engine.sweep(
        engine.expand(engine.rollout(us), us), us, None, torch.tensor([0.0, 200, 0]).double(), None
    )
    assert enough.failed.tolist() == [-1, -1, -1]
    close(enough.policy.k[:, 0], sweep.policy.k[:, 0])


def test_residual_is_the_largest_projected_control_gradient():
    problem = rich()
    engine, us = Eager(problem), torch.stack(guess(problem))
    expansion = engine.expand(engine.rollout(us), us)
    free = engine.sweep(expansion, us, None, torch.zeros(1).double(), None)
    vx = each(lambda v: v, free.vx)
    qus = [
        expansion.lz[t][0, 3:] + expansion.fz[t][0, :, 3:].T @ vx[t + 1][0] for t in range(len(us))
    ]
    close(float(free.residual), max(float(q.abs().max()) for q in qus))
    pinned = Eager(problem.replace(control_bounds=(us[:, 0] - 1e-3, us[:, 0] + 1e-3)))
    bounded = pinned.sweep(expansion, us, None, torch.zeros(1).double(), None)
    assert float(bounded.residual) == pytest.approx(1e-3)


def test_float32_agrees_with_float64_to_its_precision():
    problem = rich()
    low = problem.replace(
        x0=problem.x0.float(),
        parameters={k: v.float() for k, v in problem.parameters.items()},
        per_problem={k: v.float() for k, v in problem.per_problem.items()},
    )
    values = []
    for p in (problem, low):
        engine, us = Eager(p), torch.stack(guess(problem)).to(p.x0.dtype)
        xs = engine.rollout(us)
        sweep = engine.sweep(
            engine.expand(xs, us),
            us,
            None,
            torch.zeros(1, dtype=us.dtype),
            engine.curvature(xs, us),
        )
        assert sweep.policy.K.dtype == p.x0.dtype
        values.append(sweep.policy.K.double())
    close(values[1], values[0], 1e-4)
    assert not np.allclose(values[1], values[0], rtol=0, atol=1e-12)


def test_a_proximal_damping_is_a_term_of_the_cost():
    """As if 1/2 damping |du|^2 stood in every stage: in gains, value and expected decrease."""
    torch.manual_seed(0)
    B, T, n, m, damping = 2, 3, 3, 2, 0.7
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)
    root = draw(T, B, n + m, n + m)
    end = draw(B, n, n)
    expansion = Expansion(
        draw(T, B, n, n + m), draw(T, B, n + m), root @ root.mT, draw(B, n), end @ end.mT,
        (n,) * (T + 1),
    )  # fmt: skip
    mu = torch.full((B,), damping, dtype=torch.float64)
    actual = riccati.sweep(expansion, None, mu, None, None, False, proximal=True)
    term = torch.zeros(n + m, dtype=torch.float64)
    term[n:] = damping
    within = expansion._replace(lzz=expansion.lzz + torch.diag(term))
    expected = riccati.sweep(within, None, 0 * mu, None, None, False)
    for name in ("vx", "vxx", "slope", "curvature"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))
    torch.testing.assert_close(actual.policy.K, expected.policy.K)
    short = riccati.sweep(expansion, None, mu, None, None, False)
    torch.testing.assert_close(short.policy.k[-1], actual.policy.k[-1])
    assert not torch.allclose(short.vxx[0], actual.vxx[0])
