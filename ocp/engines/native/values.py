"""Traced tensors: what they are made of, and how to make them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.engines.native.ops import Ids
from ocp.engines.native.sources import Source
from ocp.problem import Problem

STATE, STAGE, SHARED = 1, 2, 4  # a value depends on x, u or per-problem data; on t; on parameters


class Untraceable(ValueError):  # noqa: N818
    """A function that cannot become a program.

    Attributes:
        operation: PyTorch's name of the operation; "function" where the whole run failed.
        reason: one phrase.
        line: ``file:number: code`` of the user, or empty.
    """

    def __init__(self, operation: str, reason: str, line: str) -> None:
        super().__init__(f"{operation}: {reason}" + (f" ({line})" if line else ""))
        self.operation, self.reason, self.line = operation, reason, line


@dataclass(frozen=True, eq=False)
class Place:
    """Entries of a source: entry k is number ``offsets[k] + strides[k] t``."""

    source: Source
    offsets: Ids
    strides: Ids

    @classmethod
    def whole(cls, source: Source) -> Place:
        offsets = np.arange(source.size).reshape(source.shape)
        return cls(source, offsets, np.zeros_like(offsets))


@dataclass(eq=False)
class Value:
    """A tensor of the run.

    Attributes:
        tensor: what PyTorch computed at the trace point; keeps it alive.
        depends: on what, bits of STATE, STAGE, SHARED; 0 for constants.
        operation, line: what made it, where in the user's code.
        ids: its nodes, once it has some.
        place: where its entries are read, if it is nothing but moved run-time numbers.
        recipe: function, arguments and number of the output that made it.
        failure: why it has no nodes.
    """

    tensor: Tensor
    depends: int
    operation: str
    line: tuple[str, int] | None
    ids: Ids | None = None
    place: Place | None = None
    recipe: tuple[Any, Any, Any, int | None] | None = None
    failure: Untraceable | None = None
    number: int = -1  # order of recording
    by_stage: list[Tensor] | None = None
    translated: bool = False  # by a handler: to be checked
    shape: tuple[int, ...] = field(init=False)  # the tensor's own may be changed by `squeeze_`

    def __post_init__(self) -> None:
        self.shape = tuple(self.tensor.shape)


Tree = Any


def mapped(function: Callable[[Any], Any], tree: Tree, kind: type) -> Tree:
    """``tree`` with every ``kind`` in it replaced."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(function, branch, kind) for branch in tree)
    if isinstance(tree, dict):
        return {k: mapped(function, branch, kind) for k, branch in tree.items()}
    return tree


def leaves_of(tree: Tree, kind: type) -> list[Any]:
    found: list[Any] = []
    mapped(found.append, tree, kind)
    return found


# -- running recipes again -----------------------------------------------------------------------
def ancestors(value: Value) -> list[Value]:
    """What the value is computed from, itself included, in order of recording."""
    found, stack = {id(value): value}, [value]
    while stack:
        top = stack.pop()
        if top.recipe is None or top.depends == 0:
            continue
        for parent in leaves_of(top.recipe[1:3], Value):
            if id(parent) not in found:
                found[id(parent)] = parent
                stack.append(parent)
    return sorted(found.values(), key=lambda v: v.number)


def again(order: Sequence[Value], known: dict[int, Tensor]) -> Tensor:
    """The last of ``order`` by its recipes; ``known`` has what is given, by id of the value."""
    for value in order:
        if id(value) in known:
            continue
        if value.recipe is None or value.depends == 0:
            known[id(value)] = value.tensor
            continue
        func, args, kwargs, k = value.recipe
        lookup = lambda v: known[id(v)]
        result = func(*mapped(lookup, args, Value), **mapped(lookup, kwargs, Value))
        known[id(value)] = result if k is None else result[k]
    return known[id(order[-1])]


def at_stages(value: Value, t: Value, stages: int) -> list[Tensor]:
    """What depends on t alone, for t = 0, 1, ..., by PyTorch."""
    if value.by_stage is None:
        order = ancestors(value)
        value.by_stage = [
            again(order, {id(t): torch.full_like(t.tensor, k)}) for k in range(stages)
        ]
    return value.by_stage


def derived(value: Value, name: str) -> Source:
    """What depends on parameters alone is computed by PyTorch, once a solve."""
    order = ancestors(value)
    given = [v for v in order if v.recipe is None and v.place is not None]

    def read(problem: Problem) -> Tensor:
        known = {}
        for v in given:
            assert v.place is not None
            known[id(v)] = v.place.source.flat(problem).reshape(v.shape)
        return again(order, known)

    return Source(name, value.shape, value.tensor.dtype, read)
