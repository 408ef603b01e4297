"""Networks within models: loops over vectors, found in what was traced, differentiated as one."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from native_cases import needs_compiler
from native_text import points, small
from test_native_large import forms_agree, matrix, near, trajectory
from torch import nn
from torch.nn import functional

import ocp
from ocp.engines import Eager, eager
from ocp.engines.native import build, compiled, emit, reroll
from ocp.engines.native.engine import Native

F64 = torch.float64


def dense(sizes, activation=torch.tanh, seed=0, dtype=F64, bias=True):
    """A network as a function; the last layer is linear."""
    torch.manual_seed(seed)
    layers = [nn.Linear(k, r, dtype=dtype, bias=bias) for k, r in pairwise(sizes)]

    def net(z):
        for layer in layers[:-1]:
            z = activation(layer(z))
        return layers[-1](z)

    net.layers = layers
    return net


def problem_of(net, n=3, m=1, **rest):
    """The network gives the change of the state, from (x, u)."""
    return small(lambda x, u, t: x + 0.1 * net(torch.cat((x, u))), n=n, m=m, **rest)


def networks_in(program):
    return program.text.count("struct Net")


def agree_with_torch(problem, program, tolerance=1e-12):
    """f_z and v . f_zz of the graph, evaluated, against torch.func."""
    at = points(problem, 3, 1)
    x, u, t, v, rows = at
    F, H = (matrix(program, problem, name, 1, at) for name in ("f_jacobian", "f_contracted"))
    for k, row in enumerate(rows.tolist()):
        p = {**problem.parameters, **{name: w[row] for name, w in problem.per_problem.items()}}
        given = x[k], u[k], t[k], p
        for ours, theirs in (
            (F[k], eager.jacobian(problem.f)(*given)),
            (H[k], eager.contracted_hessian(problem.f)(*given, v[k])),
        ):
            expected = theirs.detach().reshape(-1).numpy()
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * scale)


# -- activations and shapes of networks --------------------------------------------------------
ACTIVATIONS = {
    "tanh": torch.tanh, "relu": torch.relu, "silu": functional.silu, "gelu": functional.gelu,
    "gelu by tanh": lambda z: functional.gelu(z, approximate="tanh"), "sin": torch.sin,
    "softplus": functional.softplus, "elu": functional.elu, "sigmoid": torch.sigmoid,
    "leaky relu": functional.leaky_relu, "square": lambda z: z * z / (1 + z.abs()),
    "twice": lambda z: torch.tanh(z) * torch.cos(3 * z) + 0.1 * z,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_loops(name):
    problem = problem_of(dense((4, 13, 13, 3), ACTIVATIONS[name]))
    program = forms_agree(problem)
    assert networks_in(program) == 1
    agree_with_torch(problem, program)


def built(make, dtype=F64):
    """A function with its layers made once."""
    torch.manual_seed(1)
    layers = {}

    def linear(name, k, r, **rest):
        if name not in layers:
            layers[name] = nn.Linear(k, r, dtype=dtype, **rest)
        return layers[name]

    return lambda z: make(z, linear)


def norm(h):
    return functional.layer_norm(h, h.shape[-1:])


def gates(z, linear):
    a, b = linear("a", 4, 40)(z).chunk(2)
    return linear("b", 20, 3)(a * torch.sigmoid(b))


def residuals(z, linear):
    h = linear("a", 4, 20)(z)
    for k in range(2):
        h = h + torch.tanh(linear(f"b{k}", 20, 20)(h))
    return linear("c", 20, 3)(h)


def normed(z, linear):
    h = torch.tanh(norm(linear("a", 4, 24)(z)))
    return linear("c", 24, 3)(norm(h + linear("b", 24, 24)(h)))


def concatenated(z, linear):
    h = torch.tanh(linear("a", 4, 20)(z))
    return linear("b", 24, 3)(torch.cat((h, z)))


def two_heads(z, linear):
    h = torch.tanh(linear("a", 4, 20)(z))
    return torch.cat((linear("b", 20, 1)(torch.sin(h)), linear("c", 20, 2)(h)))


def summed(z, linear):
    h = torch.tanh(linear("a", 4, 20)(z))
    return z[:3] * (h * h).sum() + h.mean() + torch.linalg.vector_norm(linear("b", 20, 15)(h))


def squeezed(z, linear):
    h = torch.tanh(linear("a", 4, 20)(z))
    return linear("d", 20, 3)(torch.tanh(linear("c", 1, 20)(torch.tanh(linear("b", 20, 1)(h)))))


def in_turn(z, linear):
    y = linear("b", 15, 4)(torch.tanh(linear("a", 4, 15)(z)))
    return linear("b", 15, 4)(torch.tanh(linear("a", 4, 15)(torch.sin(y) * z[0])))[:3]


def scaled_by_state(z, linear):
    h = torch.tanh(linear("a", 4, 20)(z)) * torch.exp(z[1]) + z[0]
    return linear("b", 20, 3)(torch.tanh(h))


def fourier(z, linear):
    waves = torch.cat((torch.sin(linear("w", 4, 16)(z)), torch.cos(linear("w", 4, 16)(z))))
    return linear("b", 32, 3)(waves)


def fixed_features(z, linear):
    scale = torch.linspace(1, 2, 20, dtype=F64) if not hasattr(linear, "s") else linear.s
    linear.s = scale
    return linear("b", 20, 3)(torch.tanh(linear("a", 20, 20)(torch.sin(scale * z[0]) + z[1])))


def without_bias(z, linear):
    return linear("b", 30, 3, bias=False)(torch.tanh(linear("a", 4, 30, bias=False)(z)))


def batch_of_one(z, linear):
    return linear("b", 20, 3)(functional.silu(linear("a", 4, 20)(z[None])))[0]


def two_samples(z, linear):
    both = torch.stack((z, z.flip(0)))
    return linear("b", 20, 3)(torch.tanh(linear("a", 4, 20)(both))).sum(0)


def ensemble(z, linear):
    nets = [linear(f"b{k}", 20, 3)(torch.tanh(linear(f"a{k}", 4, 20)(z))) for k in range(3)]
    return torch.stack(nets).mean(0)


def matrices(z, linear):
    return linear("b", 20, 3).weight @ torch.tanh(z @ linear("a", 4, 20).weight.T)


STRUCTURES = [
    gates, residuals, normed, concatenated, two_heads, summed, squeezed, in_turn, scaled_by_state,
    fourier, fixed_features, without_bias, batch_of_one, two_samples, ensemble, matrices,
]  # fmt: skip
COUNTS = {"squeezed": 2}


@pytest.mark.parametrize("make", STRUCTURES, ids=lambda f: f.__name__)
def test_structures_are_networks_and_agree_with_torch(make):
    problem = problem_of(built(make))
    program = forms_agree(problem)
    assert networks_in(program) >= 1
    agree_with_torch(problem, program)


def test_evaluations_of_one_network_share_their_text():
    net = dense((4, 12, 12, 3))
    ode = lambda x, u, t: net(torch.cat((x, u)))
    problem = small(ocp.rk4(ode, 0.1), n=3, m=1)
    program = emit.model(problem)
    assert networks_in(program) == 1 and program.text.count("Net0::value(") == 4
    agree_with_torch(problem, program)


def test_text_does_not_depend_on_the_width():
    lines = [
        len(emit.model(problem_of(dense((4, width, width, 3)))).text.splitlines())
        for width in (16, 48, 160)
    ]
    assert lines[0] == lines[1] == lines[2]


def test_a_network_that_would_need_much_memory_is_compiled_layer_by_layer(monkeypatch):
    monkeypatch.setattr(reroll, "MOST", 100)
    problem = problem_of(dense((4, 13, 13, 3)))
    program = forms_agree(problem)
    assert networks_in(program) == 0 and "matvec<" in program.text
    agree_with_torch(problem, program)


def test_a_network_in_the_costs():
    value, stage = dense((3, 20, 1)), dense((4, 20, 5))
    problem = small(
        lambda x, u, t: x + 0.1 * u.sum(),
        n=3, m=1,
        l=lambda x, u, t: functional.softplus(stage(torch.cat((x, u)))).sum() + (u * u).sum(),
        phi=lambda x: value(x).square().sum(),
    )  # fmt: skip
    program = forms_agree(problem)
    assert networks_in(program) == 2
    x, u, t, *_ = at = points(problem, 3, 1)
    H = matrix(program, problem, "l_expansion", 1, at)
    for k in range(3):
        expected = eager.gradient_hessian(problem.l)(x[k], u[k], t[k], {})[1]
        np.testing.assert_allclose(H[k], expected.detach().reshape(-1), rtol=1e-11, atol=1e-12)


# -- at random -------------------------------------------------------------------------------------
def random_network(seed):
    """Depth, widths (1 among them), activations, skips and norms at random."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n, m = rng.randint(1, 5), rng.randint(1, 3)
    widths = [rng.choice((1, 2, 7, 8, 9, 13, 16, 17, 31, 33)) for _ in range(rng.randint(1, 4))]
    layers = [
        (nn.Linear(k, r, dtype=F64, bias=rng.random() < 0.8), rng.choice(list(ACTIVATIONS)),
         rng.random() < 0.3, rng.random() < 0.2)
        for k, r in pairwise((n + m, *widths))
    ]  # fmt: skip
    last = nn.Linear(widths[-1], n, dtype=F64)

    def net(z):
        for layer, name, skip, normal in layers:
            h = ACTIVATIONS[name](layer(z))
            h = norm(h) if normal and len(h) > 2 else h
            z = h + z if skip and len(h) == len(z) else h
        return last(z)

    return net, n, m


@pytest.mark.parametrize("seed", range(16))
def test_random_networks_agree_with_torch(seed):
    net, n, m = random_network(seed)
    problem = problem_of(net, n, m)
    program = forms_agree(problem, seed, tolerance=1e-9)
    agree_with_torch(problem, program, 1e-9)


# -- compiled ------------------------------------------------------------------------------------
def equal_to_eager(problem, tolerance):
    """Roll-outs, expansions and contracted terms."""
    native, slow = Native(problem, compiled.compiled_for(problem)), Eager(problem)
    xs, us = trajectory(problem)
    near(native.rollout(us), xs, tolerance)
    ours, theirs = native.expand(xs, us), slow.expand(xs, us)
    for name in ("fz", "lz", "lzz", "phix", "phixx"):
        near(getattr(ours, name), getattr(theirs, name), tolerance)
    g = torch.Generator().manual_seed(1)
    vs = torch.randn(xs.shape, generator=g, dtype=F64).to(xs.dtype)
    along = native.curvature_along(xs, us, vs)
    for t in (0, problem.horizon - 1):
        near(along(t, vs[t + 1]), slow.curvature_along(xs, us, vs)(t, vs[t + 1]), tolerance)


def several(made, dtype, batch):
    """The sum of several structures as dynamics."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(*([] if batch is None else [batch]), 3, generator=g, dtype=F64).to(dtype)
    nets = [built(make, dtype) for make in made]
    problem = problem_of(lambda z: sum(net(z) for net in nets) / len(nets), horizon=5, x0=x0)
    assert networks_in(emit.model(problem)) >= len(made)
    return problem


SLOW = pytest.mark.slow


@needs_compiler
@pytest.mark.parametrize(
    ("made", "batch", "dtype"),
    [
        ((normed, concatenated, two_heads, gates, squeezed, summed), None, F64),
        ((ensemble, gates), 3, torch.float32),
        pytest.param((two_heads, residuals), None, torch.float32, marks=SLOW),
        pytest.param((concatenated, normed, matrices), 5, F64, marks=SLOW),
    ],
    ids=["one", "batch, float32", "one, float32", "batch"],
)
def test_compiled_networks_equal_eager(made, batch, dtype):
    equal_to_eager(several(made, dtype, batch), 1e-12 if dtype == F64 else 2e-5)


@needs_compiler
@pytest.mark.parametrize("seed", [4, *(pytest.param(seed, marks=SLOW) for seed in (1, 9, 16, 23))])
def test_compiled_random_networks_equal_eager(seed):
    net, n, m = random_network(seed)
    equal_to_eager(problem_of(net, n, m, horizon=5), 1e-11)


@needs_compiler
@pytest.mark.parametrize("inputs", [(7, 2), pytest.param((13, 9), marks=SLOW)])
def test_many_inputs_and_outputs(inputs):
    n, m = inputs
    net = dense((n + m, 37, 21, n), functional.silu)
    equal_to_eager(problem_of(net, n, m, horizon=5), 1e-12)


@needs_compiler
@pytest.mark.parametrize("batch", [None, pytest.param(3, marks=SLOW)])
def test_solves_as_eager_and_new_weights_do_not_compile(batch, monkeypatch):
    net = dense((5, 33, 33, 2))
    x0 = 0.3 * torch.randn(*([] if batch is None else [batch]), 4, dtype=F64)

    def f(x, u, t):
        return x + 0.1 * torch.cat((x[2:], net(torch.cat((x, u)))))

    problem = small(f, n=4, m=1, horizon=9, x0=x0)
    for again in (False, True):
        if again:
            with torch.no_grad():
                for layer in net.layers:
                    layer.weight.mul_(0.7)
            monkeypatch.setattr(build, "load", lambda text: pytest.fail("compiled again"))
        for method in ("ilqr", "ddp"):
            fast, slow = (ocp.solve(problem, method=method, engine=e) for e in ("native", "eager"))
            assert fast.engine == "native"
            near(fast.cost, slow.cost, 1e-9)
            near(fast.controls, slow.controls, 1e-5)
