"""Stages of a network: activation = state, a layer's parameters = control.

The state after a stage is everything later stages still read, laid end to end: the layer's output
and, where there are skips, the activations that wait for their use (an augmented state). Stages act
on a whole batch, (B, n_in) -> (B, n_out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from ocp.engines import Engine
from ocp.problem import Problem
from ocp_nn.formulas import Context, Statistics
from ocp_nn.layers import KEY, KEYS, update_running
from ocp_nn.operations import Operation, realise

Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Slot:
    """Where one value lies in the state of a sample: columns ``start`` to ``stop``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    dtype: torch.dtype  # integers and bools pass as floats, exactly

    @property
    def size(self) -> int:
        return self.stop - self.start

    @cached_property
    def flat(self) -> bool:
        """A vector of floats, to be read as it lies."""
        return len(self.shape) == 1 and self.dtype.is_floating_point

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    def read(self, X: Tensor) -> Tensor:
        """(B, n) -> ``(B, *shape)``."""
        value = X if X.shape[1] == self.size else X[:, self.start : self.stop]
        if self.flat:
            return value
        value = value.reshape(-1, *self.shape)
        if self.dtype.is_floating_point:
            return value
        return value > 0.5 if self.dtype == torch.bool else value.round().to(self.dtype)


@dataclass(frozen=True)
class Piece:
    """One parameter within the control: entries ``start`` to ``stop``, row by row."""

    name: str  # in the model
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class LinearLayout:
    """A stage that is ``y = W x + b`` from one slot to one slot; all other slots pass unchanged.

    The control is W (outputs, inputs) row by row, then b if there is one.
    """

    inputs: int
    outputs: int
    has_bias: bool
    in_columns: slice  # of X
    out_columns: slice  # of X'


@dataclass(frozen=True, eq=False, repr=False)
class Stage:
    """One layer with parameters, or all operations without parameters between two such.

    Attributes:
        name: of the module with parameters, or of the first operation.
        modules: paths of the modules it calls.
        layers: their classes, and names of functions, in order.
        in_slots, out_slots: what the states before and after it hold.
        operations: in order.
        shapes: sizes the operations read.
        parameters: in the order in which they make up the control.
        couples_samples: samples influence one another (batch norm on the batch's statistics).
        kernel: "linear" (`linear` tells how), "rows" (any other with parameters) or "none".
        linear: of a "linear" stage.
        elementwise: each entry of the output is a function of the same entry of the input.
        statistics: of batch norms that are frozen, see `Network.freeze`.
    """

    name: str
    modules: tuple[str, ...]
    layers: tuple[str, ...]
    in_slots: tuple[Slot, ...]
    out_slots: tuple[Slot, ...]
    operations: tuple[Operation, ...]
    shapes: Mapping[str, Any]
    parameters: tuple[Piece, ...]
    couples_samples: bool
    kernel: str
    linear: LinearLayout | None = None
    elementwise: bool = False
    statistics: dict[str, Statistics] = field(default_factory=dict)

    def __repr__(self) -> str:
        what = f"{self.name}: {', '.join(self.layers)}"
        return f"Stage({what}; n {self.n_in} -> {self.n_out}, m {self.m}, {self.kernel})"

    @cached_property
    def n_in(self) -> int:
        return self.in_slots[-1].stop

    @cached_property
    def n_out(self) -> int:
        return self.out_slots[-1].stop

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Of one sample; (n_in,) where the state holds several values."""
        return self.in_slots[0].shape if len(self.in_slots) == 1 else (self.n_in,)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.out_slots[0].shape if len(self.out_slots) == 1 else (self.n_out,)

    @cached_property
    def m(self) -> int:
        return self.parameters[-1].stop if self.parameters else 0

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    @property
    def carried(self) -> int:
        """Numbers of the state that pass through unchanged."""
        before = {s.name for s in self.in_slots}
        return sum(s.size for s in self.out_slots if s.name in before)

    @cached_property
    def plain_linear(self) -> bool:
        """A linear stage and nothing else: one slot in, one out."""
        return self.linear is not None and len(self.in_slots) == len(self.out_slots) == 1

    def __call__(self, X: Tensor, u: Tensor) -> Tensor:
        """X (B, n_in), u (m,) -> (B, n_out)."""
        if self.plain_linear:
            assert self.linear is not None
            outputs, inputs = self.linear.outputs, self.linear.inputs
            W = u[: outputs * inputs].view(outputs, inputs)
            return torch.nn.functional.linear(
                X, W, u[outputs * inputs :] if self.linear.has_bias else None
            )
        return self.run(X, self.context(u))

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Parameters by name: views of the control."""
        return {p.name: u[p.start : p.stop].view(p.shape) for p in self.parameters}

    def context(self, u: Tensor) -> Context:
        return Context(self.values(u), self.statistics)

    def argument(self, operation: Operation, X: Tensor, u: Tensor) -> Tensor:
        """The first argument (B, ...) that one of its operations gets."""
        context = self.context(u)
        env = self.start(X, context)
        for op in self.operations:
            if op is operation:
                break
            env[op.name] = op(context, env)
        value: Tensor = env[operation.args[0].name]
        return value

    def start(self, X: Tensor, context: Context) -> dict[str, Any]:
        """Values by name before the first operation."""
        env: dict[str, Any] = {s.name: s.read(X) for s in self.in_slots}
        context.keys = env.get(KEY)
        if self.shapes:
            env |= {name: realise(value, X.shape[0]) for name, value in self.shapes.items()}
        return env

    def run(self, X: Tensor, context: Context) -> Tensor:
        B, env = X.shape[0], self.start(X, context)
        for op in self.operations:
            env[op.name] = op(context, env)
        if len(self.out_slots) == 1 and self.out_slots[0].flat:
            return env[self.out_slots[0].name]
        parts = [env[s.name].reshape(B, -1).to(X.dtype) for s in self.out_slots]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """The `dynamics` of a compiled problem.

    Attributes:
        stages: one for each t.
        model: whose parameters `pack` and `unpack` copy.
        graph: networkx graph of operations, attributes ``stage``, ``label`` and ``shape``.
        out_shape: of one sample's output.
        whole_batch: some stage couples samples; a state of the problem is then that of all samples,
            end to end, and the problem has one row (1, B n).
    """

    stages: tuple[Stage, ...]
    model: nn.Module
    graph: nx.DiGraph
    out_shape: tuple[int, ...]
    whole_batch: bool

    def __repr__(self) -> str:
        m = sum(self.control_dims)
        return f"Network({type(self.model).__name__}: {len(self.stages)} stages, {m} parameters)"

    def initial_controls(self) -> list[Tensor]:
        """Where `ocp.solve` starts when it is given nothing: the model's weights."""
        return self.pack()

    @property
    def state_dims(self) -> tuple[int, ...]:
        """Of one sample, T + 1."""
        return (self.stages[0].n_in, *(s.n_out for s in self.stages))

    @property
    def control_dims(self) -> tuple[int, ...]:
        return tuple(s.m for s in self.stages)

    @property
    def input_slots(self) -> tuple[Slot, ...]:
        """Of the model's inputs, without the dropout key."""
        return tuple(s for s in self.stages[0].in_slots if s.name != KEY)

    @property
    def drops(self) -> bool:
        """Whether states carry a dropout key."""
        return self.stages[0].in_slots[-1].name == KEY

    def declared_sizes(self, n_0: int) -> tuple[int, ...]:
        """State sizes of a problem whose x0 has n_0 columns, for `ocp.Problem`.

        Raises:
            ValueError: n_0 does not fit the network's inputs.
        """
        n = self.state_dims
        if n_0 % n[0] or (n_0 != n[0] and not self.whole_batch):
            raise ValueError(f"x0 has {n_0} columns; the network's inputs have {n[0]} a sample.")
        return tuple(n_0 // n[0] * size for size in n)

    def __call__(self, x: Tensor, u: Tensor, t: int) -> Tensor:
        """One row of the problem: a sample (n,), or where samples are coupled all of them."""
        if self.whole_batch:
            return self.stages[t](x.reshape(-1, self.stages[t].n_in), u).reshape(-1)
        return self.stages[t](x[None], u)[0]

    def batch(self, X: Tensor, u: Tensor, t: int) -> Tensor:
        """Stage t of all samples: (B, n), (m,) -> (B, n')."""
        return self.stages[t](X, u)

    def forward(self, X: Tensor, us: Sequence[Tensor]) -> list[Tensor]:
        """States (B, n) of all samples, T + 1 of them."""
        Xs = [X]
        for stage, u in zip(self.stages, us, strict=True):
            Xs.append(stage(Xs[-1], u))
        return Xs

    def make_engine(self, problem: Problem, name: str) -> Engine:
        """The engine of that name that only networks have, for `ocp.engines.make`.

        Raises:
            ValueError: there is none.
        """
        if name != "function-space":
            raise ValueError(
                f"engine must be 'auto', 'eager', 'native' or 'function-space', got {name!r}."
            )
        from ocp_nn.function_space import FunctionSpace

        return FunctionSpace(problem)  # type: ignore[return-value]

    def rows(self, x0: Tensor) -> Tensor:
        """x0 of a problem -> one row a sample (B, n_0)."""
        return x0.reshape(-1, self.stages[0].n_in)

    # -- parameters ------------------------------------------------------------------------------
    def pack(self, model: nn.Module | None = None) -> list[Tensor]:
        """Controls (m,) that are the parameters of ``model``: copies."""
        values = self.values(model)
        like = next(iter(values.values()))
        return [
            torch.cat([values[p.name].detach().reshape(-1) for p in s.parameters])
            if s.parameters
            else like.detach().new_zeros(0)
            for s in self.stages
        ]

    def values(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """The trainable parameters of ``model`` that stages have, by name."""
        found = dict((model or self.model).named_parameters())
        return {p.name: found[p.name] for s in self.stages for p in s.parameters}

    @torch.no_grad()
    def unpack(self, us: Sequence[Tensor], model: nn.Module | None = None) -> None:
        """Write controls (m,) into the parameters of ``model``.

        Raises:
            ValueError: a control of the wrong size.
        """
        values = dict((model or self.model).named_parameters())
        sizes = [tuple(u.shape) for u in us]
        if sizes != [(m,) for m in self.control_dims]:
            raise ValueError(f"us need sizes {list(self.control_dims)}, got shapes {sizes}.")
        for stage, u in zip(self.stages, us, strict=True):
            for name, value in stage.values(u).items():
                values[name].copy_(value)

    # -- batch norm and dropout --------------------------------------------------------------------
    @torch.no_grad()
    def measure(
        self, X: Tensor, us: Sequence[Tensor], total: Total | None = None
    ) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Mean, biased variance and count of every batch norm that uses its batch."""
        record: dict[str, tuple[Tensor, Tensor, int]] = {}
        for stage, u in zip(self.stages, us, strict=True):
            X = stage.run(X, Context(stage.values(u), record=record, total=total))
        return record

    def freeze(self, X: Tensor, us: Sequence[Tensor], total: Total | None = None) -> None:
        """Batch norms keep the statistics of this batch until the next call.

        ``total`` sums over processes, each of which has a part X of the batch. For
        ``batch_norm="frozen"``; a network whose samples are coupled, or without batch norm, is
        left alone.
        """
        if not any(op.couples for s in self.stages for op in s.operations) or self.whole_batch:
            return
        record = self.measure(X, us, total)
        for stage in self.stages:
            for op in stage.operations:
                if op.name in record:
                    stage.statistics[op.name] = record[op.name][:2]

    @torch.no_grad()
    def update_running_statistics(
        self, X: Tensor, us: Sequence[Tensor], total: Total | None = None
    ) -> None:
        """What one forward pass of the model in training mode does to its running statistics."""
        norms = [op for s in self.stages for op in s.operations if op.couples]
        if not norms:
            return
        record = self.measure(X, us, total)
        for op in norms:
            update_running(op.module, *record[op.name])  # type: ignore[arg-type]

    def states(self, inputs: Sequence[Tensor], seed: int | None = None) -> Tensor:
        """Inputs (B, ...) as states (B, n_0); with dropout, keys drawn by ``seed`` are added."""
        dtype = next(self.model.parameters()).dtype
        parts = [v.reshape(v.shape[0], -1) for v in inputs]
        if len(parts) == 1 and not self.drops:
            return parts[0].to(dtype)
        if self.drops:
            generator = torch.Generator().manual_seed(0 if seed is None else seed)
            keys = torch.randint(KEYS, (parts[0].shape[0], 1), generator=generator)
            parts.append(keys.to(parts[0].device))
        return torch.cat([p.to(dtype) for p in parts], dim=1)
