"""The entry points of compiled programs, as ctypes sees them: `abi.h` in Python.

Arrays are passed as addresses (``tensor.data_ptr()``), 0 for an optional one that is missing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import Structure, c_double, c_int64, c_void_p
from typing import NamedTuple

from ocp.engines.base import Counts, Reals


def fields(text: str) -> list[tuple[str, type]]:
    """``name:kind`` words, kind p for an address, i for an int64 and d for a double."""
    kinds: dict[str, type] = {"p": c_void_p, "i": c_int64, "d": c_double}
    return [(name, kinds[kind]) for name, kind in (word.split(":") for word in text.split())]


class Data(Structure):
    """First argument of every entry: T, B, P numbers a row of dat, threads; the arrays of
    parameters, bounds (T, m) and work memory; slots for steps that PMP remembers."""

    _fields_ = fields("T:i B:i P:i threads:i par:p dat:p lower:p upper:p work:p slots:i")


class SweepCall(Structure):
    """Of ``ocp_sweep``; see abi.h for shapes."""

    _fields_ = fields(
        "fz:p lz:p lzz:p phix:p phixx:p table:p xs:p us:p gaps:p damping:p full:p on_state:i "
        "k:p K:p vx:p vxx:p p:p hu:p indefinite:p slope:p curvature:p residual:p failed:p finite:p "
        "hamiltonian:p gap:p"
    )


class BeginCall(Structure):
    """Of ``ocp_begin``; see begin.h for shapes."""

    _fields_ = fields("x0:p us:p states:p xs:p clipped:p gaps:p cost:p gap:p finite:p")


class FollowCall(Structure):
    """Of ``ocp_follow``; see abi.h for shapes."""

    _fields_ = fields("xs:p us:p gaps:p k:p K:p step_sizes:p A:i trial_xs:p trial_us:p cost:p")


class EnsembleSweep(Structure):
    """Of ``ocp_ensemble_sweep``; see ensemble.h for shapes."""

    _fields_ = fields(
        "xs:p us:p gaps:p table:p damping:p second_order:i on_state:i k:p K:p vx:p vxx:p promise:p "
        "facts:p"
    )


class EnsembleFollow(Structure):
    """Of ``ocp_ensemble_follow``; see ensemble.h for shapes."""

    _fields_ = fields("xs:p us:p gaps:p k:p K:p step_sizes:p A:i trial_xs:p trial_us:p cost:p")


class Iterate(Structure):
    """Of ``ocp_iterate``; see loop.h for shapes and the order of rows."""

    _fields_ = fields(
        "steps:i method:i on_state:i step_sizes:p xs:p us:p gaps:p reals:p counts:p rows:p "
        "taken:p handed:p limits:p K:p memory:p fresh:i"
    )


DESCENT = 3  # `Iterate.method` of PMP


class Again(Structure):
    """Of ``ocp_again``; see again.h for shapes."""

    _fields_ = fields(
        "shift:i x0:p xs:p us:p K:p plan_xs:p plan_us:p plan_K:p reals:p counts:p follow:p "
        "iterate:p"
    )


class Whole(Structure):
    """Of ``ocp_whole``; see whole.h for shapes."""

    _fields_ = fields("x0:p us:p states:p out:p iterate:p facts:p told:p goes_on:i half:i enough:d")


REALS, COUNTS = Reals._fields, Counts._fields


class Info(NamedTuple):
    """What a program was built for."""

    n: int
    m: int
    lanes: int
    single: bool
    bounds: bool
    second_order: bool
    trials: int  # step sizes of its `Decide`; 0 without
    bytes: int  # of a number


ARGUMENTS = {  # of each entry after `Data`: addresses, unless i
    "ocp_begin": "p",
    "ocp_rollout": "ppp",
    "ocp_total_cost": "ippp",
    "ocp_gaps": "ppp",
    "ocp_expand": "ppppppp",
    "ocp_contracted": "pppp",
    "ocp_costates": "ppppp",
    "ocp_linear_rollout": "pppppp",
    "ocp_sweep": "p",
    "ocp_follow": "p",
    "ocp_iterate": "p",
    "ocp_again": "p",
    "ocp_whole": "p",
    "ocp_ensemble_bytes": "",
    "ocp_ensemble_sweep": "p",
    "ocp_ensemble_follow": "p",
}
COUNTING = ("ocp_iterate", "ocp_again", "ocp_ensemble_bytes")  # entries that return a number


def declare(library: ctypes.CDLL) -> Info:
    """Give the entry points of a loaded program their types."""
    kinds = {"p": c_void_p, "i": c_int64}
    for name, arguments in ARGUMENTS.items():
        if hasattr(library, name):
            entry = getattr(library, name)
            entry.argtypes = [c_void_p, *(kinds[a] for a in arguments)]
            entry.restype = c_int64 if name in COUNTING else None
    library.ocp_work_bytes.argtypes, library.ocp_work_bytes.restype = [c_void_p], c_int64
    library.ocp_info.argtypes, library.ocp_info.restype = [c_void_p], None
    numbers = (c_int64 * 8)()
    library.ocp_info(numbers)
    return info_of(numbers)


def info_of(numbers: Iterable[int]) -> Info:
    """The facts of ``ocp_info``."""
    n, m, lanes, single, bounds, second_order, trials, size = numbers
    return Info(n, m, lanes, bool(single), bool(bounds), bool(second_order), trials, size)
