"""The table of supported layers in docs/networks.md, from what `compile` does with each.

``python tests/nn/layer_table.py`` writes it anew; a test compares.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from zoo import F64, GRAPHS, LAYERS, Entry, data, made

import ocp
import ocp_nn

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
START, END = "<!-- layers: start -->", "<!-- layers: end -->"


def compiled(entry: Entry, B: int, dtype: torch.dtype = F64, **options: object) -> ocp.Problem:
    """A layer's network with cross-entropy, or squared error where the outputs are many."""
    model = made(entry, dtype)
    x, y = data(entry, B, dtype)
    if entry.seed is not None:
        options["dropout"] = entry.seed
    if entry.outputs == 3:
        return ocp_nn.compile(model, "cross_entropy", x, y, **options)
    shape = (entry.outputs,) if len(entry.sample) == 1 else (3, 4, 4)
    return ocp_nn.compile(model, "mse", x, torch.ones(B, *shape, dtype=dtype), **options)


def row(entry: Entry) -> str:
    """Layer, supported, kernel of its stage, remark."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            problem = compiled(entry, 3)
        except ocp_nn.StageError as error:
            why = str(error).split("cannot be a stage: ")[-1]
            return f"| {entry.name} | no | | {why} |"
    stages = ocp_nn.network_of(problem).stages
    kind = entry.label or entry.name.split(" ")[0]
    own = [s for s in stages if kind in s.layers]
    kernel = own[0 if kind != "Linear" else 1].kernel
    if kind in ("Flatten", "Unflatten", "Identity") or entry.name == "Dropout (eval)":
        kernel = "that of its neighbour"
    remarks = []
    if any(s.couples_samples for s in stages):
        remarks.append("couples samples")
    if any("performance drop" in str(w.message) for w in caught):
        remarks.append("slow: torch.func has no batching rule")
    return f"| {entry.name} | yes | {kernel} | {'; '.join(remarks)} |"


def table() -> str:
    head = "| layer | supported | kernel | remark |\n|---|---|---|---|\n"
    return head + "\n".join(row(entry) for entry in LAYERS)


def committed() -> str:
    return PAGE.read_text().split(START)[1].split(END)[0].strip()


__all__ = ["GRAPHS", "LAYERS", "committed", "compiled", "table"]

if __name__ == "__main__":
    text = PAGE.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{table()}\n{END}{after}")
