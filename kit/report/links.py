"""Where each public name of the package is taught and tested: read from the sources, nothing is imported or run.

The chapter of a name is the one that has the path of its file, else the one that shows its code, else the one that uses
it most. Its tests are those that use it, also through a helper or a table of their file. Which names compute a labelled
equation stands in `links.toml`, and so do the chapters that these rules get wrong and what is rightly without a link.
"""
from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

PACKAGES = ("core", "data", "models", "explain", "attacks", "poison", "detect", "certify", "fire", "defend", "diverse",
            "report", "train", "lab")
SHOWN = re.compile(r"\{literalinclude\} (\S+)\n((?::.*\n)*)")
LABEL = re.compile(r"^\$\$ *\(([\w-]+)\)", re.M)


@dataclass
class Test:
    """A test that uses a name."""
    file: str
    line: int
    name: str

    @property
    def says(self) -> str:
        """What the test's name says."""
        return self.name.removeprefix("test_").replace("_", " ")


@dataclass
class Public:
    """A public name: where it is defined, taught and tested."""
    name: str
    file: str
    line: int
    chapters: list[str] = field(default_factory=list)
    behind: bool = False  # its chapters use it through other code of kit
    equations: list[str] = field(default_factory=list)
    tests: list[Test] = field(default_factory=list)

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]


def table(root: Path) -> dict[str, Any]:
    path = root / "kit" / "report" / "links.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _target(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [t.id for target in statement.targets for t in ast.walk(target) if isinstance(t, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _chain(node: ast.AST) -> list[str]:
    """a.b.c as its parts; empty for what does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts, node = [node.attr, *parts], node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []


class Module:
    """What one file binds at its top, what it takes from others, and what each of its statements uses."""

    def __init__(self, text: str):
        self.body = ast.parse(text).body
        self.lines = {name: s.lineno for s in self.body for name in _target(s)}
        self.taken: dict[str, str] = {}
        self.chains: dict[ast.stmt, list[list[str]]] = {}
        self.strings: dict[ast.stmt, set[str]] = {}
        for statement in self.body:
            chains, strings = self.chains.setdefault(statement, []), self.strings.setdefault(statement, set())
            for node in ast.walk(statement):
                if isinstance(node, ast.Name | ast.Attribute):
                    chains.append(_chain(node))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                    strings.add(node.value)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    self.taken |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
                elif isinstance(node, ast.Import):
                    self.taken |= {a.asname: a.name for a in node.names if a.asname}
                    tops = {a.name.partition(".")[0] for a in node.names if not a.asname}
                    self.taken |= {top: top for top in tops}

    @property
    def all(self) -> list[str]:
        for statement in self.body:
            if "__all__" in _target(statement):
                return list(ast.literal_eval(statement.value))  # type: ignore[attr-defined]
        return []

    def used(self, *statements: ast.stmt) -> Iterator[str]:
        """Every name that the statements (none: all) use, spelled in full where it was imported."""
        for statement in statements or self.body:
            for chain in self.chains[statement]:
                if chain:
                    yield ".".join([self.taken.get(chain[0], chain[0]), *chain[1:]])


class Book:
    """The public names of a checkout, with their links."""

    def __init__(self, root: Path):
        self.root, self.table = root, table(root)
        self.modules: dict[str, tuple[str, Module]] = {}
        self._known: dict[str, tuple[str, str] | None] = {}
        for path in sorted((root / "kit").rglob("*.py")):
            place = path.relative_to(root)
            name = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
            self.modules[name] = (place.as_posix(), Module(path.read_text(encoding="utf-8")))

    def defined(self, dotted: str) -> tuple[str, str] | None:
        """(module, name) where the beginning of a dotted name is defined; None where it is nothing of kit's."""
        if dotted not in self._known:
            self._known[dotted] = self._defined(dotted)
        return self._known[dotted]

    def _defined(self, dotted: str) -> tuple[str, str] | None:
        parts = self.table.get("looked_up", {}).get(dotted, dotted).split(".")
        if parts[0] != "kit":
            return None
        for cut in range(len(parts) - 1, 0, -1):
            module, name = ".".join(parts[:cut]), parts[cut]
            if module in self.modules:
                _, source = self.modules[module]
                if name in source.lines:
                    return module, name
                if source.taken.get(name, f"{module}.{name}") != f"{module}.{name}":
                    return self.defined(source.taken[name])
                return (f"{module}.{name}", "") if f"{module}.{name}" in self.modules else None
        return None

    @cached_property
    def chapters(self) -> dict[str, list[dict[str, Any]]]:
        """The cells of each chapter, by its place in the book."""
        found = {}
        for path in sorted((self.root / "notebooks").rglob("*.ipynb")):
            if ".ipynb_checkpoints" not in path.parts:
                place = path.relative_to(self.root).with_suffix("").as_posix()
                found[place] = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return found

    @cached_property
    def equations(self) -> dict[str, str]:
        """The chapter of every labelled equation."""
        texts = {place: "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
                 for place, cells in self.chapters.items()}
        return {label: place for place, text in texts.items() for label in LABEL.findall(text)}

    @cached_property
    def public(self) -> dict[str, Public]:
        """Every public name, by its full spelling."""
        found = {}
        for package in PACKAGES:
            for short in self.modules[f"kit.{package}"][1].all if f"kit.{package}" in self.modules else []:
                name = f"kit.{package}.{short}"
                at = self.defined(name)
                if at is None:
                    raise LookupError(f"kit/{package}/__init__.py exports {short}, which kit does not define")
                file, source = self.modules[at[0]]
                found[name] = Public(name, file, source.lines.get(at[1], 1))
        self._link(found)
        return found

    def _of(self, found: dict[str, Public]) -> defaultdict[tuple[str, str], list[Public]]:
        owners: defaultdict[tuple[str, str], list[Public]] = defaultdict(list)
        for name, public in found.items():
            if at := self.defined(name):
                owners[at].append(public)
        return owners

    def _link(self, found: dict[str, Public]) -> None:
        owners = self._of(found)

        def of(names: Iterable[str]) -> list[Public]:
            at = [found for name in names if (found := self.defined(name))]
            return [public for module, name in at for key in {(module, name), (module, "")} for public in owners[key]]

        uses: dict[str, Counter[str]] = defaultdict(Counter)
        for place, cells in self.chapters.items():
            module = Module("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
            shown = set(self.shown(cells))
            for public in of(module.used()):
                uses[public.name][place] += 1
            for public in found.values():
                uses[public.name][place] += 1000 * ((public.file, public.short) in shown)
        for name, public in found.items():
            own, told = self.own(public.file), self.table.get("chapters", {}).get(name)
            first = [f"notebooks/{told}"] if told else [own] if own else []
            most = [place for place, times in uses[name].most_common() if times]
            public.chapters = list(dict.fromkeys(first + most))
        for label, names in self.table.get("equations", {}).items():
            for name in names if isinstance(names, list) else []:
                found[f"kit.{name}"].equations.append(label)
        self._test(found, of)
        self._stand_on(found, of)

    def _stand_on(self, found: dict[str, Public], of: Callable[[Iterable[str]], list[Public]]) -> None:
        """A name that no chapter and no test uses has the chapters and tests of the code of kit that does, or else the
        chapter of its file's other names."""
        taught: dict[str, Counter[str]] = defaultdict(Counter)
        neighbours: dict[str, list[Public]] = defaultdict(list)
        for public in found.values():
            neighbours[public.file].append(public)
            taught[public.file].update(public.chapters[:1])
        above: dict[str, Counter[str]] = defaultdict(Counter)
        through: dict[str, list[Public]] = defaultdict(list)
        for name, (file, module) in self.modules.items():
            for statement in [] if file.endswith("__init__.py") else module.body:
                users = of(f"{name}.{bound}" for bound in _target(statement))
                local = (f"{name}.{used}" if used in module.lines else used for used in module.used(statement))
                for public in of(set(local)):
                    above[public.name].update(place for place, _ in taught[file].most_common(1))
                    through[public.name] += [u for u in users or neighbours[file] if u.name != public.name]
        for name, public in found.items():
            public.behind = not public.chapters
            places = above[name] or taught[public.file]
            public.chapters = public.chapters or [place for place, _ in places.most_common(3)]
            public.tests = public.tests or [test for user in through[name] for test in user.tests[:1]]

    def own(self, file: str) -> str | None:
        """The chapter that has the path of a file of `kit`."""
        path = Path(file).with_suffix("").relative_to("kit")
        for place in (path, path.parent):
            if f"notebooks/{place.as_posix()}" in self.chapters:
                return f"notebooks/{place.as_posix()}"
        return None

    def shown(self, cells: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        """(file of kit, object at its top) of every piece of code that a chapter shows."""
        for cell in cells:
            for path, options in SHOWN.findall("".join(cell["source"]) if cell["cell_type"] == "markdown" else ""):
                file = path.replace("../", "")
                named = re.search(r":pyobject: (\w+)", options)
                begins = re.search(r":start-(?:at|after): (.+)", options)
                yield file, named[1] if named else self._around(file, begins[1].strip().strip("'\"") if begins else "")

    def _around(self, file: str, text: str) -> str:
        """What is defined, at the top of a file of kit, around the first line that holds the text."""
        lines = (self.root / file).read_text(encoding="utf-8").splitlines()
        at = next((number for number, line in enumerate(lines, 1) if text in line), 1)
        _, module = next(found for found in self.modules.values() if found[0] == file)
        above = {line: name for name, line in module.lines.items() if line <= at}
        return above[max(above)] if above else ""

    def behind(self, file: str, name: str) -> list[Public]:
        """The public names that stand on what a file of kit defines: itself, or those of its file that use it."""
        _, module = next(found for found in self.modules.values() if found[0] == file)
        body = {bound: s for s in module.body for bound in _target(s)}
        here = {public.short: public for public in self.public.values() if public.file == file}
        if Path(file).stem in here:  # the file itself is public
            return [here[Path(file).stem]]
        seen: set[str] = set()
        to_see = {name}
        while to_see and not to_see & set(here):
            seen |= to_see
            to_see = {bound for bound, s in body.items() if to_see & set(module.used(s))} - seen
        return [here[found] for found in sorted(to_see & set(here))]

    def _test(self, found: dict[str, Public], of: Callable[[Iterable[str]], list[Public]]) -> None:
        for path in sorted((self.root / "tests").rglob("test_*.py")):
            module = Module(path.read_text(encoding="utf-8"))
            place = path.relative_to(self.root).as_posix()
            body = {name: s for s in module.body for name in _target(s)}
            package = path.relative_to(self.root / "tests").parts[0]  # of what a test looks up by a string
            uses = {name: {*module.used(s), *(f"kit.{package}.{text}" for text in module.strings[s])}
                    for name, s in body.items()}
            for name, statement in body.items():
                if isinstance(statement, ast.FunctionDef):  # fixtures are named by a test's arguments
                    uses[name] |= {a.arg for a in statement.args.args}
            for name in (name for name in uses if name.startswith("test_")):
                seen: set[str] = set()
                to_see = {name}
                while to_see:
                    seen |= to_see
                    to_see = {u for s in to_see for u in uses[s] if u in uses} - seen
                test = Test(place, body[name].lineno, name)
                for public in {p.name: p for p in of(set().union(*(uses[s] for s in seen)))}.values():
                    public.tests.append(test)
        for public in found.values():
            home, stem = Path("tests", *Path(public.file).parts[1:-1]).as_posix(), Path(public.file).stem
            words = set(public.short.lower().split("_"))
            public.tests.sort(key=lambda t: (
                not t.file.startswith(home), stem not in t.file, not words & set(t.name.split("_"))))
