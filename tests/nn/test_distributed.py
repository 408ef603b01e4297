"""Data parallel: processes with a part of the batch each take the step of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from processes import example, needs_gloo
from torch import Tensor, nn
from zoo import F64

from ocp_nn import DDPOptimizer
from ocp_nn.optimizer import DivergedError

pytestmark = needs_gloo

STEPS = 3
SHARDS = (slice(0, 3), slice(3, 8))  # of a batch of 8: not the same number in each process


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)
    )


def skips() -> nn.Module:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            return self.c(h + torch.tanh(self.b(h)))

    return Skips()


def normed() -> nn.Module:
    """A Tanh before the end: behind a linear map alone G has directions that any basis may turn."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(),
        nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


class Case(NamedTuple):
    options: dict[str, Any]
    make: Callable[[], nn.Module] = plain
    dtype: torch.dtype = F64
    tolerance: float = 1e-10


CASES = {
    "cholesky": Case({"solver": "cholesky"}),
    "small damping": Case({"solver": "cholesky", "damping": 0.1}),
    "conjugate gradients": Case({"solver": "cg"}, tolerance=1e-8),
    "primal": Case({"solver": "primal", "damping": 0.3}),
    "float32": Case({"solver": "cholesky"}, dtype=torch.float32, tolerance=1e-6),
    "float32 primal": Case({"solver": "primal"}, dtype=torch.float32, tolerance=1e-6),
    "linear roll-out": Case({"feedback": "linear"}),
    "weight decay": Case({"weight_decay": 0.1}),
    "terminal damping": Case({"terminal_damping": 0.1}),
    "huber": Case({"loss": "huber"}),
    "huber primal": Case({"loss": "huber", "solver": "primal", "weight_decay": 0.1}),
    "mse": Case({"loss": "mse"}),
    "rmsprop": Case({"metric": "rmsprop", "lr": 0.05}),
    "adam": Case({"metric": "adam", "lr": 0.05}),
    "kfac": Case({"metric": "kfac", "lr": 0.3, "refresh": 2}),
    "kfac of gradients": Case({"metric": "kfac", "lr": 0.3, "statistics": "gradient"}),
    "ekfac": Case({"metric": "ekfac", "lr": 0.3, "refresh": 2}),
    "ekfac, conjugate gradients": Case({"metric": "ekfac", "solver": "cg"}, tolerance=1e-8),
    "paper": Case({"metric": "ekfac", "lr": 0.1, "form": "paper", "statistics": "value"}),
    "stagewise": Case({"form": "stagewise"}),
    "gradient": Case({"metric": "rmsprop", "lr": 0.05, "form": "gradient"}),
    "gradient of ekfac": Case({"metric": "ekfac", "lr": 0.1, "form": "gradient"}),
    "line search": Case({"line_search": True, "damping": 0.01}),
    "adaptive": Case({"damping": "adaptive"}),
    "adaptive, full batch": Case({"damping": "adaptive", "full_batch": True}),
    "convolution": Case({"solver": "cholesky"}, convolution),
    "convolution, conjugate gradients": Case({"solver": "cg"}, convolution, tolerance=1e-8),
    "convolution primal": Case({"solver": "primal"}, convolution),
    "convolution ekfac": Case({"metric": "ekfac", "lr": 0.3}, convolution),
    "skips": Case({"solver": "cholesky"}, skips),
    "skips, conjugate gradients": Case({"solver": "cg"}, skips, tolerance=1e-8),
    "frozen batch norm": Case({"batch_norm": "frozen", "damping": 0.3}, normed),
    "frozen batch norm, same data": Case({"batch_norm": "frozen", "full_batch": True}, normed),
    "frozen batch norm ekfac": Case({"batch_norm": "frozen", "metric": "ekfac", "lr": 0.1}, normed),
    "nothing tuned": Case({}),
    "nothing tuned, paper": Case({"metric": "rmsprop", "form": "paper"}),
    "convolution kfac": Case({"metric": "kfac", "lr": 0.3}, convolution),
    "skips ekfac": Case({"metric": "ekfac", "lr": 0.3}, skips),
}


def data(step: int, case: Case) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0 if case.options.get("full_batch") else step)
    x = torch.randn(8, 4, generator=g, dtype=F64).to(case.dtype)
    squares = x[:, :3] ** 2
    return x, squares if case.options.get("loss") in ("huber", "mse") else squares.argmax(dim=1)


def train(name: str, rank: int | None) -> tuple[Tensor, Tensor]:
    """Weights after some steps, and the losses they reported."""
    case = CASES[name]
    torch.manual_seed(1 + (rank or 0))  # the first process's weights are everybody's
    model = case.make().to(case.dtype)
    group = None if rank is None else "default"
    optimizer = DDPOptimizer(model, process_group=group, **case.options)
    part = slice(None) if rank is None else SHARDS[rank]
    losses = [optimizer.step(*(v[part] for v in data(s, case))) for s in range(STEPS)]
    values = [v.detach().reshape(-1).to(case.dtype) for v in model.state_dict().values()]
    return torch.cat(values), torch.stack(losses)


def message(rank: int, **options: Any) -> str:
    norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    case = Case({})
    optimizer = DDPOptimizer(norm.to(F64), process_group="default", **options)
    try:
        optimizer.step(*(v[SHARDS[rank]] for v in data(0, case)))
    except ValueError as error:
        return str(error)
    return "not refused"


def dropout_masks(rank: int) -> Tensor:
    """First state of each process with the same inputs: the last column is the key of the mask."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).to(F64)
    optimizer = DDPOptimizer(model, process_group="default", dropout=0)
    x, y = data(0, Case({}))
    optimizer.step(x, y)
    assert optimizer.problem is not None
    return optimizer.problem.x0


def diverge(rank: int) -> tuple[str, bool]:
    """Steps on scaled data until one is not finite: the message, and whether weights are finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 3)).to(F64)
    optimizer = DDPOptimizer(model, "mse", process_group="default", form="gradient", lr=1e6)
    x, y = (v[SHARDS[rank]] for v in data(0, Case({"loss": "mse"})))
    try:
        for _ in range(200):
            optimizer.step(x, y)
    except DivergedError as error:
        return str(error), all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return "no divergence", False


def everything(rank: int) -> dict[str, Any]:
    """One start of processes for all tests of this file."""
    return {
        "trained": {name: train(name, rank) for name in CASES},
        "exact": message(rank),
        "dropout": dropout_masks(rank),
        "diverged": diverge(rank),
        "example": example("data_parallel.py", steps=3),
    }


@pytest.fixture(scope="module")
def parts(pair):
    return pair(everything)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one(parts, name):
    expected, losses = train(name, None)
    first, second = (part["trained"][name] for part in parts)
    scale = float(expected.abs().max())
    torch.testing.assert_close(first[0], expected, rtol=0, atol=scale * CASES[name].tolerance)
    torch.testing.assert_close(first[1], losses, rtol=CASES[name].tolerance, atol=0)
    assert torch.equal(first[0], second[0])  # bit for bit, or they would drift apart
    assert torch.equal(first[1], second[1])


def test_the_feedback_of_the_other_process_is_seen():
    """What the equality above would miss, were the gains left out on both sides."""
    full, linear = train("cholesky", None)[0], train("linear roll-out", None)[0]
    assert (full - linear).abs().max() > 1e-4


def test_exact_batch_norm_is_refused_with_the_way_out(parts):
    for part in parts:
        assert "process_group: stage 1 (1) is batch norm" in part["exact"]
        assert "batch_norm='frozen'" in part["exact"]


def test_a_step_that_diverges_is_refused_by_all(parts):
    (first, kept), (second, also_kept) = (part["diverged"] for part in parts)
    assert first.startswith("step ") and first.split()[:3] == second.split()[:3]
    assert kept and also_kept


def test_dropout_draws_other_masks_in_each_process(parts):
    first, second = (part["dropout"] for part in parts)
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


def test_the_example_runs(parts):
    first, second = (part["example"] for part in parts)
    assert first == second < 1.5


def test_a_group_needs_processes():
    with pytest.raises(ValueError, match=r"process_group needs torch\.distributed: .* torchrun"):
        DDPOptimizer(plain(), process_group="default")
