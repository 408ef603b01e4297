"""Receding-horizon control and warm starts: the same as solving anew, at any engine."""

import pytest
import torch
from models import cartpoles, resizing, rich
from references import close
from swing import swing

import ocp
from ocp.engines.native import build

F64 = torch.float64
vector = lambda values: torch.tensor(values, dtype=F64)

try:
    build.compiler()
    ENGINES = ("eager", "native")
except build.BuildError:
    ENGINES = ("eager",)


def measured(problem, count, size=0.05, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        problem.x0 + size * torch.randn(problem.x0.shape, generator=g, dtype=F64).to(problem.x0)
        for _ in range(count)
    ]


def by_hand(problem, plan, x0, method, iterations, shift):
    """One call, by the definition: policy roll-out in plain Python, then `ocp.solve`."""
    xs, us, K = plan
    T = problem.horizon
    later = [min(t + shift, T) for t in range(T + 1)]
    x, controls = x0, []
    for t in range(T):
        j = min(later[t], T - 1)
        gain = K[j] if t + shift < T else 0 * K[j]
        controls.append(us[j] + gain @ (x - xs[later[t]]))
        if problem.lower is not None:
            lo, hi = problem.lower[t, 0], problem.upper[t, 0]
            controls[-1] = torch.minimum(torch.maximum(controls[-1], lo), hi)
        x = problem.f(x, controls[-1], torch.tensor(t), problem.parameters)
    new = problem.replace(x0=x0)
    return ocp.solve(new, method, controls=torch.stack(controls), max_iterations=iterations)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("bounds", [None, ([-0.8], [0.8])])
def test_a_call_is_a_warm_started_solve(engine, shift, bounds):
    problem = swing(control_bounds=bounds)
    solution = ocp.solve(problem, "ilqr", engine=engine)
    controller = ocp.RecedingHorizon(problem, start=solution, shift=shift, engine=engine)
    assert controller.status is None
    for k, x0 in enumerate(measured(problem, 2)):
        plan = (
            (solution.policy.states, solution.controls, solution.policy.K)
            if k == 0
            else [v[:, 0] for v in controller._plan]
        )
        expected = by_hand(problem, plan, x0, "ilqr", 1, 0 if k == 0 else shift)
        u = controller(x0)
        assert u.shape == (1,)
        close(controller.controls, expected.controls, 1e-9)
        close(u, expected.controls[0], 1e-9)
        if k == 0:
            continue
        before = controller.solution()
        close(before.cost, expected.cost, 1e-9)


@pytest.mark.skipif(len(ENGINES) == 1, reason="no C++ compiler")
@pytest.mark.parametrize("method", ["ilqr", "ddp", "pmp"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_engines_give_the_same_controls(method, iterations):
    problem = rich(batch=3, horizon=6)
    a, b = (
        ocp.RecedingHorizon(problem, method, engine=name, iterations=iterations) for name in ENGINES
    )
    for x0 in measured(problem, 4):
        close(b(x0), a(x0), 1e-8)
        assert a.status == b.status and len(a.status) == 3
    close(b.controls, a.controls, 1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_new_data_are_seen_whether_given_or_written_into_a_tensor(engine):
    goal = torch.tensor([0.3, 0.0], dtype=F64)
    cost = ocp.FunctionCost(
        lambda x, u, t: 0.1 * u @ u + (x - goal) @ (x - goal), lambda x, p: p["w"] * x @ x
    )
    step = lambda x, u, t: torch.stack((x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - torch.sin(x[0]))))
    problem = ocp.Problem(step, cost, [1.0, 0.0], 8, 1, parameters={"w": 2.0})
    controller = ocp.RecedingHorizon(problem, iterations=20, shift=0, engine=engine)
    for w in (2.0, 2.0, 30.0):
        goal += 0.2
        u = controller(problem.x0, parameters={"w": w})
        fresh = ocp.solve(problem.replace(parameters={"w": w}), "ilqr", engine=engine)
        close(u, fresh.controls[0], 1e-6)
        assert controller.status == ocp.Status.CONVERGED


@pytest.mark.parametrize("engine", ENGINES)
def test_it_balances_a_pendulum(engine):
    """An upright pendulum that is pushed: the closed loop brings it back."""
    problem = swing(x0=(torch.pi, 0.0), T=25).replace(
        cost=ocp.QuadraticCost(*map(vector, ([1.0, 0.1], [0.1], [20.0, 2.0], [torch.pi, 0.0])))
    )
    controller = ocp.RecedingHorizon(problem, start=ocp.solve(problem), engine=engine)
    x = problem.x0 + 0.2
    for _ in range(25):
        x = problem.f(x, controller(x), torch.tensor(0), {})
    assert float((x - problem.x0).norm()) < 1e-2


def test_wrong_input_is_named_and_changes_nothing():
    problem = swing()
    controller = ocp.RecedingHorizon(problem, engine="eager")
    u = controller(problem.x0)
    for bad, match in (([float("nan"), 0.0], "x0 is not finite"), ([0.0], "x0"), ([0.0] * 3, "x0")):
        with pytest.raises(ValueError, match=match):
            controller(bad)
    assert torch.equal(controller.controls[0], u)
    with pytest.raises(ValueError, match="iterations"):
        ocp.RecedingHorizon(problem, iterations=0)
    with pytest.raises(ValueError, match="shift"):
        ocp.RecedingHorizon(problem, shift=99)
    with pytest.raises(ValueError, match="sizes must not change"):
        ocp.RecedingHorizon(resizing())


# -- warm starts -----------------------------------------------------------------------------------
def test_a_warm_start_follows_the_policy():
    problem = cartpoles(2, horizon=30, spread=0.3)
    solution = ocp.solve(problem)
    near = problem.replace(x0=problem.x0 + 0.05)
    guess = ocp.starts.warm(solution)(near, ocp.make_solver("ddp"))
    for b in range(2):
        x = near.x0[b]
        data = {k: v[b] for k, v in near.per_problem.items()} | dict(near.parameters)
        for t in range(30):
            K, about = solution.policy.K[b, t], solution.states[b, t]
            u = solution.controls[b, t] + K @ (x - about)
            close(guess.controls[b, t], u, 1e-9)
            x = near.f(x, u, torch.tensor(t), data)


def test_a_warm_start_where_sizes_change_by_stage():
    problem = resizing()
    solution = ocp.solve(problem)
    again = ocp.solve(problem, starts=ocp.starts.warm(solution))
    assert int(again.iterations) <= 1
    moved = ocp.solve(problem.replace(x0=problem.x0 + 0.1), starts=ocp.starts.warm(solution))
    assert moved.converged
    with pytest.raises(ValueError, match="shift"):
        ocp.solve(problem, starts=ocp.starts.warm(solution, shift=1))


def test_a_policy_that_diverges_leaves_the_plain_controls():
    problem = swing()
    solution = ocp.solve(problem)
    wild = torch.full_like(solution.policy.K, 1e200)
    policy = type(solution.policy)(
        solution.policy.states, solution.policy.controls, solution.policy.k, wild
    )
    object.__setattr__(solution, "policy", policy)
    guess = ocp.starts.warm(solution)(problem.replace(x0=problem.x0 + 0.1), ocp.make_solver("ilqr"))
    close(guess.controls, solution.controls, 0)
