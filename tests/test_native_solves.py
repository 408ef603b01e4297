"""Whole solves of compiled programs against the eager engine's: the same trajectories.

Well-conditioned problems agree to 1e-9 in states and controls. Elsewhere rounding decides which of
two equal steps is taken, and status and cost are what has to agree: `benchmarks/native_solves.py`
lists both, and docs/engines.md what it found.
"""

import sys
from pathlib import Path

import pytest
import torch
from native_cases import needs_compiler
from references import close

import ocp
from ocp.engines.native.compiled import compiled_for
from ocp.problems.registry import REGISTRY

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from native_solves import EXACT, compare, verdict

pytestmark = needs_compiler
F64 = torch.float64

# Classic problems whose whole trajectories agree to 1e-9, by method and kind of solve.
WELL_CONDITIONED = {
    ("ilqr", "plain"): """pendulum cartpole_bounded acrobot double_pendulum unicycle car_parking
        quadrotor2d quadrotor3d arm masses van_der_pol van_der_pol_bounded""",
    ("ilqr", "bounds"): """pendulum cartpole acrobot double_pendulum unicycle quadrotor2d
        quadrotor3d arm masses van_der_pol""",
    ("ilqr", "states"): "pendulum cartpole_bounded acrobot double_pendulum unicycle",
    ("ddp", "plain"): """pendulum acrobot double_pendulum unicycle quadrotor2d quadrotor3d arm
        masses van_der_pol van_der_pol_bounded""",
    ("ddp", "bounds"): """pendulum double_pendulum unicycle quadrotor2d quadrotor3d arm masses
        van_der_pol""",
    ("ddp", "states"): """pendulum acrobot double_pendulum unicycle quadrotor2d quadrotor3d arm
        masses van_der_pol van_der_pol_bounded""",
    ("pmp", "plain"): "arm masses van_der_pol van_der_pol_bounded",
    ("pmp", "bounds"): "masses van_der_pol",
}
QUICK = (  # the rest takes minutes of the eager engine
    ("unicycle", "plain", "ddp"),
    ("quadrotor2d", "plain", "ddp"),
    ("van_der_pol", "bounds", "ilqr"),
    ("van_der_pol", "plain", "pmp"),
)


def mild(seed, n, m, batch, horizon, bounds=False, alone=False):
    """Weak nonlinearity, strongly convex cost; what is random is data, not the program's text."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
    root, half = draw(n, n), draw(m, m)
    parameters = {
        "A": 0.9 * torch.linalg.qr(draw(n, n))[0],
        "B": draw(n, m) / max(n, m) ** 0.5,
        "W": draw(n, n + m) / (n + m),
        "Q": torch.eye(n, dtype=F64) + root @ root.T / n,
        "R": torch.eye(m, dtype=F64) + half @ half.T / m,
        "reference": draw(horizon + 1, n),
    }

    def f(x, u, t, p):
        return p["A"] @ x + p["B"] @ u + 0.1 * torch.tanh(p["W"] @ torch.cat((x, u)))

    def l(x, u, t, p):
        away = x - p["reference"][t]
        bowl = torch.log(torch.cosh(p["weight"] * away)).sum()
        return 0.5 * (away @ p["Q"] @ away + u @ p["R"] @ u) + 0.1 * bowl

    def phi(x, p):
        away = x - p["reference"][horizon]
        return 5 * away @ away

    most = (-0.2 * torch.ones(m, dtype=F64), 0.15 * torch.ones(m, dtype=F64)) if bounds else None
    x0, weight = draw(batch, n), 0.5 + torch.rand(batch, generator=g, dtype=F64)
    if alone:
        x0, weight = x0[0], weight[:1]
        parameters["weight"], data = weight[0], {}
    else:
        data = {"weight": weight}
    return ocp.Problem(
        f, ocp.FunctionCost(l, phi), x0, horizon, m,
        parameters=parameters, per_problem=data, control_bounds=most,
    )  # fmt: skip


def same(problem, method, tolerance=EXACT, **given):
    eager, native = (ocp.solve(problem, method, engine=e, **given) for e in ("eager", "native"))
    assert native.engine == "native", native.engine
    assert native.status == eager.status
    assert torch.as_tensor(native.iterations).tolist() == torch.as_tensor(eager.iterations).tolist()
    for a, b in ((native.states, eager.states), (native.controls, eager.controls)):
        pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
        for mine, theirs in pairs:
            close(mine, theirs, tolerance)
    close(native.cost, eager.cost, tolerance)
    return eager


SIZES = {  # n, m, B, T
    "batch": (3, 2, 7, 8),
    "one-of-a-batch": (3, 2, 1, 8),
    "one-stage": (3, 2, 7, 1),
    "one-control": (2, 1, 3, 6),
    "scalar": (1, 1, 2, 5),
    "wide": (2, 3, 2, 4),
}
FAST = ("batch", "one-control")


def marked(names, fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("size", marked(SIZES, FAST))
@pytest.mark.parametrize("bounds", [False, True], ids=["free", "bounds"])
def test_random_problems(size, bounds):
    n, m, B, T = SIZES[size]
    for seed in range(3):
        problem = mild(seed, n, m, B, T, bounds)
        for method in ("ilqr", "ddp"):
            eager = same(problem, method)
            assert all(s == ocp.Status.CONVERGED for s in eager.status)
    if bounds:
        assert bool((eager.controls.abs() > 0.1499).any())  # some are held


@pytest.mark.parametrize("bounds", [False, True], ids=["free", "bounds"])
def test_a_random_problem_alone(bounds):
    for seed in range(2):
        problem = mild(seed, 3, 2, 1, 8, bounds, alone=True)
        for method in ("ilqr", "ddp", "newton"):
            same(problem, method)


def test_states_that_do_not_follow_from_the_controls():
    for bounds in (False, True):
        problem = mild(5, 3, 2, 7, 8, bounds)
        states = problem.x0[:, None] * torch.linspace(1, 0, 9, dtype=F64)[:, None]
        eager = same(problem, "ilqr", states=states)
        assert float(eager.gap.max()) < 1e-12
        same(problem, "ddp", states=states)


class Stagewise:
    """Sizes that change from stage to stage; mild, as above."""

    def __init__(self, seed, horizon=6):
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
        self.n = [3, 2, 2, 4, 1, 3, 2]
        self.m = [1, 2, 2, 1, 3, 2]
        sizes = list(zip(self.n[1:], self.n, self.m, strict=False))
        self.A = [draw(after, n) / (2 * n) ** 0.5 for after, n, _ in sizes]
        self.B = [draw(after, m) / (2 * m) ** 0.5 for after, _, m in sizes]
        self.reference = [draw(n) for n in self.n]
        self.x0 = draw(3, self.n[0])

    def dynamics(self, x, u, t):
        linear = self.A[t] @ x + self.B[t] @ u
        return linear + 0.1 * torch.sin(linear)

    def stage(self, x, u, t):
        away = x - self.reference[t]
        return away @ away + (1 + 0.1 * t) * u @ u

    def terminal(self, x):
        return 3 * ((x - self.reference[-1]) ** 2).sum()


@pytest.mark.parametrize("bounds", [False, True], ids=["free", "bounds"])
def test_sizes_that_change_from_stage_to_stage(bounds):
    model = Stagewise(0)
    most = None
    if bounds:
        most = tuple([torch.full((m,), s, dtype=F64) for m in model.m] for s in (-0.1, 0.1))
    problem = ocp.Problem(
        model.dynamics, model, model.x0, 6, model.m, stagewise=True, control_bounds=most
    )
    for method in ("ilqr", "ddp"):
        eager = same(problem, method)
        assert all(s == ocp.Status.CONVERGED for s in eager.status)


def test_one_program_does_for_all_the_random_data():
    texts = {compiled_for(mild(seed, 3, 2, 7, 8)).program.text for seed in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        pytest.param(*solve, marks=[] if solve in QUICK else pytest.mark.slow)
        for (method, kind), names in WELL_CONDITIONED.items()
        for solve in ((name, kind, method) for name in names.split())
    ],
)
def test_classic_problems_that_are_well_conditioned(name, kind, method):
    row = compare(REGISTRY[name].factory(), method, kind, 300)
    assert row is not None and row["ran"] == "native"
    assert verdict(row) == "equal", row
