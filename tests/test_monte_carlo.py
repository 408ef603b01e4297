"""Costs under disturbances: closed forms of linear problems, and runs made by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from swing import DOUBLE, linear, swing, vector

import ocp
from ocp.monte_carlo import monte_carlo


def lq_excess(problem, matrices, K, kind):
    """E[J] - J for unit noise on a linear problem under ``u = ... + K[t] dx``, in closed form."""
    A, B, Q, R, P = matrices
    total = 0.0
    for t in reversed(range(problem.horizon)):
        if kind == "state":
            total += 0.5 * float(P.trace())
        elif kind == "control":
            total += 0.5 * float((B.T @ P @ B).trace())
        closed = A + B @ K[t]
        P = Q + K[t].T @ R @ K[t] + closed.T @ P @ closed
    return total if kind != "initial" else 0.5 * float(P.trace())


@pytest.mark.parametrize("kind", ["state", "control", "initial"])
def test_mean_costs_of_a_linear_problem_are_those_of_the_closed_form(kind):
    p, matrices = linear()
    s = ocp.solve(p, "lqr")
    sizes = (0.0, 0.3)
    study = monte_carlo(p, s, sizes, samples=20_000, kind=kind)
    gains = s.policy.K
    for i, K in enumerate((torch.zeros_like(gains), gains)):
        runs = study.cost[i, 1]
        expected = float(s.cost) + sizes[1] ** 2 * lq_excess(p, matrices, K, kind)
        error = float(runs.std()) / math.sqrt(len(runs))
        assert abs(float(runs.mean()) - expected) < 4 * error
        assert abs(expected - float(s.cost)) > 8 * error  # the test would see a missing term
        torch.testing.assert_close(study.cost[i, 0], s.cost.expand(20_000))


def test_one_line_of_the_study_is_the_same_run_by_hand():
    p = swing()
    s = ocp.solve(p, "ddp")
    study = monte_carlo(p, s, (0.1, 0.2), samples=3, kind="initial", seed=7)
    draws = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(7), dtype=DOUBLE)
    for i in (0, 1):
        x, J = p.x0 + 0.2 * draws[2, 0], 0.0
        for t in range(p.horizon):
            u = s.controls[t] if i == 0 else s.policy(x, t)
            J = J + float(p.cost.stage(x, u, t))
            x = p.dynamics(x, u, t)
        J += float(p.cost.terminal(x))
        assert float(study.cost[i, 1, 2]) == pytest.approx(J, rel=1e-12)


def test_a_study_repeats_by_seed_and_sizes_share_their_draws():
    p = swing()
    s = ocp.solve(p, "ddp")
    first, again = (monte_carlo(p, s, (0.1, 0.2), samples=4, seed=1) for _ in range(2))
    assert torch.equal(first.cost, again.cost)
    assert not torch.equal(first.cost, monte_carlo(p, s, (0.1, 0.2), samples=4, seed=2).cost)
    alone = monte_carlo(p, s, (0.2,), samples=4, seed=1)
    torch.testing.assert_close(alone.cost[:, 0], first.cost[:, 1], rtol=1e-12, atol=0)


def test_without_noise_every_problem_of_a_batch_costs_its_nominal_cost():
    def dynamics(x, u, t, p):
        return torch.stack((x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] / p["mass"] - torch.sin(x[0]))))

    cost = ocp.QuadraticCost(vector(1.0, 1.0), vector(0.1), vector(9.0, 9.0))
    bounds = (vector(-0.4), vector(0.4))
    x0, masses = vector(1.0, 0.0, -2.0, 0.5, 0.3, 0.3).view(3, 2), vector(1.0, 2.0, 0.5)
    p = ocp.Problem(dynamics, cost, x0, 6, 1, per_problem={"mass": masses}, control_bounds=bounds)
    s = ocp.solve(p, "ddp")
    study = monte_carlo(p, s, (0.0, 0.5), samples=4)
    assert study.cost.shape == (2, 2, 4, 3)
    torch.testing.assert_close(study.cost[:, 0], s.cost.expand(2, 4, 3), rtol=1e-12, atol=0)
    assert study.within[:, 0].tolist() == [1.0, 1.0]
    shared = p.replace(shared_controls=True)
    s = ocp.solve(shared, "ddp")
    study = monte_carlo(shared, s, (0.0,), samples=2)
    torch.testing.assert_close(study.cost, s.cost.expand(2, 1, 2), rtol=1e-12, atol=0)


def test_runs_that_blow_up_cost_infinity_and_are_not_within():
    cost = ocp.QuadraticCost(vector(1.0), vector(1.0), vector(1.0))
    p = ocp.Problem(lambda x, u, t: x**3 + u, cost, vector(0.1), 12, 1)
    s = ocp.solve(p, "ddp")
    study = monte_carlo(p, s, (100.0,), samples=20, kind="initial")
    assert bool(torch.isinf(study.cost[0]).all())
    assert float(study.within[0, 0]) == 0.0
    assert study.rows()[0]["mean"] == math.inf
    assert "inf" in str(study)


def test_quantiles_and_shares_count_runs():
    p = swing()
    s = ocp.solve(p, "ddp")
    study = monte_carlo(p, s, (0.1,), samples=21)
    runs = torch.arange(21.0, dtype=DOUBLE).flip(0).expand(2, 1, 21)
    known = replace(study, cost=runs, nominal=torch.tensor(5.0, dtype=DOUBLE), factor=2.0)
    assert known.quantile(0.05).tolist() == [[1.0], [1.0]]
    assert known.quantile(0.5).tolist() == [[10.0], [10.0]]
    assert known.within.tolist() == [[11 / 21], [11 / 21]]  # 0..10
    assert known.rows()[1]["median"] == 10.0


def test_studies_of_nonsense_are_refused(tmp_path):
    p = swing()
    s = ocp.solve(p, "ddp")
    for arguments, message in (
        ({"noise": ()}, "noise needs"),
        ({"noise": (-1.0,)}, "noise needs"),
        ({"noise": (math.nan,)}, "noise needs"),
        ({"samples": 0}, "samples must"),
        ({"kind": "wind"}, "kind must be one of state, control, initial"),
        ({"factor": 0.5}, "factor must"),
    ):
        with pytest.raises(ValueError, match=message):
            monte_carlo(p, s, **arguments)
    with pytest.raises(ValueError, match="pass the problem that was solved"):
        monte_carlo(swing(T=3), s)
    study = monte_carlo(p, s, (0.1,), samples=3)
    assert len(study.to_csv(tmp_path / "s.csv").read_text().splitlines()) == 3
    assert json.loads(study.to_json(tmp_path / "s.json").read_text())["rows"] == study.rows()
