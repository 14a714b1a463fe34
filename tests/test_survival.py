"""Runs survive: killed at any moment, with damaged checkpoints or a full disk, they end as if nothing had
been."""

import errno
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

import train
from lab import runs, settings

SETTINGS = dict(
    save_rollouts=1, steps=4, eval_every=2, memory="refit", refit_every=2, batch_size=3, test_tasks=6
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Run folders that nothing happened to, by mode."""
    done = {}

    def run(quick, mode):
        if mode not in done:
            done[mode] = tmp_path_factory.mktemp(mode) / "run"
            train.train(quick(mode=mode, **SETTINGS, output_dir=str(done[mode])))
        return done[mode]

    return run


def outcome(folder):
    """All that a run leaves but times: log, results and weights."""

    def timed(name):
        return name.startswith("seconds") or name == "tokens_per_second"

    lines = [json.loads(line) for line in open(Path(folder) / "metrics.jsonl")]
    lines = [{name: value for name, value in line.items() if not timed(name)} for line in lines]
    results = json.loads((Path(folder) / "results.json").read_text())
    weights = (Path(folder) / "policy" / "model.safetensors").read_bytes()
    return lines, (Path(folder) / "rollouts.jsonl").read_text(), {**results, "seconds": None}, weights


def train_until(config, place, name, call):
    """Train, and be killed at the given call of place.name, after half a file where that writes one."""
    place = importlib.import_module(place)
    original, calls = getattr(place, name), []

    def deadly(*args, **settings):
        calls.append(1)
        if len(calls) < call:
            return original(*args, **settings)
        if name == "save":
            original(*args, **settings)
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, name, deadly)
    torch.set_num_threads(1)
    train.train(config)


def run_and_die(config, *moment):
    """train_until in another process; a server forks these, so that torch is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "torch", "accelerate", "transformers"])
    child = context.Process(target=train_until, args=(config, *moment))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


slow = pytest.mark.slow
MOMENTS = [
    ("memreward", "lab.runs", "write_json", 3),  # before there is a checkpoint
    ("r1p", "grpo", "policy_update", 1),  # behind the first
    ("memreward", "torch", "save", 5),  # in the last
    ("memreward", "lab.runs", "save_policy", 4),  # at the end
    *(
        pytest.param(*moment, marks=slow)
        for moment in (
            ("memreward", "grpo", "policy_update", 4),  # between two
            ("r1p", "grpo", "policy_update", 4),
            ("memreward", "lab.runs", "checksums", 2),
            ("memreward", "shutil", "rmtree", 4),
        )
    ),
]


@pytest.mark.parametrize("mode, place, name, call", MOMENTS)
def test_killed_run_resumes_as_if_nothing_had_been(quick, straight, mode, place, name, call):
    config = quick(mode=mode, **SETTINGS)
    run_and_die(config, place, name, call)
    assert not (Path(config.output_dir) / "results.json").exists()
    train.train(go_on(config))
    assert outcome(config.output_dir) == outcome(straight(quick, mode))


def go_on(config):
    return settings.parse(["--resume", config.output_dir], train.Config, {"train": ""})[1]


def damage(checkpoint, name):
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)


@pytest.mark.parametrize("name", ["memory.pt", pytest.param("optimizer.bin", marks=slow)])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(quick, straight, capsys, name):
    config = quick(mode="memreward", **SETTINGS)
    run_and_die(config, "train", "finish", 1)  # the checkpoints of steps 2 and 4 are there
    newest, before = sorted((Path(config.output_dir) / "checkpoints").iterdir(), reverse=True)
    assert (newest.name, before.name) == ("000004", "000002")
    damage(newest, name)
    train.train(go_on(config))
    assert f"000004 is damaged ({name}); falling back to the one before" in capsys.readouterr().out
    assert outcome(config.output_dir) == outcome(straight(quick, "memreward"))


def test_no_whole_checkpoint_is_an_error(quick):
    config = quick(mode="r1p", keep=1)
    train.train(config)
    (checkpoint,) = (Path(config.output_dir) / "checkpoints").iterdir()
    assert checkpoint.name == "000002"
    (checkpoint / "progress.pt").unlink()
    with pytest.raises(ValueError, match="no checkpoint of .* is whole"):
        train.train(go_on(config))


@pytest.mark.parametrize(
    "place, error",
    [
        ("transformers.modeling_utils.safe_save_file", SafetensorError("I/O error: No space left on device")),
        pytest.param("torch.save", OSError(errno.ENOSPC, "No space left on device"), marks=slow),
        pytest.param("torch.save", RuntimeError("PytorchStreamWriter failed writing file"), marks=slow),
        pytest.param("os.fsync", OSError(errno.ENOSPC, "No space left on device"), marks=slow),
    ],
)
def test_a_full_disk_costs_a_checkpoint_and_no_more(quick, straight, capsys, monkeypatch, place, error):
    config, (module, name) = quick(mode="memreward", **SETTINGS), place.rsplit(".", 1)
    save = getattr(importlib.import_module(module), name)

    def full(*args, **settings):
        if (
            not failed and (Path(config.output_dir) / "checkpoints" / "000000").exists()
        ):  # in the second checkpoint
            failed.append(1)
            raise error
        return save(*args, **settings)

    failed: list = []
    monkeypatch.setattr(place, full)
    train.train(config)
    assert failed and "could not be written" in capsys.readouterr().out
    assert not (Path(config.output_dir) / "checkpoint.new").exists()
    assert outcome(config.output_dir) == outcome(straight(quick, "memreward"))


def test_the_drift_of_the_warm_up_stays_the_one_to_compare_with(quick):
    config = quick(label_ratio=0.6, drift_fraction=0.5, batch_size=8, checkpoint_every=1)
    train.train(config)
    states = [torch.load(path / "progress.pt") for path in runs.checkpoints_of(Path(config.output_dir))]
    counts = [(state["warm_up"], len(state["drift"])) for state in states]
    assert 0 < counts[0][0] == counts[1][0] < counts[0][1] < counts[1][1]


def test_damage_anywhere_in_a_large_file_is_seen(tmp_path):
    size = 2**24  # bytes that are read at a time
    for place in (None, 0, size - 1, size):
        content = bytearray(size + 1)
        if place is not None:
            content[place] = 1
        (tmp_path / f"{place}").write_bytes(content)
    assert len(set(runs.checksums(tmp_path).values())) == 4


@pytest.mark.parametrize("steps", [2, 3])
def test_a_run_goes_on_beyond_its_end(quick, straight, steps, monkeypatch, tmp_path):
    """--resume RUN --steps MORE, in a folder that was moved: what it leaves is what one longer run leaves,
    also where the shorter one was evaluated and saved at a step at which the longer one is not."""
    config = quick(mode="memreward", **{**SETTINGS, "steps": steps})
    with monkeypatch.context() as patch:  # as if it had taken 1000 s longer
        patch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + 1000))
        train.train(config)
    folder = Path(config.output_dir).rename(tmp_path / "moved")
    arguments = ["--resume", str(folder), "--steps", "4"]
    train.train(settings.parse(arguments, train.Config, {"train": ""})[1])
    longer = straight(quick, "memreward")
    assert outcome(folder) == outcome(longer)
    assert json.loads((folder / "results.json").read_text())["seconds"] > 1000
    saved = [json.loads((path / "config.json").read_text()) for path in (folder, longer)]
    assert [one | {"output_dir": None} for one in saved[:1]] == [
        one | {"output_dir": None} for one in saved[1:]
    ]
    with pytest.raises(ValueError, match="steps: .* is a run of 4 steps already"):
        settings.parse(["--resume", str(folder), "--steps", "3"], train.Config, {"train": ""})


def test_the_data_must_be_the_same(quick, tmp_path):
    rows = [
        {"id": str(i), "domain": "math", "question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(60)
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    config = quick(mode="r1p", tasks=str(file))
    train.train(config)
    tested = json.loads((tmp_path / "run" / "tasks.json").read_text())["test"]
    others = [row for row in rows if row["id"] != tested[0].rpartition("/")[2]]
    for changed in (rows[:-20], others):  # other tasks to train on, to test on
        file.write_text("\n".join(map(json.dumps, changed)))
        with pytest.raises(ValueError, match="the data changed since the run began"):
            train.train(go_on(config))


def test_two_processes_do_not_write_one_run(tmp_path):
    code = "import sys, pathlib, lab.runs; lock = lab.runs.hold(pathlib.Path(sys.argv[1])); " \
           "print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(train.__file__).parent,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"^output_dir: another process is writing the run {tmp_path}$"):
        runs.hold(tmp_path)
    other.communicate()
    lock = runs.hold(tmp_path)  # it has ended
    runs.hold(tmp_path).close()  # one process may, as a run that failed and is resumed in a notebook
    lock.close()


def test_files_that_are_no_runs_are_not_overwritten(quick, tmp_path):
    for name in ("config.json", "rollouts.jsonl"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match="^output_dir: .* holds a config.json, rollouts.jsonl that is no"):
        train.train(quick())
    assert (tmp_path / "run" / "config.json").read_text() == "mine"


def test_a_resume_that_fails_changes_nothing(quick, tmp_path):
    run = tmp_path / "run"
    train.train(quick(mode="r1p"))
    for file in run.glob("checkpoints/*/progress.pt"):
        file.write_bytes(b"damaged")
    before = {name: (run / name).read_text() for name in ("config.json", "results.json")}
    with pytest.raises(SystemExit, match="no checkpoint of .* is whole"):
        train.main(["--resume", str(run), "--steps", "9"])
    assert before == {name: (run / name).read_text() for name in before}


def test_two_runs_of_one_moment_have_folders_of_their_own():
    assert len({settings.new_folder("memreward") for _ in range(3)}) == 3
