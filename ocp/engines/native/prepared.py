"""The same few iterations again and again from new states: arrays and calls set up beforehand."""

from __future__ import annotations

from ctypes import addressof

import torch
from torch import Tensor

from ocp.engines.base import Recipe
from ocp.engines.native import abi
from ocp.engines.native.engine import INT, Native, recipe_numbers
from ocp.engines.riccati import matvec
from ocp.solution import Status


class Prepared:
    """What `Native.follow` and `Native.iterate` do in turn, into arrays that stay where they are.

    Args:
        engine: of a problem of the form that will be solved.
        recipe: of the solver.
        damping: what each solve begins with.
        steps: iterations of a call, at most.
        shift: stages that pass between two calls.
    """

    def __init__(
        self, engine: Native, recipe: Recipe, damping: float, steps: int, shift: int
    ) -> None:
        T, B, n, m = engine.sizes
        stages = torch.arange(T + 1) + shift
        self.later, self.held = stages.clamp_max(T), stages[:T].clamp_max(T - 1)
        self.passed = max(T - shift, 0)  # from here on no feedback is known
        self.xs, self.us = engine.new(T + 1, B, n), engine.new(T, B, m)
        self.K = engine.new(T, B, m, n)
        self.plan = [torch.empty_like(v) for v in (self.xs, self.us, self.K)]
        self.reals = engine.new(len(abi.REALS), B)
        self.counts = torch.empty(len(abi.COUNTS), B, dtype=INT)
        self.cost = self.reals[abi.REALS.index("cost")]
        self.start_cost = self.reals[abi.REALS.index("start_cost")]
        self.status = self.counts[abi.COUNTS.index("status")]
        self.first_reals = torch.zeros_like(self.reals)
        self.first_counts = torch.zeros_like(self.counts)
        self.first_reals[abi.REALS.index("damping")] = damping
        self.first_reals[abi.REALS.index("residual")] = torch.inf
        self.first_counts[abi.COUNTS.index("status")] = int(Status.RUNNING)
        self.work: Tensor | None = None
        self._calls(engine, recipe, steps)

    def _calls(self, engine: Native, recipe: Recipe, steps: int) -> None:
        _, B, _, _ = engine.sizes
        rows = engine.new(steps, len(abi.ROWS), B)
        taken, self.handed = torch.empty(2, B, dtype=INT).unbind()
        limits, sizes = recipe_numbers(recipe, self.xs.dtype, self.xs.device)
        full, k = self.xs.new_ones(1), torch.zeros_like(self.us)
        self.kept = rows, taken, limits, sizes, full, k  # as long as their addresses
        xs, us, K = self.plan
        given = (xs.data_ptr(), us.data_ptr(), 0, k.data_ptr(), K.data_ptr(), full.data_ptr(), 1)
        results = (v.data_ptr() for v in (self.xs, self.us, self.cost))
        self.start = abi.FollowCall(*given, *results)
        before = (v.data_ptr() for v in (sizes, self.xs, self.us))
        arrays = (self.reals, self.counts, rows, taken, self.handed, limits, self.K)
        modes = recipe.second_order, int(recipe.on_state)
        self.request = abi.Iterate(steps, *modes, *before, 0, *(v.data_ptr() for v in arrays))

    def load(self, xs: Tensor, us: Tensor, K: Tensor) -> None:
        """A trajectory and its feedback: what the next call begins from."""
        for mine, given in ((self.xs, xs), (self.us, us), (self.K, K)):
            mine.copy_(given)

    def __call__(self, engine: Native) -> bool:
        """Shift, roll out from the x0 of the engine's problem, iterate.

        False where that is not finite, or the engine leaves a problem to the pieces: the caller
        then goes on from `plan`, the trajectory already shifted.
        """
        xs, us, K = self.plan
        torch.index_select(self.xs, 0, self.later, out=xs)
        torch.index_select(self.us, 0, self.held, out=us)
        torch.index_select(self.K, 0, self.held, out=K)
        K[self.passed :] = 0
        us[0] += matvec(K[0], engine.x0 - xs[0])
        xs[0] = engine.x0
        self.reals.copy_(self.first_reals)
        self.counts.copy_(self.first_counts)
        if self.work is not None:
            engine.use(self.work)
        engine.call("ocp_follow", addressof(self.start))
        self.work = engine.work
        self.start_cost.copy_(self.cost)
        steps: int = engine.call("ocp_iterate", addressof(self.request))
        done = torch.isfinite(self.start_cost) & (self.handed == 0)
        return steps > 0 and bool(done.all())
