"""Words and tables: what a status means for this problem, and how a solution prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ocp.problem import Stages
from ocp.solution import Solution, Status

if TYPE_CHECKING:
    from ocp.engines import Engine
    from ocp.engines.base import Appraisal
    from ocp.solvers.loop import State


def messages(state: State, certificate: Appraisal, codes: Sequence[Status]) -> list[str]:
    """One sentence a problem: what stopped it, where, and what to try."""
    facts = (
        certificate.sweep.residual,
        certificate.gap,
        certificate.indefinite,
        certificate.sweep.failed,
        state.cost,
        state.damping,
        state.iterations,
    )
    numbers = zip(*(v.tolist() for v in facts), strict=True)
    return [
        locate(state.engine, state.xs, state.us, b)
        if code is Status.NON_FINITE
        else sentence(code, *own)
        for b, (code, own) in enumerate(zip(codes, numbers, strict=True))
    ]


def sentence(
    code: Status,
    residual: float,
    gap: float,
    indefinite: int,
    failed: int,
    cost: float,
    damping: float,
    iterations: int,
) -> str:
    """Of one problem whose numbers are finite; the stages are -1 where there is none."""
    facts = f"residual {residual:.1e}, gap {gap:.1e}"
    if code is Status.CONVERGED:  # the commonest: filling in a template takes its time
        return f"converged: {facts}"
    text = SENTENCES.get(code, code.name.lower()).format(
        facts=facts,
        indefinite=indefinite,
        cost=cost,
        damping=damping,
        iterations=iterations,
    )
    if code is Status.STALLED and failed >= 0:
        text += f"; Q_uu is not positive definite at stage {failed}"
    return text


SENTENCES = {
    Status.MAX_ITERATIONS: "stopped after {iterations} iterations: {facts}",
    Status.STALLED: "no step accepted up to damping {damping:.0e}: {facts}",
    Status.PRECISION: "nothing left to gain above the rounding of the cost: {facts}",
    Status.SADDLE: (
        "stationary, but Q_uu is indefinite at stage {indefinite}: a saddle, no minimum; perturb "
        "the initial controls"
    ),
    Status.UNBOUNDED: "the cost fell to {cost:.1e}: it has no lower bound",
    Status.INTERRUPTED: "interrupted after {iterations} iterations: {facts}",
    Status.TIME_LIMIT: "time limit after {iterations} iterations: {facts}",
}


def locate(engine: Engine, xs: Stages, us: Stages, b: int) -> str:
    """The first stage and quantity of problem b that is nan or inf."""
    which = f"problem {b}: " if engine.problem.batched else ""
    T = engine.problem.horizon
    for t in range(T + 1):
        if bad(xs[t][b]):
            return f"{which}dynamics returned {value_of(xs[t][b])} at stage {t - 1}: x[{t}]"
    expansion = engine.expand(xs, us)
    for t in range(T):
        for name, part in (
            ("a derivative of the dynamics (f_x or f_u)", expansion.fz[t][b]),
            ("the gradient of the stage cost", expansion.lz[t][b]),
            ("the Hessian of the stage cost", expansion.lzz[t][b]),
        ):
            if bad(part):
                return f"{which}{name} is {value_of(part)} at stage {t}"
    for name, part in (("gradient", expansion.phix[b]), ("Hessian", expansion.phixx[b])):
        if bad(part):
            return f"{which}the {name} of the terminal cost is {value_of(part)}"
    return f"{which}the cost is {float(engine.total_cost(xs, us)[b])} on finite states"


def bad(value: Tensor) -> bool:
    return not bool(torch.isfinite(value).all())


def value_of(value: Tensor) -> str:
    return "nan" if bool(torch.isnan(value).any()) else "inf"


def table(solution: Solution) -> str:
    """The solution in a few lines; a batch as counts and ranges, its worst problems by name."""
    name = f" of {solution.problem_name}" if solution.problem_name else ""
    head = f"{solution.method}{name} ({solution.engine} engine, {solution.seconds:.2f} s)"
    if isinstance(solution.status, list):
        return "\n".join([head, *batch_lines(solution)])
    rows = [
        ("status", solution.status.name),
        ("", solution.message),
        ("cost", f"{float(solution.cost):.10g}"),
        ("iterations", str(int(solution.iterations))),
        ("residual |Q_u|", f"{float(solution.residual):.2e}"),
        ("residual |H_u|", f"{float(solution.hamiltonian_residual):.2e}"),
        ("largest gap", f"{float(solution.gap):.2e}"),
    ]
    return "\n".join([head, *(f"  {k:15s} {v}".rstrip() for k, v in rows)])


def batch_lines(solution: Solution) -> list[str]:
    counts: dict[str, int] = {}
    for status in solution.status:
        counts[status.name] = counts.get(status.name, 0) + 1
    lines = [
        "  "
        + f"{len(solution.status)} problems: "
        + ", ".join(f"{v} {k}" for k, v in counts.items())
    ]
    for label, value, form in (
        ("cost", solution.cost, ".6g"),
        ("iterations", solution.iterations.double(), ".0f"),
        ("residual |Q_u|", solution.residual, ".1e"),
        ("residual |H_u|", solution.hamiltonian_residual, ".1e"),
        ("largest gap", solution.gap, ".1e"),
    ):
        low, middle, high = (float(f(value)) for f in (torch.min, torch.median, torch.max))
        lines.append(f"  {label:15s} {low:{form}} .. {middle:{form}} .. {high:{form}}")
    failures = [
        (b, m) for b, (s, m) in enumerate(zip(solution.status, solution.message, strict=True)) if s
    ]
    lines += [f"  [{b}] {message}" for b, message in failures[:5]]
    return lines + ([f"  ... and {len(failures) - 5} more"] if len(failures) > 5 else [])
