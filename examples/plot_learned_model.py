"""
A learned model swings the true cart-pole up
============================================

Both halves of the package meet: a small network learns the accelerations of a cart-pole from
samples, becomes the dynamics of an optimal control problem, and the policy found on the learned
model drives the true system.
"""

import math

import torch
from torch import nn

import ocp
import ocp_nn
from ocp.problems.cartpole import cartpole, ode

torch.set_num_threads(1)
torch.manual_seed(0)
true = cartpole()
constants = {k: v.double() for k, v in true.parameters.items()}

# %%
# Samples of the true system: angle, speed, rate and force anywhere in a box, and the two
# accelerations that follow. The network sees (cos, sin of the angle, speed, rate, force).

box = torch.tensor([math.pi, 6.0, 12.0, 25.0], dtype=torch.float64)
drawn = (2 * torch.rand(1024, 4, dtype=torch.float64) - 1) * box


def features(angle, speed, rate, force):
    return torch.stack((angle.cos(), angle.sin(), speed / 6, rate / 12, force / 25), dim=-1)


angle, speed, rate, force = drawn.T
state = torch.stack((torch.zeros_like(angle), angle, speed, rate))
accelerations = ode(state, force[None], constants)[2:].T
inputs, scale = features(angle, speed, rate, force), accelerations.std(dim=0)
targets = accelerations / scale

# %%
# Full-batch DDP with its damping adapted to the loss: a few dozen steps.

network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
network = network.double()
optimizer = ocp_nn.DDPOptimizer(network, "mse", damping="adaptive", full_batch=True)
for step in range(STEPS := 60):
    loss = float(optimizer.step(inputs, targets))
    if step % 20 == 0:
        print(f"step {step:3d}  mean squared error {loss:.2e}")
print(f"step {STEPS:3d}  mean squared error {loss:.2e}")

# %%
# The network as dynamics: the program that is compiled for the problem reads its weights at every
# solve, so that training it further needs no new compilation.

network.requires_grad_(False)


def learned(x, u, time):
    _, angle, speed, rate = x
    acceleration, turning = scale * network(features(angle, speed, rate, u[0]))
    return torch.stack((speed, rate, acceleration, turning))


model = ocp.Problem(
    ocp.rk4(learned, 0.05),
    true.cost,
    true.x0,
    true.horizon,
    1,
    parameters=true.parameters,
    goal=true.goal,
    name="learned cartpole",
)
solution = ocp.solve(model, "ddp")
print(solution)

# %%
# The policy, found without the true equations, on the true system; and, for comparison, its
# controls without feedback.

for name in ("policy", "open loop"):
    x, path = true.x0.reshape(-1), []
    for t in range(true.horizon):
        path.append(x)
        u = solution.policy(x, t) if name == "policy" else solution.controls[t]
        x = true.dynamics(x, u, t, true.parameters)
    error = (x - true.goal).abs()
    print(f"{name:9}  ends {float(error[0]):.3f} m and {float(error[1]):.3f} rad from upright")

# %%
# The swing-up as the learned model sees it.

figure = ocp.plot_solution(model, solution, dt=0.05)
