"""What a run's memory believes, and why: `explain` (a few rollouts), `map` (all of them), `score` (your
own)."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.figures import draw_neighbourhood
from lab.log import Stopwatch
from lab.runs import Run, checkpoints_of, load_data, start
from lab.samples import shorten
from lab.settings import check


def open_memory(config) -> Run:
    """A run's policy at its start, and its memory as the newest checkpoint has it."""
    check(config.resume, "resume: name a run folder, as in: python train.py explain RUN")
    newest = max(checkpoints_of(Path(config.resume)), default=None)
    check(config.mode == "memreward" and newest, f"resume: {config.resume} has no memory in a checkpoint")
    run = start(config)
    run.memory.load(newest / "memory.pt", run.device)
    return run


def split_tasks(run: Run) -> tuple[dict, list]:
    """All training tasks by id with what labels the data has, and those that the run did not see the label
    of."""
    everything, _ = load_data(run)
    chosen = json.loads((Path(run.config.resume) / "tasks.json").read_text())
    truth = {task.id: task for task in everything}
    check(set(chosen["unlabelled"] + chosen["labelled"]) <= truth.keys(),
          f"tasks: {run.config.tasks} lacks some of {run.config.resume}: the data changed since it began")
    unlabelled = [truth[name] for name in chosen["unlabelled"]]
    check(unlabelled, f"resume: every task of {run.config.resume} has its label, so no reward is predicted")
    return truth, unlabelled


def explain(config, roll_out: Callable) -> None:
    """`python train.py explain RUN`: why rollouts get their predicted rewards; of an unlabelled task of each
    domain, those of the initial policy with the highest and the lowest. `roll_out` is train.py's."""
    from data import verify

    run = open_memory(config)
    truth, unlabelled = split_tasks(run)
    tasks = list({task.domain: task for task in unlabelled}.values())
    experience = roll_out(run, tasks, [f"{task.id} explain" for task in tasks], 0, Stopwatch())
    for b, task in enumerate(tasks):
        group = experience.rollouts.texts[b * config.group_size : (b + 1) * config.group_size]
        trace = explained(run, experience.groups, experience.keys[b], b)
        for query in (query for rollout in trace for query in rollout["queries"]):
            query["question"] = truth[query["id"]].question
        order = sorted(range(len(group)), key=lambda g: trace[g]["probability"])
        print(f"\n{task.id}: {task.question}")
        for g in dict.fromkeys((order[-1], order[0])):
            true = {True: "yes", False: "no"}[verify(task, group[g]) == 1] if task.labelled else "unknown"
            print(*trace_lines([trace[g]], [group[g]], [true]), sep="\n")
            if config.figure and g == order[-1]:
                path = Path(config.resume) / f"explain-{task.domain}.png"
                print(f"  drawn in {draw_neighbourhood(trace[g], task.question, group[g], true, path)}")


def explained(run: Run, groups, keys: Sequence[str | None], b: int) -> list[dict]:
    """`ExperienceMemory.explain` of group b, with the groups of one memory query taken together; what has no
    answer is wrong, as in `predict_rewards`."""
    trace = run.memory.explain(*(part[b] for part in groups))
    for rollout, key in zip(trace, keys):
        queries: dict[str, dict] = {}
        for query in rollout["queries"]:  # the groups of an id are hidden together, so they moved the same
            seen = queries.setdefault(query["id"], query | {"rewards": []})
            seen["rewards"] = seen["rewards"] + query["rewards"]
        rollout["queries"] = list(queries.values())
        rollout["answered"] = key is not None
        rollout["probability"] *= key is not None
    return trace


def trace_lines(trace: list[dict], responses: Sequence[str], truly: Sequence[str]) -> list[str]:
    """`ExperienceMemory.explain` for the terminal, with each response and whether it is truly right (yes, no,
    unknown); neighbours that are told apart by nothing but their id are one line.

    >>> query = {"id": "q7", "cosine": 0.9, "rewards": [1.0, 0.0], "moved": 1.25, "question": "3 + 5?"}
    >>> near = [{"id": "q7", "rollout": n, "cosine": 0.8, "reward": 1.0} for n in (0, 2)]
    >>> rollout = {"probability": 0.7, "queries": [query], "thinkings": near, "answers": []}
    >>> print(*trace_lines([rollout], ["#### 8"], ["yes"]), sep="\\n")
    predicted reward 0.70, truly right: yes
      response       #### 8
      near query     cosine 0.90  moved the logit by +1.25  rewards 1 0  q7  3 + 5?
      like thinking  cosine 0.80  reward 1  2 rollouts of q7
    """
    lines = []
    for rollout, response, true in zip(trace, responses, truly, strict=True):
        none = "" if rollout.get("answered", True) else " (no answer)"
        lines.append(f"predicted reward {rollout['probability']:.2f}{none}, truly right: {true}")
        lines.append(f"  response       {shorten(response, 90, end=True)}")
        for query in rollout["queries"]:
            rewards = " ".join(f"{reward:.0f}" for reward in query["rewards"])
            about = shorten(query.get("question", ""), 60)
            lines.append(f"  near query     cosine {query['cosine']:.2f}  moved the logit by "
                         f"{query['moved']:+.2f}  rewards {rewards}  {query['id']}  {about}".rstrip())
        for kind in ("thinking", "answer"):
            near = [(round(one["cosine"], 2), one["reward"], one["id"]) for one in rollout[f"{kind}s"]]
            for (cosine, reward, name), count in Counter(near).items():
                lines.append(f"  like {kind:<9} cosine {cosine:.2f}  reward {reward:.0f}  "
                             f"{count} rollout{'s' * (count > 1)} of {name}")
    return lines


# ------------------------------------------------------------------------------------------------ score


def score(config) -> None:
    """`python train.py score RUN FILE`: what the memory of a run thinks of responses of your own. Every line
    of the file is a task with `responses`, a list of texts; FILE.scored.jsonl has them with probabilities and
    why."""
    from data import read_jsonl
    from support.jsonl import json_lines

    check(config.rollouts, "score: name a file: python train.py score RUN FILE")
    path = Path(config.rollouts)
    check(path.is_file(), f"score: no file {path}")
    tasks = read_jsonl(path)
    rows = [row for _, row in json_lines(path)]
    for row in rows:
        texts = row.get("responses")
        check(isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts),
              f'score: {path}: every line needs "responses", a list of texts; task {row.get("id")} has none')
    check(rows, f"score: {path} is empty")
    run = open_memory(config)
    results = []
    for task, row in zip(tasks, rows, strict=True):
        trace = score_task(run, task, row["responses"])
        scores = [{"response": text, **one} for text, one in zip(row["responses"], trace)]
        results.append({**row, "scores": scores})
        print(f"\n{task.id}: {shorten(task.question, 90)}")
        for text, one in zip(row["responses"], trace):
            near = one["queries"][0] if one["queries"] else {"cosine": math.nan, "id": "nothing"}
            print(f"  {one['probability']:.2f}  {shorten(text, 70, end=True)}  (nearest: {near['id']}, "
                  f"cosine {near['cosine']:.2f})")
    target = path.with_suffix(".scored.jsonl")
    lines = [json.dumps(result, ensure_ascii=False) + "\n" for result in results]
    target.write_text("".join(lines), encoding="utf-8")
    print(f"\nprobabilities and why: {target}")


def score_task(run: Run, task, responses: list[str]) -> list[dict]:
    """`ExperienceMemory.explain` of responses to one task that anybody wrote."""
    import torch

    from data import answer_key
    from gnn import Groups
    from grpo import forward_responses
    from lab.rollouts import tokenize_rollouts
    from memreward import answer_features

    config = run.config
    rollouts = tokenize_rollouts(run.tokenizer, [run.render(task)], responses)
    with torch.no_grad():
        reference = forward_responses(
            run.reference, rollouts.ids.to(run.device), rollouts.attention_mask.to(run.device),
            rollouts.mask.shape[1], 1.0, config.encoder == "policy", config.micro_batch_size)
    keys = [[answer_key(task, text) for text in responses]]
    nodes = run.encode([task], rollouts, reference.hidden)
    features = answer_features([task], [responses], keys, reference.logprobs, rollouts.mask.to(run.device),
                               config.features.split(","))
    groups = Groups(*(node.to(features) for node in nodes), features)
    return explained(run, groups, keys[0], 0)
