"""The solutions of the chapters and the labs, written apart from the package's answers, pass on any seed.

Only a solution's function and what it needs is run: the definitions and imports above its check, no network."""
import ast
import re
import symtable

import nbformat
import pytest

from kit.lab import EXERCISES, judge
from kit.lab import source as lab
from kit.run.files import chapters

CHECK = re.compile(r'^ *check\("([\w-]+)", (\w+)', re.M)


def bound(statement: ast.stmt) -> set[str]:
    """The names that a statement gives a meaning."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return set()


def needed(table: symtable.SymbolTable) -> set[str]:
    """The notebook's names that a statement uses, its functions' own variables left out."""
    own = {s.get_name() for s in table.get_symbols() if table.get_type() == "module" or s.is_global()}
    return own.union(*map(needed, table.get_children()))


def function(cells: list[str], name: str):
    """A function of a notebook's cells as its last definition makes it, run with what it needs and nothing else."""
    statements = [s for cell in cells for s in ast.parse(cell).body]
    last = {other: s for s in statements for other in bound(s)}
    wanted, seen = {name}, set()
    while more := wanted - seen:
        seen |= more
        for other in more & set(last):
            wanted |= needed(symtable.symtable(ast.unparse(last[other]), name, "exec"))
    names: dict = {}
    kept = [s for s in statements if any(last[other] is s for other in bound(s) & wanted)]
    exec(compile(ast.Module(kept, []), name, "exec"), names)
    return names[name]


def solutions():
    """The exercise, the function that solves it, and the cells down to its check, of each solution."""
    texts = [(path.stem, nbformat.read(path, 4)) for path in chapters()]
    for stem, nb in [*texts, *((name, lab.read(name)) for name in lab.names())]:
        cells = [cell.source for cell in nb.cells if cell.cell_type == "code"]
        last = {call[1]: (i, call) for i, cell in enumerate(cells) if (call := CHECK.search(cell))}
        for name, (i, call) in last.items():
            above = [*cells[:i], cells[i][: call.start()]]
            yield pytest.param(name, call[2], above, id=f"{name}-{stem}")


@pytest.mark.parametrize(("name", "solution", "cells"), list(solutions()))
def test_a_solution_passes_on_any_seed(name, solution, cells):
    found = function(cells, solution)
    for seed in (0, 17, 7936):
        assert judge(name, found, seed=seed).passed, judge(name, found, seed=seed).message(2)


def test_every_exercise_is_solved_somewhere():
    assert {p.values[0] for p in solutions()} == set(EXERCISES)
