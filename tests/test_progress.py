"""The progress line: what it says, when it shows, and that it changes nothing."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch

import ocp
from ocp import extras
from ocp.progress import Progress, text, watched

rich = pytest.importorskip("rich")
DOUBLE = torch.float64


class Terminal(io.StringIO):
    def isatty(self):
        return True


def problem(batch=None):
    x0 = torch.tensor([1.0, -0.5], dtype=DOUBLE)
    one = torch.ones(2, dtype=DOUBLE)
    x0 = x0 if batch is None else x0 * torch.arange(1, batch + 1, dtype=DOUBLE)[:, None]
    return ocp.Problem(
        lambda x, u, t: torch.sin(x) + u, ocp.QuadraticCost(one, one, one), x0, 4, 2, name="sine"
    )


def report(iteration=3, seconds=1.25, cost=(4.0,), residual=(1e-3,), gap=(0.0,), status=(-1,)):
    values = [torch.tensor(v, dtype=DOUBLE) for v in (cost, residual, gap)]
    status, state = torch.tensor(status), SimpleNamespace()
    return ocp.Report(iteration, *values, status, seconds, state, state, 0.0)


def test_a_line_names_iteration_cost_residual_and_gap():
    assert text(report(), 50) == "iteration 3/50  cost 4  residual 1.0e-03  1.2 s"
    assert "gap 2.0e-01" in text(report(gap=(0.2,)))
    assert "converged" in text(report(status=(0,)))


def test_a_batch_is_told_by_its_median_and_its_worst_running_problem():
    line = text(
        report(cost=(1.0, 2.0, 9.0), residual=(5.0, 1e-2, 1e-4), gap=(0.0,) * 3, status=(0, -1, -1))
    )
    assert "2 of 3 running" in line and "cost 2 " in line and "residual 1.0e-02" in line


def test_a_terminal_gets_a_line_that_is_redrawn_and_stays():
    screen = Terminal()
    line = Progress("sine ddp", 50, file=screen)
    line(report(iteration=1))
    line(report(iteration=2))  # too soon after the first: not drawn
    line(report(iteration=4, status=(0,)))
    line.close()
    shown = screen.getvalue()
    assert "iteration 1/50" in shown and "iteration 2/50" not in shown
    assert "iteration 4/50" in shown  # the end is always shown
    line.close()  # twice is once


def test_a_short_solve_shows_nothing_where_nobody_asked():
    screen = Terminal()
    line = Progress("sine", delay=0.5, keep=False, file=screen)
    line(report(seconds=0.4))
    line.close()
    assert screen.getvalue() == ""
    line(report(seconds=0.6))
    line.close()
    assert "iteration 3" in screen.getvalue()


def test_a_file_gets_one_plain_line(capsys):
    ocp.solve(problem(), "ddp", progress=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith("sine ddp  iteration ")
    assert "\x1b" not in out and "converged" in out


def test_by_default_only_a_terminal_is_written_to(capsys, monkeypatch):
    ocp.solve(problem(), "ddp")
    assert capsys.readouterr().out == ""
    callback = lambda report: None
    solver = ocp.make_solver("ddp")
    with watched(None, callback, solver, problem()) as watch:
        assert watch is callback  # no terminal: no cost either
    monkeypatch.setattr(sys, "stdout", Terminal())
    with watched(None, callback, solver, problem()) as watch:
        assert watch is not callback
    with watched(False, callback, solver, problem()) as watch:
        assert watch is callback


@pytest.mark.parametrize("starts", [None, "portfolio"])
def test_progress_changes_no_bit_and_passes_the_callbacks_answer(starts, capsys):
    seen = []

    def stop_at_two(report):
        seen.append(report.iteration)
        return report.iteration == 2

    plain = ocp.solve(problem(3), "ddp", starts=starts)
    watched_solve = ocp.solve(problem(3), "ddp", starts=starts, progress=True)
    assert torch.equal(plain.controls, watched_solve.controls)
    stopped = ocp.solve(
        problem(3), "ddp", starts=starts, progress=True, callback=stop_at_two, tolerance=1e-30
    )
    assert seen == [1, 2]
    assert ocp.Status.INTERRUPTED in stopped.status


def test_the_terminal_is_given_back_when_a_callback_raises(monkeypatch):
    closed = []
    monkeypatch.setattr(Progress, "close", lambda self: closed.append(True))

    def fail(report):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ocp.solve(problem(), "ddp", progress=True, callback=fail)
    assert closed == [True]


def test_without_rich_asking_is_refused_and_not_asking_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(ImportError, match=r"progress=True needs rich: pip install 'torch-ocp\[pro"):
        ocp.solve(problem(), "ddp", progress=True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert bool(ocp.solve(problem(), "ddp").converged)
