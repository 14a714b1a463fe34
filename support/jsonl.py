"""What people's files hold: lines of JSON, tasks, and labels in the forms in which people write them."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from support.answers import LETTERS
from support.sandbox import signatures

NO_LABEL = ", no label"  # ends the reason where an unlabelled task is dropped: its file is no experiment


def json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """(number, value) of each line that is not empty; errors name the file and the line.

    A line ends at a newline and at nothing else: U+2028 and U+0085 are text. A byte-order mark is skipped.
    """
    if not path.is_file():
        raise FileNotFoundError(f"tasks: there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from None
            yield number, value


def written(number: float) -> str:
    """A number as one would write it: no exponent, all its digits.

    >>> [written(number) for number in (12, -0.5, 1e-7, 3.0)]
    ['12', '-0.5', '0.0000001', '3.0']
    """
    if not abs(number) < 1e100:
        raise ValueError(f"the number {number!r} is no answer; write it as a string")
    return f"{Decimal(repr(number)):f}"


def letter_of(label: str, choices: tuple[str, ...]) -> str:
    """The letter that a label means: a letter, a number from 1, or a choice's text.

    Raises ValueError where it is none of them, or two that differ: choices 2, 3, 4 and the label "3". A
    capital letter is a letter, whatever the choices say.

    >>> [letter_of(label, ("ice", "dry wood", "9")) for label in ("B", "(b)", "2", "Dry wood")]
    ['B', 'B', 'B', 'B']
    """
    letters, text = LETTERS[: len(choices)], label.strip()
    bare = text.strip("().")
    if len(bare) == 1 and bare in letters:
        return bare
    found = {letters[i] for i, choice in enumerate(choices) if choice.strip().casefold() == text.casefold()}
    found |= {letter for i, letter in enumerate(letters, 1) if bare in (str(i), letter.lower())}
    if len(found) != 1:
        problem = "means two choices" if found else "is no choice"
        raise ValueError(f"the label {label!r} {problem}: write a letter from A to {letters[-1]} (or a "
                         f"number from 1, or the text of one choice)")
    return found.pop()


def task_rows(path: Path, domains: Sequence[str]) -> list[dict]:
    """The fields of the tasks of a JSONL file, one object a line; errors name the file and the line.

    A task's dataset is the name of its file, without _train or _test, unless the line says another. The label
    of a multiple-choice task may be a letter, a number from 1, or the text of one choice; a letter is stored.
    """
    rows: dict[str, dict] = {}
    for number, row in json_lines(path):
        try:
            fields = task_fields(row, re.sub("_(train|test)$", "", path.stem), domains)
            if fields["id"] in rows:
                raise ValueError(f"the id {fields['id']!r} stands there a second time")
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}:{number}: no task with id, domain and question ({error!r})") from None
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        rows[fields["id"]] = fields
    return list(rows.values())


def task_fields(row: dict, dataset: str, domains: Sequence[str]) -> dict:
    """A line's task as plain fields; ValueError says what is wrong with it."""
    choices, tests, answer = tuple(row.get("choices") or ()), tuple(row.get("tests") or ()), row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = written(answer)
    task_id, domain, question = row["id"], row["domain"], row["question"]
    dataset = row.get("dataset") or dataset
    texts = [task_id, dataset, question, "" if answer is None else answer, *choices, *tests]
    lists = all(isinstance(row.get(name) or [], list) for name in ("choices", "tests"))
    if not lists or not all(isinstance(text, str) for text in texts):
        raise ValueError("id, dataset, question, answer must be strings (answer: or a number), choices and "
                         "tests lists of strings")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{text!r} holds half a character (a lone surrogate)") from None
    if domain not in domains:
        raise ValueError(f"domain {domain!r} is not one of {', '.join(domains)}; one of your own "
                         f"stands in data.VERIFIERS and data.INSTRUCTIONS first")
    if len(choices) > len(LETTERS):
        raise ValueError(f"{len(choices)} choices are more than the {len(LETTERS)} that have letters, A to J")
    if domain == "qa" and answer is not None:
        if not choices and answer.strip() not in tuple(LETTERS):
            raise ValueError(f"a qa task's answer is one of its choices, and {answer!r} has none: give "
                             f"choices, or a domain of your own for free text")
        answer = letter_of(answer, choices) if choices else answer.strip()
    if domain == "code" and tests:
        signatures(tests)  # says what is wrong with them
    return {"id": task_id, "dataset": dataset, "domain": domain, "question": question,
            "choices": choices or None, "answer": answer, "tests": tests or None}


def file_rows(path: Path, split: str, domains: Sequence[str]) -> Iterator[dict | str]:
    """The fields of all tasks in one part of a JSONL file, and the reason where a task cannot test anything.

    Of NAME_train.jsonl and NAME_test.jsonl the file of the split is read; any other file is cut by the
    checksum of the ids, 70 % for training. A task without a label can be trained on.
    """
    if pair := re.fullmatch(r"(.*)_(?:train|test)", path.stem):
        path = path.with_name(f"{pair[1]}_{split}.jsonl")
    for fields in task_rows(path, domains):
        labelled = fields["tests" if fields["domain"] == "code" else "answer"] is not None
        trains = not labelled or zlib.crc32(fields["id"].encode()) % 10 < 7
        if not pair and trains != (split == "train"):
            continue
        if split == "test" and not labelled:
            yield "no label to test with"
        else:
            named = fields["id"].startswith((f"{path.stem}/", f"{fields['dataset']}/"))
            yield fields if named else fields | {"id": f"{path.stem}/{fields['id']}"}


def labels_first(rows: list, limit: int | None) -> list[tuple[list, int | None]]:
    """The parts in which tasks (or reasons for none) are taken, each with the number at which to stop: those
    with a label, all of them; then the others, up to the limit.

    Of two copies of a question the first stays, so this one has the label if any has.
    """
    bare = [row for row in rows if not isinstance(row, str) and not row.labelled]
    rest = [row for row in rows if isinstance(row, str) or row.labelled]
    return [(rest, None), (bare, limit)] if bare else [(rows, limit)]
