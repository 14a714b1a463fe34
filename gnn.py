"""The reward networks: cosine nearest neighbours, graph convolution, messages between rollouts, training,
metrics.

Knows tensors only; memreward.py decides what is remembered. Three node types (a query, and for each of its G
rollouts a thinking and an answer) and five relations with one weight each: structural edges query-thinking
and thinking-answer inside a group, similarity edges between queries, between thinkings and between answers of
different groups. Similarity edges run one way, from *senders* (groups whose rewards are known and are part of
their input) to *receivers* (the groups being judged, no reward of theirs goes in). So labels travel along
edges, senders never depend on who asks, and leave-one-out training only has to hide a group from itself.

In the graph embeddings decide who is near, and nothing else: what a node holds are features of the answer and
known rewards. So a kind of question that no network was trained on is judged as soon as a few of its rollouts
are remembered.
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


# -------------------------------------------------------------------------------------------------- the graph


def knn(queries: Tensor, memory: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The min(k, M) rows of `memory` (..., M, d) closest in angle to each row of `queries` (..., N, d), best
    first.

    Returns indices and cosines, both (..., N, min(k, M)). Cosines that round to the same number of millionths
    (of 2^-20) are a tie, which goes to the lower index. `exclude` (..., N, M) marks pairs that must not meet:
    where they leave fewer than k rows, the surplus columns hold the cosine -inf. A row of zeros has the
    cosine 0 to everything.

    >>> memory = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 4.0]])
    >>> indices, cosines = knn(torch.tensor([[1.0, 0.0]]), memory, k=2)
    >>> indices.tolist(), [round(cosine, 3) for cosine in cosines[0].tolist()]
    ([[1, 2]], [1.0, 0.6])
    """
    lengths = memory.norm(dim=-1).clamp(min=1e-12)  # dividing by it spares a normalised copy of the memory
    cosines = F.normalize(queries, dim=-1) @ memory.mT / lengths.unsqueeze(-2)  # (..., N, M)
    if exclude is not None:
        cosines = cosines.masked_fill(exclude, -math.inf)
    size = memory.shape[-2]
    order = (cosines.clamp(min=-2) * 2**20).round().long() * size - torch.arange(size, device=memory.device)
    indices = order.topk(min(k, size)).indices
    return indices, cosines.gather(-1, indices)


def similarity_edges(receivers: Groups, memory: Groups, k: int, exclude: Tensor | None = None,
                     ids: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """The one graph of training and prediction: (senders, cosines) of queries (B, n), thinkings and answers
    (B, G, k).

    A query hears from all groups of the k nearest memory queries (n is k times s, the most groups of a
    query); a thinking (an answer) from the k most similar thinkings (answers) among their rollouts. Sender
    numbers count the memory's rows, for rollouts M*G of them. `ids` (M,) tells which groups are of one query
    (None: each of another), whose embedding is that of the first. `exclude` (B, M) hides memory groups from a
    receiver; an edge of cosine -inf fills a column and carries nothing. k = 0: none.
    """
    count, size = memory.thinkings.shape[:2]
    groups = groups_of_queries(torch.arange(count, device=memory.queries.device) if ids is None else ids)
    hidden = (groups < 0).expand(len(receivers.queries), -1, -1)  # (B, Q, s): no such group, or excluded
    hidden = hidden if exclude is None else hidden | exclude[:, groups]
    hidden, k = (hidden, k) if k else (torch.ones_like(hidden), 1)
    nearest, cosines = knn(receivers.queries, memory.queries[groups[:, 0]], k, hidden.all(-1))  # (B, k)
    near = groups[nearest].clamp(min=0).flatten(1)  # (B, n) rows of their groups
    hidden = hidden[torch.arange(len(nearest), device=near.device)[:, None], nearest].flatten(1)  # (B, n)
    cosines = cosines.repeat_interleave(groups.shape[1], dim=1).masked_fill(hidden, -math.inf)
    edges = [(near, cosines)]
    candidates = (near[..., None] * size + torch.arange(size, device=near.device)).flatten(1)  # (B, n*G)
    hidden = cosines.isinf().repeat_interleave(size, dim=1)[:, None]  # (B, 1, n*G)
    for new, old in ((receivers.thinkings, memory.thinkings), (receivers.answers, memory.answers)):
        heard = F.embedding(candidates, old.flatten(0, 1)).float()  # (B, n*G, d), faster than indexing
        columns, cosines = knn(new, heard, k, hidden)  # (B, G, k)
        senders = candidates[:, None].expand(-1, new.shape[1], -1).gather(2, columns)
        edges.append((senders, cosines))
    return edges


def sending(edges: list[tuple[Tensor, Tensor]], size: int) -> tuple[Tensor, list]:
    """The groups (m,), of `size` rollouts each, that have to send, as `similarity_edges` begin at them; and
    these edges with their senders numbered among the m.

    >>> sending([(torch.tensor([[7, 5]]), None), (torch.tensor([[[15]]]), None)], size=2)
    (tensor([5, 7]), [(tensor([[1, 0]]), None), (tensor([[[3]]]), None)])
    """
    groups = edges[0][0].unique()  # ascending
    return groups, [(torch.searchsorted(groups, senders // n) * n + senders % n, cosines)
                    for n, (senders, cosines) in zip((1, size, size), edges)]


def groups_of_queries(ids: Tensor) -> Tensor:
    """The rows of each query's groups (Q, s), -1 where it has fewer than s; `ids` (M,) tells which groups are
    of one query.

    >>> groups_of_queries(torch.tensor([7, 5, 7, 7]))
    tensor([[ 1, -1, -1],
            [ 0,  2,  3]])
    """
    query, counts = ids.unique(return_inverse=True, return_counts=True)[1:]
    rows = query.argsort(stable=True)  # (M,) of the first query, of the second, ...
    column = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[query[rows]]
    return rows.new_full((len(counts), int(counts.max())), -1).index_put((query[rows], column), rows)


def edge_weights(cosines: Tensor) -> Tensor:
    """max(cos_ij, 0) / degree of each receiver's edges (..., k): a mean in which what is unlike says nothing.
    A column of cosine -inf is no edge; all others count in the degree, whatever their cosine."""
    return cosines.clamp(min=0) / cosines.isfinite().sum(-1, keepdim=True).clamp(min=1)


def receive_messages(messages: Tensor, senders: Tensor, weights: Tensor) -> Tensor:
    """sum_j weight_ij message_j over each receiver's edges (..., k). Messages (M, w) or (M, G, w) -> (...,
    w); of (M, G, w) sender m*G + g is rollout g of group m."""
    flat = senders.flatten(0, -2), messages.flatten(0, -2)
    heard = F.embedding_bag(*flat, per_sample_weights=weights.flatten(0, -2), mode="sum")
    return heard.unflatten(0, senders.shape[:-1])


def structural_edges(count: int, size: int, device=None) -> tuple[Tensor, Tensor]:
    """The edges inside `count` groups of `size` rollouts, query-thinking and thinking-answer, both ways, (2,
    e) each. Nodes are numbered: all queries, then all thinkings, then all answers.

    >>> [edges.tolist() for edges in structural_edges(1, 2)]
    [[[0, 0, 1, 2], [1, 2, 0, 0]], [[1, 2, 3, 4], [3, 4, 1, 2]]]
    """
    thinkings = count + torch.arange(count * size, device=device)
    queries = torch.arange(count, device=device).repeat_interleave(size)
    pairs = (queries, thinkings), (thinkings, thinkings + count * size)
    return tuple(torch.stack([torch.cat([a, b]), torch.cat([b, a])]) for a, b in pairs)


# ----------------------------------------------------------------------------------------------- the networks


class GCNLayer(nn.Module):
    """D^-1/2 (A + I) D^-1/2 X W + b (Kipf & Welling, arXiv 1609.02907, eq. 2), D the degrees of A + I."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """x (n, in_dim), edge_index (2, e) of sources and targets, an undirected edge both ways -> (n,
        out_dim)."""
        source, target = edge_index
        scale = (1 + torch.bincount(target, minlength=len(x))).rsqrt()[:, None]
        h = scale * x
        h = h.index_add(0, target, h.index_select(0, source))  # h itself is the self-loop I
        return self.linear(scale * h)


class Judge(nn.Module):
    """The head of every network: q . r / sqrt(width) + b, a logit (MemReward, arXiv 2603.19310)."""

    def __init__(self, query: int, rollout: int, width: int):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(query, width), nn.LayerNorm(width))
        self.rollout = nn.Sequential(nn.Linear(rollout, width), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, query: Tensor, *rollout: Tensor) -> Tensor:
        """States of queries (B, w) and of their rollouts (B, G, w) each -> logits (B, G)."""
        q = self.query(query)[:, None]  # (B, 1, width)
        r = self.rollout(torch.cat(rollout, dim=-1))  # (B, G, width)
        return (q * r).sum(-1) / q.shape[-1]**0.5 + self.bias


class RewardGNN(nn.Module):
    """The fast memory: a heterogeneous GCN. `send` runs on groups with known rewards, `receive` on the groups
    to be judged; both share every weight.

    A node starts as its type, an answer with its features, a sender's thinkings and answers with the known
    reward as -1 or 1. Kind "paper" is the paper's network instead: embeddings are inputs and known rewards
    are not.
    """

    def __init__(self, dim: int, features: int, hidden: int = 64, layers: int = 2, dropout: float = 0.1,
                 kind: str = "gcn"):
        super().__init__()
        self.kind, self.dropout = kind, nn.Dropout(dropout)
        widths = [3 + features + (dim if kind == "paper" else 1)] + [hidden] * (layers - 1)
        self.query_thinking = nn.ModuleList(GCNLayer(width, hidden) for width in widths)
        self.thinking_answer = nn.ModuleList(GCNLayer(width, hidden) for width in widths)
        self.similarity = nn.ModuleList(  # of queries, of thinkings, of answers
            nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(3)) for width in widths)
        self.judge = Judge(hidden, 2 * hidden + features, hidden // 2)

    def inputs(self, groups: Groups, rewards: Tensor | None = None) -> Tensor:
        """What the n = B + 2*B*G nodes start as (n, 3+f+1), of kind "paper" (n, 3+f+d): queries first, then
        thinkings, then answers."""
        count, features = len(groups.features), groups.features.flatten(0, 1)  # (B*G, f)
        types = torch.eye(3, device=features.device)[:, None]  # (3, 1, 3): a query, a thinking, an answer
        if self.kind == "paper":
            scale = groups.queries.shape[-1]**0.5  # the entries of a unit vector become about 1
            own = [scale * part.flatten(0, -2) for part in groups[:3]]
        else:
            known = torch.zeros_like(features[:, :1]) if rewards is None else 2 * rewards.view(-1, 1) - 1
            own = [known.new_zeros(count, 1), known, known]
        described = [features.new_zeros(count, features.shape[1]), torch.zeros_like(features), features]
        nodes = [torch.cat([kind.expand(len(x), 3), f, x], dim=1)
                 for kind, f, x in zip(types, described, own, strict=True)]
        return torch.cat(nodes)

    def structure(self, layer: int, x: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
        """One graph convolution over both kinds of structural edges, (n, w) -> (n, hidden)."""
        return self.query_thinking[layer](x, edges[0]) + self.thinking_answer[layer](x, edges[1])

    def send(self, groups: Groups, rewards: Tensor) -> list[list[Tensor]]:
        """What groups with known rewards (B, G) tell others: for each layer the states h that come into it,
        of queries (B, w), thinkings and answers (B, G, w). No similarity edge comes in, so they depend on
        nobody else."""
        x, sent = self.inputs(groups, rewards), []
        edges = structural_edges(*rewards.shape, rewards.device)
        for layer in range(len(self.similarity)):
            x = F.relu(self.structure(layer - 1, x, edges)) if layer else x  # what leaves the layer before
            sent.append(by_type(x, *rewards.shape))
        return sent

    def receive(self, groups: Groups, sent: list[list[Tensor]], edges: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (B, G) of groups without rewards, given what others `sent` and the `similarity_edges` to
        them: W of the mean state is the mean of the messages W h."""
        shape = groups.features.shape[:2]
        x, inside = self.inputs(groups), structural_edges(*shape, groups.features.device)
        edges = [(senders, edge_weights(cosines)) for senders, cosines in edges]
        for layer, (relations, states) in enumerate(zip(self.similarity, sent)):
            heard = [relation(receive_messages(h, *weighted)).flatten(0, -2)
                     for relation, h, weighted in zip(relations, states, edges)]
            x = self.dropout(F.relu(self.structure(layer, x, inside) + torch.cat(heard)))
        query, thinking, answer = by_type(x, *shape)
        return self.judge(query, thinking, answer, groups.features)


def by_type(x: Tensor, count: int, size: int) -> list[Tensor]:
    """The states of queries (B, w), thinkings and answers (B, G, w) out of all nodes' (B + 2*B*G, w)."""
    query, *rollouts = x.split([count, count * size, count * size])
    return [query, *(part.unflatten(0, (count, size)) for part in rollouts)]


class RewardMLP(nn.Module):
    """The slow learner beside the memory: it sees the embeddings themselves and learns by fitting only. Used
    as RewardGNN is, so that both can take turns."""

    def __init__(self, dim: int, features: int, hidden: int = 64, layers: int = 2, dropout: float = 0.1):
        super().__init__()
        self.scale = dim**0.5  # a unit vector's entries become about 1, as features are

        def tower(width: int) -> nn.Sequential:
            widths = [width] + [hidden] * layers
            return nn.Sequential(*(part for pair in zip(widths, widths[1:])
                                   for part in (nn.Linear(*pair), nn.ReLU(), nn.Dropout(dropout))))

        self.query, self.rollout = tower(dim), tower(2 * dim + features)
        self.judge = Judge(hidden, hidden + features, hidden // 2)

    def send(self, groups: Groups, rewards: Tensor) -> list:
        """Nothing: nobody listens."""
        return []

    def receive(self, groups: Groups, sent: list, edges: list) -> Tensor:
        """Logits (B, G), whatever the memory says."""
        queries, thinkings, answers = (self.scale * part for part in groups[:3])
        rollouts = torch.cat([thinkings, answers, groups.features], dim=-1)
        return self.judge(self.query(queries), self.rollout(rollouts), groups.features)


# --------------------------------------------------------------------------------------------------- training


def fit(model: nn.Module, memory: Groups, rewards: Tensor, ids: Tensor, neighbors: int,
        held_out: Tensor | None = None, epochs: int = 150, patience: int = 20, learning_rate: float = 1e-3,
        weight_decay: float = 1e-2, seed: int = 0) -> list[dict]:
    """Train on the memory's own rewards (M, G), leave-one-out: a group never hears itself, but it hears the
    other groups of its query, its siblings. So training looks like use, where a query has labelled ones that
    are much like it.

    Every group sends; the loss is the binary cross-entropy of all groups but those `held_out` (M,) marks.
    Training stops after `patience` epochs without a lower loss on those, and the best epoch's weights are
    restored; where none is held out it lasts `patience` epochs. `ids` (M,) tells which groups are of one
    query. Returns one dict an epoch: epoch, train_loss, val_loss, val_auc (nan without validation), best
    (True for the epoch kept). The global random state stays as it was.
    """
    held_out = torch.zeros_like(ids, dtype=torch.bool) if held_out is None else held_out
    edges = similarity_edges(memory, memory, neighbors, same_rollouts(memory), ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    history, best, weights = [], {"epoch": 0, "val_loss": math.inf}, None
    parts = [(memory.rows(rows), [(near[rows], cosines[rows]) for near, cosines in edges], rewards[rows])
             for rows in (~held_out, held_out)]

    def loss_of(groups: Groups, edges: list[tuple[Tensor, Tensor]], truth: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.receive(groups, model.send(memory, rewards), edges)
        return logits, F.binary_cross_entropy_with_logits(logits, truth)

    with seeded(seed, ids.device):
        for epoch in range(epochs if held_out.any() else min(epochs, patience)):
            model.train()
            _, loss = loss_of(*parts[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append({"epoch": epoch, "train_loss": loss.item(), "val_loss": math.nan,
                            "val_auc": math.nan, "best": False})
            if held_out.any():
                model.eval()
                with torch.no_grad():
                    logits, val_loss = loss_of(*parts[1])
                auc = metrics(logits.sigmoid().flatten(), rewards[held_out].flatten())["auc"]
                history[-1].update(val_loss=val_loss.item(), val_auc=auc)
                if val_loss < best["val_loss"]:
                    best, weights = history[-1], copy.deepcopy(model.state_dict())  # no alias: it trains on
                elif epoch - best["epoch"] >= patience:
                    break
    if weights is None:
        best = history[-1]
    else:
        model.load_state_dict(weights)
    best["best"] = True
    model.eval()
    return history


def same_rollouts(groups: Groups) -> Tensor:
    """(M, M) of bool, True for groups that hold the same rollouts, whatever their ids: each group itself, and
    its copies, equal in every number but for rounding: query, thinkings, answers and features, rollout by
    rollout."""
    rows = torch.cat([part.flatten(1) for part in groups], dim=1).cpu().double()
    return (torch.cdist(rows, rows) < 1e-3).to(groups.queries.device)  # another batch rounds otherwise


def fold_ids(ids: Tensor, count: int) -> Tensor:
    """A random fold (M,) from 0 to count - 1 for each group, the same for all groups of an id; -1 where there
    are fewer ids than folds."""
    unique, inverse = ids.unique(return_inverse=True)
    if len(unique) < count:
        return torch.full_like(ids, -1)
    return (torch.randperm(len(unique)) % count).to(ids.device)[inverse]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device):
    """Seed torch inside the block and put the global random state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def metrics(probabilities: Tensor, rewards: Tensor, threshold: float = 0.5) -> dict[str, float]:
    """How well probabilities (n,) tell right rollouts (reward 1) from wrong ones; nan where a quotient is
    0/0.

    Reward 1 is predicted above the threshold. f1 is twice the hits over the number of predicted plus the
    number of right ones; fp_rate the share of wrong rollouts that would be rewarded; auc the probability that
    a right rollout scores above a wrong one, a tie counting one half. All are plain floats.

    >>> result = metrics(torch.tensor([0.9, 0.8, 0.8, 0.1]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    >>> {name: round(value, 3) for name, value in result.items()}
    {'accuracy': 0.75, 'precision': 0.667, 'recall': 1.0, 'f1': 0.8, 'fp_rate': 0.5, 'auc': 0.875}
    """
    right, predicted = rewards > 0.5, probabilities > threshold
    hits, false = (predicted & right).sum().item(), (predicted & ~right).sum().item()
    positives, negatives = right.sum().item(), (~right).sum().item()
    _, value, counts = probabilities.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[value]  # equal values share their mean rank, from 1
    rank_sum = ranks[right].double().sum().item() - positives * (positives + 1) / 2

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    return {
        "accuracy": ratio(hits + negatives - false, positives + negatives),
        "precision": ratio(hits, hits + false),
        "recall": ratio(hits, positives),
        "f1": ratio(2 * hits, hits + false + positives),
        "fp_rate": ratio(false, negatives),
        "auc": ratio(rank_sum, positives * negatives),
    }
