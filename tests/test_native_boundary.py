"""The indirect method with compiled pieces, against the eager engine."""

from __future__ import annotations

import models
import pytest
import torch
from native_cases import F64, needs_compiler
from random_models import random_problem
from references import close
from test_native_engine import OTHERS, QUICK
from test_native_pmp import batch_of, guess

import ocp
from ocp import engines
from ocp.engines.base import Expansion, SecondOrder
from ocp.engines.native import boundary
from ocp.problems.registry import REGISTRY
from ocp.solvers.hamiltonian import flat
from ocp.solvers.indirect import Conditions, Indirect, correction, repeated

pytestmark = needs_compiler


def random_system(T: int, B: int, n: int, m: int, copies: int, dtype: torch.dtype = F64):
    """An expansion, its second-order terms and right-hand sides, all indefinite."""
    g = torch.Generator().manual_seed(T + 10 * n + m)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64).to(dtype)
    d, L = n + m, copies * B
    symmetric = lambda H: H + H.mT
    expansion = Expansion(
        0.5 * draw(T, B, n, d), draw(T, B, d), symmetric(draw(T, B, d, d)),
        draw(B, n), symmetric(draw(B, n, n)), (n,) * (T + 1),
    )  # fmt: skip
    table = symmetric(draw(T, B, d, d))
    return expansion, table, Conditions(draw(T, L, n), draw(T, L, n), draw(T, L, m), draw(L, n))


@pytest.mark.parametrize(
    "sizes", [(4, 3, 3, 2, 2), (1, 1, 1, 1, 1), (6, 2, 2, 4, 3), (3, 1, 5, 1, 5)]
)
def test_corrections_equal_the_eager_ones(sizes):
    expansion, table, rhs = random_system(*sizes)
    second = SecondOrder(lambda t, v: table[t], [], [])
    point, regular = correction(*repeated(expansion, second, sizes[-1]), rhs)
    *found, ok = boundary.correction(expansion, table, *rhs)
    assert bool(regular.all()) and bool(ok.all())
    for ours, theirs in zip(found, point, strict=True):
        close(ours, theirs, 1e-9)


def test_what_is_singular_or_not_finite_is_found_and_harms_its_problem_alone(monkeypatch):
    expansion, table, rhs = random_system(4, 4, 3, 2, 2)
    clean = boundary.correction(expansion, table, *rhs)
    lzz, fz, hu = expansion.lzz.clone(), expansion.fz.clone(), rhs.hu.clone()
    fz[3, 1, :, 3:] = 0
    lzz[3, 1] = -table[3, 1]
    lzz[3, 1, 3, 3] += 1  # Q_uu of problem 1 is singular at the last stage
    lzz[2, 2, 0, 0] = torch.nan
    hu[0, 3] = torch.inf  # of one line of problem 3, the other is line 7
    sick = expansion._replace(lzz=lzz, fz=fz)
    *found, regular = boundary.correction(sick, table, *rhs._replace(hu=hu))
    second = SecondOrder(lambda t, v: table[t], [], [])
    theirs = correction(*repeated(sick, second, 2), rhs._replace(hu=hu))[1]
    assert regular.tolist() == theirs.tolist()
    assert regular.tolist() == [True, False, False, False, True, False, False, True]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    threaded = boundary.correction(sick, table, *rhs._replace(hu=hu))
    for ours, expected, again in zip(found, clean, threaded, strict=False):
        for line in (0, 4, 7):
            assert torch.equal(ours[:, line], expected[:, line])
            assert torch.equal(again[:, line], expected[:, line])


def test_what_needs_an_exchange_of_rows_is_regular_and_nan_in_the_first_gains_is_found():
    expansion, table, rhs = random_system(3, 3, 2, 3, 1)
    lzz, fz = expansion.lzz.clone(), expansion.fz.clone()
    fz[2, 0, :, 2:] = 0
    exchange = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=F64)
    lzz[2, 0, 2:, 2:] = exchange - table[2, 0, 2:, 2:]
    lzz[0, 1, 2:, :2] = torch.nan  # Q_ux: enters nothing but K, times a change of x0 that is 0
    system = expansion._replace(lzz=lzz, fz=fz)
    second = SecondOrder(lambda t, v: table[t], [], [])
    point, regular = correction(*repeated(system, second, 1), rhs)
    *found, ok = boundary.correction(system, table, *rhs)
    assert ok.tolist() == regular.tolist() == [True, False, True]
    for ours, theirs in zip(found, point, strict=True):
        close(ours[:, [0, 2]], theirs[:, [0, 2]], 1e-9)


def compare_steps(problem: ocp.Problem, us: object, steps: int) -> None:
    eager, native = (Indirect(engine=name) for name in ("eager", "native"))
    state = eager.init(problem, us)
    compiled = engines.make(problem, "native")
    for _ in range(steps):
        if not state.running:
            return
        other = native.step(problem, state._replace(engine=compiled))
        state = eager.step(problem, state)
        for name in ("xs", "us", "costates", "gaps"):
            close(*(flat(getattr(s, name)) for s in (other, state)), 1e-8)
        for name in ("cost", "gap", "residual"):
            close(getattr(other, name), getattr(state, name), 1e-8)
        for name in ("status", "iterations", "rollouts"):
            assert getattr(other, name).tolist() == getattr(state, name).tolist(), name


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_steps_equal_the_eager_ones(name):
    problem = REGISTRY[name].factory()
    if problem.lower is not None:
        problem = problem.replace(control_bounds=None)
    compare_steps(problem, guess(problem), 3)


def test_steps_of_a_batch_and_of_a_random_model_equal_the_eager_ones():
    problem = models.rich(5)
    compare_steps(problem, guess(problem, 1.0), 4)
    other = random_problem(1)
    compare_steps(other, guess(other), 3)
    many = batch_of(other, 3)
    compare_steps(many, guess(many), 3)


def test_the_solution_says_what_was_compiled():
    assert ocp.solve(models.rich(3), "indirect", engine="native").engine == "native"
    sizes_change = ocp.solve(models.resizing(1), "indirect", engine="native", max_iterations=5)
    assert sizes_change.engine == "native + eager"
