"""Loss and accuracy of every optimiser on the small classics, over seeds, per epoch and per second.

    python benchmarks/nn_training.py --tune [--sets mnist,digits,...] [--data-dir DIR]
    python benchmarks/nn_training.py --out DIR [--seeds 3] [--sets ...] [--optimizers ...]

All methods of a study see the same weights and batches. `--tune` gives each the same number of
trials of a compass search, started at its preset, on the parameters in `TUNED`: one seed, a part
of the training set, judged by the loss on another part of it; the test set is not looked at. Every
trial and the winners go to nn_tuned.json beside this file, which the study reads.

The study writes a CSV file and a checkpoint for every run into DIR; runs that are there are not
made again, and with a larger --epochs they go on. CPU seconds are those of optimiser steps alone.
The methods in `CHEAP` get more epochs, so that all can be compared at equal time too: "-" where a
run was over by then. Tables and figures go to DIR.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ocp.tables import Row, Table
from ocp_nn.baselines import OPTIMIZERS, make_optimizer
from ocp_nn.data import Data, MissingDataError, load
from ocp_nn.experiments import evaluate, mlp, train
from ocp_nn.experiments.plots import plot_runs

Options = dict[str, Any]
WINNERS = Path(__file__).with_name("nn_tuned.json")
TRIALS = 12  # of every method on every set
MEASURES = ("loss", "accuracy", "test_loss", "test_accuracy")


class Task(NamedTuple):
    """How long to train, and the network between inputs and classes."""

    batch_size: int
    epochs: int
    cheap_factor: int  # so many times the epochs for the methods in `CHEAP`
    tuning_samples: int
    validation_samples: int
    tuning_epochs: int
    equal_seconds: float  # the methods are compared at this CPU time too
    hidden: tuple[int, ...] = (32, 32, 32, 32)
    measures: int = 1  # in an epoch
    tuning_seeds: int = 1


TASKS = {
    "iris": Task(8, 10, 4, 80, 40, 8, 0.2, (16, 16), tuning_seeds=2),
    "wine": Task(8, 10, 4, 100, 42, 8, 0.2, (16, 16), tuning_seeds=2),
    "digits": Task(16, 10, 4, 1100, 337, 4, 2.0),
    "mnist": Task(32, 1, 6, 9_600, 5_000, 1, 9.0, measures=5),
    "fashion_mnist": Task(32, 1, 6, 9_600, 5_000, 1, 9.0, measures=5),
}
# The same network on images of the same size and range; two small tables of measurements.
TUNED_ON = {"mnist": "fashion_mnist", "iris": "wine"}
CHEAP = ("sgd", "momentum", "rmsprop", "adam")
# What is tuned, from the value of the preset if none is given here.
TUNED: dict[str, Options] = {
    "sgd": {"lr": None},
    "momentum": {"lr": None},
    "rmsprop": {"lr": None},
    "adam": {"lr": None},
    "kwng": {"lr": None, "damping": None},
    "kfac": {"lr": None, "damping": None},
    "ekfac": {"lr": None, "damping": None},
    "ddp": {"damping": None, "terminal_damping": None},
    "ddp-sgd": {"lr": None},
    "ddp-rmsprop": {"lr": None, "terminal_damping": None},
    "ddp-ekfac": {"lr": None, "damping": None},
}
# Conjugate gradients need many iterations with these metrics, and where the damping is small.
FIXED: dict[str, Options] = {k: {"solver": "cholesky"} for k in ("ddp", "ddp-rmsprop", "ddp-ekfac")}
# With what short runs find best, vanilla DDP gets worse before an epoch of Fashion-MNIST is over.
# These were compared after an epoch of 50 000 samples, on the 10 000 others.
MORE: dict[str, tuple[str, Options]] = {
    "ddp-damped": ("ddp", {"damping": 4.8, "terminal_damping": 1.2})
}


# -- tuning --------------------------------------------------------------------------------------
def held_out(data: Data, task: Task) -> Data:
    """Training samples alone: some to tune on, others to judge by."""
    a, b = task.tuning_samples, task.tuning_samples + task.validation_samples
    return replace(data.first(a), test_inputs=data.inputs[a:b], test_targets=data.targets[a:b])


def compass(
    value: Callable[[Options], float], start: Options, trials: int
) -> list[tuple[Options, float]]:
    """Every trial of a search for the least `value`, the best last.

    One parameter at a time is multiplied or divided by a ratio; a better point is moved to at
    once, and the search goes on from there in the same direction first. Where no neighbour is
    better the ratio becomes its root, until it is too small to matter.
    """
    seen = {tuple(start.values()): value(start)}
    best, ratio = start, 4.0
    directions = [(name, sign) for name in start for sign in (1, -1)]
    while len(seen) < trials and ratio > 1.1:
        for name, sign in directions:
            near = {**best, name: float(f"{best[name] * ratio**sign:.2g}")}
            if tuple(near.values()) in seen:
                continue
            seen[tuple(near.values())] = found = value(near)
            if found < seen[tuple(best.values())]:
                best = near
                directions.sort(key=lambda d: d != (name, sign))
                break
            if len(seen) == trials:
                break
        else:
            ratio **= 0.5
    ordered = sorted(seen.items(), key=lambda item: -item[1])
    return [(dict(zip(start, key, strict=True)), loss) for key, loss in ordered]


def trial(method: str, options: Options, data: Data, task: Task, seed: int) -> float:
    """Validation loss, the mean over the second half of the epochs; inf where it diverged."""
    model = mlp(data.shape, data.classes, task.hidden, seed=seed)
    optimizer = make_optimizer(method, model, **FIXED.get(method, {}), **options)
    result = train(
        model, optimizer, data, epochs=task.tuning_epochs, batch_size=task.batch_size, seed=seed
    )
    losses = [float(row["test_loss"]) for row in result.rows[1 + task.tuning_epochs // 2 :]]
    if result.status.value == "DIVERGED" or not all(map(math.isfinite, losses)):
        return math.inf
    return statistics.fmean(losses or [math.inf])


def tune(name: str, arguments: argparse.Namespace) -> None:
    """Find options for one set and keep them in `WINNERS`."""
    task = TASKS[name]
    data = held_out(load(name, arguments.data_dir).flat(), task)
    for method in arguments.optimizers.split(","):

        def value(options: Options, method: str = method) -> float:
            losses = [
                trial(method, options, data, task, 1000 + k) for k in range(task.tuning_seeds)
            ]
            loss = statistics.fmean(losses)
            print(f"  {name} {method} {options}: {loss:.4f}", flush=True)
            return loss

        preset = OPTIMIZERS[method].preset
        start = {
            k: float(preset.get(k, default_of(method, k)) if v is None else v)
            for k, v in TUNED[method].items()
        }
        tried = compass(value, start, TRIALS)
        winners = json.loads(WINNERS.read_text()) if WINNERS.exists() else {}
        winners.setdefault(name, {})[method] = {
            "options": tried[-1][0],
            "validation_loss": round(tried[-1][1], 5),
            "trials": [[*o.values(), None if v == math.inf else round(v, 5)] for o, v in tried],
        }
        WINNERS.write_text(text_of(winners))


def default_of(method: str, option: str) -> float:
    from ocp_nn.baselines.registry import options_of

    return float(options_of(method)[option])


def text_of(winners: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for every method."""
    sets = [
        f'  "{name}": {{\n'
        + ",\n".join(f'    "{method}": {json.dumps(found)}' for method, found in methods.items())
        + "\n  }"
        for name, methods in winners.items()
    ]
    return "{\n" + ",\n".join(sets) + "\n}\n"


# -- the study -----------------------------------------------------------------------------------
COLUMNS = ("epoch", "step", "cpu_seconds", *MEASURES)


def run(name: str, method: str, seed: int, data: Data, arguments: argparse.Namespace) -> None:
    """Train once, or on from a checkpoint; rows of all measurements to a file of the run."""
    task, file = TASKS[name], file_of(arguments.out, name, method, seed)
    epochs = epochs_of(name, method, arguments)
    between, kept = read(file), file.with_suffix(".pt")
    if between and between[-1]["epoch"] >= epochs:
        return
    model = mlp(data.shape, data.classes, task.hidden, seed=seed)
    base = MORE[method][0] if method in MORE else method
    optimizer = make_optimizer(base, model, **FIXED.get(base, {}), **winner(name, method))
    part = data.first(10_000)

    def measure(state: Any) -> None:
        p = state.position
        if task.measures > 1 and p.batch % (-(-state.batches // task.measures)) == 0:
            got = (
                *evaluate(model, "cross_entropy", part.inputs, part.targets),
                *evaluate(model, "cross_entropy", data.test_inputs, data.test_targets),
            )
            at = {"epoch": p.epoch + p.batch / state.batches, "cpu_seconds": p.cpu_seconds}
            between.append({**at, "step": p.step, **dict(zip(MEASURES, got, strict=True))})

    result = train(
        model, optimizer, data, epochs=epochs, batch_size=task.batch_size, seed=seed,
        callback=measure, save=kept, resume=kept if between else None,
    )  # fmt: skip
    if result.status.value == "DIVERGED":  # what follows is no longer this run
        nothing = dict.fromkeys(MEASURES, math.nan)
        last = {**result.last, **nothing, "epoch": epochs, "step": result.last["step"] + 1}
        result.rows.append(last)
    rows = {row["step"]: row for row in (*between, *result.rows)}
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
    last = result.last
    print(
        f"{time.strftime('%H:%M:%S')} {name} {method} seed {seed}: {result.message} "
        f"loss {last['loss']:.4f} test {last['test_accuracy']:.4f} {last['cpu_seconds']:.1f} s",
        flush=True,
    )


def file_of(folder: Path, name: str, method: str, seed: int) -> Path:
    return folder / f"{name}_{method}_{seed}.csv"


def epochs_of(name: str, method: str, arguments: argparse.Namespace) -> int:
    epochs: int = arguments.epochs or TASKS[name].epochs
    return epochs * (TASKS[name].cheap_factor if method in CHEAP else 1)


def winner(name: str, method: str) -> Options:
    """Options of a method for a set, those of `--tune`."""
    if method in MORE:
        return MORE[method][1]
    found = json.loads(WINNERS.read_text())[TUNED_ON.get(name, name)][method]["options"]
    return dict(found)


def read(file: Path) -> list[Row]:
    """Rows of a run; none where it has not been made."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [{k: float(line[k]) for k in COLUMNS} for line in csv.DictReader(stream)]


def at_epoch(rows: list[Row], epoch: int) -> Row | None:
    return next((r for r in rows if r["epoch"] == epoch), None)


def at_time(rows: list[Row], seconds: float) -> Row | None:
    """The last measurement before that time; None where the run was over long before it."""
    before = [r for r in rows if r["cpu_seconds"] <= seconds]
    over = rows[-1]["cpu_seconds"] < 0.9 * seconds
    return None if over or len(before) < 2 else before[-1]


def spread(values: list[float], form: str) -> str:
    """Mean and range."""
    mean, low, high = statistics.fmean(values), min(values), max(values)
    return f"{mean:{form}} ({low:{form}}-{high:{form}})"


def cells(rows: list[Row | None], measures: tuple[str, ...]) -> list[str]:
    """Of the seeds of a method; "-" where one was not measured, "diverged" where it has no loss."""
    made = [row for row in rows if row is not None]
    if len(made) < len(rows):
        return ["-"] * len(measures)
    if any(math.isnan(row[k]) for row in made for k in measures):
        return ["diverged"] * len(measures)
    return [spread([row[k] for row in made], ".3f") for k in measures]


def table(name: str, methods: Mapping[str, list[list[Row]]], epochs: int) -> Table:
    """What was reached after that number of epochs, and at equal time."""
    task, lines = TASKS[name], []
    for method, runs in methods.items():
        done = [at_epoch(rows, epochs) for rows in runs]
        timed = [at_time(rows, task.equal_seconds) for rows in runs]
        steps = [1e3 * rows[-1]["cpu_seconds"] / max(rows[-1]["step"], 1) for rows in runs]
        late = cells(timed, ("loss", "test_accuracy"))
        lines.append([method, *cells(done, MEASURES), *late, f"{statistics.median(steps):.2f}"])
    title = (
        f"{name}, batches of {task.batch_size}: after epoch {epochs}, and after "
        f"{task.equal_seconds:g} CPU s; mean (range) over {max(map(len, methods.values()))} seeds"
    )
    late_columns = (f"loss, {task.equal_seconds:g} s", "test accuracy", "ms/step")
    columns = ("optimizer", "loss", "accuracy", "test loss", "test accuracy", *late_columns)
    return Table(title, columns, lines)


def study(names: list[str], arguments: argparse.Namespace) -> None:
    """All runs that are not in the folder yet, seed by seed; then its tables and figures."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    methods = arguments.optimizers.split(",")
    sets = {name: load(name, arguments.data_dir).flat() for name in names}
    for seed in range(arguments.seeds):
        for name, data in sets.items():
            for method in methods:
                run(name, method, seed, data, arguments)
    for name in names:
        runs = {
            method: [
                read(file_of(arguments.out, name, method, seed)) for seed in range(arguments.seeds)
            ]
            for method in methods
        }
        text = str(table(name, runs, arguments.epochs or TASKS[name].epochs))
        print(f"\n{text}", flush=True)
        (arguments.out / f"{name}.txt").write_text(f"{text}\n")
        plot_runs(
            f"{name}, batches of {TASKS[name].batch_size}", runs, arguments.out / f"{name}.png"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", default=",".join(TASKS))
    parser.add_argument("--optimizers", default=",".join(TUNED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of those in TASKS")
    parser.add_argument("--tune", action="store_true", help="find options instead of comparing")
    parser.add_argument("--out", type=Path, default=Path("nn_training"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    present = []
    for name in arguments.sets.split(","):
        try:
            load(name, arguments.data_dir)
            present.append(name)
        except MissingDataError as error:
            print(f"{name} left out: {error}\n")
    if arguments.tune:
        for name in present:
            if name not in TUNED_ON:
                tune(name, arguments)
    else:
        study(present, arguments)


if __name__ == "__main__":
    main()
