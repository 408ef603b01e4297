"""The README and the pages of the documentation: their code runs, their promises hold."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import ocp

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if "```python\n" in p.read_text("utf-8"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """All Python blocks of a page in one namespace, in a folder of their own."""
    import torch

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    dtype = torch.get_default_dtype()
    try:
        for match in BLOCK.finditer(page.read_text("utf-8")):
            line = page.read_text("utf-8").count("\n", 0, match.start()) + 1
            code = "\n" * line + match[1]  # so that a failure names the line of the page
            exec(compile(code, str(page), "exec"), namespace)
    finally:
        torch.set_default_dtype(dtype)
    return namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_code_on_a_page_runs(page, tmp_path, monkeypatch, capsys):
    assert run_blocks(page, tmp_path, monkeypatch)


def test_the_problem_of_the_readme_is_solved_as_printed(tmp_path, monkeypatch, capsys):
    names = run_blocks(ROOT / "README.md", tmp_path, monkeypatch)
    solution = names["solution"]
    assert isinstance(solution, ocp.Solution)
    assert solution.converged
    shown = re.search(r"^  cost +(\S+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert shown is not None
    assert float(solution.cost) == pytest.approx(float(shown[1]), rel=1e-8)
    assert float(solution.controls.abs().max()) <= 5.0


def command(pattern: str) -> str:
    lines = re.findall(pattern, (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(lines) == 1
    return lines[0]


def test_the_two_commands_are_one_line_each_and_name_what_is_there():
    main_job = command(r"^python3 -m venv .*examples/.*$")
    script = re.search(r"examples/\S+\.py", main_job)
    assert script is not None
    assert (ROOT / script[0]).is_file()
    tests = command(r"^python3 -m venv .*-m pytest .*$")
    extras = (
        importlib.metadata.metadata("torch-ocp").get_all("Provides-Extra") if installed() else None
    )
    for line in (main_job, tests):
        assert "-c constraints.txt" in line
        wanted = re.search(r'"\.\[(.*?)\]"', line)
        assert wanted is not None
        if extras is not None:
            assert set(wanted[1].split(",")) <= set(extras)


def installed() -> bool:
    try:
        importlib.metadata.version("torch-ocp")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_ci_takes_its_test_command_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    pattern = re.search(r"sed -n '/(.*)/p' README\.md", script)
    assert pattern is not None
    assert " -m pytest " in command(pattern[1])


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def first_cells(page: str) -> list[str]:
    """The code in the first column of the tables of a page."""
    return re.findall(r"^\| `\"?(\w+)\"?", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE)


def test_every_status_is_explained_once():
    assert sorted(first_cells("status.md")) == sorted(status.name for status in ocp.Status)


def test_every_method_is_in_the_table_of_which_solver_when():
    assert sorted(first_cells("methods.md")) == sorted(ocp.METHODS)


def test_every_argument_of_a_problem_is_in_its_table():
    import dataclasses

    arguments = {f.name for f in dataclasses.fields(ocp.Problem) if f.init} - {"cost", "name"}
    listed = set(first_cells("problem.md"))
    assert arguments <= listed | {"cost"}
    assert listed <= arguments | {"cost", "dynamics"}


def test_every_public_name_is_in_the_api_page():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    listed = set(re.findall(r"auto\w+:: ocp\.(\w+)$", text, re.MULTILINE))
    assert set(ocp.__all__) - listed <= {"METHODS"}


def test_the_changelog_knows_this_version():
    assert f"## {ocp.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
