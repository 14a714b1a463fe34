"""The reward network: cosine nearest neighbours, graph convolution, messages between rollouts, training, metrics.

Knows tensors only; memreward.py decides what is remembered. Three node types (a query, and for each of its G rollouts a
thinking and an answer) and five relations with one weight each: structural edges query-thinking and thinking-answer
inside a group, similarity edges between queries, between thinkings and between answers of different groups.
Similarity edges run one way, from *senders* (groups whose rewards are known and are part of their input) to *receivers*
(the groups being judged, no reward of theirs goes in). So labels travel along edges, senders never depend on who asks
and can be cached, and leave-one-out training only has to hide a query's own rows.
"""

import contextlib
import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Groups(NamedTuple):
    """B queries with G rollouts each, as embeddings of width d and f >= 1 numbers that describe an answer."""

    queries: Tensor  # (B, d)
    thinkings: Tensor  # (B, G, d)
    answers: Tensor  # (B, G, d)
    features: Tensor  # (B, G, f)

    def rows(self, index: Tensor) -> "Groups":
        """The groups that `index` (positions or a mask) selects."""
        return Groups(*(part[index] for part in self))


def knn(queries: Tensor, memory: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The min(k, M) rows of `memory` (..., M, d) closest in angle to each row of `queries` (..., N, d), best first.

    Returns indices and cosines, both (..., N, min(k, M)). Cosines that agree to 1e-6 are a tie, which goes to the lower
    index. `exclude` (..., N, M) marks pairs that must not meet: where they leave fewer than k rows, the surplus columns
    hold the cosine -inf. A row of zeros has the cosine 0 to everything.

    >>> indices, cosines = knn(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 4.0]]), k=2)
    >>> indices.tolist(), [round(cosine, 3) for cosine in cosines[0].tolist()]
    ([[1, 2]], [1.0, 0.6])
    """
    lengths = memory.norm(dim=-1).clamp(min=1e-12)  # dividing by lengths spares a normalised copy of the memory
    cosines = F.normalize(queries, dim=-1) @ memory.mT / lengths.unsqueeze(-2)  # (..., N, M)
    if exclude is not None:
        cosines = cosines.masked_fill(exclude, -math.inf)
    size = memory.shape[-2]
    order = (cosines.clamp(min=-2) * 2**20).round().long() * size - torch.arange(size, device=memory.device)
    indices = order.topk(min(k, size)).indices
    return indices, cosines.gather(-1, indices)


def group_edges(groups: int, group_size: int, device=None) -> tuple[Tensor, Tensor]:
    """Structural edges, both ways: query-thinking over [queries, thinkings], thinking-answer over [thinkings, answers].

    >>> [edges.tolist() for edges in group_edges(groups=1, group_size=2)]
    [[[0, 0, 1, 2], [1, 2, 0, 0]], [[0, 1, 2, 3], [2, 3, 0, 1]]]
    """
    rollout = torch.arange(groups * group_size, device=device)
    query_thinking = torch.stack([rollout // group_size, groups + rollout])
    thinking_answer = torch.stack([rollout, len(rollout) + rollout])
    return tuple(torch.cat([edges, edges.flip(0)], dim=1) for edges in (query_thinking, thinking_answer))


def similarity_edges(receivers: Groups, memory: Groups, k: int,
                     exclude: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """The one graph of training and prediction: (senders, cosines) of queries (B, k), thinkings and answers (B, G, k).

    A query hears from the k nearest memory queries; a thinking (an answer) from the k most similar thinkings (answers)
    among the rollouts of those queries. Sender numbers count the memory's rows, for rollouts M*G of them. `exclude`
    (B, M) hides memory groups from a receiver; an edge with cosine -inf only fills a column and carries nothing.
    """
    near, cosines = knn(receivers.queries, memory.queries, k, exclude)  # (B, k)
    edges, size = [(near, cosines)], memory.thinkings.shape[1]
    candidates = (near[..., None] * size + torch.arange(size, device=near.device)).flatten(1)  # (B, k*G)
    hidden = cosines.isinf().repeat_interleave(size, dim=1)[:, None]  # (B, 1, k*G)
    for new, old in ((receivers.thinkings, memory.thinkings), (receivers.answers, memory.answers)):
        columns, cosines = knn(new, old[near].flatten(1, 2), k, hidden)  # (B, G, k)
        senders = candidates[:, None].expand(-1, new.shape[1], -1).gather(2, columns)
        edges.append((senders, cosines))
    return edges


def receive_messages(messages: Tensor, senders: Tensor, cosines: Tensor) -> Tensor:
    """(1/degree) sum_j max(cos_ij, 0) message_j over each receiver's edges (..., k): what is unlike it says nothing."""
    weights = (cosines.clamp(min=0) / cosines.isfinite().sum(-1, keepdim=True).clamp(min=1)).flatten(0, -2)
    return F.embedding_bag(senders.flatten(0, -2), messages.flatten(0, -2), per_sample_weights=weights, mode="sum")


class GCNLayer(nn.Module):
    """D^-1/2 (A + I) D^-1/2 X W + b (Kipf & Welling, arXiv 1609.02907, eq. 2), D the degrees of A + I."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """x (n, in_dim), edge_index (2, e) of sources and targets, an undirected edge both ways -> (n, out_dim)."""
        source, target = edge_index
        scale = (1 + torch.bincount(target, minlength=len(x))).rsqrt()[:, None]
        h = scale * x
        return self.linear(scale * h.index_add(0, target, h.index_select(0, source)))  # h itself is the self-loop I


class RewardGNN(nn.Module):
    """Judges rollouts: a heterogeneous GCN, then sigma(q . r / sqrt(width) + b) (MemReward, arXiv 2603.19310).

    `send` runs on groups with known rewards, `receive` on the groups to be judged; both share every weight.
    """

    def __init__(self, dim: int, features: int, hidden: int = 512, layers: int = 2, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        widths = [dim + features + 1] + [hidden] * (layers - 1)
        self.query_thinking = nn.ModuleList(GCNLayer(width, hidden) for width in widths)
        self.thinking_answer = nn.ModuleList(GCNLayer(width, hidden) for width in widths)
        self.similarity = nn.ModuleList(  # of queries, of thinkings, of answers
            nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(3)) for width in widths)
        width = hidden // 2
        self.query_head = nn.Sequential(nn.Linear(hidden, width), nn.LayerNorm(width))
        self.rollout_head = nn.Sequential(nn.Linear(2 * hidden + features, width), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))

    def standardise_by(self, features: Tensor) -> None:
        """Keep mean and deviation of the memory's features (M, G, f); one that never varies there will say nothing."""
        std, mean = torch.std_mean(features.flatten(0, 1), dim=0, correction=0)
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.masked_fill(std < 1e-6, math.inf))

    def standardised(self, groups: Groups) -> Tensor:
        """The features (B, G, f) with the memory's mean 0 and deviation 1."""
        return (groups.features - self.feature_mean) / self.feature_std

    def embed(self, groups: Groups, rewards: Tensor | None = None) -> Tensor:
        """Input states of all nodes [queries, thinkings, answers], (B + 2*B*G, d+f+1): an embedding, the features of an
        answer, the known reward's sign, both scaled up; zeros for what a node does not have. A receiver never has a reward."""
        features = self.standardised(groups)
        known = torch.zeros_like(features[..., :1]) if rewards is None else 2 * rewards[..., None] - 1  # (B, G, 1)
        loud = groups.queries.shape[-1]**0.5  # a column or two beside d others would hardly be heard at first
        query = F.pad(groups.queries, (0, features.shape[-1] + 1))
        thinking = torch.cat([groups.thinkings, torch.zeros_like(features), loud * known], dim=-1)
        answer = torch.cat([groups.answers, loud / features.shape[-1]**0.5 * features, loud * known], dim=-1)
        return torch.cat([query, thinking.flatten(0, 1), answer.flatten(0, 1)])

    def update(self, layer: int, x: Tensor, groups: Groups, similar: Tensor | float = 0.0) -> Tensor:
        """One layer over all nodes: relu(structural messages + similarity messages), (B + 2*B*G, hidden)."""
        count, size = groups.thinkings.shape[:2]
        query_thinking, thinking_answer = group_edges(count, size, x.device)
        query, thinking = self.query_thinking[layer](x[:count + count * size], query_thinking).tensor_split([count])
        thinking_too, answer = self.thinking_answer[layer](x[count:], thinking_answer).chunk(2)
        return F.relu(torch.cat([query, thinking + thinking_too, answer]) + similar)

    def send(self, groups: Groups, rewards: Tensor) -> list[list[Tensor]]:
        """What groups with known rewards (B, G) tell others: for each layer the messages W h of queries (B, hidden),
        thinkings and answers (B, G, hidden). No similarity edge comes in, so they depend on nobody else."""
        x, messages = self.embed(groups, rewards), []
        for layer, relations in enumerate(self.similarity):
            if layer:
                x = self.update(layer - 1, x, groups)
            parts = zip(relations, groups, split_nodes(x, groups))
            messages.append([relation(h).unflatten(0, nodes.shape[:-1]) for relation, nodes, h in parts])
        return messages

    def receive(self, groups: Groups, messages: list[list[Tensor]], edges: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (B, G) of groups without rewards, given the senders' `messages` and the `similarity_edges` to them."""
        x = self.embed(groups)
        for layer, tables in enumerate(messages):
            similar = torch.cat([receive_messages(table, *edge) for table, edge in zip(tables, edges)])
            x = self.dropout(self.update(layer, x, groups, similar))
        query, thinking, answer = split_nodes(x, groups)
        query = self.query_head(query)[:, None]  # (B, 1, hidden)
        rollout = self.rollout_head(torch.cat([thinking, answer, self.standardised(groups).flatten(0, 1)], dim=-1))
        return (query * rollout.unflatten(0, groups.thinkings.shape[:2])).sum(-1) / query.shape[-1]**0.5 + self.bias


def split_nodes(x: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, h), thinkings and answers (B*G, h) out of all nodes (B + 2*B*G, h)."""
    count, rollouts = len(groups.queries), groups.thinkings.shape[:2].numel()
    return x.split([count, rollouts, rollouts])


def fit(model: RewardGNN, memory: Groups, rewards: Tensor, ids: Tensor, neighbors: int, epochs: int = 150,
        patience: int = 20, learning_rate: float = 1e-3, weight_decay: float = 1e-2, validation: float = 0.2,
        seed: int = 0) -> list[dict]:
    """Train on the memory's own rewards (M, G), leave-one-out: a group never hears from a group with the same id (M,).

    Every group sends; the loss is the binary cross-entropy of all but a fraction `validation` of the ids. Training
    stops after `patience` epochs without a lower loss on those, and the best epoch's weights are restored; with fewer
    than five ids nothing can be held back and it lasts `patience` epochs. Returns one dict an epoch: epoch, train_loss,
    val_loss, val_auc (nan without validation), best (True for the epoch kept). The global random state stays as it was.
    """
    model.train().standardise_by(memory.features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    edges = similarity_edges(memory, memory, neighbors, exclude=ids[:, None] == ids)

    def judge(part: Tensor, messages: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        kept = [(senders[part], cosines[part]) for senders, cosines in edges]
        logits = model.receive(memory.rows(part), messages, kept)
        return logits, F.binary_cross_entropy_with_logits(logits, rewards[part])

    history, best, weights = [], {"epoch": 0, "val_loss": math.inf}, None
    with seeded(seed, ids.device):
        train, held_out = split_ids(ids, validation)
        for epoch in range(epochs if held_out.any() else min(epochs, patience)):
            messages = model.send(memory, rewards)  # serves both parts: both losses are those before the step
            _, loss = judge(train, messages)
            history.append({"epoch": epoch, "train_loss": loss.item(), "val_loss": math.nan, "val_auc": math.nan,
                            "best": False})
            if held_out.any():
                model.eval()
                with torch.no_grad():
                    logits, val_loss = judge(held_out, messages)
                model.train()
                auc = metrics(logits.sigmoid().flatten(), rewards[held_out].flatten())["auc"]
                history[-1].update(val_loss=val_loss.item(), val_auc=auc)
                if val_loss < best["val_loss"]:
                    best, weights = history[-1], copy.deepcopy(model.state_dict())  # no alias: it trains on
                elif epoch - best["epoch"] >= patience:
                    break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if weights is None:
        best = history[-1]
    else:
        model.load_state_dict(weights)
    best["best"] = True
    model.eval()
    return history


def split_ids(ids: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Random masks (M,) for training and validation; an id's groups fall together, fewer than five ids all train."""
    unique = ids.unique()
    count = max(1, round(fraction * len(unique))) if len(unique) >= 5 else 0
    held_out = torch.isin(ids, unique[torch.randperm(len(unique))[:count].to(ids.device)])
    return ~held_out, held_out


@contextlib.contextmanager
def seeded(seed: int, device: torch.device):
    """Seed torch inside the block and put the global random state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def metrics(probabilities: Tensor, rewards: Tensor, threshold: float = 0.5) -> dict[str, float]:
    """How well probabilities (n,) tell right rollouts (reward 1) from wrong ones; nan where a quotient is 0/0.

    Reward 1 is predicted above the threshold. fp_rate is the share of wrong rollouts that would be rewarded; auc the
    probability that a right rollout scores above a wrong one, a tie counting one half.

    >>> result = metrics(torch.tensor([0.9, 0.8, 0.8, 0.1]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    >>> {name: round(value, 3) for name, value in result.items()}
    {'accuracy': 0.75, 'precision': 0.667, 'recall': 1.0, 'f1': 0.8, 'fp_rate': 0.5, 'auc': 0.875}
    """
    right, predicted = rewards > 0.5, probabilities > threshold
    hits, false = (predicted & right).sum().item(), (predicted & ~right).sum().item()
    positives, negatives = right.sum().item(), (~right).sum().item()
    ratio = lambda part, whole: part / whole if whole else math.nan  # noqa: E731
    _, value, counts = probabilities.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[value]  # equal values share their mean rank, from 1
    return {
        "accuracy": ratio(hits + negatives - false, positives + negatives),
        "precision": ratio(hits, hits + false),
        "recall": ratio(hits, positives),
        "f1": ratio(2 * hits, hits + false + positives),
        "fp_rate": ratio(false, negatives),
        "auc": ratio(ranks[right].double().sum().item() - positives * (positives + 1) / 2, positives * negatives),
    }
