"""The loop: it learns, never sees a hidden label, resumes exactly, and refuses what makes no sense."""

import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import grpo
import memreward
import train
from lab import compare, figures, log, probe, runs, settings
from lab.evaluate import evaluate, evaluate_model
from train import Config

ROOT = Path(train.__file__).parent


def parse(arguments):
    return settings.parse(arguments, Config, {name: text for name, (text, _) in train.COMMANDS.items()})


def weights(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(Path(folder) / "policy").state_dict()


def test_learning(quick):
    results = train.train(quick(mode="oracle", steps=24, learning_rate=4e-4, batch_size=6, group_size=8,
                                train_tasks=120, test_tasks=60, eval_every=24))
    gain = results["after"]["greedy"]["all"] - results["before"]["greedy"]["all"]
    assert gain > 0.1, results


@pytest.mark.parametrize("mode", compare.MODES)
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

    __eq__ = __iter__ = __str__ = __repr__ = __len__ = __bool__ = __getattr__ = __contains__ = __format__ = (
        _raise
    )
    __hash__ = _raise


@pytest.mark.parametrize("mode", ["memreward", "majority", "r1p"])
def test_hidden_labels_never_reach_training(quick, mode, monkeypatch):
    load, config = data.load_splits, quick(mode=mode, steps=3, eval_every=0)

    def load_splits(*arguments):
        tasks, test, dropped = load(*arguments)
        visible = data.hide_labels(tasks, config.label_ratio, config.seed)
        tasks = [
            task if seen.labelled else dataclasses.replace(task, answer=Untouchable(), tests=Untouchable())
            for task, seen in zip(tasks, visible)
        ]
        assert sum(isinstance(task.answer, Untouchable) for task in tasks) == 32
        return tasks, test, dropped

    monkeypatch.setattr(data, "load_splits", load_splits)
    monkeypatch.setattr(train.Audit, "verify", lambda audit, tasks, texts: [0.0] * len(texts))  # it alone may
    assert train.train(config)["labels_used"] == 8


def test_the_audit_changes_nothing(quick, monkeypatch):
    settings = dict(steps=3, batch_size=8, memory="refit", refit_every=1, gnn_epochs=2, eval_every=0)
    train.train(quick(**settings))
    monkeypatch.setattr(train.Audit, "add", lambda *_: None)
    train.train(quick(**settings, output_dir=quick().output_dir + "2"))
    one, two = weights(quick().output_dir), weights(quick().output_dir + "2")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_batches_are_full_and_every_epoch_sees_every_task_once():
    tasks = data.load_tasks("world", "train", limit=10)
    config = Config(batch_size=4)
    seen = [visit for step in range(5) for visit in train.batch(tasks, step, config)]
    assert [key for _, key in seen] == [f"{task.id} {i // 10}" for i, (task, _) in enumerate(seen)]
    for epoch in (seen[:10], seen[10:]):
        assert {task.id for task, _ in epoch} == {task.id for task in tasks}
    assert [task.id for task, _ in seen[:10]] != [task.id for task, _ in seen[10:]]


def test_compare_skips_what_is_finished_and_prints_the_table(quick, tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(train, "evaluate", lambda *run: calls.append(run) or evaluate(*run))
    config = quick(output_dir=str(tmp_path / "all"), steps=1, variants="soft")
    compare.compare(config, train.train)
    assert len(calls) == 1 + 5  # the untrained policy once, then what each of five runs has made of it
    table = capsys.readouterr().out
    assert "memreward - soft" in table
    assert json.loads((tmp_path / "all" / "soft-0.2-0" / "config.json").read_text())["reward"] == "soft"
    assert "memreward - r1p" in table and "memreward / oracle" in table
    compare.compare(config, lambda *_: pytest.fail("ran a finished run again"))
    again = capsys.readouterr().out  # the last table of the first time, once
    assert table.endswith(again) and again.count("before training") == 1
    with pytest.raises(ValueError, match="variants: hard: not among grow, "):
        compare.compare(quick(variants="hard"), train.train)
    with pytest.raises(ValueError, match="with another steps"):
        compare.compare(quick(output_dir=str(tmp_path / "all"), steps=2), train.train)


def test_compare_begins_at_its_seed_and_names_runs_by_ratio_and_pick(quick, tmp_path):
    begun, score = [], {"greedy": {"all": 0.5}}

    def run(config, before):
        folder = Path(config.output_dir)
        begun.append((folder.name, config.seed, config.label_pick, before))
        folder.mkdir(parents=True)
        result = {"before": {"step": 0, **score}, "after": score, "labels_used": 1, "labels_available": 5}
        (folder / "results.json").write_text(json.dumps(result | {"audit": {}, "seed": config.seed}))

    config = quick(output_dir=str(tmp_path / "all"), seed=3, seeds=2, variants="r1p 0.1 coverage, ")
    compare.compare(config, run)
    names = ["oracle-1.0", "r1p-0.2", "majority-0.2", "memreward-0.2", "r1p-0.1-coverage"]
    assert [name for name, *_ in begun] == [f"{name}-{seed}" for seed in (3, 4) for name in names]
    assert [seed for _, seed, *_ in begun] == [3] * 5 + [4] * 5
    assert {pick for name, _, pick, _ in begun if "coverage" in name} == {"coverage"}
    assert [before for *_, before in begun] == [None] + [score] * 9  # the first run's, of the same policy
    begun.clear()
    twice = dict(memory="refit", refit_every=1, label_ratio=0.4, variants="refit,r1p 0.4 random,soft")
    compare.compare(quick(output_dir=str(tmp_path / "again"), **twice), run)
    assert [name for name, *_ in begun] == [
        f"{name}-0" for name in ("oracle-1.0", "r1p-0.4", "majority-0.4", "memreward-0.4", "soft-0.4")]


def test_compare_never_mixes_versions_of_the_method(tmp_path, quick, capsys):
    """Four committed runs of an older version are printed, even if a default has changed since; a fifth is
    not run beside them; two versions, or two settings, are never one table."""
    folder, never = tmp_path / "all", lambda *_: pytest.fail("a run was started")
    score = {"greedy": {"all": 0.5}}
    common = {
        "before": score,
        "after": score,
        "labels_used": 1,
        "labels_available": 5,
        "audit": {},
        "seed": 0,
    }

    def finished(mode, version="old", steps=7):
        run = folder / f"{mode}-{1.0 if mode == 'oracle' else 0.2}-0"
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(
            json.dumps({"mode": mode, "steps": steps, "gone": 3, "output_dir": mode})
        )
        (run / "results.json").write_text(json.dumps(common | {"mode": mode, "version": version}))

    for mode in compare.MODES:
        finished(mode)
    config = quick(output_dir=str(folder), steps=200)
    compare.compare(config, never)
    assert "memreward / oracle 100.0 %" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="another version of the method; 4 runs are missing"):
        compare.compare(dataclasses.replace(config, seeds=2), never)
    finished("r1p", steps=8)
    with pytest.raises(ValueError, match="another steps than those beside it"):
        compare.compare(config, never)
    finished("r1p", version=runs.version())
    with pytest.raises(ValueError, match="all mixes results of several versions"):
        compare.compare(config, never)
    (folder / "r1p-0.2-0" / "results.json").write_text("{")
    with pytest.raises(ValueError, match="r1p-0.2-0/results.json is damaged"):
        compare.compare(config, never)


def test_compare_goes_on_with_no_run_of_another_version(tmp_path, quick, monkeypatch):
    run = tmp_path / "all" / "memreward-0.2-0"
    config = quick(output_dir=str(tmp_path / "all"))
    train.train(dataclasses.replace(config, output_dir=str(run)))
    (run / "results.json").unlink()
    calls = []

    def stop(one, before):
        calls.append(one.resume or one.output_dir)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare.compare(config, stop)  # of this version: begins with Oracle, and would go on with this one
    monkeypatch.setattr(compare, "version", lambda: "new")
    with pytest.raises(ValueError, match="memreward-0.2-0 was begun by another version of the method"):
        compare.compare(config, stop)
    assert calls == [str(tmp_path / "all" / "oracle-1.0-0")]


def test_the_version_is_of_code_not_of_comments(tmp_path):
    text = '"""Doc."""\n\n\ndef f(x):\n    """What."""\n    return x + 1\n'
    others = "support/answers.py", "support/world.py", "README.md", "lab/figures.py"
    code = dict.fromkeys((*runs.METHOD, *others), text)
    silent = "# Why.\ndef f(x):\n    return (x +\n            1)\n"
    changes = [{}, {"gnn.py": silent, "support/answers.py": silent}, {"README.md": "", "lab/figures.py": ""}]
    changes += [{name: text.replace("1", "2")} for name in ("gnn.py", "lab/evaluate.py", "support/world.py")]
    names = []
    for number, change in enumerate(changes):
        for name, content in (code | change).items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        names.append(runs.version(tmp_path / str(number)))
    assert names[0] == names[1] == names[2] and len(set(names)) == 4 and len(names[0]) == 12


def test_the_version_covers_all_that_decides_what_is_learnt():
    needed = "answers sandbox packing traits calibration coverage encoders world jsonl benchmarks".split()
    assert {f"{name}.py" for name in needed} <= {path.name for path in (ROOT / "support").glob("*.py")}
    assert {path.name for path in ROOT.glob("*.py")} <= set(runs.METHOD)


def test_comparison_arithmetic():
    def run(mode, seed, accuracy):
        score = {"greedy": {"all": accuracy}, "sampled": {"all": accuracy}}
        return {
            "mode": mode,
            "row": mode,
            "seed": seed,
            "before": score,
            "after": score,
            "labels_used": 1,
            "labels_available": 5,
            "audit": {},
        }

    finished = [
        run("memreward", 0, 0.8),
        run("memreward", 1, 0.9),
        run("oracle", 0, 0.9),
        run("oracle", 1, 0.9),
        run("r1p", 0, 0.7),
    ]
    lines = {line.split("  ")[0].strip(): line for line in compare.comparison(finished).splitlines()}
    assert "-5.0 +- 5.0" in lines["memreward - oracle"]  # differences -10 and 0
    assert lines["memreward - r1p"].split()[3:] == "10.0 paired over 1 seeds".split()
    assert "94.4 %" in lines["memreward / oracle"]  # 85 / 90
    finished += [run("memreward 0.1", 0, 0.6), run("r1p 0.1", 0, 0.65), run("refit", 1, 0.88)]
    lines = {line.split("  ")[0].strip(): line for line in compare.comparison(finished).splitlines()}
    assert (
        lines["memreward 0.1 - r1p 0.1"].split()[5] == "-5.0"
        and lines["memreward - refit"].split()[3] == "2.0"
    )  # like with like
    assert "66.7 %" in lines["memreward 0.1 / oracle"] and "memreward - r1p 0.1" not in lines


def test_the_last_accuracy_by_share_and_choice_of_labels(tmp_path):
    for name, last in {"memreward-0.1-3": 0.5, "memreward-0.1-4": 0.7, "memreward-0.1-coverage-3": 0.8,
                       "memreward-0.4-3": 0.9, "oracle-1.0-3": 1.0, "oracle-1.0-coverage-3": 1.0,
                       "majority-0.2-3": 0.1}.items():
        (tmp_path / name).mkdir()
        evaluations = [{"greedy": {"all": 0.3}}, {"greedy": {"all": last}}]
        (tmp_path / name / "results.json").write_text(json.dumps({"evaluations": evaluations}))
    assert figures.by_labels(tmp_path) == {
        "memreward, labels at random": {0.1: [0.5, 0.7], 0.4: [0.9]},
        "memreward, labels picked": {0.1: [0.8]},
        "oracle": {1.0: [1.0]},
    }


def test_plot_draws_the_curves_of_finished_runs(tmp_path, capsys, monkeypatch):
    for seed in range(2):
        for name, ratio in (
            ("memreward", 0.2),
            ("r1p", 0.2),
            ("refit", 0.2),
            ("memreward", 0.1),
            ("memreward", 1.0),
            ("my", "run"),
            ("memreward", "old"),
        ):
            folder = tmp_path / f"{name}-{ratio}-{seed}"
            folder.mkdir()
            curve = [
                {
                    "step": step,
                    "greedy": {"all": 0.5 + step / 1000 + seed},
                    "audit": {"accuracy": seed - step} if step else {},
                }
                for step in (0, 50, 100)
            ]
            (folder / "results.json").write_text(json.dumps({"label_ratio": ratio, "evaluations": curve}))
    (tmp_path / "oracle-1.0-0").mkdir()  # has not finished
    curves = figures.curves(tmp_path, 0.2)
    assert curves["accuracy"] == dict.fromkeys(
        ("r1p", "memreward"), [([0, 50, 100], [0.5 + seed, 0.55 + seed, 0.6 + seed]) for seed in (0, 1)]
    )
    assert list(curves["predictions"]) == ["memory as by default", "memory refitted"]
    assert list(curves["predictions"].values()) == 2 * [
        [([50, 100], [seed - 50, seed - 100]) for seed in (0, 1)]
    ]
    with (
        monkeypatch.context() as without,
        pytest.raises(SystemExit, match="matplotlib is not installed; pip install matplotlib"),
    ):
        without.setattr(figures.importlib.util, "find_spec", lambda name: None)
        train.main(["plot", str(tmp_path)])
    pytest.importorskip("matplotlib")
    train.main(["plot", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "accuracy.png"),
        str(tmp_path / "predictions.png"),
        str(tmp_path / "labels.png"),
    ]
    drawn = [tmp_path / f"{name}.png" for name in ("accuracy", "predictions", "labels")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    with pytest.raises(SystemExit, match="holds no finished runs of compare with label_ratio 0.2"):
        train.main(["plot", str(tmp_path / "oracle-1.0-0")])


BAD = [
    (["--label_ratio", "0"], "label_ratio"),
    (["--label_ratio", "1.2"], "label_ratio"),
    (["--memory", "refit", "--steps", "40"], "refit_every: 50 steps are not before the end of 40"),
    (["--group_size", "1"], "group_size"),
    (["--steps", "0"], "steps"),
    (["--tasks", "wrold"], "tasks"),
    (["--tasks", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--model", "no/such/model"], "model"),
    (["--encoder", "no/such/encoder"], "encoder"),
    (["--max_prompt_length", "5"], "max_prompt_length"),
    (["--output_dir", "/proc/nowhere"], "output_dir"),
    (["--resume", "nowhere"], "resume"),
    (["--colour", "red"], "--colour"),
    (["paint"], "paint"),
    (["--seeds", "3"], "seeds"),
    (["--variants", "soft"], "variants"),
    (["evaluate", "--rollouts", "x"], "rollouts"),
    (["evaluate", "--steps", "3"], "steps"),
    (["--chat_template_kwargs", "x"], "chat_template_kwargs"),
    (["--plugin", "none.py"], "plugin"),
    (["--label-ratio", "1"], "--label-ratio"),
    (["--steps", "many"], "steps"),
    (["--mode", "r1p", "--neighbors", "7"], "neighbors"),
    (["--mode", "majority", "--reward=soft"], "reward"),
    (["compare", "--resume", "x"], "resume"),
    (["probe", "--label_ratio", "1"], "label_ratio"),
    (["probe", "--features", "agreemnt"], "features"),
    (["compare", "--mode", "oracle"], "mode"),
    (["--gnn_hidden", "1"], "gnn_hidden"),
    (["--features", "colour"], "features"),
    (["--learning_rate", "1e6"], "learning_rate"),
    (["--preset", "smollm2-short"], "preset: smollm2-short reads short/short_train.jsonl, which python "),
]


@pytest.mark.parametrize("arguments, named", BAD)
def test_bad_input_is_one_clear_line(arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "1e6" in arguments:
        arguments = [
            *arguments,
            "--steps",
            "8",
            "--batch_size",
            "2",
            "--group_size",
            "2",
            "--train_tasks",
            "10",
            "--test_tasks",
            "3",
            "--mode",
            "oracle",
        ]
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    message = str(stop.value)
    assert named in message and message.startswith("error: ") and "\n" not in message
    assert "1e6" in arguments or not list(tmp_path.iterdir()), "something half-written stays behind"


def test_a_tracker_that_is_not_installed(quick, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else find(name, *rest)
    )
    with pytest.raises(ValueError, match="tracker: trackio is not installed"):
        train.train(quick(tracker="trackio"))


def test_resume_takes_its_settings_from_the_run(quick):
    train.train(quick(mode="r1p", steps=1, eval_every=0))
    with pytest.raises(SystemExit, match="resume: leave out group_size"):
        train.main(["--resume", quick().output_dir, "--group_size", "9"])


def test_a_file_with_few_labels_is_used_as_it_is(quick, tmp_path):
    rows = [
        {
            "id": str(i),
            "domain": "math",
            "question": f"Ann has {i} books.",
            "answer": str(i) if i % 4 == 0 else None,
        }
        for i in range(24)
    ]
    (tmp_path / "few_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    test = [{**row, "id": f"t{row['id']}", "question": f"Ben has {row['id']} hats."} for row in rows[::4]]
    (tmp_path / "few_test.jsonl").write_text("\n".join(map(json.dumps, test)))
    settings = dict(tasks=str(tmp_path / "few_train.jsonl"), label_ratio=1.0, steps=1)
    results = train.train(quick(**settings))
    assert (results["labels_used"], results["labels_available"], results["audit"]) == (6, 6, {})
    with pytest.raises(ValueError, match="18 train tasks have no label"):
        train.train(quick(**settings, mode="oracle", output_dir=quick().output_dir + "2"))


def test_profile(quick, capsys):
    train.train(
        quick(
            mode="r1p", steps=5, eval_every=5, profile=True, batch_size=1, group_size=2, max_response_length=8
        )
    )
    trace = json.loads((Path(quick().output_dir) / "trace.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])
    assert "Self CPU time total" in capsys.readouterr().out


def test_a_finished_run_is_not_overwritten(quick):
    folder = Path(quick().output_dir)
    train.train(quick(mode="r1p", steps=1, eval_every=0))
    for name in ("results.json", "metrics.jsonl"):  # without the first it has not ended
        with pytest.raises(ValueError, match="output_dir: .* holds a run already"):
            train.train(quick())
        os.remove(folder / name)


@pytest.mark.parametrize("change", [{"mode": "memrewards"}, {"reward": "Soft"}, {"gnn": "GNN"},
                                    {"label_pick": "covrage"}, {"memory": "growing"}])
def test_a_typing_mistake_in_config_is_refused(quick, change):
    """The command line knows the choices by itself; so shall train.train, which README shows."""
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=f"{name}: {value!r} is none of "):
        train.train(quick(**change))


def test_a_setting_is_refused_before_torch_is_imported():
    code = (
        "import sys, train\ntry: train.main(['--label_ratio', '7'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


def test_help_shows_each_command_its_own_settings(capsys):
    shown = {}
    for command in train.COMMANDS:
        with pytest.raises(SystemExit):
            train.main([command, "--help"])
        out = capsys.readouterr().out
        shown[command] = re.findall(r"^  --(\w+)", out, re.MULTILINE)
        assert train.COMMANDS[command][0] in out and "-" not in "".join(shown[command])
        assert sorted(shown[command]) == sorted(settings.READ_BY[command])
    assert shown["train"][:3] == ["mode", "label_ratio", "label_pick"]
    assert "steps" not in shown["evaluate"] and "seeds" in shown["compare"] and "seeds" not in shown["train"]
    grouped = [name for names in settings.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(Config))


def test_presets_are_settings_that_flags_change():
    _, config = parse(["--preset", "qwen2.5-3b", "--steps", "7"])
    assert (config.model, config.steps, config.batch_size, config.learning_rate) == (
        "Qwen/Qwen2.5-3B-Instruct",
        7,
        128,
        1e-6,
    )
    assert len(config.tasks.split(",")) == 10 and config.ood == "numina_math,piqa,siqa"
    fields = {field.name for field in dataclasses.fields(Config)}
    assert all(settings.keys() <= fields for settings in settings.PRESETS.values())
    for command in ("probe", "evaluate"):  # take what they read of it
        _, config = parse([command, "--preset", "smollm2-short", "--tasks", "mine.jsonl"])
        assert (config.tasks, config.model) == ("mine.jsonl", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert parse(["probe", "--preset", "smollm2-short", "--rollouts", "mine.jsonl"])[1].temperature == 0.7
    with pytest.raises(ValueError, match="^preset: pick does not read it"):
        parse(["pick", "--preset", "quick"])


@pytest.mark.parametrize(("arguments", "said"), [
    ("--mode oracle --label_ratio 0.3", "label_ratio: mode oracle keeps every label"),
    ("--refit_every 10 --memory grow", "refit_every: of --memory refit alone"),
    ("--memory refit --steps 50", "refit_every: 50 steps are not before the end of 50"),
    ("--mode r1p --memory refit --steps 10", "memory: of the memory, and mode r1p has none"),
    ("probe --rollouts mine.jsonl --tasks gsm8k --group_size 9", "tasks, group_size: probe takes the tasks")])
def test_what_would_change_nothing_is_refused(arguments, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        parse(arguments.split())


def test_a_memory_that_is_fitted_anew_is_only_asked_of_runs_that_train(quick, tmp_path):
    assert parse(["--preset", "qwen2.5-1.5b", "--memory", "refit", "--refit_every", "300"])[1].steps == 410
    with pytest.raises(ValueError, match="^refit_every: 50 steps are not before the end of 2"):
        compare.compare(quick(variants="refit"), lambda *_: pytest.fail("a run was started"))
    folder = Path(quick().output_dir)
    folder.mkdir(parents=True)
    (folder / "tasks.json").write_text("{}")
    saved = vars(quick(memory="refit", refit_every=300, steps=400))
    (folder / "config.json").write_text(json.dumps(saved))
    assert parse(["evaluate", str(folder)])[1].model == str(folder)
    assert parse(["--resume", str(folder)])[1].refit_every == 300
    with pytest.raises(ValueError, match="^preset: leave it out, the settings are those of the run"):
        parse(["evaluate", str(folder), "--preset", "quick"])


def test_encoder_left_out():
    assert Config().encoder == "hash" and Config(model="some/model").encoder == "policy"
    assert Config(model="some/model", encoder="hash").encoder == "hash"
    assert (
        Config().features == "parsed,mean_logprob,min_logprob"
        and "agreement" in Config(model="some/model").features
    )
    assert (
        "agreement" in Config(rollouts="some.jsonl").features
        and Config(features="parsed").features == "parsed"
    )


def test_rollouts_jsonl_holds_whole_groups_of_the_same_tasks(quick, capsys):
    results = train.train(quick(steps=3, save_rollouts=1, eval_every=2))
    rows = [json.loads(line) for line in open(Path(quick().output_dir) / "rollouts.jsonl")]
    assert [row["step"] for row in rows] == [step for step in range(4) for _ in range(4)]
    first = rows[:4]
    assert all(
        [row["id"] for row in rows[i : i + 4]] == [row["id"] for row in first] for i in range(0, 16, 4)
    )
    assert [row["labelled"] for row in first] == [True, True, False, False]
    tasks = {task.id: task for task in data.load_tasks("world", "train", 40)}
    for row in rows:
        group = row["rollouts"]
        rewards = torch.tensor([[rollout["reward"] for rollout in group]])
        told = torch.tensor([[rollout["advantage"] for rollout in group]])
        from grpo import group_advantages

        torch.testing.assert_close(group_advantages(rewards), told, atol=1e-4, rtol=0)
        assert [one["truth"] for one in group] == [
            data.verify(tasks[row["id"]], one["response"]) for one in group
        ]
        if row["labelled"]:
            assert row["source"] == "verifier" and all(one["reward"] == one["truth"] for one in group)
        else:
            assert all(one["reward"] == (one["probability"] > 0.5) for one in group)
    out = capsys.readouterr().out
    assert out.count("rewards by memory for") == len(results["evaluations"]) == 3
    assert "tasks       train 40 (world code 1" in out
    assert "warm-up     16 groups: " in out
    steps = [json.loads(line) for line in open(Path(quick().output_dir) / "metrics.jsonl")]
    nothing = all(row["groups_without_signal"] == 1 for row in steps if "loss" in row)
    assert out.count("warning") == nothing  # so short a run may well have nothing to learn from


STEP = {"loss": 0.0, "groups_without_signal": 0.5, "truncated": 0.1, "reward/predicted": 0.5}


@pytest.mark.parametrize(
    "first, last, before, after, warning",
    [
        ({}, {}, 0.5, 0.6, None),
        ({"groups_without_signal": 1}, {"groups_without_signal": 1}, 0.5, 0.5, "nothing was learnt"),
        ({}, {"groups_without_signal": 1}, 0.5, 0.5, None),
        ({}, {"truncated": 0.6}, 0.5, 0.6, "cut off at max_response_length (48)"),
        (
            {},
            {"reward/predicted": 0.9},
            0.5,
            0.4,
            "rose from 0.50 to 0.90 while test accuracy fell from 0.50 to 0.40",
        ),
        ({"reward/predicted": None}, {"reward/predicted": None}, 0.5, 0.4, None),
    ],
)
def test_the_end_of_a_run_warns(tmp_path, capsys, first, last, before, after, warning):
    rows = [{"step": 0, "fits": []}, {"step": 1, **STEP, **first}, {"step": 2, **STEP, **last}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main = SimpleNamespace(is_main_process=True)
    run_log = log.Log(SimpleNamespace(config=Config(), folder=tmp_path, accelerator=main), {})
    run_log.evaluations = [{"greedy": {"all": accuracy}} for accuracy in (before, after)]
    run_log.end()
    out = capsys.readouterr().out
    assert warning in out and out.count("warning") == 1 if warning else not out


@pytest.mark.parametrize(
    "groups, truncated, warning",
    [
        ([[0.0, 1.0], [0.0, 0.0]], 0.5, None),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0, "every labelled task are wrong"),
        ([[1.0, 1.0]], 0.0, "every labelled task are right"),
        ([[1.0, 1.0], [0.0, 0.0]], 0.0, "every labelled task are all right or all wrong"),
        ([[0.0, 1.0]], 0.7, "70% of the responses are cut off"),
    ],
)
def test_the_warm_up_warns(tmp_path, capsys, groups, truncated, warning):
    (tmp_path / "metrics.jsonl").write_text("")
    main = SimpleNamespace(is_main_process=True, log=lambda *rest, **more: None)
    run_log = log.Log(SimpleNamespace(config=Config(), folder=tmp_path, accelerator=main), {})
    fitted = {"epoch": 0, "train_loss": 0.5, "val_loss": 0.5, "val_auc": 0.8, "best": True}
    later = {**fitted, "epoch": 1, "val_auc": 0.9, "best": False}
    run_log.warm_up([[fitted, later]], groups, truncated)
    out = capsys.readouterr().out
    assert out.startswith(f"warm-up     {len(groups)} groups: ") and "AUC on held-out labels 0.800" in out
    assert (f"warning: {warning}" in out or warning in out) if warning else "warning" not in out


def test_a_kind_without_any_label_is_told(quick, tmp_path, capsys):
    rows = [
        {"id": f"{name}{i}", "dataset": name, "domain": "math", "question": f"{name} {i}?", "answer": label}
        for name, label in (("known", "1"), ("new", None))
        for i in range(16)
    ]
    (tmp_path / "few_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    test = [{**row, "id": f"t{row['id']}", "question": f"Test {row['id']}?"} for row in rows[:4]]
    (tmp_path / "few_test.jsonl").write_text("\n".join(map(json.dumps, test)))
    train.train(quick(tasks=str(tmp_path / "few_train.jsonl"), steps=1))
    assert "warning: no math task of new has a label" in capsys.readouterr().out


def test_a_real_model_does_not_inherit_the_small_worlds_settings(capsys):
    _, config = parse(["--model", "some/model", "--learning_rate", "3e-6"])
    assert (config.max_response_length, config.learning_rate, config.eval_samples) == (512, 3e-6, 0)
    assert "--max_response_length 512" in (out := capsys.readouterr().out) and "--learning_rate" not in out
    config = parse(["--preset", "smollm2-135m"])[1]  # its model is real, too
    assert (config.max_response_length, config.neighbors, config.sample_batch_size) == (96, 7, 64)
    assert "--neighbors 7" in (out := capsys.readouterr().out) and "--max_response_length" not in out
    assert parse(["--preset", "smollm2-135m", "--neighbors", "2"])[1].neighbors == 2
    assert parse(["--preset", "smollm2-135m", "--model", "builtin"])[1].neighbors == 3
    capsys.readouterr()
    assert parse([])[1].max_response_length == 48 and not capsys.readouterr().out


def test_evaluation_does_not_take_most_of_a_short_run():
    assert [parse(["--steps", str(n)])[1].test_tasks for n in (2, 20, 50)] == [60, 240, 600]
    assert parse(["--steps", "2", "--test_tasks", "70"])[1].test_tasks == 70


def test_a_run_without_evaluation(quick):
    results = train.train(quick(steps=3, eval_every=0, checkpoint_every=2))
    assert results["after"].keys() == {"step", "audit", "drift"} and "labels used" in train.report(results)
    names = {path.name for path in (Path(quick().output_dir) / "checkpoints").iterdir()}
    assert names == {"000002", "000003"}


def test_the_learning_rate_rises(quick, monkeypatch):
    import grpo

    rates, update = [], grpo.policy_update
    monkeypatch.setattr(
        grpo,
        "policy_update",
        lambda model, optimizer, *rest, **settings: (
            rates.append(optimizer.param_groups[0]["lr"]),
            update(model, optimizer, *rest, **settings),
        )[1],
    )
    train.train(quick(mode="oracle", steps=4, lr_warmup=3, learning_rate=3e-4))
    assert rates == pytest.approx([1e-4, 2e-4, 3e-4, 3e-4])


def test_what_was_cut_off_teaches_nothing(quick, monkeypatch):
    """Responses of at most 20 tokens: some are cut off, their advantages are 0, the others' are not."""
    import grpo

    seen, update = [], grpo.policy_update

    def policy_update(model, optimizer, accelerator, rollouts, advantages, *rest, **settings):
        seen.append((rollouts.truncated, advantages))
        return update(model, optimizer, accelerator, rollouts, advantages, *rest, **settings)

    monkeypatch.setattr(grpo, "policy_update", policy_update)
    train.train(quick(mode="oracle", steps=4, batch_size=12, mask_truncated=True, max_response_length=20))
    cut, advantages = (torch.cat(column) for column in zip(*seen))
    assert cut.any() and not cut.all() and (advantages[cut] == 0).all() and (advantages[~cut] != 0).any()


def test_soft_rewards_teach_by_the_advantages_that_they_let_expect(quick, monkeypatch):
    """What the update gets, and what rollouts.jsonl shows, are the means of advantages over all rewards."""
    taught, update = [], grpo.policy_update
    monkeypatch.setattr(
        grpo,
        "policy_update",
        lambda *args, **more: taught.append(args[4].view(-1, 4)) or update(*args, **more),
    )
    beliefs, acquire = [], memreward.acquire_rewards

    def noted(*args, **more):
        rewards, source = acquire(*args, **more)
        beliefs.append(rewards)
        return rewards, source

    monkeypatch.setattr(memreward, "acquire_rewards", noted)
    config = quick(reward="soft", eval_every=0)
    train.train(config)
    beliefs = [rewards for rewards in beliefs if (rewards != rewards.round()).any()]
    assert len(taught) == 2
    for advantages in taught:
        assert any(
            torch.allclose(grpo.expected_advantages(rewards), advantages)
            and not torch.allclose(grpo.group_advantages(rewards), advantages, atol=0.1)
            for rewards in beliefs
        )
    for line in open(Path(config.output_dir) / "rollouts.jsonl"):
        group = json.loads(line)["rollouts"]
        rewards = torch.tensor([[rollout["reward"] for rollout in group]])
        told = torch.tensor([[rollout["advantage"] for rollout in group]])
        torch.testing.assert_close(grpo.expected_advantages(rewards), told, atol=1e-3, rtol=0)


PLUGIN = "import data\ndata.INSTRUCTIONS['shout'] = 'Shout.'\ndata.VERIFIERS['shout'] = {verifier}\n"


@pytest.mark.parametrize(
    "code, message",
    [
        ("import data\n", "plugin: .* adds no function to data.VERIFIERS"),
        ("1 / 0\n", "plugin: .* cannot be run: ZeroDivisionError"),
        ("import sys\nsys.exit('done')\n", "plugin: .* cannot be run: SystemExit: done"),
        (
            "import data\ndata.VERIFIERS['shout'] = 3\n",
            "plugin: .*shout needs a text in data.INSTRUCTIONS and",
        ),
        (PLUGIN.format(verifier="lambda r, a: 1 / 0"), "the verifier of 'shout' raises ZeroDivisionError"),
    ],
)
def test_plugins_that_fail_say_so(tmp_path, monkeypatch, code, message):
    (tmp_path / "mine.py").write_text(code)
    rows = [{"id": str(i), "domain": "shout", "question": f"Shout {i}.", "answer": "A"} for i in range(20)]
    (tmp_path / "shout.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for registry in (data.VERIFIERS, data.INSTRUCTIONS):
        monkeypatch.setattr(
            data, "VERIFIERS" if registry is data.VERIFIERS else "INSTRUCTIONS", dict(registry)
        )
    with pytest.raises(SystemExit, match=message):
        train.main(
            [
                "--plugin",
                str(tmp_path / "mine.py"),
                "--tasks",
                str(tmp_path / "shout.jsonl"),
                "--steps",
                "1",
                "--output_dir",
                str(tmp_path / "run"),
                "--batch_size",
                "2",
                "--group_size",
                "2",
            ]
        )


def test_a_plugin_is_stored_with_the_run(tmp_path, monkeypatch, capsys):
    """A kind of task of one's own is known to whatever reads the run folder later."""
    (tmp_path / "mine.py").write_text(PLUGIN.format(verifier="lambda response, answer: 1.0"))
    rows = [{"id": str(i), "domain": "shout", "question": f"Shout {i}.", "answer": "A"} for i in range(20)]
    (tmp_path / "shout.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(data, "VERIFIERS", dict(data.VERIFIERS))
    monkeypatch.setattr(data, "INSTRUCTIONS", dict(data.INSTRUCTIONS))
    folder, known = str(tmp_path / "run"), (dict(data.VERIFIERS), dict(data.INSTRUCTIONS))
    arguments = ["--plugin", str(tmp_path / "mine.py"), "--tasks", str(tmp_path / "shout.jsonl")]
    small = (
        "--steps 1 --batch_size 2 --group_size 2 --mode r1p --eval_samples 0 --max_response_length 8".split()
    )
    train.main([*arguments, *small, "--output_dir", folder])
    data.VERIFIERS, data.INSTRUCTIONS = known
    train.main(["evaluate", "--model", folder])
    assert capsys.readouterr().out.count("1.000") >= 2


@pytest.mark.parametrize("returned", ["None", "0.5", "'yes'"])
def test_a_plugin_that_gives_no_reward_is_one_line(tmp_path, monkeypatch, returned):
    monkeypatch.setattr(data, "VERIFIERS", dict(data.VERIFIERS))
    monkeypatch.setattr(data, "INSTRUCTIONS", dict(data.INSTRUCTIONS))
    (tmp_path / "mine.py").write_text(PLUGIN.format(verifier=f"lambda response, answer: {returned}"))
    settings.load_plugin(str(tmp_path / "mine.py"))
    task = data.Task("1", "t", "shout", "Shout a.", answer="A")
    with pytest.raises(ValueError, match="plugin: the verifier of 'shout' returns .*, not 0 or 1"):
        data.verify(task, "#### A")


def test_a_plugin_may_be_run_again_and_may_replace_a_verifier(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "VERIFIERS", dict(data.VERIFIERS))
    monkeypatch.setattr(data, "INSTRUCTIONS", dict(data.INSTRUCTIONS))
    tasks = [data.Task("1", "t", domain, "6 * 7?", answer="42") for domain in ("shout", "math")]
    for right in ("42", "forty-two"):  # as two runs of one notebook do
        (tmp_path / "mine.py").write_text(
            PLUGIN.format(verifier=f"lambda response, answer: float(response == {right!r})")
            + "data.VERIFIERS['math'] = data.VERIFIERS['shout']\n"
        )
        settings.load_plugin(str(tmp_path / "mine.py"))
        for task in tasks:
            assert [data.verify(task, text) for text in ("42", "forty-two")] == [right == "42", right != "42"]
    mine = tmp_path / "mine.py"
    verifier = "lambda response, answer, choices: float(choices[1] == 'B')"
    mine.write_text(f"import data\ndata.VERIFIERS['qa'] = {verifier}")
    settings.load_plugin(str(mine))
    asked = data.Task("1", "t", "qa", "Which?", choices=("A", "B"), answer="A")
    assert data.verify_batch([asked], ["A"]) == [1.0]
    mine.write_text("import data\ndata.INSTRUCTIONS['math'] = 'Be brief.'")
    settings.load_plugin(str(mine))
    assert data.make_prompt(tasks[1]).endswith("Be brief.")


def test_another_verifier_of_programs_is_asked(monkeypatch):
    monkeypatch.setitem(data.VERIFIERS, "code", lambda response, tests: float(tests[0] in response))
    task = data.Task("1", "t", "code", "Write f(x).", tests=("assert f(1) == 1",))
    assert data.verify_batch([task] * 2, ["assert f(1) == 1", "def f(x): return x"]) == [1.0, 0.0]


def test_a_question_says_nothing_of_the_reference_solution():
    """The same question and tests under two hidden solutions give the same prompt."""
    solutions = ("def area(radius):\n    return 3 * radius", "def area(r):\n    return 3 * r")
    task = data.Task("1", "t", "code", "Write it.", tests=("assert area(1) == 3",))
    tasks = [data._named(dataclasses.replace(task, answer=solution)) for solution in solutions]
    assert tasks[0].question == tasks[1].question == "Write it.\nDefine area(a)."


def test_a_checkpoint_or_policy_belongs_to_its_run(tmp_path):
    for place in ("run/checkpoints/000002", "run/policy", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "run" / "tasks.json").write_text("{}")
    for place in ("run", "run/checkpoints/000002", "run/policy"):
        assert settings.run_folder(str(tmp_path / place)) == (tmp_path / "run").resolve()
    assert settings.run_folder(str(tmp_path / "elsewhere")) is None
    assert settings.run_folder("a/hub-name") is None and settings.run_folder(None) is None


def test_system_message_and_settings_of_the_chat_template():
    class Tokenizer:
        chat_template, bos_token = "yes", "<s>"

        def apply_chat_template(self, messages, **settings):
            return messages, settings

    task = data.Task("1", "t", "math", "6 * 7?")
    messages, given = runs.render(Tokenizer(), task, "Be short.", {"enable_thinking": False})
    assert messages[0] == {"role": "system", "content": "Be short."} and messages[1]["role"] == "user"
    assert given == {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    Tokenizer.chat_template = None
    assert runs.render(Tokenizer(), task, "Be short.").startswith("<s>Be short.\n6 * 7?")
    assert runs.render(Tokenizer(), task).startswith("<s>6 * 7?")


def test_out_of_memory_is_one_line(monkeypatch):
    def train_step(*arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setitem(train.COMMANDS, "train", ("", train_step))
    with pytest.raises(SystemExit) as stop:
        train.main(["--micro_batch_size", "7"])
    message = str(stop.value)
    assert "--micro_batch_size (now 7)" in message and "\n" not in message
    assert "--sample_batch_size" in message and "--gradient_checkpointing" in message


def test_a_blank_exercise_is_one_line(monkeypatch):
    def train_step(*arguments):
        raise NotImplementedError("exercise 3, knn: knn is still blank")

    monkeypatch.setitem(train.COMMANDS, "train", ("", train_step))
    with pytest.raises(SystemExit, match="^error: exercise 3, knn: knn is still blank$"):
        train.main([])
    with pytest.raises(NotImplementedError):
        train.main(["--traceback"])


@pytest.mark.parametrize("settings, said", [
    (dict(max_response_length=300), "^max_response_length: 300 is all that the model has, 256 positions"),
    (dict(max_response_length=250), "left out: .*prompt longer than the model has room for"),
    (dict(drift_fraction=0.99), "^drift_fraction: 0.99 keeps all 8 labelled tasks"),
    (dict(gnn_hidden=3), "^gnn_hidden: 3 must be 4 or more")])
def test_a_setting_that_cannot_work_is_named(quick, settings, said):
    with pytest.raises(ValueError, match=said):
        train.train(quick(**settings))


@pytest.mark.parametrize("part", ["policy", "checkpoints/000002"])
def test_the_model_of_a_run_is_not_the_run(quick, tmp_path, part):
    run = tmp_path / "run"
    (run / part).mkdir(parents=True)
    for folder in (run, run / part):
        (folder / "config.json").write_text("{}")
    (run / "tasks.json").write_text("{}")
    for command in (["explain", str(run / part)], ["--resume", str(run / part)]):
        with pytest.raises(SystemExit, match=f"^error: resume: .* a model of the run {run}; name that$"):
            train.main(command)
    (run / "tasks.json").unlink()
    with pytest.raises(SystemExit, match="^error: resume: .* holds a model$"):
        train.main(["--resume", str(run / part)])


def test_long_prompts_are_left_out_and_counted(quick, tmp_path):
    rows = [
        {
            "id": str(i),
            "domain": "math",
            "question": f"Ann has {i} books. " * (9 if i % 6 == 0 else 1),
            "answer": str(i),
        }
        for i in range(24)
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    results = train.train(quick(mode="r1p", tasks=str(tmp_path / "mixed.jsonl"), max_prompt_length=30))
    counts = results["dropped"]["mixed"]
    assert sum(counts.values()) == 4 and all("longer than max_prompt_length" in why for why in counts)
    assert "longer than max_prompt_length" in train.report(results)
    chosen = json.loads((Path(quick().output_dir) / "tasks.json").read_text())
    ids = [
        int(name.rpartition("/")[2]) for part in ("labelled", "unlabelled", "test") for name in chosen[part]
    ]
    assert sorted(ids) == [i for i in range(24) if i % 6] and chosen["dropped"] == results["dropped"]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """The folder of a run that has every label."""
    folder = tmp_path_factory.mktemp("oracle") / "run"

    def run(quick):
        if not folder.exists():
            train.train(quick(mode="oracle", eval_every=0, output_dir=str(folder)))
        return folder

    return run


@pytest.mark.parametrize(
    "settings", [dict(gradient_checkpointing=True), dict(attention="eager"), dict(micro_batch_size=3)]
)
def test_ways_to_compute_change_nothing(quick, oracle, settings):
    train.train(quick(mode="oracle", eval_every=0, **settings))
    one, two = weights(oracle(quick)), weights(quick().output_dir)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-5)  # a step moves a weight by 2e-4


def test_bf16_samples_from_a_copy_with_the_newest_weights(quick):
    results = train.train(quick(mode="oracle", precision="bf16", steps=3))
    start, end = weights(ROOT / "assets"), weights(quick().output_dir)
    assert max((start[name].float() - end[name].float()).abs().max() for name in start) > 1e-4
    again = evaluate_model(quick(model=quick().output_dir, precision="bf16", output_dir=None))
    assert again["greedy"] == results["after"]["greedy"]


@pytest.mark.parametrize("right, warned", [((9, 8, 10, 7), False), ((9, 8, 8, 7), True)])
def test_drift_warns_below_two_standard_errors_of_the_queries(capsys, right, warned):
    """Of 10 rollouts of each of 4 queries 10, 10, 9, 10 were right at the start. The changes, -1, -2, 1, -3
    or -1, -2, -1, -3 tenths, have means -1.25 and -1.75 and standard errors 0.85 and 0.48."""

    def rollouts(counts):
        return [(1.0, float(i < count), query) for query, count in zip("abcd", counts) for i in range(10)]

    drift = train.Drift([], Config())
    drift.extend(rollouts((10, 10, 9, 10)))
    drift.warm_up = len(drift.rewards)
    drift.extend(rollouts((0, 0, 0, 0)))  # of earlier steps
    drift.extend(rollouts(right))
    drift.warn(SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True)), 7, first=80)
    assert ("step 7: the memory drifts" in capsys.readouterr().out) == warned


def test_evaluate_and_probe_take_the_settings_of_a_run(quick, monkeypatch):
    train.train(quick(mode="r1p", label_ratio=0.5, max_response_length=9, test_tasks=6))
    folder = quick().output_dir
    command, config = parse(["evaluate", "--model", folder, "--test_tasks", "5"])
    assert (command, config.max_response_length, config.test_tasks, config.model) == (
        "evaluate",
        9,
        5,
        folder,
    )
    with pytest.raises(SystemExit, match="output_dir: .* holds a run"):
        train.main(["probe", "--output_dir", folder])
    with monkeypatch.context() as inside:  # a run folder that nobody named
        inside.chdir(folder)
        assert parse([])[1].max_response_length == parse(["probe"])[1].max_response_length == 48
    _, config = parse(["probe", "--rollouts", folder, "--neighbors", "7"])
    assert config.label_ratio == 0.5
    assert (config.max_response_length, config.group_size, config.gnn_epochs, config.neighbors) == (
        9,
        4,
        5,
        7,
    )
    assert parse(["evaluate", "--model", "builtin"])[1].max_response_length == 48


def test_drift_is_measured_on_labels_that_fit_nothing(quick, monkeypatch, capsys):
    """A memory that turns everything round after the warm-up is noticed; the slice is never fitted on, and
    always verified."""
    import memreward

    config = quick(
        drift_fraction=0.5, label_ratio=1.0, train_tasks=12, batch_size=12, memory="refit", refit_every=1
    )
    config.groups_per_query, fitted = 1, []  # so that the newest group of a query is the one in question
    fit, predict = memreward.ExperienceMemory.fit, memreward.ExperienceMemory.predict

    def fit_and_turn(memory, seed, without):
        fitted.append(set(memory.ids) - without)
        return fit(memory, seed, without)

    def predictions(memory, *groups, exclude=None):
        if exclude is None:
            return predict(memory, *groups)
        truth = torch.stack(
            [memory.rewards[len(memory.ids) - 1 - memory.ids[::-1].index(query)] for query in exclude]
        )
        return truth if len(fitted) == 1 and not steps else 1 - truth

    steps, update = [], train.refresh
    monkeypatch.setattr(train, "refresh", lambda run: (steps.append(1), update(run)))
    monkeypatch.setattr(memreward.ExperienceMemory, "fit", fit_and_turn)
    monkeypatch.setattr(memreward.ExperienceMemory, "predict", predictions)
    results = train.train(config)
    assert (
        "the memory drifts: of its rewards for 6 labelled queries that it was not fitted on"
        in capsys.readouterr().out
    )
    drift = results["after"]["drift"]
    assert drift["rollouts"] == 2 * 6 * 4 and drift["accuracy"] < 0.7
    assert results["before"]["drift"]["accuracy"] == 1 and results["before"]["drift"]["rollouts"] == 6 * 4
    assert all(len(ids) == 6 and ids == fitted[0] for ids in fitted)
    lines = [json.loads(line) for line in open(Path(config.output_dir) / "metrics.jsonl")]
    assert all("drift/accuracy" in line for line in lines if "loss" in line)


@pytest.mark.parametrize("source", ["base policy", "run", "file"])
def test_probe(quick, tmp_path, monkeypatch, capsys, source):
    """Each source of rollouts gives a table and results.json, with one row marked as what training does."""
    rows = probe.probe_rows
    wanted = ("majority vote", "only parsed", "mixed networks (default)")
    monkeypatch.setattr(
        probe, "probe_rows", lambda *a: {name: row for name, row in rows(*a).items() if name in wanted}
    )
    arguments = [
        "probe",
        "--output_dir",
        str(tmp_path / "out"),
        "--gnn_epochs",
        "2",
        "--gnn_networks",
        "1",
    ]
    if source != "file":
        arguments += ["--train_tasks", "30"]
    if source == "run":
        train.train(quick(mode="r1p"))
        arguments += ["--rollouts", quick().output_dir]
    if source == "file":
        lines = [
            {
                "id": str(i),
                "domain": "math",
                "question": f"Number {i}?",
                "answer": str(i),
                "rollouts": [
                    {"response": f"#### {i}", "reward": 1.0},
                    {"response": "#### -1", "reward": 0.0},
                ],
            }
            for i in range(30)
        ]
        (tmp_path / "rollouts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        arguments += ["--rollouts", str(tmp_path / "rollouts.jsonl")]
    train.main(arguments)
    found = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in found] == list(wanted)[:1] + ["mixed networks (default)", "only parsed"]
    assert [row["default"] for row in found] == [False, True, False]
    assert all(
        {"auc", "accuracy", "precision", "recall", "f1", "fp_rate", "ece", "fit_seconds"} <= row.keys()
        for row in found
    )
    out = capsys.readouterr().out
    assert all(name in out for name in wanted) and ("30 queries x 2 rollouts, 50% right" in out) == (
        source == "file"
    )
    if source == "file":  # a tie goes to the first, which is right
        assert found[0]["accuracy"] == 1.0 and "no --model has read" in out


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "1", "domain": "math", "question": "?", "answer": "1"}',
        '{"id": "1", "domain": "math", "question": "?", "answer": "1", "rollouts": [{"response": "1"}]}',
        '{"id": "1", "domain": "math", "question": "?", "answer": "1", '
        '"rollouts": [{"response": null, "reward": 0}]}',
    ],
)
def test_probe_refuses_files_without_rollouts(tmp_path, line):
    (tmp_path / "none.jsonl").write_text(line)
    with pytest.raises(SystemExit, match="rollouts: .*none.jsonl"):
        train.main(["probe", "--rollouts", str(tmp_path / "none.jsonl")])


def test_explain_needs_a_memory(quick):
    train.train(quick(mode="r1p", steps=1, eval_every=0))
    with pytest.raises(SystemExit, match="has no memory"):
        train.main(["explain", quick().output_dir])
    with pytest.raises(SystemExit, match="name a run folder"):
        train.main(["explain"])


def test_averages_in_and_out_of_domain(tmp_path, monkeypatch, capsys):
    """Right is every response to red, half to blue, a quarter to green: 4 + 4 of 12 tasks in domain, while
    the mean of the two sets is 3/4."""
    import grpo

    for name, count in {"red": 4, "blue": 8, "green": 4}.items():
        rows = [
            {"id": str(i), "domain": "math", "question": f"{name} {i}", "answer": "7"} for i in range(count)
        ]
        for part in ("train", "test"):
            (tmp_path / f"{name}_{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def sample(model, tokenizer, prompts, size, *rest):
        numbers = [re.search(r"(\w+) (\d)", prompt).groups() for prompt in prompts]
        one_in = {"red": 1, "blue": 2, "green": 4}
        wrong = {"blue": "#### 8", "green": "I do not know"}
        texts = [
            "#### 7" if int(i) % one_in[name] == 0 else wrong[name]
            for name, i in numbers
            for _ in range(size)
        ]
        return SimpleNamespace(texts=texts)

    monkeypatch.setattr(grpo, "sample", sample)
    red, blue, green = (str(tmp_path / f"{name}_test.jsonl") for name in ("red", "blue", "green"))
    train.main(
        [
            "evaluate",
            "--tasks",
            f"{red},{blue}",
            "--ood",
            green,
            "--eval_samples",
            "2",
            "--output_dir",
            str(tmp_path),
        ]
    )
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["tasks"] == {"red": 4, "blue": 8, "green": 4, "all": 12, "out of domain": 4}
    for kind in ("greedy", "sampled"):
        assert result[kind] == pytest.approx(
            {
                "red": 1.0,
                "blue": 0.5,
                "green": 0.25,
                "all": 2 / 3,
                "all, mean of sets": 0.75,
                "out of domain": 0.25,
            }
        )
        error = math.sqrt(8 * 0.25 / 7) / math.sqrt(8)  # of blue: each score is 0.5 from the mean
        assert result["errors"][kind]["blue"] == pytest.approx(error) and result["errors"][kind]["red"] == 0.0
        assert result["answered"][kind] == pytest.approx(
            {"red": 1.0, "blue": 1.0, "green": 0.25, "all": 1.0, "out of domain": 0.25})
    table = {line[:18].strip(): line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert table["in domain"] == ["0.667", "0.667"] and table["mean of sets"] == ["0.750", "0.750"]
    assert table["out of domain"] == ["0.250", "0.250"]


def test_evaluate_takes_runs_and_checkpoints(quick, capsys):
    results = train.train(quick(mode="oracle", steps=4, eval_every=2, eval_samples=1))
    for place, step in (("", 4), ("policy", 4), ("checkpoints/000002", 2), ("checkpoints/000004", 4)):
        config = quick(model=str(Path(quick().output_dir) / place), output_dir=None, eval_samples=1)
        found = evaluate_model(config)
        (expected,) = (e for e in results["evaluations"] if e["step"] == step)
        assert {kind: found[kind] for kind in ("greedy", "sampled")} == {
            kind: expected[kind] for kind in ("greedy", "sampled")
        }


def test_evaluate_counts_no_task_twice_and_keeps_the_names_of_averages(quick, tmp_path):
    with pytest.raises(ValueError, match="^ood: world holds tasks of world, which would count twice"):
        evaluate_model(quick(tasks="world", ood="world", output_dir=None))
    row = {"id": "a", "domain": "math", "question": "1 + 1?", "answer": "2"}
    (tmp_path / "all.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="^tasks: a data set cannot be called 'all'; rename its file"):
        evaluate_model(quick(tasks=str(tmp_path / "all.jsonl"), output_dir=None))


def test_r1p_shows_only_rewards_that_somebody_gets(quick, capsys):
    train.train(quick(mode="r1p", steps=1, eval_every=1))
    rows = [json.loads(line) for line in open(Path(quick().output_dir) / "rollouts.jsonl")]
    assert rows and {row["source"] for row in rows} == {"verifier"}
    assert "rewards by majority" not in capsys.readouterr().out


def test_a_run_that_two_versions_of_the_method_made_is_of_neither(quick, monkeypatch):
    results = train.train(quick(mode="r1p", steps=1, eval_every=0))
    assert results["version"] == runs.version()
    monkeypatch.setattr(runs, "version", lambda: "another")
    monkeypatch.setattr("lab.log.version", lambda: "another")
    config = quick(mode="r1p", steps=2, eval_every=0, resume=quick().output_dir)
    assert train.train(config)["version"] == f"{results['version']} then another"
    newest = sorted((Path(quick().output_dir) / "checkpoints").iterdir())[-1]
    state = torch.load(newest / "progress.pt")
    state["audit"] = state.pop("audited")  # as before domains were kept
    torch.save(state, newest / "progress.pt")
    runs.write_json(newest / "checksums.json", runs.checksums(newest))
    with pytest.raises(ValueError, match="^resume: .*000002 was written by an earlier version of"):
        train.train(dataclasses.replace(config, steps=3))


def test_labels_are_all_used_where_the_only_row_without_one_is_too_long(quick, tmp_path):
    rows = [{"id": f"{i}", "domain": "math", "question": f"{i} + 0?", "answer": str(i)} for i in range(12)]
    rows.append({"id": "long", "domain": "math", "question": "How many? " * 400})
    for part, lines in (("train", rows), ("test", [rows[0] | {"question": "5 plus 5?", "answer": "10"}])):
        (tmp_path / f"mine_{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = train.train(quick(mode="r1p", tasks=str(tmp_path / "mine_train.jsonl"), steps=1))
    assert (results["labels_used"], results["labels_available"]) == (12, 12)
    assert results["dropped"] == {"mine": {"train: prompt longer than max_prompt_length, no label": 1}}


def test_every_setting_is_read():
    files = [ROOT / "train.py", ROOT / "memreward.py", *(ROOT / "lab").glob("*.py")]
    source = "".join(path.read_text() for path in files)
    source = source.replace(inspect.getsource(settings.check_values), "")  # to check is not to use
    for setting in dataclasses.fields(Config):
        assert re.search(rf"config\.{setting.name}\b", source), setting.name


def test_the_readme_command(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--steps",
        "2",
        "--train_tasks",
        "40",
        "--test_tasks",
        "12",
        "--eval_samples",
        "1",
    ]
    environment = dict(os.environ, OMP_NUM_THREADS="1")  # two threads that find no cores wait for each other
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert out.returncode == 0, out.stderr
    assert "greedy after" in out.stdout and "labels used         8 of 40" in out.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "rollouts.jsonl",
        "results.json",
        "checkpoints",
        "policy",
        "tasks.json",
    }


def test_the_readme_example_of_ones_own_verifier(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert out.returncode == 0, out.stderr
    assert re.search(r"\{'shout': 0.0, 'all': 0.0\} [34] labels used", out.stdout)
