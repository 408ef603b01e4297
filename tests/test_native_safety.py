"""What surrounds compiled programs when it misbehaves: compilers, the cache, signals, forks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import rich
from native_cases import needs_compiler
from references import close

import ocp
from ocp.engines.native import build, compiled

pytestmark = needs_compiler

ANSWER = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
HERE = Path(__file__).parent
LEFT = """
case "$*" in *-dM*) exec {real} "$@";; esac
{then}
"""
BAD = {  # what a compiler does instead of compiling, and what is said of it
    "fails": ("echo 'error: internal' >&2; exit 4", "error: internal"),
    "garbage": (
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo garbage > "$2"; shift; done',
        "cannot be loaded",
    ),
    "nothing": ("exit 0", "made no file"),
    "killed": ("kill -9 $$", "the compiler failed"),
    "hangs": ("sleep 300 & echo $! > {pid}; wait", "gave up after 1 s"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache directory, and a process that has loaded nothing."""
    monkeypatch.setenv("OCP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("OCP_ENGINE", raising=False)
    monkeypatch.setattr(build, "_loaded", {})
    compiled._known.clear()
    yield build.cache_directory()
    compiled._known.clear()


def script(folder: Path, then: str) -> Path:
    """A compiler that answers questions about itself as the real one, and else does ``then``."""
    real = " ".join(build.compiler().command)
    path = folder / "compiler"
    path.write_text("#!/bin/sh" + LEFT.format(real=real, then=then.format(pid=folder / "pid")))
    path.chmod(0o700)
    return path


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends soon; a zombie has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_compiler_is_told_and_the_problem_solved_in_eager_pytorch(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then, told = BAD[kind]
    monkeypatch.setenv("CXX", str(script(tmp_path, then)))
    monkeypatch.setattr(build, "SECONDS", 1.0 if kind == "hangs" else 60.0)
    problem = rich(2)
    with pytest.warns(RuntimeWarning, match=f"solved in eager PyTorch(.|\n)*{told}"):
        solution = ocp.solve(problem, "ilqr", engine="auto")
    assert solution.engine == "eager" and bool(solution.converged.all())
    assert not list(cache.glob("build-*"))
    if kind == "hangs" and sys.platform == "linux":
        assert gone(int((tmp_path / "pid").read_text()))
    if kind != "garbage":
        return
    # A new process asks again, and what the bad compiler left in the cache is rebuilt.
    compiled._known.clear()
    monkeypatch.delenv("CXX")
    close(ocp.solve(problem, "ilqr", engine="native").cost, solution.cost, 1e-9)


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(28, "no space left")])
def test_a_cache_that_cannot_be_written_to_is_told(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(build, "keep", refuse)
        with pytest.raises(build.BuildError, match=f"{error.strerror}.*OCP_CACHE_DIR"):
            build.load(ANSWER)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(build.BuildError, match=f"{error.strerror}.*OCP_CACHE_DIR"):
        build.load(ANSWER)


def test_a_cache_that_may_only_be_read_serves_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = rich(2)
    first = ocp.solve(problem, "ilqr", engine="native")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    compiled._known.clear()
    again = ocp.solve(problem, "ilqr", engine="native")
    assert again.engine == "native"
    close(again.controls, first.controls, 0)


def test_an_entry_of_another_program_is_rebuilt(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied by hand, or from another machine: consistent in itself, but of another text."""
    build.load(ANSWER.replace("42", "43"))
    (note,) = cache.glob("*.json")
    entry = build.place_of(ANSWER)
    shutil.copy(note, entry)
    assert build.load(ANSWER).answer() == 42
    assert json.loads(entry.read_text())["key"] == entry.stem


def test_temporary_files_of_the_compiler_go_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "full"))
    then = "echo $TMPDIR > {pid}; exec " + " ".join(build.compiler().command) + ' "$@"'
    monkeypatch.setenv("CXX", str(script(tmp_path, then)))
    assert build.load(ANSWER).answer() == 42
    assert Path((tmp_path / "pid").read_text()).parent == build.cache_directory()


def python(code: str) -> subprocess.Popen[str]:
    path = os.pathsep.join((str(HERE), *sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_ctrl_c_ends_the_compiler_and_leaves_nothing_behind(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path, BAD["hangs"][0])))
    process = python(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # of a terminal
        f"from ocp.engines.native import build; build.load({ANSWER!r})"
    )
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert not list(cache.iterdir())
    if sys.platform == "linux":
        assert gone(int((tmp_path / "pid").read_text()))


def test_a_fork_solves_as_its_parent_does() -> None:
    """Threads of a call end with it: nothing of the parent's is missing in the child."""
    code = """
import os, torch, ocp
torch.set_num_threads(2)
from models import rich
solve = lambda: ocp.solve(rich(40), "ilqr", engine="native")
before = solve()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(solve().controls, before.controls) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), before.engine)
"""
    out, errors = python(code).communicate(timeout=120)
    assert out.split() == ["0", "native"], errors
