"""The experiment: train a policy by GRPO, with rewards from a verifier where there are labels and from memory where not.

    python train.py                                   # the whole method on the built-in small world, two cores, minutes
    python train.py --mode r1p                        # the same steps on the labelled fifth only; or oracle, majority
    python train.py compare --seeds 5                 # the paper's table: four modes, five seeds
    python train.py --resume runs/NAME                # go on where a run stopped, or was killed
    python train.py evaluate --model runs/NAME        # test accuracy of a run, a checkpoint, or any causal LM
    python train.py probe                             # how good predicted rewards are, and what each part of the memory gives
    python train.py plot runs/compare                 # figures of the table's runs
    python train.py explain runs/NAME                 # why rollouts got their predicted rewards
    python train.py --preset qwen2.5-1.5b             # the paper's models and benchmarks, one GPU
    accelerate launch --num_processes 8 train.py --preset qwen2.5-3b      # one node of 8 GPUs; README has FSDP, two nodes

A run folder holds config.json, tasks.json (which tasks, which of them labelled), metrics.jsonl (a line for each step and evaluation),
checkpoints/STEP (each a model folder, too), results.json and policy/ (the trained model).
"""

import dataclasses
import importlib.util
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from logging import getLogger
from pathlib import Path
from statistics import mean
from typing import Literal

from runs import (LABEL_RATIO, MODES, VARIANTS, Audit, Drift, Log, Stopwatch, accuracies, check, comparison, draw, finish,
                  fit_memory, gather, load_checkpoint, load_data, load_policy, open_folder, profile, refresh, render, report,
                  save_checkpoint, share, write_json)  # fmt: skip

EVALUATION_BATCH = 128  # tasks sampled at a time
PAPER = dict(  # arXiv 2603.19310: its benchmarks and settings, one flag for each of its two policies
    tasks="gsm8k,math,gsm_symbolic,mmlu,commonsenseqa,obqa,arc_c,gpqa,humaneval_plus,mbpp_plus",
    ood="numina_math,piqa,siqa", train_tasks=750, test_tasks=450, encoder="sentence-transformers/all-MiniLM-L6-v2",
    steps=410, batch_size=128, max_response_length=1024, learning_rate=1e-6, sample_batch_size=64, micro_batch_size=8,
    neighbors=7, gnn_hidden=512, gradient_checkpointing=True, eval_every=41, eval_samples=0)  # fmt: skip
PRESETS = {
    "none": {},
    "qwen2.5-1.5b": PAPER | {"model": "Qwen/Qwen2.5-1.5B-Instruct"},
    "qwen2.5-3b": PAPER | {"model": "Qwen/Qwen2.5-3B-Instruct"},
    "smollm2-135m": dict(  # a real model on two cores: shows that it runs, far too short to learn
        model="HuggingFaceTB/SmolLM2-135M-Instruct", encoder="sentence-transformers/all-MiniLM-L6-v2",
        tasks="gsm8k,arc_c,mbpp_plus", train_tasks=20, test_tasks=8, label_ratio=0.4, steps=20, batch_size=4, group_size=4,
        max_prompt_length=256, max_response_length=96, learning_rate=1e-5, micro_batch_size=8, eval_every=20,
        eval_samples=0)}  # fmt: skip


READ_BY = {"seeds": ("compare", "probe"), "variants": ("compare",), "rollouts": ("probe",), "resume": ("train", "explain")}
MEMORY = ("neighbors threshold reward abstain drift_fraction memory refit_every groups_per_query features gnn "
          "gnn_networks gnn_hidden gnn_layers gnn_dropout gnn_learning_rate gnn_weight_decay gnn_epochs gnn_patience").split()  # fmt: skip


def setting(default, text: str):
    """A field of Config with its line for --help."""
    return field(default=default, metadata={"help": text})


@dataclass
class Config:
    """All settings of an experiment."""

    mode: Literal["memreward", "r1p", "oracle", "majority"] = setting(
        "memreward", "who rewards unlabelled rollouts: memreward (the memory), majority (the group's vote), nobody (r1p: "
        "train on the labelled tasks only), oracle (every task keeps its label)")  # fmt: skip
    label_ratio: float = setting(LABEL_RATIO, "share of the training tasks that keep their label; oracle needs 1 and takes it")
    label_pick: Literal["random", "coverage"] = setting(
        "random", "which tasks keep their label: drawn at random, or those whose queries stand nearest to all others (greedy "
        "facility location on the encoder's embeddings)")
    preset: Literal[tuple(PRESETS)] = setting("none", "settings of a known experiment; other flags change them")
    tasks: str = setting("world", "'world' (built in), benchmarks by name, paths of .jsonl files; several with commas")
    ood: str = setting("", "more of these, on which the policy is tested and never trained (out of domain)")
    train_tasks: int = setting(600, "at most so many training tasks of each set, drawn with the seed (the paper: 750)")
    test_tasks: int = setting(600, "at most so many test tasks of each set, the same for every seed (the paper: 450)")
    model: str = setting("builtin", "the policy: 'builtin' (tiny, knows the small world), a causal LM's name or folder, or a "
                         "run folder, whose trained policy is taken")  # fmt: skip
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = setting("auto", "implementation that transformers uses")
    encoder: str = setting("auto", "what embeds queries, thinkings, answers: 'hash' (n-grams; auto with the built-in policy), "
                           "'policy' (hidden states of the frozen reference; auto with any other model), or the name or "
                           "folder of an encoder of transformers")  # fmt: skip
    seed: int = setting(0, "decides training tasks, labels, batches, sampling and the reward network")
    # GRPO
    steps: int = setting(200, "training steps")
    batch_size: int = setting(16, "tasks per step, over all processes")
    group_size: int = setting(8, "rollouts per task")
    temperature: float = setting(1.0, "of sampling, and of the policy that is trained")
    max_prompt_length: int = setting(1024, "tokens; tasks with longer prompts are left out and counted")
    max_response_length: int = setting(48, "tokens; a rollout ends there (the paper: 1024)")
    learning_rate: float = setting(2e-4, "of AdamW, constant (the paper, for real models: 1e-6)")
    updates_per_batch: int = setting(1, "optimizer steps on one batch; with 1 the clip never acts")
    sample_batch_size: int = setting(256, "rollouts decoded at a time, per process: what their cache has room for")
    micro_batch_size: int = setting(32, "rollouts per forward pass of the update, per process")
    clip_low: float = setting(0.2, "the ratio is clipped below 1 - clip_low")
    clip_high: float = setting(0.2, "the ratio is clipped above 1 + clip_high (DAPO: 0.28)")
    kl_coef: float = setting(0.001, "weight of the KL divergence to the frozen reference in the loss")
    advantage_norm: Literal["std", "none"] = setting("std", "divide advantages by the group's deviation (Dr. GRPO: none)")
    loss_norm: Literal["sequence", "token", "constant"] = setting(
        "sequence", "average over rollouts of averages over tokens (GRPO), over all tokens (DAPO), or sum divided by the "
        "longest possible length (Dr. GRPO)")  # fmt: skip
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto: bf16 where the device has it, with fp32 weights")
    # the memory
    neighbors: int = setting(3, "k: memory queries, and memory rollouts, that a new one listens to (the paper: 7, for "
                             "more labelled queries of a kind than the small world has)")  # fmt: skip
    threshold: float = setting(0.5, "a predicted probability above it is a reward of 1")
    reward: Literal["hard", "soft"] = setting("hard", "predicted rewards are 0 or 1 by the threshold, or the probability "
                                           "itself, whose small differences --advantage_norm std makes large")
    abstain: float = setting(0.0, "groups whose predictions p are, on average, less sure than this, |2p - 1|, teach nothing")
    drift_fraction: float = setting(0.1, "share of the labelled queries that the reward networks never train, stop or calibrate "
                                    "on, so that the log can tell how well they do while the policy drifts")  # fmt: skip
    memory: Literal["frozen", "grow", "refit"] = setting(
        "frozen", "after the warm-up: frozen, as in the paper; grow, verified rollouts of labelled tasks join it; refit, "
        "and its networks are fitted anew every --refit_every steps")
    refit_every: int = setting(50, "steps between new fits of the reward networks, with --memory refit")
    groups_per_query: int = setting(2, "groups of rollouts of every labelled query that the warm-up samples, and newest ones that "
                               "stay: in training, a group hears the others of its query, its siblings")
    features: str = setting("auto", "what the networks are told of an answer, out of magnitude, parsed, majority (the paper's), "
                            "agreement, overlap, coverage, sound, mean_logprob, min_logprob; auto: parsed and the "
                            "log-probabilities with the built-in policy, else all but magnitude and majority")  # fmt: skip
    gnn: Literal["mixed", "gcn", "mlp", "paper"] = setting(
        "mixed", "kind of reward networks: gcn (features and known rewards travel, embeddings make the edges), mlp (embeddings, no "
        "edges), mixed (these two take turns), paper (its GCN: embeddings are inputs, known rewards are not)")
    gnn_networks: int = setting(5, "reward networks whose logits are averaged, each stopped on another part of the labels")
    gnn_hidden: int = setting(64, "width of the reward network (the paper: 512)")
    gnn_layers: int = setting(2, "layers of the reward network")
    gnn_dropout: float = setting(0.1, "dropout of the reward network")
    gnn_learning_rate: float = setting(1e-3, "of AdamW for the reward network")
    gnn_weight_decay: float = setting(1e-2, "of AdamW for the reward network")
    gnn_epochs: int = setting(150, "at most so many epochs, stopped early on a fifth of the labelled queries")
    gnn_patience: int = setting(20, "epochs without improvement before stopping")
    # running
    eval_every: int = setting(50, "steps between evaluations and checkpoints")
    eval_samples: int = setting(4, "responses per test task sampled at temperature 1, beside the greedy one; 0: greedy only")
    keep: int = setting(2, "newest checkpoints that stay; with 2 or more a damaged one has another behind it")
    output_dir: str | None = setting(None, "run folder; by default a new one under runs/")
    resume: str | None = setting(None, "run folder to go on with; its settings are taken from its config.json")
    seeds: int = setting(1, "compare: seeds 0 to seeds - 1 of every mode; probe: splits into labelled and hidden (5 or more)")
    variants: str = setting("", f"compare: further rows, out of {', '.join(VARIANTS)}; several with commas, or 'all'")
    rollouts: str | None = setting(None, "probe only: a run folder, or a .jsonl file of tasks with rollouts and their rewards")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = setting("none", "also log there (needs that package)")
    profile: bool = setting(False, "write a torch profiler trace of steps 3 to 5 to trace.json (chrome://tracing reads it)")
    traceback: bool = setting(False, "show where in the code an error arose, not just its message")

    def __post_init__(self):
        if self.mode == "oracle":
            self.label_ratio = 1.0
        self.features = self.features.replace(" ", "")
        if self.features == "auto":  # the others drift on the small world, README tells what they are worth elsewhere
            more = "" if self.model == "builtin" and not self.rollouts else "agreement,overlap,coverage,sound,"
            self.features = f"parsed,{more}mean_logprob,min_logprob"
        if self.encoder == "auto":
            self.encoder = "hash" if self.model == "builtin" else "policy"
        check(self.tasks.strip(), "tasks: names no set; 'world' is the built-in one")
        check(self.gnn_hidden > 1, f"gnn_hidden: {self.gnn_hidden} must be 2 or more")
        positive = ("train_tasks test_tasks steps batch_size temperature max_prompt_length max_response_length "
                    "learning_rate updates_per_batch sample_batch_size micro_batch_size max_grad_norm neighbors groups_per_query "
                    "gnn_layers gnn_networks gnn_learning_rate gnn_epochs gnn_patience eval_every keep seeds refit_every")  # fmt: skip
        for name in positive.split():
            check(getattr(self, name) > 0, f"{name}: {getattr(self, name)} must be above 0")
        check(not self.profile or self.steps >= 5, f"profile: needs 5 steps, steps is {self.steps}")
        check(0 < self.label_ratio <= 1, f"label_ratio: {self.label_ratio} is outside (0, 1]; 0.2 keeps one label in five")
        check(self.group_size > 1, f"group_size: {self.group_size} gives no advantage; GRPO compares 2 rollouts or more")
        for name in ("threshold", "clip_low", "gnn_dropout", "abstain", "drift_fraction"):
            check(0 <= getattr(self, name) < 1, f"{name}: {getattr(self, name)} is outside [0, 1)")
        for name in ("kl_coef", "clip_high", "gnn_weight_decay", "seed", "eval_samples"):
            check(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} must not be negative")


# ------------------------------------------------------------------------------------------------- the pieces of a run


@dataclass
class Run:
    """What a run holds: its settings, its folder and the models."""

    config: Config
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
    inside: frozenset = frozenset()  # data sets in domain; others are tested only

    @property
    def policy(self):
        """The policy in one piece, to sample from."""
        return self.accelerator.unwrap_model(self.model) if self.sampler is None else self.sampler

    @property
    def device(self) -> str:
        """Where tensors live. (accelerate's cpu:0 is unknown to torch.load.)"""
        return "cpu" if self.accelerator.device.type == "cpu" else str(self.accelerator.device)


@dataclass
class Experience:
    """B tasks with their B*G rollouts, as the rewards and the update see them."""

    tasks: list
    rollouts: object  # grpo.Rollouts
    keys: list[list[str | None]]  # answer keys, B lists of G
    groups: object = None  # gnn.Groups: nodes of the memory's graph
    ref_logprobs: object = None  # (N, T)


def start(config: Config, training: bool = True) -> Run:
    """Load the policy, and what training needs beside it."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import set_seed
    from transformers.utils import logging

    from memreward import FEATURES, ExperienceMemory, make_encoder

    if config.tracker != "none":
        check(importlib.util.find_spec(config.tracker),
              f"tracker: {config.tracker} is not installed; pip install {config.tracker}")
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # ranks wait for the slowest to evaluate
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[patience],
                              log_with=None if config.tracker == "none" else config.tracker, project_dir=config.output_dir,
                              cpu=not torch.cuda.is_available())  # Apple's GPU lacks operations that the memory needs
    sharded = accelerator.distributed_type == "FSDP"
    check(not sharded or accelerator.is_fsdp2, "fsdp_version: set it to 2 in accelerate's config file")
    check(config.batch_size % accelerator.num_processes == 0,
          f"batch_size: {config.batch_size} tasks cannot be shared equally by {accelerator.num_processes} processes")
    logging.disable_progress_bar()  # one bar is enough
    getLogger("accelerate").setLevel("ERROR")  # it warns at every checkpoint that tied weights are saved once
    set_seed(config.seed)
    unknown = set(config.features.split(",")) - set(FEATURES)
    check(not unknown, f"features: {', '.join(sorted(unknown))}: not among {', '.join(FEATURES)}")
    half = torch.bfloat16 if bf16 else torch.float32
    policy, tokenizer = load_policy(config, torch.float32 if training else half)
    if not training:
        return Run(config, accelerator, tokenizer, policy.to(accelerator.device))
    if config.gradient_checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    frozen = lambda: load_policy(config, half)[0].to(accelerator.device).eval().requires_grad_(False)  # noqa: E731
    run = Run(config, accelerator, tokenizer, policy, reference=frozen(), sampler=frozen() if bf16 or sharded else None)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    run.model, run.optimizer = accelerator.prepare(policy, optimizer)
    if config.mode == "memreward":
        run.memory = ExperienceMemory(config)
    if config.mode == "memreward" or config.label_pick == "coverage":
        run.encode = make_encoder(config.encoder, tokenizer, accelerator.device)
    return run


def batch(tasks: list, step: int, config: Config) -> list[tuple]:
    """The tasks of a step, each with a key that names this visit: every epoch is a new permutation, batches are full."""
    chosen, orders = [], {}
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, len(tasks))
        if epoch not in orders:
            orders[epoch] = random.Random(f"epoch {config.seed} {epoch}").sample(range(len(tasks)), len(tasks))
        task = tasks[orders[epoch][place]]
        chosen.append((task, f"{task.id} {epoch}"))
    return chosen


def roll_out(run: Run, tasks: list, visits: list[str], step: int, lap: Stopwatch) -> Experience:
    """Sample G rollouts of each task, with noise by the names of the `visits`; score them under the reference, embed and describe them where a memory needs it."""
    import torch

    from data import answer_key
    from gnn import Groups
    from grpo import forward_responses, sample, uniform_noise
    from memreward import answer_features

    config, size = run.config, run.config.group_size
    noise = uniform_noise(config.seed, step, visits, size, config.max_response_length)
    prompts = [render(run.tokenizer, task) for task in tasks]
    rollouts = sample(run.policy, run.tokenizer, prompts, size, config.max_response_length, config.temperature, noise,
                      config.sample_batch_size)
    texts = [rollouts.texts[i : i + size] for i in range(0, len(rollouts.texts), size)]
    keys = [[answer_key(task, text) for text in group] for task, group in zip(tasks, texts)]
    experience = Experience(tasks, rollouts, keys)
    lap("sample")
    if config.kl_coef > 0 or run.memory is not None:
        with torch.no_grad():
            score = lambda temperature, hidden=False: forward_responses(  # noqa: E731
                run.reference, rollouts.ids, rollouts.attention_mask, config.max_response_length, temperature,
                hidden, config.micro_batch_size)  # fmt: skip
            reference = score(1.0, hidden=run.memory is not None and config.encoder == "policy")
            same = config.temperature == 1
            experience.ref_logprobs = reference.logprobs if same else score(config.temperature).logprobs
        lap("reference")
        if run.memory is not None:
            nodes = run.encode(tasks, rollouts, reference.hidden)
            features = answer_features(tasks, texts, keys, reference.logprobs, rollouts.mask, config.features.split(","))
            experience.groups = Groups(*(node.to(features) for node in nodes), features)
            lap("embed")
    return experience


def remember(run: Run, experience: Experience, rewards) -> list[tuple]:
    """The labelled groups as rows for `ExperienceMemory.remember`, on the CPU."""
    parts = zip(experience.tasks, *(part.cpu() for part in (*experience.groups, rewards)))
    return [(task.id, *tensors) if task.labelled else None for task, *tensors in parts]


def join(run: Run, rows: list) -> None:
    """Put the rows of all processes into the memory, in the order of the batch, on every process."""
    import torch

    if rows := [row for row in gather(run, rows) if row is not None]:
        ids, *columns = zip(*rows)
        run.memory.remember(list(ids), *(torch.stack(column).to(run.device) for column in columns))


def evaluate(run: Run, tasks: list) -> dict:
    """Accuracy by the verifier on test tasks: the greedy response, and the mean over samples at temperature 1.

    Returns {"tasks": {name: count}, "greedy": {name: accuracy}, "sampled": ...}. The names are data sets (domains where
    there is one set only), "all" (the mean over the tasks; of several sets, the mean over the sets trained on, as in the
    paper) and "out of domain" (the mean over the sets of --ood).
    """
    from tqdm import tqdm

    from data import verify_batch
    from grpo import sample, uniform_noise

    config, rows = run.config, []
    several = len({task.dataset for task in tasks}) > 1
    mine = sorted(share(run, tasks), key=lambda task: len(render(run.tokenizer, task)))
    bar = tqdm(total=len(mine), desc="evaluate", leave=False, delay=10, disable=not run.accelerator.is_main_process)
    for first in range(0, len(mine), EVALUATION_BATCH):
        some = mine[first : first + EVALUATION_BATCH]
        prompts, found = [render(run.tokenizer, task) for task in some], {}
        for name, size, temperature in (("greedy", 1, 0.0), ("sampled", config.eval_samples, 1.0)):
            if size:
                noise = uniform_noise(0, 0, [task.id for task in some], size, config.max_response_length)
                texts = sample(run.policy, run.tokenizer, prompts, size, config.max_response_length, temperature, noise,
                               config.sample_batch_size).texts
                rewards = verify_batch([task for task in some for _ in range(size)], texts)
                found[name] = [sum(rewards[i : i + size]) / size for i in range(0, len(rewards), size)]
        rows += [(task.dataset if several else task.domain, *scores) for task, *scores in zip(some, *found.values())]
        bar.update(len(some))
    bar.close()
    names, *columns = zip(*sorted(gather(run, rows)))
    table: dict = {"tasks": dict(Counter(names))}
    outside = set(names) - run.inside if several else ()
    for kind, values in zip(found, columns):
        table[kind] = scores = {name: mean(v for n, v in zip(names, values) if n == name) for name in dict.fromkeys(names)}
        inside = [score for name, score in scores.items() if name not in outside]
        scores["all"] = mean(inside if several else values)
        if outside:
            scores["out of domain"] = mean(scores[name] for name in outside)
    table["tasks"]["all"] = sum(name not in outside for name in names)
    table["tasks"]["out of domain"] = len(names) - table["tasks"]["all"]
    return table


# --------------------------------------------------------------------------------------------------------- the training


def train(config: Config) -> dict:
    """One run, from the policy that `config.model` names to a trained one in the run folder; returns results.json."""
    from tqdm import tqdm

    from data import hide_labels

    config.output_dir = config.resume or config.output_dir or time.strftime(f"runs/%Y-%m-%d_%H-%M-%S_{config.mode}")
    run = start(config)
    everything, test = load_data(run)
    order = pick(run, everything) if config.label_pick == "coverage" and config.label_ratio < 1 else None
    tasks = hide_labels(everything, config.label_ratio, config.seed, order)
    audit = Audit(everything, config.threshold)
    del everything  # from here on a hidden label exists in the audit only
    labelled = [task for task in tasks if task.labelled]
    open_folder(run, tasks, test)
    log = Log(run, {"labels_used": len(labelled), "labels_available": sum(t.labelled for t in audit.truth.values())})
    drift = Drift(labelled, config)
    if config.mode == "r1p":
        tasks = labelled
    bar = tqdm(total=config.steps, desc=config.mode, disable=not run.accelerator.is_main_process)

    done = load_checkpoint(run, log, audit, drift) if config.resume else None
    if done is None:
        if run.memory is not None:
            warm_up(run, labelled, drift)
        log.evaluation(0, evaluate(run, test), {}, drift.metrics())
        log.checked = drift.warm_up
        save_checkpoint(run, 0, log, audit, drift)
    bar.update(done or 0)
    if not done:
        run.optimizer.state.clear()  # saving a sharded optimizer makes a first step of zeros, which Adam would count

    profiler = profile(run) if config.profile else None
    for step in range((done or 0) + 1, config.steps + 1):
        train_step(run, batch(tasks, step - 1, config), step, log, audit, drift)
        if profiler:
            profiler.step()
        bar.update()
        bar.set_postfix(log.shown, refresh=False)
        if step % config.eval_every == 0 or step == config.steps:
            log.evaluation(step, evaluate(run, test), audit.metrics(log.audited), drift.metrics(log.checked))
            drift.warn(run, step, log.checked)
            log.audited, log.checked = len(audit.rewards), len(drift.rewards)
            save_checkpoint(run, step, log, audit, drift)
    bar.close()
    return finish(run, log, audit)


def pick(run: Run, tasks: list) -> list[str]:
    """Ids of the tasks in the order in which their labels are worth most: those first that stand for many others."""
    import torch

    from gnn import facility_location
    from grpo import forward_responses, tokenize_rollouts

    queries = []
    for first in range(0, len(tasks), EVALUATION_BATCH):
        some = tasks[first : first + EVALUATION_BATCH]
        rollouts = tokenize_rollouts(run.tokenizer, [render(run.tokenizer, task) for task in some], [""] * len(some))
        hidden = None
        if run.config.encoder == "policy":
            ids, mask = rollouts.ids.to(run.device), rollouts.attention_mask.to(run.device)
            with torch.no_grad():
                hidden = forward_responses(run.reference, ids, mask, rollouts.mask.shape[1], hidden=True,
                                           batch_size=run.config.micro_batch_size).hidden
        queries.append(run.encode(some, rollouts, hidden)[0])
    order, _ = facility_location(torch.cat(queries), round(run.config.label_ratio * len(tasks)))
    return [tasks[row].id for row in order]


def warm_up(run: Run, labelled: list, drift: Drift) -> None:
    """Step 1: the initial policy's verified rollouts of the labelled tasks are the memory; train the reward network on it."""
    from tqdm import tqdm

    from memreward import acquire_rewards

    visits = [(task, f"{task.id} sibling {n}" if n else task.id) for n in range(run.config.groups_per_query) for task in labelled]
    mine, seen = share(run, visits), []
    size = run.config.batch_size // run.accelerator.num_processes
    bar = tqdm(range(0, len(mine), size), "warm-up", leave=False, delay=10, disable=not run.accelerator.is_main_process)
    for first in bar:
        tasks, keys = zip(*mine[first : first + size])
        experience = roll_out(run, tasks, keys, 0, Stopwatch())
        rewards, _ = acquire_rewards(tasks, experience.rollouts.texts, run.memory, experience.groups, experience.keys)
        seen.append((dataclasses.replace(experience, rollouts=None, ref_logprobs=None), rewards))  # no tokens: all stay a while
    join(run, [row for pair in seen for row in remember(run, *pair)])
    fit_memory(run, run.config.seed, drift)
    drift.extend(gather(run, [row for pair in seen for row in drift.judge(run, *pair)]))
    drift.warm_up = len(drift.rewards)


def train_step(run: Run, visits: list[tuple], step: int, log: Log, audit: Audit, drift: Drift) -> None:
    """Steps 2 to 6: rollouts, rewards, one GRPO update, what the predictions were worth, and fresh experience."""
    from grpo import group_advantages, policy_update
    from memreward import acquire_rewards

    config, lap, audited, checked = run.config, Stopwatch(), len(audit.rewards), len(drift.rewards)
    # 2. Sample a group of rollouts for each task; every process takes its share of the batch.
    tasks, keys = zip(*share(run, visits))
    experience = roll_out(run, tasks, keys, step, lap)
    # 3. Rewards: the verifier where there is a label, else the memory (or the majority).
    rewards, source = acquire_rewards(tasks, experience.rollouts.texts, run.memory, experience.groups, experience.keys,
                                      config.threshold, config.reward == "soft", config.abstain, lap)  # (B, G), (B,)
    # 4. Advantages and one GRPO update.
    advantages = group_advantages(rewards, config.advantage_norm)  # (B, G)
    stats = policy_update(
        run.model, run.optimizer, run.accelerator, experience.rollouts,
        advantages.flatten().to(run.device), experience.ref_logprobs if config.kl_coef > 0 else None,
        temperature=config.temperature, clip_low=config.clip_low, clip_high=config.clip_high, kl_coef=config.kl_coef,
        loss_norm=config.loss_norm, updates_per_batch=config.updates_per_batch,
        micro_batch_size=config.micro_batch_size, max_grad_norm=config.max_grad_norm)  # fmt: skip
    refresh(run)
    lap("update")
    # 5. What the predicted rewards were worth, for the log alone.
    drift.extend(gather(run, drift.judge(run, experience, rewards)))
    audit.add(run, experience)
    lap("audit")
    # 6. If wanted, fresh verified rollouts join the memory (no new label is used) and the networks are fitted anew.
    if run.memory is not None and config.memory != "frozen":
        join(run, remember(run, experience, rewards))
        if config.memory == "refit" and step % config.refit_every == 0:
            fit_memory(run, config.seed + step, drift)
        lap("remember")
    log.step(step, experience, rewards, source, stats, lap, audit.metrics(audited), drift.metrics(checked))


def compare(config: Config) -> None:
    """Run every mode (and variant) with every seed, go on where it stopped, and print the paper's table."""
    check(config.mode == "memreward" and config.seed == 0, "compare runs every mode with seeds 0 to seeds - 1: leave out --mode "
          "and --seed")  # fmt: skip
    check(os.environ.get("WORLD_SIZE", "1") == "1", "compare: its runs are small, start it without accelerate launch")
    names = list(VARIANTS) if config.variants == "all" else [name.strip() for name in config.variants.split(",") if name]
    check(set(names) <= set(VARIANTS), f"variants: {config.variants} are not all among {', '.join(VARIANTS)}")
    rows = {mode: {"mode": mode} for mode in MODES} | {name: VARIANTS[name] for name in names}
    rows = {name: changes for name, changes in rows.items() if changes.get("label_ratio") != config.label_ratio}
    root, finished = Path(config.output_dir or "runs/compare"), []
    for seed in range(config.seeds):
        for name, changes in rows.items():
            one = dataclasses.replace(config, seed=seed, seeds=1, variants="", **changes)
            one.output_dir = str(root / f"{name.split()[0]}-{one.label_ratio}-{seed}")
            done = Path(one.output_dir) / "results.json"
            if (begun := done.with_name("config.json")).exists():
                old = json.loads(begun.read_text())
                free = ("output_dir", "resume", "tracker", "traceback", "keep", *(MEMORY if one.mode != "memreward" else ()))
                other = [f.name for f in dataclasses.fields(Config)  # a setting that came later was at its default
                         if f.name not in free and old.get(f.name, f.default) != getattr(one, f.name)]
                check(not other, f"output_dir: {one.output_dir} was run with another {', '.join(other)}; name another folder")
                one.resume = one.output_dir
            if not done.exists():
                if finished:
                    print(comparison(finished), flush=True)  # so far
                train(one)
            finished.append(json.loads(done.read_text()) | {"row": name})
    print(comparison(finished))


def parse(arguments: list[str]) -> tuple[str, Config]:
    """Split the command line into a command and its Config; what is unknown is refused."""
    from transformers.hf_argparser import HfArgumentParser

    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    if command in ("explain", "plot") and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--resume" if command == "explain" else "--output_dir")
    parser = HfArgumentParser(Config, usage=f"python train.py [{'|'.join(COMMANDS)}] [--setting value ...]", description=
                              "Train a policy with rewards from a verifier where there are labels, else from memory.")
    check(command in COMMANDS, f"command: {command!r} is not one of {', '.join(COMMANDS)}")
    config, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    check(not unknown, f"{' '.join(unknown)}: no such setting; python train.py --help lists them")
    if others := PRESETS[config.preset] | of_run(command, config):  # other defaults, so that flags still win
        parser.set_defaults(**others)
        (config,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    given = [argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]
    for name, commands in READ_BY.items():
        check(name not in given or command in commands, f"{name}: only {' and '.join(commands)} can use it, not {command}")
    idle = [name for name in given if name in MEMORY and command == "train" and config.mode != "memreward"]
    check(not idle, f"{', '.join(idle)}: of the memory, and mode {config.mode} has none")
    if config.resume:
        path = Path(config.resume) / "config.json"
        check(path.is_file(), f"resume: {config.resume} is no run folder, it has no config.json")
        other = [name for name in given if name not in ("resume", "traceback")]
        check(not other, f"resume: leave out {', '.join(other)}, the settings of the run are in {path}")
        saved = json.loads(path.read_text())
        unknown = saved.keys() - {f.name for f in dataclasses.fields(Config)}
        check(not unknown, f"resume: {path} has settings of another version: {', '.join(sorted(unknown))}")
        config = dataclasses.replace(Config(**saved), resume=config.resume, traceback=config.traceback)
    return command, config


def of_run(command: str, config: Config) -> dict:
    """The settings of the run folder that `evaluate --model` or `probe --rollouts` names: its tasks, lengths, memory."""
    folder = {"evaluate": config.model, "probe": config.rollouts}.get(command)
    if not folder or not (Path(folder) / "tasks.json").is_file():
        return {}
    saved = json.loads((Path(folder) / "config.json").read_text())
    shared = "encoder tasks ood train_tasks test_tasks seed group_size temperature max_prompt_length max_response_length eval_samples"
    ratio = ("label_ratio",) if command == "probe" and saved["label_ratio"] < 1 else ()  # with all labels nothing is hidden
    return {name: saved[name] for name in (*shared.split(), *MEMORY, *ratio) if name in saved}


def run_train(config: Config) -> None:
    """`python train.py`: one run and its table."""
    results = train(config)
    if os.environ.get("RANK", "0") == "0":
        print("\n" + report(results))


def evaluate_model(config: Config) -> dict:
    """Test accuracy of the model that config.model names: a run, a checkpoint or any causal LM. See `evaluate`."""
    run = start(config, training=False)
    _, test = load_data(run, training=False)
    scores = evaluate(run, test)
    if run.accelerator.is_main_process and config.output_dir:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.output_dir) / "evaluation.json", {"model": config.model, "dropped": run.dropped, **scores})
    return scores


def run_evaluate(config: Config) -> None:
    """`python train.py evaluate --model CHECKPOINT`: a table of test accuracy."""
    scores = evaluate_model(config)
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(accuracies({"": scores})))


def collect(run: Run, tasks: list, texts: list[str], encoders: tuple[str, ...]) -> tuple:
    """Responses to all tasks (those in `texts`, or sampled ones where it is empty), nodes by encoder, and the reference's
    log-probabilities with their mask (N, T); None, None where the built-in policy would have to read what others wrote."""
    import torch
    from torch.nn.functional import pad
    from tqdm import tqdm

    from grpo import forward_responses, sample, tokenize_rollouts, uniform_noise
    from memreward import make_encoder

    config, given, size = run.config, list(texts), len(texts) // len(tasks) or run.config.group_size
    read, responses, scored, nodes = not given or config.model != "builtin", [], [], {name: [] for name in encoders}
    encode = {name: make_encoder(name, run.tokenizer, run.device) for name in encoders}
    for first in tqdm(range(0, len(tasks), 32), "rollouts", leave=False, delay=10):
        some = tasks[first : first + 32]
        prompts = [render(run.tokenizer, task) for task in some]
        if given:
            rollouts = tokenize_rollouts(run.tokenizer, prompts, given[first * size : (first + 32) * size])
        else:
            noise = uniform_noise(config.seed, 0, [task.id for task in some], size, config.max_response_length)
            rollouts = sample(run.policy, run.tokenizer, prompts, size, config.max_response_length, config.temperature, noise,
                      config.sample_batch_size)
        responses, scores = responses + rollouts.texts, None
        if read:
            ids, mask, length = rollouts.ids.to(run.device), rollouts.attention_mask.to(run.device), rollouts.mask.shape[1]
            with torch.no_grad():
                scores = forward_responses(run.policy, ids, mask, length, 1.0, "policy" in encoders, config.micro_batch_size)
            scored.append((scores.logprobs.cpu(), rollouts.mask.cpu()))
        for name in encoders:
            nodes[name].append(encode[name](some, rollouts, scores and scores.hidden))
    nodes = {name: tuple(torch.cat(part).cpu() for part in zip(*parts)) for name, parts in nodes.items()}
    width = max((mask.shape[1] for _, mask in scored), default=0)
    columns = [torch.cat([pad(part, (0, width - part.shape[1])) for part in parts]) for parts in zip(*scored)]
    return responses, nodes, *(columns or (None, None))


def run_probe(config: Config) -> None:
    """`python train.py probe`: how good predicted rewards are, on rollouts whose rewards are known: the policy's own on its
    training tasks, those of a run's policy (--rollouts RUN), or what a file holds, of any model (--rollouts FILE)."""
    import torch

    from data import answer_key, load_tasks, read_rollouts, verify_batch
    from memreward import probe, probe_line

    check(config.label_ratio < 1, "label_ratio: probe hides labels to predict them, so it must be below 1")
    holds_run = config.output_dir and (Path(config.output_dir) / "tasks.json").exists()
    check(not holds_run, f"output_dir: {config.output_dir} holds a run, whose results.json stays; name another folder")
    path, texts = Path(config.rollouts or ""), []
    if (path / "tasks.json").is_file() and config.rollouts:
        config = dataclasses.replace(config, rollouts=None, model=str(path))  # see of_run
    check(not config.rollouts or path.is_file(), f"rollouts: {config.rollouts} is neither a run folder nor a .jsonl file")
    if config.rollouts:
        tasks, texts, rewards = read_rollouts(path)
        check(config.encoder != "policy" or config.model != "builtin", "encoder: policy needs a --model to read them")
    else:
        tasks = load_tasks(config.tasks, "train", config.train_tasks, config.seed)
    unlabelled = [task.id for task in tasks if not task.labelled]
    check(not unlabelled, f"{'rollouts' if config.rollouts else 'tasks'}: probe needs every answer, {unlabelled[:1]} has none")
    policy = () if config.rollouts and config.model == "builtin" else ("policy",)
    encoders = tuple(dict.fromkeys([config.encoder, "hash", *policy]))
    texts, nodes, logprobs, mask = collect(start(config, training=False), tasks, texts, encoders)
    size, splits = len(texts) // len(tasks), max(5, config.seeds)
    if not config.rollouts:
        rewards = verify_batch([task for task in tasks for _ in range(size)], texts)
    rewards, groups = torch.tensor(rewards).view(-1, size), [texts[i : i + size] for i in range(0, len(texts), size)]
    keys = [[answer_key(task, text) for text in group] for task, group in zip(tasks, groups)]
    print(f"{len(tasks)} queries x {size} rollouts, {rewards.mean():.0%} right, {config.label_ratio:.0%} of queries labelled, "
          f"{splits} splits" + ("" if policy else "; no log-probabilities, as no --model has read the rollouts"))
    print(probe_line())
    rows = []
    for row in probe(tasks, groups, keys, rewards, nodes, config, splits, logprobs, mask):
        print(probe_line(row), flush=True)
        rows.append({name: None if value != value else value for name, value in row.items()})  # nan is no JSON
    folder = Path(config.output_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S_probe"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"rows": rows})


def run_explain(config: Config) -> None:
    """`python train.py explain RUN`: why rollouts get their predicted rewards; of an unlabelled task of each domain, those of
    the initial policy with the highest and the lowest."""
    from data import hide_labels, verify
    from memreward import trace_lines

    check(config.resume, "explain: name a run folder: python train.py explain RUN")
    newest = max((Path(config.resume) / "checkpoints").glob("*"), default=None)
    check(config.mode == "memreward" and newest, f"explain: {config.resume} has no memory in a checkpoint")
    run = start(config)
    run.memory.load(newest / "memory.pt", run.device)
    everything, _ = load_data(run)
    truth = {task.id: task for task in everything}
    unlabelled = {task.domain: task for task in hide_labels(everything, config.label_ratio, config.seed) if not task.labelled}
    check(unlabelled, f"explain: every task of {config.resume} has its label, so no reward is predicted")
    experience = roll_out(run, list(unlabelled.values()), [f"{task.id} explain" for task in unlabelled.values()], 0, Stopwatch())
    for b, task in enumerate(experience.tasks):
        group = experience.rollouts.texts[b * config.group_size : (b + 1) * config.group_size]
        trace = run.memory.explain(*(part[b] for part in experience.groups))
        for rollout, key in zip(trace, experience.keys[b]):
            rollout["probability"] *= key is not None  # as in predict_rewards
        for query in (query for rollout in trace for query in rollout["queries"]):
            query["id"] += f"  {truth[query['id']].question[:60]!r}"
        order = sorted(range(len(group)), key=lambda g: trace[g]["probability"])
        print(f"\n{task.id}: {task.question}")
        for g in (order[-1], order[0]):
            known = f" (the hidden label says {verify(truth[task.id], group[g]):.0f})" if truth[task.id].labelled else ""
            known += " (no answer)" if experience.keys[b][g] is None else ""
            print(*trace_lines([trace[g]], [group[g] + known]), sep="\n")


def run_plot(config: Config) -> None:
    """`python train.py plot FOLDER`: figures of the runs that compare made there."""
    print(*draw(Path(config.output_dir or "runs/compare"), config.label_ratio), sep="\n")


COMMANDS = {"train": run_train, "compare": compare, "evaluate": run_evaluate, "probe": run_probe, "explain": run_explain,
            "plot": run_plot}


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
        if command != "train" or not (Path(config.output_dir or "") / "config.json").is_file():
            sys.exit("\nstopped; run the same command again")
        sys.exit(f"\nstopped; to go on: python train.py --resume {config.output_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
