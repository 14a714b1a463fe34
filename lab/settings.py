"""From the command line to a configuration: presets, the settings of a run folder, and what is refused."""

import argparse
import dataclasses
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args, get_origin

PAPER = dict(  # arXiv 2603.19310: its benchmarks and settings, one flag for each of its two policies
    tasks="gsm8k,math,gsm_symbolic,mmlu,commonsenseqa,obqa,arc_c,gpqa,humaneval_plus,mbpp_plus",
    ood="numina_math,piqa,siqa", train_tasks=750, test_tasks=450,
    encoder="sentence-transformers/all-MiniLM-L6-v2", steps=410, batch_size=128, max_response_length=1024,
    learning_rate=1e-6, sample_batch_size=64, micro_batch_size=8, neighbors=7, gnn_hidden=512,
    gradient_checkpointing=True, eval_every=41, eval_samples=0)
PRESETS = {
    "none": {},
    "quick": dict(  # under a minute on two cores: to see that it learns; too few tasks to compare methods
        train_tasks=120, test_tasks=120, steps=30, eval_every=30, eval_samples=1, gnn_epochs=60),
    "qwen2.5-1.5b": PAPER | {"model": "Qwen/Qwen2.5-1.5B-Instruct"},
    "qwen2.5-3b": PAPER | {"model": "Qwen/Qwen2.5-3B-Instruct"},
    "smollm2-135m": dict(  # a real model on two cores: shows that it runs, far too short to learn
        model="HuggingFaceTB/SmolLM2-135M-Instruct", encoder="sentence-transformers/all-MiniLM-L6-v2",
        tasks="gsm8k,arc_c,mbpp_plus", train_tasks=20, test_tasks=8, label_ratio=0.4, steps=20,
        batch_size=4, group_size=4, max_prompt_length=256, max_response_length=96, learning_rate=1e-5,
        micro_batch_size=8, eval_every=20, eval_samples=0),
    "smollm2-short": dict(  # tasks that it can learn, made by: python assets/make_short.py short
        model="HuggingFaceTB/SmolLM2-135M-Instruct", encoder="sentence-transformers/all-MiniLM-L6-v2",
        tasks="short/short_train.jsonl", ood="short/short_ood_test.jsonl", train_tasks=420, test_tasks=210,
        temperature=0.7, max_prompt_length=128, max_response_length=32, learning_rate=2e-5, steps=30,
        batch_size=8, group_size=6, micro_batch_size=12, sample_batch_size=48, eval_every=30, eval_samples=0),
    "own-24gb": dict(  # your own --tasks on one GPU of 24 GB
        model="Qwen/Qwen2.5-0.5B-Instruct", label_pick="coverage", gradient_checkpointing=True, batch_size=32,
        max_prompt_length=512, max_response_length=512, learning_rate=1e-6, micro_batch_size=8,
        sample_batch_size=64, neighbors=7, eval_samples=0)}
REAL = dict(  # of any model but the built-in one, where neither flag nor preset says otherwise
    max_response_length=512, learning_rate=1e-6, sample_batch_size=64, micro_batch_size=8, neighbors=7,
    eval_samples=0)
GROUPS = {  # every setting once, as --help shows them
    "first": "mode label_ratio label_pick memory tasks model steps seed output_dir resume",
    "tasks and models": "preset ood train_tasks test_tasks encoder max_prompt_length max_response_length "
                        "system chat_template_kwargs stop plugin check_policy attention precision",
    "GRPO": "batch_size group_size temperature learning_rate lr_warmup updates_per_batch clip_low clip_high "
            "kl_coef advantage_norm loss_norm mask_truncated max_grad_norm sample_batch_size "
            "micro_batch_size gradient_checkpointing",
    "memory": "neighbors threshold reward abstain drift_fraction refit_every groups_per_query features gnn "
              "gnn_networks gnn_hidden gnn_layers gnn_dropout gnn_learning_rate gnn_weight_decay gnn_epochs "
              "gnn_patience",
    "evaluation, log, checkpoints": "eval_every eval_samples checkpoint_every keep save_rollouts show "
                                    "tracker profile traceback",
    "several runs": "seeds variants",
    "pictures, and rollouts from elsewhere": "figure watch rollouts new_kinds"}
GROUPS = {title: names.split() for title, names in GROUPS.items()}
MEMORY = ["memory", *GROUPS["memory"]]  # what a mode without a memory does not read
TRAINING_ONLY = "memory reward abstain refit_every drift_fraction".split()  # of MEMORY
READING = "system chat_template_kwargs stop plugin check_policy attention precision traceback".split()
SAMPLING = "max_prompt_length max_response_length sample_batch_size".split()
TRAIN = [name for names in list(GROUPS.values())[:-2] for name in names]
READ_BY = {  # the settings of each command
    "train": TRAIN,
    "compare": [name for name in TRAIN if name not in ("mode", "resume")] + ["seeds", "variants"],
    "evaluate": ["preset", "model", "tasks", "ood", "test_tasks", "eval_samples", "output_dir", *READING,
                 *SAMPLING],
    "pick": ["tasks", "model", "encoder", "seed", "micro_batch_size", "output_dir", *READING],
    "probe": ["preset", "label_ratio", "tasks", "train_tasks", "model", "encoder", "seed", "group_size",
              "temperature", "micro_batch_size", "output_dir", "seeds", "rollouts", "label_pick", "new_kinds",
              *READING, *SAMPLING, *(name for name in MEMORY if name not in TRAINING_ONLY)],
    "explain": ["resume", "figure", "traceback"],
    "map": ["resume", "traceback"],
    "score": ["resume", "rollouts", "traceback"],
    "plot": ["output_dir", "label_ratio", "watch", "traceback"]}
NAMELESS = {  # given by their place, as in: explain RUN
    "evaluate": ["model"], "explain": ["resume"], "map": ["resume"], "score": ["resume", "rollouts"],
    "plot": ["output_dir"]}
SHARED = ("system chat_template_kwargs stop plugin encoder tasks ood train_tasks test_tasks seed group_size "
          "temperature max_prompt_length max_response_length eval_samples").split()  # of a run, with whoever
# evaluates or probes its policy


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message where the condition fails."""
    if not condition:
        raise ValueError(message)


def setting(default, text: str):
    """A field of Config with its line for --help."""
    return field(default=default, metadata={"help": text})


def new_folder(kind: str) -> str:
    """A name for a folder under runs/, of this moment: two runs that start together get two."""
    return datetime.now().strftime(f"runs/%Y-%m-%d_%H-%M-%S-%f_{kind}")


def check_json(name: str, text: str) -> None:
    """Raise ValueError where the text is no JSON object."""
    try:
        fine = isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        fine = False
    check(fine, f'{name}: {text} is no JSON object such as {{"enable_thinking": false}}')
    for key in ("tokenize", "add_generation_prompt"):
        check(key not in json.loads(text), f"{name}: leave out {key}, which every prompt sets itself")


def check_values(config) -> None:
    """Raise ValueError, which names the setting, where a value makes no sense."""
    for f in dataclasses.fields(config):
        value, allowed = getattr(config, f.name), get_args(f.type)
        check(get_origin(f.type) is not Literal or value in allowed,
              f"{f.name}: {value!r} is none of {', '.join(map(str, allowed))}")
    check(config.tasks.strip(), "tasks: names no set; 'world' is the built-in one")
    check(config.gnn_hidden > 3, f"gnn_hidden: {config.gnn_hidden} must be 4 or more")
    positive = ("train_tasks test_tasks steps batch_size temperature max_prompt_length "
                "max_response_length learning_rate updates_per_batch sample_batch_size micro_batch_size "
                "max_grad_norm neighbors groups_per_query gnn_layers gnn_networks gnn_learning_rate "
                "gnn_epochs gnn_patience keep seeds refit_every")
    for name in positive.split():
        check(getattr(config, name) > 0, f"{name}: {getattr(config, name)} must be above 0")
    check(not config.profile or config.steps >= 5, f"profile: needs 5 steps, steps is {config.steps}")
    check(0 < config.label_ratio <= 1,
          f"label_ratio: {config.label_ratio} is outside (0, 1]; 0.2 keeps one label in five")
    check(config.group_size > 1,
          f"group_size: {config.group_size} gives no advantage; GRPO compares 2 rollouts or more")
    for name in ("threshold", "clip_low", "gnn_dropout", "abstain", "drift_fraction"):
        check(0 <= getattr(config, name) < 1, f"{name}: {getattr(config, name)} is outside [0, 1)")
    check(config.threshold > 0, "threshold: 0 would reward every answer; 0.5 is the usual one")
    check_json("chat_template_kwargs", config.chat_template_kwargs)
    for name in ("kl_coef", "clip_high", "gnn_weight_decay", "seed", "eval_samples", "lr_warmup",
                 "eval_every", "checkpoint_every", "save_rollouts", "show", "watch"):
        check(getattr(config, name) >= 0, f"{name}: {getattr(config, name)} must not be negative")


def due(step: int, interval: int) -> bool:
    """Is it time for what happens every so many steps? 0: never.

    >>> [step for step in range(1, 7) if due(step, 3)], due(3, 0)
    ([3, 6], False)
    """
    return interval > 0 and step % interval == 0


def load_plugin(path: str | None) -> None:
    """Run a Python file, which adds to data.INSTRUCTIONS and data.VERIFIERS what it knows, or puts it in the
    place of what is there."""
    if path is None:
        return
    check(Path(path).is_file(), f"plugin: no file {path}")
    import data

    before, told = dict(data.VERIFIERS), dict(data.INSTRUCTIONS)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except (Exception, SystemExit) as error:
        raise ValueError(f"plugin: {path} cannot be run: {type(error).__name__}: {error}") from error
    new = [name for name, verifier in data.VERIFIERS.items() if verifier is not before.get(name)]
    check(new or told != data.INSTRUCTIONS, f"plugin: {path} adds no function to data.VERIFIERS, such as "
          "VERIFIERS['shout'] = lambda response, answer: ...")
    silent = [name for name in new if name not in data.INSTRUCTIONS or not callable(data.VERIFIERS[name])]
    check(not silent, f"plugin: {path}: {', '.join(silent)} needs a text in data.INSTRUCTIONS and a function "
          "in data.VERIFIERS")
    for name in new:
        data.VERIFIERS[name] = guarded(name, data.VERIFIERS[name])


def guarded(name: str, verifier: Callable[..., float]) -> Callable[..., float]:
    """A verifier whose errors are one line; one of qa gets the choices, too."""

    def verify(response: str, answer: str, *choices) -> float:
        try:
            reward = verifier(response, answer, *choices)
        except Exception as error:
            raise ValueError(f"plugin: the verifier of {name!r} raises {type(error).__name__}: {error}, for "
                             f"the answer {answer!r} and the response {response[-60:]!r}") from error
        check(reward in (0, 1), f"plugin: the verifier of {name!r} returns {reward!r}, not 0 or 1, for the "
              f"answer {answer!r} and the response {response[-60:]!r}")
        return float(reward)

    return verify


def out_of_memory(config) -> str:
    """A line on what to do where the GPU's memory was not enough."""
    import torch

    gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    peak = f" ({gib:.1f} GiB were in use)" if gib else ""
    return (f"out of memory{peak}: take a smaller --micro_batch_size (now {config.micro_batch_size}) or "
            f"--sample_batch_size (now {config.sample_batch_size}), or --gradient_checkpointing")


def run_command(arguments: list[str], Config: type, commands: dict[str, tuple[str, Callable]]) -> None:
    """What `python train.py` with these arguments does, by the functions of `commands`, {name: (what it does,
    function)}. An error that the user can mend is one line."""
    command = config = None
    try:
        command, config = parse(arguments, Config, {name: text for name, (text, _) in commands.items()})
        load_plugin(config.plugin)
        commands[command][1](config)
    except (ValueError, OSError, FloatingPointError) as error:
        if config is not None and config.traceback:
            raise
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        full, blank = ("out of memory" in str(error)), ("is still blank" in str(error))  # an exercise
        if config.traceback or not (full or blank):
            raise
        sys.exit(f"error: {out_of_memory(config) if full else error}")
    except KeyboardInterrupt:
        if command != "train" or not (Path(config.output_dir or "") / "config.json").is_file():
            sys.exit("\nstopped; run the same command again")
        sys.exit(f"\nstopped; to go on: python train.py --resume {config.output_dir}")


class Parser(argparse.ArgumentParser):
    """Its error is one line, too."""

    def error(self, message: str):
        """Raise ValueError, which names the setting."""
        message = re.sub(r"^argument --?(\w+)", r"\1", message)
        raise ValueError(message.replace("unrecognized arguments:", "no such setting:"))


def make_parser(command: str, Config: type, commands: dict[str, str]) -> Parser:
    """The command line of a command: the settings that it reads, in groups."""
    width = min(shutil.get_terminal_size().columns, 130)
    places = [name.upper() for name in NAMELESS.get(command, ())]
    about = [commands[command]]
    if command == "train":
        about += ["", "commands, each with its own --help:"]
        about += [f"  {name:<10}{text}" for name, text in commands.items()]
    parser = Parser(
        usage=" ".join(["python train.py", *([command] if command != "train" else ["[COMMAND]"]), *places,
                        "[--setting value ...]"]),
        description="\n".join(about), allow_abbrev=False, formatter_class=lambda prog:
        argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width))
    fields = {f.name: f for f in dataclasses.fields(Config)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for f in (fields[name] for name in names if name in READ_BY[command]):
            kinds = [kind for kind in get_args(f.type) if kind is not type(None)]
            given = "" if f.default in (None, "") else f" (default {f.default})"
            how = {"type": f.type, "metavar": getattr(f.type, "__name__", "str").upper()}
            if f.type is bool:
                how = {"type": truth, "nargs": "?", "const": True, "metavar": "BOOL"}
            elif kinds and isinstance(kinds[0], str):  # Literal
                how = {"choices": kinds, "metavar": "|".join(kinds) if len(kinds) < 5 else "NAME"}
            elif kinds:  # str | None
                how = {"type": kinds[0], "metavar": "PATH"}
            text = f.metadata["help"].replace("%", "%%")
            group.add_argument(f"--{f.name}", default=f.default, help=text + given, **how)
    return parser


def truth(word: str) -> bool:
    """True or False of a word, for argparse.

    >>> truth("yes"), truth("False")
    (True, False)
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if word.lower() not in words:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return words[word.lower()]


def parse(arguments: list[str], Config: type, commands: dict[str, str]) -> tuple[str, object]:
    """Split the command line into a command and its Config; what the command does not read is refused.
    `commands` are their names and what they do."""
    arguments, command = list(arguments), "train"
    if arguments and not arguments[0].startswith("-"):
        command = arguments.pop(0)
    check(command in commands, f"command: {command!r} is not one of {', '.join(commands)}")
    for place, name in enumerate(NAMELESS.get(command, ())):
        if len(arguments) > 2 * place and not arguments[2 * place].startswith("-"):
            arguments.insert(2 * place, f"--{name}")
    given = [name[2:].partition("=")[0] for name in arguments if name.startswith("--")]
    for name in given:
        readers = [reader for reader, names in READ_BY.items() if name in names]
        check(not readers or command in readers,
              f"{name}: {command} does not read it, only {' and '.join(readers)}")
    parser = make_parser(command, Config, commands)
    config = Config(**vars(parser.parse_args(arguments)))
    if others := other_defaults(command, config, given):  # so that flags still win
        parser.set_defaults(**{name: value for name, value in others.items() if name in READ_BY[command]})
        config = Config(**others | vars(parser.parse_args(arguments)))
    check_used(command, config, given)
    check_preset(config)
    if not config.resume:
        return command, config
    return command, go_on(config, given, ["resume", "steps", "traceback"] if command == "train" else given)


def check_used(command: str, config, given: list[str]) -> None:
    """Refuse settings that are `given` and would change nothing."""
    training = command == "train" and not config.resume
    unused = [name for name in given if name in MEMORY and config.mode != "memreward"]
    check(not (training and unused), f"{', '.join(unused)}: of the memory, and mode {config.mode} has none")
    unused = [name for name in given if name in ("label_ratio", "label_pick") and config.mode == "oracle"]
    check(not (training and unused), f"{', '.join(unused)}: mode oracle keeps every label")
    if training:
        check(config.memory == "refit" or "refit_every" not in given, "refit_every: of --memory refit alone")
        check_refit(config)
    if command == "probe" and config.rollouts and not run_folder(config.rollouts):
        unused = [name for name in given if name in ("tasks", "train_tasks", "group_size", "temperature")]
        check(not unused, f"{', '.join(unused)}: probe takes the tasks and rollouts of {config.rollouts}")


def check_preset(config) -> None:
    """Refuse a preset whose tasks have to be written first, before its model is fetched."""
    short = PRESETS["smollm2-short"]["tasks"]
    needed = config.preset == "smollm2-short" and config.tasks == short and not config.rollouts
    check(not needed or Path(short).is_file(),
          f"preset: smollm2-short reads {short}, which python assets/make_short.py short writes")


def check_refit(config) -> None:
    """Refuse a run that would end before the memory is fitted anew."""
    check(config.memory != "refit" or config.refit_every < config.steps,
          f"refit_every: {config.refit_every} steps are not before the end of {config.steps}; take fewer")


def other_defaults(command: str, config, given: list[str]) -> dict:
    """What takes the place of Config's defaults: settings of a preset, of a run folder, of a real model, of a
    short run."""
    others = {}
    if command == "train" and config.steps < 50 and config.eval_every:
        others["test_tasks"] = max(60, 12 * config.steps)  # so that evaluation does not take most of its time
    preset, of_folder = PRESETS[config.preset], of_run(command, config)
    check(not (of_folder and preset), "preset: leave it out, the settings are those of the run")
    model = config.model if "model" in given else preset.get("model", "builtin")
    if model != "builtin" and not run_folder(model) and not config.resume:
        real = {name: value for name, value in REAL.items() if name in READ_BY[command]}
        shown = {name: value for name, value in real.items() if name not in (*given, *preset)}
        if shown:
            print("settings of a real model, unless given:",
                  " ".join(f"--{name} {value}" for name, value in shown.items()))
        others |= real
    return others | preset | of_folder


def of_run(command: str, config) -> dict:
    """The settings of the run whose folder, policy or checkpoint `evaluate --model` or `probe --rollouts`
    names."""
    folder = run_folder({"evaluate": config.model, "probe": config.rollouts}.get(command))
    if folder is None:
        return {}
    saved = json.loads((folder / "config.json").read_text())
    labels = ["label_ratio", "label_pick"] * (saved["label_ratio"] < 1)  # with all, nothing is hidden
    names = (*SHARED, *MEMORY, *(labels if command == "probe" else ()))
    return {name: saved[name] for name in names if name in saved}


def run_folder(name: str | None) -> Path | None:
    """The run folder that is named, or in which the named policy/ or checkpoints/STEP stands, or None."""
    if not name or not Path(name).is_dir():
        return None
    path = Path(name).resolve()
    places = [path, path.parent] if path.name == "policy" else [path, path.parent.parent]
    return next((place for place in places if (place / "tasks.json").is_file()), None)


def go_on(config, given: list[str], free: list[str]):
    """The settings of the run folder that `--resume` names; those in `free` may be given anew."""
    path = Path(config.resume) / "config.json"
    run = run_folder(config.resume)
    check(path.is_file() or run, f"resume: {config.resume} is no run folder, it has no config.json")
    check(run == Path(config.resume).resolve(),
          f"resume: {config.resume} holds a model{f' of the run {run}; name that' * bool(run)}")
    other = [name for name in given if name not in free]
    check(not other, f"resume: leave out {', '.join(other)}, the settings of the run are in {path}")
    saved = json.loads(path.read_text())
    anew = {name: getattr(config, name) for name in given}
    check(anew.get("steps", saved["steps"]) >= saved["steps"],
          f"steps: {config.resume} is a run of {saved['steps']} steps already")
    unknown = saved.keys() - {f.name for f in dataclasses.fields(config)}
    check(not unknown, f"resume: {path} has settings of another version: {', '.join(sorted(unknown))}")
    return dataclasses.replace(type(config)(**saved), **anew)
