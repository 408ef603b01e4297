"""The translation of a run against the numbers PyTorch computed in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ocp.engines.native.graph import Leaf
from ocp.engines.native.recorder import Recorder
from ocp.engines.native.values import Value, leaves_of


def check(recorder: Recorder, values: Iterable[Value]) -> None:
    """Every translated number against the one PyTorch computed at the trace point.

    Raises:
        Untraceable: one differs: the operation's translation is wrong for these arguments.
    """
    own = [v for v in values if v.translated and v.tensor.is_floating_point()]
    roots = sorted({a for v in own if v.ids is not None for a in v.ids.reshape(-1).tolist()})
    computed = dict(zip(roots, recorder.graph.evaluate(roots, leaf_values(recorder)), strict=True))
    tolerance = torch.finfo(recorder.dtype).eps ** 0.5
    for value in own:
        assert value.ids is not None and value.recipe is not None
        ours = np.array([computed[a] for a in value.ids.reshape(-1).tolist()], dtype=np.float64)
        theirs = value.tensor.detach().cpu().double().reshape(-1).numpy()
        inputs = [v.tensor for v in leaves_of(value.recipe[1:3], Value)]
        sizes = [t.detach().double().abs().nan_to_num(0, 0, 0).max() for t in inputs if t.numel()]
        scale = max([1.0, *(float(s) for s in sizes)])
        if not np.allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            raise recorder.refuse(value, "its translation disagrees with PyTorch")


def leaf_values(recorder: Recorder) -> Callable[[Leaf], float]:
    """Of the leaves at the trace point, which is at the last stage."""
    flats: dict[tuple[str, int], Any] = {}

    def value(leaf: Leaf) -> float:
        if leaf[0] not in ("par", "dat"):
            return recorder.arguments[leaf]
        kind, k, offset, stride = leaf
        if (kind, k) not in flats:
            assert recorder.problem is not None
            block = recorder.data if kind == "dat" else recorder.shared
            flat = block.sources[k].flat(recorder.problem).detach()
            flats[kind, k] = (flat.reshape(-1) if kind == "par" else flat[0]).cpu()
        return float(flats[kind, k][offset + stride * (recorder.stages - 1)])

    return value
