"""grpo.py against slow, obvious twins: sampling without cache or batch, the loss in Python loops, gradients
by hand."""

import contextlib
import copy
import itertools
import math
import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import PROMPTS, WORDS, draw, make_model, make_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import grpo
from support import packing


def slow_sample(model, prompt, uniforms, temperature, eos):
    """One response, by a full forward pass for every token and a running sum over the words."""
    ids, tokens, logprobs = list(prompt), [], []
    for u in uniforms:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1].double()
        powers = (logits / temperature).exp()
        probabilities = (powers / powers.sum()).tolist()
        token, total = 0, probabilities[0]
        while total <= u:
            token += 1
            total += probabilities[token]
        tokens.append(token)
        logprobs.append(math.log(probabilities[token]))
        ids.append(token)
        if token in eos:
            break
    return tokens, logprobs


@pytest.mark.parametrize(
    "kind, pad, eos, batch_size",
    [
        ("qwen2", "<pad>", (1, 2), 256),
        ("qwen2", "<eos>", (1,), 8),
        ("qwen2", "<eos>", (5, 6), 1),
        ("gpt2", "<end>", (2,), 9),
    ],
)
def test_sampling_equals_a_sampler_without_cache_batch_or_padding(kind, pad, eos, batch_size):
    model, tokenizer, group_size, length = make_model(kind, eos), make_tokenizer(pad), 4, 12
    rollouts = draw(model, group_size=group_size, length=length, tokenizer=tokenizer, batch_size=batch_size)
    noise = grpo.uniform_noise(0, 0, PROMPTS, group_size, length)
    width = rollouts.ids.shape[1] - length
    ended = 0
    for row in range(len(PROMPTS) * group_size):
        prompt = [int(word[1:]) for word in PROMPTS[row // group_size].split()]
        tokens, logprobs = slow_sample(model, prompt, noise[row].tolist(), 0.7, {1, *eos})
        n = len(tokens)
        assert rollouts.ids[row, width - len(prompt) : width + n].tolist() == prompt + tokens
        assert rollouts.mask[row].tolist() == [1.0] * n + [0.0] * (length - n)
        assert rollouts.attention_mask[row].tolist() == (
            [0] * (width - len(prompt)) + [1] * (len(prompt) + n) + [0] * (length - n)
        )
        assert rollouts.logprobs[row].tolist() == pytest.approx(logprobs + [0.0] * (length - n), abs=1e-5)
        end = tokens[-1] in {1, *eos}
        ended += end
        assert bool(rollouts.truncated[row]) is not end
        assert rollouts.texts[row] == tokenizer.decode(tokens[: n - end], skip_special_tokens=True)
    assert 3 < ended < 20  # both kinds of end were met
    assert {len(text.split()) for text in rollouts.texts} != {length}


def test_prompts_cost_the_logits_of_their_last_token_alone():
    model, shapes = make_model(), []
    model.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.logits.shape)))
    grpo.sample(model, make_tokenizer(), PROMPTS, 2, 3)
    prefill = [shape for shape in shapes if shape[0] == len(PROMPTS)]  # before it, it is asked about padding
    assert prefill == [(len(PROMPTS), 1, model.config.vocab_size)]


def test_rows_that_have_written_the_same_so_far_are_read_as_one():
    model, read = make_model(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    rollouts = draw(model, prompts=PROMPTS[:3] + PROMPTS[:1], group_size=8, temperature=0.7)
    lengths = rollouts.mask.sum(1).long().tolist()
    written = [row[:n] for row, n in zip(rollouts.ids[:, -12:].tolist(), lengths)]
    for t in range(1, max(lengths)):  # after t tokens; groups stay apart, also those of one prompt
        texts = {(i // 8, *row[:t]) for i, row in enumerate(written) if len(row) > t}
        assert sorted(ids[0] for ids in read[t - max(lengths)]) == sorted(text[-1] for text in texts)
        assert len(texts) < 32


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_sampled_logprobs_equal_recomputed_ones(temperature):
    model = make_model()
    rollouts = draw(model, temperature=temperature)
    again = grpo.token_logprobs(model, rollouts.ids, rollouts.attention_mask, 12, temperature)
    torch.testing.assert_close(again, rollouts.logprobs, atol=1e-5, rtol=0)
    some = grpo.token_logprobs(model, rollouts.ids, rollouts.attention_mask, 12, temperature, batch_size=3)
    torch.testing.assert_close(some, again, atol=1e-5, rtol=0)
    assert again[rollouts.mask == 0].eq(0).all() and again[rollouts.mask == 1].lt(0).all()


def test_a_response_begins_with_the_thought_that_its_prompt_opened():
    """Else an answer inside a thought that was never closed would count."""
    texts = draw(make_model(), prompts=["w5 w6 <think>\n", "w5 w6"], group_size=2).texts
    assert [text.startswith("<think>\n") for text in texts] == [True, True, False, False]


def test_what_a_generation_config_does_to_tokens_is_not_done():
    """generate() obeys all of these; the policy that is trained knows none, so the policy that samples must
    not."""
    model = make_model()
    expected = draw(model)
    model.generation_config.update(
        repetition_penalty=9.0,
        top_k=1,
        top_p=0.1,
        temperature=0.01,
        min_new_tokens=9,
        suppress_tokens=[4, 5, 6, 7],
        no_repeat_ngram_size=1,
        forced_eos_token_id=1,
    )
    rollouts = draw(model)
    assert torch.equal(rollouts.ids, expected.ids) and torch.equal(rollouts.logprobs, expected.logprobs)


def test_rollouts_do_not_depend_on_the_batch_or_its_order():
    model = make_model()
    whole, some = draw(model, batch_size=8), draw(model, prompts=[PROMPTS[3], PROMPTS[0]])
    for row, twin in zip(range(8), [12, 13, 14, 15, 0, 1, 2, 3]):
        assert some.texts[row] == whole.texts[twin]
        torch.testing.assert_close(some.logprobs[row], whole.logprobs[twin], atol=1e-5, rtol=0)
    assert len(set(whole.texts[:4])) > 1  # rollouts of a group differ
    assert draw(model, step=1).texts != whole.texts


def test_noise_is_uniform_and_told_by_seed_step_key_and_place():
    noise = grpo.uniform_noise(1, 2, ["a", "b"], 3, 2000)
    assert noise.shape == (6, 2000) and noise.dtype == torch.float32
    assert 0 <= noise.min() and noise.max() < 1 and noise.mean(1).sub(0.5).abs().max() < 0.03
    assert len({tuple(row[:3].tolist()) for row in noise}) == 6
    assert torch.equal(noise[3:], grpo.uniform_noise(1, 2, ["b"], 3, 2000))
    for other in (grpo.uniform_noise(2, 2, ["a"], 3, 2000), grpo.uniform_noise(1, 3, ["a"], 3, 2000)):
        assert not torch.equal(noise[:3], other)


def test_noise_is_the_same_in_every_process_and_version():
    """3904355907 is the CRC-32 of "a"; Python's own hash is another in every process."""
    stream = np.random.default_rng([5, 6, 3904355907, 1])
    expected = stream.random(4, dtype=np.float32).tolist()
    assert grpo.uniform_noise(5, 6, ["a"], 2, 4)[1].tolist() == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_chosen_as_often_as_the_softmax_says(temperature):
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    tokens, logprobs = grpo.choose_tokens(logits.expand(20_000, 7), uniforms, temperature)
    expected = [math.exp(z / temperature) for z in logits.tolist()]
    expected = torch.tensor(expected) / sum(expected)
    torch.testing.assert_close(tokens.bincount(minlength=7) / 20_000, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


@pytest.mark.parametrize("uniform, token", [(0.0, 1), (0.2499, 1), (0.2501, 3), (1 - 2**-24, 3), (1.0, 3)])
def test_impossible_tokens_are_never_chosen(uniform, token):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, math.log(3.0), -200.0, -math.inf]])
    assert grpo.choose_tokens(logits, torch.tensor([uniform]), 1.0)[0].item() == token


def test_impossible_tokens_are_never_chosen_when_prefix_sums_are_rounded_up(monkeypatch):
    exact = (
        torch.Tensor.cumsum
    )  # a GPU adds in another order for every place, so its sums need not be monotone
    monkeypatch.setattr(
        torch.Tensor, "cumsum", lambda x, dim: exact(x, dim) + torch.tensor([0, 0, 1e-3, 0, 0, 1e-3])
    )
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, math.log(3.0), -math.inf, -math.inf]] * 2)
    assert grpo.choose_tokens(logits, torch.tensor([0.2505, 1.0]), 1.0)[0].tolist() == [3, 3]


def test_the_largest_uniform_number_stays_inside_a_large_vocabulary():
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 30
    tokens, logprobs = grpo.choose_tokens(logits, torch.ones(64), 1.0)
    assert tokens.max() < 5000 and logprobs.isfinite().all()


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_greedy_equals_generate(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    rollouts = grpo.sample(model, tokenizer, PROMPTS, 1, 12, temperature=0)
    batch = tokenizer(
        PROMPTS, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    )
    ids = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=0,
    )
    assert rollouts.ids[:, : ids.shape[1]].tolist() == ids.tolist()
    torch.testing.assert_close(
        grpo.token_logprobs(model, rollouts.ids, rollouts.attention_mask, 12),
        rollouts.logprobs,
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_row_of_minus_ones_is_greedy_among_others(temperature):
    """Two of four rollouts of a prompt, in other batches: they and the others are what they are apart."""
    model, tokenizer = make_model("qwen2"), make_tokenizer()
    noise = grpo.uniform_noise(0, 0, PROMPTS, 4, 12)
    apart = grpo.sample(model, tokenizer, PROMPTS, 4, 12, temperature, noise.clone())
    surest = grpo.sample(model, tokenizer, PROMPTS, 1, 12, 0.0)
    greedy = torch.arange(len(noise)) % 4 % 3 == 0  # the first and the last of each group
    noise[greedy] = -1.0
    mixed = grpo.sample(model, tokenizer, PROMPTS, 4, 12, temperature, noise, batch_size=8)
    assert not torch.equal(apart.ids[greedy], mixed.ids[greedy])
    for part in ("ids", "mask", "logprobs"):
        of, one, several = getattr(mixed, part), getattr(surest, part), getattr(apart, part)
        torch.testing.assert_close(of[greedy], one.repeat_interleave(2, 0), atol=1e-5, rtol=0)
        torch.testing.assert_close(of[~greedy], several[~greedy], atol=1e-5, rtol=0)


def test_sampling_with_checkpointing_restores_the_mode_and_allows_training():
    model = make_model()
    expected = draw(model)
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    rollouts = draw(model)
    assert model.training and torch.equal(rollouts.ids, expected.ids)
    grpo.token_logprobs(model, rollouts.ids, rollouts.attention_mask, 12).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_sampling_in_the_midst_of_training_knows_no_dropout():
    model = make_model("gpt2")
    expected = draw(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    rollouts = draw(model.train())
    assert model.training and torch.equal(rollouts.ids, expected.ids)
    torch.testing.assert_close(rollouts.logprobs, expected.logprobs)


@pytest.mark.parametrize(
    "prompts, length, change, message",
    [
        (["w4", ""], 5, {}, "prompts: number 1 is empty"),
        (["w4 w5"], 39, {}, "max_new_tokens: .* exceed the model's 40 positions"),
        (["w4"], 5, {"eos": None}, "neither tokenizer nor generation config names an EOS"),
    ],
)
def test_sample_refuses(prompts, length, change, message):
    model, tokenizer = make_model(), make_tokenizer()
    if change:
        model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ValueError, match=message):
        grpo.sample(model, tokenizer, prompts, 2, length)


@pytest.mark.parametrize("batch_size", [256, 4])
def test_a_response_ends_where_its_text_holds_a_stop_string(batch_size):
    model, tokenizer = make_model(), make_tokenizer()
    free = draw(model, group_size=8)
    stopped = draw(model, group_size=8, stop=["w9 ", "w4 w9", "w1"], batch_size=batch_size)
    cut = 0
    for row, whole in enumerate(free.texts):
        places = [whole.find(mark) for mark in ("w9 ", "w4 w9", "w1") if mark in whole]
        assert stopped.texts[row] == (whole[: min(places)] if places else whole)
        words = stopped.mask[row].sum().int()
        assert torch.equal(stopped.ids[row, : 5 + words], free.ids[row, : 5 + words])
        torch.testing.assert_close(stopped.logprobs[row, :words], free.logprobs[row, :words])
        if places:  # the first token with which the text holds one of them is the last
            said = tokenizer.decode(free.ids[row, 5 : 5 + words], skip_special_tokens=True)
            before = tokenizer.decode(free.ids[row, 5 : 5 + words - 1], skip_special_tokens=True)
            assert any(mark in said for mark in ("w9 ", "w4 w9", "w1"))
            assert not any(mark in before for mark in ("w9 ", "w4 w9", "w1"))
        cut += bool(places)
        assert bool(stopped.truncated[row]) is (bool(free.truncated[row]) and not places)
    assert 5 < cut < 40


def test_sample_refuses_a_damaged_model():
    model = make_model()
    model.lm_head.weight.data[3] = math.nan
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        grpo.sample(model, make_tokenizer(), ["w4"], 2, 3)


# ------------------------------------------------------------------------------- advantages, weights and loss


@pytest.mark.parametrize("normalize", ["std", "none"])
def test_advantages_by_hand(normalize):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1], [0.0, 2.0, -1.0, 7.0]])
    kept = rewards.clone()
    advantages = grpo.group_advantages(rewards, normalize)
    for row, group in zip(advantages.tolist(), rewards.tolist()):
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        divisor = std + 1e-4 if normalize == "std" else 1.0
        assert row == pytest.approx([(r - mean) / divisor if std > 1e-6 else 0.0 for r in group], abs=1e-5)
    assert torch.equal(rewards, kept)


def test_equal_rewards_give_exactly_zero():
    rewards = torch.tensor([[0.1] * 7, [1 / 3] * 7, [1e6 + 0.3] * 7])
    for normalize in ("std", "none"):
        assert grpo.group_advantages(rewards, normalize).eq(0).all()


@pytest.mark.parametrize("normalize", ["std", "none"])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_expected_advantages_are_means_over_all_rewards_there_may_be(normalize, size):
    beliefs = torch.rand(4, size, generator=torch.Generator().manual_seed(size))
    beliefs[0], beliefs[1, 0], beliefs[2, 1:] = beliefs[0].round(), 1.0, 0.0  # some are known
    kept, expected = beliefs.clone(), torch.zeros(4, size)
    for may_be in itertools.product((0.0, 1.0), repeat=size):
        rewards = torch.tensor(may_be).expand(4, -1)
        chance = torch.where(rewards == 1, beliefs, 1 - beliefs).prod(1, keepdim=True)
        expected += chance * grpo.group_advantages(rewards, normalize)
    found = grpo.expected_advantages(beliefs, normalize)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(found[0], grpo.group_advantages(beliefs[:1], normalize)[0], atol=1e-5, rtol=0)
    assert torch.equal(beliefs, kept)


def test_expected_advantages_of_a_large_group_and_of_one_that_is_sure():
    known = torch.tensor([[0.0] * 40 + [1.0] * 8, [1.0] * 48, [0.0] * 48])
    found = grpo.expected_advantages(known)
    torch.testing.assert_close(found, grpo.group_advantages(known), atol=1e-5, rtol=0)
    assert found[1:].eq(0).all()
    assert grpo.expected_advantages(torch.full((1, 8), 0.3)).eq(0).all()  # none, not nearly none
    for damaged, normalize in ((torch.ones(3, 1), "std"), (torch.ones(4), "std"), (torch.ones(2, 2), "l2")):
        with pytest.raises(ValueError):
            grpo.expected_advantages(damaged, normalize)
    doubtful = torch.tensor([[0.50, 0.52] * 24])  # dividing by their own deviation would make these -1 and 1
    assert grpo.expected_advantages(doubtful).abs().max() < 0.03


@pytest.mark.parametrize(
    "rewards, normalize, message",
    [
        (torch.ones(3, 1), "std", "group_size: .* 2 or more"),
        (torch.ones(4), "std", "group_size"),
        (torch.ones(2, 2), "l2", 'normalize: "std" or "none", not \'l2\''),
    ],
)
def test_advantages_refuse(rewards, normalize, message):
    with pytest.raises(ValueError, match=message):
        grpo.group_advantages(rewards, normalize)


def test_token_weights_by_hand():
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    expected = {"sequence": [1 / 9, 1 / 3, 1 / 12], "token": [1 / 8] * 3, "constant": [1 / 15] * 3}
    for norm, rows in expected.items():
        torch.testing.assert_close(grpo.token_weights(mask, norm), torch.tensor(rows)[:, None] * mask)
        halves = [
            grpo.token_weights(mask, norm, reduce=lambda x: 2 * x)
        ] * 2  # a second process with the same rows
        assert sum(half.sum() for half in halves) == pytest.approx(8 / 15 if norm == "constant" else 1.0)
    with pytest.raises(ValueError, match="loss_norm: .* not \"mean\"|not 'mean'"):
        grpo.token_weights(mask, "mean")


def random_batch(dtype=torch.float64, spread=0.4, n=6, length=5):
    generator = torch.Generator().manual_seed(3)
    logprobs, *shifts = (torch.randn(n, length, generator=generator, dtype=dtype) for _ in range(3))
    logprobs = -logprobs.abs()
    mask = (torch.arange(length) < torch.randint(1, length + 1, (n, 1), generator=generator)).to(dtype)
    return (
        logprobs,
        logprobs + spread * shifts[0],
        logprobs + shifts[1],
        torch.tensor([1.2, -0.7, 0, 2, -2, 0.3]),
        mask,
    )


def slow_loss(logprobs, old, ref, advantages, mask, low, high, kl_coef, weights):
    """Equations (4) to (8), one token at a time; counts, too, the tokens whose gradient the clip removes."""
    loss, kls, clipped = 0.0, [], []
    for i, t in mask.nonzero().tolist():
        ratio = math.exp(logprobs[i, t] - old[i, t])
        advantage = advantages[i].item()
        objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
        d = ref[i, t].item() - logprobs[i, t].item()
        kls.append(math.exp(d) - d - 1)
        clipped.append((advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low))
        loss += weights[i, t].item() * (kl_coef * kls[-1] - objective)
    return loss, sum(kls) / len(kls), sum(clipped) / len(clipped)


@pytest.mark.parametrize("norm", ["sequence", "token", "constant"])
@pytest.mark.parametrize("low, high, kl_coef", [(0.2, 0.2, 0.001), (0.1, 0.3, 0.5), (0.2, 0.28, 0.0)])
def test_loss_by_hand_and_gradient_by_finite_differences(norm, low, high, kl_coef):
    logprobs, old, ref, advantages, mask = random_batch()
    weights = grpo.token_weights(mask, norm).double()
    logprobs.requires_grad_()
    loss, metrics = grpo.grpo_loss(logprobs, old, ref, advantages, mask, low, high, kl_coef, weights)
    expected, kl, clipped = slow_loss(
        logprobs.detach(), old, ref, advantages, mask, low, high, kl_coef, weights
    )
    assert 0 < clipped < 1 and loss.item() == pytest.approx(expected, abs=1e-6)
    assert metrics["kl"].item() == pytest.approx(kl) and metrics["clip_fraction"].item() == pytest.approx(
        clipped
    )
    loss.backward()
    for i, t in [(0, 0), (1, 0), (3, 1), (4, 0), (5, 0), (2, 4)]:
        step = torch.zeros_like(logprobs)
        step[i, t] = 1e-6
        up, down = (
            slow_loss(logprobs.detach() + s * step, old, ref, advantages, mask, low, high, kl_coef, weights)[
                0
            ]
            for s in (1, -1)
        )
        assert logprobs.grad[i, t].item() == pytest.approx((up - down) / 2e-6, abs=1e-5)


@pytest.mark.parametrize(
    "ratio, advantage, gradient_flows",
    [
        (1.5, 1.0, False),
        (0.5, 1.0, True),
        (1.5, -1.0, True),
        (0.5, -1.0, False),
        (1.25, 1.0, True),
        (0.85, -1.0, True),
    ],
)
def test_the_clip_acts_on_the_side_that_has_moved_far_enough(ratio, advantage, gradient_flows):
    logprobs = torch.tensor([[math.log(ratio) - 2.0]], requires_grad=True)
    loss, metrics = grpo.grpo_loss(
        logprobs,
        torch.tensor([[-2.0]]),
        None,
        torch.tensor([advantage]),
        torch.ones(1, 1),
        clip_low=0.2,
        clip_high=0.3,
    )
    loss.backward()
    assert metrics["clip_fraction"].item() == float(not gradient_flows) and "kl" not in metrics
    assert logprobs.grad.item() == pytest.approx(-ratio * advantage if gradient_flows else 0.0)


def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_is_the_policy_gradient():
    logprobs, _, _, advantages, mask = random_batch()
    loss, metrics = grpo.grpo_loss(logprobs.requires_grad_(), None, None, advantages, mask)
    loss.backward()
    torch.testing.assert_close(
        logprobs.grad, -advantages[:, None].double() * mask / mask.sum(1, keepdim=True) / 6
    )
    assert metrics["ratio"] == 1 and metrics["clip_fraction"] == 0


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_places_are_never_read_and_inputs_never_written(garbage):
    logprobs, old, ref, advantages, mask = random_batch()
    weights = grpo.token_weights(mask).clamp(min=0.1)
    expected = grpo.grpo_loss(logprobs, old, ref, advantages, mask, weights=weights * mask)
    dirty = [x.masked_fill(mask == 0, garbage).requires_grad_() for x in (logprobs, old, ref)]
    kept = [x.clone() for x in (*dirty, advantages, mask)]
    loss, metrics = grpo.grpo_loss(*dirty, advantages, mask, weights=weights)
    assert loss == expected[0] and metrics == expected[1]
    loss.backward()
    assert dirty[0].grad.isfinite().all() and dirty[0].grad[mask == 0].eq(0).all()
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(kept, (*dirty, advantages, mask)))


# ------------------------------------------------------------------------------------------------- the update


def learn(model, rollouts, advantages, ref, lr=0.1, accelerator=None, **settings):
    """A copy of the model after one policy_update by plain gradient descent, and the metrics."""
    model = copy.deepcopy(model)
    accelerator = accelerator or Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=lr))
    metrics = grpo.policy_update(
        model,
        optimizer,
        accelerator,
        rollouts,
        advantages,
        ref,
        **{"max_grad_norm": 1e9, "temperature": 0.7} | settings,
    )
    return accelerator.unwrap_model(model), metrics


def make_batch():
    """A model, 20 of its rollouts of unequal length, advantages, and another model's log-probabilities of
    them."""
    model = make_model()
    rollouts = draw(model)
    rewards = torch.rand(len(PROMPTS), 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ref = grpo.token_logprobs(make_model(seed=1), rollouts.ids, rollouts.attention_mask, 12, 0.7)
    return model, rollouts, grpo.group_advantages(rewards).flatten(), ref


def slow_gradients(model, rollouts, advantages, ref, norm, kl_coef, old=None, clip=(0.2, 0.2)):
    """Of the loss as DeepSeekMath, DAPO and Dr. GRPO write it, one unpadded row at a time."""
    model = copy.deepcopy(model)
    n, length = rollouts.mask.shape
    loss = 0.0
    for i in range(n):
        kept, tokens = rollouts.attention_mask[i].bool(), int(rollouts.mask[i].sum())
        ids = rollouts.ids[i, kept]
        logprobs = (model(ids[None]).logits[0, :-1] / 0.7).log_softmax(-1)[range(len(ids) - 1), ids[1:]][
            -tokens:
        ]
        d = ref[i, :tokens] - logprobs
        ratio = (logprobs - (logprobs.detach() if old is None else old[i, :tokens])).exp()
        a = advantages[i]
        clipped = ratio.clamp(1 - clip[0], 1 + clip[1])
        terms = kl_coef * (d.exp() - d - 1) - torch.minimum(ratio * a, clipped * a)
        loss = (
            loss
            + terms.sum()
            / {"sequence": n * tokens, "token": rollouts.mask.sum(), "constant": n * length}[norm]
        )
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("norm, kl_coef", [("sequence", 0.001), ("token", 0.5), ("constant", 0.0)])
def test_gradients_are_those_of_the_formula_for_any_micro_batch_size(norm, kl_coef):
    model, rollouts, advantages, ref = make_batch()
    before = copy.deepcopy((rollouts.__dict__, advantages, ref))
    expected_loss, gradients = slow_gradients(model, rollouts, advantages, ref, norm, kl_coef)
    size = math.sqrt(sum(g.square().sum().item() for g in gradients))
    for micro_batch_size in (1, 2, 7, None):
        after, metrics = learn(
            model,
            rollouts,
            advantages,
            ref,
            lr=1.0,
            loss_norm=norm,
            kl_coef=kl_coef,
            micro_batch_size=micro_batch_size,
        )
        for p, q, g in zip(model.parameters(), after.parameters(), gradients):
            torch.testing.assert_close(p - q, g, atol=2e-6, rtol=1e-4)
        assert metrics["loss"] == pytest.approx(expected_loss, abs=1e-5)
        assert metrics["grad_norm"] == pytest.approx(size, rel=1e-4)
        assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["clip_fraction"] == 0
        scores = grpo.forward_responses(model, rollouts.ids, rollouts.attention_mask, 12, 0.7)
        kept = rollouts.mask.bool()
        assert metrics["entropy"] == pytest.approx(scores.entropy[kept].mean().item(), rel=1e-5)
        d = (ref - scores.logprobs)[kept].detach()
        assert metrics["kl"] == pytest.approx((d.exp() - d - 1).mean().item(), rel=1e-4)
    for a, b in zip((*before[0].values(), *before[1:]), (*rollouts.__dict__.values(), advantages, ref)):
        assert a == b if isinstance(a, list) else torch.equal(a, b)


def test_groups_without_signal_need_no_pass():
    model, rollouts, advantages, ref = make_batch()
    silent = advantages.clone()
    silent[4:16] = 0.0
    passes = []
    for size in (4, None):
        for batch, reference in ((silent, None), (silent, ref), (0 * silent, None)):
            twin = copy.deepcopy(model)
            hook = twin.model.register_forward_pre_hook(
                lambda *_: passes.append(1) if torch.is_grad_enabled() else None
            )
            after, metrics = learn(
                twin, rollouts, batch, reference, lr=1.0, kl_coef=0.0, micro_batch_size=size
            )
            hook.remove()
            _, expected = slow_gradients(model, rollouts, batch, ref, "sequence", 0.0)
            for p, q, g in zip(model.parameters(), after.parameters(), expected):
                torch.testing.assert_close(p - q, g, atol=2e-6, rtol=1e-4)
            passes.append(0)
    assert "".join(map(str, passes)) == "110" + "111110" + "10" + 3 * "10"
    assert metrics["ratio"] == metrics["entropy"] == 0  # no token was passed


@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.05, 0.5)])
def test_two_updates_a_batch_keep_the_old_logprobs(clip):
    model, rollouts, advantages, ref = make_batch()
    with torch.no_grad():
        old = grpo.token_logprobs(model, rollouts.ids, rollouts.attention_mask, 12, 0.7)
    settings = dict(lr=3.0, micro_batch_size=7, clip_low=clip[0], clip_high=clip[1])
    once, first = learn(model, rollouts, advantages, ref, **settings)
    twice, both = learn(model, rollouts, advantages, ref, **settings, updates_per_batch=2)
    _, gradients = slow_gradients(once, rollouts, advantages, ref, "sequence", 0.001, old, clip)
    for p, q, g in zip(once.parameters(), twice.parameters(), gradients):
        torch.testing.assert_close(p - 3.0 * g, q, atol=1e-5, rtol=1e-4)
    assert first["clip_fraction"] == 0 < both["clip_fraction"] < 0.5 and abs(both["ratio"] - 1) > 1e-3


def test_the_mismatch_is_how_far_sampled_log_probabilities_lie_from_the_trained_ones():
    model, rollouts, advantages, ref = make_batch()
    assert learn(model, rollouts, advantages, ref)[1]["mismatch"] < 1e-5
    shift = torch.linspace(-0.2, 0.3, 240).view(20, 12) * rollouts.mask
    rollouts.logprobs = rollouts.logprobs + shift
    for settings in ({}, {"micro_batch_size": 7, "updates_per_batch": 2}):
        metrics = learn(model, rollouts, advantages, ref, **settings)[1]
        assert metrics["mismatch"] == pytest.approx(
            (shift.abs().sum() / rollouts.mask.sum()).item(), rel=1e-3
        )


class Twins:
    """One of two processes that hold the same rows, as accelerate would show it: a sum doubles, and the mean
    of both gradients is one's own. Notes in which passes gradients are exchanged."""

    num_processes = 2

    def __init__(self):
        self.quiet, self.exchanged = False, []

    @contextlib.contextmanager
    def no_sync(self, model):
        self.quiet = True
        yield
        self.quiet = False

    def backward(self, loss):
        self.exchanged.append(not self.quiet)
        loss.backward()

    def reduce(self, x):
        return 2 * x

    def gather(self, x):
        return torch.cat([x, x])

    def prepare(self, *parts):
        return parts

    def unwrap_model(self, model):
        return model

    def clip_grad_norm_(self, parameters, size):
        return torch.nn.utils.clip_grad_norm_(parameters, size)


@pytest.mark.parametrize("norm", ["sequence", "token", "constant"])
def test_two_processes_with_the_same_rows_take_the_step_of_one(norm):
    model, rollouts, advantages, ref = make_batch()
    settings = dict(lr=1.0, loss_norm=norm, kl_coef=0.5, micro_batch_size=7, updates_per_batch=2)
    twins = Twins()
    alone, one = learn(model, rollouts, advantages, ref, **settings)
    both, two = learn(model, rollouts, advantages, ref, accelerator=twins, **settings)
    for p, q in zip(alone.parameters(), both.parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert twins.exchanged == 2 * [False, False, True]  # once an update, in its last pass


def test_row_0_stands_in_without_weight_where_another_process_has_more_passes():
    ids = torch.tensor([[5, 7], [5, 7], [5, 8], [5, 9], [5, 9], [5, 6]])  # prompt, response
    rollouts = SimpleNamespace(ids=ids, attention_mask=torch.ones_like(ids), mask=torch.ones(6, 1))
    counts = torch.tensor([True, False, True, True, True, False])
    others = SimpleNamespace(gather=lambda mine: torch.cat([mine, torch.tensor([4])]))

    def passes(share, size, counts=counts):
        made = grpo.update_batches(others, rollouts, counts, size, share)
        return [(rows.tolist(), weight) for rows, weight in made]

    stand_in = ([0], 0.0)
    # of rows 0, 2, 3, 4 the last two are equal, so two different ones are three of them
    assert passes(True, 2) == [([0, 2], 1.0), ([3, 4], 1.0), stand_in, stand_in]
    assert passes(False, 3) == [([0, 2, 3], 1.0), ([4], 1.0), stand_in, stand_in]
    assert passes(True, None) == [([0, 2, 3, 4], 1.0)] + 3 * [stand_in]
    assert passes(True, 2, counts & False) == 4 * [stand_in]


def test_a_process_with_fewer_different_rows_takes_the_same_step():
    """Passes that stand in change neither gradient nor metrics, with a KL term, where every row counts."""
    model, rollouts, advantages, ref = make_batch()
    alone, one = learn(model, rollouts, advantages, ref, lr=1.0, kl_coef=0.5, micro_batch_size=7)

    class Fewer(Twins):
        def gather(self, x):  # only of the number of passes is this asked
            return torch.cat([x, x + 3])

    twins = Fewer()
    both, two = learn(model, rollouts, advantages, ref, accelerator=twins, lr=1.0, kl_coef=0.5,
                      micro_batch_size=7)
    for p, q in zip(alone.parameters(), both.parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert twins.exchanged == [False] * 5 + [True]


def test_metrics_are_means_over_the_tokens_of_rows_that_count():
    """Without a KL term rows of advantage 0 are left out; micro-batches weigh by their tokens."""
    model, rollouts, advantages, _ = make_batch()
    silent = advantages.clone()
    silent[::3] = 0.0
    scores = grpo.forward_responses(model, rollouts.ids, rollouts.attention_mask, 12, 0.7)
    expected = scores.entropy[rollouts.mask.bool() & (silent != 0)[:, None]].mean().item()
    for size in (3, None):
        metrics = learn(model, rollouts, silent, None, micro_batch_size=size)[1]
        assert metrics["entropy"] == pytest.approx(expected, rel=1e-4)
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)


def test_the_gradient_is_clipped():
    model, rollouts, advantages, ref = make_batch()
    after, metrics = learn(model, rollouts, advantages, ref, lr=1.0, max_grad_norm=0.01)
    moved = sum((p - q).square().sum().item() for p, q in zip(model.parameters(), after.parameters()))
    assert metrics["grad_norm"] > 0.1 and math.sqrt(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("damage", ["advantage", "reference", "gradient"])
def test_a_non_finite_update_is_refused_before_the_step(damage):
    model, rollouts, advantages, ref = make_batch()
    if damage == "advantage":
        advantages = advantages.index_fill(0, torch.tensor([3]), math.nan)
    elif damage == "reference":
        ref = ref.index_fill(0, torch.tensor([3]), math.inf)
    else:
        model.model.norm.weight.register_hook(lambda g: g * math.inf)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="policy_update: loss .*weights are unchanged"):
        grpo.policy_update(
            model, optimizer, Accelerator(cpu=True), rollouts, advantages, ref, micro_batch_size=8
        )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert all(p.grad is None or not p.grad.any() for p in model.parameters()) and not optimizer.state


def test_a_tiny_model_learns_to_say_the_rewarded_word():
    model, accelerator = make_model(), Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=5e-3))
    history = []
    for step in range(40):
        rollouts = draw(model, group_size=8, length=6, temperature=1.0, step=step)
        rewards = torch.tensor([float("w9" in text.split()) for text in rollouts.texts]).view(-1, 8)
        grpo.policy_update(model, optimizer, accelerator, rollouts, grpo.group_advantages(rewards).flatten())
        history.append(rewards.mean().item())
    assert sum(history[:5]) / 5 < 0.4 and sum(history[-5:]) / 5 > 0.9


def one_of_two_processes(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    model, rollouts, advantages, ref = make_batch()
    mine = rollouts.mask.sum(1).argsort()[rank * 10 :][:10]  # short rows here, long ones there
    part = grpo.Rollouts(
        *(getattr(rollouts, name)[mine] for name in ("ids", "attention_mask", "mask", "logprobs")),
        [rollouts.texts[i] for i in mine],
        rollouts.truncated[mine],
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    results = [
        learn(
            model,
            part,
            advantages[mine],
            ref[mine],
            accelerator=accelerator,
            micro_batch_size=4,
            updates_per_batch=2,
            loss_norm=norm,
        )
        for norm in ("sequence", "token")
    ]
    results.append(
        learn(
            model,
            part,
            one_sided(advantages, rollouts)[mine],
            None,
            accelerator=accelerator,
            micro_batch_size=1,
        )
    )
    results = [(after.state_dict(), metrics) for after, metrics in results]
    for module in (
        *model.model.layers,
        model,
    ):  # once more, with weights that are cut in two, and small chunks
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    packing.LOGITS_AT_ONCE = 5 * WORDS
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = grpo.policy_update(
        model,
        optimizer,
        accelerator,
        part,
        advantages[mine],
        ref[mine],
        temperature=0.7,
        micro_batch_size=4,
        updates_per_batch=2,
        max_grad_norm=1e9,
    )
    results.append(({name: value.full_tensor() for name, value in model.state_dict().items()}, metrics))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def one_sided(advantages, rollouts):
    """Advantages of which the first process has nine and the second one: it stands in for eight passes."""
    order = rollouts.mask.sum(1).argsort()
    return advantages.clone().index_fill(0, order[torch.tensor([0, *range(11, 20)])], 0.0)


@pytest.mark.slow  # a whole run on two processes is in test_processes.py
def test_two_processes_take_the_step_of_one(tmp_path):
    model, rollouts, advantages, ref = make_batch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two_processes, (port, str(tmp_path)), nprocs=2)
    twice = [
        learn(model, rollouts, advantages, ref, updates_per_batch=2, loss_norm=norm)
        for norm in ("sequence", "token")
    ]
    once = learn(model, rollouts, one_sided(advantages, rollouts), None)
    for i, (after, metrics) in enumerate((*twice, once, twice[0])):
        for rank in (0, 1):
            weights, theirs = torch.load(tmp_path / f"{rank}.pt")[i]
            for name, value in after.state_dict().items():
                torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)
            assert theirs == pytest.approx(metrics, abs=1e-5, rel=1e-4)
