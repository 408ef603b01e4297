"""What a user types, turned into problems and values; their mistakes, into sentences."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from ocp import starts
from ocp.extras import need
from ocp.problem import Problem
from ocp.problems import REGISTRY
from ocp.solution import Solution

MISTAKE = 2  # exit status of a user's mistake

STARTS: dict[str, Any] = {
    "portfolio": "portfolio",
    "zero": starts.zero,
    "interpolate": starts.interpolate(),
    "weight_continuation": starts.weight_continuation(),
}


class UserError(Exception):
    """A mistake of the user's, told in a sentence that says what to do."""


@contextmanager
def readable(show_traceback: bool) -> Iterator[None]:
    """Print mistakes as one line on standard error and exit with status 2.

    The package raises ValueError, TypeError and ImportError for wrong use only (numerical trouble
    is a status), so they are mistakes here; any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except (UserError, ValueError, TypeError, ImportError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
            raise typer.Exit(MISTAKE) from None
        where = own_line(error)
        typer.secho(f"Error: {error}", fg="red", err=True)
        if where:
            typer.echo(where, err=True)
        elif not isinstance(error, UserError):
            typer.echo("(--traceback shows where it was raised)", err=True)
        raise typer.Exit(MISTAKE) from None


# -- problems ----------------------------------------------------------------------------------
def load_problem(target: str, settings: Sequence[str]) -> Problem:
    """A built-in name, or ``FILE.py:OBJECT``, with ``key=value`` settings for its function.

    Raises:
        UserError: no such name, file or object; not a problem; a setting it does not have.
    """
    given = dict(parse(setting) for setting in settings)
    if ".py" not in target:
        if target not in REGISTRY:
            file = f" Or {target}.py:NAME, a file here?" if Path(f"{target}.py").is_file() else ""
            raise UserError(f"there is no problem {target!r}. {suggest(target, REGISTRY)}{file}")
        return build(target, REGISTRY[target].factory, given)
    file, colon, name = target.rpartition(":")
    if not colon or name.endswith(".py"):
        file, name = target, ""
    module = load_file(Path(file))
    if not name:
        raise UserError(f"say which object: {file}:NAME. {offers(module)}")
    if not hasattr(module, name):
        found = difflib.get_close_matches(name, candidates(module), 1)
        did = f"Did you mean {found[0]}? " if found else ""
        raise UserError(f"{file} has no {name!r}. {did}{offers(module)}")
    value = getattr(module, name)
    if isinstance(value, Problem):
        if given:
            raise UserError(
                f"{target} is a problem already: --set needs a function with arguments that "
                "returns one."
            )
        return value
    if not callable(value):
        raise UserError(
            f"{target} is a {type(value).__name__}, neither an ocp.Problem nor a function that "
            f"returns one. {offers(module)}"
        )
    return build(target, value, given)


def build(target: str, function: Callable[..., Any], settings: dict[str, Any]) -> Problem:
    """Call a function for its problem, its arguments checked by name first."""
    arguments = inspect.signature(function).parameters
    named = {k: a for k, a in arguments.items() if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)}
    if len(named) == len(arguments):
        for name in settings:
            if name not in named:
                if not named:
                    raise UserError(f"{target} takes no arguments: --set {name} is not for it.")
                close = suggest(name, named)
                listed = ", ".join(describe(a) for a in named.values())
                raise UserError(
                    f"{target} has no argument {name!r}. {close} Its arguments: {listed}."
                )
    required = [k for k, a in named.items() if a.default is a.empty and k not in settings]
    if required:
        raise UserError(f"{target} needs {', '.join(f'--set {k}=...' for k in required)}.")
    with guarded(target):
        problem = function(**settings)
    if not isinstance(problem, Problem):
        raise UserError(f"{target} returned a {type(problem).__name__}, it must be an ocp.Problem.")
    return problem


def describe(argument: inspect.Parameter) -> str:
    if argument.default is argument.empty:
        return argument.name
    return f"{argument.name}={argument.default!r}"


def parse(setting: str) -> tuple[str, Any]:
    """``key=value``; the value a Python number, list, tuple, True, False, None or string.

    Raises:
        UserError: there is no "=" in it.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key.strip().isidentifier():
        raise UserError(f"--set and --option take key=value, got {setting!r}.")
    for read in (ast.literal_eval, float):  # float for inf
        try:
            return key.strip(), read(value.strip())
        except (ValueError, SyntaxError):
            continue
    return key.strip(), value


def suggest(name: str, known: Iterable[str]) -> str:
    """Close matches, or all there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(known)}."


# -- files of the user's -----------------------------------------------------------------------
def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module, its own folder importable.

    Raises:
        UserError: it does not exist, or fails; then with the line of the file it failed at.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], 1)
        raise UserError(
            f"there is no file {str(path)!r}." + (f" Did you mean {near[0]}?" if near else "")
        )
    # Its own name must not hide a package, as a file called torch.py would.
    spec = importlib.util.spec_from_file_location(f"ocp_user_{path.stem}", path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    with guarded(str(path)):
        spec.loader.exec_module(module)
    return module


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Run a user's code: whatever it raises becomes a `UserError` with the error as its cause."""
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"{what} ended itself (sys.exit) while it was loaded: put what it runs under "
            'if __name__ == "__main__".'
        ) from error
    except Exception as error:  # a user's code may raise anything
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{what} failed: {type(error).__name__}: {text}") from error


def own_line(error: BaseException) -> str:
    """The last line of a user's file that an error, or its causes, passed through; or nothing."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    files = {
        m.__file__ for name, m in sys.modules.items() if name.startswith("ocp_user_") and m.__file__
    }
    for link in reversed(chain):
        if isinstance(link, SyntaxError) and link.filename in files:
            return f'  File "{link.filename}", line {link.lineno}\n    {(link.text or "").strip()}'
        frames = [f for f in traceback.extract_tb(link.__traceback__) if f.filename in files]
        if frames:
            last = frames[-1]
            return f'  File "{last.filename}", line {last.lineno}, in {last.name}\n    {last.line}'
    return ""


def candidates(module: ModuleType) -> list[str]:
    """Names in a module that are problems, or functions of its own callable without arguments."""
    found = []
    for name, value in vars(module).items():
        own = inspect.isfunction(value) and value.__module__ == module.__name__
        if isinstance(value, Problem) or (own and callable_alone(value)):
            found.append(name)
    return found


def callable_alone(function: Callable[..., Any]) -> bool:
    arguments = inspect.signature(function).parameters.values()
    return all(
        a.default is not a.empty or a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments
    )


def offers(module: ModuleType) -> str:
    names = candidates(module)
    if not names:
        return "The file has no problem and no function without arguments."
    return f"The file has {', '.join(names)}."


# -- other values ------------------------------------------------------------------------------
def load_solution(path: Path) -> Solution:
    """Raises UserError: no such file, or not a saved solution."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r} to start from.")
    try:
        return Solution.load(path)
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no solution that --save or Solution.save wrote.") from error


def start(name: str | None) -> Any:
    """Starts by name, several separated by commas. Raises UserError: no such start."""
    if name is None or name == "portfolio":
        return name
    chosen = []
    for part in (p.strip() for p in name.split(",")):
        if part not in STARTS or part == "portfolio":
            raise UserError(f"there is no start {part!r}. {suggest(part, STARTS)}")
        chosen.append(STARTS[part])
    return chosen


def drawable(problem: Problem, option: str) -> None:
    """Raises UserError: only the built-in problems have a drawing to animate."""
    if problem.name not in REGISTRY:
        raise UserError(
            f"{option} draws the built-in problems only; {problem.name or 'this problem'!r} is "
            "none of them. --plot plots any problem."
        )


def method_names(text: str, known: Iterable[str]) -> list[str]:
    """Names separated by commas, or "all". Raises UserError: no such method."""
    if text == "all":
        return list(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"there is no method {name!r}. {suggest(name, known)}")
    return names


def folder(out: Path | None) -> None:
    """Refuse, before the work, what cannot be a folder of results."""
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file, a folder is needed.")


def output(path: Path | None, option: str, suffixes: Sequence[str], needs: str = "") -> None:
    """Refuse, before a long solve, a file that could not be written after it.

    Raises:
        UserError: its folder does not exist, it is a folder, or its suffix is not one of those.
        ImportError: the module ``needs``, which writes it, is missing.
    """
    if path is None:
        return
    if needs:
        need(needs, "plot", option)
    if not path.resolve().parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {str(path.parent)!r}.")
    if path.is_dir():
        raise UserError(f"{option} {path}: this is a folder, name a file in it.")
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: needs a name that ends in {', '.join(suffixes)}.")
