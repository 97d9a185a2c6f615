"""Collecting, the sandbox, the grades and their forms, and the commands around them."""
import csv
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from kit.lab import grades, sandbox
from kit.lab import source as lab
from kit.run import cli
from tests.lab.grader import NBGRADER, nbgrader

META = {"grade": False, "locked": False, "schema_version": 3, "solution": False, "task": False}


def small():
    """A lab of one line and one open question, for which nothing heavy is imported."""
    return new_notebook(cells=[
        new_markdown_cell("# A small lab", id="title"),
        new_code_cell("seed = 0", id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell("### BEGIN SOLUTION\ntwo = 2\n### END SOLUTION", id="a",
                      metadata={"nbgrader": {**META, "grade_id": "two-answer", "solution": True}}),
        new_code_cell("print(two)\n### BEGIN HIDDEN TESTS\n3.0 if two == 2 else 0.0\n### END HIDDEN TESTS", id="t",
                      metadata={"nbgrader": {**META, "grade_id": "two", "grade": True, "locked": True, "points": 3}}),
        new_markdown_cell("### BEGIN SOLUTION\nBecause.\n### END SOLUTION", id="o",
                          metadata={"nbgrader": {**META, "grade_id": "why", "grade": True, "solution": True,
                                                 "points": 2}}),
    ], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course with the small lab, built."""
    monkeypatch.chdir(tmp_path)
    nbformat.write(small(), tmp_path / "small.ipynb")
    lab.build("small.ipynb", Path("course"))
    return Path("course")


def submission(answer="two = 2", why="Because it is."):
    nb = lab.release(lab.source(small_named()))
    for cell in nb.cells:
        name = lab.graded(cell)["grade_id"]
        cell.source = {"two-answer": answer, "why": why}.get(name, cell.source)
    return nbformat.writes(nb)


def small_named():
    nb = small()
    nb.metadata["kit"] = {"lab": {"name": "small"}}
    return nb


def cells(*texts):
    return new_notebook(cells=[new_code_cell(text) for text in texts])


def call(*words):
    return CliRunner().invoke(cli.app, ["lab", *words], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(autouse=True)
def consoles(monkeypatch):
    monkeypatch.setattr(cli, "console", cli.Console(width=200))
    monkeypatch.setattr(cli, "errors", cli.Console(width=200, stderr=True))


def told(cell):
    return "".join(o.get("text", "") + o.get("ename", "") + o.get("data", {}).get("text/plain", "")
                   for o in cell.outputs)


def test_a_sandbox_runs_cells_bounds_them_and_goes_on():
    texts = ["x = 1\nprint('hello')\nx + 1", "while True: pass", "y = bytearray(3 * 2**30)", "x",
             "import os\n(os.getcwd() != '/', len(os.environ) < 25)", "1 / 0"]
    nb, remark = sandbox.run(cells(*texts), seconds=60, memory=2)
    assert remark == ""
    first, endless, large, after, where, wrong = nb.cells
    assert told(first) == "hello\n2"
    assert told(endless).endswith("TimeoutError")
    assert told(large).endswith("MemoryError")
    assert told(after) == "1"
    assert told(where) == "(True, True)"
    assert told(wrong).endswith("ZeroDivisionError")


def test_what_ends_the_process_costs_what_comes_after_it_alone():
    nb, remark = sandbox.run(cells("40 + 2", "import os\nos._exit(3)", "1"), seconds=60)
    assert "ended early" in remark
    assert [told(cell) for cell in nb.cells] == ["42", "", ""]


def test_what_cannot_be_interrupted_is_stopped():
    stubborn = "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass"
    nb, remark = sandbox.run(cells("1", stubborn), seconds=20)
    assert remark == "it was stopped after 20 seconds"
    assert len(nb.cells) == 2


def test_a_cell_that_takes_an_interruption_for_an_error_costs_itself_alone():
    check = ("import time\nfor k in range(2):\n    try:\n        while True:\n            pass\n"
             "    except Exception as error:\n        print(k, type(error).__name__)\n'over'")
    nb, remark = sandbox.run(cells(check, "40 + 2"), seconds=30)
    assert remark == ""
    assert [told(cell) for cell in nb.cells] == ["0 TimeoutError\n1 TimeoutError\n'over'", "42"]


@pytest.mark.skipif(not sandbox.apart(), reason="this machine does not allow a process without a network (unshare)")
def test_there_is_no_network_but_itself():
    reach = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=2)"
    itself = "s = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname(), 2).close()\n7"
    nb, _ = sandbox.run(cells(reach, itself), seconds=60)
    assert told(nb.cells[0]).endswith("OSError")
    assert told(nb.cells[1]) == "7"


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory": -1}])
def test_limits_must_be_limits(limits):
    with pytest.raises(ValueError, match="more than 0"):
        sandbox.run(cells("1"), **limits)


@pytest.mark.parametrize(("place", "student", "name"), [
    ("Ada Lovelace_417_assignsubmission_file_/small.ipynb", "417", "Ada Lovelace"),
    ("Jean_Luc Picard_5_assignsubmission_file/small.ipynb", "5", "Jean_Luc Picard"),
    ("Ada Lovelace_417_assignsubmission_file_small.ipynb", "417", "Ada Lovelace"),
    ("lovelaceada_417_8812_small.ipynb", "417", "lovelaceada"),
    ("lovelaceada_LATE_417_8812_small-2.ipynb", "417", "lovelaceada"),
    ("ada/small.ipynb", "ada", "ada"),
    ("submitted/ada/small/small.ipynb", "ada", "ada"),
    ("ada_small.ipynb", "ada", "ada"),
    ("../../etc/small.ipynb", "etc", "etc"),
    ("a b;rm/small.ipynb", "a-b-rm", "a b;rm"),
])
def test_whose_a_file_is(place, student, name):
    assert grades.owner(PurePosixPath(place), "small") == (student, name)


def test_what_a_platform_hands_out_is_sorted(course, monkeypatch):
    monkeypatch.setattr(grades, "LARGEST", 20_000)
    with zipfile.ZipFile("all.zip", "w") as archive:
        archive.writestr("Ada Lovelace_417_assignsubmission_file_/small.ipynb", submission())
        archive.writestr("Bob_418_assignsubmission_file_/small.ipynb", submission("two = 3"))
        archive.writestr("Bob_418_assignsubmission_file_/again.ipynb", submission("two = 2"))
        archive.writestr("Eve_419_assignsubmission_file_/other.ipynb", nbformat.writes(cells("1")))
        archive.writestr("Mal_420_assignsubmission_file_/small.ipynb", "{")
        archive.writestr("Kim_421_assignsubmission_file_/small.ipynb", submission("two = 2" + " " * 30_000))
        archive.writestr("Ida_422_assignsubmission_file_/small.html", "<html>")
        archive.writestr("Jo_423_assignsubmission_file_/small.zip", "PK")
        archive.writestr("Ada Lovelace_417_assignsubmission_file_/notes.txt", "not missed: there is a notebook")
        archive.writestr("../../../tmp/out_of_here/small.ipynb", submission())
        archive.writestr("__MACOSX/._small.ipynb", "x")
    students, left = grades.collect(Path("all.zip"), course, "small")
    assert students == ["417", "418"]
    assert [why.rpartition(": ")[2] for why in left] == [
        "a second notebook of 418, no more answers in it than in small.ipynb", "not a copy of small",
        "not a notebook that can be read", "larger than 0 MB, clear its outputs", "not a notebook",
        "not a notebook, unpack it where it is"]
    assert sorted(p.parts[2] for p in course.glob("submitted/*/small/small.ipynb")) == students
    assert grades.names(course)["417"] == "Ada Lovelace"


def test_of_two_notebooks_the_one_with_answers_is_taken(course):
    Path("in", "ada").mkdir(parents=True)
    Path("in", "ada", "a.ipynb").write_text(nbformat.writes(lab.release(lab.source(small_named()))))
    Path("in", "ada", "b.ipynb").write_text(submission())
    students, left = grades.collect(Path("in"), course, "small")
    assert students == ["ada"]
    assert left == ["ada/a.ipynb: a second notebook of ada, no more answers in it than in b.ipynb"]
    assert (course / "submitted/ada/small/small.ipynb").read_text() == submission()


@pytest.fixture
def here(monkeypatch):
    """Submissions run in this process, for their errors alone."""
    def run(nb, **_):
        space = {}
        for cell in nb.cells:
            try:
                exec(cell.source if cell.cell_type == "code" else "", space)
            except Exception as error:
                cell.outputs = [nbformat.v4.new_output("error", ename=type(error).__name__, evalue="", traceback=[])]
        return nb, ""

    monkeypatch.setattr(grades, "run", run)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("answer", "said"), [
    ("two = 2 +", "two-answer stopped with SyntaxError"),
    ("three = 2", "two stopped with NameError"),
    ("raise NotImplementedError()", ""),
    (None, "two-answer is missing"),
])
def test_a_remark_says_what_a_wrong_answer_does_not_explain(course, answer, said):
    nb = nbformat.reads(submission(answer or ""), 4)
    nb.cells = [c for c in nb.cells if answer is not None or lab.graded(c)["grade_id"] != "two-answer"]
    nbformat.write(nb, "ada_small.ipynb")
    result = grades.grade(Path("ada_small.ipynb"), course, "small")
    assert result.points["two"] == 0
    assert result.remark == said


@pytest.mark.usefixtures("here")
def test_what_is_handed_in_again_does_not_keep_the_points_of_an_empty_answer(course):
    path = course / "grades_small.csv"
    for why, expected, remark in (("YOUR ANSWER HERE", "0", ""), ("Because.", "", ""), ("Because it is.", "2", "why")):
        Path("ada_small.ipynb").write_text(submission(why=why))
        result = grades.grade(Path("ada_small.ipynb"), course, "small")
        grades.write([result], course, "small", path)
        (row,) = grades.table(path)[1]
        assert row["why /2"] == expected
        assert result.remark == (remark and f"{remark} rewritten since: its points are those of before")
        path.write_text(path.read_text().replace("0,,", "0,2,"))  # a person's points


def test_what_is_graded_stays_when_it_is_interrupted(course, monkeypatch):
    for student in ("ada", "bob"):
        Path("in", student).mkdir(parents=True)
        Path("in", student, "small.ipynb").write_text(submission())
    assert call("collect", "in", "--lab", "small").exit_code == 0

    def stop(path, *_, **__):
        if "bob" in path.parts:
            raise KeyboardInterrupt
        return grades.Graded("ada", {"two": 3.0, "why": None})

    monkeypatch.setattr(grades, "grade", stop)
    assert call("check", "--lab", "small").exit_code != 0
    assert [row["two /3"] for row in grades.table(course / "grades_small.csv")[1]] == ["3"]


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", ","), ("utf-8-sig", ","), ("cp1252", ";"), ("utf-8", "\t")])
def test_grades_are_read_as_a_spreadsheet_saves_them(tmp_path, encoding, mark):
    path = tmp_path / "g.csv"
    lines = [("student", "name", "lab", "two /3", "why /2", "remark"), ("1", "Jürgen", "small", "3", "1.5", "")]
    if mark == ";":
        lines[1] = (*lines[1][:4], "1,5", "")
    path.write_bytes("\r\n".join(mark.join(line) for line in lines).encode(encoding))
    assert grades.export(path, "moodle", tmp_path / "out.csv") == 1
    assert "Participant 1,Jürgen,4.5,5,-" in (tmp_path / "out.csv").read_text()


def test_from_a_folder_to_what_a_platform_reads(course):
    for student, text in {"ada": submission(), "bob": submission("two = 3", "YOUR ANSWER HERE"),
                          "eve": submission("raise SystemExit")}.items():
        Path("in", student).mkdir(parents=True)
        Path("in", student, "small.ipynb").write_text(text)
    answer = call("collect", "in", "--lab", "small")
    assert answer.exit_code == 0, answer.output
    assert "3 submissions" in answer.output
    answer = call("check", "--lab", "small")
    assert answer.exit_code == 0, answer.output
    assert "ada: 3 points, by hand: why" in answer.output
    path = course / "grades_small.csv"
    _, rows = grades.table(path)
    assert [(r["student"], r["two /3"], r["why /2"]) for r in rows] == [("ada", "3", ""), ("bob", "0", "0"),
                                                                       ("eve", "0", "")]
    kept = nbformat.read(course / "autograded" / "ada" / "small" / "small.ipynb", 4)
    assert "2\n3.0" in [told(cell) for cell in kept.cells if cell.cell_type == "code"]

    refused = call("export", str(path), "--form", "canvas")
    assert refused.exit_code == 2
    assert "ada has no points for why (empty)" in refused.stderr
    path.write_text(path.read_text().replace("ada,ada,small,3,,", "ada,ada,small,3,1.5,")
                    .replace("eve,eve,small,0,,", "eve,eve,small,0,2,"))
    again = call("check", "course/submitted/ada/small/small.ipynb")
    assert again.exit_code == 0, again.output  # what was given by hand stays, and so do the others
    assert [(r["student"], r["why /2"]) for r in grades.table(path)[1]] == [("ada", "1.5"), ("bob", "0"), ("eve", "2")]

    found = {}
    for form in grades.FORMS:
        assert call("export", str(path), "--form", form).exit_code == 0
        with open(course / f"grades_small_{form}.csv", newline="") as file:
            found[form] = list(csv.reader(file))
    assert found["canvas"] == [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "small"],
                               ["    Points Possible", "", "", "", "", "5"], ["ada", "ada", "", "", "", "4.5"],
                               ["bob", "bob", "", "", "", "0"], ["eve", "eve", "", "", "", "2"]]
    assert found["moodle"][:2] == [["Identifier", "Full name", "Grade", "Maximum grade", "Last modified (grade)"],
                                   ["Participant ada", "ada", "4.5", "5", "-"]]
    assert found["nbgrader"][1] == ["small", "", "", "ada", "ada", "", "", "4.5", "0.0", "4.5", "5.0"]


@pytest.mark.parametrize(("points", "words"), [("9", "at most 2"), ("-1", "at most 2"), ("two", r"no points for why")])
def test_points_that_cannot_be_are_refused(tmp_path, points, words):
    path = tmp_path / "g.csv"
    path.write_text(f"student,name,lab,two /3,why /2,remark\nada,ada,small,3,{points},\n")
    with pytest.raises(ValueError, match=words):
        grades.export(path, "moodle", tmp_path / "out.csv")


def test_a_lab_that_stops_by_itself_is_not_put_down_to_the_student(course):
    key = nbformat.read(grades.key_of(course, "small"), 4)
    next(cell for cell in key.cells if cell.id == "parameters").source = "seed = 1 / 0"
    nbformat.write(key, grades.key_of(course, "small"))
    Path("ada_small.ipynb").write_text(submission())
    remark = grades.grade(Path("ada_small.ipynb"), course, "small").remark
    assert remark == "the lab's own cell parameters stopped with ZeroDivisionError"


def test_a_file_that_is_no_notebook_gets_no_points_and_a_remark(course):
    Path("ada_small.ipynb").write_text("{")
    result = grades.grade(Path("ada_small.ipynb"), course, "small")
    assert (result.student, result.points) == ("ada", {"two": 0.0, "why": 0.0})
    assert "not a notebook" in result.remark


@pytest.mark.parametrize(("words", "said"), [
    (["build", "nothing"], "there is no lab nothing; there are black_box"),
    (["build", "relevance", "--set", "eps"], "--set takes NAME=VALUE"),
    (["check"], "name a notebook, or the lab"),
    (["check", "--lab", "small"], "nothing was handed in"),
    (["check", "--lab", "smal"], "it has small: name one with --lab, or run `kit lab build smal"),
    (["check", "x.ipynb"], "there is no x.ipynb"),
    (["check", "small.ipynb", "--course", "elsewhere"], "run `kit lab build small --out elsewhere` first"),
    (["collect", "small.ipynb", "--lab", "small"], "neither a folder nor a zip file"),
    (["export", "none.csv", "--form", "moodle"], "`kit lab check` writes it"),
    (["export", "small.ipynb", "--form", "moodle"], "has not the columns"),
    (["export", "none.csv", "--form", "ilias"], "one of nbgrader, canvas, moodle"),
])
def test_mistakes_are_one_line_and_status_2(course, words, said):
    answer = call(*words)
    assert answer.exit_code == 2, answer.output
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_the_labs_are_listed():
    answer = call("list")
    assert answer.exit_code == 0, answer.output
    for name in lab.names():
        assert name in answer.output


def test_what_computes_nothing_does_not_wait_for_torch():
    code = ("import sys\nfrom kit.run.cli import app\nfrom typer.testing import CliRunner\n"
            "assert CliRunner().invoke(app, ['lab', 'list']).exit_code == 0\n"
            "import kit.lab.grades\nassert 'torch' not in sys.modules\n"
            "from kit.lab import check\nassert 'torch' in sys.modules\n")
    subprocess.run([sys.executable, "-c", code], check=True)


@NBGRADER
def test_nbgrader_takes_over_and_comes_to_the_same_points(course):
    for student, text in {"ada": submission(), "bob": submission("two = 3")}.items():
        place = course / "submitted" / student / "small"
        place.mkdir(parents=True)
        (place / "small.ipynb").write_text(text)
    assert call("check", "--lab", "small").exit_code == 0

    nbgrader(course, "generate_assignment", "small", "--force")
    nbgrader(course, "autograde", "small", "--create", "--force")
    nbgrader(course, "export", "--to", "theirs.csv")
    with open(course / "theirs.csv", newline="") as file:
        theirs = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    _, rows = grades.table(course / "grades_small.csv")
    assert theirs == {row["student"]: float(row["two /3"]) for row in rows} == {"ada": 3.0, "bob": 0.0}
    with open(course / "theirs.csv", newline="") as file:
        header = next(csv.reader(file))
    filled = course / "filled.csv"
    filled.write_text((course / "grades_small.csv").read_text().replace(",3,,", ",3,0,").replace(",0,,", ",0,0,"))
    grades.export(filled, "nbgrader", course / "ours.csv")
    with open(course / "ours.csv", newline="") as file:
        assert next(csv.reader(file)) == header
