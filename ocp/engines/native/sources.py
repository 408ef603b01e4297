"""Where a program's run-time numbers come from: tensors read anew at every solve.

Shared numbers (parameters, tensors the user's functions close over, weights of modules) form one
flat vector; per-problem data form a (B, K) matrix. Neither is part of the program's text, so that
changing a value never compiles anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ocp.engines.native.surroundings import Surroundings, follow
from ocp.problem import Problem


class Changed(ValueError):  # noqa: N818
    """A tensor has another shape or kind than when the program was made: trace anew."""


@dataclass(eq=False)
class Source:
    """Numbers read at run time, in one block of the vector.

    Attributes:
        name: for messages.
        shape: of the tensor; without its leading B where it is per problem.
        dtype: of the tensor.
        read: the tensor as it is now.
        per_problem: whether it has a leading B.
        table: whether it has a row for each stage; such blocks come last, so that another horizon
            moves as little as possible.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[Problem], Tensor]
    per_problem: bool = False
    table: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def flat(self, problem: Problem) -> Tensor:
        """(size,), or (B, size) per problem.

        Raises:
            Changed: the tensor is of another shape or kind than it was.
        """
        value = self.read(problem)
        got = value.shape[1:] if self.per_problem else value.shape
        if got != self.shape or value.dtype != self.dtype:
            raise Changed(
                f"{self.name} is {tuple(got)} {value.dtype} now, the program was made for "
                f"{self.shape} {self.dtype}."
            )
        return value.reshape(len(value), -1) if self.per_problem else value.reshape(-1)


def parameter(name: str, value: Tensor) -> Source:
    read = lambda problem: problem.parameters[name]
    return Source(f"parameters[{name!r}]", tuple(value.shape), value.dtype, read)


def per_problem(name: str, value: Tensor) -> Source:
    """value (B, ...)."""
    read = lambda problem: problem.per_problem[name]
    shape = tuple(value.shape[1:])
    return Source(f"per_problem[{name!r}]", shape, value.dtype, read, per_problem=True)


def fixed(name: str, value: Tensor) -> Source:
    """A tensor that functions close over: what is written into it later is seen."""
    return Source(name, tuple(value.shape), value.dtype, lambda problem: value)


def visible(name: str, value: Tensor, surroundings: Surroundings) -> Source:
    """The same; where it is seen from the functions, another in its place is seen too.

    Raises, when read, `Changed`: there is nothing any more, or no tensor.
    """
    path = surroundings.path(value)
    if path is None:
        surroundings.reads(value)
        return fixed(name, value)

    def read(problem: Problem) -> Tensor:
        try:
            now = follow(surroundings.roots, path)
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            raise Changed(f"{name} is not there any more: {error!r}.") from error
        if not isinstance(now, Tensor):
            raise Changed(f"{name} is a {type(now).__name__} now.")
        return now

    return Source(name, tuple(value.shape), value.dtype, read)


def gathered(source: Source, offsets: np.ndarray) -> Source:
    """Row t holds the entries ``offsets[t]`` (T, K) of a source: a lookup by stage."""
    index = torch.from_numpy(offsets.reshape(-1))

    def read(problem: Problem) -> Tensor:
        flat = source.flat(problem)
        picked = flat.index_select(flat.ndim - 1, index.to(flat.device))
        return picked.reshape(*flat.shape[:-1], *offsets.shape)

    name = f"lookup in {source.name}"
    return Source(name, offsets.shape, source.dtype, read, source.per_problem, table=True)


@dataclass
class Block:
    """The sources of one program that end in one array, in order of first use."""

    sources: list[Source] = field(default_factory=list)

    def add(self, source: Source) -> None:
        if not any(source is s for s in self.sources):
            self.sources.append(source)

    def number_of(self, source: Source) -> int:
        """Its number in order of first use; added where it is new."""
        self.add(source)
        return next(k for k, s in enumerate(self.sources) if s is source)

    def ordered(self) -> list[Source]:
        return sorted(self.sources, key=lambda s: s.table)

    def places(self) -> list[int]:
        """Where each source begins, in order of first use."""
        starts: dict[int, int] = {}
        total = 0
        for source in self.ordered():
            starts[id(source)] = total
            total += source.size
        return [starts[id(source)] for source in self.sources]

    @property
    def size(self) -> int:
        return sum(s.size for s in self.sources)

    def names(self) -> list[str]:
        return [s.name for s in self.ordered()]


def shared_numbers(block: Block, problem: Problem) -> Tensor:
    """The flat vector (P,) of shared numbers now, in the problem's dtype.

    Raises:
        Changed: a tensor is of another shape or kind than when the program was made.
    """
    return joined(block, problem, 0, (0,))


def problem_numbers(block: Block, problem: Problem) -> Tensor:
    """Per-problem numbers (B, K) now, in the problem's dtype. Raises as `shared_numbers`."""
    return joined(block, problem, 1, (problem.batch, 0))


def joined(block: Block, problem: Problem, dim: int, empty: tuple[int, ...]) -> Tensor:
    """Read at every solve: no operation that is not needed."""
    x0 = problem.x0
    if not block.sources:
        return x0.new_zeros(empty)
    with torch.no_grad():
        parts = [s.flat(problem) for s in block.ordered()]
        same = all(p.dtype == x0.dtype and p.device == x0.device for p in parts)
        return torch.cat(parts if same else [p.to(x0.device, x0.dtype) for p in parts], dim)
