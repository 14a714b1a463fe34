"""Which labels to buy: of an experiment's tasks, those that keep theirs (--label_pick coverage), and for
people who have no labels yet, `python train.py pick`."""

import json
import re
from pathlib import Path

from lab.runs import Run, start, write_text
from lab.settings import check, new_folder


def coverage_order(run: Run, tasks: list) -> list[str]:
    """Ids of the tasks in the order in which their labels are worth most; only as many as --label_ratio
    keeps. No label is looked at."""
    from support.coverage import facility_location

    budget = max(1, round(run.config.label_ratio * len(tasks)))
    order, _ = facility_location(embed_queries(run, tasks), budget)
    return [tasks[row].id for row in order]


def embed_queries(run: Run, tasks: list):
    """The encoder's embeddings of the tasks' questions (n, d)."""
    import torch

    from grpo import forward_responses
    from lab.rollouts import tokenize_rollouts

    queries, size = [], 128
    for first in range(0, len(tasks), size):
        some = tasks[first : first + size]
        prompts = [run.render(task) for task in some]
        rollouts, hidden = tokenize_rollouts(run.tokenizer, prompts, [""] * len(some)), None
        if run.config.encoder == "policy":
            ids, mask = rollouts.ids.to(run.device), rollouts.attention_mask.to(run.device)
            model = run.policy if run.reference is None else run.reference
            with torch.no_grad():
                hidden = forward_responses(model, ids, mask, rollouts.mask.shape[1], hidden=True,
                                           batch_size=run.config.micro_batch_size).hidden
        queries.append(run.encode(some, rollouts, hidden)[0])
    return torch.cat(queries)


def pick(config) -> None:
    """`python train.py pick --tasks mine.jsonl`: the training tasks without a label in the order in which
    labels are worth most. Every prefix is a good budget; labels that are there already count as picked."""
    import torch

    from data import load_tasks
    from memreward import make_encoder
    from support.coverage import facility_location

    tasks = load_tasks(config.tasks, "train", None, config.seed)
    run = start(config, training=False)
    run.encode = make_encoder(config.encoder, run.tokenizer, run.device)
    picked = [row for row, task in enumerate(tasks) if task.labelled]
    check(len(picked) < len(tasks), f"tasks: every training task of {config.tasks} has its label already")
    queries = torch.nn.functional.normalize(embed_queries(run, tasks).float(), dim=-1)
    order, added = facility_location(queries, len(tasks) - len(picked), picked)
    nearest = queries.new_zeros(len(tasks))
    for row in picked:
        nearest = nearest.maximum(queries @ queries[row])
    lines, before = [], nearest.mean().item()
    for row, gain in zip(order, added, strict=True):
        cosines = queries @ queries[row]
        covers = (cosines > nearest + 1e-6).float().mean().item()  # tasks that had nothing as near before
        nearest = nearest.maximum(cosines)
        lines.append({"id": tasks[row].id, "question": tasks[row].question, "covers": round(covers, 4),
                      "adds": round(gain, 4), "coverage": round(nearest.mean().item(), 4)})
    folder = Path(config.output_dir or new_folder("pick"))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "picks.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(f"{len(tasks)} training tasks, {len(picked)} labelled; coverage (mean cosine to the nearest label) "
          f"{before:.3f}")
    shown = sorted({max(1, round(len(lines) * share)) for share in (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)})
    for count in shown:
        print(f"  with the first {count:>6} more labels  {lines[count - 1]['coverage']:.3f}")
    for line in lines[:10]:
        print(f"  {line['id']:<28} nearest to {line['covers']:6.1%}  {line['question'][:60]!r}")
    print(f"all in order of worth: {folder / 'picks.jsonl'}")
    names = [name.strip() for name in config.tasks.split(",")]
    if cut := [name for name in names if re.fullmatch(r".*(?<!_train)(?<!_test)\.jsonl", name)]:
        print(f"of {', '.join(cut)} three in ten labels will test instead of train; all will train from a "
              "NAME_train.jsonl, beside a NAME_test.jsonl with labels to test on")
