"""
One control sequence for an uncertain start
===========================================

With ``shared_controls=True`` the rows of ``x0`` are samples behind one control sequence, and the
cost is their mean: the augmented state of Liu, Chen, Theodorou (ICLR 2021), eq. 17-20. A network
trained on a batch is a problem of this form, with weights for controls.
"""

import torch
from matplotlib import pyplot as plt

import ocp
from ocp.problems import unicycle

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
nominal = unicycle(horizon=30)
samples = nominal.x0 + 0.3 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
shared = nominal.replace(x0=samples, shared_controls=True)

solution = ocp.solve(shared, "ddp")
print(solution)

# %%
# The controls planned for the mean start are worse on the samples than those planned for all.

planned = ocp.solve(nominal, "ddp")


def mean_cost(controls):
    costs = []
    for start in samples:
        x = start
        cost = torch.zeros((), dtype=torch.float64)
        for t, u in enumerate(controls):
            cost = cost + shared.l(x, u, t, shared.parameters)
            x = shared.f(x, u, t, shared.parameters)
        costs.append(cost + shared.phi(x, shared.parameters))
    return float(torch.stack(costs).mean())


print(f"planned for the mean {mean_cost(planned.controls):.3f}")
print(f"planned for all      {mean_cost(solution.controls):.3f}")

# %%
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
axes.plot(solution.states[..., 0].T, solution.states[..., 1].T, color="C0", linewidth=1)
axes.plot(*samples[:, :2].T, "o", color="C1", label="starts")
axes.plot(0, 0, "x", color="C3", label="goal")
axes.set(xlabel="x [m]", ylabel="y [m]", aspect="equal")
axes.legend()
