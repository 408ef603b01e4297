"""From plain PyTorch functions of one sample to a graph of scalars.

A function is run once, for real, on one sample, without vmap: vmap replaces operations by others,
whose derivatives at kinks are others too. Every operation that reaches PyTorch's dispatcher is
translated on the way; what shows a number to Python (``if x > 0``, ``.item()``) is refused there.
Functionalisation turns writes into copies, and every translated value is compared with the one
PyTorch computed.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ocp.engines.indexing import computed_picks, pick
from ocp.engines.native import sources
from ocp.engines.native.graph import Graph, TooLarge
from ocp.engines.native.ops import Ids
from ocp.engines.native.recorder import Recorder
from ocp.engines.native.values import SHARED, STAGE, STATE, Place, Untraceable, Value
from ocp.engines.native.verify import check
from ocp.problem import Problem
from ocp.trial_calls import first_sentence
from ocp.validation import trial_controls

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the engines
TORCH = os.path.dirname(os.path.abspath(torch.__file__))
UNTRACKED_READS = frozenset(("tolist", "numpy", "__array__"))
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
DETACH = frozenset(("detach", "detach_"))


# -- where in the user's code ---------------------------------------------------------------------
def is_foreign(filename: str) -> bool:
    return not filename.startswith((OURS, TORCH)) and not filename.startswith("<")


def user_line() -> tuple[str, int] | None:
    """File and line of the innermost frame that is neither PyTorch's nor the engine's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_foreign(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def raising_line(traceback: TracebackType | None) -> tuple[str, int] | None:
    found = None
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if is_foreign(filename):
            found = filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return found


def described(line: tuple[str, int] | None) -> str:
    if line is None:
        return ""
    return f"{line[0]}:{line[1]}: {linecache.getline(*line).strip()}"


# -- watching the run ----------------------------------------------------------------------------
class Watch(TorchFunctionMode):
    """Sees what the dispatcher does not: detach by the user, reads that leave PyTorch."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in UNTRACKED_READS:
            raise self.tracer.refused(name, "its result would be a constant of the program")
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.data:
            func, args, name = Tensor.detach, args[:1], "detach"  # the same, seen by the dispatcher
        if name == "__getitem__" and (picks := computed_picks(args[1])):
            picked = pick(args[0], args[1], picks)
            if picked is None:
                raise self.tracer.refused("index", "a computed integer among other arrays")
            return picked
        before, self.tracer.detaching = self.tracer.detaching, name in DETACH
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.tracer.detaching = before


class Tracer(TorchDispatchMode):
    """Turns the operations of one run into values of a recorder."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler here, which takes seconds

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.values: dict[int, Value] = {}
        self.arrays: list[Tensor] = []  # made of NumPy arrays while tracing
        self.closures: list[Value] = []  # tensors that were not made while tracing
        self.detaching = False

    def refused(self, operation: str, reason: str) -> Untraceable:
        return Untraceable(operation, reason, described(user_line()))

    def track(self, value: Value) -> Value:
        self.values[id(value.tensor)] = value
        return value

    def value(self, tensor: Tensor) -> Value:
        """Of any tensor; one never seen before belongs to the user: a run-time parameter."""
        known = self.values.get(id(tensor))
        if known is None:
            line = user_line()
            source = self.recorder.closed_over(tensor, f"a tensor used at {described(line)}")
            place = Place.whole(source)
            known = self.track(Value(tensor, SHARED, "tensor", line, place=place))
            self.closures.append(known)
        return known

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # what follows is ours, not the user's
            return self._dispatch(func, args, kwargs or {})

    def _dispatch(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        name = func._schema.name.split("::")[-1]
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self.refused(name, "random numbers differ from call to call")
        if torch.Tag.inplace_view in func.tags:  # the tensor object stays, its shape changes
            before, name = self.value(args[0]), name.removesuffix("_")
            out = func(*args, **kwargs)
            self.values[id(out)] = before
            again = getattr(getattr(torch.ops.aten, name), func._overloadname)
            self._record(name, again, args, kwargs, out)
            return out
        if func._schema.is_mutable:
            raise self.refused(name, "it writes into a tensor that was not made in the function")
        out = func(*args, **kwargs)
        if name.startswith("lift_fresh") and id(args[0]) not in self.values:
            if args[0].untyped_storage().resizable():  # else it is the memory of an array
                self.track(Value(out, 0, name, None))
                return out
            self.arrays.append(args[0])
        self._record(name, func, args, kwargs, out)
        return out

    def _record(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        detached = name == "detach" and self.detaching
        detached = detached or not torch.is_grad_enabled()
        self.recorder.record(
            self.value, self.track, name, func, (args, dict(kwargs)), out, user_line(), detached
        )


# -- running a function --------------------------------------------------------------------------
def run(recorder: Recorder, inputs: Sequence[Value], function: Callable[..., Any]) -> list[Value]:
    """Values of all tensors that ``function`` returns, a flat tuple, for the inputs' tensors.

    Raises:
        Untraceable: naming the operation and the user's line.
    """
    tracer = Tracer(recorder)
    for value in inputs:
        tracer.track(value)
    try:
        with torch.enable_grad(), Watch(tracer), tracer:
            outputs = functionalize(function)(*(value.tensor for value in inputs))
        results = [tracer.value(tensor) for tensor in outputs]
        for value in results:
            recorder.ids(value)
    except Untraceable:
        raise
    except TooLarge as error:
        raise Untraceable("function", str(error), "") from error
    except Exception as error:  # whatever the user's function may raise
        line = described(raising_line(error.__traceback__))
        raise Untraceable("function", first_sentence(error), line) from error
    check_closures(tracer, inputs, function)
    check(recorder, tracer.values.values())
    return results


class Census(TorchDispatchMode):
    """Which tensors a run uses that it did not make."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, made: Sequence[Tensor]) -> None:
        super().__init__()
        self.made = {id(t): t for t in made}
        self.used: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in self.made:
                self.used[id(leaf)] = leaf
        for leaf in torch.utils._pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.made[id(leaf)] = leaf
        return out


def check_closures(tracer: Tracer, inputs: Sequence[Value], function: Callable[..., Any]) -> None:
    """A tensor is the user's own only if a second run uses the very same one.

    Raises:
        Untraceable: one is made anew in every run, out of sight: nobody knows what from.
    """
    own = [v for v in tracer.closures if not any(v.tensor is a for a in tracer.arrays)]
    if not own:
        return
    census = Census([value.tensor for value in inputs])
    with torch.enable_grad(), census:
        functionalize(function)(*(value.tensor for value in inputs))
    for value in own:
        if census.used.get(id(value.tensor)) is not value.tensor:
            raise Untraceable(
                "function", "a tensor of unknown origin: made without PyTorch's knowledge",
                described(value.line),
            )  # fmt: skip


# -- the three functions of a problem ------------------------------------------------------------
class Sample:
    """One sample of a problem, at a general position: what its functions are traced on.

    Args:
        at: state and control, for a stage of its own; else at x0, for all stages alike.
    """

    def __init__(
        self, recorder: Recorder, problem: Problem, at: tuple[Tensor, Tensor] | None = None
    ) -> None:
        x, u = start_point(problem) if at is None else at
        self.n, self.m = x.shape[0], u.shape[0]
        self.x = recorder.leaf("x", x, STATE)
        self.u = recorder.leaf("u", u, STATE)
        if at is None:
            last = torch.full((), problem.horizon - 1, dtype=torch.int64, device=x.device)
            self.t = recorder.leaf("t", last, STAGE)
        self.data: dict[str, Value] = {}
        for name, tensor in problem.parameters.items():
            place = Place.whole(recorder.named.setdefault(name, sources.parameter(name, tensor)))
            self.data[name] = Value(tensor, SHARED, name, None, place=place)
        for name, tensor in problem.per_problem.items():
            place = Place.whole(recorder.named.setdefault(name, sources.per_problem(name, tensor)))
            self.data[name] = Value(tensor[0], STATE, name, None, place=place)

    def trace(
        self, recorder: Recorder, arguments: Sequence[Value], function: Callable[..., Tensor]
    ) -> Ids:
        """Node ids of ``function(*arguments, p)``, flat."""
        names = list(self.data)
        own = [replace(v, tensor=v.tensor.view_as(v.tensor)) for v in self.data.values()]

        def whole(*tensors: Tensor) -> tuple[Tensor]:
            p = dict(zip(names, tensors[len(arguments) :], strict=True))
            return (function(*tensors[: len(arguments)], p),)

        (result,) = run(recorder, [*arguments, *own], whole)
        return recorder.ids(result).reshape(-1)


def start_point(problem: Problem) -> tuple[Tensor, Tensor]:
    """x (n,) and u (m,) near the start of the first sample, in no special position."""
    x0 = problem.x0.reshape(-1, problem.x0.shape[-1])[0]
    lower, upper = (
        None if b is None else [torch.as_tensor(b[0]).reshape(1, -1)]
        for b in (problem.lower, problem.upper)
    )
    u = trial_controls(problem.control_dims[:1], lower, upper, x0)[0]
    return moved(x0, 0.1), moved(u, 0.2)


def moved(v: Tensor, size: float) -> Tensor:
    """v and a little, unequal in every component: at special points mistakes cancel."""
    k = torch.arange(1, v.shape[0] + 1, device=v.device)
    return v + size * torch.sin(1.7 * k).to(v.dtype) * (1 + v.abs())


def trace_problem(problem: Problem, recorder: Recorder) -> dict[str, Ids]:
    """Node ids of f (n,), l (1,) and phi (1,), the leaves being x, u, t and run-time numbers.

    Raises:
        Untraceable: naming the operation and the user's line.
    """
    sample = Sample(recorder, problem)
    both = (sample.x, sample.u, sample.t)
    return {
        "f": sample.trace(recorder, both, problem.f),
        "l": sample.trace(recorder, both, problem.l),
        "phi": sample.trace(recorder, (sample.x,), problem.phi),
    }


def trace_numbers(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], limit: int
) -> tuple[Graph, list[Ids]]:
    """A function of plain tensors (no vmap): leaves ``("in", i)`` number the entries in order.

    Raises:
        Untraceable: naming the operation and the line.
    """
    floating = next(a.dtype for a in arguments if a.dtype.is_floating_point)
    recorder = Recorder(floating, 1, limit, described)
    inputs, start = [], 0
    for tensor in arguments:
        inputs.append(recorder.leaf("in", tensor, STATE, start))
        start += tensor.numel()
    results = run(recorder, inputs, lambda *tensors: tuple(function(*tensors)))
    return recorder.graph, [recorder.ids(r).reshape(-1) for r in results]
