"""The eager engine: any PyTorch function, any device. The reference for every other engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ocp.engines import riccati
from ocp.engines.base import (
    Appraisal,
    Begun,
    Curvature,
    Expansion,
    Policy,
    Prepared,
    Recipe,
    SecondOrder,
    Sweep,
    Trials,
)
from ocp.engines.derivatives import (
    batched,
    contracted_hessian,
    gradient_hessian,
    jacobian,
    terminal_gradient_hessian,
)
from ocp.problem import Problem, Stages
from ocp.stages import absolute_sum, each, earlier, finite, largest, later, pack

CHUNK = 32_768  # samples in one call for derivatives: bounds memory, costs nothing below
TABLE = 2_048  # contractions a stage up to which all stages are done ahead, see `Eager.curvature`
NUMBERS = 2**26  # entries such a table may have


class Eager:
    """Rolls out, expands and sweeps with batched eager PyTorch.

    While models are small a call costs what its operations cost to launch, however many samples
    it has: derivatives of all stages and problems are therefore one call over T * B samples, and
    the trial step sizes of a line search are one roll-out.
    """

    name = "eager"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._data: dict[int, dict[str, Tensor]] = {}
        self._dims = {k: None for k in problem.parameters} | {k: 0 for k in problem.per_problem}

    @cached_property
    def ts(self) -> Sequence[Any]:
        """What the user's functions get as t."""
        T, device = self.problem.horizon, self.problem.x0.device
        return range(T) if self.problem.stagewise else torch.arange(T, device=device).unbind()

    # -- the model along a trajectory ----------------------------------------------------------
    @torch.no_grad()
    def initial(self) -> Tensor:
        """x0 of each problem, the augmented state where controls are shared: (B, n)."""
        return self.problem.x0.reshape(self.problem.batch, -1)

    @torch.no_grad()
    def step(self, x: Tensor, u: Tensor, t: int) -> Tensor:
        """(L, n), (L, m) -> (L, n') for any multiple L of B."""
        return self._at(self.problem.f, t, x, u).reshape(x.shape[0], -1)

    @torch.no_grad()
    def begin(self, us: Stages, xs: Stages | None = None) -> Begun:
        """See `Begun`; states that are given may leave gaps."""
        lower, upper = self.problem.lower, self.problem.upper
        if lower is not None and upper is not None:
            us = each(lambda u, lo, hi: torch.minimum(torch.maximum(u, lo), hi), us, lower, upper)
        gaps = None
        if xs is None:
            xs = self.rollout(us)
        else:
            gaps = self.gaps(xs, us)
        cost = self.total_cost(xs, us)
        gap = torch.zeros_like(cost) if gaps is None else absolute_sum(gaps)
        return Begun(xs, us, gaps, gap, cost, torch.isfinite(cost + gap) & finite(xs))

    @torch.no_grad()
    def rollout(self, us: Stages) -> Stages:
        """States (B, n), T + 1 of them, of controls (B, m) from x0."""
        xs = [self.initial()]
        for t, u in enumerate(us):
            xs.append(self.step(xs[t], u, t))
        return pack(xs, self.problem.uniform)

    @torch.no_grad()
    def gaps(self, xs: Stages, us: Stages) -> Stages:
        """``f(x[t], u[t]) - x[t+1]`` for each t: (B, n')."""
        after = self._over(self.problem.f, earlier(xs), us)
        return each(lambda a, b: a.reshape(b.shape) - b, after, later(xs))

    @torch.no_grad()
    def total_cost(self, xs: Stages, us: Stages) -> Tensor:
        """J along states and controls of L = k B lines, (L, n) and (L, m): (L,)."""
        S = self.problem.samples
        stages = self._over(self.problem.l, earlier(xs), us)
        total = stages.sum(dim=0) if isinstance(stages, Tensor) else torch.stack(stages).sum(dim=0)
        return (total + self._end(self.problem.phi, xs[-1])).reshape(-1, S).mean(dim=-1)

    # -- derivatives ---------------------------------------------------------------------------
    @torch.no_grad()
    def expand(self, xs: Stages, us: Stages) -> Expansion:
        """First derivatives of f, first and second of l and phi, at every stage."""
        before, S = earlier(xs), self.problem.samples
        fz = self._over(jacobian(self.problem.f), before, us)
        lz, lzz = self._over2(gradient_hessian(self.problem.l), before, us)
        phix, phixx = self._end(terminal_gradient_hessian(self.problem.phi), xs[-1])
        if S > 1:
            n = self.problem.state_dims
            sizes = n[0] if isinstance(fz, Tensor) else n[:-1]
            fz = augment(lambda f, n: augment_jacobian(f, S, n), fz, sizes)
            lz = augment(lambda g, n: augment_gradient(g / S, S, n), lz, sizes)
            lzz = augment(lambda H, n: augment_hessian(H / S, S, n), lzz, sizes)
            phix = augment_gradient(phix / S, S, n[-1])
            phixx = augment_hessian(phixx / S, S, n[-1])
        return Expansion(fz, lz, lzz, phix, phixx, tuple(S * n for n in self.problem.state_dims))

    @torch.no_grad()
    def curvature(self, xs: Stages, us: Stages) -> SecondOrder:
        """``(t, v) -> v . f_zz``, v known only when the sweep arrives at t.

        One call a stage, contracted, unless all stages are so few and small that calls, not
        arithmetic, are what costs: then the contractions along the n' unit vectors are made for
        all stages in one call, and combined as v arrives (cartpole, T = 100: 18 ms against 1.2 s).
        """
        hessian = contracted_hessian(self.problem.f)
        S, n = self.problem.samples, self.problem.state_dims
        if isinstance(us, Tensor) and isinstance(xs, Tensor) and not self.problem.stagewise:
            T, B, width = us.shape[0], us.shape[1], n[0]
            entries = width * T * B * S * (width + us.shape[2]) ** 2
            if width * B * S <= TABLE and entries <= NUMBERS:
                units = torch.eye(width, dtype=xs.dtype, device=xs.device)
                table = self._along_units(hessian, xs[:-1], us, units)

                def combine(t: int, v: Tensor) -> Tensor:
                    H = torch.einsum("is,isab->sab", v.reshape(-1, width).T, table[:, t])
                    return augment_hessian(H, S, width)

                return SecondOrder(combine, xs, us)

        def contract(t: int, v: Tensor) -> Tensor:
            H = self._at(hessian, t, xs[t], us[t], v)
            return augment_hessian(H, S, n[t])

        return SecondOrder(contract, xs, us)

    @torch.no_grad()
    def curvature_along(self, xs: Stages, us: Stages, ps: Stages) -> SecondOrder:
        """``p[t+1] . f_zz`` at every stage, the costates being known: one call. ps has T + 1."""
        S, n = self.problem.samples, self.problem.state_dims
        H = self._over(contracted_hessian(self.problem.f), earlier(xs), us, later(ps))
        return SecondOrder(lambda t, _: augment_hessian(H[t], S, n[t]), xs, us)

    # -- sweeps --------------------------------------------------------------------------------
    @torch.no_grad()
    def sweep(
        self,
        expansion: Expansion,
        us: Stages,
        gaps: Stages | None,
        damping: Tensor,
        curvature: Curvature | None,
        on_state: bool = False,
        proximal: bool = False,
    ) -> Sweep:
        """Backward pass; bounds are met by the box-QP of each stage. See `riccati.sweep`."""
        box = self.box(us)
        return riccati.sweep(expansion, gaps, damping, curvature, box, on_state, proximal)

    def box(self, us: Stages) -> tuple[Stages, Stages] | None:
        """What the bounds leave to changes of the controls."""
        lower, upper = self.problem.lower, self.problem.upper
        if lower is None or upper is None:
            return None
        return each(torch.sub, lower, us), each(torch.sub, upper, us)

    def costates(self, expansion: Expansion) -> tuple[Stages, Stages]:
        """p and H_u, see `riccati.costates`."""
        return riccati.costates(expansion)

    def appraise(self, xs: Stages, us: Stages) -> Appraisal:
        """See `Appraisal`.

        A Q_uu that is singular to rounding (a singular arc) is no saddle: it is judged again with
        a damping at the level of rounding.
        """
        expansion, curvature = self.expand(xs, us), self.curvature(xs, us)
        ps, hus = self.costates(expansion)
        zero = torch.zeros_like(expansion.phix[:, 0])
        gap = largest(each(torch.abs, self.gaps(xs, us)))
        told = riccati.largest_projected(hus, self.box(us)), gap
        sweep = self.sweep(expansion, us, None, zero, curvature)
        if bool((sweep.failed < 0).all()):
            return Appraisal(sweep, ps, hus, sweep.failed, *told)
        size = largest(each(lambda H: H.abs().flatten(-2), expansion.lzz))
        tiny = torch.finfo(zero.dtype).eps ** 0.5 * size.clamp_min(torch.finfo(zero.dtype).tiny)
        nearly = self.sweep(expansion, us, None, tiny, curvature)
        sweep = riccati.merge(sweep.failed < 0, sweep, nearly)
        gauss_newton = self.sweep(expansion, us, None, zero, None)
        sweep = riccati.merge(sweep.failed < 0, sweep, gauss_newton)
        return Appraisal(sweep, ps, hus, nearly.failed, *told)

    def linear_rollout(
        self, expansion: Expansion, policy: Policy, gaps: Stages | None
    ) -> tuple[Stages, Stages]:
        """See `riccati.linear_rollout`."""
        return riccati.linear_rollout(expansion, policy, gaps)

    @torch.no_grad()
    def follow(
        self, xs: Stages, us: Stages, gaps: Stages | None, policy: Policy, step_sizes: Tensor
    ) -> Trials:
        """Roll out ``u + a k + K (x' - x)`` for all step sizes a at once; (1 - a) gap stays."""
        A, a, lower, upper = (
            step_sizes.shape[0],
            step_sizes[:, None, None],
            self.problem.lower,
            self.problem.upper,
        )
        new_xs, new_us = [xs[0].expand(A, -1, -1)], []
        for t in range(self.problem.horizon):
            u = us[t] + a * policy.k[t]
            if policy.K is not None:
                dx = new_xs[t] - xs[t]
                u = u + (policy.K[t] @ dx[..., None])[..., 0]
            if lower is not None and upper is not None:
                u = torch.minimum(torch.maximum(u, lower[t]), upper[t])
            after = self.step(new_xs[t].flatten(0, 1), u.flatten(0, 1), t).unflatten(0, (A, -1))
            new_us.append(u)
            new_xs.append(after if gaps is None else after - (1 - a) * gaps[t])
        trial_xs, trial_us = (
            pack(new_xs, self.problem.uniform),
            pack(new_us, self.problem.uniform),
        )
        lines_xs, lines_us = (each(lambda s: s.flatten(-3, -2), s) for s in (trial_xs, trial_us))
        return Trials(trial_xs, trial_us, self.total_cost(lines_xs, lines_us).unflatten(0, (A, -1)))

    def hamiltonian(self, augmented: bool) -> Any:
        """H of every stage compiled, see `native.hamiltonians`; there is none here."""
        return None

    def boundary(self, expansion: Expansion, curvature: SecondOrder, *rhs: Stages) -> Any:
        """Corrections of `Indirect`, compiled; there are none here."""
        return None

    def iterate(self, state: Any, recipe: Recipe, most: int) -> None:
        """Iterations are the solver's business here."""

    def prepare(self, recipe: Recipe, damping: float, steps: int, shift: int) -> Prepared | None:
        """There is nothing to set up beforehand."""
        return None

    # -- batching ------------------------------------------------------------------------------
    def data(self, samples: int) -> dict[str, Tensor]:
        """Parameters, and per-problem data repeated to ``samples`` rows."""
        if samples not in self._data:
            rows = self.problem.batch * self.problem.samples
            tiled = {
                k: v.repeat(samples // rows, *[1] * (v.ndim - 1))
                for k, v in self.problem.per_problem.items()
            }
            self._data[samples] = {**self.problem.parameters, **tiled}
        return self._data[samples]

    def _rows(self, x: Tensor, u: Tensor, *more: Tensor) -> list[Tensor]:
        """One row a sample: states (L, S n) -> (L S, n), controls (L, m) -> (L S, m)."""
        S = self.problem.samples
        if S == 1:
            return [x, u, *more]
        split = [v.reshape(v.shape[0] * S, -1) for v in (x, *more)]
        return [split[0], u.repeat_interleave(S, dim=0), *split[1:]]

    def _at(self, function: Callable[..., Any], t: int, x: Tensor, u: Tensor, *more: Tensor) -> Any:
        """``function(x, u, t, p, *more)`` at one stage, over (L, .) lines."""
        rows = self._rows(x, u, *more)
        p, stage = self.data(rows[0].shape[0]), self.ts[t]
        dims = (0, 0, None, self._dims, *[0] * len(more))
        return batched(function, dims, None, rows[0], rows[1], stage, p, *rows[2:])

    def _over(self, function: Callable[..., Any], xs: Stages, us: Stages, *more: Stages) -> Any:
        """``function`` at all stages: one call where sizes agree, else one call a stage."""
        if self.problem.stagewise or not isinstance(xs, Tensor):
            parts = [
                self._at(function, t, *args)
                for t, args in enumerate(zip(xs, us, *more, strict=True))
            ]
            same = len({p.shape for p in parts}) == 1 if isinstance(parts[0], Tensor) else False
            return torch.stack(parts) if same and self.problem.uniform else parts
        T, whole = xs.shape[0], [torch.as_tensor(s) for s in (xs, us, *more)]
        rows = self._rows(*(s.flatten(0, 1) for s in whole))
        each_stage = rows[0].shape[0] // T
        t = torch.arange(T, device=xs.device).repeat_interleave(each_stage)
        return self._flat(function, T, t, *rows)

    def _over2(self, function: Callable[..., Any], xs: Stages, us: Stages) -> tuple[Any, Any]:
        """`_over` for a function with two results."""
        both = self._over(function, xs, us)
        if isinstance(both, tuple):
            return both
        first, second = ([pair[i] for pair in both] for i in (0, 1))
        return pack(first, self.problem.uniform), pack(second, self.problem.uniform)

    def _flat(self, function: Callable[..., Any], T: int, t: Tensor, *rows: Tensor) -> Any:
        count = rows[0].shape[0]
        dims = (0, 0, 0, self._dims, *[0] * (len(rows) - 2))
        chunk = CHUNK if count > CHUNK else None
        out = batched(function, dims, chunk, rows[0], rows[1], t, self.data(count), *rows[2:])
        if isinstance(out, tuple):
            return tuple(o.unflatten(0, (T, -1)) for o in out)
        return out.unflatten(0, (T, -1))

    def _along_units(
        self, hessian: Callable[..., Any], xs: Tensor, us: Tensor, units: Tensor
    ) -> Tensor:
        """Contractions along every unit vector: (n', T, B S, d, d)."""
        T, width = xs.shape[0], units.shape[0]
        x, u = self._rows(xs.flatten(0, 1), us.flatten(0, 1))
        each_stage = x.shape[0] // T
        t = torch.arange(T, device=xs.device).repeat_interleave(each_stage)
        rows = [v.repeat(width, *[1] * (v.ndim - 1)) for v in (x, u, t)]
        along = units.repeat_interleave(x.shape[0], dim=0)
        table = self._flat(hessian, width, rows[2], rows[0], rows[1], along)
        return table.unflatten(1, (T, each_stage))

    def _end(self, function: Callable[..., Any], x: Tensor) -> Any:
        rows = x.reshape(x.shape[0] * self.problem.samples, -1)
        return batched(function, (0, self._dims), None, rows, self.data(rows.shape[0]))


# -- the augmented state of S samples that share their control ----------------------------------
def augment(function: Callable[..., Tensor], stages: Stages, sizes: int | Sequence[int]) -> Stages:
    if isinstance(stages, Tensor) and isinstance(sizes, int):
        return function(stages, sizes)
    assert not isinstance(sizes, int)
    return [function(s, n) for s, n in zip(stages, sizes, strict=True)]


def block_diagonal(A: Tensor) -> Tensor:
    """(..., S, a, b) -> (..., S a, S b)."""
    S, a, b = A.shape[-3:]
    eye = torch.eye(S, dtype=A.dtype, device=A.device)
    return (eye[:, None, :, None] * A[..., None, :]).reshape(*A.shape[:-3], S * a, S * b)


def augment_jacobian(fz: Tensor, S: int, n: int) -> Tensor:
    """Of each sample (..., B S, n', n + m) -> of all (..., B, S n', S n + m)."""
    fz = fz.unflatten(-3, (-1, S))
    return torch.cat((block_diagonal(fz[..., :n]), fz[..., n:].flatten(-3, -2)), dim=-1)


def augment_gradient(lz: Tensor, S: int, n: int) -> Tensor:
    """(..., B S, n + m) -> (..., B, S n + m), controls summed."""
    lz = lz.unflatten(-2, (-1, S))
    return torch.cat((lz[..., :n].flatten(-2), lz[..., n:].sum(dim=-2)), dim=-1)


def augment_hessian(H: Tensor, S: int, n: int) -> Tensor:
    """(..., B S, d, d) -> (..., B, S n + m, S n + m), the control's block summed."""
    if S == 1:
        return H
    H = H.unflatten(-3, (-1, S))
    ux = H[..., n:, :n].movedim(-3, -2).flatten(-2)
    top = torch.cat((block_diagonal(H[..., :n, :n]), ux.mT), dim=-1)
    return torch.cat((top, torch.cat((ux, H[..., n:, n:].sum(dim=-3)), dim=-1)), dim=-2)
