"""From the command line to a configuration: presets, the settings of a run folder, and what is refused."""

import dataclasses
import json
from dataclasses import field
from pathlib import Path

PAPER = dict(  # arXiv 2603.19310: its benchmarks and settings, one flag for each of its two policies
    tasks="gsm8k,math,gsm_symbolic,mmlu,commonsenseqa,obqa,arc_c,gpqa,humaneval_plus,mbpp_plus",
    ood="numina_math,piqa,siqa", train_tasks=750, test_tasks=450,
    encoder="sentence-transformers/all-MiniLM-L6-v2", steps=410, batch_size=128, max_response_length=1024,
    learning_rate=1e-6, sample_batch_size=64, micro_batch_size=8, neighbors=7, gnn_hidden=512,
    gradient_checkpointing=True, eval_every=41, eval_samples=0)
PRESETS = {
    "none": {},
    "qwen2.5-1.5b": PAPER | {"model": "Qwen/Qwen2.5-1.5B-Instruct"},
    "qwen2.5-3b": PAPER | {"model": "Qwen/Qwen2.5-3B-Instruct"},
    "smollm2-135m": dict(  # a real model on two cores: shows that it runs, far too short to learn
        model="HuggingFaceTB/SmolLM2-135M-Instruct", encoder="sentence-transformers/all-MiniLM-L6-v2",
        tasks="gsm8k,arc_c,mbpp_plus", train_tasks=20, test_tasks=8, label_ratio=0.4, steps=20,
        batch_size=4, group_size=4, max_prompt_length=256, max_response_length=96, learning_rate=1e-5,
        micro_batch_size=8, eval_every=20, eval_samples=0)}
READ_BY = {"seeds": ("compare", "probe"), "variants": ("compare",), "rollouts": ("probe",),
           "resume": ("train", "explain")}
MEMORY = ("neighbors threshold reward abstain drift_fraction memory refit_every groups_per_query features "
          "gnn gnn_networks gnn_hidden gnn_layers gnn_dropout gnn_learning_rate gnn_weight_decay gnn_epochs "
          "gnn_patience").split()
SHARED = ("encoder tasks ood train_tasks test_tasks seed group_size temperature max_prompt_length "
          "max_response_length eval_samples").split()  # of a run, with whoever evaluates or probes its policy


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message where the condition fails."""
    if not condition:
        raise ValueError(message)


def setting(default, text: str):
    """A field of Config with its line for --help."""
    return field(default=default, metadata={"help": text})


def parse(arguments: list[str], Config: type, commands: tuple[str, ...]) -> tuple[str, object]:
    """Split the command line into a command and its Config; what is unknown is refused."""
    from transformers.hf_argparser import HfArgumentParser

    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    if command in ("explain", "plot") and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--resume" if command == "explain" else "--output_dir")
    parser = HfArgumentParser(
        Config, usage=f"python train.py [{'|'.join(commands)}] [--setting value ...]",
        description="Train a policy with rewards from a verifier where there are labels, else from memory.")
    check(command in commands, f"command: {command!r} is not one of {', '.join(commands)}")
    read = parser.parse_args_into_dataclasses
    config, unknown = read(arguments, return_remaining_strings=True, look_for_args_file=False)
    check(not unknown, f"{' '.join(unknown)}: no such setting; python train.py --help lists them")
    if others := PRESETS[config.preset] | of_run(command, config):  # other defaults, so that flags still win
        parser.set_defaults(**others)
        (config,) = read(arguments, look_for_args_file=False)
    given = [name[2:].partition("=")[0].replace("-", "_") for name in arguments if name.startswith("--")]
    for name, readers in READ_BY.items():
        check(name not in given or command in readers,
              f"{name}: only {' and '.join(readers)} can use it, not {command}")
    idle = [name for name in given if name in MEMORY and command == "train" and config.mode != "memreward"]
    check(not idle, f"{', '.join(idle)}: of the memory, and mode {config.mode} has none")
    return command, go_on(config, given) if config.resume else config


def of_run(command: str, config) -> dict:
    """The settings of the run folder that `evaluate --model` or `probe --rollouts` names."""
    folder = {"evaluate": config.model, "probe": config.rollouts}.get(command)
    if not folder or not (Path(folder) / "tasks.json").is_file():
        return {}
    saved = json.loads((Path(folder) / "config.json").read_text())
    ratio = ["label_ratio"] * (command == "probe" and saved["label_ratio"] < 1)  # with all, nothing is hidden
    return {name: saved[name] for name in (*SHARED, *MEMORY, *ratio) if name in saved}


def go_on(config, given: list[str]):
    """The settings of the run folder that `--resume` names."""
    path = Path(config.resume) / "config.json"
    check(path.is_file(), f"resume: {config.resume} is no run folder, it has no config.json")
    other = [name for name in given if name not in ("resume", "traceback")]
    check(not other, f"resume: leave out {', '.join(other)}, the settings of the run are in {path}")
    saved = json.loads(path.read_text())
    unknown = saved.keys() - {f.name for f in dataclasses.fields(config)}
    check(not unknown, f"resume: {path} has settings of another version: {', '.join(sorted(unknown))}")
    return dataclasses.replace(type(config)(**saved), resume=config.resume, traceback=config.traceback)
