"""What a step forms: no more than the theory says, whatever solves the system."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import ocp_nn
from ocp_nn.batch_ddp import BatchDDP
from ocp_nn.experiments import mlp
from ocp_nn.experiments.memory import Live


def step(widths: tuple[int, ...], B: int, linear_solver: str) -> tuple[Live, str]:
    """One step in float32, and the solver it took."""
    torch.manual_seed(0)
    inputs, *hidden, classes = widths
    x, y = torch.rand(B, inputs), torch.randint(0, classes, (B,))
    model = mlp((inputs,), classes, hidden, dtype=torch.float32)
    problem = ocp_nn.compile(model, "cross_entropy", x, y)
    solver = BatchDDP(damping=1.0, mini_batch=True, linear_solver=linear_solver)
    state = solver.init(problem, ocp_nn.initial_controls(problem))
    chosen = solver.chosen(state.engine.expand(state.xs, state.us))
    state = solver.init(problem, ocp_nn.initial_controls(problem))
    with Live() as live:
        after = solver.step(problem, state)
    assert after.cost < state.cost
    return live, chosen


def numbers(widths: tuple[int, ...], B: int) -> tuple[int, int, int]:
    """r, the parameters, and the entries of all Y_t."""
    r = B * (widths[-1] - 1)
    M = sum((n + 1) * m for n, m in pairwise(widths))
    return r, M, r * (2 * sum(widths[1:-1]) + widths[-1])


@pytest.mark.parametrize(
    ("widths", "B"), [((784, 512, 512, 100), 128), ((40, 32, 32, 10), 128), ((40, 32, 32, 100), 16)]
)
def test_large_batches_and_many_classes_form_nothing_of_size_r_by_r_or_m(widths, B):
    """Not (r, r) = 640 MB at first, nor (m, m), nor (r, m): the Y_t and vectors."""
    live, chosen = step(widths, B, "auto")
    r, M, ys = numbers(widths, B)
    assert chosen == "cg"
    assert live.largest <= 4 * max(r * max(widths[1:]), M)
    # Beside the Y_t: the next one on its way, activations, weights old and new.
    rest = 2 * r * max(widths[1:]) + 4 * B * sum(widths) + 2 * M
    assert live.peak <= 4 * (ys + rest)


def test_cholesky_forms_one_factor_of_r_by_r_a_layer():
    widths, B = (40, 32, 32, 100), 16
    live, _ = step(widths, B, "cholesky")
    r, M, ys = numbers(widths, B)
    assert live.largest == 4 * r * r
    # The factors of three layers, the sum they are made from, and a kernel that is added to it.
    assert live.peak <= 4 * (5 * r * r + 2 * ys + 2 * M)


def test_the_primal_side_forms_the_hessian_and_its_factor():
    widths, B = (6, 8, 20), 64
    live, chosen = step(widths, B, "auto")
    r, M, ys = numbers(widths, B)
    assert chosen == "primal"
    assert r > M
    pairs = max(B * n * n for n in widths)  # products of activations or cotangents of each sample
    assert live.largest <= 4 * max(M * M, pairs, ys)
    assert live.peak <= 4 * (3 * M * M + 3 * pairs + 2 * ys)


def test_live_counts_each_storage_once_and_forgets_what_is_gone():
    x = torch.ones(100)
    with Live() as live, torch.no_grad():
        y = x + 1
        views = [y[:50], y.view(10, 10), x[:3]]  # no new storage
        assert live.now == live.peak == live.largest == 400
        z = torch.zeros(1000)
        del z
        assert live.now == 400
        del y
        assert live.now == 400  # its views hold it
        views.clear()
        assert live.now == 0
    assert (live.peak, live.largest) == (4400, 4000)
