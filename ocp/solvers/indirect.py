"""The indirect method of second order: Newton's method on the conditions of the maximum principle.

Theorem 1 of Liu, Chen, Theodorou (ICLR 2021) is a two-point boundary value problem:
``x' = f(x, u)``, ``p = H_x(x, u, p')``, ``0 = H_u(x, u, p')``, with ``x[0]`` given and
``p[T] = phi_x``. Its unknowns are here x, u and p at every stage (multiple shooting with a node at
every stage), so none of the three equations need hold before the end.

The line search follows Deuflhard's natural monotonicity (Newton Methods for Nonlinear Problems,
2004, sec. 3.3): a step is good when it shortens the correction that the same linearisation demands
from there. Unlike the residual norm it does not depend on the units of states and costates (with
the norm, two of the three convergent cases below stall).

Good for: accuracy (quadratic convergence, residuals of 1e-13), unstable dynamics, starts from
states, stationary points that are no minima. It minimises nothing: what it finds may be a saddle
(then the status says so) or a poorer minimum. It stalls where the system is nearly singular on the
way: start from `ilqr` or `pmp` then.

Measured, iterations from the cases' own starts, float64 (tolerance 1e-7):

=====================  ========  ======  ====  ===
problem                indirect  newton  ilqr  ddp
=====================  ========  ======  ====  ===
pendulum, T = 100            18   > 500    40   32
Van der Pol, T = 99          10       7     6    5
stirred tank, T = 78          6       6    10    5
unicycle, T = 20         stalls       5    11    5
=====================  ========  ======  ====  ===

From controls 1.0 (standard deviation) off the unicycle's optimum it takes 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ocp.engines import Engine, Expansion, Policy, Trials
from ocp.engines.base import Curvature, SecondOrder
from ocp.engines.riccati import linear_rollout, matvec
from ocp.problem import Problem, Stages
from ocp.solution import Solution, Status
from ocp.solvers.hamiltonian import flat, labelled, reworded
from ocp.solvers.loop import Direction, Solver, State, advance
from ocp.stages import absolute_sum, choose, each, finite, later, pack


class Point(NamedTuple):
    """States, controls and costates of L lines, or changes of them: (L, n), (L, m), (L, n)."""

    xs: Stages
    us: Stages
    ps: Stages

    def half_square(self) -> Tensor:
        """Half the sum of squares: (L,)."""
        return torch.cat([flat(s) for s in self], dim=-1).square().sum(dim=-1) / 2


class Conditions(NamedTuple):
    """How far a point is from stationary, stage by stage; all vanish at a stationary point."""

    gaps: Stages  # f(x, u) - x'
    hx: Stages  # H_x - p
    hu: Stages  # H_u
    end: Tensor  # phi_x - p[T]

    def parts(self) -> list[Tensor]:
        return [v for s in (self.gaps, self.hx, self.hu, [self.end]) for v in s]

    def largest(self) -> Tensor:
        return torch.cat(self.parts(), dim=-1).abs().amax(dim=-1)


@dataclass(frozen=True)
class Indirect(Solver):
    """Newton's method on states, controls and costates, with natural monotonicity as line search.

    Finds stationary points, of whatever kind lies near the start. Its history's ``expected`` and
    ``decrease`` are those of half the squared length of the correction, not the cost's; its
    ``residual`` is the largest violation of any of the equations. Bounds are not supported.
    """

    name: ClassVar[str] = "indirect"
    accepts_gaps: ClassVar[bool] = True

    @torch.no_grad()
    def init(self, problem: Problem, controls: Any = None, states: Any = None) -> State:
        """Costates by recursion along the first guess.

        Raises:
            ValueError: the problem has control bounds, or a guess has the wrong shape.
        """
        if problem.lower is not None:
            raise ValueError(
                "method 'indirect' solves H_u = 0 and knows no control_bounds; use 'ddp', 'ilqr' "
                "or 'pmp', or remove the bounds."
            )
        state = super().init(problem, controls, states)
        gaps = state.gaps
        if gaps is None:
            gaps = each(torch.zeros_like, later(state.xs))
        ps, _ = state.engine.costates(state.engine.expand(state.xs, state.us))
        return state._replace(gaps=gaps, costates=ps)

    def current(self, problem: Problem, state: State) -> State:
        if state.engine.problem is not problem:
            raise ValueError("method 'indirect' keeps states and costates: they are one problem's.")
        return state

    def iteration(self, state: State) -> State:
        """One Newton step of every problem still running. The full step is tried first, alone."""
        engine, ps = state.engine, state.costates
        assert ps is not None and state.gaps is not None
        point = Point(state.xs, state.us, ps)
        expansion = engine.expand(point.xs, point.us)
        here = conditions(expansion, point, state.gaps)
        curvature = engine.curvature_along(point.xs, point.us, point.ps)
        step, solved = corrected(engine, expansion, curvature, here, 1)
        merit = step.half_square()
        direction = Direction(
            policy=Policy(step.us, None),
            slope=-2 * merit,
            curvature=2 * merit,
            residual=here.largest(),
            usable=solved,
            sweeps=1,
        )
        sizes = self.step_sizes(merit)
        for count in (1, len(sizes)):
            trial, trial_gaps, trial_merit = self.attempt(
                engine, point, step, sizes[:count], expansion, curvature
            )
            lines = [each(lambda s: s.flatten(-3, -2), s) for s in (trial.xs, trial.us)]
            cost = engine.total_cost(*lines).unflatten(0, (count, -1))
            trials = Trials(trial.xs, trial.us, cost)
            record = self.record(state, expansion, direction, trials)
            record = record._replace(
                cost=merit,
                trial_cost=trial_merit,
                trial_finite=record.trial_finite & finite(trial.ps),
            )
            decision = self.decide(record, sizes[:count])
            refused = (decision.status == Status.RUNNING) & ~decision.accepted
            if not bool(refused.any()):
                break
        # Nothing would change before the next attempt: the same system has the same solution.
        status = torch.where(refused, int(Status.STALLED), decision.status)
        after = advance(state, direction, trials, decision._replace(status=status))
        moved, choice = decision.accepted, decision.choice
        gaps = select(moved, choose(trial_gaps, choice), state.gaps)
        return after._replace(
            gaps=gaps,
            gap=absolute_sum(gaps),
            costates=select(moved, choose(trial.ps, choice), ps),
            damping=state.damping,
        )

    def attempt(
        self,
        engine: Engine,
        point: Point,
        step: Point,
        sizes: Tensor,
        expansion: Expansion,
        curvature: SecondOrder,
    ) -> tuple[Point, Stages, Tensor]:
        """Points (A, B, .) of all step sizes, their gaps, and their merit (A, B)."""
        a = sizes[:, None, None]
        move = lambda v, d: v.unsqueeze(-3) + a * d.unsqueeze(-3)
        trial = Point(*(each(move, v, d) for v, d in zip(point, step, strict=True)))
        lines = Point(*(each(lambda s: s.flatten(-3, -2), s) for s in trial))
        gaps = engine.gaps(lines.xs, lines.us)
        there = conditions(engine.expand(lines.xs, lines.us), lines, gaps)
        merit = corrected(engine, expansion, curvature, there, len(sizes))[0].half_square()
        split = lambda s: s.unflatten(-2, (len(sizes), -1))
        return trial, each(split, gaps), merit.unflatten(0, (len(sizes), -1))

    @torch.no_grad()
    def result(self, problem: Problem, state: State) -> Solution:
        stuck = (state.status == Status.STALLED).nonzero()[:, 0].tolist()
        texts = {
            b: "Newton's method on the maximum principle stalls at a residual of "
            f"{float(state.residual[b]):.1e}: no step along its direction gets closer; start "
            "closer, from the result of 'ilqr' or 'pmp'"
            for b in stuck
        }
        solution = reworded(super().result(problem, state), texts)
        compiled = state.engine.name == "native" and problem.uniform and problem.samples == 1
        return labelled(solution, state.engine, compiled)


def select(mask: Tensor, a: Stages, b: Stages) -> Stages:
    return each(lambda p, q: torch.where(mask[:, None], p, q), a, b)


def conditions(expansion: Expansion, point: Point, gaps: Stages) -> Conditions:
    """The residual of each equation of the boundary value problem."""
    if isinstance(expansion.fz, Tensor) and isinstance(point.ps, Tensor):  # all stages at once
        h = torch.as_tensor(expansion.lz) + matvec(expansion.fz.mT, point.ps[1:])
        n = expansion.n[0]
        end = expansion.phix - point.ps[-1]
        return Conditions(gaps, h[..., :n] - point.ps[:-1], h[..., n:], end)
    hx, hu = [], []
    for t, after in enumerate(later(point.ps)):
        h, n = expansion.lz[t] + matvec(expansion.fz[t].mT, after), expansion.n[t]
        hx.append(h[:, :n] - point.ps[t])
        hu.append(h[:, n:])
    return Conditions(gaps, hx, hu, expansion.phix - point.ps[-1])


def corrected(
    engine: Engine, expansion: Expansion, curvature: SecondOrder, rhs: Conditions, copies: int
) -> tuple[Point, Tensor]:
    """`correction` by the engine, or here; ``rhs`` is of so many copies of every problem."""
    found = engine.boundary(expansion, curvature, *rhs)
    if found is not None:
        return Point(*found[:3]), found[3]
    return correction(*repeated(expansion, curvature, copies), rhs)


def correction(expansion: Expansion, curvature: Curvature, rhs: Conditions) -> tuple[Point, Tensor]:
    """Newton's correction, to the linearised conditions with residual ``rhs``, and its regularity.

    A Riccati recursion with pivoted LU instead of Cholesky: unlike a sweep for a minimum it needs
    no definite Q_uu, only a regular one. The costates' change is affine in the states',
    ``dp = v + V dx``. Lines may be several for one problem.

    Returns:
        Changes of states, controls and costates (L, .); whether every system was regular (L,).
    """
    v, V = rhs.end, expansion.phixx
    regular = torch.isfinite(v).all(dim=-1)
    vs, Vs, ks, Ks = [v], [V], list[Tensor](), list[Tensor]()
    for t in range(len(expansion.fz) - 1, -1, -1):
        fz, n = expansion.fz[t], expansion.n[t]
        after = v + matvec(V, rhs.gaps[t])
        q = torch.cat((rhs.hx[t], rhs.hu[t]), dim=-1) + matvec(fz.mT, after)
        Q = expansion.lzz[t] + fz.mT @ (V @ fz) + curvature(t, after)
        qux, quu = Q[:, n:, :n], Q[:, n:, n:]
        both, info = torch.linalg.solve_ex(quu, -torch.cat((q[:, n:, None], qux), dim=-1))
        k, K = both[..., 0], both[..., 1:]
        v, V = q[:, :n] + matvec(qux.mT, k), Q[:, :n, :n] + qux.mT @ K
        V = (V + V.mT) / 2
        regular = regular & (info == 0) & torch.isfinite(both).flatten(1).all(dim=-1)
        for stages, part in ((vs, v), (Vs, V), (ks, k), (Ks, K)):
            stages.append(part)
    uniform = isinstance(expansion.fz, Tensor)
    policy = Policy(pack(ks[::-1], uniform), pack(Ks[::-1], uniform))
    dxs, dus = linear_rollout(expansion, policy, rhs.gaps)
    dps = each(lambda v, V, dx: v + matvec(V, dx), vs[::-1], Vs[::-1], list(dxs))
    return Point(dxs, dus, pack(list(dps), uniform)), regular


def repeated(expansion: Expansion, curvature: Curvature, times: int) -> tuple[Expansion, Curvature]:
    """The same linearisation for ``times`` copies of every problem, copy by copy."""
    matrices = lambda s: s.repeat(*[1] * (s.ndim - 3), times, 1, 1)
    vectors = lambda s: s.repeat(*[1] * (s.ndim - 2), times, 1)
    many = expansion._replace(
        fz=each(matrices, expansion.fz),
        lz=each(vectors, expansion.lz),
        lzz=each(matrices, expansion.lzz),
        phix=vectors(expansion.phix),
        phixx=matrices(expansion.phixx),
    )
    return many, lambda t, v: matrices(curvature(t, v))
