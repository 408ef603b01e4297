"""Problems of a peers directory as problems of this package, and what its controls cost.

The directory's `problems.py` defines each problem once, on lists of scalars with a namespace that
supplies sin, cos, sqrt and asin.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import ocp


def load(folder: Path) -> ModuleType:
    """The module `problems` of a peers directory."""
    spec = importlib.util.spec_from_file_location("problems", folder / "problems.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["problems"] = module
    spec.loader.exec_module(module)
    return module


class Torch:
    sin, cos, sqrt, asin = torch.sin, torch.cos, torch.sqrt, torch.asin


def problem_of(peer: Any, x0: np.ndarray) -> ocp.Problem:
    """A definition as a problem, its scalars stacked, from x0 (n,) or (B, n)."""
    return ocp.Problem(
        lambda x, u, t: torch.stack(peer.step(list(x), list(u), Torch)),
        ocp.FunctionCost(lambda x, u, t: peer.run(x, u, Torch), lambda x: peer.term(x, Torch)),
        torch.from_numpy(x0),
        peer.T,
        peer.m,
        control_bounds=None if peer.lo is None else (peer.lo, peer.hi),
        goal=torch.from_numpy(peer.xg),
        name=peer.name,
    )


def closed_loop(module: ModuleType, peer: Any, solution: ocp.Solution) -> np.ndarray:
    """Cost of the policy followed from x0, in numpy: (B,), or () for a single problem."""
    found = solution.states, solution.controls, solution.policy.K
    single = solution.states.ndim == 2
    xs, us, K = (v.numpy()[None] if single else v.numpy() for v in found)
    x, cost = xs[:, 0].copy(), np.zeros(len(xs))
    with np.errstate(all="ignore"):
        for t in range(peer.T):
            u = us[:, t] + np.einsum("bij,bj->bi", K[:, t], x - xs[:, t])
            if peer.lo is not None:
                u = np.clip(u, peer.lo, peer.hi)
            lists = list(x.T), list(u.T)
            cost = cost + peer.run(*lists, module.NP)
            x = np.stack(peer.step(*lists, module.NP), axis=-1)
        cost = cost + peer.term(list(x.T), module.NP)
    return cost[0] if single else cost
