"""
A learned model swings the true acrobot up
==========================================

The same with two links and a motor at the elbow only: the accelerations are learned from samples,
the swing-up is found on the learned network, and its feedback policy drives the true system.
"""

import math

import torch
from torch import nn

import ocp
import ocp_nn
from ocp.problems.acrobot import acrobot, ode

torch.set_num_threads(1)
torch.manual_seed(0)
true = acrobot()
constants = {k: v.double() for k, v in true.parameters.items()}

# %%
# Samples: both angles, both rates and the torque anywhere in a box, and the two accelerations.

box = torch.tensor([math.pi, math.pi, 8.0, 12.0, 25.0], dtype=torch.float64)
drawn = (2 * torch.rand(2048, 5, dtype=torch.float64) - 1) * box


def features(first, second, rate, turn, torque):
    angles = first.cos(), first.sin(), second.cos(), second.sin(), (first + second).sin()
    return torch.stack((*angles, rate / 8, turn / 12, torque / 25), dim=-1)


accelerations = torch.vmap(lambda x, u: ode(x, u, constants))(drawn[:, :4], drawn[:, 4:])[:, 2:]
scale = accelerations.std(dim=0)

# %%
# Full-batch DDP with its damping adapted to the loss.

network = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))
network = network.double()
optimizer = ocp_nn.DDPOptimizer(network, "mse", damping="adaptive", full_batch=True)
for step in range(STEPS := 80):
    loss = float(optimizer.step(features(*drawn.T), accelerations / scale))
    if step % 20 == 0:
        print(f"step {step:3d}  mean squared error {loss:.2e}")
print(f"step {STEPS:3d}  mean squared error {loss:.2e}")
network.requires_grad_(False)

# %%
# The network as dynamics.


def learned(x, u, time):
    first, second, rate, turn = x
    return torch.cat((x[2:], scale * network(features(first, second, rate, turn, u[0]))))


model = ocp.Problem(
    ocp.rk4(learned, 0.05),
    true.cost,
    true.x0,
    true.horizon,
    1,
    parameters=true.parameters,
    goal=true.goal,
    name="learned acrobot",
)
solution = ocp.solve(model, "ddp")
print(solution)

# %%
# Policy and open loop on the true system.

for name in ("policy", "open loop"):
    x = true.x0
    for t in range(true.horizon):
        u = solution.policy(x, t) if name == "policy" else solution.controls[t]
        x = true.dynamics(x, u, t, true.parameters)
    error = (x - true.goal).abs()
    print(f"{name:9}  ends {float(error[0]):.3f} and {float(error[1]):.3f} rad from upright")

# %%
# The swing-up as the learned model sees it.

figure = ocp.plot_solution(model, solution, dt=0.05)
