"""Compiled programs against plain autograd.

Not against torch.func: its derivatives import PyTorch's compiler, which takes longer than all
else in a process that finds its program in the cache. For such a program a few points are enough:
its text determines its derivatives, and what is left to compare is that this problem's functions
are those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ocp.engines.base import Engine
from ocp.engines.eager import Eager
from ocp.engines.indexing import batched_indices
from ocp.trial_calls import jacobian


def compare_by_autograd(engine: Engine, xs: Any, us: Any, compare: Any) -> None:
    """Values and first derivatives of a compiled engine at the first, middle and last stage.

    Args:
        engine: compiled.
        xs, us: states and controls about which, (B, n) and (B, m) per stage.
        compare: ``compare(name, ours, theirs)`` raises where they differ.
    """
    problem = engine.problem
    T, last = problem.horizon, problem.batch - 1
    expansion, gaps = engine.expand(xs, us), engine.gaps(xs, us)
    for t in sorted({0, T // 2, T - 1}):
        stage = t if problem.stagewise else torch.tensor(t)
        for b in sorted({0, last}):
            p, n = data_of(problem, b), xs[t].shape[-1]
            z = torch.cat((xs[t][b], us[t][b]))
            f = lambda z, t=stage, n=n, p=p: problem.f(z[:n], z[n:], t, p)
            l = lambda z, t=stage, n=n, p=p: problem.l(z[:n], z[n:], t, p)
            compare("f", gaps[t][b] + xs[t + 1][b], f(z))
            compare("fz", expansion.fz[t][b], jacobian(f, z))
            compare("lz", expansion.lz[t][b], jacobian(l, z)[0])
    phi = lambda x: problem.phi(x, data_of(problem, last))
    compare("phix", expansion.phix[last], jacobian(phi, xs[T][last])[0])


@torch.enable_grad()
def compare_all_derivatives(
    engine: Engine, eager: Eager, xs: Tensor, us: Tensor, vs: Tensor, compare: Any
) -> None:
    """First and second derivatives of a compiled engine at every stage.

    Args:
        engine: compiled.
        eager: of the same problem, which is uniform and shares no controls.
        xs, us: states (T + 1, B, n) and controls (T, B, m) about which.
        vs: (T + 1, B, n); the second derivatives of f are compared contracted along its later rows.
        compare: ``compare(name, ours, theirs)`` raises where they differ.
    """
    problem, expansion = engine.problem, engine.expand(xs, us)
    same = lambda name, ours, theirs: compare(name, ours, theirs.detach())
    T, B, n = xs.shape[0] - 1, xs.shape[1], xs.shape[2]
    ts = torch.arange(T, device=xs.device).repeat_interleave(B)
    z = torch.cat((xs[:-1], us), dim=-1).flatten(0, 1).requires_grad_()
    rows = eager.data(T * B)
    dims = {k: 0 if k in problem.per_problem else None for k in rows}
    at = lambda function: vmap(function, in_dims=(0, 0, 0, dims))(z[:, :n], z[:, n:], ts, rows)
    shaped = lambda v: v.unflatten(0, (T, B))
    with batched_indices():
        f, l = at(problem.f), at(problem.l)[:, None]
    same("fz", expansion.fz, shaped(jacobians(f, z)))
    lz = jacobians(l, z, graph=True)[:, 0]
    same("lz", expansion.lz, shaped(lz))
    same("lzz", expansion.lzz, shaped(jacobians(lz, z)))
    curvature = engine.curvature_along(xs, us, vs)
    along = (f * vs[1:].flatten(0, 1)).sum(dim=-1, keepdim=True)
    ours = torch.stack([curvature(t, vs[t + 1]) for t in range(T)])
    same("v . f_zz", ours, shaped(jacobians(jacobians(along, z, graph=True)[:, 0], z)))
    x = xs[-1].clone().requires_grad_()
    phix = jacobians(vmap(problem.phi, (0, dims))(x, eager.data(B))[:, None], x, graph=True)[:, 0]
    same("phix", expansion.phix, phix)
    same("phixx", expansion.phixx, jacobians(phix, x))


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


def data_of(problem: Any, b: int) -> dict[str, Tensor]:
    return {**problem.parameters, **{k: v[b] for k, v in problem.per_problem.items()}}
