"""Notebook files: reading, what identifies their content, the parameters cell, and the order of the book.

Only the standard library and PyYAML, because a run with nothing to do must not wait for heavier imports.

An executed notebook carries a stamp (`metadata.kit.stamp`). Its `key` is of all that the run depended on (`run_key`),
its `content` of what the run left (`content_key`): a notebook whose two keys still hold is up to date.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import kit

PACKAGE = Path(kit.__file__).resolve().parent
ROOT = PACKAGE.parent
DEFAULTS: dict[str, Any] = {"profile": "quick", "device": "auto", "seed": 0}
VOLATILE = ("seconds", "cpu", "memory", "commit")  # the parts of a stamp that differ between two identical runs


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


def injected(cell: dict[str, Any]) -> bool:
    """Whether a cell holds the parameters of one run, which papermill put there."""
    return "injected-parameters" in tags(cell)


def parameters(nb: dict[str, Any]) -> dict[str, Any] | None:
    """The constants that the cell tagged `parameters` assigns, or None where there is no such cell.

    As in papermill an assignment may be annotated (`seed: int = 0`) and the cell may hold other statements. Raises
    ValueError where one of `DEFAULTS` is not a constant, SyntaxError where the cell is not Python.
    """
    for cell in nb["cells"]:
        if cell["cell_type"] == "code" and "parameters" in tags(cell):
            return dict(_constants(ast.parse(source(cell))))
    return None


def _constants(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if not isinstance(target, ast.Name) or not isinstance(node, ast.Assign | ast.AnnAssign) or not node.value:
                continue
            try:
                yield target.id, ast.literal_eval(node.value)
            except ValueError:
                if target.id in DEFAULTS:
                    raise


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_key(nb: dict[str, Any]) -> str:
    """sha256 of what is executed: the code cells and their tags. Prose and outputs may change without changing it."""
    cells = [c for c in nb["cells"] if c["cell_type"] == "code" and not injected(c)]
    return _sha256([[source(cell), tags(cell)] for cell in cells])


def text_key(nb: dict[str, Any]) -> str:
    """sha256 of everything but outputs, execution counts and the notebook's own metadata."""
    return _sha256([[cell["cell_type"], source(cell), cell.get("metadata", {})] for cell in nb["cells"]])


def content_key(nb: dict[str, Any], *, prose: bool) -> str:
    """sha256 of what a run left: code, tags, execution counts and outputs; with `prose` also the text and metadata."""
    cells = [cell for cell in nb["cells"] if prose or cell["cell_type"] == "code"]
    return _sha256([
        [source(cell), cell.get("metadata", {}) if prose else tags(cell), cell.get("execution_count"),
         [_whole(output) for output in cell.get("outputs", [])]]
        for cell in cells
    ])  # fmt: skip


def _whole(value: Any) -> Any:
    """An output with every text as one string, which files store as one string or as a list of lines."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return "".join(value)
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return {k: _whole(v) for k, v in value.items()} if isinstance(value, dict) else value


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


@lru_cache(maxsize=1)
def installed() -> dict[str, str]:
    """The version of each package that `kit` requires, "none" where there is none."""
    found: dict[str, str] = {}
    try:
        required = importlib.metadata.requires("interpretable-adversarial-kit") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        required = []
    for line in required:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if "extra ==" not in line:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "none"
    return found


@lru_cache(maxsize=1)
def environment_key() -> str:
    """sha256 of the lock, and of the installed version of each package that `kit` requires."""
    lock = ROOT / "requirements.lock"
    return _sha256([versions(), installed(), lock.read_text(encoding="utf-8") if lock.is_file() else ""])


def weights_used(code: str) -> dict[str, str]:
    """sha256 of the networks that this user trained and that may be read by the code, by name.

    Those that have a shipped network's name, since `kit.models.load` prefers them, and those that the code names: what
    a chapter trains for its reader, as a backdoor to be found, leaves the runs of the other chapters as they are.
    """
    folder = Path(os.environ.get("KIT_MODELS") or Path.home() / ".cache" / "kit" / "models").expanduser()
    own, shipped = _manifest(folder), _manifest(PACKAGE / "models" / "weights")
    return {name: entry.get("sha256", "") for name, entry in own.items()
            if name in shipped or re.search(rf"""^[^#\n]*["']{re.escape(name)}["']""", code, re.MULTILINE)}


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:  # whoever loads a network from it is told
        return {}


def code_of(nb: dict[str, Any]) -> str:
    return "\n".join(source(cell) for cell in nb["cells"] if cell["cell_type"] == "code")


def measured_beside(path: Path) -> Path:
    """The file in which the full profile of a notebook keeps what it measured."""
    return path.with_name(f"{path.stem}_measured.json")


def files_beside(nb: dict[str, Any], path: Path) -> dict[str, Path]:
    """The files beside the notebook that its code names, by that name, and what it measured."""
    names = {measured_beside(path).name, *re.findall(r"""["']([\w.\-/ ]+\.\w+)["']""", code_of(nb))}
    return {name: path.parent / name for name in sorted(names) if (path.parent / name).is_file()}


def read_beside(nb: dict[str, Any], path: Path, given: dict[str, Any]) -> dict[str, str]:
    """sha256 of each file beside the notebook that its code names, by that name.

    What the full profile measures and keeps (`<name>_measured.json`) is what a quick run shows; the full profile
    writes it, and so does not depend on it.
    """
    files = files_beside(nb, path)
    if given.get("profile") == "full":
        files.pop(measured_beside(path).name, None)
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


RESOURCES = ("GPU", "memory")  # a number of them; GiB


def needs(nb: dict[str, Any], path: Path, profile: str, device: str) -> dict[str, float]:
    """What a notebook asks of a worker of a cluster: `kit.resources` of its metadata, `{"full": {"memory": 8}}`.

    Where it says nothing, the full profile asks for a GPU, unless the device is the CPU, and the quick one for nothing;
    with the device cuda each notebook asks for one. Raises UserError for what is no such declaration.
    """
    said = nb.get("metadata", {}).get("kit", {}).get("resources", {})
    found = said.get(profile, {}) if isinstance(said, dict) else said
    numbers = isinstance(found, dict) and all(type(v) in (int, float) and v >= 0 for v in found.values())
    if not numbers or not set(found) <= set(RESOURCES):
        raise UserError(f"the metadata of {path} ask for {json.dumps(said)}: let kit.resources name a profile, and for "
                        'it numbers, as in {"full": {"GPU": 1, "memory": 8}}')
    gpu = {"cpu": 0, "cuda": found.get("GPU") or 1}.get(device, found.get("GPU", int(profile == "full")))
    return {name: number for name, number in (found | {"GPU": gpu}).items() if number}


def run_key(nb: dict[str, Any], given: dict[str, Any], *, prose: bool, path: Path | None = None) -> str:
    """sha256 of all that an executed notebook depends on; with `prose` also of the text it carries along.

    That is its code, `kit` and its weights, the user's own weights that it may read, the parameters, the lock and the
    installed versions, and the files beside it (`path` is where it lies).
    """
    beside = read_beside(nb, path, given) if path is not None else {}
    text = text_key(nb) if prose else code_key(nb)
    return _sha256([text, package_key(), weights_used(code_of(nb)), given, environment_key(), beside])


def stamp(nb: dict[str, Any]) -> dict[str, Any]:
    """How the notebook was executed: `metadata.kit.stamp`, empty where it never was."""
    return nb.get("metadata", {}).get("kit", {}).get("stamp", {})


def executed(nb: dict[str, Any]) -> bool:
    """Whether every code cell has been run."""
    return all(c.get("execution_count") for c in nb["cells"] if c["cell_type"] == "code" and source(c).strip())


def up_to_date(copy: dict[str, Any], key: str, *, prose: bool) -> bool:
    """Whether an executed notebook is complete, was made under this key, and was not changed since."""
    note = stamp(copy)
    return executed(copy) and note.get("key") == key and note.get("content") == content_key(copy, prose=prose)


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
