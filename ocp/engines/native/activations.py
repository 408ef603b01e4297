"""What PyTorch's operations mean for scalars: activations of networks."""

from __future__ import annotations

import math

from ocp.engines.native.graph import Graph
from ocp.engines.native.ops import HANDLERS, Ids, Symbol, choose, handles, hardtanh, op

# -- activations ---------------------------------------------------------------------------------
HANDLERS["relu"] = lambda g, x: choose(g, op(g, "le", x, 0.0), 0.0, x)
HANDLERS["threshold"] = lambda g, x, threshold, value: choose(
    g, op(g, "le", x, threshold), value, x
)
HANDLERS["leaky_relu"] = lambda g, x, slope=0.01: choose(
    g, op(g, "lt", 0.0, x), x, op(g, "mul", x, slope)
)
HANDLERS["silu"] = lambda g, x: op(g, "mul", x, op(g, "sigmoid", x))
HANDLERS["mish"] = lambda g, x: op(g, "mul", x, op(g, "tanh", _softplus(g, x)))
HANDLERS["hardsigmoid"] = lambda g, x: op(
    g, "div", hardtanh(g, Symbol(op(g, "add", x, 3.0), x.dtype), 0, 6), 6.0
)


@handles("softplus")
def _softplus(g: Graph, x: Symbol, beta: float = 1, threshold: float = 20) -> Ids:
    scaled = op(g, "mul", x, beta)
    straight = op(g, "lt", threshold, scaled)
    bent = choose(g, straight, threshold, scaled)  # no overflow where it is not chosen
    soft = op(g, "div", op(g, "log1p", op(g, "exp", bent)), beta)
    return choose(g, straight, x, soft)


@handles("elu")
def _elu(g: Graph, x: Symbol, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Ids:
    """At 0 the slope is that of the exponential, the second derivative 0, as torch."""
    negative = op(g, "lt", x, 0.0)
    bent = op(g, "mul", choose(g, negative, x, 0.0), input_scale)  # no overflow above
    below = op(g, "mul", op(g, "expm1", bent), alpha * scale)
    at_zero = op(g, "mul", x, alpha * scale * input_scale)
    above = choose(g, op(g, "eq", x, 0.0), at_zero, op(g, "mul", x, scale))
    return choose(g, negative, below, above)


@handles("gelu")
def _gelu(g: Graph, x: Symbol, *, approximate: str = "none") -> Ids:
    if approximate == "none":
        bell = op(g, "erf", op(g, "mul", x, math.sqrt(0.5)))
    else:
        cubic = op(g, "mul", 0.044715, op(g, "mul", op(g, "mul", x, x), x))
        bell = op(g, "tanh", op(g, "mul", math.sqrt(2 / math.pi), op(g, "add", x, cubic)))
    return op(g, "mul", op(g, "mul", x, 0.5), op(g, "add", bell, 1.0))


@handles("log_sigmoid_forward")
def _log_sigmoid(g: Graph, x: Symbol) -> tuple[Ids, None]:
    negative = op(g, "lt", x, 0.0)
    down, up = choose(g, negative, x, 0.0), choose(g, negative, 0.0, x)  # no overflow
    below = op(g, "sub", x, op(g, "log1p", op(g, "exp", down)))
    above = op(g, "neg", op(g, "log1p", op(g, "exp", op(g, "neg", up))))
    return choose(g, negative, below, above), None


# -- backward formulas, met where a model differentiates itself ----------------------------------
@handles("tanh_backward")
def _tanh_backward(g: Graph, grad: Symbol, y: Symbol) -> Ids:
    return op(g, "mul", grad, op(g, "sub", 1.0, op(g, "mul", y, y)))


@handles("sigmoid_backward")
def _sigmoid_backward(g: Graph, grad: Symbol, y: Symbol) -> Ids:
    return op(g, "mul", grad, op(g, "mul", y, op(g, "sub", 1.0, y)))


@handles("threshold_backward")
def _threshold_backward(g: Graph, grad: Symbol, x: Symbol, threshold: float) -> Ids:
    return choose(g, op(g, "le", x, threshold), 0.0, grad)


@handles("silu_backward")
def _silu_backward(g: Graph, grad: Symbol, x: Symbol) -> Ids:
    s = op(g, "sigmoid", x)
    slope = op(g, "mul", s, op(g, "add", 1.0, op(g, "mul", x, op(g, "sub", 1.0, s))))
    return op(g, "mul", grad, slope)


@handles("softplus_backward")
def _softplus_backward(g: Graph, grad: Symbol, x: Symbol, beta: float, threshold: float) -> Ids:
    scaled = op(g, "mul", x, beta)
    soft = op(g, "mul", grad, op(g, "sigmoid", scaled))
    return choose(g, op(g, "lt", threshold, scaled), grad, soft)
