"""Newton's method on the conditions of the maximum principle."""

import models
import numpy as np
import pytest
import references
import torch
from swing import swing

import ocp
from ocp import Status
from ocp.engines.riccati import costates
from ocp.solvers.indirect import Conditions, Indirect, Point, conditions, correction

F64 = torch.float64
LQ = {
    "sizes change, no control at stage 1": ((3, 2, 4, 4), (1, 0, 2)),
    "one stage": ((3, 3), (2,)),
    "one state, one control": ((1, 1, 1, 1), (1, 1, 1)),
}


def random(sizes, seed):
    g = np.random.default_rng(seed)
    return [torch.from_numpy(g.normal(size=k)) for k in sizes]


def one_step(problem, controls=None, states=None):
    solver = Indirect()
    state = solver.init(problem, controls, states)
    return solver.step(problem, state)


@pytest.mark.parametrize(("sizes", "controls"), LQ.values(), ids=LQ)
@pytest.mark.parametrize("indefinite", [False, True])
def test_one_step_solves_any_lq_problem(sizes, controls, indefinite):
    """From states that do not follow from the controls; a saddle where R is indefinite."""
    stages, *end = references.random_lq(sizes, controls, seed=3)
    if indefinite:
        stages[0] = stages[0]._replace(R=stages[0].R - 100 * np.eye(len(stages[0].r)))
    xs, us, ps, J = references.dense_kkt(stages, *end)
    problem = references.lq_problem(stages, *end)
    state = one_step(problem, random(controls, 0), random(sizes, 1))
    assert state.rows[0]["step_size"] == 1
    for actual, expected in ((state.xs, xs), (state.us, us), (state.costates, ps)):
        references.lists_close([v[0] for v in actual], expected, 1e-8)
    references.close(state.cost[0], torch.tensor(J, dtype=F64), 1e-8)
    assert state.gap[0] < 1e-9
    solution = ocp.solve(problem, "indirect")
    saddle = indefinite and np.linalg.eigvalsh(reduced(problem)).min() < 0
    assert solution.status is (Status.SADDLE if saddle else Status.CONVERGED)
    assert saddle == indefinite


def reduced(problem):
    us = [torch.zeros(m, dtype=F64) for m in problem.control_dims]
    return references.dense_hessian(problem, us).numpy()


@pytest.mark.parametrize("build", [models.rich, models.resizing])
def test_correction_is_that_of_the_dense_jacobian_of_the_conditions(build):
    """At a point that satisfies none of them: states, controls and costates at random."""
    problem = build()
    T, ns, ms = problem.horizon, problem.state_dims, problem.control_dims
    state = Indirect().init(problem)
    engine, p0 = state.engine, references.sample_data(problem, 0)
    xs, us, ps = ([0.4 * v[None] for v in random(k, i)] for i, k in enumerate((ns, ms, ns)))
    xs[0] = problem.x0[None]

    def residual(z):
        parts = z.split([*ns[1:], *ms, *ns])
        x, u, p = [xs[0][0], *parts[:T]], parts[T : 2 * T], parts[2 * T :]
        at = lambda t: references.stage_of(problem, t)
        rows = [problem.f(x[t], u[t], at(t), p0) - x[t + 1] for t in range(T)]
        for t in range(T):
            H = lambda x, u, t=t: problem.l(x, u, at(t), p0) + p[t + 1] @ problem.f(x, u, at(t), p0)
            hx, hu = torch.func.grad(H, argnums=(0, 1))(x[t], u[t])
            rows += [hx - p[t], hu]
        return torch.cat([*rows, torch.func.grad(lambda x: problem.phi(x, p0))(x[T]) - p[T]])

    z = torch.cat([v[0] for v in (*xs[1:], *us, *ps)])
    expected = torch.linalg.solve(torch.func.jacrev(residual)(z), -residual(z))

    packed = [torch.stack(v) if problem.uniform else v for v in (xs, us, ps)]
    point = Point(*packed)
    expansion, gaps = engine.expand(point.xs, point.us), engine.gaps(point.xs, point.us)
    here = conditions(expansion, point, gaps)
    assert isinstance(here, Conditions)
    references.close(here.largest()[0], residual(z).abs().max())
    curvature = engine.curvature_along(point.xs, point.us, point.ps)
    step, regular = correction(expansion, curvature, here)
    actual = torch.cat([v[0] for v in (*step.xs[1:], *step.us, *step.ps)])
    assert bool(regular.all())
    references.close(actual, expected, 1e-8)


@pytest.mark.parametrize("problem", [swing(), models.rich(horizon=6)], ids=["swing", "rich"])
def test_convergence_is_quadratic(problem):
    ddp = ocp.solve(problem, "ddp")
    noise = torch.randn(ddp.controls.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    solution = ocp.solve(problem, "indirect", controls=ddp.controls + 0.05 * noise)
    assert solution.status is Status.CONVERGED
    references.close(solution.cost, ddp.cost)
    r = solution.history["residual"]
    r = r[r > 1e-13]
    ratio = r[1:] / r[:-1] ** 2
    assert len(r) >= 3 and r[0] > 1e-2 and r[-1] < 1e-6
    assert float(ratio.max()) < 50
    assert bool((solution.history["step_size"][:-1] == 1).all())


def test_costates_satisfy_the_maximum_principle_and_equal_the_value_gradient():
    problem = swing()
    indirect, ddp = ocp.solve(problem, "indirect"), ocp.solve(problem, "ddp")
    assert indirect.status is Status.CONVERGED and indirect.hamiltonian_residual < 1e-8
    references.close(indirect.cost, ddp.cost)
    references.close(indirect.costates, ddp.value.vx, 1e-6)


def test_starts_from_states_that_leave_gaps():
    problem = swing()
    states = torch.stack([torch.linspace(0.5, 2.5, 13), torch.zeros(13)], dim=1).to(F64)
    solution = ocp.solve(problem, "indirect", states=states)
    assert solution.status is Status.CONVERGED and solution.gap < 1e-9
    xs, J = references.roll_out(problem, list(solution.controls))
    references.close(J, solution.cost)
    references.close(torch.stack(xs), solution.states, 1e-8)


def test_a_start_it_cannot_use_is_told():
    """At the inflection of the cost H_uu is singular: no Newton step exists."""
    cost = ocp.FunctionCost(lambda x, u, t: torch.cos(u[0]) + u[0], None)
    problem = ocp.Problem(lambda x, u, t: x, cost, torch.zeros(1, dtype=F64), 1, 1)
    start = torch.full((1, 1), torch.pi / 2, dtype=F64) * 3
    solution = ocp.solve(problem, "indirect", controls=start)
    assert solution.status is Status.STALLED
    assert "start closer" in solution.message


def test_bounds_are_refused_with_a_way_out():
    problem = swing(control_bounds=([-1.0], [1.0]))
    with pytest.raises(ValueError, match=r"control_bounds.*'ddp'"):
        ocp.solve(problem, "indirect")


def test_shared_controls_end_at_the_optimum_of_the_mean():
    problem = models.rich(3, horizon=5, shared_controls=True)
    indirect, ddp = ocp.solve(problem, "indirect"), ocp.solve(problem, "ddp")
    assert indirect.status is Status.CONVERGED
    references.close(indirect.cost, ddp.cost)
    references.close(indirect.controls, ddp.controls, 1e-6)


@pytest.mark.parametrize(("build", "batch"), [(models.rich, 12), (models.resizing, 6)])
def test_in_a_batch_each_problem_goes_its_own_way(build, batch):
    problem = build(batch)
    us = models.guess(problem, size=0.8)
    start = torch.stack(us, dim=1) if problem.uniform else us
    whole = ocp.solve(problem, "indirect", controls=start)
    assert len(set(whole.iterations.tolist())) > 1  # some leave the batch before others
    for b in range(0, batch, 5):
        alone = ocp.solve(models.single(problem, b), "indirect", controls=[u[b] for u in us])
        assert whole.status[b] == alone.status and whole.iterations[b] == alone.iterations
        references.close(whole.cost[b], alone.cost)


def test_first_costates_are_those_of_the_recursion():
    problem = models.resizing(2)
    state = Indirect().init(problem, models.guess(problem))
    ps, _ = costates(state.engine.expand(state.xs, state.us))
    for a, b in zip(state.costates, ps, strict=True):
        references.close(a, b)


def test_single_precision():
    problem = ocp.Problem(
        lambda x, u, t: torch.stack((x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - torch.sin(x[0])))),
        ocp.QuadraticCost(torch.ones(2), torch.ones(1), torch.ones(2)),
        torch.tensor([1.0, 0.0]),
        20,
        1,
    )
    solution = ocp.solve(problem, "indirect")
    assert solution.controls.dtype == torch.float32 and solution.status is Status.CONVERGED
    references.close(solution.cost, ocp.solve(problem, "ddp").cost, 1e-5)
