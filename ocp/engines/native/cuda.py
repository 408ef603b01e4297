"""The native engine on a GPU: the same programs and answers, tensors stay on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp.engines.base import Begun, Recipe
from ocp.engines.eager import Eager
from ocp.engines.native import abi, grid
from ocp.engines.native.calls import address
from ocp.engines.native.compiled import Compiled
from ocp.engines.native.engine import Native
from ocp.engines.native.padded import Padded
from ocp.problem import Problem, Stages


class Cuda(Native):
    """Launches the kernels of a problem; one object a problem and its data."""

    name = "cuda"

    def __init__(self, problem: Problem, compiled: Compiled) -> None:
        super().__init__(problem, compiled)
        assert compiled.form is not None
        self.form = compiled.form

    def call(self, entry: str, *arguments: Any) -> None:
        if self.work is None:
            self.use(self.room())
        lines = arguments[0] if entry == "ocp_total_cost" else 0
        size = grid.blocks(self.form, entry, self.data_block, lines)
        ready = [address(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
        self.library.launch(entry, size, [self.data_block, *ready])

    def room(self) -> Tensor:
        """Work memory for all units; says in ``data_block`` how many they are."""
        need = self.integers(1)
        self.data_block.threads = 1
        self.library.launch("ocp_work_bytes", 1, [self.data_block, need.data_ptr()])
        each, memory = int(need), self.library.memory
        while True:
            count = grid.units(self.form, self.problem.batch, each, memory)
            try:
                work = self.x0.new_empty(each * count, dtype=torch.uint8)
            except torch.OutOfMemoryError as error:
                if count == self.form.beside:
                    raise torch.OutOfMemoryError(lacking(each, count, self.problem)) from error
                memory = each * count // 2  # problems take turns
            else:
                self.data_block.threads = count
                return work

    def begin(self, us: Stages, xs: Stages | None = None) -> Begun:
        return Eager.begin(self, us, xs)

    def iterations(self, request: abi.Iterate, taken: Tensor) -> int:
        """One launch for all steps, one number to the host, one launch for the rows of problems
        that have stopped."""
        self.call("ocp_iterate", request)
        most = int(taken.max())
        self.call("ocp_fill_rows", request, most)
        return most

    def launch_wide(self, entry: str, blocks: int, *arguments: Any) -> None:
        """A kernel for shared controls, which has its own work memory."""
        self.library.launch(entry, blocks, [self.data_block, *arguments])

    def iterate(self, state: Any, recipe: Recipe, most: int) -> Any:
        """PMP is made of the pieces here: its memory is laid out for packs."""
        return None if recipe.pairs is not None else super().iterate(state, recipe, most)

    def of(self, us: Stages) -> Native | None:
        """Work memory is the device's: no copies of problems for trials side by side."""
        return self if self.fits(us) else None

    def prepare(self, recipe: Recipe, damping: float, steps: int, shift: int) -> None:
        """Calls set up beforehand save microseconds of Python: on the CPU alone."""


def lacking(each: int, count: int, problem: Problem) -> str:
    return (
        f"no room on {problem.x0.device} for the work memory of the compiled program: "
        f"{each * count:,} bytes for the {count} problems of one block, {each:,} for each of "
        f"horizon {problem.horizon}. Free memory, shorten the horizon, or take engine='eager'."
    )


class PaddedCuda(Padded, Cuda):
    """The same where sizes change with t."""
