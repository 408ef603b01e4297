"""Any method of `ocp` as a trainer of small networks, by the dense engine.

Full second-order DDP (V_h . g_ux and sigma_hh), iLQR, Newton's method, and those of the maximum
principle: gradient steps, the method of successive approximations and its extended form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ocp.problem import Problem
from ocp.solution import Status
from ocp.solve import make_solver
from ocp.solvers import Solver
from ocp.solvers.loop import State
from ocp_nn.compile import Inputs, compile, initial_controls, with_data, write_back
from ocp_nn.losses import Loss

LARGEST = 5_000  # controls of one stage up to which its (m, m) matrices are made


class SolverTrainer:
    """``step(inputs, targets)``: one iteration of a method of `ocp.solve` on each batch.

    Args:
        model, loss, weight_decay: see `ocp_nn.compile`.
        method: "ddp", "ilqr", "newton", "pmp", "msa", "emsa" or a solver.
        options: of the method, see `ocp.solve`. Damping carries over from batch to batch.

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

    @torch.no_grad()
    def step(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """One iteration; the cost of the batch before it, weight decay included."""
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
        fresh = self.solver.init(self.problem, initial_controls(self.problem))
        if self.state is not None:
            fresh = fresh._replace(damping=self.state.damping, second_order=self.state.second_order)
        self.state = self.solver.step(self.problem, fresh)
        if int(self.state.status) != Status.NON_FINITE:
            write_back(self.problem, [u[0] for u in self.state.us])
        return fresh.cost[0]
