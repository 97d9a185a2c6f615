"""Runs a lab's cells in this process, without a kernel: enough to see what a notebook of plain Python earns."""
import ast
import contextlib
import io
from typing import Any

from kit.lab.source import graded


def run_cell(text: str, names: dict[str, Any]) -> Any:
    """The value of a cell's last expression."""
    tree = ast.parse(text)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names) if last else None


def run(nb: Any) -> tuple[dict[str, float], str, list[str]]:
    """What each test's cell earned, what was printed, and the errors of the cells that stopped."""
    names: dict[str, Any] = {"__name__": "__main__"}
    points, errors, out = {}, [], io.StringIO()
    with contextlib.redirect_stdout(out):
        for cell in nb.cells:
            if cell.cell_type != "code":
                continue
            value = 0.0
            try:
                value = run_cell(cell.source, names)
            except Exception as error:
                errors.append(f"{graded(cell).get('grade_id')}: {type(error).__name__}: {error}")
            if graded(cell).get("grade"):
                points[graded(cell)["grade_id"]] = value if isinstance(value, float) else 0.0
    return points, out.getvalue(), errors
