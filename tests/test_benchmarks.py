"""Benchmarks by name, on rows of each set's shape: mappings, splits without leaks, errors, own domains."""

import ast
import contextlib
import http.server
import json
import os
import random
import socket
import subprocess
import sys
import threading
import zlib
from collections import Counter
from pathlib import Path

import datasets
import pytest

import data
from data import BENCHMARKS, Task, load_splits, load_tasks, make_prompt, verify
from support import benchmarks
from support.answers import question_key
from support.sandbox import signatures, survey

# ---- rows as the hub has them, and a hub that holds nothing else ----

GSM8K = [
    {
        "question": "The girls are trying to raise money for a carnival. Kim raises $320 more "
        "than Alexandra, who raises $430, and Maryam raises $400 more than Sarah, who raises $300. How much "
        "money, in dollars, did they all raise in total?",
        "answer": "Kim raises 320+430=$<<320+430=750>>750\nMaryam raises 400+300=$<<400+300=700>>700\n"
        "They raise 750+430+400+700=$<<750+430+400+700=2280>>2,280\n#### 2,280",
    },
    {
        "question": "A debt grows from $3 to $8. By how much does the account change?",
        "answer": "3-8=-5\n#### -5",
    },
    {"question": "How many?", "answer": "nobody wrote the final line"},
]
ARC = [
    {
        "id": "Mercury_417466",
        "question": "Which of these pushes a cart?",
        "answerKey": "A",
        "choices": {"text": ["a force", "a colour", "a smell", "a sound"], "label": ["A", "B", "C", "D"]},
    },
    {
        "id": "NYSEDREGENTS_2013_8_43",
        "answerKey": "3",
        "question": "If the day were cool instead of hot, the rainwater in the pan would have disappeared",
        "choices": {"text": ["faster", "in the same amount of time", "slower"], "label": ["1", "2", "3"]},
    },
    {
        "id": "MDSA_2009_5_21",
        "question": "What does this experiment show?",
        "answerKey": "E",
        "choices": {
            "text": [
                "All liquids evaporate.",
                "Gasoline gets hotter.",
                "Liquids need sun.",
                "Water gets hotter.",
                "Some liquids evaporate faster than others.",
            ],
            "label": ["A", "B", "C", "D", "E"],
        },
    },
]
GPQA = {
    "Record ID": "rec0",
    "Question": "Which particle carries no charge?",
    "Correct Answer": "neutron\n",
    "Incorrect Answer 1": "proton",
    "Incorrect Answer 2": "electron",
    "Incorrect Answer 3": "muon",
    "Subdomain": "Physics (general)",
}
HUMANEVAL = {
    "task_id": "HumanEval/23",
    "entry_point": "strlen",
    "prompt": "\n\ndef strlen(string: str) -> int:\n"
    "    ''' Return the length\n    >>> strlen('abc')\n    3\n    '''\n",
    "canonical_solution": "    return len(string)\n\n",
    "test": """

import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype in (np.float64, np.float32)
    return isinstance(x, float)

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert exact_match

def check(candidate):
    inputs = [[''], ['x'], ['asdasnakj'], ['1' * 30]]
    results = [0, 1, 9, 30]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
""",
}
MBPP = {
    "task_id": 14,
    "code": "def find_Volume(l,b,h) : \n    return ((l * b * h) / 2) ",
    "source_file": "mbpp.json",
    "prompt": "Write a python function to find the volume of a triangular prism.",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(find_Volume(10,8,6), 240)", "assert find_Volume(3,2,2) == 6"],
    "test": "inputs = [[10,8,6], [1,1,1]]\nresults=[240, 0.5]\n"
    "for i, r in zip(inputs, results):\n    assert find_Volume(*i) == r\n",
}
ROWS = {  # name: (row, question, choices, answer)
    "gsm8k": (GSM8K[0], GSM8K[0]["question"], None, "2280"),
    "math": (
        {
            "problem": "Compute $\\frac13 + \\frac16$.",
            "solution": "$\\boxed{\\frac12}$.",
            "answer": "\\frac12",
            "subject": "Prealgebra",
            "level": 1,
            "unique_id": "train/prealgebra/1.json",
        },
        "Compute $\\frac13 + \\frac16$.",
        None,
        "\\frac12",
    ),
    "gsm_symbolic": (
        {
            "id": 0,
            "instance": 3,
            "question": "Ann has 1,000 pens and 7 more.",
            "answer": "#### 1,007",
            "original_id": 1309,
            "original_question": "?",
            "original_answer": "#### 1",
            "canary": "",
        },
        "Ann has 1,000 pens and 7 more.",
        None,
        "1007",
    ),
    "mmlu": (
        {
            "question": "Find the order of 2 in Z_6.",
            "subject": "abstract_algebra",
            "choices": ["2", "3", "6", "1"],
            "answer": 1,
        },
        "Find the order of 2 in Z_6.",
        ("2", "3", "6", "1"),
        "B",
    ),
    "commonsenseqa": (
        {
            "id": "2cb7",
            "question": "He fantasied about getting a what?",
            "question_concept": "getting",
            "choices": {"label": list("ABCDE"), "text": ["new car", "promotion", "rest", "fear", "rain"]},
            "answerKey": "B",
        },
        "He fantasied about getting a what?",
        ("new car", "promotion", "rest", "fear", "rain"),
        "B",
    ),
    "obqa": (
        {
            "id": "7-980",
            "question_stem": "Predators eat",
            "answerKey": "C ",
            "choices": {"text": ["lions", "humans", "bunnies ", "grass"], "label": list("ABCD")},
        },
        "Predators eat",
        ("lions", "humans", "bunnies", "grass"),
        "C",
    ),
    "arc_c": (ARC[1], ARC[1]["question"], tuple(ARC[1]["choices"]["text"]), "C"),
    "numina_math": (
        {
            "source": "olympiads",
            "problem": "Solve.",
            "messages": [],
            "solution": "First \\boxed{1}, then $\\boxed{\\frac{2}{\\sqrt{3}}}$, and \\boxed{4 is cut",
        },
        "Solve.",
        None,
        "\\frac{2}{\\sqrt{3}}",
    ),
    "piqa": ({"goal": "To rest", "sol1": "run", "sol2": "sit", "label": 1}, "To rest", ("run", "sit"), "B"),
    "siqa": (
        {
            "context": "Tracy didn't go home.",
            "question": "What will Tracy do?",
            "answerA": "rest",
            "answerB": "eat",
            "answerC": "pack",
            "label": "3",
        },
        "Tracy didn't go home. What will Tracy do?",
        ("rest", "eat", "pack"),
        "C",
    ),
}


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds what the test puts in: hub(name, {split: rows}); every call is noted in hub.calls."""
    sets, calls = {}, []

    def load_dataset(path, config=None, *, split, streaming=False):
        calls.append((path, config, split, streaming))
        rows = sets[path][split]
        if not streaming:
            return datasets.Dataset.from_list(rows)
        return datasets.IterableDataset.from_generator(lambda: iter(rows)) if isinstance(rows, list) else rows

    def put(name, splits):
        sets[BENCHMARKS[name].hub] = splits

    put.calls = calls
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(benchmarks, "reach_hub", lambda name: None)
    return put


def part_of(key):
    """The rule of the cut, written out once more."""
    number = zlib.crc32(str(key).encode()) % 10
    return "train" if number < 5 else "test" if number < 8 else "unused"


def keys_of(part, count, pattern="{}"):
    return [key for i in range(1000) if part_of(key := pattern.format(i)) == part][:count]


# ---- mappings ----


@pytest.mark.parametrize("name", ROWS)
def test_mapping(hub, name):
    row, question, choices, answer = ROWS[name]
    benchmark = BENCHMARKS[name]
    if cut := benchmark.cut:  # the row goes to the part of its key
        [key] = [key for key in keys_of("test", 1, "{}" if cut == "original_id" else row[cut] + "{}")]
        row = {**row, cut: int(key) if cut == "original_id" else key}
        question = key if cut == "problem" else question
    hub(name, {benchmark.test: [row]})
    [task] = load_tasks(name, "test", limit=5)
    domain = "qa" if choices else "math"
    assert task == Task(f"{name}/{benchmark.test}/0", name, domain, question, choices, answer)
    assert hub.calls == [(benchmark.hub, benchmark.config, benchmark.test, name == "numina_math")]
    assert verify(task, f"#### {answer}") == 1.0 and make_prompt(task).startswith(question)


def test_table_of_the_thirteen():
    assert len(BENCHMARKS) == 13 and set(benchmarks.OUT_OF_DOMAIN) == {"numina_math", "piqa", "siqa"}
    one_split = {"gsm_symbolic", "gpqa", "humaneval_plus", "mbpp_plus", "numina_math"}
    assert set(benchmarks.CUT_BY_HASH) == one_split
    for name, benchmark in BENCHMARKS.items():
        assert (benchmark.train == benchmark.test) == (name in benchmarks.CUT_BY_HASH)
        assert name in ROWS or name in (
            "gpqa",
            "humaneval_plus",
            "mbpp_plus",
        )  # these have tests of their own


def test_labels_of_arc_are_letters_or_numbers_and_choices_three_to_five(hub):
    hub("arc_c", {"train": ARC, "test": ARC})
    tasks = {len(task.choices): task for task in load_tasks("arc_c", "train")}
    assert {count: task.answer for count, task in tasks.items()} == {4: "A", 3: "C", 5: "E"}
    assert "(E) Some liquids" in make_prompt(tasks[5])


def test_rows_without_a_usable_answer_are_counted(hub):
    csqa = ROWS["commonsenseqa"][0]
    hub("gsm8k", {"train": GSM8K, "test": GSM8K[:1]})
    hub(
        "commonsenseqa",
        {
            "train": [csqa, {**csqa, "question": "no key?", "answerKey": ""}],
            "validation": [{**csqa, "question": "other?"}],
        },
    )
    hub(
        "math",
        {
            "train": [
                {"problem": "p", "answer": "a long story of a good many words"},
                {"problem": "q", "answer": "7"},
            ],
            "test": [{"problem": "r", "answer": "8"}],
        },
    )
    train, test, dropped = load_splits("gsm8k,commonsenseqa,math")
    assert dropped == {
        "gsm8k": {"no usable answer": 1, "in a test set": 1},
        "commonsenseqa": {"no usable answer": 1},
        "math": {"no usable answer": 1},
    }
    assert [task.answer for task in train] == ["-5", "B", "7"]


def test_two_letters_are_no_usable_answer():
    rows = [Task(answer, "set", "qa", f"{answer}?", ("ice", "wood"), answer) for answer in ("B", "A or B")]
    dropped = Counter()
    assert [row.id for row in data._fresh(rows, {}, dropped)] == ["B"] and dropped == {"no usable answer": 1}


def test_nested_rows_of_mmlu(hub):
    row = ROWS["mmlu"][0]
    hub("mmlu", {"auxiliary_train": [{"train": row}], "test": [{**row, "question": "another"}]})
    [task], _, _ = load_splits("mmlu")
    assert (task.question, task.answer, task.id) == (row["question"], "B", "mmlu/auxiliary_train/0")


def test_gpqa_is_shuffled_by_row_and_the_letter_follows(hub):
    rows = [{**GPQA, "Record ID": key, "Question": f"{key}?"} for key in keys_of("train", 40, "rec{}")]
    hub("gpqa", {"train": rows})
    tasks = load_tasks("gpqa", "train")
    assert tasks == load_tasks("gpqa", "train", seed=7)  # not by the seed of the run
    for task in tasks:
        assert sorted(task.choices) == ["electron", "muon", "neutron", "proton"]
        assert task.choices["ABCD".index(task.answer)] == "neutron"
    assert set(Counter(task.answer for task in tasks)) == set("ABCD")
    hub("gpqa", {"train": rows[::-1]})  # nor by the other rows
    moved = {task.question: task for task in load_tasks("gpqa", "train")}
    assert all(moved[task.question].choices == task.choices for task in tasks)


def test_numina_reads_no_more_of_the_stream_than_it_needs(hub):
    read = []

    def stream():
        for i in range(100_000):
            read.append(i)
            source = ("synthetic_math", "gsm8k", "math", "aops_forum")[i % 4]
            yield {
                "source": source,
                "problem": f"Problem {i}",
                "messages": [],
                "solution": "no box" if i % 8 == 3 else f"so $\\boxed{{{i}}}$",
            }

    hub("numina_math", {"train": stream()})
    row = ROWS["piqa"][0]
    hub("piqa", {"train": [row], "validation": [{**row, "goal": "other"}]})
    _, test, dropped = load_splits("piqa", "numina_math", test_limit=20)
    numina = [task for task in test if task.dataset == "numina_math"]
    wanted = [i for i in range(1000) if part_of(f"Problem {i}") == "test" and i % 4 in (0, 3) and i % 8 != 3][
        :20
    ]
    assert [task.answer for task in numina] == [str(i) for i in wanted]
    assert len(read) <= wanted[-1] + 1
    seen = [i for i in range(wanted[-1]) if part_of(f"Problem {i}") == "test"]
    assert dropped == {
        "numina_math": {
            "of a source that is left out": sum(i % 4 in (1, 2) for i in seen),
            "no usable answer": sum(i % 8 == 3 for i in seen),
        }
    }
    with pytest.raises(ValueError, match="numina_math is streamed and needs a limit"):
        load_tasks("numina_math", "test")


# ---- code ----


def test_humaneval_and_mbpp_verify_right_and_wrong_programs(hub):
    [key], [number] = keys_of("train", 1, "HumanEval/{}"), keys_of("train", 1)
    hub("humaneval_plus", {"test": [{**HUMANEVAL, "task_id": key}]})
    hub("mbpp_plus", {"test": [{**MBPP, "task_id": int(number)}]})
    [strlen], [volume] = load_tasks("humaneval_plus", "train"), load_tasks("mbpp_plus", "train")
    assert strlen.tests == (HUMANEVAL["test"], "check(strlen)") and strlen.question.startswith("def strlen")
    assert volume.tests == ("import math", *MBPP["test_list"], MBPP["test"])  # MBPP's own and those of MBPP+
    assert verify(volume, "def find_Volume(l, b, h): return l * b * h // 2") == 0.0  # passes MBPP's own
    assert volume.question == MBPP["prompt"] + "\nDefine find_Volume(a, b, c)."
    block = "```python\n{}\n```"
    right = [
        "def strlen(s):\n    return len(s)",
        "import numpy as np\ndef strlen(s):\n    return np.int64(len(s))",
    ]
    wrong = [
        "def strlen(s):\n    return len(s) or 1",
        "def strlen(s): return 30",
        "def length(s): return len(s)",
        "import sys; sys.exit(0)",
        "class A:\n    def __eq__(self, o): return True\ndef strlen(s): return A()",
    ]
    assert (
        data.verify_batch([strlen] * 7, [block.format(code) for code in right + wrong])
        == [1.0] * 2 + [0.0] * 5
    )
    assert verify(volume, block.format("def find_Volume(x, y, z): return x * y * z / 2")) == 1.0
    assert verify(volume, block.format("def find_Volume(x, y, z): return x * y * z / 3")) == 0.0


def test_tests_of_evalplus_run_apart_from_the_solution_even_if_large():
    numbers = random.Random(0)
    rows = [[[numbers.randint(-(10**6), 10**6) / 10 for _ in range(100)], 0.5] for _ in range(300)]
    results = [sum(x for x in values if x > low) / 3 for values, low in rows]
    tests = (
        HUMANEVAL["test"]
        .replace("inputs = [[''], ['x'], ['asdasnakj'], ['1' * 30]]", f"inputs = {rows!r}")
        .replace("results = [0, 1, 9, 30]", f"results = {results!r}"),
        "check(total)",
    )
    assert len(tests[0]) > 200_000
    assert survey(ast.parse("\n".join(tests))) == (["total"], [], False)
    program = "def total(values, low):\n    return sum(x for x in values if x {} low) / 3"
    assert data.verify_code(program.format(">"), tests) == 1.0
    assert data.verify_code(program.format("<"), tests) == 0.0
    assert (
        data.verify_code("import math\n" + program.format(">").replace("sum", "math.fsum"), tests) == 1.0
    )  # within 1e-6


def test_signatures():
    assert signatures(["assert f(1, 2) == g([3])[0]"]) == {"f": "f(a, b)", "g": "g(a)"}
    assert signatures(["assert f(1, 2, key=3) == 1"]) == {"f": "f(a, b, c)"}
    assert signatures(["s = Stack()", "s.push(1)", "assert s.pop() == 1"]) == {"Stack": "Stack()"}
    assert signatures([HUMANEVAL["test"], "check(strlen)"]) == {"strlen": "strlen"}
    with pytest.raises(ValueError, match="statements"):
        signatures(["assert f(1 == 2"])


def test_a_hint_is_given_only_where_the_question_does_not_name_the_function(tmp_path):
    tests = ["assert count([True, False]) == 1"]
    rows = [
        {"id": str(i), "domain": "code", "question": question, "tests": tests}
        for i, question in enumerate(
            [
                "Write a function to count true values.",
                "Write count(values), the number of true values.",
                "Complete it:\ndef count(values):",
            ]
        )
    ]
    rows[0]["answer"] = "def count(values): return sum(values)"
    path = tmp_path / "mine_train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    tasks = load_tasks(str(path), "train")
    assert [task.question for task in tasks] == [
        rows[0]["question"] + "\nDefine count(a).",
        *(r["question"] for r in rows[1:]),
    ]
    hidden = data.hide_labels(tasks, 0.34, seed=0)
    assert sum(task.labelled for task in hidden) == 1
    assert [make_prompt(task) for task in hidden] == [make_prompt(task) for task in tasks]


@pytest.mark.parametrize("fields, said", [
    ({"question": "6 * 7? \ud83d"}, "half a character"), ({"id": "\udfff"}, "half a character"),
    ({"dataset": 5}, "dataset, question, answer must be strings"),
    ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}}, "choices and tests lists of strings"),
    ({"choices": ["a", 2]}, "choices and tests lists of strings"),
    ({"domain": "code", "tests": {"t": "assert f(1)"}}, "choices and tests lists of strings"),
    ({"domain": "code", "tests": ["assert f(1 == 1"]}, "tests must be Python statements"),
    ({"domain": "code", "tests": [""]}, "tests must be Python statements")])
def test_a_row_that_cannot_be_read_is_named_with_its_line(tmp_path, fields, said):
    path = tmp_path / "mine_train.jsonl"
    path.write_text(json.dumps({"id": "1", "domain": "math", "question": "6 * 7?", "answer": "42", **fields}))
    with pytest.raises(ValueError, match=f"mine_train.jsonl:1: .*{said}"):
        data.read_jsonl(path)


def test_references_that_fail_their_own_tests_are_dropped_and_made_good(hub):
    numbers = keys_of("train", 40)
    rows = [
        {
            "task_id": int(n),
            "prompt": f"Add {n}.",
            "test_imports": [],
            "test_list": [f"assert add{n}(1) == {n} + 1"],
            "test": f"for i in range(3):\n    assert add{n}(i) == {n} + i\n",
            "code": f"def add{n}(x): return x + {n}" if i % 4 else f"def add{n}(x): return {n}",
        }
        for i, n in enumerate(numbers)
    ]
    held = [{**rows[1], "task_id": int(n), "prompt": f"Test {n}."} for n in keys_of("test", 3)]
    hub("mbpp_plus", {"test": rows + held})
    train, test, dropped = load_splits("mbpp_plus")
    assert (len(train), len(test), dropped) == (30, 3, {"mbpp_plus": {"reference fails its tests": 10}})
    train, _, dropped = load_splits("mbpp_plus", train_limit=28)
    assert len(train) == 28 and 8 <= dropped["mbpp_plus"]["reference fails its tests"] <= 10
    assert all(verify(task, task.answer) for task in train[:3])


# ---- splits ----


def choice(question, *choices, answer="A"):
    return {
        "id": question,
        "question": question,
        "answerKey": answer,
        "choices": {"text": list(choices), "label": list("ABCD")[: len(choices)]},
    }


def test_training_questions_that_stand_in_any_test_set_are_dropped(hub):
    hub(
        "arc_c",
        {
            "train": [choice(f"Train {i}?", "x", "y") for i in range(30)]
            + [
                choice("what  is WATER", "b!", "a"),
                choice("What is water?", "a", "c"),
                choice("Train 3", "Y", "X."),
            ],
            "test": [choice("What is water?", "a", "b"), choice("Held?", "a", "b"), choice("held", "b", "a")],
        },
    )
    hub(
        "obqa",
        {
            "train": [
                {**choice("s", "x", "y"), "question_stem": stem}
                for stem in ("One?", "Two?", "goal", "train 4?")
            ],
            "test": [
                {**choice("s", "x", "y"), "question_stem": "two"},
                {**choice("s", "a", "b"), "question_stem": "Held?"},  # arc_c tests it, too
            ],
        },
    )
    hub("piqa", {"validation": [{"goal": "Goal", "sol1": "y", "sol2": "x", "label": 0}]})
    train, test, dropped = load_splits("arc_c,obqa", "piqa")
    assert dropped == {
        "arc_c": {"in a test set": 1, "asked before": 2},
        "obqa": {"in a test set": 2, "asked before": 1},
    }
    assert Counter(task.dataset for task in train) == {"arc_c": 31, "obqa": 1}
    assert Counter(task.dataset for task in test) == {"arc_c": 2, "obqa": 2, "piqa": 1}
    assert "What is water?" in {task.question for task in train}  # with other choices it is another question
    train, _, _ = load_splits("arc_c,obqa", "piqa", train_limit=31)
    assert Counter(task.dataset for task in train) == {
        "arc_c": 31,
        "obqa": 1,
    }  # the limit is met in spite of the drops
    both = [choice(f"In both {i}?", "a", "b") for i in range(20)]
    hub("arc_c", {"train": both + [choice("Own", "a", "b")], "test": both})
    train, test, _ = load_splits("arc_c", test_limit=3)
    assert (len(train), len(test)) == (1, 3)  # a test question that is not drawn is not trained on either


def test_official_test_rows_are_never_trained_on_and_draws_know_their_seed(hub):
    row = ROWS["siqa"][0]
    hub(
        "gsm8k",
        {
            split: [{"question": f"{split} {i}", "answer": f"#### {i}"} for i in range(60)]
            for split in ("train", "test")
        },
    )
    hub(
        "siqa",
        {
            split: [{**row, "context": f"{split} {i}."} for i in range(60)]
            for split in ("train", "validation")
        },
    )
    train, test, dropped = load_splits("gsm8k", "siqa", train_limit=20, test_limit=10, seed=1)
    assert not dropped and (len(train), len(test)) == (20, 20)
    assert all(task.id.startswith("gsm8k/train/") and task.question.startswith("train") for task in train)
    assert Counter(task.id.rpartition("/")[0] for task in test) == {"gsm8k/test": 10, "siqa/validation": 10}
    again, same, _ = load_splits("gsm8k", "siqa", train_limit=20, test_limit=10, seed=2)
    assert same == test and again != train
    assert load_splits("gsm8k", "siqa", 20, 10, 1)[:2] == (train, test)
    assert (
        load_tasks("gsm8k", "train", 20, seed=1) == train
        and load_tasks("gsm8k,siqa", "test", 10, seed=5) == test
    )
    assert len({task.id for task in train + test}) == 40


def test_sets_of_one_split_are_cut_by_checksum_and_gsm_symbolic_by_template(hub):
    rows = [
        {
            **ROWS["gsm_symbolic"][0],
            "original_id": template,
            "instance": i,
            "question": f"Template {template} with {i}",
        }
        for template in range(100)
        for i in range(5)
    ]
    hub("gsm_symbolic", {"test": rows})
    train, test, _ = load_splits("gsm_symbolic")
    templates = [{int(task.question.split()[1]) for task in part} for part in (train, test)]
    assert templates == [{i for i in range(100) if part_of(i) == part} for part in ("train", "test")]
    assert not templates[0] & templates[1]
    assert len(train) == 5 * len(templates[0]) and len(templates[0]) > len(templates[1]) > 20
    assert len({task.id for task in train + test}) == len(train) + len(test)
    assert len(templates[0] | templates[1]) < 95  # the paper's validation part is nowhere


def test_the_world_takes_the_same_path(tmp_path):
    train, test, dropped = load_splits("world", seed=3)
    assert (
        dropped == {}
        and train == load_tasks("world", "train", seed=3)
        and test == load_tasks("world", "test")
    )
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": str(i), "domain": "math", "question": f"{i // 2} + 1", "answer": str(i // 2 + 1)}
        for i in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    train, test, dropped = load_splits(f"world,{path}", train_limit=10, test_limit=5)
    assert [Counter(task.dataset for task in part) for part in (train, test)] == [
        {"world": 10, "mine": 10},
        {"world": 5, "mine": 5},
    ]
    train, test, dropped = load_splits(str(path))
    questions = [[question_key(task.question) for task in part] for part in (train, test)]
    assert not set(questions[0]) & set(questions[1]) and dropped[str(path)]
    assert all(len(set(part)) == len(part) for part in questions)


def test_ids_of_two_files_must_differ(tmp_path):
    row = {"id": "mine/1", "dataset": "mine", "domain": "math", "question": "1", "answer": "1"}
    for split in ("train", "test"):
        (tmp_path / f"mine_{split}.jsonl").write_text(json.dumps({**row, "question": split}))
        (tmp_path / f"own_{split}.jsonl").write_text(
            json.dumps({**row, "id": "1", "dataset": None, "question": split})
        )
    train, test, _ = load_splits(str(tmp_path / "own_train.jsonl"))
    assert [(task.id, task.dataset) for task in train + test] == [
        ("own_train/1", "own"),
        ("own_test/1", "own"),
    ]
    with pytest.raises(ValueError, match="2 tasks have the id 'mine/1'"):
        load_splits(str(tmp_path / "mine_test.jsonl"))


# ---- errors ----


def raising(error):
    def load_dataset(*args, **kwargs):
        raise error

    return load_dataset


def test_errors_are_one_line_that_names_the_set(hub, monkeypatch, tmp_path):
    hub("gsm8k", {"train": [{"question": "q", "solution": "s"}]})
    with pytest.raises(
        ValueError,
        match="^tasks: gsm8k: openai/gsm8k has no column 'answer', only question, solution; .*BENCHMARKS",
    ):
        load_tasks("gsm8k", "train")
    with pytest.raises(ValueError, match="'gsm9k' is neither .*: gsm8k, math, gsm_symbolic, .*siqa$"):
        load_tasks("gsm8k,gsm9k", "train")
    with pytest.raises(ValueError, match="ood: piqa also stands in tasks"):
        load_splits("gsm8k,piqa", "piqa,siqa")
    gated = datasets.exceptions.DatasetNotFoundError(
        "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub."
    )
    for error, message in (
        (
            gated,
            "^tasks: gpqa: .*ask for access at https://huggingface.co/datasets/Idavidrein/gpqa and log in",
        ),
        (ConnectionError("no route"), "^tasks: gpqa: the hub is out of reach .*HF_ENDPOINT.*no route"),
        (
            ValueError("Unknown split"),
            "^tasks: gpqa: Idavidrein/gpqa is not as support/benchmarks.py says: Unknown split",
        ),
    ):
        monkeypatch.setattr(datasets, "load_dataset", raising(error))
        with pytest.raises((ValueError, ConnectionError), match=message) as caught:
            load_tasks("gpqa", "train")
        assert "\n" not in str(caught.value)


def run(code, endpoint="http://127.0.0.1:9", **environment):
    own = {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(Path(data.__file__).parent), "HF_HUB_OFFLINE": "0"}
    for name in (
        "HF_DATASETS_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_DATASETS_CACHE",
    ):
        own[name] = ""  # as if the caller had exported nothing
    environment = {name: value for name, value in {**os.environ, **own, **environment}.items() if value}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def broken_hub():
    """A server that hangs up on everyone: its address, and a list with an entry for every call."""
    server, calls = socket.create_server(("127.0.0.1", 0)), []

    def hang_up():
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, address = server.accept()
                calls.append(address)
                connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def test_a_hub_out_of_reach_is_asked_once_and_caches_still_serve(broken_hub, tmp_path):
    endpoint, calls = broken_hub
    code = """if True:
        import data, transformers
        from support import benchmarks
        for name in ("gsm8k", "arc_c"):
            try:
                data.load_tasks(name, "test")
            except ConnectionError as error:
                print(error)
        for name in ("a/b", "a/c"):
            try:
                benchmarks.reach_hub(name)
                print(transformers.AutoConfig.from_pretrained(name).model_type)
            except OSError as error:
                print(str(error).splitlines()[0])
    """
    cached = tmp_path / "hub" / "models--a--b"
    (cached / "snapshots" / "1").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    (cached / "snapshots" / "1" / "config.json").write_text('{"model_type": "llama"}')
    done = run(code, endpoint, HF_HOME=str(tmp_path))
    gsm8k, arc, here, missing = done.stdout.splitlines()
    assert (
        gsm8k.startswith("tasks: gsm8k: the hub is out of reach and openai/gsm8k is not in its cache")
        and "arc_c" in arc
    )
    assert here == "llama" and missing.startswith("We couldn't connect to")
    assert done.stderr.count(f"{endpoint} is out of reach") == 1
    assert len(calls) == 1  # the libraries by themselves call six times for every file
    assert benchmarks.hub_error(endpoint) == benchmarks.hub_error(endpoint) is not None and len(calls) == 2


def test_a_hub_that_refuses_is_within_reach():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 to everyone
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert benchmarks.hub_error(f"http://127.0.0.1:{server.server_port}") is None
    server.server_close()


def test_what_needs_no_hub_does_not_look_for_one(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "hub_error", lambda endpoint: pytest.fail("looked for the hub"))
    benchmarks.reach_hub(str(tmp_path))
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    benchmarks.reach_hub("a/b")
    done = run(
        "import sys, data; print({'torch', 'datasets', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n"


# ---- a domain of one's own ----


def test_a_domain_of_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "shout.jsonl"
    rows = [{"id": str(i), "domain": "shout", "question": f"Say {i}.", "answer": f"N{i}!"} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ValueError, match="shout.jsonl:1: domain 'shout' is not one of math, qa, code; .*data.VERIFIERS"
    ):
        load_tasks(str(path), "train")
    monkeypatch.setitem(data.INSTRUCTIONS, "shout", "Shout the answer after ####.")
    monkeypatch.setitem(data.VERIFIERS, "shout", lambda response, answer: response.count(answer) / 2)
    train, test, dropped = load_splits(str(path))
    assert not dropped and len(train) + len(test) == 30
    assert make_prompt(train[0]).endswith("\nShout the answer after ####.")
    code = Task("c", "d", "code", "?", tests=("assert f() == 1",))
    assert data.verify_batch(
        [train[0], code, train[1]], [train[0].answer, "def f(): return 1", train[1].answer * 2]
    ) == [0.5, 1.0, 1.0]
    assert data.split_response("Well.\n#### N1! ", "shout") == ("Well.\n", "N1!")
    assert data.split_response("no marker", "shout") == ("no marker", "")
    keys = [
        data.answer_key(train[0], response)
        for response in ("#### N1 x", "so #### n1   X\n", "#### N2", "N1 x", "####")
    ]
    assert keys[0] == keys[1] != keys[2] and keys[3:] == ["n1 x", "####"]
    hidden = data.hide_labels(train, 0.5, seed=0)
    with pytest.raises(ValueError, match="no label"):
        verify(next(task for task in hidden if not task.labelled), "x")


# ---- averages ----

SMALL = {*benchmarks.OUT_OF_DOMAIN, "gpqa", "humaneval_plus", "mbpp_plus"}
LARGE = [name for name in BENCHMARKS if name not in SMALL]


def test_the_paper_weights_by_questions():
    """Its ten test sets: seven of 450 questions and three small ones, 3,329 in all; accuracies made up."""
    questions = {**dict.fromkeys(LARGE, 450), "gpqa": 60, "humaneval_plus": 39, "mbpp_plus": 80}
    accuracy = {**dict.fromkeys(LARGE, 0.8), "gpqa": 0.3, "humaneval_plus": 0.6, "mbpp_plus": 0.5}
    right = 7 * 360 + 18 + 23.4 + 40  # questions answered rightly
    assert sum(questions.values()) == 3329
    assert benchmarks.averages(accuracy, questions) == pytest.approx((right / 3329, (5.6 + 1.4) / 10))
    same = dict.fromkeys(("piqa", "siqa", "numina_math"), 450)
    assert benchmarks.averages({"piqa": 0.7, "siqa": 0.6, "numina_math": 0.2}, same) == pytest.approx(
        (0.5, 0.5)
    )
