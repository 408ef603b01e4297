"""The Hamiltonian of every stage as a function of the controls, and its minimiser.

``H_t(x, u, p') = l_t(x, u) + p' . f_t(x, u)``: Theorem 1 of Liu, Chen, Theodorou (ICLR 2021). The
augmented form adds what punishes a control that moves the states and costates far away (Li, Chen,
Tai, E, "Maximum principle based algorithms for deep learning", JMLR 2018, eq. 21; here for
discrete time and a minimum):

``H + rho/2 |x' - f(x, u)|^2 + sigma/2 |p - H_x(x, u, p')|^2``

The paper has one weight for both; states and costates have different units, hence two here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jacrev

from ocp.engines import Eager, Engine
from ocp.engines.box_qp import box_qp
from ocp.engines.indexing import ComputedIndices
from ocp.problem import Problem, Stages
from ocp.solution import Solution
from ocp.stages import each, earlier, later

ARMIJO = 1e-4  # fraction of the decrease to first order that a step of the minimiser must bring


@dataclass(frozen=True, eq=False)
class Hamiltonian:
    """H of every stage along fixed states and costates, for L lines: L is B, or a multiple of it.

    A line is a problem, or a problem with one of several weights. Where controls are shared, a
    state is that of all samples, end to end, and H their sum (l counts 1/S: J is a mean).

    Attributes:
        xs, ps: states and costates (L, n), T + 1 of each.
        weights: (L, 2) rho and sigma of the augmentation; None for the plain Hamiltonian.
    """

    engine: Engine
    xs: Stages
    ps: Stages
    weights: Tensor | None = None

    @property
    def problem(self) -> Problem:
        return self.engine.problem

    @cached_property
    def compiled(self) -> Any:
        """The same as a program, `native.hamiltonians`; None where there is none."""
        return self.engine.hamiltonian(self.weights is not None)

    def value(self, us: Stages) -> Stages:
        """H at every stage; us (L, m) -> (L,)."""
        if self.compiled is not None:
            return self.compiled.value(self, us)
        return self.evaluate(self.one_sample(), us)

    def derivatives(self, us: Stages) -> tuple[Stages, Stages]:
        """H_u (L, m) and H_uu (L, m, m) at every stage."""
        if self.compiled is not None:
            return self.compiled.derivatives(self, us)
        h = self.one_sample()

        # Of u alone: a transform wraps its arguments, and a wrapped t cannot index a tensor.
        def first(x: Tensor, u: Tensor, *more: Any) -> Tensor:
            return grad(partial(swapped, h, x, more))(u)

        def second(x: Tensor, u: Tensor, *more: Any) -> Tensor:
            return jacrev(grad(partial(swapped, h, x, more)))(u)

        return self.evaluate(first, us), self.evaluate(second, us)

    def repeated(self, times: int) -> Hamiltonian:
        """The same for ``times`` copies of every line, copy by copy."""

        def tile(s: Tensor) -> Tensor:
            return s.repeat(*[1] * (s.ndim - 2), times, 1)

        weights = None if self.weights is None else self.weights.repeat(times, 1)
        return Hamiltonian(self.engine, each(tile, self.xs), each(tile, self.ps), weights)

    def one_sample(self) -> Callable[..., Tensor]:
        """The function of one sample that is evaluated: x, u, t, parameters, p', and so on."""
        plain = hamiltonian(self.problem)
        return plain if self.weights is None else augmented(self.problem)

    def evaluate(self, function: Callable[..., Tensor], us: Stages) -> Stages:
        """A function of one sample at all stages in one call, summed over shared samples."""
        S = self.problem.samples
        more = [later(self.ps)]
        if self.weights is not None:
            weights = [self.weights.repeat(1, S)] * len(us)
            more += [
                later(self.xs),
                earlier(self.ps),
                torch.stack(weights) if isinstance(us, Tensor) else weights,
            ]
        # Functions made up here run eagerly, whatever the engine of the roll-outs is.
        engine = self.engine if isinstance(self.engine, Eager) else Eager(self.problem)
        with torch.no_grad():
            values = engine._over(function, earlier(self.xs), us, *more)
        lines = self.xs[0].shape[0]
        if not isinstance(us, Tensor):
            return [v.unflatten(0, (lines, S)).sum(dim=1) for v in values]
        whole = values if isinstance(values, Tensor) else torch.stack(values)
        return whole.unflatten(1, (lines, S)).sum(dim=2)


def swapped(h: Callable[..., Tensor], x: Tensor, more: tuple[Any, ...], u: Tensor) -> Tensor:
    with ComputedIndices():
        return h(x, u, *more)


def hamiltonian(problem: Problem) -> Callable[..., Tensor]:
    """``(x, u, t, parameters, p') -> H`` of one sample, its share of the mean where shared."""
    S = problem.samples

    def H(x: Tensor, u: Tensor, t: Any, parameters: Any, after: Tensor) -> Tensor:
        with ComputedIndices():
            return problem.l(x, u, t, parameters) / S + after @ problem.f(x, u, t, parameters)

    return H


def augmented(problem: Problem) -> Callable[..., Tensor]:
    """``(x, u, t, parameters, p', x', p, weights (2,)) -> H`` with its two penalties."""
    plain = hamiltonian(problem)

    def H(
        x: Tensor,
        u: Tensor,
        t: Any,
        parameters: Any,
        after: Tensor,
        x_after: Tensor,
        p: Tensor,
        weights: Tensor,
    ) -> Tensor:
        hx, h = grad_and_value(lambda x: plain(x, u, t, parameters, after))(x)
        moved, bent = x_after - problem.f(x, u, t, parameters), p - hx
        return h + (weights[0] * (moved @ moved) + weights[1] * (bent @ bent)) / 2

    return H


class Minimiser(Protocol):
    """``argmin over u of H_t``, all stages at once; a closed form where there is one.

    Called with the `Hamiltonian` (states, costates and the problem in its attributes) and the
    current controls, (L, m) at each of T stages: one tensor (T, L, m), or a list over t where
    sizes change. Returns controls of the same form, within the problem's bounds.
    """

    def __call__(self, hamiltonian: Hamiltonian, us: Stages, /) -> Stages: ...


@dataclass(frozen=True)
class ProjectedNewton:
    """Minimises H over u by Newton's method, all stages and problems in one call an iteration.

    Exact in one step where H is quadratic and convex in u; bounds by a box-QP of each stage. Where
    H_uu is not positive definite its eigenvalues are reflected: a local minimum then, the one that
    the current controls lead to. H linear in u ends at a bound, as bang-bang controls do; without
    bounds it has no minimum, and the controls run away.

    Args:
        iterations: at most.
        trials: step sizes 1, 1/2, ... tried at once.
    """

    iterations: int = 20
    trials: int = 8

    def __call__(self, hamiltonian: Hamiltonian, us: Stages) -> Stages:
        if hamiltonian.compiled is not None:
            given = hamiltonian, us, self.iterations, self.trials
            return hamiltonian.compiled.minimiser(*given)
        many, value = hamiltonian.repeated(self.trials), hamiltonian.value(us)
        rounding = 16 * torch.finfo(hamiltonian.xs[0].dtype).eps
        for _ in range(self.iterations):
            steps, promise = newton_steps(hamiltonian, us)
            worth = each(lambda d, v: d > rounding * (1 + v.abs()), promise, value)
            if not any(bool(w.any()) for w in worth):
                # The values of H cannot tell these steps from none, the controls still can: the
                # minimum of a quadratic is flat, half the digits of u are in the last step.
                return each(torch.add, us, steps)
            tried = each(self.fan, us, steps)
            sizes = each(self.search, many.value(tried), value, promise)
            us = each(lambda u, k, a: u + a[..., None] * k, us, steps, sizes)
            value = hamiltonian.value(us)
        return us

    def fan(self, u: Tensor, k: Tensor) -> Tensor:
        """Controls of all step sizes: (..., L, m) -> (..., A L, m), size by size."""
        return torch.cat([u + 0.5**j * k for j in range(self.trials)], dim=-2)

    def search(self, trial: Tensor, value: Tensor, promise: Tensor) -> Tensor:
        """Largest step size with enough decrease of H, 0 where there is none: (..., L)."""
        trial = trial.unflatten(-1, (self.trials, -1))
        sizes = 0.5 ** torch.arange(self.trials, dtype=trial.dtype, device=trial.device)
        slack = 16 * torch.finfo(trial.dtype).eps * (1 + value.abs())
        goal = value[..., None, :] - ARMIJO * sizes[:, None] * promise[..., None, :]
        good = trial <= goal + slack[..., None, :]
        return torch.where(good.any(dim=-2), sizes[good.to(torch.uint8).argmax(dim=-2)], 0)


def newton_steps(h: Hamiltonian, us: Stages) -> tuple[Stages, Stages]:
    """Newton's step of each stage within the bounds (L, m), and its first-order decrease (L,).

    0 where a derivative is not finite.
    """
    lower, upper = h.problem.lower, h.problem.upper
    gradient, hessian = h.derivatives(us)

    def step(g: Tensor, H: Tensor, *box: Tensor) -> Tensor:
        rows, m = g.shape[:-1], g.shape[-1]
        lines = rows.numel()  # not -1: m may be 0
        g, H = g.reshape(lines, m), H.reshape(lines, m, m)
        fine = torch.isfinite(g).all(dim=-1) & torch.isfinite(H).flatten(1).all(dim=-1)
        g = torch.where(fine[:, None], g, 0)
        H = convex(
            torch.where(fine[:, None, None], H, torch.eye(m, dtype=g.dtype, device=g.device))
        )
        if box:
            k = box_qp(H, g, *(b.reshape(lines, m) for b in box))[0]
        else:
            k = -torch.cholesky_solve(g[..., None], torch.linalg.cholesky_ex(H)[0])[..., 0]
        return k.reshape(*rows, m)

    if lower is None or upper is None:
        steps = each(step, gradient, hessian)
    else:
        steps = each(
            step, gradient, hessian, each(torch.sub, lower, us), each(torch.sub, upper, us)
        )
    return steps, each(lambda g, k: -torch.where(k == 0, 0, g * k).sum(dim=-1), gradient, steps)


def convex(H: Tensor) -> Tensor:
    """H (k, m, m) where positive definite, else with its eigenvalues reflected and kept off 0."""
    H = (H + H.mT) / 2
    definite = torch.linalg.cholesky_ex(H)[1] == 0
    if bool(definite.all()):
        return H
    values, vectors = torch.linalg.eigh(H)
    values = values.abs()
    floor = torch.finfo(H.dtype).eps ** 0.5 * values.amax(dim=-1, keepdim=True)
    values = torch.maximum(values, floor.clamp_min(torch.finfo(H.dtype).eps))
    reflected = (vectors * values[:, None, :]) @ vectors.mT
    return torch.where(definite[:, None, None], H, reflected)


def flat(stages: Stages) -> Tensor:
    """(B, m) of each stage -> (B, sum of m), stage by stage."""
    if isinstance(stages, Tensor):
        return stages.movedim(0, -2).flatten(-2)
    return torch.cat(list(stages), dim=-1)


def like(stages: Stages, values: Tensor) -> Stages:
    """(..., sum of m) -> (..., m) of each stage, packed as ``stages`` are."""
    if isinstance(stages, Tensor):
        return values.unflatten(-1, (stages.shape[0], -1)).movedim(-2, 0)
    return list(values.split([s.shape[-1] for s in stages], dim=-1))


def labelled(solution: Solution, engine: Engine, whole: bool) -> Solution:
    """With the name of the engine, and where not the ``whole`` method is compiled with both."""
    if whole or engine.name == "eager":
        return solution
    return replace(solution, engine=f"{engine.name} + eager")


def reworded(solution: Solution, texts: Mapping[int, str]) -> Solution:
    """The solution with the messages of some of its problems replaced."""
    if isinstance(solution.message, str):
        return replace(solution, message=texts.get(0, solution.message))
    return replace(solution, message=[texts.get(b, m) for b, m in enumerate(solution.message)])
