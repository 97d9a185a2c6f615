"""Imports run one way (DESIGN, section 2). `python tests/core/test_import_graph.py` draws the graph."""
import ast
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import kit

PACKAGE = Path(kit.__file__).parent
LEVELS = [
    {"core", "report"}, {"data", "models"}, {"explain"}, {"attacks"}, {"poison", "detect", "certify", "fire"},
    {"defend"}, {"diverse"}, {"train"}, {"lab", "run"},
]
RANK = {part: rank for rank, level in enumerate(LEVELS) for part in level}

# Names that moved up and are still found where they stood: looked up when asked for, by the module's `__getattr__`.
LAZY = {("models", "train"): "kit/models/__init__.py"}


def imported(tree):
    """(module, line) of every import of kit, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports name their module in full"
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def lazily(tree):
    """The nodes inside a module's `__getattr__`."""
    return {
        inner for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
        for inner in ast.walk(node)
    }


def edges(package=PACKAGE):
    """{(part, part it imports): the places}, and those that a module's `__getattr__` forwards."""
    found, forwarded = defaultdict(set), defaultdict(set)
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package.parent).as_posix()
        part = path.relative_to(package).parts[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lazy = lazily(tree)
        for module, node in imported(tree):
            names = module.split(".")
            if names[0] == "kit" and len(names) > 1 and names[1] in RANK and names[1] != part:
                (forwarded if node in lazy else found)[part, names[1]].add(place)
    return found, forwarded


def test_every_part_has_its_place():
    parts = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    assert parts <= set(RANK)
    assert {"core", "data", "models", "explain", "attacks", "detect", "defend", "train", "run"} <= parts


def test_imports_run_one_way():
    found, forwarded = edges()
    upward = {edge: places for edge, places in found.items() if RANK[edge[1]] > RANK[edge[0]]}
    assert not upward
    assert {edge: sorted(places) for edge, places in forwarded.items()} == {e: [p] for e, p in LAZY.items()}
    below = defaultdict(set)
    for part, other in found:
        below[part].add(other)
    list(TopologicalSorter(below).static_order())  # parts of one level import each other one way, too


def test_an_import_upward_is_seen_wherever_it_stands(tmp_path):
    folder = tmp_path / "kit" / "core"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("def f():\n    from kit import attacks\n")
    (folder / "b.py").write_text("import kit.data.real as real\n")
    (folder / "c.py").write_text("def __getattr__(name):\n    from kit.train import fit\n    return fit\n")
    found, forwarded = edges(tmp_path / "kit")
    assert dict(found) == {("core", "attacks"): {"kit/core/a.py"}, ("core", "data"): {"kit/core/b.py"}}
    assert dict(forwarded) == {("core", "train"): {"kit/core/c.py"}}


def test_loading_needs_no_recipe():
    import subprocess

    code = ("import sys, torch, kit.models\n"
            "assert {'ens3/inception', 'hgd/scenes'} <= set(kit.models.names())\n"
            "assert kit.models.load('ens3/inception')(torch.rand(1, 3, 32, 32)).shape == (1, 10)\n"
            "kit.models.listing()\n"
            "assert not [m for m in sys.modules if m.startswith(('kit.train', 'kit.defend', 'kit.attacks'))]\n")
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    for level in LEVELS:
        for part in sorted(level & {p.name for p in PACKAGE.iterdir()}):
            below = sorted((other for own, other in edges()[0] if own == part), key=lambda p: (RANK[p], p))
            print(f"{part:8} ← {', '.join(below)}")
