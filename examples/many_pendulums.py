"""A batch over several processes: torchrun --nproc-per-node 2 examples/many_pendulums.py"""

import torch
import torch.distributed as dist

import ocp
from ocp.problems import pendulum


def main(batch: int = 64, horizon: int = 60) -> ocp.Solution:
    """Swing up pendulums of different masses, a share of them in each process."""
    masses = torch.linspace(0.8, 1.2, batch, dtype=torch.float64)
    problem = pendulum(
        horizon=horizon,
        x0=torch.zeros(batch, 2, dtype=torch.float64),
        per_problem={"mass": masses},
    )
    solution = ocp.solve_sharded(problem)  # every process gets all of it
    if dist.get_rank() == 0:
        print(f"{int(solution.converged.sum())} of {batch} converged")
    return solution


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
