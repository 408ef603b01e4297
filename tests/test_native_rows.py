"""The sweep of a single problem, whose matrices are rows of whole packs: sizes that are none."""

from __future__ import annotations

import pytest
import torch
from native_cases import F64, needs_compiler
from native_text import small
from references import close

import ocp
from ocp.engines.eager import Eager
from ocp.engines.native import emit
from ocp.engines.native.engine import make_native

pytestmark = needs_compiler

SIZES = [(1, 1), (3, 2), (2, 5), (7, 1), (6, 3), (10, 5), (13, 2)]  # the large way above 8 in all


@pytest.mark.parametrize("bounds", [False, True], ids=["free", "bounds"])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_a_sweep_does_not_depend_on_packs(n: int, m: int, bounds: bool) -> None:
    def step(x, u, t):
        turned = torch.roll(x, 1, 0)
        pushed = torch.stack([u[i % m] * (1 + 0.1 * i) for i in range(n)])
        return 0.9 * x + 0.2 * torch.sin(turned) * pushed + 0.1 * x * turned

    problem = small(step, n=n, m=m, horizon=6)
    if bounds:
        problem = problem.replace(control_bounds=([-0.02] * m, [0.03] * m))
    native, eager = make_native(problem), Eager(problem)
    g = torch.Generator().manual_seed(n + 10 * m)
    us = (0.1 * torch.randn(6, 1, m, generator=g, dtype=F64)).clamp(-0.02, 0.03)
    xs = eager.rollout(us) + 0.1 * torch.randn(7, 1, n, generator=g, dtype=F64)
    gaps, expansion = eager.gaps(xs, us), eager.expand(xs, us)
    damping = torch.full((1,), 0.3, dtype=F64)
    for curvature in (None, eager.curvature(xs, us)):
        for on_state in (False, True):
            given = expansion, us, gaps, damping, curvature, on_state
            same(native.sweep(*given), eager.sweep(*given))
    upward = expansion._replace(lz=-expansion.lz, phix=-expansion.phix)  # to the other bounds
    given = upward, us, gaps, damping, None, False
    same(native.sweep(*given), eager.sweep(*given))
    here, there = native.appraise(xs, us), eager.appraise(xs, us)
    same(here.sweep, there.sweep)
    for name in ("costates", "hus"):
        close(getattr(here, name), getattr(there, name), 1e-10)


WEIGHTS = torch.tensor([[1.0, 0.3], [0.2, 2.0], [0.7, 0.1], [1.5, 0.4], [0.9, 0.8]], dtype=F64)
COSTS = {  # l, and whether its second derivatives are the same at all stages
    "numbers": (lambda x, u, t: x[0] ** 2 + 0.3 * x[0] * u[0] + u[0] ** 2, True),
    "a tensor": (lambda x, u, t: WEIGHTS[0] @ x**2 + u[0] ** 2 + t * x[1], True),
    "weights by stage": (lambda x, u, t: WEIGHTS[t] @ x**2 + u[0] ** 2, False),
    "the stage": (lambda x, u, t: (1 + t) * x[0] ** 2 + u[0] ** 2, False),
    "the state": (lambda x, u, t: x[0] ** 4 + x[1] ** 2 + u[0] ** 2, False),
}


@pytest.mark.parametrize("name", COSTS)
def test_second_derivatives_of_the_cost_that_never_change_are_kept_once(
    name: str,
) -> None:
    stage, once = COSTS[name]
    turn = lambda x, u, t: x + 0.1 * torch.stack((torch.sin(x[1]) + u[0], x[0] * u[0] - x[1]))
    cost = ocp.FunctionCost(stage, lambda x: x @ x)
    problem = ocp.Problem(turn, cost, torch.tensor([0.4, -0.3], dtype=F64), 5, 1)
    assert (emit.model(problem).text.count("OCP_SAME_HESSIAN 1") == 1) == once
    native, eager = make_native(problem), Eager(problem)
    us = 0.3 * torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    xs = eager.rollout(us)
    same(native.appraise(xs, us).sweep, eager.appraise(xs, us).sweep)
    given = eager.expand(xs, us)  # given ones are of each stage
    given = given._replace(lzz=given.lzz * torch.arange(1, 6, dtype=F64)[:, None, None, None])
    damping = torch.full((1,), 0.3, dtype=F64)
    arguments = given, us, None, damping, None, False
    same(native.sweep(*arguments), eager.sweep(*arguments))


def same(actual, expected) -> None:
    assert (expected.failed < 0).all()
    close(actual.policy.k, expected.policy.k, 1e-9)
    close(actual.policy.K, expected.policy.K, 1e-9)
    for name in ("vx", "vxx", "slope", "curvature", "residual", "failed"):
        close(getattr(actual, name), getattr(expected, name), 1e-9)
