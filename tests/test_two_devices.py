"""What only a GPU would find: tensors of two devices in one operation, in all of the package's
Python. Programs for the GPU run thread by thread on the CPU (grid_calls), see two_devices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from grid_calls import Twin
from models import Resizing, cartpoles, resizing, rich
from native_cases import F64, needs_compiler
from references import close
from torch import Tensor, nn
from two_devices import GPU, placed, two_devices

import ocp
from ocp.engines.native import compiled, driver, grid
from ocp_nn.baselines import OPTIMIZERS, make_optimizer

pytestmark = needs_compiler

METHODS = ("ilqr", "ddp", "newton", "pmp")


class Loaded(Twin):
    """As `driver.Loaded`, without a driver."""

    entry = Path("nowhere")  # nothing is remembered of it


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("OCP_ENGINE", "auto")
    monkeypatch.setattr(grid, "form", lambda d, batch, processors: grid.Form(d > 5, 4))
    monkeypatch.setattr(grid, "processors", lambda device: 132)
    monkeypatch.setattr(driver, "fitting", lambda text, form, device: Loaded(text(form), form))
    monkeypatch.setattr(compiled, "_known", type(compiled._known)())
    with two_devices(monkeypatch):
        yield monkeypatch


def there(value: Any) -> Any:
    """Tensors, or whatever holds them, on the GPU."""
    if isinstance(value, dict):
        return {k: there(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(there, value))
    return torch.as_tensor(value).to("cuda")


def moved(p: ocp.Problem, **changes: Any) -> ocp.Problem:
    data = {"parameters": there(p.parameters), "per_problem": there(p.per_problem)}
    return p.replace(x0=p.x0.to("cuda"), **data, **changes)


def example(name: str) -> tuple[ocp.Problem, ocp.Problem]:
    """On the CPU, and on the GPU."""
    if name == "resizing":
        here, model = resizing(2), Resizing()
        model.W, model.V = there(model.W), there(model.V)
        return here, moved(here, dynamics=model.dynamics, cost=model)
    here = rich(3 if name == "batch" else None, 4)
    limits = (torch.full((2,), -0.2, dtype=F64), torch.full((2,), 0.25, dtype=F64))
    if name == "bounds":
        return here.replace(control_bounds=limits), moved(here, control_bounds=there(limits))
    return here, moved(here)


def agree(ours: ocp.Solution, theirs: ocp.Solution) -> None:
    for name in ("cost", "residual", "gap"):
        value = torch.as_tensor(getattr(ours, name))
        assert value.device == GPU, name
        close(value.cpu(), torch.as_tensor(getattr(theirs, name)), 1e-7)
    assert str(ours.status) == str(theirs.status)
    assert str(ours) and ours.controls[0].device == GPU


@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, "auto") for name in ("batch", "single", "bounds", "resizing")]
    + [(name, "eager") for name in ("bounds", "resizing")],
)
def test_no_solve_mixes_devices(gpu, name, engine):
    here, p = example(name)
    for method in METHODS if engine == "auto" else ("ddp", "pmp"):
        options = {"engine": engine, "max_iterations": 2}
        ours, theirs = ocp.solve(p, method, **options), ocp.solve(here, method, **options)
        assert ours.engine == {"auto": "cuda", "eager": "eager"}[engine]
        agree(ours, theirs)


def test_what_is_given_and_reported_stays_on_the_gpu(gpu):
    here, p = example("batch")
    rows: list[Any] = []
    us = 0.1 * torch.ones(3, 4, 2, dtype=F64)
    xs = 0.1 * torch.ones(3, 5, 3, dtype=F64)
    options = {"max_iterations": 4, "time_limit": 60.0}
    ours = ocp.solve(
        p, "ddp", controls=there(us), states=there(xs), callback=rows.append, **options
    )
    agree(ours, ocp.solve(here, "ddp", controls=us, states=xs, **options))
    assert rows
    again = ocp.solve(p, "ilqr", starts="portfolio", max_iterations=4)
    assert again.cost.device == GPU and "a thread for each problem" in p.compile_report()


def test_shared_controls_and_receding_horizons_stay_on_the_gpu(gpu):
    here = cartpoles(3, 5)
    ours = ocp.solve(moved(here, shared_controls=True), "ilqr", max_iterations=3)
    assert ours.engine == "cuda"
    theirs = ocp.solve(here.replace(shared_controls=True), "ilqr", max_iterations=3)
    close(ours.cost.cpu(), theirs.cost, 1e-7)
    plans = [ocp.RecedingHorizon(p, "ilqr", iterations=2) for p in (moved(here), here)]
    for _ in range(2):
        controls = [plan(x) for plan, x in zip(plans, (here.x0.to("cuda"), here.x0), strict=True)]
        assert controls[0].device == GPU
        close(controls[0].cpu(), controls[1], 1e-7)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_no_network_step_mixes_devices(gpu, name):
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    torch.manual_seed(0)
    batch = torch.randn(8, 6), torch.tensor([0, 1, 2, 1, 0, 0, 2, 1])
    layers = nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    models = nn.Sequential(*layers), nn.Sequential(*copy.deepcopy(layers))
    for tensor in models[0].parameters():
        placed(tensor, True)
    for k, model in enumerate(models):
        decay = {"weight_decay": 3.0} if name == "msa" else {}  # which leaves all bounds without
        optimizer = make_optimizer(name, model, **decay)
        for _ in range(2):
            optimizer.step(*(there(batch) if k == 0 else batch))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.allclose(a.detach().cpu(), b, atol=1e-4) for a, b in pairs)


def test_a_wrong_device_is_found(gpu):
    """The check of these checks."""
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="on cuda:0 and cpu"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="index_select"):
        x.index_select(0, torch.arange(2))
    same: Tensor = x[torch.arange(2)] + 2.0 * torch.ones(())
    assert same.device == GPU and torch.arange(3, device=x.device).device == GPU
    assert torch.func.vmap(torch.func.grad(lambda v: v**2))(x).device == GPU
    assert x.cpu().device.type == "cpu" and not x.cpu().is_cuda
