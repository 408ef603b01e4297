"""The table of second derivatives that a single problem's sweep reads, against torch.func."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from native_text import Context, points, run, small

from ocp.engines import eager
from ocp.engines.native import build, emit
from ocp.problems import REGISTRY


def sums(x, u, t):
    """A constant second derivative, shared entries, a zero row; n = 3, m = 2."""
    return torch.stack((x[0] * u[1], torch.sin(x[0] * x[1]) + torch.sin(x[0] * x[1]) * u[0], x[2]))


MODELS = {name: REGISTRY[name].factory for name in ("pendulum", "cartpole", "acrobot")}
MODELS["sums"] = lambda: small(sums)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_times_v_is_the_contraction(name, monkeypatch):
    monkeypatch.setattr("ocp.engines.native.second.GAIN", np.inf)
    monkeypatch.setattr("ocp.engines.native.second.LONGER", np.inf)
    monkeypatch.setattr("ocp.engines.native.second.LONGEST", np.inf)
    problem = MODELS[name]()
    program = emit.model(problem)
    size = int(re.search(r"#define OCP_TABLE (\d+)", program.text).group(1))
    x, u, t, v, rows = points(problem, 3, seed=0)
    dat = program.per_problem(problem).numpy()[rows.numpy()]
    given = {"x": x.numpy().T, "u": u.numpy().T, "v": v.numpy().T}
    given["c"] = Context(t.numpy(), program.shared(problem).numpy(), dat)
    (S,) = run(program.text, "f_second", given, {"S": size})
    d = problem.state_dims[0] + problem.control_dims[0]
    (H,) = run(program.text, "f_combined", {"S": S.T, "v": given["v"]}, {"H": d * d})
    for k in range(3):
        f = eager.contracted_hessian(problem.f)
        expected = f(x[k], u[k], t[k], dict(problem.parameters), v[k]).reshape(-1)
        np.testing.assert_allclose(H[k], expected, rtol=1e-11, atol=1e-11)


def test_a_batch_has_no_table_and_a_single_problem_one_where_it_is_worth_it():
    def tabled(problem):
        return "OCP_TABLE" in emit.model(problem).text

    x0 = torch.zeros(4, dtype=torch.float64)
    assert tabled(REGISTRY["cartpole"].factory(x0=x0))
    assert not tabled(REGISTRY["cartpole"].factory(x0=x0.repeat(2, 1)))
    assert not tabled(REGISTRY["quadrotor3d"].factory())
    assert not tabled(small(lambda x, u, t: x + u.sum()))  # linear: nothing to keep


def test_each_part_of_a_program_is_compiled_by_its_own_length():
    long, hard = "const V " * (build.LONG + 1), ("-O2",)
    parts = lambda second, rest: build.efforts(
        f'void f_contracted({second}#include "contracted.h"\n#if OCP_PART\n{rest}'
    )
    assert parts("", "") == [hard, hard]
    assert parts(long, "") == [build.QUICK, hard]
    assert parts("", long) == [hard, build.QUICK]
    assert build.efforts(long) == [build.QUICK]
