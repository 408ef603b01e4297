"""
Pendulum swing-up
=================

A bounded torque, too weak to lift the pendulum directly: it has to swing first.
"""

import math

import torch

import ocp

torch.set_num_threads(1)
dt = 0.05  # s
upright = torch.tensor([math.pi, 0.0], dtype=torch.float64)

# %%
# Dynamics and cost of one sample; ``ocp.rk4`` turns the ODE into a stage map.


def pendulum(x, u):
    angle, rate = x
    return torch.stack((rate, u[0] - 0.1 * rate - 9.81 * torch.sin(angle)))


def stage(x, u, t):
    error = x - upright
    return dt / 2 * (error @ error + 0.1 * u @ u)


def terminal(x):
    error = x - upright
    return 50 * error @ error


problem = ocp.Problem(
    dynamics=ocp.rk4(pendulum, dt),
    cost=ocp.FunctionCost(stage, terminal),
    x0=[0.0, 0.0],
    horizon=60,
    control_dim=1,
    control_bounds=([-5.0], [5.0]),
    goal=upright,
    name="pendulum",
)
solution = ocp.solve(problem, "ddp", starts=ocp.starts.zero)
print(solution)

# %%
# States, control with its bounds, and how the solve went.

figure = ocp.plot_solution(problem, solution, dt=dt)

# %%
# The feedback policy brings the pendulum up from another start too; the replayed controls do not.

for name in ("policy", "open loop"):
    x = torch.tensor([0.15, 0.0], dtype=torch.float64)
    for t in range(problem.horizon):
        u = solution.policy(x, t) if name == "policy" else solution.controls[t]
        x = problem.dynamics(x, u, t, {})
    print(f"{name}: ends {float((x - upright).norm()):.3f} from upright")
