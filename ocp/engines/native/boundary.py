"""Newton's correction of the maximum principle's boundary value problem, compiled: boundary.h."""

from __future__ import annotations

import ctypes
import functools
from ctypes import Structure, addressof, c_void_p

import torch
from torch import Tensor

from ocp.engines.base import Expansion
from ocp.engines.native import abi, build
from ocp.engines.native.compiled import REAL


class Boundary(Structure):
    """Argument of ``ocp_boundary``; see boundary.h for shapes."""

    _fields_ = abi.fields(
        "T:i B:i L:i n:i m:i threads:i fz:p lzz:p table:p phixx:p gaps:p hx:p hu:p end:p "
        "V:p K:p ux:p lu:p pivots:p room:p dxs:p dus:p dps:p regular:p"
    )


def correction(
    expansion: Expansion, table: Tensor, gaps: Tensor, hx: Tensor, hu: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Changes of states, controls and costates of L = k B lines, and where they mean something.

    Args:
        expansion, table: of B problems, with ``p[t+1] . f_zz`` (T, B, n + m, n + m).
        gaps, hx, hu, end: what is to vanish, (T, L, n) twice, (T, L, m), (L, n).

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    fz, lzz, phixx = torch.as_tensor(expansion.fz), torch.as_tensor(expansion.lzz), expansion.phixx
    T, B, n, d = fz.shape
    L, m = end.shape[0], d - n
    new = fz.new_empty
    given = [v.contiguous() for v in (fz, lzz, table, phixx, gaps, hx, hu, end)]
    work = [new(T + 1, B, n, n), new(T, B, m, n), new(T, B, m, n), new(T, B, m, m)]
    work += [torch.empty(T, B, m, dtype=torch.int64), new(B, n * d + d * d)]
    out = new(T + 1, L, n), new(T, L, m), new(T + 1, L, n), torch.empty(L, dtype=torch.int64)
    arrays = [v.data_ptr() for v in (*given, *work, *out)]
    request = Boundary(T, B, L, n, m, torch.get_num_threads(), *arrays)
    library(fz.dtype).ocp_boundary(addressof(request))
    return out[0], out[1], out[2], out[3] != 0


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Raises `BuildError`."""
    made = build.load(f'#define OCP_REAL {REAL[dtype]}\n#include "boundary.h"\n')
    made.ocp_boundary.argtypes, made.ocp_boundary.restype = [c_void_p], None
    return made
