"""What one sees of a run and its memory: the page, the neighbourhood, the map, scores of one's own
responses."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import train
from lab import explain, figures, settings
from lab import map as memory_map


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small run with a memory."""
    folder = tmp_path_factory.mktemp("pictures") / "run"
    train.train(
        train.Config(
            steps=2,
            batch_size=4,
            group_size=4,
            train_tasks=40,
            test_tasks=6,
            eval_samples=0,
            eval_every=2,
            gnn_epochs=5,
            show=0,
            output_dir=str(folder),
        )
    )
    return folder


def test_the_page_shows_the_numbers_of_the_log():
    fit = {"train_loss": [1, 1], "val_loss": [0.7, 0.6], "val_auc": [0.5, 0.6], "kept": 1}
    rows = [
        {"step": 0, "fits": [fit, fit | {"val_loss": [None]}]},
        {"step": 0, "test/greedy/all": 0.4, "drift_since/accuracy": 0.9},
        {
            "step": 1,
            "loss": 0,
            "reward/verified": None,
            "reward/predicted": 0.5,
            "kl": 0.1,
            "seconds/sample": 2.0,
        },
        {
            "step": 2,
            "loss": 0,
            "reward/verified": 0.25,
            "reward/predicted": 0.75,
            "kl": 0.2,
            "seconds/sample": 3.0,
        },
        {"step": 2, "test/greedy/all": 0.6, "audit_since/accuracy": 0.8},
    ]
    assert figures.page(rows) == {
        "reward": {"verified": ([2], [0.25]), "predicted": ([1, 2], [0.5, 0.75])},
        "test accuracy": {"greedy": ([0, 2], [0.4, 0.6])},
        "predicted rewards that are right": {
            "audit (hidden labels)": ([2], [0.8]),
            "drift (held-out labels)": ([0], [0.9]),
        },
        "KL to the reference": {"KL": ([1, 2], [0.1, 0.2])},
        "seconds a step": {"sample": ([1, 2], [2.0, 3.0])},
        "fit of the memory: loss on held-out labels": {"network 1": ([0, 1], [0.7, 0.6])},
    }


def test_watch_draws_until_the_run_has_ended(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0, "kl": 0.1}\n')
    drawn, slept = [], []
    draw = figures.draw_run

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            (tmp_path / "results.json").write_text("{}")

    monkeypatch.setattr(figures, "draw_run", lambda run: drawn.append(run) or draw(run))
    monkeypatch.setattr(figures.time, "sleep", sleep)
    train.main(["plot", str(tmp_path), "--watch", "7"])
    assert slept == [7, 7] and len(drawn) == 3
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_a_neighbourhood_stands_around_its_rollout():
    """Two queries on opposite sides, nearer if more alike; rollouts stand half a step beyond their query."""
    queries = [
        {"id": "a", "cosine": 1.0, "rewards": [1.0, 0.0, 0.0, 0.0], "moved": 0.5},
        {"id": "b", "cosine": 0.5, "rewards": [1.0, 1.0], "moved": -0.25},
    ]
    near = {"id": "a", "rollout": 0, "cosine": 0.9, "reward": 1.0}
    places = figures.neighbourhood({"queries": queries, "thinkings": [near], "answers": []})
    a, thinking, b = places
    assert (a["kind"], a["reward"], a["moved"]) == ("query", 0.25, 0.5) and b["reward"] == 1.0
    assert (a["x"], a["y"]) == pytest.approx((0, 0.7)) and (b["x"], b["y"]) == pytest.approx((0, -1.35))
    assert thinking["kind"] == "thinking" and thinking["of"] == (a["x"], a["y"])
    assert math.dist((thinking["x"], thinking["y"]), thinking["of"]) == pytest.approx(0.5)


def test_principal_components_of_a_line_and_of_a_cross():
    line = torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0], [6.0, 8.0, 0.0]])
    torch.testing.assert_close(memory_map.components(line)[:, 0], torch.tensor([-5.0, 0.0, 5.0]))
    cross = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    expected = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(memory_map.components(cross), expected)


def test_regions_are_named_by_the_words_of_their_questions():
    """Of the rollouts nearest to query 1 half are wrong; of query 0 none; query 2 has too few."""
    questions = ["How many apples are there?"] * 10 + ["How many weeks until spring?"] * 10 + ["How old?"] * 2
    nearest = [0] * 10 + [1] * 10 + [2] * 2
    wrong = [False] * 10 + [True] * 5 + [False] * 5 + [True] * 2
    points = [(0.0, 0.0)] * 10 + [(2.0, 4.0)] * 10 + [(9.0, 9.0)] * 2
    ((middle, words, share, count),) = memory_map.regions(points, wrong, questions, nearest)
    assert middle == pytest.approx((2.0, 4.0)) and (share, count) == (0.5, 10)
    assert words == ["spring", "until", "weeks"]


def test_explain_says_what_is_truly_right_and_draws_it(finished, capsys):
    pytest.importorskip("matplotlib")
    train.main(["explain", str(finished), "--figure"])
    out = capsys.readouterr().out
    assert out.count("predicted reward ") == 6 and "hidden label" not in out  # two rollouts in three domains
    assert out.count("truly right: yes") + out.count("truly right: no") == 6
    assert "near query" in out and "moved the logit by" in out and "like answer" in out
    names = {path.name for path in Path(finished).glob("*.png")}
    assert names == {"explain-math.png", "explain-qa.png", "explain-code.png"}
    train.main(["map", str(finished)])
    assert (Path(finished) / "map.png").read_bytes().startswith(b"\x89PNG")


def test_explain_wants_the_tasks_of_the_run(finished, monkeypatch):
    load = data.load_splits

    def shortened(*args):
        train_tasks, *others = load(*args)
        return train_tasks[1:], *others

    monkeypatch.setattr(data, "load_splits", shortened)
    with pytest.raises(SystemExit, match="tasks: world lacks some of .*: the data changed since it began"):
        train.main(["explain", str(finished)])


def test_runs_that_were_evaluated_at_other_steps_are_not_one_curve(tmp_path):
    pytest.importorskip("matplotlib")
    for seed, steps in enumerate(((0, 50, 100), (0, 100))):
        (tmp_path / f"memreward-0.2-{seed}").mkdir()
        rows = [{"step": step, "greedy": {"all": 0.5}, "audit": {}} for step in steps]
        (tmp_path / f"memreward-0.2-{seed}" / "results.json").write_text(json.dumps({"evaluations": rows}))
    with pytest.raises(SystemExit, match="memreward in .* were not evaluated at the same steps"):
        train.main(["plot", str(tmp_path)])


def test_score_is_what_the_memory_predicts(finished, tmp_path, capsys):
    """Responses of one's own get the memory's predictions, from nodes and features made by hand."""
    from gnn import Groups
    from grpo import token_logprobs
    from lab.rollouts import tokenize_rollouts
    from memreward import answer_features

    task = data.load_tasks("world", "test", 3)[0]
    responses = ["3 + 4 = 7\n#### 7", "no idea", "#### 12"]
    row = {"id": task.id, "domain": task.domain, "question": task.question, "choices": task.choices}
    text = json.dumps({**row, "answer": None, "responses": responses})
    (tmp_path / "mine.jsonl").write_text("\ufeff" + text, encoding="utf-8")  # as some editors begin a file
    train.main(["score", str(finished), str(tmp_path / "mine.jsonl")])
    assert "no idea" in capsys.readouterr().out
    (line,) = (tmp_path / "mine.scored.jsonl").read_text().splitlines()
    scores = json.loads(line)["scores"]
    assert [one["response"] for one in scores] == responses and scores[0]["queries"][0]["id"].startswith(
        "world/"
    )

    config = settings.parse(["score", str(finished), "x"], train.Config, {"score": ""})[1]
    run = explain.open_memory(config)
    rollouts = tokenize_rollouts(run.tokenizer, [run.render(task)], responses)
    logprobs = token_logprobs(
        run.reference, rollouts.ids, rollouts.attention_mask, rollouts.mask.shape[1]
    ).detach()
    keys = [[data.answer_key(task, text) for text in responses]]
    features = answer_features([task], [responses], keys, logprobs, rollouts.mask, config.features.split(","))
    groups = Groups(*run.encode([task], SimpleNamespace(texts=responses, mask=rollouts.mask), None), features)
    expected = run.memory.predict(*groups)[0] * torch.tensor([key is not None for key in keys[0]])
    assert [one["probability"] for one in scores] == pytest.approx(expected.tolist(), abs=1e-5)
    assert scores[1]["probability"] == 0  # no answer, no reward


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "1", "domain": "math", "question": "?"}',
        '{"id": "1", "domain": "math", "question": "?", "responses": "7"}',
    ],
)
def test_score_refuses_a_file_without_responses(finished, tmp_path, line):
    (tmp_path / "mine.jsonl").write_text(line)
    with pytest.raises(SystemExit, match='score: .*every line needs "responses"'):
        train.main(["score", str(finished), str(tmp_path / "mine.jsonl")])
