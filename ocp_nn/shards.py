"""A batch spread over processes: what of a sweep is a sum over samples, and what is gathered.

Samples meet in three places only: sums over the batch (gradients, ``J'J``, covariances), the r
coordinates of function space, and the kernels. Roll-outs and products with F_X, the bulk of the
work, stay with the process that has the samples. Every process then solves the same small systems
from the same bits, so the weights stay equal without being sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ocp_nn.cotangents import Cotangents
from ocp_nn.forms import Control, Form, LinearForm
from ocp_nn.kernels import activation_kernel, linear_kernel, rows_kernel
from ocp_nn.metrics import Isotropic, Metric

if TYPE_CHECKING:
    from ocp.problem import Problem


class Shards:
    """All samples are here. B is the number of them, r = B k."""

    def count(self, B: int) -> int:
        """Samples of all processes, of which B are here."""
        return B

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes of what each has summed over its samples; overwrites `value`."""
        return value

    def joined(self, rows: Tensor) -> Tensor:
        """Rows of all processes, the same number for each sample: (B' k, ...) -> (B k, ...)."""
        return rows

    def own(self, z: Tensor) -> Tensor:
        """The coordinates of the samples here: (r,) -> (B' k,)."""
        return z

    def kernel(self, form: Form, X: Tensor, u: Control, Y: Cotangents, metric: Metric) -> Tensor:
        """``Gamma = Y' F_u P F_u' Y`` of all samples: (r, r)."""
        return form.kernel(X, u, Y, metric)

    def operator(
        self, form: Form, X: Tensor, u: Control, Y: Cotangents, metric: Metric
    ) -> Callable[[Tensor], Tensor]:
        """``z -> Gamma z`` without Gamma."""
        return form.operator(X, u, Y, metric)


WHOLE = Shards()


class Spread(Shards):
    """Each process of a group has its own samples, not necessarily equally many.

    Args:
        group: of torch.distributed. Collective: every process of it makes one.
        B: samples here, at least one.
        device: of the tensors to come.
    """

    def __init__(self, group: dist.ProcessGroup, B: int, device: torch.device) -> None:
        self.group, rank = group, dist.get_rank(group)
        counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
        counts[rank] = B
        self.counts: list[int] = self.sum(counts).tolist()
        self.here, self.before = B, sum(self.counts[:rank])
        self.total = sum(self.counts)

    def count(self, B: int) -> int:
        return self.total

    def sum(self, value: Tensor) -> Tensor:
        return summed(self.group)(value)

    def joined(self, rows: Tensor) -> Tensor:
        k = rows.shape[0] // self.here
        padded = rows.new_zeros(max(self.counts) * k, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([p[: n * k] for p, n in zip(parts, self.counts, strict=True)])

    def own(self, z: Tensor) -> Tensor:
        k = z.shape[0] // self.total
        return z[self.before * k : (self.before + self.here) * k]

    def kernel(self, form: Form, X: Tensor, u: Control, Y: Cotangents, metric: Metric) -> Tensor:
        """Linear stages: from the gathered X and Y. Others: from the gathered rows ``Y' F_u``."""
        if not isinstance(form, LinearForm):
            J = form.rows(X, u, Y)
            return self.joined(rows_kernel(J, metric, self.joined(J)))
        X, rows = self.joined(form.activations(X)), self.joined(form.outgoing(Y).rows)
        return linear_kernel(X, Cotangents(rows), metric, form.outputs, form.has_bias)

    def operator(
        self, form: Form, X: Tensor, u: Control, Y: Cotangents, metric: Metric
    ) -> Callable[[Tensor], Tensor]:
        """Gathers r numbers and sums m; linear stages with an isotropic P gather r and B n'."""
        if isinstance(form, LinearForm) and isinstance(metric, Isotropic):
            K = activation_kernel(self.joined(form.activations(X)), metric, form.has_bias)
            mine, out = self.own(K), form.outgoing(Y)
            return lambda z: self.joined(out.adjoint(mine @ self.joined(out.apply(self.own(z)))))

        def product(z: Tensor) -> Tensor:
            g = self.sum(form.gradient(X, u, Y.apply(self.own(z))))
            return self.joined(Y.adjoint(form.push(X, u, metric.apply(g))))

        return product


# -- the user's side -----------------------------------------------------------------------------
@torch.no_grad()
def spread_weights(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Parameters and buffers of the first process of the group, in all of them."""
    first = dist.get_global_rank(group, 0)
    for value in (*model.parameters(), *model.buffers()):
        copy = value.detach().contiguous()
        dist.broadcast(copy, src=first, group=group)
        value.copy_(copy)


def check_spread(problem: Problem) -> None:
    """Refuse a network that samples of other processes would have a say in.

    Raises:
        ValueError: names the stage and the way out.
    """
    for t, stage in enumerate(problem.dynamics.stages):  # type: ignore[attr-defined]
        if stage.couples_samples:
            raise ValueError(
                f"process_group: stage {t} ({stage.name}) is batch norm on the statistics of its "
                "batch, whose derivatives couple the samples of all processes. Use "
                "batch_norm='frozen' (the statistics of all samples, constant in derivatives), "
                "evaluation mode (module.eval()), or GroupNorm or LayerNorm."
            )


def summed(group: dist.ProcessGroup) -> Callable[[Tensor], Tensor]:
    """Sum over its processes; overwrites what it is given."""

    def total(value: Tensor) -> Tensor:
        value = value.contiguous()
        dist.all_reduce(value, group=group)
        return value

    return total


def agreed(group: dist.ProcessGroup, mine: bool, device: torch.device) -> bool:
    """Whether it is true in every process."""
    value = torch.tensor(int(mine), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN, group=group)
    return bool(value)
