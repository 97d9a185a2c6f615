"""The labs: the solution gets full marks, the stub none, each named wrong answer its hint; the versions are what they
should be, and nbgrader, where it is installed, makes the same of them."""
import copy
import re

import nbformat
import pytest

from kit.lab import EXERCISES, check
from kit.lab import source as lab
from tests.lab.grader import NBGRADER, nbgrader
from tests.lab.inline import run, run_cell

LABS = lab.names()


def asked(nb):
    """{exercise: (the student's function, points, the source of its test)} of a lab's exercises."""
    found = {}
    for cell in nb.cells:
        call = re.search(r'marks\("([\w-]+)", (\w+), points=(\d+)', cell.source)
        if call:
            found[call[1]] = (call[2], float(call[3]), cell.source)
    return found


def answered(nb, name, text):
    """With another answer in an exercise's cell."""
    nb = copy.deepcopy(nb)
    (cell,) = [cell for cell in nb.cells if lab.graded(cell).get("grade_id") == f"{name}-answer"]
    cell.source = text
    return nb


def test_there_are_the_labs_that_are_promised():
    assert {"gradient_attacks", "projections", "relevance", "planted_bias", "leave_one_out", "detector", "black_box",
            "two_interpreters", "certificate"} <= set(LABS)


@pytest.mark.parametrize("name", LABS)
def test_a_lab_is_complete(name):
    nb = lab.read(name)
    questions = lab.questions(nb)
    assert 3 <= len(asked(nb)) <= 6
    assert sum(q.by_hand for q in questions) >= 1
    assert len({q.name for q in questions}) == len(questions)
    assert nb.metadata.kit.lab.minutes > 0
    chapter = lab.SOURCES.parents[2] / "notebooks" / f"{nb.metadata.kit.lab.chapter}.ipynb"
    assert chapter.is_file()
    for cell in nb.cells:
        meta = lab.graded(cell)
        if cell.cell_type == "markdown" and meta.get("grade"):
            samples = re.findall(r"\*(\d+) points\*: \"", cell.source)
            assert [int(n) for n in samples] == [meta["points"], meta["points"] // 2, 0]  # three grades of answers
        if meta.get("grade") and cell.cell_type == "code":
            assert "BEGIN HIDDEN TESTS" in cell.source
            assert meta["locked"]
    for exercise, (function, _, test) in asked(nb).items():
        assert f'check("{exercise}", {function}, seed=seed)' in lab.without(test, "HIDDEN TESTS")
        assert "seed=seed + " in test  # the hidden numbers are others than the public ones


@pytest.mark.parametrize("name", LABS)
def test_the_solution_gets_full_marks_and_the_stub_none(name):
    nb = lab.source(lab.read(name))
    points, said, errors = run(nb)
    assert errors == []
    assert points == {q.name: q.points for q in lab.questions(nb) if not q.by_hand}
    assert "✗" not in said
    points, said, errors = run(lab.key(nb))
    assert set(points.values()) == {0.0}
    assert all("NotImplementedError" in error or "NameError" in error for error in errors)
    assert all(f"✗ {exercise}: not written yet" in said for exercise in asked(nb))


@pytest.mark.parametrize("name", LABS)
def test_each_named_wrong_answer_gets_no_points_and_its_hint(name, capsys):
    for exercise, (function, _, test) in asked(lab.read(name)).items():
        for wrong in EXERCISES[exercise].wrong:
            assert run_cell(test, {function: wrong.answer, "seed": 17, "check": check}) == 0.0
            public, hidden = (part for part in capsys.readouterr().out.split("✗ ") if part)
            assert public == hidden
            assert wrong.hints[0] in public


def test_other_numbers_for_another_class():
    nb = lab.source(lab.read("gradient_attacks"), {"seed": "17", "eps": "6/255"})
    assert nb.metadata.kit.lab.settings == {"seed": "17", "eps": "6/255"}
    (cell,) = [cell for cell in nb.cells if cell.id == "parameters"]
    assert cell.source == "seed = 17\neps = 6/255  # radius of the attacks on the network, in pixel units\nimages = 60"
    points, said, errors = run(nb)
    assert errors == []
    assert sum(points.values()) == sum(q.points for q in lab.questions(nb) if not q.by_hand)
    other = run(lab.source(lab.read("gradient_attacks")))[1]
    share = [float(re.search(r"share = ([\d.]+)", text)[1]) for text in (said, other)]
    assert share[0] < share[1]  # a smaller ball fools less


def test_a_number_from_other_settings_is_not_right():
    nb = lab.source(lab.read("gradient_attacks"), {"eps": "6/255"})
    earned, said, _ = run(answered(nb, "share-fooled", "share = 0.7966"))
    assert earned["share-fooled"] == 0.0
    assert "not the number" in said


@pytest.mark.parametrize(("settings", "error", "words"), [
    ({"epsilon": "1"}, LookupError, "no parameter epsilon; it has seed, eps, images"),
    ({"eps": "__import__('os').getcwd()"}, ValueError, "give a number"),
    ({"eps": "8/"}, ValueError, "give a number"),
])
def test_a_wrong_setting_is_one_sentence(settings, error, words):
    with pytest.raises(error, match=re.escape(words)):
        lab.source(lab.read("gradient_attacks"), settings)


@pytest.mark.parametrize("name", LABS)
def test_students_see_neither_solutions_nor_hidden_tests(name, tmp_path):
    made = {version: nbformat.read(path, 4) for version, path in lab.build(name, tmp_path).items()}
    text = {version: "\n".join(cell.source for cell in nb.cells) for version, nb in made.items()}
    for word in ("BEGIN SOLUTION", "BEGIN HIDDEN TESTS", "marks(", "Rubric", "7919", "EXERCISES"):
        assert word in text["source"] or word == "EXERCISES"
        assert word not in text["release"]
    assert "7919" in text["key"]
    assert "Rubric" not in text["key"]
    assert text["release"].count("raise NotImplementedError()") == text["source"].count("    ### BEGIN SOLUTION") + len(
        [q for q in lab.questions(made["source"]) if not q.by_hand]) - len(asked(made["source"]))
    for nb in made.values():
        assert f"| **all** | **{sum(q.points for q in lab.questions(nb)):g}** | |" in nb.cells[1].source
        assert all(lab.graded(cell).get("grade_id") for cell in nb.cells)
        nbformat.validate(nb)
    for cell in made["release"].cells:
        if cell.cell_type == "code":
            compile(cell.source, "cell", "exec")


@pytest.mark.parametrize("text", ["BEGIN SOLUTION\nx", "END SOLUTION", "BEGIN SOLUTION\nBEGIN SOLUTION"])
def test_marks_come_in_pairs(text):
    with pytest.raises(ValueError, match="END SOLUTION|BEGIN and END"):
        lab.without(text, "SOLUTION")


def test_building_again_keeps_what_was_handed_in(tmp_path):
    lab.build("relevance", tmp_path)
    kept = tmp_path / "submitted" / "ada" / "relevance" / "relevance.ipynb"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (tmp_path / "nbgrader_config.py").write_text("# mine")
    first = lab.build("relevance", tmp_path, {"seed": "3"})["key"].read_text()
    assert first == lab.build("relevance", tmp_path, {"seed": "3"})["key"].read_text()
    assert kept.read_text() == "mine"
    assert (tmp_path / "nbgrader_config.py").read_text() == "# mine"


def test_a_submission_cannot_bring_its_own_tests():
    nb = lab.source(lab.read("relevance"))
    handed_in = lab.release(nb)
    for cell in handed_in.cells:
        if lab.graded(cell).get("grade") and cell.cell_type == "code":
            cell.source = f"{lab.graded(cell)['points']}.0"
    handed_in.cells = [cell for cell in handed_in.cells if cell.id != "parameters"]
    handed_in.cells.insert(3, nbformat.v4.new_code_cell("mine = 1"))
    merged = lab.poured(handed_in, lab.key(nb))
    assert "mine = 1" in [cell.source for cell in merged.cells]
    points, _, _ = run(merged)
    assert set(points.values()) == {0.0}


def test_answers_are_poured_by_name_wherever_they_stand():
    nb = lab.source(lab.read("relevance"))
    handed_in = copy.deepcopy(nb)
    handed_in.cells = [cell for cell in handed_in.cells if lab.graded(cell).get("solution")][::-1]
    points, _, errors = run(lab.poured(handed_in, lab.key(nb)))
    assert errors == []
    assert points == {q.name: q.points for q in lab.questions(nb) if not q.by_hand}


def test_points_are_read_as_nbgrader_reads_them_but_never_given_for_nothing():
    nb = lab.source(lab.read("relevance"))
    (cell,) = [cell for cell in nb.cells if lab.graded(cell).get("grade_id") == "lrp-sum"]

    def result(text):
        return [nbformat.v4.new_output("execute_result", {"text/plain": text}, execution_count=1)]

    stopped = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    for outputs, points in ((result("2.0"), 2.0), (result("1.5"), 1.5), (result("99.0"), 2.0), (result("-1.0"), 0.0),
                            (result("'x'"), 0.0), (result("nan"), 0.0), ([], 0.0), ([*result("2.0"), stopped], 0.0)):
        cell.outputs = outputs
        assert lab.earned(nb)["lrp-sum"] == points
    assert lab.earned(nb)["explain"] is None
    assert lab.earned(lab.release(nb))["explain"] == 0.0


@NBGRADER
@pytest.mark.parametrize("name", LABS)
def test_nbgrader_makes_the_same_students_version(name, tmp_path):
    ours = nbformat.read(lab.build(name, tmp_path)["release"], 4)
    nbgrader(tmp_path, "generate_assignment", name, "--force")
    theirs = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", 4)
    assert [(c.cell_type, c.source) for c in theirs.cells] == [(c.cell_type, c.source) for c in ours.cells]
