"""Layouts, files, policy and print of a solution."""

import json

import numpy as np
import pytest
import references
import torch
from models import CONTROLS, SIZES, resizing, rich
from references import close

import ocp
from ocp import Solution, Status
from ocp.solution import values

F64 = torch.float64
LAYOUTS = {
    "one": rich,
    "batch": lambda: rich(batch=3),
    "shared": lambda: rich(batch=3, shared_controls=True),
    "one changing": resizing,
    "batch changing": lambda: resizing(batch=3),
    "shared changing": lambda: resizing(batch=3, shared_controls=True),
    "bounded": lambda: rich(batch=3, control_bounds=([-0.1, -1.0], [0.1, 1.0])),
}


def shape(value):
    return [tuple(v.shape) for v in value] if isinstance(value, list) else tuple(value.shape)


@pytest.fixture(params=LAYOUTS)
def solved(request):
    problem = LAYOUTS[request.param]()
    return request.param, problem, ocp.solve(problem, max_iterations=30, progress=False)


def test_shapes(solved):
    name, problem, s = solved
    samples = (3,) if "shared" in name else ()
    lead = (3,) if problem.batched else ()
    S = problem.samples
    if problem.uniform:
        assert shape(s.states) == shape(s.costates) == (*samples, *lead, 6, 3)
        assert shape(s.controls) == shape(s.policy.k) == (*lead, 5, 2)
        assert shape(s.policy.K) == (*lead, 5, 2, 3 * S)
        assert shape(s.value.vx) == (*lead, 6, 3 * S)
        assert shape(s.value.vxx) == (*lead, 6, 3 * S, 3 * S)
    else:
        assert shape(s.states) == shape(s.costates) == [(*samples, *lead, n) for n in SIZES]
        assert shape(s.controls) == shape(s.policy.k) == [(*lead, m) for m in CONTROLS]
        assert shape(s.policy.K) == [
            (*lead, m, S * n) for m, n in zip(CONTROLS, SIZES[:-1], strict=True)
        ]
        assert shape(s.value.vxx) == [(*lead, S * n, S * n) for n in SIZES]
    for v in (s.cost, s.residual, s.hamiltonian_residual, s.gap, s.iterations, s.converged):
        assert shape(v) == lead
    rows = len(s.history["cost"])
    assert all(shape(v) == (rows, *lead) for k, v in s.history.items() if k != "seconds")
    assert shape(s.history["seconds"]) == (rows,)
    if lead:
        assert len(s.status) == len(s.message) == 3 and isinstance(s.status[0], Status)
    else:
        assert isinstance(s.status, Status) and isinstance(s.message, str)


def test_the_policy_gives_the_controls_back_and_feeds_back(solved):
    name, problem, s = solved
    for t in (0, problem.horizon - 1):
        x = references_state(s, t, name)
        u = s.controls[t] if isinstance(s.controls, list) else s.controls[..., t, :]
        close(s.policy(x, t), u, 1e-13)
        K = s.policy.K[t] if isinstance(s.policy.K, list) else s.policy.K[..., t, :, :]
        dx = 1e-3 * torch.ones_like(x)
        expected = u + (K @ dx[..., None])[..., 0]
        if name == "bounded":
            limits = torch.tensor([0.1, 1.0], dtype=F64)
            expected = torch.minimum(torch.maximum(expected, -limits), limits)
        close(s.policy(x + dx, t), expected, 1e-13)
    with pytest.raises(IndexError, match="stage"):
        s.policy(x, problem.horizon)


def references_state(s, t, name):
    x = s.states[t] if isinstance(s.states, list) else s.states[..., t, :]
    return x.reshape(-1) if "shared" in name else x


def test_the_policy_rolls_out_the_trajectory():
    problem = rich()
    s = ocp.solve(problem, progress=False)
    x, p = problem.x0, references.sample_data(problem, 0)
    for t in range(5):
        x = problem.f(x, s.policy(x, t), torch.tensor(t), p)
    close(x, s.states[-1], 1e-12)


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a == b and type(a) is type(b)


def test_a_file_gives_the_same_solution_back(solved, tmp_path):
    _, _, s = solved
    path = s.save(tmp_path / "run.of.today")
    assert path.name == "run.of.today.npz"
    back = Solution.load(path)
    for name, value in values(s).items():
        other = getattr(back, name)
        if name in ("policy", "value"):
            assert all(same(v, getattr(other, k)) for k, v in vars(value).items()), name
        elif isinstance(value, dict):
            assert value.keys() == other.keys()
            assert all(same(v, other[k]) for k, v in value.items()), name
        else:
            assert same(value, other), name
    assert str(back) == str(s)
    x = references_state(s, 0, "shared" if s.policy.K[0].shape[-1] > 4 else "")
    assert torch.equal(back.policy(x, 0), s.policy(x, 0))


def test_a_file_holds_no_code(solved, tmp_path):
    path = solved[2].save(tmp_path / "plain.npz")
    with np.load(path, allow_pickle=False) as data:
        assert json.loads(str(data["meta"]))["method"] == "ddp"


def test_float32_and_extra_survive_a_file(tmp_path):
    problem = rich()
    low = problem.replace(
        x0=problem.x0.float(),
        parameters={k: v.float() for k, v in problem.parameters.items()},
        per_problem={k: v.float() for k, v in problem.per_problem.items()},
        goal=torch.zeros(3),
    )
    s = ocp.solve(low, starts="portfolio", progress=False)
    back = Solution.load(s.save(tmp_path / "low.npz"))
    assert back.controls.dtype == torch.float32
    assert back.extra.keys() == s.extra.keys() and int(back.extra["start"]) == int(s.extra["start"])


def test_a_solution_starts_the_next_solve(solved):
    _, problem, s = solved
    again = ocp.solve(problem, controls=s.controls, progress=False)
    assert int(again.iterations.max()) <= 1
    close(again.cost, s.cost, 1e-9)


def test_print_says_what_matters(solved):
    _, problem, s = solved
    text = str(s)
    assert "ddp" in text and "cost" in text and "residual" in text and "eager" in text
    assert "CONVERGED" in text
    assert max(map(len, text.splitlines())) < 130
    if problem.batched:
        assert "3 problems" in text
    assert "Solution(ddp" in repr(s)


def test_certificate_is_independent_of_how_the_solve_went():
    """Costates, residuals and value are recomputed at the trajectory, without damping."""
    problem = rich()
    s = ocp.solve(problem, max_iterations=2, damping_start=10.0, progress=False)
    us = list(s.controls)
    g = torch.cat(references.gradient(problem, us))
    close(float(s.hamiltonian_residual), float(g.abs().max()), 1e-11)
    oracle = references.ddp_sweep(problem, list(s.states), us, second_order=True)
    close(s.policy.K, np.stack(oracle.K))
    close(s.value.vxx, np.stack(oracle.vxx))
    assert float(s.residual) > 0


def test_costates_equal_the_gradient_of_the_value_at_an_optimum():
    s = ocp.solve(rich(), tolerance=1e-12, cost_tolerance=1e-24, progress=False)
    close(s.costates, s.value.vx, 1e-8)


def test_states_are_the_roll_out_and_the_gap_is_measured():
    problem = rich(batch=2)
    s = ocp.solve(problem, progress=False)
    for b in range(2):
        xs, J = references.roll_out(problem, list(s.controls[b]), b)
        close(s.states[b], torch.stack(xs), 1e-12)
        close(float(s.cost[b]), float(J), 1e-12)
    assert float(s.gap.max()) == 0.0 or float(s.gap.max()) < 1e-14
