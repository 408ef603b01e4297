"""What metrics are made of over time: squared gradients, covariances, eigenbases.

A metric is ``D_t = L_uu + (M_t + damping I) / lr`` in the proximal form, without L_uu in the
paper's, with M_t one of

    gauss_newton  0                    the Gauss-Newton term of Q_uu is all the curvature
    sgd           I                    Q_uu^{-1} = lr I
    rmsprop       diag(sqrt(v))        v: running mean of squared gradients
    adam          diag(sqrt(v))        bias-corrected, with a running mean of the gradient
    kfac          G (x) A              Martens, Grosse (2015, 2016), factored Tikhonov damping
    ekfac         U diag(s) U'         George et al. (2018), U the eigenbasis of G (x) A

Nothing here is modified in place: a refused step leaves the statistics of before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ocp_nn.cotangents import Cotangents
from ocp_nn.eigenbasis import eigenbasis
from ocp_nn.forms import LinearForm, PositionsForm
from ocp_nn.metrics import Diagonal, Eigenbasis, Isotropic, Kronecker, Metric, with_one
from ocp_nn.model import Model
from ocp_nn.positions import squares as squares_of
from ocp_nn.shards import WHOLE

METRICS = ("gauss_newton", "sgd", "rmsprop", "adam", "kfac", "ekfac")
PRODUCTS = 6  # with a kernel, for its norm
STATISTICS = ("fisher", "gradient", "value")


@dataclass(frozen=True)
class Settings:
    """How a metric is made; see `DDPOptimizer`.

    Attributes:
        kind: one of `METRICS`.
        statistics: of which cotangents KFAC and EKFAC take covariances: "fisher", the columns of
            Y_t, whose covariance is the exact Fisher matrix of a likelihood; "gradient", those of
            the loss; "value", those of V (eq. 15), known only during the sweep.
        decay: of the running means; momentum: of Adam's mean gradient.
        refresh: steps between eigendecompositions, Cholesky factors of KFAC, and measurements for
            the limit.
        limit: largest norm of a stage's kernel ``F_u P F_u'`` seen through the loss, for each unit
            of the learning rate: where P asks for more, it is shortened. None for no limit.
    """

    kind: str = "gauss_newton"
    statistics: str = "fisher"
    decay: float = 0.95
    momentum: float = 0.9
    refresh: int = 20
    limit: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("metric", self.kind, METRICS),
            ("statistics", self.statistics, STATISTICS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        for name in ("decay", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {self.refresh}.")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit must be positive or None, got {self.limit}.")


Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Memory:
    """What a step leaves to the next.

    Attributes:
        steps: made so far.
        stages: running statistics by stage and name.
        previous: controls before the last step, and the decrease it promised, where the damping
            adapts to what that step did to the next batch.
        gain: running means of decreases seen there and promised.
        fault: what was not finite in a refused step.
    """

    steps: int = 0
    stages: dict[int, Tensors] | None = None
    previous: tuple[list[Tensor], float] | None = None
    gain: tuple[float, float] | None = None
    fault: str = ""

    def of(self, t: int) -> Tensors:
        return {} if self.stages is None else self.stages.get(t, {})


@dataclass(frozen=True)
class Scale:
    """Of a stage: learning rate and curvature of its own cost for each parameter tensor."""

    lr: tuple[float, ...]
    sizes: tuple[int, ...]
    own: tuple[float, ...]  # L_uu of each parameter; zeros in the paper's form
    extra: Tensor | None = None  # diagonal of L_uu (m,) where it is not one number a parameter
    made: dict[float, Isotropic] = field(default_factory=dict, compare=False)

    def vector(self, values: tuple[float, ...], like: Tensor) -> Tensor | float:
        if len(set(values)) == 1:
            return values[0]
        return torch.cat([like.new_full((n,), v) for n, v in zip(self.sizes, values, strict=True)])

    def largest(self) -> float:
        """Entry of L_uu, for metrics that have one number for it."""
        return max(self.own) if self.extra is None else float(self.extra.max())

    def inverse(self, diagonal: Tensor) -> Diagonal:
        """P of ``D = L_uu + diag / lr``."""
        own = self.vector(self.own, diagonal) if self.extra is None else self.extra
        return Diagonal(1 / (own + diagonal / self.vector(self.lr, diagonal)))

    def constant(self, value: float, like: Tensor) -> Metric:
        """P of ``D = L_uu + value I / lr``."""
        if self.extra is not None:
            return self.inverse(torch.full_like(self.extra, value))
        if value in self.made and self.made[value].like.dtype == like.dtype:
            return self.made[value]
        pairs = zip(self.own, self.lr, strict=True)
        ds = tuple(own + value / lr for own, lr in pairs)
        if min(ds) <= 0:
            raise ValueError(
                "damping and weight decay are both 0: Q_uu would be singular wherever there are "
                "more weights than samples. Use damping > 0."
            )
        self.made.clear()
        metric = self.made[value] = Isotropic(tuple(1 / d for d in ds), self.sizes, like[:0])
        return metric

    @property
    def one_lr(self) -> float:
        if len(set(self.lr)) > 1:
            raise ValueError(
                "kfac and ekfac need one learning rate for the weight and the bias of a layer; "
                f"got {self.lr}. Put both into one parameter group."
            )
        return self.lr[0]


class Maker:
    """Makes the metric of each stage of one sweep, and the memory the next sweep starts from."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        memory: Memory,
        scales: tuple[Scale, ...],
        damping: float,
        kept: dict[int, Tensors] | None = None,
    ) -> None:
        self.settings, self.model, self.memory = settings, model, memory
        self.scales, self.damping = scales, damping
        self.new: dict[int, Tensors] = {} if kept is None else kept

    @property
    def next_memory(self) -> Memory:
        old = self.memory
        return Memory(old.steps + 1, self.new or None, old.previous, old.gain, old.fault)

    def __call__(self, t: int, value_gradient: Callable[[], Tensor]) -> Metric:
        """P_t; ``value_gradient()`` is V_X at t + 1, as the sweep has it by then."""
        metric = self.unlimited(t, value_gradient)
        return metric if self.settings.limit is None else self.limited(t, metric)

    def limited(self, t: int, metric: Metric) -> Metric:
        """P shortened to the limit; by as much as when it was last measured, between two times."""
        steps, known = self.memory.steps, self.memory.of(t).get("factor")
        # Weights and statistics change most at first: after 0, 1, 2, 4, 8, ... steps, too.
        due = steps % self.settings.refresh == 0 or steps & (steps - 1) == 0
        if due or known is None:
            assert self.settings.limit is not None
            size = kernel_norm(self.model.operator(t, metric), self.model.rho)
            most = self.settings.limit * max(self.scales[t].lr)
            known = torch.tensor(min(1.0, most / size) if size > 0 else 1.0, dtype=torch.float64)
        self.new.setdefault(t, {})["factor"] = known
        return metric if known == 1 else metric.shortened(float(known))

    def unlimited(self, t: int, value_gradient: Callable[[], Tensor]) -> Metric:
        kind, scale, u = self.settings.kind, self.scales[t], self.model.rho
        if kind == "gauss_newton":
            return scale.constant(self.damping, u)
        if kind == "sgd":
            return scale.constant(1 + self.damping, u)
        if kind in ("rmsprop", "adam"):
            return self.diagonal(t)
        form = self.model.forms[t]
        alone = isinstance(form, PositionsForm) and not self.model.y(t + 1).coupled
        if isinstance(form, LinearForm) or alone:
            return self.kronecker(t, value_gradient)
        return self.fisher_diagonal(t)

    def average(self, t: int, name: str, value: Tensor) -> Tensor:
        """Running mean, starting at the first value."""
        old = self.memory.of(t).get(name)
        mean = value if old is None else torch.lerp(value, old, self.settings.decay)
        self.new.setdefault(t, {})[name] = mean
        return mean

    def diagonal(self, t: int) -> Metric:
        """RMSprop and Adam, from the ordinary gradient."""
        gradient = self.model.gradient(t) if self.settings.kind == "rmsprop" else self.plain(t)
        old = self.memory.of(t).get("square")
        decay = self.settings.decay
        square = gradient.square() * (1 - decay)
        square = square if old is None else square + decay * old
        self.new.setdefault(t, {})["square"] = square
        if self.settings.kind == "adam":
            square = square / (1 - decay ** (self.memory.steps + 1))
        return self.scales[t].inverse(square.sqrt() + self.damping)

    def plain(self, t: int) -> Tensor:
        """The gradient of this batch, before momentum took its place in the model."""
        return self.new[t]["gradient"]

    def fisher_diagonal(self, t: int) -> Metric:
        """Of a stage that is no matrix: the diagonal of the exact Fisher matrix.

        Convolutions upstream of batch norm on its batch are among them: no sample is alone there.
        """
        model = self.model
        J = model.forms[t].rows(model.xs[t], model.us[t], model.y(t + 1))
        squares = model.shards.sum(J.square().sum(dim=0))
        return self.scales[t].inverse(self.average(t, "fisher", squares) + self.damping)

    # -- Kronecker factors ---------------------------------------------------------------------
    def kronecker(self, t: int, value_gradient: Callable[[], Tensor]) -> Metric:
        form = self.model.forms[t]
        assert isinstance(form, LinearForm | PositionsForm)
        V = self.cotangents(t, form, value_gradient)  # sum over its rows of V V' is G
        if isinstance(form, LinearForm):  # (B, n + 1) and (N, n')
            X, L = with_one(form.activations(self.model.xs[t]), form.has_bias), 1
        else:  # (B, L, n + 1) and (N, L, n')
            X, L = form.activations(self.model.xs[t], self.model.us[t]), V.shape[1]
        old = self.memory.of(t)
        A = self.covariance(t, "A", X, self.model.shards.count(X.shape[0]))
        G = self.covariance(t, "G", V, L)
        due = self.memory.steps % self.settings.refresh == 0 or not old
        if self.settings.kind == "kfac":
            return self.kfac(t, A, G, old, due, form.has_bias)
        return self.ekfac(t, A, G, X, V, old, due, form.has_bias)

    def covariance(self, t: int, name: str, X: Tensor, count: int) -> Tensor:
        """Running mean of the sum of x x' over all samples, divided by ``count``."""
        old, shards = self.memory.of(t).get(name), self.model.shards
        if old is None or shards is not WHOLE:
            return self.average(t, name, shards.sum(gram(X)) / count)
        decay, rows = self.settings.decay, X if X.ndim == 2 else X.flatten(0, -2)
        # One operation: these matrices are the largest of a step.
        mean = torch.addmm(old, rows.mT, rows, beta=decay, alpha=(1 - decay) / count)
        self.new.setdefault(t, {})[name] = mean
        return mean

    def cotangents(
        self, t: int, form: LinearForm | PositionsForm, value_gradient: Callable[[], Tensor]
    ) -> Tensor:
        """Rows whose Gram matrix is the covariance of per-sample cotangents: (N, [L,] n')."""
        Y = self.model.y(t + 1)
        if self.settings.statistics == "fisher":
            if Y.coupled:
                raise ValueError(
                    "statistics='fisher' needs cotangents of each sample alone, and batch norm in "
                    "training mode couples them upstream: statistics='gradient', or "
                    "batch_norm='frozen'."
                )
            if isinstance(form, LinearForm):
                return form.outgoing(Y).rows.flatten(0, 1)
            return form.outgoing(Y.rows).flatten(0, 1)
        whole = (
            self.model.costate(t + 1)
            if self.settings.statistics == "gradient"
            else value_gradient()
        )
        if isinstance(form, LinearForm):
            part = form.outgoing(Cotangents(whole[:, None])).rows[:, 0]
        else:
            part = form.outgoing(whole)
        return part * self.model.shards.count(part.shape[0]) ** 0.5

    def kfac(self, t: int, A: Tensor, G: Tensor, old: Tensors, due: bool, has_bias: bool) -> Metric:
        scale = self.scales[t]
        lr, new = scale.one_lr, self.new[t]
        if due:
            # Factored Tikhonov (Martens, Grosse 2015, sec. 6.3): the traces share the damping.
            gamma = self.damping + lr * scale.largest()
            pi = ((A.trace() / A.shape[0]) / (G.trace() / G.shape[0]).clamp_min(1e-30)).sqrt()
            root = gamma**0.5
            new["LA"] = damped_factor(A, pi * root)
            new["LG"] = damped_factor(G, root / pi)
        else:
            new["LA"], new["LG"] = old["LA"], old["LG"]
        return Kronecker(new["LG"], new["LA"], lr, has_bias)

    def ekfac(
        self,
        t: int,
        A: Tensor,
        G: Tensor,
        X: Tensor,
        V: Tensor,
        old: Tensors,
        due: bool,
        has_bias: bool,
    ) -> Metric:
        new, scale = self.new[t], self.scales[t]
        if due:
            (a, W), (g, U) = eigenbasis(A), eigenbasis(G)
            new["W"], new["U"] = W, U
            # In a new basis the old second moments mean nothing; KFAC's are the best known.
            second = g.clamp_min(0)[:, None] * a.clamp_min(0)
            rotated = X @ W
        else:
            new["W"], new["U"] = old["W"], old["U"]
            rotated = X @ new["W"]
            second = self.model.shards.sum(second_moments(rotated, V @ new["U"]))
            second = torch.lerp(second, old["second"], self.settings.decay)
        new["second"] = second
        own = scale.largest()
        p = 1 / (own + (second + self.damping) / scale.one_lr)
        # The others' is not; and positions have no use for it.
        known = rotated if self.model.shards is WHOLE and rotated.ndim == 2 else None
        return Eigenbasis(new["U"], new["W"], p, has_bias, known)


def kernel_norm(product: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Largest eigenvalue of a kernel by a few power iterations, from below.

    Starts with signs that depend on nothing but their number: the same in every process.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, like.shape, generator=generator) * 2 - 1
    z, size = signs.to(like), 0.0
    for _ in range(PRODUCTS):
        norm = float(z.norm())
        if not 0 < norm < float("inf"):
            break
        z = product(z / norm)
        size = float(z.norm())
    return size


def second_moments(X: Tensor, V: Tensor) -> Tensor:
    """Mean over samples of the squared gradients ``v_ia x_ib`` in the eigenbasis: (n', n + 1).

    X (B, n + 1) and V (N, n'), or with L positions between.
    """
    B = X.shape[0]
    if X.ndim == 3:
        return squares_of(X, V.unflatten(0, (B, -1)).movedim(1, 0))
    squares = V.square().unflatten(0, (B, -1)).sum(dim=1)
    return squares.mT @ X.square()


def gram(X: Tensor) -> Tensor:
    """Sum over all axes but the last of x x'."""
    rows = X if X.ndim == 2 else X.flatten(0, -2)
    return rows.mT @ rows


def damped_factor(A: Tensor, damping: Tensor) -> Tensor:
    eye = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
    return torch.linalg.cholesky(A + damping * eye)


def with_momentum(
    model: Model, settings: Settings, memory: Memory
) -> tuple[Model, dict[int, Tensors]]:
    """Adam: the running mean of the gradient takes the gradient's place in the model.

    Returns:
        The model with ``h_t + (mean_t - g_t)``, and what the `Maker` keeps: gradients and means.
    """
    linear, kept = list(model.linear), {}
    correction = 1 - settings.momentum ** (memory.steps + 1)
    for t in model.active:
        g = model.gradient(t)
        old = memory.of(t).get("mean")
        mean = g * (1 - settings.momentum)
        mean = mean if old is None else mean + settings.momentum * old
        shift, h = mean / correction - g, model.linear[t]
        linear[t] = shift if h is None else h + shift
        kept[t] = {"mean": mean, "gradient": g}
    return replace(model, linear=linear), kept
