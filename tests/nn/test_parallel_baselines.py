"""Baselines on two processes with a part of the batch each: the step of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from processes import needs_gloo
from torch import Tensor, nn
from zoo import F64

from ocp_nn.baselines import KFAC, make_optimizer

pytestmark = needs_gloo

STEPS = 4
SHARDS = (slice(0, 3), slice(3, 8))


class Case(NamedTuple):
    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    loss: str = "cross_entropy"
    images: bool = False


CASES = {
    "sgd": Case("sgd"),
    "momentum": Case("momentum", loss="mse"),
    "rmsprop": Case("rmsprop"),
    "adam": Case("adam", {"weight_decay": 0.1}),
    "adamw": Case("adamw"),
    "muon": Case("muon"),
    "lbfgs": Case("lbfgs", {"max_iter": 3}),
    "kfac exact": Case("kfac", {"statistics": "exact", "refresh": 2}),
    "kfac sampled": Case("kfac", {"statistics": "sampled", "momentum": 0.5}),
    "kfac sampled huber": Case("kfac", {"statistics": "sampled"}, loss="huber"),
    "kfac empirical": Case("kfac", {"statistics": "empirical", "kl_clip": 1e-3}),
    "kfac images": Case("kfac", {"statistics": "exact"}, images=True),
    "ekfac": Case("ekfac", {"statistics": "exact", "refresh": 2}),
    "ekfac images": Case("ekfac", {"statistics": "empirical"}, images=True),
    "kwng": Case("kwng", {"adapt_every": 2}),
    "lm": Case("lm", loss="mse"),
    "lm diagonal": Case("lm", {"scaling": "diagonal", "damping": 1.0}, loss="huber"),
    "lm primal": Case("lm", {"scaling": "diagonal"}, loss="mse", images=True),
}
if not hasattr(torch.optim, "Muon"):  # it came with torch 2.9
    del CASES["muon"]


def model_of(case: Case) -> nn.Module:
    if case.images:
        return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 4), nn.Flatten(), nn.Tanh(),
                             nn.Linear(2, 3, bias=False)).double()  # fmt: skip
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(step: int, case: Case) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0 if case.name in ("lm", "lbfgs") else step)
    x = torch.randn(8, 4, generator=g, dtype=F64)
    squares = x[:, :3] ** 2
    return x, squares.argmax(dim=1) if case.loss == "cross_entropy" else squares


def run(name: str, rank: int | None) -> tuple[Tensor, Tensor]:
    """Weights and losses after some steps."""
    case = CASES[name]
    torch.manual_seed(1 + (rank or 0))
    model = model_of(case)
    group = {} if rank is None else {"process_group": "default"}
    optimizer = make_optimizer(case.name, model, case.loss, **case.options, **group)
    part = slice(None) if rank is None else SHARDS[rank]
    losses = [optimizer.step(*(v[part] for v in data(s, case))) for s in range(STEPS)]
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return weights, torch.stack([loss.detach() for loss in losses])


def norm(rank: int) -> str:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    try:
        KFAC(model, rest_lr=0.1, process_group="default").step(*data(0, CASES["sgd"]))
    except ValueError as error:
        return str(error)
    return "not refused"


def everything(rank: int) -> dict[str, Any]:
    return {"runs": {name: run(name, rank) for name in CASES}, "norm": norm(rank)}


@pytest.fixture(scope="module")
def parts(pair):
    return pair(everything)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one(parts, name):
    weights, losses = run(name, None)
    (first, seen), (second, also_seen) = (part["runs"][name] for part in parts)
    torch.testing.assert_close(first, weights, rtol=0, atol=1e-9 * float(weights.abs().max()))
    torch.testing.assert_close(seen, losses, rtol=1e-9, atol=0)
    assert torch.equal(first, second) and torch.equal(seen, also_seen)


def test_batch_norm_on_a_part_of_the_batch_is_refused(parts):
    for part in parts:
        assert "process_group: 1 is batch norm" in part["norm"]


def test_a_group_needs_processes():
    for name in sorted({case.name for case in CASES.values()} - {"lbfgs"}):
        with pytest.raises(ValueError, match=r"process_group needs torch\.distributed"):
            make_optimizer(name, model_of(CASES["sgd"]), process_group="default")
