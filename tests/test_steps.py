"""One small run, step by step: what each part was called with, against numbers worked out here from the
tasks, the responses and a policy that was never trained. Its settings are none of the defaults, so that one
that is forgotten shows."""

import dataclasses
import json
import threading
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import make_model, make_tokenizer

import data
import grpo
import memreward
import train
from gnn import Groups
from lab import evaluate as evaluation
from lab import processes, runs, samples, settings
from lab.log import Audit, Drift, Log, Tally
from support.encoders import hash_group

G, LENGTH, SEED, STEPS, TASKS, TEST = 4, 26, 8, 4, 30, 6
UPDATE = dict(temperature=0.8, clip_low=0.1, clip_high=0.3, kl_coef=0.05, loss_norm="token",
              updates_per_batch=2, micro_batch_size=7, max_grad_norm=0.5)
SETTINGS = dict(
    **UPDATE, seed=SEED, steps=STEPS, batch_size=6, group_size=G, max_response_length=LENGTH,
    train_tasks=TASKS, label_ratio=0.4, drift_fraction=0.25, test_tasks=TEST, ood="world_ood", eval_samples=2,
    eval_every=3, learning_rate=1e-3, lr_warmup=3, threshold=0.55, reward="soft", abstain=0.2,
    advantage_norm="none", mask_truncated=True, memory="refit", refit_every=2,
    features="agreement,mean_logprob", gnn_networks=2, gnn_epochs=5, sample_batch_size=8,
    stop="never said")


TOKENIZER = runs.load_policy(train.Config(), torch.float32)[1]


def fingerprint(model):
    """Numbers that tell the weights of a model from others."""
    return [weight.double().sum().item() for weight in model.parameters()]


def rendered(tasks):
    """The tasks by their prompts, which is how `sample` knows them."""
    return {runs.render(TOKENIZER, task): task for task in tasks}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run, and all calls of its parts by the stage in which they were made: "warm-up", "evaluate",
    "samples", or the number of the step."""
    calls, stage = defaultdict(list), ["warm-up"]
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("steps") / "run"

    def note(place, name, what):
        original = getattr(place, name)

        def call(*args, **more):
            before = what(*args, **more)
            result = original(*args, **more)
            calls[stage[-1], name].append((before, result))
            return result

        patch.setattr(place, name, call)

    def within(place, name, title):
        original = getattr(place, name)

        def call(*args, **more):
            stage.append(title(*args))
            try:
                return original(*args, **more)
            finally:
                stage.pop()

        patch.setattr(place, name, call)

    note(grpo, "sample", lambda model, tokenizer, prompts, size, length, temperature, noise, batch, stop:
         SimpleNamespace(weights=fingerprint(model), prompts=prompts, size=size, temperature=temperature,
                         noise=noise, batch=batch, stop=stop))
    note(grpo, "policy_update", lambda model, optimizer, accelerator, rollouts, advantages, ref, **more:
         SimpleNamespace(rollouts=rollouts, advantages=advantages, ref=ref, settings=more,
                         weights=fingerprint(model), group=dict(optimizer.param_groups[0])))
    note(memreward, "acquire_rewards", lambda tasks, texts, memory, groups, keys, threshold=0.5, soft=False,
         abstain=0.0, lap=None: (threshold, soft, abstain))
    note(memreward.ExperienceMemory, "predict", lambda memory, *groups, exclude=None: (groups, exclude))
    note(memreward.ExperienceMemory, "remember", lambda memory, ids, *parts: (ids, *parts))
    note(memreward.ExperienceMemory, "fit",
         lambda memory, seed, without=(): (seed, set(without), len(memory)))
    within(train, "train_step", lambda run, visits, step, *rest: step)
    within(train, "evaluate", lambda *rest: "evaluate")
    within(samples.Samples, "rows", lambda *rest: "samples")
    everything = data.load_tasks("world", "train", TASKS, SEED)
    of_all = everything + data.load_tasks("world", "test", TEST) + data.load_tasks("world_ood", "test", TEST)
    longest = max(len(TOKENIZER(prompt).input_ids) for prompt in rendered(of_all))  # which is still taken
    config = train.Config(**SETTINGS, max_prompt_length=longest, output_dir=str(folder))
    results = train.train(config)
    patch.undo()
    kept = data.hide_labels(everything, 0.4, SEED)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = {line["step"]: line for line in lines if "loss" in line}
    return SimpleNamespace(calls=calls, config=config, results=results, truth={t.id: t for t in everything},
                           labelled=[t.id for t in kept if t.labelled], task_of=rendered(kept), rows=rows,
                           folder=folder, lines=lines)


@pytest.fixture(scope="module")
def first_policy():
    """The built-in policy as it always is."""
    return runs.load_policy(train.Config(), torch.float32)[0].eval()


def step_of(record, step):
    """What a step sampled: its tasks, their responses (B, G), answers' keys and true rewards, the calls."""
    (asked, rollouts), = record.calls[step, "sample"]
    tasks = [record.task_of[prompt] for prompt in asked.prompts]
    texts = [rollouts.texts[b * G : (b + 1) * G] for b in range(len(tasks))]
    pairs = list(zip(tasks, texts))
    keys = [[data.answer_key(task, text) for text in group] for task, group in pairs]
    truth = [[data.verify(record.truth[task.id], text) for text in group] for task, group in pairs]
    return SimpleNamespace(asked=asked, rollouts=rollouts, tasks=tasks, texts=texts, keys=keys,
                           truth=torch.tensor(truth), update=record.calls[step, "policy_update"][0][0])


def believed(record, step, found):
    """Probabilities of the unlabelled groups as the step first heard them, 0 where there is no answer."""
    answered = [[key is not None for key in keys]
                for task, keys in zip(found.tasks, found.keys) if not task.labelled]
    return record.calls[step, "predict"][0][1] * torch.tensor(answered)


EVERY_STEP = pytest.mark.parametrize("step", range(1, STEPS + 1))


def test_the_seed_decides_tasks_labels_and_batches(record):
    chosen = json.loads((record.folder / "tasks.json").read_text())
    assert chosen["labelled"] == record.labelled and len(record.labelled) == 12
    assert sorted(chosen["labelled"] + chosen["unlabelled"]) == sorted(record.truth)
    seen = [task.id for step in range(1, STEPS + 1) for task in step_of(record, step).tasks]
    assert len(set(seen)) == STEPS * 6  # of 30: none came twice
    orders = [[task.id for task, _ in train.batch(list(record.truth.values()), 0, train.Config(seed=seed))]
              for seed in range(4)]
    assert len(set(map(tuple, orders))) == 4


@EVERY_STEP
def test_the_newest_policy_samples_with_noise_of_its_own(record, step):
    found = step_of(record, step)
    names = [f"{task.id} 0" for task in found.tasks]
    assert torch.equal(found.asked.noise, grpo.uniform_noise(SEED, step, names, G, LENGTH))
    assert (found.asked.size, found.asked.temperature, found.asked.stop) == (G, 0.8, [record.config.stop])
    assert found.asked.weights == found.update.weights  # those that are trained next
    before = [record.calls[other, "policy_update"][0][0].weights for other in range(1, step)]
    assert found.asked.weights not in before


@EVERY_STEP
def test_the_reference_is_the_first_policy_at_the_sampling_temperature(record, first_policy, step):
    found = step_of(record, step)
    with torch.no_grad():
        expected = grpo.token_logprobs(
            first_policy, found.rollouts.ids, found.rollouts.attention_mask, LENGTH, 0.8)
    torch.testing.assert_close(found.update.ref, expected, atol=1e-4, rtol=0)
    assert found.update.rollouts is found.rollouts


@EVERY_STEP
def test_the_memory_is_asked_about_the_unlabelled_groups_alone(record, first_policy, step):
    found = step_of(record, step)
    (groups, exclude), _ = record.calls[step, "predict"][0]
    rows = [b for b, task in enumerate(found.tasks) if not task.labelled]
    assert exclude is None and len(groups[0]) == len(rows)
    with torch.no_grad():
        logprobs = grpo.token_logprobs(
            first_policy, found.rollouts.ids, found.rollouts.attention_mask, LENGTH)
    confidence = (logprobs.sum(1) / found.rollouts.mask.sum(1)).view(-1, G)
    for n, b in enumerate(rows):
        task, keys = found.tasks[b], found.keys[b]
        parts = [data.split_response(text, task.domain, task.choices) for text in found.texts[b]]
        for mine, theirs in zip(groups, hash_group(task.question, task.choices or (), parts)):
            torch.testing.assert_close(mine[n], theirs)
        agreement = torch.tensor([0.0 if key is None else keys.count(key) / G for key in keys])
        features = torch.stack([agreement, confidence[b]], 1)
        torch.testing.assert_close(groups[3][n], features, atol=1e-4, rtol=0)


@EVERY_STEP
def test_rewards_become_advantages(record, step):
    found = step_of(record, step)
    assert [call for call, _ in record.calls[step, "acquire_rewards"]] == [(0.55, True, 0.2)]
    sigma, rewards, sources = iter(believed(record, step, found).tolist()), [], []
    for task, truth in zip(found.tasks, found.truth.tolist()):
        p = truth if task.labelled else next(sigma)
        sure = task.labelled or sum(abs(2 * x - 1) for x in p) / G >= 0.2
        rewards.append([x * sure for x in p])
        sources.append(("predicted" if sure else "abstained", "verified")[task.labelled])
    advantages = [[r - sum(group) / G for r in group] for group in rewards]
    expected = torch.tensor(advantages).flatten().masked_fill(found.rollouts.truncated, 0.0)
    torch.testing.assert_close(found.update.advantages, expected)
    row = record.rows[step]
    for kind in ("verified", "predicted"):
        values = [r for group, source in zip(rewards, sources) for r in group if source == kind]
        assert row[f"reward/{kind}"] == (pytest.approx(sum(values) / len(values)) if values else None)
    assert row["abstained"] == sources.count("abstained") / 6
    assert row["groups_without_signal"] == pytest.approx(sum(len(set(group)) == 1 for group in rewards) / 6)
    assert row["response_length"] == pytest.approx(found.rollouts.mask.sum().item() / (6 * G))
    assert row["truncated"] == pytest.approx(found.rollouts.truncated.float().mean().item())


def test_the_run_met_all_that_these_tests_look_at(record):
    """Responses that were cut off, groups with and without signal, groups of which the memory was unsure."""
    cut = torch.cat([step_of(record, step).rollouts.truncated for step in range(1, STEPS + 1)])
    assert 0 < cut.sum() < len(cut)
    rows = record.rows.values()
    assert all(row["groups_without_signal"] < 1 for row in rows) and any(row["abstained"] for row in rows)
    assert any(row["reward/predicted"] is not None for row in rows)
    assert any("drift/accuracy" in row for row in rows) and any("drift/accuracy" not in row for row in rows)


@EVERY_STEP
def test_the_update_gets_the_settings_and_the_rising_learning_rate(record, step):
    update = step_of(record, step).update
    assert update.settings == UPDATE
    assert update.group["lr"] == pytest.approx(1e-3 * (1 / 3, 2 / 3, 1, 1)[step - 1])
    assert update.group["weight_decay"] == 0


def audit_of(record, steps):
    """(predicted, true) of all unlabelled rollouts of some steps."""
    pairs = []
    for step in steps:
        found = step_of(record, step)
        truth = found.truth[torch.tensor([not task.labelled for task in found.tasks])]
        guess = believed(record, step, found) > 0.55
        pairs += zip(guess.flatten().tolist(), (truth > 0.5).flatten().tolist())
    return pairs


@pytest.mark.parametrize("steps, row, name", [
    ([1], "step 1", "audit/"), ([3], "step 3", "audit/"), ([4], "step 4", "audit/"),
    ([1, 2, 3], "look 3", "audit_since/"), ([4], "look 4", "audit_since/"), ([1, 2, 3, 4], "results", "")])
def test_the_audit_is_what_the_hidden_labels_say(record, steps, row, name):
    pairs = audit_of(record, steps)
    told = record.results["audit"] if row == "results" else next(
        line for line in record.lines
        if line["step"] == int(row[-1]) and ("loss" if row.startswith("step") else "test/greedy/all") in line)
    accuracy = sum(guess == true for guess, true in pairs) / len(pairs)
    assert told[f"{name}accuracy"] == pytest.approx(accuracy) and told[f"{name}rollouts"] == len(pairs)
    assert told[f"{name}right"] == pytest.approx(sum(true for _, true in pairs) / len(pairs))


def test_the_memory_holds_verified_groups_of_labelled_tasks_and_is_fitted_anew(record):
    warm = record.calls["warm-up", "remember"]
    (ids, *_, rewards), = (call for call, _ in warm)
    assert ids == 2 * record.labelled and rewards.shape == (24, G)
    drift = record.calls["warm-up", "fit"][0][0][1]
    assert len(drift) == 3 and drift < set(record.labelled)
    assert record.calls["warm-up", "fit"][0][0] == (SEED, drift, 24)
    for step in range(1, STEPS + 1):
        found = step_of(record, step)
        known = [b for b, task in enumerate(found.tasks) if task.labelled]
        (ids, *_, rewards), = (call for call, _ in record.calls[step, "remember"])
        assert ids == [found.tasks[b].id for b in known] and torch.equal(rewards, found.truth[known])
        fits = [call[:2] for call, _ in record.calls[step, "fit"]]
        assert fits == ([(SEED + step, drift)] if step in (2, 4) else [])


def test_the_warm_up_samples_every_labelled_query_twice_and_anew(record):
    names, noises, right, cut = [], [], [], []
    for asked, rollouts in record.calls["warm-up", "sample"]:
        tasks = [record.task_of[prompt] for prompt in asked.prompts]
        names += [task.id for task in tasks]
        noises.append(asked.noise)
        right += [data.verify(record.truth[task.id], rollouts.texts[b * G + g])
                  for b, task in enumerate(tasks) for g in range(G)]
        cut += rollouts.truncated.tolist()
    noise = torch.cat(noises)
    assert names == 2 * record.labelled and len(noise.unique(dim=0)) == len(noise) == 2 * 12 * G
    assert torch.equal(noise[: 12 * G], grpo.uniform_noise(SEED, 0, record.labelled, G, LENGTH))
    groups = [right[i : i + G] for i in range(0, len(right), G)]
    row = record.lines[0]
    assert row["warm_up/right"] == pytest.approx(sum(right) / len(right))
    assert row["warm_up/mixed_groups"] == pytest.approx(sum(len(set(group)) == 2 for group in groups) / 24)
    assert row["warm_up/truncated"] == pytest.approx(sum(cut) / len(cut))
    assert all(fit["kept"] == min(range(5), key=fit["val_loss"].__getitem__) for fit in row["fits"])


@EVERY_STEP
def test_drift_hides_the_query_itself(record, step):
    found, drift = step_of(record, step), record.calls["warm-up", "fit"][0][0][1]
    rows = [b for b, task in enumerate(found.tasks) if task.id in drift]
    calls = [(exclude, p) for (_, exclude), p in record.calls[step, "predict"] if exclude is not None]
    if not rows:
        assert not calls and "drift/accuracy" not in record.rows[step]
        return
    (exclude, p), = calls
    assert exclude == [found.tasks[b].id for b in rows]
    answered = torch.tensor([[key is not None for key in found.keys[b]] for b in rows])
    right = ((p * answered > 0.55) == (found.truth[rows] > 0.5)).float().mean().item()
    assert record.rows[step]["drift/accuracy"] == pytest.approx(right)


def test_drift_notes_the_query_of_every_rollout(monkeypatch):
    monkeypatch.setattr(memreward, "predict_rewards", lambda memory, groups, keys, exclude: groups.features)
    tasks = [data.Task(name, "d", "math", "?", answer="1") for name in "abc"]
    numbers = torch.arange(12.0).view(3, 4)
    groups = Groups(*(numbers for _ in range(4)))  # what is predicted stands in the last
    experience = train.Experience(tasks, None, [["1"] * 4] * 3, groups)
    drift = SimpleNamespace(ids={"a", "c"})
    rows = train.Drift.check(drift, SimpleNamespace(memory=None), experience, 10 * numbers)
    assert rows == [(n, 10 * n, "a" if n < 4 else "c") for n in (0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 11.0)]


def test_a_look_counts_the_drift_since_the_last_one(record):
    """The first one that of the warm-up: three queries with two groups each."""
    drift = record.calls["warm-up", "fit"][0][0][1]
    visits = [sum(task.id in drift for task in step_of(record, step).tasks) for step in range(1, STEPS + 1)]
    looks = {line["step"]: line.get("drift_since/rollouts", 0) for line in record.lines
             if "test/greedy/all" in line}
    assert looks == {0: 3 * 2 * G, 3: sum(visits[:3]) * G, 4: visits[3] * G} and sum(visits[:3])


def test_evaluation_is_greedy_and_the_mean_of_samples_with_one_noise_for_all_seeds(record):
    calls, test = record.calls["evaluate", "sample"], data.load_tasks("world", "test", TEST)
    ood = data.load_tasks("world_ood", "test", TEST)
    task_of = rendered(test + ood)
    assert len(calls) == 3 * 2  # at 0, 3 and 4; 12 tasks in batches of 8
    assert all((asked.size, asked.temperature) == (1 + 2, 1.0) for asked, _ in calls)
    assert all((asked.batch, asked.stop) == (8, [record.config.stop]) for asked, _ in calls)
    weights = [asked.weights for asked, _ in calls]
    assert weights[0] == step_of(record, 1).asked.weights and weights[2] == step_of(record, 4).asked.weights
    assert weights[4] not in (weights[0], weights[2])
    scores = {"greedy": {}, "sampled": {}}
    for asked, rollouts in calls[-2:]:
        tasks = [task_of[prompt] for prompt in asked.prompts]
        noise = grpo.uniform_noise(0, 0, [task.id for task in tasks], 2, LENGTH).view(-1, 2, LENGTH)
        assert torch.equal(asked.noise.view(-1, 3, LENGTH), F.pad(noise, (0, 0, 1, 0), value=-1.0))
        for n, task in enumerate(tasks):
            greedy, *texts = rollouts.texts[3 * n : 3 * n + 3]
            scores["greedy"][task.id] = data.verify(task, greedy)
            scores["sampled"][task.id] = sum(data.verify(task, text) for text in texts) / 2
    after = record.results["after"]
    for kind, of in scores.items():
        assert len(of) == 2 * TEST
        for name, tasks in (("world", test), ("all", test), ("world_ood", ood), ("out of domain", ood)):
            values = [of[task.id] for task in tasks]
            mean = sum(values) / TEST
            assert after[kind][name] == pytest.approx(mean)
            spread = (sum((x - mean)**2 for x in values) / (TEST - 1)) ** 0.5
            assert after["errors"][kind][name] == pytest.approx(spread / TEST**0.5)
    assert [look["step"] for look in record.results["evaluations"]] == [0, 3, 4]
    assert record.results["before"]["step"] == 0 and after["step"] == 4


def test_what_is_shown_is_drawn_with_one_noise_and_judged_without_itself(record):
    calls = record.calls["samples", "sample"]
    assert len(calls) == 3 and all(torch.equal(asked.noise, calls[0][0].noise) for asked, _ in calls)
    lines = [json.loads(line) for line in (record.folder / "rollouts.jsonl").read_text().splitlines()]
    asked = [call for call in record.calls["samples", "predict"] if call[0][1] is not None]
    assert len(asked) == 3 and len(lines) == 12
    assert [call for call, _ in record.calls["samples", "acquire_rewards"]] == 3 * [(0.55, True, 0.2)]
    for look, ((_, exclude), p) in enumerate(asked):
        of = lines[4 * look : 4 * look + 4]
        rollouts = calls[look][1]
        assert exclude == [row["id"] for row in of]
        for b, row in enumerate(of):
            for g, one in enumerate(row["rollouts"]):
                n = b * G + g
                answered = data.answer_key(record.truth[row["id"]], one["response"]) is not None
                assert one["response"] == rollouts.texts[n]
                assert one["probability"] == pytest.approx(p[b, g].item() * answered, abs=1e-4)
                assert one["truth"] == data.verify(record.truth[row["id"]], one["response"])
                assert (one["length"], one["truncated"]) == (rollouts.mask[n].sum(), rollouts.truncated[n])
            rewards = [one["reward"] for one in row["rollouts"]]
            mean = sum(rewards) / G
            told = [one["advantage"] for one in row["rollouts"]]
            assert told == pytest.approx([reward - mean for reward in rewards], abs=1e-4)


# --------------------------------------------------------------------------------------------- parts of a run


def test_the_copy_that_samples_has_the_newest_weights_also_after_resume(quick, monkeypatch):
    seen, step = [], train.train_step

    def train_step(run, *rest):
        mine, first = [weight.bfloat16() for weight in run.model.parameters()], run.reference.parameters()
        seen.append((all(map(torch.equal, run.sampler.parameters(), mine)),
                     not all(map(torch.equal, first, mine)),
                     {weight.dtype for weight in run.model.parameters()}))
        return step(run, *rest)

    monkeypatch.setattr(train, "train_step", train_step)
    config = quick(mode="oracle", precision="bf16", steps=2, learning_rate=1e-3, batch_size=6,
                   max_response_length=26, test_tasks=3)
    train.train(config)
    go_on = ["--resume", config.output_dir, "--steps", "3"]
    train.train(settings.parse(go_on, train.Config, {"train": ""})[1])
    same, moved, kinds = zip(*seen)
    assert same == (True, True, True) and moved == (False, True, True)
    assert set.union(*kinds) == {torch.float32}
    lines = [json.loads(line) for line in open(f"{config.output_dir}/metrics.jsonl")]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


class Two:
    """A process of two, as far as gather and share look; the other one gathers what it is told."""

    def __init__(self, monkeypatch, rank, others):
        self.accelerator = SimpleNamespace(num_processes=2, process_index=rank, is_main_process=rank == 0)
        self.device = "cpu"
        monkeypatch.setattr("accelerate.utils.gather_object",
                            lambda mine: [*mine, others] if rank == 0 else [others, *mine])


def test_rows_of_two_processes_come_back_in_the_order_of_one(monkeypatch):
    rows = list("abcde")
    parts = [processes.share(Two(monkeypatch, rank, []), rows) for rank in (0, 1)]
    assert parts == [["a", "c", "e"], ["b", "d"]]
    for rank in (0, 1):
        assert processes.gather(Two(monkeypatch, rank, parts[1 - rank]), parts[rank]) == rows


def test_rows_of_all_processes_join_the_memory(monkeypatch):
    one, two, three = (torch.full((2,), float(n)) for n in (1, 2, 3))
    run, joined = Two(monkeypatch, 1, [("a", one), None]), []
    run.memory = SimpleNamespace(remember=lambda ids, *columns: joined.append((ids, *columns)))
    processes.join(run, [("b", two), ("c", three)])
    assert joined[0][0] == ["a", "b", "c"] and joined[0][1].tolist() == [[1, 1], [2, 2], [3, 3]]


def test_the_memory_is_offered_labelled_groups_alone():
    tasks = [data.Task("a", "d", "math", "?"), data.Task("b", "d", "math", "?", answer="1")]
    groups = Groups(torch.arange(2.0)[:, None], *(torch.arange(4.0).view(2, 2, 1) for _ in range(3)))
    rows = train.remember(None, SimpleNamespace(tasks=tasks, groups=groups), torch.tensor([[1.0, 0], [0, 1]]))
    name, *parts = rows[1]
    assert rows[0] is None and name == "b"
    assert [part.flatten().tolist() for part in parts] == [[1], [2, 3], [2, 3], [2, 3], [0, 1]]


def test_a_tally_counts_by_its_threshold_from_where_it_is_told():
    tally = Tally(0.7)
    tally.extend([(0.9, 0.0), (0.6, 0.0), (0.65, 1.0), (0.8, 1.0)])
    assert (tally.metrics()["accuracy"], tally.metrics()["right"]) == (0.5, 0.5)
    found = tally.metrics(1)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["right"] == pytest.approx(2 / 3)
    assert (found["precision"], found["recall"], found["fp_rate"], found["rollouts"]) == (1.0, 0.5, 0.0, 3)
    drift = Drift([], train.Config(threshold=0.7))
    drift.extend([(0.6, 0.0, "a"), (0.6, 1.0, "a"), (0.9, 1.0, "b"), (0.6, 1.0, "b")])
    assert drift.right(0) == {"a": 0.5, "b": 0.5} and drift.right(0, 3) == {"a": 0.5, "b": 1.0}
    assert drift.right(3) == {"b": 0.0}


@pytest.mark.parametrize("fraction, count", [(0.1, 2), (0.25, 5), (0.0, 0)])
def test_the_drift_slice_is_drawn_by_the_seed_from_all_labelled_queries(fraction, count):
    tasks = [data.Task(str(i), "d", "math", f"{i}?", answer="1") for i in range(20)]
    slices = [Drift(tasks, train.Config(drift_fraction=fraction, seed=seed)).ids
              for seed in (0, 0, *range(1, 40))]
    assert slices[0] == slices[1] and all(len(ids) == count for ids in slices)
    assert len(set.union(*slices)) == 20 * (count > 0)


def test_the_epoch_that_was_kept_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    main = SimpleNamespace(is_main_process=True, log=lambda *rest, **more: None)
    run_log = Log(SimpleNamespace(config=train.Config(), folder=tmp_path, accelerator=main), {})
    losses = (0.7, 0.5, 0.6)
    none = float("nan")
    run_log.fits(2, [[{"epoch": n, "train_loss": loss, "val_loss": loss, "val_auc": none, "best": n == 1}
                      for n, loss in enumerate(losses)]])
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    columns = {"train_loss": list(losses), "val_loss": list(losses), "val_auc": [None] * 3}
    assert row == {"step": 2, "fits": [{**columns, "kept": 1}]}


def test_the_audit_takes_the_groups_of_unlabelled_tasks_in_their_order():
    """Four groups, of which the second and the fourth have a hidden label; the last one nobody knows."""
    bare = [data.Task(str(i), "d", "math", "?") for i in range(5)]
    whole = [dataclasses.replace(task, answer=task.id) for task in bare[:4]] + bare[4:]
    shown = [whole[0], bare[1], whole[2], dataclasses.replace(bare[3], domain="qa"), bare[4]]
    texts = [f"#### {answer}" for answer in (0, 0, 1, 5, 2, 2, 5, 3, 4, 4)]
    asked = []

    def predict(*groups, exclude):
        asked.append(groups[0].flatten().tolist())
        return torch.tensor([[0.9, 0.1], [0.2, 0.8]])

    nodes = Groups(torch.arange(5.0)[:, None], *torch.zeros(3, 5, 2, 1))
    experience = SimpleNamespace(tasks=shown, rollouts=SimpleNamespace(texts=texts), groups=nodes,
                                 keys=[["x", "x"], ["x", None], ["x", "x"], ["x", "x"], ["x", "x"]])
    run = SimpleNamespace(config=SimpleNamespace(group_size=2), memory=SimpleNamespace(predict=predict),
                          accelerator=SimpleNamespace(num_processes=1))
    audit = Audit(whole, SimpleNamespace(threshold=0.5, group_size=2))
    assert audit.verify(shown, texts[::2]) == [1.0, 1.0, 1.0, 0.0, None]
    audit.begin(experience)
    audit.add(run, experience)
    assert asked == [[1.0, 3.0]]
    assert audit.probabilities == pytest.approx([0.9, 0.0, 0.2, 0.8]) and audit.rewards == [1, 0, 0, 1]
    assert audit.agreement == [0.5, 0.0, 1.0, 1.0]
    assert audit.metrics()["agreement_auc"] == (1 + 0 + 1 + 0.5) / 4 and audit.metrics(4) == {}
    assert [audit.metrics()[name] for name in ("group_auc", "told_apart", "mistaken")] == [1, 1, 0]
    assert audit.domains == ["math", "math", "qa", "qa"]
    assert audit.metrics(2)["rollouts"] == 2 and not any("/" in name for name in audit.metrics(2))


def test_the_audit_tells_domains_apart():
    """Math: a group in order and one the wrong way round. Code: a group believed whole, half rightly."""
    audit = Audit([], SimpleNamespace(threshold=0.5, group_size=2))
    audit.extend([(0.9, 0.0, 0.5, "qa"), (0.8, 0.0, 0.5, "qa")])  # before the last look
    audit.extend([(0.9, 1.0, 0.75, "math"), (0.1, 0.0, 0.25, "math"),
                  (0.8, 1.0, 0.5, "code"), (0.7, 0.0, 0.5, "code"),
                  (0.2, 1.0, 0.25, "math"), (0.6, 0.0, 0.5, "math")])
    told = audit.metrics(2)
    assert {name: value for name, value in told.items() if name.startswith("math/")} == {
        "math/accuracy": 0.5, "math/fp_rate": 0.5, "math/auc": 0.75, "math/group_auc": 0.5,
        "math/right": 0.5, "math/rollouts": 4}
    assert {name: value for name, value in told.items() if name.startswith("code/")} == {
        "code/accuracy": 0.5, "code/fp_rate": 1.0, "code/auc": 1.0, "code/group_auc": 1.0,
        "code/right": 0.5, "code/rollouts": 2}
    assert told["accuracy"] == 0.5 and told["rollouts"] == 6 and "qa/accuracy" not in told
    assert told["agreement_auc"] == pytest.approx((3 + 2 + 0.5) / 9)
    whole = audit.metrics()
    assert whole["qa/auc"] is None and whole["qa/group_auc"] is None and whole["qa/right"] == 0


def test_the_audit_verifies_while_the_update_computes(monkeypatch):
    """The verifier waits for what happens after `begin`, so one called there would wait for it in vain."""
    task, done = data.Task("1", "d", "slow", "?"), threading.Event()
    monkeypatch.setitem(data.VERIFIERS, "slow", lambda response, answer: float(done.wait(60)))
    experience = SimpleNamespace(tasks=[task], rollouts=SimpleNamespace(texts=["a", "b"]), groups=None,
                                 keys=[["a", "b"]])
    run = SimpleNamespace(memory=None, accelerator=SimpleNamespace(num_processes=1))
    audit = Audit([dataclasses.replace(task, answer="1")], SimpleNamespace(threshold=0.5, group_size=2))
    audit.begin(experience)
    done.set()
    audit.add(run, experience)
    assert audit.rewards == [1, 1]


def test_the_seed_decides_which_tasks_are_shown():
    tasks = [data.Task(str(i), "d", "math", "?", answer="1" if i < 20 else None) for i in range(40)]

    def shown(seed):
        run = SimpleNamespace(config=train.Config(seed=seed))
        return [task.id for task in samples.Samples(run, tasks, None, None).tasks]

    assert shown(0) == shown(0) and [int(name) < 20 for name in shown(0)] == [True, True, False, False]
    assert len({tuple(shown(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("masked", [False, True])
def test_a_shown_rollout_has_its_own_numbers(masked):
    """Two groups of two, rewarded by majority, of which a tie goes to the first."""
    tasks = [data.Task("a", "d", "math", "?", answer="7"), data.Task("b", "d", "math", "?")]
    rollouts = SimpleNamespace(texts=["#### 6", "#### 7", "#### 1", "#### 2"],
                               truncated=torch.tensor([False, True, True, False]),
                               mask=torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]))
    experience = train.Experience(tasks, rollouts, [["6", "7"], ["1", "2"]])
    config = train.Config(mode="majority", group_size=2, mask_truncated=masked)
    run = SimpleNamespace(config=config, memory=None, render=str)
    truth = Audit([tasks[0], dataclasses.replace(tasks[1], answer="2")], run.config)
    shown = samples.Samples(run, tasks, truth, lambda *rest: experience)
    columns = ("response", "answer", "reward", "truth", "length", "truncated")
    found = [[tuple(one[name] for name in columns) for one in row["rollouts"]] for row in shown.rows(3)]
    assert found == [[("#### 6", "6", 0, 0, 1, False), ("#### 7", "7", 1, 1, 2, True)],
                     [("#### 1", "1", 1, 0, 3, True), ("#### 2", "2", 0, 1, 1, False)]]
    signs = [[one["advantage"] > 0, one["advantage"] < 0] for row in shown.rows(3) for one in row["rollouts"]]
    up, down, none = [True, False], [False, True], [False, False]  # as in the update
    assert signs == ([down, none, none, down] if masked else [down, up, up, down])


def test_dropout_of_a_model_is_off_whatever_its_folder_says(tmp_path):
    model = make_model("gpt2")
    model.config.resid_pdrop = model.config.embd_pdrop = model.config.attn_pdrop = 0.5
    model.save_pretrained(tmp_path), make_tokenizer().save_pretrained(tmp_path)
    model = runs.load_policy(train.Config(model=str(tmp_path)), torch.float32)[0].train()
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    runs.write_json(file, {"steps": 1})
    write = type(file).write_text

    def half(path, text, **rest):
        write(path, text[: len(text) // 2], **rest)
        raise OSError("disk full")

    monkeypatch.setattr(type(file), "write_text", half)
    with pytest.raises(OSError):
        runs.write_json(file, {"steps": 2})
    assert json.loads(file.read_text()) == {"steps": 1}


def test_logs_are_cut_back_to_the_step_that_goes_on(tmp_path):
    """After step 3 a run has written step 4, and half of what follows."""
    run = SimpleNamespace(folder=tmp_path, config=train.Config(),
                          accelerator=SimpleNamespace(is_main_process=True))
    metrics = [{"step": step, "loss": 0.5} for step in range(1, 5)] + [{"step": 4, "test/greedy/all": 0.5}]
    for name, rows in (("metrics.jsonl", metrics), ("rollouts.jsonl", [{"step": 3}, {"step": 4}])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(lines + '{"step": 3, "lo')
    runs.cut_logs(run, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in metrics[:3])
    assert (tmp_path / "rollouts.jsonl").read_text() == '{"step": 3}\n'


def test_a_log_with_foreign_line_ends_and_a_fit_is_cut_back_too(tmp_path):
    """U+2028 and U+0085 are text; the networks were fitted anew at the last step, which is looked at."""
    run = SimpleNamespace(folder=tmp_path, config=train.Config(save_rollouts=1),
                          accelerator=SimpleNamespace(is_main_process=True))
    rollouts = [{"step": 1, "text": "1 +\u20281\u0085"}, {"step": 2, "text": "\u2029"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rollouts)
    (tmp_path / "rollouts.jsonl").write_text(text, encoding="utf-8")
    metrics = [{"step": 2, "loss": 1.0}, {"step": 2, "fits": []}, {"step": 2, "test/greedy/all": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    runs.cut_logs(run, 2, extra=True)
    assert [json.loads(line) for line in open(tmp_path / "metrics.jsonl")] == metrics[:2]
    runs.cut_logs(run, 1)
    assert (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8") == text.split("\n")[0] + "\n"


def test_what_else_lies_beside_checkpoints_is_none(tmp_path):
    for name in ("000002", "000010", "1000000", "000002-good", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "000003").write_text("a file")
    found = runs.checkpoints_of(tmp_path)
    assert sorted(path.name for path in found) == ["000002", "000010", "1000000"]
    assert runs.first_whole(found) is None  # empty ones, as a run that was killed may leave, are damaged
    runs.write_json(tmp_path / "checkpoints" / "000002" / "checksums.json", {"a": 0})
    (tmp_path / "checkpoints" / "000002" / "a").write_text("")
    assert runs.first_whole(found).name == "000002"


def test_a_run_is_extended_only_once_it_goes_on(tmp_path):
    run = SimpleNamespace(folder=tmp_path, config=train.Config(steps=9),
                          accelerator=SimpleNamespace(is_main_process=True))
    runs.write_json(tmp_path / "config.json", {"steps": 3, "seed": 5})
    for steps in (9, 9):
        runs.write_json(tmp_path / "results.json", {})
        runs.extend(run)
        assert json.loads((tmp_path / "config.json").read_text()) == {"steps": steps, "seed": 5}
    assert (tmp_path / "results.json").exists()  # of a run of nine steps


def test_a_remembered_row_is_sent_without_its_batch():
    groups = Groups(torch.zeros(16, 8), *torch.zeros(2, 16, 4, 8), torch.zeros(16, 4, 3))
    tasks = [data.Task(str(i), "demo", "math", "?", answer="1") for i in range(16)]
    row = train.remember(None, train.Experience(tasks, None, [], groups), torch.zeros(16, 4))[0]
    assert [x.untyped_storage().nbytes() for x in row[1:]] == [4 * x.numel() for x in row[1:]]


def test_a_rise_of_predictions_needs_some_at_both_ends(tmp_path, capsys):
    run = SimpleNamespace(folder=tmp_path, config=train.Config(),
                          accelerator=SimpleNamespace(is_main_process=True))
    looks = [{"greedy": {"all": accuracy}} for accuracy in (0.6, 0.52, 0.5)]  # it counts from the first
    log = SimpleNamespace(run=run, evaluations=looks)
    for first, told in ((None, False), (0.2, True)):
        rows = [{"step": i, "loss": 1.0, "groups_without_signal": 0.5, "truncated": 0.0,
                 "reward/predicted": first if i == 1 else 0.5} for i in (1, 2, 3)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Log.end(log)
        assert ("predicted rewards rose from 0.20 to 0.50" in capsys.readouterr().out) == told


def test_averages_weight_tasks_and_their_errors_are_of_the_mean():
    """Two sets in domain, of four tasks (two of each domain) and of two, one outside; an error is deviation /
    root of count."""
    names, domains = ("a",) * 4 + ("b",) * 2 + ("o",), ("math", "math", "qa", "qa", "qa", "qa", "math")
    found = evaluation.averages(names, domains, {"greedy": (1, 1, 0, 0, 1, 1, 0.5)}, {"o"}, True)
    assert found["tasks"] == {"a": 4, "a math": 2, "a qa": 2, "b": 2, "o": 1, "all": 6, "out of domain": 1}
    assert [found["greedy"].pop(f"a {domain}") for domain in ("math", "qa")] == [1.0, 0.0]
    assert [found["errors"]["greedy"].pop(f"a {domain}") for domain in ("math", "qa")] == [0.0, 0.0]
    assert found["greedy"] == pytest.approx(
        {"a": 0.5, "b": 1.0, "o": 0.5, "all": 4 / 6, "out of domain": 0.5, "all, mean of sets": 0.75})
    assert found["errors"]["greedy"] == pytest.approx(
        {"a": (1 / 3) ** 0.5 / 2, "b": 0.0, "all": (4 / 15) ** 0.5 / 6**0.5})
