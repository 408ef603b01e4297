"""Derivatives of one sample's functions by torch.func, for z = (x, u), and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from ocp.engines.indexing import ComputedIndices, batched_indices


def batched(function: Callable[..., Any], dims: Any, chunk: int | None, *args: Any) -> Any:
    """``vmap``, with gradients enabled whatever the caller has: without them the derivative of
    `torch.linalg.solve` is garbage (PyTorch 2.13)."""
    with torch.enable_grad(), batched_indices():
        out = vmap(function, in_dims=dims, chunk_size=chunk)(*args)
    return tuple(o.detach() for o in out) if isinstance(out, tuple) else out.detach()


def joint(function: Callable[..., Tensor], n: int, t: Any, p: Any) -> Callable[[Tensor], Tensor]:
    """Of z alone: a transform wraps its arguments, and a wrapped t cannot index a tensor. What is
    computed from t is wrapped all the same."""

    def of_z(z: Tensor) -> Tensor:
        with ComputedIndices():
            return function(z[:n], z[n:], t, p)

    return of_z


def jacobian(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """[f_x f_u] (n', n + m). Reverse mode: 5 times faster than forward mode here."""
    return lambda x, u, t, p: jacrev(joint(f, x.shape[0], t, p))(torch.cat((x, u)))


def gradient_hessian(l: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """l_z (n + m,) and l_zz in one pass."""

    def both(x: Tensor, u: Tensor, t: Any, p: Any) -> tuple[Tensor, Tensor]:
        def twice(z: Tensor) -> tuple[Tensor, Tensor]:
            g = grad(joint(l, x.shape[0], t, p))(z)
            return g, g

        H, g = jacrev(twice, has_aux=True)(torch.cat((x, u)))
        return g, H

    return both


def terminal_gradient_hessian(phi: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    full = gradient_hessian(lambda x, u, t, p: phi(x, p))
    return lambda x, p: full(x, x[:0], None, p)


def contracted_hessian(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``v . f_zz`` (n + m, n + m), never the 3-tensor."""

    def hessian(x: Tensor, u: Tensor, t: Any, p: Any, v: Tensor) -> Tensor:
        after = joint(f, x.shape[0], t, p)

        def along(z: Tensor) -> Tensor:
            return v @ after(z)

        return jacrev(grad(along))(torch.cat((x, u)))

    return hessian
