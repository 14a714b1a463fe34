"""The loop: it learns, never sees a hidden label, resumes exactly, and refuses what makes no sense."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import data
import train
from train import Config

ROOT = Path(train.__file__).parent


def weights(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(Path(folder) / "policy").state_dict()


def test_learning(quick):
    results = train.train(quick(mode="oracle", steps=40, batch_size=8, group_size=8, train_tasks=120, test_tasks=60, eval_every=40))
    gain = results["after"]["greedy"]["all"] - results["before"]["greedy"]["all"]
    assert gain > 0.1, results


@pytest.mark.parametrize("mode", train.MODES)
def test_every_mode_runs_with_the_same_steps(quick, mode):
    results = train.train(quick(mode=mode))
    assert results["labels_used"] == (40 if mode == "oracle" else 8) and results["labels_available"] == 40
    lines = [json.loads(line) for line in open(Path(quick().output_dir) / "metrics.jsonl")]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    predicted = [line["reward/predicted"] is not None for line in steps]
    assert any(predicted) == (mode in ("memreward", "majority")) == bool(results["audit"])
    assert "test accuracy" in train.report(results)


class Untouchable:
    """A label that raises whatever is done with it."""

    def _raise(self, *args):
        raise AssertionError("a hidden label was touched")

    __eq__ = __iter__ = __str__ = __repr__ = __len__ = __bool__ = __getattr__ = __contains__ = __format__ = _raise
    __hash__ = _raise


@pytest.mark.parametrize("mode", ["memreward", "majority", "r1p"])
def test_hidden_labels_never_reach_training(quick, mode, monkeypatch):
    load, config = data.load_tasks, quick(mode=mode, steps=3)

    def load_tasks(name, split, limit, seed):
        import dataclasses

        tasks = load(name, split, limit, seed)
        if split == "test":
            return tasks
        visible = data.hide_labels(tasks, config.label_ratio, config.seed)
        return [task if seen.labelled else dataclasses.replace(task, answer=Untouchable(), tests=Untouchable())
                for task, seen in zip(tasks, visible)]  # fmt: skip

    monkeypatch.setattr(data, "load_tasks", load_tasks)
    monkeypatch.setattr(train.Audit, "add", lambda *_: None)  # it alone may touch them
    assert train.train(config)["labels_used"] == 8


def test_the_audit_changes_nothing(quick, monkeypatch):
    settings = dict(steps=3, batch_size=8, refit_every=1, gnn_epochs=2)
    train.train(quick(**settings))
    monkeypatch.setattr(train.Audit, "add", lambda *_: None)
    train.train(quick(**settings, output_dir=quick().output_dir + "2"))
    one, two = weights(quick().output_dir), weights(quick().output_dir + "2")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mode", ["memreward", "r1p"])
def test_interrupted_run_resumes_as_if_nothing_had_been(quick, mode, monkeypatch):
    import grpo

    straight, broken = quick(mode=mode, steps=6), quick(mode=mode, steps=6, output_dir=quick().output_dir + "2")
    expected = train.train(straight)
    update, calls = grpo.policy_update, []

    def interrupted(*args, **settings):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(*args, **settings)

    monkeypatch.setattr(grpo, "policy_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(broken)
    monkeypatch.setattr(grpo, "policy_update", update)
    _, config = train.parse(["--resume", broken.output_dir])
    results = train.train(config)
    for name in ("before", "after", "evaluations", "audit"):
        assert results[name] == expected[name]
    one, two = weights(straight.output_dir), weights(broken.output_dir)
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [[json.loads(line) for line in open(Path(c.output_dir) / "metrics.jsonl")] for c in (straight, broken)]
    timed = lambda name: name.startswith("seconds") or name == "tokens_per_second"  # noqa: E731
    clean = [[{k: v for k, v in line.items() if not timed(k)} for line in log] for log in logs]
    assert clean[0] == clean[1]


def test_batches_are_full_and_every_epoch_sees_every_task_once():
    tasks = data.load_tasks("world", "train", limit=10)
    config = Config(batch_size=4)
    seen = [pair for step in range(5) for pair in zip(*train.batch(tasks, step, config))]
    assert [key for _, key in seen] == [f"{task.id} {i // 10}" for i, (task, _) in enumerate(seen)]
    for epoch in (seen[:10], seen[10:]):
        assert {task.id for task, _ in epoch} == {task.id for task in tasks}
    assert [task.id for task, _ in seen[:10]] != [task.id for task, _ in seen[10:]]


def test_compare_skips_what_is_finished_and_prints_the_table(quick, tmp_path, capsys, monkeypatch):
    config = quick(output_dir=str(tmp_path / "all"), steps=1)
    train.compare(config)
    table = capsys.readouterr().out
    assert "memreward - r1p" in table and "memreward / oracle" in table
    monkeypatch.setattr(train, "train", lambda config: pytest.fail("ran a finished run again"))
    train.compare(config)
    assert table.splitlines()[-3:] == capsys.readouterr().out.splitlines()[-3:]
    with pytest.raises(ValueError, match="with another steps"):
        train.compare(quick(output_dir=str(tmp_path / "all"), steps=2))


def test_comparison_arithmetic():
    def run(mode, seed, accuracy):
        score = {"greedy": {"all": accuracy}, "sampled": {"all": accuracy}}
        return {"mode": mode, "seed": seed, "before": score, "after": score, "labels_used": 1, "labels_available": 5, "audit": {}}

    runs = [run("memreward", 0, 0.8), run("memreward", 1, 0.9), run("oracle", 0, 0.9), run("oracle", 1, 0.9), run("r1p", 0, 0.7)]
    lines = {line.split("  ")[0].strip(): line for line in train.comparison(runs).splitlines()}
    assert "-5.0 +- 5.0" in lines["memreward - oracle"]  # differences -10 and 0
    assert "10.0 " in lines["memreward - r1p"] and "paired over 1 seeds" in lines["memreward - r1p"]
    assert "94.4 %" in lines["memreward / oracle"]  # 85 / 90


BAD = [
    (["--label_ratio", "0"], "label_ratio"), (["--label_ratio", "1.2"], "label_ratio"), (["--group_size", "1"], "group_size"),
    (["--steps", "0"], "steps"), (["--tasks", "wrold"], "tasks"), (["--tasks", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--model", "no/such/model"], "model"), (["--encoder", "no/such/encoder"], "encoder"), (["--max_prompt_length", "5"], "max_prompt_length"),
    (["--output_dir", "/proc/nowhere"], "output_dir"), (["--resume", "nowhere"], "resume"), (["--colour", "red"], "--colour"),
    (["paint"], "paint"), (["--seeds", "3"], "seeds"),
    (["compare", "--mode", "oracle"], "--mode"), (["compare", "--seed", "3"], "--seed"), (["--gnn_hidden", "1"], "gnn_hidden"), (["--features", "colour"], "features"), (["--learning_rate", "1e6"], "learning_rate"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, named", BAD)
def test_bad_input_is_one_clear_line(arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "1e6" in arguments:
        arguments = [*arguments, "--steps", "8", "--batch_size", "2", "--group_size", "2", "--train_tasks", "10", "--test_tasks", "3", "--mode", "oracle"]
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    message = str(stop.value)
    assert named in message and message.startswith("error: ") and "\n" not in message
    assert "1e6" in arguments or not list(tmp_path.iterdir()), "something half-written stays behind"


def test_a_tracker_that_is_not_installed(quick, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else find(name, *rest))
    with pytest.raises(ValueError, match="tracker: trackio is not installed"):
        train.train(quick(tracker="trackio"))


def test_resume_takes_its_settings_from_the_run(quick):
    train.train(quick())
    with pytest.raises(SystemExit, match="resume: leave out steps"):
        train.main(["--resume", quick().output_dir, "--steps", "9"])


def test_a_file_with_few_labels_is_used_as_it_is(quick, tmp_path):
    rows = [{"id": str(i), "domain": "math", "question": f"Ann has {i} books.", "answer": str(i) if i % 4 == 0 else None} for i in range(24)]
    (tmp_path / "few_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "few_test.jsonl").write_text("\n".join(map(json.dumps, rows[::4])))
    settings = dict(tasks=str(tmp_path / "few_train.jsonl"), label_ratio=1.0, steps=1)
    results = train.train(quick(**settings))
    assert (results["labels_used"], results["labels_available"], results["audit"]) == (6, 6, {})
    with pytest.raises(ValueError, match="18 train tasks have no label"):
        train.train(quick(**settings, mode="oracle", output_dir=quick().output_dir + "2"))


def test_a_finished_run_is_not_overwritten(quick):
    train.train(quick())
    with pytest.raises(ValueError, match="output_dir: .* holds a run already"):
        train.train(quick())


def test_a_setting_is_refused_before_torch_is_imported():
    code = "import sys, train\ntry: train.main(['--label_ratio', '7'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


def test_every_setting_is_read():
    import dataclasses
    import re

    source = "".join((ROOT / name).read_text() for name in ("train.py", "memreward.py"))
    for setting in dataclasses.fields(Config):
        assert re.search(rf"config\.{setting.name}\b", source), setting.name


def test_the_readme_command(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--steps", "2", "--train_tasks", "40", "--test_tasks", "12", "--eval_samples", "1"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "greedy, after" in out.stdout and "labels used         8 of 40" in out.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {"config.json", "metrics.jsonl", "results.json", "checkpoint", "policy"}
