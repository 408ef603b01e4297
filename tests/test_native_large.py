"""Large models: tapes of tangents instead of scalar code, and layers that stay loops."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from native_cases import needs_compiler
from native_text import points, small
from random_models import random_problem
from torch import nn

import ocp
from ocp.engines import Eager
from ocp.engines.native import build, compiled, emit
from ocp.engines.native.duals import COMBINE, MATVEC, ROW, Coder
from ocp.engines.native.engine import Native

F64 = torch.float64
NEVER = 10**9  # operations up to which code is scalar


# -- the tape, run in NumPy ------------------------------------------------------------------------
def leaves(program, problem, x, u, t, v, rows):
    """Values of the leaves at K points."""
    par, dat = program.shared(problem).numpy(), program.per_problem(problem).numpy()
    given = {"x": x.numpy().T, "u": u.numpy().T, "v": v.numpy().T}

    def value(leaf):
        kind, *rest = leaf
        if kind == "t":
            return t.numpy()
        if kind in given:
            return given[kind][rest[0]]
        block = program.par if kind == "par" else program.dat
        at = block.places()[rest[0]] + rest[1] + (rest[2] * t.numpy() if rest[2] else 0)
        return par[at] if kind == "par" else dat[rows.numpy(), at]

    return value


def matrix(program, problem, name, width, at):
    """The matrix of derivatives of a function at K points, (K, size): scalar code or tape."""
    function, value = program.functions[name], leaves(program, problem, *at)
    ids = function.outputs[-1].ids
    count = len(at[0])
    numbers = np.array(
        [np.broadcast_to(w, (count,)) for w in program.graph.evaluate(ids, value)], dtype=float
    ).reshape(len(ids), count)
    if function.tape is None:
        return numbers.T
    tape = function.tape
    coder = Coder(tape, program.par.places(), width).run()
    t = np.full((coder.memory.size, width, count), np.nan)
    units = -(-tape.directions // width)
    out = np.full((len(tape.rows), tape.directions, count), np.nan)
    code = iter(coder.code)
    take = lambda size=None: next(code) if size is None else [next(code) for _ in range(size)]
    while (op := take()) in (COMBINE, ROW, MATVEC):
        if op == MATVEC:
            end, begin, size, place, r, r_step, c, c_step = take(8)
            shared = program.shared(problem).numpy()
            W = np.array([[shared[place + i * r_step + j * c_step] for j in range(c)]
                          for i in range(r)])  # fmt: skip
            X = t[begin : begin + c * size].reshape(c, -1)
            t[end : end + r * size] = (W @ X).reshape(r * size, width, count)
            continue
        target, size, whole, parts, ones = take(5)
        y = np.zeros((size, width, count))
        for _ in range(whole):
            a, p = take(2)
            y += numbers[p] * t[a : a + size]
        for _ in range(parts):
            a, p, inner, where = take(4)
            y[coder.maps[where : where + inner]] += numbers[p] * t[a : a + inner]
        for _ in range(ones):
            lane, p = take(2)
            y[lane // width, lane % width] += numbers[p]
        if op == COMBINE:
            t[target : target + size] = y
        else:
            assert size == units
            out[target] = y.reshape(-1, count)[: tape.directions]
    if tape.symmetric:
        lower = np.tril_indices(tape.directions)
        out[lower[1], lower[0]] = out[lower]
    return out.reshape(-1, count).T


def forms_agree(problem, seed=0, tolerance=1e-12):
    scalar, tape = (emit.model(problem, scalar=most) for most in (NEVER, 0))
    at = points(problem, 4, seed)
    for name in ("f_jacobian", "f_contracted", "l_expansion", "phi_expansion"):
        assert scalar.functions[name].tape is None
        expected = matrix(scalar, problem, name, 1, at)
        scale = np.abs(expected).max(initial=1.0)
        for width in (1, 4):
            actual = matrix(tape, problem, name, width, at)
            np.testing.assert_allclose(
                actual, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name
            )
    return tape


@pytest.mark.parametrize("seed", range(40))
def test_both_forms_of_random_models_agree(seed):
    forms_agree(random_problem(seed), seed)


def coupled(n, m, T, batch=None, dtype=F64, **rest):
    """Wide supports, linear systems, a kink and a table over the stages."""
    g = torch.Generator().manual_seed(n)
    A = torch.randn(n, n, generator=g, dtype=dtype) / n**0.5
    B = torch.randn(n, m, generator=g, dtype=dtype)
    reference = torch.randn(T + 1, n, generator=g, dtype=dtype)
    x0 = torch.randn(*([] if batch is None else [batch]), n, generator=g, dtype=dtype) / 2

    def f(x, u, t):
        mixed = torch.tanh(A @ x + B @ u) * torch.cos(x.roll(1)) + reference[t] * x.flip(0) * u[0]
        mass = torch.diag(2 + x[:3] ** 2) + torch.outer(x[1:4], x[2:5])
        pull = torch.linalg.solve(mass, u[:1] * x[:3])
        return 0.9 * x + 0.1 * mixed + 0.1 * torch.cat((pull, torch.relu(x[3:])))

    def l(x, u, t):
        return torch.log1p((x - reference[t]) @ (x - reference[t])) + (u @ u) * (1 + x[0] ** 2) / 5

    phi = lambda x: torch.cosh(x / 2).sum() + x[0] * x[1] * x[2]
    return ocp.Problem(f, ocp.FunctionCost(l, phi), x0, T, m, **rest)


def chain(n, m, T):
    """Sparse: neighbours alone see each other."""

    def ode(x, u):
        e = torch.diff(torch.nn.functional.pad(x, (1, 1)))
        push = torch.nn.functional.pad(u, (0, n - m))
        return torch.diff(torch.sin(e) + e**3) + push * torch.cos(x)

    f = ocp.rk4(lambda x, u, t, p: ode(x, u), 0.1)
    return small(lambda x, u, t: f(x, u, t, {}), n=n, m=m, horizon=T)


def test_both_forms_of_larger_models_agree():
    forms_agree(coupled(11, 3, 4), tolerance=1e-11)
    forms_agree(chain(9, 2, 4), tolerance=1e-11)


def test_a_tape_stores_what_can_differ_from_zero():
    tape = emit.model(chain(30, 2, 4), scalar=0).functions["f_jacobian"].tape
    assert tape is not None
    sizes = [step.support.bit_count() for step in tape.steps]
    assert max(sizes) <= 11 and np.mean(sizes) < 8 and tape.directions == 32
    coder = Coder(tape, [], 1).run()
    assert coder.memory.size < sum(sizes)  # places are used again


# -- compiled ------------------------------------------------------------------------------------
def with_tapes(problem, monkeypatch):
    monkeypatch.setattr(emit, "SCALAR", 0)
    made = compiled.make(problem, (problem.dynamics, problem.cost))
    assert all(f.tape for f in made.program.functions.values() if f.matrix)
    return Native(problem, made)


def trajectory(problem):
    g = torch.Generator().manual_seed(3)
    T, B, m = problem.horizon, problem.batch, problem.control_dims[0]
    us = 0.3 * torch.randn(T, B, m, generator=g, dtype=torch.float64).to(problem.x0.dtype)
    return Eager(problem).rollout(us), us


def near(actual, expected, tolerance):
    scale = float(expected.abs().max()) + 1e-300
    assert float((actual - expected).abs().max()) <= tolerance * scale


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "dtype", "bounded"),
    [(None, F64, False), (5, F64, True), (None, torch.float32, False)],
)
def test_compiled_tapes_equal_eager(batch, dtype, bounded, monkeypatch):
    rest = {"control_bounds": (torch.full((3,), -0.4), torch.full((3,), 0.5))} if bounded else {}
    problem = coupled(11, 3, 7, batch, dtype, **rest)
    native, eager = with_tapes(problem, monkeypatch), Eager(problem)
    xs, us = trajectory(problem)
    tolerance = 1e-11 if dtype == F64 else 1e-4
    ours, theirs = native.expand(xs, us), eager.expand(xs, us)
    for name in ("fz", "lz", "lzz", "phix", "phixx"):
        near(getattr(ours, name), getattr(theirs, name), tolerance)
    vs = torch.randn(8, problem.batch, 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    along = native.curvature_along(xs, us, vs)
    for t in (0, 3, 6):
        expected = eager.curvature_along(xs, us, vs)(t, vs[t + 1])
        near(along(t, vs[t + 1]), expected, tolerance)
    damping = torch.full((problem.batch,), 2.0, dtype=dtype)
    second = native.curvature(xs, us), eager.curvature(xs, us)
    sweeps = [
        e.sweep(theirs, us, None, damping, c) for e, c in zip((native, eager), second, strict=True)
    ]
    for name in ("vx", "vxx", "slope"):
        near(getattr(sweeps[0], name), getattr(sweeps[1], name), 100 * tolerance)
    near(sweeps[0].policy.K, sweeps[1].policy.K, 100 * tolerance)


@needs_compiler
@pytest.mark.parametrize("method", ["ilqr", "ddp"])
def test_a_large_model_is_solved_as_by_eager(method):
    problem = coupled(20, 6, 5)
    assert "tangents" in problem.compile_report()
    fast, slow = (
        ocp.solve(problem, method=method, engine=e, tolerance=1e-9) for e in ("native", "eager")
    )
    assert fast.engine == "native" and int(fast.status) == int(slow.status)
    near(fast.cost, slow.cost, 1e-10)
    near(fast.controls, slow.controls, 1e-6)


# -- networks ------------------------------------------------------------------------------------
def network(sizes, seed=0):
    torch.manual_seed(seed)
    layers = []
    for k, r in pairwise(sizes):
        layers += [nn.Linear(k, r, dtype=F64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


WAYS = {
    "a sample": lambda net, z: net(z),
    "a batch of one": lambda net, z: net(z[None])[0],
    "matrix times vector": lambda net, z: net[2].weight @ torch.tanh(net[0].weight @ z),
    "vector times matrix": lambda net, z: torch.tanh(z @ net[0].weight.T) @ net[2].weight.mT,
    "two columns": lambda net, z: (
        net[2].weight @ torch.tanh(net[0].weight @ torch.stack((z, z * z), 1))
    ).sum(1),
}


@pytest.mark.parametrize("way", WAYS)
def test_layers_stay_loops_and_differentiate_in_both_forms(way):
    net = network((4, 17, 4))  # 68 weights a layer
    apply = WAYS[way]
    problem = small(lambda x, u, t: x + 0.1 * apply(net, torch.cat((x, u)))[:3], n=3, m=1)
    program = forms_agree(problem)
    assert "layer(shared + at[0], 17, 4, 4, 1" in program.text and "tanh(" in program.text
    at = points(problem, 3, 1)
    x, u, t, v, _ = at
    jacobian = torch.func.jacrev(lambda z: problem.f(z[:3], z[3:], t[0], {}))
    hessian = torch.func.hessian(lambda z, v: v @ problem.f(z[:3], z[3:], t[0], {}))
    F, H = (matrix(program, problem, name, 1, at) for name in ("f_jacobian", "f_contracted"))
    for k in range(3):
        z = torch.cat((x[k], u[k]))
        np.testing.assert_allclose(F[k], jacobian(z).detach().reshape(-1), atol=1e-12)
        np.testing.assert_allclose(H[k], hessian(z, v[k]).detach().reshape(-1), atol=1e-12)


def test_few_weights_and_weights_that_lie_unevenly_are_scalars():
    W = torch.randn(9, 9, dtype=F64)
    few = small(lambda x, u, t: x + W[:3, :3] @ x + u.sum())
    rows = [0, 1, 3, 4, 5, 6, 7, 8]
    uneven = small(lambda x, u, t: x + (W[rows][:, :8] @ torch.cat((x, x, u)))[:3])
    even = small(lambda x, u, t: x + (W[1:, :8] @ torch.cat((x, x, u)))[:3])
    for problem, loops in ((few, False), (uneven, False), (even, True)):
        assert ("matvec<" in forms_agree(problem).text) == loops


@needs_compiler
def test_a_compiled_network_sees_new_weights_without_compiling(monkeypatch):
    net = network((5, 32, 32, 2))

    def f(x, u, t):
        return x + 0.1 * torch.cat((x[2:], net(torch.cat((x, u)))))

    problem = small(f, n=4, m=1, horizon=9)
    xs, us = trajectory(problem)
    near(Native(problem, compiled.compiled_for(problem)).rollout(us), xs, 1e-12)
    with torch.no_grad():
        for w in net.parameters():
            w.mul_(0.7)
    monkeypatch.setattr(build, "load", lambda text: pytest.fail("compiled again"))
    native, eager = Native(problem, compiled.compiled_for(problem)), Eager(problem)
    xs, us = trajectory(problem)
    near(native.rollout(us), xs, 1e-12)
    near(native.expand(xs, us).fz, eager.expand(xs, us).fz, 1e-12)
    fast, slow = (ocp.solve(problem, method="ddp", engine=e) for e in ("native", "eager"))
    near(fast.cost, slow.cost, 1e-9)
