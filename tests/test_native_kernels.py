"""The native engine's kernels, with models written by hand, against the eager engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import native_model as texts
import pytest
import torch
from models import cartpoles, guess, rich
from native_calls import Program
from references import close
from torch import Tensor

import ocp
from ocp.engines import Eager, Expansion, Policy
from ocp.engines.native import build
from ocp.engines.riccati import costates, linear_rollout
from ocp.solvers.decide import Rules
from ocp.solvers.dynamic_programming import DDP, ILQR

F64 = torch.float64
try:
    build.compiler()
    missing = ""
except build.BuildError as error:
    missing = str(error)
pytestmark = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.MonkeyPatch().setenv("OCP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def broad(batch: int, horizon: int, seed: int = 0) -> ocp.Problem:
    """n = 2, m = 3, no parameters; what `texts.BROAD` says in C++."""

    def f(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
        first = 0.9 * x[0] + torch.sin(x[1] * u[0]) + 0.3 * u[2]
        return torch.stack((first, x[0] * u[1] + 0.5 * torch.cos(u[2]) - 0.4 * x[1]))

    def l(x: Tensor, u: Tensor, t: Tensor) -> Tensor:
        cross = 0.2 * x[0] * u[1] + 0.1 * u[0] * u[2]
        return 0.5 * (x @ x) + 0.4 * (u @ u) + 0.3 * torch.sin(u).sum() + cross

    cost = ocp.FunctionCost(l, lambda x: torch.cosh(x[0] - 1) + x[1] ** 2)
    g = torch.Generator().manual_seed(seed)
    return ocp.Problem(f, cost, torch.randn(batch, 2, generator=g, dtype=F64), horizon, 3)


LIMITS = {"rich": (-0.2, 0.25), "cartpole": (-0.4, 0.6), "broad": (-0.3, 0.2)}


@dataclass(frozen=True)
class Case:
    """A problem, its program, and the eager engine."""

    problem: ocp.Problem
    program: Program
    eager: Eager

    def start(self, gaps: bool, size: float = 0.2) -> tuple[Tensor, Tensor, Tensor | None]:
        """Feasible controls with their states; with gaps, states are moved off the roll-out."""
        p = self.problem
        us = torch.stack(guess(p, 3, size))
        if p.lower is not None:
            us = torch.minimum(torch.maximum(us, p.lower), p.upper)
        xs = self.eager.rollout(us)
        if not gaps:
            return xs, us, None
        g = torch.Generator().manual_seed(4)
        noise = torch.randn(xs.shape, generator=g, dtype=F64).to(xs.dtype)
        xs = torch.cat((xs[:1], xs[1:] + 0.1 * noise[1:]))
        return xs, us, self.eager.gaps(xs, us)


@cache
def case(
    model: str = "rich",
    batch: int = 5,
    horizon: int = 6,
    *,
    single: bool = False,
    bounds: bool = False,
    dtype: torch.dtype = F64,
    threads: int = 1,
) -> Case:
    par = dat = torch.zeros(1, 1, dtype=F64)
    if model == "rich":
        problem, text = rich(batch, horizon), texts.RICH
        p = problem.parameters
        par = torch.cat((torch.as_tensor([p["gain"]], dtype=F64), p["reference"].flatten()))
        dat = problem.per_problem["mass"][:, None]
    elif model == "cartpole":
        problem, text = cartpoles(batch, horizon), texts.CARTPOLE
        p = problem.per_problem
        dat = torch.cat((p["mass"][:, None], p["goal"]), dim=1)
    else:
        problem, text = broad(batch, horizon), texts.BROAD
        dat = torch.zeros(batch, 1, dtype=F64)
    if bounds:
        m = problem.control_dims[0]
        lo, hi = (torch.full((m,), v, dtype=F64) for v in LIMITS[model])
        problem = problem.replace(control_bounds=(lo, hi))
    if dtype != F64:
        cast = lambda data: {k: torch.as_tensor(v, dtype=dtype) for k, v in data.items()}
        problem = problem.replace(
            x0=problem.x0.to(dtype),
            parameters=cast(problem.parameters),
            per_problem=cast(problem.per_problem),
        )
    program = Program(problem, text, par, dat, single, threads)
    return Case(problem, program, Eager(problem))


KINDS = [
    pytest.param({"model": "rich", "batch": 5}, id="rich"),
    pytest.param({"model": "rich", "batch": 1, "single": True}, id="rich-single"),
    pytest.param({"model": "rich", "batch": 1}, id="rich-alone-in-a-batch"),
    pytest.param({"model": "rich", "batch": 5, "bounds": True}, id="rich-bounds"),
    pytest.param({"model": "rich", "batch": 1, "bounds": True, "single": True}, id="rich-b-single"),
    pytest.param({"model": "cartpole", "batch": 9}, id="cartpole"),
    pytest.param({"model": "cartpole", "batch": 1, "single": True}, id="cartpole-single"),
    pytest.param({"model": "cartpole", "batch": 3, "bounds": True}, id="cartpole-bounds"),
    pytest.param({"model": "broad", "batch": 6, "bounds": True}, id="broad-bounds"),
    pytest.param({"model": "broad", "batch": 1, "single": True}, id="broad-single"),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.fixture(params=[1, 6], ids=["T1", "T6"])
def both(kind: dict, request: pytest.FixtureRequest) -> Case:
    return case(**kind, horizon=request.param)


# -- pieces ----------------------------------------------------------------------------------------
def test_rollout_costs_and_gaps_equal_eager(both: Case) -> None:
    xs, us, gaps = both.start(gaps=True)
    close(both.program.rollout(us), both.eager.rollout(us), 1e-12)
    close(both.program.gaps(xs, us), gaps, 1e-12)
    lines_xs, lines_us = torch.cat((xs, 0.5 * xs), dim=1), torch.cat((us, 2 * us), dim=1)
    close(
        both.program.total_cost(lines_xs, lines_us),
        both.eager.total_cost(lines_xs, lines_us),
        1e-12,
    )


def test_expansion_equals_eager(both: Case) -> None:
    xs, us, _ = both.start(gaps=True)
    expected, actual = both.eager.expand(xs, us), both.program.expand(xs, us)
    for name in Expansion._fields[:5]:
        close(getattr(actual, name), getattr(expected, name), 1e-11)
    ps, hus = both.program.costates(expected)
    eager_ps, eager_hus = costates(expected)
    close(ps, eager_ps, 1e-11)
    close(hus, eager_hus, 1e-11)
    along = both.eager.curvature_along(xs, us, eager_ps)
    table = torch.stack([along(t, ps[t + 1]) for t in range(len(us))])
    close(both.program.contracted(xs, us, eager_ps[1:].contiguous()), table, 1e-11)


def sweeps_equal(actual: object, expected: object, tolerance: float) -> None:
    close(actual.policy.k, expected.policy.k, tolerance)
    close(actual.policy.K, expected.policy.K, tolerance)
    for name in ("vx", "vxx", "slope", "curvature", "residual", "failed"):
        close(getattr(actual, name), getattr(expected, name), tolerance)


@pytest.mark.parametrize("gaps", [False, True], ids=["closed", "gaps"])
@pytest.mark.parametrize("on_state", [False, True], ids=["control", "state"])
def test_sweep_equals_eager(both: Case, gaps: bool, on_state: bool) -> None:
    xs, us, open_gaps = both.start(gaps)
    B = both.problem.batch
    damping = 0.3 * torch.arange(B, dtype=F64) + 0.1
    expansion = both.eager.expand(xs, us)
    for full in (torch.zeros(B) > 0, torch.arange(B) % 2 == 0):
        curvature = both.eager.curvature(xs, us).within(full)
        expected = both.eager.sweep(expansion, us, open_gaps, damping, curvature, on_state)
        actual, finite = both.program.sweep(xs, us, open_gaps, damping, full, on_state)
        assert finite.all()
        assert (expected.failed < 0).any()
        sweeps_equal(actual, expected, 1e-9)


def test_sweep_of_a_given_expansion_and_known_second_order_terms(both: Case) -> None:
    xs, us, gaps = both.start(gaps=True)
    B, T = both.problem.batch, both.problem.horizon
    expansion, zero = both.eager.expand(xs, us), torch.zeros(both.problem.batch, dtype=F64)
    changed = expansion._replace(lz=1.5 * expansion.lz, fz=0.5 * expansion.fz)
    ps = costates(changed)[0]
    along = both.eager.curvature_along(xs, us, ps)
    table = torch.stack([along(t, ps[t + 1]) for t in range(T)])
    full = torch.ones(B) > 0
    plain, _ = both.program.sweep(None, us, gaps, zero, None, given=changed)
    sweeps_equal(plain, both.eager.sweep(changed, us, gaps, zero, None), 1e-9)
    known, _ = both.program.sweep(None, us, gaps, zero, full, given=changed, table=table)
    sweeps_equal(known, both.eager.sweep(changed, us, gaps, zero, along), 1e-9)


def test_an_indefinite_stage_is_named_and_its_policy_is_zero(kind: dict) -> None:
    here = case(**kind)
    xs, us, _ = here.start(gaps=False)
    expansion, B = here.eager.expand(xs, us), here.problem.batch
    lzz, n = expansion.lzz.clone(), here.problem.state_dims[0]
    lzz[3, B // 2, n:, n:] -= 50 * torch.eye(here.problem.control_dims[0], dtype=F64)
    bad, zero = expansion._replace(lzz=lzz), torch.zeros(B, dtype=F64)
    expected = here.eager.sweep(bad, us, None, zero, None)
    actual, _ = here.program.sweep(None, us, None, zero, None, given=bad)
    if "bounds" not in kind:
        assert int(actual.failed[B // 2]) == 3
        assert (actual.policy.K[3, B // 2] == 0).all()
    sweeps_equal(actual, expected, 1e-9)


@pytest.mark.parametrize("gaps", [False, True], ids=["closed", "gaps"])
@pytest.mark.parametrize("feedback", [False, True], ids=["open-loop", "feedback"])
def test_following_a_policy_equals_eager(both: Case, gaps: bool, feedback: bool) -> None:
    xs, us, open_gaps = both.start(gaps)
    zero = torch.ones(both.problem.batch, dtype=F64)
    policy = both.eager.sweep(both.eager.expand(xs, us), us, open_gaps, zero, None).policy
    policy = Policy(policy.k, policy.K if feedback else None)
    sizes = 0.5 ** torch.arange(6, dtype=F64)
    expected = both.eager.follow(xs, us, open_gaps, policy, sizes)
    actual = both.program.follow(xs, us, open_gaps, policy, sizes)
    for name in ("xs", "us", "cost"):
        close(getattr(actual, name), getattr(expected, name), 1e-10)
    expansion = both.eager.expand(xs, us)
    for a, b in zip(
        both.program.linear_rollout(expansion, policy, open_gaps),
        linear_rollout(expansion, policy, open_gaps),
        strict=True,
    ):
        close(a, b, 1e-9)


@pytest.mark.parametrize("single", [False, True])
def test_single_precision(single: bool) -> None:
    here = case("rich", 1 if single else 9, single=single, dtype=torch.float32)
    xs, us, gaps = here.start(gaps=True)
    B = here.problem.batch
    full, damping = torch.ones(B) > 0, torch.full((B,), 0.5)
    expansion = here.eager.expand(xs, us)
    expected = here.eager.sweep(expansion, us, gaps, damping, here.eager.curvature(xs, us))
    actual, _ = here.program.sweep(xs, us, gaps, damping, full)
    sweeps_equal(actual, expected, 2e-4)
    sizes = 0.5 ** torch.arange(5, dtype=torch.float32)
    trials = here.program.follow(xs, us, gaps, expected.policy, sizes)
    close(trials.cost, here.eager.follow(xs, us, gaps, expected.policy, sizes).cost, 1e-4)


def test_derivatives_that_are_not_finite_are_told_per_problem() -> None:
    here = case("rich", 5)
    xs, us, _ = here.start(gaps=False)
    xs[2, 1, 0] = torch.inf
    zero = torch.zeros(5, dtype=F64)
    _, finite = here.program.sweep(xs, us, None, zero, None)
    assert finite.tolist() == [1, 0, 1, 1, 1]


# -- iterations ------------------------------------------------------------------------------------
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


def states_equal(actual: object, expected: object, tolerance: float = 1e-9) -> None:
    for name in ("xs", "us", "cost", "gap", "start_cost", "damping", "penalty", "residual"):
        close(getattr(actual, name), getattr(expected, name), tolerance)
    for name in ("second_order", "weak", "status", "iterations", "rollouts", "sweeps"):
        assert getattr(actual, name).tolist() == getattr(expected, name).tolist(), name


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
        states_equal(actual, state)
        for column, value in state.rows[-1].items():
            close(rows[0][column][running].to(F64), value[0, running].to(F64))
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
