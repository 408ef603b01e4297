"""Stagewise problems and shared controls in the native engine, against the eager one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Resizing, guess, resizing, rich
from native_cases import needs_compiler
from references import close
from stagewise_models import random_stagewise
from torch import Tensor

import ocp
from ocp import engines
from ocp.engines import Eager
from ocp.engines.native import kinds, stagewise
from ocp.engines.native.compiled import Refused, compiled_for
from ocp.engines.native.values import Untraceable
from ocp.problem import Problem, Stages

pytestmark = needs_compiler

F64 = torch.float64
METHODS = ("ilqr", "ddp", "always", "on-state", "newton", "pmp")


def pair(method: str) -> list[ocp.solvers.Solver]:
    options: dict[str, Any] = {}
    if method == "always":
        method, options = "ddp", {"second_order": "always"}
    if method == "on-state":
        rules = ocp.solvers.Rules(damping_start=0.7)
        method, options = "ilqr", {"regularisation": "state", "rules": rules}
    return [ocp.make_solver(method, engine=name, **options) for name in ("eager", "native")]


def stages_close(actual: Stages, expected: Stages, tolerance: float = 1e-9) -> None:
    assert isinstance(actual, Tensor) == isinstance(expected, Tensor)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        close(a, b, tolerance)


def states_equal(actual: Any, expected: Any) -> None:
    for name in ("xs", "us"):
        stages_close(getattr(actual, name), getattr(expected, name))
    if expected.gaps is not None:
        stages_close(actual.gaps, expected.gaps)
    for name in ("cost", "gap", "damping", "penalty", "residual"):
        close(getattr(actual, name), getattr(expected, name))
    for name in ("status", "second_order", "weak", "iterations", "rollouts", "sweeps"):
        assert getattr(actual, name).tolist() == getattr(expected, name).tolist(), name
    for name, value in expected.rows[-1].items():
        close(actual.rows[-1][name][-1].to(F64), value[-1].to(F64))


def start(problem: Problem, gaps: bool) -> tuple[Any, Any]:
    """Controls and, with gaps, states, as a user gives them."""
    us = guess(problem, 5, 0.4)
    g = torch.Generator().manual_seed(6)
    eager = Eager(problem)
    xs = [x + 0.1 * torch.randn(x.shape, generator=g, dtype=F64).to(x)
          for x in eager.rollout(torch.stack(us) if problem.uniform else us)]  # fmt: skip
    if problem.samples > 1:
        xs = [x.reshape(problem.samples, -1) for x in xs]
    if problem.uniform:
        batch = problem.batched or problem.samples > 1
        u, x = torch.stack(us, -2), torch.stack(xs, -2)
        return (u if problem.batched else u[0]), ((x if batch else x[0]) if gaps else None)
    return us, (xs if gaps else None)


def check_steps(problem: Problem, method: str, gaps: bool, steps: int = 2) -> None:
    eager, native = pair(method)
    state = eager.init(problem, *start(problem, gaps))
    for _ in range(steps):
        other = native.step(problem, state._replace(engine=engines.make(problem, "native")))
        state = eager.step(problem, state)
        states_equal(other, state)
        if not state.running:
            break


# -- stages that differ ----------------------------------------------------------------------------
@pytest.mark.parametrize(("batch", "bounds"), [(None, False), (3, True)])
@pytest.mark.parametrize("method", METHODS)
def test_steps_with_sizes_that_change_equal_the_eager_ones(method, batch, bounds):
    """3 -> 2 -> 4 -> 4 -> 1 states; 1, 0, 2, 3 controls."""
    limits = [[torch.full((m,), s, dtype=F64) for m in (1, 0, 2, 3)] for s in (-0.2, 0.15)]
    problem = resizing(batch, control_bounds=tuple(limits) if bounds else None)
    for gaps in (False, True)[: 1 + (method in ("ilqr", "ddp", "always", "on-state"))]:
        check_steps(problem, method, gaps)


@pytest.mark.parametrize("seed", range(4))
def test_steps_of_random_stagewise_models_equal_the_eager_ones(seed):
    problem = random_stagewise(seed, (None, 5, 2, None)[seed], 5 + seed, seed < 2, bounds=seed > 1)
    for method in ("ilqr", "always", "newton", "pmp"):
        check_steps(problem, method, gaps=method in ("ilqr", "always"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 24))
def test_steps_of_more_random_models_equal_the_eager_ones(seed):
    problem = random_stagewise(
        seed, (None, 5, 2)[seed % 3], 1 + seed % 9, seed % 4 == 0, bounds=seed % 2 == 1
    )
    for method in ("ilqr", "always", "newton", "pmp"):
        check_steps(problem, method, gaps=method in ("ilqr", "always"))


@pytest.mark.parametrize("method", ["ddp", "newton"])
def test_whole_solves_have_the_status_cost_and_certificate_of_the_eager_ones(method):
    problem = random_stagewise(3, 2, horizon=4)
    theirs, ours = (ocp.solve(problem, method, engine=e) for e in ("eager", "native"))
    assert ours.engine == "native" and ours.status == theirs.status
    close(ours.cost, theirs.cost, 1e-10)
    for name in ("states", "controls", "costates"):
        stages_close(getattr(ours, name), getattr(theirs, name), 1e-6)
    stages_close(ours.policy.K, theirs.policy.K, 1e-5)
    stages_close(ours.value.vxx, theirs.value.vxx, 1e-5)


def test_one_stage():
    problem = random_stagewise(5, horizon=1)
    assert problem.control_dims == (2,)
    for method in ("ilqr", "always", "newton", "pmp"):
        check_steps(problem, method, gaps=False)


def test_float32():
    model = Resizing()
    model.W, model.V = ([w.float() for w in s] for s in (model.W, model.V))
    base = resizing(3)
    scale = base.per_problem["scale"].float()
    single = base.replace(
        dynamics=model.dynamics, cost=model, x0=base.x0.float(), per_problem={"scale": scale}
    )
    theirs, ours = (ocp.solve(single, "ddp", engine=e) for e in ("eager", "native"))
    assert ours.engine == "native" and ours.cost.dtype == torch.float32
    assert bool((ours.residual <= 1e-3).all())
    close(ours.cost, theirs.cost, 1e-5)


def test_pieces_equal_the_eager_ones():
    """What solvers other than iLQR ask for, with everything that changes its size."""
    problem = random_stagewise(8, 3, 5, bounds=True)
    ours, theirs = engines.make(problem, "native"), Eager(problem)
    us = guess(problem, 1)
    xs = theirs.rollout(us)
    xs = [x + 0.05 * torch.sin(7 * x) for x in xs]
    gaps = theirs.gaps(xs, us)
    stages_close(ours.gaps(xs, us), gaps, 1e-12)
    e, own = theirs.expand(xs, us), ours.expand(xs, us)
    for a, b in zip(own[:3], e[:3], strict=True):
        stages_close(a, b, 1e-10)
    assert own.n == e.n
    for a, b in zip(ours.costates(e), theirs.costates(e), strict=True):
        stages_close(a, b, 1e-10)
    ps = theirs.costates(e)[0]
    damping = torch.tensor([0.0, 0.5, 2.0], dtype=F64)
    pairs = [(engine, engine.curvature_along(xs, us, ps)) for engine in (ours, theirs)]
    mine, other = (engine.sweep(e, us, gaps, damping, c) for engine, c in pairs)
    for a, b in zip((*mine.policy, mine.vx, mine.vxx), (*other.policy, other.vx, other.vxx),
                    strict=True):  # fmt: skip
        stages_close(a, b)
    for a, b in zip(mine[3:], other[3:], strict=True):
        close(a.to(F64), b.to(F64))
    for a, b in zip(ours.linear_rollout(e, other.policy, gaps),
                    theirs.linear_rollout(e, other.policy, gaps), strict=True):  # fmt: skip
        stages_close(a, b)
    sizes = torch.tensor([1.0, 0.3], dtype=F64)
    tried, expected = (
        engine.follow(xs, us, gaps, other.policy, sizes) for engine in (ours, theirs)
    )
    stages_close(tried.xs, expected.xs)
    stages_close(tried.us, expected.us)
    close(tried.cost, expected.cost)


# -- kinds -----------------------------------------------------------------------------------------
def test_numbers_that_vary_do_not_make_kinds():
    """Zeros and ones among them neither: they vanish only where they do so at every stage."""
    numbers = (0.0, 1.0, -1.0, 0.5, 2.0, 0.0, 4.0)
    points = [torch.tensor([0.1 * t, 1.0 - t], dtype=F64) for t in range(7)]

    def f(x: Tensor, u: Tensor, t: int) -> Tensor:
        return x * numbers[t] + points[t] * u[0] / (1.0 + t) + torch.tensor([0.0, t * 1.0]).to(x)

    cost = ocp.FunctionCost(lambda x, u, t: (x - t) @ x + u @ u, lambda x: x @ x)
    problem = ocp.Problem(f, cost, torch.ones(2, dtype=F64), 7, 1, stagewise=True)
    assert stagewise.model(problem).kinds == (tuple(range(7)),)
    check_steps(problem, "always", gaps=True)
    points[3].mul_(2.0)  # a run-time number
    made = compiled_for(problem)
    check_steps(problem, "ilqr", gaps=False)
    assert compiled_for(problem) is made


@pytest.mark.parametrize("batch", [None, 3])
def test_stages_of_several_kinds_in_one_pack(batch):
    base = rich(batch, 9)

    def f(x: Tensor, u: Tensor, t: int, p: Any) -> Tensor:
        after = base.dynamics(x, u, t, p)
        return after if t % 3 else after + 0.1 * torch.tanh(x).flip(0) * u[0]

    problem = base.replace(dynamics=f, stagewise=True)
    assert stagewise.model(problem).kinds == ((0, 3, 6), (1, 2, 4, 5, 7, 8))
    for method in ("ilqr", "always", "newton"):
        check_steps(problem, method, gaps=method != "newton")


def test_new_parameters_compile_nothing():
    problem = random_stagewise(2, 3, 3)
    made = compiled_for(problem)
    changed = problem.replace(
        parameters={"gain": torch.tensor(0.9, dtype=F64)},
        per_problem={"mass": problem.per_problem["mass"] + 0.3},
        x0=problem.x0 + 0.1,
    )
    assert compiled_for(changed) is made
    check_steps(changed, "always", gaps=True)


def test_too_many_kinds_are_refused_with_their_number(monkeypatch):
    def f(x: Tensor, u: Tensor, t: int) -> Tensor:
        for _ in range(t):
            x = torch.sin(x)
        return x + u.sum()

    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u, lambda x: x @ x)
    problem = ocp.Problem(f, cost, torch.ones(2, dtype=F64), 60, 1, stagewise=True)
    with pytest.raises(Refused, match=r"51 kinds of stages up to stage 50, 50 are allowed"):
        engines.make(problem, "native")
    monkeypatch.setenv("OCP_ENGINE", "auto")
    with pytest.warns(RuntimeWarning, match=r"eager PyTorch.*51 kinds"):
        assert ocp.solve(problem, max_iterations=1).engine == "eager"


def test_too_many_operations_and_what_cannot_be_traced_are_refused_with_the_stage():
    with pytest.raises(Untraceable, match=r"\d+ scalar operations.*; 300 .* allowed"):
        stagewise.model(resizing(), limit=300)
    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)
    sort = lambda x, u, t: x.sort().values + u if t == 2 else x + u
    problem = ocp.Problem(sort, cost, torch.ones(2, dtype=F64), 4, 2, stagewise=True)
    with pytest.raises(Untraceable, match=r"sort.*at stage 2.*test_native_stagewise"):
        stagewise.model(problem)


def test_a_wrong_table_is_caught_before_it_is_used(monkeypatch):
    """Numbers of stage t + 1 in the row of stage t."""
    true = kinds.Table.source

    def shifted(table: kinds.Table, *arguments: Any) -> Any:
        rows = table.rows[1:] + table.rows[:1]
        table.rows = [[a[0], *b[1:]] for a, b in zip(table.rows, rows, strict=True)]
        return true(table, *arguments)

    monkeypatch.setattr(kinds.Table, "source", shifted)
    with pytest.raises(Refused, match="differs from the eager one"):
        engines.make(random_stagewise(1, alike=True), "native")


# -- shared controls -------------------------------------------------------------------------------
@pytest.mark.parametrize(("batch", "bounds"), [(5, False), (8, True)])
@pytest.mark.parametrize("method", METHODS)
def test_steps_with_shared_controls_equal_the_eager_ones(method, batch, bounds):
    limits = tuple(torch.full((2,), s, dtype=F64) for s in (-0.15, 0.1))
    problem = rich(batch, 4, shared_controls=True, control_bounds=limits if bounds else None)
    for gaps in (False, True)[: 1 + (method in ("ilqr", "ddp", "always", "on-state"))]:
        check_steps(problem, method, gaps)


@pytest.mark.parametrize("method", ["always", "newton"])
def test_shared_controls_with_sizes_that_change(method):
    check_steps(resizing(6, shared_controls=True), method, gaps=method == "always")
    check_steps(random_stagewise(6, 3, 4, bounds=True, shared_controls=True), method, gaps=False)


def test_one_sample_and_one_stage_with_shared_controls():
    for batch, horizon in ((1, 4), (5, 1)):
        check_steps(rich(batch, horizon, shared_controls=True), "always", gaps=True)


@pytest.mark.parametrize("method", ["ddp", "newton"])
def test_solves_with_shared_controls_have_the_cost_and_value_of_the_eager_ones(method):
    problem = rich(6, 5, shared_controls=True)
    theirs, ours = (ocp.solve(problem, method, engine=e) for e in ("eager", "native"))
    assert ours.engine == "native" and ours.status == theirs.status
    close(ours.cost, theirs.cost, 1e-11)
    stages_close(ours.states, theirs.states, 1e-7)
    stages_close(ours.policy.K, theirs.policy.K, 1e-6)
    stages_close(ours.value.vxx, theirs.value.vxx, 1e-6)
    assert ours.history["cost"].shape == theirs.history["cost"].shape


def test_a_model_without_curvature_is_handed_to_the_eager_loop():
    """A Mayer problem: Q_uu of the Gauss-Newton model is singular at the last stages."""
    f = lambda x, u, t: x + 0.1 * torch.stack((x[1], torch.sin(u[0]) - x[0]))
    cost = ocp.FunctionCost(lambda x, u, t: 0.0 * u[0], lambda x: x[0] + 0.1 * x[1] ** 2)
    x0 = torch.tensor([[0.1, 0.2], [0.4, -0.3], [0.0, 0.1]], dtype=F64)
    problem = ocp.Problem(f, cost, x0, 5, 1, shared_controls=True)
    check_steps(problem, "ilqr", gaps=False, steps=4)
    theirs, ours = (ocp.solve(problem, "ilqr", engine=e, max_iterations=40) for e in
                    ("eager", "native"))  # fmt: skip
    close(ours.cost, theirs.cost, 1e-8)
