"""Modules as pure functions of their inputs and parameters, one rule for each that needs its own.

A stage must be a map (X, u) -> X' that torch.func can batch and differentiate and that leaves the
model alone. Most modules are that under `torch.func.functional_call`; batch norm, dropout,
embeddings and attention get a rule here, what cannot be a stage is refused by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from ocp_nn.formulas import FORMULAS, Context, Value, affine

KEY = "dropout key"  # name of the slot of the state that tells samples apart in their masks
KEYS = 2**24  # how many there are: whole numbers that single precision holds

Run = Callable[..., Any]  # (context, *args, **kwargs) -> value


class Layer(NamedTuple):
    """A module as a function, and what the cutting into stages must know of it."""

    run: Run
    couples: bool = False  # samples of a batch influence one another
    reshape: bool = False  # flattened, the output is the input
    elementwise: bool = False
    keyed: bool = False  # reads the dropout keys


@dataclass(frozen=True)
class Options:
    """How `compile` was asked to treat layers that behave differently in training."""

    batch_norm: str = "exact"
    dropout: int | None = None


class StageError(ValueError):
    """A module or operation that cannot be a stage; the message names it and the way out."""


def refuse(what: str, why: str) -> NoReturn:
    raise StageError(f"{what} cannot be a stage: {why}")


ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
)
RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
DROPOUTS: dict[type[nn.Module], int] = {  # axes of a sample that share one draw with their channel
    nn.Dropout: 0,
    nn.Dropout1d: 1,
    nn.Dropout2d: 2,
    nn.Dropout3d: 3,
}
RANDOM = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU, nn.FractionalMaxPool2d)
ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def layer(
    module: nn.Module, path: str, name: str, rename: dict[str, str], options: Options
) -> Layer:
    """The module as a function.

    Args:
        module: as it is now: ``module.training`` decides how it behaves.
        path: its name in the model.
        name: of this call of it.
        rename: of its trainable parameters, their names in the module -> in the model.
        options: see `compile`.

    Raises:
        StageError: says why, and what to do.
    """
    what = f"{path} ({type(module).__name__})"
    for part, inner in module.named_modules():
        check(inner, f"{path}.{part} ({type(inner).__name__})" if part else what, options)
    kind = type(module)
    if isinstance(module, _BatchNorm):
        return batch_norm(module, name, rename)
    if kind in DROPOUTS:
        return dropout(module, name, DROPOUTS[kind])
    if kind is nn.Embedding and module.max_norm is not None:
        refuse(what, "max_norm rescales its weights in place. Use max_norm=None.")
    if kind in FORMULAS:
        return Layer(FORMULAS[kind](module, value_of(module, rename)))
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return generic(module, rename)
    return Layer(
        lambda c, *a, **k: module(*a, **k),
        reshape=kind in RESHAPES,
        elementwise=kind in ELEMENTWISE,
    )


def check(module: nn.Module, what: str, options: Options) -> None:
    """Refuse a module, also one inside another, that cannot be a deterministic map of a sample."""
    if any(is_lazy(p) for p in module.parameters(recurse=False)):
        refuse(what, "its parameters have no shape yet. Run one batch through the model first.")
    if getattr(module, "batch_first", True) is False:
        refuse(what, "its batch axis is not the first one. Use batch_first=True.")
    if isinstance(module, nn.RNNBase):
        refuse(
            what,
            "torch.func cannot batch torch's fused recurrences. Use LSTMCell, GRUCell or RNNCell "
            "in a loop over time.",
        )
    if isinstance(module, nn.SyncBatchNorm):
        refuse(what, "it talks to other processes. Use BatchNorm, or model.eval().")
    if isinstance(module, _InstanceNorm) and module.training and module.track_running_stats:
        refuse(what, "it keeps running statistics. Use track_running_stats=False, or model.eval().")
    if isinstance(module, RANDOM) and module.training and getattr(module, "p", 1) != 0:
        refuse(what, "it is random in training mode. Use Dropout, or call eval() on it.")
    p = vars(module).get("p" if type(module) in DROPOUTS else "dropout", 0)
    if module.training and isinstance(p, float | int) and p > 0:
        if type(module) not in DROPOUTS:
            refuse(what, f"it drops with probability {p} inside. Use dropout=0, or model.eval().")
        if options.dropout is None:
            refuse(
                what,
                "it is random in training mode. Give compile(dropout=seed) for masks that are "
                "fixed within a step, or call model.eval(), or remove it.",
            )


def value_of(module: nn.Module, rename: dict[str, str]) -> Value:
    """A parameter of the module by its name there: the context's if it is trainable."""

    def value(context: Context, local: str) -> Tensor:
        return context.params[rename[local]] if local in rename else getattr(module, local)

    return value


def generic(module: nn.Module, rename: dict[str, str]) -> Layer:
    """Any module, its trainable parameters replaced by those of the context."""
    kept = {name: full for name, full in rename.items()}
    attention = any(isinstance(m, ATTENTION) for m in module.modules())
    couples = any(isinstance(m, _BatchNorm) and uses_batch(m) for m in module.modules())
    drops = [m for m in module.modules() if type(m) in DROPOUTS and m.training and vars(m)["p"] > 0]
    if couples or drops:
        inner = "batch norm" if couples else "dropout"
        refuse(
            type(module).__name__,
            f"there is {inner} inside a module that torch.fx cannot look into. Make its forward "
            "traceable (no branches on tensors), or call eval() on it.",
        )

    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        values = {name: context.params[full] for name, full in kept.items()}
        with plain_attention() if attention else contextlib.nullcontext():
            return functional_call(module, values, args, kwargs)

    return Layer(run)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as its formula: fused kernels cannot be batched or differentiated twice."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# -- batch norm ----------------------------------------------------------------------------------
def uses_batch(module: _BatchNorm) -> bool:
    """Whether it normalises with the statistics of the batch."""
    return module.training or module.running_mean is None


def batch_norm(module: _BatchNorm, name: str, rename: dict[str, str]) -> Layer:
    """As its formula: torch's own updates running statistics, which a stage must not.

    Ioffe, Szegedy, "Batch normalization" (2015), with statistics of the batch, of an earlier
    batch (frozen) or the running ones.
    """
    batch = uses_batch(module)

    def run(context: Context, x: Tensor) -> Tensor:
        axes = (0, *range(2, x.ndim))
        if not batch:
            assert module.running_mean is not None and module.running_var is not None
            mean, variance = module.running_mean, module.running_var
        elif name in context.statistics:
            mean, variance = context.statistics[name]
        else:
            mean = x.mean(dim=axes)
            variance = x.var(dim=axes, unbiased=False)
            count = x.numel() // x.shape[1]
            if context.total is not None:
                mean, variance, count = joint_statistics(mean, variance, count, context.total)
            if context.record is not None:
                context.record[name] = mean, variance, count
        channel = (1, -1, *[1] * (x.ndim - 2))
        y = (x - mean.reshape(channel)) / (variance.reshape(channel) + module.eps).sqrt()
        return affine(y, value_of(module, rename), context)

    return Layer(run, couples=batch)


def joint_statistics(
    mean: Tensor, variance: Tensor, count: int, total: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, int]:
    """Of the numbers of all processes, from those of each."""
    sums = torch.cat((count * mean, mean.new_tensor([count])))
    sums = total(sums)
    joint, number = sums[:-1] / sums[-1], int(sums[-1])
    spread = variance + (mean - joint).square()  # of the numbers here about the common mean
    return joint, total(count * spread) / number, number


def update_running(module: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """What a forward pass of torch in training mode does to the running statistics."""
    if not module.training or module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    momentum = module.momentum
    weight = 1 / float(module.num_batches_tracked) if momentum is None else momentum
    module.running_mean.lerp_(mean, weight)
    module.running_var.lerp_(variance * (count / (count - 1)), weight)


# -- dropout -------------------------------------------------------------------------------------
def dropout(module: nn.Module, name: str, shared_axes: int) -> Layer:
    """A mask that is a function of the sample's key, this layer and the place: fixed in a step."""
    p = float(module.p)  # type: ignore[arg-type]
    if not module.training or p == 0:
        return Layer(lambda c, x: x, reshape=True)
    salt = sum(ord(c) * 131**i for i, c in enumerate(name)) % 2**31

    def run(context: Context, x: Tensor) -> Tensor:
        assert context.keys is not None
        sample = x.shape[1 : x.ndim - shared_axes]
        keep = uniform(context.keys, salt, sample.numel()) >= p
        scale = 0.0 if p == 1 else 1 / (1 - p)
        return x * (keep.to(x.dtype) * scale).reshape(-1, *sample, *[1] * shared_axes)

    return Layer(run, keyed=True)


def uniform(keys: Tensor, salt: int, count: int) -> Tensor:
    """(B, count) numbers in [0, 1), a hash of (key, salt, place): no state, so it can be batched.

    The 32-bit finaliser "lowbias32" of Wellons, "Prospecting for hash functions" (2018), twice.
    """
    place = torch.arange(count, device=keys.device)
    seed = mixed(keys.round().to(torch.int64) * 0x9E3779B1 + salt)
    return mixed(seed[:, None] + place * 0x85EBCA6B).to(torch.float64) / 2**32


def mixed(h: Tensor) -> Tensor:
    low = 0xFFFFFFFF
    h = h & low
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & low
    h = ((h ^ (h >> 15)) * 0x846CA68B) & low
    return h ^ (h >> 16)
