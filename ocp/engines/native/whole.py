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

from ocp.engines.base import ROWS, Answer, Recipe
from ocp.engines.native import abi
from ocp.engines.native.compiled import Compiled
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
        self.chunk = 0
        self.large = engine.work_bytes > LARGEST
        self.sources = made.program.par.ordered()
        self.x0 = engine.x0 = engine.x0.clone()
        lower, upper = (None if b is None else b.clone() for b in engine.held[2:])
        self.bounds = lower, upper
        if lower is not None and upper is not None:
            engine.data_block.lower, engine.data_block.upper = lower.data_ptr(), upper.data_ptr()
        self.size, self.places = places(T, n, m)
        real = ctypes.c_double if width == 8 else ctypes.c_float
        self.reals, self.counts = (real * len(abi.REALS))(), (c_int64 * len(abi.COUNTS))()
        first = {"damping": damping, "residual": float("inf")}
        self.first_reals = [first.get(name, 0.0) for name in abi.REALS]
        begin = {"second_order": int(second_order), "status": int(Status.RUNNING)}
        self.first_counts = [begin.get(name, 0) for name in abi.COUNTS[:3]]
        self.facts = (c_int64 * 4)()  # see whole.h
        self.gaps, self.K = new(T, n), new(T, m, n)
        taken = torch.empty(2, dtype=INT)
        limits, sizes = recipe_numbers(recipe, engine.x0.dtype, engine.x0.device)
        self.kept = taken, limits, sizes  # as long as their addresses
        at = torch.Tensor.data_ptr
        self.loop = abi.Iterate(
            *(0, recipe.second_order, int(recipe.on_state), at(sizes), 0, 0, at(self.gaps)),
            *(addressof(self.reals), addressof(self.counts), 0, at(taken), at(taken) + 8),
            *(at(limits), at(self.K)),
        )
        loop, facts = addressof(self.loop), addressof(self.facts)
        self.request = abi.Whole(at(self.x0), 0, 0, 0, loop, facts, 0)

    def renew(self, problem: Problem) -> bool:
        """Read all numbers anew, the program being current; False where it needs another."""
        if not renewed(self.engine, self.sources, problem):
            return False
        self.engine.problem = problem
        write(self.x0, problem.x0)
        for mine, now in zip(self.bounds, (problem.lower, problem.upper), strict=True):
            if mine is not None and isinstance(now, Tensor):
                write(mine, now)
        return True

    def __call__(
        self, controls: Tensor, states: Tensor | None, most: int, spent: Sequence[int]
    ) -> Answer:
        """See `ocp.engines.Whole`."""
        self.reals[:] = self.first_reals
        self.counts[:] = [*self.first_counts, *spent]
        self.request.goes_on = 0
        return self._answer(controls, states, most)

    def further(self, answer: Answer, most: int) -> Answer:
        """See `ocp.engines.Whole`."""
        assert answer.gaps is not None
        self.reals[:] = list(answer.reals.values())
        self.counts[:] = list(answer.counts.values())
        write(self.gaps, answer.gaps)
        self.request.goes_on = 1
        return self._answer(answer.us, answer.xs, most)

    def _answer(self, controls: Tensor, states: Tensor | None, most: int) -> Answer:
        flat, rows = self.x0.new_empty(self.size), self.x0.new_empty(most, len(ROWS))
        self.loop.steps, self.loop.rows = most, rows.data_ptr()
        request = self.request
        request.us, request.out = controls.data_ptr(), flat.data_ptr()
        request.states = 0 if states is None else states.data_ptr()
        self.engine.call("ocp_whole", request)
        steps, finished, indefinite, failed = self.facts
        xs, costates, vx, us, k, vxx, K, told = (flat.as_strided(*p) for p in self.places)
        left = (None, None) if finished else (self.gaps.clone(), self.K.clone())
        return Answer(
            bool(finished),
            xs,
            us,
            told,
            dict(zip(abi.REALS, self.reals, strict=True)),
            dict(zip(abi.COUNTS, self.counts, strict=True)),
            rows[:steps],
            *(costates, k, K, vx, vxx, int(indefinite), int(failed)),
            *left,
        )


Place = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides, offset


def places(T: int, n: int, m: int) -> tuple[int, list[Place]]:
    """How many numbers an answer has (see whole.h), and where xs, p, v_x, us, k, v_xx, K and what
    is told lie among them."""
    shapes = [*[(T + 1, n)] * 3, *[(T, m)] * 3, (T + 1, n, n), (T, m, n), (6,)]
    offset, found = 0, []
    for shape in shapes:
        found.append((shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))), offset))
        offset += math.prod(shape)
    del found[5]  # H_u, of which the largest is told
    return offset, found


def write(mine: Tensor, now: Tensor) -> None:
    """Values of a tensor of as many entries and the same dtype."""
    source = now if now.is_contiguous() else now.contiguous()
    memmove(mine.data_ptr(), source.data_ptr(), mine.numel() * mine.element_size())


def renewed(engine: Native, sources: list[Source], problem: Problem) -> bool:
    """Read the numbers of a program anew; False where it needs another program."""
    par, dat = engine.held[:2]
    try:
        if par is not None and sources:
            place = par.data_ptr()
            for source in sources:
                place += copy_into(place, source, problem, par)
        if dat is not None and engine.program.dat.sources:
            dat.copy_(engine.program.per_problem(problem))
    except Changed:
        return False
    return True


def copy_into(place: int, source: Source, problem: Problem, like: Tensor) -> int:
    """Write what a shared source is now to an address; returns how many bytes.

    Raises:
        Changed: it is of another shape or kind.
    """
    value = source.read(problem)
    if value.shape != source.shape or value.dtype != source.dtype:
        raise Changed(f"{source.name} is another tensor now.")
    if value.dtype != like.dtype or not value.is_contiguous() or value.device != like.device:
        value = value.detach().to(like.device, like.dtype).contiguous()
    size = value.numel() * like.element_size()
    memmove(place, value.data_ptr(), size)
    return size


class Own(threading.local):
    """What a thread keeps."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[int, Recipe, float, bool], Whole] = OrderedDict()


_own = Own()


def whole_for(
    problem: Problem, made: Compiled, recipe: Recipe, damping: float, second_order: bool
) -> Whole | None:
    """What solves the problem in one call, made now or earlier in this thread.

    None where its pieces have to be asked for: another program is needed, or it is too large.
    """
    if recipe.trials != made.info.trials:
        return None
    key = id(made), recipe, damping, second_order
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
