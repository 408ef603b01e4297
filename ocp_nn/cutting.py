"""From a traced graph to stages: where to cut, and what the state carries over each cut.

Every operation with parameters is a stage of its own; operations without are taken together
with those before them that have none either (activation, pooling, addition of a skip). A cut may
only be where each value that is still needed is one tensor with a sample in each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from ocp_nn.formulas import Context
from ocp_nn.layers import KEY, Options, StageError, refuse
from ocp_nn.operations import Operation, operations
from ocp_nn.stages import LinearLayout, Network, Piece, Slot, Stage
from ocp_nn.tracing import Kinds, classify, out_of_place, traced


@dataclass(frozen=True)
class Traced:
    """A model's graph with the value of every node, on batches of 3 samples."""

    model: nn.Module
    graph: nx.DiGraph  # of the nodes that the output needs, in order
    kinds: Kinds
    ops: dict[fx.Node, Operation]
    output: fx.Node
    options: Options

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Data that an operation reads."""
        data = set(self.kinds.data)
        return [n for n in node.all_input_nodes if n in data]

    def fixed(self, node: fx.Node) -> list[fx.Node]:
        """Operations on constants that an operation needs, in order."""
        needed: set[fx.Node] = set()
        todo = [node]
        while todo:
            for source in todo.pop().all_input_nodes:
                if source in self.kinds.constants and source not in needed:
                    needed.add(source)
                    todo.append(source)
        return [n for n in self.graph if n in needed]

    def params(self, node: fx.Node) -> tuple[str, ...]:
        """Trainable parameters an operation reads, itself or through constants."""
        own = [p for n in (*self.fixed(node), node) for p in self.ops[n].params]
        return tuple(dict.fromkeys(own))

    def rows(self, node: fx.Node) -> bool:
        """Whether its value is one tensor with a sample in each row."""
        value = self.kinds.values[node]
        return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 3

    def reshapes(self, node: fx.Node) -> bool:
        """Whether, flattened, its value is its input: judged by kind and by value."""
        sources = self.sources(node)
        if not self.ops[node].reshape or len(sources) != 1 or self.params(node):
            return False
        before, after = (self.kinds.values[n] for n in (sources[0], node))
        if not self.rows(sources[0]) or not self.rows(node) or before.numel() != after.numel():
            return False
        return torch.equal(before.flatten(1), after.flatten(1))


@torch.no_grad()
def trace(
    model: nn.Module, inputs: Sequence[Tensor], options: Options, leaves: Sequence[str]
) -> Traced:
    """Trace, and evaluate every node on 2 and on 3 samples.

    Raises:
        StageError: something in the model cannot be part of a stage.
    """
    before = set(vars(model))
    graph = traced(model, len(inputs), leaves)
    attributes = {name: vars(model).pop(name) for name in set(vars(model)) - before}
    in_place = out_of_place(graph, model)
    last = next(n for n in graph.nodes if n.op == "output")
    output = last.args[0]
    if not isinstance(output, fx.Node):
        raise StageError(
            f"the model returns a {type(output).__name__}; a terminal cost takes one tensor. Wrap "
            "the model in a module that returns the one to train on."
        )
    needed = graph_of(graph, output)
    ops = operations(needed, model, options, in_place, attributes)
    two, three = (evaluate(needed, ops, model, inputs, B) for B in (2, 3))
    return Traced(model, needed, classify(needed, two, three), ops, output, options)


def graph_of(graph: fx.Graph, output: fx.Node) -> nx.DiGraph:
    """The operations that the output depends on; nodes in the order of execution."""
    whole = nx.DiGraph()
    whole.add_nodes_from(graph.nodes)
    whole.add_edges_from((a, b) for b in graph.nodes for a in b.all_input_nodes)
    needed = nx.ancestors(whole, output) | {output}
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    keep = nx.DiGraph()
    keep.add_nodes_from(n for n in graph.nodes if n in needed or n in inputs)
    keep.add_edges_from((a, b) for a, b in whole.edges if a in keep and b in keep)
    return keep


def evaluate(
    graph: nx.DiGraph,
    ops: dict[fx.Node, Operation],
    model: nn.Module,
    inputs: Sequence[Tensor],
    B: int,
) -> dict[fx.Node, Any]:
    """Value of every node on B samples: rows of the inputs, repeated where there are too few."""
    params = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    context = Context(params, keys=torch.arange(B, device=inputs[0].device))
    rows = iter(v[torch.arange(B) % v.shape[0]] for v in inputs)
    env: dict[str, Any] = {}
    values = {}
    for node in graph:
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            values[node] = next(rows, default)
        else:
            try:
                values[node] = ops[node](context, env)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise StageError(
                    f"{ops[node].path or node.name} ({ops[node].label}) fails on a batch of {B} "
                    f"samples: {error}"
                ) from error
        env[node.name] = values[node]
    return values


# -- where to cut --------------------------------------------------------------------------------
def segments(net: Traced) -> list[list[fx.Node]]:
    """Operations on data, cut into stages.

    Raises:
        StageError: nothing to train, or an output without a row for each sample.
    """
    parts: list[list[fx.Node]] = []
    trained: list[bool] = []
    for node in net.kinds.data:
        if node.op == "placeholder":
            continue
        own = bool(net.params(node))
        after_last = bool(parts) and any(s in parts[-1] for s in net.sources(node))
        loose = after_last and not all(net.rows(s) for s in net.sources(node) if s in parts[-1])
        follows = after_last and len(net.sources(node)) == 1 and net.reshapes(node)
        leading = bool(parts) and not trained[-1] and all(net.reshapes(n) for n in parts[-1])
        if parts and (leading if own else not trained[-1] or loose or follows):
            parts[-1].append(node)
            trained[-1] |= own
        else:
            parts.append([node])
            trained.append(own)
    if not any(trained):
        raise StageError(
            f"{type(net.model).__name__} has no parameters with requires_grad=True that its "
            "output depends on: there is nothing to train."
        )
    if not net.rows(net.output):
        raise StageError("the model's output has no row for each sample.")
    return together(net, merge_uncuttable(net, parts))


def merge_uncuttable(net: Traced, parts: list[list[fx.Node]]) -> list[list[fx.Node]]:
    """Join what would need a state that is no tensor, or none with a sample in each row."""
    i = 0
    while i < len(parts) - 1:
        if all(net.rows(n) for n in waiting(net, parts, i)):
            i += 1
        else:
            parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


def together(net: Traced, parts: list[list[fx.Node]]) -> list[list[fx.Node]]:
    """Join all stages from the first to the last that reads the same parameter (tied weights)."""
    users: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        for node in part:
            for name in net.params(node):
                users.setdefault(name, []).append(i)
    links = nx.Graph()
    links.add_nodes_from(range(len(parts)))
    for places in users.values():
        links.add_edges_from((i, i + 1) for i in range(min(places), max(places)))
    groups = nx.connected_components(links)
    return [[node for i in sorted(group) for node in parts[i]] for group in groups]


def waiting(net: Traced, parts: list[list[fx.Node]], i: int) -> list[fx.Node]:
    """Values that exist after stage i (-1: the inputs) and are read later, in order."""
    later = {s for part in parts[i + 1 :] for node in part for s in net.sources(node)}
    later.add(net.output)
    known = {n for part in parts[: i + 1] for n in part}
    return [n for n in net.kinds.data if n in later and (n in known or n.op == "placeholder")]


# -- stages --------------------------------------------------------------------------------------
def network(
    model: nn.Module, inputs: Sequence[Tensor], options: Options, leaves: Sequence[str] = ()
) -> Network:
    """The stages of a model.

    Raises:
        StageError: something in it cannot be a stage; says what, why and the way out.
    """
    net = trace(model, inputs, options, leaves)
    parts = segments(net)
    keyed = [i for i, part in enumerate(parts) if any(net.ops[n].keyed for n in part)]
    boundaries = [net_inputs(net)] + [waiting(net, parts, i) for i in range(len(parts))]
    slots = [
        lay_out(net, values, key=bool(keyed) and i <= keyed[-1])
        for i, values in enumerate(boundaries)
    ]
    stages = tuple(
        stage(net, part, slots[i], slots[i + 1], any(net.ops[n].keyed for n in part))
        for i, part in enumerate(parts)
    )
    for t, part in enumerate(parts):
        for node in part:
            net.graph.nodes[node]["stage"] = t
    out_shape = tuple(net.kinds.values[net.output].shape[1:])
    whole_batch = any(s.couples_samples for s in stages)
    return Network(stages, model, described(net), out_shape, whole_batch)


def net_inputs(net: Traced) -> list[fx.Node]:
    return [n for n in net.kinds.data if n.op == "placeholder"]


def lay_out(net: Traced, values: list[fx.Node], key: bool) -> tuple[Slot, ...]:
    """Slots of a state that holds these values.

    Raises:
        StageError: floats of another dtype than the parameters.
    """
    slots, start = [], 0
    dtype = next(p.dtype for p in net.model.parameters() if p.requires_grad)
    for node in values:
        value = net.kinds.values[node]
        if value.is_floating_point() and value.dtype != dtype:
            refuse(node.name, f"its {value.dtype} would pass through a state of {dtype}.")
        stop = start + value[0].numel()
        slots.append(Slot(node.name, tuple(value.shape[1:]), start, stop, value.dtype))
        start = stop
    if key:
        slots.append(Slot(KEY, (), start, start + 1, torch.float64))
    return tuple(slots)


def stage(
    net: Traced,
    part: list[fx.Node],
    before: tuple[Slot, ...],
    after: tuple[Slot, ...],
    keyed: bool,
) -> Stage:
    fixed = dict.fromkeys(n for node in part for n in net.fixed(node))
    ordered = [n for n in net.graph if n in fixed] + part
    ops = [net.ops[n] for n in ordered]
    reads = {n for node in ordered for n in node.all_input_nodes}
    names = list(dict.fromkeys(p for node in part for p in net.params(node)))
    pieces, start = [], 0
    parameters = dict(net.model.named_parameters())
    for name in names:
        shape = tuple(parameters[name].shape)
        stop = start + parameters[name].numel()
        pieces.append(Piece(name, shape, start, stop))
        start = stop
    linear = linear_layout(net, part, before, after)
    couples = net.options.batch_norm == "exact" and any(op.couples for op in ops)
    called = [op for op in (*ops[len(fixed) :], *ops) if op.path and op.label != "buffer"]
    own = [op for op in called if op.params] or called
    kernel = "none" if not pieces else "linear" if linear else "rows"
    return Stage(
        name=own[0].path if own else ops[-1].name,
        modules=tuple(dict.fromkeys(op.path for op in ops if op.module is not None)),
        layers=tuple(op.label for op in ops if op.label not in ("buffer", "constant")),
        in_slots=before,
        out_slots=after,
        operations=tuple(ops),
        shapes={n.name: net.kinds.shapes[n] for n in reads if n in net.kinds.shapes},
        parameters=tuple(pieces),
        couples_samples=couples,
        kernel=kernel,
        linear=linear,
        elementwise=not pieces
        and len(before) == len(after) == 1
        and all(op.elementwise or op.reshape for op in ops)
        and not keyed,
    )


def linear_layout(
    net: Traced, part: list[fx.Node], before: tuple[Slot, ...], after: tuple[Slot, ...]
) -> LinearLayout | None:
    """How the stage is one linear layer from slot to slot, or None if it is not just that."""
    linear = [n for n in part if net.params(n)]
    others = [n for n in part if n not in linear]
    shape = linear_shape(net, linear[0]) if len(linear) == 1 else None
    if shape is None or not all(net.reshapes(n) for n in others):
        return None
    at = {s.name: s for s in before}
    new = [s for s in after if s.name not in at]
    source = linear[0]
    while source.name not in at:
        source = net.sources(source)[0]
    entry = at[source.name]
    if len(new) != 1 or (shape[1], shape[0]) != (entry.size, new[0].size):
        return None
    return LinearLayout(shape[1], shape[0], shape[2], entry.columns, new[0].columns)


def linear_shape(net: Traced, node: fx.Node) -> tuple[int, int, bool] | None:
    """(outputs, inputs, bias) of `nn.Linear` or `linear` with all its parameters trainable."""
    op, params = net.ops[node], net.params(node)
    if type(op.module) is nn.Linear:
        has_bias = op.module.bias is not None
    elif node.target is torch.nn.functional.linear and len(net.sources(node)) == 1:
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        has_bias = bias is not None
        if any(net.ops[n].label != "Parameter" for n in net.fixed(node)):
            return None
    else:
        return None
    weight = dict(net.model.named_parameters())[params[0]]
    if len(params) != 1 + has_bias or weight.ndim != 2:
        return None
    return weight.shape[0], weight.shape[1], has_bias


def described(net: Traced) -> nx.DiGraph:
    """The graph by names, for users: label, stage and shape of a sample at each node."""
    graph = nx.DiGraph()
    for node in net.kinds.data:
        value = net.kinds.values[node]
        label = "input" if node.op == "placeholder" else net.ops[node].label
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else None
        t = net.graph.nodes[node].get("stage", -1)
        graph.add_node(node.name, label=label, stage=t, shape=shape)
    graph.add_edges_from((s.name, n.name) for n in net.kinds.data for s in net.sources(n))
    return graph
