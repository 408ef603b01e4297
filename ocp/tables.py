"""Rows of numbers as text, for rich, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells that are strings already, the same for text and rich.

    ``align`` has "<" or ">" for the first columns; the others are aligned right. A column of text
    at the left may wrap on a narrow terminal, numbers never do.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    align: str = "<"

    @property
    def sides(self) -> str:
        return self.align.ljust(len(self.columns), ">")

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

        def aligned(line: Sequence[str]) -> str:
            cells = [f"{c:{s}{w}}" for c, s, w in zip(line, self.sides, widths, strict=True)]
            return ("  " + "  ".join(cells)).rstrip()

        rule = "  " + "-" * (sum(widths) + 2 * (len(widths) - 1))
        body = [aligned(self.columns), rule, *(aligned(row) for row in self.rows)]
        return "\n".join([self.title, *body, *(f"  {note}" for note in self.notes)])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, (name, side) in enumerate(zip(self.columns, self.sides, strict=True)):
            text = side == "<"
            table.add_column(
                Text(name), justify="left" if text else "right", no_wrap=i == 0 or not text
            )
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        # rich would shorten the numbers of a table that is too wide; plain lines wrap whole.
        unlimited = options.update(max_width=10_000)
        if table.__rich_measure__(console, unlimited).minimum > options.max_width:
            yield Text(str(self))
            return
        yield Text(self.title, style="bold")
        yield table
        yield from (Text(f"  {note}") for note in self.notes)


def number(value: Any, form: str = ".6g") -> str:
    """A number as a cell; "-" for what does not exist (None or nan)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, form)


# -- files -------------------------------------------------------------------------------------
def write_csv(path: str | Path, rows: Sequence[Row]) -> Path:
    """Rows of the same keys, a header line first."""
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Strict JSON: what is not finite becomes null."""
    path = Path(path)
    path.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", "utf-8")
    return path


def finite(content: Any) -> Any:
    """The same with None for every nan or inf, at any depth."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
