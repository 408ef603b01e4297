"""KFAC and EKFAC for linear and convolutional layers.

Sources: Martens & Grosse, ICML 2015 (KFAC); Grosse & Martens, ICML 2016 (convolutions); George,
Laurent, Bouthillier, Ballas, Vincent, NeurIPS 2018 (EKFAC).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ocp_nn.baselines.base import CurvatureOptimizer, LossName, share, sum_gradients
from ocp_nn.baselines.layers import (
    Layer,
    check_statistics,
    cotangents,
    layers_of,
    recording,
)
from ocp_nn.eigenbasis import eigenbasis
from ocp_nn.losses import Loss
from ocp_nn.positions import squares


class KFAC(CurvatureOptimizer):
    """Natural gradient with the Fisher matrix of each layer as a Kronecker product A x G.

    ``A = E[sum_l a_l a_l']`` of a layer's inputs, ``G = E[mean_l g_l g_l']`` of gradients at its
    outputs, running means over batches; the update is ``(G + sqrt(damping)/pi I)^-1 dW
    (A + pi sqrt(damping) I)^-1`` with Martens & Grosse's pi.

    Args:
        model: Linear, Conv1d and Conv2d layers; other trainable parameters need `rest_lr`.
        loss: name, callable or `Loss`.
        lr, momentum, weight_decay: of the update; weight_decay adds to the gradient.
        damping: Tikhonov, on the Kronecker product.
        decay: of the running means, at most 1 - 1/step as in the paper; 0 keeps one batch.
        statistics: "exact" (generalised Gauss-Newton), "sampled" (Fisher, one draw a sample) or
            "empirical" (the gradients themselves).
        refresh: steps between two inversions (eigenbases for EKFAC).
        rest_lr: step size of plain gradient descent for parameters of other layers; None refuses.
        kl_clip: shrink the step so that ``lr^2 g' update`` is at most this; None never.
        seed: of the draws of "sampled".
        process_group: see `base.Parallel`; gradients and factors are of all samples.

    Raises:
        ValueError: a parameter outside its range, or layers without Kronecker factors.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossName = "cross_entropy",
        *,
        lr: float = 0.03,
        damping: float = 0.01,
        decay: float = 0.95,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        statistics: str = "sampled",
        refresh: int = 10,
        rest_lr: float | None = None,
        kl_clip: float | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        check_statistics(statistics)
        for name, value in (("rest_lr", rest_lr), ("kl_clip", kl_clip)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, got {value}.")
        if refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {refresh}.")
        self.layers = layers_of(model, type(self).__name__, rest=rest_lr is not None)
        self.statistics = statistics
        defaults = {
            "lr": lr,
            "damping": damping,
            "decay": decay,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "refresh": refresh,
            "rest_lr": rest_lr,
            "kl_clip": kl_clip,
        }
        super().__init__(model, loss, defaults, seed, process_group)
        structured = {id(p) for layer in self.layers.values() for p in layer.module.parameters()}
        self.rest = [p for p in self.parameters.values() if id(p) not in structured]

    def update(self, inputs: Tensor, targets: Tensor) -> Tensor:
        group = self.param_groups[0]
        self.zero_grad()
        with recording(self.layers):
            outputs = self.model(inputs)
        value = share(self.loss(outputs, targets), len(targets), self.shards)
        gradients = self.output_gradients(outputs, targets, value)
        sum_gradients(self.parameters.values(), self.shards)
        with torch.no_grad():
            updates = []
            for layer, g in zip(self.layers.values(), gradients, strict=True):
                gradient = layer.matrix()
                if group["weight_decay"]:
                    gradient = gradient + group["weight_decay"] * weights(layer)
                self.observe(layer, layer.rows(g), group)
                updates.append((layer, gradient, self.precondition(layer, gradient, group)))
            scale = clip(updates, group["lr"], group["kl_clip"])
            for layer, _, update in updates:
                self.apply(layer, scale * update, group)
            for p in self.rest:
                assert p.grad is not None
                p.add_(p.grad + group["weight_decay"] * p, alpha=-group["rest_lr"])
        for layer in self.layers.values():
            del layer.outputs, layer.inputs  # they hold the graph
        return self.shards.sum(value.detach())

    def output_gradients(self, outputs: Tensor, targets: Tensor, value: Tensor) -> list[Tensor]:
        """(k, B, *output) for each layer; the gradient of the loss goes to ``.grad`` as well."""
        loss, targets = self.loss.prepare(outputs, targets)
        at = [layer.outputs for layer in self.layers.values()]
        parameters = list(self.parameters.values())
        if self.statistics == "empirical":  # one backward pass has both
            both = torch.autograd.grad(value, [*parameters, *at], materialize_grads=True)
            B = self.shards.count(len(outputs))
            gradients = [B * g[None] for g in both[len(parameters) :]]
            own = both[: len(parameters)]
        else:
            flat = outputs.flatten(1)
            with torch.no_grad():
                Y = self.cotangents(loss, flat, targets)
            if len(Y) == 1:
                found = torch.autograd.grad(flat, at, Y[0], retain_graph=True)
                gradients = [g[None] for g in found]
            else:
                found = torch.autograd.grad(flat, at, Y, retain_graph=True, is_grads_batched=True)
                gradients = list(found)
            own = torch.autograd.grad(value, parameters, materialize_grads=True)
        for p, g in zip(parameters, own, strict=True):
            p.grad = g
        return gradients

    def cotangents(self, loss: Loss, flat: Tensor, targets: Tensor) -> Tensor:
        """See `cotangents`; draws are those of the whole batch, the same in every process."""
        if self.statistics != "sampled":
            return cotangents(loss, flat, targets, self.statistics, self.generator)
        whole, all_targets = self.shards.joined(flat), self.shards.joined(targets)
        Y = cotangents(loss, whole, all_targets, self.statistics, self.generator)
        return self.shards.own(Y.movedim(1, 0)).movedim(0, 1)

    def observe(self, layer: Layer, g: Tensor, group: dict[str, Any]) -> None:
        """Update a layer's factors from rows g (k, B, L, n_out) and its recorded inputs."""
        state, a = self.state[layer.weight], layer.inputs
        state["step"] = state.get("step", 0) + 1
        samples, positions = self.shards.count(a.shape[0]), a.shape[1]
        a, g = a.flatten(0, 1), g.flatten(0, 2)
        keep = min(group["decay"], 1 - 1 / state["step"])
        running(state, "A", self.shards.sum(a.mT @ a) / samples, keep)
        running(state, "G", self.shards.sum(g.mT @ g) / (samples * positions), keep)

    def precondition(self, layer: Layer, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """(n_out, n_in) -> the same."""
        state = self.state[layer.weight]
        if (state["step"] - 1) % group["refresh"] == 0:
            A, G = state["A"], state["G"]
            mean_A, mean_G = A.diagonal().mean(), G.diagonal().mean()
            # pi and 1/pi are unbounded for a layer that is silent; a neutral 1 then.
            silent = (mean_A <= 0) | (mean_G <= 0)
            pi = torch.where(silent, torch.ones_like(mean_A), (mean_A / mean_G).sqrt())
            root = group["damping"] ** 0.5
            state["A_inverse"] = inverse(A, pi * root)
            state["G_inverse"] = inverse(G, root / pi)
        return state["G_inverse"] @ gradient @ state["A_inverse"]

    def apply(self, layer: Layer, update: Tensor, group: dict[str, Any]) -> None:
        """Step along an update (n_out, n_in [+ 1]), with momentum."""
        if group["momentum"]:
            state = self.state[layer.weight]
            if "momentum" in state:
                update = state["momentum"].mul_(group["momentum"]).add_(update)
            else:
                state["momentum"] = update.clone()
        columns = layer.weight[0].numel()
        layer.weight.add_(update[:, :columns].reshape(layer.weight.shape), alpha=-group["lr"])
        if layer.bias is not None:
            layer.bias.add_(update[:, columns], alpha=-group["lr"])


class EKFAC(KFAC):
    """KFAC's eigenbasis with the second moment of every coordinate measured in it.

    The update is ``U_G [(U_G' dW U_A) / (s + damping)] U_A'`` with s the running mean of the
    squared per-sample gradients in that basis. The basis is kept for ``refresh`` steps; a new one
    starts from KFAC's own s, the products of the eigenvalues of A and G.

    Args: as `KFAC`.
    """

    def observe(self, layer: Layer, g: Tensor, group: dict[str, Any]) -> None:
        super().observe(layer, g, group)
        state = self.state[layer.weight]
        if (state["step"] - 1) % group["refresh"] == 0:
            eigenvalues_A, state["U_A"] = eigenbasis(state["A"])
            eigenvalues_G, state["U_G"] = eigenbasis(state["G"])
            state["s"] = torch.outer(eigenvalues_G, eigenvalues_A).clamp_min_(0)
        a, g = layer.inputs @ state["U_A"], g @ state["U_G"]
        keep = min(group["decay"], 1 - 1 / state["step"])
        running(state, "s", self.shards.sum(squares(a, g)) / self.shards.count(len(a)), keep)

    def precondition(self, layer: Layer, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[layer.weight]
        rotated = state["U_G"].mT @ gradient @ state["U_A"]
        return state["U_G"] @ (rotated / (state["s"] + group["damping"])) @ state["U_A"].mT


def running(state: dict[str, Any], name: str, value: Tensor, keep: float) -> None:
    """Running mean in place; the first value stands for itself."""
    if name in state and keep > 0:
        state[name].mul_(keep).add_(value, alpha=1 - keep)
    else:
        state[name] = value


def inverse(factor: Tensor, damping: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite matrix plus damping I."""
    damped = factor + torch.diag_embed(damping.expand(len(factor)))
    L, info = torch.linalg.cholesky_ex(damped)
    if int(info) != 0:  # rounding left it indefinite
        eigenvalues, U = eigenbasis(factor)
        return (U / (eigenvalues.clamp_min(0) + damping)) @ U.mT
    return torch.cholesky_inverse(L)


def clip(updates: list[tuple[Layer, Tensor, Tensor]], lr: float, limit: float | None) -> float:
    """Factor that keeps ``lr^2 sum g' update`` within the limit (Ba, Grosse, Martens 2017)."""
    if limit is None:
        return 1.0
    size = lr**2 * float(torch.stack([(g * u).sum() for _, g, u in updates]).sum())
    return 1.0 if size <= limit else (limit / size) ** 0.5


def weights(layer: Layer) -> Tensor:
    """Weight and bias beside each other: (n_out, n_in [+ 1])."""
    W = layer.weight.flatten(1)
    return W if layer.bias is None else torch.cat((W, layer.bias[:, None]), dim=1)
