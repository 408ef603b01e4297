"""The course of a run by `DDPOptimizer`: its good weights, and when it has diverged."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ocp.problem import Stages
from ocp.solvers.loop import State
from ocp_nn.divergence import Watch, grown
from ocp_nn.function_space import FunctionSpace


class Good(NamedTuple):
    """Weights that gave a good loss, and what else the step from them needs."""

    step: int
    us: Stages
    memory: Any
    damping: Tensor
    buffers: list[Tensor]  # where batch norm writes to them


class Verdict(NamedTuple):
    """On a run that has diverged."""

    state: State  # to go on from
    fault: str  # what grew, where
    kept: str  # which weights these are


class Course:
    """Watches the losses and keeps the last good weights, by reference.

    Args:
        model: whose buffers are kept where they change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.watch = model, Watch()
        self.good = Good(0, [], None, torch.zeros(1), [])

    def look(self, step: int, loss: float, state: State, buffers: bool) -> Verdict | None:
        """Before a step: the loss of its batch and the state it starts from.

        Returns:
            None, or where the run has diverged what to go back to; buffers are back already.
        """
        watch, good, engine = self.watch, self.good, cast(FunctionSpace, state.engine)
        if watch.reference == 0:
            outputs = state.xs[-1].view(engine.samples, -1)
            watch.start(loss, float(engine.loss(torch.zeros_like(outputs))))
        if watch.good(loss):
            copies = [b.clone() for b in self.model.buffers()] if buffers else []
            self.good = Good(step, state.us, state.memory, state.damping, copies)
        if not watch.diverged(loss):
            return None
        fault, watch.high = watch.words(loss), 0
        if len(good.us) != len(state.us):
            return Verdict(state, fault, "the weights of before the step")
        names = [stage.name for stage in engine.network.stages]
        fault += f"; {grown(names, [u[0] for u in state.us], [u[0] for u in good.us])}"
        for buffer, value in zip(self.model.buffers(), good.buffers, strict=False):
            buffer.copy_(value)
        back = state._replace(us=good.us, memory=good.memory, damping=good.damping)
        return Verdict(back, fault, f"those of before step {good.step}, the last good ones")
