"""The built-in small world: endless questions on which a tiny policy is right as often as one likes.

Three domains (math, qa, code) of eight families each. A family is a kind of question with ONE typical
mistake, and a probability of being right: the built-in policy was pre-trained (assets/make_policy.py) on
demonstrations that are right that often and else mostly make that very mistake. So a majority vote fails
wherever the mistake is more common than the truth, while a memory can recognise the mistake on a similar
question. Tasks are plain dicts here: the fields of `data.Task`.
"""

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

MISCONCEPTION = 0.85  # share of the wrong demonstrations that make the family's typical mistake
LETTERS = "ABCDEFGHIJ"
NAMES = "Ann Ben Cleo Dan Eva Finn Gina Hugo Ida Jon Kim Leo Mia Noah".split()
THINGS = "apples books cards coins eggs flags games hats keys lamps nuts pens rings toys".split()

# Probability of being right, right steps, mistaken steps (x, y: results of earlier ones), three wordings.
MATH = [
    (0.35, "a * b", "a + b",
     "{n} has {a} boxes with {b} {t} in each. How many {t} does {n} have?",
     "There are {a} bags and {b} {t} in every bag. How many {t} are there for {n}?",
     "{n} has {a} bags with {b} {t} in every bag. How many {t} does {n} have?"),
    (0.60, "a - b", "a + b",
     "{n} has {a} {t} and gives {b} of them to {m}. How many {t} are left?",
     "{n} had {a} {t} but lost {b}. How many {t} does {n} still have?",
     "{n} has {a} {t} but lost {b} of them. How many {t} does {n} still have?"),
    (0.45, "b - a", "a + b",
     "{n} has {a} {t} and {m} has {b}. How many more {t} does {m} have?",
     "{n} had some {t}, found {a} more and now has {b}. How many {t} were there at first?",
     "{n} has {a} {t} and now {m} has {b}. How many more {t} does {m} have?"),
    (0.30, "a / b", "a - b",
     "{n} shares {a} {t} among {b} friends. How many {t} does each friend get?",
     "{n} puts {a} {t} in {b} equal rows. How many {t} are in one row?",
     "{n} puts {a} {t} in {b} equal rows. How many {t} does each row get?"),
    (0.70, "a + b; x + a", "a + b",
     "{n} has {a} {t}. {m} has {b} more than {n}. How many {t} have they together?",
     "{n} sold {a} {t} on day one and {b} more than that on day two. How many {t} in both days?",
     "{n} sold {a} {t}. {m} sold {b} more than {n}. How many {t} in both days?"),
    (0.40, "a * b; x - c", "a * b; x + c",
     "{n} buys {a} packs of {b} {t} and breaks {c} of them. How many {t} are whole?",
     "{n} fills {a} trays with {b} {t} each and sells {c} {t}. How many {t} remain?",
     "{n} buys {a} packs of {b} {t} and sells {c} of them. How many {t} remain?"),
    (0.55, "a * b; c - x", "a + b; c - x",
     "{n} buys {a} {t} for {b} dollars each and pays with {c}. How many dollars come back?",
     "{n} has {c} dollars and takes {a} {t} that cost {b} each. How many dollars remain?",
     "{n} takes {a} {t} that cost {b} dollars each and pays with {c}. How many dollars remain?"),
    (0.50, "b * c; a + x; y - d", "b * c; a + x",
     "{n} has {a} {t}, gets {b} bags of {c} more and gives {d} away. How many {t} now?",
     "{n} sees {a} {t}, then {b} boxes of {c} come in and {d} {t} go out. How many {t} stay?",
     "{n} has {a} {t}, then {b} boxes of {c} come in and {d} {t} go out. How many {t} now?"),
]

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
KINDS = {"fruit": "apple pear plum cherry mango", "vegetable": "carrot onion leek potato bean",
         "bird": "crow duck eagle owl swan", "fish": "carp cod salmon shark trout"}
SEASONS, QUARTERS = ("winter", "spring", "summer", "autumn"), ("first", "second", "third", "fourth")
WORDS = [words.split() for words in (  # a word, its opposite, its synonym
    "big small large", "hot cold warm", "fast slow quick", "happy sad glad", "loud quiet noisy",
    "dark bright dim", "hard soft firm", "wet dry damp", "near far close", "old young aged",
    "thin thick slim", "brave timid bold")]


# Each draws what a question is about, the position of its right choice and of the mistaken one.
def _day(step: int):
    def draw(rng: random.Random) -> tuple[str, int, int]:
        i = rng.randrange(7)
        return DAYS[i], (i + step) % 7, (i - step) % 7

    return draw


def _season(rng: random.Random) -> tuple[str, int, int]:  # the mistake: as in the south
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


def _remainder(rng: random.Random) -> tuple[str, int, int]:  # the mistake: what lacks to the next 4
    number = rng.choice([n for n in range(3, 50) if n % 4 in (1, 3)])
    return str(number), number % 4, 4 - number % 4


# Probability of being right, how to draw, choices, right thought, mistaken thought, three wordings.
QA = [
    (0.35, _day(1), DAYS, "after {about} is {choice}", "before {about} is {choice}",
     "which day comes after {about}?", "which day follows {about}?",
     "what day comes after {about}?"),
    (0.60, _day(-1), DAYS, "before {about} is {choice}", "after {about} is {choice}",
     "which day comes before {about}?", "which day does {about} follow?",
     "what day comes before {about}?"),
    (0.45, _season, SEASONS, "in the north {choice}", "in the south {choice}",
     "which season is {about} in?", "to which season does {about} belong?",
     "what season does {about} belong to?"),
    (0.70, _quarter, QUARTERS, "months from one give {choice}", "months from four give {choice}",
     "in which quarter of the year is {about}?", "which quarter of the year has {about}?",
     "what quarter of the year is {about} in?"),
    (0.30, _kind, tuple(KINDS), "{about} is in the group {choice}", "{about} looks like {choice}",
     "what kind of thing is {about}?", "to which kind does {about} belong?",
     "of what kind is {about}?"),
    (0.40, _relation, ("opposite", "same", "unrelated"),
     "{about} in meaning {choice}", "{about} in use {choice}",
     "how are the words {about} related?", "what are the words {about} to each other?",
     "how are {about} related to each other?"),
    (0.55, _order, ("less", "equal", "greater"), "first to second {choice}", "second to first {choice}",
     "how does the first of {about} compare to the second?", "of {about}, what is the first to the second?",
     "of {about}, how does the first compare to the second?"),
    (0.50, _remainder, ("zero", "one", "two", "three"), "left over {choice}", "missing {choice}",
     "what is left of {about} after division by 4?", "which remainder has {about} divided by 4?",
     "what is left of {about} divided by 4?"),
]

# Probability of being right, right expression, mistaken one, right thought, mistaken thought, three wordings.
CODE = [
    (0.35, "{x} * {y}", "{x} + {y}", "multiply", "add", "the product of {x} and {y}", "{x} times {y}",
     "the product of {x} times {y}"),
    (0.60, "{x} + {y}", "{x} * {y}", "add", "multiply", "the sum of {x} and {y}", "{x} plus {y}",
     "the sum of {x} plus {y}"),
    (0.45, "{y} - {x}", "{x} - {y}", "{y} minus {x}", "{x} minus {y}",
     "{x} taken away from {y}", "what is left of {y} without {x}",
     "what is left of {y} with {x} taken away"),
    (0.30, "max({x}, {y})", "min({x}, {y})", "use max", "use min",
     "the larger of {x} and {y}", "the greater one of {x} and {y}",
     "the larger one of {x} and {y}"),
    (0.70, "{z}[-{k}]", "{z}[{k}]", "count from the end", "count from the start",
     "item {k} of the list {z} from the end", "the item {k} from the back of the list {z}",
     "the item {k} of the list {z} from the end"),
    (0.40, "[v for v in {z} if v > {k}]", "[v for v in {z} if v < {k}]",
     "keep more than {k}", "keep less than {k}",
     "the items of the list {z} above {k}", "the list {z} without all that is {k} or less",
     "the items of the list {z} without all that is {k} or less"),
    (0.55, "sum({z}) * {k}", "sum({z}) + {k}", "sum then times {k}", "sum then plus {k}",
     "the sum of the list {z} times {k}", "{k} times the total of the list {z}",
     "{k} times the sum of the list {z}"),
    (0.50, "sorted({z})[-{k}:]", "sorted({z})[:{k}]", "sort and take the end", "sort and take the start",
     "the {k} largest items of the list {z} in order", "the top {k} of the list {z} in order",
     "the top {k} items of the list {z} in order"),
]
ARGUMENTS, LISTS = "a b c d g h m n p q".split(), "items values xs ys data row".split()


@dataclass(frozen=True)
class Demonstration:
    """A task, its family, and three responses: right, the typical mistake, and another slip."""

    task: dict  # the fields of data.Task
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
    """Write out the steps of a program; the result is 0 where a step leaves the numbers the policy knows."""
    values, lines, result = dict(values), [], 0
    for name, step in zip("xyz", program.split("; "), strict=False):
        left, sign, right = step.split()
        left, right = values[left], values[right]
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]
        if result != int(result) or not 1 <= result <= 60 or (sign == "*" and max(left, right) > 9):
            return "", 0
        values[name] = result = int(result)
        lines.append(f"{left} {sign} {right} = {result}")
    return "\n".join(lines), result


def _math(rng: random.Random, family: int, wording: slice) -> Demonstration:
    probability, right, wrong, *wordings = MATH[family]
    result = wrong_result = 0
    while not (result and wrong_result and result != wrong_result):
        values = {name: rng.randint(2, most) for name, most in (("a", 20), ("b", 20), ("c", 40), ("d", 9))}
        (lines, result), (wrong_lines, wrong_result) = _calculate(right, values), _calculate(wrong, values)
    n, m = rng.sample(NAMES, 2)
    question = rng.choice(wordings[wording]).format(n=n, m=m, t=rng.choice(THINGS), **values)
    slip = result + rng.choice([1, 2])  # a wrong last calculation
    task = {"domain": "math", "question": question, "answer": str(result)}
    return Demonstration(
        task, f"math {family}", f"{lines}\n#### {result}", f"{wrong_lines}\n#### {wrong_result}",
        f"{lines[: lines.rindex('=')]}= {slip}\n#### {slip}", probability)


def _qa(rng: random.Random, family: int, wording: slice) -> Demonstration:
    probability, draw, choices, thought, wrong_thought, *wordings = QA[family]
    about, right, wrong = draw(rng)
    slip = rng.choice([i for i in range(len(choices)) if i not in (right, wrong)])
    n, m = rng.sample(NAMES, 2)
    question = f"{n} asks {m}: " + rng.choice(wordings[wording]).format(about=about)

    def respond(thought: str, i: int) -> str:
        return f"{thought.format(about=about, choice=choices[i])}\n#### {LETTERS[i]}"

    task = {"domain": "qa", "question": question, "choices": tuple(choices), "answer": LETTERS[right]}
    return Demonstration(task, f"qa {family}", respond(thought, right), respond(wrong_thought, wrong),
                         respond(thought, slip), probability)


def _code(rng: random.Random, family: int, wording: slice) -> Demonstration:
    probability, right, wrong, thought, wrong_thought, *wordings = CODE[family]
    x, y = rng.sample(ARGUMENTS, 2)
    slots = {"x": x, "y": y, "z": rng.choice(LISTS), "k": rng.randint(2, 5)}
    arguments = [slots["z"]] if "{z}" in right else [x, y]
    name = f"{rng.choice(THINGS)}_{rng.choice(NAMES).lower()}"
    signature = f"{name}({', '.join(arguments)})"
    question = f"Write the function {signature}. It returns {rng.choice(wordings[wording]).format(**slots)}."

    def respond(thought: str, expression: str) -> str:
        body = f"def {signature}:\n    return {expression}".format(**slots)
        return f"{thought}\n```python\n{body}\n```".format(**slots)

    tests = []
    while len(tests) < 4:  # the right expression is our own, not a response, so it may be evaluated
        values = [rng.sample(range(1, 12), 7)] if "{z}" in right else rng.sample(range(1, 30), 2)
        names = dict(zip(arguments, values, strict=True))
        expected = eval(right.format(**slots), dict(names))
        if expected != eval(wrong.format(**slots), dict(names)):
            tests.append(f"assert {name}({', '.join(map(repr, values))}) == {expected!r}")
    task = {"domain": "code", "question": question, "tests": tuple(tests)}
    slip = right.replace("{x}", "{y}") if "{x}" in right else "{z}"
    return Demonstration(task, f"code {family}", respond(thought, right), respond(wrong_thought, wrong),
                         respond(thought, slip), probability)


PARTS = ("train", "test", "pretrain", "pretrain")  # by the checksum of the question


def small_world(part: str, seed: int) -> Iterator[Demonstration]:
    """Endless demonstrations on different questions, the domains in turn. Parts never share a question.

    Args:
        part: "train", "test" or "pretrain", of which the checksum of a question decides; "ood": the same
            families in their third wording, crossed from pieces of the other two, which no other part has.
        seed: which questions are drawn, in which order.
    """
    rng, seen = random.Random(f"{part} {seed}"), set()
    wording, share, dataset = slice(0, 2), part, "world"
    if part == "ood":
        wording, share, dataset = slice(2, 3), "test", "world_ood"
    for domain in itertools.cycle((_math, _qa, _code)):
        while True:
            item = domain(rng, rng.randrange(8), wording)
            checksum = zlib.crc32(item.task["question"].encode())
            repeated = checksum in seen and part != "pretrain"
            if PARTS[checksum % len(PARTS)] == share and not repeated:
                break
        seen.add(checksum)
        yield replace(item, task={"id": f"world/{part}/{checksum:08x}", "dataset": dataset, **item.task})
