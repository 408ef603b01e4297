"""How a program spreads over the threads of a GPU: `grid.h` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ocp.engines.native import abi

LARGE = 10  # n + m from which a thread has too few registers for the matrices of a stage
FEW = 512  # problems, below which a GPU has more threads than threads have problems
WARP, TEAM = 32, 128  # threads of a block; TEAM where they share out large matrices
MOST_THREADS, MOST_TEAMS = 2**17, 2**12  # at work at the same time; the rest take turns
MOST_BLOCKS = 2**16 - 1

UNITS = ("ocp_sweep", "ocp_follow", "ocp_iterate")  # entries that use work memory
SAMPLES = ("ocp_gaps", "ocp_expand", "ocp_contracted")  # stages of problems are independent


class Form(NamedTuple):
    """A form of a program.

    Attributes:
        single: a block of threads for each problem, else one thread.
        team: threads of a block.
    """

    single: bool
    team: int


def form(d: int, batch: int) -> Form:
    """For problems with d = n + m. A block has few threads: those of few problems are then spread
    over all multiprocessors."""
    return Form(d > LARGE or batch < FEW, TEAM if d > LARGE else WARP)


@runtime_checkable
class Kernels(Protocol):
    """A loaded program.

    Attributes:
        form: its form.
        memory: bytes it may use for work memory.
    """

    form: Form
    memory: int

    def launch(self, entry: str, blocks: int, arguments: Sequence[Structure | int]) -> None:
        """Runs an entry after all that was launched before."""

    def usage(self, entry: str) -> str:
        """Registers and memory of a thread, for people to read."""


def info(kernels: Kernels, like: Tensor) -> abi.Info:
    """What a program says of itself; ``like``: a tensor on its device."""
    out = like.new_empty(len(abi.Info._fields), dtype=torch.int64)
    kernels.launch("ocp_info", 1, [out.data_ptr()])
    return abi.info_of(out.tolist())


def units(form: Form, batch: int, bytes_each: int, memory: int) -> int:
    """How many units of work memory: a multiple of the threads of a block where those have one
    each. What a problem's results are does not depend on it."""
    step = 1 if form.single else form.team
    wanted = -(-batch // step)
    most = MOST_TEAMS if form.single else MOST_THREADS // step
    return step * max(1, min(wanted, most, memory // (bytes_each * step)))


def blocks(form: Form, entry: str, data: abi.Data, lines: int) -> int:
    """The size of the grid; ``lines``: of ``ocp_total_cost``."""
    if entry in UNITS:
        return data.threads if form.single else data.threads // form.team
    count = lines if entry == "ocp_total_cost" else data.B
    count = data.T * data.B if entry in SAMPLES else count
    return min(-(-count // form.team), MOST_BLOCKS)
