"""From the text of a program to a loaded library: compiler, cache, errors.

An entry of the cache is a library and a small JSON file that names it and its hash. Its key covers
everything the result depends on: text, headers, flags, and what the compiler says of itself and of
the machine. The directory is private to the user: loading a library runs it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from ocp.engines.native import commands, workplaces

HEADERS = Path(__file__).parent
# What comes before the generated functions.
BEFORE = ("pack.h", "maths.h", "context.h", "kinds.h", "linalg.h", "dual.h", "net.h", "box_qp.h")
SECONDS = 600.0  # that a compiler may take
LINES = 12  # of a compiler's messages that an error repeats
HINT = "Set OCP_CACHE_DIR to a directory of your own (chmod 700)."

FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",  # square roots are instructions; no result changes
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
    "-pthread",
)
GCC_ONLY = ("-fno-tree-pre",)  # newer clangs refuse what they do not know
QUICK = ("-O2", *GCC_ONLY)
STATEMENT = "\n    V "  # of generated code
LONG = 1_500  # statements of a part that is compiled with those, in two thirds of the time
MACHINE = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes


class BuildError(RuntimeError):
    """There is no compiler, or it failed, or the cache cannot be used."""


def program(
    model: str,
    decide: str | None = None,
    *,
    real: Literal["double", "float"] = "double",
    single: bool = False,
    bounds: bool = False,
    second_order: bool = True,
    ensemble: bool = False,
    team: int = 0,
    ranks: int = 1,
) -> str:
    """The text of a program, from those of ``struct Model`` and ``struct Decide``.

    Args:
        model: the generated functions.
        decide: the decisions of the loop; None for a program without `ocp_iterate`.
        real: type of all numbers.
        single: for exactly one problem (SIMD over stages and step sizes), else for batches. For a
            GPU: a block of threads for each problem, else one thread.
        bounds: controls have bounds.
        second_order: ``Model::f_contracted`` is there.
        ensemble: with the sweep and the roll-out of samples that share their controls.
        team: threads of a block, for a GPU; 0 for a CPU.
        ranks: of them, those of one problem.
    """
    settings = {
        "OCP_REAL": real,
        "OCP_SINGLE": int(single),
        "OCP_BOUNDS": int(bounds),
        "OCP_SECOND_ORDER": int(second_order),
        "OCP_DECIDE": int(decide is not None),
        "OCP_ENSEMBLE": int(ensemble),
    }
    if team:
        settings |= {"OCP_GRID": 1, "OCP_LANES": 1, "OCP_TEAM": team, "OCP_RANKS": ranks}
    lines = [f"#define {name} {value}" for name, value in settings.items()]
    lines += [f'#include "{header}"' for header in BEFORE]
    lines += ["namespace ocp {", model, "}", '#include "contracted.h"']
    rest = ["namespace ocp {", decide or "", "}", '#include "abi.h"']
    if not team:
        rest = ["#if !defined(OCP_PART) || OCP_PART == 2", *rest, "#endif"]
    return "\n".join([*lines, *rest, ""])


# -- compilers -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that works here."""

    command: tuple[str, ...]
    machine: tuple[str, ...]  # flags that mean this very processor
    facts: str  # hash of its predefined macros: version, processor, what the machine can do
    version: str

    @property
    def flags(self) -> tuple[str, ...]:
        zig = ("-fno-sanitize=undefined",) if "ziglang" in self.command else ()
        return (*FLAGS, *self.machine, *zig)

    def known(self, flags: Sequence[str]) -> tuple[str, ...]:
        """Those of the flags that this compiler knows."""
        clang = "clang" in self.version.lower()
        return tuple(flag for flag in flags if not (clang and flag in GCC_ONLY))

    @property
    def link(self) -> tuple[str, ...]:
        kind = "-dynamiclib" if sys.platform == "darwin" else "-shared"
        if "ziglang" in self.command and here_already():
            return (kind, "-nostdlib")  # its own C library would take half a minute to make
        return (kind, "-pthread")


@functools.cache
def here_already() -> bool:
    """Whether this process has what programs call of the C library, so that none need be linked."""
    process = ctypes.CDLL(None) if sys.platform == "linux" else None
    return all(
        hasattr(process, name) for name in ("cos", "erff", "memcpy", "pthread_attr_setstacksize")
    )


def candidates() -> list[tuple[str, ...]]:
    """Commands to try: $CXX, those on the path, the wheel ``ziglang``."""
    given = os.environ.get("CXX", "").strip()
    names = [tuple(shlex.split(given))] if given else []
    names += [(name,) for name in ("c++", "g++", "clang++")]
    found = [command for command in names if shutil.which(command[0])]
    if find_spec("ziglang"):
        found.append((sys.executable, "-m", "ziglang", "cc"))  # no C++ library is needed
    return found


def compiler() -> Compiler:
    """The first compiler that works.

    Raises:
        BuildError: none does; says how to get one, and what those found said.
    """
    return _compiler(tuple(candidates()))


@functools.cache
def _compiler(candidates: tuple[tuple[str, ...], ...]) -> Compiler:
    complaints = []
    for command in candidates:
        for machine in MACHINE:
            ask = [*command, *machine, "-dM", "-E", "-x", "c++", os.devnull]
            (done,) = commands.run([ask], SECONDS)
            if done.returncode == 0:
                facts = hashlib.sha256(done.stdout.encode()).hexdigest()
                return Compiler(command, machine, facts, version_of(done.stdout))
        complaints.append(f"\n  {shlex.join(ask)}: {first_errors(done.stderr, 2)}")
    raise BuildError(
        "no C++ compiler was found: install g++ or clang++, set CXX, or "
        "`pip install 'torch-ocp[native]'`, which brings one." + "".join(complaints)
    )


def version_of(macros: str) -> str:
    """The predefined ``__VERSION__``."""
    for line in macros.splitlines():
        if line.startswith("#define __VERSION__ "):
            return line.split(" ", 2)[2].strip('"')
    return "unknown version"


def first_errors(messages: str, lines: int = LINES) -> str:
    """The lines of a compiler that say what is wrong, without those that only say where."""
    told = [line for line in messages.splitlines() if line.strip()]
    wrong = [i for i, line in enumerate(told) if "error" in line.lower()]
    begin = wrong[0] if wrong else 0
    return "\n".join(told[begin : begin + lines])


# -- cache -----------------------------------------------------------------------------------------
def cache_directory() -> Path:
    """``$OCP_CACHE_DIR``, or torch-ocp in the user's cache directory; made private if new.

    Raises:
        BuildError: it cannot be made, is somebody else's, or others may write to it.
    """
    given = os.environ.get("OCP_CACHE_DIR")
    if given:
        path = Path(given)
    elif sys.platform == "darwin":
        path = Path.home() / "Library" / "Caches" / "torch-ocp"
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch-ocp"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.stat()
    except OSError as error:
        raise BuildError(f"cache directory {path}: {error}. {HINT}") from error
    if hasattr(os, "getuid") and facts.st_uid != os.getuid():
        raise BuildError(f"cache directory {path} belongs to another user. {HINT}")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"cache directory {path} is writable by other users. {HINT}")
    return path


@functools.cache
def headers_hash() -> str:
    text = b"".join(path.read_bytes() for path in sorted(HEADERS.glob("*.h")))
    return hashlib.sha256(text).hexdigest()


def efforts(text: str) -> list[tuple[str, ...]]:
    """How hard the compiler tries, for each part (macro OCP_PART) of a program.

    The time of the dropped pass grows faster than straight-line code does, and it finds little in
    an expression graph that shares its subexpressions; the loops of the headers want it.
    """
    flags = lambda *pieces: QUICK if sum(p.count(STATEMENT) for p in pieces) > LONG else ("-O2",)
    if "OCP_PART" not in text:
        return [flags(text)]
    head, _, tail = text.partition("void f_contracted")  # the last function of Model
    second_order, _, rest = tail.partition('#include "contracted.h"')
    return [flags(second_order), flags(head, rest)]


def key_of(text: str, using: Compiler) -> str:
    efforts_of_parts = (flag for part in efforts(text) for flag in using.known(part))
    flags = (*using.flags, *efforts_of_parts, *using.link)
    parts = (text, headers_hash(), using.facts, *using.command, *flags)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


_loaded: dict[str, ctypes.CDLL] = {}  # by key: a library is loaded once in a process


def load(text: str) -> ctypes.CDLL:
    """The library of a program: from memory, from the cache, or compiled.

    Raises:
        BuildError: no compiler, a compiler that fails (with its command and first messages), or a
            cache directory that cannot be trusted or written to.
    """
    entry = place_of(text)
    key = str(entry)
    if key not in _loaded:
        _loaded[key] = cached(entry) or made_now(text, entry)
    return _loaded[key]


def made_now(text: str, entry: Path) -> ctypes.CDLL:
    using = compiler()
    path = compiled(text, using, entry)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(
            f"what the compiler made ({using.version}) cannot be loaded: {error}. If programs may "
            f"not be run from there: {HINT}"
        ) from error


def place_of(text: str) -> Path:
    """The cache's note about a program."""
    return Path(f"{cache_directory()}/{key_of(text, compiler())}.json")


def note_of(entry: Path) -> dict[str, Any]:
    """What an entry says; nothing where it cannot be read."""
    try:
        note = json.loads(entry.read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def trusted(entry: Path) -> bool:
    """Whether `trust` was told, of this very library and with this PyTorch."""
    return bool(note_of(entry).get("checked") == torch.__version__)


def trust(entry: Path) -> None:
    """Remember, in the cache, that a program agrees with eager PyTorch."""
    try:
        with workplace(entry) as work:
            note = {**json.loads(entry.read_text()), "checked": torch.__version__}
            (work / "note.json").write_text(json.dumps(note))
            os.replace(work / "note.json", entry)
    except (BuildError, ValueError):  # emptied meanwhile, or read-only: it is checked again
        return


def cached(entry: Path) -> ctypes.CDLL | None:
    """The library of an entry; None if there is none, or it is not what was once written."""
    path = kept(entry)
    try:
        return None if path is None else ctypes.CDLL(str(path))
    except OSError:  # not for this machine: rebuilt
        return None


def kept(entry: Path) -> Path | None:
    """The file of an entry; None if there is none, or it is not what was once written."""
    try:
        note = json.loads(entry.read_text())
        path = entry.with_name(str(note["file"]))
        if path.parent != entry.parent or note["key"] != entry.stem:  # of another program
            return None
        same = hashlib.sha256(path.read_bytes()).hexdigest() == note["sha256"]
        return path if same else None
    except (OSError, ValueError, KeyError, TypeError):  # missing, unreadable, foreign: rebuilt
        return None


def keep(entry: Path, file: Path, by: str, **facts: Any) -> Path:
    """Move a file that lies in a folder beside ``entry`` into the cache, as what the entry names;
    both appear there complete or not at all. ``facts``: about it, see `note_of`."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    path = entry.with_name(f"{entry.stem}-{digest[:16]}{file.suffix}")
    note = file.with_name("note.json")
    told = {"key": entry.stem, "file": path.name, "sha256": digest, "by": by, **facts}
    note.write_text(json.dumps(told))
    os.replace(file, path)
    os.replace(note, entry)
    return path


def compiled(text: str, using: Compiler, entry: Path) -> Path:
    """Compile a program into the cache.

    Raises:
        BuildError: the compiler failed, or the cache cannot be written to.
    """
    workplaces.clear_stale(entry.parent)
    with workplace(entry) as work:
        source, library = work / "program.cpp", work / "program.so"
        source.write_text(text)
        objects = compile_parts(using, source, efforts(text))
        link = [*using.command, *using.link, *objects, "-o", str(library)]
        run_checked(using, [link], work)
        if not library.exists():
            raise BuildError(f"the compiler ({using.version}) made no file:\n  {shlex.join(link)}")
        return keep(entry, library, using.version)


@contextmanager
def workplace(entry: Path) -> Iterator[Path]:
    """A folder beside an entry of the cache, gone afterwards.

    Raises:
        BuildError: for an error of the operating system: no permission, no room, ...
    """
    try:
        with tempfile.TemporaryDirectory(prefix=workplaces.PREFIX, dir=entry.parent) as work:
            yield Path(work)
    except OSError as error:
        raise BuildError(f"cache directory {entry.parent}: {error}. {HINT}") from error


def compile_parts(using: Compiler, source: Path, each: Sequence[tuple[str, ...]]) -> list[str]:
    """Object files of a source, its parts (macro OCP_PART) at the same time: half the wait."""
    parts = len(each)
    base = [*using.command, *using.flags, f"-I{HEADERS}", "-c", str(source)]
    objects = [str(source.with_suffix(f".{part}.o")) for part in range(1, parts + 1)]
    run_checked(
        using,
        [
            [*base, *using.known(flags), "-o", path, *([f"-DOCP_PART={part}"] if parts > 1 else [])]
            for part, (path, flags) in enumerate(zip(objects, each, strict=True), 1)
        ],
        source.parent,
    )
    return objects


def run_checked(using: Compiler, each: Sequence[Sequence[str]], work: Path) -> None:
    """Raises `BuildError` if a compiler does not do what it is asked."""
    for done in commands.run(each, SECONDS, work):
        if done.returncode != 0:
            raise BuildError(
                f"the compiler failed ({using.version}):\n  {shlex.join(done.args)}\n"
                + first_errors(done.stderr or done.stdout)
            )
