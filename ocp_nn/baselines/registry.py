"""Every optimiser by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from ocp.solvers import METHODS
from ocp_nn.baselines.base import LossName


class Entry(NamedTuple):
    """Where an optimiser is, and what its name stands for."""

    module: str
    attribute: str
    preset: Mapping[str, Any]
    description: str


def first_order(attribute: str, description: str, **preset: Any) -> Entry:
    return Entry("ocp_nn.baselines.first_order", attribute, preset, description)


def ddp(description: str, **preset: Any) -> Entry:
    return Entry("ocp_nn.optimizer", "DDPOptimizer", preset, description)


def solver(method: str, description: str, **preset: Any) -> Entry:
    return Entry("ocp_nn.trainers", "SolverTrainer", {"method": method, **preset}, description)


_KRONECKER = "ocp_nn.baselines.kronecker"

OPTIMIZERS: dict[str, Entry] = {
    "sgd": first_order("SGD", "stochastic gradient descent", lr=0.2),
    "momentum": first_order("SGD", "SGD with momentum 0.9", lr=0.03, momentum=0.9),
    "rmsprop": first_order("RMSprop", "RMSprop", lr=2e-3),
    "adam": first_order("Adam", "Adam", lr=3e-3),
    "adamw": first_order("AdamW", "Adam with decoupled weight decay", lr=3e-3),
    "muon": first_order("Muon", "Muon for matrices, AdamW for the rest", lr=1e-2, adamw_lr=1e-3),
    "lbfgs": first_order("LBFGS", "L-BFGS with a strong Wolfe line search", lr=1.0),
    "kfac": Entry(
        _KRONECKER, "KFAC", {"lr": 0.03, "damping": 0.02}, "Kronecker-factored natural gradient"
    ),
    "ekfac": Entry(
        _KRONECKER,
        "EKFAC",
        {"lr": 0.003, "damping": 0.001},
        "KFAC with second moments in its eigenbasis",
    ),
    "kwng": Entry(
        "ocp_nn.baselines.wasserstein", "KWNG", {"lr": 0.3}, "Wasserstein natural gradient"
    ),
    "lm": Entry(
        "ocp_nn.baselines.levenberg_marquardt", "LevenbergMarquardt", {}, "Levenberg-Marquardt"
    ),
    "ddp": ddp(
        "differential dynamic programming, Gauss-Newton metric",
        metric="gauss_newton",
        lr=1.0,
        damping=1.0,
        terminal_damping=1.0,
    ),
    "ddp-sgd": ddp("the paper's DDP-SGD", metric="sgd", form="paper", lr=0.2),
    "ddp-rmsprop": ddp(
        "DDP with RMSprop's metric", metric="rmsprop", lr=0.06, terminal_damping=0.6
    ),
    "ddp-adam": ddp("DDP with Adam's metric", metric="adam", lr=0.01, terminal_damping=0.1),
    "ddp-kfac": ddp(
        "DDP with KFAC's metric", metric="kfac", lr=0.1, damping=0.03, terminal_damping=0.1
    ),
    "ddp-ekfac": ddp(
        "DDP with EKFAC's metric", metric="ekfac", lr=0.02, damping=2e-3, terminal_damping=0.1
    ),
    "stagewise-newton": ddp(
        "Gauss-Newton of each stage alone, no coupling", form="stagewise", terminal_damping=0.1
    ),
    "second-order-ddp": solver("ddp", "DDP with all second derivatives, dense: small networks"),
    "pmp": solver("pmp", "gradients of the Hamiltonians, dense engine: small networks"),
    "msa": solver("msa", "successive approximations, plain: small networks"),
    "emsa": solver("emsa", "successive approximations, extended: small networks"),
}
"""Name -> entry; `make_optimizer` builds it. Presets lie between what was best on DIGITS with
batches of 16 and on Fashion-MNIST with batches of 32 (`benchmarks/nn_tuned.json`); long runs of
vanilla DDP need more damping than that."""


def make_optimizer(
    name: str, model: nn.Module, loss: LossName = "cross_entropy", **options: Any
) -> Any:
    """An optimiser with ``step(inputs, targets)``.

    Args:
        name: one of `OPTIMIZERS`.
        model: to train, in place.
        loss: name, callable or `ocp_nn.losses.Loss`.
        options: of its class, see `options_of`; what the name presets can be changed too.

    Raises:
        ValueError: no such optimiser or option, or a value the optimiser refuses.
    """
    entry = find(name)
    known = options_of(name)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            did = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"{name} has no option {option!r}.{did} It has {', '.join(sorted(known))}."
            )
    factory = getattr(import_module(entry.module), entry.attribute)
    return factory(model, loss, **{**entry.preset, **options})


def options_of(name: str) -> dict[str, Any]:
    """Options of an optimiser with their default values; those of torch's class included."""
    entry = find(name)
    cls = getattr(import_module(entry.module), entry.attribute)
    found: dict[str, Any] = {}
    for level in reversed(cls.__mro__):  # a subclass has the last word
        if "__init__" in vars(level) and level is not object:
            for key, argument in inspect.signature(level.__init__).parameters.items():
                if argument.default is not argument.empty:
                    found[key] = argument.default
    if method := entry.preset.get("method"):
        own = {f.name: f.default for f in fields(METHODS[method]) if f.default is not MISSING}
        found = {**own, **found}
        found.pop("engine", None)  # the dense one
    for positional in ("model", "loss", "params", "defaults"):
        found.pop(positional, None)
    return {**found, **entry.preset}


def find(name: str) -> Entry:
    """Raises ValueError: no such optimiser; names close ones."""
    if name not in OPTIMIZERS:
        close = difflib.get_close_matches(name, OPTIMIZERS, 3, 0.5)
        hint = (
            f"Did you mean {' or '.join(close)}?"
            if close
            else f"There are {', '.join(OPTIMIZERS)}."
        )
        raise ValueError(f"there is no optimizer {name!r}. {hint}")
    return OPTIMIZERS[name]
