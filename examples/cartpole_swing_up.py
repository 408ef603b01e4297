"""Cart-pole swing-up by PMP, iLQR and DDP: a table, a figure and an animation in ./results.

    python examples/cartpole_swing_up.py

The methods that take a guess of the states start from a straight line to upright in half of the
horizon, then held. The first-order PMP method rolls its controls out and has to start from zero
controls; on this problem it crawls along a valley, so it is stopped after 100 iterations.
About a minute on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import ocp
from ocp.problems import cartpole

PMP_ITERATIONS = 100


def solve_all(max_iterations: int = 200) -> ocp.Comparison:
    """Solve the swing-up by four methods: two that use the costates, two that use the value."""
    guess = {"starts": ocp.starts.interpolate(0.5)}
    return ocp.compare(
        cartpole(),
        ("pmp", "indirect", "ilqr", "ddp"),
        options={
            "pmp": {"max_iterations": min(PMP_ITERATIONS, max_iterations)},
            "indirect": guess,
            "ilqr": guess,
            "ddp": guess,
        },
        max_iterations=max_iterations,
    )


def main(folder: Path, max_iterations: int = 200) -> None:
    """Print the tables and write the files."""
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    comparison = solve_all(max_iterations)
    print(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    best = comparison.solutions["ddp"]
    ocp.plot_solution(comparison.problem, best, folder / "cartpole.png")
    files = [
        comparison.plot(folder / "comparison.png"),
        comparison.to_csv(folder / "comparison.csv"),
        folder / "cartpole.png",
        ocp.animate(comparison.problem, best, folder / "cartpole.gif"),
    ]
    print("\n" + "\n".join(f"wrote {file}" for file in files))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results"))
