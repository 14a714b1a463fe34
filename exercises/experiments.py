"""Experiments, and three open questions: each is one command of minutes, and its table answers a question.

    python exercises/experiments.py exploit      # what a policy learns if no answer can earn a reward
    python exercises/experiments.py majority     # why the vote of a group fails
    python exercises/experiments.py noise        # wrong labels: by chance, or always the same
    python exercises/experiments.py graph        # when neighbours help, and when not: before any training
    python exercises/experiments.py kinds        # a kind of question that no network was fitted on
    python exercises/experiments.py open1        # open: beat the memory at 5 % labels
    python exercises/experiments.py open2        # open: notice a kind of question without a label
    python exercises/experiments.py open3        # open: make edges beat the MLP where all kinds are fitted

All but `exploit` need no model: responses are drawn from the small world's own demonstrations, which the
built-in policy has learnt to imitate. --seed draws other ones; --tasks makes it quick and rough.
"""

import argparse
import itertools
import random
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch import Tensor

import memreward
import train
from data import answer_key, small_world
from gnn import Groups, edge_weights, knn, metrics, receive_messages, similarity_edges
from support import world

SIZE = 8  # responses to a question
FEATURES = ["parsed", "agreement", "overlap", "coverage", "sound"]


class Sample:
    """`count` questions with SIZE responses each: families, texts, answer keys, rewards (B, G), groups."""

    def __init__(self, count: int, seed: int):
        items = list(itertools.islice(small_world("train", seed), count))
        draw = random.Random(f"draw {seed}")
        self.tasks, self.families = [item.task for item in items], [item.family for item in items]
        self.texts = [[item.draw(draw) for _ in range(SIZE)] for item in items]
        self.rewards = torch.tensor([[float(text == item.right) for text in texts]
                                     for item, texts in zip(items, self.texts)])
        self.keys = [[answer_key(task, text) for text in texts]
                     for task, texts in zip(self.tasks, self.texts)]
        flat = SimpleNamespace(texts=[text for texts in self.texts for text in texts])
        features = memreward.answer_features(self.tasks, self.texts, self.keys, None, None, FEATURES)
        self.groups = Groups(*memreward.make_encoder("hash", None)(self.tasks, flat), features)

    def rows(self, families=None, count: int | None = None, seed: int = 0) -> Tensor:
        """Row numbers of questions of these families (None: all), or `count` of them, drawn by the seed."""
        rows = [row for row, family in enumerate(self.families) if families is None or family in families]
        return torch.tensor(random.Random(f"rows {seed}").sample(rows, len(rows) if count is None else count))

    def rest(self, rows: Tensor) -> Tensor:
        """The other row numbers."""
        return torch.tensor(sorted(set(range(len(self.tasks))) - set(rows.tolist())))

    def memory(self, rows: Tensor, rewards: Tensor | None = None, gnn: str = "mixed", seed: int = 0):
        """An experience memory of these questions, fitted; rewards (B, G): None for the true ones."""
        memory = memreward.ExperienceMemory(train.Config(gnn=gnn))
        self.remember(memory, rows, self.rewards if rewards is None else rewards)
        memory.fit(seed)
        return memory

    def remember(self, memory, rows: Tensor, rewards: Tensor) -> None:
        """Put questions with their responses' rewards into a memory."""
        memory.remember([self.tasks[row].id for row in rows], *self.groups.rows(rows), rewards[rows])

    def auc(self, memory, rows: Tensor) -> float:
        """How well a memory tells right from wrong responses to these questions."""
        return metrics(memory.predict(*self.groups.rows(rows)).flatten(), self.rewards[rows].flatten())["auc"]


def line(*cells) -> None:
    """A line of a table."""
    cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("".join(f"{cell:>16}" for cell in cells), flush=True)


# ------------------------------------------------------------------------------------------------ experiments


def exploit(count: int, seed: int) -> None:
    """Two runs: as it is, and without the rule that a response without an answer earns 0."""
    rule, unanswered, root = memreward.predict_rewards, [], time.strftime("runs/exploit_%H-%M-%S")

    def watched(predict):
        def predict_rewards(memory, groups, keys, exclude=None):
            unanswered.append(statistics.mean(key is None for group in keys for key in group))
            return predict(memory, groups, keys, exclude)
        return predict_rewards

    def without_rule(memory, groups, keys, exclude=None):
        return memory.predict(*groups, exclude=exclude).cpu()

    line("rule", "step", "no answer", "predicted right", "false rewards", "sampled acc.")
    for name, predict in (("as it is", rule), ("taken out", without_rule)):
        memreward.predict_rewards, unanswered[:] = watched(predict), []
        folder = Path(root, name.replace(" ", "_"))
        every = max(1, count // 4)
        results = train.train(train.Config(
            train_tasks=120, test_tasks=60, steps=4 * every, eval_every=every, eval_samples=1, gnn_epochs=60,
            label_ratio=0.1, reward="soft", learning_rate=6e-4,  # few labels, large steps: it happens sooner
            seed=seed, show=0, output_dir=str(folder)))
        for number, row in enumerate(results["evaluations"][1:], 1):
            part = unanswered[(number - 1) * len(unanswered) // 4 : number * len(unanswered) // 4]
            line(name, row["step"], statistics.mean(part), row["audit"]["accuracy"], row["audit"]["fp_rate"],
                 row["sampled"]["all"])
        print(f"its picture: python train.py plot {folder}")
    memreward.predict_rewards = rule


def majority(count: int, seed: int) -> None:
    """The vote against the share of wrong responses that make the same mistake."""
    line("MISCONCEPTION", "right", "rewards right", "vote right", "if 3 of 8 are")
    before = world.MISCONCEPTION
    for share in (0.0, 0.3, 0.5, 0.7, 0.85, 1.0):
        world.MISCONCEPTION = share
        sample, agree, won, few = Sample(count, seed), [], [], []
        for keys, rewards in zip(sample.keys, sample.rewards.bool().tolist()):
            most = memreward.majority_key(keys)
            agree += [(key == most) == right for key, right in zip(keys, rewards)]
            won.append((most, True) in zip(keys, rewards))
            few += won[-1:] * (sum(rewards) == 3)  # a minority, and yet it may win where errors differ
        line(share, sample.rewards.mean().item(), *map(statistics.mean, (agree, won, few or [0])))
    world.MISCONCEPTION = before


def noise(count: int, seed: int) -> None:
    """AUC of a memory whose labels are wrong at equal rates: any of them, or always the typical mistake."""
    sample = Sample(count, seed)
    asked = sample.rest(known := sample.rows(count=count // 2, seed=seed))
    wrong = [max((key for key, right in zip(keys, rewards) if not right), default=None, key=keys.count)
             for keys, rewards in zip(sample.keys, sample.rewards.bool().tolist())]
    typical = torch.tensor([[key is not None and key == most for key in keys]
                            for keys, most in zip(sample.keys, wrong)])  # (B, G)
    line("wrong labels", "by chance", "systematic")
    for share in (0.0, 0.1, 0.2, 0.3):
        draw = torch.Generator().manual_seed(seed)
        chance = torch.rand(sample.rewards.shape, generator=draw) < share
        order, families = torch.zeros_like(chance), sorted(set(sample.families))
        random.Random(seed).shuffle(families)
        for family in families:  # whole kinds whose mistake passes for right, until the rate is reached
            if order[known].float().mean() < share:
                mine = torch.tensor([name == family for name in sample.families])
                order |= typical & mine[:, None]
        aucs = [sample.auc(sample.memory(known, torch.where(flip, 1 - sample.rewards, sample.rewards)), asked)
                for flip in (chance, order)]
        line(f"{chance[known].float().mean():.2f} {order[known].float().mean():.2f}", *aucs)


def graph(count: int, seed: int) -> None:
    """Before any training: does what neighbours say tell more than what a response says itself?"""
    sample = Sample(count, seed)
    half = sorted(set(sample.families))[::2]
    line("labelled kinds", "asked kinds", "own AUC", "graph AUC", "gain", "t")
    for name, known_kinds, asked_kinds in (("all", None, None), ("half", half, half),
                                           ("half", half, set(sample.families) - set(half))):
        own, heard = [], []
        for split in range(10):
            known = sample.rows(known_kinds, len(sample.rows(known_kinds)) // 3, seed=split)
            asked = sample.rows(asked_kinds)
            asked = asked[~torch.isin(asked, known)]
            old, new = sample.groups.rows(known), sample.groups.rows(asked)
            truth = sample.rewards[asked].flatten()
            x, z = (torch.cat([part.answers, part.features, 1 + 0 * part.features[..., :1]], -1)
                    .flatten(0, 1).double() for part in (old, new))  # what a response says itself
            y = sample.rewards[known].flatten().double()
            ridge = x.T @ torch.linalg.solve(x @ x.T + torch.eye(len(x)).double(), y)
            own.append(metrics(z @ ridge, truth)["auc"])
            labels = sample.rewards[known][..., None]  # (M, G, 1)
            votes = [receive_messages(labels, senders, edge_weights(cosines))[..., 0]
                     for senders, cosines in similarity_edges(new, old, 3)[1:]]  # of thinkings, of answers
            heard.append(metrics(sum(votes).flatten(), truth)["auc"])
        gains = [b - a for a, b in zip(own, heard)]
        line(name, "the same" if asked_kinds is known_kinds else "the others",
             statistics.mean(own), statistics.mean(heard), statistics.mean(gains),
             statistics.mean(gains) / (statistics.stdev(gains) / len(gains) ** 0.5 or 1e-9))


def kinds(count: int, seed: int) -> None:
    """AUC on kinds that no network was fitted on, once some questions of each are remembered; no new fit."""
    sample = Sample(count, seed)
    new = sorted(set(sample.families))[::4]
    old = sorted(set(sample.families) - set(new))
    pool = {family: sample.rows([family], seed=seed).tolist() for family in new}
    counts = [n for n in (0, 1, 2, 4) if n < min(map(len, pool.values()))]
    asked = torch.tensor([row for rows in pool.values() for row in rows[max(counts) :]])
    line("network", *(f"{n} remembered" for n in counts))
    for gnn in ("gcn", "mlp", "mixed"):
        memory, aucs = sample.memory(sample.rows(old), gnn=gnn, seed=seed), []
        for before, n in zip([0, *counts], counts):
            rows = [row for rows in pool.values() for row in rows[before:n]]
            if rows:
                sample.remember(memory, torch.tensor(rows), sample.rewards)
            aucs.append(sample.auc(memory, asked))
        line(gnn, *aucs)


# --------------------------------------------------------------------------------------------- open questions


def open1(count: int, seed: int) -> None:
    """AUC on unlabelled questions with 5 % labels; baseline: the memory. Write a better `predict`."""
    line("seed", "labels", "memory AUC")
    found = []
    for split in range(seed, seed + 3):
        sample = Sample(count, split)
        known = sample.rows(count=max(6, count // 20), seed=split)
        found.append(sample.auc(sample.memory(known, seed=split), sample.rest(known)))
        line(split, len(known), found[-1])
    line("mean", "", statistics.mean(found))


def open2(count: int, seed: int) -> None:
    """AUC of telling questions whose kind has no label from others; baseline: cosine to the nearest label."""
    line("seed", "labels", "baseline AUC")
    found = []
    for split in range(seed, seed + 3):
        sample = Sample(count, split)
        covered = sorted(set(sample.families))[split % 2 :: 2]
        known = sample.rows(covered, count // 10, seed=split)
        asked = sample.rest(known)
        _, cosines = knn(sample.groups.queries[asked], sample.groups.queries[known], 1)
        truth = torch.tensor([float(sample.families[row] not in covered) for row in asked])
        found.append(metrics(-cosines[:, 0], truth)["auc"])
        line(split, len(known), found[-1])
    line("mean", "", statistics.mean(found))


def open3(count: int, seed: int) -> None:
    """AUC where every kind has labels, of networks with edges and without. Make the first the larger."""
    line("seed", "labels", "edges (gcn)", "no edges (mlp)")
    found = []
    for split in range(seed, seed + 3):
        sample = Sample(count, split)
        asked = sample.rest(known := sample.rows(count=2 * count // 5, seed=split))
        found.append([sample.auc(sample.memory(known, gnn=gnn, seed=split), asked) for gnn in ("gcn", "mlp")])
        line(split, len(known), *found[-1])
    line("mean", "", *map(statistics.mean, zip(*found)))


EXPERIMENTS = {f.__name__: (f, count) for f, count in [
    (exploit, 60), (majority, 300), (noise, 300), (graph, 300), (kinds, 300), (open1, 400), (open2, 400),
    (open3, 300)]}


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--tasks", type=int, help="questions, of exploit training steps")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run, usual = EXPERIMENTS[given.name]
    run(given.tasks or usual, given.seed)
