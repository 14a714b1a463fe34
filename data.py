"""Tasks, prompts, verifiers, the built-in small world and the benchmarks: all that MemReward knows about questions.

A task is a question with, perhaps, its label: a reference answer (math, qa) or assert tests (code). The label is what
MemReward economises: `hide_labels` takes it away for good, and `verify` refuses a task that has none.
How answers are judged stands in support/answers.py (math, multiple choice) and support/sandbox.py (code). A domain of
your own is an instruction in INSTRUCTIONS and a function in VERIFIERS.
"""

import itertools
import json
import random
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from support.answers import last_boxes, question_key, split_response, text_key, verify_math, verify_qa
from support.sandbox import code_key, extract_code, parse_code, signatures, verify_code, verify_code_batch

__all__ = ["BENCHMARKS", "CUT_BY_HASH", "INSTRUCTIONS", "OUT_OF_DOMAIN", "VERIFIERS", "Task", "answer_key", "extract_code",
           "hide_labels", "load_splits", "load_tasks", "make_prompt", "parse_code", "reach_hub", "small_world", "split_response",
           "verify", "verify_batch", "verify_code", "verify_math", "verify_qa"]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Task:
    """One question. `answer` (a number, an expression or a letter) and `tests` (assert lines) are its label."""

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


def hide_labels(tasks: Sequence[Task], ratio: float, seed: int, order: Sequence[str] | None = None) -> list[Task]:
    """Keep the labels of round(ratio * n) of the n tasks that have one, at least one; remove all others for good. Which,
    is drawn with the seed, or where an `order` of all ids is given, the first.

    >>> tasks = [Task(str(i), "demo", "math", f"{i} + {i}?", answer=str(2 * i)) for i in range(10)]
    >>> sum(task.labelled for task in hide_labels(tasks, ratio=0.2, seed=0))
    2
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"label_ratio: {ratio} is outside (0, 1]; 0.2 keeps one label in five")
    labelled = [i for i, task in enumerate(tasks) if task.labelled]
    count = max(1, round(ratio * len(labelled)))
    if order is None:
        keep = set(random.Random(f"labels {seed}").sample(labelled, count))
    else:
        rows = {tasks[i].id: i for i in labelled}
        keep = {rows[id] for id in order[:count]}
    return [task if i in keep else replace(task, answer=None, tests=None) for i, task in enumerate(tasks)]


# ---------------------------------------------------------------------------------------------------- prompts

INSTRUCTIONS = {
    "math": "Think step by step, then give the final number after ####.",
    "qa": "Think step by step, then give the letter of the right choice after ####.",
    "code": "Think step by step, then give the function in one ```python block.",
}


def make_prompt(task: Task) -> str:
    """The user's message for a task: question, choices, instruction. It never depends on the label."""
    choices = "".join(f"\n({letter}) {choice}" for letter, choice in zip(LETTERS, task.choices or ()))
    return f"{task.question}{choices}\n{INSTRUCTIONS[task.domain]}"


# ---------------------------------------------------------------------------------------------------- verifiers

# function(response, answer) -> reward, of code (response, tests). Add your own domain here and to INSTRUCTIONS.
VERIFIERS: dict[str, Callable[..., float]] = {"math": verify_math, "qa": verify_qa, "code": verify_code}


def verify(task: Task, response: str) -> float:
    """1.0 if the response is right, else 0.0. A task without a label raises ValueError: no label is not a zero.

    >>> verify(Task("1", "demo", "math", "6 * 7?", answer="42"), "six sevens\\n#### 42")
    1.0
    """
    return verify_batch([task], [response])[0]


def verify_batch(tasks: Sequence[Task], responses: Sequence[str]) -> list[float]:
    """`verify` for many responses; programs run several at a time, and equal ones with equal tests only once."""
    for task in tasks:
        if not task.labelled:
            raise ValueError(f"task {task.id} has no label to verify a response with")
    rewards = [0.0 if task.domain == "code" else float(VERIFIERS[task.domain](response, task.answer))
               for task, response in zip(tasks, responses, strict=True)]  # fmt: skip
    code = [i for i, task in enumerate(tasks) if task.domain == "code"]
    for i, reward in zip(code, verify_code_batch([responses[i] for i in code], [tasks[i].tests for i in code])):
        rewards[i] = reward
    return rewards


def answer_key(task: Task, response: str) -> str | None:
    """What counts as the same answer: the number or expression, the letter, the program's syntax tree; None for none.

    >>> task = Task("1", "demo", "math", "6 * 7?")
    >>> answer_key(task, "#### 42") == answer_key(task, "#### 42.0 apples"), answer_key(task, "42?")
    (True, None)
    """
    return code_key(response) if task.domain == "code" else text_key(response, task.domain)


# ---------------------------------------------------------------------------------------------------- the small world
# Three domains of eight families each. A family is a kind of question with ONE typical mistake, and a probability of
# being right: the built-in policy was pre-trained on demonstrations that are right that often and else mostly make that
# very mistake. So a majority vote fails wherever the mistake is more common than the truth, while a memory can
# recognise the mistake on a similar question. README says how the tables below came about.

MISCONCEPTION = 0.85  # share of the wrong demonstrations that make the family's typical mistake
NAMES = "Ann Ben Cleo Dan Eva Finn Gina Hugo Ida Jon Kim Leo Mia Noah".split()
THINGS = "apples books cards coins eggs flags games hats keys lamps nuts pens rings toys".split()

MATH = [  # probability of being right, right steps, mistaken steps (x, y: results of earlier steps), two wordings
    (0.35, "a * b", "a + b",
     "{n} has {a} boxes with {b} {t} in each. How many {t} does {n} have?",
     "There are {a} bags and {b} {t} in every bag. How many {t} are there for {n}?"),
    (0.60, "a - b", "a + b",
     "{n} has {a} {t} and gives {b} of them to {m}. How many {t} are left?",
     "{n} had {a} {t} but lost {b}. How many {t} does {n} still have?"),
    (0.45, "b - a", "a + b",
     "{n} has {a} {t} and {m} has {b}. How many more {t} does {m} have?",
     "{n} had some {t}, found {a} more and now has {b}. How many {t} were there at first?"),
    (0.30, "a / b", "a - b",
     "{n} shares {a} {t} among {b} friends. How many {t} does each friend get?",
     "{n} puts {a} {t} in {b} equal rows. How many {t} are in one row?"),
    (0.70, "a + b; x + a", "a + b",
     "{n} has {a} {t}. {m} has {b} more than {n}. How many {t} have they together?",
     "{n} sold {a} {t} on day one and {b} more than that on day two. How many {t} in both days?"),
    (0.40, "a * b; x - c", "a * b; x + c",
     "{n} buys {a} packs of {b} {t} and breaks {c} of them. How many {t} are whole?",
     "{n} fills {a} trays with {b} {t} each and sells {c} {t}. How many {t} remain?"),
    (0.55, "a * b; c - x", "a + b; c - x",
     "{n} buys {a} {t} for {b} dollars each and pays with {c}. How many dollars come back?",
     "{n} has {c} dollars and takes {a} {t} that cost {b} each. How many dollars remain?"),
    (0.50, "b * c; a + x; y - d", "b * c; a + x",
     "{n} has {a} {t}, gets {b} bags of {c} more and gives {d} away. How many {t} now?",
     "{n} sees {a} {t}, then {b} boxes of {c} come in and {d} {t} go out. How many {t} stay?"),
]  # fmt: skip

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
KINDS = {"fruit": "apple pear plum cherry mango", "vegetable": "carrot onion leek potato bean",
         "bird": "crow duck eagle owl swan", "fish": "carp cod salmon shark trout"}  # fmt: skip
SEASONS, QUARTERS = ("winter", "spring", "summer", "autumn"), ("first", "second", "third", "fourth")
WORDS = [words.split() for words in (  # a word, its opposite, its synonym
    "big small large", "hot cold warm", "fast slow quick", "happy sad glad", "loud quiet noisy", "dark bright dim",
    "hard soft firm", "wet dry damp", "near far close", "old young aged", "thin thick slim", "brave timid bold")]


# Each draws what a question is about, the position of its right choice and of the mistaken one.
def _day(step: int):
    def draw(rng: random.Random) -> tuple[str, int, int]:
        i = rng.randrange(7)
        return DAYS[i], (i + step) % 7, (i - step) % 7

    return draw


def _season(rng: random.Random) -> tuple[str, int, int]:  # the mistake: the seasons of the other half of the earth
    i = rng.randrange(12)
    return MONTHS[i], (i + 1) // 3 % 4, ((i + 1) // 3 + 2) % 4


def _quarter(rng: random.Random) -> tuple[str, int, int]:  # the mistake: one too far
    i = rng.randrange(12)
    return MONTHS[i], i // 3, (i // 3 + 1) % 4


def _kind(rng: random.Random) -> tuple[str, int, int]:  # the mistake: fruit for vegetable, bird for fish
    i = rng.randrange(4)
    return rng.choice(list(KINDS.values())[i].split()), i, (1, 0, 3, 2)[i]


def _relation(rng: random.Random) -> tuple[str, int, int]:
    words, i = rng.choice(WORDS), rng.randrange(2)
    return f"{words[0]} and {words[1 + i]}", i, 1 - i


def _order(rng: random.Random) -> tuple[str, int, int]:
    low, high = sorted(rng.sample(range(1, 50), 2))
    return rng.choice([(f"{low} and {high}", 0, 2), (f"{high} and {low}", 2, 0)])


def _remainder(rng: random.Random) -> tuple[str, int, int]:  # the mistake: what is missing to the next multiple
    number = rng.choice([n for n in range(3, 50) if n % 4 in (1, 3)])
    return str(number), number % 4, 4 - number % 4


QA = [  # probability of being right, how to draw, choices, right thought, mistaken thought, two wordings
    (0.35, _day(1), DAYS, "after {about} is {choice}", "before {about} is {choice}",
     "which day comes after {about}?", "which day follows {about}?"),
    (0.60, _day(-1), DAYS, "before {about} is {choice}", "after {about} is {choice}",
     "which day comes before {about}?", "which day does {about} follow?"),
    (0.45, _season, SEASONS, "in the north {choice}", "in the south {choice}",
     "which season is {about} in?", "to which season does {about} belong?"),
    (0.70, _quarter, QUARTERS, "months from one give {choice}", "months from four give {choice}",
     "in which quarter of the year is {about}?", "which quarter of the year has {about}?"),
    (0.30, _kind, tuple(KINDS), "{about} is in the group {choice}", "{about} looks like {choice}",
     "what kind of thing is {about}?", "to which kind does {about} belong?"),
    (0.40, _relation, ("opposite", "same", "unrelated"), "{about} in meaning {choice}", "{about} in use {choice}",
     "how are the words {about} related?", "what are the words {about} to each other?"),
    (0.55, _order, ("less", "equal", "greater"), "first to second {choice}", "second to first {choice}",
     "how does the first of {about} compare to the second?", "of {about}, what is the first to the second?"),
    (0.50, _remainder, ("zero", "one", "two", "three"), "left over {choice}", "missing {choice}",
     "what is left of {about} after division by 4?", "which remainder has {about} divided by 4?"),
]  # fmt: skip

CODE = [  # probability of being right, right expression, mistaken one, right thought, mistaken thought, two wordings
    (0.35, "{x} * {y}", "{x} + {y}", "multiply", "add", "the product of {x} and {y}", "{x} times {y}"),
    (0.60, "{x} + {y}", "{x} * {y}", "add", "multiply", "the sum of {x} and {y}", "{x} plus {y}"),
    (0.45, "{y} - {x}", "{x} - {y}", "{y} minus {x}", "{x} minus {y}",
     "{x} taken away from {y}", "what is left of {y} without {x}"),
    (0.30, "max({x}, {y})", "min({x}, {y})", "use max", "use min",
     "the larger of {x} and {y}", "the greater one of {x} and {y}"),
    (0.70, "{z}[-{k}]", "{z}[{k}]", "count from the end", "count from the start",
     "item {k} of the list {z} from the end", "the item {k} from the back of the list {z}"),
    (0.40, "[v for v in {z} if v > {k}]", "[v for v in {z} if v < {k}]", "keep more than {k}", "keep less than {k}",
     "the items of the list {z} above {k}", "the list {z} without all that is {k} or less"),
    (0.55, "sum({z}) * {k}", "sum({z}) + {k}", "sum then times {k}", "sum then plus {k}",
     "the sum of the list {z} times {k}", "{k} times the total of the list {z}"),
    (0.50, "sorted({z})[-{k}:]", "sorted({z})[:{k}]", "sort and take the end", "sort and take the start",
     "the {k} largest items of the list {z} in order", "the top {k} of the list {z} in order"),
]  # fmt: skip
ARGUMENTS, LISTS = "a b c d g h m n p q".split(), "items values xs ys data row".split()


@dataclass(frozen=True)
class Demonstration:
    """A task of the small world, its family, and three responses: right, the typical mistake, and another slip."""

    task: Task
    family: str
    right: str
    mistake: str
    slip: str
    probability: float  # of being right

    def draw(self, rng: random.Random) -> str:
        """One imperfect demonstration, as the built-in policy is pre-trained on."""
        if rng.random() < self.probability:
            return self.right
        return self.mistake if rng.random() < MISCONCEPTION else self.slip


def _calculate(program: str, values: dict[str, int]) -> tuple[str, int]:
    """Write out the steps of a program; the result is 0 where a step leaves the small numbers the policy knows."""
    values, lines, result = dict(values), [], 0
    for name, step in zip("xyz", program.split("; ")):
        left, sign, right = step.split()
        left, right = values[left], values[right]
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]
        if result != int(result) or not 1 <= result <= 60 or (sign == "*" and max(left, right) > 9):
            return "", 0
        values[name] = result = int(result)
        lines.append(f"{left} {sign} {right} = {result}")
    return "\n".join(lines), result


def _math(rng: random.Random, family: int) -> Demonstration:
    probability, right, wrong, *wordings = MATH[family]
    result = wrong_result = 0
    while not (result and wrong_result and result != wrong_result):
        values = {"a": rng.randint(2, 20), "b": rng.randint(2, 20), "c": rng.randint(2, 40), "d": rng.randint(2, 9)}
        (lines, result), (wrong_lines, wrong_result) = _calculate(right, values), _calculate(wrong, values)
    n, m = rng.sample(NAMES, 2)
    question = rng.choice(wordings).format(n=n, m=m, t=rng.choice(THINGS), **values)
    slip = result + rng.choice([1, 2])  # a wrong last calculation
    task = Task("", "world", "math", question, answer=str(result))
    return Demonstration(task, f"math {family}", f"{lines}\n#### {result}", f"{wrong_lines}\n#### {wrong_result}",
                         f"{lines[: lines.rindex('=')]}= {slip}\n#### {slip}", probability)  # fmt: skip


def _qa(rng: random.Random, family: int) -> Demonstration:
    probability, draw, choices, thought, wrong_thought, *wordings = QA[family]
    about, right, wrong = draw(rng)
    slip = rng.choice([i for i in range(len(choices)) if i not in (right, wrong)])
    n, m = rng.sample(NAMES, 2)
    question = f"{n} asks {m}: " + rng.choice(wordings).format(about=about)
    respond = lambda thought, i: f"{thought.format(about=about, choice=choices[i])}\n#### {LETTERS[i]}"  # noqa: E731
    task = Task("", "world", "qa", question, choices=tuple(choices), answer=LETTERS[right])
    return Demonstration(task, f"qa {family}", respond(thought, right), respond(wrong_thought, wrong),
                         respond(thought, slip), probability)  # fmt: skip


def _code(rng: random.Random, family: int) -> Demonstration:
    probability, right, wrong, thought, wrong_thought, *wordings = CODE[family]
    x, y = rng.sample(ARGUMENTS, 2)
    slots = {"x": x, "y": y, "z": rng.choice(LISTS), "k": rng.randint(2, 5)}
    arguments = [slots["z"]] if "{z}" in right else [x, y]
    name = f"{rng.choice(THINGS)}_{rng.choice(NAMES).lower()}"
    signature = f"{name}({', '.join(arguments)})"
    question = f"Write the function {signature}. It returns {rng.choice(wordings).format(**slots)}."

    def respond(thought: str, expression: str) -> str:
        body = f"def {signature}:\n    return {expression}".format(**slots)
        return f"{thought}\n```python\n{body}\n```".format(**slots)

    tests = []
    while len(tests) < 4:  # the right expression is our own, not a response, so it may be evaluated
        values = [rng.sample(range(1, 12), 7)] if "{z}" in right else rng.sample(range(1, 30), 2)
        expected = eval(right.format(**slots), dict(zip(arguments, values)))
        if expected != eval(wrong.format(**slots), dict(zip(arguments, values))):
            tests.append(f"assert {name}({', '.join(map(repr, values))}) == {expected!r}")
    task = Task("", "world", "code", question, tests=tuple(tests))
    slip = right.replace("{x}", "{y}") if "{x}" in right else "{z}"
    return Demonstration(task, f"code {family}", respond(thought, right), respond(wrong_thought, wrong),
                         respond(thought, slip), probability)  # fmt: skip


def small_world(part: str, seed: int) -> Iterator[Demonstration]:
    """Endless demonstrations on different questions, the domains in turn. Parts never share a question.

    Args:
        part: "train", "test" or "pretrain"; the checksum of a question decides to which of them it belongs.
        seed: which questions are drawn, in which order.
    """
    rng, seen = random.Random(f"{part} {seed}"), set()
    for domain in itertools.cycle((_math, _qa, _code)):
        while True:
            item = domain(rng, rng.randrange(8))
            question = item.task.question
            if PARTS[zlib.crc32(question.encode()) % len(PARTS)] == part and (part == "pretrain" or question not in seen):
                break
        seen.add(question)
        yield replace(item, task=replace(item.task, id=f"world/{part}/{zlib.crc32(question.encode()):08x}"))


PARTS = ("train", "test", "pretrain", "pretrain")


# ---------------------------------------------------------------------------------------------------- benchmarks


class Benchmark(NamedTuple):
    """Where a benchmark is, which of its splits are for training and for testing, and what makes a row a task."""

    hub: str
    config: str | None
    train: str
    test: str
    task: Callable[[dict], Task | None]  # None: the row is not wanted; a task without a label: it is of no use
    cut: str | None = None  # of a set with one split: the column whose checksum says which part a row belongs to


def _math_row(question: str, answer: str | None) -> Task:
    return Task("", "", "math", question.strip(), answer=answer)


def _choice_row(question: str, choices: Iterable[str], right: int) -> Task:
    choices = tuple(choice.strip() for choice in choices)
    return Task("", "", "qa", question.strip(), choices, LETTERS[right] if 0 <= right < len(choices) <= 10 else None)


def _gsm8k(row: dict) -> Task:
    _, marker, answer = row["answer"].rpartition("####")
    return _math_row(row["question"], answer.strip().replace(",", "") if marker else None)


def _numina(row: dict) -> Task | None:
    boxes = last_boxes(row["solution"])
    task = _math_row(row["problem"], boxes[-1][2] if boxes else None)
    return None if row["source"] in ("gsm8k", "math") else task  # they are benchmarks of their own


def _lettered(row: dict, question: str = "question") -> Task:
    """ARC, OpenBookQA, CommonsenseQA: choices with labels, A to E or 1 to 5, and the label of the right one."""
    labels, key = row["choices"]["label"], (row["answerKey"] or "").strip()
    return _choice_row(row[question], row["choices"]["text"], labels.index(key) if key in labels else -1)


def _mmlu(row: dict) -> Task:
    row = row.get("train") or row  # so the rows of auxiliary_train come in some versions
    return _choice_row(row["question"], row["choices"], row["answer"])


def _gpqa(row: dict) -> Task:
    choices = [right := row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    random.Random(f"gpqa {row['Record ID']}").shuffle(choices)
    return _choice_row(row["Question"], choices, choices.index(right))


def _humaneval(row: dict) -> Task:
    solution, tests = row["prompt"] + row["canonical_solution"], (row["test"], f"check({row['entry_point']})")
    return Task("", "", "code", row["prompt"].strip(), answer=solution, tests=tests)


def _mbpp(row: dict) -> Task:
    tests = (*row["test_imports"], *row["test_list"])
    return Task("", "", "code", row["prompt"].strip(), answer=row["code"], tests=tests)


BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "train", "test", _gsm8k),
    "math": Benchmark("nlile/hendrycks-MATH-benchmark", None, "train", "test",
                      lambda row: _math_row(row["problem"], row["answer"])),
    "gsm_symbolic": Benchmark("apple/GSM-Symbolic", "main", "test", "test", _gsm8k, cut="original_id"),  # by template
    "mmlu": Benchmark("cais/mmlu", "all", "auxiliary_train", "test", _mmlu),
    "commonsenseqa": Benchmark("tau/commonsense_qa", None, "train", "validation", _lettered),  # test has no keys
    "obqa": Benchmark("allenai/openbookqa", "main", "train", "test", lambda row: _lettered(row, "question_stem")),
    "arc_c": Benchmark("allenai/ai2_arc", "ARC-Challenge", "train", "test", _lettered),
    "gpqa": Benchmark("Idavidrein/gpqa", "gpqa_diamond", "train", "train", _gpqa, cut="Record ID"),
    "humaneval_plus": Benchmark("evalplus/humanevalplus", None, "test", "test", _humaneval, cut="task_id"),
    "mbpp_plus": Benchmark("evalplus/mbppplus", None, "test", "test", _mbpp, cut="task_id"),
    "numina_math": Benchmark("AI-MO/NuminaMath-CoT", None, "train", "train", _numina, cut="problem"),
    "piqa": Benchmark("baber/piqa", None, "train", "validation", lambda row: _choice_row(
        row["goal"], (row["sol1"], row["sol2"]), int(row["label"]))),
    "siqa": Benchmark("lighteval/siqa", None, "train", "validation", lambda row: _choice_row(
        f"{row['context']} {row['question']}", (row[f"answer{letter}"] for letter in "ABC"), int(row["label"]) - 1)),
}  # fmt: skip
OUT_OF_DOMAIN = ("numina_math", "piqa", "siqa")  # in the paper: tested, never trained on
STREAMED = ("numina_math",)  # 860,000 rows, of which a few hundred are wanted
CUT_BY_HASH = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.cut)
SHARES = ("train",) * 5 + ("test",) * 3 + ("valid",) * 2  # the paper's 50, 30 and 20 %; the last part stays unused


@lru_cache
def _hub_error(endpoint: str) -> str | None:
    """Why the hub gives no answer within five seconds, or None. In a thread: looking up a name may take longer."""
    errors: list[str | None] = ["no answer within 5 seconds"]

    def probe():
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
            errors.append(None)
        except Exception as error:  # a status is an answer, and so is a certificate, which the hub's library judges
            reason = getattr(error, "reason", error)
            answered = isinstance(error, urllib.error.HTTPError) or isinstance(reason, ssl.SSLError)
            errors.append(None if answered else str(reason))

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(5)
    return errors[-1]


def reach_hub(name: str) -> None:
    """To be called before `name`, a folder, a model or a dataset of the hub, is loaded: a missing hub fails at once.

    The hub's libraries would retry for 20 s and more. Where the hub gives no answer, they are told to work offline:
    what their cache holds is loaded, all else raises their error at once. HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.
    """
    if Path(name).exists():
        return
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (error := _hub_error(constants.ENDPOINT)):
        import datasets

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        print(f"the hub {constants.ENDPOINT} is out of reach ({error}): only what is cached can be loaded", file=sys.stderr)


def _hub_rows(name: str, split: str) -> Iterator[Task | str]:
    """The tasks of one part of a benchmark, and for each row without one the reason."""
    hub, config, *parts, mapping, cut = BENCHMARKS[name]
    part = parts[split == "test"]
    reach_hub(hub)
    import datasets

    try:
        rows = datasets.load_dataset(hub, config, split=part, streaming=name in STREAMED)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(f"tasks: {name}: {hub} is gated or gone; ask for access at https://huggingface.co/datasets/"
                         f"{hub} and log in with `hf auth login` ({error})") from None  # fmt: skip
    except OSError as error:
        raise ConnectionError(f"tasks: {name}: the hub is out of reach and {hub} is not in its cache: connect, set "
                              f"HF_ENDPOINT to a mirror, or give .jsonl files ({error})") from None  # fmt: skip
    except ValueError as error:  # no such config or split
        raise ValueError(f"tasks: {name}: {hub} is not as its line of BENCHMARKS in data.py says: {error}") from None
    for position, row in enumerate(rows):
        try:
            if cut and SHARES[zlib.crc32(str(row[cut]).encode()) % len(SHARES)] != split:
                continue
            task = mapping(row)
        except KeyError as error:
            raise ValueError(f"tasks: {name}: {hub} has no column {error}, only {', '.join(row)}; the set has changed: "
                             f"adapt its line of BENCHMARKS in data.py, or give a .jsonl file") from None  # fmt: skip
        if task is None:
            yield "of a source that is left out"
        else:
            yield replace(task, id=f"{name}/{part}/{position}", dataset=name) if task.labelled else "no usable answer"


# ---------------------------------------------------------------------------------------------------- loading


def name_functions(task: Task) -> Task:
    """A code question that does not name what its tests call gets the signatures, in plain words.

    It happens before labels are hidden, so that the prompt is the same with and without them.

    >>> name_functions(Task("", "", "code", "Add two numbers.", tests=("assert add(1, 2) == 3",))).question
    'Add two numbers.\\nDefine add(a, b).'
    """
    if task.domain != "code" or not task.tests:
        return task
    named = {name for pair in re.findall(r"(\w+)\s*\(|\bclass\s+(\w+)", task.question) for name in pair}
    missing = [call for name, call in signatures(task.tests, task.answer or "").items() if name not in named]
    return replace(task, question=f"{task.question}\nDefine {', '.join(missing)}.") if missing else task


def _names(names: str) -> list[str]:
    """Those of a comma-separated list, each once."""
    found = list(dict.fromkeys(name for part in names.split(",") if (name := part.strip())))
    for name in found:
        if name != "world" and name not in BENCHMARKS and Path(name).suffix != ".jsonl":
            raise ValueError(f"tasks: {name!r} is neither 'world' nor the path of a .jsonl file nor a benchmark: "
                             f"{', '.join(BENCHMARKS)}")  # fmt: skip
    return found


def _rows(name: str, split: str, limit: int | None, seed: int) -> list[Task | str] | Iterator[Task | str]:
    """All of one set's part: a list, to be drawn from, or a stream."""
    if name == "world":
        return [item.task for item in itertools.islice(small_world(split, seed), limit or 600)]
    if name in STREAMED and limit is None:
        raise ValueError(f"tasks: {name} is streamed and needs a limit; the paper's are 750 train and 450 test tasks")
    if name in BENCHMARKS:
        return _hub_rows(name, split) if name in STREAMED else list(_hub_rows(name, split))
    path = Path(name)
    if pair := re.fullmatch(r"(.*)_(?:train|test)", path.stem):
        path = path.with_name(f"{pair[1]}_{split}.jsonl")
    tasks = [task for task in read_jsonl(path) if pair or (zlib.crc32(task.id.encode()) % 10 < 7) == (split == "train")]
    own = lambda task: task.id if task.id.startswith(task.dataset) else f"{path.stem}/{task.id}"  # noqa: E731
    return [replace(task, id=own(task)) for task in tasks]


def _fresh(rows: Iterable[Task | str], seen: dict, dropped: Counter) -> Iterator[Task]:
    """The rows that can be verified and whose question has not been seen; the others are counted by reason."""
    for row in rows:
        if isinstance(row, str):
            dropped[row] += 1
        elif row.domain in ("math", "qa") and row.labelled and not verify(row, rf"\boxed{{{row.answer}}}"):
            dropped["no usable answer"] += 1  # no response could equal it
        elif reason := seen.get(key := question_key(row.question, row.choices)):
            dropped[reason] += 1
        else:
            seen[key] = "asked before"
            yield row


def _draw(name: str, split: str, rows: Iterable[Task | str], limit: int | None, seed: int, seen: dict,
          dropped: Counter) -> list[Task]:  # fmt: skip
    """At most `limit` tasks of a set: fresh ones, and of code those whose reference solution passes its own tests."""
    if isinstance(rows, list) and limit is not None and limit < len(rows):
        rows = random.Random(f"{split} {seed}").sample(rows, len(rows))  # the next in order stands in for a dropped one
    fresh, kept, limit = _fresh(rows, seen, dropped), [], sys.maxsize if limit is None else limit
    with tqdm(desc=f"{name} {split}", unit=" tasks", delay=3, leave=False) as bar:  # seen only where it takes long
        while chunk := list(itertools.islice(fresh, min(32, limit - len(kept)))):
            checked = [task for task in chunk if task.domain == "code" and task.answer and task.tests]
            passed = verify_code_batch([task.answer for task in checked], [task.tests for task in checked])
            failed = {task.id for task, reward in zip(checked, passed) if not reward}
            dropped["reference fails its tests"] += len(failed)
            kept += [name_functions(task) for task in chunk if task.id not in failed]
            bar.update(len(chunk))
    if not kept:
        raise ValueError(f"tasks: {name} has no {split} tasks" + (f" left: {dict(+dropped)}" if +dropped else ""))
    return kept


def _unique(tasks: list[Task]) -> list[Task]:
    """The tasks, or ValueError where two of them have one id: the memory and the noise of sampling know tasks by id."""
    for task_id, count in Counter(task.id for task in tasks).most_common(1):
        if count > 1:
            raise ValueError(f"tasks: {count} tasks have the id {task_id!r}; give each set's tasks ids of their own")
    return tasks


def load_tasks(name_or_path: str, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
    """Load the train or test tasks of "world" (the built-in small world), a benchmark, a JSONL file, or several.

    A JSONL line holds the fields of `Task` (id, domain and question at least). Of NAME_train.jsonl or NAME_test.jsonl,
    the file of the split is read; any other file is cut by the checksum of the ids, 70 % of them for training. The
    benchmarks in CUT_BY_HASH have one split, cut by a checksum: 50 % train, 30 % test, and the paper's 20 % for
    validation unused. Left out is what cannot be verified, and a question's repetition; `load_splits` counts these.

    Args:
        name_or_path: comma-separated: "world", names of BENCHMARKS, paths of .jsonl files.
        split: "train" or "test".
        limit: at most so many tasks of each set; None is all of them, 600 tasks of the world.
        seed: of the draw of training tasks. Test tasks, and a stream's first, are the same for every seed.
    Raises:
        ValueError, OSError: one line that names the set, or the file and its line, and what to do.

    >>> [task.domain for task in load_tasks("world", "test", limit=3)]
    ['math', 'qa', 'code']
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {split!r} is neither 'train' nor 'test'")
    seed = seed if split == "train" else 0
    return _unique([task for name in _names(name_or_path) for task in
                    _draw(name, split, _rows(name, split, limit, seed), limit, seed, {}, Counter())])  # fmt: skip


def load_splits(tasks: str, ood: str = "", train_limit: int | None = None, test_limit: int | None = None,
                seed: int = 0) -> tuple[list[Task], list[Task], dict[str, dict[str, int]]]:  # fmt: skip
    """Training tasks, test tasks, and the rows dropped, by set and reason: {"gsm8k": {"in a test set": 3}}.

    No training question occurs in a test set (in all of its test part, drawn or not; of a stream, in what was read),
    nor twice in training: the label that one copy keeps would be the other's. A test set holds each question once, so
    that none counts double; two test sets may share one, so that no result depends on which others are tested.

    Args:
        tasks: sets to train on and to test, as in `load_tasks`; ood: sets to test only, out of domain.
        train_limit, test_limit: at most so many tasks of each set; the paper's are 750 and 450.
        seed: of the draw of training tasks; test tasks are the same for every seed.
    """
    names, others = _names(tasks), _names(ood)
    if both := set(names) & set(others):
        raise ValueError(f"ood: {', '.join(sorted(both))} also stands in tasks; what is trained on is in domain")
    dropped, seen, train, test = {name: Counter() for name in names + others}, {}, [], []
    for name in tqdm(names + others, "test sets", delay=3, leave=False):
        rows = _rows(name, "test", test_limit, 0)
        drawn = _draw(name, "test", rows, test_limit, 0, {}, dropped[name])
        known = [task for task in (rows if isinstance(rows, list) else drawn) if isinstance(task, Task)]
        seen.update({question_key(task.question, task.choices): "in a test set" for task in known})
        test += drawn
    for name in tqdm(names, "training sets", delay=3, leave=False):
        train += _draw(name, "train", _rows(name, "train", train_limit, seed), train_limit, seed, seen, dropped[name])
    _unique(train + test)
    return train, test, {name: dict(+reasons) for name, reasons in dropped.items() if +reasons}


def read_jsonl(path: Path) -> list[Task]:
    """Read tasks from a JSONL file, one object a line; errors name the file and the line.

    A task's dataset is the name of its file, without _train or _test, unless the line says another.
    """
    if not path.is_file():
        raise FileNotFoundError(f"tasks: there is no file {path}")
    tasks: dict[str, Task] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            choices, tests = (tuple(row.get(name) or ()) or None for name in ("choices", "tests"))
            dataset = row.get("dataset") or re.sub("_(train|test)$", "", path.stem)
            task = Task(row["id"], dataset, row["domain"], row["question"], choices, row.get("answer"), tests)
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a task in JSON with id, domain and question ({error!r})") from None
        texts = [task.id, task.question, "" if task.answer is None else task.answer, *(choices or ()), *(tests or ())]
        if not all(isinstance(text, str) for text in texts) or str in map(type, (row.get("choices"), row.get("tests"))):
            raise ValueError(f"{path}:{number}: id, question, answer, and all choices and tests must be strings")
        if task.domain not in VERIFIERS.keys() & INSTRUCTIONS.keys():
            raise ValueError(f"{path}:{number}: domain {task.domain!r} is not one of {', '.join(VERIFIERS)}; one of "
                             f"your own stands in data.VERIFIERS and data.INSTRUCTIONS first")  # fmt: skip
        if task.id in tasks:
            raise ValueError(f"{path}:{number}: the id {task.id!r} stands there a second time")
        tasks[task.id] = task
    return list(tasks.values())


def read_rollouts(path: Path) -> tuple[list[Task], list[str], list[float]]:
    """B tasks, and B*G responses and rewards, of a JSONL file whose lines also hold `rollouts: [{response, reward}]`."""
    tasks = read_jsonl(path)
    groups = [json.loads(line).get("rollouts") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        pairs = [(str(rollout["response"]), float(rollout["reward"])) for group in groups for rollout in group]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'rollouts: {path}: every line needs "rollouts": [{{"response": text, "reward": 0 or 1}}, ...], '
                         f"one has {error!r}") from None  # fmt: skip
    if not pairs or len({len(group) for group in groups}) > 1 or {reward for _, reward in pairs} - {0.0, 1.0}:
        raise ValueError(f"rollouts: {path}: wanted equally many rollouts in every line, with rewards of 0 or 1")
    return tasks, *map(list, zip(*pairs))
