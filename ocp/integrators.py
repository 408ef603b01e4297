"""From an ordinary differential equation to a stage map ``x[t+1] = f(x[t], u[t], t)``.

``ode`` is ``dx/dt`` of one sample: ``ode(x, u)``, ``ode(x, u, time)`` or ``ode(x, u, time, p)``
with the time in seconds (``t * dt`` at the start of stage t) and the dict of parameters. The
control is held constant over a step. ``dt`` is a number in seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

Ode = Callable[..., Tensor]
Flow = Callable[[Tensor, Tensor], Tensor]  # dx/dt at (x, seconds since the start of the step)
Scheme = Callable[[Flow, Tensor, Any], Tensor]


def euler_step(flow: Flow, x: Tensor, dt: Any) -> Tensor:
    return x + dt * flow(x, x.new_zeros(()))


def midpoint_step(flow: Flow, x: Tensor, dt: Any) -> Tensor:
    zero = x.new_zeros(())
    return x + dt * flow(x + dt / 2 * flow(x, zero), zero + dt / 2)


def rk4_step(flow: Flow, x: Tensor, dt: Any) -> Tensor:
    start = x.new_zeros(())
    k1 = flow(x, start)
    k2 = flow(x + dt / 2 * k1, start + dt / 2)
    k3 = flow(x + dt / 2 * k2, start + dt / 2)
    k4 = flow(x + dt * k3, start + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def semi_implicit_step(flow: Flow, x: Tensor, dt: Any) -> Tensor:
    half = x.shape[0] // 2
    if x.shape[0] % 2:
        raise ValueError(
            f"semi-implicit Euler needs x = (positions, velocities), got {x.shape[0]}."
        )
    velocity = x[half:] + dt * flow(x, x.new_zeros(()))[half:]
    moved = flow(torch.cat((x[:half], velocity)), x.new_zeros(()))[:half]
    return torch.cat((x[:half] + dt * moved, velocity))


def implicit_midpoint_step(flow: Flow, x: Tensor, dt: Any, iterations: int = 8) -> Tensor:
    def defect(after: Tensor) -> Tensor:
        return after - x - dt * flow((x + after) / 2, x.new_zeros(()) + dt / 2)

    after = x + dt * flow(x, x.new_zeros(()))
    for _ in range(iterations):
        after = after - torch.linalg.solve(jacrev(defect)(after), defect(after))
    # Without convergence there is no step to return: nan reaches the solver, which says where.
    tolerance = 1e4 * torch.finfo(x.dtype).eps * (1 + after.detach().abs().amax())
    return torch.where(defect(after).detach().abs().amax() <= tolerance, after, torch.nan)


def euler(ode: Ode, dt: float) -> Callable[..., Tensor]:
    """Explicit Euler: order 1."""
    return discretise(ode, dt, euler_step)


def midpoint(ode: Ode, dt: float) -> Callable[..., Tensor]:
    """Explicit midpoint rule (RK2): order 2."""
    return discretise(ode, dt, midpoint_step)


def rk4(ode: Ode, dt: float) -> Callable[..., Tensor]:
    """Classic Runge-Kutta: order 4."""
    return discretise(ode, dt, rk4_step)


def semi_implicit_euler(ode: Ode, dt: float) -> Callable[..., Tensor]:
    """Symplectic Euler for ``x = (positions, velocities)``: velocities first. Order 1, n even."""
    return discretise(ode, dt, semi_implicit_step)


def implicit_midpoint(ode: Ode, dt: float) -> Callable[..., Tensor]:
    """Gauss-Legendre of order 2, symplectic and A-stable: for stiff systems.

    Newton's method, 8 iterations of a linear solve; the step is nan where they do not converge.
    """
    return discretise(ode, dt, implicit_midpoint_step)


def discretise(ode: Ode, dt: float, scheme: Scheme) -> Callable[..., Tensor]:
    """A stage map from any one-step ``scheme(flow, x, dt)``: your own integrator goes here.

    Raises:
        ValueError: dt is not positive.
        TypeError: ode takes neither (x, u), (x, u, time) nor (x, u, time, p).
    """
    if not dt > 0:
        raise ValueError(f"dt must be a positive time step in seconds, got {dt!r}.")
    count = ode_arguments(ode)

    def step(x: Tensor, u: Tensor, t: Any, p: Any) -> Tensor:
        def flow(x: Tensor, since: Tensor) -> Tensor:
            return ode(*(x, u, start + since, p)[:count])

        start = x.new_ones(()) * t * dt  # an integer tensor times a float alone would be float32
        return scheme(flow, x, dt)

    return step


def free_time(ode: Ode, scheme: Scheme = rk4_step) -> Callable[..., Tensor]:
    """Free final time by time scaling: the last control is the duration of its stage in seconds.

    ``u = (control, dt)``; the final time is the sum of the durations. Bound them from below, put
    the time into the stage cost (``u[-1]``), and start from a positive guess. The ode may take
    (x, u), or (x, u, time, p) where time is the seconds since the start of the stage.
    """
    count = ode_arguments(ode)

    def step(x: Tensor, u: Tensor, t: Any, p: Any) -> Tensor:
        def flow(x: Tensor, since: Tensor) -> Tensor:
            return ode(*(x, u[:-1], since, p)[:count])

        return scheme(flow, x, u[-1])

    return step


def ode_arguments(ode: Ode) -> int:
    target = ode.forward if isinstance(ode, torch.nn.Module) else ode
    arguments = inspect.signature(target).parameters.values()
    count = sum(
        a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) and a.default is a.empty
        for a in arguments
    )
    if count not in (2, 3, 4):
        raise TypeError(
            f"an ode is called as ode(x, u), ode(x, u, time) or ode(x, u, time, p); "
            f"{getattr(ode, '__name__', type(ode).__name__)} takes {count} arguments."
        )
    return count
