"""Solvers that answer requests for one solve at a time, ours and other people's alike."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ocp

HERE = Path(__file__).parent
FREE = ("DDP", "FDDP", "SQP")  # C++ solvers of problems without bounds
BOUNDED = ("BoxDDP", "BoxFDDP")


@dataclass
class Turn:
    """A few solves in a row: their seconds by both clocks, and the answer of the last."""

    cpu: list[float]
    wall: list[float]
    iterations: int
    converged: bool
    cost: float  # as it says itself
    controls: np.ndarray  # (T, m)


@dataclass
class Server:
    """A process that reads "PROBLEM SOLVER REPEATS GOAL... CONTROLS..." and answers in JSON.

    CONTROLS, which only the C++ server reads, may be missing: then the definition's are meant.
    """

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, text=True, env=dict(self.environment)
        )

    def solve(
        self, peer: Any, solver: str, repeats: int, controls: np.ndarray | None = None
    ) -> Turn:
        """Solve a definition of the peers directory, from other first controls (T, m) if given.

        Raises:
            RuntimeError: the process has ended.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        first = [] if controls is None else controls.ravel().tolist()
        numbers = " ".join(map(repr, peer.xg.tolist() + first))
        stdin.write(f"{peer.name} {solver} {repeats} {numbers}\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"{self.command[0]} ended while solving {peer.name} by {solver}.")
        facts = json.loads(line)
        found = np.array(facts.pop("controls")).reshape(peer.T, peer.m)
        return Turn(**facts, controls=found)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)


def installed(peers: Path, work: Path) -> dict[str, Server]:
    """The servers that `install.sh` made in ``work``: "cpp", and "casadi" if it is there."""
    one_thread = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    made: dict[str, Server] = {}
    if (work / "gen/server").exists():
        made["cpp"] = Server([str(work / "gen/server")], one_thread)
    if (python := work / "cas/bin/python").exists():
        where = {**one_thread, "PYTHONPATH": str(peers)}
        made["casadi"] = Server([str(python), str(HERE / "casadi_server.py")], where)
    return made


def ours(solve: Callable[[], ocp.Solution], repeats: int) -> Turn:
    """The same of a call of `ocp.solve`."""
    cpu, wall = [], []
    for _ in range(repeats):
        a, w = time.process_time(), time.perf_counter()
        solution = solve()
        cpu.append(time.process_time() - a)
        wall.append(time.perf_counter() - w)
    controls = solution.controls.numpy()
    facts = int(solution.iterations), bool(solution.converged), float(solution.cost)
    return Turn(cpu, wall, *facts, controls)
