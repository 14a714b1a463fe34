"""A map of the memory: what it remembers and some of what it is asked, in two dimensions."""

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lab.explain import open_memory, split_tasks
from lab.figures import RIGHT, WRONG, new_figure, save
from lab.log import Stopwatch
from lab.runs import Run
from lab.settings import check

ASKED = 100  # unlabelled tasks whose rollouts are predicted


def draw_map(config, roll_out: Callable) -> None:
    """`python train.py map RUN`: remembered rollouts, and those of the initial policy on unlabelled tasks,
    coloured by reward, with a ring where the prediction is wrong; a panel for each domain. Where many are
    wrong the commonest words of the questions are told. `roll_out` is train.py's."""
    import torch

    run = open_memory(config)
    truth, unlabelled = split_tasks(run)
    asked = [task for task in unlabelled if task.labelled][:ASKED]
    check(asked, f"resume: {config.resume} has no task whose hidden label is known, to compare with")
    parts = [ask(run, roll_out, asked[first : first + 16]) for first in range(0, len(asked), 16)]
    vectors, rewards, believed, nearest = (torch.cat(column) for column in zip(*parts))
    wrong = (believed > config.threshold) != (rewards > 0.5)
    tasks, known = [task for task in asked for _ in range(config.group_size)], stack(run.memory.groups)
    domains = sorted({task.domain for task in asked})
    homes = [truth[name].domain for name in run.memory.ids for _ in range(run.memory.rewards.shape[1])]
    figure, panels = new_figure(5 * len(domains), 5.5, 1, len(domains))
    for axes, domain in zip(panels, domains):
        old = torch.tensor([home == domain for home in homes])
        new = torch.tensor([task.domain == domain for task in tasks])
        points = components(torch.cat([known[old], vectors[new]])).tolist()
        count = int(old.sum())
        scatter(axes, points[:count], run.memory.rewards.flatten().cpu()[old].tolist(), 16, "remembered")
        scatter(axes, points[count:], rewards[new].tolist(), 55, "asked")
        missed = [point for point, miss in zip(points[count:], wrong[new].tolist()) if miss]
        axes.scatter(*zip(*missed or [(math.nan, math.nan)]), s=150, facecolors="none", edgecolors="black",
                     linewidths=1.5, label=f"predicted wrongly: {len(missed)} of {int(new.sum())}")
        questions = [task.question for task, here in zip(tasks, new.tolist()) if here]
        for (x, y), words, share, size in regions(
                points[count:], wrong[new].tolist(), questions, nearest[new].tolist()):
            axes.annotate(f"{', '.join(words)}: {share:.0%}", (x, y), fontsize=10, ha="center",
                          bbox={"facecolor": "white", "edgecolor": "black", "alpha": 0.85, "pad": 2})
            print(f"{domain}: wrong in {share:.0%} of {size} rollouts about {', '.join(words)}")
        axes.set(title=domain, xticks=[], yticks=[])
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.02))
    print(save(figure, Path(config.resume) / "map.png"))


def scatter(axes, points: list, rewards: list[float], size: int, name: str) -> None:
    """Draw some rollouts by their reward."""
    for (colour, mark), right in ((RIGHT, True), (WRONG, False)):
        chosen = [point for point, reward in zip(points, rewards) if (reward > 0.5) == right]
        axes.scatter(*zip(*chosen or [(math.nan, math.nan)]), s=size, c=colour, marker=mark, alpha=0.6,
                     linewidths=0, label=f"{name}, {'right' if right else 'wrong'}")


def ask(run: Run, roll_out: Callable, tasks: list) -> tuple:
    """Of the initial policy's rollouts of some tasks: vectors (n, 3d), true rewards, predictions, and the
    number of the nearest remembered query (n,)."""
    import torch

    from data import verify_batch
    from memreward import predict_rewards

    size, visits = run.config.group_size, [f"{task.id} map" for task in tasks]
    experience = roll_out(run, tasks, visits, 0, Stopwatch())
    pairs = [task for task in tasks for _ in range(size)]
    truth = torch.tensor(verify_batch(pairs, experience.rollouts.texts))
    believed = predict_rewards(run.memory, experience.groups, experience.keys).flatten()
    queries = torch.nn.functional.normalize(experience.groups.queries, dim=-1)
    nearest = (queries.to(run.memory.groups.queries) @ run.memory.groups.queries.T).argmax(1)
    return stack(experience.groups), truth, believed, nearest.repeat_interleave(size).cpu()


def stack(groups):
    """[query, thinking, answer] of each rollout of M groups, (M*G, 3d)."""
    import torch

    queries = groups.queries[:, None].expand_as(groups.thinkings)
    return torch.cat([queries, groups.thinkings, groups.answers], dim=-1).flatten(0, 1).cpu()


def components(vectors):
    """Coordinates (n, 2) along the first two principal components, whose largest entries are positive."""
    import torch

    centred = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    first = directions[:2]
    signs = first.gather(1, first.abs().argmax(1, keepdim=True)).sign()
    return centred @ (first * signs).T


def regions(points: list, wrong: list[bool], questions: list[str], nearest: list,
            least: int = 8) -> list[tuple]:
    """Where predictions are wrong: rollouts with the same nearest remembered query, at least so many, of
    which more than a third are wrong; the worst three. For each the middle of its points, three words that
    stand in its questions more often than elsewhere, the share that is wrong, and how many there are."""
    cells: dict[int, list[int]] = {}
    for number, query in enumerate(nearest):
        cells.setdefault(query, []).append(number)
    everywhere, found = Counter(word for text in set(questions) for word in words_of(text)), []
    for members in cells.values():
        share = sum(wrong[n] for n in members) / len(members)
        if len(members) >= least and share > 1 / 3:
            middle = tuple(sum(points[n][axis] for n in members) / len(members) for axis in (0, 1))
            here = Counter(word for text in {questions[n] for n in members} for word in words_of(text))
            best = sorted(here, key=lambda word: (-(here[word] ** 2) / everywhere[word], word))
            found.append((middle, best[:3], share, len(members)))
    return sorted(found, key=lambda region: -region[2] * region[3])[:3]


def words_of(text: str) -> set[str]:
    """The words of a question that may name its kind: lower case, of four letters or more.

    >>> sorted(words_of("Ann has 12 boxes of pears."))
    ['boxes', 'pears']
    """
    return set(re.findall(r"\b[a-z]{4,}\b", text))
