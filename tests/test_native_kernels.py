"""The native engine's kernels, with models written by hand, against the eager engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from native_cases import F64, KINDS, Case, case, needs_compiler
from references import close

from ocp.engines import Expansion, Policy
from ocp.engines.riccati import costates, linear_rollout

pytestmark = needs_compiler


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


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
