"""The decisions of the loop, one rule a test: pure numbers in, numbers out."""

import math

import pytest
import torch

from ocp import Status
from ocp.solvers.decide import Record, Rules, decide

SIZES = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
RULES = Rules()


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def record(B=1, **changes):
    """A step that promises and brings a decrease of 1 at full size: slope -2, curvature 2."""
    ones = torch.ones(B, dtype=torch.float64)
    zero = torch.zeros(B, dtype=torch.int64)
    expected = 2 * SIZES[:, None] - SIZES[:, None] ** 2
    values = {
        "cost": 10 * ones,
        "gap": 0 * ones,
        "slope": -2 * ones,
        "curvature": 2 * ones,
        "residual": ones,
        "usable": ones > 0,
        "finite": ones > 0,
        "trial_cost": 10 - expected * ones,
        "trial_finite": (SIZES[:, None] * ones) > 0,
        "start_cost": 20 * ones,
        "damping": 1e-6 * ones,
        "penalty": 0 * ones,
        "second_order": ones < 0,
        "weak": zero,
        "status": zero + int(Status.RUNNING),
        "iterations": zero,
    }
    return Record(**{**values, **changes})


def test_the_largest_step_with_enough_decrease_is_taken():
    d = decide(record(), SIZES, RULES)
    assert bool(d.accepted) and int(d.choice) == 0 and float(d.step_size) == 1.0
    assert float(d.expected) == pytest.approx(1.0) and float(d.decrease) == pytest.approx(1.0)
    assert int(d.rollouts) == 1 and int(d.iterations) == 1
    assert int(d.status) == Status.RUNNING
    # At size 1 and 1/2 the cost rises; 1/4 brings 0.1 of the 0.4375 promised: above armijo.
    d = decide(record(trial_cost=tensor([[11.0], [10.5], [9.9]])), SIZES, RULES)
    assert bool(d.accepted) and float(d.step_size) == 0.25 and int(d.rollouts) == 3
    assert float(d.expected) == pytest.approx(0.4375) and float(d.decrease) == pytest.approx(0.1)
    # 0.04 is below armijo * 0.4375: refused.
    d = decide(record(trial_cost=tensor([[11.0], [10.5], [9.96]])), SIZES, RULES)
    assert not bool(d.accepted) and float(d.step_size) == 0.0 and int(d.rollouts) == 3


def test_damping_falls_after_a_step_and_rises_after_none():
    accepted = decide(record(damping=tensor([1e-3])), SIZES, RULES)
    assert float(accepted.damping) == pytest.approx(1e-3 * RULES.damping_down)
    least = decide(record(damping=tensor([RULES.damping_min])), SIZES, RULES)
    assert 0 <= float(least.damping) <= RULES.damping_min
    worse = torch.full((3, 1), 11.0, dtype=torch.float64)
    refused = decide(record(damping=tensor([1e-3]), trial_cost=worse), SIZES, RULES)
    assert float(refused.damping) == pytest.approx(1e-3 * RULES.damping_up)
    assert int(refused.status) == Status.RUNNING
    from_none = decide(record(damping=tensor([0.0]), trial_cost=worse), SIZES, RULES)
    assert float(from_none.damping) > 0
    last = decide(record(damping=tensor([2e9]), trial_cost=worse), SIZES, RULES)
    assert int(last.status) == Status.STALLED


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_is_refused(bad):
    trials, fine = tensor([[bad], [9.5], [9.6]]), torch.tensor([[False], [True], [True]])
    d = decide(record(trial_cost=trials, trial_finite=fine), SIZES, RULES)
    assert bool(d.accepted) and float(d.step_size) == 0.5
    assert math.isfinite(float(d.decrease))


def test_an_unusable_direction_is_refused_and_damped():
    d = decide(record(usable=torch.tensor([False])), SIZES, RULES)
    assert not bool(d.accepted) and float(d.damping) > 1e-6


def test_derivatives_that_are_not_finite_stop_the_problem():
    d = decide(record(finite=torch.tensor([False])), SIZES, RULES)
    assert int(d.status) == Status.NON_FINITE and not bool(d.accepted) and int(d.iterations) == 0


def small(**changes):
    """Nothing left to gain: residual and promise below the tolerances."""
    values = {"residual": tensor([1e-9]), "slope": tensor([-2e-14]), "curvature": tensor([2e-14])}
    return record(**{**values, "trial_cost": torch.full((3, 1), 10.0).double(), **changes})


def test_convergence_needs_residual_promise_gaps_and_a_small_damping_together():
    d = decide(small(), SIZES, RULES)
    assert int(d.status) == Status.CONVERGED and not bool(d.accepted) and int(d.iterations) == 0
    for spoiled in (
        {"residual": tensor([1e-3])},
        {"residual": tensor([math.nan])},
        {"slope": tensor([-2e-3]), "curvature": tensor([2e-3])},
        {"gap": tensor([1e-3])},
        {"damping": tensor([1.0])},
        {"usable": torch.tensor([False])},
    ):
        assert int(decide(small(**spoiled), SIZES, RULES).status) != Status.CONVERGED, spoiled


def test_three_weak_steps_in_a_row_are_the_end_of_precision():
    tiny = {"residual": tensor([1e-3])}
    first = decide(small(**tiny), SIZES, RULES)
    assert int(first.weak) == 1 and int(first.status) == Status.RUNNING
    third = decide(small(**tiny, weak=torch.tensor([2])), SIZES, RULES)
    assert int(third.status) == Status.PRECISION
    assert int(decide(record(weak=torch.tensor([2])), SIZES, RULES).weak) == 0


def test_iterations_run_out_but_convergence_wins():
    d = decide(record(iterations=torch.tensor([999])), SIZES, RULES)
    assert int(d.status) == Status.MAX_ITERATIONS and bool(d.accepted)
    d = decide(small(iterations=torch.tensor([999])), SIZES, RULES)
    assert int(d.status) == Status.CONVERGED


def test_a_bottomless_cost_is_called_unbounded():
    falling = tensor([[-1e20], [-1e19], [-1e18]])
    d = decide(record(trial_cost=falling), SIZES, RULES)
    assert int(d.status) == Status.UNBOUNDED


def test_second_order_begins_when_a_step_gains_little_and_stays():
    assert not bool(decide(record(), SIZES, RULES).second_order)
    gain = 0.05 * (2 * SIZES[:, None] - SIZES[:, None] ** 2)
    gentle = record(slope=tensor([-0.1]), curvature=tensor([0.1]), trial_cost=10 - gain)
    assert bool(decide(gentle, SIZES, RULES).second_order)
    assert bool(decide(record(second_order=torch.tensor([True])), SIZES, RULES).second_order)


def test_the_penalty_makes_closing_gaps_a_descent():
    """J is predicted to rise by 1 while a gap of 2 closes."""
    rising = record(
        slope=tensor([1.0]), curvature=tensor([0.0]), gap=tensor([2.0]),
        trial_cost=10 + SIZES[:, None],
    )  # fmt: skip
    d = decide(rising, SIZES, RULES)
    least = 1.0 / (0.5 * 2.0)
    assert float(d.penalty) == pytest.approx(RULES.penalty_margin * least)
    # merit falls from J + nu 2 to J + 1
    assert bool(d.accepted) and float(d.step_size) == 1.0
    assert float(d.expected) == pytest.approx(2 * float(d.penalty) - 1)
    assert float(d.decrease) == pytest.approx(2 * float(d.penalty) - 1)
    kept = decide(record(penalty=tensor([7.0])), SIZES, RULES)
    assert float(kept.penalty) == 7.0, "a penalty never falls"


def test_problems_are_decided_alone():
    """Row by row the same answer as in a batch of one, nan next door included."""
    rows = [
        record(),
        record(finite=torch.tensor([False]), cost=tensor([math.nan]), slope=tensor([math.nan])),
        small(),
        record(trial_cost=tensor([[math.inf]] * 3), trial_finite=torch.zeros(3, 1).bool()),
        record(gap=tensor([2.0]), slope=tensor([1.0])),
        record(status=torch.tensor([int(Status.CONVERGED)])),
    ]
    joined = [torch.cat(parts, dim=-1) for parts in zip(*rows, strict=True)]
    together = decide(Record(*joined), SIZES, RULES)
    for b, row in enumerate(rows):
        for name, value in decide(row, SIZES, RULES)._asdict().items():
            batch = getattr(together, name)[..., b]
            assert torch.equal(batch, value[..., 0]) or bool(batch.isnan()), (b, name)


def test_a_finished_problem_does_not_move():
    done = record(status=torch.tensor([int(Status.STALLED)]), iterations=torch.tensor([7]))
    d = decide(done, SIZES, RULES)
    assert int(d.status) == Status.STALLED and int(d.iterations) == 7
    assert not bool(d.accepted) and float(d.step_size) == 0 and int(d.rollouts) == 0
    assert float(d.damping) == 1e-6


def test_tolerances_follow_the_dtype_and_can_be_given():
    assert Rules().tolerances(torch.float64) < Rules().tolerances(torch.float32)
    assert Rules(tolerance=0.5).tolerances(torch.float32)[0] == 0.5


def test_a_first_step_the_model_did_not_predict_is_taken_back_and_damped():
    """Unless it is exact, as in a linear-quadratic problem, or there are gaps to close."""
    first = {"damping": tensor([0.0])}
    off = tensor([[9.7], [9.7], [9.7]])  # 0.3 of the 1 that was promised
    leap = decide(record(**first, trial_cost=off), SIZES, RULES)
    assert not bool(leap.accepted) and float(leap.damping) == RULES.first_damping
    assert float(leap.step_size) == 0 and int(leap.status) == Status.RUNNING
    assert bool(decide(record(**first), SIZES, RULES).accepted)  # as promised
    for change in ({"iterations": torch.tensor([1])}, {"damping": tensor([1e-6])}):
        assert bool(decide(record(**(first | change), trial_cost=off), SIZES, RULES).accepted)
