"""Loss and accuracy of every optimiser on the small classics, over seeds, per epoch and per second.

    python benchmarks/nn_training.py [--data-dir DIR] [--sets iris,wine,digits,mnist,fashion_mnist]
                                     [--optimizers sgd,adam,...] [--seeds 3]
                                     [--limit 8000] [--epochs N] [--out DIR]

The network is 784-32x4-10 with tanh (sizes as the data ask), batches of 16, the same weights and
batches for all. Learning rates are those that were best among a few on the training loss of one
seed (see `OPTIONS`), not tuned per seed. Of MNIST and Fashion-MNIST the first --limit samples are
used. A figure and a table of every set go to --out as it is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ocp_nn.data import MissingDataError, load
from ocp_nn.experiments import compare, mlp

DEFAULT = (
    "sgd,momentum,rmsprop,adam,muon,kwng,kfac,ekfac,ddp,ddp-sgd,ddp-rmsprop,ddp-kfac,ddp-ekfac"
)


class Task(NamedTuple):
    """How long to train, and the network between inputs and classes."""

    epochs: int
    hidden: tuple[int, ...] = (32, 32, 32, 32)
    batch_size: int = 16


TASKS = {
    "iris": Task(20, (16, 16)),
    "wine": Task(20, (16, 16)),
    "digits": Task(10),
    "mnist": Task(3),
    "fashion_mnist": Task(3),
}
# Where a set asks for other numbers than the presets of `ocp_nn.baselines.registry`.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"sgd": {"lr": 0.3}, "adam": {"lr": 1e-2}, "rmsprop": {"lr": 3e-3}},
    "digits": {
        "sgd": {"lr": 0.3},
        "adam": {"lr": 3e-3},
        "rmsprop": {"lr": 3e-3},
        "kwng": {"lr": 0.3},
    },
    "images": {
        "sgd": {"lr": 0.3},
        "adam": {"lr": 3e-3},
        "kfac": {"lr": 0.01},
        "ddp": {"damping": 1.0},
    },
}
GROUP = {"iris": "small", "wine": "small", "digits": "digits"}


def study(name: str, options: argparse.Namespace) -> None:
    task = TASKS[name]
    if options.epochs is not None:
        task = task._replace(epochs=options.epochs)
    data = load(name, options.data_dir).flat().first(options.limit, 2000)
    special = OPTIONS[GROUP.get(name, "images")]
    optimizers = {label: special.get(label, {}) for label in options.optimizers.split(",")}

    def make(seed: int) -> nn.Module:
        return mlp(data.shape, data.classes, task.hidden, seed=seed)

    widths = "-".join(str(w) for w in (data.shape[0], *task.hidden, data.classes))
    result = compare(
        data,
        optimizers,
        make,
        epochs=task.epochs,
        batch_size=task.batch_size,
        seeds=range(options.seeds),
        title=f"{name} ({len(data.inputs)} samples), {widths} tanh, B={task.batch_size}, "
        f"{task.epochs} epochs",
    )
    print(result.table(), flush=True)
    print(flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        result.to_json(options.out / f"{name}.json")
        result.plot(options.out / f"{name}.png")
        (options.out / f"{name}.txt").write_text(f"{result.table()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", default=",".join(TASKS))
    parser.add_argument("--optimizers", default=DEFAULT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=8000)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sets.split(","):
        try:
            study(name, options)
        except MissingDataError as error:
            print(f"{name} left out: {error}\n")


if __name__ == "__main__":
    main()
