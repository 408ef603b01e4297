"""Compiling and caching programs, and the elementary functions they use."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections import OrderedDict
from ctypes import c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from references import close

import ocp
from ocp.engines.native import build, compiled
from ocp.problems.registry import REGISTRY

try:
    build.compiler()
    missing = ""
except build.BuildError as error:
    missing = str(error)
needs_compiler = pytest.mark.skipif(bool(missing), reason=missing)

ANSWER = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and a process that has loaded nothing."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("OCP_CACHE_DIR", str(directory))
    monkeypatch.setattr(build, "_loaded", {})
    return directory


def never(*_: object) -> None:
    raise AssertionError("compiled again")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would know."""
    monkeypatch.setattr(build, "_loaded", {})


# -- cache -----------------------------------------------------------------------------------------
@needs_compiler
def test_a_program_is_compiled_once_and_then_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.load(ANSWER).answer() == 42
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert sorted(p.suffix for p in cache.iterdir()) == [".json", ".so"]
    monkeypatch.setattr(build, "compiled", never)
    build.load(ANSWER)
    forget(monkeypatch)
    assert build.load(ANSWER).answer() == 42
    with pytest.raises(AssertionError, match="compiled again"):
        build.load(ANSWER.replace("42", "43"))


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "other", "note", "empty-note", "outside", "gone"])
def test_a_damaged_or_foreign_entry_is_rebuilt(
    cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    using, directory = build.compiler(), build.cache_directory()
    build.compiled(ANSWER, using, directory / f"{build.key_of(ANSWER, using)}.json")
    (library,), (note,) = cache.glob("*.so"), cache.glob("*.json")
    if damage == "cut":
        library.write_bytes(library.read_bytes()[:1000])
    elif damage == "other":
        library.write_bytes(b"not a library")
    elif damage == "note":
        note.write_text("{")
    elif damage == "empty-note":
        note.write_text("[]")
    elif damage == "outside":
        elsewhere = cache.parent / "elsewhere.so"
        library.rename(elsewhere)
        told = json.loads(note.read_text())
        note.write_text(json.dumps({**told, "file": "../elsewhere.so"}))
    else:
        library.unlink()
    assert build.load(ANSWER).answer() == 42
    forget(monkeypatch)
    monkeypatch.setattr(build, "compiled", never)
    assert build.load(ANSWER).answer() == 42


@needs_compiler
def test_the_key_covers_text_headers_flags_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    using = build.compiler()
    keys = {
        build.key_of(ANSWER, using),
        build.key_of(ANSWER + " ", using),
        build.key_of(ANSWER, build.Compiler(using.command, ("-O1",), using.facts, "1")),
        build.key_of(ANSWER, build.Compiler(using.command, using.machine, "other", "1")),
    }
    monkeypatch.setattr(build, "headers_hash", lambda: "other")
    keys.add(build.key_of(ANSWER, using))
    assert len(keys) == 5


@needs_compiler
def test_processes_may_build_the_same_program_at_the_same_time(cache: Path) -> None:
    code = f"from ocp.engines.native import build; print(build.load({ANSWER!r}).answer())"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=120)[0].strip() for p in running] == ["42"] * 2
    assert not list(cache.glob("build-*"))


@needs_compiler
def test_what_killed_builds_left_behind_goes_with_the_next_build(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    for name, age in (("build-old", 3700), ("build-new", 3500), ("mine", 3700)):
        (cache / name).mkdir()
        (cache / name / "program.cpp").write_text("half")
        when = time.time() - age
        os.utime(cache / name, (when, when))
    build.load(ANSWER)
    left = {p.name for p in cache.iterdir() if p.is_dir()}
    assert left == {"build-new", "mine"}


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of this system differ")
def test_a_directory_that_others_may_write_to_is_refused(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(build.BuildError, match="writable by other users"):
        build.cache_directory()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of this system differ")
def test_a_directory_of_somebody_else_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(build.BuildError, match="belongs to another user"):
        build.cache_directory()


def test_a_directory_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(build.BuildError, match="OCP_CACHE_DIR"):
        build.cache_directory()


# -- compilers -------------------------------------------------------------------------------------
@needs_compiler
def test_a_failing_compiler_is_told_with_its_command_and_first_errors(cache: Path) -> None:
    with pytest.raises(build.BuildError) as caught:
        build.load(ANSWER + "int broken( { return nonsense; }\n")
    message = str(caught.value)
    assert "program.cpp" in message
    assert "-std=c++17" in message
    assert "error" in message
    assert len(message.splitlines()) <= build.LINES + 3
    assert not list(cache.iterdir())


def test_no_compiler_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "candidates", list)
    with pytest.raises(build.BuildError, match=r"torch-ocp\[native\]"):
        build.compiler()


def test_a_compiler_that_does_not_work_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho 'fatal error: no licence' >&2\nexit 1\n")
    fake.chmod(0o700)
    monkeypatch.setattr(build, "candidates", lambda: [(str(fake),)])
    with pytest.raises(build.BuildError, match="no licence"):
        build.compiler()


@needs_compiler
def test_a_compiler_that_does_not_work_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    working = build.candidates()
    monkeypatch.setattr(build, "candidates", lambda: [("false",), ("no-such-program",), *working])
    assert build.compiler().command in working


def test_flags_that_gcc_alone_knows_are_not_given_to_clang() -> None:
    made = lambda version: build.Compiler(("x",), (), "", version).known(build.QUICK)
    assert made("12.2.0") == build.QUICK
    assert made("Clang 22.1.8") == made("Apple LLVM 15.0.0 (clang-1500.3.9.4)") == ("-O2",)


def test_cxx_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -O7")
    assert build.candidates()[0] == (sys.executable, "-O7")


needs_wheel = pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")


@needs_wheel
@pytest.mark.parametrize("name", ["pendulum", "quadrotor2d"])
def test_programs_of_the_wheel_give_eagers_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is long enough to be compiled with less effort."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(compiled, "_known", OrderedDict())
    problem = REGISTRY[name].factory()
    us = 0.1 * torch.ones(problem.horizon, problem.control_dims[0], dtype=torch.float64)
    native, eager = (
        ocp.solve(problem, "ddp", controls=us, engine=engine, max_iterations=2)
        for engine in ("native", "eager")
    )
    assert "ziglang" in build.compiler().command and native.engine == "native"
    close(native.controls, eager.controls, 1e-9)
    close(native.states, eager.states, 1e-9)


@needs_wheel
def test_the_wheel_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert build.compiler().command[1:] == ("-m", "ziglang", "cc")
    x = np.linspace(-2e5, 2e5, 64)
    for y in evaluate("sin", x, "double"):
        np.testing.assert_allclose(y, np.sin(x), rtol=0, atol=1e-15)


# -- elementary functions --------------------------------------------------------------------------
FUNCTIONS = ("sin", "cos", "exp", "log", "tanh")
RANGES = {
    "sin": [(-4, 4), (-1e5, 1e5), (-1e9, 1e9)],
    "cos": [(-4, 4), (-1e5, 1e5), (-1e9, 1e9)],
    "exp": [(-1, 1), (-80, 80)],
    "log": [(0.5, 2), (1e-30, 1e30)],
    "tanh": [(-1, 1), (-40, 40)],
}
UNITS = {"tanh": 2.5}  # in the last place, where more than 2: it divides once
SPECIAL = [
    0.0,
    np.inf,
    -np.inf,
    np.nan,
    1e300,
    -1.0,
    1e-310,
    1e-42,
    6e5,
    709.9,
    88.5,
    -745.0,
    -103.0,
]


def functions_text(real: str) -> str:
    """Entries ``sin_1`` (scalars) and ``sin_w`` (packs), and so on."""
    text = f'#define OCP_REAL {real}\n#include "pack.h"\n#include "maths.h"\n'
    text += (
        '#define E extern "C" __attribute__((visibility("default"))) void\nusing namespace ocp;\n'
    )
    for name in FUNCTIONS:
        text += f"""
E {name}_1(const Real* x, Real* y, Int n) {{
  for (Int i = 0; i < n; ++i) y[i] = ocp::{name}(x[i]);
}}
E {name}_w(const Real* x, Real* y, Int n) {{
  for (Int i = 0; i < n; i += OCP_LANES) {{
    Pack<Real, OCP_LANES> a;
    for (int l = 0; l < OCP_LANES; ++l) a.v[l] = x[i + l];
    a = ocp::{name}(a);
    for (int l = 0; l < OCP_LANES; ++l) y[i + l] = a.v[l];
  }}
}}"""
    return text


def evaluate(name: str, x: np.ndarray, real: str) -> tuple[np.ndarray, np.ndarray]:
    """By scalars and by packs."""
    results = []
    for kind in ("1", "w"):
        entry = getattr(build.load(functions_text(real)), f"{name}_{kind}")
        entry.argtypes, entry.restype = [c_void_p, c_void_p, c_int64], None
        y = np.full_like(x, 7.0)
        entry(x.ctypes.data, y.ctypes.data, len(x))
        results.append(y)
    return results[0], results[1]


@needs_compiler
@pytest.mark.parametrize("real", ["double", "float"])
def test_elementary_functions_are_within_units_in_the_last_place(real: str) -> None:
    dtype = np.float64 if real == "double" else np.float32
    g = np.random.default_rng(0)
    for name in FUNCTIONS:
        for low, high in RANGES[name]:
            x = g.uniform(low, high, 32_000).astype(dtype)
            x[0] = 0.5  # a sound neighbour
            exact = getattr(np, name)(x.astype(np.longdouble))
            unit = np.spacing(np.abs(exact).astype(dtype)).astype(np.longdouble)
            if real == "float" and high > 100:  # far from 0, arguments are reduced in float
                unit = np.maximum(unit, np.finfo(dtype).eps)
            for y in evaluate(name, x, real):
                errors = np.abs(y.astype(np.longdouble) - exact) / unit
                assert errors.max() <= UNITS.get(name, 2.0), (name, low, high)
            shuffled = g.permutation(len(x))  # other neighbours, other lanes: the same bits
            again = evaluate(name, x[shuffled], real)[1]
            np.testing.assert_array_equal(again, evaluate(name, x, real)[1][shuffled])


@needs_compiler
@pytest.mark.parametrize("real", ["double", "float"])
def test_elementary_functions_of_special_arguments(real: str) -> None:
    dtype = np.float64 if real == "double" else np.float32
    with np.errstate(all="ignore"):
        x = np.repeat(np.array(SPECIAL, dtype=dtype), 16)
        x[1::2] = 0.75
        for name in FUNCTIONS:
            exact = getattr(np, name)(x)
            for y in evaluate(name, x, real):
                np.testing.assert_allclose(y, exact, rtol=4 * np.finfo(dtype).eps, atol=0)
