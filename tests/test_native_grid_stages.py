"""Stagewise problems by programs for a GPU, run thread by thread on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from grid_calls import compiled
from models import guess, resizing, rich
from native_cases import F64, needs_compiler
from references import close
from stagewise_models import random_stagewise
from torch import Tensor

import ocp
from ocp import engines
from ocp.engines.native.engine import engine_of, native_of
from ocp.engines.native.grid import Form

pytestmark = needs_compiler

THREADS, RANKS, TEAM = Form(False, 4), Form(False, 8, 2), Form(True, 8)
LIMITS = [[torch.full((m,), s, dtype=F64) for m in (1, 0, 2, 3)] for s in (-0.2, 0.15)]


@cache
def problem(name: str) -> ocp.Problem:
    if name == "resizing":
        return resizing(3, control_bounds=tuple(LIMITS))
    return random_stagewise(1, 5, 6, True)  # sizes alike, functions not


@pytest.fixture(params=[("resizing", THREADS), ("resizing", TEAM), ("alike", RANKS)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[ocp.Problem, Any, Any]:
    name, how = request.param
    p = problem(name)
    return p, native_of(p, compiled(p, how)), engines.make(p, "native")


def equal(actual: Any, expected: Any) -> None:
    """To rounding; lists over t, tuples or tensors."""
    if isinstance(expected, Tensor):
        close(actual.to(F64), expected.to(F64), 1e-12)
    elif isinstance(expected, tuple | list):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            equal(a, e)
    else:
        assert actual == expected


def controls(p: ocp.Problem) -> Any:
    us = guess(p, 5, 0.1)
    return torch.stack(us) if p.uniform else us


def test_pieces_of_a_stagewise_problem_equal_those_of_the_cpu(case):
    p, ours, theirs = case
    assert ours.name == "cuda" and theirs.name == "native"
    us = controls(p)
    xs = theirs.rollout(us)
    equal(ours.rollout(us), xs)
    moved = [x + 0.1 for x in xs] if isinstance(xs, list) else xs + 0.1
    equal(ours.gaps(moved, us), theirs.gaps(moved, us))
    equal(ours.total_cost(moved, us), theirs.total_cost(moved, us))
    expansion = theirs.expand(moved, us)
    equal(tuple(ours.expand(moved, us)), tuple(expansion))
    ps = theirs.costates(expansion)
    equal(ours.costates(expansion), ps)
    along = theirs.curvature_along(moved, us, ps[0])
    for given in (None, along):
        sweeps = [
            e.sweep(expansion, us, None, torch.full((p.batch,), 0.4, dtype=F64), given)
            for e in (ours, theirs)
        ]
        equal(*(tuple(s)[1:] for s in sweeps))
        equal(*(tuple(s.policy) for s in sweeps))
    equal(tuple(ours.appraise(xs, us))[1:], tuple(theirs.appraise(xs, us))[1:])


@pytest.mark.parametrize("method", ["ilqr", "ddp"])
def test_steps_of_a_stagewise_problem_equal_those_of_the_cpu(case, method):
    p, ours, theirs = case
    solver = ocp.make_solver(method, engine="native")
    us = controls(p)
    state = solver.init(p, us.movedim(0, 1) if isinstance(us, Tensor) else us)
    for _ in range(3):
        other = solver.steps(p, state._replace(engine=ours), 1)
        state = solver.steps(p, state._replace(engine=theirs), 1)
        for name in ("xs", "us", "cost", "damping", "residual"):
            equal(getattr(other, name), getattr(state, name))
        for name in ("status", "iterations", "rollouts", "sweeps"):
            assert getattr(other, name).tolist() == getattr(state, name).tolist(), name
        if not state.running:
            break


# -- shared controls -------------------------------------------------------------------------------
def sharing(name: str) -> ocp.Problem:
    if name == "resizing":
        return resizing(5, shared_controls=True, control_bounds=tuple(LIMITS))
    return rich(6, 5, shared_controls=True)


@pytest.fixture(params=[("rich", THREADS), ("rich", TEAM), ("resizing", TEAM)], ids=str)
def shared(request: pytest.FixtureRequest) -> tuple[ocp.Problem, Any, Any]:
    name, how = request.param
    p = sharing(name)
    return p, engine_of(p, compiled(p, how)), engines.make(p, "native")


@pytest.mark.parametrize("method", ["ilqr", "ddp", "state"])
def test_steps_with_shared_controls_equal_those_of_the_cpu(shared, method):
    p, ours, theirs = shared
    assert ours.name == "cuda" and theirs.name == "native"
    options: dict[str, Any] = {}
    if method == "state":
        rules = ocp.solvers.Rules(damping_start=0.7)
        method, options = "ilqr", {"regularisation": "state", "rules": rules}
    solver = ocp.make_solver(method, engine="native", **options)
    us = [u[0] for u in guess(p, 5, 0.1)]
    xs = theirs.rollout(torch.stack(us)[:, None] if p.uniform else [u[None] for u in us])
    moved = [x.reshape(p.samples, -1) + 0.05 for x in xs]
    start = (torch.stack(us), torch.stack(moved, 1)) if p.uniform else (us, moved)
    state = solver.init(p, *start)
    for _ in range(3):
        other = solver.steps(p, state._replace(engine=ours), 1)
        state = solver.steps(p, state._replace(engine=theirs), 1)
        for name in ("xs", "us", "cost", "gap", "damping", "residual"):
            equal(getattr(other, name), getattr(state, name))
        for name in ("status", "iterations", "rollouts", "sweeps"):
            assert getattr(other, name).tolist() == getattr(state, name).tolist(), name
        if not state.running:
            break


def test_the_value_model_of_shared_controls_equals_that_of_the_cpu(shared):
    p, ours, theirs = shared
    us = torch.stack([u[:1] for u in guess(p, 5, 0.1)]) if p.uniform else guess(p, 5, 0.1)
    us = us if p.uniform else [u[:1] for u in us]
    xs = theirs.rollout(us)
    damping = torch.full((1,), 0.3, dtype=F64)
    policies = []
    for engine in (ours, theirs):
        e = engine.expand(xs, us)
        table = engine.curvature_along(xs, us, engine.costates(e)[0])
        found = [engine.sweep(e, us, None, damping, c) for c in (None, table)]
        policies.append([(*s[1:], *s.policy) for s in found])
    equal(*policies)
    backwards = ours.rows.library
    backwards.backwards = True  # neither does the order of threads matter
    e = ours.expand(xs, us)
    again = ours.sweep(e, us, None, damping, None)
    backwards.backwards = False
    assert all(torch.equal(a, b) for a, b in zip(again.policy.k, policies[0][0][6], strict=True))
