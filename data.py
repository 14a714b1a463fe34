"""Tasks, labels, prompts, what earns a reward, and loading: all that MemReward knows about questions.

A task is a question with, perhaps, its label: a reference answer (math, qa) or assert tests (code). The label
is what MemReward economises: `hide_labels` takes it away for good, and `verify` refuses a task that has none.
Behind the door stand the questions that come with the project, support/world.py (the built-in small world)
and support/benchmarks.py (thirteen sets of the hub), and how answers are judged. A domain of your own is an
instruction in INSTRUCTIONS and a function in VERIFIERS.
"""

import itertools
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from support import benchmarks, world
from support.answers import after_thought, equal_math, final_choice, final_math, math_key, question_key
from support.benchmarks import LETTERS, STREAMED
from support.jsonl import NO_LABEL, file_rows, labels_first, task_rows
from support.sandbox import code_key, find_program, name_functions, run_programs, with_context


@dataclass(frozen=True)
class Task:
    """One question. `answer` (number, expression or letter) and `tests` (assert lines) are its label."""

    id: str
    dataset: str
    domain: str  # math, qa, code, or one of your own: see VERIFIERS
    question: str
    choices: tuple[str, ...] | None = None  # of a qa task; the answer is a letter
    answer: str | None = None
    tests: tuple[str, ...] | None = None

    @property
    def labelled(self) -> bool:
        """Is there anything to verify a response with?"""
        return (self.tests if self.domain == "code" else self.answer) is not None


def hide_labels(
    tasks: Sequence[Task], ratio: float, seed: int, picked: Sequence[str] | None = None
) -> list[Task]:
    """Keep the labels of round(ratio * n) of the n tasks that have one (at least 1); remove all others.

    Args:
        ratio: in (0, 1]. seed: of the draw; Python's global random state stays as it was.
        picked: ids of tasks in order of worth, an id counts once; the first that have a label keep it, and
            nothing is drawn.
    Returns:
        all tasks in their order, those that never had a label, too; of a task nothing but its label goes.
    Raises:
        ValueError: the ratio is outside its range, no task has a label, or too few of those are picked.

    >>> tasks = [Task(str(i), "demo", "math", f"{i} + {i}?", answer=str(2 * i)) for i in range(10)]
    >>> sum(task.labelled for task in hide_labels(tasks, ratio=0.2, seed=0))
    2
    >>> [task.id for task in hide_labels(tasks, 0.2, 0, picked=["7", "3", "5"]) if task.labelled]
    ['3', '7']
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"label_ratio: {ratio} is outside (0, 1]; 0.2 keeps one label in five")
    labelled = [task.id for task in tasks if task.labelled]
    if not labelled:
        raise ValueError("label_ratio: no task has a label that could be kept")
    budget = max(1, round(ratio * len(labelled)))
    if picked is None:
        keep = set(random.Random(f"labels {seed}").sample(labelled, budget))
    else:
        have = set(labelled)
        keep = set([name for name in dict.fromkeys(picked) if name in have][:budget])
        if len(keep) < budget:
            raise ValueError(f"label_pick: {len(keep)} labelled tasks are picked, {budget} keep their label")
    return [task if task.id in keep else replace(task, answer=None, tests=None) for task in tasks]


def spend_labels(
    tasks: Sequence[Task], ratio: float, seed: int, picked: Sequence[str] | None = None, partly: bool = False
) -> tuple[list[Task], str]:
    """The training tasks as training may see them, and in words which labels they keep.

    An experiment starts from tasks that all have a label and hides most of them: `hide_labels`. Where some
    have none from the start (`partly`: among those left out) it is no experiment: every label is used.
    """
    labelled = sum(task.labelled for task in tasks)
    if labelled and (partly or labelled < len(tasks)):
        return list(tasks), (f"all {labelled} labels of {len(tasks)} training tasks are used; label_ratio "
                             f"hides labels only where every task has one")
    hidden = hide_labels(tasks, ratio, seed, picked)
    chosen = "drawn with the seed" if picked is None else "picked"
    kept = sum(task.labelled for task in hidden)
    return hidden, f"{kept} of {labelled} labels are kept, {chosen}; the others are gone"


# ---------------------------------------------------------------------------------------------------- prompts

INSTRUCTIONS = {
    "math": "Think step by step, then give the final number after ####.",
    "qa": "Think step by step, then give the letter of the right choice after ####.",
    "code": "Think step by step, then give the function in one ```python block.",
}


def make_prompt(task: Task) -> str:
    """The user's message for a task: question, choices, instruction. It never depends on the label."""
    choices = "".join(f"\n({letter}) {text}" for letter, text in zip(LETTERS, task.choices or ()))
    return f"{task.question}{choices}\n{INSTRUCTIONS[task.domain]}"


# -------------------------------------------------------------------------------------------------- verifiers


def verify_math(response: str, answer: str) -> float:
    r"""1.0 if the response's final answer equals the reference, else 0.0; never raises on a response.

    The final answer stands behind the last `####` or in the last `\boxed{}`, and behind any thought; one that
    is denied, hedged or retracted is none. Numbers and expressions compare by value.

    >>> cases = [("#### $1,234.50 a day", "1234.5"), (r"so $x = \boxed{5}$.", "5"),
    ...          (r"\boxed{(x+1)^2}", "x^2+2x+1"), ("#### 5 or 6", "5"), ("It is 5.", "5"),
    ...          ("<think>#### 5", "5"), (r"\boxed{(2,1)}", "(1,2)")]
    >>> [verify_math(*case) for case in cases]
    [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    _, final = final_math(after_thought(response))  # "" where there is none
    return float(equal_math(final, answer))


def verify_qa(response: str, answer: str, choices: Sequence[str] | None = None) -> float:
    r"""1.0 if the response's last statement names the reference letter alone, or its choice's text.

    >>> right = ["#### b", "B) Paris", r"\boxed{\text{(B)}}", "The answer is B.", "A? No. **B**",
    ...          "#### Paris"]
    >>> [verify_qa(response, "B", ("Rome", "Paris")) for response in right]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> wrong = ["#### A or B", "#### none", "The answer is a dog", "The answer is not A",
    ...          "I think so", "A, B"]
    >>> sum(verify_qa(response, "A") + verify_qa(response, "I") for response in wrong)
    0.0
    """
    _, _, letter = final_choice(after_thought(response), choices or ())  # None where there is none
    return float(letter == answer.strip("() .").upper())


def extract_code(response: str) -> str:
    """A response's program: its last code block that defines something, behind any thought, or ""."""
    return find_program(after_thought(response))


def verify_code(response: str, tests: Sequence[str], timeout: float = 5.0) -> float:
    """1.0 if the program in `response` passes the `tests` (statements with asserts) in `timeout` seconds of
    processor time, else 0.0. What confines it, and what that does not cover: support/sandbox.py and
    docs/verifiers.md.

    >>> verify_code("def double(x):\\n    return 2 * x", ["assert double(4) == 8"])
    1.0
    >>> verify_code("import sys\\nsys.exit(0)", ["assert double(4) == 8"])
    0.0
    """
    return run_programs([extract_code(response)], [tests], timeout)[0]


# function(response, answer) -> 0 or 1; of qa also the choices, of code the tests instead of the answer.
# Add your own domain here and to INSTRUCTIONS; its verifier gets what stands behind a thought.
VERIFIERS: dict[str, Callable[..., float]] = {"math": verify_math, "qa": verify_qa, "code": verify_code}


def verify(task: Task, response: str) -> float:
    """1.0 if the response is right, else 0.0. A task without a label raises ValueError.

    >>> verify(Task("1", "demo", "math", "6 * 7?", answer="42"), "six sevens\\n#### 42")
    1.0
    """
    return verify_batch([task], [response])[0]


def verify_batch(tasks: Sequence[Task], responses: Sequence[str]) -> list[float]:
    """`verify` for many responses; programs run several at a time, equal ones only once."""
    for task in tasks:
        if not task.labelled:
            raise ValueError(f"task {task.id} has no label to verify a response with")
    rewards, code = [0.0] * len(tasks), []
    for i, (task, response) in enumerate(zip(tasks, responses, strict=True)):
        verifier, label = VERIFIERS[task.domain], task.tests if task.domain == "code" else task.answer
        if verifier is verify_code:
            code.append(i)  # all together
        else:
            more = (task.choices,) if task.domain == "qa" else ()
            rewards[i] = float(verifier(after_thought(response), label, *more))
    programs = [with_context(extract_code(responses[i]), tasks[i].question, tasks[i].tests) for i in code]
    for i, reward in zip(code, run_programs(programs, [tasks[i].tests for i in code])):
        rewards[i] = reward
    return rewards


def split_response(response: str, domain: str, choices: Sequence[str] | None = None) -> tuple[str, str]:
    """(thinking, answer): what stands before the final answer's marker, and the final answer or "".

    >>> split_response("6 * 7 is 42.\\n#### 42", "math")
    ('6 * 7 is 42.\\n', '42')
    """
    text = after_thought(response)
    if not text:
        return response, ""
    if domain == "math":
        start, answer = final_math(text)
    elif domain == "qa":
        start, answer, _ = final_choice(text, choices or ())
    elif domain == "code":
        answer = find_program(text)
        start = text.find("```") if "```" in text else 0 if answer else len(text)
    else:
        before, marker, answer = text.rpartition("####")
        start, answer = (len(before), answer.strip()) if marker else (len(text), "")
    return response[: len(response) - len(text) + start], answer


def answer_key(task: Task, response: str) -> str | None:
    """What counts as the same answer: the expression, the letter, the program's syntax tree, or None.

    >>> task = Task("1", "demo", "math", "6 * 7?")
    >>> answer_key(task, "#### 42") == answer_key(task, "#### 42.0 apples"), answer_key(task, "42?")
    (True, None)
    """
    text = after_thought(response)
    if task.domain == "math":
        return math_key(final_math(text)[1])
    if task.domain == "qa":
        return final_choice(text, task.choices or ())[2]
    if task.domain == "code":
        return code_key(find_program(text))
    answer = split_response(text, task.domain)[1] or text  # a verifier of your own may read all of it
    return " ".join(answer.casefold().split()) or None


# ---------------------------------------------------------------------------------------------------- loading


def small_world(part: str, seed: int) -> Iterator[world.Demonstration]:
    """The built-in small world: endless questions with imperfect answers, drawn by the seed; see
    support/world.py. Parts never share a question: "train", "test", "pretrain" (what the built-in policy has
    seen), "ood" (the same kinds of question in a wording that no other part has)."""
    for item in world.small_world(part, seed):
        yield replace(item, task=Task(**item.task))


def _task_of(mapping: Callable[[dict], dict | None]) -> Callable[[dict], Task | None]:
    return lambda row: (fields := mapping(row)) and Task(**{"id": "", "dataset": ""} | fields)


# Thirteen sets of the hub, each with .task(row): a Task without id, or None where the row is not wanted.
BENCHMARKS = {name: benchmark._replace(task=_task_of(benchmark.task))
              for name, benchmark in benchmarks.BENCHMARKS.items()}


def _names(names: str) -> list[str]:
    """Those of a comma-separated list, each once."""
    found = list(dict.fromkeys(name for part in names.split(",") if (name := part.strip())))
    for name in found:
        if name not in ("world", "world_ood", *BENCHMARKS) and Path(name).suffix != ".jsonl":
            raise ValueError(f"tasks: {name!r} is neither 'world' nor 'world_ood' nor the path of a .jsonl "
                             f"file nor a benchmark: {', '.join(BENCHMARKS)}")
    return found


def _rows(name: str, split: str, limit: int | None, seed: int) -> list[Task | str] | Iterator[Task | str]:
    """All of one set's part: a list, to be drawn from, or a stream; for a row without a task the reason."""
    if name == "world":
        return [item.task for item in itertools.islice(small_world(split, seed), limit or 600)]
    if name == "world_ood":
        if split == "train":
            raise ValueError("tasks: world_ood is for testing only; name it in --ood")
        return [item.task for item in itertools.islice(small_world("ood", seed), limit or 600)]
    if name in BENCHMARKS:
        if name in STREAMED and limit is None:
            raise ValueError(f"tasks: {name} is streamed and needs a limit, in the paper 750 and 450")
        found = benchmarks.hub_rows(name, split)
    else:
        found = file_rows(Path(name), split, _domains())
    rows = (row if isinstance(row, str) else Task(**row) for row in found)
    return rows if name in STREAMED else list(rows)


def _fresh(rows: Iterable[Task | str], seen: dict, dropped: Counter) -> Iterator[Task]:
    """The rows that can be verified and whose question is new; the others are counted by reason."""
    for row in rows:
        if isinstance(row, str):
            dropped[row] += 1
        elif row.domain in ("math", "qa") and row.labelled and not verify(row, rf"\boxed{{{row.answer}}}"):
            dropped["no usable answer"] += 1  # no response could equal it
        elif reason := seen.get((key := question_key(row.question, row.choices), row.labelled)):
            dropped[reason + NO_LABEL * (not row.labelled)] += 1
        else:
            seen |= {(key, labelled): "asked before" for labelled in (True, False)}
            yield row


def _named(task: Task) -> Task:
    """A code task whose question names what its tests call, with and without its label: a name that nobody
    could guess is part of the question. Of the reference solution nothing is told."""
    if task.domain != "code" or not task.tests:
        return task
    return replace(task, question=name_functions(task.question, task.tests))


def _draw(name: str, split: str, rows: Iterable[Task | str], limit: int | None, seed: int, seen: dict,
          dropped: Counter) -> list[Task]:
    """At most `limit` tasks of a set: fresh ones, and of code those whose reference passes its tests."""
    if isinstance(rows, list) and limit is not None and limit < len(rows):
        rows = random.Random(f"{split} {seed}").sample(rows, len(rows))  # the next replaces a dropped one
    kept, parts = [], labels_first(rows, limit) if isinstance(rows, list) else [(rows, limit)]
    with tqdm(desc=f"{name} {split}", unit=" tasks", delay=3, leave=False) as bar:  # seen if it takes long
        for part, most in parts:
            fresh = _fresh(part, seen, dropped)
            room = sys.maxsize if most is None else max(most, len(kept) + 1)  # none would be an experiment
            while chunk := list(itertools.islice(fresh, min(32, room - len(kept)))):
                checked = [task for task in chunk if task.domain == "code" and task.answer and task.tests]
                passed = verify_batch(checked, [task.answer for task in checked])
                failed = {task.id for task, reward in zip(checked, passed) if not reward}
                dropped["reference fails its tests"] += len(failed)
                kept += [_named(task) for task in chunk if task.id not in failed]
                bar.update(len(chunk))
    if not kept:
        left = f" left: {dict(+dropped)}" if +dropped else "; of a .jsonl file three in ten labels test"
        raise ValueError(f"tasks: {name} has no {split} tasks{left}")
    return kept


def _unique(tasks: list[Task]) -> list[Task]:
    """The tasks, or ValueError where two have one id: memory and sampling know tasks by their ids."""
    for task_id, count in Counter(task.id for task in tasks).most_common(1):
        if count > 1:
            raise ValueError(f"tasks: {count} tasks have the id {task_id!r}; give each set ids of its own")
    return tasks


def load_tasks(name_or_path: str, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
    """Load the train or test tasks of "world" (built in; of "world_ood" test tasks alone, see `small_world`),
    a benchmark, a JSONL file, or several.

    A JSONL line holds the fields of `Task` (id, domain and question at least). Of NAME_train.jsonl or
    NAME_test.jsonl, the file of the split is read; any other file is cut by the checksum of the ids, 70 % of
    them for training. The benchmarks in CUT_BY_HASH have one split, cut by a checksum: 50 % train, 30 % test,
    and the paper's 20 % for validation unused. Left out is what cannot be verified, and a question's
    repetition; `load_splits` counts these.

    Args:
        name_or_path: comma-separated: "world", names of BENCHMARKS, paths of .jsonl files.
        split: "train" or "test".
        limit: at most so many tasks of each set, but never fewer than a partly labelled one has labels; None
            is all of them, 600 tasks of the world.
        seed: of the draw of training tasks. Test tasks, and a stream's first, are the same for every seed.
    Raises:
        ValueError, OSError: one line that names the set, or the file and its line, and what to do.

    >>> [task.domain for task in load_tasks("world", "test", limit=3)]
    ['math', 'qa', 'code']
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {split!r} is neither 'train' nor 'test'")
    seed, tasks = seed if split == "train" else 0, []
    for name in _names(name_or_path):
        tasks += _draw(name, split, _rows(name, split, limit, seed), limit, seed, {}, Counter())
    return _unique(tasks)


def load_splits(
    tasks: str, ood: str = "", train_limit: int | None = None, test_limit: int | None = None, seed: int = 0
) -> tuple[list[Task], list[Task], dict[str, dict[str, int]]]:
    """Training tasks, test tasks, and the rows dropped, by set and reason: {"gsm8k": {"in a test set": 3}}.

    No training question occurs in a test set (in all of its test part, drawn or not; of a stream, in what was
    read), nor twice in training (of copies one with a label stays): the label that one keeps would be the
    other's. A test set holds each question once, so that none counts double; two test sets may share one, so
    that no result depends on which others are tested.

    Args:
        tasks: sets to train on and to test, as in `load_tasks`; ood: sets to test only, out of domain.
        train_limit, test_limit: at most so many tasks of each set; the paper's are 750 and 450.
        seed: of the draw of training tasks; test tasks are the same for every seed.
    """
    names, others = _names(tasks), _names(ood)
    if both := set(names) & set(others):
        raise ValueError(f"ood: {', '.join(sorted(both))} also stands in tasks, which makes it in domain")
    dropped, seen, train, test = {name: Counter() for name in names + others}, {}, [], []
    for name in tqdm(names + others, "test sets", delay=3, leave=False):
        rows = _rows(name, "test", test_limit, 0)
        drawn = _draw(name, "test", rows, test_limit, 0, {}, dropped[name])
        known = [task for task in (rows if isinstance(rows, list) else drawn) if isinstance(task, Task)]
        seen.update({(question_key(task.question, task.choices), labelled): "in a test set"
                     for task in known for labelled in (True, False)})
        test += drawn
    loaded = {name: _rows(name, "train", train_limit, seed) for name in names}
    told = (row for rows in loaded.values() if isinstance(rows, list) for row in rows
            if isinstance(row, Task) and row.labelled)  # its copy without a label may come first
    seen = {(question_key(row.question, row.choices), False): "asked before" for row in told} | seen
    for name, rows in tqdm(loaded.items(), "training sets", delay=3, leave=False):
        train += _draw(name, "train", rows, train_limit, seed, seen, dropped[name])
    _unique(train + test)
    return train, test, {name: dict(+reasons) for name, reasons in dropped.items() if +reasons}


def _domains() -> list[str]:
    return [name for name in VERIFIERS if name in INSTRUCTIONS]


def read_jsonl(path: Path) -> list[Task]:
    """The tasks of a JSONL file, one object a line: see `support.jsonl.task_rows`."""
    return [Task(**fields) for fields in task_rows(path, _domains())]
