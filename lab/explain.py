"""Why rollouts got their predicted rewards: what the memory listened to."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lab.log import Stopwatch
from lab.runs import load_data, start
from lab.settings import check


def explain(config, roll_out: Callable) -> None:
    """`python train.py explain RUN`: why rollouts get their predicted rewards; of an unlabelled task of
    each domain, those of the initial policy with the highest and the lowest. `roll_out` is train.py's."""
    from data import hide_labels, verify

    check(config.resume, "explain: name a run folder: python train.py explain RUN")
    newest = max((Path(config.resume) / "checkpoints").glob("*"), default=None)
    check(config.mode == "memreward" and newest, f"explain: {config.resume} has no memory in a checkpoint")
    run = start(config)
    run.memory.load(newest / "memory.pt", run.device)
    everything, _ = load_data(run)
    truth = {task.id: task for task in everything}
    hidden = hide_labels(everything, config.label_ratio, config.seed)
    unlabelled = {task.domain: task for task in hidden if not task.labelled}
    check(unlabelled, f"explain: every task of {config.resume} has its label, so no reward is predicted")
    visits = [f"{task.id} explain" for task in unlabelled.values()]
    experience = roll_out(run, list(unlabelled.values()), visits, 0, Stopwatch())
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
            right = truth[task.id].labelled and verify(truth[task.id], group[g])
            known = f" (the hidden label says {right:.0f})" if truth[task.id].labelled else ""
            known += " (no answer)" if experience.keys[b][g] is None else ""
            print(*trace_lines([trace[g]], [group[g] + known]), sep="\n")


def trace_lines(trace: list[dict], titles: Sequence[str]) -> list[str]:
    """`ExperienceMemory.explain` for the terminal; a title for each rollout, such as its answer.

    >>> query = {"id": "q7", "cosine": 0.9, "rewards": [1.0, 0.0], "moved": 1.25}
    >>> near = {"id": "q7", "rollout": 0, "cosine": 0.8, "reward": 1.0}
    >>> rollout = {"probability": 0.7, "queries": [query], "thinkings": [near], "answers": []}
    >>> print(*trace_lines([rollout], ["#### 8"]), sep="\\n")
    predicted reward 0.70: #### 8
      near query     cosine 0.90  moved the logit by +1.25  rewards 1 0  q7
      like thinking  cosine 0.80  reward 1  rollout 0 of q7
    """
    lines = []
    for rollout, title in zip(trace, titles, strict=True):
        lines.append(f"predicted reward {rollout['probability']:.2f}: {' '.join(title.split())}")
        for query in rollout["queries"]:
            rewards = " ".join(f"{reward:.0f}" for reward in query["rewards"])
            lines.append(f"  near query     cosine {query['cosine']:.2f}  "
                         f"moved the logit by {query['moved']:+.2f}  rewards {rewards}  {query['id']}")
        near = [(kind, other) for kind in ("thinking", "answer") for other in rollout[f"{kind}s"]]
        lines += [f"  like {kind:<9} cosine {other['cosine']:.2f}  reward {other['reward']:.0f}  "
                  f"rollout {other['rollout']} of {other['id']}" for kind, other in near]
    return lines
