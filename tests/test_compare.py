"""Comparisons: the numbers in a table are those of the solves, by independent count."""

import csv
import io
import json
import math

import pytest
import torch
from swing import DOUBLE, linear, swing, vector

import ocp
from ocp.compare import Comparison, compare, median
from ocp.curves import costate_difference
from ocp.monte_carlo import monte_carlo
from ocp.portfolio import PORTFOLIO
from ocp.tables import Table


@pytest.fixture(scope="module")
def pair():
    return compare(swing(), ("ilqr", "ddp"), progress=False)


# -- curves ------------------------------------------------------------------------------------
def test_point_k_of_a_curve_is_the_solve_that_stops_after_k_iterations(pair):
    c = pair.curves["ddp"]
    for k in (1, 2, 3):
        short = ocp.solve(swing(), "ddp", max_iterations=k)
        assert float(c.cost[k, 0]) == float(short.cost)
        assert float(c.sweeps[k, 0]) == float(short.sweeps)
        assert float(c.rollouts[k, 0]) == float(short.rollouts)
        assert float(c.expansions[k, 0]) == k
    assert len(c.cost) == int(pair.solutions["ddp"].iterations) + 1
    assert float(c.cost[-1, 0]) == float(pair.solutions["ddp"].cost)
    assert c.seconds[0] > 0
    assert bool((c.seconds.diff() > 0).all())


def test_a_solve_that_stops_early_has_its_last_cost_in_the_curve():
    c = compare(swing(), ("ilqr",), max_iterations=2, progress=False)
    curve, solution = c.curves["ilqr"], c.solutions["ilqr"]
    assert len(curve.cost) == 3
    assert float(curve.cost[-1, 0]) == float(solution.cost)
    assert math.isnan(curve.residual[-1, 0])


def test_point_zero_costs_what_a_loop_over_the_users_functions_adds_up(pair):
    p = swing()
    x, J = p.x0, 0.0
    for t in range(p.horizon):
        J = J + float(p.cost.stage(x, torch.zeros(1, dtype=DOUBLE), t))
        x = p.dynamics(x, torch.zeros(1, dtype=DOUBLE), t)
    J += float(p.cost.terminal(x))
    assert float(pair.curves["ilqr"].cost[0, 0]) == pytest.approx(J, rel=1e-13)


def test_work_to_a_tolerance_is_found_by_a_plain_scan(pair):
    best = min(float(s.cost) for s in pair.solutions.values())
    for method, c in pair.curves.items():
        for tolerance in pair.cost_tolerances:
            costs = c.cost[:, 0].tolist()
            k = next(k for k, J in enumerate(costs) if J - best <= tolerance * abs(best))
            spent = pair.spent(method, tolerance)
            assert (float(spent["iterations"]), float(spent["sweeps"])) == (k, float(c.sweeps[k]))
            assert float(spent["seconds"]) == float(c.seconds[k])
        k = next(k for k, r in enumerate(c.residual[:, 0].tolist()) if r <= 1e-3)
        assert float(pair.spent(method, 1e-3, "residual")["iterations"]) == k


def test_an_unreached_tolerance_is_none_in_rows_and_a_dash_in_the_table():
    c = compare(swing(), ("ilqr", "ddp"), options={"ilqr": {"max_iterations": 1}}, progress=False)
    row = c.row("ilqr")
    assert row["iterations_to_cost_1e-06"] is None and row["reached_cost_1e-06"] == 0
    assert row["status"] == "MAX_ITERATIONS" and row["converged"] == 0
    line = next(s for s in str(c.tables()[1]).splitlines() if "cost 1e-06" in s)
    assert line.split()[2:] == ["ilqr", "-", "-", "-", "-", "-"]
    assert "ilqr: stopped after 1 iterations" in str(c)
    assert c.best_method == "ddp"


def test_a_cost_with_gaps_left_does_not_count_as_reached():
    p = swing()
    states = torch.zeros(p.horizon + 1, 2, dtype=DOUBLE) + vector(2.5, 0.0)  # far below any cost
    c = compare(
        p, ("ddp", "ilqr"), options={"ddp": {"states": states, "max_iterations": 1}}, progress=False
    )
    first = c.curves["ddp"]
    assert float(first.cost[0]) < float(c.best) and float(first.gap[0]) > 0
    assert c.row("ddp")["iterations_to_cost_1e-02"] in (None, 1)
    assert float(c.spent("ddp", 1e-2)["iterations"]) > 0


# -- costates ----------------------------------------------------------------------------------
def test_costates_and_values_agree_at_the_optimum_with_autograd_through_the_rollout(pair):
    p, s = swing(), pair.solutions["ddp"]

    def tail(x, t):
        J = 0.0
        for k in range(t, p.horizon):
            J = J + p.cost.stage(x, s.controls[k], k)
            x = p.dynamics(x, s.controls[k], k)
        return J + p.cost.terminal(x)

    exact = torch.stack([torch.func.grad(tail)(s.states[t], t) for t in range(p.horizon + 1)])
    assert float(costate_difference(p, exact, s.value.vx)) < 1e-7
    assert pair.row("ilqr")["costates_vs_best_value"] < 1e-4


def test_costate_difference_is_relative_to_the_largest_value_gradient():
    p, _ = linear()
    v = torch.zeros(p.horizon + 1, 3, dtype=DOUBLE)
    v[2, 1], v[4, 0] = -4.0, 1.0
    moved = v.clone()
    moved[4, 0] += 0.02
    assert float(costate_difference(p, moved, v)) == pytest.approx(0.02 / 4)


# -- forms of problems -------------------------------------------------------------------------
def test_a_batch_is_told_in_counts_and_medians():
    x0 = vector(0.0, 0.0, 0.5, 0.0, 1.0, 0.3).view(3, 2)
    p = swing().replace(x0=x0)
    c = compare(p, ("ilqr", "ddp"), progress=False)
    singles = [ocp.solve(swing(x.tolist()), "ddp") for x in x0]
    row = c.row("ddp")
    assert row["problems"] == row["converged"] == 3
    assert row["status"] == "3 CONVERGED"
    assert row["cost"] == pytest.approx(sorted(float(s.cost) for s in singles)[1], rel=1e-9)
    assert row["iterations"] == sorted(int(s.iterations) for s in singles)[1]
    assert "3 of 3" in str(c)
    short = compare(p, ("ilqr", "ddp"), options={"ilqr": {"max_iterations": 1}}, progress=False)
    # Medians keep the problems that failed: no survivors' average.
    assert short.row("ilqr")["iterations_to_cost_1e-06"] is None


def test_a_median_counts_what_is_not_finite_as_infinite():
    assert median(vector(3.0, 1.0, math.inf)) == 3.0
    assert median(vector(1.0, math.inf, math.nan)) is None  # one success of three is no median


def test_shared_controls_and_sizes_that_change_by_stage_are_compared():
    x0 = vector(0.0, 0.0, 0.5, 0.0, 1.0, 0.3).view(3, 2)
    shared = compare(swing().replace(x0=x0, shared_controls=True), ("ilqr", "ddp"), progress=False)
    assert shared.row("ddp")["costates_vs_own_value"] < 1e-6

    class Growing:
        def stage(self, x, u, t):
            return (x @ x + u @ u) / 2

        def terminal(self, x):
            return x @ x

    def dynamics(x, u, t):
        return x + u.sum() if t != 1 else torch.cat((x, u[:1]))

    p = ocp.Problem(dynamics, Growing(), vector(1.0, 2.0), 3, [1, 2, 3], stagewise=True)
    c = compare(p, ("ilqr", "ddp", "lqr"), progress=False)
    assert all(r["converged"] == 1 and r["costates_vs_own_value"] < 1e-9 for r in c.rows())


def test_work_of_a_portfolio_counts_all_its_starts():
    p = swing(goal=vector(2.5, 0.0))
    c = compare(p, ("ddp",), options={"ddp": {"starts": "portfolio"}}, progress=False)
    curve, s = c.curves["ddp"], c.solutions["ddp"]
    first = float(curve.sweeps[0, 0])  # the continuation solved easier problems before
    assert first > 0 and float(curve.expansions[0, 0]) == first
    assert float(curve.sweeps[1, 0]) == first + len(PORTFOLIO)
    assert 0 <= float(s.sweeps) - float(curve.sweeps[-1, 0]) <= 3  # the steps that only test
    assert float(curve.seconds[0]) > float(curve.seconds[1] - curve.seconds[0])


# -- methods -----------------------------------------------------------------------------------
def test_a_method_that_refuses_is_listed_with_its_reason():
    p = swing()
    states = torch.zeros(p.horizon + 1, 2, dtype=DOUBLE)
    c = compare(p, ("newton", "ddp"), options={"newton": {"states": states}}, progress=False)
    assert list(c.solutions) == ["ddp"]
    assert "takes no states" in c.refused["newton"]
    assert "newton did not run: method 'newton'" in str(c)
    with pytest.raises(ValueError, match="no method takes this problem"):
        compare(p, ("newton",), options={"newton": {"states": states}}, progress=False)


def test_two_solvers_of_one_name_are_told_apart():
    always = ocp.make_solver("ddp", second_order="always")
    c = compare(swing(), ("ddp", always), progress=False)
    assert list(c.solutions) == ["ddp", "ddp 2"]
    expected = ocp.solve(swing(), always)
    assert int(c.solutions["ddp 2"].iterations) == int(expected.iterations)


def test_every_method_there_is_can_be_compared():
    c = compare(linear()[0], list(ocp.METHODS), max_iterations=20, progress=False)
    assert set(c.solutions) | set(c.refused) == set(ocp.METHODS)
    assert c.row("lqr")["cost_above_best"] < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ()}, "methods is empty"),
        ({"methods": ("dpd",)}, "method must be one of"),
        ({"methods": ("ddp",), "options": {"ilqr": {}}}, r"options are given for \['ilqr'\]"),
        ({"methods": ("ddp",), "controls": torch.zeros(3, 1, dtype=DOUBLE)}, "controls needs"),
    ],
)
def test_wrong_use_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(swing(), progress=False, **arguments)
    with pytest.raises(TypeError, match="no option"):
        compare(swing(), ("ddp",), speed=3, progress=False)


def test_ctrl_c_ends_the_comparison_and_keeps_what_there_is():
    calls = 0

    class Cost:
        def stage(self, x, u, t):
            return (x @ x + u @ u) / 2

        def terminal(self, x):
            nonlocal calls
            calls += 1
            if calls == 12:
                raise KeyboardInterrupt
            return x @ x

    p = ocp.Problem(lambda x, u, t: torch.sin(x) + u, Cost(), vector(1.0, 2.0), 4, 2)
    calls = 0
    c = compare(p, ("ilqr", "ddp"), warm_up=False, tolerance=1e-30, progress=False)
    assert c.solutions["ilqr"].status == ocp.Status.INTERRUPTED
    assert c.refused == {"ddp": "not run after Ctrl-C"}


# -- tables and files --------------------------------------------------------------------------
def test_plain_and_rich_tables_have_the_same_cells(pair):
    rich = pytest.importorskip("rich.console")
    screen = rich.Console(file=io.StringIO(), width=200)
    screen.print(pair)
    drawn = screen.file.getvalue().split()
    for table in pair.tables():
        for row in (table.columns, *table.rows):
            for word in " ".join(row).split():
                assert word in drawn
    assert "ddp" in str(pair) and "CONVERGED" in str(pair)


def test_numbers_are_never_cut_on_a_narrow_terminal():
    rich = pytest.importorskip("rich.console")
    table = Table("title", ("what", "value"), [("cost", "1234567890.12345"), ("x", "2")])
    screen = rich.Console(file=io.StringIO(), width=18)
    screen.print(table)
    assert "1234567890.12345" in screen.file.getvalue()


def test_csv_and_json_hold_the_rows(pair, tmp_path):
    with pair.to_csv(tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == ["ilqr", "ddp"]
    assert float(rows[1]["cost"]) == float(pair.solutions["ddp"].cost)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = pair.to_json(tmp_path / "table.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["rows"] == json.loads(json.dumps(pair.rows()))
    assert content["curves"]["ddp"]["cost"][-1] == [float(pair.solutions["ddp"].cost)]


def test_figures_are_written(pair, tmp_path):
    pytest.importorskip("matplotlib")
    path = pair.plot(tmp_path / "comparison.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    study = monte_carlo(swing(), pair.solutions["ddp"], (0.01, 0.1), samples=5)
    assert study.plot(tmp_path / "study.png").stat().st_size > 10_000


def test_a_figure_is_drawn_where_nothing_was_reached(tmp_path):
    pytest.importorskip("matplotlib")

    def blow_up(x, u, t):
        return x * 1e200 + u

    cost = ocp.QuadraticCost(vector(1.0), vector(1.0), vector(1.0))
    p = ocp.Problem(blow_up, cost, vector(1e200), 4, 1)
    c = compare(p, ("ilqr", "ddp"), warm_up=False, progress=False)
    assert isinstance(c, Comparison) and c.best_method is None
    assert c.row("ddp")["cost"] is None and "-" in str(c)
    assert c.plot(tmp_path / "nothing.png").exists()
    json.loads(c.to_json(tmp_path / "nothing.json").read_text())
