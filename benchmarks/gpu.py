"""All figures of a GPU at one sitting: tests first, then speed, as one Markdown table.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--only tests,forms,...] [--out gpu.md]

Every stage runs in a process of its own with a time limit: one that fails, hangs or loses the
device leaves the others. The table is written anew after each. Iterations are counted where they
were made, times are medians of wall time after synchronising; what is compiled is compiled before.
``--device cpu`` and ``--small`` try the script itself, where there is no GPU.

facts        the GPU, PyTorch, NVRTC
compile      seconds to compile all programs of the other stages, side by side
tests        those that need a GPU (pytest -m cuda)
sanitize     compute-sanitizer, where it is there: memory, and races in shared memory
forms        16 384 cart-poles by each form of program
batches      256 to 65 536 cart-poles, float64 and float32
methods      16 384 cart-poles by DDP, with bounds, of stages that differ
eager        16 384 cart-poles by the eager engine on the GPU
large        n + m = 16 and 48: one problem and many
networks     a training step as a ratio to SGD's
distributed  one process with nccl: a solve and a training step
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_stages import SMALL, STAGES, Figure, Sizes, environment

MARK = "FIGURES "  # before a line of figures on a stage's output


def run_stage(name: str, limit: float, more: list[str]) -> list[Figure]:
    """Figures of a stage's process, those made before it failed too."""
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", name, *more]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(),
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = f"stopped after {limit:.0f} s"
        process.wait()
        output.seek(0)
        said = output.read()
    lines = said.splitlines()
    found = [Figure(**json.loads(v[len(MARK) :])) for v in lines if v.startswith(MARK)]
    print(f"-- {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    if code != 0:
        last = next((v for v in reversed(lines) if "Error" in v), "")
        print("\n".join(lines[-60:]), flush=True)
        found.append(Figure(f"stage {name}", "FAILED", note=f"{code}: {last[:200]}"))
    return found


def written(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(figures: list[Figure]) -> str:
    """Markdown."""
    clean = lambda text: text.replace("|", "/").replace("\n", " ")
    rows = [
        f"| {clean(f.what)} | {clean(written(f.value))} {f.unit} | {clean(f.note)} |"
        for f in figures
    ]
    return "\n".join(["| what | figure | how |", "|---|---:|---|", *rows, ""])


def sitting(options: argparse.Namespace) -> list[Figure]:
    names = options.only.split(",") if options.only else list(STAGES)
    more = ["--device", options.device, *(["--small"] if options.small else [])]
    end, figures = time.perf_counter() + 60 * options.minutes, list[Figure]()
    for name in names:
        left = end - time.perf_counter()
        if left < 5:
            figures.append(Figure(f"stage {name}", "not run", note="no time left"))
        else:
            figures += run_stage(name, min(left, STAGES[name][1]), more)
        options.out.write_text(table(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", help=f"some of {', '.join(STAGES)}")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set((options.only or "facts").split(",")) - set(STAGES)
    if unknown:
        parser.error(
            f"--only: no such stage {', '.join(sorted(unknown))}; there are {list(STAGES)}"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu --small tries the script.")
    if options.stage:
        for figure in STAGES[options.stage][0](options.device, SMALL if options.small else Sizes()):
            print(MARK + json.dumps(asdict(figure)), flush=True)
        return
    print(table(sitting(options)))


if __name__ == "__main__":
    main()
