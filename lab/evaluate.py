"""Test accuracy by the verifier: of a run while it trains, and of any model by `python train.py evaluate`."""

import os
from collections import Counter
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from lab.compare import accuracies
from lab.processes import gather, share
from lab.runs import Run, load_data, start, write_json


def evaluate(run: Run, tasks: list) -> dict:
    """Accuracy by the verifier on test tasks: the greedy response, and the mean over samples at temperature
    1.

    Returns {"tasks": {name: count}, "greedy": {name: accuracy}, "sampled": ..., "errors": {"greedy": {name:
    standard error over the tasks}, ...}, "answered": {"greedy": {name: share of the responses that hold an
    answer, right or wrong}, ...}}. The names are data sets (domains where there is one set only), of a
    set with several domains also its parts ("short math"), "all": the mean over the tasks in domain (the
    paper's average), "out of domain": over those of --ood, and of several sets beside each "mean of sets".
    """
    import torch
    from tqdm import tqdm

    from data import answer_key, verify_batch
    from grpo import sample, uniform_noise

    config, rows, length = run.config, [], run.config.max_response_length
    size = 1 + config.eval_samples  # responses of a task
    temperature = 1.0 if config.eval_samples else 0.0
    kinds = {"greedy": slice(0, 1)} | ({"sampled": slice(1, size)} if size > 1 else {})
    several = len({task.dataset for task in tasks}) > 1
    mine = sorted(share(run, tasks), key=lambda task: len(run.render(task)))
    bar = tqdm(total=len(mine), desc="evaluate", leave=False, delay=10,
               disable=not run.accelerator.is_main_process)
    for first in range(0, len(mine), config.sample_batch_size):
        some = mine[first : first + config.sample_batch_size]
        prompts, found = [run.render(task) for task in some], {}
        noise = torch.full((len(some), size, length), -1.0)  # the first response of each is greedy
        if size > 1:
            noise[:, 1:] = uniform_noise(0, 0, [t.id for t in some], size - 1, length).view_as(noise[:, 1:])
        texts = sample(run.policy, run.tokenizer, prompts, size, length, temperature, noise.flatten(0, 1),
                       config.sample_batch_size, run.stop).texts
        asked = [task for task in some for _ in range(size)]
        answered = [float(key is not None) for key in map(answer_key, asked, texts)]
        judged = torch.tensor([verify_batch(asked, texts), answered], dtype=torch.float64).view(2, -1, size)
        for kind, places in kinds.items():
            found[kind], found[f"{kind} answered"] = judged[..., places].mean(-1).tolist()
        rows += [(task.dataset if several else task.domain, task.domain, *scores)
                 for task, *scores in zip(some, *found.values())]
        bar.update(len(some))
    bar.close()
    names, domains, *columns = zip(*sorted(gather(run, rows)))
    outside = set(names) - run.inside if several else set()
    return averages(names, domains, dict(zip(found, columns)), outside, several)


def averages(names: tuple[str, ...], domains: tuple[str, ...], columns: dict[str, tuple], outside: set[str],
             several: bool) -> dict:
    """The table that `evaluate` returns, of a name, a domain and scores (greedy, sampled, and of each which
    were answered) for each task."""
    counts, table = Counter(names), {"tasks": {}}
    for name in counts:
        table["tasks"][name] = counts[name]
        inside = Counter(domain for n, domain in zip(names, domains) if n == name)
        if len(inside) > 1:
            table["tasks"] |= {f"{name} {domain}": count for domain, count in inside.items()}
    averaged = {"all": [name for name in counts if name not in outside]}
    if outside:
        averaged["out of domain"] = [name for name in counts if name in outside]
    for title, sets in averaged.items():
        table["tasks"][title] = sum(counts[name] for name in sets)
    errors, answered = {}, {}
    for column, values in columns.items():
        kind, _, only_answered = column.partition(" ")
        of = {title: [v for n, d, v in zip(names, domains, values) if title in (n, f"{n} {d}")]
              for title in table["tasks"] if title not in averaged}
        of |= {title: [v for name in sets for v in of[name]] for title, sets in averaged.items()}
        means = {name: mean(scores) for name, scores in of.items()}
        if only_answered:
            answered[kind] = means
            continue
        table[kind] = means
        errors[kind] = {name: stdev(scores) / sqrt(len(scores))
                        for name, scores in of.items() if len(scores) > 1}
        for title, sets in averaged.items():
            if several and len(sets) > 1:
                table[kind][f"{title}, mean of sets"] = mean(table[kind][name] for name in sets)
    return table | {"errors": errors, "answered": answered}


def evaluate_model(config) -> dict:
    """Test accuracy of the model that config.model names: a run, a checkpoint or any causal LM. See
    `evaluate`."""
    run = start(config, training=False)
    _, test = load_data(run, training=False)
    scores = evaluate(run, test)
    if run.accelerator.is_main_process and config.output_dir:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        found = {"model": config.model, "dropped": run.dropped, **scores}
        write_json(Path(config.output_dir) / "evaluation.json", found)
    return scores


def run_evaluate(config) -> None:
    """`python train.py evaluate --model CHECKPOINT`: a table of test accuracy."""
    scores = evaluate_model(config)
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(accuracies({"": scores})))
