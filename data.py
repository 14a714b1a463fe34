"""Tasks, prompts, verifiers and the built-in small world: everything MemReward knows about questions and answers.

A task is a question with, perhaps, its label: a reference answer (math, qa) or assert tests (code). The label is what
MemReward economises: `hide_labels` takes it away for good, and `verify` refuses a task that has none.
How answers are judged stands in verifiers.py (math, multiple choice) and sandbox.py (code).
"""

import itertools
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sandbox import code_key, verify_code, verify_code_batch
from verifiers import split_response, text_key, verify_math, verify_qa

__all__ = ["Task", "answer_key", "hide_labels", "load_tasks", "make_prompt", "small_world", "split_response", "verify",
           "verify_batch", "verify_code", "verify_math", "verify_qa"]
DOMAINS = ("math", "qa", "code")
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Task:
    """One question. `answer` (a number, an expression or a letter) and `tests` (assert lines) are its label."""

    id: str
    dataset: str
    domain: str  # math, qa or code
    question: str
    choices: tuple[str, ...] | None = None  # of a qa task; the answer is a letter
    answer: str | None = None
    tests: tuple[str, ...] | None = None

    @property
    def labelled(self) -> bool:
        """Is there anything to verify a response with?"""
        return (self.tests if self.domain == "code" else self.answer) is not None


def hide_labels(tasks: Sequence[Task], ratio: float, seed: int) -> list[Task]:
    """Keep the labels of round(ratio * n) of the n tasks that have one, at least one; remove all others for good.

    >>> tasks = [Task(str(i), "demo", "math", f"{i} + {i}?", answer=str(2 * i)) for i in range(10)]
    >>> sum(task.labelled for task in hide_labels(tasks, ratio=0.2, seed=0))
    2
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"label_ratio: {ratio} is outside (0, 1]; 0.2 keeps one label in five")
    labelled = [i for i, task in enumerate(tasks) if task.labelled]
    keep = set(random.Random(f"labels {seed}").sample(labelled, max(1, round(ratio * len(labelled)))))
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
    rewards = [0.0 if task.domain == "code" else {"math": verify_math, "qa": verify_qa}[task.domain](response, task.answer)
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


# ---------------------------------------------------------------------------------------------------- loading


def load_tasks(name_or_path: str, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
    """Load the train or test tasks of "world" (the built-in small world) or of a JSONL file.

    A JSONL line holds the fields of `Task` (id, domain and question at least). Of NAME_train.jsonl or NAME_test.jsonl,
    the file of the split is read; any other file is cut by the checksum of the ids, 70 % of them for training.

    Args:
        split: "train" or "test".
        limit: at most so many tasks, drawn with `seed`; None is all of a file, 600 tasks of the world.
        seed: of the draw. The world's test tasks are the same for every seed.
    Raises:
        FileNotFoundError, ValueError: one line that names the file and the line.

    >>> [task.domain for task in load_tasks("world", "test", limit=3)]
    ['math', 'qa', 'code']
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {split!r} is neither 'train' nor 'test'")
    if name_or_path == "world":
        world = small_world(split, seed if split == "train" else 0)
        return [item.task for item in itertools.islice(world, limit or 600)]
    path = Path(name_or_path)
    if path.suffix != ".jsonl":
        raise ValueError(f"tasks: {name_or_path!r} is neither 'world' nor the path of a .jsonl file")
    pair = re.fullmatch(r"(.*_)(?:train|test)", path.stem)
    path = path.with_name(f"{pair[1]}{split}.jsonl") if pair else path
    tasks = read_jsonl(path)
    if not pair:
        tasks = [task for task in tasks if (zlib.crc32(task.id.encode()) % 10 < 7) == (split == "train")]
    if not tasks:
        raise ValueError(f"tasks: {path} has no {split} tasks")
    return tasks if limit is None or limit >= len(tasks) else random.Random(f"{split} {seed}").sample(tasks, limit)


def read_jsonl(path: Path) -> list[Task]:
    """Read tasks from a JSONL file, one object a line; errors name the file and the line."""
    if not path.is_file():
        raise FileNotFoundError(f"tasks: there is no file {path}")
    tasks: dict[str, Task] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            choices, tests = (tuple(row.get(name) or ()) or None for name in ("choices", "tests"))
            task = Task(row["id"], row.get("dataset", path.stem), row["domain"], row["question"], choices,
                        row.get("answer"), tests)  # fmt: skip
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a task in JSON with id, domain and question ({error!r})") from None
        texts = [task.id, task.question, "" if task.answer is None else task.answer, *(task.choices or ()), *(task.tests or ())]
        if not all(isinstance(text, str) for text in texts) or isinstance(row.get("tests"), str):
            raise ValueError(f"{path}:{number}: id, question, answer and the items of choices and tests must be strings")
        if task.domain not in DOMAINS:
            raise ValueError(f"{path}:{number}: domain {task.domain!r} is not one of {', '.join(DOMAINS)}")
        if task.id in tasks:
            raise ValueError(f"{path}:{number}: the id {task.id!r} stands there a second time")
        tasks[task.id] = task
    return list(tasks.values())
