"""
Open loop against policy under disturbances
===========================================

The controls of a solution are replayed, and its feedback policy is followed, under the same random
disturbances of growing size.
"""

import tempfile
from pathlib import Path

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
with tempfile.TemporaryDirectory() as folder:
    picture = plt.imread(study.plot(Path(folder) / "robustness.png"))
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
axes.imshow(picture)
axes.axis("off")
