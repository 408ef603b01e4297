"""The discrete maximum principle, first order: descent on the Hamiltonian along the costates.

Theorem 1 of Liu, Chen, Theodorou (ICLR 2021): at an optimum every control minimises
``H_t(x, u, p') = l_t(x, u) + p' . f_t(x, u)`` to first order, with ``p[t] = H_x`` and
``p[T] = phi_x``. Along these costates H_u is the exact gradient of J, whatever the controls.

Good for: many controls a stage and long horizons (no n x n matrix, no factorisation), bounds, low
accuracy; a start for `indirect`. Never raises J. Bad for: curved valleys (swing-ups), high accuracy
(the line search compares costs, so it ends at a gradient of about the square root of rounding,
status PRECISION).

Measured, iterations from the cases' own starts, float64 (tolerance 1e-7):

=========================  =====  ========  ====  ===
problem                    lbfgs  gradient  ilqr  ddp
=========================  =====  ========  ====  ===
Van der Pol, T = 99           30       123     6    5
the same, bounded             36       140     8    7
stirred tank, T = 78          14        42    10    5
unicycle, T = 20              61       161    11    5
=========================  =====  ========  ====  ===

Pendulum swing-up (T = 100, zero controls): J falls from 518 to 26 in 16 iterations and is 18.1
after 500 (gradient: 20.2); its minimum, 6.66, takes ddp 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ocp.engines import Engine, Expansion, Policy, Recipe
from ocp.engines.riccati import dot, largest_projected, matvec
from ocp.problem import Problem, Stages
from ocp.solvers.hamiltonian import flat, like
from ocp.solvers.loop import Direction, Solver, State


@dataclass(frozen=True)
class PMP(Solver):
    """Gradient of H along the costates, with a line search; controls stay within their bounds.

    Args:
        search: "lbfgs" follows the limited-memory BFGS direction (Liu, Nocedal 1989) of the last
            ``pairs`` steps, restricted to the controls that no bound holds (Bertsekas 1982);
            "gradient" follows -H_u, scaled by the last step's curvature (Barzilai, Borwein 1988).
        pairs: steps that "lbfgs" remembers.
    """

    search: Literal["lbfgs", "gradient"] = "lbfgs"
    pairs: int = 20
    name: ClassVar[str] = "pmp"

    def __post_init__(self) -> None:
        if self.search not in ("lbfgs", "gradient"):
            raise ValueError(f"search must be 'lbfgs' or 'gradient', got {self.search!r}.")
        if self.pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {self.pairs}.")

    def recipe(self, state: State) -> Recipe | None:
        """Whole iterations, unless a subclass makes something else of them."""
        if not self.iterates_as(PMP):
            return None
        limits = self.own_rules.limits(state.cost.dtype)
        pairs = self.pairs if self.search == "lbfgs" else 0
        return Recipe(0, False, self.trials, limits, pairs)

    def direction(self, state: State, expansion: Expansion) -> Direction:
        """One backward recursion of the costates; the step keeps within the bounds up to size 1.

        The projection is part of the direction, ``k = clip(u + step) - u`` (spectral projected
        gradient: Birgin, Martinez, Raydan 2000): for step sizes up to 1 nothing is left to clip,
        and ``H_u . k`` is the slope of J along it.
        """
        _, hus = state.engine.costates(expansion)
        u, g = flat(state.us), flat(hus)
        lo, hi = limits(state)
        free = ~(((u <= lo) & (g > 0)) | ((u >= hi) & (g < 0)))
        open_g = torch.where(free, g, 0)
        scale, s, y = self.recall(state, expansion, u, g, open_g)

        def within(step: Tensor) -> tuple[Tensor, Tensor]:
            k = torch.minimum(torch.maximum(u + step, lo), hi) - u
            return k, dot(g, k)

        k, slope = within(-scale[:, None] * open_g)
        if self.search == "lbfgs":
            newton = -two_loop(open_g, torch.where(free, s, 0), torch.where(free, y, 0), scale)
            k_newton, slope_newton = within(torch.where(free, newton, 0))
            # Clipping can turn a step that descends inside the bounds into one that climbs.
            better = slope_newton < 1e-4 * slope
            k = torch.where(better[:, None], k_newton, k)
            slope = torch.where(better, slope_newton, slope)
        rows = [u, g, scale[:, None].expand_as(u)]
        return Direction(
            policy=Policy(like(state.us, k), None),
            slope=slope,
            curvature=torch.zeros_like(slope),
            residual=largest_projected(hus, state.engine.box(state.us)),
            usable=torch.isfinite(slope),
            sweeps=1,
            memory=torch.cat((torch.stack(rows), s, y)),
        )

    def recall(
        self, state: State, expansion: Expansion, u: Tensor, g: Tensor, open_g: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step scale (B,) and the pairs s, y (pairs, B, N), newest first; zeros where none is.

        The first scale is that of the steepest-descent step in the Gauss-Newton model. Later the
        last step measures the curvature along itself; where it found none that is positive, the
        scale doubles, and where no trial was accepted it shrinks to below the last of them.
        """
        count = self.pairs if self.search == "lbfgs" else 0
        if state.memory is None:
            empty = u.new_zeros(count, *u.shape)
            return cauchy_scale(state.engine, state.us, expansion, open_g), empty, empty
        last_u, last_g, last_scale = state.memory[0], state.memory[1], state.memory[2, :, 0]
        s, y = u - last_u, g - last_g
        sy, moved = dot(s, y), (s != 0).any(dim=-1)
        curved = moved & (sy > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1))
        measured = sy / dot(y, y) if count else dot(s, s) / sy
        scale = torch.where(curved, measured, 2 * last_scale)
        scale = torch.where(moved, scale, last_scale * 0.5**self.trials)
        old_s, old_y = state.memory[3 : 3 + count], state.memory[3 + count :]
        # A refused quasi-Newton step: its pairs misled, start afresh.
        old_s, old_y = (torch.where(moved[:, None], v, 0) for v in (old_s, old_y))
        if count == 0:
            return scale, old_s, old_y
        keep = curved[:, None]
        s, y = (
            torch.where(keep, torch.cat((new[None], old[:-1])), old)
            for new, old in ((s, old_s), (y, old_y))
        )
        return scale, s, y


def limits(state: State) -> tuple[Tensor, Tensor]:
    """Bounds as (1, N), infinite where there are none."""
    problem: Problem = state.engine.problem
    if problem.lower is None or problem.upper is None:
        infinite = torch.full_like(flat(state.us)[:1], torch.inf)
        return -infinite, infinite
    return flat(problem.lower), flat(problem.upper)


def cauchy_scale(engine: Engine, us: Stages, expansion: Expansion, g: Tensor) -> Tensor:
    """Minimiser of the Gauss-Newton model along -g (B, N), per unit of g: (B,).

    Where the model has no curvature along g: a step of length 1.
    """
    dxs, dus = engine.linear_rollout(expansion, Policy(like(us, -g), None), None)
    curvature = dot(dxs[-1], matvec(expansion.phixx, dxs[-1]))
    for t, H in enumerate(expansion.lzz):
        dz = torch.cat((dxs[t], dus[t]), dim=-1)
        curvature = curvature + dot(dz, matvec(H, dz))
    square = dot(g, g)
    unit = square.clamp_min(torch.finfo(g.dtype).tiny).rsqrt()
    return torch.where(curvature > 0, square / curvature, unit)


def two_loop(g: Tensor, s: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """L-BFGS product of the inverse Hessian model with g (B, N).

    s, y (pairs, B, N), newest first; pairs without positive curvature are left out. The model
    starts from ``scale`` (B,), or from the newest pair in use. Source: Nocedal, Wright (2006),
    algorithm 7.4 and eq. 7.20.
    """
    sy, yy = dot(s, y), dot(y, y)
    used = sy > 1e-10 * s.norm(dim=-1) * yy.sqrt()
    rho = torch.where(used, 1 / torch.where(used, sy, 1), 0)
    alphas = []
    for i in range(s.shape[0]):
        alpha = rho[i] * dot(s[i], g)
        g = g - alpha[:, None] * y[i]
        alphas.append(alpha)
    newest = used.to(torch.uint8).argmax(dim=0, keepdim=True)
    gamma = (sy / torch.where(yy > 0, yy, 1)).gather(0, newest)[0]
    g = torch.where(used.any(dim=0), gamma, scale)[:, None] * g
    for i in range(s.shape[0] - 1, -1, -1):
        g = g + (alphas[i] - rho[i] * dot(y[i], g))[:, None] * s[i]
    return g
