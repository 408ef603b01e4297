"""Programs for a GPU run on a CPU: `grid.Kernels` whose threads are fibres, see grid_twin.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, addressof, c_int, c_int64, c_void_p
from pathlib import Path

import ocp
from ocp.engines.native import build, emit, grid, stagewise
from ocp.engines.native.compiled import Compiled, rows_of, text_of

SHIM = Path(__file__).with_name("grid_twin.h")
WORDS = 8  # that a kernel takes


class Twin:
    """``backwards``: threads and blocks run in the opposite order."""

    def __init__(self, text: str, form: grid.Form) -> None:
        self.form, self.backwards, self.memory = form, False, 2**30
        self.library = build.load(SHIM.read_text() + text)
        kinds = [c_void_p, c_int, c_int, c_int, c_int64 * WORDS]
        self.library.twin_launch.argtypes = kinds

    def launch(self, entry: str, blocks: int, arguments: Sequence[Structure | int]) -> None:
        words = [addressof(a) if isinstance(a, Structure) else a for a in arguments]
        kernel = ctypes.cast(getattr(self.library, entry), c_void_p)
        wrong = self.library.twin_launch(
            *(kernel, blocks, grid.threads(self.form, entry), self.backwards),
            (c_int64 * WORDS)(*words),
        )
        assert not wrong, f"{entry}: threads of a block do not meet at the same barriers"

    def usage(self, entry: str) -> grid.Usage:
        return grid.Usage(0, 0, 0)


def compiled(problem: ocp.Problem, form: grid.Form, settings: str = "") -> Compiled:
    """The program of a problem; ``settings``: macros before its text."""
    shared, problem = problem.shared_controls, rows_of(problem)
    program = stagewise.model(problem) if problem.stagewise else emit.model(problem)
    kernels = Twin(settings + text_of(problem, program, form, shared), form)
    functions = problem.dynamics, problem.cost
    return Compiled(program, kernels, grid.info(kernels, problem.x0), functions, form)
