"""Models made at random from a grammar of PyTorch operations."""

import random

import torch
from native_text import small

F64 = torch.float64
UNARY = [
    torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.exp, torch.atan, torch.abs, torch.erf,
    lambda v: torch.sqrt(1 + v * v), lambda v: torch.log1p(v * v), lambda v: torch.rsqrt(2 + v * v),
    lambda v: v**2, lambda v: v**3, lambda v: -v, lambda v: v / 3, lambda v: 1.5 - v,
    torch.asinh, lambda v: torch.sinh(v / 2), lambda v: torch.clamp(v, -0.4, 0.6),
    torch.nn.functional.silu, torch.nn.functional.softplus, torch.nn.functional.gelu,
    torch.nn.functional.elu, lambda v: torch.expm1(v / 2), lambda v: torch.tan(v / 4),
    lambda v: torch.where(v > 0.1, v, v * v), lambda v: torch.acos(torch.tanh(v) / 2),
    lambda v: torch.asin(torch.tanh(v) / 2), lambda v: torch.cosh(v) - 1, torch.relu,
]  # fmt: skip
BINARY = [
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, torch.atan2,
    lambda a, b: a / (1 + b * b), lambda a, b: (1 + a * a) ** torch.tanh(b), torch.hypot,
    lambda a, b: torch.where(a < b, a, b * a), lambda a, b: torch.lerp(a, b, 0.3),
    lambda a, b: torch.addcmul(a, a, b, value=0.5),
]  # fmt: skip
MOVES = [
    lambda v: v.flip(0), lambda v: v.roll(1), lambda v: torch.cat((v[1:], v[:1])),
    lambda v: torch.stack([*v.unbind()][::-1]), lambda v: v.reshape(1, -1).T[:, 0],
    lambda v: v[torch.tensor([2, 0, 2])], lambda v: torch.nn.functional.pad(v[:2], (0, 1)),
    lambda v: v.cumsum(0), lambda v: v - v.mean(), lambda v: torch.softmax(v, 0),
    lambda v: torch.diff(v, prepend=v[:1]), lambda v: torch.triu(torch.outer(v, v)).sum(0),
    lambda v: v.sum() * v, lambda v: torch.linalg.vector_norm(v) * v, lambda v: v.logsumexp(0) + v,
    lambda v: torch.linalg.solve(torch.diag(2 + v * v) + torch.outer(v, v), v),
    lambda v: v.expand(2, 3).amax(0) + v.amin(), lambda v: torch.diag_embed(v)[1] + v.std(),
]  # fmt: skip


def random_problem(seed):
    """n = 3, m = 2: dynamics and costs of about a dozen operations each, T = 6."""
    rng = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    W, b, reference = (torch.randn(*s, dtype=F64, generator=g) for s in ((3, 5), (3,), (8, 3)))

    def program(length):
        """A list of steps; each takes values made before and makes one."""
        return [
            (rng.choice(("unary", "unary", "binary", "binary", "move")), rng.random(), rng.random(),
             rng.random())
            for _ in range(length)
        ]  # fmt: skip

    def run(steps, pool):
        pool = list(pool)
        for kind, which, i, j in steps:
            a, c = pool[-1 - int(i * min(4, len(pool)))], pool[int(j * len(pool))]
            table = {"unary": UNARY, "binary": BINARY, "move": MOVES}[kind]
            function = table[int(which * len(table))]
            value = function(a, c) if kind == "binary" else function(a)
            pool.append(torch.tanh(value) if len(pool) % 4 == 0 else value)  # keeps them small
        return torch.tanh(pool[-1]) + 0.1 * pool[-2]

    f_steps, l_steps, phi_steps = program(12), program(8), program(6)

    def f(x, u, t, p):
        z = torch.cat((x, u))
        drive = p["gain"] * (W @ z) + b
        return x + 0.1 * run(f_steps, (x, drive, reference[t + 1], torch.cat((u, x[:1]))))

    def l(x, u, t, p):
        away = x - reference[t]
        return (run(l_steps, (x, away, torch.cat((u, u[:1])))) ** 2).sum() + p["gain"] * (u @ u)

    def phi(x, p):
        return run(phi_steps, (x, x - b)).square().sum()

    return small(f, l=l, phi=phi, parameters={"gain": 0.7})
