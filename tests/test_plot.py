"""Figures and animations show what was solved, and say what they need."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ocp
from ocp.animate import animate, draw_frames
from ocp.plot import plot_solution
from ocp.problems import REGISTRY, cartpole, masses, pendulum, van_der_pol
from ocp.starts import zero

F64 = torch.float64
ENTRIES = pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY.keys())


def short(problem):
    return problem, ocp.solve(problem, "ilqr", max_iterations=2, starts=zero)


def axes_of(figure, label):
    (found,) = [a for a in figure.axes if a.get_ylabel() == label]
    return found


def lines_like(axes, values):
    return [line for line in axes.lines if np.array_equal(line.get_ydata(), values)]


# -- plot_solution -------------------------------------------------------------------------------
def test_classic_problem_is_labelled_with_units_and_drawn_as_it_is(tmp_path):
    problem, solution = short(pendulum(horizon=8))
    path = tmp_path / "pendulum.png"
    figure = plot_solution(problem, solution, path)
    angle = axes_of(figure, "angle [rad]")
    (line,) = lines_like(angle, solution.states[:, 0].numpy())
    np.testing.assert_allclose(line.get_xdata(), 0.05 * np.arange(9))
    assert angle.get_xlabel() == "time [s]"
    torque = axes_of(figure, "torque [N m]").lines[0].get_ydata()
    np.testing.assert_array_equal(torque[:-1], solution.controls[:, 0].numpy())
    cost = axes_of(figure, "cost").lines[0].get_ydata()
    assert cost[0] == float(solution.history["cost"][0])
    assert cost[-1] == float(solution.cost) and len(cost) == 3
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_converged_cost_is_not_drawn_twice():
    problem = masses(3, horizon=5)
    solution = ocp.solve(problem, starts=zero)
    cost = axes_of(plot_solution(problem, solution), "cost").lines[0].get_ydata()
    assert len(cost) == len(solution.history["cost"]) == int(solution.iterations) + 1


def test_bounds_are_drawn_and_the_goal_is_marked():
    problem, solution = short(van_der_pol(bound=(-0.3, 1.0), horizon=6))
    figure = plot_solution(problem, solution)
    force = axes_of(figure, "force")
    dashed = [line for line in force.lines if line.get_linestyle() == "--"]
    assert sorted(float(line.get_ydata()[0]) for line in dashed) == [-0.3, 1.0]
    states = axes_of(figure, "dimensionless")
    marks = [line for line in states.lines if line.get_marker() == "x"]
    assert len(marks) == 2 and states.get_xlabel() == "time"


def test_bounds_of_each_stage_and_of_one_side():
    lo, hi = torch.full((6, 1), -torch.inf), torch.linspace(0.1, 0.6, 6)[:, None]
    problem = pendulum(horizon=6).replace(control_bounds=(lo, hi))
    solution = ocp.solve(problem, max_iterations=1, starts=zero)
    dashed = [
        line
        for line in axes_of(plot_solution(problem, solution), "torque [N m]").lines
        if line.get_linestyle() == "--"
    ]
    finite = [line for line in dashed if np.isfinite(line.get_ydata()).any()]
    np.testing.assert_allclose(finite[0].get_ydata()[:-1], hi[:, 0], rtol=1e-6)
    assert len(finite) == 1


def test_batch_shows_the_chosen_members():
    x0 = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    step = torch.full((6,), 0.02, dtype=F64)
    step[5] = 0.04
    problem, solution = short(cartpole(x0=x0, horizon=5, per_problem={"dt": step}))
    first = axes_of(plot_solution(problem, solution), "position [m]")
    assert all(lines_like(first, solution.states[b, :, 0].numpy()) for b in range(4))
    assert not lines_like(first, solution.states[4, :, 0].numpy())
    one = plot_solution(problem, solution, member=5)
    (line,) = lines_like(axes_of(one, "position [m]"), solution.states[5, :, 0].numpy())
    assert line.get_xdata()[-1] == pytest.approx(5 * 0.04)
    with pytest.raises(IndexError, match=r"0\.\.5, got 6"):
        plot_solution(problem, solution, member=6)


def test_other_problems_are_plotted_by_stage_whatever_their_sizes():
    sizes = [3, 2, 1]

    def dynamics(x, u, t):
        return torch.ones(sizes[t], dtype=F64) * (x.sum() + u.sum())

    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)
    problem = ocp.Problem(dynamics, cost, torch.ones(2, dtype=F64), 3, [1, 2, 1], stagewise=True)
    solution = ocp.solve(problem, "lqr")
    figure = plot_solution(problem, solution)
    states, controls = figure.axes[:2]
    assert states.get_title() == "states" and states.get_xlabel() == "stage"
    third = next(line for line in states.lines if line.get_label() == "x[2]").get_ydata()
    assert np.isnan(third).tolist() == [True, False, True, True]
    assert third[1] == float(solution.states[1][2])
    assert controls.get_title() == "controls"
    assert plot_solution(problem, solution, dt=0.5).axes[0].get_xlabel() == "time [s]"


def test_shared_controls_and_many_components():
    A = 0.1 * torch.randn(10, 10, dtype=F64, generator=torch.Generator().manual_seed(0))
    cost = ocp.QuadraticCost(*(torch.ones(k, dtype=F64) for k in (10, 10, 10)))
    problem = ocp.Problem(
        lambda x, u, t: A @ x + u, cost, torch.ones(3, 10, dtype=F64), 4, 10, shared_controls=True
    )
    solution = ocp.solve(problem, "lqr")
    figure = plot_solution(problem, solution, member=[1, 2])
    assert figure.axes[0].get_title() == "states (first 8 of 10)"
    assert lines_like(figure.axes[0], solution.states[2, :, 0].numpy())
    assert len(axes_of(figure, "cost").lines) == 1


# -- animate -------------------------------------------------------------------------------------
@ENTRIES
def test_every_classic_problem_has_an_animation(entry, tmp_path):
    problem, solution = short(entry.factory(horizon=7))
    path = animate(problem, solution, tmp_path / "motion", frames=3)
    assert path.suffix == ".gif"
    with Image.open(path) as image:
        assert image.n_frames == 3
        first = np.asarray(image.convert("RGB")).copy()
        image.seek(2)
        assert not np.array_equal(first, np.asarray(image.convert("RGB")))
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@ENTRIES
def test_animations_stay_small(entry, tmp_path):
    problem, solution = short(entry.factory())
    path = animate(problem, solution, tmp_path / "motion.gif")
    with Image.open(path) as image:
        assert image.n_frames <= 60
    assert path.stat().st_size < 1_000_000


def test_animation_of_one_member_uses_its_own_data():
    lengths = torch.tensor([0.5, 1.5], dtype=F64)
    problem, solution = short(cartpole(horizon=4, per_problem={"length": lengths}))
    small, large = (draw_frames(problem, solution, b, 2)[0] for b in (0, 1))
    assert (small.ndim == 3 and small.shape != large.shape) or not np.array_equal(small, large)


def test_animation_takes_the_time_of_the_motion(tmp_path):
    problem, solution = short(pendulum(horizon=20, dt=0.05))
    with Image.open(animate(problem, solution, tmp_path / "a.gif", frames=5)) as image:
        durations = []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
    assert durations[:-1] == [250] * 4  # 1 s between the first frame and the last


def test_wrong_use_of_animate_is_named(tmp_path):
    problem, solution = short(pendulum(horizon=3))
    with pytest.raises(ValueError, match=r"\.gif files, got 'a.mp4'"):
        animate(problem, solution, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="frames must be at least 2"):
        animate(problem, solution, tmp_path / "a.gif", frames=1)
    with pytest.raises(ValueError, match=r"no drawing for the problem 'mine'.*pendulum"):
        animate(problem.replace(name="mine"), solution, tmp_path / "a.gif")


# -- optional dependencies -----------------------------------------------------------------------
def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    problem, solution = short(pendulum(horizon=3))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"torch-ocp\[plot\]"):
        plot_solution(problem, solution)
    with pytest.raises(ImportError, match=r"torch-ocp\[plot\]"):
        animate(problem, solution, tmp_path / "a.gif")


def test_importing_the_problems_and_the_plots_imports_no_matplotlib():
    code = "import sys, ocp.plot, ocp.animate, ocp.problems; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
