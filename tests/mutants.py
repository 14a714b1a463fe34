"""The tests, proven: wrong versions of the project, one by one, each of which a test must notice.

    python tests/mutants.py                     # all of tests/mutants_table.py: before a release
    python tests/mutants.py gnn grpo            # those of gnn.py and grpo.py
    python tests/mutants.py lab/log.py:284      # one, by its line

A temporary copy of the project is changed, and the tests that matter for the file run on it up to the first
that fails. The unchanged copy must pass first: otherwise a failure would say nothing. Linux and macOS only:
each try is a fork of one process that has torch imported already.
"""

import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from mutants_table import TABLE

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.95  # share of the wrong versions of each file that the tests must notice


def line_of(file: str, old: str) -> int:
    """The line of a file in which a mutant's old text begins."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


class QuickFirst:
    """A plugin of pytest: a file's quickest tests come first, by `seconds`, to which it adds its own."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Sort inside each file, so that what its tests share is made once."""
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), self.seconds.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report) -> None:
        """Setup, call and teardown of a test have ended."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def passes(copy: Path, tests: list[str], limit: float) -> tuple[bool, str]:
    """Run tests in a copy of the project, up to the first that fails: do they pass, and what does not. What
    takes more than `limit` seconds hangs, and does not pass."""
    import pytest

    seconds = copy.with_name("seconds.json")
    plugin = QuickFirst(json.loads(seconds.read_text()) if seconds.exists() else {})
    output, begin = copy.with_name("output"), time.monotonic()
    if not (child := os.fork()):
        os.setsid()
        os.chdir(copy)
        sys.path.remove(str(ROOT / "tests"))  # the copy's files are meant
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        code = 3
        try:
            code = int(pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests], [plugin]))
            if code == 0:
                seconds.write_text(json.dumps(plugin.seconds))
        finally:
            os._exit(code)
    done = status = 0
    while not done and time.monotonic() < begin + limit:
        time.sleep(0.02)
        done, status = os.waitpid(child, os.WNOHANG)
    try:
        os.killpg(child, signal.SIGKILL)  # it, and whatever it has started
    except ProcessLookupError:
        pass
    if not done:
        os.waitpid(child, 0)
        return False, "the time limit"
    said = output.read_text(errors="replace")
    if os.waitstatus_to_exitcode(status) in (3, 4, 5):  # no test has failed, pytest itself has
        raise SystemExit(said)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return status == 0, failed[1] if failed else said[-300:]


def limits(copy: Path, files: list[str]) -> dict[str, float]:
    """Seconds for the tests of each file: three times as long as without a mistake, where all must pass."""
    fine, why = passes(copy, list(dict.fromkeys(test for file in files for test in TABLE[file][0])), 3600)
    if not fine:
        raise SystemExit(f"a test fails without any mistake: {why}")
    seconds = json.loads(copy.with_name("seconds.json").read_text())
    taken = {file: sum(took for test, took in seconds.items() if test.split("::")[0] in TABLE[file][0])
             for file in files}
    return {file: 60 + 3 * took for file, took in taken.items()}


def main(names: list[str]) -> None:
    """Try the mutants of the files or lines that are named; print the score by file and what survived."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    AutoModelForCausalLM.from_pretrained(ROOT / "assets" / "policy")  # whose code no try imports anew
    importlib.import_module("torch._dynamo")
    importlib.import_module("accelerate")
    # bytecode is known as stale by the second alone
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    chosen = [(file, f"{file}:{line_of(file, old)}", old, new) for file, (_, pairs) in TABLE.items()
              for old, new in pairs]
    chosen = [row for row in chosen if not names or {Path(row[0]).stem, row[0], row[1]} & set(names)]
    caught, survivors = defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
        limit = limits(copy, list(dict.fromkeys(file for file, *_ in chosen)))
        for file, place, old, new in chosen:
            text = (copy / file).read_text(encoding="utf-8")
            (copy / file).write_text(text.replace(old, new), encoding="utf-8")
            survived, by = passes(copy, TABLE[file][0], limit[file])
            (copy / file).write_text(text, encoding="utf-8")
            caught[file].append(not survived)
            change = f"{place}: {old!r} -> {new!r}"
            print(f"SURVIVED {change}" if survived else f"{change} caught by {by}", flush=True)
            survivors += [change] * survived
    print("\n".join(["", "survivors:", *survivors] if survivors else ["", "no survivor"]))
    for file, found in caught.items():
        print(f"{file:<26}{sum(found):>4} of {len(found):>3}  {sum(found) / len(found):.0%}")
    if poor := [file for file, found in caught.items() if sum(found) < GOAL * len(found)]:
        raise SystemExit(f"below {GOAL:.0%}: {', '.join(poor)}")


if __name__ == "__main__":
    main(sys.argv[1:])
