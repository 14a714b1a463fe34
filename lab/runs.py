"""A run: its models and tasks, its several processes, its folder with checkpoints that survive.

Nothing here changes what is learnt; read it when you want to know what a run leaves and how it goes on.
"""

import ast
import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from logging import getLogger
from pathlib import Path

from lab.processes import gather, leave, refresh, tell, whole_weights
from lab.settings import check, due

ROOT = Path(__file__).resolve().parents[1]
METHOD = ("data.py", "gnn.py", "memreward.py", "grpo.py", "train.py",
          "lab/evaluate.py", "lab/label_pick.py", "lab/log.py", "lab/processes.py", "lab/runs.py")


@dataclass
class Run:
    """What a run holds: its settings, its folder and the models."""

    config: object  # train.Config
    accelerator: object
    tokenizer: object
    model: object  # the policy that is trained, wrapped by accelerate
    optimizer: object = None
    sampler: object = None  # a whole copy of it in bf16, where it is sharded or trained in mixed precision
    reference: object = None  # the policy as it was at the start, frozen
    encode: object = None  # memreward.make_encoder
    memory: object = None  # memreward.ExperienceMemory; None: no memory in this mode
    folder: Path | None = None
    dropped: dict = field(default_factory=dict)  # tasks that were left out: {data set: {reason: count}}
    partly: bool = False  # an unlabelled training task was left out, so this is no experiment
    inside: frozenset = frozenset()  # data sets in domain; others are tested only
    lock: object = None  # see `hold`

    @property
    def policy(self):
        """The policy in one piece, to sample from."""
        return self.accelerator.unwrap_model(self.model) if self.sampler is None else self.sampler

    @property
    def stop(self) -> list[str] | None:
        """The text at which a response ends, as `grpo.sample` takes it."""
        return [self.config.stop] if self.config.stop else None

    def render(self, task) -> str:
        """The prompt of a task: see `render`."""
        return render(self.tokenizer, task, self.config.system, json.loads(self.config.chat_template_kwargs))

    @property
    def device(self) -> str:
        """Where tensors live. (accelerate's cpu:0 is unknown to torch.load.)"""
        return "cpu" if self.accelerator.device.type == "cpu" else str(self.accelerator.device)


def start(config, training: bool = True) -> Run:
    """Load the policy, and what training needs beside it."""
    import torch

    from grpo import check_policy
    from memreward import FEATURES, ExperienceMemory, make_encoder

    if config.tracker != "none":
        check(importlib.util.find_spec(config.tracker),
              f"tracker: {config.tracker} is not installed; pip install {config.tracker}")
    accelerator, bf16 = launch(config, config.batch_size if training else 0)
    unknown = set(config.features.split(",")) - set(FEATURES)
    check(not unknown, f"features: {', '.join(sorted(unknown)) or 'one without a name'}: not among "
          f"{', '.join(FEATURES)}")
    half = torch.bfloat16 if bf16 else torch.float32
    policy, tokenizer = load_policy(config, torch.float32 if training else half)
    if config.check_policy and config.model != "builtin":  # the tests check that one
        longest = config.max_prompt_length + config.max_response_length
        check_policy(policy.to(accelerator.device), tokenizer, longest)
    if not training:
        return Run(config, accelerator, tokenizer, policy.to(accelerator.device))
    if config.gradient_checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})

    def frozen():
        return load_policy(config, half)[0].to(accelerator.device).eval().requires_grad_(False)

    copied = bf16 or accelerator.distributed_type == "FSDP"
    sampler = frozen() if copied else None
    run = Run(config, accelerator, tokenizer, policy, reference=frozen(), sampler=sampler)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    run.model, run.optimizer = accelerator.prepare(policy, optimizer)
    if config.mode == "memreward":
        run.memory = ExperienceMemory(config)
    if config.mode == "memreward" or config.label_pick == "coverage":
        run.encode = make_encoder(config.encoder, tokenizer, accelerator.device)
    return run


def launch(config, batch_size: int) -> tuple:
    """The accelerator, and whether it works in bf16; random numbers start from the seed."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import set_seed
    from transformers.utils import logging

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # ranks wait for the slowest to evaluate
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[patience], project_dir=config.output_dir,
        log_with=None if config.tracker == "none" else config.tracker,
        cpu=not torch.cuda.is_available())  # Apple's GPU lacks operations that the memory needs
    check(accelerator.distributed_type != "FSDP" or accelerator.is_fsdp2,
          "fsdp_version: set it to 2 in accelerate's config file")
    ranks = accelerator.num_processes
    check(batch_size % ranks == 0,
          f"batch_size: {batch_size} tasks cannot be shared equally by {ranks} processes")
    logging.disable_progress_bar()  # one bar is enough
    getLogger("accelerate").setLevel("ERROR")  # it warns at every checkpoint that tied weights are saved once
    set_seed(config.seed)
    return accelerator, bf16


def load_policy(config, dtype) -> tuple:
    """The causal LM and the tokenizer that config.model names: 'builtin', a model folder, a run folder, or a
    model of the hub."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from support.benchmarks import reach_hub
    from support.traits import without_noise

    name = str(ROOT / "assets" / "policy") if config.model == "builtin" else config.model
    if (Path(name) / "results.json").is_file():
        name = str(Path(name) / "policy")  # of a finished run
    try:
        reach_hub(name)
        settings = without_noise(AutoConfig.from_pretrained(name))
        attention = None if config.attention == "auto" else config.attention
        model = AutoModelForCausalLM.from_pretrained(
            name, config=settings, dtype=dtype, attn_implementation=attention)
        return model, AutoTokenizer.from_pretrained(name, padding_side="left")
    except (OSError, ValueError, ImportError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"model: cannot load {name!r}, neither 'builtin', a model or run folder nor a model "
                         f"at hand: {why}") from None


def render(tokenizer, task, system: str = "", settings: dict | None = None) -> str:
    """The prompt of a task as the policy reads it: in its chat template (with its `settings`) if it has one,
    else plain text."""
    from data import make_prompt

    if tokenizer.chat_template is None:
        return (tokenizer.bos_token or "") + (system and f"{system}\n") + make_prompt(task) + "\n"
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": make_prompt(task)})
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **(settings or {}))


def load_data(run: Run, training: bool = True) -> tuple[list, list]:
    """Training tasks (none where there is no training) and test tasks. A prompt beyond the limit is left out
    and counted; a missing label is refused where one is needed."""
    from accelerate.utils import broadcast_object_list

    from data import load_splits
    from support.jsonl import NO_LABEL
    from support.traits import position_limit

    config, ranks = run.config, run.accelerator.num_processes
    limits, splits = (config.train_tasks, config.test_tasks, config.seed), None
    if run.accelerator.is_main_process:  # a download, programs with a time limit: all must see the same
        if training:
            splits = load_splits(config.tasks, config.ood, *limits)
        else:
            (_, test, dropped), (_, more, others) = (
                load_splits("", sets, *limits) for sets in (config.tasks, config.ood))
            both = {task.id for task in test} & {task.id for task in more}
            check(not both, f"ood: {config.ood} holds tasks of {config.tasks}, which would count twice: "
                  f"{sorted(both)[:1]}")
            splits = test, test + more, dropped | others
    tasks, test, run.dropped = broadcast_object_list([splits])[0]
    run.inside = frozenset(task.dataset for task in tasks)
    names = {task.dataset for task in test}
    parts = {f"{task.dataset} {task.domain}" for task in test}
    taken = names & {"all", "out of domain", *parts}  # what the tables call averages and parts
    check(not taken, f"tasks: a data set cannot be called {' or '.join(sorted(taken))!r}; rename its file")
    room = position_limit(run.policy) - config.max_response_length
    check(room > 0, f"max_response_length: {config.max_response_length} is all that the model has, "
          f"{room + config.max_response_length} positions")
    kept, longest = [], min(config.max_prompt_length, room)
    for part, candidates in (("train", tasks if training else []), ("test", test)):
        kept.append(some := [])
        for task in candidates:
            prompt = run.tokenizer(run.render(task), add_special_tokens=False).input_ids
            if len(prompt) <= longest:
                some.append(task)
            else:
                own = len(prompt) > config.max_prompt_length
                why = f"{part}: prompt longer than {'max_prompt_length' if own else 'the model has room for'}"
                why += NO_LABEL * (not task.labelled)
                reasons = run.dropped.setdefault(task.dataset, {})
                reasons[why] = reasons.get(why, 0) + 1
        check(len(some) >= ranks or part == "train" and not training,
              f"{part}_tasks: {len(some)} are too few for every process (left out: {run.dropped or 'none'})")
        unlabelled = [task.id for task in some if not task.labelled]
        check(not unlabelled or (part == "train" and config.mode != "oracle" and len(unlabelled) < len(some)),
              f"tasks: {config.tasks}: {len(unlabelled)} {part} tasks have no label, "
              f"the first is {unlabelled[:1]}")
    reasons = [reason for counts in run.dropped.values() for reason in counts]
    run.partly = any(reason.endswith(NO_LABEL) for reason in reasons)
    return tuple(kept)


# ----------------------------------------------------------------------------------------- the run folder


def open_folder(run, tasks: list, test: list) -> None:
    """The run folder with config.json and tasks.json: a new one, or the one to resume; never another
    run's."""
    from accelerate.utils import broadcast_object_list

    run.folder = folder = Path(broadcast_object_list([run.config.output_dir])[0])
    if run.accelerator.is_main_process:
        run.lock = hold(folder)
    parts = {"labelled": [task for task in tasks if task.labelled], "test": test,
             "unlabelled": [task for task in tasks if not task.labelled]}
    chosen = {name: [task.id for task in part] for name, part in parts.items()} | {"dropped": run.dropped}
    if run.accelerator.is_main_process:
        if (folder / "tasks.json").exists() and run.config.resume:
            check(json.loads((folder / "tasks.json").read_text()) == chosen,
                  f"tasks: {run.config.tasks} gives others than {folder / 'tasks.json'}: "
                  "the data changed since the run began")
            return
        holds_run = any((folder / name).exists() for name in ("checkpoints", "results.json"))
        check(not holds_run, f"output_dir: {folder} holds a run already; --resume it, or name another")
        others = [name for name in ("config.json", "metrics.jsonl", "rollouts.jsonl", "policy")
                  if (folder / name).exists() and not (folder / "tasks.json").exists()]
        check(not others, f"output_dir: {folder} holds a {', '.join(others)} that is no run's; name another")
        try:
            for name in ("metrics.jsonl", "rollouts.jsonl"):
                write_text(folder / name, "")
            write_json(folder / "tasks.json", chosen)
            write_json(folder / "config.json", dataclasses.asdict(run.config))
        except OSError as error:
            raise ValueError(f"output_dir: cannot write to {folder} ({error.strerror}); "
                             "name another folder") from None


def hold(folder: Path):
    """Make the folder if need be, and keep other processes from writing the same run while this one lives."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise ValueError(f"output_dir: cannot write to {folder} ({error.strerror}); "
                         "name another folder") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"output_dir: another process is writing the run {folder}") from None
    except OSError as error:
        tell(f"output_dir: {folder} cannot be locked ({error.strerror}): let no other process write it")
    return lock


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first; what else lies beside them is the user's."""
    found = (folder / "checkpoints").glob("*")
    return sorted(path for path in found if path.is_dir() and re.fullmatch(r"\d{6,}", path.name))


def save_checkpoint(run, step: int, log, audit, drift) -> None:
    """Write policy, optimizer, memory, random states and position aside, then rename: a checkpoint is whole
    or not there. Where the disk is full the older ones stay, and training goes on."""
    import torch
    from safetensors import SafetensorError

    main, new = run.accelerator.is_main_process, run.folder / "checkpoint.new"
    if main:
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed while it wrote
    run.accelerator.wait_for_everyone()

    def failed(write: Callable) -> str | None:
        """What went wrong in any process, which all of them then know."""
        failure = None
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
            failure = str(error).splitlines()[0]
        return next((f for f in gather(run, [failure]) if f), None)

    def more() -> None:
        save_policy(run, new)  # of a sharded one all processes meet here, and none may be missing
        if main:
            if run.memory is not None:
                run.memory.save(new / "memory.pt")
            state = {"evaluations": log.evaluations, "marks": log.marks, "versions": log.versions,
                     "seconds": time.perf_counter() - log.start,
                     "audited": list(zip(audit.probabilities, audit.rewards, audit.agreement, audit.domains)),
                     "warm_up": drift.warm_up,
                     "drift": list(zip(drift.probabilities, drift.rewards, drift.queries))}
            torch.save(state, new / "progress.pt")

    # every process writes its random state
    failure = failed(lambda: run.accelerator.save_state(str(new))) or failed(more)
    if main and not failure:
        failure = put_in_place(new, run.folder / "checkpoints" / f"{step:06}", run.config.keep)
    if main and failure:
        shutil.rmtree(new, ignore_errors=True)
        tell(f"checkpoint: step {step} could not be written ({failure}); the run goes on with those it has")
    run.accelerator.wait_for_everyone()


def put_in_place(new: Path, target: Path, keep: int) -> str | None:
    """Give a written checkpoint its checksums and its name, and keep the newest; what went wrong, if
    anything."""
    try:
        write_json(new / "checksums.json", checksums(new))
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # damaged, otherwise the run would have gone on from it
        os.replace(new, target)
    except OSError as error:  # some disks notice only now
        return str(error)
    for old in checkpoints_of(target.parent.parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return None


def checksums(folder: Path) -> dict[str, int]:
    """The checksum of every file below a folder; each is on the disk before its checksum is."""
    sums = {}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "checksums.json")
    for path in sorted(files):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            total = 0
            while block := file.read(1 << 24):
                total = zlib.crc32(block, total)
        sums[str(path.relative_to(folder))] = total
    return sums


def load_checkpoint(run, log, audit, drift) -> int | None:
    """Go back to the newest checkpoint that is whole, cut the logs back to it, and return its step; None
    where the run was stopped before it wrote any."""
    import torch
    from accelerate.utils import broadcast_object_list

    found = checkpoints_of(run.folder)[::-1]
    whole = broadcast_object_list([first_whole(found) if run.accelerator.is_main_process else None])[0]
    check(whole or not found,
          f"resume: no checkpoint of {run.folder} is whole; start the run anew in another folder")
    if whole is None:
        cut_logs(run, -1)
        extend(run)
        return None
    run.accelerator.load_state(str(whole))
    refresh(run)
    if run.memory is not None:
        run.memory.load(whole / "memory.pt", run.device)
    state, step = torch.load(whole / "progress.pt", weights_only=True), int(whole.name)
    check("audited" in state, f"resume: {whole} was written by an earlier version of the project; go on "
          "with that one, or start anew in another folder")
    log.evaluations, log.marks = state["evaluations"], state["marks"]
    log.versions = list(dict.fromkeys([*state["versions"], version()]))
    log.start = time.perf_counter() - state["seconds"]
    audit.extend(state["audited"])
    drift.extend(state["drift"])
    drift.warm_up = state["warm_up"]
    extra = 0 < step < run.config.steps and not due(step, run.config.eval_every)
    extra = extra and log.evaluations[-1]["step"] == step  # a longer run would not have looked here
    if extra:
        log.evaluations.pop()
        log.marks.pop()
    cut_logs(run, step, extra)
    extend(run)
    return step


def extend(run) -> None:
    """Note in the folder of a run that is resumed with more steps that it goes on."""
    if run.accelerator.is_main_process:
        saved = json.loads((run.folder / "config.json").read_text())
        if saved["steps"] != run.config.steps:
            (run.folder / "results.json").unlink(missing_ok=True)
            write_json(run.folder / "config.json", saved | {"steps": run.config.steps})


def cut_logs(run, step: int, extra: bool = False) -> None:
    """Cut metrics.jsonl and rollouts.jsonl back to a step; `extra`: and leave out the evaluation there."""
    for name in ("metrics.jsonl", "rollouts.jsonl") if run.accelerator.is_main_process else ():
        lines, kept = re.findall(r"[^\n]*\n", (run.folder / name).read_text(encoding="utf-8")), []
        for line in lines:  # those that are whole
            row = json.loads(line)
            wanted = due(step, run.config.save_rollouts)
            if name == "metrics.jsonl":
                wanted = "loss" in row or "fits" in row
            if row["step"] < step or row["step"] == step and (wanted or not extra):
                kept.append(line)
        write_text(run.folder / name, "".join(kept))


def begun_version(folder: Path) -> str | None:
    """The version of the method whose checkpoint is the newest whole one of a run, None where it has none."""
    import torch

    newest = first_whole(checkpoints_of(folder)[::-1])
    return newest and " then ".join(torch.load(newest / "progress.pt", weights_only=True).get("versions", []))


def first_whole(folders: list[Path]) -> Path | None:
    """The first of the checkpoints whose files have their checksums; the others are told."""
    for folder in folders:
        file = folder / "checksums.json"
        expected, actual = json.loads(file.read_text()) if file.exists() else {}, checksums(folder)
        names = sorted(expected.keys() | actual.keys())
        wrong = [name for name in names if expected.get(name) != actual.get(name)]
        if expected and not wrong:
            return folder
        what = ", ".join(wrong[:3]) or "empty"
        tell(f"checkpoint: {folder} is damaged ({what}); falling back to the one before")
    return None


def save_policy(run, folder: Path) -> None:
    """Write the policy as a folder that from_pretrained loads."""
    main = run.accelerator.is_main_process
    weights = {name: weight.detach().cpu() for name, weight in whole_weights(run) if main}
    if main:
        run.reference.save_pretrained(folder, state_dict=weights)  # the same architecture, never sharded
        run.tokenizer.save_pretrained(folder)


def finish(run, log, audit) -> dict:
    """Save the policy as a model folder and write results.json."""
    config = run.config
    save_policy(run, run.folder / "policy")
    results = {
        "version": " then ".join(log.versions), "mode": config.mode, "label_ratio": config.label_ratio,
        "seed": config.seed, "steps": config.steps, **log.labels,
        "before": log.evaluations[0], "after": log.evaluations[-1],
        "evaluations": log.evaluations, "audit": audit.metrics(), "dropped": run.dropped,
        "seconds": time.perf_counter() - log.start}
    if run.accelerator.is_main_process:
        write_json(run.folder / "results.json", results)
        (run.folder / ".lock").unlink(missing_ok=True)
        run.lock.close()
    leave(run)
    return results


@functools.cache
def version(root: Path = ROOT) -> str:
    """A short name of the method's code: a hash of the syntax trees of METHOD and of support/, so that
    neither comments nor docstrings nor the layout of lines count."""

    def shape(node) -> object:
        if isinstance(node, list):
            return [shape(child) for child in node]
        if not isinstance(node, ast.AST):
            return node
        parts = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:
            parts["body"] = parts["body"][1:]
        return [type(node).__name__, *((name, shape(value)) for name, value in parts.items())]

    files = [*(root / name for name in METHOD), *sorted((root / "support").glob("*.py"))]
    trees = [shape(ast.parse(path.read_text(encoding="utf-8"))) for path in files]
    return hashlib.sha256(repr(trees).encode()).hexdigest()[:12]


def read_json(path: Path):
    """What a JSON file holds; ValueError names one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove the run's folder to run it anew") from None


def write_json(path: Path, value) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)
