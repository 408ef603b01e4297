"""What is installed here, what is missing, and whether the package works."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ocp
from ocp.engines.native import build, nvrtc
from ocp.engines.native.compiled import Refused, compiled_for
from ocp.extras import EXTRAS, installed

REQUIRED = ("torch", "numpy", "scipy", "networkx")
DISTRIBUTIONS = {"PIL": "pillow"}  # where the import has another name


def doctor() -> dict[str, dict[str, Any]]:
    """Sections of facts; what is missing is a sentence that says how to get it."""
    return {
        "package": {
            "torch-ocp": ocp.__version__,
            "location": str(Path(ocp.__file__).parent),
            "methods": ", ".join(ocp.METHODS),
            "engines": "eager, native",
            "self-test": self_test("eager"),
        },
        "native engine": native(),
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
        },
        "libraries": {name: library(name) for name in REQUIRED},
        "extras": {
            f"{module} ({extra})": library(module, extra)
            for extra, modules in EXTRAS.items()
            for module in modules
        },
        "machine": {
            "CPUs": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "interop threads": torch.get_num_interop_threads(),
            "devices": ", ".join(devices()),
            "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        },
    }


def healthy(sections: dict[str, dict[str, Any]]) -> bool:
    """Whether everything required is there and the self-test passed."""
    libraries = sections["libraries"].values()
    return str(sections["package"]["self-test"]).startswith("passed") and not any(
        str(value).startswith("missing") for value in libraries
    )


def library(module: str, extra: str | None = None) -> str:
    """Version of an installed module, or how to get it."""
    if not installed(module):
        name = "torch-ocp" if extra is None else f"torch-ocp[{extra}]"
        return f"missing: pip install '{name}'"
    try:
        return version(DISTRIBUTIONS.get(module, module))
    except PackageNotFoundError:
        return "installed, version unknown"


def gpu_compiler() -> str:
    """What compiles programs for NVIDIA GPUs, if PyTorch can use one."""
    if not torch.cuda.is_available():
        return "not needed: PyTorch sees no NVIDIA GPU"
    try:
        return "NVRTC {}.{}".format(*nvrtc.version())
    except build.BuildError as error:
        return f"missing: {error}"


def devices() -> list[str]:
    """The CPU, and the accelerators that PyTorch can use."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        found.append("mps (float32 only)")
    return found


def native() -> dict[str, str]:
    """What compiles, where libraries are kept, how wide they compute; or what is missing."""
    default = {"auto means": os.environ.get("OCP_ENGINE", "native where it can")}
    try:
        compiler, cache = build.compiler(), build.cache_directory()
        width = compiled_for(example()).info
    except (build.BuildError, Refused) as error:
        return default | {"compiler": f"missing: {error}"}
    kept = len(list(cache.glob("*.json")))
    return default | {
        "compiler": f"{' '.join(compiler.command)} ({compiler.version})",
        "cache": f"{cache}, {kept} programs",
        "SIMD": f"{width.lanes} numbers of {width.bytes} bytes at a time",
        "GPU compiler": gpu_compiler(),
        "self-test": self_test("native"),
    }


def example() -> ocp.Problem:
    """``min u0^2 + u1^2 + x2^2, x' = x + u, x0 = 3``: J = 3, by hand."""
    x0 = torch.tensor([3.0], dtype=torch.float64)
    two = 2 * torch.ones(1, dtype=torch.float64)
    cost = ocp.QuadraticCost(Q=0 * two, R=two, Q_final=two)
    return ocp.Problem(lambda x, u, t: x + u, cost, x0, 2, 1)


def self_test(engine: str) -> str:
    """Solve the example by LQR."""
    problem = example()
    begin = time.perf_counter()
    solution = ocp.solve(problem, "lqr", progress=False, engine=engine)
    seconds = time.perf_counter() - begin
    if bool(solution.converged) and abs(float(solution.cost) - 3.0) < 1e-9:
        return f"passed in {seconds:.2f} s"
    return f"FAILED: a linear-quadratic problem of cost 3 ended as {solution!r}"
