"""The Hamiltonian compiled, its minimiser, and the methods that minimise it, against eager."""

from __future__ import annotations

import models
import pytest
import torch
from native_cases import F64, broad, needs_compiler
from random_models import random_problem
from references import close
from test_native_engine import OTHERS, QUICK
from test_native_pmp import guess

import ocp
from ocp import engines
from ocp.engines.native import hamiltonians
from ocp.problems.registry import REGISTRY
from ocp.solvers.hamiltonian import Hamiltonian, ProjectedNewton, flat
from ocp.solvers.loop import State

pytestmark = needs_compiler

LO, HI = [-0.3, -0.2, -0.25], [0.2, 0.3, 0.4]


def pair(problem: ocp.Problem, copies: int = 1, augmented: bool = False, size: float = 0.7):
    """The same Hamiltonian by both engines, of lines that are no trajectory, and controls."""
    g = torch.Generator().manual_seed(2)
    noise = lambda *shape: torch.randn(*shape, generator=g, dtype=F64).to(problem.x0.dtype)
    T, L = problem.horizon, problem.batch * copies
    n, m = problem.state_dims[0], problem.control_dims[0]
    xs, ps, us = size * noise(T + 1, L, n), size * noise(T + 1, L, n), size * noise(T, L, m)
    if problem.lower is not None:
        us = torch.minimum(torch.maximum(us, problem.lower), problem.upper)
    weights = noise(L, 2).abs() if augmented else None
    both = [engines.make(problem, name) for name in ("eager", "native")]
    return [Hamiltonian(engine, xs, ps, weights) for engine in both], us


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("copies", [1, 3])
def test_values_and_derivatives_equal_the_eager_ones(augmented, copies):
    for problem in (models.rich(5), broad(2, 4), random_problem(1)):
        (eager, native), us = pair(problem, copies, augmented)
        assert eager.compiled is None and native.compiled is not None
        close(native.value(us), eager.value(us), 1e-12)
        for ours, theirs in zip(native.derivatives(us), eager.derivatives(us), strict=True):
            close(ours, theirs, 1e-10)


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("bounds", [None, (LO, HI)], ids=["free", "bounds"])
@pytest.mark.parametrize("iterations", [1, 20])
def test_the_minimiser_is_the_eager_one_where_h_is_not_convex_too(augmented, bounds, iterations):
    problem = broad(11, 5).replace(control_bounds=bounds)
    (eager, native), us = pair(problem, 2, augmented, 2.0)
    H = eager.derivatives(us)[1]
    definite = torch.linalg.eigvalsh(H)[..., 0] > 0
    assert bool(definite.any()) and bool((~definite).any())
    newton = ProjectedNewton(iterations=iterations)
    ours, theirs = newton(native, us), newton(eager, us)
    close(ours, theirs, 1e-9 if iterations == 1 else 1e-7)
    close(native.value(ours), eager.value(theirs), 1e-9)
    if bounds is not None:
        assert bool((ours >= problem.lower - 1e-15).all() & (ours <= problem.upper + 1e-15).all())
        assert bool((ours == problem.lower).any() | (ours == problem.upper).any())


def test_the_minimiser_keeps_within_bounds_that_change_with_the_stage():
    T, problem = 5, broad(3, 5)
    g = torch.Generator().manual_seed(4)
    lo = -0.1 - torch.rand(T, 3, generator=g, dtype=F64)
    bounded = problem.replace(
        control_bounds=(lo, lo + 0.3 + torch.rand(T, 3, generator=g).double())
    )
    (eager, native), us = pair(bounded, 2, size=2.0)
    ours, theirs = ProjectedNewton()(native, us), ProjectedNewton()(eager, us)
    close(ours, theirs, 1e-7)
    for limit in (bounded.lower, bounded.upper):
        assert bool((ours == limit).any())


def test_a_direction_without_curvature_gets_a_little():
    """H is indefinite with an eigenvalue 0: the step along its vector is long, and finite."""
    f = lambda x, u, t: torch.stack((0.5 * x[0] + u[0], x[1] - 0.2 * u[1] + 0.1 * u[2]))
    l = lambda x, u, t: (x @ x) + 1e-7 * u[0] - 0.6 * u[1] * u[1] + 0.8 * u[2] * u[2] + 0.1 * u[2]
    x0 = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=F64)
    problem = ocp.Problem(f, ocp.FunctionCost(l, lambda x: x @ x), x0, 3, 3)
    (eager, native), us = pair(problem)
    assert eager.ps is native.ps
    eager.ps.mul_(1e-9)  # it is divided by the least eigenvalue
    ours, theirs = (ProjectedNewton(iterations=1)(h, us) for h in (native, eager))
    assert float(theirs.abs().max()) > 1
    close(ours, theirs, 1e-7)


def test_numbers_that_are_not_finite_harm_their_sample_alone():
    (_, native), us = pair(models.rich(5))
    clean = ProjectedNewton()(native, us)
    native.xs[1, 2, 0] = torch.nan
    sick = ProjectedNewton()(native, us)
    others = torch.arange(5) != 2
    assert torch.equal(sick[:, others], clean[:, others])
    assert torch.equal(sick[1, 2], us[1, 2])


def states_equal(ours: State, theirs: State, tolerance: float = 1e-9) -> None:
    for name in ("xs", "us"):
        close(*(flat(getattr(s, name)) for s in (ours, theirs)), tolerance)
    for name in ("cost", "gap", "damping", "residual"):
        close(getattr(ours, name), getattr(theirs, name), tolerance)
    for name in ("status", "weak", "iterations", "rollouts", "sweeps"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist(), name
    for name, value in theirs.rows[-1].items():
        close(ours.rows[-1][name].to(F64), value.to(F64), tolerance)


def compare_steps(problem: ocp.Problem, method: str, steps: int, us: object) -> None:
    eager, native = (ocp.make_solver(method, engine=name) for name in ("eager", "native"))
    state = eager.init(problem, us)
    compiled = engines.make(problem, "native")
    for _ in range(steps):
        if not state.running or float(state.cost.abs().max()) > 1e6:  # of a map that diverges
            return
        other = native.step(problem, state._replace(engine=compiled))
        state = eager.step(problem, state)
        states_equal(other, state)


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
@pytest.mark.parametrize("method", ["msa", "emsa"])
def test_steps_equal_the_eager_ones(name, method):
    problem = REGISTRY[name].factory()
    compare_steps(problem, method, 2, guess(problem))


@pytest.mark.parametrize("method", ["msa", "emsa"])
def test_steps_of_random_models_and_of_a_batch_equal_the_eager_ones(method):
    problem = random_problem(2)
    compare_steps(problem, method, 3, guess(problem))
    bounded = models.rich(5, control_bounds=([-0.2, -0.3], [0.25, 0.1]))
    compare_steps(bounded, method, 4, guess(bounded))
    single = models.rich(1, horizon=1)
    compare_steps(single, method, 2, guess(single))


@pytest.mark.parametrize("method", ["msa", "emsa"])
def test_what_is_not_compiled_is_said_and_changes_no_answer(method, monkeypatch):
    options = {"relaxation": 0.05} if method == "msa" else {}
    problem = models.rich(2, horizon=4)
    call = lambda p: ocp.solve(p, method, engine="native", max_iterations=8, **options)
    whole = call(problem)
    assert whole.engine == "native"
    monkeypatch.setattr(hamiltonians, "MOST", 10)

    def dynamics(x, u, t, p):  # another function: another program
        return problem.dynamics(x, u, t, p)

    fresh = problem.replace(dynamics=dynamics)
    with pytest.warns(RuntimeWarning, match="H is minimised in eager PyTorch.*10 are allowed"):
        partly = call(fresh)
    assert partly.engine == "native + eager"
    close(partly.cost, whole.cost, 1e-9)
    assert partly.status == whole.status


def test_other_minimisers_get_compiled_values():
    problem = models.rich(3)
    seen = []

    def descend(h: Hamiltonian, us: torch.Tensor) -> torch.Tensor:
        seen.append(h.compiled is not None)
        return us - 0.1 * h.derivatives(us)[0]

    eager, native = (
        ocp.solve(problem, "emsa", engine=name, minimiser=descend, max_iterations=3)
        for name in ("eager", "native")
    )
    assert True in seen and False in seen
    close(native.cost, eager.cost, 1e-10)


def test_copies_of_a_problem_have_its_data():
    problem = models.rich(3)
    eager, native = (engines.make(problem, name) for name in ("eager", "native"))
    g = torch.Generator().manual_seed(0)
    T, n, m = problem.horizon, problem.state_dims[0], problem.control_dims[0]
    xs = torch.randn(T + 1, 12, n, generator=g, dtype=F64)
    us = torch.randn(T, 12, m, generator=g, dtype=F64)
    close(native.gaps(xs, us), eager.gaps(xs, us), 1e-12)
    for ours, theirs in zip(native.expand(xs, us)[:5], eager.expand(xs, us)[:5], strict=True):
        close(ours, theirs, 1e-11)
    assert native.of(us) is native.of(us) is not native
    assert native.of(us[:, :7]) is None
