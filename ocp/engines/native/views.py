"""One step from a Python object: what it leads to, what is fixed about it, how to look again."""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Number
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor

Step = tuple[str, Any]
Path = tuple[Step, ...]

ATOMS: tuple[type, ...] = (bool, int, float, str, bytes, type(None), type(Ellipsis), range, slice)
ATOMS += (np.generic, torch.dtype, torch.device, frozenset, BuiltinFunctionType, Number)
LIBRARIES = frozenset(("torch", "numpy", "scipy", "builtins", *sys.stdlib_module_names))
ENTRIES = 1_000_000  # of an array that are compared
OWN = __name__.split(".", maxsplit=1)[0]
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
UNUSED = frozenset(torch.nn.Module().__dict__) - {*HOOKS, "_parameters", "_buffers", "_modules"}
UNUSED -= {"training"}
METADATA = frozenset(("__doc__", "__module__", "__dict__", "__weakref__", "__annotations__"))


@dataclass
class View:
    """Of one object.

    Attributes:
        fact: what is a constant of a program that saw the object, beside its children.
        children: by the step that leads to each.
        reads: give what the object holds, for a quick comparison.
    """

    fact: Any
    children: list[tuple[Step, Any]] = field(default_factory=list)
    reads: list[Callable[[], Iterable[Any]]] = field(default_factory=list)


def atom_alike(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    return a == b if isinstance(a, frozenset | bytes) else repr(a) == repr(b)


def is_library(name: Any) -> bool:
    """Modules of PyTorch, NumPy, Python itself and this package see nothing of the user's."""
    return isinstance(name, str) and (name.split(".")[0] in LIBRARIES or name.split(".")[0] == OWN)


def named(code: CodeType) -> set[str]:
    """Global names and attributes a function uses, those of functions in it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= named(constant)
        elif isinstance(constant, str):  # may be asked for by getattr
            names.add(constant)
    return names


# -- by the kind of object ------------------------------------------------------------------------
def view_of(thing: Any, shared: Sequence[tuple[int, int]]) -> View:
    """``shared``: memory that the program reads, (start, end): an array there may change."""
    if isinstance(thing, np.ndarray):
        return array_view(thing, shared)
    return next((view(thing) for kinds, view in VIEWS if isinstance(thing, kinds)), None) or (
        object_view(thing)
    )


def tensor_view(tensor: Tensor) -> View:
    return View((Tensor, tuple(tensor.shape), tensor.dtype, tensor.device))


def frozen_view(thing: Any) -> View:
    """What becomes one fact by a copy."""
    kind: Any = frozenset if isinstance(thing, set) else bytes
    return View((type(thing), kind(thing)), [], [lambda: (kind(thing),)])


def attributes(thing: Any, names: Iterable[str]) -> list[tuple[Step, Any]]:
    return [(("attribute", name), getattr(thing, name)) for name in names if hasattr(thing, name)]


def array_view(values: np.ndarray, shared: Sequence[tuple[int, int]]) -> View:
    form = np.ndarray, values.shape, values.dtype.str
    start = values.__array_interface__["data"][0]
    if any(begin <= start < end for begin, end in shared):
        return View((*form, start))
    if values.dtype.hasobject or values.size > ENTRIES:
        return View(form)
    shape, content = values.shape, values.tobytes()
    same = lambda: (values.shape == shape and values.tobytes() == content,)
    return View((*form, content), [], [same])


def function_view(function: FunctionType) -> View:
    """Its code, what it closes over, the globals and defaults it uses."""
    cells = [c for c in enumerate(function.__closure__ or ()) if cell_is_set(c[1])]
    space = function.__globals__
    names = named(function.__code__)
    own = is_library(function.__module__)
    used = [] if own else sorted(names & space.keys())
    loaded = [] if own else sorted(n for n in names - space.keys() if n in sys.modules)
    children: list[tuple[Step, Any]] = [(("cell", k), cell.cell_contents) for k, cell in cells]
    children += ((("global", name), space[name]) for name in used)
    children += ((("module", name), sys.modules[name]) for name in loaded if not is_library(name))
    defaults = [n for n in ("__defaults__", "__kwdefaults__") if getattr(function, n)]
    children += attributes(function, defaults)
    reads: list[Callable[[], Iterable[Any]]] = [
        lambda: (function.__code__, function.__defaults__, function.__kwdefaults__),
    ]
    if cells:
        reads.append(lambda: [cell.cell_contents for _, cell in cells])
    if used:
        reads.append(lambda: [space[name] for name in used])
    return View((FunctionType, function.__code__), children, reads)


def cell_is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def dict_view(thing: Mapping[Any, Any]) -> View:
    keys = tuple(k if isinstance(k, ATOMS) else id(k) for k in thing)
    children = [(("item", k), v) for k, v in thing.items()]
    return View((type(thing), keys), children, [lambda: (*thing, *thing.values())])


def sequence_view(thing: Any) -> View:
    """Numbers alone are one fact, however many."""
    reads: list[Callable[[], Iterable[Any]]] = []
    if not isinstance(thing, tuple):
        reads.append(lambda: tuple(thing))
    if all(isinstance(v, bool | int | float | str) for v in thing):
        return View((type(thing), tuple(map(type, thing)), tuple(map(repr, thing))), [], reads)
    children = [(("item", k), v) for k, v in enumerate(thing)]
    return View((type(thing), len(thing)), children, reads)


def object_view(thing: Any) -> View:
    """Attributes and slots; its class, whose functions look at globals of their own."""
    kind = type(thing)
    own = getattr(thing, "__dict__", None)
    own = own if isinstance(own, dict) else {}
    seen = module_attributes(own) if isinstance(thing, torch.nn.Module) else own
    children: list[tuple[Step, Any]] = [(("attribute", name), v) for name, v in seen.items()]
    reads: list[Callable[[], Iterable[Any]]] = []
    if hasattr(thing, "__dict__"):
        reads.append(lambda: (type(thing), *own, *own.values()))
    slots = [name for base in kind.__mro__ for name in slots_of(base)]
    if slots:
        children += attributes(thing, slots)
        reads.append(lambda: [getattr(thing, name, None) for name in slots])
    if not is_library(kind.__module__):
        children.append((("attribute", "__class__"), kind))
    return View((kind, tuple(own)), children, reads)


def module_attributes(own: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a run of a network depends on."""
    return {k: v for k, v in own.items() if k not in UNUSED}


def slots_of(kind: type) -> Iterator[str]:
    if not is_library(kind.__module__):
        yield from (n for n, v in vars(kind).items() if isinstance(v, MemberDescriptorType))


def class_view(kind: type) -> View:
    """What the class and those it derives from define."""
    if is_library(kind.__module__):
        return View(kind)
    children: list[tuple[Step, Any]] = []
    space = vars(kind)
    names = [name for name, value in space.items() if matters(name, value)]
    for name in names:
        value = space[name]
        children.append((("class attribute", name), unwrapped(value)))
    children += ((("base", k), base) for k, base in enumerate(kind.__bases__))
    return View(kind, children, [lambda: [space.get(name) for name in names]])


def matters(name: str, value: Any) -> bool:
    if name in METADATA or isinstance(value, MemberDescriptorType):
        return False
    return not name.startswith("__") or isinstance(value, FunctionType)


def unwrapped(value: Any) -> Any:
    """The function behind a descriptor."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.func if isinstance(value, cached_property) else value


VIEWS: tuple[tuple[Any, Callable[[Any], View]], ...] = (
    (Tensor, tensor_view),
    (FunctionType, function_view),
    (MethodType, lambda thing: View(MethodType, attributes(thing, ("__self__", "__func__")))),
    (partial, lambda thing: View(partial, attributes(thing, ("func", "args", "keywords")))),
    (type, class_view),
    (ModuleType, lambda thing: View((ModuleType, thing.__name__))),
    (dict | MappingProxyType, dict_view),
    (list | tuple | deque, sequence_view),
    (set | bytearray | memoryview | array, frozen_view),
)


# -- modules --------------------------------------------------------------------------------------
class Namespaces:
    """Modules the user's functions name, of which those names matter that functions use."""

    def __init__(self) -> None:
        self.modules: list[tuple[ModuleType, Path, set[str]]] = []

    def takes(self, thing: Any) -> bool:
        return isinstance(thing, ModuleType) and not is_library(thing.__name__)

    def keep(self, module: ModuleType, path: Path) -> None:
        self.modules.append((module, path, set()))

    def more(self, names: set[str]) -> Iterator[tuple[View, Path]]:
        """Views of what has not been seen yet."""
        for module, path, known in self.modules:
            space = vars(module)
            new = sorted((names & space.keys()) - known)
            known |= set(new)
            if new:
                children: list[tuple[Step, Any]] = [(("attribute", n), space[n]) for n in new]
                read = lambda space=space, new=new: [space[n] for n in new]
                yield View(None, children, [read]), path


# -- ways -----------------------------------------------------------------------------------------
def follow(thing: Any, path: Path) -> Any:
    """Where the way leads now.

    Raises:
        LookupError, AttributeError, ValueError, TypeError: it ends on the way.
    """
    for kind, key in path:
        thing = FOLLOW[kind](thing, key)
    return thing


FOLLOW: dict[str, Callable[[Any, Any], Any]] = {
    "cell": lambda thing, key: thing.__closure__[key].cell_contents,
    "global": lambda thing, key: thing.__globals__[key],
    "module": lambda thing, key: sys.modules[key],
    "attribute": getattr,
    "class attribute": lambda thing, key: unwrapped(vars(thing)[key]),
    "base": lambda thing, key: thing.__bases__[key],
    "item": lambda thing, key: thing[key],
}
