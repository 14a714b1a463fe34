"""The experiment: train a policy by GRPO, with rewards from a verifier where there are labels and from memory where not.

    python train.py                                   # the whole method on the built-in small world, two cores, minutes
    python train.py --mode r1p                        # the same steps on the labelled fifth only; or oracle, majority
    python train.py compare --seeds 5                 # the paper's table: four modes, five seeds
    python train.py --resume runs/NAME                # go on where a run stopped
    accelerate launch --num_processes 8 train.py --tasks mytasks.jsonl --model Qwen/Qwen2.5-1.5B-Instruct \\
        --encoder sentence-transformers/all-MiniLM-L6-v2 --learning_rate 1e-6 --steps 410 --batch_size 128 \\
        --max_response_length 1024 --micro_batch_size 2 --train_tasks 7500 --neighbors 7 --gnn_hidden 512 \\
        --features magnitude,parsed,majority,agreement,mean_logprob,min_logprob   # one node of 8 GPUs, not tried here

A run folder holds config.json, metrics.jsonl (one line a step), results.json, checkpoint/ and policy/ (a model folder).
"""

import dataclasses
import importlib.util
import json
import math
import os
import random
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
MODES = ("r1p", "majority", "memreward", "oracle")


def setting(default, text: str):
    """A field of Config with its line for --help."""
    return field(default=default, metadata={"help": text})


@dataclass
class Config:
    """All settings of an experiment."""

    mode: Literal["memreward", "r1p", "oracle", "majority"] = setting(
        "memreward", "who rewards unlabelled rollouts: memreward (the memory), majority (the group's vote), nobody (r1p: "
        "train on the labelled tasks only), oracle (every task keeps its label)")  # fmt: skip
    label_ratio: float = setting(0.2, "share of the training tasks that keep their label; oracle needs 1 and takes it")
    tasks: str = setting("world", "'world' (built in), or the path of a .jsonl file of tasks")
    train_tasks: int = setting(600, "at most so many training tasks, drawn with the seed")
    test_tasks: int = setting(600, "at most so many test tasks")
    model: str = setting("builtin", "the policy: 'builtin' (tiny, knows the small world), a causal LM's name or folder")
    encoder: str = setting("hash", "what embeds queries, thinkings, answers: 'hash' (n-grams), 'policy' (hidden states of "
                           "the frozen reference), or the name or folder of an encoder of transformers")  # fmt: skip
    seed: int = setting(0, "decides training tasks, labels, batches, sampling and the reward network")
    # GRPO
    steps: int = setting(200, "training steps")
    batch_size: int = setting(16, "tasks per step, over all processes")
    group_size: int = setting(8, "rollouts per task")
    temperature: float = setting(1.0, "of sampling, and of the policy that is trained")
    max_prompt_length: int = setting(1024, "tokens; longer prompts are refused")
    max_response_length: int = setting(48, "tokens; a rollout ends there (the paper: 1024)")
    learning_rate: float = setting(2e-4, "of AdamW, constant (the paper, for real models: 1e-6)")
    updates_per_batch: int = setting(1, "optimizer steps on one batch; with 1 the clip never acts")
    micro_batch_size: int = setting(32, "rollouts per forward pass of the update, per process")
    clip_low: float = setting(0.2, "the ratio is clipped below 1 - clip_low")
    clip_high: float = setting(0.2, "the ratio is clipped above 1 + clip_high (DAPO: 0.28)")
    kl_coef: float = setting(0.001, "weight of the KL divergence to the frozen reference in the loss")
    advantage_norm: Literal["std", "none"] = setting("std", "divide advantages by the group's deviation (Dr. GRPO: none)")
    loss_norm: Literal["sequence", "token", "constant"] = setting(
        "sequence", "average over rollouts of averages over tokens (GRPO), over all tokens (DAPO), or sum divided by the "
        "longest possible length (Dr. GRPO)")  # fmt: skip
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 where the device has it, with fp32 weights")
    # the memory
    neighbors: int = setting(3, "k: memory queries, and memory rollouts, that a new one listens to (the paper: 7, for "
                             "more labelled queries of a kind than the small world has)")  # fmt: skip
    threshold: float = setting(0.5, "a predicted probability above it is a reward of 1")
    refit_every: int = setting(0, "steps between new fits of the reward network, on a memory that fresh verified "
                               "rollouts have joined; 0 freezes both after the warm-up, as in the paper")  # fmt: skip
    groups_per_query: int = setting(2, "newest groups of rollouts that the memory keeps of a query")
    features: str = setting("parsed,mean_logprob,min_logprob", "what the network is told of an answer, out of "
                            "magnitude, parsed, majority (the paper's), agreement, mean_logprob, min_logprob")  # fmt: skip
    gnn_hidden: int = setting(64, "width of the reward network (the paper: 512)")
    gnn_layers: int = setting(2, "layers of the reward network")
    gnn_dropout: float = setting(0.1, "dropout of the reward network")
    gnn_learning_rate: float = setting(1e-3, "of AdamW for the reward network")
    gnn_weight_decay: float = setting(1e-2, "of AdamW for the reward network")
    gnn_epochs: int = setting(150, "at most so many epochs, stopped early on a fifth of the labelled queries")
    gnn_patience: int = setting(20, "epochs without improvement before stopping")
    # running
    eval_every: int = setting(100, "steps between evaluations and checkpoints")
    eval_samples: int = setting(4, "responses per test task sampled at temperature 1, beside the greedy one")
    output_dir: str | None = setting(None, "run folder; by default a new one under runs/")
    resume: str | None = setting(None, "run folder to go on with; its settings are taken from its config.json")
    seeds: int = setting(1, "compare only: seeds 0 to seeds - 1 of every mode")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = setting("none", "also log there (needs that package)")
    traceback: bool = setting(False, "show where in the code an error arose, not just its message")

    def __post_init__(self):
        if self.mode == "oracle":
            self.label_ratio = 1.0
        check(self.gnn_hidden > 1, f"gnn_hidden: {self.gnn_hidden} must be 2 or more")
        positive = ("train_tasks test_tasks steps batch_size temperature max_prompt_length max_response_length "
                    "learning_rate updates_per_batch micro_batch_size max_grad_norm neighbors groups_per_query "
                    "gnn_layers gnn_learning_rate gnn_epochs gnn_patience eval_every eval_samples seeds")  # fmt: skip
        for name in positive.split():
            check(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")
        check(0 < self.label_ratio <= 1, f"label_ratio: {self.label_ratio} is outside (0, 1]; 0.2 keeps one label in five")
        check(self.group_size > 1, f"group_size: {self.group_size} gives no advantage; GRPO compares 2 rollouts or more")
        for name in ("threshold", "clip_low", "gnn_dropout"):
            check(0 <= getattr(self, name) < 1, f"{name}: {getattr(self, name)} is outside [0, 1)")
        for name in ("kl_coef", "clip_high", "gnn_weight_decay", "seed", "refit_every"):
            check(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} must not be negative")


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message where the condition fails."""
    if not condition:
        raise ValueError(message)


# ------------------------------------------------------------------------------------------------- the pieces of a run


@dataclass
class Run:
    """What a run holds: its settings, its folder and the models."""

    config: Config
    accelerator: object
    tokenizer: object
    model: object  # the policy, wrapped by accelerate
    optimizer: object = None
    reference: object = None  # the policy as it was at the start, frozen
    encode: object = None  # memreward.make_encoder
    memory: object = None  # memreward.ExperienceMemory; None: no memory in this mode
    folder: Path | None = None

    @property
    def policy(self):
        """The bare policy, to sample from and to save."""
        return self.accelerator.unwrap_model(self.model)


@dataclass
class Experience:
    """B tasks with their B*G rollouts, as the rewards and the update see them."""

    tasks: list
    rollouts: object  # grpo.Rollouts
    keys: list[list[str | None]]  # answer keys, B lists of G
    groups: object = None  # gnn.Groups: nodes of the memory's graph
    ref_logprobs: object = None  # (N, T)


def start(config: Config) -> Run:
    """Load the policy, and what training needs beside it."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from memreward import FEATURES, ExperienceMemory, make_encoder

    if config.tracker != "none":
        check(importlib.util.find_spec(config.tracker), f"tracker: {config.tracker} is not installed; pip install {config.tracker}")
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    tracker = None if config.tracker == "none" else config.tracker
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", log_with=tracker, project_dir=config.output_dir,
                              cpu=not torch.cuda.is_available())  # Apple's GPU lacks operations that the memory needs
    check(config.batch_size % accelerator.num_processes == 0,
          f"batch_size: {config.batch_size} tasks cannot be shared equally by {accelerator.num_processes} processes")
    logging.disable_progress_bar()  # one bar is enough
    set_seed(config.seed)
    name = str(HERE / "assets" / "policy") if config.model == "builtin" else config.model
    try:
        settings = AutoConfig.from_pretrained(name)
        for key, value in vars(settings).items():
            if "drop" in key and isinstance(value, float):
                setattr(settings, key, 0.0)  # with dropout the policy that is trained is not the policy that sampled
        policy = AutoModelForCausalLM.from_pretrained(name, config=settings, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot load {name!r}, neither 'builtin', a model folder nor a model at hand: "
                         f"{str(error).strip().splitlines()[0]}") from None  # fmt: skip
    precision = torch.bfloat16 if bf16 else torch.float32
    reference = AutoModelForCausalLM.from_pretrained(name, config=settings, dtype=precision)
    reference.to(accelerator.device).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    model, optimizer = accelerator.prepare(policy, optimizer)
    run = Run(config, accelerator, tokenizer, model, optimizer, reference)
    if config.mode == "memreward":
        unknown = set(config.features.split(",")) - set(FEATURES)
        check(not unknown, f"features: {', '.join(sorted(unknown))}: not among {', '.join(FEATURES)}")
        run.memory = ExperienceMemory(config)
        run.encode = make_encoder(config.encoder, tokenizer, accelerator.device)
    return run


def render(tokenizer, task) -> str:
    """The prompt of a task as the policy reads it: its chat template where it has one, else the plain text."""
    from data import make_prompt

    if tokenizer.chat_template is None:
        return (tokenizer.bos_token or "") + make_prompt(task) + "\n"
    message = [{"role": "user", "content": make_prompt(task)}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def load_split(run: Run, split: str) -> list:
    """The tasks of a split; a prompt beyond the limit is refused, and so is a missing label where all are needed."""
    from data import load_tasks

    config = run.config
    tasks = load_tasks(config.tasks, split, config.train_tasks if split == "train" else config.test_tasks, config.seed)
    unlabelled = [task.id for task in tasks if not task.labelled]
    check(not unlabelled or (split == "train" and config.mode != "oracle" and len(unlabelled) < len(tasks)),
          f"tasks: {config.tasks}: {len(unlabelled)} {split} tasks have no label, the first is {unlabelled[:1]}")
    check(len(tasks) >= run.accelerator.num_processes, f"{split}_tasks: {len(tasks)} are too few for every process")
    for task in tasks:
        length = len(run.tokenizer(render(run.tokenizer, task), add_special_tokens=False).input_ids)
        check(length <= config.max_prompt_length, f"max_prompt_length: the prompt of task {task.id} has {length} tokens, "
              f"the limit is {config.max_prompt_length}")  # fmt: skip
    return tasks


def batch(tasks: list, step: int, config: Config) -> tuple[list, list[str]]:
    """The tasks of a step, and for each a key that names this visit: every epoch is a new permutation, batches are full."""
    chosen, keys, orders = [], [], {}
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, len(tasks))
        if epoch not in orders:
            orders[epoch] = random.Random(f"epoch {config.seed} {epoch}").sample(range(len(tasks)), len(tasks))
        chosen.append(tasks[orders[epoch][place]])
        keys.append(f"{chosen[-1].id} {epoch}")
    return chosen, keys


def roll_out(run: Run, tasks: list, keys: list[str], step: int) -> Experience:
    """Sample G rollouts of each task; score them under the reference, embed and describe them where a memory needs it."""
    import torch

    from data import answer_key
    from gnn import Groups
    from grpo import forward_responses, sample, uniform_noise
    from memreward import answer_features

    config, size = run.config, run.config.group_size
    noise = uniform_noise(config.seed, step, keys, size, config.max_response_length)
    prompts = [render(run.tokenizer, task) for task in tasks]
    rollouts = sample(run.policy, run.tokenizer, prompts, size, config.max_response_length, config.temperature, noise)
    texts = [rollouts.texts[i : i + size] for i in range(0, len(rollouts.texts), size)]
    keys = [[answer_key(task, text) for text in group] for task, group in zip(tasks, texts)]
    experience = Experience(tasks, rollouts, keys)
    if config.kl_coef > 0 or run.memory is not None:
        with torch.no_grad():
            score = lambda temperature, hidden=False: forward_responses(  # noqa: E731
                run.reference, rollouts.ids, rollouts.attention_mask, config.max_response_length, temperature,
                hidden, config.micro_batch_size)  # fmt: skip
            reference = score(1.0, hidden=run.memory is not None and config.encoder == "policy")
            same = config.temperature == 1
            experience.ref_logprobs = reference.logprobs if same else score(config.temperature).logprobs
        if run.memory is not None:
            nodes = run.encode(tasks, rollouts, reference.hidden)
            features = answer_features(keys, reference.logprobs, rollouts.mask, config.features.split(","))
            experience.groups = Groups(*(node.to(features) for node in nodes), features)
    return experience


def remember(run: Run, experience: Experience, rewards) -> None:
    """Put the labelled groups of all processes into the memory, in the same order on every process."""
    from accelerate.utils import gather_object

    rows = [b for b, task in enumerate(experience.tasks) if task.labelled]
    fresh = [([experience.tasks[b].id for b in rows], *(x[rows].cpu() for x in (*experience.groups, rewards)))]
    for ids, *tensors in gather_object(fresh) if run.accelerator.num_processes > 1 else fresh:
        if ids:
            run.memory.remember(ids, *(x.to(run.accelerator.device) for x in tensors))


def evaluate(run: Run, tasks: list) -> dict:
    """Accuracy by the verifier on test tasks: the greedy response, and the mean over samples; by domain and in all."""
    from accelerate.utils import gather_object

    from data import verify_batch
    from grpo import sample, uniform_noise

    config, world = run.config, run.accelerator.num_processes
    mine = tasks[run.accelerator.process_index :: world]
    rows = []
    for name, size, temperature in (("greedy", 1, 0.0), ("sampled", config.eval_samples, 1.0)):
        noise = uniform_noise(0, 0, [task.id for task in mine], size, config.max_response_length)
        prompts = [render(run.tokenizer, task) for task in mine]
        texts = sample(run.policy, run.tokenizer, prompts, size, config.max_response_length, temperature, noise).texts
        rewards = verify_batch([task for task in mine for _ in range(size)], texts)
        rows += [(name, mine[i // size].domain, reward) for i, reward in enumerate(rewards)]
    rows = gather_object(rows) if world > 1 else rows
    table: dict = {"greedy": {}, "sampled": {}}
    for name, scores in table.items():
        for domain in (*sorted({task.domain for task in tasks}), "all"):
            values = [reward for kind, of, reward in rows if kind == name and domain in (of, "all")]
            scores[domain] = sum(values) / len(values)
    return table


class Audit:
    """Compares predicted rewards with the truth on unlabelled rollouts. It alone holds the hidden labels; what it returns
    goes to the log and nowhere else."""

    def __init__(self, tasks: list, threshold: float):
        self.truth, self.threshold = {task.id: task for task in tasks}, threshold
        self.probabilities, self.rewards = [], []

    def add(self, run: Run, experience: Experience) -> None:
        """Judge the unlabelled groups of all processes as training judged them, and verify them with their true labels."""
        import torch
        from accelerate.utils import gather_object

        from data import verify_batch
        from memreward import predict_rewards

        rows = [b for b, task in enumerate(experience.tasks) if not task.labelled and self.truth[task.id].labelled]
        judged, size = [], run.config.group_size
        if rows:
            groups = experience.groups and experience.groups.rows(torch.tensor(rows))
            probabilities = predict_rewards(run.memory, groups, [experience.keys[b] for b in rows]).flatten().tolist()
            texts = [experience.rollouts.texts[b * size + g] for b in rows for g in range(size)]
            truth = [self.truth[experience.tasks[b].id] for b in rows for _ in range(size)]
            judged = list(zip(probabilities, verify_batch(truth, texts)))
        for probability, reward in gather_object(judged) if run.accelerator.num_processes > 1 else judged:
            self.probabilities.append(probability)
            self.rewards.append(reward)

    def metrics(self, first: int = 0) -> dict:
        """Accuracy, precision, recall, f1, fp_rate, auc over the rollouts from number `first` on; {} where there are none."""
        import torch

        from gnn import metrics

        if len(self.rewards) <= first:
            return {}
        probabilities, rewards = torch.tensor(self.probabilities[first:]), torch.tensor(self.rewards[first:])
        part = {k: None if math.isnan(v) else v for k, v in metrics(probabilities, rewards, self.threshold).items()}
        return part | {"rollouts": len(rewards)}


# --------------------------------------------------------------------------------------------------------- the training


def train(config: Config) -> dict:
    """One run, from the policy that `config.model` names to a trained one in the run folder; returns results.json."""
    import torch
    from tqdm import tqdm

    from data import hide_labels
    from grpo import group_advantages, policy_update
    from memreward import acquire_rewards

    config.output_dir = config.resume or config.output_dir or time.strftime(f"runs/%Y-%m-%d_%H-%M-%S_{config.mode}")
    run = start(config)
    everything, test = load_split(run, "train"), load_split(run, "test")
    tasks, audit = hide_labels(everything, config.label_ratio, config.seed), Audit(everything, config.threshold)
    labelled = [task for task in tasks if task.labelled]
    del everything  # from here on a hidden label exists in the audit only
    if config.mode == "r1p":
        tasks = labelled
    run.folder = open_folder(config, run.accelerator)
    log = Log(run, {"labels_used": len(labelled), "labels_available": sum(t.labelled for t in audit.truth.values())})
    bar = tqdm(total=config.steps, desc=config.mode, disable=not run.accelerator.is_main_process)

    # 1. Warm-up: verified rollouts of the initial policy on the labelled tasks are the memory.
    step = load_checkpoint(run, log, audit) if config.resume else 0
    if not config.resume:
        if run.memory is not None:
            warm_up(run, labelled)
        log.evaluation(0, evaluate(run, test), {})
        save_checkpoint(run, 0, log, audit)
    bar.update(step)

    for step in range(step + 1, config.steps + 1):
        seconds, began, audited = {}, time.perf_counter(), len(audit.rewards)
        # 2. Sample a group of rollouts for each task; every process takes its share of the batch.
        share = slice(run.accelerator.process_index, None, run.accelerator.num_processes)
        chosen, keys = (part[share] for part in batch(tasks, step - 1, config))
        experience = roll_out(run, chosen, keys, step)
        lap(seconds, "sample", began)
        # 3. Rewards: the verifier where there is a label, else the memory (or the majority).
        rewards, source = acquire_rewards(chosen, experience.rollouts.texts, run.memory, experience.groups,
                                          experience.keys, config.threshold)  # (B, G), (B,)
        lap(seconds, "reward", began)
        # 4. Advantages and one GRPO update.
        advantages = group_advantages(rewards, config.advantage_norm)  # (B, G)
        stats = policy_update(
            run.model, run.optimizer, run.accelerator, experience.rollouts,
            advantages.flatten().to(run.accelerator.device), experience.ref_logprobs if config.kl_coef > 0 else None,
            temperature=config.temperature, clip_low=config.clip_low, clip_high=config.clip_high, kl_coef=config.kl_coef,
            loss_norm=config.loss_norm, updates_per_batch=config.updates_per_batch,
            micro_batch_size=config.micro_batch_size, max_grad_norm=config.max_grad_norm)  # fmt: skip
        lap(seconds, "update", began)
        # 5. The audit measures, for the log alone, what the predicted rewards were worth.
        audit.add(run, experience)
        lap(seconds, "audit", began)
        # 6. If wanted, fresh verified rollouts join the memory (no new label is used) and the network is fitted anew.
        if run.memory is not None and config.refit_every > 0:
            remember(run, experience, rewards)
            if step % config.refit_every == 0:
                run.memory.fit(config.seed + step)
            lap(seconds, "remember", began)
        log.step(step, experience, rewards, source, stats, seconds, audit.metrics(audited))
        bar.update()
        bar.set_postfix(log.shown, refresh=False)
        if step % config.eval_every == 0 or step == config.steps:
            log.evaluation(step, evaluate(run, test), audit.metrics(log.audited))
            log.audited = len(audit.rewards)
            save_checkpoint(run, step, log, audit)
    bar.close()
    return finish(run, log, audit)


def warm_up(run: Run, labelled: list) -> None:
    """Fill the memory with the initial policy's verified rollouts of the labelled tasks, and train the reward network."""
    from memreward import acquire_rewards

    size = run.config.batch_size
    for start in range(0, len(labelled), size):
        tasks = labelled[start : start + size]
        experience = roll_out(run, tasks, [task.id for task in tasks], 0)
        rewards, _ = acquire_rewards(tasks, experience.rollouts.texts, run.memory, experience.groups, experience.keys)
        run.memory.remember([task.id for task in tasks], *experience.groups, rewards)
    run.memory.fit(run.config.seed)


def lap(seconds: dict, name: str, began: float) -> None:
    """Note as the seconds of stage `name` what has passed since `began` and belongs to no earlier stage."""
    seconds[f"seconds/{name}"] = time.perf_counter() - began - sum(seconds.values())


class Log:
    """metrics.jsonl, the trackers, and what the table at the end needs."""

    def __init__(self, run: Run, labels: dict):
        self.run, self.labels, self.evaluations, self.audited, self.shown = run, labels, [], 0, {}
        self.start = time.perf_counter()
        if run.config.tracker != "none":
            settings = {k: v for k, v in dataclasses.asdict(run.config).items() if v is not None}
            run.accelerator.init_trackers("memreward", config=settings)

    def write(self, step: int, row: dict) -> None:
        """One line of metrics.jsonl; the trackers get its numbers."""
        if self.run.accelerator.is_main_process:
            with open(self.run.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.run.accelerator.log(numbers, step=step)

    def step(self, step: int, experience: Experience, rewards, source, stats: dict, seconds: dict, audit: dict) -> None:
        """Log a training step; README explains every number."""
        import torch

        rollouts, verified = experience.rollouts, torch.tensor([s == "verifier" for s in source])
        row = {
            "reward/verified": rewards[verified].mean().item() if verified.any() else None,
            "reward/predicted": rewards[~verified].mean().item() if not verified.all() else None,
            "groups_without_signal": (rewards == rewards[:, :1]).all(1).float().mean().item(),
            "response_length": rollouts.mask.sum(1).mean().item(),
            "truncated": rollouts.truncated.float().mean().item(),
            **stats,
            **seconds,
            "tokens_per_second": rollouts.attention_mask.sum().item() / sum(seconds.values()),
            **{f"audit/{name}": value for name, value in audit.items()},
        }
        self.write(step, row)
        shown = {"verified": row["reward/verified"], "predicted": row["reward/predicted"], "audit": audit.get("accuracy")}
        self.shown = {name: f"{value:.2f}" for name, value in shown.items() if value is not None}

    def evaluation(self, step: int, accuracy: dict, audit: dict) -> None:
        """Log accuracies on the test tasks, and the audit since the last evaluation."""
        from tqdm import tqdm

        self.evaluations.append({"step": step, **accuracy, "audit": audit})
        row = {f"test/{kind}/{domain}": value for kind, scores in accuracy.items() for domain, value in scores.items()}
        self.write(step, row | {f"audit_since/{name}": value for name, value in audit.items()})
        if self.run.accelerator.is_main_process:
            greedy, sampled = (accuracy[kind]["all"] for kind in ("greedy", "sampled"))
            line = f"step {step}: test accuracy {greedy:.3f} greedy, {sampled:.3f} sampled"
            tqdm.write(line + (f"; predicted rewards {audit['accuracy']:.3f} right" if audit else ""))


def open_folder(config: Config, accelerator) -> Path:
    """The run folder with its config.json: a new one, or the one to resume. A folder with a run in it is never reused."""
    from accelerate.utils import broadcast_object_list

    folder = Path(broadcast_object_list([config.output_dir])[0])
    if accelerator.is_main_process and not config.resume:
        holds_run = any((folder / name).exists() for name in ("checkpoint", "checkpoint.old", "results.json"))
        check(not holds_run, f"output_dir: {folder} holds a run already; --resume it, or name another")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was stopped before its first checkpoint
            write_json(folder / "config.json", dataclasses.asdict(config))
        except OSError as error:
            raise ValueError(f"output_dir: cannot write to {folder} ({error.strerror}); name another folder") from None
    accelerator.wait_for_everyone()
    return folder


def save_checkpoint(run: Run, step: int, log: Log, audit: Audit) -> None:
    """Write policy, optimizer, memory and position aside, then swap: at any moment one whole checkpoint is there."""
    import torch

    new, now, old = (run.folder / name for name in ("checkpoint.new", "checkpoint", "checkpoint.old"))
    run.accelerator.save_state(str(new), safe_serialization=False)
    run.accelerator.wait_for_everyone()  # every process writes its random state there
    if run.accelerator.is_main_process:
        if run.memory is not None:
            run.memory.save(new / "memory.pt")
        state = {"step": step, "evaluations": log.evaluations, "seconds": time.perf_counter() - log.start,
                 "probabilities": audit.probabilities, "rewards": audit.rewards}  # fmt: skip
        torch.save(state, new / "progress.pt")
        if now.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(now, old)
        os.replace(new, now)
        shutil.rmtree(old, ignore_errors=True)
    run.accelerator.wait_for_everyone()


def load_checkpoint(run: Run, log: Log, audit: Audit) -> int:
    """Go back to the last checkpoint, cut metrics.jsonl back to it, and return its step."""
    import torch

    folder = next((run.folder / name for name in ("checkpoint", "checkpoint.old") if (run.folder / name).is_dir()), None)
    check(folder is not None, f"resume: {run.folder} has no checkpoint yet; start the run anew")
    run.accelerator.load_state(str(folder))
    if run.memory is not None:
        run.memory.load(folder / "memory.pt", run.accelerator.device)
    state = torch.load(folder / "progress.pt", weights_only=True)
    log.evaluations, log.start = state["evaluations"], time.perf_counter() - state["seconds"]
    audit.probabilities, audit.rewards = state["probabilities"], state["rewards"]
    log.audited = len(audit.rewards)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    if run.accelerator.is_main_process:
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state["step"]]
        (run.folder / "metrics.jsonl").write_text("".join(kept))
    return state["step"]


def finish(run: Run, log: Log, audit: Audit) -> dict:
    """Save the policy as a model folder and write results.json."""
    config = run.config
    results = {"mode": config.mode, "label_ratio": config.label_ratio, "seed": config.seed, "steps": config.steps,
               **log.labels, "before": log.evaluations[0], "after": log.evaluations[-1], "evaluations": log.evaluations,
               "audit": audit.metrics(), "seconds": time.perf_counter() - log.start}  # fmt: skip
    if run.accelerator.is_main_process:
        run.policy.save_pretrained(run.folder / "policy")
        run.tokenizer.save_pretrained(run.folder / "policy")
        write_json(run.folder / "results.json", results)
    run.accelerator.end_training()
    return results


def write_json(path: Path, value) -> None:
    """Write a JSON file whole or not at all."""
    path.with_suffix(".tmp").write_text(json.dumps(value, indent=1) + "\n")
    os.replace(path.with_suffix(".tmp"), path)


# --------------------------------------------------------------------------------------------------- tables and commands


def report(results: dict) -> str:
    """The table at the end of a run."""
    domains = list(results["after"]["greedy"])
    lines = ["test accuracy       " + "".join(f"{domain:>8}" for domain in domains)]
    for kind in ("greedy", "sampled"):
        for when in ("before", "after"):
            lines.append(f"  {kind + ', ' + when:<18}" + "".join(f"{results[when][kind][d]:8.3f}" for d in domains))
    lines.append(f"labels used         {results['labels_used']} of {results['labels_available']}")
    if results["audit"]:
        audit = {name: "-" if value is None else f"{value:.3f}" for name, value in results["audit"].items()}
        lines.append(f"predicted rewards   accuracy {audit['accuracy']}, precision {audit['precision']}, recall "
                     f"{audit['recall']}, false positives {audit['fp_rate']}, AUC {audit['auc']} "
                     f"on {results['audit']['rollouts']} rollouts")  # fmt: skip
    lines.append(f"time                {results['seconds']:.0f} s for {results['steps']} steps")
    return "\n".join(lines)


def compare(config: Config) -> None:
    """Run every mode with every seed, skip what is finished, and print the paper's table."""
    check(config.mode == "memreward" and config.seed == 0 and not config.resume, "compare runs every mode with seeds 0 to "
          "seeds - 1 and goes on by itself: leave out --mode, --seed and --resume")  # fmt: skip
    check(os.environ.get("WORLD_SIZE", "1") == "1", "compare: its runs are small, start it without accelerate launch")
    root = Path(config.output_dir or "runs/compare")
    settings = [name.name for name in dataclasses.fields(Config) if name.name not in
                ("mode", "label_ratio", "seed", "seeds", "output_dir", "resume", "tracker", "traceback")]  # fmt: skip
    finished = []
    for seed in range(config.seeds):
        for mode in MODES:
            one = dataclasses.replace(config, mode=mode, seed=seed, seeds=1)
            one.output_dir = str(root / f"{mode}-{one.label_ratio}-{seed}")
            done = Path(one.output_dir) / "results.json"
            if done.exists():
                old = json.loads(done.with_name("config.json").read_text())
                other = [name for name in settings if old.get(name) != getattr(one, name)]
                check(not other, f"output_dir: {one.output_dir} was run with another {', '.join(other)}; name another folder")
            else:
                shutil.rmtree(one.output_dir, ignore_errors=True)  # an unfinished run of this comparison
                train(one)
            finished.append(json.loads(done.read_text()))
            print(comparison(finished), flush=True)


def comparison(runs: list[dict]) -> str:
    """The paper's table over finished runs: mean and standard error over seeds, paired differences, MemReward / Oracle."""
    by_mode = {mode: {run["seed"]: run for run in runs if run["mode"] == mode} for mode in MODES}
    before = {"after": runs[0]["before"], "labels_used": 0, "labels_available": runs[0]["labels_available"]}
    lines = ["test accuracy, %          greedy       sampled     labels   predictions right               AUC   seeds"]
    for mode, rows in {"before training": [before], **{mode: list(of.values()) for mode, of in by_mode.items()}}.items():
        if rows:
            cells = [mean_error([100 * row["after"][kind]["all"] for row in rows]) for kind in ("greedy", "sampled")]
            labels = f"{rows[0]['labels_used']}/{rows[0]['labels_available']}"
            audits = [[row["audit"].get(name) for row in rows if row.get("audit")] for name in ("accuracy", "auc")]
            audit = ["" if None in values or not values else mean_error(values, 3) for values in audits]
            lines.append(f"{mode:<18}{cells[0]:>14}{cells[1]:>14}{labels:>11}{audit[0]:>20}{audit[1]:>18}{len(rows):>8}")

    score = lambda run: 100 * run["after"]["greedy"]["all"]  # noqa: E731
    ours = by_mode["memreward"]
    for other in ("r1p", "majority", "oracle"):
        pairs = [score(ours[seed]) - score(run) for seed, run in by_mode[other].items() if seed in ours]
        if pairs:
            lines.append(f"memreward - {other:<10}{mean_error(pairs):>14}   paired over {len(pairs)} seeds")
    both = [seed for seed in ours if seed in by_mode["oracle"]]
    if both:
        ratio = sum(score(ours[seed]) for seed in both) / sum(score(by_mode["oracle"][seed]) for seed in both)
        lines.append(f"memreward / oracle    {100 * ratio:12.1f} %")
    return "\n".join(lines)


def mean_error(values: list[float], digits: int = 1) -> str:
    """Mean and standard error of the mean.

    >>> mean_error([1.0, 2.0, 3.0]), mean_error([1.0])
    ('2.0 +- 0.6', '1.0')
    """
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def parse(arguments: list[str]) -> tuple[str, Config]:
    """Split the command line into a command and its Config; what is unknown is refused."""
    from transformers.hf_argparser import HfArgumentParser

    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    parser = HfArgumentParser(Config, usage=f"python train.py [{'|'.join(COMMANDS)}] [--setting value ...]", description=
                              "Train a policy with rewards from a verifier where there are labels, else from memory.")
    check(command in COMMANDS, f"command: {command!r} is not one of {', '.join(COMMANDS)}")
    config, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    check(not unknown, f"{' '.join(unknown)}: no such setting; python train.py --help lists them")
    if config.resume:
        path = Path(config.resume) / "config.json"
        check(path.is_file(), f"resume: {config.resume} is no run folder, it has no config.json")
        given = [f.name for f in dataclasses.fields(Config) if getattr(config, f.name) != f.default]
        other = [name for name in given if name not in ("resume", "traceback")]
        check(not other, f"resume: leave out {', '.join(other)}, the settings of the run are in {path}")
        saved = json.loads(path.read_text())
        unknown = saved.keys() - {f.name for f in dataclasses.fields(Config)}
        check(not unknown, f"resume: {path} has settings of another version: {', '.join(sorted(unknown))}")
        config = dataclasses.replace(Config(**saved), resume=config.resume, traceback=config.traceback)
    return command, config


def run_train(config: Config) -> None:
    """`python train.py`: one run and its table."""
    check(config.seeds == 1, "seeds: only compare runs several; train takes one --seed")
    results = train(config)
    if os.environ.get("RANK", "0") == "0":
        print("\n" + report(results))


COMMANDS = {"train": run_train, "compare": compare}


def main(arguments: list[str]) -> None:
    """The command line; an error is one line."""
    command = config = None
    try:
        command, config = parse(arguments)
        COMMANDS[command](config)
    except (ValueError, OSError, FloatingPointError) as error:
        if config is not None and config.traceback:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if command != "train" or not (Path(config.output_dir or "") / "checkpoint").is_dir():
            sys.exit("\nstopped; run the same command again")
        sys.exit(f"\nstopped; to go on from the last checkpoint: python train.py --resume {config.output_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
