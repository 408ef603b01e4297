"""The same few iterations again and again from new states: arrays and calls set up beforehand.

One iteration of a small problem takes about as long as a handful of PyTorch's operations. What is
done at every call is therefore done by the program, and by the interpreter alone.
"""

from __future__ import annotations

import math
from ctypes import addressof, byref, memmove

import torch
from torch import Tensor

from ocp.engines.base import ROWS, Recipe
from ocp.engines.native import abi
from ocp.engines.native.calls import INT
from ocp.engines.native.emit import Program
from ocp.engines.native.engine import Native, recipe_numbers
from ocp.engines.native.whole import Numbers
from ocp.problem import Problem
from ocp.solution import Status

FEW = 64  # numbers up to which Python looks at each


class Prepared:
    """What `Native.follow` and `Native.iterate` do in turn, into arrays that stay where they are.

    Args:
        engine: of a problem of the form that will be solved.
        program: its program.
        recipe: of the solver.
        damping: what each solve begins with.
        steps: iterations of a call, at most.
        shift: stages that pass between two calls.
    """

    def __init__(
        self,
        engine: Native,
        program: Program,
        recipe: Recipe,
        damping: float,
        steps: int,
        shift: int,
    ) -> None:
        T, B, n, m = engine.sizes
        self.engine, self.program = engine, program
        self.numbers = Numbers(engine)
        self.x0 = engine.x0.clone()
        self.xs, self.us = engine.new(T + 1, B, n), engine.new(T, B, m)
        self.K = engine.new(T, B, m, n)
        self.plan = [torch.empty_like(v) for v in (self.xs, self.us, self.K)]
        self.reals = engine.new(len(abi.REALS), B)
        self.counts = torch.empty(len(abi.COUNTS), B, dtype=INT, device="cpu")
        self.status = self.counts[abi.COUNTS.index("status")]
        self.first = torch.zeros_like(self.reals), torch.zeros_like(self.counts)
        self.first[0][abi.REALS.index("damping")] = damping
        self.first[0][abi.REALS.index("residual")] = torch.inf
        self.first[1][abi.COUNTS.index("status")] = int(Status.RUNNING)
        self._calls(engine, recipe, steps, shift)
        size = engine.library.ocp_work_bytes(byref(engine.data_block))
        engine.use(torch.empty(size, dtype=torch.uint8, device="cpu"))

    def _calls(self, engine: Native, recipe: Recipe, steps: int, shift: int) -> None:
        _, B, _, m = engine.sizes
        rows = engine.new(steps, len(ROWS), B)
        taken, handed = torch.empty(2, B, dtype=INT, device="cpu").unbind()
        limits, sizes = recipe_numbers(recipe, self.xs.dtype, self.xs.device)
        full, k = self.xs.new_ones(1), torch.zeros_like(self.us)
        self.kept = rows, taken, handed, limits, sizes, full, k  # as long as their addresses
        at = lambda *arrays: [v.data_ptr() for v in arrays]
        plan, now = at(*self.plan), at(self.xs, self.us, self.K)
        cost = self.reals[abi.REALS.index("cost")]
        self.follow = abi.FollowCall(
            *plan[:2], 0, *at(k), plan[2], *at(full), 1, *now[:2], *at(cost)
        )
        modes = recipe.second_order, int(recipe.on_state)
        arrays = at(self.reals, self.counts, rows, taken, handed, limits)
        self.loop = abi.Iterate(steps, *modes, *at(sizes), *now[:2], 0, *arrays, now[2])
        parts = addressof(self.follow), addressof(self.loop)
        self.again = abi.Again(shift, *at(self.x0), *now, *plan, *at(*self.first), *parts)
        self.width = B * m * self.xs.element_size()  # bytes of the first control

    def load(self, xs: Tensor, us: Tensor, K: Tensor) -> None:
        """A trajectory and its feedback: what the next call begins from."""
        for mine, given in ((self.xs, xs), (self.us, us), (self.K, K)):
            mine.copy_(given)

    def renew(self, problem: Problem) -> bool:
        """Read the numbers of its program anew; False where it needs another program."""
        return not self.program.stale() and self.numbers.renew(problem)

    def begins_at(self, x0: Tensor) -> bool:
        """Take a state; False where it is another kind of tensor or not finite."""
        mine = self.x0
        same = x0.dtype == mine.dtype and x0.numel() == mine.numel() and x0.is_contiguous()
        if not same or x0.device != mine.device:
            return False
        values = x0.reshape(-1)
        few = values.shape[0] <= FEW
        if not (all(map(math.isfinite, values.tolist())) if few else values.isfinite().all()):
            return False
        memmove(mine.data_ptr(), x0.data_ptr(), mine.numel() * mine.element_size())
        return True

    def __call__(self) -> bool:
        """Shift, roll out from x0, iterate.

        False where that is not finite, or the engine leaves a problem to the pieces: the caller
        then goes on from `plan`, the trajectory already shifted.
        """
        engine = self.engine
        block, again = addressof(engine.data_block), addressof(self.again)
        return bool(engine.library.ocp_again(block, again))

    def first_control(self, shape: tuple[int, ...]) -> Tensor:
        """A copy."""
        u = torch.empty(shape, dtype=self.us.dtype, device="cpu")
        memmove(u.data_ptr(), self.us.data_ptr(), self.width)
        return u
