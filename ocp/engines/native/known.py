"""Programs that were checked before: compared with plain autograd at a few points only.

The full check of a program imports PyTorch's compiler, by way of torch.func, which takes longer
than everything else in a process that finds its program in the cache. The text of a program
determines its derivatives; what is left to compare is that this problem's functions are those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp.engines.base import Engine
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


def data_of(problem: Any, b: int) -> dict[str, Tensor]:
    return {**problem.parameters, **{k: v[b] for k, v in problem.per_problem.items()}}
