"""Which tasks keep their labels, which labels to buy, and what becomes of the memory in training."""

import json

import pytest
import torch

import train
from data import load_tasks
from memreward import ExperienceMemory
from support.encoders import hash_group


def greedy(cosines, count):
    """Facility location by trying every candidate, straight from its definition."""
    picked = []
    for _ in range(count):

        def worth(j):
            return round(sum(max(0.0, *(row[k] for k in [*picked, j])) for row in cosines), 4)

        picked.append(max((j for j in range(len(cosines)) if j not in picked), key=worth))
    return picked


def test_coverage_keeps_the_labels_of_the_greedy_search(quick, tmp_path):
    train.train(quick(mode="r1p", label_pick="coverage", label_ratio=0.24, train_tasks=24, steps=1))  # 5.76
    tasks = load_tasks("world", "train", 24)
    queries = torch.stack([hash_group(task.question, task.choices or (), [("", "")])[0] for task in tasks])
    wanted = {tasks[row].id for row in greedy((queries @ queries.T).tolist(), 6)}
    chosen = json.loads((tmp_path / "run" / "tasks.json").read_text())
    assert set(chosen["labelled"]) == wanted and len(chosen["unlabelled"]) == 18


def test_pick_orders_what_has_no_label(tmp_path, capsys):
    questions = ["cats and dogs", "cats and mice", "dogs and cats", "red or blue", "blue or red", "7 plus 9"]
    rows = [{"id": f"q{i}", "domain": "math", "question": text, "answer": "1" if i == 0 else None}
            for i, text in enumerate(questions)]
    (tmp_path / "mine_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = str(tmp_path / "mine_train.jsonl")
    train.main(["pick", "--tasks", tasks, "--output_dir", str(tmp_path / "picks")])
    lines = [json.loads(line) for line in (tmp_path / "picks" / "picks.jsonl").read_text().splitlines()]
    order = [line["id"].rpartition("/")[2] for line in lines]
    assert sorted(order) == ["q1", "q2", "q3", "q4", "q5"]  # q0 has its label and counts as picked
    assert order[0] in ("q3", "q4")  # two questions like nothing that is labelled
    assert lines[0]["covers"] >= 2 / 6 - 1e-3  # both at least
    adds, coverage = ([line[name] for line in lines] for name in ("adds", "coverage"))
    assert adds == sorted(adds, reverse=True) and coverage == sorted(coverage)
    assert coverage[-1] == pytest.approx(1.0, abs=1e-3)
    assert "6 training tasks, 1 labelled" in capsys.readouterr().out


def test_pick_takes_every_task_however_few_a_run_trains_on(tmp_path):
    count = train.Config.train_tasks + 5
    rows = [{"id": str(i), "domain": "math", "question": f"{i} + 1?", "answer": None} for i in range(count)]
    (tmp_path / "mine_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = str(tmp_path / "mine_train.jsonl")
    train.main(["pick", "--tasks", tasks, "--output_dir", str(tmp_path / "picks")])
    assert len((tmp_path / "picks" / "picks.jsonl").read_text().splitlines()) == count


def test_pick_says_which_labels_will_test(tmp_path, capsys):
    for name in ("mine.jsonl", "mine_train.jsonl"):
        rows = [{"id": str(i), "domain": "math", "question": f"{i} + 1?", "answer": None} for i in range(4)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        train.main(["pick", "--tasks", str(tmp_path / name), "--output_dir", str(tmp_path / f"of {name}")])
        told = f"of {tmp_path / name} three in ten labels will test instead of train"
        assert (told in capsys.readouterr().out) == (name == "mine.jsonl")


@pytest.mark.parametrize("encoder", ["hash", "policy"])
def test_queries_are_embedded_in_the_order_of_the_tasks(encoder):
    """More tasks than are embedded at a time; of the policy the mean of the prompt's last hidden states."""
    from lab.label_pick import embed_queries

    run = train.start(train.Config(mode="r1p", label_pick="coverage", encoder=encoder))
    tasks = load_tasks("world", "train", 150)
    found = embed_queries(run, tasks)
    assert len(found) == 150
    for row in (0, 1, 2, 127, 128, 149):
        if encoder == "hash":
            expected = hash_group(tasks[row].question, tasks[row].choices or (), [("", "")])[0]
        else:
            ids = run.tokenizer(run.render(tasks[row]), add_special_tokens=False).input_ids
            with torch.no_grad():
                states = run.reference(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("memory, grows, fits", [("frozen", False, 1), ("grow", True, 1), ("refit", True, 2)])
def test_what_becomes_of_the_memory(quick, monkeypatch, memory, grows, fits):
    """Two steps on labelled tasks alone: rollouts join unless the memory is frozen; only refit fits again."""
    calls = []
    for name in ("remember", "fit"):
        original = getattr(ExperienceMemory, name)

        def call(self, *args, _name=name, _original=original, **settings):
            calls.append(_name)
            return _original(self, *args, **settings)

        monkeypatch.setattr(ExperienceMemory, name, call)
    train.train(quick(memory=memory, refit_every=2, label_ratio=1.0, train_tasks=12))
    assert calls[:2] == ["remember", "fit"] and calls.count("fit") == fits
    assert calls[2:].count("remember") == (2 if grows else 0)
