"""A plain table: the same text every time, readable on dark and light pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


class Strong(str):
    """The text of a cell that is shown in bold (between asterisks where there is none)."""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, Strong):
        return value
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _marked(cell: str) -> str:
    return f"**{cell}**" if isinstance(cell, Strong) else cell


def _html(cell: str) -> str:
    text = escape(cell, quote=False)
    return f"<strong>{text}</strong>" if isinstance(cell, Strong) else text


class Table:
    """What `table` returns: shown as HTML in a notebook, and as Markdown or plain text elsewhere."""

    def __init__(self, columns: list[str], rows: list[list[str]], caption: str):
        self.columns, self.rows, self.caption = columns, rows, caption

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(_marked(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{self.caption}\n\n{body}" if self.caption else body

    def html(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{_html(cell)}</{tag}>" for cell in cells) + "</tr>"

        caption = f"<caption>{escape(self.caption, quote=False)}</caption>\n" if self.caption else ""
        body = "\n".join(line(row, "td") for row in self.rows)
        head = line(self.columns, "th")
        return f'<table class="dataframe">\n{caption}<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>'

    def __repr__(self) -> str:
        lines = [[_marked(cell) for cell in line] for line in (self.columns, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.caption, *text] if self.caption else text)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/markdown": self.markdown(), "text/html": self.html()}


def table(
    rows: Sequence[Mapping[str, Any] | Sequence[Any]], columns: Sequence[str] | None = None, caption: str = ""
) -> Table:
    """A table of `rows`, each a mapping from column to value or a sequence in the order of `columns`.

    Floats are shown with three significant digits: format a value yourself to show it otherwise, and wrap the text in
    `Strong` to have it bold. It is displayed as
    the last line of a cell, or by `display`. Raises ValueError where a row and the columns do not fit.
    """
    if columns is None:
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("name the columns: only rows that are mappings name them themselves")
        columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    lines = []
    for row in rows:
        if isinstance(row, Mapping):
            if unknown := set(row) - set(columns):
                raise ValueError(f"a row has values for {sorted(unknown)}, which are not among the columns")
            lines.append([_text(row.get(column)) for column in columns])
        elif len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} values for {len(columns)} columns")
        else:
            lines.append([_text(value) for value in row])
    return Table(list(columns), lines, caption)
