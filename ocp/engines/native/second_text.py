"""The text of second-order terms that are split, see the module second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocp.engines.native.chain import Pair
from ocp.engines.native.forms import Output, operations
from ocp.engines.native.graph import Graph
from ocp.engines.native.passages import Row
from ocp.engines.native.second import Split, is_fixed

if TYPE_CHECKING:
    from ocp.engines.native.emit import Writer

APART = 150  # nodes of a function that is compiled once for all its calls


def second_text(writer: Writer, split: Split, d: int, signature: str) -> str:
    """``struct Second``, see the module second; nothing without entries.

    Args:
        d: numbers of z.
        signature: the arguments that f has.
    """
    if not split.entries:
        return ""
    g = writer.graph
    long = int(bool(split.rows) or operations(g, split.combined) > APART)
    text = f"#define OCP_TABLE {len(split.entries)}\n#define OCP_LONG {long}\n"
    text += f"#define OCP_FIRST {int(bool(split.first))}\n"
    ahead = [Output("S", split.entries)]
    if split.first:
        ahead.append(Output("F", split.first))
    structure = ""
    if split.rows:
        order, stored = stored_first(g, split.rows)
        text += f"#define OCP_ROWS {stored}\n"
        rows = [split.rows[i] for i in order]
        Y = [row.get(j, g.zero) for row in rows[:stored] for j in range(d)]
        ahead.append(Output("Y", Y))
        structure = chain_text(g, rows, rows[stored:], renamed(order, split.pairs), d)
        text += "template <int row, int entry> struct Term {};\n"
    text += "struct Second {\n" + writer.function("f_second", signature, ahead)
    out = [Output("M" if split.rows else "H", split.combined)]
    text += writer.function("f_combined", "C S, const V* v", out)
    return text + structure + "};\n"


def stored_first(g: Graph, rows: Sequence[Row]) -> tuple[list[int], int]:
    """An order of rows that ends with those that never change, and how many there are before."""
    fixed = [is_fixed(g, row) for row in rows]
    return sorted(range(len(rows)), key=fixed.__getitem__), len(rows) - sum(fixed)


def renamed(order: Sequence[int], pairs: Sequence[Pair]) -> list[Pair]:
    place = {row: k for k, row in enumerate(order)}
    return [(place[a], place[b]) for a, b in pairs]


def chain_text(
    g: Graph, rows: Sequence[Row], fixed: Sequence[Row], pairs: Sequence[Pair], d: int
) -> str:
    """The structure of Y and M, which chain.h goes along."""
    partners: list[dict[int, int]] = [{} for _ in rows]  # of each row: another, and their entry
    for k, (a, b) in enumerate(pairs):
        partners[a][b] = partners[b][a] = k
    columns = [sum(1 << j for j in row) for row in rows]
    reach = [0] * len(rows)
    for i, others in enumerate(partners):
        for j in others:
            reach[i] |= columns[j]
    words = lambda masks: ", ".join(f"{mask}ull" for mask in masks)
    lines = [
        "#if !OCP_GRID",
        f"  static constexpr int rows = {len(rows)}, pairs = {len(pairs)};",
        f"  static constexpr unsigned long long columns[] = {{{words(columns)}}};",
        f"  static constexpr unsigned long long reach[] = {{{words(reach)}}};",
        f"  static constexpr int wide = ({d} + OCP_LANES - 1) / OCP_LANES * OCP_LANES;",
        f"  static constexpr Real fixed[{max(1, len(fixed))}][wide] = {{",
    ]
    for row in fixed:
        numbers = (float(g.data[row[j]]) if j in row else 0.0 for j in range(d))
        lines.append(f"    {{{', '.join(map(repr, numbers))}}},")
    lines += ["  };", "  template <class To> OCP_FN void products(To& to) {"]
    for i, others in enumerate(partners):
        terms = ", ".join(f"Term<{j}, {k}>()" for j, k in sorted(others.items()))
        lines.append(f"    to.template along<{i}>({terms});")
    for c in range(d):
        having = [str(i) for i, row in enumerate(rows) if c in row]
        lines.append(f"    to.template row<{', '.join([str(c), *having])}>();")
    return "\n".join([*lines, "  }", "#endif", ""])
