"""A machine with two devices, on one: tensors that say they are on a GPU, and operations that
refuse to mix them with others, as a GPU would.

The numbers stay in the CPU's memory, so that all of the package's Python runs, solvers, engines
and derivatives, and a wrong device is found where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
# What moves numbers between devices, or takes indices from the CPU.
MIXED = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_")


def innermost(tensor: Tensor) -> Tensor:
    """Without the wrappers of torch.func."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def there(tensor: Tensor) -> bool:
    """Whether it says to be on the GPU."""
    return getattr(innermost(tensor), "on_gpu", False)


def placed(value: Any, on_gpu: bool) -> Any:
    if isinstance(value, Tensor):
        innermost(value).on_gpu = on_gpu  # type: ignore[attr-defined]
    return value


class Devices(TorchFunctionMode):
    """Calls with a device: made on the CPU, and their results placed there.

    Attributes:
        within: whether the call at work has tensors on the GPU: what it makes, is there too.
    """

    within = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "cpu":
            return placed(args[0].clone(), False)
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            args = (args[0], args[1].device, args[1].dtype)
        named = [a for a in (*args[1:], *kwargs.values()) if is_device(a)]
        if not named or name in ("__get__", "__eq__"):
            given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
            before, Devices.within = Devices.within, any(map(there, given))
            try:
                return func(*args, **kwargs)
            finally:
                Devices.within = before
        onto = torch.device(named[0]).type == "cuda"
        swap = lambda a: "cpu" if is_device(a) else a
        out = func(*map(swap, args), **{k: swap(v) for k, v in kwargs.items()})
        if name == "to" and there(out) != onto:
            out = out.clone()
        return placed(out, onto)


def is_device(value: Any) -> bool:
    if isinstance(value, torch.device):
        return True
    return isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")


class TwoDevices(TorchDispatchMode):
    """Operations on the GPU's tensors give the GPU's, and take no others but single numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [a for a in tree_leaves((args, kwargs or {})) if isinstance(a, Tensor)]
        name = func._schema.name
        others = [t for t in tensors if not there(t) and t.ndim > 0]
        on_gpu = any(map(there, tensors)) or (not tensors and Devices.within)
        if on_gpu and others and name not in MIXED:
            raise RuntimeError(f"{name} of tensors on cuda:0 and cpu {tuple(others[0].shape)}")
        if name in MIXED:
            on_gpu = bool(tensors) and there(tensors[0])
        fresh = lambda v: v if any(v is t for t in tensors) else placed(v, on_gpu)
        return tree_map(fresh, func(*args, **(kwargs or {})))


@contextmanager
def two_devices(monkeypatch: Any) -> Iterator[None]:
    """Within it, ``device="cuda"`` is a device that works."""
    own = torch._C.TensorBase.device
    device = property(lambda t: GPU if there(t) else own.__get__(t))
    monkeypatch.setattr(torch.Tensor, "device", device, raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(there), raising=False)
    with Devices(), TwoDevices():
        yield
