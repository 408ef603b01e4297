"""The CUDA driver: compiled programs loaded into a GPU, and their kernels launched.

libcuda comes with the driver that PyTorch runs on, and is called through ctypes like NVRTC. Memory,
streams and the context are PyTorch's: kernels run on its current stream, between its own.
https://docs.nvidia.com/cuda/cuda-driver-api
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, addressof, byref, c_char_p, c_int, c_int64, c_uint, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ocp.engines.native import build, nvrtc
from ocp.engines.native.grid import Form

SIGNATURES = {
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, c_void_p),
    "cuLaunchKernel": (
        c_void_p,
        *(c_uint,) * 7,  # grid, block, shared memory
        *(c_void_p, POINTER(c_void_p), POINTER(c_void_p)),  # stream, arguments, extra
    ),
}
SHARED, LOCAL, REGISTERS = 1, 3, 4  # CUfunction_attribute
SHARE = 4  # one part in so many of the device's memory may become work memory


@functools.cache
def library() -> ctypes.CDLL:
    """libcuda.

    Raises:
        BuildError: it is not there, or lacks what is needed.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        loaded = ctypes.CDLL(name)
        for entry, arguments in SIGNATURES.items():
            getattr(loaded, entry).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise build.BuildError(f"the CUDA driver cannot be used: {error}.") from error
    return loaded


def asked(code: int, what: str) -> None:
    """Raises `BuildError` where the driver refuses."""
    if code != 0:
        said = c_char_p()
        library().cuGetErrorString(code, byref(said))
        text = (said.value or b"unknown error").decode()
        raise build.BuildError(f"the CUDA driver failed: {what}: {text} ({code}).")


@dataclass(eq=False)
class Loaded:
    """A program on a device, as `grid.Kernels`."""

    image: bytes
    form: Form
    device: torch.device
    compiler: str
    entry: Path  # the cache's note about it
    memory: int = field(init=False)

    def __post_init__(self) -> None:
        self.memory = torch.cuda.get_device_properties(self.device).total_memory // SHARE
        self.module = c_void_p()
        self.functions: dict[str, c_void_p] = {}
        with torch.cuda.device(self.device):
            torch.empty(1, device=self.device)  # PyTorch makes its context the current one
            asked(library().cuModuleLoadData(byref(self.module), self.image), "cuModuleLoadData")

    def __str__(self) -> str:
        return self.compiler

    def function(self, entry: str) -> c_void_p:
        if entry not in self.functions:
            found = c_void_p()
            asked(
                library().cuModuleGetFunction(byref(found), self.module, entry.encode()),
                f"cuModuleGetFunction({entry})",
            )
            self.functions[entry] = found
        return self.functions[entry]

    def launch(self, entry: str, blocks: int, arguments: Sequence[Structure | int]) -> None:
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream(self.device).cuda_stream
            values, pointers = packed(arguments)
            asked(
                library().cuLaunchKernel(
                    *(self.function(entry), blocks, 1, 1, self.form.team, 1, 1, 0),
                    *(stream, pointers, None),
                ),
                f"cuLaunchKernel({entry})",
            )
            del values  # the driver has copied them

    def usage(self, entry: str) -> str:
        registers, local, shared = (
            self.attribute(entry, what) for what in (REGISTERS, LOCAL, SHARED)
        )
        return f"{registers} registers, {local} bytes of local, {shared} of shared memory"

    def attribute(self, entry: str, what: int) -> int:
        value = c_int()
        with torch.cuda.device(self.device):
            asked(
                library().cuFuncGetAttribute(byref(value), what, self.function(entry)),
                "cuFuncGetAttribute",
            )
        return value.value


def packed(
    arguments: Sequence[Structure | int],
) -> tuple[list[Structure | c_int64], ctypes.Array[c_void_p]]:
    """The arguments of a kernel in memory, and where each lies. Words are 8 bytes."""
    values = [a if isinstance(a, Structure) else c_int64(a) for a in arguments]
    return values, (c_void_p * len(values))(*map(addressof, values))


# -- cache -----------------------------------------------------------------------------------------
_loaded: dict[tuple[str, int], Loaded] = {}  # by key and device


def load(text: str, form: Form, device: torch.device) -> Loaded:
    """The kernels of a program: from memory, from the cache, or compiled.

    Raises:
        BuildError: no NVRTC or driver, a text that NVRTC refuses, or a cache directory that cannot
            be trusted.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    library()
    to = nvrtc.target(torch.cuda.get_device_capability(index))
    compiler = f"NVRTC {'.'.join(map(str, nvrtc.version()))} for {to.flag.split('=')[1]}"
    entry = build.cache_directory() / f"{key_of(text, to)}.json"
    key = str(entry), index
    if key not in _loaded:
        path = build.kept(entry) or compiled(text, to, entry, compiler)
        device = torch.device("cuda", index)
        _loaded[key] = Loaded(path.read_bytes(), form, device, compiler, entry)
    return _loaded[key]


def key_of(text: str, to: nvrtc.Target) -> str:
    """Of all that machine code depends on."""
    parts = (text, build.headers_hash(), str(nvrtc.version()), to.flag, *nvrtc.OPTIONS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compiled(text: str, to: nvrtc.Target, entry: Path, compiler: str) -> Path:
    """Compile a program into the cache. Raises `BuildError`."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=entry.parent) as work:
        file = Path(work) / ("program.cubin" if to.cubin else "program.ptx")
        file.write_bytes(nvrtc.compile_text(text, to))
        return build.keep(entry, file, compiler)
