"""A network and its loss as an `ocp.Problem`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

import ocp
from ocp.tables import Table
from ocp_nn.checks import check_inputs, check_loss, check_network, check_parameters, check_targets
from ocp_nn.cost import LossCost, Regulariser, check_regulariser, decays
from ocp_nn.cutting import network
from ocp_nn.layers import Options
from ocp_nn.losses import Loss, make_loss
from ocp_nn.stages import Network

Inputs = Tensor | Sequence[Tensor]


def compile(
    model: nn.Module,
    loss: str | Loss | Callable[[Tensor, Tensor], Tensor],
    inputs: Inputs,
    targets: Tensor,
    *,
    weight_decay: float | Mapping[str, float] = 0.0,
    regulariser: Regulariser | None = None,
    batch_norm: str = "exact",
    dropout: int | None = None,
    leaves: Sequence[str] = (),
) -> ocp.Problem:
    """Stages = layers, state = activation, control = weights, one control for all samples.

    The model is taken as it is now: ``model.train()`` or ``model.eval()`` decides how batch norm
    and dropout behave. Nothing in it is changed.

    Args:
        model: an `nn.Module` that torch.fx can trace (parts it cannot become one stage each).
        loss: "cross_entropy", "binary_cross_entropy", "mse", "squared_error" or "huber"; a torch
            loss module; or a function (output, target) -> scalar, see `losses.FunctionLoss`.
        inputs: (B, ...), or a tuple of such for a model with several inputs. Whole numbers (of an
            embedding) pass through the float state, exactly up to 2^24.
        targets: (B, ...), as the loss wants them.
        weight_decay: as in torch.optim, or a dict from parameter names, the others 0.
        regulariser: of the weights of a stage (m,) -> scalar, convex and separable.
        batch_norm: what batch norm in training mode is. "exact": samples are coupled, the problem
            has one row. "frozen": the statistics are those of the batch at the model's weights,
            but count as constants; see `Network.freeze`.
        dropout: seed of masks that stay fixed until `with_data` draws others; None refuses dropout
            in training mode.
        leaves: names of submodules that are to stay whole, one stage each.

    Returns:
        A problem with ``dynamics`` the `Network` and ``cost`` the `LossCost`; start it from
        `initial_controls`.

    Raises:
        ValueError, TypeError: naming the module or argument and the way out.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be an nn.Module in Python, got {type(model).__name__}.")
    if batch_norm not in ("exact", "frozen"):
        raise ValueError(f"batch_norm must be 'exact' or 'frozen', got {batch_norm!r}.")
    like = check_parameters(model)
    given = check_inputs(inputs, like)
    net = network(model, given, Options(batch_norm, dropout), tuple(leaves))
    us = net.pack()
    X = net.states(given, dropout)
    net.freeze(X, us)
    outputs = check_network(net, X, us, given)
    cost = make_cost(net, make_loss(loss, net.out_shape), us, weight_decay, regulariser)
    target = cost.loss.prepare(check_targets(targets, X), net.out_shape, X)
    check_loss(cost.loss, loss, outputs, target, net.out_shape)
    return ocp.Problem(
        dynamics=net,
        cost=cost,
        x0=X.reshape(1, -1) if net.whole_batch else X,
        horizon=len(net.stages),
        control_dim=list(net.control_dims),
        per_problem={"target": target[None] if net.whole_batch else target},
        shared_controls=True,
        stagewise=True,
        name=type(model).__name__,
    )


def make_cost(
    net: Network,
    loss: Loss,
    us: list[Tensor],
    weight_decay: float | Mapping[str, float],
    regulariser: Regulariser | None,
) -> LossCost:
    if regulariser is not None:
        check_regulariser(regulariser, us)
    decay = decays(net, weight_decay, us[0])
    return LossCost(loss, decay, regulariser, net.whole_batch, net.stages[-1].n_out)


# -- a compiled problem --------------------------------------------------------------------------
def network_of(problem: ocp.Problem) -> Network:
    """The network behind a compiled problem.

    Raises:
        TypeError: the problem was not made by `compile`.
    """
    if not isinstance(problem.dynamics, Network):
        raise TypeError("the problem is not a compiled network: make it by ocp_nn.compile.")
    return problem.dynamics


def initial_controls(problem: ocp.Problem) -> list[Tensor]:
    """The model's weights as they are now, a list over t of (m,)."""
    return network_of(problem).pack()


def write_back(problem: ocp.Problem, controls: Sequence[Tensor]) -> None:
    """Write controls, such as ``solution.controls``, into the model."""
    network_of(problem).unpack(controls)


def with_data(
    problem: ocp.Problem, inputs: Inputs, targets: Tensor, *, seed: int | None = None
) -> ocp.Problem:
    """The same network on other data, which may be more or fewer samples.

    Args:
        seed: of the masks of dropout, a new one for each step.

    Raises:
        ValueError, TypeError: as `compile` does for its data. Statistics of frozen batch norms are
            kept: `Network.freeze` measures new ones.
    """
    net = network_of(problem)
    assert isinstance(problem.cost, LossCost)
    given = check_inputs(inputs, problem.x0)
    for value, slot in zip(given, net.input_slots, strict=False):
        if tuple(value.shape[1:]) != slot.shape:
            raise ValueError(
                f"inputs have shape {tuple(value.shape)}; the network was compiled for "
                f"{slot.shape} a sample."
            )
    if len(given) != len(net.input_slots):
        raise ValueError(f"the network has {len(net.input_slots)} inputs, got {len(given)}.")
    X = net.states(given, seed)
    target = problem.cost.loss.prepare(check_targets(targets, X), net.out_shape, X)
    whole = net.whole_batch
    if not whole:
        return problem.refill(X, {"target": target})
    return problem.replace(
        x0=X.reshape(1, -1) if whole else X,
        control_dim=list(net.control_dims),
        per_problem={"target": target[None] if whole else target},
    )


def samples_of(problem: ocp.Problem) -> tuple[Tensor, Tensor]:
    """States x0 (B, n_0) and targets (B, ...) of all samples, however the problem holds them."""
    net, target = network_of(problem), problem.per_problem["target"]
    return net.rows(problem.x0), target[0] if net.whole_batch else target


def stage_table(problem: ocp.Problem) -> Table:
    """Stages with their modules, sizes and kernel; ``print`` it."""
    net = network_of(problem)
    rows = []
    for t, s in enumerate(net.stages):
        kernel = s.kernel + (" (samples coupled)" if s.couples_samples else "")
        shape = "x".join(map(str, s.out_shape)) or "1"
        carried = str(s.carried) if s.carried else ""
        layers = ", ".join(s.layers)
        sizes = f"{s.n_in:,}", f"{s.n_out:,}", f"{s.m:,}"
        rows.append([str(t), s.name, layers, shape, *sizes, carried, kernel])
    columns = ["stage", "name", "layers", "output", "n", "n'", "m", "carried", "kernel"]
    total = f"{sum(net.control_dims):,} parameters, {samples_of(problem)[0].shape[0]} samples"
    return Table(f"{problem.name}: {total}", columns, rows, align="><<<>>>><")
