"""Write short tasks that a model of 135 M parameters gets right one time in five: math, choices and code.

    python assets/make_short.py FOLDER     # short_train.jsonl, short_test.jsonl, short_ood_test.jsonl there
    python train.py probe --tasks FOLDER/short_train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct \\
        --temperature 0.7 --max_response_length 32

A kind is one line of the tables below: one thing to know or to calculate. The column `kind`, which training
does not read, names it. The last OUTSIDE kinds of a table are out of domain: tested, not trained on. Of the
others TRAIN tasks are for training and TEST for testing. No two tasks of a kind share their numbers, word or
function.

What makes them fit a memory and a small model: a kind of choices always offers the same three groups, so that
the letter of a word can be learnt from words like it; and a line is shown to be copied (`#### 13 + 3 = ___`,
`#### (A)`), without which this model hardly ever writes `####`. Candidates were tried on 18 to 24 rollouts
each, at temperature 0.7 with 32 tokens, and most kinds that stayed were right in 5 to 60 % of them.
"""

import json
import random
import sys
from pathlib import Path

TRAIN, TEST, OUT = 10, 5, 7  # tasks of a kind: in domain for training and for testing, out of domain
OUTSIDE = 5  # kinds of each table that are out of domain

# kind: a line with numbers a (10 to 29), b and c (2 to 9)
MATH = {
    "sum": "{a} + {b}",
    "product": "{b} * {c}",
    "small sum": "{b} + {c}",
    "sum of three": "{b} + {c} + 2",
    "ten more": "{a} + 10",
    "small tens": "{b}0 + {c}0",
    "tens times": "{b}0 * {c}",
    "tenths": "0.{b} + 0.{c}",
    "one more": "{a * b} + 1",
    "times one": "{a * b} * 1",
    "nothing left": "{a * b} - {a * b}",
    "over one": "{a * b} / 1",
    "plus zero": "{a * b} + 0",
    "hundreds": "{a * b}00 / 100",
    "half": "{2 * a} / 2",
    "tens": "{a}0 + {b}0",
    "tenths times": "0.{b} * {c}",
    "over itself": "{a * b} / {a * b}",
    "twice": "{a} + {a}",
}
MATH_WORDINGS = tuple("Copy this line and fill in the gap.\n#### {line} = " + gap for gap in ("___", "?"))

# kind: three groups of five; to which of them does a word belong?
QA = {
    "animal": "bird: owl eagle crow robin duck; fish: salmon cod trout shark tuna; "
              "insect: ant bee wasp fly moth",
    "plant": "fruit: apple pear plum mango banana; vegetable: carrot onion leek cabbage spinach; "
             "flower: rose tulip daisy lily orchid",
    "place": "Europe: France Italy Spain Greece Poland; Asia: Japan China India Vietnam Thailand; "
             "Africa: Kenya Egypt Ghana Nigeria Morocco",
    "colour": "white: snow milk salt chalk swans; green: grass moss spinach limes frogs; "
              "red: blood cherries tomatoes rubies roses",
    "travel": "land: car train bus truck bicycle; water: ship boat canoe ferry yacht; "
              "air: plane rocket helicopter glider balloon",
    "room": "kitchen: oven spoon pan fridge kettle; bedroom: bed pillow blanket wardrobe mattress; "
            "bathroom: shower toilet soap towel bathtub",
    "season": "winter: December January February snow ice; spring: March April May blossom seedling; "
              "summer: June July August beach heatwave",
    "taste": "sweet: sugar honey candy cake syrup; sour: lemon vinegar lime pickle grapefruit; "
             "salty: chips pretzel bacon anchovy popcorn",
    "body": "head: nose ear eye mouth chin; arm: hand elbow wrist finger thumb; "
            "leg: knee foot toe ankle heel",
    "work": "hospital: doctor nurse surgeon patient ambulance; "
            "school: teacher pupil lesson blackboard homework; farm: farmer tractor barn cow plough",
    "play": "music: piano guitar violin drum flute; sport: tennis football hockey golf rugby; "
            "art: painting statue drawing sketch sculpture",
    "stuff": "metal: iron gold copper silver steel; cloth: cotton silk wool linen velvet; "
             "stone: marble granite slate limestone flint",
    "state": "solid: rock ice wood iron brick; liquid: water milk oil juice petrol; "
             "gas: air steam oxygen helium nitrogen",
    "school": "numbers: sum fraction algebra geometry equation; past: king war empire revolution treaty; "
              "living: cell plant animal gene organ",
    "time": "past: yesterday ago earlier formerly previously; "
            "now: today currently presently tonight immediately; future: tomorrow later soon upcoming next",
    "number": "below ten: two three five seven nine; below hundred: twenty forty sixty eighty ninety; "
              "above hundred: thousand million billion trillion dozens-of-dozens",
    "name": "man: John Peter Paul George Henry; woman: Mary Anna Emma Julia Alice; "
            "city: London Paris Rome Tokyo Berlin",
    "heat": "hot: fire lava sun steam oven; cold: ice snow frost glacier freezer; "
            "warm: bath blanket tea sweater spring",
    "speech": "greeting: hello hi welcome good-morning hey; thanks: thanks grateful obliged thankful cheers; "
              "farewell: goodbye bye farewell adieu see-you",
}
QA_WORDINGS = tuple(question + "\nCopy one of these lines.\n#### (A)\n#### (B)\n#### (C)"
                    for question in ("Where does {x} belong?", "Which of the three fits {x}?"))

INPUTS = {  # of the tests, by the name of the argument, so that they tell n from any other number
    "x": lambda n: (0, 3, -4, n - 1, n, n + 1, 3 * n),
    "items": lambda n: ([*range(1, 2 * n)], [n, 30], [20, 4, 4, 0]),
    "text": lambda n: ("memory", "abcdefghijklmnopqrs"[:n], "abcdefghijklmnopqrs"[: n + 1], ""),
}
# kind: call, what it returns, the solution; n is 2 to 17
CODE = {
    "from": ("from_{n}(x)", "{n} minus x", "{n} - x"),
    "remainder": ("rest_{n}(x)", "the remainder of x divided by {n}", "x % {n}"),
    "power": ("power_{n}(x)", "x to the power of {n}", "x ** {n}"),
    "multiple": ("multiple_{n}(x)", "True if x is a multiple of {n}, else False", "x % {n} == 0"),
    "at most": ("min_{n}(x)", "the smaller of x and {n}", "min(x, {n})"),
    "distance": ("distance_{n}(x)", "the absolute difference of x and {n}", "abs(x - {n})"),
    "double minus": ("double_minus_{n}(x)", "two times x, minus {n}", "2 * x - {n}"),
    "first": ("first_{n}(items)", "the first {n} items of a list", "items[:{n}]"),
    "sum plus": ("sum_plus_{n}(items)", "the sum of a list plus {n}", "sum(items) + {n}"),
    "sum times": ("sum_times_{n}(items)", "the sum of a list times {n}", "sum(items) * {n}"),
    "contains": ("has_{n}(items)", "whether {n} is in the list items", "{n} in items"),
    "repeat": ("repeat_{n}(text)", "a text repeated {n} times", "text * {n}"),
    "start": ("start_{n}(text)", "the first {n} letters of text", "text[:{n}]"),
    "prefix": ("prefix_{n}(text)", "the text with '{n}' in front", "'{n}' + text"),
    "below": ("is_below_{n}(x)", "whether x is less than {n}", "x < {n}"),
    "at least": ("max_{n}(x)", "the larger of x and {n}", "max(x, {n})"),
    "square plus": ("square_plus_{n}(x)", "the square of x plus {n}", "x * x + {n}"),
    "max minus": ("max_minus_{n}(items)", "the largest item minus {n}", "max(items) - {n}"),
    "longer": ("longer_{n}(text)", "whether text has more than {n} letters", "len(text) > {n}"),
}
CODE_WORDINGS = "Write the function {call}. It returns {what}.", "Define {call} in one line: return {what}."


def math_tasks(line: str, rng: random.Random, count: int) -> list[dict]:
    """Lines with a gap, all different; the answer is what Python makes of the line."""
    tasks: dict[str, dict] = {}
    while len(tasks) < count:
        values = {"a": rng.randint(10, 29), "b": rng.randint(2, 9), "c": rng.randint(2, 9)}
        written = eval(f"f{line!r}", values)  # ours, from the table above
        question = MATH_WORDINGS[len(tasks) % 2].format(line=written)
        tasks.setdefault(written, {"question": question, "answer": f"{eval(written):g}"})
    return list(tasks.values())


def qa_tasks(groups: str, rng: random.Random, count: int) -> list[dict]:
    """The choices are the names of the groups, the same ones in every task of the kind."""
    names, words = zip(*(group.split(": ") for group in groups.split("; ")))
    members = [(word, letter) for letter, group in zip("ABC", words) for word in group.split()]
    return [{"question": QA_WORDINGS[i % 2].format(x=word), "choices": names, "answer": letter}
            for i, (word, letter) in enumerate(rng.sample(members, count))]


def code_tasks(kind: tuple[str, str, str], rng: random.Random, count: int) -> list[dict]:
    """Functions of one line, with their solution and tests."""
    call, what, solution = kind
    tasks = []
    for i, n in enumerate(rng.sample(range(2, 18), count)):
        name, result = call.format(n=n), solution.format(n=n)
        function, argument = name[:-1].split("(")
        solved = eval(f"lambda {argument}: {result}")  # ours, from the table above
        tests = [f"assert {function}({value!r}) == {solved(value)!r}" for value in INPUTS[argument](n)]
        tasks.append({"question": CODE_WORDINGS[i % 2].format(call=name, what=what.format(n=n)),
                      "answer": f"def {name}:\n    return {result}\n", "tests": tests})
    return tasks


DOMAINS = {"math": (MATH, math_tasks), "qa": (QA, qa_tasks), "code": (CODE, code_tasks)}


def parts(seed: int = 0) -> dict[str, list[dict]]:
    """The rows of each file, by its name without .jsonl; one seed always gives the same ones."""
    rows: dict[str, list[dict]] = {"short_train": [], "short_test": [], "short_ood_test": []}
    for domain, (table, make) in DOMAINS.items():
        for place, kind in enumerate(table):
            inside = place < len(table) - OUTSIDE
            rng, count = random.Random(f"{seed} {domain} {kind}"), TRAIN + TEST if inside else OUT
            tasks = [{"id": f"{domain}-{kind.replace(' ', '-')}-{i}", "domain": domain, "kind": kind, **task}
                     for i, task in enumerate(make(table[kind], rng, count))]
            rows["short_train"] += tasks[:TRAIN] if inside else []
            rows["short_test" if inside else "short_ood_test"] += tasks[TRAIN:] if inside else tasks
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python assets/make_short.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts().items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        kinds = {(row["domain"], row["kind"]) for row in rows}
        print(f"{folder / name}.jsonl: {len(rows)} tasks of {len(kinds)} kinds")
