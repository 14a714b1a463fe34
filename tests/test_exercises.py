"""The exercises' graders, proven: the right body passes, a blank says so, mistakes get their messages."""

import ast
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "exercises"))

import course
from mistakes import MISTAKES

EXERCISES = {exercise.title: exercise for exercise in course.EXERCISES}
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


def fault_of(title, old, new, seed=0):
    return course.grade(EXERCISES[title], with_mistake(EXERCISES[title], old, new), seed)


@pytest.mark.parametrize("title", EXERCISES)
def test_the_right_body_passes_and_the_blank_says_which_it_is(title):
    exercise = EXERCISES[title]
    assert course.grade(exercise, source(exercise)) == ""
    assert course.is_blank(course.blank(source(exercise), exercise), exercise)
    fault = course.grade(exercise, course.blank(source(exercise), exercise))
    assert fault.startswith(f"{course.label(exercise)}: ") and fault.endswith("is still blank")


@pytest.mark.parametrize("title", EXERCISES)
def test_a_mistake_of_each_exercise(title):
    old, new, message = MISTAKES[title][0]
    assert message in fault_of(title, old, new)


@pytest.mark.slow
@pytest.mark.parametrize("title,old,new,message", CASES)
def test_every_mistake_gets_its_own_message(title, old, new, message):
    assert message in fault_of(title, old, new)
    assert message in fault_of(title, old, new, seed=11)
