"""What a computation holds in tensors: the largest one, and all that live at once."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """Watches every operation under it: ``with Live() as live: ...``.

    `tracemalloc` does not see tensors, and the memory of a process is too coarse for a test.
    Counted are the tensors that operations return; workspaces inside of one are not.

    Attributes:
        largest: bytes of the largest storage that any operation returned.
        peak: most bytes of such storages alive at once, without those that were there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self.now = 0
        self._held: dict[int, tuple[int, set[int]]] = {}  # storage -> bytes, tensors on it
        self._tensors: dict[int, weakref.ref[Tensor]] = {}
        self._before: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in args:
            if isinstance(value, Tensor) and id(value) not in self._tensors:
                self._before.add(value.untyped_storage().data_ptr())
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and id(value) not in self._tensors:
                self._hold(value)
        self.peak = max(self.peak, self.now)
        return out

    def _hold(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        where, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or (where in self._before and where not in self._held):
            return
        if where not in self._held:
            self._held[where] = size, set()
            self.now += size
            self.largest = max(self.largest, size)
        key = id(value)
        self._held[where][1].add(key)
        self._tensors[key] = weakref.ref(value, lambda _: self._drop(key, where))

    def _drop(self, key: int, where: int) -> None:
        del self._tensors[key]
        size, tensors = self._held[where]
        tensors.discard(key)
        if not tensors:
            del self._held[where]
            self.now -= size
