"""The bench: how good are predicted rewards, and what does each part of the memory give?"""

import dataclasses
import functools
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from lab.runs import Run, start, write_json
from lab.settings import check, new_folder


def run_probe(config) -> None:
    """`python train.py probe`: how good predicted rewards are, on rollouts whose rewards are known: the
    policy's own on its training tasks, those of a run's policy (--rollouts RUN), or what a file holds, of any
    model (--rollouts FILE). With --new_kinds whole kinds of tasks are kept out of the fit: see
    `probe_new_kinds`."""
    check(config.label_ratio < 1, "label_ratio: probe hides labels to predict them, so it must be below 1")
    holds_run = config.output_dir and (Path(config.output_dir) / "tasks.json").exists()
    check(not holds_run,
          f"output_dir: {config.output_dir} holds a run, whose results.json stays; name another folder")
    path = Path(config.rollouts or "")
    if (path / "tasks.json").is_file() and config.rollouts:
        config = dataclasses.replace(config, rollouts=None, model=str(path))  # see settings.of_run
    tasks, texts, rewards = what_to_predict(config)
    kinds = kinds_of(config, tasks) if config.new_kinds else []
    read = config.model != "builtin" or not config.rollouts
    encoders = tuple(dict.fromkeys([config.encoder, "hash", *["policy"] * read]))
    samples = collect(start(config, training=False), tasks, texts, rewards, encoders)
    splits, size = max(5, config.seeds), samples[0].rewards.shape[1]
    right = samples[0].rewards.mean().item()
    print(f"{len(tasks)} queries x {size} rollouts, {right:.0%} right, {config.label_ratio:.0%} of queries "
          f"labelled ({config.label_pick}), {len(samples)} groups a labelled query, {splits} splits"
          + ("" if read else "; no log-probabilities, as no --model has read the rollouts"))
    table = probe_new_kinds(tasks, samples, config, kinds, splits) if config.new_kinds else probe(
        tasks, samples, config, splits)
    line = new_kinds_line if config.new_kinds else probe_line
    print(line())
    rows = []
    for row in table:
        print(line(row), flush=True)
        rows.append({name: None if value != value else value for name, value in row.items()})  # nan: not JSON
    folder = Path(config.output_dir or new_folder("probe"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"rows": rows})


def what_to_predict(config) -> tuple[list, list[str], list[float]]:
    """The tasks, and of a file its responses to them with their rewards."""
    from data import load_tasks
    from lab.rollouts import read_rollouts

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
    check(not unlabelled, f"{'rollouts' if config.rollouts else 'tasks'}: probe needs every answer to judge "
          f"predictions, {unlabelled[:1]} has none")
    return tasks, texts, rewards


class Sample(NamedTuple):
    """A group of G rollouts of each of B tasks, with known rewards."""

    responses: list  # B lists of G texts
    keys: list  # their answer keys
    rewards: object  # (B, G)
    nodes: dict[str, tuple]  # for each encoder its queries (B, d), thinkings and answers (B, G, d)
    logprobs: object = None  # (B*G, T) the reference policy's, with their mask; None: nobody has read them
    mask: object = None


def collect(run: Run, tasks: list, texts: list[str], rewards: list[float], encoders: tuple[str, ...]
            ) -> list[Sample]:
    """The responses in `texts` with their `rewards`, or where there are none `groups_per_query` groups of
    sampled and verified ones. The built-in policy does not read what others wrote, so then there are no
    log-probabilities."""
    import torch

    from data import answer_key, verify_batch

    groups = range(1 if texts else run.config.groups_per_query)
    samples = []
    for number in groups:
        found, nodes, logprobs, mask = embed_responses(run, tasks, texts, encoders, number)
        size = len(found) // len(tasks)
        truth = rewards or verify_batch([task for task in tasks for _ in range(size)], found)
        responses = [found[i : i + size] for i in range(0, len(found), size)]
        keys = [[answer_key(task, text) for text in group]
                for task, group in zip(tasks, responses, strict=True)]
        samples.append(Sample(responses, keys, torch.tensor(truth).view(-1, size), nodes, logprobs, mask))
    return samples


def embed_responses(run: Run, tasks: list, texts: list[str], encoders: tuple[str, ...], number: int) -> tuple:
    """Responses to all tasks (those in `texts`, or sampled ones where it is empty, the group with this
    number), nodes by encoder, and the reference's log-probabilities with their mask (N, T) or None, None."""
    import torch
    from torch.nn.functional import pad
    from tqdm import tqdm

    from grpo import forward_responses, sample, uniform_noise
    from lab.rollouts import tokenize_rollouts
    from memreward import make_encoder

    config, given, size = run.config, list(texts), len(texts) // len(tasks) or run.config.group_size
    read, responses, scored = not given or config.model != "builtin", [], []
    nodes, length = {name: [] for name in encoders}, config.max_response_length
    encode = {name: make_encoder(name, run.tokenizer, run.device) for name in encoders}
    for first in tqdm(range(0, len(tasks), 32), "rollouts", leave=False, delay=10):
        some = tasks[first : first + 32]
        prompts = [run.render(task) for task in some]
        if given:
            written = given[first * size : (first + 32) * size]
            rollouts = tokenize_rollouts(run.tokenizer, prompts, written)
        else:
            visits = [f"{task.id} sibling {number}" if number else task.id for task in some]
            noise = uniform_noise(config.seed, 0, visits, size, length)
            rollouts = sample(run.policy, run.tokenizer, prompts, size, length, config.temperature, noise,
                              config.sample_batch_size, run.stop)
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


# -------------------------------------------------------------------------------------------------- the table


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
        "one group a labelled query, no siblings": {"groups_per_query": 1},
        "labels picked to cover": {"label_pick": "coverage"},
        "without answer features": {"features": ""},
        **{f"only {name}": {"features": name} for name in features},
        **{f"encoder {name}": {"encoder": name} for name in encoders if name != config.encoder},
        **{f"k = {k}": {"neighbors": k} for k in (1, 3, 7, 15)},
        **{f"label ratio {ratio}": {"label_ratio": ratio} for ratio in (0.1, 0.2, 0.4, 0.7)},
        **{f"threshold {threshold}": {"threshold": threshold} for threshold in (0.3, 0.4, 0.5, 0.6, 0.7)},
    }


class Bench(NamedTuple):
    """Verified rollouts to measure predictions with: one group or more of every task."""

    tasks: list  # B data.Tasks
    samples: list[Sample]
    names: list[str]  # of the features
    features: list  # (B, G, f) of every sample

    def groups(self, config, number: int = 0):
        """The gnn.Groups of a sample as `config` wants them; no feature at all is a column of zeros."""
        from gnn import Groups

        columns = [self.names.index(name) for name in config.features.split(",") if name]
        features = self.features[number]
        features = features[..., columns] if columns else 0 * features[..., :1]
        groups = Groups(*self.samples[number].nodes[config.encoder], features)
        return groups._replace(**{name: 0 * getattr(groups, name) for name in config.blank.split()})

    def remember(self, memory, config, rows) -> None:
        """Put the groups of the tasks that `rows` (B,) marks into the memory: `groups_per_query` of each."""
        ids = [task.id for task, kept in zip(self.tasks, rows.tolist(), strict=True) if kept]
        for number, sample in enumerate(self.samples[: config.groups_per_query] if ids else ()):
            memory.remember(ids, *self.groups(config, number).rows(rows), sample.rewards[rows])

    def labelled(self, config, seed: int):
        """(B,) marks the tasks whose label a split keeps. Labels are drawn with the seed, or picked to cover
        nine tenths of the tasks that are drawn with it, so that splits differ."""
        import torch

        from data import hide_labels
        from support.coverage import facility_location

        order = None
        if config.label_pick == "coverage":
            count = len(self.tasks)
            drawn = random.Random(f"coverage {seed}").sample(range(count), round(0.9 * count))
            queries = self.samples[0].nodes[config.encoder][0][drawn]
            picks, _ = facility_location(queries, max(1, round(config.label_ratio * count)))
            order = [self.tasks[drawn[row]].id for row in picks]
        hidden = hide_labels(self.tasks, config.label_ratio, seed, order)
        return torch.tensor([task.labelled for task in hidden])


def make_bench(tasks: list, samples: list[Sample]) -> Bench:
    """The samples with all features that can be had."""
    from memreward import CONFIDENCE, FEATURES, answer_features

    names = [name for name in FEATURES if samples[0].logprobs is not None or name not in CONFIDENCE]
    features = [answer_features(tasks, sample.responses, sample.keys, sample.logprobs, sample.mask, names)
                for sample in samples]
    return Bench(tasks, samples, names, features)


def default_row(bench: Bench, config) -> dict:
    """The settings of the row that is what training does."""
    chosen = ",".join(name for name in config.features.split(",") if name in bench.names)
    check(chosen, f"features: {config.features} are of rollouts that a --model has read")
    return vars(config) | {"features": chosen, "predictor": "memory", "blank": ""}


def vote(bench: Bench, config, known, asked):
    """Predict by the mean of what the k most similar thinkings and answers earned: no network."""
    from gnn import edge_weights, receive_messages, similarity_edges

    rewards = bench.samples[0].rewards[known]
    groups = bench.groups(config)
    edges = similarity_edges(groups.rows(asked), groups.rows(known), config.neighbors)
    votes = [receive_messages(rewards[..., None], near, edge_weights(cosines)) for near, cosines in edges[1:]]
    return sum(part[..., 0] for part in votes) / 2


def hide_and_predict(bench: Bench, config, seed: int) -> tuple:
    """Keep `config.label_ratio` of the labels and predict the rewards of the other queries' rollouts: scores
    and truth (n,), and {labels: queries labelled, fit_seconds, microseconds: for a predicted rollout}."""
    from memreward import ExperienceMemory

    known = bench.labelled(config, seed)
    truth, began = bench.samples[0].rewards[~known], time.perf_counter()
    ready = began
    if config.predictor == "memory":
        memory = ExperienceMemory(config)
        bench.remember(memory, config, known)
        memory.fit(seed)
        ready = time.perf_counter()
        scores = memory.predict(*bench.groups(config).rows(~known))
    elif config.predictor == "vote":
        scores = vote(bench, config, known, ~known)
    else:  # the name of a feature that is a prediction by itself
        scores = bench.features[0][~known][..., bench.names.index(config.predictor)]
    microseconds = 1e6 * (time.perf_counter() - ready) / scores.numel()
    facts = {"labels": int(known.sum()), "fit_seconds": ready - began, "microseconds": microseconds}
    return scores.flatten(), truth.flatten(), facts


def probe(tasks: list, samples: list[Sample], config, seeds: int = 5) -> Iterator[dict]:
    """Measure every row of `probe_rows`: what training runs, with one thing changed. Each seed hides other
    labels.

    Measured are the networks, fitted on all labels of the split: training keeps `drift_fraction` of them
    back, and gives 0 to what has no answer (`predict_rewards`). Of labelled tasks all samples are remembered,
    of the others the first is predicted.

    Yields name, default (True: what training does), and as means over seeds, with standard errors NAME_se:
    labels, accuracy, precision, recall, f1, fp_rate, auc, ece, fit_seconds, microseconds. nan: nothing to
    measure.
    """
    from gnn import metrics
    from support.calibration import calibration_error

    bench = make_bench(tasks, samples)
    default = default_row(bench, config)

    @functools.cache  # rows that differ in the threshold share their predictions
    def predictions(seed: int, **changes) -> tuple:
        return hide_and_predict(bench, SimpleNamespace(**default | changes), seed)

    def measure(seed: int, threshold: float = config.threshold, **changes) -> dict[str, float]:
        scores, truth, facts = predictions(seed, **changes)
        return {**metrics(scores, truth, threshold), "ece": calibration_error(scores, truth), **facts}

    for name, changes in probe_rows(config, bench.names, samples[0].nodes).items():
        other = {key: value for key, value in changes.items() if default.get(key) != value}
        yield {"name": name, "default": not changes,
               **means([measure(seed, **other) for seed in range(seeds)])}


def means(splits: list[dict[str, float]]) -> dict[str, float]:
    """Means over splits by name, and their standard errors as NAME_se.

    >>> means([{"auc": 0.5}, {"auc": 0.7}])
    {'auc': 0.6, 'auc_se': 0.1}
    """
    import numpy as np

    columns = {key: np.array([split[key] for split in splits]) for key in splits[0]}
    errors = {f"{key}_se": round(values.std(ddof=1).item() / len(values) ** 0.5, 12)
              for key, values in columns.items() if len(values) > 1}
    return {key: values.mean().item() for key, values in columns.items()} | errors


# ----------------------------------------------------------------------------------------- new kinds of tasks


def kinds_of(config, tasks: list) -> list[str]:
    """What kind each task is: of the small world its family, of a .jsonl file its column "kind", else its
    data set."""
    from data import small_world
    from support.jsonl import json_lines

    kinds = {task.id: task.dataset for task in tasks}
    sets = [name.strip() for name in (config.rollouts or config.tasks).split(",")]
    if "world" in sets and not config.rollouts:
        world = small_world("train", config.seed)
        kinds |= {item.task.id: item.family for item in itertools.islice(world, config.train_tasks)}
    for path in (Path(name) for name in sets if name.endswith(".jsonl")):
        named, nameless = 0, []
        for _, row in json_lines(path):
            for name in (row["id"], f"{path.stem}/{row['id']}"):
                if name in kinds and row.get("kind") is not None:
                    kinds[name], named = str(row["kind"]), named + 1
                elif name in kinds:
                    nameless.append(name)
        check(not (named and nameless), f"new_kinds: {named} rows of {path} name their kind, {nameless[:1]} "
              "does not")
    found = sorted(set(kinds.values()))
    check(len(found) > 2, f"new_kinds: needs three kinds of tasks or more, got {', '.join(found)}; rows of a "
          '.jsonl file name theirs in a column "kind"')
    return [kinds[task.id] for task in tasks]


def new_kinds_rows(config) -> dict[str, dict]:
    """The rows of the table: a name, and what is changed of `config`."""
    return {"vote of the k nearest rollouts": {"predictor": "vote"},
            "MLP (no edges)": {"gnn": "mlp"},
            "GCN of embeddings, labels no inputs (the paper)": {"gnn": "paper"},
            "GCN of features and labels": {"gnn": "gcn"},
            f"{config.gnn} networks (default)": {}}


def probe_new_kinds(tasks: list, samples: list[Sample], config, kinds: list[str],
                    seeds: int = 5) -> Iterator[dict]:
    """A third of all kinds is kept out of the fit. How well are rewards of these kinds' unlabelled rollouts
    predicted `before` any of their labels is known, when their labelled groups are `remembered` without a
    fit, and when all is fitted `anew`?

    Yields name, default, and as means over seeds with standard errors (NAME_se) before_auc, before_accuracy,
    remembered_... and anew_...; auc and accuracy are those of what is remembered.
    """
    bench = make_bench(tasks, samples)
    default = default_row(bench, config)
    for name, changes in new_kinds_rows(config).items():
        row = SimpleNamespace(**default | changes)
        found = means([new_kinds_split(bench, row, kinds, seed) for seed in range(seeds)])
        prefix = "remembered_"
        same = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        yield {"name": name, "default": not changes, **found, **same}


def new_kinds_split(bench: Bench, config, kinds: list[str], seed: int) -> dict[str, float]:
    """One split of `probe_new_kinds`."""
    import torch

    from gnn import metrics
    from memreward import ExperienceMemory

    names = sorted(set(kinds))
    out = set(random.Random(f"kinds {seed}").sample(names, max(1, len(names) // 3)))
    new = torch.tensor([kind in out for kind in kinds])
    known = bench.labelled(config, seed)
    asked, truth = new & ~known, bench.samples[0].rewards[new & ~known].flatten()
    check(bool((known & ~new).any() and (known & new).any() and asked.any()),
          f"new_kinds: label_ratio {config.label_ratio} leaves a split whose old or new kinds have no label, "
          "or whose new ones have nothing else")
    scores = {}
    if config.predictor == "vote":
        parts = {"before": known & ~new, "remembered": known, "anew": known}
        scores = {when: vote(bench, config, part, asked) for when, part in parts.items()}
    else:
        memory, again = ExperienceMemory(config), ExperienceMemory(config)
        bench.remember(memory, config, known & ~new)
        memory.fit(seed)
        scores["before"] = memory.predict(*bench.groups(config).rows(asked))
        bench.remember(memory, config, known & new)
        scores["remembered"] = memory.predict(*bench.groups(config).rows(asked))
        bench.remember(again, config, known)
        again.fit(seed)
        scores["anew"] = again.predict(*bench.groups(config).rows(asked))
    found = {when: metrics(score.flatten(), truth, config.threshold) for when, score in scores.items()}
    return {f"{when}_{key}": found[when][key] for when in found for key in ("auc", "accuracy")}


def new_kinds_line(row: dict | None = None) -> str:
    """A row of `probe_new_kinds` for the terminal; the table's head without one."""
    whens = ("before", "remembered", "anew")
    if row is None:
        titles = ("before their labels", "labels remembered", "fitted anew")
        return f"{'AUC / accuracy on new kinds':<48}" + "".join(f"{title:>34}" for title in titles)
    cells = [" / ".join(f"{row[f'{when}_{key}']:.3f} +- {row.get(f'{when}_{key}_se', math.nan):.3f}"
                        for key in ("auc", "accuracy")).rjust(34) for when in whens]
    return f"{row['name']:<48}{''.join(cells)}"


# ------------------------------------------------------------------------------------------- for the terminal


def probe_line(row: dict | None = None) -> str:
    """A row of `probe` for the terminal; the table's head without one."""
    if row is None:
        return (f"{'':<40}{'AUC':>16}{'accuracy':>16} precis.   recall       F1   false+      ECE   fit s"
                "   us each")
    cells = [f"{row[key]:.3f} +- {row.get(f'{key}_se', math.nan):.3f}".rjust(16)
             for key in ("auc", "accuracy")]
    cells += [f"{row[key]:9.3f}" for key in ("precision", "recall", "f1", "fp_rate", "ece")]
    return f"{row['name']:<40}{''.join(cells)}{row['fit_seconds']:8.2f}{row['microseconds']:9.1f}"
