"""The problem type: what it derives, and the linear-quadratic builder."""

import numpy as np
import pytest
import references
import torch
from models import CONTROLS, SIZES, resizing, rich
from references import close, lists_close

import ocp
from ocp.linear_quadratic import linear_quadratic
from ocp.problem import takes_parameters

F64 = torch.float64


def test_sizes_and_batches_are_derived():
    one, many, shared = rich(), rich(batch=3), rich(batch=3, shared_controls=True)
    assert (one.batch, many.batch, shared.batch) == (1, 3, 1)
    assert (one.samples, many.samples, shared.samples) == (1, 1, 3)
    assert (one.batched, many.batched, shared.batched) == (False, True, False)
    assert one.state_dims == (3,) * 6 and one.control_dims == (2,) * 5 and one.uniform
    changing = resizing()
    assert changing.state_dims == SIZES and changing.control_dims == CONTROLS
    assert not changing.uniform


def test_bounds_in_every_form_are_the_same_bounds():
    lo, hi = [-1.0, -2.0], [1.0, 3.0]
    forms = [
        (lo, hi),
        (torch.tensor(lo), torch.tensor(hi)),
        (np.array([lo] * 5), np.array([hi] * 5)),
        ([torch.tensor(lo)] * 5, [torch.tensor(hi)] * 5),
        ([lo] * 5, [hi] * 5),
    ]
    for form in forms:
        problem = rich(control_bounds=form)
        assert problem.lower.shape == (5, 1, 2) and problem.lower.dtype == F64
        close(problem.lower[3, 0], torch.tensor(lo, dtype=F64))
        close(problem.upper[0, 0], torch.tensor(hi, dtype=F64))
    one = rich(horizon=1, control_bounds=([torch.tensor(lo)], [torch.tensor(hi)]))
    close(one.lower[0, 0], torch.tensor(lo, dtype=F64))
    square = rich(horizon=2, control_bounds=(lo, hi))  # T == m: a plain list is one bound
    close(square.upper[1, 0], torch.tensor(hi, dtype=F64))
    changing = resizing(
        control_bounds=([-torch.ones(m) for m in CONTROLS], [torch.ones(m) for m in CONTROLS])
    )
    assert [tuple(b.shape) for b in changing.lower] == [(1, m) for m in CONTROLS]


def test_functions_say_by_their_arguments_whether_they_want_the_parameters():
    three, four = ("x", "u", "t"), lambda x, u, t, p: x
    assert not takes_parameters(lambda x, u, t: x, three)
    assert takes_parameters(four, three)
    assert not takes_parameters(lambda x, u, t, gain=2.0: x, three)
    assert takes_parameters(lambda *args: args, three)
    assert not takes_parameters(torch.nn.Bilinear(3, 2, 3).forward, ("x", "u"))
    with pytest.raises(TypeError, match="5 arguments"):
        takes_parameters(lambda x, u, t, p, more: x, three)


def test_repeat_is_copy_by_copy():
    problem = rich(batch=2, goal=torch.arange(6, dtype=F64).reshape(2, 3))
    many = problem.repeat(3)
    for k in range(3):
        for b in range(2):
            row = k * 2 + b
            assert torch.equal(many.x0[row], problem.x0[b])
            assert torch.equal(many.goal[row], problem.goal[b])
            assert torch.equal(many.per_problem["mass"][row], problem.per_problem["mass"][b])
    assert rich().repeat(4).x0.shape == (4, 3)
    with pytest.raises(ValueError, match="shared_controls"):
        rich(batch=2, shared_controls=True).repeat(2)


def test_replace_checks_again_and_keeps_the_rest():
    problem = rich(batch=2, control_bounds=([-1.0, -1.0], [1.0, 1.0]))
    other = problem.replace(x0=torch.zeros(2, 3, dtype=F64))
    assert torch.equal(other.lower, problem.lower) and other.parameters.keys() == {
        "gain",
        "reference",
    }
    with pytest.raises(ValueError, match="per_problem"):
        problem.replace(x0=torch.zeros(4, 3, dtype=F64))


# -- linear-quadratic problems -------------------------------------------------------------------
def matrices(n=3, m=2, seed=0):
    (stage,), Q_final, q_final, x0 = references.random_lq((n, n), (m,), seed)
    return stage, Q_final, q_final, x0


def test_constant_time_varying_and_listed_matrices_are_the_same_problem():
    stage, Q_final, q_final, x0 = matrices()
    T, fields = 4, stage._asdict()
    expected = references.dense_kkt([stage] * T, Q_final, q_final, x0)
    ends = {"Q_final": Q_final, "q_final": q_final}
    stacked = {k: np.stack([v] * T) for k, v in fields.items()}
    forms = {
        "constant": linear_quadratic(**fields, x0=x0, horizon=T, **ends),
        "stacked": linear_quadratic(**stacked, x0=x0, **ends),
        "listed": linear_quadratic(**{k: [v] * T for k, v in fields.items()}, x0=x0, **ends),
        "mixed": linear_quadratic(**{**fields, "A": [stage.A] * T}, x0=x0, **ends),
    }  # fmt: skip
    for name, problem in forms.items():
        assert not problem.stagewise, name
        solution = ocp.solve(problem, "lqr", progress=False)
        assert solution.status == ocp.Status.CONVERGED, name
        lists_close(solution.states, expected[0])
        lists_close(solution.controls, expected[1])
        close(float(solution.cost), expected[3])


def test_the_matrices_are_data():
    stage, Q_final, q_final, x0 = matrices()
    problem = linear_quadratic(
        **stage._asdict(), x0=x0, horizon=3, Q_final=Q_final, q_final=q_final
    )
    assert set(problem.parameters) == {*"ABQRcNqr", "Q_final", "q_final"}
    changed = stage._replace(A=0.5 * stage.A)
    other = problem.replace(parameters={**problem.parameters, "A": changed.A})
    expected = references.dense_kkt([changed] * 3, Q_final, q_final, x0)
    lists_close(ocp.solve(other, "lqr", progress=False).controls, expected[1])


def test_what_is_left_out_is_zero():
    stage, Q_final, _, x0 = matrices()
    problem = linear_quadratic(stage.A, stage.B, stage.Q, stage.R, x0, Q_final=Q_final, horizon=3)
    bare = stage._replace(c=0 * stage.c, N=0 * stage.N, q=0 * stage.q, r=0 * stage.r)
    expected = references.dense_kkt([bare] * 3, Q_final, np.zeros(3), x0)
    lists_close(ocp.solve(problem, "lqr", progress=False).controls, expected[1])
    free_end = linear_quadratic(stage.A, stage.B, stage.Q, stage.R, x0, horizon=3)
    expected = references.dense_kkt([bare] * 3, 0 * Q_final, np.zeros(3), x0)
    lists_close(ocp.solve(free_end, "lqr", progress=False).controls, expected[1])


LQ_MISTAKES = [
    ("horizon", {}),
    ("numbers of stages differ", {"A": torch.zeros(4, 3, 3), "horizon": 5}),
    ("B at stage 0 has shape", {"B": torch.zeros(2, 2), "horizon": 3}),
    ("Q at stage 0 has shape", {"Q": torch.zeros(2, 2), "horizon": 3}),
    ("N at stage 0 has shape", {"N": torch.zeros(3, 2), "horizon": 3}),
    ("R must be a matrix", {"R": torch.ones(2), "horizon": 3}),
    ("c is not finite", {"c": torch.full((3,), torch.nan), "horizon": 3}),
    ("Q_final has shape", {"Q_final": torch.eye(2), "horizon": 3}),
    ("q_final must be a vector", {"q_final": torch.eye(3), "horizon": 3}),
    ("R is None", {"R": None, "horizon": 3}),
    ("A must be a tensor", {"A": "identity", "horizon": 3}),
]


@pytest.mark.parametrize(("words", "changes"), LQ_MISTAKES)
def test_matrices_that_do_not_fit_are_named(words, changes):
    stage, _, _, x0 = matrices()
    arguments = {"A": stage.A, "B": stage.B, "Q": stage.Q, "R": stage.R, "x0": x0}
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        linear_quadratic(**{**arguments, **changes})
    print(caught.value)


def test_a_stage_in_a_list_that_does_not_fit_is_named():
    stages, Q_final, q_final, x0 = references.random_lq((3, 2, 4), (1, 2), 0)
    stages[1] = stages[1]._replace(A=stages[1].A.T)
    with pytest.raises(ValueError, match="at stage 1 has shape"):
        references.lq_problem(stages, Q_final, q_final, x0)


def test_other_data_of_the_same_form_are_checked_without_trying_the_functions():
    problem, calls = rich(batch=2), []
    f = problem.dynamics
    counted = problem.replace(dynamics=lambda x, u, t, p: calls.append(0) or f(x, u, t, p))
    made = len(calls)
    mass = torch.tensor([2.0, 3.0], dtype=F64)
    other = counted.replace(x0=counted.x0 + 1, per_problem={"mass": mass}, goal=[0.0, 1.0, 2.0])
    assert len(calls) == made
    assert torch.equal(other.x0, problem.x0 + 1) and torch.equal(other.per_problem["mass"], mass)
    assert other.goal.tolist() == [0.0, 1.0, 2.0] and counted.goal is None
    assert not torch.equal(counted.x0, other.x0)
    for bad in (
        {"x0": torch.full((2, 3), torch.nan)},
        {"per_problem": {"mass": torch.ones(3)}},
        {"parameters": {"gain": 1.0}},  # the reference is missing
        {"goal": [0.0]},
    ):
        with pytest.raises(ValueError):
            counted.replace(**bad)
    with pytest.raises(TypeError, match="float32"):  # another dtype: the functions are tried again
        counted.replace(x0=torch.zeros(2, 3))
