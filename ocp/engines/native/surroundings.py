"""What a user's functions can see from where they stand: closures, attributes, globals.

A program is made once, yet ``cost.goal = new_goal`` between two solves has to be seen, as the
eager engine sees it. Tensors are therefore read by the way they were found (``cost.goal``), and
numbers found on such ways are compared with what they were: one that changed makes the program
stale, since Python numbers are constants of its text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

Step = tuple[str, Any]
Path = tuple[Step, ...]

LIBRARIES = ("torch", "numpy", "builtins", "typing", "abc", "math", "functools")
LARGEST = 20_000  # objects looked at
ITEMS = 1_000  # of one container
NUMBERS = (bool, int, float, str)
ENDS = (*NUMBERS, Tensor, type(None), ModuleType, type, torch.dtype, torch.device)


def names_in(code: CodeType) -> set[str]:
    """Global names and attributes a function uses, those of functions in it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
    return names


def around(thing: Any) -> Iterator[tuple[Step, Any]]:
    """What one step leads to."""
    if isinstance(thing, ENDS) or is_library(thing):
        return
    if isinstance(thing, FunctionType):
        for k, cell in enumerate(thing.__closure__ or ()):
            if cell_is_set(cell):
                yield ("cell", k), cell.cell_contents
        for name in sorted(names_in(thing.__code__) & thing.__globals__.keys()):
            yield ("global", name), thing.__globals__[name]
        for k, default in enumerate(thing.__defaults__ or ()):
            yield ("default", k), default
    elif isinstance(thing, MethodType):
        yield ("attribute", "__self__"), thing.__self__
        yield ("attribute", "__func__"), thing.__func__
    elif isinstance(thing, partial):
        for name in ("func", "args", "keywords"):
            yield ("attribute", name), getattr(thing, name)
    elif isinstance(thing, dict):
        yield from ((("item", k), v) for k, v in list(thing.items())[:ITEMS])
    elif isinstance(thing, list | tuple):
        yield from ((("item", k), v) for k, v in enumerate(thing[:ITEMS]))
    else:
        yield from of_object(thing)


def is_library(thing: Any) -> bool:
    """Functions of PyTorch, NumPy and Python itself see nothing of the user's."""
    module = getattr(thing, "__module__", None) if isinstance(thing, FunctionType) else None
    return isinstance(module, str) and module.split(".")[0] in LIBRARIES


def of_object(thing: Any) -> Iterator[tuple[Step, Any]]:
    """Attributes, and what the class adds: its functions look at globals of their own."""
    own = getattr(thing, "__dict__", {})
    yield from ((("attribute", name), value) for name, value in list(own.items())[:ITEMS])
    for kind in type(thing).__mro__:
        if kind.__module__.split(".")[0] in LIBRARIES:
            continue
        for name, value in vars(kind).items():
            if name in own or (name.startswith("__") and name != "__call__"):
                continue
            if isinstance(value, FunctionType):
                yield ("method", (kind, name)), value
            elif isinstance(value, Tensor | bool | int | float):
                yield ("attribute", name), value


def cell_is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def follow(thing: Any, path: Path) -> Any:
    """Where the way leads now.

    Raises:
        LookupError, AttributeError: it ends on the way.
    """
    for kind, key in path:
        if kind == "cell":
            thing = thing.__closure__[key].cell_contents
        elif kind == "global":
            thing = thing.__globals__[key]
        elif kind == "default":
            thing = thing.__defaults__[key]
        elif kind == "method":
            thing = vars(key[0])[key[1]]
        elif kind == "attribute":
            thing = getattr(thing, key)
        else:
            thing = thing[key]
    return thing


class Surroundings:
    """Ways to the tensors and numbers that can be seen from the roots.

    Args:
        roots: by name, as ``{"dynamics": f, "cost": cost}``.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.roots = dict(roots)
        self._tensors: dict[int, tuple[Tensor, Path]] = {}
        self._numbers: list[tuple[Path, Any]] = []
        start: Path = ()
        queue: deque[tuple[Path, Any]] = deque([(start, self.roots)])
        seen: dict[int, Any] = {}
        while queue and len(seen) < LARGEST:
            path, thing = queue.popleft()
            if isinstance(thing, NUMBERS):
                self._numbers.append((path, thing))
            elif id(thing) not in seen:
                seen[id(thing)] = thing
                if isinstance(thing, Tensor):
                    self._tensors[id(thing)] = thing, path
                queue.extend(((*path, step), child) for step, child in around(thing))

    def path(self, tensor: Tensor) -> Path | None:
        """The way to a tensor; None if it cannot be seen."""
        found = self._tensors.get(id(tensor))
        return None if found is None else found[1]

    def settle(self) -> None:
        """Forget the numbers that a run of the functions changes itself: counters of calls."""
        self._numbers = [(path, value) for path, value in self._numbers if self._is(path, value)]

    def changed(self) -> str | None:
        """The first number that is not what it was, as ``cost.width``; None if there is none."""
        for path, value in self._numbers:
            if not self._is(path, value):
                return ".".join(str(key[1]) if kind == "method" else str(key) for kind, key in path)
        return None

    def _is(self, path: Path, value: Any) -> bool:
        try:
            now = follow(self.roots, path)
        except (LookupError, AttributeError, ValueError, TypeError):
            return False
        return now is value or (type(now) is type(value) and repr(now) == repr(value))
