"""Ours against other people's solvers on the same problems, solve by solve in turn.

    benchmarks/peers/install.sh PEERS_DIR WORK_DIR
    python benchmarks/against_peers.py PEERS_DIR --work WORK_DIR [--start same|own] [--out F]
                                       [--problems pendulum,...] [--turns 15] [--repeats 3] [--slow]

PEERS_DIR holds `problems.py`: definitions on lists of scalars, which become plain PyTorch here and
C text for Crocoddyl and mim-solvers. One thread, float64, each side's default stopping rule, our
program compiled, Python included. Everybody solves a few times in turn; the figures are medians
over all turns. Who converged is believed his cost; the controls are also replayed in numpy. Another
minimum, or none, is said and not counted.

--start same: everybody from the first controls of the definition (zero but for one problem).
--start own: ours as `ocp.solve` chooses, peers also from states that do not follow from controls.
--slow: CasADi's IPOPT and FATROP too.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers.definitions import closed_loop, load, problem_of
from peers.servers import BOUNDED, FREE, Server, Turn, installed, ours
from peers.verdict import SAME, Contestant, replayed, summary, table

import ocp

OURS: dict[str, dict[str, dict[str, Any]]] = {  # the first is the one that is compared
    "same": {
        "ours ddp": {},
        "ours ilqr": {"method": "ilqr"},
        "ours leap": {"first_damping": 0.0},  # a first step that was not predicted is kept
    },
    "own": {
        "ours default": {},
        "ours portfolio": {"starts": "portfolio"},
        "ours line": {"starts": ocp.starts.interpolate(0.35)},
    },
}
LINE = "_line"  # our start given to a peer: reported, but no setting of the peer's own
Solve = Callable[[int], Turn]


def own_contestants(definition: Any, start: str) -> dict[str, Callable[[], ocp.Solution]]:
    problem = problem_of(definition, definition.x0)
    first: dict[str, Any] = {"controls": torch.from_numpy(definition.U0)} if start == "same" else {}

    def solver(arguments: dict[str, Any]) -> Callable[[], ocp.Solution]:
        return lambda: ocp.solve(problem, **first, **arguments)

    return {name: solver(arguments) for name, arguments in OURS[start].items()}


def peer_names(definition: Any, start: str, slow: bool) -> list[tuple[str, str]]:
    """(server, solver) of a problem."""
    names = [("cpp", name) for name in (FREE if definition.lo is None else BOUNDED)]
    if start == "own":
        fddp = "FDDP" if definition.lo is None else "BoxFDDP"
        names += [("cpp", f"{fddp}_still"), ("cpp", f"{fddp}{LINE}")]
    return names + [("casadi", name) for name in ("IPOPT", "FATROP") if slow]


def peer_solve(server: Server, definition: Any, name: str) -> Solve:
    return lambda repeats: server.solve(definition, name, repeats)


def measure(
    module: Any, name: str, start: str, servers: dict[str, Server], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of all contestants on a problem; the first is ours."""
    definition = module.make(name)
    own = own_contestants(definition, start)
    last = {label: solve() for label, solve in own.items()}  # compiles
    entries: list[tuple[Contestant, Solve]] = [
        (Contestant(label, False), functools.partial(ours, solve)) for label, solve in own.items()
    ]
    for server, label in peer_names(definition, start, options.slow):
        if server in servers:
            given = Contestant(label, not label.endswith(LINE))
            entries.append((given, peer_solve(servers[server], definition, label)))
    spent = dict.fromkeys((c.name for c, _ in entries), 0.0)
    for turn in range(options.turns):
        for contestant, solve in entries:
            if turn >= 3 and spent[contestant.name] > options.seconds:
                continue
            begin = time.perf_counter()
            contestant.turns.append(solve(options.repeats if turn else 1))
            spent[contestant.name] += time.perf_counter() - begin
    for contestant, _ in entries:
        contestant.turns = contestant.turns[1:] or contestant.turns  # the first warms up
        contestant.replay = replayed(module, definition, contestant.turns[-1].controls)
        if contestant.name in last:
            check(module, definition, contestant, last[contestant.name])
    return [contestant.row(name, entries[0][0]) for contestant, _ in entries]


def check(module: Any, definition: Any, contestant: Contestant, solution: ocp.Solution) -> None:
    """Say where our cost is not true in independent arithmetic: open loop or, where the plan holds
    an unstable equilibrium for seconds, followed by its policy."""
    reported = float(solution.cost)
    if abs(contestant.replay - reported) > SAME * abs(reported):
        closed = float(closed_loop(module, definition, solution))
        told = f"cost {reported:.8g}, replay {contestant.replay:.8g}, by policy {closed:.8g}"
        print(f"  {contestant.name}: {told}")


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        print(
            f"  {r['problem']:13s} {r['solver']:15s} {r['verdict']:7s} cost {r['cost']:.8g} "
            f"(replay {r['replay']:.8g})  "
            f"{r['iterations']:4d} it  CPU {r['cpu_ms']:8.3f} ms  wall {r['wall_ms']:8.3f} ms  "
            f"({r['solves']} solves)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, help="where install.sh put the peers")
    parser.add_argument("--start", choices=list(OURS), default="same")
    parser.add_argument("--problems", help="names, separated by commas; all without")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="solves in a turn")
    parser.add_argument("--seconds", type=float, default=4.0, help="for one solver on one problem")
    parser.add_argument("--slow", action="store_true", help="CasADi too")
    parser.add_argument("--out", type=Path, help="a file for all figures, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = load(options.folder)
    names = options.problems.split(",") if options.problems else module.NAMES
    servers = installed(options.folder, options.work) if options.work else {}
    print(f"peers: {', '.join(servers) or 'none'}; torch {torch.__version__}", flush=True)
    every, lines = [], []
    for name in names:
        rows = measure(module, name, options.start, servers, options)
        show(rows)
        every += rows
        lines.append(summary(name, rows))
    print(table(lines))
    for server in servers.values():
        server.close()
    if options.out:
        facts = {"ocp": ocp.__version__, "torch": torch.__version__, "cpu": platform.machine()}
        content = {"settings": facts, "summary": lines, "rows": every}
        options.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
