"""
Cart-pole: iLQR, DDP and the indirect method
============================================

Three methods from the same guess of the states: a straight line to upright in half of the horizon.
Near the solution DDP and the indirect method converge quadratically, iLQR linearly.
"""

import torch
from matplotlib import pyplot as plt

import ocp
from ocp.animate import draw_frames
from ocp.problems import cartpole

torch.set_num_threads(1)
problem = cartpole()
guess = ocp.starts.interpolate(0.5)
solutions = {
    method: ocp.solve(problem, method, starts=guess, max_iterations=15)
    for method in ("ilqr", "ddp", "indirect")
}
for solution in solutions.values():
    print(solution, end="\n\n")

# %%
# Cost of the iterates once their gaps are closed, above the best of all.

best = min(float(s.cost) for s in solutions.values() if float(s.gap) < 1e-9)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, solution in solutions.items():
    closed = solution.history["gap"] < 1e-9
    iterations = torch.arange(len(closed))[closed]
    excess = (solution.history["cost"][closed] - best).clamp_min(1e-14)
    axes.semilogy(iterations, excess, "o-", label=name)
axes.set(xlabel="iteration", ylabel="cost above the best")
axes.legend()

# %%
# At a solution the costates of the maximum principle are the gradients of the value.

ddp = solutions["ddp"]
p, vx = solutions["indirect"].costates, ddp.value.vx
print(f"largest |p - V_x| = {float((p - vx).abs().max()):.1e}")
print(f"largest |p| = {float(p.abs().max()):.1f}")

# %%
# The first half of the swing-up.

frames = draw_frames(problem, ddp, frames=13)
figure, grid = plt.subplots(1, 5, figsize=(12, 2.2), layout="constrained")
for axes, frame in zip(grid, frames, strict=False):
    axes.imshow(frame)
    axes.axis("off")
