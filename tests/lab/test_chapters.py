"""The chapters' exercises: a stub with a check, and a solution that passes it, folded in the book and in JupyterLab."""
import json
import re

import pytest

from kit.lab import EXERCISES
from kit.run.files import chapters, source, tags

CALL = re.compile(r'^check\("([\w-]+)", \w+\)$', re.M)


def exercises(path) -> dict[int, tuple[str, list[dict]]]:
    """What each exercise says, and its code cells."""
    found: dict[int, tuple[str, list[dict]]] = {}
    at = None
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            said = re.search(r"\*\*Exercise (\d)\*\*.*", text, re.S)
            at = int(said[1]) if said else None
            if at and said:
                found[at] = said[0], []
        elif at:
            found[at][1].append(cell)
    return found


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_an_exercise_is_a_stub_with_its_check_and_a_solution_that_passes_it(path):
    found = exercises(path)
    assert list(found) == list(range(1, len(found) + 1))
    assert len(found) >= 2
    for said, (stub, solution) in found.values():
        (name,) = CALL.findall(source(stub))
        assert name in EXERCISES
        assert re.match(r"\*\*Exercise \d\*\* \((easy|medium|hard), \d+ minutes\)", said)
        assert f"`✓ {name}: right.`" in said
        assert '"""' in source(stub)
        assert source(stub).count("raise NotImplementedError  # your code") == 1
        assert "hide-cell" not in tags(stub)
        assert printed(stub).startswith(f"✗ {name}: not written yet")
        assert CALL.findall(source(solution)) == [name]
        assert printed(solution).startswith(f"✓ {name}: right.")


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_solutions_are_folded_in_the_book_and_in_jupyterlab(path):
    for _, (_, solution) in exercises(path).values():
        assert "hide-cell" in tags(solution)
        assert solution["metadata"]["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
        assert solution["metadata"]["mystnb"]["code_prompt_show"] == "Show solution"
