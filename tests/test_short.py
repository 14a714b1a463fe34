"""assets/make_short.py: verifiers can judge its tasks, its parts are disjoint, and it repeats itself."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

from data import Task, load_splits, verify_batch
from support.answers import question_key

SCRIPT = ROOT / "assets" / "make_short.py"
NAMES = "short_train", "short_test", "short_ood_test"


def write(folder, hash_seed: str) -> dict[str, str]:
    """Run the script as its docstring says; the text of each file."""
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], env=os.environ | {"PYTHONHASHSEED": hash_seed},
                   check=True, capture_output=True)
    return {name: (folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in NAMES}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write(tmp_path_factory.mktemp("short"), "1")


@pytest.fixture(scope="module")
def parts(texts):
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}


def task(row: dict) -> Task:
    choices, tests = (tuple(row[name]) if name in row else None for name in ("choices", "tests"))
    return Task(row["id"], "short", row["domain"], row["question"], choices, row["answer"], tests)


def replies(row: dict) -> tuple[str, str]:
    """What the question asks for, the shown line with its gap filled in, and the same with another answer."""
    if row["domain"] == "code":
        program = f"```python\n{row['answer']}```"
        return program, program.replace("return", "return 1,")
    if row["domain"] == "qa":
        return f"#### ({row['answer']})", f"#### ({'BCA'['ABC'.index(row['answer'])]})"
    line = row["question"].splitlines()[-1]
    assert line[:5] == "#### " and line.split(" = ")[1] in ("___", "?")
    return tuple(f"{line.split(' = ')[0]} = {answer}" for answer in (row["answer"], float(row["answer"]) + 1))


def test_the_same_files_for_every_hash_seed(texts, tmp_path):
    assert write(tmp_path, "2") == texts


def test_sizes_and_kinds(parts):
    kinds = {name: Counter((row["domain"], row["kind"]) for row in rows) for name, rows in parts.items()}
    assert {name: (len(rows), len(kinds[name])) for name, rows in parts.items()} == {
        "short_train": (420, 42), "short_test": (210, 42), "short_ood_test": (105, 15)}
    assert kinds["short_train"].keys() == kinds["short_test"].keys()
    assert not kinds["short_train"].keys() & kinds["short_ood_test"].keys()  # kinds nobody is trained on
    for name, size in (("short_train", 140), ("short_test", 70), ("short_ood_test", 35)):
        assert Counter(row["domain"] for row in parts[name]) == {"math": size, "qa": size, "code": size}


def test_no_question_occurs_twice(parts):
    keys = [question_key(row["question"], row.get("choices")) for rows in parts.values() for row in rows]
    assert Counter(keys).most_common(1)[0][1] == 1


def test_train_and_test_share_no_subject_within_a_kind(parts):
    """Not in another wording; the subject is the line, the word or the name of the function."""

    def subject(row: dict) -> str:
        text = row["question"]
        if row["domain"] == "code":
            return row["answer"].split("(")[0]
        if row["domain"] == "math":
            return text.splitlines()[-1].split(" = ")[0]
        return text.splitlines()[0].removesuffix(" belong?").removesuffix("?").split()[-1]

    subjects = Counter((row["domain"], row["kind"], subject(row)) for rows in parts.values() for row in rows)
    assert len(subjects) == 735 and set(subjects.values()) == {1}


def test_the_verifiers_take_what_was_asked_for_and_nothing_else(parts):
    rows = [row for name in parts for row in parts[name]
            if row["domain"] != "code" or name != "short_train"]  # the loader runs those
    right, wrong = zip(*map(replies, rows))
    assert verify_batch(list(map(task, rows)), right) == [1.0] * len(rows)
    assert verify_batch(list(map(task, rows)), wrong) == [0.0] * len(rows)


def test_code_tests_tell_numbers_apart(parts):
    """The function of one task fails under the name of another of its kind: the tests see the number."""
    rows = [row for rows in parts.values() for row in rows if row["domain"] == "code"]
    pairs = [(row, other) for row, other in zip(rows, rows[1:]) if row["kind"] == other["kind"]]
    replies = [other["answer"].replace(other["answer"].split("(")[0], row["answer"].split("(")[0], 1)
               for row, other in pairs]
    rewards = verify_batch([task(row) for row, _ in pairs], replies)
    assert [row["id"] for (row, _), reward in zip(pairs, rewards) if reward] == []


def test_the_loader_takes_every_row_as_it_is(texts, parts, tmp_path):
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    train, test, dropped = load_splits(*(str(tmp_path / f"{name}.jsonl") for name in NAMES[::2]))
    assert (len(train), len(test), dropped) == (420, 315, {})
    assert Counter(t.dataset for t in test) == {"short": 210, "short_ood": 105}
    questions = {row["question"] for rows in parts.values() for row in rows}
    assert {t.question for t in train + test} == questions  # nothing had to be added to say what tests call
