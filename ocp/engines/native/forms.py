"""The two forms of derivatives: scalar code, and straight-line code with a tape of tangents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ocp.engines.native.derive import Derivatives
from ocp.engines.native.duals import Coder, Tape, linearise
from ocp.engines.native.graph import NETWORK, Graph, TooLarge, flat
from ocp.engines.native.passages import arguments, divided, first_derivatives, passages
from ocp.engines.native.pushing import can_push
from ocp.engines.native.solves import expand_solves

WIDTHS = (2, 4, 8, 16)  # numbers that machines compute at once
MADE = 4  # nodes that may be made for each scalar operation that is kept


class Output(NamedTuple):
    """An array a function writes, and what into it."""

    name: str
    ids: list[int]


class Matrix(NamedTuple):
    """An array of derivatives: d rows / d wrt."""

    name: str
    rows: list[int]
    of: Derivatives
    symmetric: bool = False


@dataclass(frozen=True, eq=False)
class Function:
    """A function of the program.

    Attributes:
        outputs: of its straight-line code; with a tape the last one has the coefficients.
        matrix: what the tape computes.
        tape: None for scalar code.
        why: the form, in words.
    """

    outputs: list[Output]
    matrix: Matrix | None
    tape: Tape | None
    why: str


def all_ids(pieces: Iterable[Output]) -> list[int]:
    return flat(piece.ids for piece in pieces)


def operations(g: Graph, roots: Sequence[int]) -> int:
    """Scalar operations; a product with weights, or a network, for what it takes and gives."""
    count = 0
    for i in g.reachable(roots):
        if g.ops[i] == "matvec":
            count += g.data[i].rows + g.data[i].columns
        elif g.ops[i] in NETWORK:
            count += len(g.args[i]) + len(g.data[i].net.outputs)
        else:
            count += g.ops[i] not in ("number", "leaf", "entry", "stop")
    return count


def straight(g: Graph, pieces: Iterable[Output]) -> list[Output]:
    """The pieces without linear systems."""
    return [Output(p.name, expand_solves(g, p.ids)) for p in pieces]


def choose(g: Graph, plain: list[Output], matrix: Matrix | None, most: int) -> Function:
    """Scalar code if that takes no more than ``most`` operations, else a tape."""
    if matrix is None:
        return Function(straight(g, plain), None, None, "")
    pieces, count = scalar_code(g, plain, matrix, most)
    if pieces is not None:
        return Function(pieces, None, None, f"scalar code: {count} operations, up to {most} are")
    tape = linearise(g, matrix.of, matrix.rows, matrix.symmetric)
    outputs = straight(g, [*plain, Output("p", tape.coefficients)])
    why = f"tangents: as scalar code {count} operations, at most {most}"
    return Function(outputs, matrix, tape, why)


def jacobian(g: Graph, of: Derivatives, outputs: Sequence[int]) -> list[int]:
    """d outputs / d wrt (rows, columns), flat: by way of passages if that is less to do."""
    plain = flat(of.jacobian(outputs))
    by = arguments(g, of, passages(g, of, outputs)) if can_push(g, outputs) else []
    if not by:
        return plain
    try:
        known = first_derivatives(g, of, divided(g, of, outputs, by))
    except TooLarge:
        return plain
    chained = [known[y].get(j, g.zero) for y in outputs for j in range(len(of.wrt))]
    return min(plain, chained, key=lambda entries: operations(g, entries))


def scalar_code(
    g: Graph, plain: list[Output], matrix: Matrix, most: int
) -> tuple[list[Output] | None, str]:
    """Scalar code, or None, and how many operations it has."""
    try:
        with g.at_most(MADE * most):
            of, rows = matrix.of, matrix.rows
            entries = flat(of.hessian(rows)) if matrix.symmetric else jacobian(g, of, rows)
            pieces = straight(g, [*plain, Output(matrix.name, entries)])
    except TooLarge:
        return None, f"more than {most}"
    count = operations(g, all_ids(pieces))
    return (pieces if count <= most else None), str(count)


# -- text ----------------------------------------------------------------------------------------
def tape_text(name: str, signature: str, function: Function, places: Sequence[int]) -> str:
    """The member function that runs the straight-line code ``name_parts`` and then the tape."""
    assert function.tape is not None and function.matrix is not None
    tape, matrix = function.tape, function.matrix
    plain = [o.name for o in function.outputs[:-1]]
    targets = ", ".join(f"V* {o}" for o in [*plain, matrix.name])
    given = [a.split()[-1].lstrip("*&") for a in signature.split(", ")]
    lines = [
        f"  template <class V, class C> OCP_APART void {name}({signature}, {targets}) {{",
        f"    V p[{max(1, len(tape.coefficients))}];",
        f"    {name}_parts({', '.join([*given, *plain, 'p'])});",
    ]
    variants = WIDTHS if name == "f_contracted" else ()
    for width in variants:
        lines.append(f"    if constexpr (Chunk<V>::size == {width}) {{")
        lines += run_text(Coder(tape, places, width), matrix, "typename Chunk<V>::type")
        lines.append("    }")
    lines.append("    if constexpr (Chunk<V>::size == 1) {" if variants else "    {")
    lines += run_text(Coder(tape, places, 1), matrix, "V")
    return "\n".join([*lines, "    }", "  }", ""])


def run_text(coder: Coder, matrix: Matrix, kind: str) -> Iterator[str]:
    coder.run()
    for name, numbers in (("code", coder.code), ("maps", coder.maps or [0])):
        yield f"    static constexpr int {name}[] = {{"
        for k in range(0, len(numbers), 40):
            yield ",".join(map(str, numbers[k : k + 40])) + ","
        yield "    };"
    yield f"    {kind} t[{max(1, coder.memory.size)}];"
    sizes = f"{coder.tape.directions}, {'true' if coder.tape.symmetric else 'false'}"
    yield f"    carry<{sizes}>(code, maps, p, c.shared, t, {matrix.name});"
