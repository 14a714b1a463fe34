"""The experience memory: what reaches a prediction, what must not, and that the cache changes nothing."""

import copy
import pickle
import random
import types

import pytest
import torch

import memreward
from data import Task, hide_labels
from gnn import Groups, RewardGNN, RewardMLP, fold_ids, metrics, seeded, similarity_edges
from lab.probe import Sample, hide_and_predict, make_bench, probe, probe_new_kinds
from memreward import ExperienceMemory
from support.calibration import calibrate

torch.set_num_threads(1)
D, F, G = 16, 2, 4


def config(**overrides):
    settings = {"neighbors": 3, "groups_per_query": 2, "gnn": "mixed", "gnn_networks": 2, "gnn_hidden": 32,
                "gnn_layers": 2, "gnn_dropout": 0.1,
                "gnn_epochs": 10, "gnn_patience": 5, "gnn_learning_rate": 3e-3, "gnn_weight_decay": 0.01}
    return types.SimpleNamespace(**settings | overrides)


def random_groups(count, seed=0, size=G):
    g = torch.Generator().manual_seed(seed)
    shapes = (count, D), (count, size, D), (count, size, D), (count, size, F)
    return Groups(*(torch.randn(*shape, generator=g) for shape in shapes))


def random_rewards(count, seed=0):
    return (torch.rand(count, G, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def fitted(count=12, groups=None, rewards=None, **overrides):
    memory = ExperienceMemory(config(**overrides))
    memory.remember([f"q{i}" for i in range(count)], *(groups or random_groups(count)),
                    random_rewards(count) if rewards is None else rewards)
    memory.fit(seed=0)
    return memory


def with_rewards(memory, rewards):
    """The same network and groups with other rewards."""
    other = copy.copy(memory)
    other.rewards = rewards
    return other


def test_changing_a_memory_reward_changes_a_prediction():
    memory, new = fitted(), random_groups(5, seed=1)
    heard = [{pair["id"] for pair in memory.explain(*group)[0]["queries"]} for group in zip(*new)]
    before = memory.predict(*new)
    for row in range(len(memory)):
        rewards = memory.rewards.clone()
        rewards[row] = 1 - rewards[row]
        changed = (with_rewards(memory, rewards).predict(*new) != before).any(dim=1)
        assert changed.tolist() == [f"q{row}" in ids for ids in heard]


def test_own_rewards_never_reach_the_own_prediction():
    groups, ids = random_groups(12), [f"q{i}" for i in range(6)] * 2  # two groups of every id
    memory = ExperienceMemory(config())
    memory.remember(ids, *groups, random_rewards(12))
    memory.fit(seed=0)
    rewards = memory.rewards.clone()
    rewards[[1, 7]] = 1 - rewards[[1, 7]]  # all that is known of q1
    before, after = (each.predict(*groups, exclude=ids) for each in (memory, with_rewards(memory, rewards)))
    own = torch.tensor([id == "q1" for id in ids])
    assert torch.equal(before[own], after[own])
    assert (before[~own] != after[~own]).any()
    seen = memory.predict(*groups), with_rewards(memory, rewards).predict(*groups)
    assert (seen[0][own] != seen[1][own]).all()  # not excluded, they would have


def test_two_ids_with_one_question_stay_two():
    """Groups are told apart by position and id: a twin may be heard, one's own entry may not."""
    groups = random_groups(12)
    for part in groups[:3]:
        part[1] = part[0]
    memory = fitted(groups=groups)
    both = groups.rows([0, 1])
    assert memory.explain(*(part[0] for part in groups), exclude="q0")[0]["queries"][0]["id"] == "q1"
    p = memory.predict(*both, exclude=["q0", "q1"])
    alone = [memory.predict(*groups.rows([b]), exclude=[f"q{b}"]) for b in range(2)]
    assert torch.allclose(p, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("size", [2, G, 7])
def test_a_prediction_does_not_depend_on_its_batch(size):
    memory, new = fitted(), random_groups(6, seed=1, size=size)
    for part in new[:3]:
        part[4] = part[2]  # a duplicate question in the batch
    exclude = ["q3", None, "q5", "unknown", None, "q0"]
    together = memory.predict(*new, exclude=exclude)
    alone = torch.cat([memory.predict(*new.rows([b]), exclude=exclude[b:b + 1]) for b in range(6)])
    assert together.shape == (6, size) and torch.allclose(together, alone, atol=1e-6)
    for part in new:
        part[0] = torch.randn(part[0].shape)  # another group's rollouts: nothing moves, bit for bit
    assert torch.equal(memory.predict(*new, exclude=exclude)[1:], together[1:])


def test_only_the_direction_of_an_embedding_counts():
    memory, new = fitted(), random_groups(3, seed=1)
    scaled = memory.predict(7 * new.queries, 0.1 * new.thinkings, 3 * new.answers, new.features)
    assert torch.allclose(memory.predict(*new), scaled, atol=1e-6)


def test_inputs_stay_as_they_are_and_are_not_shared():
    groups, rewards = random_groups(12), random_rewards(12)
    copies = [part.clone() for part in (*groups, rewards)]
    memory = fitted(groups=groups, rewards=rewards)
    before = memory.predict(*groups, exclude=memory.ids)
    assert all(torch.equal(*pair) for pair in zip(copies, (*groups, rewards)))
    for part in (*groups, rewards):
        part.zero_()
    assert torch.equal(memory.predict(*copies[:4], exclude=memory.ids), before)


def test_what_is_remembered_later_is_heard_as_if_all_had_sent():
    memory, new = fitted(), random_groups(5, seed=1)
    for step in range(3):
        ids = [f"q{step}", f"new{step}", "q0"]
        memory.remember(ids, *random_groups(3, seed=step), random_rewards(3, seed=step))
    mean, std = memory.scale
    groups, asked = (Groups(*(part.float() for part in each[:3]), (each.features - mean) / std)
                     for each in (memory.groups, memory._groups(*new)))
    last = {id: row for row, id in enumerate(memory.ids)}
    edges = similarity_edges(asked, groups, 3, ids=torch.tensor([last[id] for id in memory.ids]))
    assert edges[0][0].max() >= 12  # some of what came later is heard
    logits = sum(model.receive(asked, model.send(groups, memory.rewards), edges) for model in memory.models)
    logits = memory.weights[0] * logits / 2 + asked.features @ memory.weights[1:-1] + memory.weights[-1]
    assert torch.allclose(memory.predict(*new), logits.sigmoid(), atol=1e-5)


def test_thinkings_and_answers_are_held_in_half_precision():
    memory = ExperienceMemory(config())
    for _ in range(2):
        memory.remember(["a", "b"], *random_groups(2), random_rewards(2))
    kinds = [part.dtype for part in memory.groups]
    assert kinds == [torch.float32, torch.float16, torch.float16, torch.float32]


def test_the_newest_groups_of_an_id_stay():
    memory, groups, rewards = ExperienceMemory(config()), random_groups(7), random_rewards(7)
    memory.remember(["a", "b", "a"], *groups.rows(slice(0, 3)), rewards[:3])
    memory.remember(["a", "c", "b", "a"], *groups.rows(slice(3, 7)), rewards[3:])
    assert memory.ids == ["b", "a", "c", "b", "a"] and len(memory) == 5
    assert torch.equal(memory.rewards, rewards[[1, 3, 4, 5, 6]])
    assert torch.equal(memory.groups.features, groups.features[[1, 3, 4, 5, 6]])


def test_the_memory_learns_what_only_labels_of_similar_rollouts_tell():
    """Each topic has its own mistakes, random vectors with random labels: only neighbours' rewards tell."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, 32, generator=g)

    topics, patterns = draw(60), draw(60, 3)
    labels = torch.rand(60, 3, generator=g) < 0.5
    topic = torch.arange(300) % 60  # five queries a topic, the last one unlabelled
    kind = torch.randint(3, (300, 4), generator=g)
    mistakes = patterns[topic[:, None], kind]
    groups = Groups(topics[topic] + 0.3 * draw(300), mistakes + 0.3 * draw(300, 4),
                    mistakes + 0.3 * draw(300, 4), torch.zeros(300, 4, 1))
    rewards, known, asked = labels[topic[:, None], kind].float(), slice(0, 240), slice(240, 300)
    memory = ExperienceMemory(config(gnn="gcn", gnn_epochs=40, gnn_patience=10))
    memory.remember([str(i) for i in range(240)], *groups.rows(known), rewards[known])
    memory.fit(seed=0)

    def auc(memory):
        return metrics(memory.predict(*groups.rows(asked)).flatten(), rewards[asked].flatten())["auc"]

    shuffled = rewards[known].flatten()[torch.randperm(960, generator=g)].view(240, 4)
    assert auc(memory) > 0.9
    assert abs(auc(with_rewards(memory, shuffled)) - 0.5) < 0.12


def test_explain_says_what_predict_did():
    memory, new = fitted(), random_groups(1, seed=1)
    trace = memory.explain(*(part[0] for part in new), exclude="q2")
    p = memory.predict(*new, exclude=["q2"])[0]
    assert [rollout["probability"] for rollout in trace] == pytest.approx(p.tolist(), abs=1e-6)
    for g, rollout in enumerate(trace):
        assert len(rollout["queries"]) == 3 and "q2" not in {query["id"] for query in rollout["queries"]}
        for query in rollout["queries"]:
            row = memory.ids.index(query["id"])
            assert query["cosine"] == pytest.approx(
                torch.cosine_similarity(new.queries[0], memory.groups.queries[row], dim=0).item(), abs=1e-5)
            assert query["rewards"] == memory.rewards[row].tolist()
        for kind, vectors, known in (("thinkings", new.thinkings, memory.groups.thinkings.float()),
                                     ("answers", new.answers, memory.groups.answers.float())):
            for other in rollout[kind]:
                row = memory.ids.index(other["id"])
                assert other["reward"] == memory.rewards[row, other["rollout"]]
                cosine = torch.cosine_similarity(vectors[0, g], known[row, other["rollout"]], dim=0).item()
                assert other["cosine"] == pytest.approx(cosine, abs=1e-5)
    smaller = ExperienceMemory(config())  # moved: leave q2 and the nearest out for good and ask again
    smaller.models, smaller.weights, smaller.scale = memory.models, memory.weights, memory.scale
    keep = [i for i, id in enumerate(memory.ids) if id not in ("q2", trace[0]["queries"][0]["id"])]
    smaller.remember([memory.ids[i] for i in keep], *memory.groups.rows(keep), memory.rewards[keep])
    moved = torch.logit(p) - torch.logit(smaller.predict(*new)[0])
    assert [rollout["queries"][0]["moved"] for rollout in trace] == pytest.approx(moved.tolist(), abs=1e-4)


def test_explain_with_nobody_left_to_hear_from():
    memory, new = fitted(1), random_groups(1, seed=1)
    trace = memory.explain(*(part[0] for part in new), exclude="q0")
    expected = memory.predict(*new, exclude=["q0"])[0].tolist()
    assert [rollout["probability"] for rollout in trace] == pytest.approx(expected)
    assert all(rollout[kind] == [] for rollout in trace for kind in ("queries", "thinkings", "answers"))


@pytest.mark.parametrize("fit_first", [True, False])
def test_a_saved_memory_continues_bit_for_bit(tmp_path, fit_first):
    memory, new, path = fitted(), random_groups(5, seed=1), tmp_path / "memory.pt"
    if not fit_first:
        memory.models, memory.weights, memory.scale = [], None, None
    memory.save(path)
    state = torch.get_rng_state()
    loaded = ExperienceMemory(config())
    loaded.load(path)
    assert torch.equal(state, torch.get_rng_state()) and [p.name for p in tmp_path.iterdir()] == ["memory.pt"]
    for each in (memory, loaded):
        each.remember(["q1", "x"], *random_groups(2, seed=2), random_rewards(2))
        if not fit_first:
            each.fit(seed=3)
    assert torch.equal(memory.predict(*new), loaded.predict(*new)) and loaded.ids == memory.ids
    for other in ({"gnn_hidden": 8}, {"gnn": "gcn"}, {"gnn": "paper"}, {"gnn_networks": 3},
                  {"gnn_layers": 1}):
        with pytest.raises(ValueError, match="its gnn, gnn_networks, gnn_hidden, gnn_layers are"):
            ExperienceMemory(config(**other)).load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    memory, path = fitted(), tmp_path / "memory.pt"
    memory.save(path)
    before = path.read_bytes()

    def half(state, target):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError):
        memory.save(path)
    assert path.read_bytes() == before


def test_a_file_that_holds_more_than_tensors_and_plain_values_is_not_read(tmp_path):
    torch.save({"shape": types.SimpleNamespace()}, tmp_path / "memory.pt")
    with pytest.raises(pickle.UnpicklingError):
        fitted().load(tmp_path / "memory.pt")


def test_fit_is_seeded_and_leaves_the_global_random_state_alone():
    state, new = torch.get_rng_state(), random_groups(4, seed=1)
    first, again = fitted(), fitted()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.predict(*new), again.predict(*new))
    again.fit(seed=1)
    assert not torch.equal(first.predict(*new), again.predict(*new))


@pytest.mark.parametrize("part, change, message", [
    (0, lambda x: x[:, :-1], r"queries \(B, d\)"),
    (1, lambda x: x[:, :-1], r"thinkings and answers"),
    (2, lambda x: x[:-1], r"answers \(B, G, d\)"),
    (3, lambda x: x[:, :-1], r"features \(B, G, f\)"),
    (3, lambda x: x[..., :-1], r"width 16 and 2, got \(16, 1\)"),
    (1, lambda x: x / 0, "finite"),
    (4, lambda x: x[:-1], "an id and G rewards"),
    (4, lambda x: x + 0.5, "0 or 1"),
    (4, lambda x: x * float("nan"), "0 or 1"),
])
def test_bad_input_is_refused_in_one_line_and_changes_nothing(part, change, message):
    memory = fitted()
    inputs = [*random_groups(3), random_rewards(3)]
    inputs[part] = change(inputs[part])
    with pytest.raises(ValueError, match=message) as error:
        memory.remember(["a", "b", "c"], *inputs)
    assert "\n" not in str(error.value) and len(memory) == 12
    if part < 4:
        with pytest.raises(ValueError, match=message):
            memory.predict(*inputs[:4])


def test_wrong_order_and_wrong_group_size_are_refused():
    memory = ExperienceMemory(config())
    with pytest.raises(ValueError, match="empty"):
        memory.fit(seed=0)
    with pytest.raises(ValueError, match="call fit"):
        memory.predict(*random_groups(1))
    with pytest.raises(ValueError, match="call fit"):
        memory.explain(*(part[0] for part in random_groups(1)))
    with pytest.raises(ValueError, match="groups of 4 rollouts, got 5"):
        fitted().remember(["a"], *random_groups(1, size=5), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="exclude"):
        fitted().predict(*random_groups(3), exclude=["a"])


def test_groups_left_out_of_the_fit_teach_nothing_and_still_send():
    groups, rewards = random_groups(12), random_rewards(12)
    ids, slice_ids = [f"q{i}" for i in range(12)], {"q3", "q7"}
    kept = torch.tensor([id not in slice_ids for id in ids])
    small, whole = ExperienceMemory(config()), ExperienceMemory(config())
    small.remember([id for id in ids if id not in slice_ids], *groups.rows(kept), rewards[kept])
    whole.remember(ids, *groups, rewards)
    small.fit(seed=0)
    whole.fit(seed=0, without=slice_ids)
    for one, two in zip(small.models, whole.models):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert torch.equal(small.weights, whole.weights)
    new = random_groups(6, seed=1)
    assert not torch.equal(small.predict(*new), whole.predict(*new))
    hidden = [explained["id"] for group in zip(*new) for explained in whole.explain(*group)[0]["queries"]]
    assert slice_ids & set(hidden)


def test_fresh_groups_of_a_query_do_not_crowd_out_other_queries():
    memory, groups = fitted(), random_groups(12)
    memory.remember(memory.ids, groups.queries, *random_groups(12, seed=3)[1:], random_rewards(12, seed=3))
    trace = memory.explain(*(part[0] for part in random_groups(1, seed=1)))
    heard = [pair["id"] for pair in trace[0]["queries"]]
    assert len(set(heard)) == 3 and all(heard.count(id) == 2 for id in heard)


def test_calibration_sees_only_logits_of_networks_that_did_not_train_on_the_query():
    """Two groups a query: a group is hidden from itself and hears its sibling, as in training."""
    ids, groups, rewards = [f"q{i % 6}" for i in range(12)], random_groups(12), random_rewards(12)
    groups = groups._replace(queries=groups.queries[:6].repeat(2, 1))
    memory = ExperienceMemory(config(gnn="gcn", gnn_networks=3))
    memory.remember(ids, *groups, rewards)
    memory.fit(seed=0)
    with seeded(0, torch.device("cpu")):
        folds = fold_ids(torch.arange(6).repeat(2), 5)
    flat, rows = groups.features.flatten(0, 1), []
    z = (groups.features - flat.mean(0)) / flat.std(0, correction=0)
    unit = Groups(*(torch.nn.functional.normalize(part, dim=-1) for part in groups[:3]), z)
    for m in range(12):
        if folds[m] < 3:  # of five folds three are held out by a network
            others = torch.tensor([row for row in range(12) if row != m])
            network, own, known = memory.models[folds[m]], unit.rows([m]), unit.rows(others)
            edges = similarity_edges(own, known, 3, ids=others % 6)
            logits = network.receive(own, network.send(known, rewards[others]), edges)
            rows += [([logits[0, g].item(), *z[m, g].tolist(), 1.0], rewards[m, g].item()) for g in range(G)]
    inputs, truth = map(torch.tensor, zip(*rows, strict=True))
    assert torch.allclose(memory.weights, calibrate(inputs, truth), atol=1e-3)
    new = random_groups(2, seed=1)
    features = (new.features - flat.mean(0)) / flat.std(0, correction=0)
    asked = Groups(*(torch.nn.functional.normalize(part, dim=-1) for part in new[:3]), features)
    edges = similarity_edges(asked, unit, 3, ids=torch.arange(12) % 6)
    logits = torch.stack([network.receive(asked, network.send(unit, rewards), edges)
                          for network in memory.models]).mean(0)
    expected = memory.weights[0] * logits + features @ memory.weights[1:-1] + memory.weights[-1]
    assert torch.allclose(torch.logit(memory.predict(*new)), expected, atol=1e-4)


def test_every_network_stops_on_queries_of_its_own(monkeypatch):
    held_out, original = [], memreward.fit
    monkeypatch.setattr(memreward, "fit", lambda *args: held_out.append(args[5]) or original(*args))
    fitted(gnn_networks=5, gnn_epochs=1)
    assert (torch.stack(held_out).sum(0) == 1).all()


def test_a_feature_that_never_varied_says_nothing():
    groups = random_groups(12)
    groups.features[..., 1] = 0.25
    memory, new = fitted(groups=groups), random_groups(3, seed=1)
    before = memory.predict(*new)
    new.features[..., 1] += 5
    assert torch.equal(memory.predict(*new), before)


def test_beyond_five_deviations_a_feature_says_no_more():
    """Else a text that no policy writes, of a log-probability far below all that is known, would be sure."""
    groups = random_groups(12)
    memory, new = fitted(groups=groups), random_groups(3, seed=1)
    std, mean = torch.std_mean(groups.features[..., 0], correction=0)

    def predict(deviations):
        new.features[..., 0] = mean + deviations * std
        return memory.predict(*new)

    for sign in (1, -1):
        assert torch.equal(predict(6 * sign), predict(600 * sign))
        assert not torch.allclose(predict(4 * sign), predict(6 * sign), atol=1e-5)


def test_what_cannot_be_learnt_is_predicted_with_the_base_rate():
    rewards = (torch.rand(60, G, generator=torch.Generator().manual_seed(5)) < 0.3).float()
    memory = fitted(60, random_groups(60), rewards, gnn_networks=5, gnn_epochs=30, gnn_patience=30)
    p = memory.predict(*random_groups(60, seed=1))
    assert abs(p.mean() - rewards.mean()) < 0.06 and p.std() < 0.1


def test_fewer_queries_than_folds_leave_the_logits_as_they_are():
    memory = fitted(4)
    assert memory.weights.tolist() == [1.0] + [0.0] * (F + 1)


# -------------------------------------------------------------------------------------------------- the bench


def test_mixed_networks_take_turns_and_average():
    new, memory = random_groups(5, seed=1), fitted()
    assert [type(model) for model in memory.models] == [RewardGNN, RewardMLP]
    groups = memory._scaled(memory._groups(*new))
    edges = similarity_edges(groups, memory.groups, 3)
    with torch.no_grad():
        senders = memory._scaled(memory.groups)
        logits = [model.receive(groups, model.send(senders, memory.rewards), edges)
                  for model in memory.models]
        expected = (memory._inputs(sum(logits) / 2, groups) @ memory.weights).sigmoid()
    torch.testing.assert_close(memory.predict(*new), expected)


def test_a_remembered_group_of_a_new_kind_changes_predictions_of_that_kind_alone():
    """Two kinds of questions at right angles: what is remembered of the second is heard there only."""
    kinds = torch.eye(D)[:2]
    first, second, asked = random_groups(12), random_groups(4, seed=1), random_groups(8, seed=2)
    kind_of = torch.tensor([0, 1] * 4)
    for groups, of in ((first, torch.zeros(12, dtype=torch.long)), (second, torch.ones(4, dtype=torch.long)),
                       (asked, kind_of)):
        groups.queries[:] = kinds[of] + 0.01 * groups.queries
    memory = fitted(12, first, gnn="gcn")
    before = memory.predict(*asked)
    memory.remember([f"new{i}" for i in range(4)], *second, random_rewards(4, seed=1))
    changed = (memory.predict(*asked) - before).abs().amax(1)
    assert (changed[kind_of == 1] > 1e-4).all() and (changed[kind_of == 0] < 1e-6).all()


def bench(groups=1, **overrides):
    """Twenty tasks whose answers are "1" or "2", with settings small enough to measure every row."""
    g = torch.Generator().manual_seed(0)
    tasks, samples = [Task(f"t{i}", "d", "math", f"{i} apples?", answer="1") for i in range(20)], []
    for number in range(groups):
        said = torch.randint(1, 3, (20, G), generator=g)
        keys = [[str(answer) for answer in group] for group in said.tolist()]
        texts = [[f"{answer} it is\n#### {answer}" for answer in group] for group in said.tolist()]
        nodes = random_groups(20, seed=number)[:3]
        samples.append(Sample(texts, keys, (said == 1).float(), {"hash": nodes, "other": nodes}))
    settings = {"gnn_epochs": 2, "gnn_patience": 2, "gnn_hidden": 4, "label_ratio": 0.5, "threshold": 0.5,
                "encoder": "hash", "features": "agreement,min_logprob", "predictor": "memory", "blank": "",
                "label_pick": "random", "groups_per_query": groups}
    return tasks, samples, config(**settings | overrides)


def test_the_bench_measures_what_training_does():
    tasks, samples, settings = bench(groups=2)
    rows = {row["name"]: row for row in probe(tasks, samples, settings, seeds=2)}
    assert [row["name"] for row in rows.values() if row["default"]] == ["mixed networks (default)"]
    assert {"encoder other", "k = 15", "threshold 0.7", "only coverage", "label ratio 0.7"} <= rows.keys()
    assert not any("logprob" in name for name in rows)  # no policy has read these
    agreement = [torch.tensor([[group.count(key) / G for key in group] for group in sample.keys])
                 for sample in samples]
    expected, settings.features = [], "agreement"
    for seed in range(2):
        known = torch.tensor([task.labelled for task in hide_labels(tasks, 0.5, seed)])
        ids = [task.id for task, kept in zip(tasks, known, strict=True) if kept]
        memory = ExperienceMemory(settings)
        for sample, feature in zip(samples, agreement, strict=True):
            groups = Groups(*sample.nodes["hash"], feature[..., None])
            memory.remember(ids, *groups.rows(known), sample.rewards[known])
        memory.fit(seed)
        asked = Groups(*samples[0].nodes["hash"], agreement[0][..., None]).rows(~known)
        truth = samples[0].rewards[~known].flatten()
        ours = metrics(memory.predict(*asked).flatten(), truth)
        simple = metrics(agreement[0][~known].flatten(), truth)
        expected.append((ours["auc"], simple["auc"], simple["accuracy"]))
    wanted = torch.tensor(expected).mean(0).tolist()
    default, plain = rows["mixed networks (default)"], rows["agreement as a score"]
    error = expected[0][1] - expected[1][1]
    assert [default["auc"], plain["auc"], plain["accuracy"]] == pytest.approx(wanted, abs=1e-6)
    assert default["labels"] == 10 and plain["auc_se"] == pytest.approx(abs(error) / 2, abs=1e-6)


@pytest.mark.parametrize("predictor", ["memory", "vote", "agreement"])
def test_hidden_rewards_never_reach_a_prediction(predictor):
    tasks, samples, settings = bench(predictor=predictor, features="agreement")
    known = torch.tensor([task.labelled for task in hide_labels(tasks, 0.5, 1)])
    rewards = samples[0].rewards

    def measure(rewards):
        return hide_and_predict(make_bench(tasks, [samples[0]._replace(rewards=rewards)]), settings, 1)

    scores, truth, facts = measure(rewards)
    other = torch.where(known[:, None], rewards, 1 - rewards)
    assert torch.equal(scores, measure(other)[0]) and torch.equal(truth, rewards[~known].flatten())
    assert facts["labels"] == 10
    assert predictor == "agreement" or not torch.equal(scores, measure(1 - rewards)[0])


def test_new_kinds_without_a_label_to_remember_are_refused():
    tasks, samples, settings = bench(groups=1, features="agreement", label_ratio=0.05)  # one label
    with pytest.raises(ValueError, match="new_kinds: label_ratio 0.05 leaves a split whose"):
        list(probe_new_kinds(tasks, samples, settings, ["abcdef"[i % 6] for i in range(20)], seeds=1))


def test_new_kinds_are_remembered_without_a_fit():
    """Rows by hand of one split: only labelled groups of kept kinds are fitted, new kinds join later."""
    tasks, samples, settings = bench(groups=2, gnn="gcn", features="agreement")
    kinds = ["abcdef"[i % 6] for i in range(20)]
    rows = {row["name"]: row for row in probe_new_kinds(tasks, samples, settings, kinds, seeds=1)}
    assert [row["name"] for row in rows.values() if row["default"]] == ["gcn networks (default)"]
    out = random.Random("kinds 0").sample("abcdef", 2)
    known = torch.tensor([task.labelled for task in hide_labels(tasks, 0.5, 0)])
    new = torch.tensor([kind in out for kind in kinds])
    made = make_bench(tasks, samples)
    memory = ExperienceMemory(settings)
    for part in (known & ~new, known & new):
        for number in range(2):
            ids = [task.id for task, kept in zip(tasks, part, strict=True) if kept]
            memory.remember(ids, *made.groups(settings, number).rows(part), samples[number].rewards[part])
        if not memory.models:
            memory.fit(0)
        p = memory.predict(*made.groups(settings).rows(new & ~known)).flatten()
        when = "remembered" if (part & new).any() else "before"
        expected = metrics(p, samples[0].rewards[new & ~known].flatten())["auc"]
        assert rows["gcn networks (default)"][f"{when}_auc"] == pytest.approx(expected)
    assert rows["gcn networks (default)"]["auc"] == rows["gcn networks (default)"]["remembered_auc"]
    mlp = rows["MLP (no edges)"]
    assert mlp["before_auc"] == mlp["remembered_auc"]  # it cannot listen
