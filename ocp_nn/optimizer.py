"""`DDPOptimizer`: one step of batch DDP for each mini-batch, as a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ocp.problem import Problem
from ocp.processes import group_of
from ocp.solution import Status
from ocp.solvers.loop import State
from ocp_nn.arguments import check_number, check_precision, from_closure, plain_module
from ocp_nn.batch_ddp import BatchDDP
from ocp_nn.compile import Inputs, compile, network_of, samples_of, with_data
from ocp_nn.continued import kept, restored, running, with_weights
from ocp_nn.cost import Regulariser
from ocp_nn.course import Course
from ocp_nn.defaults import chosen
from ocp_nn.divergence import DivergedError
from ocp_nn.losses import BinaryCrossEntropy, CrossEntropy, Loss, make_loss
from ocp_nn.shards import agreed, check_spread, spread_weights, summed
from ocp_nn.statistics import Memory, Settings

KEY = "ddp"  # of what is ours in a state_dict


class DDPOptimizer(torch.optim.Optimizer):
    """Differential dynamic programming of a network, its layers as stages.

    ``step(inputs, targets)`` compiles the network once, then makes one `ocp` solver step on that
    problem with each batch's data. Source: Liu, Chen, Theodorou, "DDPNOpt" (ICLR 2021).

    Args:
        model: see `ocp_nn.compile`; in training or evaluation mode as it is at each step.
        loss: "cross_entropy", "binary_cross_entropy", "mse", "huber", a torch loss or a function.
        lr: scales the metric, ``D = L_uu + (M + damping I) / lr``; what schedulers move. With
            neither lr nor damping the metric's own numbers begin, and steps are kept in bounds
            whatever the scale of layers, data and loss, see `ocp_nn.defaults`; with either, the
            numbers are exactly as given.
        metric: M: "gauss_newton" (0), "sgd" (I), "rmsprop", "adam", "kfac" or "ekfac".
        form: "proximal", ``Q_uu = D + Gauss-Newton``; "paper", ``Q_uu^{-1} = D^{-1}`` (eq. 15; with
            "gauss_newton" both are the same); "stagewise", stage-wise Newton; "gradient", the base
            method of the metric, without any coupling of the stages.
        feedback: True, "linear" (the damped Gauss-Newton step) or False; see `BatchDDP`.
        damping: a number, None for the metric's own, or "adaptive": Levenberg-Marquardt, judged on
            the same data if ``full_batch``, on the next batch if not.
        terminal_damping: eps_x in ``Phi_XX + eps_x I / B``; None for 0, or 0.1 where neither lr nor
            damping is given and the loss saturates (the cross-entropies).
        weight_decay: as in torch: its gradient is ``weight_decay u``; its curvature is in Q_uu.
        regulariser: of the weights of each stage, see `ocp_nn.compile`.
        line_search: halve the step until this batch's loss falls enough.
        solver: "auto", "cholesky", "cg" or "primal", see `BatchDDP`.
        full_batch: every step gets the whole set: steps that raise its loss are refused.
        statistics, decay, momentum, refresh: of the metric, see `statistics.Settings`.
        params: parameter groups, as for any optimiser; None for one group with all parameters.
        batch_norm, dropout: see `ocp_nn.compile`; ``dropout`` is the first seed.
        process_group: of torch.distributed, or "default": every process of it calls ``step`` with
            its own samples, and all take the step of the samples together. They start from the
            weights of the first process; dropout draws other masks in each.

    Raises:
        ValueError, TypeError: an argument, naming what it got and what it needs.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        lr: float | None = None,
        *,
        metric: str = "gauss_newton",
        form: str = "proximal",
        feedback: bool | str = True,
        damping: float | str | None = None,
        terminal_damping: float | None = None,
        weight_decay: float = 0.0,
        regulariser: Regulariser | None = None,
        line_search: bool = False,
        solver: str = "auto",
        full_batch: bool = False,
        statistics: str = "fisher",
        decay: float = 0.95,
        momentum: float = 0.9,
        refresh: int = 20,
        params: Iterable[Any] | None = None,
        batch_norm: str = "exact",
        dropout: int | None = None,
        process_group: Any = None,
    ) -> None:
        model = plain_module(model)
        settings = Settings(metric, statistics, decay, momentum, refresh)
        check_number("weight_decay", weight_decay)
        lr, self.solver = chosen(
            lr, settings, form, feedback, damping, terminal_damping, solver, line_search,
            full_batch, saturates=isinstance(make_loss(loss), CrossEntropy | BinaryCrossEntropy),
        )  # fmt: skip
        names = {p: n for n, p in model.named_parameters() if p.requires_grad}
        if not names:
            raise ValueError("model has no trainable parameters.")
        super().__init__(
            list(names) if params is None else params, {"lr": lr, "weight_decay": weight_decay}
        )
        self.check_members(names)
        if missing := sorted(names[p] for p in names.keys() - set(self.parameters())):
            raise ValueError(
                f"params lacks {missing}: every trainable parameter of the model is a control. "
                "Freeze those that should stay: requires_grad_(False)."
            )
        self.model, self.loss, self.names = model, loss, names
        self.batch_norm, self.dropout, self.regulariser = batch_norm, dropout, regulariser
        self.group = None
        if process_group is not None:
            self.group = group_of("process_group", process_group)
        self.rank = 0 if self.group is None else self.group.rank()
        self.total = None if self.group is None else summed(self.group)
        if self.group is not None:
            spread_weights(model, self.group)
        self.modules, self.candidates = list(model.modules()), list(model.parameters())
        self.steps, self.batch_norms = 0, False
        self.course = Course(model)
        self.problem: Problem | None = None
        self.solver_state: State | None = None
        self.places: list[Tensor] = []  # the model's parameters in the order of the stages'
        self._restored: dict[str, Any] | None = None
        self._shape: tuple[Any, ...] = ()
        self._given: tuple[Any, ...] = ()
        self._versions: tuple[tuple[int, int], ...] = ()
        self._written: tuple[int, ...] = ()
        self._rates: tuple[float, ...] = ()

    def check_members(self, names: Mapping[Any, str]) -> None:
        """Groups hold trainable parameters of the model and nothing else."""
        for i, group in enumerate(self.param_groups):
            if foreign := [tuple(p.shape) for p in group["params"] if p not in names]:
                raise ValueError(
                    f"group {i} of params has tensors of shape {foreign}, which are no trainable "
                    "parameters of the model."
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's: for parameters of the model that were frozen before.

        Raises:
            ValueError: they are none.
        """
        super().add_param_group(param_group)
        if hasattr(self, "names"):  # torch calls this while it is constructed
            names = {p: n for n, p in self.model.named_parameters() if p.requires_grad}
            try:
                self.check_members(self.names | names)
            except ValueError:
                self.param_groups.pop()
                raise
            self.names = self.names | names
            self._rates = ()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a DDPOptimizer is not copied or pickled: make one of the copied model and give it the "
            "state_dict() of this one."
        )

    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    # -- the step ------------------------------------------------------------------------------
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        inputs: Inputs | Callable[[], Any] | None = None,
        targets: Tensor | None = None,
        closure: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """One step on a batch.

        Args:
            inputs: (B, ...), or a tuple of such; or a closure that returns inputs and targets.
            targets: (B, ...), as the loss wants them.
            closure: evaluated first, as torch's optimisers do; its value is returned instead.

        Returns:
            The mean loss of the batch before the step.

        Raises:
            DivergedError: the step was not finite, the weights are those of before; or losses in
                a row are 100 times the first, the weights are the last that gave less than twice.
            ValueError, TypeError: the batch does not fit the model or the loss, or is not finite.
        """
        if targets is None:
            inputs, targets = from_closure(inputs)
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        assert inputs is not None and not callable(inputs)
        check_precision(next(iter(self.names)))
        problem = self.prepared(inputs, targets)
        solver = self.solver_now()
        state = solver.current(problem, self.begin(problem, solver))
        engine: Any = state.engine
        loss = state.cost[0]
        if engine.cost.regularised:
            loss = engine.loss(state.xs[-1].view(engine.samples, -1))
        self.steps += 1
        self.check_course(float(loss), state)
        after = solver.step(problem, state)
        if int(after.status) == Status.NON_FINITE:
            self.solver_state = state
            memory = after.memory
            fault = memory.fault if isinstance(memory, Memory) else ""
            raise DivergedError(self.steps, fault or "the loss or its derivatives")
        if self.batch_norms:
            engine.network.update_running_statistics(
                engine.inputs, [u[0] for u in state.us], self.total
            )
        self.solver_state = after
        self.write(after)
        return loss if value is None else value

    def check_course(self, loss: float, state: State) -> None:
        """Note good weights; a run whose losses have left all bounds is put back to the last.

        Raises:
            DivergedError: it was.
        """
        verdict = self.course.look(self.steps, loss, state, self.batch_norms)
        if verdict is None:
            return
        self.write(verdict.state)
        self.solver_state, self._written = verdict.state, ()
        raise DivergedError(self.steps, verdict.fault, verdict.kept)

    # -- what a step starts from -----------------------------------------------------------------
    def prepared(self, inputs: Inputs, targets: Tensor) -> Problem:
        """The compiled problem with these data: the one of before if they are the same tensors."""
        given = (*(inputs if isinstance(inputs, list | tuple) else (inputs,)), targets)
        versions = tuple((id(v), v._version) for v in given if isinstance(v, Tensor))
        shape = (
            tuple(m.training for m in self.modules),
            self.trained(),
            tuple((v.shape[1:], v.dtype, v.device) for v in given if isinstance(v, Tensor)),
            tuple(group["weight_decay"] for group in self.param_groups),
        )
        if self.problem is None or self._shape != shape:
            self.problem = compile(
                self.model, self.loss, inputs, targets, weight_decay=dict(self.decays()),
                regulariser=self.regulariser, batch_norm=self.batch_norm, dropout=self.seed(),
            )  # fmt: skip
            if self.group is not None:
                check_spread(self.problem)
                cost = replace(self.problem.cost, group=self.group)
                self.problem = self.problem.replace(cost=cost)
                self.freeze(self.problem)
            if self._shape and self._shape[1] != shape[1]:  # other weights, or other numbers
                self.solver_state, self._restored, self._rates = None, None, ()
            self._shape, self.places = shape, places_of(self.problem, self.model)
            self.batch_norms = any(isinstance(m, _BatchNorm) and m.training for m in self.modules)
        elif self.same(versions) and self.dropout is None and not self.frozen:
            return self.problem
        else:
            self.problem = with_data(self.problem, inputs, targets, seed=self.seed())
            if self.frozen:
                self.freeze(self.problem)
        self._given, self._versions = given, versions  # kept alive: an id is not used again
        return self.problem

    @property
    def frozen(self) -> bool:
        """Whether batch norms take the statistics of each batch as constants."""
        return self.batch_norms and self.batch_norm == "frozen"

    def freeze(self, problem: Problem) -> None:
        """Statistics of this batch, of the samples of all processes."""
        network = network_of(problem)
        network.freeze(samples_of(problem)[0], network.pack(), self.total)

    def trained(self) -> tuple[Any, ...]:
        """Which parameters are controls now, of what kind.

        Raises:
            ValueError: one that is in no group.
        """
        flags = tuple(p.requires_grad for p in self.candidates)
        if not self._shape or flags != self._shape[1][0]:
            found = self.model.named_parameters()
            if new := sorted(n for n, p in found if p.requires_grad and p not in self.names):
                raise ValueError(
                    f"{new} train since requires_grad_(True), but are in no group: "
                    "optimizer.add_param_group({'params': ...})."
                )
        first = self.candidates[0]
        return flags, first.dtype, first.device

    def same(self, versions: tuple[tuple[int, int], ...]) -> bool:
        """Whether the data are those of before, in every process."""
        mine = versions == self._versions
        if self.group is None:
            return mine
        return agreed(self.group, mine, next(iter(self.names)).device)

    def seed(self) -> int | None:
        """Of this step's dropout masks; the generator reads 32 bits of it."""
        return None if self.dropout is None else self.dropout + self.steps + 1_000_003 * self.rank

    def begin(self, problem: Problem, solver: BatchDDP) -> State:
        """The state of before with the model's weights as they are now, running."""
        state, written = self.solver_state, self.weights_version()
        if state is None or len(state.us) != problem.horizon:
            fresh = solver.init(problem, network_of(problem).pack())
            if state is not None:
                fresh = fresh._replace(memory=state.memory, damping=state.damping)
            if self._restored is not None:
                fresh = restored(fresh, self._restored)
                self._restored = None
            return fresh
        if written != self._written:
            state = with_weights(state, problem, network_of(problem).pack())
        return running(state)

    def weights_version(self) -> tuple[int, ...]:
        """Changes whenever somebody writes into a parameter."""
        return tuple(p._version for p in self.names)

    def write(self, state: State) -> None:
        """Controls into the model."""
        engine: Any = state.engine
        us = engine.opened(state.us)
        values = [v for form, u in zip(engine.forms, us, strict=True) for v in form.parameters(u)]
        torch._foreach_copy_(self.places, values)
        self._written = self.weights_version()

    def solver_now(self) -> BatchDDP:
        """The solver with the learning rates that the groups have now."""
        rates = tuple(float(group["lr"]) for group in self.param_groups)
        if rates != self._rates:
            for rate in rates:
                check_number("lr", rate)
            self._rates = rates
            by_name = {
                self.names[p]: rate
                for group, rate in zip(self.param_groups, rates, strict=True)
                for p in group["params"]
            }
            assert self.problem is not None
            lr: Any = rates[0]
            if len(set(rates)) > 1:
                stages = network_of(self.problem).stages
                lr = tuple(tuple(by_name[p.name] for p in s.parameters) for s in stages)
            self.solver = replace(self.solver, lr=lr)
        return self.solver

    def decays(self) -> tuple[tuple[str, float], ...]:
        """Weight decay of every parameter, by name."""
        return tuple(
            (self.names[p], float(group["weight_decay"]))
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        )

    @property
    def damping(self) -> float:
        """In force for the next step."""
        state = self.solver_state
        return self.solver.damping if state is None else float(state.damping)

    # -- checkpoints -----------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Groups as torch has them, and under "ddp" what a step needs of the steps before."""
        own: dict[str, Any] = {"steps": self.steps, "reference": self.course.watch.reference}
        if self.solver_state is not None:
            own |= kept(self.solver_state)
        elif self._restored is not None:
            own |= self._restored
        return {**super().state_dict(), KEY: own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken, with the model's weights of then.

        What is ours is not cast to the parameters' dtype, as torch does with its own state.

        Raises:
            ValueError: the dict is of another optimiser.
        """
        if KEY not in state_dict:
            raise ValueError("state_dict is not of a DDPOptimizer: it has no entry 'ddp'.")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != KEY})
        own = deepcopy(state_dict[KEY])
        self.steps, self.solver_state = own.pop("steps"), None
        self.course.watch.reference, self.course.watch.high = own.pop("reference"), 0
        self._restored, self._rates = own, ()


def places_of(problem: Problem, model: nn.Module) -> list[Tensor]:
    """The model's parameters, stage by stage."""
    values = dict(model.named_parameters())
    return [values[p.name] for stage in network_of(problem).stages for p in stage.parameters]
