"""The table of wrong versions cannot rot: what each changes still stands in one place of its file."""

from collections import Counter
from pathlib import Path

import pytest
from mutants_table import TABLE

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", TABLE)
def test_every_mutant_is_another_program(file):
    tests, pairs = TABLE[file]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert [old for old, _ in pairs if text.count(old) != 1] == []
    assert max(Counter(pairs).values()) == 1 and all(old != new for old, new in pairs)
    for old, new in pairs:
        compile(text.replace(old, new), file, "exec")  # a slip in the table would pass for one that is caught
    assert all((ROOT / test).is_file() for test in tests)
