"""Which packages of other people's solvers there are, and which of them are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ocp.extras import installed
from ocp.peers import casadi_solvers, crocoddyl_solvers
from ocp.peers.answers import Guess, Solve
from ocp.peers.expressions import Model


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        modules: it needs, by the names they are imported under.
        install: command that brings them.
        names: its solvers for a model.
        prepare: ``(model, solver, guess, most iterations) -> solve``.
        how: what a reader has to know about how its functions are called, for a model.
    """

    name: str
    modules: tuple[str, ...]
    install: str
    names: Callable[[Model], tuple[str, ...]]
    prepare: Callable[[Model, str, Guess, int], Solve]
    how: Callable[[Model], str]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(module for module in self.modules if not installed(module))


def through_python(model: Model) -> str:
    return (
        "the model of each stage is called through Python, so that the time is not that of its C++"
    )


BRINGS_CASADI = "pip install 'torch-ocp[peers]'"
PACKAGES: dict[str, Package] = {
    p.name: p
    for p in (
        Package(
            "casadi",
            ("casadi",),
            BRINGS_CASADI,
            casadi_solvers.names,
            casadi_solvers.prepare,
            casadi_solvers.how,
        ),
        Package(
            "crocoddyl",
            ("casadi", "crocoddyl"),
            f"{BRINGS_CASADI} crocoddyl (Linux and macOS)",
            crocoddyl_solvers.names,
            crocoddyl_solvers.prepare,
            through_python,
        ),
        Package(
            "mim_solvers",
            ("casadi", "crocoddyl", "mim_solvers"),
            f"{BRINGS_CASADI} mim-solvers (Linux and macOS)",
            crocoddyl_solvers.sqp_names,
            crocoddyl_solvers.prepare_sqp,
            through_python,
        ),
    )
}


def chosen(asked: str | Iterable[str]) -> tuple[list[Package], list[str]]:
    """Packages by name, or all that are installed; and a line about each that is not.

    Raises:
        ValueError: there is no such package, or none of all is installed.
        ImportError: one asked for by name is not installed; says how to.
    """
    names = [asked] if isinstance(asked, str) else list(asked)
    if names == ["all"]:
        found = [p for p in PACKAGES.values() if not p.missing]
        absent = [absence(p) for p in PACKAGES.values() if p.missing]
        if not found:
            raise ValueError(f"no peer is installed. {' '.join(absent)}")
        return found, absent
    packages = []
    for name in dict.fromkeys(names):
        if name not in PACKAGES:
            raise ValueError(f"no peer {name!r}; there are {', '.join(PACKAGES)}, and all.")
        if PACKAGES[name].missing:
            raise ImportError(absence(PACKAGES[name]), name=PACKAGES[name].missing[0])
        packages.append(PACKAGES[name])
    if not packages:
        raise ValueError(f"peers is empty; there are {', '.join(PACKAGES)}, and all.")
    return packages, []


def absence(package: Package) -> str:
    missing = package.missing
    if missing == (package.name,):
        return f"{package.name} is not installed: {package.install}."
    return f"{package.name} needs {' and '.join(missing)}, not installed here: {package.install}."
