"""`python -m tests.mutants`: make mutants, run what should see them, print what survived.

    --n 50 --seed 1     of the package, so many, chosen by this seed (0: all of them)
    --changed [BASE]    only files of the package that differ from BASE (default origin/main)
    --only TEXT         only files of the package whose path holds TEXT
    --jobs 2            so many at once, each in a scratch copy of the repository
    --outputs           mutants of committed outputs too; they need no run and take a minute

What was tried is kept in runs/mutants.jsonl, so that a stopped run goes on where it was. Status 1 where a mutant
survived that `explained.py` does not explain.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from kit.run.compare import differences
from kit.run.files import ROOT, chapters
from tests.mutants import outputs
from tests.mutants.explained import EXPLAINED
from tests.mutants.package import Mutant, elsewhere, files, mutants, seen_by, spread

LIMIT = 600  # seconds that the tests of a mutant may take; one that makes them hang was seen
RUNNING: set[subprocess.Popen[bytes]] = set()
KEPT = ROOT / "runs" / "mutants.jsonl"


def scratch(folder: Path) -> Path:
    """A copy of the working tree."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def passes(folder: Path, tests: list[str]) -> bool:
    """Whether these tests pass in a copy."""
    variables = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    RUNNING.add(process)
    try:
        return process.wait(LIMIT) in (0, 5)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        RUNNING.discard(process)


def key(mutant: Mutant, tests: list[str]) -> str:
    """What a mutant's outcome depends on: itself, its file, and its tests."""
    digest = hashlib.sha256(repr(mutant).encode())
    for name in [mutant.path, *tests]:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:20]


def explained(name: str, line: str) -> str:
    return next((why for path, text, why in EXPLAINED if name.startswith(path) and text in line), "")


def changed(base: str) -> set[str]:
    command = ["git", "-C", str(ROOT), "diff", "--name-only", base, "--", "kit"]
    return set(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())


def of_package(chosen: list[Mutant], jobs: int) -> list[tuple[Mutant, str]]:
    """Each mutant with what became of it: caught, survived, or "not tried" where its tests fail without it."""
    KEPT.parent.mkdir(exist_ok=True)
    known = dict(json.loads(line) for line in KEPT.read_text().splitlines()) if KEPT.exists() else {}
    lock, sound = threading.Lock(), {}
    see = {mutant: [seen_by(ROOT, mutant.path), elsewhere(ROOT, mutant)] for mutant in chosen}
    keys = {mutant: key(mutant, sum(tests, [])) for mutant, tests in see.items()}  # of the files as they are copied
    copies: queue.Queue[Path] = queue.Queue()
    stopping = threading.Event()

    def outcome(mutant: Mutant) -> tuple[Mutant, str]:
        own = keys[mutant]
        if own in known or stopping.is_set():
            return mutant, known.get(own, "not tried")
        folder, found = copies.get(), "not tried"
        file = folder / mutant.path
        source = file.read_bytes()
        try:
            for tests in filter(None, see[mutant]):
                if tuple(tests) not in sound:
                    sound[tuple(tests)] = passes(folder, tests)
                if not sound[tuple(tests)]:
                    found = "not tried"
                    break
                file.write_bytes(mutant.apply(source))
                found = "survived" if passes(folder, tests) else "caught"
                file.write_bytes(source)
                if found == "caught":
                    break
        finally:
            file.write_bytes(source)
            copies.put(folder)
        if found != "not tried" and not stopping.is_set():
            with lock, KEPT.open("a") as kept:
                kept.write(json.dumps([own, found]) + "\n")
        return mutant, found

    results: list[tuple[Mutant, str]] = []
    with tempfile.TemporaryDirectory(prefix="kit-mutants-") as top:
        for i in range(jobs):
            copies.put(scratch(Path(top) / str(i)))
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(outcome, mutant) for mutant in chosen]
            try:
                for future in as_completed(futures):
                    results.append(future.result())
                    print(f"{len(results)}/{len(chosen)} {results[-1][1]}: {results[-1][0].name}", flush=True)
            except KeyboardInterrupt:
                stopping.set()
                for process in list(RUNNING):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, 9)
                pool.shutdown(cancel_futures=True)
                print("stopped: the same command goes on from there", flush=True)
    return results


def of_outputs(seed: int) -> tuple[Counter[str], list[str]]:
    """How many mutants of committed outputs there were by kind, and those that no comparison saw."""
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    counts: Counter[str] = Counter()
    survived = []
    for path in chapters():
        name = path.relative_to(ROOT).as_posix()
        source = random.Random(f"{seed} {name}")
        cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (c for c in cells if c["cell_type"] == "code"):
            tolerance = plugin.tolerance(name, cell["id"])
            for kind, other in outputs.mutated(cell["outputs"], source):
                counts[kind] += 1
                if not differences(cell["outputs"], other, tolerance):
                    survived.append(f"{name} {cell['id']}: {kind}")
    return counts, survived


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changed", nargs="?", const="origin/main")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--outputs", action="store_true")
    given = parser.parse_args()
    for name in (signal.SIGINT, signal.SIGTERM):  # a job in the background is born deaf to the first
        signal.signal(name, signal.default_int_handler)
    left = 0
    if given.outputs:
        counts, survived = of_outputs(given.seed)
        print("\n".join(f"survived: {line}" for line in survived))
        print(f"outputs: {counts.total()} mutants ({', '.join(f'{k} {v}' for k, v in sorted(counts.items()))})")
        print(f"outputs: {len(survived)} survived")
        left += sum(not explained(line, line) for line in survived)
    among = changed(given.changed) if given.changed else None
    paths = [p for p in files(ROOT) if given.only in p.as_posix()]
    paths = [p for p in paths if among is None or p.relative_to(ROOT).as_posix() in among]
    every = [mutant for path in paths for mutant in mutants(ROOT, path)]
    results = of_package(spread(every, given.n, given.seed), given.jobs)
    counts = Counter(found for _, found in results)
    outcome = ", ".join(f"{count} {found}" for found, count in sorted(counts.items()))
    print(f"package: {len(results)} of {len(every)} mutants: {outcome}")
    for mutant, found in sorted(results, key=lambda r: r[0].name):
        if found == "survived":
            source = (ROOT / mutant.path).read_bytes()
            line, mutated = (s.decode().splitlines()[mutant.line - 1].strip() for s in (source, mutant.apply(source)))
            reason = explained(mutant.path, f"{line}\n{mutated}")
            left += not reason
            print(f"survived: {mutant.name}: {line}\n    becomes {mutant.new}" + (f"\n    {reason}" if reason else ""))
    return 1 if left or counts["not tried"] else 0


if __name__ == "__main__":
    sys.exit(main())
