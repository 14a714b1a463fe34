"""Tasks, labels and the built-in small world with its policy."""

import itertools
import json
import zlib
from collections import Counter

import pytest
import torch

import data
from data import Task, hide_labels, load_splits, load_tasks, make_prompt, small_world, spend_labels, verify
from lab.rollouts import read_rollouts
from support.answers import question_key
from support.world import MISCONCEPTION


def take(part, seed, count):
    return list(itertools.islice(small_world(part, seed), count))


@pytest.fixture  # a new one for each test: accelerate forgets its state between tests
def policy():
    from train import Config, start

    return start(Config(mode="r1p"))


def test_parts_never_share_a_question():
    questions = {
        part: {item.task.question for seed in range(3) for item in take(part, seed, 1500)}
        for part in ("train", "test", "pretrain")
    }
    assert not questions["train"] & questions["test"]
    assert not questions["pretrain"] & (questions["train"] | questions["test"])
    assert len({item.task.question for item in take("test", 0, 900)}) == 900  # nor does a part repeat one


def test_world_ood_is_worded_as_nothing_else_and_never_trained_on():
    from support.world import CODE, MATH, QA

    wordings = [row[-3:] for table in (MATH, QA, CODE) for row in table]
    assert len({wording for three in wordings for wording in three}) == 72
    for first, second, third in wordings:  # the same slots, so that nothing is missing to answer it
        slots = [
            {piece.partition("}")[0] for piece in text.split("{")[1:]} - {"m"}
            for text in (first, second, third)
        ]
        assert slots[0] == slots[1] == slots[2]
    ood = load_tasks("world_ood", "test")
    assert Counter(task.domain for task in ood) == {"math": 200, "qa": 200, "code": 200}
    assert {task.dataset for task in ood} == {"world_ood"} and load_tasks("world_ood", "test", seed=7) == ood
    assert len({item.family for item in take("ood", 0, 400)}) == 24
    others = {item.task.question for part in ("train", "test", "pretrain") for item in take(part, 0, 3000)}
    assert not others & {task.question for task in ood}
    train, test, dropped = load_splits("world", "world_ood", 600, 90)
    assert train == load_tasks("world", "train") and not dropped
    assert Counter(task.dataset for task in test) == {"world": 90, "world_ood": 90}
    for wrong in (lambda: load_splits("world,world_ood"), lambda: load_tasks("world_ood", "train")):
        with pytest.raises(ValueError, match="world_ood is for testing only"):
            wrong()


def test_the_policy_knows_every_word_of_world_ood_and_is_not_done_with_it(policy):
    from lab.evaluate import evaluate
    from lab.runs import render

    tasks = load_tasks("world_ood", "test", limit=150)
    unknown = policy.tokenizer.unk_token_id
    assert all(unknown not in policy.tokenizer(render(policy.tokenizer, task)).input_ids for task in tasks)
    policy.config.eval_samples = 1
    assert 0.4 < evaluate(policy, tasks)["greedy"]["all"] < 0.8


def test_sizes_and_domains():
    train, test = load_tasks("world", "train", seed=1), load_tasks("world", "test")
    assert (len(train), len(test)) == (600, 600)
    assert Counter(task.domain for task in test) == {"math": 200, "qa": 200, "code": 200}
    assert len({item.family for item in take("train", 0, 400)}) == 24
    assert load_tasks("world", "train", seed=1) == train != load_tasks("world", "train", seed=2)
    assert load_tasks("world", "test", seed=1) == test
    assert len({task.id for task in train + test}) == 1200


@pytest.mark.parametrize("part", ["train", "ood"])
def test_only_the_right_response_is_right(part):
    items = take(part, 5, 72)
    tasks = [item.task for item in items]
    verdicts = [
        data.verify_batch(tasks, [getattr(item, name) for item in items])
        for name in ("right", "mistake", "slip")
    ]
    assert verdicts[0] == [1.0] * len(items)
    assert verdicts[1] == verdicts[2] == [0.0] * len(items)


def test_the_usual_mistake_fails_every_single_test():
    """So no small number of tests, and no lucky arguments, make it right. The programs are our own."""
    programs = [item for item in take("train", 6, 4500) if item.task.domain == "code"]
    for item in programs:
        names = {}
        assert len(item.task.tests) == 4
        exec(data.extract_code(item.mistake), names)
        for test in item.task.tests:
            with pytest.raises(AssertionError):
                exec(test, names)


def test_demonstrations_are_right_as_often_as_stated():
    import random

    item, rng = take("train", 0, 1)[0], random.Random(0)
    drawn = Counter(item.draw(rng) for _ in range(4000))
    assert drawn[item.right] / 4000 == pytest.approx(item.probability, abs=0.03)
    wrong = drawn[item.mistake] + drawn[item.slip]
    assert drawn[item.mistake] / wrong == pytest.approx(MISCONCEPTION, abs=0.03)


def test_hidden_labels_are_gone_and_prompts_do_not_tell():
    tasks = load_tasks("world", "train", seed=3)
    hidden = hide_labels(tasks, 0.2, seed=3)
    assert sum(task.labelled for task in hidden) == 120
    assert all(task.answer is None and task.tests is None for task in hidden if not task.labelled)
    assert [make_prompt(task) for task in tasks] == [make_prompt(task) for task in hidden]
    assert hide_labels(tasks, 0.2, seed=4) != hidden == hide_labels(tasks, 0.2, seed=3)
    assert all(task.labelled for task in tasks), "hide_labels changed its input"
    with pytest.raises(ValueError, match="label"):
        verify(next(task for task in hidden if not task.labelled), "#### 1")


def test_the_number_of_labels_is_rounded():
    tasks = [Task(str(i), "d", "math", f"{i}?", answer="1") for i in range(13)]
    assert sum(task.labelled for task in hide_labels(tasks, 0.2, 0)) == 3  # of 2.6
    assert not Task("c", "d", "code", "?", answer="a reference solution is no test").labelled


def test_rewards_of_programs_come_back_in_their_order():
    task = Task("c", "d", "code", "Write f(x).", tests=("assert f(2) == 4",))
    programs = [f"```python\ndef f(x):\n    return x + {i}\n```" for i in range(4)]
    assert data.verify_batch([task] * 4, programs) == [0, 0, 1, 0]


def test_a_thought_is_thinking():
    parts = data.split_response("<think>a</think>b\n#### 4", "math")
    assert parts == ("<think>a</think>b\n", "4")


def test_the_world_is_the_same_in_every_process():
    """Parts and ids are told by the CRC-32 of a question; Python's own hash is another in every process."""
    for item in take("train", 0, 20):
        checksum = zlib.crc32(item.task.question.encode())
        assert checksum % 4 == 0 and item.task.id == f"world/train/{checksum:08x}"


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan")])
def test_label_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match="label_ratio"):
        hide_labels([Task("a", "d", "math", "?")], ratio, 0)


def test_jsonl_round_trip_and_split(tmp_path):
    rows = [
        {"id": str(i), "domain": "qa", "question": f"q{i}", "choices": ["x", "y"], "answer": "B"}
        for i in range(50)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    train, test = load_tasks(str(path), "train"), load_tasks(str(path), "test")
    assert len(train) + len(test) == 50 and len(train) > len(test) > 0
    assert not {task.id for task in train} & {task.id for task in test}
    assert train[0].choices == ("x", "y") and train[0].dataset == "mine"
    assert len(load_tasks(str(path), "train", limit=5, seed=1)) == 5
    bare = write(tmp_path / "bare_train.jsonl", {"domain": "code", "tests": []}, {"domain": "code"})
    assert [task.labelled for task in load_tasks(str(bare), "train")] == [False, False]
    other = write(tmp_path / "cut.jsonl", *({"answer": "1"} for _ in range(12)))
    names = [task.id.rpartition("/")[2] for task in load_tasks(str(other), "train")]
    assert sorted(names, key=int) == "1 3 5 6 7 8 10".split()  # by crc32 of the id, in every process
    path.rename(tmp_path / "mine_train.jsonl")
    (tmp_path / "mine_test.jsonl").write_text(json.dumps(rows[0]))
    assert len(load_tasks(str(tmp_path / "mine_train.jsonl"), "train")) == 50
    assert len(load_tasks(str(tmp_path / "mine_train.jsonl"), "test")) == 1


MALFORMED = [
    "{",
    "[]",
    '{"id": ',
    '{"id": "1", "domain": "math"}',
    '{"id": "1", "domain": "art", "question": "?"}',
    '{"id": 1, "domain": "math", "question": "?"}',
    '{"id": "1", "domain": "math", "question": "?", "answer": true}',
    '{"id": "1", "domain": "math", "question": "?", "answer": [5]}',
    '{"id": "1", "domain": "math", "question": "?", "answer": Infinity}',
    '{"id": "1", "domain": "code", "question": "?", "tests": "assert f()"}',
    '{"id": "0", "domain": "math", "question": "?"}',
]


@pytest.mark.parametrize("line", MALFORMED)
def test_malformed_jsonl_names_file_and_line(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "0", "domain": "math", "question": "1?", "answer": "1"}\n' + line)
    with pytest.raises(ValueError, match="bad.jsonl:2: ") as caught:
        load_tasks(str(path), "train")
    assert "\n" not in str(caught.value)


def write(path, *rows):
    """A JSONL file of tasks with an id and, unless they say otherwise, the domain math."""
    rows = [{"id": str(i), "domain": "math", "question": f"{i}?"} | row for i, row in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    "label, choices, letter",
    [
        ("B", "x y", "B"),
        ("b", "x y", "B"),
        ("(B)", "x y", "B"),
        ("B.", "x y", "B"),
        (2, "x y", "B"),
        ("2", "x y", "B"),
        ("Y", "x y", "B"),
        ("dry wood", "ice|dry wood", "B"),
        (" Dry Wood ", "ice|dry wood", "B"),
        ("2", "5 2", "B"),
        (4, "3 5 7 4", "D"),
        ("A", "B A", "A"),
        ("J", "q r s t u v w x y z", "J"),
        (10, "q r s t u v w x y z", "J"),
    ],
)
def test_labels_of_choices_become_letters(tmp_path, label, choices, letter):
    choices = choices.split("|") if "|" in choices else choices.split()
    path = write(tmp_path / "t_train.jsonl", {"domain": "qa", "choices": choices, "answer": label})
    [task] = load_tasks(str(path), "train")
    assert task.answer == letter and verify(task, f"#### {letter}") == 1.0


@pytest.mark.parametrize(
    "label, choices, problem",
    [
        ("C", "x y", "is no choice"),
        (0, "x y", "is no choice"),
        (3, "x y", "is no choice"),
        ("", "x y", "is no choice"),
        ("", "x ", "is no choice"),
        ("maybe x", "x y", "is no choice"),
        ("3", "2 3 4", "means two choices"),
        (1, "4 1 7", "means two choices"),
        ("x", "x x", "means two choices"),
        (1.0, "x y", "is no choice"),
        ("A", "a b c d e f g h i j k", "11 choices are more than the 10"),
        ("Paris", "", "give choices, or a domain of your own"),
    ],
)
def test_labels_that_are_no_choice_are_refused_with_what_to_do(tmp_path, label, choices, problem):
    path = write(tmp_path / "t_train.jsonl", {"domain": "qa", "choices": choices.split(), "answer": label})
    with pytest.raises(ValueError, match=f"t_train.jsonl:1: .*{problem}"):
        load_tasks(str(path), "train")


def test_letters_where_the_choices_stand_in_the_question_and_numbers_as_answers(tmp_path):
    path = write(
        tmp_path / "t_train.jsonl",
        {"domain": "qa", "question": "A ice B wood: which burns?", "answer": "B"},
        {"answer": 42},
        {"answer": -0.5},
        {"answer": 1e-7},
        {"answer": 12345678901234567890},
    )
    answers = [task.answer for task in load_tasks(str(path), "train")]
    assert answers == ["B", "42", "-0.5", "0.0000001", "12345678901234567890"]


def test_lines_end_at_newlines_only(tmp_path):
    text = "one\u2028two\u2029three\u0085four\x0bfive"
    path = tmp_path / "t_train.jsonl"
    row = {
        "id": "0",
        "domain": "math",
        "question": text,
        "answer": "1",
        "rollouts": [{"response": text, "reward": 0}],
    }
    lines = (
        json.dumps(row, ensure_ascii=False) + "\r\n\r\n" + json.dumps({**row, "id": "1", "question": "other"})
    )
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [task.question for task in load_tasks(str(path), "train")] == [text, "other"]
    assert read_rollouts(path)[1] == [text, text]
    path.write_bytes(lines.encode("utf-16"))
    with pytest.raises(ValueError, match="t_train.jsonl: not UTF-8"):
        load_tasks(str(path), "train")


README_ROWS = """
{"id": "1", "domain": "math", "question": "6 * 7?", "answer": "42"}
{"id": "2", "domain": "qa", "question": "Which burns?", "choices": ["ice", "wood"], "answer": "B"}
{"id": "3", "domain": "code", "question": "Write double(x).", "tests": ["assert double(4) == 8"]}
{"id": "4", "domain": "math", "question": "7 * 8?", "answer": null}
"""


def test_the_rows_of_the_readme_are_a_data_set(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(README_ROWS)
    train, test, dropped = load_splits(str(path))
    assert [task.id for task in train] == ["mine/1", "mine/3", "mine/4"] and [task.id for task in test] == [
        "mine/2"
    ]
    assert not dropped and all(task.labelled for task in test)
    tasks, words = spend_labels(train, 0.2, seed=0)
    assert tasks == train and words.startswith("all 2 labels of 3 training tasks are used")


def test_a_partly_labelled_file_keeps_all_its_labels(tmp_path):
    rows = [{"answer": str(i)} if i % 5 == 0 else {} for i in range(100)]
    train, test, dropped = load_splits(str(write(tmp_path / "mine.jsonl", *rows)))
    assert all(task.labelled for task in test) and len(train) + len(test) == 100 and not dropped
    labelled = [task for task in train if task.labelled]
    assert len(labelled) + len(test) == 20 and 0 < len(test) < len(labelled)
    tasks, _ = spend_labels(train, 0.2, seed=0)
    assert [task for task in tasks if task.labelled] == labelled
    write(tmp_path / "own_train.jsonl", *({"question": f"{i} + 0?"} | row for i, row in enumerate(rows)))
    write(tmp_path / "own_test.jsonl", *rows)
    train, test, dropped = load_splits(str(tmp_path / "own_train.jsonl"))
    assert (len(train), len(test)) == (100, 20) and dropped == {
        str(tmp_path / "own_train.jsonl"): {"no label to test with": 80}
    }


@pytest.mark.parametrize(("limit", "count"), [(6, 13), (20, 20), (None, 60)])
def test_the_limit_of_training_tasks_leaves_out_no_label(tmp_path, limit, count):
    """12 of 60 rows have a label. Below that many the limit gives way, by one more task, so that it stays
    what it is: a file that lacks labels."""
    rows = [{"question": f"{i} + 0?", "answer": str(i) if i % 5 == 0 else None} for i in range(60)]
    write(tmp_path / "own_train.jsonl", *rows)
    write(tmp_path / "own_test.jsonl", {"answer": "1", "question": "another"})
    for seed in range(3):
        train, _, _ = load_splits(str(tmp_path / "own_train.jsonl"), train_limit=limit, seed=seed)
        assert len(train) == count and sum(task.labelled for task in train) == 12
        assert spend_labels(train, 0.2, seed)[1].startswith(f"all 12 labels of {count} training tasks")


def test_of_two_copies_of_a_question_the_labelled_one_stays(tmp_path):
    bare = [{"question": f"{i} + 0?", "answer": None} for i in range(8)]
    write(tmp_path / "own_train.jsonl", *bare, *({**row, "answer": str(i)} for i, row in enumerate(bare[:5])))
    tasks = load_tasks(str(tmp_path / "own_train.jsonl"), "train")
    assert [task.answer for task in tasks] == ["0", "1", "2", "3", "4", None, None, None]


@pytest.mark.parametrize("order", [("pool", "bought"), ("bought", "pool")])
def test_of_copies_in_two_files_the_labelled_one_stays(tmp_path, order):
    """Each file has labels that the other lacks; what neither has is kept once, a test question never."""
    pool = [(f"p{i}", f"{i} + 0?", "6" if i == 6 else None) for i in range(9)]
    bought = [(f"b{i}", f"{i}+0?", str(i) if i < 3 else None) for i in (0, 1, 2, 3, 6, 8, 20)]
    for name, rows in (("pool", pool), ("bought", bought)):
        rows = [dict(zip(("id", "question", "answer"), row)) for row in rows]
        write(tmp_path / f"{name}_train.jsonl", *rows)
    for name in order:
        write(tmp_path / f"{name}_test.jsonl", {"id": f"t {name}", "question": "8 + 0?", "answer": "8"})
    train, _, dropped = load_splits(",".join(str(tmp_path / f"{name}_train.jsonl") for name in order))
    labelled = {task.id.split("/")[1] for task in train if task.labelled}
    others = [question_key(task.question) for task in train if not task.labelled]
    assert labelled == {"p6", "b0", "b1", "b2"}
    assert sorted(others) == sorted(question_key(f"{i} + 0?") for i in (3, 4, 5, 7, 20))
    counts = sum((Counter(reasons) for reasons in dropped.values()), Counter())
    assert counts == {"asked before, no label": 3 + 1 + 1, "in a test set, no label": 2}


def test_labels_that_cannot_be_used_do_not_count_in_the_limit(tmp_path):
    """12 labelled rows ask 3 questions, two more ask for what no answer equals; of 20 others the limit takes
    what is missing."""
    rows = [{"question": f"{i % 3} + 0?", "answer": str(i % 3)} for i in range(12)]
    rows += [{"question": f"Why {i}?", "answer": "The sky is blue because of light"} for i in range(2)]
    rows += [{"question": f"{i} + 0?", "answer": None} for i in range(20)]
    write(tmp_path / "own_train.jsonl", *rows)
    write(tmp_path / "own_test.jsonl", {"answer": "1", "question": "another"})
    for limit, count in ((10, 10), (2, 4)):
        train, _, dropped = load_splits(str(tmp_path / "own_train.jsonl"), train_limit=limit)
        assert len(train) == count and sum(task.labelled for task in train) == 3
        dropped = dropped[str(tmp_path / "own_train.jsonl")]
        assert (dropped["asked before"], dropped["no usable answer"]) == (9, 2)


def test_a_file_lacks_labels_even_where_what_lacks_them_is_left_out(tmp_path):
    """The only row without a label repeats a question, and in the second file has no room."""
    rows = [{"question": f"{i} + 0?", "answer": str(i)} for i in range(20)]
    write(tmp_path / "own_train.jsonl", *rows, {"question": "0+0?", "answer": None})
    write(tmp_path / "own_test.jsonl", {"answer": "1", "question": "another"})
    train, _, dropped = load_splits(str(tmp_path / "own_train.jsonl"))
    assert dropped == {str(tmp_path / "own_train.jsonl"): {"asked before, no label": 1}}
    assert spend_labels(train, 0.2, 0)[1].startswith("4 of 20 labels")
    tasks, words = spend_labels(train, 0.2, 0, partly=True)
    assert tasks == train and words.startswith("all 20 labels of 20 training tasks are used")


def test_an_id_that_begins_like_its_file_is_named_after_it_all_the_same(tmp_path):
    """Else the same ids in both parts would meet."""
    rows = [{"id": f"mine-{i}", "domain": "math", "question": f"{i} + {{}}?", "answer": "1"}
            for i in range(3)]
    for part in ("train", "test"):
        lines = [json.dumps(row | {"question": row["question"].format(part)}) for row in rows]
        (tmp_path / f"mine_{part}.jsonl").write_text("\n".join(lines))
    train, test, _ = load_splits(str(tmp_path / "mine_train.jsonl"))
    assert [task.id for task in train + test] == [f"mine_{part}/mine-{i}" for part in ("train", "test")
                                                  for i in range(3)]


def test_an_experiment_hides_labels_and_says_so():
    tasks = load_tasks("world", "train", limit=50)
    hidden, words = spend_labels(tasks, 0.2, seed=1)
    assert hidden == hide_labels(tasks, 0.2, seed=1) and words.startswith("10 of 50 labels are kept, drawn")
    worth = [task.id for task in reversed(tasks)]
    for ratio, count in ((0.1, 5), (0.3, 15), (1.0, 50)):
        hidden, words = spend_labels(tasks, ratio, 1, picked=["unknown", worth[0], *worth])
        assert {task.id for task in hidden if task.labelled} == set(worth[:count]) and "picked" in words
        assert all(
            task.answer is None and task.tests is None for task in hidden if task.id not in worth[:count]
        )
    with pytest.raises(ValueError, match="label_pick: 3 labelled tasks are picked, 10 keep their label"):
        hide_labels(tasks, 0.2, 1, picked=worth[:3])


def test_unknown_tasks_and_missing_files():
    with pytest.raises(ValueError, match="neither 'world' nor"):
        load_tasks("wrold", "train")
    with pytest.raises(FileNotFoundError, match="no file nowhere.jsonl"):
        load_tasks("nowhere.jsonl", "train")
    with pytest.raises(ValueError, match="split"):
        load_tasks("world", "valid")


def test_tokenizer_round_trip(policy):
    for item in take("test", 0, 300):
        for text in (item.right, item.mistake, item.slip):
            ids = policy.tokenizer(text, add_special_tokens=False).input_ids
            assert policy.tokenizer.unk_token_id not in ids
            assert policy.tokenizer.decode(ids) == text


def test_base_policy_leaves_something_to_find(policy):
    from grpo import sample, uniform_noise
    from lab.runs import render

    tasks = load_tasks("world", "test", limit=150)
    prompts = [render(policy.tokenizer, task) for task in tasks]
    noise = uniform_noise(0, 0, [task.id for task in tasks], 8, 48)
    texts = sample(policy.policy, policy.tokenizer, prompts, 8, 48, noise=noise).texts
    rewards = torch.tensor(data.verify_batch([task for task in tasks for _ in range(8)], texts)).view(150, 8)
    assert 0.3 < rewards.mean() < 0.6
    assert (rewards.amax(1) == 1).float().mean() > 0.85
    assert ((rewards.amin(1) == 0) & (rewards.amax(1) == 1)).float().mean() > 0.5
