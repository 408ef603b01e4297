"""Every example runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GALLERY = sorted(EXAMPLES.glob("plot_*.py"))


@pytest.mark.parametrize("path", GALLERY, ids=lambda p: p.stem)
def test_gallery_example_runs(path, monkeypatch, capsys):
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runpy.run_path(str(path), run_name="__main__")
    plt.close("all")
    printed = capsys.readouterr().out
    assert printed.strip()
    if path.stem.startswith("plot_learned"):  # the policy works on the true system
        (policy,) = re.findall(r"^policy .*", printed, re.MULTILINE)
        assert all(float(v) < 0.02 for v in re.findall(r"[\d.]+", policy))


def test_every_example_is_run_by_a_test():
    others = {p.name for p in EXAMPLES.glob("*.py")} - {p.name for p in GALLERY}
    processes = {"data_parallel.py", "many_pendulums.py"}  # see test_distributed, test_sharded
    assert others == {"cartpole_swing_up.py"} | processes


def test_the_main_job_prints_its_table_and_writes_its_files(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "cartpole_swing_up.py"))
    example["main"](tmp_path / "results", max_iterations=3)
    printed = capsys.readouterr().out
    for method in ("pmp", "indirect", "ilqr", "ddp"):
        assert f"\n  {method}" in printed
    written = sorted(p.name for p in (tmp_path / "results").iterdir())
    assert written == ["cartpole.gif", "cartpole.png", "comparison.csv", "comparison.png"]
    assert all(p.stat().st_size > 0 for p in (tmp_path / "results").iterdir())
