"""`check_derivatives`: every block a solver uses, against central finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from ocp import engines, layout
from ocp.problem import Problem, Stages
from ocp.stages import each, pack


class Entry(NamedTuple):
    """The worst entry of one block at one stage."""

    block: str  # f_x, f_u, l_x, l_u, l_xx, l_ux, l_uu, v.f_xx, v.f_ux, v.f_uu, phi_x, phi_xx
    stage: int  # the horizon for phi
    problem: int  # row of x0
    entry: tuple[int, ...]
    derivative: float  # what the engine computes
    difference: float  # what finite differences say
    error: float  # their distance
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed  # nan is not


@dataclass(frozen=True)
class DerivativeReport:
    """Worst entry of each block at each stage; prints as a table of blocks."""

    entries: tuple[Entry, ...]
    name: str = ""

    @property
    def ok(self) -> bool:
        """Whether every block agrees at every stage."""
        return all(e.ok for e in self.entries)

    @property
    def worst(self) -> dict[str, Entry]:
        """The entry with the largest error, relative to what is allowed, of each block."""
        found: dict[str, Entry] = {}
        for e in self.entries:
            if e.block not in found or badness(e) > badness(found[e.block]):
                found[e.block] = e
        return found

    def raise_if_bad(self) -> None:
        """
        Raises:
            ValueError: with the table, if a block disagrees.
        """
        if not self.ok:
            raise ValueError(str(self))

    def __str__(self) -> str:
        of = f" of {self.name}" if self.name else ""
        lines = [
            f"derivatives{of} against finite differences: {'all agree' if self.ok else 'WRONG'}",
            f"  {'block':7s} {'stage':>5s} {'row':>4s} {'entry':10s} {'derivative':>14s} "
            f"{'difference':>14s} {'error':>9s} {'allowed':>9s}",
        ]
        for e in self.worst.values():
            where = ", ".join(map(str, e.entry))
            lines.append(
                f"  {e.block:7s} {e.stage:5d} {e.problem:4d} {f'[{where}]':10s} "
                f"{e.derivative:14.6g} {e.difference:14.6g} {e.error:9.1e} {e.allowed:9.1e}"
                + ("" if e.ok else f"   <- wrong at {self.wrong_stages(e.block)}")
            )
        if not self.ok:
            lines.append(
                "  Where one is wrong: look for .detach(), no_grad, a custom backward, rounding "
                "(floor, round), or a kink or jump (abs, clamp, where) at that very point."
            )
        return "\n".join(lines)

    def wrong_stages(self, block: str) -> str:
        stages = sorted({e.stage for e in self.entries if e.block == block and not e.ok})
        shown = ", ".join(map(str, stages[:6])) + (", ..." if len(stages) > 6 else "")
        return f"stage{'s' if len(stages) > 1 else ''} {shown}"


def badness(e: Entry) -> float:
    ratio = e.error / e.allowed
    return math.inf if math.isnan(ratio) else ratio


@torch.no_grad()
def check_derivatives(
    problem: Problem,
    states: Any = None,
    controls: Any = None,
    *,
    engine: str = "auto",
    tolerance: float | None = None,
    seed: int = 0,
) -> DerivativeReport:
    """Compare every derivative block with central finite differences, at every stage and problem.

    First derivatives are checked against differences of the functions, second derivatives against
    differences of the first. ``v.f_zz`` is contracted along a random v.

    Args:
        problem: with shared controls, each sample is checked with the same controls.
        states (T+1, n), controls (T, m): where; also with a leading B, or as lists over t. States
            None: those of the controls. Controls None: random ones of size 0.1, within the bounds,
            so that nothing hides in the symmetry of a zero.
        engine: whose derivatives, "auto" or "eager".
        tolerance: allowed error relative to the entry plus the largest one of its block (at least
            1e-3), beside what the differences themselves leave open; 1e-6, in float32 1e-3.
        seed: of the random controls and of v.

    Raises:
        ValueError: a guess of the wrong shape, or a roll-out that is not finite.
    """
    samples = problem.replace(shared_controls=False) if problem.shared_controls else problem
    g = torch.Generator().manual_seed(seed)
    machine = engines.make(samples, engine)
    if controls is None:
        us = random_controls(samples, g)
    else:
        us = layout.controls_in(problem, controls)
        if problem.shared_controls:
            us = each(lambda u: u.expand(*u.shape[:-2], samples.batch, -1), us)
    xs = machine.rollout(us) if states is None else layout.states_in(samples, states)
    for t, x in enumerate(xs):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"check_derivatives: the states are not finite at stage {t}; give controls, or "
                "states to check at."
            )
    default = 1e-6 if problem.x0.dtype == torch.float64 else 1e-3
    allowed = default if tolerance is None else tolerance
    vs = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x) for x in xs]
    expansion = machine.expand(xs, us)
    along = machine.curvature_along(xs, us, pack(vs, samples.uniform))
    entries: list[Entry] = []
    for t in range(samples.horizon):
        z = torch.cat((xs[t], us[t]), dim=-1)
        at = Stage(samples, t, samples.state_dims[t], vs[t + 1], allowed)
        f, l = at.joint(samples.f), at.joint(samples.l)
        entries += at.compare(("f_x", "f_u"), expansion.fz[t], value_of(f), z)
        entries += at.compare(("l_x", "l_u"), expansion.lz[t], value_of(l), z)
        entries += at.compare(("l_xx", "l_ux", "l_uu"), expansion.lzz[t], slope_of(l), z)
        entries += at.compare(("v.f_xx", "v.f_ux", "v.f_uu"), along(t, vs[t + 1]), slope_of(f), z)
    end = Stage(samples, samples.horizon, samples.state_dims[-1], vs[-1], allowed)
    phi = end.joint(lambda x, u, t, p: samples.phi(x, p))
    entries += end.compare(("phi_x",), expansion.phix, value_of(phi), xs[-1])
    entries += end.compare(("phi_xx",), expansion.phixx, slope_of(phi), xs[-1])
    return DerivativeReport(tuple(entries), problem.name)


def random_controls(problem: Problem, g: torch.Generator) -> Stages:
    parts = []
    for t, m in enumerate(problem.control_dims):
        u = 0.1 * torch.randn(problem.batch, m, generator=g, dtype=torch.float64).to(problem.x0)
        if problem.lower is not None and problem.upper is not None:
            u = torch.minimum(torch.maximum(u, problem.lower[t]), problem.upper[t])
        parts.append(u)
    return pack(parts, problem.uniform)


OfSample = Callable[[Tensor, Tensor, Any], Tensor]  # of z = (x, u), v and p


def value_of(function: Callable[[Tensor, Any], Tensor]) -> OfSample:
    return lambda z, v, p: function(z, p)


def slope_of(function: Callable[[Tensor, Any], Tensor]) -> OfSample:
    """Gradient in z of a scalar function, of ``v . function`` where it is a vector."""

    def slope(z: Tensor, v: Tensor, p: Any) -> Tensor:
        def scalar(z: Tensor) -> Tensor:
            value = function(z, p)
            return v @ value if value.ndim else value

        return grad(scalar)(z)

    return slope


@dataclass(frozen=True)
class Stage:
    """Finite differences at one stage, from the user's functions without the engine."""

    problem: Problem
    t: int
    n: int  # where z splits into x and u
    v: Tensor  # (B, n')
    tolerance: float

    def joint(self, function: Callable[..., Tensor]) -> Callable[[Tensor, Any], Tensor]:
        x0, t, n = self.problem.x0, self.t, self.n
        stage = t if self.problem.stagewise else torch.tensor(t, device=x0.device)
        return lambda z, p: function(z[:n], z[n:], stage, p)

    def compare(
        self, blocks: tuple[str, ...], derivative: Tensor, function: OfSample, z: Tensor
    ) -> list[Entry]:
        """Derivative (B, ..., d) of ``function`` at z (B, d), split at n in its last axes."""
        n = self.n
        difference, doubt = self.differences(function, z)
        second = {"xx": (slice(n), slice(n)), "ux": (slice(n, None), slice(n))}
        second["uu"] = (slice(n, None), slice(n, None))
        first = {"x": (slice(n),), "u": (slice(n, None),)}
        entries = []
        for block in blocks:
            where = (..., *(first | second)[block.rpartition("_")[2]])
            parts = [values[where] for values in (derivative, difference, doubt)]
            if parts[0].numel():
                entries.append(self.worst(block, *parts))
        return entries

    def worst(self, block: str, derivative: Tensor, difference: Tensor, doubt: Tensor) -> Entry:
        error, size = (derivative - difference).abs(), difference.abs()
        allowed = self.tolerance * (size + size.max().clamp_min(1e-3)) + doubt
        ratio = torch.nan_to_num(error / allowed, nan=torch.inf)
        index = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
        numbers = [float(v[index]) for v in (derivative, difference, error, allowed)]
        return Entry(block, self.t, index[0], index[1:], *numbers)

    def differences(self, function: OfSample, z: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative (B, ..., d) by two central differences extrapolated, and its uncertainty.

        Error O(h^4): h = eps^(1/5) balances it with the rounding of the function.
        """
        B, d = z.shape
        eps = torch.finfo(z.dtype).eps
        h = eps**0.2 * (1 + z.abs())  # (B, d)
        moves = torch.diag_embed(h).movedim(1, 0)  # (d, B, d): row i moves component i
        points = torch.stack([z + s * moves for s in (1.0, -1.0, 0.5, -0.5)])
        values = self.rows(function, points.flatten(0, 2)).unflatten(0, (4, d, B))
        width = h.mT.reshape(d, B, *[1] * (values.ndim - 3))
        wide, narrow = (values[0] - values[1]) / (2 * width), (values[2] - values[3]) / width
        extrapolated = (4 * narrow - wide) / 3
        rounding = 16 * eps * values.abs().amax(dim=0) / width
        doubt = (extrapolated - narrow).abs() + rounding
        return extrapolated.movedim(0, -1), doubt.movedim(0, -1)

    def rows(self, function: OfSample, z: Tensor) -> Tensor:
        """``function`` of k B rows z, the data of problem b being that of rows b, B + b, ..."""
        problem, copies = self.problem, z.shape[0] // self.problem.batch
        repeat = lambda v: v.repeat(copies, *[1] * (v.ndim - 1))
        data = {k: repeat(v) for k, v in problem.per_problem.items()}
        axes = {k: None for k in problem.parameters} | {k: 0 for k in data}
        p = {**problem.parameters, **data}
        return vmap(function, in_dims=(0, 0, axes))(z, repeat(self.v), p)
