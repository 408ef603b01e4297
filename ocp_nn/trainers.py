"""Any method of `ocp` as a trainer of small networks, by the dense engine.

Full second-order DDP (V_h . g_ux and sigma_hh), iLQR, Newton's method, and those of the maximum
principle: gradient steps, the method of successive approximations and its extended form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ocp.problem import Problem
from ocp.solution import Status
from ocp.solve import make_solver
from ocp.solvers import Solver
from ocp.solvers.loop import State
from ocp_nn.compile import (
    Inputs,
    compile,
    initial_controls,
    network_of,
    samples_of,
    with_data,
    write_back,
)
from ocp_nn.cost import LossCost
from ocp_nn.divergence import DivergedError, Watch, grown
from ocp_nn.losses import Loss

CARRIED = ("damping", "second_order")  # of a solver's state, from batch to batch
LARGEST = 5_000  # controls of one stage up to which its (m, m) matrices are made


class SolverTrainer:
    """``step(inputs, targets)``: one iteration of a method of `ocp.solve` on each batch.

    Args:
        model, loss, weight_decay: see `ocp_nn.compile`.
        method: "ddp", "ilqr", "newton", "pmp", "msa", "emsa" or a solver.
        options: of the method, see `ocp.solve`. Damping carries over from batch to batch.

    Attributes:
        param_groups: the parameters, as one group. These methods have no learning rate, it is nan.

    Raises:
        ValueError: no such method, or at the first step a stage too large for dense matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        method: str | Solver = "ddp",
        *,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        self.model, self.loss, self.weight_decay = model, loss, weight_decay
        self.solver = make_solver(method, engine="eager", **options)
        self.problem: Problem | None = None
        self.state: State | None = None
        self.restored: dict[str, Tensor] = {}
        self.steps, self.watch, self.good = 0, Watch(), list[Tensor]()
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": math.nan}]

    @torch.no_grad()
    def step(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """One iteration; the cost of the batch before it, weight decay included.

        Raises:
            DivergedError: see `DDPOptimizer.step`.
        """
        if self.problem is None:
            self.problem = compile(
                self.model, self.loss, inputs, targets, weight_decay=self.weight_decay
            )
            largest = max(self.problem.control_dims)
            if largest > LARGEST:
                raise ValueError(
                    f"a stage has {largest} weights; the dense engine needs matrices of that size "
                    f"squared, and takes at most {LARGEST}: DDPOptimizer forms none."
                )
        else:
            self.problem = with_data(self.problem, inputs, targets)
        us = initial_controls(self.problem)
        fresh = self.solver.init(self.problem, us)
        self.steps += 1
        self.check_course(float(fresh.cost[0]), us)
        if before := self.carried():
            fresh = fresh._replace(damping=before["damping"], second_order=before["second_order"])
        state = self.solver.step(self.problem, fresh)
        if int(state.status) == Status.NON_FINITE:
            raise DivergedError(self.steps, "the loss or its derivatives are not finite")
        self.state = state
        write_back(self.problem, [u[0] for u in state.us])
        return fresh.cost[0]

    def carried(self) -> dict[str, Tensor]:
        """What a step takes over from the one before."""
        if self.state is None:
            return self.restored
        return {name: getattr(self.state, name) for name in CARRIED}

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs, besides the model's weights, to continue bit for bit."""
        watch = {"reference": self.watch.reference, "high": self.watch.high}
        return {"steps": self.steps, "watch": watch, "carried": self.carried()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the model's weights of then."""
        self.steps, self.restored = state_dict["steps"], dict(state_dict["carried"])
        self.watch.reference = state_dict["watch"]["reference"]
        self.watch.high = state_dict["watch"]["high"]
        self.state, self.good = None, []

    def check_course(self, loss: float, us: list[Tensor]) -> None:
        """As `DDPOptimizer.check_course`."""
        assert self.problem is not None and isinstance(self.problem.cost, LossCost)
        watch, good, network = self.watch, self.good, network_of(self.problem)
        if watch.reference == 0:
            X, target = samples_of(self.problem)
            nothing = X.new_zeros(X.shape[0], network.stages[-1].n_out)
            watch.start(loss, float(self.problem.cost.loss.value(nothing, target).mean()))
        if watch.good(loss):
            self.good = us
        if watch.diverged(loss):
            fault, kept = watch.words(loss), "the weights of before the step"
            if good:
                fault += f"; {grown([s.name for s in network.stages], us, good)}"
                write_back(self.problem, good)
                kept = "the last that gave a good loss"
            self.state, self.restored, watch.high = None, {}, 0
            raise DivergedError(self.steps, fault, kept)
