"""C++ text of calls of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocp.engines.native.graph import NETWORK, Graph
from ocp.engines.native.net_struct import struct
from ocp.engines.native.nets import Call, Net

if TYPE_CHECKING:
    from ocp.engines.native.emit import Writer


class Structs:
    """The structures that a program has met, by name."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.nets: list[Net] = []

    def name(self, net: Net) -> str:
        if id(net) not in self.names:
            self.names[id(net)] = f"Net{len(self.nets)}"
            self.nets.append(net)
        return self.names[id(net)]

    def text(self, writer: Writer) -> str:
        return "".join(struct(writer, self.names[id(net)], net) for net in self.nets)


# -- calls ---------------------------------------------------------------------------------------
class Calls:
    """The statements of one function that call networks.

    A network is evaluated once for its inputs, with the derivatives that any node of the function
    asks for.
    """

    def __init__(
        self, graph: Graph, order: Sequence[int], structs: Structs, par: Sequence[int]
    ) -> None:
        self.graph, self.structs, self.par = graph, structs, par
        self.asked: dict[tuple[object, ...], set[str]] = {}
        self.names: dict[tuple[object, ...], str] = {}
        for i in order:
            if graph.ops[i] in NETWORK:
                for key in self.keys(i):
                    self.asked.setdefault(key, set()).add(graph.ops[i])

    def keys(self, i: int) -> list[tuple[object, ...]]:
        """Of the evaluation; and of the backward pass for certain weights of the outputs."""
        call, args = self.graph.data[i], self.graph.args[i]
        whole = (call, args[: call.net.inputs])
        return [whole] if args == whole[1] else [whole, (call, args)]

    def lines(self, i: int, args: Sequence[str]) -> tuple[str, list[str]]:
        """The name of an array with the entries of the node, and statements that make it."""
        call: Call = self.graph.data[i]
        k, keys = call.net.inputs, self.keys(i)
        made: list[str] = []
        if keys[0] not in self.names:
            self.names[keys[0]] = f"n{len(self.names)}"
            made += self.evaluation(call, self.names[keys[0]], args[:k], self.asked[keys[0]])
        name = self.names[keys[0]]
        if len(keys) == 1:
            return f"{name}_{'J' if self.graph.ops[i] == 'net_jacobian' else 'y'}", made
        if keys[1] not in self.names:
            self.names[keys[1]] = f"n{len(self.names)}"
            made += self.backward(call, name, self.names[keys[1]], args[k:], self.asked[keys[1]])
        back = self.names[keys[1]]
        return f"{back}_{'H' if self.graph.ops[i] == 'net_curvature' else 'g'}", made

    def evaluation(
        self, call: Call, name: str, inputs: Sequence[str], asked: set[str]
    ) -> list[str]:
        net, struct = call.net, self.structs.name(call.net)
        places = [str(self.par[source] + offset) for source, offset in call.places]
        lines = [
            f"static constexpr int {name}_at[] = {{{', '.join(places) or '0'}}};",
            f"const V {name}_x[] = {{{', '.join(inputs)}}};",
            f"V {name}_y[{len(net.outputs)}];",
        ]
        if "net_jacobian" in asked:
            lines.append(f"V {name}_J[{len(net.outputs) * net.inputs}];")
        given = f"c.shared, {name}_at, {name}_x"
        if asked & {"net_gradient", "net_curvature"}:
            order = 2 if "net_curvature" in asked else 1
            lines += [
                f"{struct}::Work<{order}, V> {name}_w;",
                f"{struct}::template forward<{order}>({given}, {name}_w);",
                f"{struct}::results({name}_w, {name}_y);",
            ]
            if order == 2:
                lines += [
                    f"{struct}::Tangents<V> {name}_t;",
                    f"{struct}::tangents(c.shared, {name}_at, {name}_w, {name}_t);",
                ]
            if "net_jacobian" in asked:
                source = f"jacobian_of({name}_t" if order == 2 else (
                    f"jacobian_of(c.shared, {name}_at, {name}_w"
                )  # fmt: skip
                lines.append(f"{struct}::{source}, {name}_J);")
        elif "net_jacobian" in asked:
            lines.append(f"{struct}::jacobian({given}, {name}_y, {name}_J);")
        else:
            lines.append(f"{struct}::value({given}, {name}_y);")
        return lines

    def backward(
        self, call: Call, name: str, back: str, weights: Sequence[str], asked: set[str]
    ) -> list[str]:
        k, struct = call.net.inputs, self.structs.name(call.net)
        given = f"c.shared, {name}_at, {name}_w"
        lines = [f"const V {back}_v[] = {{{', '.join(weights)}}};", f"V {back}_g[{k}];"]
        if "net_curvature" in asked:
            made = f"{given}, {name}_t, {back}_v, {back}_g, {back}_H"
            return [*lines, f"V {back}_H[{k * (k + 1) // 2}];", f"{struct}::curvature({made});"]
        return [*lines, f"{struct}::gradient({given}, {back}_v, {back}_g);"]
