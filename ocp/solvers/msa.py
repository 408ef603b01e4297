"""The method of successive approximations, plain and extended: minimise H, roll out, repeat.

Given a trajectory and its costates, every control is replaced by the minimiser of the Hamiltonian
at its stage, all stages at once: ``u[t] <- argmin_u H_t(x[t], u, p[t+1])`` (Krylov, Chernousko,
1962). H is minimised as if states and costates stayed; where they move much, J grows.

`MSA` is good where the map contracts: dear controls, short horizons, weak coupling; there it needs
no derivative in u beyond what the minimiser does, and the minimiser may be global (bang-bang,
discrete). It diverges on all cases below, the pendulum to a cost of 1e21 within 30 iterations; then
the status is STALLED, and the cheapest iterate is returned, which is often the start.

`EMSA` never raises J, respects bounds, and is a proximal gradient method in effect: it converges
linearly, so slowly that it is a teaching and comparison method for trajectories (it comes from
networks, where a stage is big and its minimiser cheap).

Measured, iterations from the cases' own starts, float64 (tolerance 1e-7):

=========================  =========  =============================  ===
problem                    msa        emsa                           ddp
=========================  =========  =============================  ===
Van der Pol, T = 99        diverges   500, J right to 1e-11            5
the same, bounded          diverges   480                              7
stirred tank, T = 78       diverges   118                              5
unicycle, T = 20           diverges   500, J right to 1e-8             5
pendulum, T = 100          diverges   500, J = 24.8 (minimum 6.66)    32
=========================  =========  =============================  ===
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ocp.engines import Expansion, Policy
from ocp.engines.riccati import largest_projected
from ocp.problem import Problem, Stages
from ocp.solution import Solution, Status
from ocp.solvers.decide import Decision, Record, decide
from ocp.solvers.hamiltonian import (
    Hamiltonian,
    Minimiser,
    ProjectedNewton,
    flat,
    labelled,
    like,
    reworded,
)
from ocp.solvers.loop import Direction, Solver, State
from ocp.stages import each


@dataclass(frozen=True)
class MSA(Solver):
    """Plain successive approximations: each iterate is taken as it comes, without a line search.

    Args:
        relaxation: fraction of the way to the minimiser that is gone, in (0, 1].
        minimiser: of the Hamiltonian, see `Minimiser`.
        patience: iterations without a new lowest cost or residual after which it stops, STALLED.
    """

    relaxation: float = 1.0
    minimiser: Minimiser = field(default_factory=ProjectedNewton)
    patience: int = 30
    name: ClassVar[str] = "msa"

    def __post_init__(self) -> None:
        if not 0 < self.relaxation <= 1:
            raise ValueError(f"relaxation must be in (0, 1], got {self.relaxation}.")
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}.")

    def step_sizes(self, like: Tensor) -> Tensor:
        return like.new_ones(1)

    def direction(self, state: State, expansion: Expansion) -> Direction:
        ps, hus = state.engine.costates(expansion)
        h = Hamiltonian(state.engine, state.xs, ps)
        toward = lambda v, u: self.relaxation * (v - u)
        k = each(toward, self.minimiser(h, state.us), state.us)
        slope = fall(h, state.us, each(torch.add, state.us, k))
        memory = state.memory
        if memory is None:
            never = torch.full_like(state.cost, torch.inf)
            memory = remember(flat(state.us), state.cost, never, torch.zeros_like(never))
        return Direction(
            policy=Policy(k, None),
            slope=slope,
            curvature=torch.zeros_like(slope),
            residual=largest_projected(hus, state.engine.box(state.us)),
            usable=torch.isfinite(slope),
            sweeps=1,
            memory=memory,
        )

    def decide(self, record: Record, step_sizes: Tensor) -> Decision:
        """Any finite iterate is accepted; where none is finite the map has broken down."""
        indifferent = -(torch.finfo(record.cost.dtype).max ** 0.5)
        # Nor does it matter when the cost stops to move: the controls may still do.
        record = record._replace(weak=torch.zeros_like(record.weak))
        decision = decide(record, step_sizes, replace(self.own_rules, armijo=indifferent))
        return stalled(decision, (decision.status == Status.RUNNING) & ~decision.accepted)

    def iteration(self, state: State) -> State:
        state = super().iteration(state)
        assert state.memory is not None
        running = state.status == Status.RUNNING
        best, (cost, residual, waited) = state.memory[0], state.memory[1:, :, 0]
        better, closer = state.cost < cost, state.residual < residual
        waited = torch.where(better | closer, 0, waited + 1)
        memory = remember(
            torch.where(better[:, None], flat(state.us), best),
            torch.where(better, state.cost, cost),
            torch.where(closer, state.residual, residual),
            waited,
        )
        given_up = running & (waited >= self.patience)
        status = torch.where(given_up, int(Status.STALLED), state.status)
        return state._replace(memory=memory, status=status)

    @torch.no_grad()
    def result(self, problem: Problem, state: State) -> Solution:
        """The last iterate where it is a fixed point, else the cheapest one."""
        compiled = state.engine.hamiltonian(augmented=False) is not None
        if state.memory is None:
            return labelled(super().result(problem, state), state.engine, compiled)
        engine, last = state.engine, state.cost
        keep = (state.status == Status.CONVERGED)[:, None]
        us = like(state.us, torch.where(keep, flat(state.us), state.memory[0]))
        xs = engine.rollout(us)
        solution = super().result(
            problem, state._replace(us=us, xs=xs, cost=engine.total_cost(xs, us))
        )
        lost = (state.status == Status.STALLED) | (state.status == Status.MAX_ITERATIONS)
        best = state.memory[1, :, 0]
        texts = {
            b: f"the map u <- argmin H does not contract: after {int(state.iterations[b])} "
            f"iterations the cost is {float(last[b]):.6g}; returned is the cheapest iterate, "
            f"{float(best[b]):.6g}; relaxation < 1, or 'emsa', may converge"
            for b in lost.nonzero()[:, 0].tolist()
        }
        return labelled(reworded(solution, texts), engine, compiled)


@dataclass(frozen=True)
class EMSA(Solver):
    """Extended successive approximations: the augmented Hamiltonian keeps the step honest.

    ``H + rho/2 |x' - f|^2 + sigma/2 |p - H_x|^2`` punishes controls that move states and costates
    (Li, Chen, Tai, E, JMLR 2018, algorithm 2). sigma is rho times the ratio of mean squares of
    states and costates, so that both are measured on their own scale. ``trials`` weights rho,
    ``growth`` apart, are minimised and rolled out at once; of those that bring ``rules.armijo``
    of the fall of H the cheapest is taken, so J never rises. The next weights start one below it,
    or above all where none was good. rho stands in the history's damping.

    Args:
        weight: the first and smallest rho that is tried.
        growth: ratio of a weight to the one before.
        minimiser: of the augmented Hamiltonian, see `Minimiser`.
    """

    weight: float = 1e-4
    growth: float = 4.0
    minimiser: Minimiser = field(default_factory=ProjectedNewton)
    name: ClassVar[str] = "emsa"

    def __post_init__(self) -> None:
        if not self.growth > 1:
            raise ValueError(f"growth must be greater than 1, got {self.growth}.")
        if not self.weight > 0:
            raise ValueError(f"weight must be positive, got {self.weight}.")

    def init(self, problem: Problem, controls: Any = None, states: Any = None) -> State:
        state = super().init(problem, controls, states)
        return state._replace(damping=torch.full_like(state.damping, self.weight))

    def step_sizes(self, like: Tensor) -> Tensor:
        return like.new_ones(self.trials)

    def weights(self, rho: Tensor) -> Tensor:
        """The weights tried after ``rho`` (B,): (A, B)."""
        return rho * self.growth ** torch.arange(self.trials, dtype=rho.dtype)[:, None].to(rho)

    def direction(self, state: State, expansion: Expansion) -> Direction:
        ps, hus = state.engine.costates(expansion)
        plain = Hamiltonian(state.engine, state.xs, ps).repeated(self.trials)
        rho = self.weights(state.damping)
        sigma = rho * mean_square(state.xs) / mean_square(ps).clamp_min(torch.finfo(rho.dtype).tiny)
        h = replace(plain, weights=torch.stack((rho, sigma), dim=-1).flatten(0, 1))
        start = each(lambda u: torch.cat([u] * self.trials, dim=-2), state.us)
        us = self.minimiser(h, start)
        k = each(lambda v, u: (v - u).unflatten(-2, (self.trials, -1)), us, start)
        slope = fall(plain, start, us).unflatten(0, (self.trials, -1))
        return Direction(
            policy=Policy(k, None),
            slope=slope,  # (A, B): of H, each weight has its own
            curvature=torch.zeros_like(state.cost),
            residual=largest_projected(hus, state.engine.box(state.us)),
            usable=torch.isfinite(slope).any(dim=0),
            sweeps=1,
        )

    def decide(self, record: Record, step_sizes: Tensor) -> Decision:
        """Choose the weight, then decide about its one step as for any other method."""
        decrease = record.cost - record.trial_cost
        rounding = 16 * torch.finfo(decrease.dtype).eps * record.cost.abs()
        good = record.trial_finite & (decrease >= -self.rules.armijo * record.slope - rounding)
        choice = torch.where(good, record.trial_cost, torch.inf).argmin(dim=0)
        pick = lambda v: v.gather(0, choice[None])
        one = record._replace(
            slope=pick(record.slope)[0],
            trial_cost=pick(record.trial_cost),
            trial_finite=pick(record.trial_finite),
            damping=torch.zeros_like(record.damping),  # rho is no damping: it hides no descent
        )
        decision = decide(one, step_sizes[:1], self.own_rules)
        weights = self.weights(record.damping)
        after = torch.where(
            decision.accepted, pick(weights)[0] / self.growth, weights[-1] * self.growth
        )
        running = decision.status == Status.RUNNING
        decision = decision._replace(
            choice=choice,
            damping=torch.where(running, after, record.damping),
            rollouts=torch.where(decision.accepted, choice + 1, decision.rollouts),
        )
        return stalled(decision, running & (after > self.rules.damping_max))

    @torch.no_grad()
    def result(self, problem: Problem, state: State) -> Solution:
        compiled = state.engine.hamiltonian(augmented=True) is not None
        return labelled(super().result(problem, state), state.engine, compiled)


def fall(h: Hamiltonian, before: Stages, after: Stages) -> Tensor:
    """Change of the sum of H over the stages, at most 0 (what is more is rounding): (L,)."""
    change = each(torch.sub, h.value(after), h.value(before))
    whole = change if isinstance(change, Tensor) else torch.stack(change)
    return whole.sum(dim=0).clamp_max(0)


def mean_square(stages: Stages) -> Tensor:
    """Of all entries: (B,)."""
    return flat(stages).square().mean(dim=-1)


def remember(us: Tensor, cost: Tensor, residual: Tensor, waited: Tensor) -> Tensor:
    """Cheapest controls (B, N) and their cost; lowest residual; steps without either: (4, B, N)."""
    return torch.stack((us, *(v[:, None].expand_as(us) for v in (cost, residual, waited))))


def stalled(decision: Decision, mask: Tensor) -> Decision:
    status = torch.where(mask, int(Status.STALLED), decision.status)
    return decision._replace(status=status)
