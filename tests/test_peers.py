"""Problems translated for CasADi against torch.func, and the bench beside other solvers."""

import json

import numpy as np
import pytest
import torch
from native_text import by_torch, points, small
from random_models import random_problem
from stagewise_models import random_stagewise

import ocp
from ocp.bench import PeerBench, bench
from ocp.peers import casadi_solvers, packages
from ocp.peers.answers import Answer, first_guess
from ocp.peers.contest import contest, ratio_notes
from ocp.peers.expressions import Unfit, model
from ocp.problems import REGISTRY, pendulum

ca = pytest.importorskip("casadi")
F64 = torch.float64


def by_casadi(made, x, u, t):
    """What `by_torch` gives that follows from f, l and phi, with CasADi's own derivatives."""
    X, U, W = (ca.SX.sym(name, made.steps[0].size1_in(i)) for i, name in enumerate("xuw"))
    f, l = made.steps[0](X, U, W)
    phi, z = made.end(X), ca.vertcat(X, U)
    hessian = lambda y, by: list(reversed(ca.hessian(y, by)))  # gradient first
    parts = f, l, phi, ca.jacobian(f, z), *hessian(l, z), *hessian(phi, X)
    names = "f", "l", "phi", "f_jacobian", "l_z", "l_zz", "phi_x", "phi_xx"
    function = ca.Function("all", [X, U, W], parts)
    found = [
        [np.asarray(v) for v in function(a, b, made.numbers[k])]
        for a, b, k in zip(x.numpy(), u.numpy(), t.tolist(), strict=True)
    ]
    return {
        name: np.stack(column) for name, column in zip(names, zip(*found, strict=True), strict=True)
    }


def agree(problem, seed=0, size=0.3, count=4, first=1e-12, others=1e-11):
    made = model(problem)
    x, u, t, v, rows = points(problem, count, seed, size)
    theirs, ours = by_casadi(made, x, u, t), by_torch(problem, x, u, t, v, rows)
    flat = {name: ours[name][0] for name in ("f", "l", "phi", "f_jacobian")}
    flat["l_z"], flat["l_zz"] = ours["l_expansion"]
    flat["phi_x"], flat["phi_xx"] = ours["phi_expansion"]
    for name, expected in flat.items():
        got, tolerance = theirs[name].reshape(count, -1), first if name in "f l phi" else others
        scale = tolerance * max(1.0, np.abs(expected).max())
        wanted = np.asarray(expected).reshape(count, -1)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=scale, err_msg=name)
    return made


# -- expressions -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REGISTRY)
def test_every_classic_problem_equals_torch(name):
    agree(REGISTRY[name].factory())


@pytest.mark.parametrize("seed", range(12))
def test_random_models_equal_torch(seed):
    agree(random_problem(seed), seed, size=0.5, first=1e-11, others=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_linear_systems_equal_torch(n):
    def f(x, u, t):
        M = torch.diag(2 + x * x) + 0.3 * torch.outer(x, torch.sin(x)) + 0.1
        return x + torch.linalg.solve(M, x * u[0] + x)

    agree(small(f, n=n, m=1))


def test_the_norm_has_slope_zero_at_zero():
    made = model(small(lambda x, u, t: x * torch.linalg.vector_norm(x) + u[0], n=3, m=1))
    x, u = ca.SX.sym("x", 3), ca.SX.sym("u", 1)
    slope = ca.Function("F", [x, u], [ca.jacobian(made.steps[0](x, u, ca.SX(0, 1))[0], x)])
    np.testing.assert_array_equal(np.asarray(slope(np.zeros(3), 1.0)), np.zeros((3, 3)))


def test_detach_stops_derivatives_and_changes_no_value():
    agree(small(lambda x, u, t: x * torch.sin(x).detach() + x.frac() + u[0] + 1e-30 * x.detach()))


def test_what_changes_with_the_stage_is_an_argument_and_the_rest_is_written_in():
    problem = small(
        lambda x, u, t, p: x + p["gain"] * p["reference"][t] * u[0] + 0.01 * t,
        parameters={"gain": torch.tensor(0.7, dtype=F64), "reference": torch.rand(6, 3, dtype=F64)},
    )
    made = agree(problem)
    assert made.numbers.shape[1] >= 3 and np.ptp(made.numbers, axis=0).min() > 0
    louder = problem.replace(parameters={**problem.parameters, "gain": 1.4})
    other = agree(louder)
    x, u, w = np.ones(3), np.ones(2), made.numbers[2]
    quiet, loud = (np.asarray(m.steps[2](x, u, w)[0]) for m in (made, other))
    assert not np.allclose(quiet, loud)


@pytest.mark.parametrize("seed", range(3))
def test_stages_of_their_own_have_functions_of_their_own(seed):
    problem = random_stagewise(seed)
    made = model(problem)
    g = torch.Generator().manual_seed(seed)
    p = {**problem.parameters, **{k: v[0] for k, v in problem.per_problem.items()}}
    for t, step in enumerate(made.steps):
        x, u = (
            torch.randn(size, generator=g, dtype=F64)
            for size in (problem.state_dims[t], problem.control_dims[t])
        )
        f, l = step(x.numpy(), u.numpy(), made.numbers[t])
        np.testing.assert_allclose(np.asarray(f)[:, 0], problem.f(x, u, t, p), rtol=1e-11)
        np.testing.assert_allclose(float(l), problem.l(x, u, t, p), rtol=1e-11)


def test_what_has_no_translation_is_named():
    with pytest.raises(Unfit, match=r"sort.*\(.*test_peers.py:\d+: "):
        model(small(lambda x, u, t: x.sort().values))
    with pytest.raises(Unfit, match="float64"):
        model(small(lambda x, u, t: x, x0=torch.ones(3)))


# -- solvers ---------------------------------------------------------------------------------------
def solved(problem, name, cc=None):
    made, guess = model(problem), first_guess(problem)
    return casadi_solvers.prepare_with(made, name, guess, 500, cc)()()


@pytest.mark.parametrize("name", ["ipopt", "fatrop"])
def test_peers_find_the_minimum_that_we_find(name):
    if not ca.has_nlpsol(name):
        pytest.skip(f"no {name} here")
    for problem in (pendulum(horizon=30), REGISTRY["van_der_pol_bounded"].factory(horizon=20)):
        zero = torch.zeros(problem.horizon, 1, dtype=F64)
        ours, theirs = ocp.solve(problem, controls=zero), solved(problem, name)
        assert theirs.converged, theirs.status
        assert theirs.cost == pytest.approx(float(ours.cost), rel=1e-6)
        np.testing.assert_allclose(np.array(theirs.us), ours.controls, atol=1e-3)


@pytest.mark.parametrize("name", ["ipopt", "fatrop"])
def test_compiled_derivatives_change_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cc = casadi_solvers.compiler()
    if cc is None or not ca.has_nlpsol(name):
        pytest.skip(f"no C compiler, or no {name}")
    problem = pendulum(horizon=12)
    plain, fast = solved(problem, name), solved(problem, name, cc)
    assert fast.iterations == plain.iterations
    np.testing.assert_allclose(fast.us, plain.us, atol=1e-6)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Unfit, match="does not compile"):
        solved(problem, name, "false")
    assert casadi_solvers.how(model(problem)).endswith("-O2")
    monkeypatch.setattr(casadi_solvers, "LARGEST", 10)
    assert "virtual machine" in casadi_solvers.how(model(problem))
    assert solved(problem, name, "false").converged


def tracking():
    """A reference, and bounds, of each stage; n = 3, m = 2."""
    g = torch.Generator().manual_seed(0)
    reference = torch.randn(9, 3, generator=g, dtype=F64)
    limit = 0.2 + torch.rand(9, 2, generator=g, dtype=F64)

    def stage(x, u, t, p):
        error = x - p["reference"][t]
        return error @ error + 0.1 * u @ u

    f = lambda x, u, t, p: 0.9 * torch.sin(x) + torch.stack((u[0], u[1], u[0] * u[1]))
    return ocp.Problem(
        f, ocp.FunctionCost(stage, lambda x, p: (x - p["reference"][-1]).square().sum()),
        torch.ones(3, dtype=F64), 9, 2, parameters={"reference": reference},
        control_bounds=(-limit, limit),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ipopt", "fatrop"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_changes_with_the_stage_reaches_the_solvers(name, compiled):
    cc = casadi_solvers.compiler() if compiled else None
    if (compiled and cc is None) or not ca.has_nlpsol(name):
        pytest.skip(f"no C compiler, or no {name}")
    problem = tracking()
    ours, theirs = ocp.solve(problem), solved(problem, name, cc)
    held = (ours.controls.abs() - problem.upper[:, 0]).abs() < 1e-6
    assert held.any() and not held.all() and theirs.converged
    assert theirs.cost == pytest.approx(float(ours.cost), rel=1e-6)
    np.testing.assert_allclose(np.array(theirs.us), ours.controls, atol=1e-4)


@pytest.mark.parametrize("name", ["ipopt", "fatrop"])
def test_sizes_that_change_with_the_stage(name):
    if not ca.has_nlpsol(name):
        pytest.skip(f"no {name} here")
    problem = random_stagewise(1, bounds=True)
    ours, theirs = ocp.solve(problem), solved(problem, name)
    assert [len(x) for x in theirs.xs] == list(problem.state_dims)
    assert theirs.cost == pytest.approx(float(ours.cost), rel=1e-6)


def test_crocoddyl_and_mim_solvers_find_it_too():
    pytest.importorskip("crocoddyl")
    problem = pendulum(horizon=30)
    found = bench([problem], ["ddp"], peers=["crocoddyl", "mim_solvers"], repeats=1)
    assert [r["solver"] for r in found.rows] == ["ddp", "DDP", "FDDP", "SQP"]
    assert {r["verdict"] for r in found.rows} == {"same"}
    bounded = REGISTRY["van_der_pol_bounded"].factory(horizon=20)
    found = bench([bounded], ["ddp"], peers=["crocoddyl", "mim_solvers"], repeats=1)
    assert [r["solver"] for r in found.rows] == ["ddp", "BoxDDP", "BoxFDDP"]
    assert {r["verdict"] for r in found.rows} == {"same"}
    assert "not given to mim_solvers SQP: it takes no bounds" in str(found)
    found = bench([tracking()], ["ddp"], peers="crocoddyl", repeats=1)
    assert {r["verdict"] for r in found.rows} == {"same"}


# -- the bench -------------------------------------------------------------------------------------
def test_the_bench_puts_both_sides_into_one_table(tmp_path):
    problem = pendulum(horizon=30)
    found = bench([problem], peers="casadi", repeats=2)
    assert [r["solver"] for r in found.rows[:3]] == ["ddp", "ilqr", "ipopt"]
    for r in found.rows:
        assert r["converged"] and r["verdict"] == "same"
        assert r["cost"] == pytest.approx(r["reported_cost"], rel=1e-9)
        assert r["cpu_ms"] > 0 and r["gap"] < 1e-6
    ours, *_, theirs = found.rows
    assert theirs["ratio"] == pytest.approx(ours["cpu_ms"] / theirs["cpu_ms"])
    assert ours["ratio"] is None
    text = str(found)
    assert "casadi ipopt" in text and "geometric mean of 1 of 1 problems" in text
    assert "derivatives" in text
    rows = json.loads(found.to_json(tmp_path / "b.json").read_text())["rows"]
    assert [r["package"] for r in rows[:3]] == ["ocp", "ocp", "casadi"]


def test_a_problem_that_cannot_be_traced_is_given_to_no_peer():
    sorting = lambda x, u, t: (0.9 * x + u.sum()).sort().values
    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u)
    problem = ocp.Problem(sorting, cost, [1.0, 2.0], 3, 1, name="sorted")
    found = bench([problem], ["ilqr"], peers="casadi", engine="eager", repeats=1)
    assert [r["package"] for r in found.rows] == ["ocp"]
    assert "sorted: given to no peer: cannot be traced: sort" in str(found)


SETTINGS = {"engine": "auto", "repeats": 1, "threads": 1}


def fake(solve):
    """A package of one solver."""
    prepare = lambda made, name, guess, most: lambda: lambda: solve(guess)
    return packages.Package(
        "fake", (), "", lambda made: ("x",), prepare, lambda made: "made up"
    )  # fmt: skip


def test_failures_and_other_minima_are_said_and_not_counted():
    problem = pendulum(horizon=30)

    def answer(converged):
        off = lambda guess: [x + 0.1 for x in guess.xs]  # with gaps
        return lambda guess: Answer(converged, "word", 3, 1.0, off(guess), guess.us)

    def broken(guess):
        raise RuntimeError("no memory\nmore")

    rows, notes = contest(
        "p", problem, ["ddp"], [fake(answer(True)), fake(answer(False))], "auto", 1, {}
    )
    assert [r["verdict"] for r in rows] == ["same", "higher", "failed"]
    assert [r["ratio"] for r in rows] == [None, None, None]
    start = float(ocp.solve(problem, controls=torch.zeros(30, 1, dtype=F64)).history["cost"][0])
    assert rows[1]["replayed_cost"] == rows[2]["cost"] == pytest.approx(start)
    assert rows[1]["cost"] != pytest.approx(start) and rows[1]["reported_cost"] == 1.0
    assert rows[1]["gap"] > 1e-3 and any("its controls alone, rolled out" in n for n in notes)
    assert any("at another cost than ocp ddp, not counted: fake x (+" in n for n in notes)

    text = str(PeerBench(rows, SETTINGS, tuple(ratio_notes(rows))))
    assert "failed: word" in text and "no peer is counted" in text
    failing = packages.Package(
        "fake", (), "", lambda made: ("x",), lambda *a: lambda: broken(None), lambda made: ""
    )
    (_, row), _ = contest("p", problem, ["ddp"], [failing], "auto", 1, {})
    assert row["verdict"] == "failed" and row["status"] == "no memory" and row["cost"] is None


def test_wrong_peers_are_refused_with_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="no peer 'nix'; there are casadi, crocoddyl"):
        bench(["pendulum"], peers="nix")
    batch = pendulum(x0=[[0.0, 0.0], [0.1, 0.0]])
    with pytest.raises(ValueError, match="one problem at a time"):
        bench([batch], peers="casadi")
    monkeypatch.setattr(packages, "installed", lambda module: module == "casadi")
    with pytest.raises(ImportError, match=r"crocoddyl is not installed: pip install"):
        bench(["pendulum"], peers=["casadi", "crocoddyl"])
    found, absent = packages.chosen("all")
    assert [p.name for p in found] == ["casadi"] and len(absent) == 2
    monkeypatch.setattr(packages, "installed", lambda module: False)
    with pytest.raises(ValueError, match=r"no peer is installed.*pip install 'torch-ocp\[peers\]'"):
        bench(["pendulum"], peers="all")


def test_the_command_line_takes_peers_and_files(tmp_path):
    pytest.importorskip("typer")
    from command import mistake, run

    path = tmp_path / "mine.py"
    path.write_text(
        "import ocp\n"
        "def problem():\n"
        "    cost = ocp.FunctionCost(lambda x, u, t: x @ x + u @ u)\n"
        "    return ocp.Problem(lambda x, u, t: x + 0.1 * u, cost, [1.0], 10, 1)\n"
    )
    out = run("bench", f"{path}:problem", "--peers", "casadi", "--repeats", 1, "--json").stdout
    content = json.loads(out)
    assert content["settings"]["peers"] == ["casadi"]
    assert {r["verdict"] for r in content["rows"]} == {"same"}
    assert content["rows"][0]["problem"] == f"{path}:problem"
    assert "no peer 'nix'" in mistake("bench", "pendulum", "--peers", "nix")
    assert "no problem 'nix'" in mistake("bench", "nix", "--peers", "casadi")
