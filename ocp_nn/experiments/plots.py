"""Curves of training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocp.plot import new_figure
from ocp.tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("epoch", "loss", "training loss"),
    ("epoch", "test_accuracy", "test accuracy"),
    ("cpu_seconds", "loss", "training loss"),
    ("cpu_seconds", "test_accuracy", "test accuracy"),
)
AXES = {"epoch": "epoch", "cpu_seconds": "CPU seconds in optimiser steps"}


def plot_runs(title: str, runs: Mapping[str, Sequence[Sequence[Row]]], path: str | Path) -> Path:
    """`curves`, written to a file in any format of matplotlib."""
    curves(title, runs).savefig(path)
    return Path(path)


def curves(title: str, runs: Mapping[str, Sequence[Sequence[Row]]]) -> Figure:
    """Loss and test accuracy, by epoch above and by seconds below.

    Args:
        runs: label -> rows of each seed; one colour a label, a thin line a seed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(10, 7)
    axes = figure.subplots(2, 2).flatten()
    for axis, (x, y, name) in zip(axes, PANELS, strict=True):
        for i, (label, seeds) in enumerate(runs.items()):
            for k, rows in enumerate(seeds):
                axis.plot(
                    [r[x] for r in rows],
                    [r[y] for r in rows],
                    color=f"C{i % 10}",
                    linestyle=("-", "--", ":", "-.")[i // 10 % 4],
                    linewidth=1 if len(seeds) > 1 else 1.5,
                    label=label if k == 0 else None,
                )
        values = [r[y] for seeds in runs.values() for rows in seeds for r in rows]
        if y == "loss" and min(values) > 0:
            axis.set_yscale("log")
        frame(axis, [r[y] for seeds in runs.values() for rows in seeds for r in rows[1:]])
        if x == "epoch":
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel(AXES[x])
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    if len(runs) > 1:
        axes[1].legend(fontsize="small", loc="lower right")
    figure.suptitle(title)
    return figure


def frame(axis: Any, values: Sequence[float]) -> None:
    """Show these values; what comes before training would squeeze them into a corner."""
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2 or min(finite) == max(finite):
        return
    transform = axis.yaxis.get_transform()
    low, high = transform.transform([min(finite), max(finite)])
    margin = 0.08 * (high - low)
    axis.set_ylim(*transform.inverted().transform([low - margin, high + margin]))
