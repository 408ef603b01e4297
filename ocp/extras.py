"""Optional dependencies: which extra of the package brings what, and a readable refusal."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

EXTRAS: dict[str, tuple[str, ...]] = {
    "cli": ("typer", "rich"),
    "plot": ("matplotlib", "PIL"),
    "progress": ("rich",),
    "mujoco": ("mujoco",),
}
"""Extra -> the modules it brings, by the names they are imported under."""


def installed(module: str) -> bool:
    """Whether ``module`` (top level) can be found, without importing it."""
    return find_spec(module) is not None


def require(module: str, extra: str, what: str) -> Any:
    """Import an optional module.

    Raises:
        ImportError: it is not installed; names ``what`` needs it and the extra that brings it.
    """
    if not installed(module.partition(".")[0]):
        raise ImportError(
            f"{what} needs {module.partition('.')[0]}: pip install 'torch-ocp[{extra}]'.",
            name=module,
        )
    return importlib.import_module(module)
