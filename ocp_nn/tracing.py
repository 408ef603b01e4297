"""A model's graph by torch.fx, and what its nodes are: data, shapes, constants, operations."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import networkx as nx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ocp.trial_calls import first_sentence
from ocp_nn.layers import StageError, refuse

SHAPE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "type", "is_floating_point"}
SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
INPLACE_OPERATORS = {
    getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "ifloordiv", "imod")
}


class Opaque(Exception):  # noqa: N818 - a signal, not an error
    """A module that torch.fx cannot look into; it becomes one operation."""

    def __init__(self, path: str, cause: Exception) -> None:
        super().__init__(f"{path}: {cause}")
        self.path, self.cause = path, cause


class Tracer(fx.Tracer):
    """Looks into every module but torch's own layers and those in ``leaves``."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(
            m, module_qualified_name
        )

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Opaque:
            raise
        except Exception as error:  # whatever its forward raises when given proxies
            raise Opaque(self.path_of_module(m), error) from error


def traced(model: nn.Module, inputs: int, leaves: Sequence[str] = ()) -> fx.Graph:
    """The graph of ``model`` called with that many inputs, other arguments at their defaults.

    Submodules that cannot be looked into stay whole.

    Raises:
        StageError: the model's own forward cannot be traced.
    """
    arguments = list(inspect.signature(model.forward).parameters.values())
    defaults = {a.name: a.default for a in arguments[inputs:] if a.default is not a.empty}
    opaque = set(leaves)
    known = dict(model.named_modules())
    if missing := sorted(opaque - known.keys()):
        raise ValueError(f"leaves: the model has no module {missing}; it has {sorted(known)[1:9]}.")
    while True:
        try:
            with traceable_factories():
                return Tracer(opaque).trace(model, concrete_args=defaults or None)
        except Opaque as error:
            if error.path in opaque:
                raise StageError(f"{error.path}: torch.fx failed: {error.cause}.") from error
            opaque.add(error.path)
        except Exception as error:  # as above, in the model's own forward
            raise StageError(
                f"torch.fx cannot trace {type(model).__name__}.forward: "
                f"{first_sentence(error)}. {way_out(error)}"
            ) from error


def way_out(error: Exception) -> str:
    if "item assignment" in str(error):
        return "It assigns to entries: use torch.where, torch.cat or torch.stack."
    return (
        "Put what branches on the values of tensors into a submodule with tensors in and one "
        "tensor out: it becomes one stage."
    )


FACTORIES = ("zeros", "ones", "full", "empty", "arange", "eye", "linspace", "tensor")


@contextlib.contextmanager
def traceable_factories() -> Iterator[None]:
    """Functions that make tensors from numbers become nodes when a number is a size of the data.

    torch.fx sees calls with tensors only, and fails at ``torch.zeros(x.shape[0], 5)``.
    """
    originals = {name: getattr(torch, name) for name in FACTORIES}

    def wrapped(function: Callable[..., Tensor]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []

            def note(a: Any) -> Any:
                if isinstance(a, fx.Proxy):
                    found.append(a)
                return a

            map_aggregate(args, note)
            map_aggregate(kwargs, note)
            if not found:
                return function(*args, **kwargs)
            return found[0].tracer.create_proxy("call_function", function, args, kwargs)

        return make

    try:
        for name, function in originals.items():
            setattr(torch, name, wrapped(function))
        yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


def out_of_place(graph: fx.Graph, model: nn.Module) -> set[fx.Node]:
    """Later readers of what an operation changes in place read its result; those operations."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found = set()
    for node in graph.nodes:
        if not changes_in_place(node, model):
            continue
        found.add(node)
        changed = node.args[0]
        assert isinstance(changed, fx.Node)
        later = {user for user in changed.users if order[user] > order[node]}
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return found


def changes_in_place(node: fx.Node, model: nn.Module) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    if node.target in INPLACE_OPERATORS:
        return True
    name = getattr(node.target, "__name__", "")
    return bool(argument(node, "inplace")) or (name.endswith("_") and not name.endswith("__"))


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a called function by its name, given or default; None if it has no such."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # functions in C do not tell
        return node.kwargs.get(name)
    bound.apply_defaults()
    return bound.arguments.get(name)


class Kinds(NamedTuple):
    """What nodes are, by the values they take on batches of 2 and of 3 samples."""

    data: list[fx.Node]  # tensors (or tuples of them) of the samples, in order
    constants: set[fx.Node]  # tensors that depend on no sample
    shapes: dict[fx.Node, Any]  # everything else: its value, numbers as `Affine`
    values: dict[fx.Node, Any]  # of data, for 3 samples


class Affine(NamedTuple):
    """A number that may depend on the batch size: ``at_0 + slope * B``."""

    at_0: int
    slope: int

    def __call__(self, B: int) -> int:
        return self.at_0 + self.slope * B


def classify(graph: nx.DiGraph, two: dict[fx.Node, Any], three: dict[fx.Node, Any]) -> Kinds:
    """Tell nodes apart. ``graph`` holds the nodes that matter, in order.

    Raises:
        StageError: a number is read from the data, or depends on the batch in an unknown way.
    """
    data: list[fx.Node] = []
    constants, shapes, moving = set(), {}, set()
    for node in graph:
        value = three[node]
        if node.op == "placeholder" and isinstance(value, Tensor):
            data.append(node)
            moving.add(node)
        elif holds_tensor(value):
            if any(parent in moving for parent in graph.predecessors(node)):
                data.append(node)
                moving.add(node)
            else:
                constants.add(node)
        else:
            if any(parent in moving for parent in graph.predecessors(node)):
                check_reads_shape(node)
            shapes[node] = affine(node, two[node], value)
    return Kinds(data, constants, shapes, three)


def holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(holds_tensor(v) for v in value)
    return isinstance(value, Tensor)


def check_reads_shape(node: fx.Node) -> None:
    """Only sizes may be read from data: any other number would be that of one batch for ever."""
    name = str(node.target) if node.op == "call_method" else node.target
    if node.op == "call_method" and name in SHAPE_METHODS:
        return
    if node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES:
        return
    if node.target in (len, operator.eq, operator.ne, torch.is_floating_point):
        return
    refuse(
        f"{node.name} ({getattr(name, '__name__', name)})",
        "it reads a number from the data of a tensor. Keep it a tensor: torch.where, torch.clamp.",
    )


def affine(node: fx.Node, two: Any, three: Any) -> Any:
    if isinstance(three, tuple | list):
        return tuple(affine(node, a, b) for a, b in zip(two, three, strict=True))
    if two == three:
        return three
    if type(two) is int and type(three) is int:
        return Affine(two - 2 * (three - two), three - two)
    refuse(node.name, f"it depends on the batch size: {two} for 2 samples, {three} for 3.")


# -- operations on their own ----------------------------------------------------------------------
ELEMENTWISE_FUNCTIONS: set[Any] = {
    *(torch.tanh, torch.sigmoid, torch.relu, torch.sin, torch.cos, torch.exp, torch.square),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus),
    *(F.softsign, F.logsigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.tanhshrink),
    *(F.tanh, F.sigmoid),
}
ELEMENTWISE_METHODS = {"tanh", "sigmoid", "relu", "relu_", "sin", "cos", "exp", "square"}
RESHAPE_FUNCTIONS: set[Any] = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze}
RESHAPE_METHODS = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "unflatten"}
RANDOM_FUNCTIONS: set[Any] = {
    *(F.alpha_dropout, F.feature_alpha_dropout, F.rrelu, F.dropout1d, F.dropout2d, F.dropout3d),
    F.dropout,
}


def check_function(node: fx.Node) -> None:
    """Refuse functions that are random, or that write to a model's buffers, in training mode."""
    if node.target in RANDOM_FUNCTIONS and argument(node, "training") and argument(node, "p"):
        refuse(
            f"{node.name} ({getattr(node.target, '__name__', node.target)})",
            "a random function has no fixed mask. Use the module nn.Dropout and "
            "compile(dropout=seed), or call model.eval().",
        )
    if node.target is F.batch_norm and argument(node, "training"):
        refuse(f"{node.name} (batch_norm)", "use the module nn.BatchNorm1d or 2d.")
