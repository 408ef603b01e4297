"""
A batch of different pendulums
==============================

64 pendulums that differ in mass, length and start are solved in one call. Each has its own step
sizes, damping and status.
"""

import torch
from matplotlib import pyplot as plt

import ocp
from ocp.problems import pendulum

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
B = 64


def uniform(low, high):
    return low + (high - low) * torch.rand(B, generator=generator, dtype=torch.float64)


mass, length = uniform(0.5, 1.5), uniform(0.7, 1.3)
x0 = torch.stack((uniform(-1, 1), uniform(-1, 1)), dim=1)
problem = pendulum(horizon=40, x0=x0, per_problem={"mass": mass, "length": length})

solution = ocp.solve(problem, "ddp", starts=ocp.starts.interpolate(0.35), max_iterations=60)
print(solution)

# %%
# One of them alone ends at the same cost.

alone = pendulum(horizon=40, x0=x0[5], mass=mass[5], length=length[5])
single = ocp.solve(alone, "ddp", starts=ocp.starts.interpolate(0.35), max_iterations=60)
print(f"in the batch {float(solution.cost[5]):.10f}, alone {float(single.cost):.10f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(torch.arange(41) * 0.05, solution.states[..., 0].T, color="C0", alpha=0.4, linewidth=1)
left.set(xlabel="time [s]", ylabel="angle [rad]")
points = right.scatter(mass, length, c=solution.cost)
right.set(xlabel="mass [kg]", ylabel="length [m]")
figure.colorbar(points, label="cost")
