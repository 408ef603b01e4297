"""Whole iterations of PMP in compiled programs, against the eager engine."""

from __future__ import annotations

import models
import pytest
import torch
from grid_calls import compiled
from native_cases import F64, needs_compiler
from random_models import random_problem
from references import close
from test_native_engine import OTHERS, QUICK

import ocp
from ocp import engines
from ocp.engines.native import engine as native_engine
from ocp.engines.native.cuda import Cuda
from ocp.engines.native.grid import Form
from ocp.problems.registry import REGISTRY
from ocp.problems.van_der_pol import van_der_pol
from ocp.solvers.hamiltonian import flat
from ocp.solvers.loop import State
from ocp.solvers.pmp import PMP

pytestmark = needs_compiler


def batch_of(problem: ocp.Problem, count: int, spread: float = 0.05) -> ocp.Problem:
    """Problems that begin near the one given."""
    g = torch.Generator().manual_seed(1)
    x0 = problem.x0.reshape(-1)
    noise = torch.randn(count, len(x0), generator=g, dtype=x0.dtype)
    return problem.replace(x0=x0 + spread * noise)


def guess(problem: ocp.Problem, size: float = 0.1) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    shape = problem.horizon, problem.control_dims[0]
    batch = (problem.batch,) if problem.batched else ()
    return size * torch.randn(*batch, *shape, generator=g, dtype=F64).to(problem.x0.dtype)


def same(ours: State, theirs: State, running: torch.Tensor, tolerance: float = 1e-9) -> None:
    """Of the problems that were running, all that a step changes."""
    assert theirs.memory is not None
    of = lambda v: v[running] if v.ndim == 1 else v[:, running]
    for name in ("xs", "us"):
        close(*(flat(getattr(s, name))[running] for s in (ours, theirs)), tolerance)
    close(of(ours.memory), of(theirs.memory), tolerance)
    for name in ("cost", "gap", "damping", "penalty", "residual"):
        close(of(getattr(ours, name)), of(getattr(theirs, name)), tolerance)
    for name in ("status", "second_order", "weak", "iterations", "rollouts", "sweeps"):
        assert of(getattr(ours, name)).tolist() == of(getattr(theirs, name)).tolist(), name
    for name, value in theirs.rows[-1].items():
        close(of(ours.rows[-1][name]).to(F64), of(value).to(F64), tolerance)


def compare_steps(problem: ocp.Problem, steps: int, us: object = None, **options: object) -> int:
    """Each step from eager's state; returns how many were compared."""
    eager, native = (PMP(engine=name, **options) for name in ("eager", "native"))
    state = eager.init(problem, guess(problem) if us is None else us)
    compiled_engine = engines.make(problem, "native")
    for made in range(steps):
        if not state.running:
            return made
        running = state.status == ocp.Status.RUNNING
        other = native.steps(problem, state._replace(engine=compiled_engine), 1)
        assert other.feedback is None
        state = eager.step(problem, state)
        same(other, state, running)
    return steps


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
@pytest.mark.parametrize("search", ["lbfgs", "gradient"])
def test_steps_equal_the_eager_ones(name, search):
    problem = REGISTRY[name].factory()
    assert compare_steps(problem, 4, search=search, pairs=2) > 1


@pytest.mark.parametrize("name", ["van_der_pol_bounded", *OTHERS])
def test_steps_of_a_batch_equal_the_eager_ones(name):
    problem = batch_of(REGISTRY[name].factory(), 3)
    assert compare_steps(problem, 4, pairs=2) > 1
    assert compare_steps(problem, 2, search="gradient") > 1


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3))])
def test_steps_of_random_models_equal_the_eager_ones(seed):
    problem = random_problem(seed)
    assert compare_steps(problem, 6) > 1
    bounded = batch_of(problem, 5).replace(control_bounds=([-0.05, -0.2], [0.1, 0.15]))
    assert compare_steps(bounded, 12, pairs=3) > 1


def test_steps_of_a_batch_with_data_and_active_bounds_equal_the_eager_ones():
    lo, hi = [-0.2, -0.3], [0.25, 0.1]
    for batch in (1, 11):
        problem = models.rich(batch, control_bounds=(lo, hi))
        for search in ("lbfgs", "gradient"):
            assert compare_steps(problem, 15, search=search, pairs=4) > 5


@pytest.mark.parametrize("search", ["lbfgs", "gradient"])
@pytest.mark.parametrize("batch", [1, 11])
def test_after_a_refused_step_pairs_are_forgotten_and_the_scale_shrinks(search, batch):
    """Of every other problem of a batch: its controls are those of the step before."""
    problem = models.rich(batch, control_bounds=([-0.2, -0.3], [0.25, 0.1]))
    eager, native = (PMP(engine=name, search=search, pairs=3) for name in ("eager", "native"))
    state = eager.init(problem, guess(problem))
    for _ in range(5):  # until every pair there is room for has been found
        state = eager.step(problem, state)
    refused = eager.direction(state, state.engine.expand(state.xs, state.us)).memory
    assert refused is not None and state.memory is not None
    chosen = (torch.arange(batch) % 2 == 0)[:, None]
    state = state._replace(memory=torch.where(chosen, refused, state.memory))
    running = state.status == ocp.Status.RUNNING
    assert bool(running.any()) and (
        search == "gradient" or bool(refused[3:, running].any(-1).all())
    )
    other = native.steps(problem, state._replace(engine=engines.make(problem, "native")), 1)
    after = eager.step(problem, state)
    same(other, after, running)
    assert not after.memory[3:, chosen[:, 0] & running].any()


def test_where_the_last_step_found_no_curvature_the_scale_doubles():
    """An uphill gradient change along the last step: a memory that says so."""
    problem = models.rich(5)
    for search in ("lbfgs", "gradient"):
        eager, native = (PMP(engine=name, search=search, pairs=3) for name in ("eager", "native"))
        state = eager.step(problem, eager.init(problem, guess(problem)))
        u, _, scale = state.memory[:3]
        now = eager.direction(state, state.engine.expand(state.xs, state.us)).memory
        bent = state.memory.clone()
        bent[1] = now[1] + (now[0] - u)  # y = -s
        state = state._replace(memory=bent)
        after = eager.step(problem, state)
        assert torch.equal(after.memory[2], 2 * scale)
        other = native.steps(problem, state._replace(engine=engines.make(problem, "native")), 1)
        same(other, after, state.status == ocp.Status.RUNNING)


@pytest.mark.parametrize("method", ["pmp", "ilqr", "ddp"])
@pytest.mark.parametrize("batch", [1, 6])
def test_what_work_memory_held_before_changes_nothing(method, batch, monkeypatch):
    problem = models.rich(batch, horizon=7, control_bounds=([-0.2, -0.3], [0.25, 0.1]))
    solver = ocp.make_solver(method, engine="native", **({"pairs": 3} if method == "pmp" else {}))
    kept = []  # for as long as it is used

    def filled(size, byte):
        kept.append(torch.full((size,), byte, dtype=torch.uint8))
        return kept[-1]

    found = []
    for byte in (0, 255):  # all bits: nan
        monkeypatch.setattr(native_engine, "scratch", lambda size, byte=byte: filled(size, byte))
        state = solver.init(problem, guess(problem))
        for _ in range(6):
            state = solver.steps(problem, state._replace(engine=engines.make(problem, "native")), 1)
        assert bool(torch.isfinite(state.cost).all())
        found.append(state)
    assert len(kept) > 2
    for name in ("xs", "us", "memory", "cost", "residual", "status"):
        first, second = (getattr(s, name) for s in found)
        assert (first is None and second is None) or torch.equal(first, second), name


def test_steps_equal_the_eager_ones_where_sizes_change():
    problem = models.resizing(3)
    assert compare_steps(problem, 8, models.guess(problem), pairs=3) > 2


@pytest.mark.parametrize("bounds", [(-0.3, 1.0), None])
def test_whole_solves_of_well_conditioned_problems_equal_the_eager_ones(bounds):
    problem = batch_of(van_der_pol(bounds, horizon=25, dt=0.1), 3, 0.3)
    eager, native = (
        ocp.solve(problem, "pmp", controls=guess(problem), engine=name)
        for name in ("eager", "native")
    )
    assert eager.engine == "eager" and native.engine == "native"
    close(native.cost, eager.cost, 1e-9)
    assert native.status == eager.status
    assert native.iterations.tolist() == eager.iterations.tolist()
    close(native.controls, eager.controls, 1e-6)
    for name, value in eager.history.items():
        assert native.history[name].shape == value.shape, name


def test_neither_neighbours_nor_chunks_nor_threads_change_a_lane(monkeypatch):
    problem = batch_of(van_der_pol((-0.3, 1.0), horizon=20, dt=0.1), 11, 0.4)
    solver = PMP(engine="native", pairs=5)
    state = solver.init(problem, guess(problem))
    before = state.engine.work_bytes
    solver.steps(problem, state, 1)
    assert state.engine.work_bytes > before  # room for what is remembered
    whole = chunks = state
    while whole.running:
        whole = solver.steps(problem, whole, 200)
    while chunks.running:
        chunks = solver.steps(problem, chunks, 3)
    assert len(set(whole.iterations.tolist())) > 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    threaded = solver.init(problem, guess(problem))
    assert threaded.engine.data_block.threads == 3
    threaded = solver.steps(problem, threaded, 1000)
    for other in (chunks, threaded):
        for name in ("xs", "us", "memory", "cost", "status", "iterations", "rollouts"):
            assert torch.equal(getattr(whole, name), getattr(other, name)), name
    alone = solver.init(problem.replace(x0=problem.x0[4:5]), guess(problem)[4:5])
    alone = solver.steps(alone.engine.problem, alone, 1000)
    close(alone.cost[0], whole.cost[4], 1e-10)


def test_iterations_are_those_of_the_program_and_not_of_the_pieces(monkeypatch):
    problem = van_der_pol(horizon=10, dt=0.1)
    solver = PMP(engine="native")

    def refuse(*arguments):
        raise AssertionError("a direction was asked for in Python")

    direction = PMP.direction
    monkeypatch.setattr(PMP, "direction", refuse)
    assert bool(ocp.solve(problem, solver).converged)
    monkeypatch.setattr(PMP, "direction", direction)

    class Slower(PMP):
        def direction(self, state, expansion):
            found = super().direction(state, expansion)
            return found._replace(policy=found.policy._replace(k=found.policy.k / 2))

    other = Slower(engine="native")
    after = [s.steps(problem, s.init(problem), 1) for s in (solver, other)]
    assert not torch.equal(after[0].us, after[1].us)  # a subclass is asked
    few = PMP(engine="native", trials=3)  # the program has 12 step sizes: the pieces
    assert bool(ocp.solve(problem, few).converged)


def test_a_callback_sees_every_step_and_a_diverging_member_harms_nobody():
    problem = models.rich(5)
    seen = []
    watched = ocp.solve(problem, "pmp", engine="native", callback=lambda r: seen.append(r.cost))
    plain = ocp.solve(problem, "pmp", engine="native")
    assert len(seen) == len(plain.history["cost"])
    close(watched.controls, plain.controls, 1e-12)
    sick = problem.replace(x0=problem.x0.index_fill(0, torch.tensor([2]), 1e200))
    bad = ocp.solve(sick, "pmp", engine="native")
    assert bad.status[2] == ocp.Status.NON_FINITE
    rest = [0, 1, 3, 4]
    assert torch.equal(bad.controls[rest], plain.controls[rest])


def test_a_gpu_makes_the_steps_of_pieces():
    """Its program, run on the CPU: one that would not be asked for whole iterations."""
    problem = models.rich(3)
    engine = Cuda(problem, compiled(problem, Form(False, 4)))
    solver, eager = PMP(engine="native"), PMP(engine="eager")
    state = eager.init(problem, guess(problem))
    recipe = solver.recipe(state)
    assert recipe is not None and engine.iterate(state, recipe, 5) is None
    running = state.status == ocp.Status.RUNNING
    after = solver.steps(problem, state._replace(engine=engine), 5)
    same(after, eager.step(problem, state), running)
