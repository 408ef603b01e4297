"""Several optimisers on the same data from the same initial weights, over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ocp.tables import Row, Table, number, write_csv, write_json
from ocp_nn.baselines.base import LossName
from ocp_nn.baselines.registry import make_optimizer
from ocp_nn.data import Data
from ocp_nn.experiments.training import Callback, Result, train

MEASURES = ("loss", "accuracy", "test_loss", "test_accuracy")


@dataclass(frozen=True, eq=False)
class Study:
    """Results of `compare`.

    Attributes:
        title: what was trained.
        results: label -> one `Result` a seed.
        seeds: in the order of the results.
    """

    title: str
    results: dict[str, list[Result]]
    seeds: tuple[int, ...]

    def rows(self) -> list[Row]:
        """One a run: what it reached in its last epoch, and what that cost."""
        return [
            {
                "optimizer": label,
                "seed": seed,
                "status": result.status.value,
                **{k: result.last[k] for k in ("epoch", "step", *MEASURES)},
                "seconds": result.last["seconds"],
                "cpu_seconds": result.last["cpu_seconds"],
            }
            for label, results in self.results.items()
            for seed, result in zip(self.seeds, results, strict=True)
        ]

    def history(self) -> list[Row]:
        """One an epoch of every run."""
        return [
            {"optimizer": label, "seed": seed, **row}
            for label, results in self.results.items()
            for seed, result in zip(self.seeds, results, strict=True)
            for row in result.rows
        ]

    def table(self) -> Table:
        """Mean over seeds, and the standard deviation where there are several."""
        lines, notes = [], list[str]()
        for label, results in self.results.items():
            last = [r.last for r in results]
            cells = [spread([row[k] for row in last]) for k in MEASURES]
            steps = sum(row["step"] for row in last)
            cpu = sum(row["cpu_seconds"] for row in last)
            time = [
                spread([row["cpu_seconds"] for row in last]),
                number(1e3 * cpu / max(steps, 1), ".3g"),
            ]
            lines.append([label, *cells, *time])
            notes += [
                f"{label}, seed {seed}: {r.message}"
                for seed, r in zip(self.seeds, results, strict=True)
                if r.status.value != "FINISHED"
            ]
        columns = (
            "optimizer",
            "loss",
            "accuracy",
            "test loss",
            "test accuracy",
            "cpu s",
            "ms/step",
        )
        many = (
            f"mean ± standard deviation of {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        )
        return Table(f"{self.title}{': ' if many else ''}{many}", columns, lines, notes)

    def to_csv(self, path: str | Path) -> Path:
        """Every epoch of every run."""
        return write_csv(path, self.history())

    def to_json(self, path: str | Path) -> Path:
        """The last epoch of every run, and every epoch."""
        return write_json(
            path, {"title": self.title, "runs": self.rows(), "epochs": self.history()}
        )

    def plot(self, path: str | Path) -> Path:
        """Loss and test accuracy by epoch and by seconds."""
        from ocp_nn.experiments.plots import plot_runs

        return plot_runs(
            self.title, {k: [r.rows for r in v] for k, v in self.results.items()}, path
        )


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return number(mean, ".4g")
    return f"{number(mean, '.4g')} ± {number(statistics.stdev(values), '.2g')}"


def compare(
    data: Data,
    optimizers: Mapping[str, Mapping[str, Any]] | Sequence[str],
    make_model: Callable[[int], nn.Module],
    *,
    loss: LossName = "cross_entropy",
    epochs: int = 10,
    batch_size: int = 32,
    seeds: Sequence[int] = (0,),
    patience: int | None = None,
    monitor: str = "test_loss",
    callback: Callback | None = None,
    started: Callable[[str, int], None] | None = None,
    title: str = "",
) -> Study:
    """Train once for every optimiser and seed; all see the same weights and batches.

    Runs of one seed follow each other, optimiser by optimiser, so that a busy machine treats them
    alike. Ctrl-C ends the run under way; with fewer complete seeds than asked for, the study has
    those it has, at least one.

    Args:
        optimizers: names, or label -> options with ``name`` among them where it is not the label.
        make_model: seed -> a new model on the device of the data.
        loss, epochs, batch_size, patience, monitor, callback: as in `train`.
        seeds: of the weights and of the order of the samples.
        started: told the label and seed of every run before it.

    Raises:
        ValueError: no optimiser, no seed, an unknown name or option.
    """
    wanted = optimizers if isinstance(optimizers, Mapping) else {k: {} for k in optimizers}
    if not wanted or not seeds:
        raise ValueError("optimizers and seeds must not be empty.")
    for label, options in wanted.items():  # all mistakes before the first run
        build(label, options, make_model(seeds[0]), loss)
    results: dict[str, list[Result]] = {label: [] for label in wanted}
    complete: list[int] = []
    for seed in seeds:
        row: dict[str, Result] = {}
        for label, options in wanted.items():
            if started is not None:
                started(label, seed)
            model = make_model(seed)
            row[label] = train(
                model, build(label, options, model, loss), data, loss=loss, epochs=epochs,
                batch_size=batch_size, seed=seed, patience=patience, monitor=monitor,
                callback=callback,
            )  # fmt: skip
            if row[label].status.value == "INTERRUPTED":
                break
        if len(row) < len(wanted) and complete:
            break
        for label, result in row.items():
            results[label].append(result)
        complete.append(seed)
        if any(r.status.value == "INTERRUPTED" for r in row.values()):
            break
    return Study(title or data.name, {k: v for k, v in results.items() if v}, tuple(complete))


def build(label: str, options: Mapping[str, Any], model: nn.Module, loss: LossName) -> Any:
    given = dict(options)
    return make_optimizer(given.pop("name", label), model, loss, **given)
