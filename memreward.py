"""The experience memory: rollouts with known rewards, which predict those of rollouts nobody verified."""

import ast
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Task, extract_code, split_response, verify_batch
from gnn import Groups, RewardGNN, RewardMLP, fit, fold_ids, same_rollouts, seeded, sending, similarity_edges
from support.answers import LETTERS
from support.calibration import calibrate
from support.encoders import make_embedder, mentions, signature
from support.sandbox import parse_code


class ExperienceMemory:
    """Groups of rollouts with known rewards, and the networks that carry these rewards to groups without any.

    The logit of a rollout is w . [mean logit of the networks, its features, 1]; w is fitted on logits of
    networks that were not trained on that query's rewards, so that it calibrates (Platt) with the labels
    there are. `config` is any object with neighbors (k), groups_per_query, gnn and all settings gnn_*. Only
    the direction of embeddings counts. The first `remember` settles their width d, the group size G, the
    number of features f and the device.
    """

    def __init__(self, config):
        self.config, self.models, self.ids = config, [], []  # ids: the query each group belongs to
        self.groups = self.rewards = self.weights = self.scale = None

    def __len__(self) -> int:
        return len(self.ids)

    def remember(self, ids: list[str], queries: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor,
                 rewards: Tensor) -> None:
        """Append groups: queries (B, d), thinkings and answers (B, G, d), features (B, G, f), rewards (B, G)
        of 0 or 1.

        Of one id only the newest `groups_per_query` groups stay. After `fit` they act at once.
        """
        new = self._groups(queries, thinkings, answers, features)
        new = new._replace(thinkings=new.thinkings.half(), answers=new.answers.half())  # most of the memory
        if len(ids) != len(queries) or rewards.shape != thinkings.shape[:2]:
            raise ValueError(f"remember wants an id and G rewards a query, {tuple(thinkings.shape[:2])} in "
                             f"all, got {len(ids)} ids and rewards {tuple(rewards.shape)}")
        if not ((rewards == 0) | (rewards == 1)).all():
            raise ValueError("remember wants rewards that are 0 or 1")
        rewards = rewards.detach().float().to(new.queries.device)
        if self.groups is None:
            self.groups, self.rewards = new.rows(slice(0)), rewards[:0]
        elif new.thinkings.shape[1] != self.rewards.shape[1]:
            raise ValueError(f"this memory holds groups of {self.rewards.shape[1]} rollouts, "
                             f"got {thinkings.shape[1]}")
        ids = self.ids + list(ids)
        kept = newest(ids, self.config.groups_per_query)
        self.ids = [ids[row] for row in kept]
        self.rewards = torch.cat([self.rewards, rewards])[kept]
        self.groups = Groups(*(torch.cat(pair)[kept] for pair in zip(self.groups, new)))

    def fit(self, seed: int, without: Collection[str] = ()) -> list[list[dict]]:
        """Train new networks on the whole memory and calibrate them; returns histories of `gnn.fit`.

        Every network stops early on another fifth of the queries, and its logits of these calibrate
        (cross-fitting; the weights are used on the networks' mean): with five networks all labels train, stop
        and calibrate, and no label outside the memory is used. Groups of the ids in `without` take no part;
        afterwards they send like all others.
        """
        if not set(self.ids) - set(without):
            raise ValueError("the memory is empty: remember labelled rollouts before fit")
        config = self.config
        rows = torch.tensor([row for row, id in enumerate(self.ids) if id not in without])
        std, mean = torch.std_mean(self.groups.features[rows].flatten(0, 1), dim=0, correction=0)
        self.scale = mean, std.masked_fill(std < 1e-6, math.inf)  # a feature that never varies says nothing
        groups = self._scaled(Groups(*(part[rows].float() for part in self.groups)))
        rewards, ids = self.rewards[rows], self._numbers(self.ids)[rows]
        with seeded(seed, rewards.device):
            folds = fold_ids(ids, max(5, config.gnn_networks))
            self.models = [self._network(number) for number in range(config.gnn_networks)]
        inputs = rewards.new_zeros(*rewards.shape, groups.features.shape[-1] + 2)
        histories = [fit(model, groups, rewards, ids, config.neighbors, folds == fold, config.gnn_epochs,
                         config.gnn_patience, config.gnn_learning_rate, config.gnn_weight_decay, seed + fold)
                     for fold, model in enumerate(self.models)]
        with torch.inference_mode():
            itself = same_rollouts(groups)  # hidden, as in training
            edges = similarity_edges(groups, groups, config.neighbors, itself, ids)
            for fold, model in enumerate(self.models):
                logits = model.receive(groups, model.send(groups, rewards), edges)
                inputs[folds == fold] = self._inputs(logits, groups)[folds == fold]
        held_out = (folds >= 0) & (folds < len(self.models))
        self.weights = calibrate(inputs[held_out].flatten(0, 1), rewards[held_out].flatten())
        return histories

    def predict(self, queries: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor,
                exclude: list[str] | None = None) -> Tensor:
        """Probability (B, G) that each rollout is right, row by row: the rest of a batch changes nothing.

        `exclude` names an id (or None) for each query: all memory groups of that id are hidden from this
        query.
        """
        groups = self._groups(queries, thinkings, answers, features)
        exclude = [None] * len(queries) if exclude is None else exclude
        if len(exclude) != len(queries):
            raise ValueError(f"exclude wants an id or None for each of {len(queries)} queries, "
                             f"got {len(exclude)}")
        return self._judge(groups, self._hidden(exclude))[0].sigmoid()

    def explain(self, query: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor,
                exclude: str | None = None) -> list[dict]:
        """Why each of G rollouts of one query (d,) got its probability, as plain numbers; thinkings (G, d)
        and so on.

        One dict a rollout: probability; queries, the nearest in the memory, best first (id, cosine, rewards,
        and moved: by how much the logit falls when this id is hidden too); thinkings and answers, the memory
        rollouts it listens to (id, rollout, cosine, reward).
        """
        group = self._groups(*(part[None] for part in (query, thinkings, answers, features)))
        hidden = self._hidden([exclude])
        logits, edges = self._judge(group, hidden)
        pairs = zip(*(part[0].tolist() for part in edges[0]))
        nearest = [(row, cosine) for row, cosine in pairs if math.isfinite(cosine)]
        without = hidden | self._hidden([self.ids[row] for row, _ in nearest])  # (k, M)
        copies = group.rows(torch.zeros(len(nearest), dtype=torch.long))
        moved = logits - self._judge(copies, without)[0]  # (k, G)
        size = self.rewards.shape[1]

        def rollouts(senders: Tensor, cosines: Tensor) -> list[dict]:
            return [{"id": self.ids[row // size], "rollout": row % size, "cosine": cosine,
                     "reward": self.rewards.view(-1)[row].item()}
                    for row, cosine in zip(senders.tolist(), cosines.tolist()) if math.isfinite(cosine)]

        return [{"probability": logits[0, g].sigmoid().item(),
                 "queries": [{"id": self.ids[row], "cosine": cosine, "rewards": self.rewards[row].tolist(),
                              "moved": moved[n, g].item()} for n, (row, cosine) in enumerate(nearest)],
                 "thinkings": rollouts(edges[1][0][0, g], edges[1][1][0, g]),
                 "answers": rollouts(edges[2][0][0, g], edges[2][1][0, g])} for g in range(len(thinkings))]

    def save(self, path: str | os.PathLike) -> None:
        """Write memory and networks to one file; an interrupted save leaves the old file whole."""
        models = [model.state_dict() for model in self.models]
        torch.save({"ids": self.ids, "groups": self.groups and list(self.groups), "rewards": self.rewards,
                    "models": models, "weights": self.weights, "scale": self.scale,
                    "shape": self._shape()}, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def load(self, path: str | os.PathLike, device: str | torch.device = "cpu") -> "ExperienceMemory":
        """Become the memory that `save` wrote, bit for bit; the config must ask for its networks."""
        state = torch.load(path, map_location=device, weights_only=True)
        if state["shape"] != self._shape():
            raise ValueError(f"{path}: its gnn, gnn_networks, gnn_hidden, gnn_layers are {state['shape']}, "
                             f"the settings {self._shape()}")
        for name in ("ids", "rewards", "weights", "scale"):
            setattr(self, name, state[name])
        self.groups, self.models = state["groups"] and Groups(*state["groups"]), []
        for weights in state["models"]:
            with seeded(0, self.rewards.device):  # the random weights are replaced at once
                self.models.append(self._network(len(self.models)).eval())
            self.models[-1].load_state_dict(weights)
        return self

    def _shape(self) -> list:
        return [self.config.gnn, self.config.gnn_networks, self.config.gnn_hidden, self.config.gnn_layers]

    def _network(self, number: int) -> RewardGNN | RewardMLP:
        config = self.config
        kind = ("gcn", "mlp")[number % 2] if config.gnn == "mixed" else config.gnn
        shape = (self.groups.queries.shape[-1], self.groups.features.shape[-1], config.gnn_hidden,
                 config.gnn_layers, config.gnn_dropout)
        model = RewardMLP(*shape) if kind == "mlp" else RewardGNN(*shape, kind)
        return model.to(self.rewards.device)

    def _scaled(self, groups: Groups) -> Groups:
        """Features of mean 0 and deviation 1 over the fitted memory, cut at 5: it knows nothing beyond."""
        mean, std = self.scale
        return groups._replace(features=((groups.features - mean) / std).clamp(-5, 5))

    def _inputs(self, logits: Tensor, groups: Groups) -> Tensor:
        """What the calibration weighs (B, G, f+2): a logit (B, G), scaled features, a 1."""
        return torch.cat([logits[..., None], groups.features, torch.ones_like(logits[..., None])], dim=-1)

    def _groups(self, queries: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor) -> Groups:
        """Checked float32 tensors with embeddings of length 1, so that only their direction counts."""
        batch, size, dim = thinkings.shape
        parts, widths = (queries, thinkings, answers, features), (dim, features.shape[-1])
        wanted = (batch, dim), (batch, size, dim), (batch, size, dim), (batch, size, widths[1])
        if tuple(tuple(part.shape) for part in parts) != wanted:
            raise ValueError("wanted queries (B, d), thinkings and answers (B, G, d), features (B, G, f), "
                             "got " + ", ".join(str(tuple(part.shape)) for part in parts))
        held = widths if self.groups is None else tuple(part.shape[-1] for part in self.groups[2:])
        if widths != held:
            raise ValueError(f"this memory holds embeddings and features of width {held[0]} and {held[1]}, "
                             f"got {widths}")
        parts = [part.detach().float() for part in parts]
        if not all(part.sum().isfinite() for part in parts):  # one that is not makes the sum so
            raise ValueError("embeddings and features must be finite")
        return Groups(*(F.normalize(part, dim=-1) for part in parts[:3]), parts[3])

    def _numbers(self, ids: list[str | None]) -> Tensor:
        """A number for each id, the same for the same id; -1 for what the memory does not know."""
        number = {id: row for row, id in enumerate(self.ids)}
        return torch.tensor([number.get(id, -1) for id in ids], device=self.rewards.device)

    def _hidden(self, exclude: list[str | None]) -> Tensor:
        """(B, M) marks the memory groups of each query's excluded id."""
        if not self.models:
            raise ValueError("the memory has no network yet: call fit before predict or explain")
        return self._numbers(exclude)[:, None] == self._numbers(self.ids)

    @torch.inference_mode()
    def _judge(self, groups: Groups, hidden: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits (B, G) and the similarity edges they rest on."""
        groups = self._scaled(groups)
        edges = similarity_edges(groups, self.groups, self.config.neighbors, hidden, self._numbers(self.ids))
        heard, among = sending(edges, self.rewards.shape[1])
        senders = self._scaled(Groups(*(part.index_select(0, heard) for part in self.groups)))
        logits = [model.receive(groups, model.send(senders, self.rewards[heard]), among)
                  for model in self.models]
        return self._inputs(torch.stack(logits).mean(0), groups) @ self.weights, edges


def newest(ids: list[str], limit: int) -> list[int]:
    """Positions of the last `limit` entries of each id, in order.

    >>> newest(["a", "b", "a", "a"], limit=2)
    [1, 2, 3]
    """
    seen, kept = Counter(), []
    for position in reversed(range(len(ids))):
        seen[ids[position]] += 1
        if seen[ids[position]] <= limit:
            kept.append(position)
    return kept[::-1]


# ------------------------------------------------------------------------- from rollouts to the graph's nodes

Encoder = Callable[..., tuple[Tensor, Tensor, Tensor]]
Keys = Sequence[Sequence[str | None]]  # `answer_key`s of B groups of G rollouts


def make_encoder(name: str, tokenizer, device="cpu") -> Encoder:
    """The function that embeds tasks and their rollouts: encode(tasks, rollouts, hidden) -> queries (B, d),
    thinkings and answers (B, G, d), unit vectors.

    `name` is "hash" for hashed n-grams (no model), "policy" for hidden states of the frozen reference policy,
    whose pass GRPO needs anyway, or an encoder of transformers, such as the paper's
    sentence-transformers/all-MiniLM-L6-v2. `tokenizer` is the policy's. What cannot be used raises
    ValueError.
    """
    embed = make_embedder(name, tokenizer, device)

    def encode(tasks: Sequence[Task], rollouts, hidden: Tensor | None = None) -> tuple[Tensor, ...]:
        size = len(rollouts.texts) // len(tasks)
        questions = [(task.question, task.choices or ()) for task in tasks]
        parts = [[split_response(text, task.domain, task.choices)
                  for text in rollouts.texts[b * size : (b + 1) * size]] for b, task in enumerate(tasks)]
        return embed(questions, parts, rollouts, hidden)

    return encode


# -------------------------------------------------------------------------------------- features of an answer


def majority_key(keys: Sequence[str | None]) -> str | None:
    """The most common answer of a group, None where none parses; what does not parse (None) never wins, a tie
    goes to the answer that was seen first.

    >>> majority_key(["7", None, None, None, "8", "8", "7"])
    '7'
    """
    counts = Counter(key for key in keys if key is not None)
    return max(counts, key=counts.get, default=None)


CONFIDENCE = ("mean_logprob", "min_logprob")
FEATURES = ("magnitude", "parsed", "majority", "agreement", "overlap", "coverage", "sound", *CONFIDENCE)


def answer_features(tasks: Sequence[Task], responses: Sequence[Sequence[str]], keys: Keys,
                    logprobs: Tensor | None, mask: Tensor | None, names: Sequence[str] = FEATURES) -> Tensor:
    """Numbers about each answer, (B, G, f); none of them needs a label.

    The paper's: magnitude, sign(a) log(1+|a|)/20; parsed; majority, is it the group's most common answer?
    Ours: agreement, the share of the group with this answer; overlap, how much the numbers it writes are
    those of the rest of the group (mean Jaccard index); coverage, the share of the question's numbers, and of
    the names of its functions and their arguments, it uses; sound, is it of the usual form: a whole number
    from 0 on, one of the choices, a program that defines the function the question names; and the confidence
    of the frozen reference at temperature 1, mean and minimum of the tokens' log-probabilities (the current
    policy's grows as it learns, and would reward itself).

    `responses` are B lists of G texts; logprobs and mask (N, T) are the reference policy's, None where it has
    not read them. A name that is not in FEATURES, or confidence without logprobs, raises ValueError.
    """
    if unknown := set(names) - set(FEATURES):
        raise ValueError(f"features: {', '.join(sorted(unknown))}: not among {', '.join(FEATURES)}")
    if logprobs is None and set(names) & set(CONFIDENCE):
        raise ValueError(f"features: {' and '.join(CONFIDENCE)} need log-probabilities of the responses")
    rows = [row for group in zip(tasks, responses, keys) for row in group_features(*group)]
    columns = torch.tensor(rows, dtype=torch.float32).T  # (f, N)
    if logprobs is not None:
        mean = (logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)
        least = logprobs.masked_fill(mask == 0, 0.0).amin(1)
        columns = torch.cat([columns.to(mean), mean[None], least[None]])
    return columns[[FEATURES.index(name) for name in names]].T.unflatten(0, (len(keys), -1))


def group_features(task: Task, texts: Sequence[str], keys: Sequence[str | None]) -> list[list[float]]:
    """For each rollout of a group what stands before CONFIDENCE in FEATURES."""
    counts, most = Counter(key for key in keys if key is not None), majority_key(keys)
    said = [mentions(text) for text in texts]
    numbers = [{word for word in words if word[0].isdigit()} for words in said]
    asked = {word for word in mentions(task.question) if word[0].isdigit()} | set(signature(task.question))
    alike = [[len(a & b) / len(a | b) if a | b else 1.0 for b in numbers] for a in numbers]
    rows = []
    for g, key in enumerate(keys):
        number = re.fullmatch(r"(-?)(\d{1,300})(?:/(\d{1,300}))?", key or "")  # beyond, a float overflows
        magnitude = math.log1p(int(number[2]) / int(number[3] or 1)) / 20 if number else 0.0
        magnitude = -magnitude if number and number[1] else magnitude
        overlap = (sum(alike[g]) - 1) / max(len(keys) - 1, 1)
        coverage = len(asked & said[g]) / len(asked) if asked else 1.0
        rows.append([magnitude, key is not None, key is not None and key == most, counts[key] / len(keys),
                     overlap, coverage, is_sound(task, texts[g], key)])
    return rows


def is_sound(task: Task, response: str, key: str | None) -> bool:
    """Has it the form of a right answer, as far as one sees without a label? See `answer_features`."""
    if task.domain == "code":
        tree, named = parse_code(extract_code(response)), re.findall(r"\w+(?=\()", task.question)
        return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in named
                   for node in (tree.body if tree else ()))
    if task.domain == "qa":
        return key is not None and key in LETTERS[: len(task.choices or LETTERS)]
    return key is not None and key.isdigit()


# ---------------------------------------------------------------------------------------------------- rewards


def predict_rewards(memory: ExperienceMemory | None, groups: Groups | None, keys: Keys,
                    exclude: Sequence[str] | None = None) -> Tensor:
    """Probabilities (B, G) that rollouts are right: the memory's (`exclude` as in its `predict`), or without
    a memory the majority's vote (1 for the group's most common answer, 0 for the others; TTRL, arXiv
    2504.16084).

    A rollout without an answer (key None) is wrong whatever the label says, so it gets 0. The initial policy
    hardly ever leaves it out, so the memory holds few and judges them badly, and a policy that is rewarded
    for them writes more of them.
    """
    if memory is not None:
        answered = torch.tensor([[key is not None for key in group] for group in keys])  # (B, G)
        return memory.predict(*groups, exclude=exclude).cpu() * answered
    votes = [[key is not None and key == majority_key(group) for key in group] for group in keys]
    return torch.tensor(votes, dtype=torch.float32)


def acquire_rewards(tasks: Sequence[Task], responses: Sequence[str], memory: ExperienceMemory | None,
                    groups: Groups | None, keys: Keys, threshold: float = 0.5, soft: bool = False,
                    abstain: float = 0.0, lap: Callable[[str], None] = lambda stage: None
                    ) -> tuple[Tensor, list[str]]:
    """Rewards (B, G) of B*G responses, and where each group's come from: "verifier", "memory", "majority",
    "abstained".

    A labelled task is verified. An unlabelled one gets 1 where sigma > threshold and else 0 (paper, section
    on online RL), sigma from `predict_rewards`: the memory's or, where `memory` is None, the majority's vote;
    sigma itself if `soft`. A group without a label whose mean of |2 sigma - 1| is below `abstain` gets 0 for
    each rollout, so no advantage. Responses, and `groups` and `keys` by task, are in the order of the tasks.
    lap("verify") and lap("predict") end the two stages, also where there was nothing to do.
    """
    size = len(responses) // len(tasks)
    guess = "majority" if memory is None else "memory"
    source = ["verifier" if task.labelled else guess for task in tasks]
    rewards = torch.zeros(len(tasks), size)
    labelled = [b for b, task in enumerate(tasks) if task.labelled]
    if labelled:
        pairs = [(tasks[b], responses[b * size + g]) for b in labelled for g in range(size)]
        rewards[labelled] = torch.tensor(verify_batch(*zip(*pairs))).view(-1, size)
    lap("verify")
    unlabelled = [b for b, task in enumerate(tasks) if not task.labelled]
    if unlabelled:
        groups = groups and groups.rows(torch.tensor(unlabelled))
        probabilities = predict_rewards(memory, groups, [keys[b] for b in unlabelled])
        sure = (2 * probabilities - 1).abs().mean(1) >= abstain  # (b,)
        rewards[unlabelled] = (probabilities if soft else (probabilities > threshold).float()) * sure[:, None]
        for b in torch.tensor(unlabelled)[~sure].tolist():
            source[b] = "abstained"
    lap("predict")
    return rewards, source
