"""
Van der Pol oscillator with a bounded control
=============================================

The box-QP in the sweep keeps the controls within their bounds, and knows it: the model that earlier
stages see is that of the bounded controls.
"""

import torch
from matplotlib import pyplot as plt

import ocp
from ocp.problems import van_der_pol

torch.set_num_threads(1)
free = van_der_pol(horizon=50, dt=0.1)
bounded = van_der_pol(bound=(-0.3, 1.0), horizon=50, dt=0.1)
solutions = {p.name: ocp.solve(p, "ddp") for p in (free, bounded)}
for solution in solutions.values():
    print(solution, end="\n\n")

# %%
# Clamping the free solution afterwards is feasible, and worse.

clamped = bounded.x0
cost = torch.zeros((), dtype=torch.float64)
for t, u in enumerate(solutions["van_der_pol"].controls.clamp(-0.3, 1.0)):
    cost = cost + bounded.l(clamped, u, t, bounded.parameters)
    clamped = bounded.f(clamped, u, t, bounded.parameters)
cost = cost + bounded.phi(clamped, bounded.parameters)
print(f"clamped {float(cost):.4f}, bounded {float(solutions['van_der_pol_bounded'].cost):.4f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, solution in solutions.items():
    axes.step(torch.arange(50) * 0.1, solution.controls[:, 0], where="post", label=name)
for bound in (-0.3, 1.0):
    axes.axhline(bound, color="0.6", linestyle="--", linewidth=1)
axes.set(xlabel="time", ylabel="control")
axes.legend()
