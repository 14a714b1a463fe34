"""The exercises' graders, proven: the right body passes, a blank says so, mistakes get their messages."""

import ast
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "exercises"))

import course
import experiments
from mistakes import MISTAKES

EXERCISES = {exercise.title: exercise for exercise in course.EXERCISES}
BLANK_1 = 'raise NotImplementedError("exercise 1, majority_key: majority_key is still blank")'
CASES = [(title, *mistake) for title in EXERCISES for mistake in MISTAKES[title]]


def source(exercise):
    return (ROOT / exercise.file).read_text()


def with_mistake(exercise, old, new):
    """The exercise's file with the mistake, which stands in one place of its functions."""
    text, tree = source(exercise), ast.parse(source(exercise))
    lines = text.splitlines(keepends=True)
    for function in (course.find(tree, name) for name in exercise.names):
        first, last = function.lineno - 1, function.end_lineno
        before, body, after = map("".join, (lines[:first], lines[first:last], lines[last:]))
        if old in body:
            assert body.count(old) == 1, old
            return before + body.replace(old, new) + after
    raise AssertionError(f"{exercise.title}: {old!r} stands there no more")


def test_a_crash_names_the_line_and_the_case_of_the_grader():
    exercise = EXERCISES["majority_key"]
    text = course.blank(source(exercise), exercise).replace(BLANK_1, "return keys[99]")
    said = r"IndexError: .* \(line (\d+)\), in the case of exercises/graders.py, line (\d+)"
    line, case = map(int, re.fullmatch(said, course.grade(exercise, text)).groups())
    assert text.splitlines()[line - 1].strip() == "return keys[99]"
    assert "f([" in (ROOT / "exercises" / "graders.py").read_text().splitlines()[case - 1]


def fault_of(title, old, new, seed=0):
    return course.grade(EXERCISES[title], with_mistake(EXERCISES[title], old, new), seed)


@pytest.mark.parametrize("title", EXERCISES)
def test_the_right_body_passes_and_the_blank_says_which_it_is(title):
    exercise = EXERCISES[title]
    assert course.grade(exercise, source(exercise)) == ""
    assert course.is_blank(course.blank(source(exercise), exercise), exercise)
    fault = course.grade(exercise, course.blank(source(exercise), exercise))
    assert fault.startswith(f"{course.label(exercise)}: ") and fault.endswith("is still blank")


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout") / "class"
    course.main(["handout", str(folder)])
    return folder


@pytest.mark.parametrize("title", EXERCISES)
def test_no_exercise_needs_another(title, handout, monkeypatch):
    """The right body passes in a project in which all others are blank, and a blank does not touch them."""
    exercise = EXERCISES[title]
    monkeypatch.setattr(course, "ROOT", handout)
    assert course.grade(exercise, source(exercise)) == ""


@pytest.mark.parametrize("title", EXERCISES)
def test_a_mistake_of_each_exercise(title):
    old, new, message = MISTAKES[title][0]
    assert message in fault_of(title, old, new)


@pytest.mark.slow
@pytest.mark.parametrize("title,old,new,message", CASES)
def test_every_mistake_gets_its_own_message(title, old, new, message):
    assert message in fault_of(title, old, new)
    assert message in fault_of(title, old, new, seed=11)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own():
    for title in EXERCISES:
        assert len(MISTAKES[title]) >= 3
    assert sum(exercise.points for exercise in course.EXERCISES) == 100
    assert f"each of the {len(CASES)} mistakes" in (ROOT / "exercises" / "README.md").read_text()


def test_a_blank_keeps_signature_and_docstring_and_nothing_of_the_body():
    for exercise in course.EXERCISES:
        before, after = ast.parse(source(exercise)), ast.parse(course.blank(source(exercise), exercise))
        for name in exercise.names:
            old, new = course.find(before, name), course.find(after, name)
            assert ast.dump(old.args) == ast.dump(new.args)
            assert ast.get_docstring(old) == ast.get_docstring(new)
            assert len(new.body) == 1 + (ast.get_docstring(old) is not None)
            course.find(before, name).body = course.find(after, name).body = []
        assert ast.dump(before) == ast.dump(after)  # the rest of the file is as it was


def test_the_handout_is_blank_and_holds_no_solution(handout):
    for exercise in course.EXERCISES:
        assert course.is_blank((handout / exercise.file).read_text(), exercise)
    names = {path.name for path in handout.rglob("*")}
    assert not names & {"mistakes.py", "tests", ".git", "__pycache__"} and "course.py" in names
    text = "\n".join(path.read_text() for path in handout.rglob("*.[pm][yd]"))
    for solution in ("topk(min(k, size))", "torch.minimum(plain", "masked_fill(equal", "torch.cdist(rows"):
        assert solution not in text
    with pytest.raises(SystemExit, match="exists already"):
        course.main(["handout", str(handout)])


def test_start_leaves_what_a_student_has_written(tmp_path):
    folder, exercise = tmp_path / "student", EXERCISES["knn"]
    course.main(["start", "3", str(folder)])
    written = with_mistake(exercise, "memory.mT", "memory.mT * 1.0")
    (folder / "gnn.py").write_text(written)
    with pytest.raises(SystemExit, match="has work on exercise 3, knn already"):
        course.main(["start", "3", str(folder)])
    draft = course.blank(source(exercise), exercise).replace("    raise Not", "    x = 1\n    raise Not")
    half = course.blank(source(EXERCISES["messages"]), EXERCISES["messages"])
    half = re.sub(r"raise NotImplementedError\(.*edge_weights.*\)", "return cosines", half)  # one of two
    for which, text in (("3", draft), ("4", half)):  # unfinished work is work, too
        (folder / "gnn.py").write_text(text)
        with pytest.raises(SystemExit, match="has work on"):
            course.main(["start", which, str(folder)])
    (folder / "gnn.py").write_text(written)
    course.main(["start", "7", str(folder)])
    text = (folder / "gnn.py").read_text()
    assert course.is_blank(text, EXERCISES["metrics"]) and "memory.mT * 1.0" in text


def test_grading_a_hand_in_takes_its_functions_and_their_helpers_alone(tmp_path, capsys):
    hand_in = tmp_path / "ann"
    course.main(["handout", str(hand_in)])
    text = (hand_in / "memreward.py").read_text().replace("from collections import Counter", "import hashlib")
    text = text.replace(BLANK_1, "import collections\n"
                                 "    given = [key for key in keys if key is not None]\n"
                                 "    return most_common(collections.Counter(given))")
    text += "\n\ndef most_common(counts):\n    return max(counts, key=counts.get, default=None)\n"
    (hand_in / "memreward.py").write_text(text)
    (hand_in / "gnn.py").write_text("def knn(:\n")
    course.main(["grade", str(hand_in), "--seed", "5"])
    rows = capsys.readouterr().out.splitlines()[-16:]
    assert next(row.split() for row in rows if row.startswith("ann  ")) == ["ann", "4"] + ["0"] * 13 + ["4"]
    assert any("exercise 3, knn: gnn.py, line 1" in row for row in rows)
    assert any("hide_labels is still blank" in row for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in experiments.EXPERIMENTS if name != "exploit"])
def test_an_experiment_prints_its_table(name, capsys):
    experiments.EXPERIMENTS[name][0](150, 0)
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="other systems confine less")
@pytest.mark.parametrize("body,said", [
    ("return open({secret!r}).read()", "PermissionError"),
    ("import subprocess; return subprocess.run(['true'])", "Error"),
    ("import socket; return socket.socket()", "Function not implemented"),
    ("import os; os._exit(0)", "no verdict"),
    ("[0 for _ in iter(int, 1)]", "no verdict"),
    ("return bytearray(10**11)", "MemoryError"),
])
def test_a_hand_in_is_confined(tmp_path, monkeypatch, body, said):
    (tmp_path / "secret").write_text("the other hand-ins")
    exercise, body = EXERCISES["majority_key"], body.format(secret=str(tmp_path / "secret"))
    monkeypatch.setattr(course, "SECONDS", 1)
    text = course.blank(source(exercise), exercise).replace(BLANK_1, body)
    assert said in course.grade(exercise, text)
