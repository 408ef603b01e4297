"""Reads the generated C++ text as NumPy: every statement is one operation both languages have.

The oracle is independent of the graph: what is evaluated is what would be compiled.
"""

import re

import numpy as np
import scipy.special
import torch

import ocp
from ocp.engines import eager
from ocp.engines.native import emit

FUNCTIONS = {
    "V": lambda value: value,
    "abs_": np.abs,
    "sign": np.sign,
    "min_": np.minimum,
    "max_": np.maximum,
    "select": np.where,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "pow": np.power,
    "erf": scipy.special.erf,
    "rsqrt": lambda a: 1 / np.sqrt(a),
}
FUNCTIONS |= {name: getattr(np, name) for name in ("sqrt", "sin", "cos", "tan", "sinh", "cosh")}
FUNCTIONS |= {name: getattr(np, name) for name in ("tanh", "exp", "expm1", "log", "log1p", "floor")}


class Context:
    """``c`` of the text, over K points: t (K,), par (P,), dat (K, D)."""

    def __init__(self, t, par, dat):
        self.stage, self.numbers, self.data = t, par, dat

    def t(self):
        return self.stage.astype(self.numbers.dtype)

    def par(self, i):
        return self.numbers[i]

    def par_at(self, i, stride):
        return self.numbers[i + stride * self.stage]

    def dat(self, i):
        return self.data[:, i]

    def dat_at(self, i, stride):
        return self.data[np.arange(len(self.stage)), i + stride * self.stage]


def run(text, function, given, outputs):
    """Results of one function of the text: ``outputs`` maps names to sizes; (K, size) each."""
    body = re.search(rf"OCP_(?:FN|APART) void {function}\(.*?\) {{\n(.*?)\n  }}\n", text, re.S)
    assert body, f"no {function} in the text"
    results = {name: [None] * size for name, size in outputs.items()}
    scope = {**FUNCTIONS, **given, **results}
    for line in body.group(1).splitlines():
        statement = line.strip().rstrip(";")
        if statement.startswith("(void)"):
            continue
        if zeros := re.match(r"for .* (\w+)\[k\] = V\(0.0\)$", statement):
            results[zeros[1]][:] = [0.0] * len(results[zeros[1]])
            continue
        statement = re.sub(r"^(const )?(V|auto) |apart::", "", statement).replace("!", "~")
        statement = statement.replace(" in[", " in_[")  # a keyword of Python
        with np.errstate(all="ignore"):
            exec(statement, scope)
    count = next(v for v in given.values() if isinstance(v, np.ndarray)).shape[-1]
    full = lambda entries: [np.broadcast_to(np.asarray(e), (count,)) for e in entries]
    return [
        np.stack(full(results[name]), axis=-1) if size else np.zeros((count, 0))
        for name, size in outputs.items()
    ]


def points(problem, count, seed, size=1.0):
    """x, u, t, v around the initial state, and the row of per-problem data of each."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.arange(count) % problem.x0.reshape(-1, problem.state_dims[0]).shape[0]
    like = dict(generator=g, dtype=problem.x0.dtype)
    n, m = problem.state_dims[0], problem.control_dims[0]
    x = problem.x0.reshape(-1, n)[rows] + size * torch.randn(count, n, **like)
    u = size * torch.randn(count, m, **like)
    t = torch.randint(problem.horizon, (count,), generator=g)
    return x, u, t, torch.randn(count, n, **like), rows


def by_text(program, problem, x, u, t, v, rows):
    """Everything the program computes: a dict of arrays (K, size)."""
    n, m = problem.state_dims[0], problem.control_dims[0]
    d = n + m
    dat = program.per_problem(problem).numpy()[rows.numpy()]
    c = Context(t.numpy(), program.shared(problem).numpy(), dat)
    given = {"c": c, "x": x.numpy().T, "u": u.numpy().T, "v": v.numpy().T}
    sizes = {
        "f": {"y": n}, "l": {"y": 1}, "phi": {"y": 1}, "f_jacobian": {"F": n * d},
        "l_expansion": {"g": d, "H": d * d}, "phi_expansion": {"g": n, "H": n * n},
        "f_contracted": {"H": d * d},
    }  # fmt: skip
    return {name: run(program.text, name, given, size) for name, size in sizes.items()}


def by_torch(problem, x, u, t, v, rows):
    """The same by torch.func, point by point."""
    parts = []
    for k, row in enumerate(rows.tolist()):
        p = {**problem.parameters, **{name: w[row] for name, w in problem.per_problem.items()}}
        at = (x[k], u[k], t[k], p)
        parts.append(
            {
                "f": (problem.f(*at),),
                "l": (problem.l(*at),),
                "phi": (problem.phi(x[k], p),),
                "f_jacobian": (eager.jacobian(problem.f)(*at),),
                "l_expansion": eager.gradient_hessian(problem.l)(*at),
                "phi_expansion": eager.terminal_gradient_hessian(problem.phi)(x[k], p),
                "f_contracted": (eager.contracted_hessian(problem.f)(*at, v[k]),),
            }
        )
    flat = lambda tensors: np.stack([w.detach().reshape(-1).numpy() for w in tensors])
    return {
        name: [flat(pieces) for pieces in zip(*(part[name] for part in parts), strict=True)]
        for name in parts[0]
    }


def agree(problem, seed=0, count=4, size=1.0, tolerance=1e-12, program=None):
    """Assert that the scalar program of a problem computes what torch.func does; returns it."""
    program = program or emit.model(problem, scalar=100_000)
    at = points(problem, count, seed, size)
    ours, theirs = by_text(program, problem, *at), by_torch(problem, *at)
    for name, expected in theirs.items():
        for k, (a, e) in enumerate(zip(ours[name], expected, strict=True)):
            largest = np.abs(e[np.isfinite(e)]).max(initial=0)
            np.testing.assert_allclose(
                a, e, rtol=tolerance, atol=tolerance * max(1.0, largest),
                err_msg=f"{name}[{k}]",
            )  # fmt: skip
    return program


def small(f, n=3, m=2, horizon=6, l=None, phi=None, x0=None, **rest):
    """A problem about one function; the cost is quadratic unless given."""
    stage = l or (lambda x, u, t: (x * x).sum() / 2 + (u * u).sum())
    terminal = phi or (lambda x: (x * x).sum())
    x0 = torch.linspace(0.2, 0.7, n, dtype=torch.float64) if x0 is None else x0
    return ocp.Problem(f, ocp.FunctionCost(stage, terminal), x0, horizon, m, **rest)


def unchecked(f, **rest):
    """A problem with dynamics that its constructor might refuse."""
    problem = small(lambda x, u, t, p: x + u.sum(), **rest)
    wants = f.__code__.co_argcount == 4
    object.__setattr__(problem, "dynamics", f if wants else lambda x, u, t, p: f(x, u, t))
    return problem
