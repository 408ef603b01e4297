"""
Open loop against policy under disturbances
===========================================

The controls of a solution are replayed, and its feedback policy is followed, under the same random
disturbances of growing size.
"""

import torch
from matplotlib import pyplot as plt

import ocp
from ocp.problems import pendulum

torch.set_num_threads(1)
problem = pendulum(horizon=60)
solution = ocp.solve(problem, "ddp", starts=ocp.starts.interpolate(0.35))
study = ocp.monte_carlo(problem, solution, noise=(0.003, 0.01, 0.03, 0.1), samples=200)
print(study)

# %%
# The median, and the range from 5 to 95 %. ``study.plot(path)`` writes a figure like this.

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
low, middle, high = (study.quantile(q) for q in (0.05, 0.5, 0.95))
for i, name in enumerate(("open loop", "policy")):
    axes.loglog(study.noise, middle[i], "o-", label=name)
    axes.fill_between(study.noise, low[i], high[i], alpha=0.2)
axes.axhline(float(study.nominal), color="0.6", linestyle="--", linewidth=1)
axes.set(xlabel="standard deviation of the noise on the states", ylabel="cost")
axes.legend()
