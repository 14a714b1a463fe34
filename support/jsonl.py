"""What people's files hold: lines of JSON, and labels in the forms in which people write them."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

LETTERS = "ABCDEFGHIJ"


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
