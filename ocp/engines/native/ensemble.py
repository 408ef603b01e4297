"""Samples that share their controls, compiled: one problem whose state is all of theirs.

The model is computed for all samples at once, in SIMD; the sweep knows that the dynamics couple
samples through the control alone (see ensemble.h) and never sees the dense matrices of the
augmented state, which are made for whoever asks for an `Expansion`.
"""

from __future__ import annotations

from ctypes import Structure, addressof, byref
from typing import Any

import torch
from torch import Tensor

from ocp.engines.base import Expansion, Policy, Recipe, SecondOrder, Sweep, Trials
from ocp.engines.eager import (
    Eager,
    augment,
    augment_gradient,
    augment_hessian,
    augment_jacobian,
)
from ocp.engines.native import abi
from ocp.engines.native.calls import address, optional
from ocp.engines.native.compiled import Compiled, rows_of
from ocp.engines.native.cuda import Cuda
from ocp.engines.native.engine import native_of
from ocp.problem import Problem, Stages
from ocp.stages import each


class Augmented(Expansion):
    """An expansion of the augmented state that knows those of the samples, and where it was made.

    Attributes:
        rows: of each sample with its own cost.
        xs, us: the trajectory.
    """

    rows: Expansion
    xs: Stages
    us: Stages


class Ensemble(Eager):
    """Calls the compiled program of a problem with shared controls."""

    name = "native"

    def __init__(self, problem: Problem, compiled: Compiled) -> None:
        super().__init__(problem)
        self.rows = native_of(rows_of(problem), compiled)
        self.info = compiled.info
        self.name = self.rows.name
        self.bytes = self.needed()
        self.work: Tensor | None = None

    # -- calls -----------------------------------------------------------------------------------
    def needed(self) -> int:
        """Bytes of work memory of a sweep."""
        rows = self.rows
        if not isinstance(rows, Cuda):
            return int(rows.library.ocp_ensemble_bytes(byref(rows.data_block)))
        found = rows.integers(1)
        rows.launch_wide("ocp_ensemble_bytes", 1, found.data_ptr())
        return int(found)

    def call(self, entry: str, blocks: int, request: Structure) -> None:
        """``blocks``: of threads, on a GPU."""
        if isinstance(self.rows, Cuda):
            self.rows.launch_wide(entry, blocks, request)
        else:
            function = getattr(self.rows.library, entry)
            function(addressof(self.rows.data_block), addressof(request))

    # -- one row a sample ------------------------------------------------------------------------
    def split(self, xs: Stages) -> Stages:
        """(L, S n) -> (L S, n) of every stage."""
        S = self.problem.samples
        return each(lambda x: x.reshape(*x.shape[:-2], x.shape[-2] * S, -1), xs)

    def merge(self, xs: Stages) -> Stages:
        """The opposite."""
        S = self.problem.samples
        return each(lambda x: x.reshape(*x.shape[:-2], x.shape[-2] // S, -1), xs)

    def spread(self, us: Stages) -> Stages:
        """(L, m) -> (L S, m): each sample its copy."""
        return each(lambda u: u.repeat_interleave(self.problem.samples, dim=-2), us)

    def fits(self, us: Stages) -> bool:
        """Whether it is one sequence, not one for each of several step sizes."""
        return us[0].ndim == 2 and us[0].shape[0] == 1

    # -- the model along a trajectory --------------------------------------------------------------
    def rollout(self, us: Stages) -> Stages:
        if not self.fits(us):
            return super().rollout(us)
        return self.merge(self.rows.rollout(self.spread(us)))

    def gaps(self, xs: Stages, us: Stages) -> Stages:
        if not self.fits(us):
            return super().gaps(xs, us)
        return self.merge(self.rows.gaps(self.split(xs), self.spread(us)))

    def total_cost(self, xs: Stages, us: Stages) -> Tensor:
        cost = self.rows.total_cost(self.split(xs), self.spread(us))
        return cost.reshape(-1, self.problem.samples).mean(dim=-1)

    def expand(self, xs: Stages, us: Stages) -> Expansion:
        if not self.fits(us):
            return super().expand(xs, us)
        rows = self.rows.expand(self.split(xs), self.spread(us))
        S, n = self.problem.samples, self.problem.state_dims
        sizes = n[0] if isinstance(rows.fz, Tensor) else n[:-1]
        whole = Augmented(
            augment(lambda f, n: augment_jacobian(f, S, n), rows.fz, sizes),
            augment(lambda g, n: augment_gradient(g / S, S, n), rows.lz, sizes),
            augment(lambda H, n: augment_hessian(H / S, S, n), rows.lzz, sizes),
            augment_gradient(rows.phix / S, S, n[-1]),
            augment_hessian(rows.phixx / S, S, n[-1]),
            tuple(S * size for size in n),
        )
        whole.rows, whole.xs, whole.us = rows, xs, us
        return whole

    def curvature_along(self, xs: Stages, us: Stages, ps: Stages) -> SecondOrder:
        if not self.fits(us):
            return super().curvature_along(xs, us, ps)
        rows = self.rows.curvature_along(self.split(xs), self.spread(us), self.split(ps))
        S, n = self.problem.samples, self.problem.state_dims
        contract = lambda t, v: augment_hessian(rows(t, v), S, n[t])
        return SecondOrder(contract, xs, us, table=rows.table)

    # -- sweeps ------------------------------------------------------------------------------------
    def costates(self, expansion: Expansion) -> tuple[Stages, Stages]:
        if not isinstance(expansion, Augmented):
            return super().costates(expansion)
        S = self.problem.samples
        ps, hus = self.rows.costates(expansion.rows)
        return self.merge(each(lambda p: p / S, ps)), each(
            lambda h: h.mean(dim=-2, keepdim=True), hus
        )

    def sweep(
        self,
        expansion: Expansion,
        us: Stages,
        gaps: Stages | None,
        damping: Tensor,
        curvature: Any,
        on_state: bool = False,
        proximal: bool = False,
    ) -> Sweep:
        known = not proximal and (curvature is None or isinstance(curvature, SecondOrder))
        if not known or not isinstance(expansion, Augmented):
            given = expansion, us, gaps, damping, curvature
            return super().sweep(*given, on_state, proximal)
        full = curvature is not None and (curvature.full is None or bool(curvature.full[0]))
        table = curvature.table if full else None
        return self.backward(expansion.xs, us, gaps, damping, full, table, on_state, True)[0]

    def backward(
        self,
        xs: Stages,
        us: Stages,
        gaps: Stages | None,
        damping: Tensor,
        full: bool,
        table: Tensor | None,
        on_state: bool,
        values: bool,
    ) -> tuple[Sweep, Tensor]:
        """The compiled sweep, and whether all derivatives are finite (1,). Without ``values`` the
        value model, (N, N) a stage, is not written down: vx and vxx are empty."""
        T, S, n, m = self.problem.horizon, self.problem.samples, self.info.n, self.info.m
        new = self.rows.new
        k, K, promise = new(T, 1, m), new(T, 1, m, S * n), new(3)
        vx = new(T + 1, 1, S * n) if values else None
        vxx = new(T + 1, 1, S * n, S * n) if values else None
        facts = self.rows.integers(2)
        arrays = (*self.wide(xs, us, gaps), optional(table), damping.contiguous())
        results = k, K, vx, vxx, promise, facts
        request = abi.EnsembleSweep(
            *map(address, arrays), int(full), int(on_state), *map(address, results)
        )
        if self.work is None:
            self.work = self.rows.x0.new_empty(self.bytes, dtype=torch.uint8)
        data = self.rows.data_block
        before, data.work = data.work, self.work.data_ptr()
        try:
            self.call("ocp_ensemble_sweep", 1, request)
        finally:
            data.work = before
        slope, bend, residual = promise[:, None]
        own_vx: Stages = [] if vx is None else self.own_x(vx)
        own_vxx: Stages = [] if vxx is None else self.own_xx(vxx)
        policy = Policy(self.rows.own_u(k), self.own_gains(K))
        found = Sweep(policy, own_vx, own_vxx, slope, bend, residual, facts[:1])
        return found, facts[1:] != 0

    def follow(
        self, xs: Stages, us: Stages, gaps: Stages | None, policy: Policy, step_sizes: Tensor
    ) -> Trials:
        if not self.fits(policy.k):
            return super().follow(xs, us, gaps, policy, step_sizes)
        T, S, n, m = self.problem.horizon, self.problem.samples, self.info.n, self.info.m
        new, A = self.rows.new, len(step_sizes)
        k, K = self.rows.wide_u(policy.k), self.wide_gains(policy.K)
        arrays = (*self.wide(xs, us, gaps), k, K, step_sizes.to(k.dtype).contiguous())
        out = new(T + 1, A * S, n), new(T, A, m), new(A)
        request = abi.EnsembleFollow(*map(address, arrays), A, *map(address, out))
        self.call("ocp_ensemble_follow", A, request)
        trial_xs = each(lambda x: x.unflatten(-2, (A, S)).flatten(-2)[..., None, :],
                        self.rows.own_x(out[0]))  # fmt: skip
        trial_us = each(lambda u: u[..., None, :], self.rows.own_u(out[1]))
        return Trials(trial_xs, trial_us, out[2][:, None])

    # -- forms -------------------------------------------------------------------------------------
    def wide(
        self, xs: Stages, us: Stages, gaps: Stages | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As the program takes them: (T + 1, S, n), (T, 1, m), (T, S, n)."""
        rows = self.rows
        moved = None if gaps is None else rows.wide_x(self.split(gaps))
        return rows.wide_x(self.split(xs)), rows.wide_u(us), moved

    def own_x(self, xs: Tensor) -> Stages:
        """(T + 1, 1, S n) with the program's n -> (1, S n) of every stage."""
        split = xs.unflatten(-1, (self.problem.samples, -1)).squeeze(1)
        return self.merge(self.rows.own_x(split))

    def own_xx(self, vxx: Tensor) -> Stages:
        """(T + 1, 1, S n, S n), likewise."""
        S, dims = self.problem.samples, self.problem.state_dims
        if self.problem.uniform:
            return vxx
        parts = vxx.unflatten(-1, (S, -1)).unflatten(-3, (S, -1))
        return [
            v[..., :size, :, :size].flatten(-2).flatten(-3, -2)
            for v, size in zip(parts, dims, strict=True)
        ]

    def own_gains(self, K: Tensor) -> Stages:
        """(T, 1, m, S n), likewise."""
        if self.problem.uniform:
            return K
        parts = K.unflatten(-1, (self.problem.samples, -1))
        sizes = zip(parts, self.problem.control_dims, self.problem.state_dims, strict=False)
        return [v[..., :m, :, :n].flatten(-2) for v, m, n in sizes]

    def wide_gains(self, K: Stages | None) -> Tensor | None:
        if K is None or isinstance(K, Tensor):
            return optional(K)
        S, n, m = self.problem.samples, self.info.n, self.info.m
        whole = self.rows.new(len(K), 1, m, S, n).zero_()
        for part, own in zip(whole, K, strict=True):
            split = own.unflatten(-1, (S, -1))
            part[:, : split.shape[1], :, : split.shape[3]] = split
        return whole.flatten(-2)

    # -- whole iterations ------------------------------------------------------------------------
    @torch.no_grad()
    def iterate(self, state: Any, recipe: Recipe, most: int) -> Any:
        """Steps of iLQR and DDP from the compiled pieces; None where the first is not one."""
        if recipe.pairs is not None:
            return None
        after = state
        for _ in range(most):
            stepped = self.one_iteration(after, recipe)
            if stepped is None:
                break
            after = stepped
            if not after.running:
                break
        return None if after is state else after

    def one_iteration(self, state: Any, recipe: Recipe) -> Any:
        """As `ILQR.direction` and `Solver.step`; None: the Gauss-Newton model is indefinite."""
        from ocp.solvers.decide import Limits, Record, decide_within
        from ocp.solvers.loop import Direction, advance
        from ocp.stages import finite as all_finite

        full = recipe.second_order == 2 or (
            recipe.second_order == 1 and bool(state.second_order[0])
        )
        sweep, finite = self.sweep_of(state, full, recipe.on_state)
        retried = int(sweep.failed[0] >= 0)
        if full and retried:
            sweep, finite = self.sweep_of(state, False, recipe.on_state)
        elif retried and bool(finite[0]):
            return None
        promise = sweep.slope, sweep.curvature, sweep.residual, sweep.failed < 0
        direction = Direction(sweep.policy, *promise, 1 + retried)
        cost = state.cost
        sizes = 0.5 ** torch.arange(recipe.trials, dtype=cost.dtype, device=cost.device)
        trials = self.follow(state.xs, state.us, state.gaps, sweep.policy, sizes)
        fine = torch.isfinite(trials.cost) & all_finite(trials.xs) & all_finite(trials.us)
        same = {k: getattr(state, k) for k in Record._fields if k in state._fields}
        record = Record(
            **{**same, "residual": sweep.residual},
            slope=sweep.slope,
            curvature=sweep.curvature,
            usable=direction.usable,
            finite=finite,
            trial_cost=trials.cost,
            trial_finite=fine,
        )
        decision = decide_within(record, sizes, Limits(*recipe.limits))
        return advance(state, direction, trials, decision)

    def sweep_of(self, state: Any, full: bool, on_state: bool) -> tuple[Sweep, Tensor]:
        around = state.xs, state.us, state.gaps, state.damping
        return self.backward(*around, full, None, on_state, False)
