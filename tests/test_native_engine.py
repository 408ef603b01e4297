"""The native engine against the eager one: steps, solves, and when it steps aside."""

import copy
import linecache
import os
import subprocess
import sys

import pytest
import torch
from models import cartpoles, rich, single
from references import close
from swing import swing
from torch.utils.checkpoint import checkpoint

import ocp
from ocp import Status, engines
from ocp.engines.native import build
from ocp.engines.native.compiled import Refused, check, compare, compiled_for
from ocp.problems.registry import REGISTRY

try:
    build.compiler()
except build.BuildError as error:
    pytest.skip(f"no C++ compiler: {error}", allow_module_level=True)

F64 = torch.float64
QUICK = ("pendulum", "car_parking", "van_der_pol_bounded")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in REGISTRY if name not in QUICK]


def pair(method, **options):
    return [ocp.make_solver(method, engine=name, **options) for name in ("eager", "native")]


def same_state(a, b, tolerance=1e-9):
    close(b.xs, a.xs, tolerance)
    close(b.us, a.us, tolerance)
    for name in ("cost", "gap", "damping", "penalty", "residual"):
        close(getattr(b, name), getattr(a, name), tolerance)
    for name in ("status", "second_order", "weak", "iterations", "rollouts", "sweeps"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
    for name, value in a.rows[-1].items():
        close(b.rows[-1][name][-1].to(F64), value[-1].to(F64), tolerance)


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton", "pmp"])
def test_steps_equal_the_eager_ones(name, method):
    problem = REGISTRY[name].factory()
    options = {"second_order": "always"} if method == "ddp" else {}
    eager, native = pair(method, **options)
    g = torch.Generator().manual_seed(0)
    us = 0.1 * torch.randn(problem.horizon, problem.control_dims[0], generator=g, dtype=F64)
    state = eager.init(problem, us)
    for _ in range(3):
        compiled = state._replace(engine=engines.make(problem, "native"))
        others = native.step(problem, compiled), by_pieces(native, compiled)
        state = eager.step(problem, state)
        for other in others:
            same_state(state, other)


@torch.no_grad()
def by_pieces(solver, state):
    """A step that asks the engine for every piece of it."""
    return solver.iteration(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton", "pmp", "emsa", "indirect"])
def test_solves_of_a_batch_with_data_equal_the_eager_ones(method, dtype):
    base = rich(batch=5)
    problem = base.replace(
        x0=base.x0.to(dtype),
        parameters={k: v.to(dtype) for k, v in base.parameters.items()},
        per_problem={k: v.to(dtype) for k, v in base.per_problem.items()},
    )
    eager, native = (ocp.solve(problem, s) for s in pair(method, max_iterations=60))
    assert native.engine == "native" and eager.engine == "eager"
    close(native.cost, eager.cost, 1e-9 if dtype == F64 else 1e-5)
    if method == "emsa":  # hundreds of small steps: where rounding ends them is chance
        return
    assert native.status == eager.status
    if dtype == F64:
        close(native.controls, eager.controls, 1e-7)
        assert native.iterations.tolist() == eager.iterations.tolist()


def test_a_guess_of_states_and_bounds_equal_the_eager_ones():
    problem = cartpoles(3, horizon=10, spread=0.5).replace(control_bounds=([-1.0], [1.0]))
    states = torch.zeros(3, 11, 4, dtype=F64) + problem.x0[:, None] * 0.5
    states[:, 0] = problem.x0
    eager, native = (ocp.solve(problem, s, states=states) for s in pair("ddp"))
    assert native.status == eager.status and float(native.gap.max()) < 1e-12
    assert native.iterations.tolist() == eager.iterations.tolist()
    close(native.controls, eager.controls, 1e-8)


def test_one_problem_of_a_batch_does_not_depend_on_the_others():
    problem = cartpoles(9, horizon=12)
    together = ocp.solve(problem, engine="native")
    for b in (0, 4, 8):
        alone = ocp.solve(
            problem.replace(
                x0=problem.x0[b : b + 1],
                per_problem={k: v[b : b + 1] for k, v in problem.per_problem.items()},
            ),
            engine="native",
        )
        assert together.status[b] == alone.status[0]
        close(together.cost[b], alone.cost[0], 1e-10)


def test_new_values_need_no_new_program_and_new_numbers_do():
    goal, gain = torch.zeros(2, dtype=F64), [1.0]

    class Cost:
        def stage(self, x, u, t):
            return 0.1 * (x - goal) @ (x - goal) + gain[0] * u @ u

        def terminal(self, x):
            return (x - goal) @ (x - goal)

    f = lambda x, u, t: x + 0.1 * torch.sin(x) + torch.stack((u[0], u[0] * x[0]))
    problem = ocp.Problem(f, Cost(), torch.ones(2, dtype=F64), 6, 1)
    first = ocp.solve(problem, engine="native")
    program = compiled_for(problem)
    goal += 0.5
    second = ocp.solve(problem, engine="native")
    assert compiled_for(problem) is program
    assert abs(float(first.cost - second.cost)) > 1e-3
    close(second.cost, ocp.solve(problem, engine="eager").cost, 1e-10)
    gain[0] = 3.0
    third = ocp.solve(problem, engine="native")
    assert compiled_for(problem) is not program
    close(third.cost, ocp.solve(problem, engine="eager").cost, 1e-10)


def test_callbacks_limits_and_interrupts_stop_between_calls():
    problem, seen = swing(), []
    stopped = ocp.solve(
        problem, engine="native", callback=lambda r: seen.append(r) or len(seen) > 2
    )
    assert stopped.status == Status.INTERRUPTED and int(stopped.iterations) == 3 == len(seen)
    few = ocp.solve(problem, engine="native", max_iterations=3)
    assert few.status == Status.MAX_ITERATIONS and int(few.iterations) == 3
    close(few.cost, stopped.cost, 1e-14)
    late = ocp.solve(problem, engine="native", time_limit=0.0)
    assert late.status == Status.TIME_LIMIT and int(late.iterations) == 1
    whole = ocp.solve(problem, engine="native")
    assert whole.history["seconds"].shape == whole.history["cost"].shape
    assert bool((whole.history["seconds"].diff() >= 0).all())


def test_a_diverging_member_harms_nobody():
    problem = cartpoles(6, horizon=10)
    sick = problem.replace(x0=problem.x0.index_fill(0, torch.tensor([2]), 1e200))
    good, bad = (ocp.solve(p, engine="native") for p in (problem, sick))
    rest = [0, 1, 3, 4, 5]
    assert bad.status[2] == Status.NON_FINITE
    assert [bad.status[b] for b in rest] == [good.status[b] for b in rest]
    assert torch.equal(bad.controls[rest], good.controls[rest])


def test_what_cannot_be_compiled_says_why_and_is_solved_eagerly(monkeypatch):
    monkeypatch.setenv("OCP_ENGINE", "auto")
    sort = lambda x, u, t: x.sort().values + u
    problem = ocp.Problem(sort, ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x),
                          torch.ones(2, dtype=F64), 3, 2)  # fmt: skip
    with pytest.warns(RuntimeWarning, match=r"eager PyTorch.*sort.*test_native_engine"):
        solution = ocp.solve(problem)
    assert solution.engine == "eager" and solution.converged
    with pytest.raises(Refused, match="sort"):
        ocp.solve(problem, engine="native")
    cost = ocp.FunctionCost(lambda x, u, t: x @ x, lambda x: x @ x)
    nothing = ocp.Problem(lambda x, u, t: 0.5 * x, cost, torch.ones(2, dtype=F64), 3, 0)
    with pytest.warns(RuntimeWarning, match=r"eager PyTorch.*no controls"):
        assert ocp.solve(nothing, max_iterations=2).engine == "eager"
    with pytest.raises(ValueError, match="no controls"):
        ocp.solve(nothing, engine="native")


def test_the_warning_points_at_the_line_that_asked(monkeypatch):
    monkeypatch.setenv("OCP_ENGINE", "auto")
    problem = ocp.Problem(lambda x, u, t: (x * u).sort().values, quadratic(), [1.0, 2.0], 3, 2)
    with pytest.warns(RuntimeWarning, match="sort") as caught:
        ocp.solve(problem, max_iterations=1)
    (warning,) = caught
    assert warning.filename == __file__
    assert "ocp.solve(problem, max_iterations=1)" in linecache.getline(__file__, warning.lineno)


def test_functions_that_eager_cannot_differentiate_are_refused_by_name(monkeypatch):
    """Checkpoints save tensors by hooks, which torch.func does not support."""
    monkeypatch.setenv("OCP_ENGINE", "auto")
    body = lambda x, u: x + 0.1 * torch.tanh(x) * u.sum()
    f = lambda x, u, t: checkpoint(body, x, u, use_reentrant=False)
    try:
        problem = ocp.Problem(f, quadratic(), [1.0, 2.0], 3, 1)
    except ValueError as error:  # PyTorch before 2.13 cannot even batch them
        assert "does not have vmap support" in str(error)
        return
    with pytest.raises(Refused, match=r"compared with, fails.*RuntimeError.*test_native_engine"):
        engines.make(problem, "native")
    with (
        pytest.warns(RuntimeWarning, match="eager PyTorch.*compared with, fails"),
        pytest.raises(ValueError, match=r"second derivative of dynamics.*Remove torch.utils.check"),
    ):
        ocp.solve(problem)


@pytest.mark.parametrize("side", ["all_derivatives_by_autograd", "all_derivatives_compiled"])
def test_what_fails_while_a_program_is_checked_leads_to_eager(monkeypatch, side):
    monkeypatch.setenv("OCP_ENGINE", "auto")
    problem = ocp.Problem(lambda x, u, t: x + 0.3 * u, quadratic(), [1.0], 3, 1)

    def fails(*arguments):
        raise RuntimeError("no such operation\nmore")

    monkeypatch.setattr(sys.modules[check.__module__], side, fails)
    monkeypatch.setattr(build, "trusted", lambda entry: False)
    whose = "fails on its functions: " if "autograd" in side else "cannot be checked: "
    with pytest.warns(RuntimeWarning, match=f"{whose}RuntimeError: no such operation") as caught:
        solution = ocp.solve(problem)
    assert ("bug of the native engine" in str(caught[0].message)) == ("compiled" in side)
    assert solution.engine == "eager" and solution.converged


def test_a_difference_names_both_causes_and_what_to_do():
    with pytest.raises(Refused) as caught:
        compare("f", torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64))
    for words in ("differs from the eager one by 1.0e+00", "a hook", "bug of", 'engine="eager"'):
        assert words in str(caught.value)


def quadratic():
    return ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)


def test_without_a_compiler_problems_are_solved_eagerly(monkeypatch, tmp_path):
    monkeypatch.setenv("OCP_ENGINE", "auto")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    f = lambda x, u, t: x + u  # a function that no other test has compiled
    problem = ocp.Problem(f, ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x),
                          torch.ones(1, dtype=F64), 3, 1)  # fmt: skip
    with pytest.warns(RuntimeWarning, match="compiler"):
        solution = ocp.solve(problem)
    assert solution.engine == "eager" and solution.converged


def test_trajectories_are_judged_as_by_the_eager_engine():
    """A batch with definite, nearly singular and indefinite second-order models."""
    cost = ocp.FunctionCost(
        lambda x, u, t, p: p["w"] * u @ u + 0.1 * x[0] * u[0], lambda x, p: (x[0] ** 2 - 1) ** 2
    )
    f = lambda x, u, t, p: torch.stack((x[0] + torch.sin(u[0]), x[1] + x[0] * u[0]))
    x0 = torch.tensor([[0.0, 0.1], [0.9, 0.0], [0.05, 1.0], [1.1, 0.3], [1.0, 0.0]], dtype=F64)
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0, 2.0], dtype=F64)
    problem = ocp.Problem(f, cost, x0, 4, 1, per_problem={"w": weights})
    for row in (None, 0, 1):
        one = problem if row is None else single(problem, row)
        eager, native = engines.make(one, "eager"), engines.make(one, "native")
        us = 0.1 * torch.randn(
            4, one.batch, 1, dtype=F64, generator=torch.Generator().manual_seed(0)
        )
        xs = eager.rollout(us)
        a, b = eager.appraise(xs, us), native.appraise(xs, us)
        assert a.indefinite.tolist() == b.indefinite.tolist()
        assert a.sweep.failed.tolist() == b.sweep.failed.tolist()
        if row is None:
            assert bool((a.indefinite >= 0).any()) and bool((a.indefinite < 0).any())
        for name in ("vx", "vxx", "slope", "curvature", "residual"):
            close(getattr(b.sweep, name), getattr(a.sweep, name), 1e-9)
        for ours, theirs in zip(b.sweep.policy, a.sweep.policy, strict=True):
            close(ours, theirs, 1e-9)
        close(b.costates, a.costates, 1e-12)
        close(b.hus, a.hus, 1e-12)


@pytest.mark.parametrize("B", [1, 5])
def test_where_a_solve_begins_and_ends_is_judged_as_by_eager(B):
    g = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
    low = torch.tensor([-0.3, -0.8], dtype=F64)
    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u + x[0] * u[1], lambda x: x[2] ** 4)
    f = lambda x, u, t: x + 0.1 * torch.stack((x[1], torch.sin(x[2]) + u[0], u[1] - x[0]))
    problem = ocp.Problem(f, cost, noise(B, 3), 7, 2, control_bounds=(low, -2 * low))
    eager, native = engines.make(problem, "eager"), engines.make(problem, "native")
    us, xs = noise(7, B, 2), noise(8, B, 3)
    xs[0] = problem.x0
    for states in (None, xs):
        a, b = eager.begin(us, states), native.begin(us, states)
        for ours, theirs in ((b.xs, a.xs), (b.us, a.us), (b.cost, a.cost)):
            close(ours, theirs, 1e-12)
        torch.testing.assert_close(b.gap, a.gap, rtol=1e-12, atol=0)
        assert bool((a.us != us).any()) and b.finite.tolist() == [True] * B
        assert (a.gaps is None) == (b.gaps is None) == (states is None)
        a, b = eager.appraise(a.xs, a.us), native.appraise(a.xs, a.us)
        close(b.hamiltonian_residual, a.hamiltonian_residual, 1e-12)
        torch.testing.assert_close(b.gap, a.gap, rtol=1e-12, atol=1e-15)
    xs[3, 0, 1] = torch.nan
    assert native.begin(us, xs).finite.tolist() == [False] + [True] * (B - 1)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("f ", {"dynamics": lambda x, u, t: x * x * x + 1.001 * u}),
        ("fz", {"dynamics": lambda x, u, t: x * x.detach() * x + u}),
        ("lz", {"cost": ocp.FunctionCost(lambda x, u, t: x @ x + 2 * u @ u, lambda x: x @ x)}),
        ("phix", {"cost": ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: 2 * x @ x)}),
    ],
)
def test_a_known_program_is_still_compared_with_the_functions_at_hand(part, changes):
    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x)
    x0 = torch.tensor([0.3, -0.2], dtype=F64)
    f = lambda x, u, t: x * x * x + u
    problem = ocp.Problem(f, cost, x0, 4, 2)
    made = compiled_for(problem)
    check(problem, made, known=True)
    functions = {"dynamics": f, "cost": cost, **changes}
    other = copy.copy(problem)  # not checked by the constructor
    for name, function in functions.items():
        object.__setattr__(other, name, function)
    with pytest.raises(Refused, match=f"the compiled {part}"):
        check(other, made, known=True)


def flat_square(x):
    """x @ x, whose gradient is right and whose Hessian autograd takes for 0."""
    return (2 * x * x.detach() - (x * x).detach()).sum()


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("fz", {"dynamics": lambda x, u, t: x * x.detach() * x + u}),
        ("lz", {"cost": ocp.FunctionCost(lambda x, u, t: x @ x + u.detach() @ u, lambda x: x @ x)}),
        (
            "lzz",
            {"cost": ocp.FunctionCost(lambda x, u, t: flat_square(x) + u @ u, lambda x: x @ x)},
        ),
        (
            "v . f_zz",
            {"dynamics": lambda x, u, t: 3 * x * (x * x).detach() - 2 * (x**3).detach() + u},
        ),
        (
            "phix",
            {"cost": ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x.detach())},
        ),
        ("phixx", {"cost": ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, flat_square)}),
    ],
)
@pytest.mark.parametrize("B", [None, 3])
def test_a_new_program_is_compared_in_all_its_derivatives(part, changes, B):
    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x)
    x0 = torch.tensor([0.3, -0.2], dtype=F64)
    f = lambda x, u, t: x * x * x + u
    problem = ocp.Problem(f, cost, x0 if B is None else x0.repeat(B, 1), 4, 2)
    made = compiled_for(problem)
    check(problem, made)
    other = copy.copy(problem)  # not checked by the constructor
    for name, function in {"dynamics": f, "cost": cost, **changes}.items():
        object.__setattr__(other, name, function)
    with pytest.raises(Refused, match=f"the compiled {part} "):
        check(other, made)


def vmap_needs_the_compiler() -> bool:
    """Whether PyTorch itself imports it for `vmap`, as 2.6 does."""
    code = (
        "import sys, torch; torch.func.vmap(torch.sin)(torch.zeros(2)); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_no_process_needs_pytorchs_compiler(tmp_path):
    if vmap_needs_the_compiler():
        pytest.skip(f"torch.func.vmap of PyTorch {torch.__version__} imports the compiler")
    script = (
        "import sys, torch, ocp; from ocp.problems import pendulum; "
        "solution = ocp.solve(pendulum(), 'ilqr', engine='native', max_iterations=3); "
        "print('torch._dynamo' in sys.modules, float(solution.cost))"
    )
    environment = {**os.environ, "OCP_CACHE_DIR": str(tmp_path / "cache")}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    )
    assert first == second and first[0] == "False"
