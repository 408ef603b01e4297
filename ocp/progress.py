"""A live line while a solve runs, with rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ocp.extras import installed, need
from ocp.problem import Problem
from ocp.solution import Status
from ocp.solvers.loop import Callback, Report, Solver

DELAY = 0.5  # s: shorter solves show nothing unless asked to
INTERVAL = 0.1  # s between redraws


class Progress:
    """Callback that shows iteration, cost and residual on one line, redrawn in place.

    Args:
        title: what is solved, and by what.
        max_iterations: what the count of iterations is out of.
        delay: seconds before anything shows.
        keep: leave the last line on the screen.
        file: where to write; standard output if None.

    Raises:
        ImportError: rich is missing.
    """

    def __init__(
        self,
        title: str = "",
        max_iterations: int | None = None,
        *,
        delay: float = 0.0,
        keep: bool = True,
        file: Any = None,
    ) -> None:
        need("rich", "progress", "progress=True")
        self.title, self.max_iterations = title, max_iterations
        self.delay, self.keep, self.file = delay, keep, file
        self._live: Any = None
        self._drawn = -float("inf")
        self._last: Report | None = None

    def __call__(self, report: Report) -> None:
        """Show a report, unless it is too early or too soon after the one before."""
        self._last = report
        now = time.perf_counter()
        if report.seconds >= self.delay and now - self._drawn >= INTERVAL:
            self._drawn = now
            self.draw(report)

    def draw(self, report: Report) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self.file)
        if not console.is_terminal:
            return  # a file gets one line, at the end
        if self._live is None:
            # Redrawn from the callback: a thread of its own would compete with the solver.
            self._live = Live(console=console, auto_refresh=False, transient=not self.keep)
            self._live.start()
        self._live.update(self.line(report), refresh=True)

    def line(self, report: Report) -> Any:
        from rich.text import Text

        words = text(report, self.max_iterations)
        return Text.assemble((f"{self.title}  ", "bold"), words, no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        """Leave the last line where it is to stay, and give the terminal back."""
        if self._last is not None and (self._live is not None or self.keep):
            self.draw(self._last)
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._last is not None and self.keep:
            print(f"{self.title}  {text(self._last, self.max_iterations)}", file=self.file)


def text(report: Report, max_iterations: int | None = None) -> str:
    """One report in words: medians and counts for a batch."""
    running = report.status == Status.RUNNING
    B, left = report.cost.shape[0], int(running.sum())
    of = "" if max_iterations is None else f"/{max_iterations}"
    parts = [f"iteration {report.iteration}{of}"]
    if B > 1:
        parts.append(f"{left} of {B} running")
    parts.append(f"cost {float(report.cost.median()):.6g}")
    residual = report.residual[running] if left else report.residual
    parts.append(f"residual {float(residual.max()):.1e}")
    if bool((report.gap > 0).any()):
        parts.append(f"gap {float(report.gap.max()):.1e}")
    if not left and B == 1:
        parts.append(Status(int(report.status[0])).name.lower())
    return "  ".join([*parts, f"{report.seconds:.1f} s"])


@contextmanager
def watched(
    progress: bool | None, callback: Callback | None, solver: Solver, problem: Problem
) -> Iterator[Callback | None]:
    """The callback of a solve, joined by a live line where one is wanted.

    Args:
        progress: True for a line, False for none. None for one that shows after `DELAY` seconds
            and disappears at the end, if standard output is a terminal and rich is installed.
        callback: the user's; its answer is passed on.

    Raises:
        ImportError: progress is True and rich is missing.
    """
    quiet = progress is None and not (sys.stdout.isatty() and installed("rich"))
    if quiet or progress is False:
        yield callback
        return
    title = f"{problem.name} {solver.name}".strip()
    line = Progress(
        title, solver.rules.max_iterations, delay=0.0 if progress else DELAY, keep=bool(progress)
    )

    def both(report: Report) -> bool | None:
        line(report)
        return None if callback is None else callback(report)

    try:
        yield both
    finally:
        line.close()
