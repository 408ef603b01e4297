"""Problems whose sizes change with t: lists over t for the package, padded arrays for programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocp.engines.base import Appraisal, Begun, Expansion, Policy, Recipe, SecondOrder, Sweep, Trials
from ocp.engines.eager import Eager
from ocp.engines.native.compiled import Compiled
from ocp.engines.native.engine import Native
from ocp.problem import Problem, Stages

Axis = list[Tensor]  # of each stage, which entries of the padded axis are its own


def narrowed(stages: Tensor, *axes: Axis) -> list[Tensor]:
    """The stages' own entries of the last axes of a padded array (T, ...)."""
    parts = list(stages)
    for k, axis in enumerate(axes):
        dim = k - len(axes)
        parts = [s.index_select(dim, own) for s, own in zip(parts, axis, strict=True)]
    return parts


def widened(stages: Stages, shape: tuple[int, ...], *axes: Axis) -> Tensor:
    """The opposite: what a stage does not have is 0."""
    first = stages[0]
    lead = first.shape[: first.ndim - len(shape)]
    whole = first.new_zeros(len(stages), *lead, *shape)
    for t, part in enumerate(stages):
        if len(axes) == 1:
            whole[t].index_copy_(-1, axes[0][t], part)
        else:
            rows, columns = axes[0][t], axes[1][t]
            whole[t][..., rows[:, None], columns] = part
    return whole


class Padded(Native):
    """Gives a program zeros for the states and controls that a stage does not have.

    They enter nothing, and a missing control has the Hessian 1: its k, K and Q_u are 0.
    """

    def __init__(self, problem: Problem, compiled: Compiled) -> None:
        self.n, self.m = n, m = compiled.info.n, compiled.info.m
        device = problem.x0.device
        self.at_x = [torch.arange(size, device=device) for size in problem.state_dims]
        self.at_u = [torch.arange(size, device=device) for size in problem.control_dims]
        self.at_z = [torch.cat((x, n + u)) for x, u in zip(self.at_x, self.at_u, strict=False)]
        self.missing = problem.x0.new_ones(problem.horizon, m)
        for row, size in zip(self.missing, problem.control_dims, strict=True):
            row[:size] = 0
        super().__init__(problem, compiled)

    # -- between the two forms -------------------------------------------------------------------
    def start(self) -> Tensor:
        return torch.nn.functional.pad(super().start(), (0, self.n - self.problem.state_dims[0]))

    def bounds(self) -> tuple[Tensor | None, Tensor | None]:
        lower, upper = self.problem.lower, self.problem.upper
        if lower is None or upper is None:
            return None, None
        pairs = (lower, -torch.inf), (upper, torch.inf)
        wide = [
            torch.where(self.missing > 0, infinite, widened(b, (self.m,), self.at_u)[:, 0])
            for b, infinite in pairs
        ]
        return wide[0], wide[1]

    def fits(self, us: Stages) -> bool:
        return us[0].ndim == 2 and us[0].shape[0] == self.problem.batch

    def wide_x(self, xs: Stages) -> Tensor:
        """Of T + 1 stages, or of those after the first."""
        return widened(xs, (self.n,), self.at_x[-len(xs) :])

    def wide_u(self, us: Stages) -> Tensor:
        return widened(us, (self.m,), self.at_u)

    def wide_gaps(self, gaps: Stages | None) -> Tensor | None:
        return None if gaps is None else self.wide_x(gaps)

    def own_x(self, xs: Stages) -> list[Tensor]:
        return narrowed(torch.as_tensor(xs), self.at_x[-len(xs) :])

    def own_u(self, us: Stages) -> list[Tensor]:
        return narrowed(torch.as_tensor(us), self.at_u)

    def wide_gains(self, K: Stages) -> Tensor:
        return widened(K, (self.m, self.n), self.at_u, self.at_x[:-1])

    def own_gains(self, K: Stages) -> list[Tensor]:
        return narrowed(torch.as_tensor(K), self.at_u, self.at_x[:-1])

    def wide_policy(self, policy: Policy) -> Policy:
        K = None if policy.K is None else self.wide_gains(policy.K)
        return Policy(self.wide_u(policy.k), K)

    def own_sweep(self, sweep: Sweep) -> Sweep:
        k, K = sweep.policy
        assert K is not None
        return sweep._replace(
            policy=Policy(self.own_u(k), self.own_gains(K)),
            vx=self.own_x(sweep.vx),
            vxx=narrowed(torch.as_tensor(sweep.vxx), self.at_x, self.at_x),
        )

    def wide_expansion(self, e: Expansion) -> Expansion:
        n, d = self.n, self.n + self.m
        fz = widened(e.fz, (n, d), self.at_x[1:], self.at_z)
        lzz = widened(e.lzz, (d, d), self.at_z, self.at_z)
        lzz[..., n:, n:] += torch.diag_embed(self.missing)[:, None]
        last = self.at_x[-1:]
        phix = widened([e.phix], (n,), last)[0]
        phixx = widened([e.phixx], (n, n), last, last)[0]
        lz = widened(e.lz, (d,), self.at_z)
        return Expansion(fz, lz, lzz, phix, phixx, (n,) * len(self.at_x))

    # -- the model along a trajectory ------------------------------------------------------------
    def begin(self, us: Stages, xs: Stages | None = None) -> Begun:
        return Eager.begin(self, us, xs)

    def rollout(self, us: Stages) -> Stages:
        if not self.fits(us):
            return Eager.rollout(self, us)
        return self.own_x(super().rollout(self.wide_u(us)))

    def gaps(self, xs: Stages, us: Stages) -> Stages:
        if not self.fits(us):
            return Eager.gaps(self, xs, us)
        return self.own_x(super().gaps(self.wide_x(xs), self.wide_u(us)))

    def total_cost(self, xs: Stages, us: Stages) -> Tensor:
        return super().total_cost(self.wide_x(xs), self.wide_u(us))

    def expand(self, xs: Stages, us: Stages) -> Expansion:
        if not self.fits(us):
            return Eager.expand(self, xs, us)
        e = super().expand(self.wide_x(xs), self.wide_u(us))
        n = self.problem.state_dims
        fz, lz, lzz = map(torch.as_tensor, e[:3])
        return Expansion(
            narrowed(fz, self.at_x[1:], self.at_z),
            narrowed(lz, self.at_z),
            narrowed(lzz, self.at_z, self.at_z),
            e.phix[:, : n[-1]],
            e.phixx[:, : n[-1], : n[-1]],
            n,
        )

    def curvature_along(self, xs: Stages, us: Stages, ps: Stages) -> SecondOrder:
        if not self.fits(us):
            return Eager.curvature_along(self, xs, us, ps)
        wide = self.wide_x(xs), self.wide_u(us), self.wide_x(ps)
        table = super().curvature_along(*wide).table
        assert table is not None
        own = narrowed(table, self.at_z, self.at_z)
        return SecondOrder(lambda t, _: own[t], xs, us, table=table)  # the table stays padded

    # -- sweeps ----------------------------------------------------------------------------------
    def costates(self, expansion: Expansion) -> tuple[Stages, Stages]:
        ps, hus = super().costates(self.wide_expansion(expansion))
        return self.own_x(ps), self.own_u(hus)

    def linear_rollout(
        self, expansion: Expansion, policy: Policy, gaps: Stages | None
    ) -> tuple[Stages, Stages]:
        wide = self.wide_expansion(expansion), self.wide_policy(policy), self.wide_gaps(gaps)
        dxs, dus = super().linear_rollout(*wide)
        return self.own_x(dxs), self.own_u(dus)

    def sweep(
        self,
        expansion: Expansion,
        us: Stages,
        gaps: Stages | None,
        damping: Tensor,
        curvature: Any,
        on_state: bool = False,
        proximal: bool = False,
    ) -> Sweep:
        if proximal or (curvature is not None and not isinstance(curvature, SecondOrder)):
            return Eager.sweep(self, expansion, us, gaps, damping, curvature, on_state, proximal)
        if curvature is not None:
            wide = self.wide_x(curvature.xs), self.wide_u(curvature.us)
            curvature = SecondOrder(curvature, *wide, curvature.full, curvature.table)
        sweep = super().sweep(
            self.wide_expansion(expansion),
            self.wide_u(us),
            self.wide_gaps(gaps),
            damping,
            curvature,
            on_state,
        )
        return self.own_sweep(sweep)

    def appraise(self, xs: Stages, us: Stages) -> Appraisal:
        found = super().appraise(self.wide_x(xs), self.wide_u(us))
        return found._replace(
            sweep=self.own_sweep(found.sweep),
            costates=self.own_x(found.costates),
            hus=self.own_u(found.hus),
        )

    def follow(
        self, xs: Stages, us: Stages, gaps: Stages | None, policy: Policy, step_sizes: Tensor
    ) -> Trials:
        if not self.fits(policy.k):
            return Eager.follow(self, xs, us, gaps, policy, step_sizes)
        wide = self.wide_x(xs), self.wide_u(us), self.wide_gaps(gaps), self.wide_policy(policy)
        trials = super().follow(*wide, step_sizes)
        return Trials(self.own_x(trials.xs), self.own_u(trials.us), trials.cost)

    # -- whole iterations ------------------------------------------------------------------------
    def iterate(self, state: Any, recipe: Recipe, most: int) -> Any:
        wide = {
            "xs": self.wide_x(state.xs),
            "us": self.wide_u(state.us),
            "gaps": self.wide_gaps(state.gaps),
            "feedback": None if state.feedback is None else self.wide_gains(state.feedback),
        }
        if state.memory is not None:
            wide["memory"] = self.wide_memory(state.memory)
        after = super().iterate(state._replace(**wide), recipe, most)
        if after is None:
            return None
        return after._replace(
            xs=self.own_x(after.xs),
            us=self.own_u(after.us),
            gaps=None if after.gaps is None else self.own_x(after.gaps),
            feedback=None if after.feedback is None else self.own_gains(after.feedback),
            memory=None if after.memory is None else self.own_memory(after.memory),
        )

    def wide_memory(self, memory: Tensor) -> Tensor:
        """Of PMP: rows (..., sum of m), numbers of all controls stage by stage -> (..., T m)."""
        wide = memory.new_zeros(*memory.shape[:-1], self.missing.numel())
        wide[..., self.missing.flatten() == 0] = memory
        wide[2] = memory[2, :, :1]  # the scale, everywhere
        return wide

    def own_memory(self, memory: Tensor) -> Tensor:
        return memory[..., self.missing.flatten() == 0]

    def prepare(self, recipe: Recipe, damping: float, steps: int, shift: int) -> None:
        """Plans whose sizes change cannot be shifted."""
