"""What a user's functions can see from where they stand: closures, attributes, globals, classes.

A program is made once, yet ``cost.goal = new_goal`` between two solves has to be seen, as the
eager engine sees it. Tensors are therefore read by the way they were found (``cost.goal``).
Everything else on such ways is a constant of the program's text: numbers, which function stands
where, sizes of lists and of tensors, entries of NumPy arrays. Each is a fact, and one that changed
makes the program stale.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import is_
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from ocp.engines.native.views import (
    ATOMS,
    Namespaces,
    Path,
    View,
    atom_alike,
    follow,
    named,
    view_of,
)

LARGEST = 20_000  # objects looked at

Fact = Any
Held = tuple[Callable[[], Iterable[Any]], tuple[Any, ...]]  # reads a container, and what it held


def default_dtype() -> tuple[torch.dtype]:
    """Of numbers that become tensors."""
    return (torch.get_default_dtype(),)


class Crawl:
    """One walk from the roots: facts by their ways, tensors, and what the containers held.

    Args:
        roots: by name.
        shared: memory that the program reads, as (start, end): arrays there are no constants.
    """

    def __init__(self, roots: Mapping[str, Any], shared: Iterable[tuple[int, int]]) -> None:
        self.shared = tuple(shared)
        self.facts: dict[Path, Fact] = {}
        self.held: list[Held] = [(default_dtype, default_dtype())]
        self.tensors: dict[int, tuple[Tensor, Path]] = {}
        self.twice: set[int] = set()  # tensors with several ways to them
        self.facts[("", "the default dtype"),] = torch.get_default_dtype()
        self._first: dict[int, tuple[Any, Path]] = {}
        self._queue: deque[tuple[Path, Any]] = deque([((), dict(roots))])
        self._code: set[CodeType] = set()
        names: set[str] = set()
        spaces = Namespaces()
        while self._queue and len(self._first) < LARGEST:
            path, thing = self._queue.popleft()
            self._visit(path, thing, names, spaces)
            if not self._queue:  # attributes of modules, by the names that functions use
                for view, at in spaces.more(names):
                    self._add(view, at)

    def _visit(self, path: Path, thing: Any, names: set[str], spaces: Namespaces) -> None:
        if isinstance(thing, ATOMS):
            self.facts[path] = Atom(thing)
            return
        if id(thing) in self._first:
            self.facts[path] = ("the same as", self._first[id(thing)][1])
            self.twice.add(id(thing))
            return
        self._first[id(thing)] = thing, path
        if isinstance(thing, Tensor):
            self.tensors[id(thing)] = thing, path
        code = getattr(thing, "__code__", None)
        if isinstance(code, CodeType) and code not in self._code:
            self._code.add(code)
            names |= named(code)
        if spaces.takes(thing):
            spaces.keep(thing, path)
        view = view_of(thing, self.shared)
        self.facts[path] = view.fact
        self._add(view, path)

    def _add(self, view: View, path: Path) -> None:
        self.held += ((read, tuple(read())) for read in view.reads)
        self._queue.extend(((*path, step), child) for step, child in view.children)


class Atom:
    """A number or text, equal to others of its type that are written alike: nan to nan."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and atom_alike(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]


class Surroundings:
    """Ways to the tensors that can be seen from the roots, and what else is seen there.

    Args:
        roots: by name, as ``{"dynamics": f, "cost": cost}``.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.roots = dict(roots)
        self._shared: list[tuple[int, int]] = []
        self._see(Crawl(self.roots, ()))
        self._facts = self._seen.facts

    def path(self, tensor: Tensor) -> Path | None:
        """The way to a tensor; None if it cannot be seen."""
        found = self._seen.tensors.get(id(tensor))
        return None if found is None else found[1]

    def reads(self, tensor: Tensor) -> None:
        """The program reads this tensor's memory at run time: an array that lies there is no
        constant, as long as it stays where it is."""
        start = tensor.data_ptr()
        self._shared.append((start, start + max(1, tensor.untyped_storage().nbytes())))

    def settle(self) -> None:
        """Forget the facts that a run of the functions changes itself: counters of calls."""
        now = Crawl(self.roots, self._shared)
        settled = Crawl(self.roots, ()).facts if self._shared else now.facts
        kept = {path for path, fact in self._facts.items() if settled.get(path) == fact}
        self._facts = {path: fact for path, fact in now.facts.items() if path in kept}
        self._see(now)

    def changed(self) -> str | None:
        """The first fact that is not what it was, as ``cost.width``; None if there is none."""
        try:
            now = [tuple(read()) for read in self._reads]
        except (LookupError, AttributeError, ValueError):  # a cell or an attribute is gone
            return self._compared()
        if list(map(len, now)) != self._lengths:
            return self._compared()
        if all(map(is_, chain.from_iterable(now), self._things)):
            return None
        twice, pairs = self._seen.twice, zip(self._things, chain.from_iterable(now), strict=True)
        same = all(then is thing or alike(then, thing, twice) for then, thing in pairs)
        return None if same else self._compared()

    def _see(self, crawl: Crawl) -> None:
        self._seen = crawl
        self._reads = [read for read, _ in crawl.held]
        self._lengths = [len(then) for _, then in crawl.held]
        self._things = list(chain.from_iterable(then for _, then in crawl.held))

    def _compared(self) -> str | None:
        now = Crawl(self.roots, self._shared)
        for path, fact in self._facts.items():
            if now.facts.get(path) != fact:
                return ".".join(str(key) for _, key in path)
        self._see(now)
        return None


def alike(then: Any, now: Any, twice: set[int]) -> bool:
    """Whether a new thing in the place of another makes no difference: told without a walk."""
    if isinstance(then, Tensor):
        same = isinstance(now, Tensor) and now.shape == then.shape and now.dtype == then.dtype
        return same and now.device == then.device and id(then) not in twice
    return isinstance(then, ATOMS) and atom_alike(then, now)


__all__ = ["Path", "Surroundings", "follow"]
