"""The Hamiltonian of a stage compiled: its values, derivatives by u and minimiser, see minimise.h.

A program of its own, made when it is first asked for: `MSA` and `EMSA` are all who use it. It comes
from the expressions of the problem's main program, which has been checked, and reads its numbers.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, addressof, c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ocp.engines.native import abi, build, emit, grid
from ocp.engines.native.compiled import REAL, Refused, compare
from ocp.engines.native.derive import Derivatives
from ocp.engines.native.forms import Matrix, Output, scalar_code, straight
from ocp.engines.native.graph import Graph, TooLarge
from ocp.engines.native.values import Untraceable

if TYPE_CHECKING:
    from ocp.engines.native.engine import Native
    from ocp.solvers.hamiltonian import Hamiltonian

MOST = 15_000  # scalar operations of the derivatives, ten seconds of g++; larger ones are PyTorch's
ENTRIES = {"ocp_value": "p", "ocp_derivatives": "pp", "ocp_minimise": "iip"}
SIGNATURE = "const V* x, const V* u, const C& c, const V* v"


class Samples(Structure):
    """Of all entries; see minimise.h for shapes."""

    _fields_ = abi.fields("lines:i xs:p us:p vs:p")


@dataclass(frozen=True)
class Hamiltonians:
    """The program for one engine, whose numbers it reads."""

    library: ctypes.CDLL
    engine: Native

    def value(self, h: Hamiltonian, us: Tensor) -> Tensor:
        """(T, L)."""
        out = us.new_empty(us.shape[:2])
        self._call("ocp_value", h, us, out.data_ptr())
        return out

    def derivatives(self, h: Hamiltonian, us: Tensor) -> tuple[Tensor, Tensor]:
        """(T, L, m), (T, L, m, m)."""
        g, H = torch.empty_like(us), us.new_empty(*us.shape, us.shape[-1])
        self._call("ocp_derivatives", h, us, g.data_ptr(), H.data_ptr())
        return g, H

    def minimiser(self, h: Hamiltonian, us: Tensor, iterations: int, trials: int) -> Tensor:
        """What `ProjectedNewton` finds, (T, L, m)."""
        out = torch.empty_like(us)
        self._call("ocp_minimise", h, us, iterations, trials, out.data_ptr())
        return out

    def _call(self, entry: str, h: Hamiltonian, us: Tensor, *rest: int) -> None:
        xs, us, vs = torch.as_tensor(h.xs).contiguous(), us.contiguous(), extras(h)
        of = Samples(us.shape[1], xs.data_ptr(), us.data_ptr(), vs.data_ptr())
        block = addressof(self.engine.data_block)
        getattr(self.library, entry)(block, addressof(of), *rest)


def extras(h: Hamiltonian) -> Tensor:
    """What enters a stage beside x and u: p', and with weights x', p and both of them."""
    ps, xs = torch.as_tensor(h.ps), torch.as_tensor(h.xs)
    if h.weights is None:
        return ps[1:].contiguous()
    weights = h.weights.expand(len(ps) - 1, *h.weights.shape)
    return torch.cat((ps[1:], xs[1:], ps[:-1], weights), dim=-1)


def unsupported(program: emit.Program, form: grid.Form | None) -> str:
    """Why there is no such program, told without making it; empty if there may be."""
    if form is not None:
        return "on a GPU"
    return "" if program.values else "the problem is stagewise"


# -- making ---------------------------------------------------------------------------------------
_made: WeakKeyDictionary[emit.Program, dict[bool, ctypes.CDLL | str]] = WeakKeyDictionary()


def compiled_for(engine: Native, augmented: bool) -> Hamiltonians:
    """The program for an engine, now or earlier made.

    Raises:
        Refused: there is none; says why.
    """
    known = _made.setdefault(engine.program, {})
    if augmented not in known:
        try:
            known[augmented] = make(engine, augmented)
        except (Untraceable, build.BuildError, Refused) as error:
            known[augmented] = str(error)
    found = known[augmented]
    if isinstance(found, str):
        what = "the augmented H" if augmented else "H"
        raise Refused(f"{what} is minimised in eager PyTorch: {found}")
    return Hamiltonians(found, engine)


def make(engine: Native, augmented: bool) -> ctypes.CDLL:
    if reason := unsupported(engine.program, engine.compiled.form):
        raise Refused(reason)
    text = text_of(engine, augmented)
    library, entry = build.load(text), build.place_of(text)
    for name, arguments in ENTRIES.items():
        function = getattr(library, name)
        kinds = [c_int64 if a == "i" else c_void_p for a in arguments]
        function.argtypes, function.restype = [c_void_p, c_void_p, *kinds], None
    if not build.trusted(entry):
        check(Hamiltonians(library, engine), augmented)
        build.trust(entry)
    return library


def text_of(engine: Native, augmented: bool) -> str:
    """Raises `Refused` where there are more than `MOST` operations, or `Untraceable`."""
    program, info, problem = engine.program, engine.info, engine.problem
    extra = 3 * info.n + 2 if augmented else info.n
    writer = emit.Writer(program.graph, program.par.places(), program.dat.places())
    model = (
        f"struct Model {{\n  static constexpr int n = {info.n}, m = {info.m}, extra = {extra};\n"
    )
    for name, outputs in functions(program, info.n, info.m, augmented):
        model += writer.function(name, SIGNATURE, outputs)
    settings = {"OCP_REAL": REAL[problem.x0.dtype], "OCP_BOUNDS": int(problem.lower is not None)}
    lines = [f"#define {name} {value}" for name, value in settings.items()]
    lines += [f'#include "{header}"' for header in build.BEFORE]
    return "\n".join([*lines, "namespace ocp {", model + "};", "}", '#include "minimise.h"', ""])


def functions(
    program: emit.Program, n: int, m: int, augmented: bool
) -> list[tuple[str, list[Output]]]:
    """The functions of the model. Raises `Refused` where they are too large, or `Untraceable`."""
    g = program.graph
    x, u = ([g.leaf(kind, i) for i in range(size)] for kind, size in (("x", n), ("u", m)))
    by_u = Derivatives(g, u)
    try:
        with g.at_most(4 * MOST):
            h = expression(g, program, x, augmented)
            gradient = by_u.gradient([h], [g.one])
            matrix = Matrix("H", gradient, by_u, symmetric=True)
            pieces, count = scalar_code(g, [Output("g", gradient)], matrix, MOST)
    except TooLarge as error:
        raise Refused(f"{error} for its derivatives, {MOST} are allowed") from error
    if pieces is None:
        raise Refused(f"{count} scalar operations for its derivatives, {MOST} are allowed")
    return [("h", straight(g, [Output("y", [h])])), ("h_expansion", pieces)]


def expression(g: Graph, program: emit.Program, x: list[int], augmented: bool) -> int:
    """The Hamiltonian, or its augmented form: see `ocp.solvers.hamiltonian`."""
    f, stage, n = program.values["f"], program.values["l"], len(x)
    v = [g.leaf("v", i) for i in range(3 * n + 2)]
    plain = g.sum([stage[0], *(g.mul(p, y) for p, y in zip(v[:n], f, strict=True))])
    if not augmented:
        return plain
    hx = Derivatives(g, x).gradient([stage[0], *f], [g.one, *v[:n]])
    moved = [g.sub(a, b) for a, b in zip(v[n : 2 * n], f, strict=True)]
    bent = [g.sub(a, b) for a, b in zip(v[2 * n : 3 * n], hx, strict=True)]
    squares = [g.sum(g.mul(a, a) for a in part) for part in (moved, bent)]
    penalties = g.add(g.mul(v[3 * n], squares[0]), g.mul(v[3 * n + 1], squares[1]))
    return g.add(plain, g.mul(g.number(0.5), penalties))


@torch.no_grad()
def check(made: Hamiltonians, augmented: bool) -> None:
    """Compare values and derivatives with eager ones at random points near x0.

    Raises:
        Refused: they differ.
    """
    from ocp.engines.eager import Eager
    from ocp.solvers.hamiltonian import Hamiltonian

    engine = made.engine
    T, B, n, m = engine.sizes
    g = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(engine.x0)
    xs = engine.x0 + 0.1 * (1 + engine.x0.abs()) * noise(T + 1, B, n)
    us, ps = 0.5 * noise(T, B, m), noise(T + 1, B, n)
    if engine.held[2] is not None and engine.held[3] is not None:
        us = torch.minimum(torch.maximum(us, engine.held[2][:, None]), engine.held[3][:, None])
    weights = torch.rand(B, 2, generator=g, dtype=torch.float64).to(xs) if augmented else None
    h = Hamiltonian(Eager(engine.problem), xs, ps, weights)
    for name, ours, theirs in zip(
        ("H", "H_u", "H_uu"),
        (made.value(h, us), *made.derivatives(h, us)),
        (h.value(us), *h.derivatives(us)),
        strict=True,
    ):
        compare(name, ours, torch.as_tensor(theirs))
