"""How a program spreads over the threads of a GPU: `grid.h` in Python."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from ctypes import Structure
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ocp.engines.native import abi

LARGE = 10  # n + m from which a thread has too few registers for the matrices of a stage
FEW = 2048  # problems, below which warps of 32 of them would leave multiprocessors idle
WARP, TEAM = 32, 128  # threads of a block; TEAM where they share out large matrices
RANKS = (8, 4, 2)  # threads of a problem where problems lie side by side, if there is room
MOST_REGISTERS, REGISTERS = 256, 2**16  # of a thread, of a multiprocessor
# Bytes that a thread may spill: 256 threads and their spills fit in the 228 kB of fast memory of a
# multiprocessor, beside what they read.
MOST_SPILLS = 512
WIDE = 256  # threads of a block of the kernels for shared controls: OCP_WIDE_TEAM
MOST_THREADS, MOST_TEAMS = 2**17, 2**12  # at work at the same time; the rest take turns
MOST_BLOCKS = 2**16 - 1

LOOP = "ocp_iterate"  # the kernel that decides how fast a solve is
UNITS = ("ocp_sweep", "ocp_follow", LOOP)  # entries that use work memory
SAMPLES = ("ocp_gaps", "ocp_expand", "ocp_contracted")  # stages of problems are independent


class Form(NamedTuple):
    """A form of a program.

    Attributes:
        single: a block of threads for each problem.
        team: threads of a block.
        ranks: of them, those of one problem, where it is not all of them.
    """

    single: bool
    team: int
    ranks: int = 1

    @property
    def beside(self) -> int:
        """Problems of a block."""
        return 1 if self.single else self.team // self.ranks

    def __str__(self) -> str:
        if self.single:
            return f"a block of {self.team} threads for each problem"
        if self.ranks == 1:
            return "a thread for each problem"
        return f"{self.ranks} threads for each problem, in blocks of {self.team}"


def form(d: int, batch: int, processors: int = 132) -> Form:
    """For problems with d = n + m, on a GPU with so many multiprocessors.

    A block has few threads: those of few problems are then spread over all multiprocessors. Small
    problems that are many lie side by side; each has as many threads as leave room for all
    problems at the same time, whatever registers a thread takes.
    """
    if d > LARGE or batch < FEW:
        return Form(True, TEAM if d > LARGE else WARP)
    for ranks in RANKS:
        at_once = REGISTERS // (MOST_REGISTERS * WARP * ranks) * WARP * processors
        if batch <= at_once:
            return Form(False, WARP * ranks, ranks)
    return Form(False, WARP)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def others(form: Form) -> list[Form]:
    """Those to try where a form spills too much."""
    if form.single:
        return []
    fewest = RANKS[-1]
    beside = [Form(False, WARP * fewest, fewest)] if form.ranks == 1 else []
    return [*beside, Form(True, WARP)]


@dataclass(frozen=True)
class Usage:
    """What a thread of a kernel takes.

    Attributes:
        local: bytes of local memory, with those of functions that are called.
        spilled: of them, those that the kernel itself has for want of registers.
        shared: bytes of a block.
    """

    registers: int
    local: int
    spilled: int
    shared: int = 0

    def __str__(self) -> str:
        spills = f", {self.spilled} of them spilled" if self.spilled else ""
        return (
            f"{self.registers} registers, {self.local} bytes of local memory a thread{spills}, "
            f"{self.shared} of shared memory a block"
        )


def usages(log: str) -> dict[str, Usage]:
    """Of each kernel, from what NVRTC says when asked for ``--ptxas-options=-v``."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        frames = [int(v) for v in re.findall(r"(\d+) bytes stack frame", part)]
        spills = re.search(r"(\d+) bytes spill stores", part)  # the kernel's come first
        registers = re.search(r"Used (\d+) registers", part)
        stack = re.search(r"(\d+) bytes cumulative stack size", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if registers is None or spills is None:
            continue
        found[part.split("'")[0]] = Usage(
            int(registers[1]),
            int(stack[1]) if stack else max(frames),
            int(spills[1]),
            int(shared[1]) if shared else 0,
        )
    return found


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

    def usage(self, entry: str) -> Usage:
        """Registers and memory of a thread."""


def info(kernels: Kernels, like: Tensor) -> abi.Info:
    """What a program says of itself; ``like``: a tensor on its device."""
    out = like.new_empty(len(abi.Info._fields), dtype=torch.int64)
    kernels.launch("ocp_info", 1, [out.data_ptr()])
    return abi.info_of(out.tolist())


def units(form: Form, batch: int, bytes_each: int, memory: int) -> int:
    """How many units of work memory: a multiple of the threads of a block where those have one
    each. What a problem's results are does not depend on it."""
    step = form.beside
    wanted = -(-batch // step)
    most = MOST_TEAMS if form.single else MOST_THREADS // form.team
    return step * max(1, min(wanted, most, memory // (bytes_each * step)))


def threads(form: Form, entry: str) -> int:
    """Of a block."""
    return WIDE if entry in ("ocp_ensemble_sweep", "ocp_ensemble_follow") else form.team


def blocks(form: Form, entry: str, data: abi.Data, lines: int) -> int:
    """The size of the grid; ``lines``: of ``ocp_total_cost``."""
    if entry in UNITS:
        return data.threads // form.beside
    count = lines if entry == "ocp_total_cost" else data.B
    count = data.T * data.B if entry in SAMPLES else count
    return min(-(-count // form.team), MOST_BLOCKS)
