"""The command line as a user meets it: what it prints, its exit status, its mistakes."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import ocp

pytest.importorskip("typer")
from command import mistake, run

MINE = """
import torch
import ocp

one = torch.ones(2, dtype=torch.float64)
cost = ocp.QuadraticCost(one, one[:1], one)


def step(x, u, t):
    return torch.stack((x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - torch.sin(x[0]))))


def make(horizon=6, start=(1.0, 0.5)):
    x0 = torch.tensor(start, dtype=torch.float64)
    return ocp.Problem(step, cost, x0, horizon, 1, name="mine")


problem = make()
batch = make(start=((1.0, 0.5), (0.5, 0.5)))
number = 3.0


def nothing():
    pass


def needs(mass):
    return problem


def fails():
    return 1 / 0


def indexes():
    def f(x, u, t):
        return x + u[3]

    return ocp.Problem(f, cost, one, 6, 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


# -- solve -------------------------------------------------------------------------------------
def test_solve_prints_the_solution_of_ocp_solve(folder):
    out = run("solve", "mine.py:problem").stdout
    one = torch.ones(2, dtype=torch.float64)

    def step(x, u, t):
        return torch.stack((x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - torch.sin(x[0]))))

    p = ocp.Problem(step, ocp.QuadraticCost(one, one[:1], one), one * one.new([1.0, 0.5]), 6, 1)
    expected = ocp.solve(p, "ddp")
    assert out.startswith("ddp of mine") and "CONVERGED" in out
    assert f"cost            {float(expected.cost):.10g}" in out


def test_solve_as_json_prints_json_only(folder):
    facts = json.loads(run("solve", "mine.py:problem", "--json", "--method", "ilqr").stdout)
    assert facts["status"] == "CONVERGED" and facts["converged"] is True
    assert facts["method"] == "ilqr" and facts["problem"] == "mine"
    batch = json.loads(run("solve", "mine.py:batch", "--json").stdout)
    assert batch["status"] == ["CONVERGED"] * 2 and len(batch["cost"]) == 2


def test_exit_status_is_1_where_a_solve_did_not_converge(folder):
    out = run("solve", "mine.py:problem", "--max-iterations", 1, "--tolerance", 1e-14, status=1)
    assert "MAX_ITERATIONS" in out.stdout
    assert run("solve", "mine.py:problem", "--quiet").output == ""


def test_settings_options_and_starts_reach_the_solve(folder):
    facts = json.loads(
        run(
            "solve", "mine.py:make", "--set", "start=(0.0, 0.0)", "--set", "horizon=3", "--json"
        ).stdout
    )
    assert facts["cost"] == 0.0
    out = run(
        "solve",
        "mine.py:problem",
        "--start",
        "zero,weight_continuation",
        "--option",
        "trials=3",
        "--option",
        "second_order=always",
    )
    assert "CONVERGED" in out.stdout


def test_a_saved_solution_is_loaded_and_starts_the_next_solve(folder):
    out = run("solve", "mine.py:problem", "--save", "s.npz").stdout
    assert "wrote s.npz" in out
    assert float(ocp.Solution.load("s.npz").cost) > 0
    facts = json.loads(run("solve", "mine.py:problem", "--warm", "s.npz", "--json").stdout)
    assert facts["iterations"] == 0


def test_a_builtin_problem_is_plotted_and_animated(folder):
    pytest.importorskip("matplotlib")
    small = ("--set", "horizon=5", "--start", "zero", "--max-iterations", 1)
    files = ("--plot", "p.png", "--animate", "p.gif")
    assert run("solve", "pendulum", *small, *files, "--quiet", status=1).output == ""
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG" and Path("p.gif").read_bytes()[:3] == b"GIF"


# -- mistakes ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("pendulm", "no problem 'pendulm'. Did you mean pendulum"),
        ("mine", "Or mine.py:NAME, a file here?"),
        ("mine.py", "say which object: mine.py:NAME. The file has make, problem"),
        ("mine.py:", "say which object"),
        ("mine.py:problme", "mine.py has no 'problme'. Did you mean problem?"),
        ("mine.py:number", "is a float, neither an ocp.Problem nor a function"),
        ("mine.py:nothing", "returned a NoneType, it must be an ocp.Problem"),
        ("mine.py:needs", "mine.py:needs needs --set mass=..."),
        ("mine.py:fails", "ZeroDivisionError: division by zero"),
        ("mine.py:indexes", "index 3 is out of bounds"),
        ("main.py:problem", "no file 'main.py'. Did you mean mine.py?"),
    ],
)
def test_a_wrong_target_is_explained(folder, target, words):
    assert words in mistake("solve", target)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "dpd"), "no method 'dpd'. Did you mean ddp?"),
        (("--engine", "nativ"), "engine must be"),
        (("--start", "portfoli"), "no start 'portfoli'. Did you mean portfolio?"),
        (("--start", "interpolate"), "needs a problem with a goal"),
        (("--max-iterations", "0"), "--max-iterations"),
        (("--tolerance", "small"), "--tolerance"),
        (("--tolerance", "-1"), "--tolerance must be positive"),
        (("--option", "speed=3"), "has no option ['speed']"),
        (("--option", "speed"), "take key=value, got 'speed'"),
        (("--set", "a=1"), "is a problem already"),
        (("--plot", "no/p.png"), "there is no folder 'no'"),
        (("--plot", "p.doc"), "needs a name that ends in .png"),
        (("--save", "."), "this is a folder"),
        (("--animate", "a.gif"), "draws the built-in problems only"),
        (("--warm", "no.npz"), "no file 'no.npz' to start from"),
        (("--warm", "mine.py"), "mine.py is no solution"),
        (("--warm", "mine.py", "--start", "zero"), "either --start or --warm"),
    ],
)
def test_a_wrong_option_is_explained(folder, arguments, words):
    assert words in mistake("solve", "mine.py:problem", *arguments)


def test_an_unknown_setting_lists_the_ones_there_are(folder):
    words = mistake("solve", "mine.py:make", "--set", "horizn=3")
    assert "Did you mean horizon?" in words and "start=(1.0, 0.5)" in words
    assert "horizon must be an integer" in mistake("solve", "mine.py:make", "--set", "horizon=0")
    assert "Did you mean pole_mass" in mistake("solve", "cartpole", "--set", "polemass=3")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("import torch\nx = 1\ny = undefined + 1\n", 3, "NameError"),
        ("import torch\ndef f(:\n", 2, "SyntaxError"),
        ("import no_such_module\n", 1, "ModuleNotFoundError"),
        ("import sys\n\nsys.exit(0)\n", 3, "ended itself"),
    ],
)
def test_a_file_that_fails_shows_its_own_line_and_no_other(folder, text, line, words):
    Path("broken.py").write_text(text)
    shown = mistake("solve", "broken.py:problem")
    assert words in shown and f'broken.py", line {line}' in shown
    assert shown.count("File ") == 1 and text.splitlines()[line - 1] in shown


def test_an_error_inside_the_users_dynamics_shows_their_line(folder):
    assert "return x + u[3]" in mistake("solve", "mine.py:indexes")


def test_a_file_called_torch_does_not_hide_torch(folder):
    Path("torch.py").write_text(MINE.replace("import torch\n", "import sys, importlib\n"))
    Path("late.py").write_text("import torch\n" + MINE)
    assert "CONVERGED" in run("solve", "late.py:problem").stdout


def test_traceback_is_there_for_those_who_ask(folder):
    result = run("solve", "mine.py:fails", "--traceback", status=2)
    assert "Traceback" in result.stderr and "return 1 / 0" in result.stderr


# -- the other commands ------------------------------------------------------------------------
def test_compare_writes_what_it_says(folder):
    pytest.importorskip("matplotlib")
    out = run(
        "compare",
        "mine.py:problem",
        "--methods",
        "ilqr,ddp",
        "--out",
        "made/here",
        "--monte-carlo",
        "--samples",
        5,
        "--noise",
        "0.1",
    )
    for name in (
        "table.csv",
        "table.json",
        "comparison.png",
        "solution.png",
        "robustness.csv",
        "robustness.json",
        "robustness.png",
    ):
        assert Path("made/here", name).stat().st_size > 0
        assert f"wrote {Path('made/here', name)}" in out.stdout
    assert "Comparison of 2 methods on mine" in out.stdout and "open loop" in out.stdout
    assert json.loads(Path("made/here/table.json").read_text())["rows"][1]["method"] == "ddp"


def test_compare_as_json_and_its_exit_status(folder):
    facts = json.loads(run("compare", "mine.py:make", "--methods", "ilqr,ddp", "--json").stdout)
    assert [r["method"] for r in facts["rows"]] == ["ilqr", "ddp"]
    run(
        "compare",
        "mine.py:make",
        "--methods",
        "ilqr",
        "--max-iterations",
        1,
        "--tolerance",
        1e-14,
        "--quiet",
        status=1,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "ilqr,foo"), "no method 'foo'"),
        (("--methods", "ilqr", "--noise", "a"), "--noise needs numbers"),
        (("--methods", "ilqr", "--monte-carlo", "--kind", "wind"), "kind must be one of"),
        (("--methods", "ilqr", "--out", "mine.py"), "this is a file"),
        (("--methods", "ilqr", "--animate"), "--animate needs --out"),
    ],
)
def test_compare_explains_mistakes_before_it_solves(folder, arguments, words, monkeypatch):
    monkeypatch.setattr(import_module("ocp.compare"), "solve", None)
    assert words in mistake("compare", "mine.py:problem", *arguments)


# -- as a process ------------------------------------------------------------------------------
def environment():
    root = str(Path(ocp.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def process(*arguments):
    command = [sys.executable, "-m", "ocp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_without_typer_the_command_says_how_to_get_it():
    code = "import sys; sys.modules['typer'] = None; from ocp.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(
        "ocp: the command line needs typer: pip install 'torch-ocp[cli]'"
    )
    assert "Traceback" not in result.stderr


def test_a_process_solves_and_ctrl_c_keeps_the_best_iterate(folder):
    # The cost sends the interrupt itself, when the line search evaluates the second step.
    count = """import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
calls = 0


class Cost(ocp.QuadraticCost):
    def terminal(self, x):
        import os, signal
        global calls
        calls += 1
        if calls == LIMIT:
            os.kill(os.getpid(), signal.SIGINT)
        return super().terminal(x)


cost = Cost("""
    text = MINE.replace("cost = ocp.QuadraticCost(", count)
    text += "\ncalls = 0\nproblem = problem.replace(name='counted')\nLIMIT = calls + 5\n"
    Path("long.py").write_text(text.replace("import ocp\n", "import ocp\n\nLIMIT = 0\n", 1))
    result = process("solve", "long.py:problem", "--json", "--tolerance", "1e-300")
    assert result.returncode == 1, result.stderr
    facts = json.loads(result.stdout)
    assert facts["status"] == "INTERRUPTED"
    assert facts["iterations"] >= 1 and facts["cost"] > 0
