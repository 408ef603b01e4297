"""What ``ocp-nn`` prints and writes while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import typer

from ocp.extras import installed, need
from ocp.progress import INTERVAL, Progress
from ocp.tables import Row, number, write_csv
from ocp_nn.cli_input import BEST, WEIGHTS
from ocp_nn.experiments.study import Study
from ocp_nn.experiments.training import Result, Run

COLUMNS = {
    "epoch": "d",
    "loss": ".4g",
    "accuracy": ".4f",
    "test_loss": ".4g",
    "test_accuracy": ".4f",
    "lr": ".3g",
    "seconds": ".2f",
}
WIDTH = 14


class Line(Progress):
    """One line, redrawn in place while a run is under way; nothing into a file."""

    def __init__(self, title: str = "") -> None:
        super().__init__(title, keep=False)

    def __call__(self, run: Run) -> None:  # type: ignore[override]
        now = time.perf_counter()
        if now - self._drawn >= INTERVAL:
            self._drawn = now
            self.draw(run)  # type: ignore[arg-type]

    def line(self, run: Run) -> Any:  # type: ignore[override]
        from rich.text import Text

        p = run.position
        words = (
            f"epoch {p.epoch + 1}/{run.epochs}  batch {p.batch}/{run.batches}  "
            f"loss {run.loss_value:.4g}  {p.seconds:.1f} s"
        )
        return Text.assemble((f"{self.title}  ", "bold"), words, no_wrap=True, overflow="ellipsis")


class PrintedRows:
    """Rows on the screen, a header above the first one that this process makes."""

    def __init__(self) -> None:
        self.begun = False

    def __call__(self, row: Row) -> None:
        if not self.begun:
            typer.echo("".join(f"{name:>{WIDTH}}" for name in COLUMNS))
            self.begun = True
        typer.echo("".join(f"{number(row[k], form):>{WIDTH}}" for k, form in COLUMNS.items()))


class CsvLog:
    """Rows into a file, complete after every epoch."""

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self.path, self.rows = path, list(rows)

    def __call__(self, row: Row) -> None:
        self.rows.append(row)
        write_csv(self.path, self.rows)


class TensorBoardLog:
    """Rows as scalars of a TensorBoard run.

    Raises:
        ImportError: tensorboard is missing.
    """

    def __init__(self, folder: Path, after: int | None = None) -> None:
        need("tensorboard", "tensorboard", "--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run goes on in a file of its own; what is later than its start is void.
        purge = None if after is None else after + 1
        self.writer = SummaryWriter(str(folder), purge_step=purge)

    def __call__(self, row: Row) -> None:
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()


def write_result(out: Path, title: str, result: Result, weights: dict[str, Any]) -> list[str]:
    """Last and best weights, and curves where matplotlib is installed; the paths."""
    torch.save(weights, out / WEIGHTS)
    torch.save(result.best_weights, out / BEST)
    files = [out / WEIGHTS, out / BEST]
    if installed("matplotlib"):
        from ocp_nn.experiments.plots import plot_runs

        files.append(plot_runs(title, {title: [result.rows]}, out / "curves.png"))
    return [str(file) for file in files]


def write_study(out: Path, study: Study) -> list[str]:
    """Table, epochs, everything as JSON, and curves; the paths."""
    out.mkdir(parents=True, exist_ok=True)
    table = out / "table.txt"
    table.write_text(f"{study.table()}\n", "utf-8")
    files = [table, study.to_csv(out / "epochs.csv"), study.to_json(out / "study.json")]
    return [str(file) for file in (*files, study.plot(out / "curves.png"))]


def facts(settings: dict[str, Any], result: Result) -> Row:
    return {
        **settings,
        "status": result.status.value,
        "message": result.message,
        "best_epoch": result.best,
        "rows": result.rows,
    }
