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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, addressof, byref, c_char_p, c_int, c_int64, c_uint, c_void_p
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch

from ocp.engines.native import build, nvrtc
from ocp.engines.native.grid import LOOP, MOST_SPILLS, Form, Usage, others, threads, usages

SIGNATURES = {
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
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
# CUresult after which nothing runs on the device any more in this process, and PyTorch cannot
# either: an address that is not there, hardware that failed, a kernel that was stopped.
LOST = frozenset((214, 700, 702, 710, 714, 715, 716, 717, 718, 719))
OUT_OF_MEMORY = 2


class DeviceError(RuntimeError):
    """The device's context is lost; eager PyTorch on that device would fail too."""


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
    """Whether the driver did it.

    Raises:
        BuildError: it refuses; says how it explains that.
        DeviceError: nothing runs on the device any more.
    """
    if code == 0:
        return
    said = c_char_p()
    library().cuGetErrorString(code, byref(said))
    text = f"{what}: {(said.value or b'unknown error').decode()} ({code})"
    if code in LOST:
        raise DeviceError(
            f"the GPU failed: {text}. The error may be of any kernel launched before, PyTorch's "
            "too, and this process cannot use the device any more. Start it again with "
            "CUDA_LAUNCH_BLOCKING=1 to see which, and with OCP_ENGINE=eager to do without compiled "
            "programs."
        )
    if code == OUT_OF_MEMORY:
        text += "; the local memory of all threads is the driver's, beside what PyTorch holds"
    raise build.BuildError(f"the CUDA driver failed: {text}.")


@functools.cache
def context_of(index: int) -> c_void_p:
    """The context of a device that PyTorch uses too. A thread that was not yet on the device has
    none until it is told."""
    number, context = c_int(), c_void_p()
    asked(library().cuDeviceGet(byref(number), index), "cuDeviceGet")
    asked(
        library().cuDevicePrimaryCtxRetain(byref(context), number.value),
        "cuDevicePrimaryCtxRetain",
    )
    return context


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Within it, the device and its context are the current ones."""
    with torch.cuda.device(device):
        asked(library().cuCtxSetCurrent(context_of(device.index)), "cuCtxSetCurrent")
        yield


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
        self.known = build.note_of(self.entry).get("kernels", {})
        torch.cuda.init()
        with current(self.device):
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
        with current(self.device):
            stream = torch.cuda.current_stream(self.device).cuda_stream
            values, pointers = packed(arguments)
            each = threads(self.form, entry)
            asked(
                library().cuLaunchKernel(
                    *(self.function(entry), blocks, 1, 1, each, 1, 1, 0),
                    *(stream, pointers, None),
                ),
                f"cuLaunchKernel({entry}, {blocks} blocks of {each} threads)",
            )
            del values  # the driver has copied them

    def has(self, entry: str) -> bool:
        """Whether it is there: the loop is not, in programs of shared controls."""
        return entry.encode() in self.image

    def usage(self, entry: str) -> Usage:
        """As the compiler said, or, where the driver has compiled, as that says."""
        if entry in self.known:
            return Usage(*self.known[entry])
        registers, local, shared = (
            self.attribute(entry, what) for what in (REGISTERS, LOCAL, SHARED)
        )
        return Usage(registers, local, 0, shared)

    def attribute(self, entry: str, what: int) -> int:
        value = c_int()
        with current(self.device):
            asked(
                library().cuFuncGetAttribute(byref(value), what, self.function(entry)),
                f"cuFuncGetAttribute({entry})",
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
    """Compile a program into the cache, and note what its kernels take. Raises `BuildError`."""
    with build.workplace(entry) as work:
        file = work / ("program.cubin" if to.cubin else "program.ptx")
        image, log = nvrtc.compiled(text, to)
        file.write_bytes(image)
        kernels = {name: astuple(usage) for name, usage in usages(log).items()}
        return build.keep(entry, file, compiler, kernels=kernels)


def fitting(text_in: Callable[[Form], str], form: Form, device: torch.device) -> Loaded:
    """The kernels of a program in a form; where the loop spills more than fast memory holds, in
    another that does not, or in the one that spills least. Raises `BuildError`."""
    tried = []
    for each in (form, *others(form)):
        tried.append(load(text_in(each), each, device))
        if not tried[-1].has(LOOP) or tried[-1].usage(LOOP).spilled <= MOST_SPILLS:
            return tried[-1]
    return min(tried, key=lambda made: made.usage(LOOP).spilled)
