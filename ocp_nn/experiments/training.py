"""One training run: mini-batches, measures after every epoch, stopping, resuming."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocp.tables import Row
from ocp_nn.baselines.base import BatchLoss, BatchOptimizer, LossName
from ocp_nn.data import Data
from ocp_nn.divergence import DivergedError
from ocp_nn.experiments import checkpoint
from ocp_nn.experiments.health import Diverged, Guard

CHUNK = 1000  # samples evaluated at once
FAILURES = (torch.linalg.LinAlgError, FloatingPointError)  # type: ignore[attr-defined]
MONITORS = ("test_loss", "test_accuracy", "loss", "accuracy")


class Status(str, Enum):
    """Why a run ended."""

    FINISHED = "FINISHED"  # all epochs
    STOPPED = "STOPPED"  # early, the monitored number no longer improved or the callback said so
    INTERRUPTED = "INTERRUPTED"  # Ctrl-C
    DIVERGED = "DIVERGED"


@dataclass
class Result:
    """What a run achieved; the model has the weights of its last (good) step.

    Attributes:
        rows: one an epoch, the first before any step: epoch, step, loss, accuracy, test_loss,
            test_accuracy (full sets, model.eval()), batch_loss (mean over the epoch's steps, each
            before its step), lr, seconds and cpu_seconds (in optimiser steps only).
        status, message: why it ended.
        best: number of the epoch that the monitored number was best at.
        best_weights: state_dict of that epoch.
    """

    rows: list[Row]
    status: Status
    message: str
    best: int
    best_weights: dict[str, Tensor] = field(repr=False)

    @property
    def last(self) -> Row:
        return self.rows[-1]


@dataclass
class Position:
    """How far a run is, everything that changes besides model and optimiser."""

    epoch: int = 0  # complete ones
    batch: int = 0  # steps made in the epoch under way
    step: int = 0
    loss_sum: float = 0.0  # of the epoch under way
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: int = 0
    best_value: float = float("nan")


Callback = Callable[["Run"], bool | None]


class Run:
    """A run under way; callbacks see it after every step.

    Attributes: as the arguments of `train`; ``position`` says how far it is, ``rows`` what was
    measured, ``loss_value`` the loss of the last batch before its step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: BatchOptimizer,
        data: Data,
        loss: LossName,
        epochs: int,
        batch_size: int,
        seed: int,
        scheduler: Any,
    ) -> None:
        self.model, self.optimizer, self.data = model, optimizer, data
        self.loss, self.epochs, self.batch_size = BatchLoss(loss), epochs, batch_size
        self.seed, self.scheduler = seed, scheduler
        self.position, self.rows = Position(), list[Row]()
        self.loss_value = float("nan")
        self.best_weights = weights_of(model)

    @property
    def batches(self) -> int:
        """Steps in an epoch; the last one may be on fewer samples."""
        return -(-len(self.data.inputs) // self.batch_size)

    def order(self) -> list[Tensor]:
        """Samples of each batch of the epoch under way; a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.position.epoch)
        return list(
            torch.randperm(len(self.data.inputs), generator=generator).split(self.batch_size)
        )

    def make_step(self, chosen: Tensor, guard: Guard) -> None:
        """One optimiser step, timed.

        Raises:
            Diverged: the model is back at its last good weights.
        """
        inputs, targets = self.data.inputs[chosen], self.data.targets[chosen]
        guard.before()
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            self.loss_value = float(self.optimizer.step(inputs, targets))
        except FAILURES as error:  # a factorisation met nan or inf, or the step was not finite
            if not isinstance(error, DivergedError):  # which has done so itself
                guard.restore()
            raise Diverged(f"{type(self.optimizer).__name__}: {error}") from error
        self.position.seconds += time.perf_counter() - begin
        self.position.cpu_seconds += time.process_time() - cpu
        self.position.batch += 1
        self.position.step += 1
        guard.after(self.loss_value)
        self.position.loss_sum += self.loss_value * len(chosen)

    def measure(self) -> Row:
        """A row for the epoch that is complete."""
        p, data = self.position, self.data
        train = evaluate(self.model, self.loss, data.inputs, data.targets)
        test = evaluate(self.model, self.loss, data.test_inputs, data.test_targets)
        mean = p.loss_sum / len(data.inputs) if p.step else float("nan")
        row = {
            "epoch": p.epoch,
            "step": p.step,
            "loss": train[0],
            "accuracy": train[1],
            "test_loss": test[0],
            "test_accuracy": test[1],
            "batch_loss": mean,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": p.seconds,
            "cpu_seconds": p.cpu_seconds,
        }
        self.rows.append(row)
        return row

    def note_best(self, monitor: str) -> None:
        value = self.rows[-1][monitor] * (-1 if "accuracy" in monitor else 1)
        if not value >= self.position.best_value:  # the first one is compared with nan
            self.position.best, self.position.best_value = self.position.epoch, value
            self.best_weights = weights_of(self.model)

    def state(self) -> dict[str, Any]:
        """Everything a later process needs to continue bit for bit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": checkpoint.random_state(),
            "position": vars(self.position).copy(),
            "rows": self.rows,
            "best_weights": self.best_weights,
            "run": {
                "batch_size": self.batch_size,
                "seed": self.seed,
                "samples": len(self.data.inputs),
                "optimizer": type(self.optimizer).__name__,
            },
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the run differs from that one in what decides its steps.
        """
        own = self.state()["run"]
        for key, value in state["run"].items():
            if own[key] != value:
                raise ValueError(
                    f"the checkpoint was written with {key}={value!r}, not {own[key]!r}."
                )
        if (state["scheduler"] is None) != (self.scheduler is None):
            raise ValueError("the checkpoint and this run must both have a scheduler or none.")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        checkpoint.set_random_state(state["random"])
        self.position = Position(**state["position"])
        self.rows = list(state["rows"])
        self.best_weights = state["best_weights"]


def train(
    model: nn.Module,
    optimizer: BatchOptimizer,
    data: Data,
    *,
    loss: LossName = "cross_entropy",
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    patience: int | None = None,
    monitor: str = "test_loss",
    scheduler: Any = None,
    callback: Callback | None = None,
    log: Sequence[Callable[[Row], None]] = (),
    save: str | Path | None = None,
    resume: str | Path | dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    divergence: float = 1e6,
) -> Result:
    """Train until all epochs are done, nothing improves, Ctrl-C, or the run diverges.

    Args:
        model: trained in place. optimizer: of that model, with ``step(inputs, targets)``.
        data: training and test samples on the model's device.
        loss: what is measured; give the optimiser the same.
        epochs: in all, those before a resume included.
        batch_size: samples a step; the last step of an epoch takes what is left.
        seed: of the order of the samples, which depends on nothing else but the epoch.
        patience: stop after so many epochs without a better `monitor`; None never.
        monitor: "test_loss", "test_accuracy", "loss" or "accuracy".
        scheduler: of learning rates, one ``step()`` an epoch.
        callback: called after every step; True stops the run.
        log: each called with the row of every epoch, the one before the first step included.
        save: file of the checkpoint, written after every epoch and at the end.
        resume: a checkpoint or its content: everything continues bit for bit.
        settings: kept in the checkpoint, for whoever resumes it.
        divergence: a batch loss above so many times the first, or that of outputs that are zero,
            ends the run; so do three in a row above 100 times.

    Raises:
        ValueError: an argument outside its range, data that are not finite, a checkpoint of
            another run.
    """
    check(data, epochs, batch_size, patience, monitor)
    run = Run(model, optimizer, data, loss, epochs, batch_size, seed, scheduler)
    if resume is not None:
        run.load(resume if isinstance(resume, dict) else checkpoint.load(resume))

    def keep() -> None:
        if save is not None:
            checkpoint.save(Path(save), {**run.state(), "settings": settings or {}})

    def complete() -> None:
        row = run.measure()
        run.note_best(monitor)
        for write in log:
            write(row)
        keep()

    with interrupts() as pressed:
        if not run.rows:
            complete()
        guard = Guard(model, divergence, loss_of_nothing(run))
        try:
            status, message = epochs_left(
                run, guard, patience, monitor, callback, pressed, complete
            )
            if run.position.batch:  # in the middle of an epoch
                keep()
        except Diverged as error:
            # The checkpoint of the last epoch stays: the optimiser's state is no longer sound.
            status = Status.DIVERGED
            message = (
                f"Diverged at step {run.position.step}, {place(run)}: {str(error).rstrip('.')}. "
                "The model has its last good weights."
            )
    return Result(run.rows, status, message, run.position.best, run.best_weights)


@torch.no_grad()
def loss_of_nothing(run: Run) -> float:
    """Loss of outputs that are zero, of some samples: a scale for losses."""
    x, y = (v[:CHUNK] for v in (run.data.inputs, run.data.targets))
    training = run.model.training
    outputs = run.model.eval()(x)
    run.model.train(training)
    return float(run.loss(torch.zeros_like(outputs), y))


def epochs_left(
    run: Run,
    guard: Guard,
    patience: int | None,
    monitor: str,
    callback: Callback | None,
    pressed: list[int],
    complete: Callable[[], None],
) -> tuple[Status, str]:
    """Train to the end, ``complete`` called after each epoch; why it is the end, in words too.

    Raises:
        Diverged: the model is back at its last good weights.
    """
    while run.position.epoch < run.epochs:
        if exhausted(run, patience):
            best = run.position.best
            return Status.STOPPED, f"{monitor} has not improved since epoch {best}."
        asked = epoch(run, guard, callback, pressed)
        if run.position.batch == 0:
            complete()
        if asked is not None:
            return asked, f"Ended at step {run.position.step}, {place(run)}."
    done = run.position.epoch  # more than asked for, where a longer run was resumed
    return Status.FINISHED, f"{done} epoch{'' if done == 1 else 's'}."


def place(run: Run) -> str:
    p = run.position
    return f"in epoch {p.epoch + 1}" if p.batch else f"after epoch {p.epoch}"


def epoch(run: Run, guard: Guard, callback: Callback | None, pressed: list[int]) -> Status | None:
    """The rest of an epoch, or until someone asks for the end; then the status that has."""
    position, asked = run.position, None
    run.model.train()
    if position.batch == 0:
        position.loss_sum = 0.0
    for chosen in run.order()[position.batch :]:
        run.make_step(chosen, guard)
        if callback is not None and callback(run):
            asked = Status.STOPPED
        if pressed:
            asked = Status.INTERRUPTED
        if asked is not None:
            break
    if position.batch == run.batches:
        position.epoch, position.batch = position.epoch + 1, 0
        if run.scheduler is not None:
            run.scheduler.step()
    return asked


def exhausted(run: Run, patience: int | None) -> bool:
    return patience is not None and run.position.epoch - run.position.best >= patience


def check(data: Data, epochs: int, batch_size: int, patience: int | None, monitor: str) -> None:
    for name, value in (("batch_size", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}.")
    if monitor not in MONITORS:
        raise ValueError(f"monitor must be one of {', '.join(MONITORS)}, got {monitor!r}.")
    for name, values in (("inputs", data.inputs), ("test_inputs", data.test_inputs)):
        bad = ~values.flatten(1).isfinite().all(dim=1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(f"{name} of {data.name} are not finite, first in sample {first}.")


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: BatchLoss | LossName, inputs: Tensor, targets: Tensor
) -> tuple[float, float]:
    """Mean loss and accuracy of a model in eval mode; accuracy nan where targets are no classes.

    The mode of the model is put back.
    """
    loss = loss if isinstance(loss, BatchLoss) else BatchLoss(loss)
    training, total, right = model.training, 0.0, 0.0
    model.eval()
    for x, y in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
        outputs = model(x)
        total += float(loss(outputs, y)) * len(x)
        classes = not y.is_floating_point() and y.ndim == 1 and outputs.ndim == 2
        right += float((outputs.argmax(dim=1) == y).sum()) if classes else float("nan")
    model.train(training)
    return total / len(inputs), right / len(inputs)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in model.state_dict().items()}


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C fills, so that a step is never cut in two; the second one interrupts.

    Outside the main thread signals cannot be handled, and the list stays empty.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
