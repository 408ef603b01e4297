"""Nodes of a traced graph as pure operations, run by name in an environment of values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from ocp_nn.formulas import Context
from ocp_nn.layers import Options, layer, plain_attention
from ocp_nn.tracing import (
    ELEMENTWISE_FUNCTIONS,
    ELEMENTWISE_METHODS,
    RESHAPE_FUNCTIONS,
    RESHAPE_METHODS,
    Affine,
    check_function,
)


@dataclass(frozen=True)
class Ref:
    """In the arguments of an operation: the value of that name."""

    name: str


@dataclass(frozen=True, eq=False)
class Operation:
    """One node: ``run(context, *args, **kwargs)``.

    Attributes:
        name: of its value.
        label: class of the module, or name of the function.
        path: of the module in the model; "" for functions.
        args, kwargs: with a `Ref` for every value of another node.
        params: trainable parameters it reads itself, by their names in the model.
        couples, reshape, elementwise, keyed: see `layers.Layer`.
        in_place: it would change its first argument, which is therefore copied.
        module: that it calls, if any.
    """

    name: str
    label: str
    run: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    path: str = ""
    couples: bool = False
    reshape: bool = False
    elementwise: bool = False
    keyed: bool = False
    in_place: bool = False
    module: nn.Module | None = None

    @cached_property
    def reads(self) -> tuple[str, ...] | None:
        """Names of its arguments, if these are values as they are: the quick way to call it."""
        plain = not self.kwargs and not self.in_place
        names = tuple(a.name for a in self.args if isinstance(a, Ref))
        return names if plain and len(names) == len(self.args) else None

    def __call__(self, context: Context, env: Mapping[str, Any]) -> Any:
        if self.reads is not None:
            return self.run(context, *[env[name] for name in self.reads])
        fill = lambda a: env[a.name] if isinstance(a, Ref) else a
        args, kwargs = map_aggregate(self.args, fill), map_aggregate(dict(self.kwargs), fill)
        if self.in_place:
            args = (args[0].clone(), *args[1:])
        return self.run(context, *args, **kwargs)


def parameter_names(model: nn.Module) -> dict[int, str]:
    """id -> name of every trainable parameter; one that stands in several places has one name."""
    return {id(p): name for name, p in model.named_parameters() if p.requires_grad}


def operations(
    graph: Iterable[fx.Node],
    model: nn.Module,
    options: Options,
    in_place: set[fx.Node],
    attributes: Mapping[str, Tensor],
) -> dict[fx.Node, Operation]:
    """Of every node but placeholders and the output.

    Args:
        attributes: tensors that tracing found in the code itself, by name.

    Raises:
        StageError: one of them cannot be part of a stage.
    """
    names = parameter_names(model)
    result = {}
    for node in graph:
        if node.op in ("placeholder", "output"):
            continue
        op = operation(node, model, names, options, attributes)
        ref: Callable[[fx.Node], Any] = lambda n: Ref(n.name)
        args, kwargs = map_arg(node.args, ref), map_arg(node.kwargs, ref)
        result[node] = replace(op, args=args, kwargs=dict(kwargs), in_place=node in in_place)
    return result


def operation(
    node: fx.Node,
    model: nn.Module,
    names: dict[int, str],
    options: Options,
    attributes: Mapping[str, Tensor],
) -> Operation:
    target = str(node.target)
    if node.op == "get_attr":
        return attribute(node.name, target, model, names, attributes)
    if node.op == "call_module":
        module = model.get_submodule(target)
        rename = {
            local: names[id(p)]
            for local, p in module.named_parameters()
            if id(p) in names
        }  # fmt: skip
        made = layer(module, target, node.name, rename, options)
        params = tuple(dict.fromkeys(rename.values()))
        return Operation(
            node.name, type(module).__name__, made.run, params=params, path=target,
            couples=made.couples, reshape=made.reshape, elementwise=made.elementwise,
            keyed=made.keyed, module=module,
        )  # fmt: skip
    if node.op == "call_method":
        method = lambda c, x, *args, **kwargs: getattr(x, target)(*args, **kwargs)
        return Operation(
            node.name,
            target,
            method,
            reshape=target in RESHAPE_METHODS,
            elementwise=target in ELEMENTWISE_METHODS,
        )
    check_function(node)
    function: Any = node.target
    name = getattr(function, "__name__", str(function))
    run: Callable[..., Any] = lambda c, *args, **kwargs: function(*args, **kwargs)
    if function is torch.nn.functional.scaled_dot_product_attention:
        run = attention
    return Operation(
        node.name,
        name,
        run,
        reshape=function in RESHAPE_FUNCTIONS,
        elementwise=function in ELEMENTWISE_FUNCTIONS,
    )


def attention(context: Context, *args: Any, **kwargs: Any) -> Tensor:
    with plain_attention():
        return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)


def attribute(
    name: str,
    target: str,
    model: nn.Module,
    names: dict[int, str],
    attributes: Mapping[str, Tensor],
) -> Operation:
    """A parameter, a buffer, or a tensor that stands in the code."""
    if target in attributes:
        constant = attributes[target]
        return Operation(name, "constant", lambda c: constant)
    value = operator.attrgetter(target)(model)
    if id(value) in names:
        full = names[id(value)]
        return Operation(name, "Parameter", lambda c: c.params[full], params=(full,), path=target)
    return Operation(name, "buffer", lambda c: operator.attrgetter(target)(model), path=target)


def realise(value: Any, B: int) -> Any:
    """A shape, or number, for a batch of B samples."""
    if isinstance(value, Affine):
        return value(B)
    return tuple(realise(v, B) for v in value) if isinstance(value, tuple) else value
