"""NVRTC, the compiler of CUDA in a library: from the text of a program to machine code of a GPU.

It comes with PyTorch's CUDA builds (wheels ``nvidia-cuda-nvrtc``), with conda and with the CUDA
toolkit, and needs neither a driver nor a host compiler. It is called through ctypes: six functions
of a C interface that has not changed since CUDA 11.2 are no reason for another dependency.
https://docs.nvidia.com/cuda/nvrtc
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from ocp.engines.native import build

OPTIONS = (
    "--std=c++17",
    "--device-as-default-execution-space",  # headers have no host functions
    "--ptxas-options=-v",  # says what a kernel takes: `grid.usages`
)
SIGNATURES = {
    "nvrtcVersion": (POINTER(c_int), POINTER(c_int)),
    "nvrtcGetNumSupportedArchs": (POINTER(c_int),),
    "nvrtcGetSupportedArchs": (POINTER(c_int),),
    "nvrtcCreateProgram": (
        *(POINTER(c_void_p), c_char_p, c_char_p, c_int, POINTER(c_char_p), POINTER(c_char_p)),
    ),
    "nvrtcCompileProgram": (c_void_p, c_int, POINTER(c_char_p)),
    "nvrtcDestroyProgram": (POINTER(c_void_p),),
    "nvrtcGetProgramLogSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetProgramLog": (c_void_p, c_char_p),
    "nvrtcGetCUBINSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetCUBIN": (c_void_p, c_char_p),
    "nvrtcGetPTXSize": (c_void_p, POINTER(c_size_t)),
    "nvrtcGetPTX": (c_void_p, c_char_p),
}


# -- where it is -----------------------------------------------------------------------------------
def candidates() -> list[str]:
    """Libraries to try: $OCP_NVRTC, wheels, torch's own, conda's, the loader's, the toolkit's.

    Those of the CUDA version PyTorch was built for come first: the driver that runs PyTorch runs
    what they compile.
    """
    given = os.environ.get("OCP_NVRTC")
    if given:
        return [given]
    found = [str(path) for path in files()]
    major = (torch.version.cuda or "").split(".")[0]
    found.sort(key=lambda path: f"so.{major}" not in path if major else False)
    named = [major] if major else ["13", "12"]
    return list(dict.fromkeys([*found, *(f"libnvrtc.so.{version}" for version in named)]))


def files() -> Iterator[Path]:
    """Libraries found in places that wheels, conda and the toolkit use."""
    nvidia = find_spec("nvidia")
    places = [Path(p) for p in (nvidia.submodule_search_locations or ())] if nvidia else []
    for place in places:
        yield from sorted(place.glob("*/lib/libnvrtc.so.*"), reverse=True)
    yield from sorted((Path(torch.__file__).parent / "lib").glob("libnvrtc-*.so.*"))
    roots = [sys.prefix, os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for root in [*roots, "/usr/local/cuda"]:
        for folder in ("lib", "lib64"):
            if root:
                yield from sorted(Path(root, folder).glob("libnvrtc.so.*"), reverse=True)


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC, loaded.

    Raises:
        BuildError: there is none; says where it was looked for.
    """
    if sys.platform != "linux":
        raise build.BuildError(f"programs for GPUs are compiled on Linux, not on {sys.platform}.")
    complaints = []
    for path in candidates():
        if "builtins" in path or ".alt." in path:
            continue
        try:
            loaded = ctypes.CDLL(path)
            for name, arguments in SIGNATURES.items():
                getattr(loaded, name).argtypes = arguments
            return loaded
        except (OSError, AttributeError) as error:
            complaints.append(f"\n  {path}: {error}")
    raise build.BuildError(
        "NVRTC was not found: it comes with PyTorch's CUDA builds, or "
        "`pip install nvidia-cuda-nvrtc` for their CUDA version, or set OCP_NVRTC to the path of "
        "libnvrtc.so." + "".join(complaints)
    )


@functools.cache
def version() -> tuple[int, int]:
    """Of CUDA, that the library belongs to."""
    major, minor = c_int(), c_int()
    asked(library().nvrtcVersion(byref(major), byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """Those it compiles for, as in sm_90, in order."""
    count = c_int()
    asked(library().nvrtcGetNumSupportedArchs(byref(count)), "nvrtcGetNumSupportedArchs")
    numbers = (c_int * count.value)()
    asked(library().nvrtcGetSupportedArchs(numbers), "nvrtcGetSupportedArchs")
    return tuple(sorted(numbers))


def asked(code: int, what: str) -> None:
    if code != 0:
        raise build.BuildError(f"NVRTC failed: {what} gives error {code}.")


# -- compiling -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Target:
    """What is compiled for: machine code (cubin) of one architecture, or, where NVRTC does not
    know it, PTX of the latest it knows, which the driver compiles."""

    architecture: int
    cubin: bool

    @property
    def flag(self) -> str:
        return f"--gpu-architecture={'sm' if self.cubin else 'compute'}_{self.architecture}"


def target(capability: tuple[int, int]) -> Target:
    """For a device of a compute capability.

    Raises:
        BuildError: the device is older than anything NVRTC knows.
    """
    wanted, known = 10 * capability[0] + capability[1], architectures()
    if wanted in known:
        return Target(wanted, True)
    below = [a for a in known if a < wanted]
    if not below:
        raise build.BuildError(f"NVRTC {version()} does not compile for sm_{wanted} any more.")
    return Target(below[-1], False)


def compile_text(text: str, to: Target, more: Sequence[str] = ()) -> bytes:
    """Machine code or PTX of a program. ``more``: further options.

    Raises:
        BuildError: NVRTC is missing, or refuses the text: with its first messages.
    """
    return compiled(text, to, more)[0]


def compiled(text: str, to: Target, more: Sequence[str] = ()) -> tuple[bytes, str]:
    """The same, and what NVRTC says about it. Raises `BuildError`."""
    nvrtc = library()
    headers = {path.name: path.read_bytes() for path in sorted(build.HEADERS.glob("*.h"))}
    program = c_void_p()
    count = len(headers)
    asked(
        nvrtc.nvrtcCreateProgram(
            *(byref(program), text.encode(), b"program.cu", count),
            (c_char_p * count)(*headers.values()),
            (c_char_p * count)(*(name.encode() for name in headers)),
        ),
        "nvrtcCreateProgram",
    )
    try:
        options = [o.encode() for o in (*OPTIONS, to.flag, *more)]
        code = nvrtc.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))
        log = fetched("nvrtcGetProgramLog", program).decode(errors="replace")
        if code != 0:
            raise build.BuildError(
                f"NVRTC {version()} failed for {to.flag}:\n{build.first_errors(log)}"
            )
        return fetched("nvrtcGetCUBIN" if to.cubin else "nvrtcGetPTX", program), log
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def fetched(name: str, program: c_void_p) -> bytes:
    size = c_size_t()
    asked(getattr(library(), f"{name}Size")(program, byref(size)), f"{name}Size")
    buffer = ctypes.create_string_buffer(size.value)
    asked(getattr(library(), name)(program, buffer), name)
    return re.sub(b"\0+$", b"", buffer.raw) if name != "nvrtcGetCUBIN" else buffer.raw
