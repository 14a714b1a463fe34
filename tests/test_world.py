"""Tasks, labels and the built-in small world with its policy."""

import itertools
import json
from collections import Counter

import pytest
import torch

import data
from data import Task, hide_labels, load_tasks, make_prompt, small_world, verify
from support.world import MISCONCEPTION


def take(part, seed, count):
    return list(itertools.islice(small_world(part, seed), count))


def test_parts_never_share_a_question():
    questions = {part: {item.task.question for seed in range(3) for item in take(part, seed, 1500)}
                 for part in ("train", "test", "pretrain")}  # fmt: skip
    assert not questions["train"] & questions["test"]
    assert not questions["pretrain"] & (questions["train"] | questions["test"])
    assert len({item.task.question for item in take("test", 0, 900)}) == 900  # nor does a part repeat one


def test_sizes_and_domains():
    train, test = load_tasks("world", "train", seed=1), load_tasks("world", "test")
    assert (len(train), len(test)) == (600, 600)
    assert Counter(task.domain for task in test) == {"math": 200, "qa": 200, "code": 200}
    assert len({item.family for item in take("train", 0, 400)}) == 24
    assert load_tasks("world", "train", seed=1) == train != load_tasks("world", "train", seed=2)
    assert load_tasks("world", "test", seed=1) == test
    assert len({task.id for task in train + test}) == 1200


def test_only_the_right_response_is_right():
    items = take("train", 5, 72)
    tasks = [item.task for item in items]
    verdicts = [data.verify_batch(tasks, [getattr(item, name) for item in items]) for name in ("right", "mistake", "slip")]
    assert verdicts[0] == [1.0] * len(items)
    assert verdicts[1] == verdicts[2] == [0.0] * len(items)


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


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan")])
def test_label_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match="label_ratio"):
        hide_labels([Task("a", "d", "math", "?")], ratio, 0)


def test_jsonl_round_trip_and_split(tmp_path):
    rows = [{"id": str(i), "domain": "qa", "question": f"q{i}", "choices": ["x", "y"], "answer": "B"} for i in range(50)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    train, test = load_tasks(str(path), "train"), load_tasks(str(path), "test")
    assert len(train) + len(test) == 50 and len(train) > len(test) > 0
    assert not {task.id for task in train} & {task.id for task in test}
    assert train[0].choices == ("x", "y") and train[0].dataset == "mine"
    assert len(load_tasks(str(path), "train", limit=5, seed=1)) == 5
    path.rename(tmp_path / "mine_train.jsonl")
    (tmp_path / "mine_test.jsonl").write_text(json.dumps(rows[0]))
    assert len(load_tasks(str(tmp_path / "mine_train.jsonl"), "train")) == 50
    assert len(load_tasks(str(tmp_path / "mine_train.jsonl"), "test")) == 1


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "1", "domain": "math"}', '{"id": "1", "domain": "art", "question": "?"}',
                                  '{"id": 1, "domain": "math", "question": "?"}', '{"id": "1", "domain": "math", "question": "?", "answer": 5}',
                                  '{"id": "1", "domain": "code", "question": "?", "tests": "assert f()"}',
                                  '{"id": "0", "domain": "math", "question": "?"}'])
def test_malformed_jsonl_names_file_and_line(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "0", "domain": "math", "question": "1?", "answer": "1"}\n' + line)
    with pytest.raises(ValueError, match="bad.jsonl:2: "):
        load_tasks(str(path), "train")


def test_unknown_tasks_and_missing_files():
    with pytest.raises(ValueError, match="neither 'world' nor"):
        load_tasks("wrold", "train")
    with pytest.raises(FileNotFoundError, match="no file nowhere.jsonl"):
        load_tasks("nowhere.jsonl", "train")
    with pytest.raises(ValueError, match="split"):
        load_tasks("world", "valid")


@pytest.fixture(scope="module")
def policy():
    from train import Config, start

    return start(Config(mode="r1p"))


def test_tokenizer_round_trip(policy):
    for item in take("test", 0, 300):
        for text in (item.right, item.mistake, item.slip):
            ids = policy.tokenizer(text, add_special_tokens=False).input_ids
            assert policy.tokenizer.unk_token_id not in ids
            assert policy.tokenizer.decode(ids) == text


def test_base_policy_leaves_something_to_find(policy):
    from grpo import sample, uniform_noise
    from train import render

    tasks = load_tasks("world", "test", limit=150)
    prompts = [render(policy.tokenizer, task) for task in tasks]
    noise = uniform_noise(0, 0, [task.id for task in tasks], 8, 48)
    texts = sample(policy.policy, policy.tokenizer, prompts, 8, 48, noise=noise).texts
    rewards = torch.tensor(data.verify_batch([task for task in tasks for _ in range(8)], texts)).view(150, 8)
    assert 0.3 < rewards.mean() < 0.6
    assert (rewards.amax(1) == 1).float().mean() > 0.85
    assert ((rewards.amin(1) == 0) & (rewards.amax(1) == 1)).float().mean() > 0.5
