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

from ocp.engines.base import Trials
from ocp.problem import Problem, Stages
from ocp_nn.cost import LossCost
from ocp_nn.cotangents import Cotangents
from ocp_nn.forms import Form, form_of
from ocp_nn.losses import CrossEntropy, Loss
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

    def split(self, xs: Stages) -> list[Tensor]:
        """(1, B n) -> (B, n) for each t."""
        return [x.view(self.samples, -1) for x in xs]

    def rollout(self, us: Stages) -> Stages:
        """Activations (1, B n), T + 1 of them, of controls (1, m)."""
        X = self.inputs
        xs = [X.reshape(1, -1)]
        for form, u in zip(self.forms, us, strict=True):
            X = form.forward(X, u[0])
            xs.append(X.reshape(1, -1))
        return xs

    def total_cost(self, xs: Stages, us: Stages) -> Tensor:
        """J: (1,)."""
        return self.objective(xs[-1].view(self.samples, -1), [u[0] for u in us]).reshape(1)

    def objective(self, outputs: Tensor, us: Sequence[Tensor]) -> Tensor:
        """J of outputs (B, c) and controls (m,): ()."""
        cost = self.loss(outputs)
        if self.cost.regularised:
            for t, u in enumerate(us):
                if u.shape[0] > 0:
                    cost = cost + self.cost.control_cost(u, t)
        return cost

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean loss of all samples, from the outputs (B, c) of those here: ()."""
        mean, B = mean_loss(self.cost.loss, outputs, self.target), outputs.shape[0]
        return self.shards.sum(mean * (B / self.shards.count(B)))

    def gaps(self, xs: Stages, us: Stages) -> Stages:
        """Zero: activations always follow from the weights."""
        return [torch.zeros_like(x) for x in xs[1:]]

    def expand(self, xs: Stages, us: Stages) -> Model:
        """The Gauss-Newton model; that of before if nothing moved."""
        if self._last is not None and self._last[0] is xs and self._last[1] is us:
            return self._last[2]
        Xs, weights = self.split(xs), [u[0] for u in us]
        Y, rho, rest = self.loss_model(Xs[-1])
        own: list[Tensor | None] = [None] * len(weights)
        if self.cost.regularised:
            own = [
                self.cost.control_gradient(u, t) if u.shape[0] > 0 else None
                for t, u in enumerate(weights)
            ]
        rho = self.shards.joined(rho)
        model = linearise(self.forms, Xs, weights, Y, rho, rest, own, self.shards)
        self._last = xs, us, model
        return model

    def loss_model(self, outputs: Tensor) -> tuple[Cotangents, Tensor, Tensor | None]:
        """Y_T, rho and remainder of the mean loss at outputs (B, c), of the samples here."""
        loss, B = self.cost.loss, self.shards.count(outputs.shape[0])
        if self.terminal_damping > 0:
            Y = loss.factor(outputs, self.target)
            eye = torch.eye(Y.shape[1], dtype=Y.dtype, device=Y.device)
            L = torch.linalg.cholesky(Y @ Y.mT + self.terminal_damping * eye)
            g = loss.gradient(outputs, self.target)
            rho = torch.linalg.solve_triangular(L, g[..., None], upper=False)[..., 0]
            return Cotangents(L.mT / B**0.5), rho.reshape(-1) / B**0.5, None
        Yt, residual = factor_and_residual(loss, outputs, self.target)
        rows = (Yt * B**-0.5).contiguous()
        if residual is not None:
            return Cotangents(rows), residual.reshape(-1) * B**-0.5, None
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
            return Trials(
                [X.reshape(1, 1, -1) for X in new_xs], [u[None, None] for u in new_us], cost
            )
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
        along_x, along_u = (zip(*(r[i] for r in rolled), strict=True) for i in (0, 1))
        return Trials(
            [torch.stack(parts).view(len(rolled), 1, -1) for parts in along_x],
            [torch.stack(parts)[:, None] for parts in along_u],
            torch.stack(costs)[:, None],
        )

    def gradient(self, model: Model) -> list[Tensor]:
        """dJ/du of each stage (1, m): H_u along the exact co-states."""
        return [
            model.gradient(t)[None] if t in model.active else model.us[t][None]
            for t in range(len(self.forms))
        ]


def plain_softmax(loss: Loss, target: Tensor) -> bool:
    """Cross-entropy with class numbers and nothing else to it."""
    plain = type(loss) is CrossEntropy and loss.positions == 1 and loss.label_smoothing == 0
    return plain and not target.is_floating_point()


def mean_loss(loss: Loss, outputs: Tensor, target: Tensor) -> Tensor:
    if plain_softmax(loss, target):
        return torch.nn.functional.cross_entropy(outputs, target)
    return loss.value(outputs, target).mean()


def factor_and_residual(
    loss: Loss, outputs: Tensor, target: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Y' (B, k, c) and rho (B, k) or None, of each sample's loss."""
    if plain_softmax(loss, target):
        return softmax_model(outputs, target)
    return loss.factor(outputs, target).mT, loss.residual(outputs, target)


def softmax_model(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`CrossEntropy.factor`, transposed, and `residual` for class numbers, in one go.

    Rows ``v_k (delta_kc - w_c v_k / (1 + v_j))`` for the classes k other than the likeliest, j.
    """
    v = (torch.log_softmax(logits, dim=1) / 2).exp()
    j = v.argmax(dim=1, keepdim=True)
    k = torch.arange(v.shape[1] - 1, device=v.device)
    others = k + (k >= j)
    v_j, v_k, label = v.gather(1, j), v.gather(1, others), target[:, None]
    tail = v_k / (1 + v_j)
    weight = (v * v).scatter_add_(1, j, v_j)
    rows = -tail[:, :, None] * weight[:, None]
    rows.scatter_add_(2, others[..., None], v_k[..., None])
    rho = tail * (1 + (j == label) / v_j)
    return rows, rho - (others == label) / v.gather(1, label)
