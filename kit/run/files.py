"""Notebook files: reading, what identifies their content, the parameters cell, and the order of the book.

Only the standard library and PyYAML, because a run with nothing to do must not wait for heavier imports.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import kit

PACKAGE = Path(kit.__file__).resolve().parent
ROOT = PACKAGE.parent
DEFAULTS: dict[str, Any] = {"profile": "quick", "device": "auto", "seed": 0}
VOLATILE = ("seconds", "memory", "commit")  # the parts of a stamp that differ between two identical runs


class UserError(ValueError):
    """A mistake of the caller's, told in one sentence that says what to do."""


def read(path: Path) -> dict[str, Any]:
    """The notebook at `path` as plain JSON; `UserError` where there is none."""
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no notebook {path}: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a notebook") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{path} is not a notebook: it does not hold JSON") from None
    if not isinstance(nb, dict) or not isinstance(nb.get("cells"), list) or nb.get("nbformat") != 4:
        raise UserError(f"{path} is not a notebook of format 4: open it in JupyterLab and save it")
    language = nb.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    if language != "python":
        raise UserError(f"{path} asks for a {language} kernel, and kit runs Python: change its kernel in JupyterLab")
    return nb


def source(cell: dict[str, Any]) -> str:
    """A cell's text, which files store as one string or as a list of lines."""
    text = cell.get("source", "")
    return text if isinstance(text, str) else "".join(text)


def tags(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def parameters(nb: dict[str, Any]) -> dict[str, Any] | None:
    """What the cell tagged `parameters` assigns, or None where there is no such cell."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "code" and "parameters" in tags(cell):
            return {
                node.targets[0].id: ast.literal_eval(node.value)
                for node in ast.parse(source(cell)).body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
    return None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_key(nb: dict[str, Any]) -> str:
    """sha256 of what is executed: the code cells and their tags. Prose and outputs may change without changing it."""
    cells = [c for c in nb["cells"] if c["cell_type"] == "code" and "injected-parameters" not in tags(c)]
    return _sha256([[source(cell), tags(cell)] for cell in cells])


def text_key(nb: dict[str, Any]) -> str:
    """sha256 of everything but outputs, execution counts and the notebook's own metadata."""
    return _sha256([[cell["cell_type"], source(cell), cell.get("metadata", {})] for cell in nb["cells"]])


@lru_cache(maxsize=1)
def package_key() -> str:
    """sha256 of every module of `kit` and of the weights' manifests."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.json")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    return {"python": platform.python_version(), "torch": torch, "kit": kit.__version__}


def run_key(nb: dict[str, Any], given: dict[str, Any], *, prose: bool) -> str:
    """sha256 of all that an executed notebook depends on; with `prose` also of the text it carries along."""
    return _sha256([text_key(nb) if prose else code_key(nb), package_key(), given, versions()])


def stamp(nb: dict[str, Any]) -> dict[str, Any]:
    """How the notebook was executed: `metadata.kit.stamp`, empty where it never was."""
    return nb.get("metadata", {}).get("kit", {}).get("stamp", {})


def executed(nb: dict[str, Any]) -> bool:
    """Whether every code cell has been run."""
    return all(c.get("execution_count") for c in nb["cells"] if c["cell_type"] == "code" and source(c).strip())


def toc(root: Path = ROOT) -> list[str]:
    """The pages of `_toc.yml` in reading order, as written there; empty where there is no such file."""
    import yaml

    if not (root / "_toc.yml").exists():
        return []
    pages: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                walk(item)
        elif isinstance(node, dict):
            pages.extend(str(node[key]) for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections", "subtrees", "entries"):
                walk(node.get(key))

    walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    return pages


def chapters(root: Path = ROOT) -> list[Path]:
    """Every notebook under notebooks/, in the order of `_toc.yml`; those it does not list come last."""
    order = {page.removesuffix(".ipynb"): i for i, page in enumerate(toc(root))}
    found = [p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    return sorted(found, key=lambda p: (order.get(p.relative_to(root).with_suffix("").as_posix(), len(order)), p))
