"""The second-order table that a single problem's sweep reads, against torch.func."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from native_text import Context, points, run, small

from ocp.engines import eager
from ocp.engines.native import build, emit, second
from ocp.engines.native.forms import operations
from ocp.engines.native.recorder import Recorder
from ocp.engines.native.trace import described, trace_problem
from ocp.problems import REGISTRY


def sums(x, u, t):
    """A constant second derivative, shared entries, a zero row; n = 3, m = 2."""
    return torch.stack((x[0] * u[1], torch.sin(x[0] * x[1]) + torch.sin(x[0] * x[1]) * u[0], x[2]))


def curves(x, u, t):
    """Every smooth function of the compiler, its arguments inside its domain; n = 2, m = 1."""
    a, b = 0.3 * torch.sin(x[0] * x[1]), 1.5 + torch.cos(x[1] + u[0])  # |a| < 0.4, b > 0.4
    unary = (
        torch.tan, torch.asin, torch.acos, torch.atan, torch.sinh, torch.cosh, torch.tanh,
        torch.asinh, torch.atanh, torch.exp, torch.expm1, torch.log1p, torch.erf, torch.sigmoid,
        torch.square, torch.neg,
    )  # fmt: skip
    positive = (torch.sqrt, torch.rsqrt, torch.log, torch.reciprocal)
    smooth = sum(f(a) * (k + 1) for k, f in enumerate(unary)) + torch.acosh(1.1 + b)
    both = a / b + a * b + torch.atan2(a, b) + b**a + torch.linalg.vector_norm(torch.stack((a, b)))
    return torch.stack((smooth + both, sum(f(b) * (k + 1) for k, f in enumerate(positive)) - a))


def kinks(x, u, t):
    """Choices, with arguments that depend on each other; n = 3, m = 2."""
    a, b = x[0] * x[1], torch.sin(x[0]) * u[0]
    return torch.stack(
        (
            torch.where(x[2] > 0, a * a, b * a) + torch.abs(a) * b,
            torch.maximum(a * b, b) * torch.minimum(a, x[2]) + torch.relu(b) ** 2,
            torch.amax(torch.stack((a * a, b * x[2], u[1] * a)))
            + torch.clamp(a * b, -0.2, 0.3) * b,
        )
    )


MODELS = {name: REGISTRY[name].factory for name in ("pendulum", "cartpole", "acrobot")}
MODELS |= {"sums": lambda: small(sums), "curves": lambda: small(curves, n=2, m=1)}
MODELS |= {"kinks": lambda: small(kinks)}


def runge_kutta(x, u, t):
    """What passes from stage to stage are a choice, a product and a control; n = 3, m = 2."""

    def slope(y):
        a, b = torch.sin(y[0] * u[0]), torch.where(y[1] > 0, y[1] * y[2], torch.cos(y[2]) * t)
        return torch.stack((a * b + y[2] / (2 + y[0] ** 2), y[0] * y[1] - b, u[1] * a - y[2]))

    first = slope(x)
    second = slope(x + 0.3 * first)
    third = slope(x + 0.3 * second)
    return x + 0.1 * (first + 2 * second + third)


MODELS["runge_kutta"] = lambda: small(runge_kutta)
WAYS = {
    name: getattr(second, f"by_{name}")
    for name in ("pushing", "tangents", "entries", "passages", "chain")
}
WITHOUT = {  # models without passages
    (name, way) for name in ("pendulum", "sums", "curves") for way in ("passages", "chain")
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_the_table_and_v_give_the_contraction(name, way, monkeypatch):
    monkeypatch.setattr("ocp.engines.native.second.table", lambda *given: WAYS[way](*given[:4]))
    problem = MODELS[name]()
    program = emit.model(problem)
    assert ("OCP_TABLE" in program.text) == ((name, way) not in WITHOUT)
    if (name, way) in WITHOUT:
        return
    size = int(re.search(r"#define OCP_TABLE (\d+)", program.text).group(1))
    x, u, t, v, rows = points(problem, 3, seed=0)
    dat = program.per_problem(problem).numpy()[rows.numpy()]
    given = {"x": x.numpy().T, "u": u.numpy().T, "v": v.numpy().T}
    given["c"] = Context(t.numpy(), program.shared(problem).numpy(), dat)
    n, d = problem.state_dims[0], problem.state_dims[0] + problem.control_dims[0]
    sizes = {"S": size}
    if way in ("passages", "chain"):
        sizes["F"] = n * d
    if way == "chain":
        stored = int(re.search(r"#define OCP_ROWS (\d+)", program.text).group(1))
        sizes["Y"] = stored * d
    found = dict(zip(sizes, run(program.text, "f_second", given, sizes), strict=True))
    if "F" in found:
        (expected,) = run(program.text, "f_jacobian", given, {"F": n * d})
        np.testing.assert_allclose(found["F"], expected, rtol=1e-12, atol=1e-12)
    ready = {"S": found["S"].T, "v": given["v"]}
    if way == "chain":
        count = int(re.search(r"pairs = (\d+)", program.text).group(1))
        (M,) = run(program.text, "f_combined", ready, {"M": count})
        H = along_chain(program.text, found["Y"].reshape(3, stored, d), M)
    else:
        (H,) = run(program.text, "f_combined", ready, {"H": d * d})
    for k in range(3):
        f = eager.contracted_hessian(problem.f)
        expected = f(x[k], u[k], t[k], dict(problem.parameters), v[k]).reshape(-1)
        np.testing.assert_allclose(H[k], expected, rtol=1e-11, atol=1e-11)


def along_chain(text, Y, M):
    """Y' M Y, (3, d * d), by the structure that is written for chain.h, which it has to be."""
    numbers = lambda line: [float(v) for v in re.findall(r"[-+\w.]+", line)]
    block = re.search(r"Real fixed\[\d+\]\[wide\] = {\n(.*?)  };", text, re.S).group(1)
    fixed = [numbers(line) for line in block.splitlines()]
    Y = np.concatenate([Y, *(np.broadcast_to(row, (3, 1, len(row))) for row in fixed)], axis=1)
    full = np.zeros((3, Y.shape[1], Y.shape[1]))
    for i, terms in re.findall(r"along<(\d+)>\((.*)\);", text):
        for j, k in re.findall(r"Term<(\d+), (\d+)>", terms):
            full[:, int(i), int(j)] = M[:, int(k)]
    np.testing.assert_array_equal(full, full.transpose(0, 2, 1))
    masks = {
        name: [int(v) for v in re.findall(r"(\d+)ull", line)]
        for name, line in re.findall(r"(columns|reach)\[\] = {(.*)}", text)
    }
    places = [tuple(map(int, v.split(", "))) for v in re.findall(r"row<(.*)>\(\)", text)]
    assert [c for c, *_ in places] == list(range(Y.shape[2]))
    for c, *rows in places:
        assert rows == [i for i in range(Y.shape[1]) if masks["columns"][i] >> c & 1]
        assert not Y[:, [i for i in range(Y.shape[1]) if i not in rows], c].any()
    bits = 1 << np.arange(Y.shape[2])
    for mask, row in zip(masks["reach"], (full @ Y).transpose(1, 0, 2), strict=True):
        assert not row[:, (mask & bits) == 0].any()
    return (Y.transpose(0, 2, 1) @ full @ Y).reshape(3, -1)


def test_the_way_with_the_least_to_do_is_taken():
    problem = REGISTRY["cartpole"].factory()
    recorder = Recorder(problem.x0.dtype, problem.horizon, 10**6, described, problem)
    g, f = recorder.graph, trace_problem(problem, recorder)["f"].tolist()
    found = second.table(g, f, 4, 1, 500)
    assert to_do(g, found) == min(to_do(g, way(g, f, 4, 1)) for way in WAYS.values())
    assert not any(g.data[i][0] == "v" for i in g.reachable(found.ahead) if g.ops[i] == "leaf")


def to_do(g, s):
    """Operations of a stage, where f_z by itself has 500 and four columns are a pack."""
    first = s.first or range(0)
    ahead = operations(g, [*s.entries, *first, *(e for row in s.rows for e in row.values())])
    ahead += 0 if s.first else 500
    Y = np.array([[j in row for j in range(5)] for row in s.rows]).reshape(len(s.rows), 5)
    packs = np.stack((Y[:, :4].any(1), Y[:, 4:].any(1)), axis=1).sum(1)
    inner = sum(packs[b] + (packs[a] if a != b else 0) for a, b in s.pairs)
    outer = Y[:, :4].sum() + 2 * Y[:, 4:].sum()
    rows = 2 * (inner + outer) + 4 * packs.sum()
    return ahead / 4 + len(s.entries) + operations(g, s.combined) + rows


def test_a_batch_has_no_table_and_a_single_problem_one_where_it_is_worth_it():
    def tabled(problem):
        return "OCP_TABLE" in emit.model(problem).text

    x0 = torch.zeros(4, dtype=torch.float64)
    assert tabled(REGISTRY["cartpole"].factory(x0=x0))
    assert not tabled(REGISTRY["cartpole"].factory(x0=x0.repeat(2, 1)))
    assert not tabled(small(lambda x, u, t: x + u.sum()))  # linear: nothing to keep


def test_each_part_of_a_program_is_compiled_by_its_own_length():
    long, hard = build.STATEMENT * (build.LONG + 1), ("-O2",)
    parts = lambda second, rest: build.efforts(
        f'void f_contracted({second}#include "contracted.h"\n#if OCP_PART\n{rest}'
    )
    assert parts("", "") == [hard, hard]
    assert parts(long, "") == [build.QUICK, hard]
    assert parts("", long) == [hard, build.QUICK]
    assert build.efforts(long) == [build.QUICK]
