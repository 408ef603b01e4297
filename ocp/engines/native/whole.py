"""A small problem solved in one call, from its guess to its certificate: see whole.h.

What Python does around a solve costs as much as many iterations. Here it is to write the numbers
that may have changed into arrays that stay, and to wrap what comes back.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from ctypes import addressof, c_int64, memmove

import torch
from torch import Tensor

from ocp.engines.base import PARTS, ROWS, Answer, Counts, Place, Reals, Recipe, Steps
from ocp.engines.native import abi
from ocp.engines.native.compiled import Compiled, Refused, compiled_for
from ocp.engines.native.engine import Native, recipe_numbers
from ocp.engines.native.sources import Changed, Source
from ocp.problem import Problem
from ocp.solution import Status

KEPT = 8  # problems whose arrays a thread keeps
LARGEST = 2**24  # bytes of work memory, beyond which arrays are not worth keeping
INT = torch.int64


class Whole:
    """Solves one problem after the other, all of one form, in arrays that stay where they are.

    Args:
        problem: one of them.
        made: their program.
        recipe: of the solver.
        damping: what each solve begins with.
        second_order: whether each begins with second-order terms.
    """

    def __init__(
        self, problem: Problem, made: Compiled, recipe: Recipe, damping: float, second_order: bool
    ) -> None:
        self.engine, self.made = Native(problem, made), made
        engine = self.engine
        T, _, n, m = engine.sizes
        new, width = engine.new, engine.x0.element_size()
        self.chunk, self.asked = 0, (recipe, damping, second_order)
        self.large = engine.work_bytes > LARGEST
        self.numbers = Numbers(engine)
        self.x0 = engine.x0 = engine.x0.clone()
        lower, upper = (None if b is None else b.clone() for b in engine.held[2:])
        self.bounds = lower, upper
        if lower is not None and upper is not None:
            engine.data_block.lower, engine.data_block.upper = lower.data_ptr(), upper.data_ptr()
        self.places, self.size = places(T, n, m)
        real = ctypes.c_double if width == 8 else ctypes.c_float
        self.reals, self.counts = (real * len(abi.REALS))(), (c_int64 * len(abi.COUNTS))()
        self.told, self.facts = (real * 4)(), (c_int64 * 4)()  # see whole.h
        first = {"damping": damping, "residual": float("inf")}
        self.first_reals = [first.get(name, 0.0) for name in abi.REALS]
        begin = {"second_order": int(second_order), "status": int(Status.RUNNING)}
        self.first_counts = [begin.get(name, 0) for name in abi.COUNTS[:3]]
        self.gaps, self.K, self.zero = new(T, n), new(T, m, n), engine.x0.new_zeros(T, m)
        taken = torch.empty(2, dtype=INT, device="cpu")
        limits, sizes = recipe_numbers(recipe, engine.x0.dtype, engine.x0.device)
        self.kept = taken, limits, sizes  # as long as their addresses
        at = torch.Tensor.data_ptr
        self.loop = abi.Iterate(
            *(0, recipe.second_order, int(recipe.on_state), at(sizes), 0, 0, at(self.gaps)),
            *(addressof(self.reals), addressof(self.counts), 0, at(taken), at(taken) + 8),
            *(at(limits), at(self.K)),
        )
        into = map(addressof, (self.loop, self.facts, self.told))
        self.request = abi.Whole(at(self.x0), 0, 0, 0, *into)

    def current(self, problem: Problem) -> bool:
        """As `renew`, the program not being known to be current."""
        return not (self.large or self.made.program.stale()) and self.renew(problem)

    def renew(self, problem: Problem) -> bool:
        """Read all numbers anew, the program being current; False where it needs another."""
        if not self.numbers.renew(problem):
            return False
        self.engine.problem = problem
        self.x0.copy_(problem.x0)
        for mine, now in zip(self.bounds, (problem.lower, problem.upper), strict=True):
            if mine is not None and isinstance(now, Tensor):
                mine.copy_(now[:, 0])
        return True

    def __call__(
        self,
        controls: Tensor | None,
        states: Tensor | None,
        steps: Steps,
        spent: Sequence[int],
    ) -> Answer:
        """See `ocp.engines.Whole`."""
        self.reals[:] = self.first_reals
        self.counts[:] = [*self.first_counts, *spent]
        self.request.goes_on = 0
        return self._answer(self.zero if controls is None else controls, states, steps)

    def further(self, answer: Answer, steps: Steps) -> Answer:
        """See `ocp.engines.Whole`."""
        assert answer.gaps is not None
        self.reals[:], self.counts[:] = list(answer.reals), list(answer.counts)
        self.gaps.copy_(answer.gaps)
        self.request.goes_on = 1
        return self._answer(answer.part("us"), answer.part("xs"), steps)

    def _answer(self, controls: Tensor, states: Tensor | None, steps: Steps) -> Answer:
        block = self.x0.new_empty(self.size + steps.most * len(ROWS))
        request, start = self.request, block.data_ptr()
        self.loop.steps, self.loop.rows = steps.most, start + self.size * block.element_size()
        request.half, request.enough = steps.half or steps.most, steps.enough
        request.us, request.out = controls.data_ptr(), start
        request.states = 0 if states is None else states.data_ptr()
        self.engine.call("ocp_whole", request)
        taken, finished, indefinite, failed = self.facts
        left = (None, None) if finished else (self.gaps.clone(), self.K.clone())
        return Answer(
            *(bool(finished), block, self.places),
            *(Reals(*self.reals), Counts(*self.counts), tuple(self.told)),
            *(taken, indefinite, failed),
            *left,
        )


def places(T: int, n: int, m: int) -> tuple[dict[str, Place], int]:
    """Of the parts of an answer, as they lie in memory (see whole.h), and where the rows begin."""
    x, u = (T + 1, n), (T, m)
    shapes = [x, u, x, x, u, (*x, n), (*u, n), x, u, (T * m + 2,), (0, len(ROWS))]
    names = [*PARTS[:-1], "slope, curvature, H_u", PARTS[-1]]
    found, offset = dict[str, Place](), 0
    for name, shape in zip(names, shapes, strict=True):
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        found[name] = shape, strides, offset
        offset += math.prod(shape)
    return found, offset


class Numbers:
    """What a program reads at run time, in the arrays where it does.

    Args:
        engine: has those arrays.
    """

    def __init__(self, engine: Native) -> None:
        self.engine, self.program = engine, engine.program
        self.par, self.dat = engine.held[:2]
        self.places: list[tuple[Source, int, int]] = []  # each with its address and size in bytes
        if self.par is not None:
            place, width = self.par.data_ptr(), self.par.element_size()
            for source in self.program.par.ordered():
                self.places.append((source, place, source.size * width))
                place += source.size * width

    def renew(self, problem: Problem) -> bool:
        """Read them anew; False where the problem needs another program."""
        try:
            for source, place, size in self.places:
                self.read(source, place, size, problem)
            if self.dat is not None and self.program.dat.sources:
                self.dat.copy_(self.program.per_problem(problem))
        except Changed:
            return False
        return True

    def read(self, source: Source, place: int, size: int, problem: Problem) -> None:
        """Raises `Changed`: the tensor is of another shape or kind."""
        value = source.read(problem)
        if value.shape != source.shape or value.dtype != source.dtype:
            raise Changed(f"{source.name} is another tensor now.")
        if not (value.is_cpu and value.is_contiguous()) or value.dtype != self.engine.x0.dtype:
            value = value.detach().to("cpu", self.engine.x0.dtype).contiguous()
        memmove(place, value.data_ptr(), size)


class Own(threading.local):
    """What a thread keeps."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[int, Recipe, float, bool], Whole] = OrderedDict()


_own = Own()


def whole_for(problem: Problem, recipe: Recipe, damping: float, second_order: bool) -> Whole | None:
    """What solves the problem in one call, made now or earlier in this thread.

    None where its pieces have to be asked for: there is no program, another is needed, or it is
    too large.
    """
    asked = recipe, damping, second_order
    for place, again in _own.kept.items():  # the same problem as lately: no program to look up
        if again.engine.problem is problem and again.asked == asked and again.current(problem):
            _own.kept.move_to_end(place)
            return again
    try:
        made = compiled_for(problem)
    except Refused:
        return None
    if recipe.trials != made.info.trials:
        return None
    key = id(made), *asked
    found = _own.kept.get(key)
    if found is None:
        try:
            found = _own.kept[key] = Whole(problem, made, recipe, damping, second_order)
        except Changed:
            return None
        if len(_own.kept) > KEPT:
            _own.kept.popitem(last=False)
    elif not found.renew(problem):
        return None
    _own.kept.move_to_end(key)
    return None if found.large else found
