"""From rollouts to rewards: encoders, answer features, majority, and the mixture of verified and predicted
rewards."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import data
from data import Task, answer_key, verify_batch
from gnn import Groups
from memreward import (
    acquire_rewards,
    answer_features,
    majority_key,
    make_encoder,
    predict_rewards,
)
from support.encoders import hash_group

hash_encoder = make_encoder("hash", None)
TASKS = [Task("a", "d", "math", "Ann has 3 bags of 12 nuts. How many nuts?", answer="36"),
         Task("b", "d", "math", "Ben has 5 bags of 7 pens. How many pens?"),
         Task("c", "d", "qa", "Which is warm?", choices=("ice", "fire"), answer="B")]
TEXTS = ["3 * 12 = 36\n#### 36", "3 + 12 = 15\n#### 15", "5 * 7 = 35\n#### 35", "5 + 7 = 12\n#### 12",
         "Fire\n#### B", "Ice\n#### A"]
ROLLOUTS = SimpleNamespace(texts=TEXTS)


def test_a_program_may_use_what_its_question_imports():
    question, tests = "import math\ndef area(r):\n    'Of a circle.'", ("assert round(area(1), 2) == 3.14",)
    task = Task("a", "d", "code", question, tests=tests)
    assert verify_batch([task], ["```python\ndef area(r): return math.pi * r**2\n```"]) == [1.0]


def test_a_verifier_of_ones_own_reads_what_stands_behind_the_thought(monkeypatch):
    monkeypatch.setitem(data.VERIFIERS, "shout", lambda response, answer: float(answer in response))
    task = Task("a", "d", "shout", "Shout plum.", answer="PLUM")
    assert verify_batch([task] * 2, ["<think>PLUM?</think> PEAR", "<think>pear?</think> PLUM"]) == [0.0, 1.0]


def test_hash_encoder_sees_the_same_reasoning_about_other_numbers():
    queries, thinkings, answers = hash_encoder(TASKS, ROLLOUTS)
    assert queries.shape[0] == 3 and thinkings.shape[:2] == answers.shape[:2] == (3, 2)
    assert torch.equal(thinkings[0, 0], thinkings[1, 0]) and torch.equal(thinkings[0, 1], thinkings[1, 1])
    assert thinkings[0, 0] @ thinkings[0, 1] < 0.9
    assert queries[0] @ queries[1] > queries[0] @ queries[2]
    for part in (queries, thinkings, answers):
        assert torch.allclose(part.norm(dim=-1), torch.ones(part.shape[:-1]))


def test_nodes_are_of_the_question_with_its_choices_and_of_each_rollout():
    queries, thinkings, answers = hash_encoder(TASKS, ROLLOUTS)
    parts = [[("3 * 12 = 36\n", "36"), ("3 + 12 = 15\n", "15")],
             [("5 * 7 = 35\n", "35"), ("5 + 7 = 12\n", "12")],
             [("Fire\n", "B"), ("Ice\n", "A")]]
    for b, task in enumerate(TASKS):
        expected = hash_group(task.question, task.choices or (), parts[b])
        for mine, theirs in zip((queries, thinkings, answers), expected):
            assert torch.equal(mine[b], theirs)
    other = [Task("c", "d", "qa", "Which is warm?", choices=("snow", "sun"))]
    assert not torch.equal(hash_encoder(other, SimpleNamespace(texts=TEXTS[4:]))[0][0], queries[2])


def test_an_answer_may_be_the_text_of_a_choice():
    texts = ["Heat rises.\nThe answer is fire.", "Answer: ice"]
    nodes = hash_encoder(TASKS[2:], SimpleNamespace(texts=texts))
    parts = [("Heat rises.\nThe ", "fire."), ("", "ice")]
    for mine, theirs in zip(nodes, hash_group(TASKS[2].question, TASKS[2].choices, parts)):
        assert torch.equal(mine[0], theirs)


def test_hash_encoder_calls_a_signature_by_place():
    def encode(name, x, y):
        task = Task("f", "d", "code", f"Write the function {name}({x}, {y}). It returns {y} minus {x}.")
        text = f"{y} minus {x}\n```python\ndef {name}({x}, {y}):\n    return {y} - {x}\n```"
        return hash_encoder([task], SimpleNamespace(texts=[text]))

    assert all(torch.equal(one, two) for one, two in zip(encode("pens_ann", "a", "b"),
                                                         encode("hats_leo", "q", "m"), strict=False))


def test_text_encoder_is_the_masked_mean_and_knows_no_batch(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({word for task in TASKS for word in task.question.split()} | {"ice", "fire"})
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i,
                                                                       word in enumerate(words)},
                                           unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words) + 2, hidden_size=32, num_hidden_layers=2,
                                 num_attention_heads=2, intermediate_size=64)).eval()
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    encode = make_encoder(str(tmp_path), None)
    queries, thinkings, answers = encode(TASKS, ROLLOUTS)
    alone = encode(TASKS[2:], SimpleNamespace(texts=TEXTS[4:]))
    for all_parts, part in zip((queries, thinkings, answers), alone, strict=False):
        assert torch.allclose(all_parts[2:], part, atol=1e-6)
    for task, query in zip(TASKS, queries, strict=False):
        inputs = tokenizer(" ".join([task.question, *(task.choices or ())]), return_tensors="pt")
        states = model(**inputs).last_hidden_state[0]
        assert torch.allclose(query, F.normalize(states.mean(0), dim=0), atol=1e-6)


def test_policy_encoder_averages_the_right_tokens():
    def tokenizer(text, **_):
        return SimpleNamespace(input_ids=text.split())

    def mean(*states):
        return F.normalize(torch.stack(states).mean(0), dim=0)

    task = Task("a", "d", "math", "?")
    rollouts = SimpleNamespace(texts=["one two\n#### 3", "one\n#### 3 4"],
                               mask=torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
                               attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0]] + [[0, 1, 1, 1, 1, 1,
                                                                                          1, 1]]))
    hidden = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    queries, thinkings, answers = make_encoder("policy", tokenizer)([task], rollouts, hidden)
    # the prompt's columns 0 to 2, of which the first is padding
    assert torch.allclose(queries[0], mean(*hidden[0, 1:3]))
    assert torch.allclose(thinkings[0, 0], mean(*hidden[0, 3:5])) and torch.allclose(answers[0, 0],
                                                                                     mean(*hidden[0, 5:7]))
    assert torch.allclose(thinkings[0, 1], mean(hidden[1, 3])) and torch.allclose(answers[0, 1],
                                                                                  mean(*hidden[1, 4:8]))


def test_policy_encoder_takes_each_prompt_once_and_leaves_out_the_tag_of_a_thought():
    """Two tasks, two responses of three tokens each, whose texts begin with a tag that the prompt wrote."""
    tasks = [Task("a", "d", "math", "?"), Task("b", "d", "math", "?")]
    rollouts = SimpleNamespace(texts=["<think> x </think>#### 1"] * 4, mask=torch.ones(4, 3),
                               attention_mask=torch.ones(4, 4))
    hidden = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0))

    def tokenizer(text, **_):
        return SimpleNamespace(input_ids=text.replace("</think>", " y ").split())

    queries, thinkings, answers = make_encoder("policy", tokenizer)(tasks, rollouts, hidden)
    assert torch.allclose(queries, F.normalize(hidden[[0, 2], 0], dim=-1))  # the prompt is one token
    # "<think> x y #### 1" are five tokens, two more than were sampled; of "<think> x y" one is left
    assert torch.allclose(thinkings.flatten(0, 1), F.normalize(hidden[:, 1], dim=-1))
    assert torch.allclose(answers.flatten(0, 1), F.normalize(hidden[:, 2:].mean(1), dim=-1))


@pytest.mark.parametrize("keys, winner", [(["1", "2", "2"], "2"), (["2", "1", "1", "2"], "2"),
                                          ([None, None, "3"], "3"), ([None, None], None), ([], None)])
def test_majority(keys, winner):
    assert majority_key(keys) == winner


def test_policy_encoder_reads_rollouts_that_others_wrote_beside_states_on_a_gpu():
    """Those are tokenized on the CPU. The device "meta" stands for the GPU: it does not mix with others."""
    def tokenizer(text, **_):
        return SimpleNamespace(input_ids=text.split())

    rollouts = SimpleNamespace(texts=["one two\n#### 3"], mask=torch.ones(1, 4),
                               attention_mask=torch.ones(1, 7, dtype=torch.long))
    nodes = make_encoder("policy", tokenizer)(TASKS[:1], rollouts, torch.empty(1, 7, 6, device="meta"))
    assert [(*node.shape, node.device.type) for node in nodes] == [(1, 6, "meta"), *2 * [(1, 1, 6, "meta")]]


def test_answer_features_by_hand():
    import math

    tasks = [Task("a", "d", "math", "4 rows of 9 and 1,000 more?"),
             Task("b", "d", "qa", "Which?", choices=("x", "y"))]
    texts = [["4 * 9 = 36\n#### 36", "4 + 9.0 = 36\n#### 36", "#### -5", "no idea"],
             ["####B", "#### C", "####B", ""]]
    keys = [["36", "36", "-5", None], ["B", "C", "1/2", "B"]]
    logprobs = torch.tensor([[-0.5, -1.5, -9.0]] * 8)
    mask = torch.tensor([[1.0, 1.0, 0.0]] * 8)
    features = answer_features(tasks, texts, keys, logprobs, mask)

    def log(a):
        return math.copysign(math.log(1 + abs(a)) / 20, a)

    expected = [[[log(36), 1, 1, 0.5], [log(36), 1, 1, 0.5], [log(-5), 1, 0, 0.25], [0, 0, 0, 0]],
                [[0, 1, 1, 0.5], [0, 1, 0, 0.25], [log(0.5), 1, 0, 0.25], [0, 1, 1, 0.5]]]
    assert torch.allclose(features[..., :4], torch.tensor(expected))
    expected = [[[1 / 3, 2 / 3, 1], [1 / 3, 2 / 3, 1], [0, 0, 0], [0, 0, 0]],  # overlap, coverage, sound
                [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]]]
    assert torch.allclose(features[..., 4:7], torch.tensor(expected))
    assert torch.equal(features[..., 7:], torch.tensor([-1.0, -1.5]).expand(2, 4, 2))
    some = answer_features(tasks, texts, keys, logprobs, mask, ["min_logprob", "parsed"])
    assert torch.equal(some, features[..., [8, 1]])
    assert torch.equal(answer_features(tasks, texts, keys, None, None, ["sound"]), features[..., 6:7])
    with pytest.raises(ValueError, match="features: colour: not among"):
        answer_features(tasks, texts, keys, logprobs, mask, ["colour"])
    with pytest.raises(ValueError, match="min_logprob need log-probabilities"):
        answer_features(tasks, texts, keys, None, None, ["min_logprob"])


@pytest.mark.parametrize("response, sound, coverage", [
    ("```python\ndef area(a, b):\n    return a * b\n```", 1, 1.0),
    ("```python\ndef volume(a):\n    return a\n```", 0, 1 / 3),
    ("```python\ndef area(a):\n    return (a\n```", 0, 2 / 3), ("no code", 0, 0.0)])
def test_code_is_sound_where_it_defines_what_was_asked(response, sound, coverage):
    task = Task("c", "d", "code", "Write the function area(a, b). It returns the product.")
    features = answer_features([task], [[response]], [[None]], None, None, ["sound", "coverage"])
    assert features.flatten().tolist() == pytest.approx([sound, coverage])


class Oracle:
    """A memory that is sure of the first rollout."""

    def predict(self, *groups, exclude):
        return torch.tensor([0.6, 0.4]).expand(len(groups[0]), 2)


@pytest.mark.parametrize("memory, threshold, unlabelled", [
    (Oracle(), 0.5, [1, 0]), (Oracle(), 0.3, [1, 1]), (Oracle(), 0.61, [0, 0]),
    (Oracle(), torch.tensor(0.6).item(), [0, 0]), (None, 0.5, [1, 0])])
def test_labelled_groups_are_verified_and_the_others_predicted(memory, threshold, unlabelled):
    keys = [[answer_key(task, TEXTS[2 * b + g]) for g in range(2)] for b, task in enumerate(TASKS)]
    groups = memory and Groups(*hash_encoder(TASKS, ROLLOUTS), torch.zeros(3, 2, 1))
    rewards, source = acquire_rewards(TASKS, TEXTS, memory, groups, keys, threshold)
    assert rewards.tolist() == [[1, 0], unlabelled, [1, 0]]
    assert source == ["verifier", "memory" if memory else "majority", "verifier"]


def test_the_majority_never_rewards_what_does_not_parse():
    assert predict_rewards(None, None, [[None, None, "1"], [None, None, None]]).tolist() == [[0, 0, 1],
                                                                                             [0, 0, 0]]


def test_the_memory_never_rewards_what_has_no_answer():
    """Whatever the networks say of it: a policy finds such rollouts, and none of them can be right."""
    memory = SimpleNamespace(predict=lambda *groups, exclude: torch.tensor([[0.9, 0.8], [0.7, 0.6]]))
    tasks = [Task("a", "d", "math", "?"), Task("b", "d", "qa", "?", choices=("x", "y"))]
    groups, texts = Groups(*torch.zeros(4, 2, 2, 1)), ["#### 1", "####", "B?\n####\n####", "#### B"]
    keys = [[answer_key(tasks[b], texts[2 * b + g]) for g in range(2)] for b in range(2)]
    torch.testing.assert_close(predict_rewards(memory, groups, keys), torch.tensor([[0.9, 0.0], [0.0, 0.6]]))
    assert acquire_rewards(tasks, texts, memory, groups, keys)[0].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("domain, label, responses", [
    ("math", "7", ["####", "7", "8 A", "it is \\boxed{}", "#### ???", "#### " + "7" * 9000]),
    ("qa", "B", ["####", "#### neither", "first to C second greater A C", "#### A or B", "B?\n####\n####"]),

    ("code", "assert f(1) == 2", ["", "x C", "```python\ndef f(x):\n    return data[(x[-2:]\n```",
                                  "```python\n# f\n```"])])
def test_no_verifier_accepts_what_has_no_answer(domain, label, responses):
    given = {"tests": (label,)} if domain == "code" else {"answer": label}
    task = Task("a", "d", domain, "?", choices=("x", "y") if domain == "qa" else None, **given)
    assert {answer_key(task, response) for response in responses} == {None}
    assert verify_batch([task] * len(responses), responses) == [0.0] * len(responses)


def test_an_unlabelled_group_is_judged_by_its_own_nodes_and_answers():
    """The second and the fourth of four groups have no label; the others have no answers."""
    asked = []

    def predict(*groups, exclude):
        asked.append([part.flatten().tolist() for part in groups])
        return torch.tensor([[0.9, 0.9], [0.1, 0.9]])

    tasks = [Task(str(i), "d", "math", "?", answer=None if i % 2 else "1") for i in range(4)]
    groups = Groups(torch.arange(4.0)[:, None], *(torch.arange(8.0).view(4, 2, 1) for _ in range(3)))
    keys = [[None, None], ["1", "2"], [None, None], ["3", "1"]]
    rewards, _ = acquire_rewards(tasks, ["?"] * 8, SimpleNamespace(predict=predict), groups, keys)
    assert asked == [[[1, 3]] + 3 * [[2, 3, 6, 7]]]
    assert rewards.tolist() == [[0, 0], [1, 1], [0, 0], [0, 1]]


def test_soft_rewards_and_abstention():
    """Sure, unsure and labelled groups; |2p - 1| is 0.8 on average for the first and 0.2 for the second."""
    probabilities = torch.tensor([[0.9, 0.2, 1.0, 0.1], [0.6, 0.5, 0.4, 0.3]])
    memory = SimpleNamespace(predict=lambda *groups, exclude: probabilities)
    tasks = [Task("a", "d", "math", "?"), Task("b", "d", "math", "?"),
             Task("c", "d", "math", "?", answer="1")]
    texts = ["#### 1", "#### 2", "#### 1", "?"] * 3
    groups = Groups(torch.zeros(3, 2), torch.zeros(3, 4, 2), torch.zeros(3, 4, 2), torch.zeros(3, 4, 1))

    def acquire(*more):
        return acquire_rewards(tasks, texts, memory, groups, [["1"] * 4] * 3, 0.5, *more)

    verified = [1.0, 0.0, 1.0, 0.0]
    rewards, source = acquire()
    assert rewards.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], verified]
    assert source == ["memory", "memory", "verifier"]
    rewards, source = acquire(True)
    assert torch.equal(rewards, torch.cat([probabilities, torch.tensor([verified])]))
    rewards, source = acquire(False, 0.5)
    assert rewards.tolist() == [[1, 0, 1, 0], [0] * 4, verified]
    assert source == ["memory", "abstained", "verifier"]
    laps = []
    acquire(True, 0.5, laps.append)
    assert laps == ["verify", "predict"]
