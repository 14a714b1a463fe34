"""The bench: how good are predicted rewards, and what does each part of the memory give?"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from lab.runs import Run, render, start, write_json
from lab.settings import check


def run_probe(config) -> None:
    """`python train.py probe`: how good predicted rewards are, on rollouts whose rewards are known: the
    policy's own on its training tasks, those of a run's policy (--rollouts RUN), or what a file holds, of any
    model (--rollouts FILE)."""
    import torch

    from data import answer_key, verify_batch

    check(config.label_ratio < 1, "label_ratio: probe hides labels to predict them, so it must be below 1")
    holds_run = config.output_dir and (Path(config.output_dir) / "tasks.json").exists()
    check(not holds_run,
          f"output_dir: {config.output_dir} holds a run, whose results.json stays; name another folder")
    path = Path(config.rollouts or "")
    if (path / "tasks.json").is_file() and config.rollouts:
        config = dataclasses.replace(config, rollouts=None, model=str(path))  # see settings.of_run
    tasks, texts, rewards = what_to_predict(config)
    policy = () if config.rollouts and config.model == "builtin" else ("policy",)
    encoders = tuple(dict.fromkeys([config.encoder, "hash", *policy]))
    texts, nodes, logprobs, mask = collect(start(config, training=False), tasks, texts, encoders)
    size, splits = len(texts) // len(tasks), max(5, config.seeds)
    if not config.rollouts:
        rewards = verify_batch([task for task in tasks for _ in range(size)], texts)
    rewards = torch.tensor(rewards).view(-1, size)
    groups = [texts[i : i + size] for i in range(0, len(texts), size)]
    keys = [[answer_key(task, text) for text in group] for task, group in zip(tasks, groups)]
    print(f"{len(tasks)} queries x {size} rollouts, {rewards.mean():.0%} right, {config.label_ratio:.0%} of "
          f"queries labelled, {splits} splits"
          + ("" if policy else "; no log-probabilities, as no --model has read the rollouts"))
    print(probe_line())
    rows = []
    for row in probe(tasks, groups, keys, rewards, nodes, config, splits, logprobs, mask):
        print(probe_line(row), flush=True)
        rows.append({name: None if value != value else value for name, value in row.items()})  # nan: not JSON
    folder = Path(config.output_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S_probe"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"rows": rows})


def what_to_predict(config) -> tuple[list, list[str], list[float]]:
    """The tasks, and of a file its responses to them with their rewards."""
    from data import load_tasks, read_rollouts

    texts, rewards = [], []
    if config.rollouts:
        check(Path(config.rollouts).is_file(),
              f"rollouts: {config.rollouts} is neither a run folder nor a .jsonl file")
        tasks, texts, rewards = read_rollouts(Path(config.rollouts))
        check(config.encoder != "policy" or config.model != "builtin",
              "encoder: policy needs a --model to read them")
    else:
        tasks = load_tasks(config.tasks, "train", config.train_tasks, config.seed)
    unlabelled = [task.id for task in tasks if not task.labelled]
    check(not unlabelled, f"{'rollouts' if config.rollouts else 'tasks'}: probe needs every answer, "
          f"{unlabelled[:1]} has none")
    return tasks, texts, rewards


def collect(run: Run, tasks: list, texts: list[str], encoders: tuple[str, ...]) -> tuple:
    """Responses to all tasks (those in `texts`, or sampled ones where it is empty), nodes by encoder, and the
    reference's log-probabilities with their mask (N, T); None, None where the built-in policy would have to
    read what others wrote."""
    import torch
    from torch.nn.functional import pad
    from tqdm import tqdm

    from grpo import forward_responses, sample, tokenize_rollouts, uniform_noise
    from memreward import make_encoder

    config, given, size = run.config, list(texts), len(texts) // len(tasks) or run.config.group_size
    read, responses, scored = not given or config.model != "builtin", [], []
    nodes, length = {name: [] for name in encoders}, config.max_response_length
    encode = {name: make_encoder(name, run.tokenizer, run.device) for name in encoders}
    for first in tqdm(range(0, len(tasks), 32), "rollouts", leave=False, delay=10):
        some = tasks[first : first + 32]
        prompts = [render(run.tokenizer, task) for task in some]
        if given:
            written = given[first * size : (first + 32) * size]
            rollouts = tokenize_rollouts(run.tokenizer, prompts, written)
        else:
            noise = uniform_noise(config.seed, 0, [task.id for task in some], size, length)
            rollouts = sample(run.policy, run.tokenizer, prompts, size, length, config.temperature, noise,
                              config.sample_batch_size)
        responses, scores = responses + rollouts.texts, None
        if read:
            ids, mask = rollouts.ids.to(run.device), rollouts.attention_mask.to(run.device)
            with torch.no_grad():
                scores = forward_responses(run.policy, ids, mask, rollouts.mask.shape[1], 1.0,
                                           "policy" in encoders, config.micro_batch_size)
            scored.append((scores.logprobs.cpu(), rollouts.mask.cpu()))
        for name in encoders:
            nodes[name].append(encode[name](some, rollouts, scores and scores.hidden))
    nodes = {name: tuple(torch.cat(part).cpu() for part in zip(*parts)) for name, parts in nodes.items()}
    width = max((mask.shape[1] for _, mask in scored), default=0)
    columns = [torch.cat([pad(x, (0, width - x.shape[1])) for x in parts]) for parts in zip(*scored)]
    return responses, nodes, *(columns or (None, None))


# ------------------------------------------------------------------------------------------------- the table


def probe_rows(config, features: Sequence[str], encoders: Sequence[str]) -> dict[str, dict]:
    """The table's rows: a name, and what is changed of `config`. No settings of it are `predictor` and
    `blank`, the nodes whose embedding is zero, so that they carry and attract nothing."""
    return {
        "majority vote": {"predictor": "majority"},
        "agreement as a score": {"predictor": "agreement"},
        "vote of the k nearest rollouts": {"predictor": "vote"},
        "MLP (no edges)": {"gnn": "mlp"},
        "the official code's graph and features": {
            "gnn": "paper", "gnn_networks": 1, "neighbors": 0, "features": "magnitude,parsed,majority"},
        "GCN of embeddings, labels no inputs (the paper)": {"gnn": "paper"},
        "GCN of features and labels": {"gnn": "gcn"},
        f"{config.gnn} networks (default)": {},
        "one GCN": {"gnn": "gcn", "gnn_networks": 1},
        "without thinkings": {"blank": "thinkings"},
        "without similarity edges": {"neighbors": 0},
        "without answer features": {"features": ""},
        **{f"only {name}": {"features": name} for name in features},
        **{f"encoder {name}": {"encoder": name} for name in encoders if name != config.encoder},
        **{f"k = {k}": {"neighbors": k} for k in (1, 3, 7, 15)},
        **{f"label ratio {ratio}": {"label_ratio": ratio} for ratio in (0.1, 0.2, 0.4, 0.7)},
        **{f"threshold {threshold}": {"threshold": threshold} for threshold in (0.3, 0.4, 0.5, 0.6, 0.7)},
    }


class Bench(NamedTuple):
    """Verified rollouts to measure predictions with."""

    tasks: Sequence  # B data.Tasks
    rewards: object  # (B, G)
    nodes: dict[str, tuple]  # for each encoder its queries (B, d), thinkings and answers (B, G, d)
    names: list[str]  # of the features
    features: object  # (B, G, f)

    def groups(self, config):
        """The gnn.Groups as `config` wants them; no feature at all is a column of zeros."""
        from gnn import Groups

        columns = [self.names.index(name) for name in config.features.split(",") if name]
        features = self.features[..., columns] if columns else 0 * self.features[..., :1]
        groups = Groups(*self.nodes[config.encoder], features)
        return groups._replace(**{name: 0 * getattr(groups, name) for name in config.blank.split()})


def hide_and_predict(bench: Bench, config, seed: int) -> tuple:
    """Keep `config.label_ratio` of the labels and predict the rewards of the other queries' rollouts: scores
    and truth (n,), and {labels: queries labelled, fit_seconds, microseconds: for a predicted rollout}."""
    import torch

    from data import hide_labels
    from gnn import edge_weights, receive_messages, similarity_edges
    from memreward import ExperienceMemory

    known = torch.tensor([task.labelled for task in hide_labels(bench.tasks, config.label_ratio, seed)])
    labelled, asked = (bench.groups(config).rows(part) for part in (known, ~known))
    rewards, truth, began = bench.rewards[known], bench.rewards[~known], time.perf_counter()
    ready = began
    if config.predictor == "memory":
        memory = ExperienceMemory(config)
        memory.remember([task.id for task, kept in zip(bench.tasks, known) if kept], *labelled, rewards)
        memory.fit(seed)
        ready = time.perf_counter()
        scores = memory.predict(*asked)
    elif config.predictor == "vote":
        edges = similarity_edges(asked, labelled, config.neighbors)[1:]  # of thinkings and of answers
        votes = [receive_messages(rewards[..., None], near, edge_weights(cosines)) for near, cosines in edges]
        scores = sum(vote[..., 0] for vote in votes) / 2
    else:  # the name of a feature that is a prediction by itself
        scores = bench.features[~known][..., bench.names.index(config.predictor)]
    microseconds = 1e6 * (time.perf_counter() - ready) / scores.numel()
    facts = {"labels": int(known.sum()), "fit_seconds": ready - began, "microseconds": microseconds}
    return scores.flatten(), truth.flatten(), facts


def probe(tasks: Sequence, responses: Sequence[Sequence[str]], keys: Sequence[Sequence], rewards, nodes: dict,
          config, seeds: int = 5, logprobs=None, mask=None) -> Iterator[dict]:
    """Measure every row of `probe_rows`: what training runs, with one thing changed. Each seed hides other
    labels.

    Measured are the networks, fitted on all labels of the split: training keeps `drift_fraction` of them
    back, and gives 0 to what has no answer (`predict_rewards`).

    Yields name, default (True: what training does), and as means over seeds, with standard errors NAME_se:
    labels, accuracy, precision, recall, f1, fp_rate, auc, ece, fit_seconds, microseconds. nan: nothing to
    measure.

    `responses` are B lists of G texts, `rewards` (B, G) a verifier's, `nodes` what each encoder, by its name,
    makes of them (`config.encoder` is one), logprobs and mask (N, T) the reference policy's; without them no
    CONFIDENCE.
    """
    import numpy as np

    from gnn import metrics
    from memreward import CONFIDENCE, FEATURES, answer_features
    from support.calibration import calibration_error

    names = [name for name in FEATURES if logprobs is not None or name not in CONFIDENCE]
    features = answer_features(tasks, responses, keys, logprobs, mask, names)
    bench = Bench(tasks, rewards, nodes, names, features)
    chosen = ",".join(name for name in config.features.split(",") if name in names)
    default = vars(config) | {"features": chosen, "predictor": "memory", "blank": ""}

    @functools.cache  # rows that differ in the threshold share their predictions
    def predictions(seed: int, **changes) -> tuple:
        return hide_and_predict(bench, SimpleNamespace(**default | changes), seed)

    def measure(seed: int, threshold: float = config.threshold, **changes) -> dict[str, float]:
        scores, truth, facts = predictions(seed, **changes)
        return {**metrics(scores, truth, threshold), "ece": calibration_error(scores, truth), **facts}

    for name, changes in probe_rows(config, names, nodes).items():
        other = {key: value for key, value in changes.items() if default.get(key) != value}
        splits = [measure(seed, **other) for seed in range(seeds)]
        columns = {key: np.array([split[key] for split in splits]) for key in splits[0]}
        errors = {f"{key}_se": values.std(ddof=1).item() / seeds**0.5
                  for key, values in columns.items() if seeds > 1}
        means = {key: values.mean().item() for key, values in columns.items()}
        yield {"name": name, "default": not changes, **means, **errors}


def probe_line(row: dict | None = None) -> str:
    """A row of `probe` for the terminal; the table's head without one."""
    if row is None:
        return (f"{'':<40}{'AUC':>16}{'accuracy':>16} precis.   recall       F1   false+      ECE   fit s"
                "   us each")
    cells = [f"{row[key]:.3f} +- {row.get(f'{key}_se', math.nan):.3f}".rjust(16)
             for key in ("auc", "accuracy")]
    cells += [f"{row[key]:9.3f}" for key in ("precision", "recall", "f1", "fp_rate", "ece")]
    return f"{row['name']:<40}{''.join(cells)}{row['fit_seconds']:8.2f}{row['microseconds']:9.1f}"
