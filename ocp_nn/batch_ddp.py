"""Batch DDP as a method of `ocp.solve`: the one loop, with its sweep in function space."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ocp import engines
from ocp.engines.base import Trials
from ocp.problem import Problem
from ocp.solution import Solution, Status
from ocp.solvers import ILQR
from ocp.solvers.decide import Decision, Record, decide
from ocp.solvers.loop import Direction, State, record_of
from ocp_nn.coordinates import paper, proximal, stagewise
from ocp_nn.cost import LossCost
from ocp_nn.function_space import FunctionSpace
from ocp_nn.gains import Gains, fit, gains_of
from ocp_nn.matrix_free import matrix_free
from ocp_nn.model import Model
from ocp_nn.outcome import locate, solution_of
from ocp_nn.policy import FunctionPolicy, Source
from ocp_nn.primal import gauss_newton_matrix, primal
from ocp_nn.statistics import Maker, Memory, Scale, Settings, with_momentum

FORMS = ("proximal", "paper", "stagewise", "gradient")
SOLVERS = ("auto", "cholesky", "cg", "primal")
SMALL = 800  # coordinates up to which a Cholesky factor a stage is cheapest at usual dampings
_scales: WeakKeyDictionary[LossCost, dict[Any, tuple[Scale, ...]]] = WeakKeyDictionary()

GAIN_MEMORY = 0.9  # of the running means of seen and promised decrease, batch to batch
DRIFT = 1.1  # change of the damping from batch to batch
DAMPING_RANGE = (1e-14, 1e10)


@dataclass(frozen=True)
class BatchDDP(ILQR):
    """Gauss-Newton DDP of a network in function space, any metric: see `DDPOptimizer`.

    Args:
        metric: kind and options of D_t.
        form: "proximal", ``Q_uu = D + Gauss-Newton``; "paper", ``Q_uu^{-1} := P``; "stagewise",
            ``Q_ux = 0`` with the stage's own curvature; "gradient", ``Q_ux = 0`` and
            ``Q_uu^{-1} = P``: the base method of the metric.
        feedback: True follows the policy on the non-linear network; "linear" takes the step of a
            linear roll-out, the damped Gauss-Newton step of the whole network; False leaves the
            gains out of the roll-out.
        lr: learning rate, or for each stage one of each parameter tensor.
        damping: of the metric, see `statistics`; where damping is adaptive, the first.
        adaptive: move the damping by how well the model predicted the last decrease (Levenberg,
            Marquardt).
        terminal_damping: eps_x, see `FunctionSpace`.
        linear_solver: "cholesky", one factor (r, r) a stage; "cg", conjugate gradients; "primal",
            one factor of the Hessian; "auto" for the cheapest.
        cg_tolerance: relative residual; None for 1e-10 in float64, 1e-5 in float32.
        cg_iterations: at most, a stage.
        mini_batch: take the full step whatever it does to this very batch, and never stop.
        rise: in a mini-batch a step that raises the cost of its own batch by more than so many
            times is shortened, by 4 up to ``trials`` times, or refused; None for no limit.
    """

    metric: Settings = field(default_factory=Settings)
    form: str = "proximal"
    feedback: bool | str = True
    lr: float | tuple[tuple[float, ...], ...] = 1.0
    damping: float = 1.0
    adaptive: bool = False
    terminal_damping: float = 0.0
    linear_solver: str = "auto"
    cg_tolerance: float | None = None
    cg_iterations: int = 200
    mini_batch: bool = False
    rise: float | None = None
    trials: int = 1
    engine: str = "function-space"
    regularisation: str = "proximal"  # type: ignore[assignment]
    name: ClassVar[str] = "batch-ddp"
    accepts_gaps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("form", self.form, FORMS),
            ("linear_solver", self.linear_solver, SOLVERS),
            ("feedback", self.feedback, (True, False, "linear")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}.")
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"damping must be >= 0 and finite, got {self.damping}.")
        if self.form != "proximal" and self.linear_solver in ("cg", "primal"):
            raise ValueError(
                f"linear_solver={self.linear_solver!r} solves the proximal form; form "
                f"{self.form!r} has no such system: 'auto'."
            )
        if self.form in ("paper", "stagewise") and self.feedback == "linear":
            raise ValueError("feedback='linear' is of the proximal form.")

    # -- the pieces of a step --------------------------------------------------------------------
    def init(self, problem: Problem, controls: Any = None, states: Any = None) -> State:
        state = super().init(problem, controls, states)
        self.configure(state.engine)
        return state._replace(damping=torch.full_like(state.damping, self.damping))

    def configure(self, engine: Any) -> None:
        if not isinstance(engine, FunctionSpace):
            raise ValueError(f"{self.name} runs on the function-space engine, not {engine.name!r}.")
        engine.terminal_damping = self.terminal_damping

    def current(self, problem: Problem, state: State) -> State:
        """On other data the activations are those of the present weights.

        Where the damping adapts, it does so by what the last step did to these data: the batch it
        was made for misleads, with fewer samples than weights its loss falls whatever the damping.
        """
        if state.engine.problem is problem:
            return state
        engine: Any = engines.make(problem, self.engine)
        self.configure(engine)
        xs = engine.rollout(state.us)
        state = state._replace(engine=engine, xs=xs, cost=engine.total_cost(xs, state.us))
        memory = state.memory
        if not (self.adaptive and isinstance(memory, Memory) and memory.previous):
            return state
        before, promised = memory.previous
        fell = float(engine.total_cost(engine.rollout(before), before) - state.cost)
        old = memory.gain or (0.0, 0.0)
        gain = tuple(
            GAIN_MEMORY * a + (1 - GAIN_MEMORY) * b
            for a, b in zip(old, (fell, promised), strict=True)
        )
        ratio = gain[0] / max(gain[1], 1e-300)
        factor = 1 / DRIFT if ratio > 0.75 else DRIFT if not ratio >= 0.25 else 1.0
        return state._replace(
            damping=(state.damping * factor).clamp(*DAMPING_RANGE),
            memory=replace(memory, gain=gain, previous=None),
        )

    def direction(self, state: State, expansion: Model) -> Direction:  # type: ignore[override]
        """The sweep. What nobody reads after a mini-batch, its promise and residual, is nan."""
        model, maker = self.prepared(state, expansion)
        source = self.sweep_of(model, maker)
        decrease = residual = torch.full_like(state.cost, torch.nan)
        if self.adaptive or not self.mini_batch:
            decrease = source.decrease.reshape(1)
        if not self.mini_batch:
            residual = torch.stack([model.gradient(t).abs().amax() for t in model.active]).amax()[
                None
            ]
        return Direction(
            policy=FunctionPolicy(model, source, self.enough(state, decrease)),  # type: ignore[arg-type]
            slope=-2 * decrease,
            curvature=2 * decrease,
            residual=residual,
            usable=source.definite.reshape(1),
            sweeps=1,
            memory=maker.next_memory,  # type: ignore[arg-type]
        )

    def prepared(self, state: State, expansion: Model) -> tuple[Model, Maker]:
        """What a sweep is made from: the model, and who makes the metrics."""
        memory = state.memory if isinstance(state.memory, Memory) else Memory()
        model, kept = expansion, None
        if self.metric.kind == "adam":
            model, kept = with_momentum(expansion, self.metric, memory)
        scales = self.scales(state.engine, model)
        return model, Maker(self.metric, model, memory, scales, float(state.damping), kept)

    def gains(self, state: State) -> Gains | None:
        """Of one more sweep, damping and metric included; None where they would be too large."""
        engine: Any = state.engine
        model, maker = self.prepared(state, engine.expand(state.xs, state.us))
        if not model.active or not fit(model):
            return None
        if self.form == "paper" and self.metric.kind != "gauss_newton":
            return gains_of(model, paper(model, maker, True))
        if self.form in ("stagewise", "gradient"):
            return gains_of(model, stagewise(model, maker, self.form == "stagewise"))
        return gains_of(model, proximal(model, maker, True))

    def step_sizes(self, like: Tensor) -> Tensor:
        if not self.mini_batch:
            return super().step_sizes(like)
        trials = 1 if self.rise is None else self.trials
        return sizes_of(0.25, trials, like.dtype, like.device)

    def enough(self, state: State, decrease: Tensor) -> Callable[[float, float], bool] | None:
        """Which step size needs no shorter one, by its cost: what `take` or `decide` accept."""
        if self.mini_batch and self.rise is None:
            return None
        if self.mini_batch:
            bound = float(self.bound(state.cost))
            return lambda a, cost: cost <= bound
        before, promised = float(state.cost), float(decrease)
        return lambda a, cost: before - cost >= self.rules.armijo * a * (2 - a) * promised

    def bound(self, cost: Tensor) -> Tensor:
        """Of the cost of a mini-batch after its step."""
        return cost if self.rise is None else cost + self.rise * cost.abs()

    def sweep_of(self, model: Model, maker: Maker) -> Source:
        if self.form == "paper" and self.metric.kind != "gauss_newton":
            return paper(model, maker, bool(self.feedback))
        if self.form in ("stagewise", "gradient"):
            return stagewise(model, maker, self.form == "stagewise")
        chosen = self.chosen(model)
        if chosen == "cholesky":
            return proximal(model, maker, self.feedback)
        if chosen == "primal":
            if "hessian" not in model.cache:
                model.cache["hessian"] = gauss_newton_matrix(model)
            return primal(model, maker, self.feedback, model.cache["hessian"])
        double = model.rho.dtype == torch.float64
        tolerance = self.cg_tolerance or (1e-10 if double else 1e-5)
        return matrix_free(model, maker, self.feedback, tolerance, self.cg_iterations)

    def chosen(self, model: Model) -> str:
        """The linear solver that "auto" stands for."""
        if self.linear_solver != "auto":
            return self.linear_solver
        if model.parameters < model.r and self.metric.statistics != "value":
            return "primal"
        return "cholesky" if model.r <= SMALL else "cg"

    def scales(self, engine: Any, model: Model) -> tuple[Scale, ...]:
        """Learning rates and L_uu of every stage."""
        cost, own = engine.cost, self.form != "paper" or self.metric.kind == "gauss_newton"
        known = _scales.setdefault(cost, {})
        if (self.lr, own) in known:
            return known[self.lr, own]
        scales = []
        for t, stage in enumerate(engine.network.stages):
            sizes = tuple(p.stop - p.start for p in stage.parameters)
            lr = (self.lr,) * len(sizes) if isinstance(self.lr, float | int) else self.lr[t]
            extra, values = None, (0.0,) * len(sizes)
            decay = cost.decay[t]
            if own and isinstance(decay, Tensor):
                values = tuple(float(decay[p.start]) for p in stage.parameters)
            elif own:
                values = (float(decay),) * len(sizes)
            if own and cost.regulariser is not None and sizes:
                extra = cost.control_diagonal(model.forms[t].close(model.us[t]), t)
            scales.append(Scale(lr, sizes, values, extra))
        if cost.regulariser is None:
            known.clear()  # one learning rate at a time
            known[self.lr, own] = tuple(scales)
        return tuple(scales)

    def record(  # type: ignore[override]
        self, state: State, expansion: Model, direction: Direction, trials: Trials
    ) -> Record:
        tried = trials.cost.abs() < torch.inf
        fine = tried.any(dim=0) if self.mini_batch else torch.isfinite(state.cost + direction.slope)
        return record_of(state, direction, trials, fine, tried)

    def decide(self, record: Record, step_sizes: Tensor) -> Decision:
        if self.mini_batch:
            return self.take(record, step_sizes)
        rules = replace(
            self.own_rules,
            damping_start=max(self.damping, 1.0),
            damping_min=1e-12,
            first_damping=0.0,
        )
        decision = decide(record, step_sizes, rules)
        if not self.adaptive:
            return decision._replace(damping=record.damping)
        return decision._replace(damping=self.marquardt(record, decision))

    def take(self, record: Record, step_sizes: Tensor) -> Decision:
        """The whole step, unless it is not finite; where ``rise`` limits it, the longest tried."""
        fine, choice, size = record.usable & record.finite, record.weak, step_sizes
        accepted, trial_cost = fine, record.trial_cost[0]
        if self.rise is not None:
            good = record.trial_finite & (record.trial_cost <= self.bound(record.cost))
            choice = good.to(torch.uint8).argmax(dim=0)
            accepted = fine & good.any(dim=0)
            size, trial_cost = step_sizes[choice], record.trial_cost[choice, 0]
        return Decision(
            choice=choice,
            accepted=accepted,
            step_size=size,
            expected=-record.slope / 2 if self.adaptive else record.slope,
            decrease=record.cost - trial_cost,
            damping=record.damping,
            penalty=record.penalty,
            second_order=record.second_order,
            weak=record.weak,
            status=self.after_step(record, bool(fine)),
            iterations=record.iterations + 1,
            rollouts=record.iterations,
        )

    def after_step(self, record: Record, fine: bool) -> Tensor:
        """Status after a step of a mini-batch."""
        if not fine:
            return torch.full_like(record.status, int(Status.NON_FINITE))
        if int(record.iterations) + 1 >= self.rules.max_iterations:
            return torch.full_like(record.status, int(Status.MAX_ITERATIONS))
        return record.status

    def marquardt(self, record: Record, decision: Decision) -> Tensor:
        """Damping after the gain ratio of this step (Marquardt 1963; Nielsen 1999)."""
        ratio = (record.cost - record.trial_cost[0]) / (-record.slope / 2).clamp_min(1e-300)
        factor = torch.where(ratio > 0.75, 1 / 3, torch.where(ratio < 0.25, 2.0, 1.0))
        factor = torch.where(decision.accepted, factor, 4.0)
        return (record.damping * factor).clamp(*DAMPING_RANGE)

    def advance(
        self, state: State, direction: Direction, trials: Trials, decision: Decision
    ) -> State:
        if not self.mini_batch:
            after = super().advance(state, direction, trials, decision)
            if not bool(decision.accepted):  # the very lists, so that the model is not made again
                after = after._replace(xs=state.xs, us=state.us)
            return after
        if int(decision.status) == Status.NON_FINITE:
            fault = Memory(fault=locate(state, trials))
            if isinstance(state.memory, Memory):
                fault = replace(state.memory, fault=fault.fault)
            return state._replace(
                status=decision.status,
                iterations=decision.iterations,
                memory=fault,  # type: ignore[arg-type]
            )
        if not bool(decision.accepted):  # no step size was short enough: another batch may do
            return state._replace(
                status=decision.status, iterations=decision.iterations, memory=direction.memory
            )
        chosen = int(decision.choice)
        memory = direction.memory
        if self.adaptive and isinstance(memory, Memory):
            memory = replace(memory, previous=(list(state.us), float(decision.expected)))
        return state._replace(
            xs=trials.xs.trial(chosen),  # type: ignore[union-attr]
            us=trials.us.trial(chosen),  # type: ignore[union-attr]
            cost=trials.cost[chosen],
            status=decision.status,
            iterations=decision.iterations,
            memory=memory,
        )

    @torch.no_grad()
    def result(self, problem: Problem, state: State) -> Solution:
        """The weights, their gradient, and gains and value as in `gains.Gains` where these fit.

        Policy and value are those of one more sweep, with the proximal term: k, K (m, B n), V_X
        (B n,) and V_XX (B n, B n), the states of all samples end to end; None where any is large.
        """
        engine: Any = state.engine
        model = engine.expand(state.xs, state.us)
        gains = None if int(state.status) == Status.NON_FINITE else self.gains(state)
        return solution_of(problem, state, model, gains, self.name)


@functools.lru_cache(maxsize=16)
def sizes_of(ratio: float, trials: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1, ratio, ratio^2, ...: (A,)."""
    return ratio ** torch.arange(trials, dtype=dtype, device=device)
