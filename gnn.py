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


def similarity_edges(receivers: Groups, memory: Groups, k: int, exclude: Tensor | None = None,
                     ids: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """The one graph of training and prediction: (senders, cosines) of queries (B, n), thinkings and answers (B, G, k).

    A query hears from all groups of the k nearest memory queries (n is k times the most groups of a query); a thinking
    (an answer) from the k most similar thinkings (answers) among their rollouts. Sender numbers count the memory's
    rows, for rollouts M*G of them. `ids` (M,) tells which groups are of one query (None: each of another). `exclude`
    (B, M) hides memory groups from a receiver; an edge of cosine -inf fills a column and carries nothing. k = 0: none.
    """
    count, size = memory.thinkings.shape[:2]
    ids = torch.arange(count, device=memory.queries.device) if ids is None else ids
    if k == 0:
        k, exclude = 1, ids.new_ones(len(receivers.queries), count, dtype=torch.bool)
    near, cosines = knn(receivers.queries, memory.queries, k * int(ids.bincount().max()), exclude)  # (B, n)
    seen = (ids[near][:, :, None] == ids[near][:, None]).tril(-1).any(-1)  # another group of this query came before
    cosines = cosines.masked_fill((~seen).cumsum(-1) > k, -math.inf)
    edges = [(near, cosines)]
    candidates = (near[..., None] * size + torch.arange(size, device=near.device)).flatten(1)  # (B, n*G)
    hidden = cosines.isinf().repeat_interleave(size, dim=1)[:, None]  # (B, 1, n*G)
    for new, old in ((receivers.thinkings, memory.thinkings), (receivers.answers, memory.answers)):
        columns, cosines = knn(new, old[near].flatten(1, 2), k, hidden)  # (B, G, k)
        senders = candidates[:, None].expand(-1, new.shape[1], -1).gather(2, columns)
        edges.append((senders, cosines))
    return edges


def edge_weights(cosines: Tensor) -> Tensor:
    """max(cos_ij, 0) / degree of each receiver's edges (..., k): a mean in which what is unlike says nothing."""
    return cosines.clamp(min=0) / cosines.isfinite().sum(-1, keepdim=True).clamp(min=1)


def receive_messages(messages: Tensor, senders: Tensor, weights: Tensor) -> Tensor:
    """sum_j weight_ij message_j over each receiver's edges (..., k). Messages (M, w) or (M, G, w) -> (..., w)."""
    flat = senders.flatten(0, -2), messages.flatten(0, -2)
    heard = F.embedding_bag(*flat, per_sample_weights=weights.flatten(0, -2), mode="sum")
    return heard.unflatten(0, senders.shape[:-1])


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


def structural_sums(query: Tensor, thinking: Tensor, answer: Tensor) -> list[Tensor]:
    """D^-1/2 (A + I) D^-1/2 X of both structural relations, written out, since every group has the same few edges: of
    query-thinking, a star, for queries (B, w) and thinkings (B, G, w); of thinking-answer, pairs, whose two nodes get
    the same, once (B, G, w).

    >>> structural_sums(torch.tensor([[1.0]]), torch.tensor([[[4.0]]]), torch.tensor([[[8.0]]]))  # all degrees are 2
    [tensor([[2.5000]]), tensor([[[2.5000]]]), tensor([[[6.]]])]
    """
    degree = 1 + thinking.shape[1]  # of a query; that of thinkings and answers is 2
    across = (2 * degree)**-0.5
    return [query / degree + across * thinking.sum(1), thinking / 2 + across * query[:, None], (thinking + answer) / 2]


class RewardGNN(nn.Module):
    """Judges rollouts: a heterogeneous GCN, then sigma(q . r / sqrt(width) + b) (MemReward, arXiv 2603.19310).

    `send` runs on groups with known rewards, `receive` on the groups to be judged; both share every weight. Kinds:
    "gcn"; "unlabelled", known rewards are no input, as in the paper; "gat", attention weighs similarity edges; "mlp", a
    group has no edges inside.
    """

    def __init__(self, dim: int, features: int, hidden: int = 512, layers: int = 2, dropout: float = 0.1,
                 kind: str = "gcn"):
        super().__init__()
        self.kind, self.dropout = kind, nn.Dropout(dropout)
        self.loud = dim**0.5  # scale of what is a column or two beside d others, and would hardly be heard at first
        widths = [dim + features + 1] + [hidden] * (layers - 1)
        self.query_thinking = nn.ModuleList(GCNLayer(width, hidden) for width in widths)
        self.thinking_answer = nn.ModuleList(GCNLayer(width, hidden) for width in widths)
        self.similarity = nn.ModuleList(  # of queries, of thinkings, of answers
            nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(3)) for width in widths)
        if kind == "gat":
            self.attend_receiver = nn.ModuleList(nn.Linear(widths[0], hidden) for _ in range(3))
            self.attend = nn.ModuleList(nn.Linear(hidden, 1, bias=False) for _ in range(3))
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

    def embed(self, groups: Groups, rewards: Tensor | None = None) -> list[Tensor]:
        """Input states of queries (B, d+f+1), thinkings and answers (B, G, d+f+1): an embedding, the features of an
        answer, the known reward's sign, both scaled up; zeros for what a node has not. A receiver has no reward."""
        features = self.standardised(groups)
        known = torch.zeros_like(features[..., :1]) if rewards is None else self.known(rewards)
        query = F.pad(groups.queries, (0, features.shape[-1] + 1))
        thinking = torch.cat([groups.thinkings, torch.zeros_like(features), known], dim=-1)
        answer = torch.cat([groups.answers, self.loud / features.shape[-1]**0.5 * features, known], dim=-1)
        return [query, thinking, answer]

    def known(self, rewards: Tensor) -> Tensor:
        """The last column of a sender's inputs (B, G, 1): its rewards (B, G) as -1 or 1, scaled up."""
        return self.loud * (2 * rewards[..., None] - 1) * (self.kind != "unlabelled")

    def sums(self, query: Tensor, thinking: Tensor, answer: Tensor) -> list[Tensor]:
        """`structural_sums`; without structural edges, what stands there."""
        return [query, thinking, answer] if self.kind == "mlp" else structural_sums(query, thinking, answer)

    def structure(self, layer: int, sums: list[Tensor]) -> list[Tensor]:
        """What both structural GCN layers give queries (B, hidden), thinkings and answers (B, G, hidden), from their
        `structural_sums`."""
        query, thinking, pair = sums
        upper, lower = self.query_thinking[layer].linear, self.thinking_answer[layer].linear
        answer = lower(pair)
        return [upper(query), upper(thinking) + answer, answer]

    def reward_part(self, rewards: Tensor) -> list[Tensor]:
        """What known rewards (B, G) add to `structure` in layer 0, where they are the last column of the inputs."""
        known = self.known(rewards)
        query, thinking, pair = self.sums(torch.zeros_like(known[:, 0]), known, known)
        upper, lower = (relation[0].linear.weight[:, -1] for relation in (self.query_thinking, self.thinking_answer))
        answer = pair * lower
        return [query * upper, thinking * upper + answer, answer]

    def sender_states(self, x: list[Tensor], own: list[Tensor], rewards: Tensor) -> list[list[Tensor]]:
        """States of groups with known rewards before each layer, from their inputs `x` and the structural part `own` of
        layer 0 that they have without rewards. No similarity edge comes in, so they depend on nobody else."""
        states = [x]
        for layer in range(len(self.similarity) - 1):
            own = self.structure(layer, self.sums(*x)) if layer else map(torch.add, own, self.reward_part(rewards))
            states.append(x := [F.relu(h) for h in own])
        return states

    def judge(self, own: list[Tensor], similar: list[list[Tensor]], features: Tensor) -> Tensor:
        """Logits (B, G) from the structural part `own` of layer 0, and what similarity edges bring in each layer."""
        for layer, heard in enumerate(similar):
            own = self.structure(layer, self.sums(*x)) if layer else own
            x = [self.dropout(F.relu(part + message)) for part, message in zip(own, heard)]
        query, thinking, answer = x
        query = self.query_head(query)[:, None]  # (B, 1, hidden/2)
        rollout = self.rollout_head(torch.cat([thinking, answer, features], dim=-1))  # (B, G, hidden/2)
        return (query * rollout).sum(-1) / query.shape[-1]**0.5 + self.bias

    def send(self, groups: Groups, rewards: Tensor) -> list[list[Tensor]]:
        """What groups with known rewards (B, G) tell others: for each layer the messages W h of queries (B, hidden),
        thinkings and answers (B, G, hidden)."""
        own = self.structure(0, self.sums(*self.embed(groups)))
        states = self.sender_states(self.embed(groups, rewards), own, rewards)
        return [[relation(h) for relation, h in zip(*layer)] for layer in zip(self.similarity, states)]

    def receive(self, groups: Groups, messages: list[list[Tensor]], edges: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (B, G) of groups without rewards, given the senders' `messages` and the `similarity_edges` to them."""
        x = self.embed(groups)
        edges = self.weigh(x, messages[0], edges)
        similar = [[receive_messages(table, *edge) for table, edge in zip(tables, edges)] for tables in messages]
        return self.judge(self.structure(0, self.sums(*x)), similar, self.standardised(groups))

    def weigh(self, x: list[Tensor], messages: list[Tensor],
              edges: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """(senders, weights) of the similarity edges, for all layers: `edge_weights`, or of kind "gat" those of GATv2
        (arXiv 2105.14491, eq. 7), softmax_j a . leaky_relu(W h_j + V h_i), with layer 0's messages W h_j and inputs `x`
        of receivers."""
        if self.kind != "gat":
            return [(senders, edge_weights(cosines)) for senders, cosines in edges]
        weighed = []
        for (senders, cosines), table, h, right, score in zip(edges, messages, x, self.attend_receiver, self.attend):
            pairs = table.flatten(0, -2)[senders] + right(h)[..., None, :]  # (..., k, hidden)
            scores = score(F.leaky_relu(pairs, 0.2)).squeeze(-1).masked_fill(cosines.isinf(), -1e9)
            weighed.append((senders, scores.softmax(-1) * cosines.isfinite()))
        return weighed


def fit(model: RewardGNN, memory: Groups, rewards: Tensor, ids: Tensor, neighbors: int, held_out: Tensor | None = None,
        epochs: int = 150, patience: int = 20, learning_rate: float = 1e-3, weight_decay: float = 1e-2,
        seed: int = 0) -> list[dict]:
    """Train on the memory's own rewards (M, G), leave-one-out: a group never hears from a group with the same id (M,).

    Every group sends; the loss is the binary cross-entropy of all groups but those `held_out` (M,) marks. Training
    stops after `patience` epochs without a lower loss on those, and the best epoch's weights are restored; where none
    is held out it lasts `patience` epochs. Returns one dict an epoch: epoch, train_loss, val_loss, val_auc (nan without
    validation), best (True for the epoch kept). The global random state stays as it was.
    """
    model.train().standardise_by(memory.features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    edges = similarity_edges(memory, memory, neighbors, ids[:, None] == ids, ids)
    held_out = torch.zeros_like(ids, dtype=torch.bool) if held_out is None else held_out
    # What no epoch changes is computed once. As sums commute with W, messages are summed first, here, and multiplied by
    # W for the rows that are judged: sums of layer 0 are constant, and held-out rows take no part in the gradient.
    asked, inputs, features = model.embed(memory), model.embed(memory, rewards), model.standardised(memory)
    sums = model.sums(*asked)

    def weigh() -> list[tuple[Tensor, Tensor]]:
        return model.weigh(asked, [relation(h) for relation, h in zip(model.similarity[0], inputs)], edges)

    def judge(part: Tensor, own: list[Tensor], heard: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        similar = [[relation(h[part]) for relation, h in zip(*layer)] for layer in zip(model.similarity, heard)]
        logits = model.judge([h[part] for h in own], similar, features[part])
        return logits, F.binary_cross_entropy_with_logits(logits, rewards[part])

    listen = lambda x, weighed: [receive_messages(h, *edge) for h, edge in zip(x, weighed)]  # noqa: E731
    history, best, weights, weighed = [], {"epoch": 0, "val_loss": math.inf}, None, None
    with seeded(seed, ids.device):
        for epoch in range(epochs if held_out.any() else min(epochs, patience)):
            if weighed is None or model.kind == "gat":  # attention alone changes with training
                weighed = weigh()
                heard_first = listen(inputs, weighed)
            own = model.structure(0, sums)  # serves senders, training and validation: all before the step
            heard = [heard_first] + [listen(x, weighed) for x in model.sender_states(inputs, own, rewards)[1:]]
            _, loss = judge(~held_out, own, heard)
            history.append({"epoch": epoch, "train_loss": loss.item(), "val_loss": math.nan, "val_auc": math.nan,
                            "best": False})
            if held_out.any():
                model.eval()
                with torch.no_grad():
                    logits, val_loss = judge(held_out, own, heard)
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


def calibrate(inputs: Tensor, rewards: Tensor, strength: float = 3.0) -> Tensor:
    """Weights (f,) of a logistic regression of rewards (n,) on inputs (n, f), of which the first is a logit. They are
    held near (1, 0, .., 0), the logit as it is, by strength/2 times the squared distance. With a logit and a 1 as
    inputs it is Platt scaling.

    >>> logit, one = torch.linspace(-4, 4, 999), torch.ones(999)
    >>> round(calibrate(torch.stack([4 * logit, one], 1), logit.sigmoid())[0].item(), 2)
    0.25
    """
    inputs, rewards = inputs.double(), rewards.double()
    start = torch.eye(inputs.shape[1])[0].to(inputs)
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights, rewards, reduction="sum")
        loss = loss + strength / 2 * (weights - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach().float()


def fold_ids(ids: Tensor, count: int) -> Tensor:
    """A random fold (M,) from 0 to count - 1 for each group, the same for all groups of an id; -1 where there are fewer
    ids than folds."""
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


def calibration_error(probabilities: Tensor, rewards: Tensor, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - share of right ones| in equal bins of [0, 1], weighted by size.

    >>> round(calibration_error(torch.tensor([0.9, 0.9, 0.2, 0.1]), torch.tensor([1.0, 0.0, 0.0, 0.0])), 3)
    0.275
    """
    bin_of = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, device=rewards.device).index_add(0, bin_of, probabilities - rewards)
    return gaps.abs().sum().item() / len(rewards)
