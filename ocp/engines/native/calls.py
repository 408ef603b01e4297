"""What the entries of a program are given: machine words, addresses, work memory."""

from __future__ import annotations

import functools
import threading
from ctypes import Structure, addressof
from typing import Any

import torch
from torch import Tensor

from ocp.problem import Stages

INT = torch.int64
SCRATCH = 2**24  # bytes of work memory that a thread keeps


def word(value: Any) -> int:
    """An argument of an entry as one machine word; structures have to outlive the call."""
    if isinstance(value, Structure):
        return addressof(value)
    return value if isinstance(value, int) else address(value)


_own = threading.local()


def scratch(size: int) -> Tensor:
    """Work memory for one call: this thread's, which is kept unless it is large."""
    kept: Tensor | None = getattr(_own, "memory", None)
    if kept is None or kept.shape[0] < size:
        kept = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= SCRATCH:
            _own.memory = kept
    return kept


@functools.lru_cache(maxsize=16)
def ones(count: int) -> Tensor:
    """Integers that nobody writes to."""
    return torch.ones(count, dtype=INT)


def address(value: Tensor | None) -> int:
    """0 for an optional array that is missing."""
    return 0 if value is None else value.data_ptr()


def dense(value: Stages) -> Tensor:
    assert isinstance(value, Tensor)
    return value.contiguous()


def optional(value: Stages | None) -> Tensor | None:
    return None if value is None else dense(value)
