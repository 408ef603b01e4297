"""Compiled programs against plain autograd.

Not against torch.func: its derivatives import PyTorch's compiler, which takes longer than all
else in a process that finds its program in the cache. For such a program a few points are enough:
its text determines its derivatives, and what is left to compare is that this problem's functions
are those.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ocp.engines.base import Engine
from ocp.engines.eager import Eager
from ocp.engines.indexing import batched_indices
from ocp.problem import Problem
from ocp.trial_calls import jacobian

Place = tuple[str, int, int]  # what, at which stage, of which problem


def autograd_at_some_points(problem: Problem, xs: Any, us: Any) -> dict[Place, Tensor]:
    """Values and first derivatives at the first, middle and last stage, by plain autograd.

    Args:
        problem: in float32 or float64.
        xs, us: states and controls about which, (B, n) and (B, m) per stage.
    """
    T, last = problem.horizon, problem.batch - 1
    found: dict[Place, Tensor] = {}
    for t in sorted({0, T // 2, T - 1}):
        stage = t if problem.stagewise else torch.tensor(t)
        for b in sorted({0, last}):
            p, n = data_of(problem, b), xs[t].shape[-1]
            z = torch.cat((xs[t][b], us[t][b]))
            f = lambda z, t=stage, n=n, p=p: problem.f(z[:n], z[n:], t, p)
            l = lambda z, t=stage, n=n, p=p: problem.l(z[:n], z[n:], t, p)
            found["f", t, b] = f(z)
            found["fz", t, b] = jacobian(f, z)
            found["lz", t, b] = jacobian(l, z)[0]
    phi = lambda x: problem.phi(x, data_of(problem, last))
    found["phix", T, last] = jacobian(phi, xs[T][last])[0]
    return found


def compiled_at(engine: Engine, xs: Any, us: Any, places: Iterable[Place]) -> dict[Place, Tensor]:
    """What `autograd_at_some_points` has, of a compiled engine."""
    expansion, gaps = engine.expand(xs, us), engine.gaps(xs, us)
    of = {
        "f": lambda t, b: gaps[t][b] + xs[t + 1][b],
        "fz": lambda t, b: expansion.fz[t][b],
        "lz": lambda t, b: expansion.lz[t][b],
        "phix": lambda t, b: expansion.phix[b],
    }
    return {(name, t, b): of[name](t, b) for name, t, b in places}


@torch.enable_grad()
def all_derivatives_by_autograd(
    eager: Eager, xs: Tensor, us: Tensor, vs: Tensor
) -> dict[str, Tensor]:
    """First and second derivatives at every stage.

    Args:
        eager: of a problem that is uniform and shares no controls.
        xs, us: states (T + 1, B, n) and controls (T, B, m) about which.
        vs: (T + 1, B, n); the second derivatives of f are contracted along its later rows.
    """
    problem = eager.problem
    T, B, n = xs.shape[0] - 1, xs.shape[1], xs.shape[2]
    ts = torch.arange(T, device=xs.device).repeat_interleave(B)
    z = torch.cat((xs[:-1], us), dim=-1).flatten(0, 1).requires_grad_()
    rows = eager.data(T * B)
    dims = {k: 0 if k in problem.per_problem else None for k in rows}
    at = lambda function: vmap(function, in_dims=(0, 0, 0, dims))(z[:, :n], z[:, n:], ts, rows)
    shaped = lambda v: v.detach().unflatten(0, (T, B))
    with batched_indices():
        f, l = at(problem.f), at(problem.l)[:, None]
    lz = jacobians(l, z, graph=True)[:, 0]
    along = (f * vs[1:].flatten(0, 1)).sum(dim=-1, keepdim=True)
    x = xs[-1].clone().requires_grad_()
    phix = jacobians(vmap(problem.phi, (0, dims))(x, eager.data(B))[:, None], x, graph=True)[:, 0]
    return {
        "fz": shaped(jacobians(f, z)),
        "lz": shaped(lz),
        "lzz": shaped(jacobians(lz, z)),
        "v . f_zz": shaped(jacobians(jacobians(along, z, graph=True)[:, 0], z)),
        "phix": phix.detach(),
        "phixx": jacobians(phix, x).detach(),
    }


def all_derivatives_compiled(
    engine: Engine, xs: Tensor, us: Tensor, vs: Tensor
) -> dict[str, Tensor]:
    """What `all_derivatives_by_autograd` has, of a compiled engine."""
    expansion, curvature = engine.expand(xs, us), engine.curvature_along(xs, us, vs)
    along = torch.stack([curvature(t, vs[t + 1]) for t in range(len(us))])
    names = {name: getattr(expansion, name) for name in ("fz", "lz", "lzz", "phix", "phixx")}
    return {**names, "v . f_zz": along}


def jacobians(y: Tensor, z: Tensor, graph: bool = False) -> Tensor:
    """dy/dz (N, k, d) of N samples, y (N, k), z (N, d); ``graph``: to be differentiated again."""
    columns = [
        torch.autograd.grad(
            of_all.sum(), z, create_graph=graph, retain_graph=True, materialize_grads=True
        )[0]
        if of_all.requires_grad
        else torch.zeros_like(z)
        for of_all in y.unbind(1)
    ]
    return torch.stack(columns, dim=1)


def data_of(problem: Problem, b: int) -> dict[str, Tensor]:
    return {**problem.parameters, **{k: v[b] for k, v in problem.per_problem.items()}}
