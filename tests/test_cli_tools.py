"""The commands that solve nothing of the user's: list, bench, doctor."""

import json
import sys
from pathlib import Path

import pytest
import torch

import ocp
from ocp.bench import bench
from ocp.doctor import self_test
from ocp.problems import REGISTRY

pytest.importorskip("typer")
from command import mistake, run


def test_list_names_every_problem_with_its_sizes():
    out = run("list").stdout
    facts = json.loads(run("list", "--json").stdout)
    assert [r["name"] for r in facts["problems"]] == list(REGISTRY)
    for row in facts["problems"]:
        assert row["name"] in out and row["description"] in out
    assert facts["methods"] == list(ocp.METHODS)
    cartpole = next(r for r in facts["problems"] if r["name"] == "cartpole")
    assert (cartpole["n"], cartpole["m"]) == (4, 1)


def test_list_of_a_name_shows_what_can_be_set():
    out = run("list", "cartpole").stdout
    assert "pole_mass=0.2" in out and "bound=None" in out
    assert "bound=7.0" in run("list", "cartpole_bounded").stdout
    assert "Did you mean cartpole" in mistake("list", "cartpol")


def test_bench_times_what_it_names(tmp_path):
    out = tmp_path / "b.json"
    run(
        "bench",
        "van_der_pol",
        "--methods",
        "ilqr",
        "--repeats",
        2,
        "--max-iterations",
        2,
        "--out",
        out,
    )
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    assert row["problem"] == "van_der_pol" and row["iterations"] == 2
    # The loop is part of the solve; per iteration it cannot take more than all of it.
    assert 0 < row["ms_per_iteration"] * 2 <= 1e3 * row["seconds"] * 1.5
    assert content["settings"]["repeats"] == 2
    assert "no problem 'nix'" in mistake("bench", "nix")
    with pytest.raises(ValueError, match="repeats must"):
        bench(("masses",), repeats=0)


def test_doctor_tells_what_is_missing_and_how_to_get_it(monkeypatch):
    sections = json.loads(run("doctor", "--json").stdout)
    assert sections["package"]["self-test"].startswith("passed")
    # Its metadata lack the build ("+cu124") for some versions.
    assert sections["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert Path(sections["package"]["location"]) == Path(ocp.__file__).parent
    assert "typer" in run("doctor").stdout
    monkeypatch.setattr(
        sys.modules["ocp.doctor"], "installed", lambda module: module != "matplotlib"
    )
    assert "missing: pip install 'torch-ocp[plot]'" in run("doctor").stdout
    monkeypatch.setattr(sys.modules["ocp.doctor"], "installed", lambda module: module != "scipy")
    assert "missing: pip install 'torch-ocp'" in run("doctor", status=1).stdout


def test_doctor_notices_a_solver_that_is_wrong(monkeypatch):
    right = ocp.solve

    def wrong(problem, *args, **kwargs):
        return right(problem.replace(x0=2 * problem.x0), *args, **kwargs)

    monkeypatch.setattr(ocp, "solve", wrong)
    assert self_test("eager").startswith("FAILED")
