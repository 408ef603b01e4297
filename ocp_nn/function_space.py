"""The engine of networks: the whole backward pass in r = B k numbers.

Source: the batch DDP of Liu, Chen, Theodorou, "DDPNOpt" (ICLR 2021), eq. 29-37, whose matrices
``V_XX`` (B n x B n) and ``Q_uu`` (m x m) are here ``Y S^{-1} Y'`` and ``D + F_u' Y' .. Y F_u``,
exactly and without forming either. Related: Cai et al., "Gram-Gauss-Newton" (2019); Ren, Goldfarb
(2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ocp.engines.base import Begun, Trials
from ocp.problem import Problem, Stages
from ocp_nn.cost import LossCost
from ocp_nn.cotangents import Cotangents
from ocp_nn.forms import Control, Form, form_of
from ocp_nn.laid import Laid, Tried
from ocp_nn.loss_models import factor_and_residual, mean_loss
from ocp_nn.model import Model, linearise
from ocp_nn.policy import FunctionPolicy
from ocp_nn.shards import WHOLE, Shards, Spread
from ocp_nn.stages import Network

_forms: WeakKeyDictionary[Network, tuple[Form, ...]] = WeakKeyDictionary()


def forms_of(network: Network) -> tuple[Form, ...]:
    """Of its stages; made once."""
    if network not in _forms:
        _forms[network] = tuple(form_of(stage) for stage in network.stages)
    return _forms[network]


class FunctionSpace:
    """Rolls out, expands and follows policies of a compiled network, all samples in each call.

    States are (1, B n) and controls (1, m) a stage, as for every problem with shared controls.

    Args:
        problem: made by `ocp_nn.compile`.
        terminal_damping: eps_x of ``Phi_XX + eps_x I / B``: keeps the curvature of a saturated
            softmax from vanishing.

    Raises:
        TypeError: the problem is no compiled network.
        ValueError: terminal_damping is negative.
    """

    name = "function-space"

    def __init__(self, problem: Problem, terminal_damping: float = 0.0) -> None:
        if not isinstance(problem.dynamics, Network) or not isinstance(problem.cost, LossCost):
            raise TypeError(
                "the function-space engine is for networks: make the problem by ocp_nn.compile."
            )
        if not 0 <= terminal_damping < float("inf"):
            raise ValueError(f"terminal_damping must be >= 0, got {terminal_damping}.")
        self.problem, self.network, self.cost = problem, problem.dynamics, problem.cost
        self.terminal_damping = terminal_damping
        self.forms = forms_of(self.network)
        target = problem.per_problem["target"]
        self.target: Tensor = target[0] if self.network.whole_batch else target
        self.inputs: Tensor = self.network.rows(problem.x0)
        self.shards: Shards = WHOLE
        if self.cost.group is not None:
            self.shards = Spread(self.cost.group, self.samples, self.inputs.device)
        self._last: tuple[Stages, Stages, Model] | None = None

    @property
    def samples(self) -> int:
        return self.inputs.shape[0]

    # -- what the loop sees, and what is worked with ---------------------------------------------
    def split(self, xs: Stages) -> Sequence[Tensor]:
        """(1, B n) -> (B, n) for each t."""
        return xs.parts if isinstance(xs, Laid) else [x.view(self.samples, -1) for x in xs]

    def opened(self, us: Stages) -> Sequence[Control]:
        """(1, m) -> controls as the forms read them."""
        if isinstance(us, Laid):
            return us.parts
        return [form.open(u[0]) for form, u in zip(self.forms, us, strict=True)]

    def closed(self, t: int, u: Control) -> Tensor:
        return self.forms[t].close(u)

    # -- the engine ------------------------------------------------------------------------------
    def begin(self, us: Stages, xs: Stages | None = None) -> Begun:
        """See `Begun`; activations follow from the weights.

        Raises:
            ValueError: they were given.
        """
        if xs is not None:
            raise ValueError("the function-space engine rolls its controls out: it takes no xs.")
        xs = self.rollout(us)
        cost = self.total_cost(xs, us)
        fine = torch.isfinite(cost) & torch.stack([torch.isfinite(x).all() for x in xs]).all()
        return Begun(xs, us, None, torch.zeros_like(cost), cost, fine)

    def rollout(self, us: Stages) -> Stages:
        """Activations (1, B n), T + 1 of them, of controls (1, m)."""
        Xs = [self.inputs]
        for form, u in zip(self.forms, self.opened(us), strict=True):
            Xs.append(form.forward(Xs[-1], u))
        return Laid(Xs, flat)  # type: ignore[return-value]

    def total_cost(self, xs: Stages, us: Stages) -> Tensor:
        """J: (1,)."""
        return self.objective(self.split(xs)[-1], self.opened(us)).view(1)

    def objective(self, outputs: Tensor, us: Sequence[Control]) -> Tensor:
        """J of outputs (B, c) and open controls: ()."""
        cost = self.loss(outputs)
        if self.cost.regularised:
            for t, u in enumerate(us):
                if self.forms[t].m > 0:
                    cost = cost + self.cost.control_cost(self.closed(t, u), t)
        return cost

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean loss of all samples, from the outputs (B, c) of those here: ()."""
        mean, B = mean_loss(self.cost.loss, outputs, self.target), outputs.shape[0]
        if self.shards is WHOLE:
            return mean
        return self.shards.sum(mean * (B / self.shards.count(B)))

    def gaps(self, xs: Stages, us: Stages) -> Stages:
        """Zero: activations always follow from the weights."""
        return [torch.zeros_like(x) for x in xs[1:]]

    def expand(self, xs: Stages, us: Stages) -> Model:
        """The Gauss-Newton model; that of before if nothing moved."""
        if self._last is not None and self._last[0] is xs and self._last[1] is us:
            return self._last[2]
        Xs, weights = self.split(xs), self.opened(us)
        Y, rho, rest = self.loss_model(Xs[-1])
        own: list[Tensor | None] = [None] * len(weights)
        if self.cost.regularised:
            own = [
                self.cost.control_gradient(self.closed(t, u), t) if self.forms[t].m > 0 else None
                for t, u in enumerate(weights)
            ]
        rho = self.shards.joined(rho)
        model = linearise(self.forms, Xs, weights, Y, rho, rest, own, self.shards)
        self._last = xs, us, model
        return model

    def loss_model(self, outputs: Tensor) -> tuple[Cotangents, Tensor, Tensor | None]:
        """Y_T, rho and remainder of the mean loss at outputs (B, c), of the samples here."""
        loss, B = self.cost.loss, self.shards.count(outputs.shape[0])
        eps = self.terminal_damping
        rows, rho = factor_and_residual(loss, outputs, self.target, eps, B**-0.5)
        if rho is not None:
            return Cotangents(rows), rho.reshape(-1), None
        g = loss.gradient(outputs, self.target)
        return Cotangents(rows), g.new_zeros(rows.shape[0] * rows.shape[1]), g / B

    def follow(
        self,
        xs: Stages,
        us: Stages,
        gaps: Stages | None,
        policy: FunctionPolicy,
        step_sizes: Tensor,
    ) -> Trials:
        """Roll the network out with the policy, one step size after the other."""
        if step_sizes.shape[0] == 1:
            new_xs, new_us = policy.follow(float(step_sizes))
            cost = self.objective(new_xs[-1], new_us).view(1, 1)
            return Trials(Tried([new_xs], flat), Tried([new_us], self.closed), cost)  # type: ignore[arg-type]
        rolled, costs = [], []
        for a in step_sizes.tolist():
            new_xs, new_us = policy.follow(a)
            rolled.append((new_xs, new_us))
            costs.append(self.objective(new_xs[-1], new_us))
            if policy.enough is not None and policy.enough(a, float(costs[-1])):
                break
        missing = len(step_sizes) - len(rolled)  # shorter steps that nobody asks for any more
        rolled += rolled[-1:] * missing
        costs += [torch.full_like(costs[-1], torch.inf)] * missing
        along_x, along_u = ([r[i] for r in rolled] for i in (0, 1))
        tried = Tried(along_x, flat), Tried(along_u, self.closed)
        return Trials(*tried, torch.stack(costs)[:, None])  # type: ignore[arg-type]

    def gradient(self, model: Model) -> list[Tensor]:
        """dJ/du of each stage (1, m): H_u along the exact co-states."""
        return [
            model.gradient(t)[None] if t in model.active else model.rho.new_zeros(1, 0)
            for t in range(len(self.forms))
        ]


def flat(t: int, X: Tensor) -> Tensor:
    return X.reshape(-1)
