"""Cost of one step of every optimiser, as a ratio to SGD's step in the same run.

    python benchmarks/nn_steps.py [--width 32] [--wide 1024] [--hidden 4] [--batch 16]
                                  [--classes 10] [--optimizers sgd,ddp,...] [--rounds 15]
                                  [--steps 20] [--dtype float32] [--device cpu] [--out F]

Every round makes `steps` steps of each optimiser in turn, each on its own copy of the network and
the same batches. A ratio is that of the same round; medians over rounds are reported. On the CPU
it is process time, on a GPU wall time with synchronisation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ocp.tables import Table, write_json
from ocp_nn.baselines import OPTIMIZERS, make_optimizer
from ocp_nn.baselines.base import BatchOptimizer
from ocp_nn.experiments import mlp

DEFAULT = (
    "sgd,momentum,adam,muon,kfac,ekfac,kwng,ddp,ddp-sgd,ddp-rmsprop,ddp-kfac,ddp-ekfac,"
    "stagewise-newton"
)
WIDE = "sgd,ddp,ddp-sgd"  # in the second table: products, not the number of calls, decide there
AGAINST = {"ddp-kfac": "kfac", "ddp-ekfac": "ekfac"}  # the base method of a metric
# The same statistics on both sides, refreshed as often.
OPTIONS: dict[str, dict[str, Any]] = {
    "kfac": {"refresh": 20},
    "ekfac": {"refresh": 20},
    "ddp-kfac": {"refresh": 20},
    "ddp-ekfac": {"refresh": 20},
    # Random labels are fitted with short steps, so that no run ends before it is timed.
    "ddp": {"damping": 10.0},
    "ddp-sgd": {"lr": 1e-3},
    "stagewise-newton": {"damping": 10.0},
}


def seconds_of(
    optimizer: BatchOptimizer, batches: list[tuple[torch.Tensor, torch.Tensor]], device: str
) -> float:
    """Mean over the batches of one step's time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    begin = clock()
    for x, y in batches:
        optimizer.step(x, y)
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - begin) / len(batches)


def batches_of(
    options: argparse.Namespace, dtype: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    made = []
    for _ in range(options.steps):
        x = torch.rand(options.batch, options.inputs, generator=g).to(options.device, dtype)
        y = torch.randint(options.classes, (options.batch,), generator=g).to(options.device)
        made.append((x, y))
    return made


def measure(options: argparse.Namespace, names: list[str], width: int) -> dict[str, Any]:
    """Times and ratios of every optimiser on the network of that width."""
    dtype = getattr(torch, options.dtype)
    names = ["sgd", *(n for n in names if n != "sgd")]
    batches = batches_of(options, dtype)
    optimizers = {}
    for name in names:
        widths = (width,) * options.hidden
        model = mlp((options.inputs,), options.classes, widths, dtype=dtype).to(options.device)
        optimizers[name] = make_optimizer(name, model, **OPTIONS.get(name, {}))
    times: dict[str, list[float]] = {name: [] for name in names}
    for count in range(options.rounds + 1):
        for name, optimizer in optimizers.items():
            measured = seconds_of(optimizer, batches, options.device)
            if count:  # the first round warms up
                times[name].append(measured)
    rows = []
    for name in names:
        row = {"optimizer": name, "milliseconds": 1e3 * statistics.median(times[name])}
        for key, base in (("to sgd", "sgd"), ("to its base", AGAINST.get(name, ""))):
            pairs = zip(times[name], times.get(base, []), strict=False)
            ratios = [a / b for a, b in pairs]
            row[key] = statistics.median(ratios) if ratios else None
        rows.append({**row, "description": OPTIMIZERS[name].description})
    return {"width": width, "rows": rows}


def table(options: argparse.Namespace, found: dict[str, Any]) -> Table:
    title = (
        f"{options.inputs}-{found['width']}x{options.hidden}-{options.classes}, "
        f"B={options.batch}, {options.dtype}, {options.device}, torch {torch.__version__}"
    )
    cells = [
        [r["optimizer"], f"{r['milliseconds']:.3f}", f"{r['to sgd']:.2f}",
         "" if r["to its base"] is None else f"{r['to its base']:.2f}"]
        for r in found["rows"]
    ]  # fmt: skip
    return Table(title, ("optimizer", "ms/step", "to sgd", "to its base"), cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=784)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--wide", type=int, default=1024, help="of a second table; 0 for none")
    parser.add_argument("--hidden", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--optimizers", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(options, options.optimizers.split(","), options.width)]
    print(table(options, found[0]))
    if options.wide:
        found.append(measure(options, WIDE.split(","), options.wide))
        print(table(options, found[1]))
    if options.out is not None:
        settings = vars(options) | {"out": ""}
        write_json(options.out, {"settings": settings, "rows": found[0]["rows"], "tables": found})


if __name__ == "__main__":
    main()
