"""Stagewise problems by programs for a GPU, run thread by thread on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from grid_calls import compiled
from models import guess, resizing
from native_cases import F64, needs_compiler
from references import close
from stagewise_models import random_stagewise
from torch import Tensor

import ocp
from ocp import engines
from ocp.engines.native.engine import native_of
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
