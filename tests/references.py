"""Independent oracles: other routes to the answers, without the package's own mathematics.

Nothing here uses the engines, the sweep or the batching of `ocp`; plain loops over t on one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor
from torch.func import hessian, jacfwd

import ocp

Array = np.ndarray


# -- linear-quadratic problems ------------------------------------------------------------------
class Stage(NamedTuple):
    """Matrices of one stage as NumPy arrays; see `ocp.linear_quadratic`."""

    A: Array
    B: Array
    Q: Array
    R: Array
    c: Array
    N: Array  # (m, n)
    q: Array
    r: Array


def random_lq(
    sizes: Sequence[int], controls: Sequence[int], seed: int
) -> tuple[list[Stage], Array, Array, Array]:
    """Random stages with every term: (stages, Q_final, q_final, x0). Convex in (x, u) jointly."""
    g = np.random.default_rng(seed)
    stages = []
    for n, after, m in zip(sizes[:-1], sizes[1:], controls, strict=True):
        W = g.normal(size=(n + m, n + m))
        H = W @ W.T / (n + m) + 0.5 * np.eye(n + m)
        stages.append(
            Stage(
                g.normal(size=(after, n)) / np.sqrt(n),
                g.normal(size=(after, m)),
                H[:n, :n],
                H[n:, n:],
                g.normal(size=after),
                H[n:, :n],
                g.normal(size=n),
                g.normal(size=m),
            )
        )
    W = g.normal(size=(sizes[-1], sizes[-1]))
    return stages, W @ W.T, g.normal(size=sizes[-1]), g.normal(size=sizes[0])


def lq_problem(
    stages: Sequence[Stage], Q_final: Array, q_final: Array, x0: Array, **more: object
) -> ocp.Problem:
    """The same matrices as a problem, lists over t."""
    from ocp.linear_quadratic import linear_quadratic

    lists = {k: [torch.from_numpy(getattr(s, k)) for s in stages] for k in Stage._fields}
    return linear_quadratic(**lists, x0=x0, Q_final=Q_final, q_final=q_final, **more)


def dense_kkt(
    stages: Sequence[Stage], Q_final: Array, q_final: Array, x0: Array
) -> tuple[list[Array], list[Array], list[Array], float]:
    """All states, controls and multipliers at once from the KKT system: (xs, us, ps, J).

    min 1/2 z' H z + h' z  s.t.  G z = g  over z = (x[0], u[0], x[1], ..., x[T]); the multiplier of
    ``f(x[t], u[t]) - x[t+1] = 0`` is the costate of x[t+1], that of ``x0 - x[0] = 0`` is p[0].
    """
    T = len(stages)
    ns, ms = [s.A.shape[1] for s in stages] + [len(q_final)], [s.B.shape[1] for s in stages]
    x_at = [sum(ns[:t]) + sum(ms[:t]) for t in range(T + 1)]
    u_at = [x_at[t] + ns[t] for t in range(T)]
    size, rows = sum(ns) + sum(ms), sum(ns)
    H, h, G, g = np.zeros((size, size)), np.zeros(size), np.zeros((rows, size)), np.zeros(rows)
    row = ns[0]
    G[:row, :row], g[:row] = -np.eye(row), -x0
    for t, s in enumerate(stages):
        X, U = slice(x_at[t], u_at[t]), slice(u_at[t], x_at[t + 1])
        H[X, X], H[U, U], H[U, X], H[X, U] = s.Q, s.R, s.N, s.N.T
        h[X], h[U] = s.q, s.r
        after = slice(row, row + ns[t + 1])
        G[after, X], G[after, U] = s.A, s.B
        G[after, x_at[t + 1] : x_at[t + 1] + ns[t + 1]] = -np.eye(ns[t + 1])
        g[after] = -s.c
        row += ns[t + 1]
    H[x_at[T] :, x_at[T] :], h[x_at[T] :] = Q_final, q_final
    full = np.block([[H, G.T], [G, np.zeros((rows, rows))]])
    answer = scipy.linalg.solve(full, np.concatenate((-h, g)))
    z, multipliers = answer[:size], answer[size:]
    xs = [z[x_at[t] : x_at[t] + ns[t]] for t in range(T + 1)]
    us = [z[u_at[t] : u_at[t] + ms[t]] for t in range(T)]
    ps = np.split(multipliers, np.cumsum(ns)[:-1])
    return xs, us, ps, float(z @ H @ z / 2 + h @ z)


# -- one sample, plain Python -------------------------------------------------------------------
def sample_data(problem: ocp.Problem, b: int) -> dict[str, Tensor]:
    return {**problem.parameters, **{k: v[b] for k, v in problem.per_problem.items()}}


def stage_of(problem: ocp.Problem, t: int) -> int | Tensor:
    return t if problem.stagewise else torch.tensor(t)


def roll_out(problem: ocp.Problem, us: Sequence[Tensor], b: int = 0) -> tuple[list[Tensor], Tensor]:
    """States and J of row b of x0 under controls us, a list over t of (m,)."""
    x = problem.x0[b] if problem.x0.ndim == 2 else problem.x0
    p, xs = sample_data(problem, b), [x]
    J = x.new_zeros(())
    for t, u in enumerate(us):
        J = J + problem.l(x, u, stage_of(problem, t), p)
        x = problem.f(x, u, stage_of(problem, t), p)
        xs.append(x)
    return xs, J + problem.phi(x, p)


def objective(problem: ocp.Problem, b: int | None = 0) -> Callable[[Tensor], Tensor]:
    """J as a function of all controls end to end; b None for the mean over rows of x0."""
    rows = range(problem.x0.shape[0]) if b is None else [b]

    def J(flat: Tensor) -> Tensor:
        us = flat.split(list(problem.control_dims))
        return torch.stack([roll_out(problem, us, row)[1] for row in rows]).mean()

    return J


def gradient(problem: ocp.Problem, us: Sequence[Tensor], b: int | None = 0) -> list[Tensor]:
    """dJ/du[t] by autograd through the roll-out."""
    flat = torch.cat(list(us)).detach().requires_grad_()
    (g,) = torch.autograd.grad(objective(problem, b)(flat), flat)
    return list(g.split(list(problem.control_dims)))


def dense_hessian(problem: ocp.Problem, us: Sequence[Tensor], b: int | None = 0) -> Tensor:
    """Second derivatives of J in all controls, end to end."""
    flat = torch.cat(list(us)).detach()
    return torch.autograd.functional.hessian(objective(problem, b), flat)


def central_differences(function: Callable[[Tensor], Tensor], z: Tensor, h: float = 1e-5) -> Tensor:
    """Jacobian (..., len(z)) of any function of a vector."""
    columns = []
    for i in range(len(z)):
        e = torch.zeros_like(z)
        e[i] = h
        columns.append((function(z + e) - function(z - e)) / (2 * h))
    return torch.stack(columns, dim=-1)


# -- one step of DDP, per problem, with explicit 3-tensors ---------------------------------------
class Step(NamedTuple):
    k: list[Array]
    K: list[Array]
    vx: list[Array]
    vxx: list[Array]
    change: float  # of J by the full step, as the model has it


def ddp_sweep(
    problem: ocp.Problem,
    xs: Sequence[Tensor],
    us: Sequence[Tensor],
    *,
    b: int = 0,
    second_order: bool,
    damping: float = 0.0,
    on_state: bool = False,
) -> Step:
    """Backward pass of Tassa, Erez, Todorov (2012), eq. 5-11, by inverses and f_zz in full."""
    p, T = sample_data(problem, b), len(us)
    numpy = lambda v: v.detach().numpy()
    phi = lambda x: problem.phi(x, p)
    vx, vxx = numpy(jacfwd(phi)(xs[T])), numpy(hessian(phi)(xs[T]))
    ks, Ks, vxs, vxxs, change = [], [], [vx], [vxx], 0.0
    for t in reversed(range(T)):
        n, z, stage = len(xs[t]), torch.cat((xs[t], us[t])), stage_of(problem, t)
        f = lambda z, n=n, s=stage: problem.f(z[:n], z[n:], s, p)
        l = lambda z, n=n, s=stage: problem.l(z[:n], z[n:], s, p)
        fz, lz, lzz = numpy(jacfwd(f)(z)), numpy(jacfwd(l)(z)), numpy(hessian(l)(z))
        q = lz + fz.T @ vx
        Q = lzz + fz.T @ vxx @ fz
        if second_order:
            Q = Q + np.tensordot(vx, numpy(jacfwd(jacfwd(f))(z)), axes=1)  # the 3-tensor in full
        Qd = Q.copy()
        if on_state:
            Qd += damping * fz.T @ fz
        else:
            Qd[n:, n:] += damping * np.eye(len(us[t]))
        inverse = np.linalg.inv(Qd[n:, n:])
        k, K = -inverse @ q[n:], -inverse @ Qd[n:, :n]
        change += k @ q[n:] + k @ Q[n:, n:] @ k / 2
        vx = q[:n] + K.T @ Q[n:, n:] @ k + K.T @ q[n:] + Q[n:, :n].T @ k
        vxx = Q[:n, :n] + K.T @ Q[n:, n:] @ K + K.T @ Q[n:, :n] + Q[n:, :n].T @ K
        vxx = (vxx + vxx.T) / 2
        for values, value in ((ks, k), (Ks, K), (vxs, vx), (vxxs, vxx)):
            values.insert(0, value)
    return Step(ks, Ks, vxs, vxxs, float(change))


def ddp_trial(
    problem: ocp.Problem,
    xs: Sequence[Tensor],
    us: Sequence[Tensor],
    step: Step,
    size: float,
    b: int = 0,
) -> tuple[list[Tensor], list[Tensor], float]:
    """Roll out ``u + size k + K (x' - x)`` from x0: (xs, us, J)."""
    p, x = sample_data(problem, b), xs[0]
    new_xs, new_us, J = [x], [], 0.0
    for t, (k, K) in enumerate(zip(step.k, step.K, strict=True)):
        u = us[t] + size * torch.from_numpy(k) + torch.from_numpy(K) @ (x - xs[t])
        J += float(problem.l(x, u, stage_of(problem, t), p))
        x = problem.f(x, u, stage_of(problem, t), p)
        new_us.append(u)
        new_xs.append(x)
    return new_xs, new_us, J + float(problem.phi(x, p))


# -- quadratic programs --------------------------------------------------------------------------
def box_qp(H: Array, g: Array, lo: Array, hi: Array) -> Array:
    """min 1/2 x' H x + g' x in a box, by SciPy: as bounded least squares with H = W' W."""
    W = np.linalg.cholesky(H).T
    target = -np.linalg.solve(W.T, g)
    answer = scipy.optimize.lsq_linear(W, target, bounds=(lo, hi), method="bvls", tol=1e-14)
    return answer.x


def bounded_minimum(problem: ocp.Problem, lo: Array, hi: Array, b: int = 0) -> Array:
    """Controls within constant bounds that minimise J, by SciPy's L-BFGS-B from zero."""
    J = objective(problem, b)

    def value_and_slope(flat: Array) -> tuple[float, Array]:
        z = torch.from_numpy(flat.copy()).requires_grad_()
        value = J(z)
        (slope,) = torch.autograd.grad(value, z)
        return float(value), slope.numpy()

    T = problem.horizon
    limits = list(zip(np.tile(lo, T), np.tile(hi, T), strict=True))
    start = np.clip(
        np.zeros(sum(problem.control_dims)), [a for a, _ in limits], [c for _, c in limits]
    )
    options = {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 5000, "maxfun": 20000}
    answer = scipy.optimize.minimize(
        value_and_slope, start, jac=True, bounds=limits, method="L-BFGS-B", options=options
    )
    return answer.x


# -- comparing -----------------------------------------------------------------------------------
def close(actual: Tensor | float, expected: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected), rtol=tolerance, atol=tolerance
    )


def lists_close(
    actual: Sequence[Tensor], expected: Sequence[object], tolerance: float = 1e-9
) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        close(a, e, tolerance)
