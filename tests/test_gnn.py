"""The reward network against slow, obvious twins: dense matrices, loops over pairs, one group at a time."""

import copy
import math

import pytest
import torch

import gnn
from gnn import (
    GCNLayer,
    Groups,
    RewardGNN,
    RewardMLP,
    fit,
    fold_ids,
    knn,
    metrics,
    same_rollouts,
    similarity_edges,
)
from support.calibration import calibrate, calibration_error
from support.coverage import facility_location

torch.set_num_threads(1)
D, F, G, H = 12, 3, 4, 16


def random_groups(count, size=G, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (count, D), (count, size, D), (count, size, D), (count, size, F)
    return Groups(*(torch.randn(*shape, generator=g) for shape in shapes))


def random_rewards(count, size=G, seed=0):
    return (torch.rand(count, size, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def small_model(layers=2, dropout=0.0, seed=0, kind="gcn"):
    torch.manual_seed(seed)
    shape = D, F, H, layers, dropout
    model = RewardMLP(*shape) if kind == "mlp" else RewardGNN(*shape, kind)
    torch.nn.init.normal_(model.judge.bias)  # it starts at zero, where a forgotten one would not show
    return model


def judge(model, receivers, memory, rewards, k=3, exclude=None, ids=None):
    edges = similarity_edges(receivers, memory, k, exclude, ids)
    return model.receive(receivers, model.send(memory, rewards), edges)


# ----------------------------------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize("n, m, d, k, excluded", [(5, 40, 8, 3, 0.0), (7, 9, 3, 9, 0.0), (3, 2, 4, 7, 0.0),
                                                  (20, 33, 16, 5, 0.3), (4, 6, 4, 5, 0.8)])
def test_knn_is_brute_force(n, m, d, k, excluded):
    g = torch.Generator().manual_seed(n)
    queries, memory = torch.randn(n, d, generator=g) * 5, torch.randn(m, d, generator=g) * 0.1
    exclude = torch.rand(n, m, generator=g) < excluded
    before = queries.clone(), memory.clone(), exclude.clone()
    indices, cosines = knn(queries, memory, k, exclude)
    assert indices.shape == cosines.shape == (n, min(k, m))
    for i in range(n):
        q = queries[i]
        cosine = [torch.dot(q, row).item() / (q.norm() * row.norm()).item() for row in memory]
        order = sorted((j for j in range(m) if not exclude[i, j]), key=lambda j: (-cosine[j], j))[:k]
        assert indices[i, :len(order)].tolist() == order
        assert cosines[i, :len(order)].tolist() == pytest.approx([cosine[j] for j in order], abs=1e-5)
        assert (cosines[i, len(order):] == -math.inf).all()
    assert all(torch.equal(*pair) for pair in zip(before, (queries, memory, exclude)))


@pytest.mark.parametrize("n, m", [(1, 9), (3, 37), (50, 101)])
def test_knn_ties_go_to_the_lower_index(n, m):
    g = torch.Generator().manual_seed(m)
    memory = torch.randn(m, 20, generator=g)
    twins = torch.randperm(m, generator=g)[:m // 2].sort().values
    memory[twins] = memory[twins[0]].clone()
    indices, _ = knn(memory[twins[:1]] + 0.01 * torch.randn(n, 20, generator=g), memory, k=len(twins))
    assert (indices == twins).all()


def test_knn_tells_cosines_apart_to_a_millionth():
    """Seen from (1, 0): 1e-5 decides, 1e-7 is rounding and leaves the lower row first."""
    for more, first in ((1e-5, 1), (1e-7, 0)):
        cosines = torch.tensor([0.5, 0.5 + more], dtype=torch.float64)
        memory = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
        assert knn(torch.tensor([[1.0, 0.0]], dtype=torch.float64), memory, 2)[0][0, 0] == first


def test_knn_of_zero_rows_is_finite():
    indices, cosines = knn(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), 2)
    assert indices.tolist() == [[0, 1]] * 2 and (cosines == 0).all()


def test_knn_of_stacked_problems_is_each_alone():
    g = torch.Generator().manual_seed(0)
    queries, memory = torch.randn(3, 4, 6, generator=g), torch.randn(3, 10, 6, generator=g)
    indices, cosines = knn(queries, memory, 2)
    for b in range(3):
        alone = knn(queries[b], memory[b], 2)
        assert torch.equal(indices[b], alone[0]) and torch.allclose(cosines[b], alone[1])


# -------------------------------------------------------------------------------------------------- the graph


@pytest.mark.parametrize("k, size, excluded", [(2, G, 0.0), (3, 2, 0.5), (20, G, 0.0)])
def test_similarity_edges_are_a_search_among_the_retrieved_groups(k, size, excluded):
    memory, receivers = random_groups(6), random_groups(5, size, seed=1)
    exclude = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < excluded
    edges = similarity_edges(receivers, memory, k, exclude)

    def real(senders, cosines):
        return [s for s, c in zip(senders.tolist(), cosines.tolist()) if c > -2]

    for b in range(5):
        open_rows = [m for m in range(6) if not exclude[b, m]]
        near = sorted(open_rows, key=lambda m: -cos(receivers.queries[b], memory.queries[m]))[:k]
        assert real(edges[0][0][b], edges[0][1][b]) == near
        for (senders, cosines), new, old in ((edges[1], receivers.thinkings, memory.thinkings),
                                             (edges[2], receivers.answers, memory.answers)):
            rows, old = [m * G + g for m in near for g in range(G)], old.flatten(0, 1)
            for g in range(size):
                best = sorted(rows, key=lambda row: -cos(new[b, g], old[row]))[:k]
                assert real(senders[b, g], cosines[b, g]) == best


@pytest.mark.parametrize("k, excluded", [(1, []), (2, [4]), (9, [0, 5])])
def test_neighbours_are_counted_by_query_not_by_group(k, excluded):
    """Two groups of one query, in any order of rows, take one of the k places, and both are heard."""
    ids, receivers = torch.tensor([2, 0, 1, 2, 3, 1, 0]), random_groups(4, seed=1)
    memory = random_groups(7)
    for row, id in enumerate(ids.tolist()):
        memory.queries[row] = memory.queries[ids.tolist().index(id)]
    receivers.queries[0] = memory.queries[4]  # nearest to the only query with one group
    exclude = torch.zeros(4, 7, dtype=torch.bool)
    exclude[:, excluded] = True
    edges = similarity_edges(receivers, memory, k, exclude, ids)
    for b, (near, cosines) in enumerate(zip(*edges[0])):
        cosine = torch.cosine_similarity(receivers.queries[b], memory.queries, dim=1)
        rows = [row for row in cosine.argsort(descending=True).tolist() if row not in excluded]
        wanted = list(dict.fromkeys(ids[rows].tolist()))[:k]
        heard = {row for row in rows if ids[row] in wanted}
        assert set(near[cosines.isfinite()].tolist()) == heard
        for senders, cosines in (edges[1], edges[2]):
            assert {row // G for row in senders[b][cosines[b].isfinite()].tolist()} <= heard


def test_queries_that_are_alike_crowd_out_no_sibling():
    """Four queries with one embedding, all their first groups stored before the second ones: the first two
    queries are the two nearest, and both groups of both are heard."""
    ids, memory, receivers = torch.arange(4).repeat(2), random_groups(8), random_groups(3, seed=1)
    memory = memory._replace(queries=memory.queries[:1].expand(8, -1))
    near, cosines = similarity_edges(receivers, memory, 2, None, ids)[0]
    assert near.tolist() == [[0, 4, 1, 5]] * 3 and cosines.isfinite().all()
    itself = torch.eye(8, dtype=torch.bool)  # a group that is hidden leaves its place to nobody
    near, cosines = similarity_edges(memory, memory, 2, itself, ids)[0]
    heard = [rows[seen].tolist() for rows, seen in zip(near, cosines.isfinite())]
    assert heard == [[4, 1, 5], [0, 4, 5], *[[0, 4, 1, 5]] * 2, [0, 1, 5], [0, 4, 1], *[[0, 4, 1, 5]] * 2]


@pytest.mark.parametrize("edges", [[], [(0, 1), (1, 0)], [(3, 0)],
                                   [(0, 1), (1, 0), (1, 2), (2, 1), (4, 2), (2, 4)]])
def test_gcn_layer_is_the_dense_formula(edges):
    torch.manual_seed(0)
    layer, x = GCNLayer(3, 4), torch.randn(5, 3)
    adjacency = torch.eye(5)
    for source, target in edges:
        adjacency[target, source] += 1
    scale = torch.diag(adjacency.sum(1) ** -0.5)
    expected = scale @ adjacency @ scale @ x @ layer.linear.weight.T + layer.linear.bias
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    assert torch.allclose(layer(x, edge_index), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ the network


def slow_start(model, groups, m, rewards=None):
    """The nodes of one group as vectors: type, features, known reward or (the paper's network) embedding."""
    def node(kind, features, known, embedding):
        own = D**0.5 * embedding if model.kind == "paper" else torch.tensor([known])
        return torch.cat([torch.eye(3)[kind], features, own])

    nodes = {"q": node(0, torch.zeros(F), 0.0, groups.queries[m])}
    for g in range(groups.thinkings.shape[1]):
        known = 0.0 if rewards is None else (1.0 if rewards[m, g] else -1.0)
        nodes["t", g] = node(1, torch.zeros(F), known, groups.thinkings[m, g])
        nodes["a", g] = node(2, groups.features[m, g], known, groups.answers[m, g])
    return nodes


def slow_layer(model, n, nodes, similar):
    """One layer over a group: both structural convolutions, edge by edge, and what comes from elsewhere."""
    size, new = (len(nodes) - 1) // 2, {}
    edges = {"up": [("q", ("t", g)) for g in range(size)], "low": [(("t", g), ("a", g)) for g in range(size)]}
    for name in nodes:
        total = torch.zeros(H)
        for relation, layer in (("up", model.query_thinking[n]), ("low", model.thinking_answer[n])):
            ends = [{a, b} for a, b in edges[relation]]
            degree = {other: 1 + sum(other in end for end in ends) for other in nodes}
            near = [other for other in nodes if other != name and {name, other} in ends]
            mixed = nodes[name] / degree[name]
            mixed = mixed + sum(nodes[other] / (degree[name] * degree[other]) ** 0.5 for other in near)
            total = total + layer.linear.weight @ mixed + layer.linear.bias
        new[name] = torch.relu(total + similar.get(name, 0))
    return new


def cos(a, b):
    return torch.cosine_similarity(a, b, dim=0).item()


def slow_logit(model, receivers, b, g, memory, rewards, k, exclude=()):
    """One logit by loops over single nodes and edges, straight from the formulas."""
    near = sorted(set(range(len(memory.queries))) - set(exclude),
                  key=lambda m: -cos(receivers.queries[b], memory.queries[m]))[:k]
    neighbours = {"q": [(cos(receivers.queries[b], memory.queries[m]), m, "q") for m in near]}
    for i in range(receivers.thinkings.shape[1]):
        for name, new, old in (("t", receivers.thinkings, memory.thinkings),
                               ("a", receivers.answers, memory.answers)):
            pairs = [(cos(new[b, i], old[m, j]), m, (name, j)) for m in near for j in range(old.shape[1])]
            neighbours[name, i] = sorted(pairs, key=lambda pair: -pair[0])[:k]
    senders, x = {m: slow_start(model, memory, m, rewards) for m in near}, slow_start(model, receivers, b)
    for n in range(len(model.similarity)):
        relation = dict(zip("qta", model.similarity[n], strict=True))
        heard = {name: [max(c, 0) * (relation[name[0]].weight @ senders[m][other]) for c, m, other in pairs]
                 for name, pairs in neighbours.items()}
        similar = {name: sum(messages) / len(messages) for name, messages in heard.items() if messages}
        x = slow_layer(model, n, x, similar)
        senders = {m: slow_layer(model, n, nodes, {}) for m, nodes in senders.items()}
    query = model.judge.query(x["q"])
    rollout = model.judge.rollout(torch.cat([x["t", g], x["a", g], receivers.features[b, g]]))
    return torch.dot(query, rollout) / len(query) ** 0.5 + model.judge.bias


@pytest.mark.parametrize("layers, size, k, exclude, kind", [
    (1, G, 3, [], "gcn"), (2, G, 2, [1, 4], "gcn"), (3, 2, 9, [0], "gcn"), (2, G, 3, range(6), "gcn"),
    (2, 3, 2, [1], "paper")])
def test_logits_equal_a_slow_twin(layers, size, k, exclude, kind):
    model, memory, rewards = small_model(layers, kind=kind), random_groups(6), random_rewards(6)
    receivers = random_groups(3, size, 1)
    hidden = torch.zeros(3, 6, dtype=torch.bool)
    hidden[1, list(exclude)] = True
    logits = judge(model, receivers, memory, rewards, k, hidden)
    assert logits.shape == (3, size)
    for b in range(3):
        for g in range(size):
            slow = slow_logit(model, receivers, b, g, memory, rewards, k, exclude if b == 1 else ())
            assert logits[b, g].item() == pytest.approx(slow.item(), abs=1e-4)


RELATIONS = ([f"{name}.{layer}.linear" for name in ("query_thinking", "thinking_answer")
              for layer in range(2)]
             + [f"similarity.{layer}.{kind}" for layer in range(2) for kind in range(3)])


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_changes_the_output(relation):
    model, inputs = small_model(), (random_groups(3, seed=1), random_groups(6), random_rewards(6))
    before = judge(model, *inputs)
    torch.nn.init.zeros_(model.get_submodule(relation).weight)
    assert ((judge(model, *inputs) - before).abs() > 1e-5).all()


def test_gcn_layer_emptied_breaks_prediction(monkeypatch):
    model, inputs = small_model(), (random_groups(3, seed=1), random_groups(6), random_rewards(6))
    before = judge(model, *inputs)
    monkeypatch.setattr(GCNLayer, "forward", lambda self, x, edge_index: x.new_zeros(len(x), H))
    assert ((judge(model, *inputs) - before).abs() > 1e-4).all()


def test_only_cosines_of_embeddings_matter_to_the_graph():
    """Scaled, and rotated all together, they change nothing that the graph says."""
    model, memory, rewards = small_model(), random_groups(5), random_rewards(5)
    receivers = random_groups(3, seed=1)
    turn, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(2)))

    def turned(groups, scale):
        return Groups(*(scale * part @ turn for part in groups[:3]), groups.features)

    before = judge(model, receivers, memory, rewards)
    after = judge(model, turned(receivers, 7.0), turned(memory, 0.1), rewards)
    assert torch.allclose(after, before, atol=1e-5)


def test_a_neighbour_that_points_away_says_nothing():
    model, memory, rewards = small_model(), random_groups(1, size=1), random_rewards(1, size=1)
    away = Groups(-memory.queries, -memory.thinkings, -memory.answers, memory.features)
    assert torch.equal(judge(model, away, memory, rewards), judge(model, away, memory, 1 - rewards))


def test_without_neighbours_nothing_is_heard():
    model, memory, rewards = small_model(), random_groups(4), random_rewards(4)
    receivers = random_groups(3, seed=1)
    alone = judge(model, receivers, memory, rewards, k=0)
    assert torch.equal(alone, judge(model, receivers, memory, 1 - rewards, k=0))
    for weight in model.similarity.parameters():
        torch.nn.init.zeros_(weight)
    assert torch.allclose(alone, judge(model, receivers, memory, rewards, k=3), atol=1e-6)


def test_an_mlp_judges_every_rollout_alone():
    model, memory, groups = small_model(kind="mlp"), random_groups(4), random_groups(2, seed=1)
    before = judge(model, groups, memory, random_rewards(4))
    for part in groups[1:]:
        part[1, 2] += 1
    changed = judge(model, groups, memory, random_rewards(4)) != before
    assert changed.nonzero().tolist() == [[1, 2]]


def test_an_mlp_is_two_towers_and_a_product():
    model, groups = small_model(kind="mlp").eval(), random_groups(2)
    logits = model.receive(groups, [], [])
    for b in range(2):
        for g in range(G):
            q = D**0.5 * groups.queries[b]
            r = D**0.5 * torch.cat([groups.thinkings[b, g], groups.answers[b, g]])
            r = torch.cat([r, groups.features[b, g]])
            for layer in (0, 3):
                q, r = torch.relu(model.query[layer](q)), torch.relu(model.rollout[layer](r))
            q, r = model.judge.query(q), model.judge.rollout(torch.cat([r, groups.features[b, g]]))
            expected = q @ r / (H // 2) ** 0.5 + model.judge.bias
            assert logits[b, g].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_papers_network_hears_its_neighbours_but_not_their_rewards():
    model, memory, receivers = small_model(kind="paper"), random_groups(4), random_groups(3, seed=1)
    rewards = random_rewards(4)
    before = judge(model, receivers, memory, rewards)
    assert torch.equal(before, judge(model, receivers, memory, 1 - rewards))
    memory.thinkings.neg_()
    assert (before != judge(model, receivers, memory, rewards)).any()


def test_a_flipped_reward_reaches_its_sibling_and_never_itself():
    """In training's graph, with dropout: a rollout's own logit stays bit-identical, its sibling's change."""
    model, memory, rewards = small_model(dropout=0.2).train(), random_groups(8), random_rewards(8)
    ids = torch.arange(4).repeat(2)
    memory.queries[4:] = memory.queries[:4]  # groups i and i + 4 are siblings
    edges = similarity_edges(memory, memory, 2, same_rollouts(memory), ids)
    flipped = rewards.clone()
    flipped[3] = 1 - flipped[3]

    def logits(rewards):
        torch.manual_seed(0)
        return model.receive(memory, model.send(memory, rewards), edges)

    before, after = logits(rewards), logits(flipped)
    assert torch.equal(before[3], after[3])
    assert (before[7] != after[7]).all()


def test_copies_of_a_group_are_the_same_rollouts_under_any_id():
    groups = random_groups(4)
    for part in groups:
        part[2] = part[0]
    groups.features[3] = groups.features[0]  # one equal part is not enough
    pairs = [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2], [3, 3]]
    assert same_rollouts(groups).nonzero().tolist() == pairs
    rounded = Groups(*(part + 1e-7 * torch.randn(part.shape) for part in groups))  # of another batch
    assert same_rollouts(rounded).nonzero().tolist() == pairs
    groups.features[2, 0, 0] += 0.01
    assert [0, 2] not in same_rollouts(groups).nonzero().tolist()


def test_no_group_hears_its_copy_in_training(monkeypatch):
    memory, edges = random_groups(8), []
    for part in memory:
        part[4:] = part[:4]  # groups i and i + 4 are copies, of different queries
    monkeypatch.setattr(
        gnn, "similarity_edges", lambda *args: edges.append(similarity_edges(*args)) or edges[0])
    fit(small_model(), memory, random_rewards(8), torch.arange(8), neighbors=3, epochs=1)
    for m, (senders, cosines) in enumerate(zip(*edges[0][0])):
        heard = senders[cosines.isfinite()] % 4
        assert len(heard) == 3 and m % 4 not in heard


@pytest.mark.parametrize("ids", [list(range(8)), [0, 1, 2, 3, 0, 1, 2, 3]])
def test_leave_one_out_hides_own_rewards_bit_for_bit(ids):
    """In the graph of training, with dropout on: only the other ids hear of a flip."""
    model, memory, rewards = small_model(dropout=0.2).train(), random_groups(8), random_rewards(8)
    flipped, ids = rewards.clone(), torch.tensor(ids)
    own = ids == ids[3]
    flipped[own] = 1 - flipped[own]

    def logits(rewards):
        torch.manual_seed(0)
        return judge(model, memory, memory, rewards, k=7, exclude=ids[:, None] == ids)

    before, after = logits(rewards), logits(flipped)
    assert torch.equal(before[own], after[own])
    assert (before[~own] != after[~own]).any(dim=1).all()


# ------------------------------------------------------------------------------------------ training, metrics


def test_fit_restores_the_best_epoch():
    torch.manual_seed(0)
    model, memory, rewards, ids = small_model(), random_groups(20), random_rewards(20), torch.arange(20)
    twin, state = copy.deepcopy(model), torch.get_rng_state()
    settings = {"neighbors": 3, "held_out": ids < 4, "learning_rate": 0.01, "seed": 5}
    history = fit(model, memory, rewards, ids, epochs=40, patience=5, **settings)
    best = [entry for entry in history if entry["best"]]
    losses = [entry["val_loss"] for entry in history]
    assert len(best) == 1 and best[0]["val_loss"] == min(losses) and 0 < best[0]["epoch"] == len(history) - 6
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    shorter = fit(twin, memory, rewards, ids, epochs=best[0]["epoch"] + 1, patience=5, **settings)
    assert shorter == history[:len(shorter)]  # the same seed, the same run, which ends with its best epoch
    for mine, other in zip(model.state_dict().values(), twin.state_dict().values()):
        assert torch.equal(mine, other)
    assert torch.equal(state, torch.get_rng_state()) and not model.training


@pytest.mark.parametrize("kind", ["gcn", "mlp"])
def test_dropout_acts_in_training_and_not_in_validation(kind):
    """After one epoch the weights are those that validation saw: its loss is theirs, without dropout."""
    memory, rewards, ids = random_groups(10), random_rewards(10), torch.arange(10)
    model, held_out = small_model(dropout=0.5, kind=kind), ids < 4
    (epoch,) = fit(model, memory, rewards, ids, 3, held_out, epochs=1)
    edges = [(near[held_out], cosines[held_out])
             for near, cosines in similarity_edges(memory, memory, 3, torch.eye(10, dtype=torch.bool), ids)]
    asked, sent = memory.rows(held_out), model.send(memory, rewards)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    expected = loss(model.receive(asked, sent, edges), rewards[held_out]).item()
    assert epoch["val_loss"] == pytest.approx(expected)
    model.train()
    assert not torch.equal(model.receive(asked, sent, edges), model.receive(asked, sent, edges))


def test_fit_stops_on_labels_it_does_not_train_on():
    """The labels held out never change the loss that is trained on except as senders."""
    ids = torch.arange(10).repeat(2)
    held_out = ids < 2
    memory, rewards, losses = random_groups(20), random_rewards(20), []
    for labels in (rewards, torch.where(held_out[:, None], 1 - rewards, rewards)):
        model = small_model()
        for weight in model.similarity.parameters():
            torch.nn.init.zeros_(weight)  # nothing is sent in the first epoch
        losses.append(fit(model, memory, labels, ids, 3, held_out, epochs=1)[0])
    assert losses[0]["train_loss"] == losses[1]["train_loss"]
    assert losses[0]["val_loss"] != losses[1]["val_loss"]


@pytest.mark.parametrize("kind", ["gcn", "mlp", "paper"])
def test_fit_takes_plain_steps_on_everything_but_the_group_itself(kind):
    model, memory, rewards = small_model(layers=3, kind=kind), random_groups(6), random_rewards(6)
    ids, itself = torch.arange(3).repeat(2), torch.eye(6, dtype=torch.bool)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        logits = judge(twin, memory, memory, rewards, exclude=itself, ids=ids)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, rewards).backward()
        optimizer.step()
        optimizer.zero_grad()
    fit(model, memory, rewards, ids, neighbors=3, patience=3, learning_rate=1e-2, weight_decay=0.5)
    for mine, slow in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, slow, atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_every_epoch_and_in_no_validation(monkeypatch):
    model, modes = small_model(), []
    receive = model.receive
    monkeypatch.setattr(model, "receive", lambda *given: modes.append(model.training) or receive(*given))
    fit(model, random_groups(10), random_rewards(10), torch.arange(10), 3, torch.arange(10) < 2, epochs=3)
    assert modes == [True, False] * 3 and not model.training


@pytest.mark.parametrize("count, value", [(1, None), (4, None), (12, 0.0), (12, 1.0)])
def test_fit_survives_few_ids_and_equal_rewards(count, value):
    model, memory = small_model(), random_groups(count)
    memory.features[...] = 0.1  # and features that never vary
    rewards = random_rewards(count) if value is None else torch.full((count, G), value)
    ids = torch.arange(count)
    history = fit(model, memory, rewards, ids, 3, fold_ids(ids, 5) == 0, epochs=9, patience=4)
    least = min(epoch["val_loss"] for epoch in history)
    assert len(history) == (4 if count < 5 else 9) or history[-1]["val_loss"] > least
    logits = judge(model, random_groups(2, seed=1), memory, rewards)
    assert logits.isfinite().all() and math.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_counts_over_pairs(seed):
    g = torch.Generator().manual_seed(seed)
    rewards, p = (torch.rand(30, generator=g) < 0.4).float(), (torch.rand(30, generator=g) * 8).round() / 8
    pairs = [(a > b) + 0.5 * (a == b) for a in p[rewards == 1].tolist() for b in p[rewards == 0].tolist()]
    guess = [(x > 0.25, y == 1) for x, y in zip(p.tolist(), rewards.tolist())]
    tp, fp, fn, tn = (guess.count((x, y)) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0)))
    expected = {"accuracy": (tp + tn) / 30, "precision": tp / (tp + fp), "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn), "fp_rate": fp / (fp + tn), "auc": sum(pairs) / len(pairs)}
    assert metrics(p, rewards, threshold=0.25) == pytest.approx(expected)


def test_metrics_are_nan_where_nothing_is_measured():
    result = metrics(torch.tensor([0.1, 0.2]), torch.tensor([0.0, 0.0]))
    assert result["accuracy"] == 1 and result["fp_rate"] == 0
    assert all(math.isnan(result[name]) for name in ("precision", "recall", "f1", "auc"))


@pytest.mark.parametrize("count", [3, 5, 23])
def test_folds_part_the_ids(count):
    ids = torch.arange(count).repeat(2)[torch.randperm(2 * count)]
    folds = fold_ids(ids, 5)
    if count < 5:
        assert (folds == -1).all()
        return
    of = [set(ids[folds == fold].tolist()) for fold in range(5)]
    assert sum(map(len, of)) == len(set.union(*of)) == count
    assert {len(part) for part in of} <= {count // 5, count // 5 + 1}


def test_folds_are_drawn_at_random():
    ids = torch.arange(10)
    assert len({tuple(fold_ids(ids, 5).tolist()) for _ in range(5)}) == 5


def test_calibration_is_where_the_gradient_vanishes():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 3, generator=g), torch.rand(60, generator=g).round()
    start = torch.tensor([1.0, 0.0, 0.0])
    weights = calibrate(x, y, strength=3.0)
    assert ((x.T @ ((x @ weights).sigmoid() - y) + 3 * (weights - start)).abs() < 1e-3).all()
    assert torch.equal(calibrate(x[:0], y[:0]), start)


def test_calibration_error_is_a_loop_over_bins():
    g = torch.Generator().manual_seed(0)
    p, y = torch.rand(200, generator=g), (torch.rand(200, generator=g) < 0.4).float()
    rows = [[i for i in range(200) if b <= p[i].item() * 10 < b + 1] for b in range(10)]
    expected = sum(abs(sum(p[i].item() - y[i].item() for i in row)) for row in rows) / 200
    assert calibration_error(p, y) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(torch.ones(2), torch.ones(2)) == 0


# ---------------------------------------------------------------------------------------- which labels to buy


def slow_pick(cosines, count, picked):
    """Greedy facility location over all cosines (n, n), one candidate at a time."""
    picked, order = list(picked), []
    for _ in range(count):
        def covered(rows):
            return sum(max([0.0, *(cosines[i][j] for j in rows)]) for i in range(len(cosines)))
        worth = {j: covered([*picked, j]) - covered(picked) for j in range(len(cosines)) if j not in picked}
        best = max(worth, key=lambda j: round(worth[j], 5))
        picked.append(best)
        order.append((best, worth[best] / len(cosines)))
    return order


def test_facility_location_never_picks_a_row_twice():
    """The first of equal rows covers them all, so the others add nothing; they come all the same, once
    each."""
    order, added = facility_location(torch.ones(4, 3), 4)
    assert order == [0, 1, 2, 3] and added == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("block, picked", [(1024, []), (3, []), (7, [4, 11])])
def test_facility_location_is_the_greedy_search(block, picked):
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    cosines = torch.nn.functional.normalize(x.double(), dim=1)
    order, added = facility_location(3 * x, 9, picked, block)
    slow = slow_pick((cosines @ cosines.T).tolist(), 9, picked)
    assert order == [row for row, _ in slow]
    assert added == pytest.approx([worth for _, worth in slow], abs=1e-6)
    assert added == sorted(added, reverse=True)
    assert facility_location(x, 4, picked, block)[0] == order[:4]  # every prefix is a choice of its own
    rest, _ = facility_location(x, 99, picked, block)
    assert sorted(rest + picked) == list(range(24))


@pytest.mark.parametrize("seed", range(5))
def test_coverage_is_never_below_that_of_a_random_choice(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=g) + 2 * torch.eye(4)[torch.arange(60) % 4]
    x = torch.nn.functional.normalize(x, dim=1)
    _, added = facility_location(x, 6)
    for _ in range(20):
        rows = torch.randperm(60, generator=g)[:6]
        assert sum(added) >= (x @ x[rows].T).clamp(min=0).amax(1).mean().item()
