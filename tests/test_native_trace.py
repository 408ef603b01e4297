"""Programs traced from user functions against torch.func, read from the C++ text itself."""

import math

import numpy as np
import pytest
import torch
from native_text import agree, by_text, by_torch, points, run, small, unchecked
from random_models import random_problem
from torch import nn

import ocp
from ocp.engines.native import derive, emit, ops
from ocp.engines.native.graph import Graph
from ocp.engines.native.values import Untraceable
from ocp.problems import REGISTRY
from ocp.solvers.decide import Decision, Record, Rules, decide

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


# -- whole models --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REGISTRY)
def test_every_classic_problem_equals_torch(name):
    agree(REGISTRY[name].factory(), size=0.3, count=3)


@pytest.mark.parametrize("seed", range(40))
def test_random_models_equal_torch(seed):
    agree(random_problem(seed), seed, size=0.5, tolerance=1e-11)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)],
        lambda: [nn.Linear(5, 6), nn.SiLU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)],
        lambda: [nn.Linear(5, 4, bias=False), nn.GELU(), nn.Softplus(), nn.Linear(4, 3)],
        lambda: [nn.Linear(5, 4), nn.ELU(), nn.GELU("tanh"), nn.Softmax(dim=-1), nn.Linear(4, 3)],
        lambda: [nn.Linear(5, 4), nn.LeakyReLU(), nn.Mish(), nn.LogSigmoid(), nn.Linear(4, 3)],
    ],
)  # fmt: skip
def test_networks_as_dynamics_equal_torch(layers):
    torch.manual_seed(0)
    net = nn.Sequential(*layers()).double()
    agree(small(lambda x, u, t: x + 0.1 * net(torch.cat((x, u)))))


def test_float32_problems_compute_in_float32():
    problem = REGISTRY["cartpole"].factory()
    single = problem.replace(
        x0=problem.x0.float(), parameters={k: v.float() for k, v in problem.parameters.items()}
    )
    program = agree(single, size=0.3, tolerance=2e-5)
    assert program.shared(single).dtype == torch.float32


def test_the_text_has_the_same_bytes_each_time_and_for_another_horizon():
    texts = {emit.model(REGISTRY["acrobot"].factory(horizon=T)).text for T in (100, 100, 40)}
    assert len(texts) == 1


def test_zeros_of_sparse_jacobians_cost_nothing():
    problem = small(lambda x, u, t: torch.stack((x[1], x[2] + u[0], torch.sin(x[0]))))
    program = emit.model(problem)
    assert program.nodes["f_jacobian"] == 1  # cos
    assert program.nodes["f_contracted"] == 3  # -v sin


# -- linear algebra ------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_solves_pivot_and_differentiate(n):
    """The first pivot is near zero: elimination without exchanges would lose all digits."""
    W = torch.eye(n, dtype=F64).roll(1, 0) * 2

    def f(x, u, t):
        M = W + 1e-13 * torch.eye(n, dtype=F64) + 0.1 * torch.outer(x, torch.sin(x))
        M = M - torch.diag(torch.diagonal(M)) + 1e-13 * torch.diag(x) if n > 1 else M
        return x + torch.linalg.solve(M, x * u[0] + x)

    agree(small(f, n=n, m=1), size=0.1, tolerance=1e-10)


def test_matrices_of_solves_inverses_and_factors():
    def f(x, u, t):
        M = torch.diag(2 + x * x) + 0.3 * torch.outer(x, x)
        columns = torch.linalg.solve(M, torch.stack((x, x * x, torch.cos(x)), dim=-1))
        L = torch.linalg.cholesky(M)
        back = torch.linalg.solve_triangular(L, x[:, None], upper=False)[:, 0]
        whole = torch.cholesky_solve(x[:, None], L)[:, 0]
        return columns @ x + torch.linalg.inv(M) @ x + back * whole * torch.linalg.det(M) + u[0]

    agree(small(f), size=0.3, tolerance=1e-11)


def test_implicit_steps_differentiate_the_model_themselves():
    ode = lambda x, u: torch.stack((x[1], torch.tanh(u[0]) - x[0] ** 3 - 0.1 * x[1]))
    agree(small(ocp.implicit_midpoint(ode, 0.1), n=2, m=1), size=0.3, tolerance=1e-9)


def test_products_of_every_shape():
    A, B = torch.randn(3, 3, dtype=F64), torch.randn(2, 3, 3, dtype=F64)

    def f(x, u, t):
        X = torch.outer(x, u)
        y = torch.einsum("ij,bjk,k->bi", A, B, x).sum(0) + torch.addmv(x, A, x, beta=0.5, alpha=2)
        z = torch.linalg.multi_dot((A, A, x)) + torch.bmm(B, x.expand(2, 3)[..., None])[0, :, 0]
        return y + z + X @ u + torch.linalg.cross(x, A @ x) * torch.trace(A @ X @ X.T)

    agree(small(f), size=0.3, tolerance=1e-11)


# -- kinks ---------------------------------------------------------------------------------------
KINKS = {
    "abs": lambda x: x.abs(),
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "clamp": lambda x: x.clamp(0.0, 1.0),
    "clamp_min": lambda x: x.clamp_min(1.0) * x,
    "hardtanh": lambda x: nn.functional.hardtanh(x, 0.0, 1.0),
    "maximum": lambda x: torch.maximum(x, x.flip(0)) + torch.minimum(x, x.new_zeros(())),
    "amax": lambda x: x.amax() * x + (x * x).amin(),
    "max": lambda x: x.max() + x.max(dim=0).values + x * x.min(dim=0).indices,
    "norm": lambda x: torch.linalg.vector_norm(x) * x + torch.linalg.vector_norm(x[:1]) * x,
    "norms": lambda x: torch.linalg.vector_norm(x, 1) * x + torch.linalg.vector_norm(x, math.inf),
    "leaky": lambda x: nn.functional.leaky_relu(x, 0.1),
    "elu": nn.functional.elu,
    "softplus": lambda x: nn.functional.softplus(x, 2.0, 3.0),
    "where": lambda x: torch.where(x > 0, x * x, torch.sin(x)),
    "sign": lambda x: torch.sign(x) * x + torch.floor(x) * x,
    "pow": lambda x: x**2 + x**3 + x.abs() ** 4 + (1 + x.abs()) ** -2 + x**0 + (x + 2) ** 2.5,
    "huber": lambda x: nn.functional.huber_loss(x, x * 0 + 0.5, reduction="none"),
    "smooth_l1": lambda x: nn.functional.smooth_l1_loss(x, 0 * x, beta=1.0) * x,
    "std": lambda x: torch.std(x) * x + torch.var(x, correction=0),
    "logsigmoid": nn.functional.logsigmoid,
    "atan2": lambda x: torch.atan2(x, x.flip(0)) + torch.atan2(x * 0, x),
    "prod": lambda x: x.prod() + x.cumprod(0) + x.cumsum(0),
}


@pytest.mark.parametrize("name", KINKS)
@pytest.mark.parametrize(
    "x0",
    [(0.0, 1.0, 0.5), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (-1.0, 2.0, 0.0), (-0.5, 2.5, 3.0)],
)
def test_derivatives_at_kinks_are_those_of_torch(name, x0):
    problem = small(lambda x, u, t: KINKS[name](x) + u.sum(), x0=tensor(*x0))
    program = emit.model(problem)
    at = points(problem, 1, 0, size=0.0)
    at = (*at[:3], tensor(1.0, -2.0, 0.5)[None], at[4])
    ours, theirs = by_text(program, problem, *at), by_torch(problem, *at)
    for key in ("f", "f_jacobian", "f_contracted"):
        expected = theirs[key][0]
        known = np.isfinite(expected)  # where torch has nan there is nothing to agree with
        np.testing.assert_allclose(ours[key][0][known], expected[known], atol=1e-13, err_msg=key)


def test_activations_far_out_do_not_overflow():
    f = nn.functional
    used = (f.elu, f.softplus, f.logsigmoid, f.silu, f.gelu, torch.sigmoid, torch.tanh)
    problem = small(
        lambda x, u, t: sum(act(x) for act in used) + f.softplus(x, 3.0) + u.sum(),
        x0=tensor(800.0, -800.0, 15.0),
    )
    program = emit.model(problem)
    at = points(problem, 1, 0, size=0.0)
    ours, theirs = by_text(program, problem, *at), by_torch(problem, *at)
    for key in ("f", "f_jacobian", "f_contracted"):
        np.testing.assert_allclose(ours[key][0], theirs[key][0], atol=1e-13, err_msg=key)


def test_square_roots_at_zero_have_infinite_slope():
    problem = small(lambda x, u, t: torch.sqrt(x) + u.sum(), x0=tensor(0.0, 0.0, 1.0))
    F = by_text(emit.model(problem), problem, *points(problem, 1, 0, size=0.0))["f_jacobian"][0]
    assert F[0, 0] == F[0, 6] == math.inf and F[0, 12] == 0.5


# -- what no derivative passes --------------------------------------------------------------------
def no_gradient(x):
    with torch.no_grad():
        return torch.sin(x)


@pytest.mark.parametrize("block", [lambda x: x.detach(), no_gradient])
def test_detached_values_have_no_derivative(block):
    agree(small(lambda x, u, t: x * block(x * x) + block(x) + u.sum()))


def test_writes_into_own_tensors_are_followed():
    def f(x, u, t):
        y = torch.zeros_like(x)
        y[0] = x[1] * u[0]
        y[1:] += x[:2]
        view = y.view(3, 1)
        view.mul_(2)
        y.index_put_((torch.tensor([2]),), x[:1])
        z = x.clone()
        z.copy_(y)
        return y + z.sin_().unsqueeze_(0)[0]

    agree(small(f))


# -- refusals ------------------------------------------------------------------------------------
COUNTER = torch.zeros(3, dtype=F64)
REFUSED = {
    "a branch": (lambda x, u, t: x if x[0] > 0 else -x, "data-dependent"),
    "item": (lambda x, u, t: x * x[0].item(), "item"),
    "a parameter as a Python number": (lambda x, u, t: x * float(COUNTER[0] + 1), "may change"),
    "a parameter in a branch": (lambda x, u, t: x if COUNTER.sum() < 1 else -x, "may change"),
    "tolist": (lambda x, u, t: x * COUNTER.tolist()[0], "constant of the program"),
    "numpy": (lambda x, u, t: x * float(COUNTER.numpy()[0]), "constant of the program"),
    "random": (lambda x, u, t: x + torch.randn(3, dtype=F64), "random|differ"),
    "an unknown operation": (lambda x, u, t: torch.special.i0(x), "no translation"),
    "sorting": (lambda x, u, t: x.sort().values, "no translation"),
    "single precision": (lambda x, u, t: torch.sin(x.float()).double(), "float32 arithmetic"),
    "a table looked up by state": (
        lambda x, u, t: x + torch.arange(99, dtype=F64)[(x[0] * 10).long().abs()],
        "more than 64 rows",
    ),
    "an accumulating write": (
        lambda x, u, t: x.index_put((torch.tensor([0, 0]),), x[:2], accumulate=True),
        "accumulating",
    ),
    "bits": (lambda x, u, t: x * (x.long() & 1), "bits"),
    "a norm of order 3": (lambda x, u, t: x * torch.linalg.vector_norm(x, 3), "order 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_traced_is_refused_with_the_line(what):
    f, reason = REFUSED[what]
    problem = unchecked(f)  # eager may refuse too; here the tracer has to
    with pytest.raises(Untraceable, match=reason) as caught:
        emit.model(problem)
    assert "test_native_trace.py" in caught.value.line
    assert caught.value.operation


def test_writing_into_a_tensor_of_ones_own_is_refused():
    def f(x, u, t):
        COUNTER.add_(0.0)
        return x + u.sum()

    with pytest.raises(Untraceable, match="writes into a tensor"):
        emit.model(unchecked(f))


def test_stages_and_samples_that_differ_are_refused():
    f = lambda x, u, t: x + u.sum()
    with pytest.raises(Untraceable, match="stagewise"):
        emit.model(small(f, stagewise=True))
    with pytest.raises(Untraceable, match="shared"):
        emit.model(small(f, x0=torch.rand(2, 3, dtype=F64), shared_controls=True))


def test_too_many_operations_are_refused_with_their_number():
    W = torch.randn(30, 30, dtype=F64)
    problem = small(lambda x, u, t: torch.tanh(W @ x) + u.sum(), n=30)
    with pytest.raises(Untraceable, match=r"\d+ scalar operations.* 1000 are allowed"):
        emit.model(problem, limit=1000)


# -- the tests can fail --------------------------------------------------------------------------
def test_a_wrong_translation_is_caught_while_tracing(monkeypatch):
    monkeypatch.setitem(ops.HANDLERS, "sin", ops.HANDLERS["cos"])
    with pytest.raises(Untraceable, match="sin: its translation disagrees with PyTorch"):
        emit.model(REGISTRY["pendulum"].factory())


@pytest.mark.parametrize("name", ["sin", "cos", "tanh", "sqrt"])
def test_a_wrong_derivative_is_caught_by_the_comparison(name, monkeypatch):
    right = derive.UNARY_PARTIALS[name]
    monkeypatch.setitem(
        derive.UNARY_PARTIALS, name, lambda g, a, y: g.neg(right(g, a, y))
    )  # fmt: skip
    problem = small(lambda x, u, t: torch.sin(x) + torch.tanh(x) * torch.cos(x) + torch.sqrt(x + 3))
    with pytest.raises(AssertionError, match="Not equal"):
        agree(problem, size=0.1)


def test_value_folding_keeps_nan_where_derivatives_may_drop_it():
    g = Graph()
    x = g.leaf("x", 0)
    assert g.mul(g.zero, x) != g.zero
    with g.zeros_vanish():
        assert g.mul(g.zero, x) == g.zero


# -- decisions -----------------------------------------------------------------------------------
def random_record(g, dtype, trials):
    """Numbers as they occur, with nan, inf, zeros and every status among them."""
    B = 400
    number = lambda *shape: (
        torch.randn(*shape, generator=g, dtype=F64)
        * 10.0 ** torch.randint(-9, 4, shape, generator=g)
    )

    def odd(v):
        pick = torch.randint(0, 12, v.shape, generator=g)
        for k, value in enumerate((math.nan, math.inf, 0.0)):
            v = torch.where(pick == k, value, v)
        return v.to(dtype)

    flag = lambda *shape: torch.rand(*shape, generator=g) < 0.7
    count = lambda high: torch.randint(0, high, (B,), generator=g)
    slope = -number(B).abs()
    return Record(
        cost=odd(number(B)), gap=odd(number(B).abs()), slope=odd(slope),
        curvature=odd(-slope * torch.rand(B, generator=g)), residual=odd(number(B).abs()),
        usable=flag(B), finite=flag(B), trial_cost=odd(number(trials, B)),
        trial_finite=flag(trials, B), start_cost=odd(number(B)), damping=odd(number(B).abs()),
        penalty=odd(number(B).abs()), second_order=flag(B), weak=count(4),
        status=torch.where(flag(B), 0, count(8)), iterations=count(9),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("trials", [1, 5])
@pytest.mark.parametrize("rules", [Rules(), Rules(max_iterations=7, tolerance=1e-3, armijo=0.3)])
def test_the_traced_decisions_equal_the_eager_ones(dtype, trials, rules):
    text = emit.decide_text(trials, dtype)
    record = random_record(torch.Generator().manual_seed(trials), dtype, trials)
    sizes = 0.5 ** torch.arange(trials, dtype=dtype)
    expected = decide(record, sizes, rules)
    limits = torch.tensor(rules.limits(dtype), dtype=dtype)[:, None].expand(-1, 400)
    rows = torch.cat([*(v.reshape(-1, 400).to(dtype) for v in record), limits]).numpy()
    assert f"inputs = {len(rows)}, outputs = {len(Decision._fields)};" in text
    (out,) = run(text, "run", {"in_": rows, "count": rows[0]}, {"out": len(Decision._fields)})
    for k, (name, value) in enumerate(zip(Decision._fields, expected, strict=True)):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(
            out[:, k], value.to(F64).numpy(), rtol=tolerance, atol=1e-30, err_msg=name
        )
