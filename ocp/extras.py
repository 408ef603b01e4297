"""Optional dependencies: which extra of the package brings what, and a readable refusal."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS: dict[str, tuple[str, ...]] = {
    "cli": ("typer", "rich"),
    "plot": ("matplotlib", "PIL"),
    "progress": ("rich",),
    "mujoco": ("mujoco",),
    "native": ("ziglang",),
    "nn": ("sklearn",),
    "peers": ("casadi",),
    "tensorboard": ("tensorboard",),
}
"""Extra -> the modules it brings, by the names they are imported under."""


def installed(module: str) -> bool:
    """Whether ``module`` (top level) can be found, without importing it."""
    return find_spec(module) is not None


def need(module: str, extra: str, what: str) -> None:
    """Refuse early what would fail late.

    Raises:
        ImportError: ``module`` is not installed; names ``what`` needs it and the extra with it.
    """
    if not installed(module):
        raise ImportError(f"{what} needs {module}: pip install 'torch-ocp[{extra}]'.", name=module)
