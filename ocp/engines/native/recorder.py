"""Records the operations of a run and translates them into nodes of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp.engines.native import sources
from ocp.engines.native.graph import Graph, Leaf
from ocp.engines.native.lookup import by_selection, by_stage
from ocp.engines.native.ops import (
    CONSTANT,
    IGNORED,
    MOVES,
    ZERO_FILL,
    Ids,
    Symbol,
    Unsupported,
    each,
)
from ocp.engines.native.products import by_weights
from ocp.engines.native.sources import Block, Source
from ocp.engines.native.surroundings import Surroundings
from ocp.engines.native.translations import HANDLERS
from ocp.engines.native.values import (
    SHARED,
    STAGE,
    STATE,
    Place,
    Untraceable,
    Value,
    at_stages,
    derived,
    leaves_of,
    mapped,
)
from ocp.problem import Problem

SMALL = 64  # entries up to which what depends on parameters alone is computed in the program
LARGE = 20_000  # entries of a tensor that the program may read one by one
FACTORISE = frozenset(("_linalg_solve_ex", "linalg_inv_ex", "linalg_cholesky_ex", "_linalg_det"))
INEXACT = frozenset(("remainder", "fmod", "floor_divide"))  # next to their jumps
UNREAD = np.empty(0, dtype=np.int64)  # in place of the nodes of a matrix that a loop reads
NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)


class Recorder:
    """All values of a program, its graph, and the blocks of run-time numbers it reads.

    Args:
        dtype: of the program's arithmetic.
        stages: number T of stages: t is 0 to T - 1.
        problem: whose run-time numbers are read where translations are checked.
        limit: of graph nodes, used or not.
        describe: of a line in the user's code.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        stages: int,
        limit: int,
        describe: Callable[[tuple[str, int] | None], str],
        problem: Problem | None = None,
    ) -> None:
        self.problem = problem
        functions = {} if problem is None else {"dynamics": problem.dynamics, "cost": problem.cost}
        self.surroundings = Surroundings(functions)
        self.dtype, self.stages, self.describe = dtype, stages, describe
        self.products = True  # matrices of parameters stay where they are, see the module products
        self.graph = Graph(np.float64 if dtype == torch.float64 else np.float32, limit)
        self.shared, self.data = Block(), Block()
        self.count = 0
        self.stage_leaf: Value | None = None
        self.named: dict[str, Source] = {}  # of the problem's data, the same for every sample
        self._closures: dict[int, tuple[Tensor, Source]] = {}
        self.arguments: dict[Leaf, float] = {}  # leaves of arguments at the trace point

    def leaf(self, kind: str, tensor: Tensor, depends: int, start: int = 0) -> Value:
        """An argument: its entries are leaves ``(kind, i)``, i from ``start``; t has no number."""
        g = self.graph
        names = [(kind,) if kind == "t" else (kind, start + i) for i in range(tensor.numel())]
        ids = [g.leaf(*name) for name in names]
        numbers = tensor.detach().cpu().reshape(-1).tolist()
        self.arguments.update(zip(names, numbers, strict=True))
        if tensor.dtype == torch.bool:
            ids = [g.as_mask(a) for a in ids]
        array = np.array(ids, dtype=np.int64).reshape(tuple(tensor.shape))
        value = Value(tensor, depends, kind, None, ids=array)
        if kind == "t":
            self.stage_leaf = value
        return value

    def closed_over(self, tensor: Tensor, name: str) -> Source:
        """The source of a tensor of the user's own, one however often it is met."""
        if id(tensor) not in self._closures:
            self._closures[id(tensor)] = tensor, sources.visible(name, tensor, self.surroundings)
        return self._closures[id(tensor)][1]

    def _t(self) -> Value:
        assert self.stage_leaf is not None
        return self.stage_leaf

    def refuse(self, value: Value, reason: str) -> Untraceable:
        return Untraceable(value.operation, reason, self.describe(value.line))

    # -- recording -----------------------------------------------------------------------------
    def record(
        self,
        value_of: Callable[[Tensor], Value],
        track: Callable[[Value], Value],
        name: str,
        func: Any,
        call: tuple[Any, Any],
        out: Any,
        line: tuple[str, int] | None,
        detached: bool,
    ) -> None:
        """One operation that PyTorch has just run."""
        args, kwargs = (mapped(value_of, part, Tensor) for part in call)
        inputs = leaves_of((args, kwargs), Value)
        depends = 0
        for value in inputs:
            depends |= value.depends
        depends = 0 if name in CONSTANT else depends
        single = isinstance(out, Tensor)
        tensors = [out] if single else list(out) if isinstance(out, list | tuple) else []
        if depends and not tensors and out is not None:
            line_text = self.describe(line)
            raise Untraceable(name, "Python would see a number that may change later", line_text)
        values: list[Value | None] = []
        for k, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                values.append(None)
                continue
            recipe = (func, args, kwargs, None if single else k)
            value = Value(tensor, depends, name, line, recipe=recipe, number=self.count)
            self.count += 1
            values.append(track(value))
        if depends and values:
            self._translate(name, func, args, kwargs, values, single)
            for value in filter(None, values):
                if detached and value.ids is not None and value.tensor.is_floating_point():
                    value.ids = each(lambda a: self.graph.apply("stop", a), value.ids)

    def _translate(
        self, name: str, func: Any, args: Any, kwargs: Any, values: list[Any], single: bool
    ) -> None:
        """Gives the values nodes or a place, or says why not."""
        try:
            if name in MOVES:
                self._move(name, func, args, kwargs, values, single)
            else:
                self._compute(name, args, kwargs, values, single)
        except Untraceable as failure:
            error = failure  # the first of a chain: the others only need its result
        except Unsupported as failure:
            error = self.refuse(values[0], str(failure))
        else:
            return
        for value in filter(None, values):
            value.failure, value.ids, value.place = error.with_traceback(None), None, None

    def _compute(self, name: str, args: Any, kwargs: Any, values: list[Any], single: bool) -> None:
        first = values[0]
        handler = HANDLERS.get(name)
        if handler is None:
            raise self.refuse(first, "this operation has no translation")
        constant_later = first.depends == SHARED and (
            first.tensor.numel() > SMALL or name in FACTORISE
        )
        if constant_later or (
            name in INEXACT and not first.depends & STATE and first.tensor.is_floating_point()
        ):
            raise self.refuse(first, "computed once, not at every stage")
        kept = {k: v for k, v in kwargs.items() if k not in IGNORED}
        if name == "_to_copy":
            kept["result"] = first.tensor.dtype
        try:
            inspect.signature(handler).bind(self.graph, *args, **kept)
        except TypeError as error:
            raise self.refuse(first, f"arguments without a translation: {error}") from error
        self._check_kind(first, name, args)
        handler, matrix = by_weights(self, name, args) or (handler, None)

        def symbol(v: Value) -> Symbol:
            return Symbol(UNREAD if v is matrix else self.ids(v), v.tensor.dtype)

        symbols, named = (mapped(symbol, part, Value) for part in (args, kept))
        result = handler(self.graph, *symbols, **named)
        for value, ids in zip(values, [result] if single else result, strict=True):
            if value is not None and ids is not None:
                self._check_kind(value, name, args)
                self._assign(value, ids)
                value.translated = True
            elif value is not None:
                value.failure = self.refuse(value, "this result has no translation")

    def _check_kind(self, value: Value, name: str, args: Any) -> None:
        """All arithmetic is in the program's dtype; what PyTorch does in another is refused."""
        dtype = value.tensor.dtype
        inputs = leaves_of(args, Value)
        if dtype.is_complex:
            raise self.refuse(value, "complex numbers")
        if dtype.is_floating_point and dtype != self.dtype:
            ours, theirs = (str(d).removeprefix("torch.") for d in (self.dtype, dtype))
            raise self.refuse(
                value,
                f"{theirs} arithmetic in a {ours} problem: convert first, as in t.to(x.dtype)",
            )
        wide = self.dtype == torch.float32 and any(v.tensor.dtype == torch.float64 for v in inputs)
        if wide and not dtype.is_floating_point:
            raise self.refuse(value, "float64 in a float32 problem")
        if dtype in NARROW and not (name == "_to_copy" and inputs[0].tensor.dtype == torch.bool):
            raise self.refuse(value, f"arithmetic in {dtype}")

    def _assign(self, value: Value, ids: Ids) -> None:
        array = np.array(ids, dtype=np.int64, order="C")  # ascontiguousarray adds axes
        if array.shape != value.shape:
            raise self.refuse(value, f"shape {array.shape} for {value.shape}")
        mask = value.tensor.dtype == torch.bool
        if any(self.graph.is_mask(a) != mask for a in array.reshape(-1).tolist()):
            raise self.refuse(value, "numbers and bools are mixed")
        value.ids = array

    # -- data movement -------------------------------------------------------------------------
    def _move(
        self, name: str, func: Any, args: Any, kwargs: Any, values: list[Any], single: bool
    ) -> None:
        """PyTorch moves the ids as it moves the numbers."""
        where = MOVES[name]
        indices = leaves_of([args[k] for k in where if k < len(args)], Value)
        data = [v for v in leaves_of((args, kwargs), Value) if not any(v is i for i in indices)]
        out = values[0]
        if any(isinstance(a, bool | int | float) for a in args[3:]) and name == "scatter":
            raise self.refuse(out, "a number scattered; scatter a tensor")
        if any(i.depends for i in indices):
            self._look_up(name, func, args, kwargs, out, data, indices)
            return
        fixed = lambda v: v.tensor.cpu() if any(v is i for i in indices) else None
        if len(data) == 1 and data[0].place is not None and name not in ZERO_FILL:
            place = data[0].place
            moved = []
            for array in (place.offsets, place.strides):
                known = lambda v, a=array: torch.from_numpy(a) if fixed(v) is None else fixed(v)
                moved.append(func(*mapped(known, args, Value), **mapped(known, kwargs, Value)))
            for k, value in enumerate(values):
                offsets, strides = ((m if single else m[k]).numpy() for m in moved)
                value.place = Place(place.source, offsets, strides)
            return
        if name in ZERO_FILL and out.tensor.dtype == torch.bool:
            raise self.refuse(out, "bools moved into zeros")
        if kwargs.get("accumulate") or (name == "index_put" and len(args) > 3 and args[3]):
            raise self.refuse(out, "an accumulating write")

        def ids_or_index(v: Value) -> Tensor:
            known = fixed(v)
            return self._as_tensor(v, out) if known is None else known

        result = func(*mapped(ids_or_index, args, Value), **mapped(ids_or_index, kwargs, Value))
        for value, ids in zip(values, [result] if single else result, strict=True):
            self._assign(value, ids.numpy())

    def _as_tensor(self, value: Value, out: Value) -> Tensor:
        """Ids in a tensor, of the kind (numbers or masks) that the result is."""
        ids = self.ids(value)
        if value.tensor.dtype == torch.bool and out.tensor.dtype != torch.bool:
            ids = each(self.graph.as_number, ids)
        return torch.from_numpy(ids)

    def _look_up(
        self, name: str, func: Any, args: Any, kwargs: Any, out: Value, data: Any, indices: Any
    ) -> None:
        """By an index that is not constant."""
        if len(data) != 1:
            raise self.refuse(out, "a write at a place that is not constant")
        if out.depends == SHARED:
            raise self.refuse(out, "computed once, not at every stage")
        subject = data[0]
        by_t = not any(i.depends & ~STAGE for i in indices)
        place = self.place(subject) if by_t else None

        def call(array: np.ndarray, index: Callable[[Value], Tensor]) -> np.ndarray:
            known = lambda v: torch.from_numpy(array) if v is subject else index(v)
            result = func(*mapped(known, args, Value), **mapped(known, kwargs, Value))
            return result.numpy()

        if place is not None:

            def at(v: Value, t: int) -> Tensor:
                found = at_stages(v, self._t(), self.stages)[t] if v.depends else v.tensor
                return found.cpu()

            try:
                entries = [
                    call(place.offsets + place.strides * t, partial(at, t=t))
                    for t in range(self.stages)
                ]
            except (IndexError, RuntimeError) as error:
                raise self.refuse(out, f"a stage looks up what is not there: {error}") from error
            out.place = Place(*by_stage(place.source, np.stack(entries)))
            return
        dynamic = [i for i in indices if i.depends]
        if len(dynamic) != 1:
            raise self.refuse(out, "more than one index that is not constant")
        subject_ids, index_ids = self.ids(subject), self.ids(dynamic[0])
        positions = np.arange(subject_ids.size).reshape(subject_ids.shape)

        def picked(r: Tensor) -> np.ndarray:
            return call(positions, lambda v: r if v is dynamic[0] else v.tensor.cpu())

        self._assign(out, by_selection(self.graph, subject_ids, index_ids, picked))

    # -- what has no nodes yet -----------------------------------------------------------------
    def place(self, value: Value) -> Place | None:
        """Where the value is read at run time; None if it is computed from the state."""
        if value.place is None and value.depends == SHARED:
            value.place = Place.whole(
                derived(value, f"{value.operation} at {self.describe(value.line)}")
            )
        elif value.place is None and value.depends == 0:
            value.place = Place.whole(sources.fixed("a constant", value.tensor))
        elif value.place is None and value.depends == STAGE:
            table = torch.stack(at_stages(value, self._t(), self.stages))
            whole = Place.whole(sources.fixed("a table over the stages", table))
            row = whole.offsets[0]
            value.place = Place(whole.source, row, np.full_like(row, value.tensor.numel()))
        return value.place

    def ids(self, value: Value) -> Ids:
        """Nodes of the value.

        Raises:
            Untraceable: it has none.
        """
        if value.ids is not None:
            return value.ids
        if value.place is None and value.depends == 0:
            self._assign(value, self._constants(value))
            assert value.ids is not None
            return value.ids
        place = self.place(value)
        if place is None:
            raise value.failure or self.refuse(value, "nothing is known of it")
        if value.tensor.numel() > LARGE:
            raise self.refuse(value, f"{value.tensor.numel()} numbers read one by one")
        if place.strides.any():
            place.source.table = True
        block = self.data if place.source.per_problem else self.shared
        k = block.number_of(place.source)
        kind = "dat" if place.source.per_problem else "par"
        g = self.graph
        read = lambda offset, stride: g.leaf(kind, k, int(offset), int(stride))
        ids = each(read, place.offsets, place.strides)
        mask = value.tensor.dtype == torch.bool
        self._assign(value, each(g.as_mask, ids) if mask else ids)
        assert value.ids is not None
        return value.ids

    def _constants(self, value: Value) -> Ids:
        tensor = value.tensor.detach().cpu()
        if tensor.dtype.is_complex:
            raise self.refuse(value, "complex numbers")
        array = tensor.numpy()
        if tensor.dtype == torch.bool:
            return np.asarray(np.where(array, self.graph.true, self.graph.false), dtype=np.int64)
        exact = not tensor.dtype.is_floating_point
        if (
            exact
            and np.abs(array.astype(np.float64)).max(initial=0) > 1 / torch.finfo(self.dtype).eps
        ):
            raise self.refuse(value, "an integer beyond what the program's numbers hold")
        return each(lambda a: self.graph.number(float(a)), array)
