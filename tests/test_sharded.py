"""A batch solved by several processes together is the batch solved by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import Pair, example, needs_gloo
from torch import Tensor

import ocp
from ocp.starts import Guess

pytestmark = needs_gloo


def push(x: Tensor, u: Tensor, t: Tensor, p: dict[str, Tensor]) -> Tensor:
    return torch.stack((x[1], (u[0] - torch.sin(x[0])) / p["mass"]))


class Effort:
    def stage(self, x: Tensor, u: Tensor, t: Tensor) -> Tensor:
        return 0.05 * u @ u + 0.2 * (u**4).sum()

    def terminal(self, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        return 10 * (x - p["goal"]).square().sum()


def batch(B: int = 5) -> ocp.Problem:
    """Members that need different numbers of iterations."""
    masses = torch.linspace(0.3, 1.5, B, dtype=torch.float64)
    return ocp.Problem(
        ocp.rk4(push, dt=0.1),
        Effort(),
        x0=torch.stack((torch.linspace(0.1, 2.5, B).double(), torch.zeros(B).double()), dim=1),
        horizon=6,
        control_dim=1,
        control_bounds=(-3.0 * torch.ones(1), 3.0 * torch.ones(1)),
        per_problem={"mass": masses, "goal": torch.stack((masses, 0 * masses), dim=1)},
    )


def growing() -> ocp.Problem:
    """Two states at first, three later."""

    def f(x: Tensor, u: Tensor, t: int) -> Tensor:
        return torch.cat((torch.sin(x[:2]) + u[:1], u[-1:])) if t == 0 else 0.9 * x + u.sum()

    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)
    x0 = torch.tensor([[1.0, 0.5], [0.2, -1.0], [2.0, 0.0]], dtype=torch.float64)
    return ocp.Problem(f, cost, x0=x0, horizon=3, control_dim=[2, 1, 1], stagewise=True)


def controls(B: int) -> Tensor:
    return torch.sin(torch.arange(6.0 * B, dtype=torch.float64)).reshape(B, 6, 1)


SHARED: dict[str, Any] = {"engine": "eager", "max_iterations": 12}


def earlier() -> ocp.Solution:
    return ocp.solve(batch(), **{**SHARED, "max_iterations": 1})


CASES: dict[str, Callable[[], tuple[ocp.Problem, dict[str, Any]]]] = {
    "plain": lambda: (batch(), {}),
    "controls": lambda: (batch(), {"controls": controls(5), "method": "ilqr"}),
    "one guess for all": lambda: (batch(), {"starts": Guess(controls(5)[0])}),
    "states": lambda: (
        batch(),
        {"states": batch().x0[:, None].expand(5, 7, 2), "controls": controls(5)},
    ),
    "starts": lambda: (batch(), {"starts": [ocp.starts.zero, ocp.starts.warm(earlier())]}),
    "earlier solution": lambda: (batch(), {"starts": earlier()}),
    "sizes that change": lambda: (growing(), {}),
    "fewer problems than processes": lambda: (batch(1), {}),
}


def arguments(name: str) -> tuple[ocp.Problem, dict[str, Any]]:
    problem, options = CASES[name]()
    return problem, {**SHARED, **options}


def refusal(problem: ocp.Problem, **options: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        ocp.solve_sharded(problem, **options)
    return str(caught.value)


def everything(rank: int) -> dict[str, Any]:
    solutions = {}
    for name in CASES:
        problem, options = arguments(name)
        solutions[name] = ocp.solve_sharded(problem, **options)
    one = batch().replace(x0=[1.0, 0.0], per_problem={"mass": [1.0], "goal": [[0.0, 0.0]]})
    return {
        "solutions": solutions,
        "no batch": refusal(one),
        "example": example("many_pendulums.py", batch=3, horizon=8),
        "no group": refusal(batch(), group=2),
    }


@pytest.fixture(scope="module")
def parts(pair: Pair) -> list[dict[str, Any]]:
    return pair(everything)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_return_the_solution_of_one(parts, name):
    problem, options = arguments(name)
    expected = ocp.solve(problem, **options)
    one, other = (part["solutions"][name] for part in parts)
    wanted, got = flat(expected), flat(one)
    assert wanted.keys() == got.keys()
    for key, value in wanted.items():
        if key.startswith("history.") or key == "seconds":
            continue
        same(got[key], value)
    same(flat(other), got)
    running = expected.history["running"]
    assert torch.equal(one.history["running"], running)
    for key, value in expected.history.items():
        if key != "seconds":
            same(one.history[key][running], value[running])
    assert len(one.history["seconds"]) == len(running)
    assert str(one).splitlines()[0].split(",")[0] == str(expected).splitlines()[0].split(",")[0]


def test_members_stop_at_different_iterations():
    """Else the padding of histories would not be seen."""
    problem, options = arguments("plain")
    counts = ocp.solve(problem, **options).iterations
    assert counts[:2].max() != counts[2:].max()


def test_the_example_runs(parts):
    for part in parts:
        assert part["example"].states.shape == (3, 9, 2)
        assert bool(part["example"].converged.all())


def test_what_cannot_be_divided_is_refused(parts):
    for part in parts:
        assert part["no batch"] == "problem is no batch, x0 has shape (2,): ocp.solve."
        assert part["no group"].startswith("group must be 'default' or a group")
    with pytest.raises(ValueError, match=r"group needs torch\.distributed: .* torchrun"):
        ocp.solve_sharded(batch())


def flat(solution: ocp.Solution) -> dict[str, Any]:
    from ocp.solution import flatten

    return flatten(solution)


def same(got: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            same(got[key], value)
    elif isinstance(wanted, Tensor) or (isinstance(wanted, list) and isinstance(wanted[0], Tensor)):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9, equal_nan=True)
    else:
        assert got == wanted
