"""Loss and accuracy of every optimiser on the small classics, over seeds, per epoch and per second.

    python benchmarks/nn_training.py --tune [--sets mnist,digits,...] [--data-dir DIR]
    python benchmarks/nn_training.py --out DIR [--seeds 3] [--sets ...] [--optimizers ...]

All methods of a study see the same weights and batches. `--tune` gives each the same number of
trials of a compass search, started at its preset, on the parameters in `TUNED`: one seed, a part
of the training set, judged by the loss on another part of it; the test set is not looked at. Every
trial and the winners go to nn_tuned.json beside this file, which the study reads.

The study writes a row to DIR/runs.csv at every measurement, and skips the runs it finds complete
there. CPU seconds are those of optimiser steps alone. The methods whose steps are cheap get more
epochs, so that methods can be compared at equal time too. The last table tells
what was reached by then; "-" where a run was shorter.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ocp.tables import Row, Table
from ocp_nn.baselines import OPTIMIZERS, make_optimizer
from ocp_nn.data import Data, MissingDataError, load
from ocp_nn.experiments import Result, evaluate, mlp, train
from ocp_nn.experiments.plots import plot_runs

Options = dict[str, Any]
WINNERS = Path(__file__).with_name("nn_tuned.json")
TRIALS = 12  # of every method on every set
MEASURES = ("loss", "accuracy", "test_loss", "test_accuracy")


class Task(NamedTuple):
    """How long to train, and the network between inputs and classes."""

    batch_size: int
    epochs: int
    cheap_epochs: int  # of the methods in `CHEAP`
    tuning_samples: int
    validation_samples: int
    tuning_epochs: int
    equal_seconds: float  # the methods are compared at this CPU time too
    hidden: tuple[int, ...] = (32, 32, 32, 32)
    measures: int = 1  # in an epoch
    tuning_seeds: int = 1


TASKS = {
    "iris": Task(8, 10, 40, 80, 40, 10, 0.2, (16, 16), tuning_seeds=3),
    "wine": Task(8, 10, 40, 100, 42, 10, 0.2, (16, 16), tuning_seeds=3),
    "digits": Task(16, 10, 40, 1100, 337, 4, 2.0),
    "mnist": Task(32, 2, 8, 9_600, 5_000, 1, 8.0, measures=5),
    "fashion_mnist": Task(32, 2, 8, 9_600, 5_000, 1, 8.0, measures=5),
}
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
# Conjugate gradients need many iterations with these metrics.
FIXED: dict[str, Options] = {k: {"solver": "cholesky"} for k in ("ddp-rmsprop", "ddp-ekfac")}


def model_of(data: Data, task: Task, seed: int) -> nn.Module:
    return mlp(data.shape, data.classes, task.hidden, seed=seed)


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
    model = model_of(data, task, seed)
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
            "validation_loss": tried[-1][1],
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
def run(name: str, method: str, seed: int, data: Data, options: Options, out: Path) -> None:
    """Train once; rows of all measurements to the file when the run is over."""
    task = TASKS[name]
    model = model_of(data, task, seed)
    optimizer = make_optimizer(method, model, **FIXED.get(method, {}), **options)
    between: list[Row] = []
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
        model, optimizer, data, epochs=epochs_of(task, method), batch_size=task.batch_size,
        seed=seed, callback=measure,
    )  # fmt: skip
    write(out, name, method, seed, result, between)
    last = result.last
    print(
        f"{time.strftime('%H:%M:%S')} {name} {method} seed {seed}: {result.message} "
        f"loss {last['loss']:.4f} test {last['test_accuracy']:.4f} {last['cpu_seconds']:.1f} s",
        flush=True,
    )


def epochs_of(task: Task, method: str) -> int:
    return task.cheap_epochs if method in CHEAP else task.epochs


COLUMNS = ("set", "optimizer", "seed", "status", "epoch", "step", "cpu_seconds", *MEASURES)


def write(
    file: Path, name: str, method: str, seed: int, result: Result, between: list[Row]
) -> None:
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        for row in sorted((*result.rows, *between), key=lambda r: r["step"]):
            own = {"set": name, "optimizer": method, "seed": seed, "status": result.status.value}
            writer.writerow({**own, **row})


def read(file: Path) -> dict[str, dict[str, dict[int, list[Row]]]]:
    """Rows of the file by set, method and seed."""
    runs: dict[str, dict[str, dict[int, list[Row]]]] = defaultdict(lambda: defaultdict(dict))
    if file.exists():
        with file.open(newline="") as stream:
            for line in csv.DictReader(stream):
                row = {k: line[k] if k in COLUMNS[:4] else float(line[k]) for k in COLUMNS}
                by_seed = runs[line["set"]][line["optimizer"]]
                by_seed.setdefault(int(line["seed"]), []).append(row)
    return runs


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


def table(name: str, methods: Mapping[str, Mapping[int, list[Row]]]) -> Table:
    """What was reached after the common number of epochs, and at equal time."""
    task, lines = TASKS[name], []
    for method, by_seed in methods.items():
        runs = list(by_seed.values())
        done = [r for r in (at_epoch(rows, task.epochs) for rows in runs) if r is not None]
        timed = [r for r in (at_time(rows, task.equal_seconds) for rows in runs) if r is not None]
        cells = ["diverged"] * 4 + ["-"]
        if len(done) == len(runs):
            cells = [spread([r[k] for r in done], ".3f") for k in MEASURES]
            cells.append(f"{statistics.median(r['cpu_seconds'] for r in done) / task.epochs:.2f}")
        late = ["-", "-"]
        if len(timed) == len(runs):
            late = [spread([r[k] for r in timed], ".3f") for k in ("loss", "test_accuracy")]
        lines.append([method, *cells, *late])
    title = (
        f"{name}, batches of {task.batch_size}: after {task.epochs} epochs, and after "
        f"{task.equal_seconds:g} CPU s; mean (range) over {max(map(len, methods.values()))} seeds"
    )
    columns = ("optimizer", "loss", "accuracy", "test loss", "test accuracy", "s/epoch")
    return Table(title, (*columns, f"loss, {task.equal_seconds:g} s", "test accuracy"), lines)


def study(names: list[str], arguments: argparse.Namespace) -> None:
    """All runs that are not in the file yet, seed by seed; then tables and figures of the file."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "runs.csv"
    winners = json.loads(WINNERS.read_text())
    methods = arguments.optimizers.split(",")
    sets = {name: load(name, arguments.data_dir).flat() for name in names}
    for seed in range(arguments.seeds):
        for name, data in sets.items():
            known = read(file)[name]
            for method in methods:
                if seed not in known[method]:
                    options = winners[name][method]["options"]
                    run(name, method, seed, data, options, file)
    for name, found in read(file).items():
        made = {k: found[k] for k in methods if k in found}
        if name in names and made:
            text = str(table(name, made))
            print(f"\n{text}", flush=True)
            (arguments.out / f"{name}.txt").write_text(f"{text}\n")
            plot_runs(
                f"{name}, batches of {TASKS[name].batch_size}",
                {k: list(v.values()) for k, v in made.items()},
                arguments.out / f"{name}.png",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", default=",".join(TASKS))
    parser.add_argument("--optimizers", default=",".join(TUNED))
    parser.add_argument("--seeds", type=int, default=3)
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
            tune(name, arguments)
    else:
        study(present, arguments)


if __name__ == "__main__":
    main()
