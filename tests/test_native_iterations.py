"""Iterations of the native engine, with models written by hand, against the eager engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from native_cases import F64, KINDS, case, needs_compiler
from references import close
from torch import Tensor

import ocp
from ocp.solvers.decide import Rules
from ocp.solvers.dynamic_programming import DDP, ILQR

pytestmark = needs_compiler

HYBRID = DDP(engine="eager")
SOLVERS = {
    "ilqr": (ILQR(engine="eager"), 0),
    "hybrid": (HYBRID, 1),
    "always": (DDP(engine="eager", second_order="always"), 2),
    "on-state": (
        ILQR(engine="eager", regularisation="state", rules=Rules(damping_start=1.0, armijo=0.3)),
        0,
    ),
}


def states_equal(
    actual: object, expected: object, tolerance: float = 1e-9, which: Tensor | None = None
) -> None:
    """Of the problems ``which``, or all."""
    which = torch.ones_like(expected.cost) > 0 if which is None else which
    for name in ("xs", "us", "cost", "gap", "start_cost", "damping", "penalty", "residual"):
        a, b = getattr(actual, name), getattr(expected, name)
        close(
            a[..., which] if a.ndim == 1 else a[:, which],
            b[..., which] if b.ndim == 1 else b[:, which],
            tolerance,
        )
    for name in ("second_order", "weak", "status", "iterations", "rollouts", "sweeps"):
        a, b = getattr(actual, name)[which], getattr(expected, name)[which]
        assert a.tolist() == b.tolist(), name


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.mark.parametrize("gaps", [False, True], ids=["closed", "gaps"])
@pytest.mark.parametrize("name", list(SOLVERS))
def test_steps_equal_eager(kind: dict, name: str, gaps: bool) -> None:
    solver, method = SOLVERS[name]
    here = case(**kind)
    xs, us, _ = here.start(gaps, size=1.5)
    states = xs.movedim(0, 1) if gaps else None
    state = solver.init(here.problem, us.movedim(0, 1), states)
    for _ in range(4):  # each from eager's state: a last bit can decide which control is held
        if not state.running:
            break
        running = state.status == ocp.Status.RUNNING
        actual, rows, taken, handed = here.program.iterate(
            state, 1, method, name == "on-state", solver.rules
        )
        state = solver.step(here.problem, state)
        assert not handed.any()
        assert taken.tolist() == running.to(torch.int64).tolist()
        row = {column: value[0] for column, value in state.rows[-1].items()}
        # Whether a decrease that is nothing but rounding is enough is for the last bit to say.
        clear = running & (row["expected"] > 1e-10 * (1 + row["cost"].abs()))
        states_equal(actual, state, which=clear)
        for column, value in row.items():
            close(rows[0][column][running & clear].to(F64), value[running & clear].to(F64))
        if state.gaps is not None:
            close(actual.gaps, state.gaps, 1e-12)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_whole_solves_agree_in_status_and_cost(kind: dict, name: str) -> None:
    solver, method = SOLVERS[name]
    here = case(**kind)
    _, us, _ = here.start(gaps=False, size=1.0)
    state = solver.init(here.problem, us.movedim(0, 1))
    actual, *_ = here.program.iterate(state, 500, method, name == "on-state", solver.rules)
    while state.running:
        state = solver.step(here.problem, state)
    assert actual.status.tolist() == state.status.tolist()
    close(actual.cost, state.cost, 1e-9)


def test_a_lane_does_not_feel_its_neighbours_nor_threads() -> None:
    here = case("cartpole", 9, 25)
    solver = HYBRID
    _, us, _ = here.start(gaps=False, size=3.0)
    state = solver.init(here.problem, us.movedim(0, 1))
    whole, *_ = here.program.iterate(state, 40, 1)
    chunks = state
    for _ in range(8):
        chunks, *_ = here.program.iterate(chunks, 5, 1)
    threaded, *_ = case("cartpole", 9, 25, threads=3).program.iterate(state, 40, 1)
    assert len(set(whole.iterations.tolist())) > 1
    for other in (chunks, threaded):
        assert torch.equal(whole.xs, other.xs)
        assert torch.equal(whole.us, other.us)
        assert torch.equal(whole.status, other.status)
        assert torch.equal(whole.rollouts, other.rollouts)


def test_problems_that_stopped_are_left_as_they_are() -> None:
    here = case("rich", 5)
    _, us, _ = here.start(gaps=False)
    state = HYBRID.init(here.problem, us.movedim(0, 1))
    status = torch.tensor([-1, 2, -1, 5, 0])
    after, rows, taken, _ = here.program.iterate(state._replace(status=status), 2, 1)
    stopped = status >= 0
    assert taken[stopped].tolist() == [0, 0, 0]
    assert torch.equal(after.us[:, stopped], state.us[:, stopped])
    assert torch.equal(after.status[stopped], status[stopped])
    assert (rows[0]["running"] == torch.tensor([1.0, 0, 1, 0, 0])).all()
    assert torch.equal(rows[1]["cost"][stopped], state.cost[stopped])


@pytest.mark.parametrize("single", [False, True])
def test_an_indefinite_gauss_newton_model_is_handed_back_untouched(single: bool) -> None:
    """A negative damping makes it so; the second-order model drops its terms first."""
    here = case("rich", 1 if single else 5, single=single)
    _, us, _ = here.start(gaps=False)
    state = HYBRID.init(here.problem, us.movedim(0, 1))
    damping = state.damping.clone()
    damping[-1] = -50.0
    state = state._replace(damping=damping)
    after, rows, taken, handed = here.program.iterate(state, 2, 1)
    B = len(damping)
    assert handed.tolist() == [0] * (B - 1) + [1]
    assert taken.tolist() == [2] * (B - 1) + [0]
    assert len(rows) == (0 if single else 2)
    assert float(after.damping[-1]) == -50.0
    assert torch.equal(after.us[:, -1], state.us[:, -1])
    assert int(after.status[-1]) == int(ocp.Status.RUNNING)
    full = state._replace(second_order=torch.ones(B) > 0)
    after, _, taken, handed = here.program.iterate(full, 1, 1)
    expected = HYBRID.step(here.problem, full)
    assert not handed.any()
    states_equal(after, expected)


def test_a_state_that_is_not_finite_ends_its_problem_alone() -> None:
    here = case("rich", 5)
    _, us, _ = here.start(gaps=False)
    state = HYBRID.init(here.problem, us.movedim(0, 1))
    clean, *_ = here.program.iterate(state, 3, 1)
    xs = state.xs.clone()
    xs[2, 1, 0] = torch.nan
    after, *_ = here.program.iterate(state._replace(xs=xs), 3, 1)
    assert int(after.status[1]) == int(ocp.Status.NON_FINITE)
    others = torch.tensor([0, 2, 3, 4])
    assert torch.equal(after.us[:, others], clean.us[:, others])


def test_single_precision_solves() -> None:
    here = case("rich", 9, dtype=torch.float32)
    _, us, _ = here.start(gaps=False)
    state = HYBRID.init(here.problem, us.movedim(0, 1))
    after, *_ = here.program.iterate(state, 100, 1)
    while state.running:
        state = HYBRID.step(here.problem, state)
    close(after.cost, state.cost, 1e-5)
    assert (after.status >= 0).all()


def test_rules_are_read_at_run_time() -> None:
    here = case("rich", 5)
    _, us, _ = here.start(gaps=False, size=1.5)
    state = HYBRID.init(here.problem, us.movedim(0, 1))
    after, *_ = here.program.iterate(state, 10, 1, rules=Rules(max_iterations=1))
    assert set(after.status.tolist()) == {int(ocp.Status.MAX_ITERATIONS)}
    assert set(after.iterations.tolist()) == {1}
