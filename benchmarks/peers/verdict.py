"""What a solve of a peers directory's problem is worth, and the table of ratios."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peers.servers import Turn

SAME = 1e-6  # relative difference of costs that are of one minimum


@dataclass
class Contestant:
    """A solver with a setting on one problem, and the turns it has had."""

    name: str
    peer: bool  # somebody else's
    own_start: bool = False  # begins elsewhere than from the first controls of the definition
    turns: list[Turn] = field(default_factory=list)
    replay: float = math.nan  # cost of the controls, open loop, in numpy

    @property
    def cost(self) -> float:
        """As it says itself, if it calls itself converged; else what its controls cost.

        Who holds an unstable equilibrium for seconds with gaps at his tolerance replays at
        another cost, which is no reason not to count him as a rival.
        """
        last = self.turns[-1]
        return last.cost if last.converged else self.replay

    @property
    def cpu(self) -> float:
        return statistics.median(s for turn in self.turns for s in turn.cpu)

    @property
    def wall(self) -> float:
        return statistics.median(s for turn in self.turns for s in turn.wall)

    def row(self, problem: str, ours: Contestant) -> dict[str, Any]:
        """Facts for a table or a file; the ratio is ours / theirs."""
        last = self.turns[-1]
        return {
            "problem": problem,
            "solver": self.name,
            "peer": self.peer,
            "own_start": self.own_start,
            "cost": self.cost,
            "replay": self.replay,
            "verdict": compared(self.cost, ours.cost) if last.converged else unsure(self, ours),
            "iterations": last.iterations,
            "converged": last.converged,
            "solves": sum(len(turn.cpu) for turn in self.turns),
            "cpu_ms": 1e3 * self.cpu,
            "wall_ms": 1e3 * self.wall,
        }


def replayed(module: Any, definition: Any, controls: np.ndarray) -> float:
    """Cost of controls by the directory's own roll-out, in numpy."""
    return float(module.rollout(definition, definition.x0, controls)[1])


def compared(cost: float, with_cost: float) -> str:
    """ "same", "better", "worse" (each another minimum), or "failed"."""
    if not math.isfinite(cost):
        return "failed"
    if abs(cost - with_cost) <= SAME * abs(with_cost):
        return "same"
    return "better" if cost < with_cost else "worse"


def unsure(contestant: Contestant, ours: Contestant) -> str:
    """A solver that does not call itself converged is believed where its cost is that of ours."""
    found = compared(contestant.cost, ours.cost)
    return found if found == "same" else "failed"


def fastest(rows: list[dict[str, Any]], clock: str) -> dict[str, Any] | None:
    """The peer that ours is measured against: the fastest at our cost or below.

    Where ours is below all of them, the fastest of those that share their lowest cost.
    """
    peers = [r for r in rows if r["peer"] and r["verdict"] != "failed"]
    as_good = [r for r in peers if r["verdict"] in ("same", "better")]
    if not as_good and peers:
        lowest = min(r["cost"] for r in peers)
        as_good = [r for r in peers if compared(r["cost"], lowest) == "same"]
    return min(as_good, key=lambda r: r[clock], default=None)


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def summary(problem: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line about a problem: ours (the first row) against the best peer."""
    own = rows[0]
    best = {clock: fastest(rows, clock) for clock in ("cpu_ms", "wall_ms")}
    rival = best["cpu_ms"]
    # Counted where nobody found a lower minimum: a fast way to a worse one is not a solve.
    beaten = any(r["peer"] and r["verdict"] == "better" for r in rows)
    ratio = {k: own[k] / r[k] if r and not beaten else math.nan for k, r in best.items()}
    return {
        "problem": problem,
        "peer": rival["solver"] if rival else "none",
        "counted": rival is not None and not beaten and own["verdict"] == "same",
        "note": note(own, rival, beaten),
        "iterations": own["iterations"],
        "peer_iterations": rival["iterations"] if rival else None,
        "cost": own["cost"],
        "cpu_ms": own["cpu_ms"],
        "peer_cpu_ms": rival["cpu_ms"] if rival else math.nan,
        "cpu_ratio": ratio["cpu_ms"],
        "wall_ratio": ratio["wall_ms"],
    }


def note(own: dict[str, Any], rival: dict[str, Any] | None, beaten: bool) -> str:
    if own["verdict"] == "failed":
        return "ours failed"
    if rival is None:
        return "no peer solved it"
    if beaten:
        return f"worse minimum: {own['cost']:.6g}, {rival['solver']} has {rival['cost']:.6g}"
    if rival["verdict"] == "worse":
        return f"better minimum than any peer's: {own['cost']:.6g}, theirs {rival['cost']:.6g}"
    return ""


def table(lines: list[dict[str, Any]]) -> str:
    """Ratios first; means over what is counted."""
    head = "problem          CPU   wall       ours  it.       peer  it.  best peer"
    text = [head, "-" * len(head)]
    for r in lines:
        peer_iterations = "-" if r["peer_iterations"] is None else r["peer_iterations"]
        text.append(
            f"{r['problem']:13s} {r['cpu_ratio']:6.2f} {r['wall_ratio']:6.2f}  "
            f"{r['cpu_ms']:6.2f} ms {r['iterations']:4d}  {r['peer_cpu_ms']:6.2f} ms "
            f"{peer_iterations!s:>4s}  {r['peer']} {r['note']}".rstrip()
        )
    counted = [r for r in lines if r["counted"]]
    means = [geometric_mean([r[k] for r in counted]) for k in ("cpu_ratio", "wall_ratio")]
    label = f"geometric mean of {len(counted)} of {len(lines)}"
    return "\n".join([*text, f"{label}: CPU {means[0]:.3f}, wall {means[1]:.3f}"])
