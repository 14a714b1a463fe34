"""Write 200 short tasks that a model of 135 M parameters gets partly right: 80 one-digit sums, 120 one-line functions.

    python assets/make_short.py short_train.jsonl
    python train.py probe --tasks short_train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --temperature 0.8 \\
        --max_response_length 64

README uses them to measure predicted rewards on rollouts of a real model that fits a laptop.
"""

import itertools
import json
import sys

SUM, FUNCTION = "{} {} {} = ?", "Write the function {name}. It returns {what}."
# A call, what it returns, a solution, inputs to test it with; {n} runs from 2 to 7 and changes the name, too.
FUNCTIONS = [
    ("add_{n}(x)", "x plus {n}", "x + {n}", (0, 5, -3)),
    ("times_{n}(x)", "x times {n}", "x * {n}", (0, 4, -2)),
    ("minus_{n}(x)", "x minus {n}", "x - {n}", (0, 9, -1)),
    ("rest_{n}(x)", "the remainder of x divided by {n}", "x % {n}", (0, 7, 13)),
    ("power_{n}(x)", "x to the power of {n}", "x ** {n}", (0, 2, 3)),
    ("above_{n}(x)", "True if x is greater than {n}, else False", "x > {n}", (1, 5, 9)),
    ("multiple_{n}(x)", "True if x is a multiple of {n}, else False", "x % {n} == 0", (6, 7, 10)),
    ("at_most_{n}(x)", "the smaller of x and {n}", "min(x, {n})", (1, 4, 20)),
    ("first_{n}(items)", "the first {n} items of a list", "items[:{n}]", ([1, 2, 3, 4, 5, 6, 7, 8], [9], [])),
    ("last_{n}(items)", "the last {n} items of a list", "items[-{n}:]", ([1, 2, 3, 4, 5, 6, 7, 8], [9], [])),
    ("without_{n}(items)", "a list without its first {n} items", "items[{n}:]", ([1, 2, 3, 4, 5, 6, 7, 8], [9], [])),
    ("total_{n}(items)", "{n} plus the sum of a list", "{n} + sum(items)", ([1, 2, 3], [4], [])),
    ("count_{n}(items)", "how often {n} occurs in a list", "items.count({n})", ([2, 3, 2, 4, 7], [5, 6], [])),
    ("repeat_{n}(text)", "a text repeated {n} times", "text * {n}", ("ab", "x", "")),
    ("start_{n}(text)", "the first {n} letters of a text", "text[:{n}]", ("memory", "graphneural", "a")),
    ("longer_{n}(text)", "True if a text has more than {n} letters, else False", "len(text) > {n}", ("abc", "abcdef", "")),
    ("square_plus_{n}(x)", "the square of x plus {n}", "x * x + {n}", (0, 3, -2)),
    ("double_minus_{n}(x)", "two times x, minus {n}", "2 * x - {n}", (0, 3, -2)),
    ("every_{n}(items)", "every {n}th item of a list, from the first on", "items[::{n}]", ([1, 2, 3, 4, 5, 6, 7, 8], [9], [])),
    ("upper_{n}(text)", "the first {n} letters of a text in upper case", "text[:{n}].upper()", ("memory", "reward", "")),
]  # fmt: skip


def rows() -> list[dict]:
    """The 200 tasks: sums and differences of one-digit numbers, then functions."""
    sums = [(a, "+", b, a + b) for a, b in itertools.product(range(1, 10), repeat=2) if (a, b) != (2, 6)][:60]
    differences = [(a, "-", b, a - b) for a, b in itertools.product(range(1, 10), repeat=2) if a > b][:20]
    tasks = [{"domain": "math", "question": SUM.format(a, sign, b), "answer": str(result)}
             for a, sign, b, result in sums + differences]  # fmt: skip
    for (call, what, solution, inputs), n in itertools.product(FUNCTIONS, range(2, 8)):
        name = call.format(n=n)
        function, argument = name[:-1].split("(")
        solved = eval(f"lambda {argument}: {solution.format(n=n)}")  # ours, from the table above
        tests = [f"assert {function}({value!r}) == {solved(value)!r}" for value in inputs]
        tasks.append({"domain": "code", "question": FUNCTION.format(name=name, what=what.format(n=n)), "tests": tests})
    return [{"id": f"short-{i}", **task} for i, task in enumerate(tasks)]


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())
