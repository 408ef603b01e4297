"""C++ text of networks: a struct for each structure, whose functions are loops over vectors.

The text has a statement or two for each layer, whatever its width; net.h has the loops. Where the
weights are is an argument, so that networks of one structure (the evaluations of an integrator, the
members of an ensemble) share their struct.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ocp.engines.native.nets import Joined, Linear, Map, Net, Param, Ref, Step, Total

if TYPE_CHECKING:
    from ocp.engines.native.emit import Writer

AT_ONCE = 6  # adjoints that are carried together


def struct(writer: Writer, name: str, net: Net) -> str:
    sizes = net.sizes
    most = min(AT_ONCE, len(net.outputs))
    head = [
        f"struct {name} {{",
        f"  static constexpr int inputs = {net.inputs}, outputs = {len(net.outputs)}, "
        f"most = {most};",
    ]
    maps = [
        part
        for k, step in enumerate(net.steps, start=1)
        if isinstance(step, Map) and map_of(net, step) == k
        for part in map_functions(writer, net, k, step)
    ]
    body = [
        *work(net, sizes),
        *forward(net, sizes),
        *tangents(net, sizes),
        *backward(net, sizes),
        *curvature(net, sizes),
        *wrappers(net),
    ]
    return "\n".join([*head, *maps, *(f"  {line}" for line in body), "};", ""])


def stored(net: Net, k: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Operands, and pairs of them, whose partials are vectors: not the same number everywhere."""
    return list(net.slopes[k]), list(net.bends[k])


def map_of(net: Net, step: Map) -> int:
    """Number of the first step with the same expression of the same kinds of operands."""
    kinds = lambda s: [isinstance(o, Ref) for o in s.operands]
    return next(
        k
        for k, s in enumerate(net.steps, start=1)
        if isinstance(s, Map) and s.expression == step.expression and kinds(s) == kinds(step)
    )


def map_functions(writer: Writer, net: Net, k: int, step: Map) -> Iterator[str]:
    """The expression of a step with its partials up to each order."""
    from ocp.engines.native.forms import Output

    slopes, bends = net.slopes[k], net.bends[k]
    outputs = [Output("y", [step.expression])]
    yield writer.function(f"map{k}_0", "const V* a", outputs, context=False)
    if slopes:
        outputs = [*outputs, Output("d", list(slopes.values()))]
    yield writer.function(f"map{k}_1", "const V* a", outputs, context=False)
    if bends:
        outputs = [*outputs, Output("e", list(bends.values()))]
    yield writer.function(f"map{k}_2", "const V* a", outputs, context=False)


def work(net: Net, sizes: Sequence[int]) -> list[str]:
    """Values of all vectors and partials of the maps; tangents; adjoints."""
    pieces = [f"v{k}[padded({size})]" for k, size in enumerate(sizes)]
    for k, step in enumerate(net.steps, start=1):
        if isinstance(step, Map):
            slopes, bends = stored(net, k)
            pieces += [f"d{k}_{q}[order > 0 ? padded({step.size}) : 1]" for q in slopes]
            pieces += [f"e{k}_{q}_{r}[order > 1 ? padded({step.size}) : 1]" for q, r in bends]
    columns = lambda letter, count: ", ".join(
        f"{letter}{k}[{count} * padded({size})]" for k, size in enumerate(sizes)
    )
    return [
        "template <int order, class V> struct Work {",
        f"  V {', '.join(pieces)};",
        "};",
        f"template <class V> struct Tangents {{ V {columns('t', 'inputs')}; }};",
        f"template <class V> struct Adjoints {{ V {columns('b', 'most')}; }};",
    ]


def weights(step: Linear, transposed: bool = False) -> str:
    """The first arguments of `layer`."""
    sizes = [step.rows, step.row_step, step.columns, step.column_step]
    sizes = sizes[2:] + sizes[:2] if transposed else sizes
    return f"shared + at[{step.slot}], {', '.join(map(str, sizes))}"


def at(letter: str, owner: str, ref: Ref) -> str:
    start = f" + {ref.start}" if ref.start else ""
    return f"{owner}.{letter}{ref.step}{start}"


def forward(net: Net, sizes: Sequence[int]) -> Iterator[str]:
    yield "template <int order, class V> OCP_APART void forward("
    yield "    const Real* shared, const int* at, const V* x, Work<order, V>& w) {"
    yield "  typedef typename Chunk<V>::type R;"
    yield "  (void)shared; (void)at;"
    yield "  fill(w.v0, padded(inputs), V(0));"
    yield "  for (int i = 0; i < inputs; ++i) w.v0[i] = x[i];"
    for k, step in enumerate(net.steps, start=1):
        if isinstance(step, Linear):
            source = at("v", "w", step.source)
            yield f"  layer({weights(step)}, 1, {source}, 0, w.v{k}, 0);"
            yield f"  fill(w.v{k} + {step.rows}, padded({step.rows}) - {step.rows}, V(0));"
        elif isinstance(step, Total):
            source = at("v", "w", step.source)
            yield f"  fill(w.v{k}, padded(1), V(0));"
            yield f"  w.v{k}[0] = inner_product<V>({step.source.size}, {source}, nullptr);"
        elif isinstance(step, Joined):
            yield f"  fill(w.v{k}, padded({sizes[k]}), V(0));"
            for start, piece in started(step):
                yield f"  for (int i = 0; i < {piece.size}; ++i)"
                yield f"    w.v{k}[i + {start}] = ({at('v', 'w', piece)})[i];"
        else:
            yield from map_loop(net, k, step)
    yield "}"
    yield "template <int order, class V>"
    yield "OCP_FN void results(const Work<order, V>& w, V* y) {"
    for r, ref in enumerate(net.outputs):
        yield f"  y[{r}] = w.v{ref.step}[{ref.start}];"
    yield "}"


def started(step: Joined) -> Iterator[tuple[int, Ref]]:
    """Pieces and where they begin."""
    start = 0
    for piece in step.pieces:
        yield start, piece
        start += piece.size


def map_loop(net: Net, k: int, step: Map) -> Iterator[str]:
    slopes, bends = stored(net, k)
    yield f"  for (int i = 0; i < {step.size}; i += Chunk<V>::size) {{"
    operands = ", ".join(operand(o, step.size) for o in step.operands)
    yield f"    const R a[] = {{{operands or 'R(0)'}}};"
    yield f"    R y[1], d[{max(1, len(slopes))}], e[{max(1, len(bends))}];"
    yield "    (void)d; (void)e;"
    calls = ["y", "y, d" if slopes else "y"]
    calls.append(f"{calls[1]}, e" if bends else calls[1])
    own = f"map{map_of(net, step)}"
    yield f"    if constexpr (order == 0) {own}_0(a, {calls[0]});"
    yield f"    else if constexpr (order == 1) {own}_1(a, {calls[1]});"
    yield f"    else {own}_2(a, {calls[2]});"
    yield f"    store(y[0], w.v{k} + i);"
    for number, q in enumerate(slopes):
        yield f"    if constexpr (order > 0) store(d[{number}], w.d{k}_{q} + i);"
    for number, (q, r) in enumerate(bends):
        yield f"    if constexpr (order > 1) store(e[{number}], w.e{k}_{q}_{r} + i);"
    yield "  }"


def operand(o: Ref | Param, size: int) -> str:
    if isinstance(o, Param):
        one = o.size == 1 and size > 1
        place = f"shared + at[{o.slot}]"
        if one:
            return f"R(({place})[0])"
        return f"parameters<V, R>({place}, {o.stride}, i, {size})"
    if o.size == 1 and size > 1:
        return f"R(w.v{o.step}[{o.start}])"
    return f"load<R>({at('v', 'w', o)} + i)"


def tangents(net: Net, sizes: Sequence[int]) -> Iterator[str]:
    yield "template <int order, class V> OCP_APART void tangents("
    yield "    const Real* shared, const int* at, const Work<order, V>& w, Tangents<V>& t) {"
    yield "  (void)shared; (void)at; (void)w;"
    yield "  fill(t.t0, inputs * padded(inputs), V(0));"
    yield "  for (int i = 0; i < inputs; ++i) t.t0[i * padded(inputs) + i] = V(1);"
    for k, step in enumerate(net.steps, start=1):
        ld = f"padded({sizes[k]})"
        if isinstance(step, Linear):
            source = step.source
            if source.step == 0:
                yield f"  layer_of_inputs({weights(step)}, {source.start}, inputs, t.t{k}, {ld});"
            else:
                x = f"{at('t', 't', source)}, padded({sizes[source.step]})"
                yield f"  layer({weights(step)}, inputs, {x}, t.t{k}, {ld});"
            continue
        yield f"  fill(t.t{k}, inputs * {ld}, V(0));"
        for y, count, scale, d, ref, x_step in links(net, k, step):
            x = f"{at('t', 't', ref)}, padded({sizes[ref.step]}), {x_step}"
            if isinstance(step, Total):
                yield "  for (int c = 0; c < inputs; ++c)"
                from_ = f"{at('t', 't', ref)} + c * padded({sizes[ref.step]})"
                yield f"    t.t{k}[c * {ld}] = inner_product<V>({count}, {from_}, nullptr);"
            else:
                yield f"  push<V>(inputs, {count}, {scale}, {d}, {x}, t.t{k} + {y}, {ld});"
    yield "}"


def links(net: Net, k: int, step: Step) -> Iterator[tuple[int, int, str, str, Ref, int]]:
    """What a step that is no product takes from each operand: begin of the result's entries, how
    many, a factor, a vector of factors or nullptr, the operand, and its step."""
    if isinstance(step, Joined):
        for start, piece in started(step):
            yield start, piece.size, "1.0", "nullptr", piece, 1
    elif isinstance(step, Total):
        yield 0, step.source.size, "1.0", "nullptr", step.source, 0
    elif isinstance(step, Map):
        for q in net.slopes[k]:
            ref = step.operands[q]
            assert isinstance(ref, Ref)
            yield 0, step.size, "1.0", f"w.d{k}_{q}", ref, int(ref.size > 1 or step.size == 1)


def backward(net: Net, sizes: Sequence[int]) -> Iterator[str]:
    """From adjoints of the outputs, which are there, to those of everything."""
    yield "template <int order, class V> OCP_APART void backward("
    yield "    const Real* shared, const int* at, const Work<order, V>& w, int columns,"
    yield "    Adjoints<V>& b) {"
    yield "  (void)shared; (void)at; (void)w;"
    for k, step in reversed(list(enumerate(net.steps, start=1))):
        own = f"b.b{k}"
        ld = f"padded({sizes[k]})"
        if isinstance(step, Linear):
            x = f"{at('b', 'b', step.source)}, padded({sizes[step.source.step]})"
            yield f"  add_layer({weights(step, True)}, columns, {own}, {ld}, {x});"
            continue
        for y, count, scale, d, ref, x_step in links(net, k, step):
            x = f"{at('b', 'b', ref)}, padded({sizes[ref.step]})"
            if isinstance(step, Total):
                yield f"  push<V>(columns, {count}, 1.0, nullptr, {own}, {ld}, 0, {x});"
            else:
                args = f"{scale}, {d}, {own} + {y}, {ld}, {x}, {x_step}"
                yield f"  pull<V>(columns, {count}, {args});"
    yield "}"


def curvature(net: Net, sizes: Sequence[int]) -> Iterator[str]:
    yield "template <class V> OCP_APART void curvature(const Real* shared, const int* at,"
    yield "    const Work<2, V>& w, const Tangents<V>& t, const V* v, V* g, V* H) {"
    yield "  Adjoints<V> b;"
    yield "  carried(shared, at, w, v, b, g);"
    yield f"  V room[2 * padded({max(sizes)})];"
    yield "  (void)t; (void)room;"
    yield "  fill(H, tri_size(inputs), V(0));"
    for k, step in enumerate(net.steps, start=1):
        if not isinstance(step, Map):
            continue
        for q, r in net.bends[k]:
            tangent = ", ".join(
                f"{at('t', 't', ref)}, padded({sizes[ref.step]}), "
                f"{int(ref.size > 1 or step.size == 1)}"
                for ref in (step.operands[q], step.operands[r])
                if isinstance(ref, Ref)
            )
            first = f"inputs, {step.size}, 1.0, b.b{k}, w.e{k}_{q}_{r}"
            yield f"  curve<V>({first}, {tangent}, {str(q != r).lower()}, room, H);"
    yield "}"


def wrappers(net: Net) -> Iterator[str]:
    """What is called."""
    columns = ["b.b{step}[c * padded_{step} + {start}]"]
    del columns
    sizes = net.sizes
    clear = [f"fill(b.b{k}, columns * padded({size}), V(0));" for k, size in enumerate(sizes)]
    yield "template <class V> OCP_FN void clear(int columns, Adjoints<V>& b) {"
    yield from (f"  {line}" for line in clear)
    yield "}"
    yield "template <class V> OCP_FN V& seed(Adjoints<V>& b, int column, int output) {"
    yield "  switch (output) {"
    for r, ref in enumerate(net.outputs):
        place = f"b.b{ref.step}[column * padded({sizes[ref.step]}) + {ref.start}]"
        case = f"case {r}" if r + 1 < len(net.outputs) else "default"
        yield f"    {case}: return {place};"
    yield "  }"
    yield "}"
    yield from WRAPPERS.splitlines()
    body = "tangents" if not net.reverse else "adjoints"
    yield "template <class V> OCP_FN void jacobian("
    yield "    const Real* shared, const int* at, const V* x, V* y, V* J) {"
    yield "  Work<1, V> w;"
    yield "  forward<1>(shared, at, x, w);"
    yield "  results(w, y);"
    yield "  jacobian_of(shared, at, w, J);"
    yield "}"
    yield "template <int order, class V> OCP_FN void jacobian_of("
    yield "    const Real* shared, const int* at, const Work<order, V>& w, V* J) {"
    if body == "tangents":
        yield "  Tangents<V> t;"
        yield "  tangents(shared, at, w, t);"
        yield "  jacobian_of(t, J);"
    else:
        yield "  Adjoints<V> b;"
        yield "  for (int r = 0; r < outputs; r += most) {"
        yield "    const int columns = outputs - r < most ? outputs - r : most;"
        yield "    clear(columns, b);"
        yield "    for (int c = 0; c < columns; ++c) seed(b, c, r + c) += V(1);"
        yield "    backward(shared, at, w, columns, b);"
        yield "    for (int c = 0; c < columns; ++c)"
        yield "      for (int i = 0; i < inputs; ++i)"
        yield "        J[(r + c) * inputs + i] = b.b0[c * padded(inputs) + i];"
        yield "  }"
    yield "}"
    yield "template <class V> OCP_FN void jacobian_of(const Tangents<V>& t, V* J) {"
    yield "  for (int i = 0; i < inputs; ++i) {"
    for r, ref in enumerate(net.outputs):
        place = f"i * padded({sizes[ref.step]}) + {ref.start}"
        yield f"    J[{r} * inputs + i] = t.t{ref.step}[{place}];"
    yield "  }"
    yield "}"


WRAPPERS = """\
template <int order, class V> OCP_FN void carried(const Real* shared, const int* at,
    const Work<order, V>& w, const V* v, Adjoints<V>& b, V* g) {
  clear(1, b);
  for (int r = 0; r < outputs; ++r) seed(b, 0, r) += v[r];
  backward(shared, at, w, 1, b);
  for (int i = 0; i < inputs; ++i) g[i] = b.b0[i];
}
template <int order, class V> OCP_FN void gradient(const Real* shared, const int* at,
    const Work<order, V>& w, const V* v, V* g) {
  Adjoints<V> b;
  carried(shared, at, w, v, b, g);
}
template <class V> OCP_FN void value(const Real* shared, const int* at, const V* x, V* y) {
  Work<0, V> w;
  forward<0>(shared, at, x, w);
  results(w, y);
}"""
