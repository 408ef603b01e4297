"""The benchmark against peers, with ours alone on a tiny directory, and its verdicts."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from peers.verdict import compared, fastest, geometric_mean, summary, table  # noqa: E402

PROBLEMS = """
import numpy as np

class NP:
    sin, cos, sqrt, asin = np.sin, np.cos, np.sqrt, np.arcsin

class Definition:
    name, n, m, T = "swing", 2, 1, 12
    x0, xg, lo, hi, U0 = np.array([0.3, 0.0]), np.zeros(2), None, None, np.zeros((12, 1))
    def step(self, x, u, B):
        return [x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - B.sin(x[0]))]
    def run(self, x, u, B):
        return 0.5 * x[0] * x[0] + 0.05 * u[0] * u[0]
    def term(self, x, B):
        return 5 * (x[0] * x[0] + x[1] * x[1])

NAMES = ["swing"]
make = lambda name: Definition()

def rollout(p, x0, U):
    x, J = list(x0), 0.0
    for u in U:
        J += p.run(x, u, NP)
        x = p.step(x, u, NP)
    return None, J + p.term(x, NP)
"""


@pytest.mark.parametrize("start", ["same", "own"])
def test_the_runner_solves_a_definition_and_its_cost_is_that_of_numpy(tmp_path, start):
    (tmp_path / "problems.py").write_text(PROBLEMS)
    out = tmp_path / "out.json"
    script = str(ROOT / "benchmarks/against_peers.py")
    command = [sys.executable, script, str(tmp_path), "--start", start, "--turns", "2"]
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert content["summary"][0]["note"] == "no peer solved it"
    assert not content["summary"][0]["counted"]
    for row in content["rows"]:
        assert row["converged"] and row["cpu_ms"] > 0
        assert math.isclose(row["cost"], row["replay"], rel_tol=1e-9)


def row(solver, cost, ms, peer=True, ours=1.0, **facts):
    verdict = compared(cost, ours)
    return {
        "solver": solver, "peer": peer, "cost": cost, "cpu_ms": ms, "wall_ms": ms,
        "verdict": verdict, "iterations": 3, **facts,
    }  # fmt: skip


def test_only_a_peer_at_our_cost_is_a_rival_and_a_worse_minimum_of_ours_does_not_count():
    own = row("ours", 1.0, 2.0, peer=False)
    near, quick = row("near", 1.0 + 1e-7, 8.0), row("quick but worse", 1.1, 1.0)
    assert fastest([own, near, quick], "cpu_ms") is near
    line = summary("p", [own, near, quick])
    assert line["cpu_ratio"] == 0.25 and line["counted"]
    beaten = summary("p", [own, near, row("better", 0.9, 9.0)])
    assert not beaten["counted"] and math.isnan(beaten["cpu_ratio"])
    assert beaten["note"].startswith("worse minimum")
    above = summary("p", [own, quick])
    assert above["counted"] and above["note"].startswith("better minimum")
    assert "geometric mean of 2 of 3" in table([line, beaten, above])


def test_verdicts_and_means():
    assert [compared(c, 2.0) for c in (2.0 + 1e-6, 1.9, 2.1, math.nan)] == [
        "same", "better", "worse", "failed",
    ]  # fmt: skip
    assert math.isclose(geometric_mean([0.5, 2.0, 1.0]), 1.0)


# -- the sitting with a GPU ------------------------------------------------------------------------
def test_a_stage_runs_in_a_process_of_its_own_and_one_that_is_stopped_is_told(capfd):
    found = gpu.run_stage("facts", 120, ["--device", "cpu", "--small"])
    assert [f.what for f in found] == ["PyTorch"]
    stopped = gpu.run_stage("facts", 0.05, ["--device", "cpu", "--small"])
    assert [f.value for f in stopped] == ["FAILED"] and "stopped after" in stopped[0].note


def test_figures_that_came_before_a_failure_are_kept_with_its_last_words(monkeypatch, tmp_path):
    script = tmp_path / "stage.py"
    line = gpu.MARK + json.dumps({"what": "speed", "value": 3.0})
    script.write_text(f"print({line!r})\nraise RuntimeError('the device is lost')")
    monkeypatch.setattr(gpu, "__file__", str(script))
    found = gpu.run_stage("facts", 60, [])
    assert found[0] == gpu.Figure("speed", 3.0)
    assert found[1].value == "FAILED" and "RuntimeError: the device is lost" in found[1].note


def test_the_table_is_markdown_and_the_time_left_is_kept(monkeypatch, tmp_path):
    figures = [gpu.Figure("a|b", 2_345_678.9, "per second", "x\ny"), gpu.Figure("c", "same")]
    lines = gpu.table(figures).splitlines()
    assert lines[2:] == ["| a/b | 2,345,679 per second | x y |", "| c | same  |  |"]
    limits = []
    monkeypatch.setattr(gpu, "run_stage", lambda name, limit, more: limits.append(limit) or figures)
    options = argparse.Namespace(
        only=None, device="cpu", small=True, minutes=1.0, out=tmp_path / "gpu.md"
    )
    assert len(gpu.sitting(options)) == 2 * len(gpu.STAGES) == 2 * len(limits)
    assert max(limits) <= 60 and options.out.read_text().startswith("| what")
    options.minutes = 0.0
    assert {f.value for f in gpu.sitting(options)} == {"not run"}
    assert sum(limit for _, limit in gpu.STAGES.values()) < 15 * 60
