"""The mutants themselves: each changes what it says, where it says, and the tests that should see it are found."""

import ast
import random

from kit.report import figures
from kit.report.numbers import MIME as RECORD
from kit.report.plotted import MIME, plotted
from kit.run.compare import differences
from kit.run.files import ROOT
from tests.mutants.__main__ import explained
from tests.mutants.explained import EXPLAINED
from tests.mutants.outputs import mutated
from tests.mutants.package import elsewhere, files, mutants, seen_by, spread

SOURCE = '''"""Docstring 1."""
def f(x: "ε 2", *, generator=None):
    """3 · x"""
    if x < 0:
        raise ValueError(f"{4 + 5} is wrong")
    noise = draw(x, generator=generator)  # ε
    return -(x + noise).clamp(0, 1).mean(1)
'''


def test_every_kind_of_fault_is_made_once_and_nothing_else_changes(tmp_path):
    path = tmp_path / "kit" / "f.py"
    path.parent.mkdir()
    path.write_text(SOURCE, encoding="utf-8")
    found = {m.kind + " " + m.new: m.apply(SOURCE.encode()).decode() for m in mutants(tmp_path, path)}
    for text, kind, new in (
        ("x > 0", "comparison", "x < 0"),
        ("x - noise", "operator", "x + noise"),
        ("draw(x)", "generator ignored", "draw(x, generator=generator)"),
        ("(x + noise).mean(1)", "clamp dropped", "(x + noise).clamp(0, 1).mean(1)"),
        (".sum(1)", "reduction", ".mean(1)"),
        ("clamp(1, 1)", "constant", "clamp(0, 1)"),
    ):
        assert any(k.startswith(kind) and text in code and new not in code for k, code in found.items()), (kind, found)
    assert any(k.startswith("sign") and "return (" in code for k, code in found.items())
    for code in found.values():
        ast.parse(code)
        assert 'Docstring 1' in code
        assert "{4 + 5} is wrong" in code
        assert '"ε 2"' in code
    assert len(set(found.values())) == len(found)


def test_the_wrong_answers_of_an_exercise_are_left_alone(tmp_path):
    path = tmp_path / "kit" / "lab" / "f.py"
    path.parent.mkdir(parents=True)
    path.write_text('exercise("f", "f(x)", lambda x: 2 * x, cases, [("half", lambda x: x / 2, ["a"])], rtol=1 / 9)\n')
    assert {m.new for m in mutants(tmp_path, path)} == {"3", "(2 / x)", "2", "10", "(1 * 9)"}


def test_a_sample_has_every_kind_and_depends_on_its_seed():
    every = mutants(ROOT, ROOT / "kit" / "core" / "balls.py")
    kinds = {m.kind for m in every}
    assert {m.kind for m in spread(every, len(kinds), 0)} == kinds
    assert spread(every, 5, 0) == spread(every, 5, 0) != spread(every, 5, 1)
    assert sorted(map(repr, spread(every, 0, 0))) == sorted(map(repr, every))


def test_the_tests_of_a_module_are_found():
    assert seen_by(ROOT, "kit/core/balls.py") == ["tests/core/test_balls.py"]
    assert seen_by(ROOT, "kit/core/passes.py") == ["tests/core/test_passes.py", "tests/core/test_passes_graph.py"]
    assert "tests/core/test_balls.py" in seen_by(ROOT, "kit/core/nowhere.py")
    assert all(seen_by(ROOT, path.relative_to(ROOT).as_posix()) for path in files(ROOT))


def test_what_is_tested_with_another_module_is_looked_for_there():
    path = ROOT / "kit" / "core" / "oracles.py"
    at = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if "W - columns - left" in line)
    found = elsewhere(ROOT, next(m for m in mutants(ROOT, path) if m.line == at))
    assert "tests/attacks/transfer/test_ingredients.py" in found
    assert not set(found) & set(seen_by(ROOT, "kit/core/oracles.py"))


def test_no_mutant_of_an_output_passes_the_comparison():
    figure = figures.curve([0, 1, 2], {"a": [1, 2, 3]}, xlabel="x", ylabel="y")
    entry = {"name": "rate", "value": 0.98, "unit": "%", "interval": [0.95, 0.99], "n": 400}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["accuracy 0.98\n", "n = 400\n"]},
        {"output_type": "display_data", "data": {"text/plain": "rate: 98.0 % [95.0, 99.0]", RECORD: entry}},
        {"output_type": "display_data", "data": {"text/plain": "2 of 3", RECORD: [entry, entry | {"name": "other"}]}},
        {"output_type": "display_data", "data": {"text/plain": repr(figure), MIME: plotted(figure)}},
    ]
    kinds = set()
    for seed in range(20):
        for kind, other in mutated(outputs, random.Random(seed)):
            kinds.add(kind)
            assert differences(outputs, other), (kind, other)
    lost = {"line removed", "output removed", "outputs swapped", "plotted data removed"}
    assert kinds == {"number", "plotted data"} | lost | {f"record's {key}" for key in entry}
    assert differences(outputs, outputs) == []


def test_a_survivor_is_explained_by_file_and_line():
    assert explained("kit/models/registry.py", 'x = Recipe("a")')
    assert not explained("kit/models/registry.py", "x = 1")
    assert not explained("kit/core/balls.py", "Recipe(")


def test_an_explanation_of_one_mutant_explains_no_other():
    for name in ("kit/attacks/minimal/deepfool.py", "kit/core/checks.py", "kit/attacks/scores/estimators.py",
                 "kit/explain/tcav.py", "kit/fire/adv2/descent.py", "kit/attacks/minimal/penalty.py",
                 "kit/attacks/minimal/quasi_newton.py", "kit/attacks/decision/walks.py"):
        source = (ROOT / name).read_bytes()
        texts = [text for path, text, _ in EXPLAINED if path == name]
        for text in texts:
            assert sum(text in m.apply(source).decode() for m in mutants(ROOT, ROOT / name)) == 1
