"""Batch DDP on several processes: torchrun --nproc-per-node 2 examples/data_parallel.py"""

import torch
import torch.distributed as dist
from torch import nn

import ocp_nn


def main(steps: int = 20) -> float:
    """Train with this process's samples; the last loss, which is that of all samples."""
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)  # as a DistributedSampler would, other samples
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = ocp_nn.DDPOptimizer(model, "cross_entropy", damping=0.1, process_group="default")
    loss = torch.zeros(())
    for _ in range(steps):
        inputs = torch.randn(32 // size, 8, generator=generator)
        loss = optimizer.step(inputs, inputs[:, :3].argmax(dim=1))
    if rank == 0:
        print(f"loss {float(loss):.4f} after {steps} steps on {size} processes")
    return float(loss)


if __name__ == "__main__":
    dist.init_process_group("gloo")  # "nccl", and model and data on the process's GPU
    main()
    dist.destroy_process_group()
