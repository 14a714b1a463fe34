"""The experience memory: rollouts with known rewards, which predict the rewards of rollouts nobody has verified."""

import functools
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Task, split_response, verify_batch
from gnn import Groups, RewardGNN, fit, seeded, similarity_edges


class ExperienceMemory:
    """Groups of rollouts with known rewards, and the network that carries these rewards to groups without any.

    `config` is any object with the attributes neighbors (k), groups_per_query, gnn_hidden, gnn_layers, gnn_dropout,
    gnn_epochs, gnn_patience, gnn_learning_rate and gnn_weight_decay. Embeddings of width d are compared by direction
    only. The first `remember` settles d, the group size G, the number of features f and the device.
    """

    def __init__(self, config):
        self.config, self.ids = config, []  # ids: the query each group belongs to
        self.groups = self.rewards = self.model = self.messages = None

    def __len__(self) -> int:
        return len(self.ids)

    def remember(self, ids: list[str], queries: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor,
                 rewards: Tensor) -> None:
        """Append groups: queries (B, d), thinkings and answers (B, G, d), features (B, G, f), rewards (B, G) of 0 or 1.

        Of one id only the newest `groups_per_query` groups stay. After `fit` the new rows join the cached messages.
        """
        new = self._groups(queries, thinkings, answers, features)
        if len(ids) != len(queries) or rewards.shape != thinkings.shape[:2]:
            raise ValueError(f"remember wants an id and G rewards a query, {tuple(thinkings.shape[:2])} in all, "
                             f"got {len(ids)} ids and rewards {tuple(rewards.shape)}")
        if not ((rewards == 0) | (rewards == 1)).all():
            raise ValueError("remember wants rewards that are 0 or 1")
        rewards = rewards.detach().float().to(new.queries.device)
        if self.groups is None:
            self.groups, self.rewards = new.rows(slice(0)), rewards[:0]
        elif new.thinkings.shape[1] != self.rewards.shape[1]:
            raise ValueError(f"this memory holds groups of {self.rewards.shape[1]} rollouts, got {thinkings.shape[1]}")
        count, ids = len(self), self.ids + list(ids)
        kept = torch.tensor(newest(ids, self.config.groups_per_query), dtype=torch.long)
        old_rows, new_rows = kept[kept < count], kept[kept >= count] - count
        append = lambda old, new: torch.cat([old[old_rows], new[new_rows]])  # noqa: E731
        if self.model is not None:
            with torch.inference_mode():
                sent = self.model.send(new, rewards)
            self.messages = [[append(*pair) for pair in zip(*layer)] for layer in zip(self.messages, sent)]
        self.ids = [ids[row] for row in kept]
        self.groups, self.rewards = Groups(*map(append, self.groups, new)), append(self.rewards, rewards)

    def fit(self, seed: int) -> list[dict]:
        """Train a new network on the whole memory, cache what the memory sends, and return the history of gnn.fit."""
        if not len(self):
            raise ValueError("the memory is empty: remember labelled rollouts before fit")
        config = self.config
        with seeded(seed, self.rewards.device):
            self.model = self._network()
        history = fit(self.model, self.groups, self.rewards, self._numbers(self.ids), config.neighbors,
                      config.gnn_epochs, config.gnn_patience, config.gnn_learning_rate, config.gnn_weight_decay,
                      seed=seed)
        with torch.inference_mode():
            self.messages = self.model.send(self.groups, self.rewards)
        return history

    def predict(self, queries: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor,
                exclude: list[str] | None = None) -> Tensor:
        """Probability (B, G) that each rollout is right; row by row, so the rest of the batch changes nothing.

        `exclude` names an id (or None) for each query: all memory groups of that id are hidden from this query.
        """
        groups = self._groups(queries, thinkings, answers, features)
        exclude = [None] * len(queries) if exclude is None else exclude
        if len(exclude) != len(queries):
            raise ValueError(f"exclude wants an id or None for each of {len(queries)} queries, got {len(exclude)}")
        return self._judge(groups, self._hidden(exclude))[0].sigmoid()

    def explain(self, query: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor,
                exclude: str | None = None) -> list[dict]:
        """Why each of G rollouts of one query (d,) got its probability, as plain numbers; thinkings (G, d) and so on.

        One dict a rollout: probability; queries, the nearest in the memory, best first (id, cosine, rewards, and moved:
        by how much the logit falls when this id is hidden too); thinkings and answers, the memory rollouts it listens
        to (id, rollout, cosine, reward).
        """
        group = self._groups(*(part[None] for part in (query, thinkings, answers, features)))
        hidden = self._hidden([exclude])
        logits, edges = self._judge(group, hidden)
        pairs = zip(*(part[0].tolist() for part in edges[0]))
        nearest = [(row, cosine) for row, cosine in pairs if math.isfinite(cosine)]
        without = hidden | self._hidden([self.ids[row] for row, _ in nearest])  # (k, M)
        moved = logits - self._judge(group.rows(torch.zeros(len(nearest), dtype=torch.long)), without)[0]  # (k, G)
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
        """Write memory, network and cached messages to one file; an interrupted save leaves the old file whole."""
        model = self.model and self.model.state_dict()
        torch.save({"ids": self.ids, "groups": self.groups and list(self.groups), "rewards": self.rewards,
                    "model": model, "messages": self.messages, "shape": self._shape()}, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def load(self, path: str | os.PathLike, device: str | torch.device = "cpu") -> "ExperienceMemory":
        """Become the memory that `save` wrote and predict as it did, bit for bit; the config must ask for its network."""
        state = torch.load(path, map_location=device, weights_only=True)
        if state["shape"] != self._shape():
            raise ValueError(f"{path} holds a network of gnn_hidden, gnn_layers {state['shape']}, not {self._shape()}")
        self.ids, self.rewards, self.messages = state["ids"], state["rewards"], state["messages"]
        self.groups, self.model = state["groups"] and Groups(*state["groups"]), None
        if state["model"] is not None:
            with seeded(0, self.rewards.device):  # the random weights are replaced at once
                self.model = self._network()
            self.model.load_state_dict(state["model"])
            self.model.eval()
        return self

    def _shape(self) -> list[int]:
        return [self.config.gnn_hidden, self.config.gnn_layers]

    def _network(self) -> RewardGNN:
        dim, features = self.groups.queries.shape[-1], self.groups.features.shape[-1]
        return RewardGNN(dim, features, *self._shape(), self.config.gnn_dropout).to(self.rewards.device)

    def _groups(self, queries: Tensor, thinkings: Tensor, answers: Tensor, features: Tensor) -> Groups:
        """Checked float32 tensors with embeddings of length 1, so that only their direction counts."""
        batch, size, dim = thinkings.shape
        if queries.shape != (batch, dim) or answers.shape != thinkings.shape or features.shape[:-1] != (batch, size):
            raise ValueError("wanted queries (B, d), thinkings and answers (B, G, d), features (B, G, f), got "
                             + ", ".join(str(tuple(part.shape)) for part in (queries, thinkings, answers, features)))
        widths = (dim, features.shape[-1])
        if self.groups is not None and widths != (self.groups.queries.shape[-1], self.groups.features.shape[-1]):
            raise ValueError(f"this memory holds embeddings and features of width "
                             f"{self.groups.queries.shape[-1]} and {self.groups.features.shape[-1]}, got {widths}")
        parts = [part.detach().float() for part in (queries, thinkings, answers, features)]
        if not all(part.isfinite().all() for part in parts):
            raise ValueError("embeddings and features must be finite")
        return Groups(*(F.normalize(part, dim=-1) for part in parts[:3]), parts[3])

    def _numbers(self, ids: list[str | None]) -> Tensor:
        """A number for each id, the same for the same id; -1 for what the memory does not know."""
        number = {id: row for row, id in enumerate(self.ids)}
        return torch.tensor([number.get(id, -1) for id in ids], device=self.rewards.device)

    def _hidden(self, exclude: list[str | None]) -> Tensor:
        """(B, M) marks the memory groups of each query's excluded id."""
        if self.model is None:
            raise ValueError("the memory has no network yet: call fit before predict or explain")
        return self._numbers(exclude)[:, None] == self._numbers(self.ids)

    @torch.inference_mode()
    def _judge(self, groups: Groups, hidden: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits (B, G) and the similarity edges they rest on."""
        edges = similarity_edges(groups, self.groups, self.config.neighbors, hidden)
        return self.model.receive(groups, self.messages, edges), edges


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


# ------------------------------------------------------------------------------------ from rollouts to the graph's nodes

HASH_DIM = 512
Encoder = Callable[..., tuple[Tensor, Tensor, Tensor]]


def make_encoder(name: str, tokenizer, device="cpu") -> Encoder:
    """The function that embeds tasks and their rollouts: encode(tasks, rollouts, hidden) -> queries (B, d), thinkings and
    answers (B, G, d), unit vectors.

    Args:
        name: "hash" for hashed n-grams (no model), "policy" for hidden states of the frozen reference policy, whose pass
            GRPO needs anyway, or the name or path of an encoder of transformers, such as the paper's
            sentence-transformers/all-MiniLM-L6-v2.
        tokenizer: the policy's.
    """
    if name == "hash":
        return hash_encoder
    if name == "policy":
        return functools.partial(policy_encoder, tokenizer)
    from transformers import AutoModel, AutoTokenizer

    try:
        model, words = AutoModel.from_pretrained(name).to(device).eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder: cannot load {name!r}, neither hash, policy, a model folder nor a model at hand: "
                         f"{str(error).splitlines()[0]}") from None  # fmt: skip
    return functools.partial(text_encoder, model, words)


def hash_encoder(tasks: Sequence[Task], rollouts, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Signed counts of hashed 1- to 3-grams, with names and numbers called by their place (see `by_place`), so that the
    same reasoning about other things looks the same."""
    queries, thinkings, answers = [], [], []
    group = len(rollouts.texts) // len(tasks)
    for b, task in enumerate(tasks):
        places: dict[str, str] = {}
        for name, arguments in re.findall(r"([^\W\d]\w*)\(([\w\s,]*)\)", task.question):  # a function's signature
            for word in (name, *re.findall(r"[^\W\d]\w*", arguments)):
                places.setdefault(word, f"f{len(places)}")
        queries.append(hash_ngrams(by_place(" ".join([task.question, *(task.choices or ())]), places, "q")))
        for text in rollouts.texts[b * group : (b + 1) * group]:
            known = dict(places)  # what a response introduces is known to this response only
            thinking, answer = split_response(text, task.domain)
            thinkings.append(hash_ngrams(by_place(thinking, known, "r")))
            answers.append(hash_ngrams(by_place(answer, known, "r")))
    return shape_nodes(queries, thinkings, answers)


def by_place(text: str, places: dict[str, str], prefix: str) -> list[str]:
    """The words of a text, where numbers and capitalised words are called by the place of their first appearance; new ones
    are added to `places`. What the question mentions keeps its place in the response.

    >>> places = {}
    >>> by_place("Ann has 3 bags of 12.", places, "q"), by_place("3 * 12 = 36", places, "r")
    (['qc0', 'has', 'qn0', 'bags', 'of', 'qn1', '.'], ['qn0', '*', 'qn1', '=', 'rn0'])
    """
    words = re.findall(r"\d+(?:\.\d+)?|[^\W\d]\w*|[^\w\s]", text)
    for word in words:
        if word not in places and (word[0].isdigit() or word[0].isupper()):
            kind = prefix + ("n" if word[0].isdigit() else "c")
            places[word] = f"{kind}{sum(place.startswith(kind) for place in places.values())}"
    return [places.get(word, word) for word in words]


def hash_ngrams(words: list[str]) -> Tensor:
    """Unit vector (HASH_DIM,) of the 1- to 3-grams of some words; zero for no words."""
    vector = np.zeros(HASH_DIM, dtype=np.float32)
    for n in (1, 2, 3):
        for i in range(len(words) - n + 1):
            code = zlib.crc32(" ".join(words[i : i + n]).encode())
            vector[code % HASH_DIM] += 1 if code & 1 << 31 else -1
    return F.normalize(torch.from_numpy(vector), dim=0)


def policy_encoder(tokenizer, tasks: Sequence[Task], rollouts, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the reference policy's last hidden states (N, P+T, d) over the tokens of query, thinking and answer.
    The thinking's tokens are counted by tokenizing it once more."""
    group, length = len(rollouts.texts) // len(tasks), rollouts.mask.shape[1]
    count = [len(tokenizer(split_response(text, task.domain)[0], add_special_tokens=False).input_ids)
             for text, task in zip(rollouts.texts, (task for task in tasks for _ in range(group)))]  # fmt: skip
    is_thinking = torch.arange(length, device=hidden.device) < torch.tensor(count, device=hidden.device)[:, None]

    def mean(states: Tensor, mask: Tensor) -> Tensor:  # (n, L, d), (n, L) -> (n, d)
        return F.normalize((states * mask[..., None]).sum(1), dim=-1)

    response = hidden[:, -length:]
    return shape_nodes(mean(hidden[::group, :-length], rollouts.attention_mask[::group, :-length]),
                       mean(response, rollouts.mask * is_thinking), mean(response, rollouts.mask * ~is_thinking))  # fmt: skip


def text_encoder(model, words, tasks: Sequence[Task], rollouts, hidden=None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of an encoder's last hidden states under the attention mask, L2-normalised (as all-MiniLM-L6-v2 is used)."""
    group = len(rollouts.texts) // len(tasks)
    pairs = [split_response(text, tasks[n // group].domain) for n, text in enumerate(rollouts.texts)]
    texts = [" ".join([task.question, *(task.choices or ())]) for task in tasks] + [p[0] for p in pairs] + [p[1] for p in pairs]
    vectors: list[Tensor] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of like length go together
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            inputs = words([texts[i] for i in part], padding=True, truncation=True, return_tensors="pt").to(model.device)
            states, mask = model(**inputs).last_hidden_state.float(), inputs.attention_mask[..., None]
            for i, vector in zip(part, F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)):
                vectors[i] = vector
    return shape_nodes(vectors[: len(tasks)], vectors[len(tasks) : -len(pairs)], vectors[-len(pairs) :])


def shape_nodes(queries, thinkings, answers) -> tuple[Tensor, Tensor, Tensor]:
    """Stack B queries and B*G thinkings and answers (tensors or lists of (d,)) to (B, d), (B, G, d), (B, G, d)."""
    queries, thinkings, answers = (x if torch.is_tensor(x) else torch.stack(x) for x in (queries, thinkings, answers))
    return queries, thinkings.unflatten(0, (len(queries), -1)), answers.unflatten(0, (len(queries), -1))


def majority_key(keys: Sequence[str | None]) -> str | None:
    """The most common answer of a group; what does not parse never wins, ties go to the first.

    >>> majority_key(["7", None, None, None, "8", "8", "7"])
    '7'
    """
    counts = Counter(key for key in keys if key is not None)
    return max(counts, key=counts.get, default=None)


FEATURES = ("magnitude", "parsed", "majority", "agreement", "mean_logprob", "min_logprob")


def answer_features(keys: Sequence[Sequence[str | None]], logprobs: Tensor, mask: Tensor,
                    names: Sequence[str] = FEATURES) -> Tensor:
    """Numbers about each answer, (B, G, f). The paper's: its magnitude sign(a) log(1+|a|)/20, was it parsed, is it the
    group's majority. Ours: the agreement (share of the group with this answer), and the confidence of the frozen reference
    at temperature 1, mean and minimum of the tokens' log-probabilities (the current policy's grows as it learns, and would
    reward itself).

    Args:
        keys: `answer_key` of every rollout, B lists of G.
        logprobs, mask: (N, T) of the reference policy.
        names: the features wanted, out of FEATURES; another name raises ValueError.
    """
    for name in names:
        if name not in FEATURES:
            raise ValueError(f"features: {name!r} is not one of {', '.join(FEATURES)}")
    rows = []
    for group in keys:
        counts, most = Counter(group), majority_key(group)
        for key in group:
            number = re.fullmatch(r"(-?)(\d{1,300})(?:/(\d{1,300}))?", key or "")  # beyond, a float overflows
            value = math.log1p(int(number[2]) / int(number[3] or 1)) / 20 * (-1 if number[1] else 1) if number else 0.0
            known = key is not None
            rows.append([value, known, known and key == most, counts[key] / len(group) if known else 0.0])
    mean = (logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)
    least = logprobs.masked_fill(mask == 0, 0.0).amin(1)
    features = torch.cat([torch.tensor(rows, dtype=torch.float32, device=mean.device), mean[:, None], least[:, None]], 1)
    return features[:, [FEATURES.index(name) for name in names]].unflatten(0, (len(keys), -1))


# ------------------------------------------------------------------------------------------------------------- rewards


def predict_rewards(memory: "ExperienceMemory | None", groups: Groups | None, keys: Sequence[Sequence[str | None]]) -> Tensor:
    """Probabilities (B, G) that rollouts are right: the memory's, or without a memory the majority's vote (1 for the
    group's most common answer, 0 for the others; TTRL, arXiv 2504.16084)."""
    if memory is not None:
        return memory.predict(*groups).cpu()
    votes = [[key is not None and key == majority_key(group) for key in group] for group in keys]
    return torch.tensor(votes, dtype=torch.float32)


def acquire_rewards(tasks: Sequence[Task], responses: Sequence[str], memory: "ExperienceMemory | None", groups: Groups | None,
                    keys: Sequence[Sequence[str | None]], threshold: float = 0.5) -> tuple[Tensor, list[str]]:
    """Rewards (B, G) of B*G responses, and where each group's come from: "verifier", "memory" or "majority".

    A labelled task is verified. An unlabelled one gets 1 where sigma > threshold and else 0 (paper, section on online
    RL), sigma from the memory or, where `memory` is None, from the majority's vote.
    """
    size = len(responses) // len(tasks)
    guess = "majority" if memory is None else "memory"
    source = ["verifier" if task.labelled else guess for task in tasks]
    rewards = torch.zeros(len(tasks), size)
    labelled = [b for b, task in enumerate(tasks) if task.labelled]
    if labelled:
        pairs = [(tasks[b], responses[b * size + g]) for b in labelled for g in range(size)]
        rewards[labelled] = torch.tensor(verify_batch(*zip(*pairs))).view(-1, size)
    unlabelled = [b for b, task in enumerate(tasks) if not task.labelled]
    if unlabelled:
        groups = groups and groups.rows(torch.tensor(unlabelled))
        probabilities = predict_rewards(memory, groups, [keys[b] for b in unlabelled])
        rewards[unlabelled] = (probabilities > threshold).float()
    return rewards, source
