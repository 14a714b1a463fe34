"""support/packing.py against the plain model: one unpadded row after the other, with all of its logits."""

import math

import pytest
import torch
from tiny import WORDS, draw, full_logits, gradients, make_model
from torch.utils._python_dispatch import TorchDispatchMode

import grpo
from support import packing


def test_forward_gives_entropy_and_hidden_states_of_the_model_itself():
    model, length = make_model(), 12
    rollouts = draw(model, prompts=["w5 w6", "w4"], length=length)
    scores = packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, length, 0.7, hidden=True)
    assert scores.hidden.shape == (*rollouts.ids.shape, 16) and not scores.entropy.requires_grad
    for row, kept in enumerate(rollouts.attention_mask.bool()):
        output = model(rollouts.ids[row, kept][None], output_hidden_states=True)
        torch.testing.assert_close(scores.hidden[row, kept], output.hidden_states[-1][0], atol=1e-5, rtol=0)
        n = int(rollouts.mask[row].sum())
        p = (output.logits[0, -n - 1 : -1] / 0.7).softmax(-1)
        torch.testing.assert_close(scores.entropy[row, :n], -(p * p.log()).sum(-1), atol=1e-5, rtol=0)
        assert scores.hidden[row, ~kept].eq(0).all() and scores.entropy[row, n:].eq(0).all()


def test_common_padding_is_cut_and_changes_nothing():
    model, length = make_model(), 12
    rollouts = draw(model, length=length)
    rows = rollouts.mask.sum(1).argsort()[:3]  # the shortest: padding on both sides
    packing.can_share(model), packing.after_head(model)  # or what is measured once would be counted
    widths = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    part = packing.forward_responses(
        model, rollouts.ids[rows], rollouts.attention_mask[rows], length, hidden=True
    )
    whole = packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, length, hidden=True)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    pieces = packing.forward_responses(
        model, rollouts.ids[mixed], rollouts.attention_mask[mixed], length, hidden=True, batch_size=3
    )
    hook.remove()
    kept = zip(rollouts.ids.tolist(), rollouts.attention_mask.tolist())
    different = {tuple(i if real else None for i, real in zip(*row)) for row in kept}
    assert len(different) < 20 and len(widths) == 2 + math.ceil(len(different) / 3)  # copies cost no pass
    assert widths[0] < widths[1]
    for a, b, c in zip(part, whole, pieces):
        torch.testing.assert_close(a, b[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(c, b[mixed], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind, attention, settings",
    [
        ("qwen2", "sdpa", {}),
        ("qwen2", "eager", {"tie_word_embeddings": True}),
        ("llama", "sdpa", {}),
        ("llama", "eager", {}),
        ("gpt2", "sdpa", {}),
        ("gpt2", "eager", {}),
        ("mistral", "sdpa", {"sliding_window": 3}),
    ],
)
@pytest.mark.parametrize("logits", [2**25, 7 * WORDS])
def test_packed_rows_in_chunks_equal_the_full_logits_of_single_rows(
    monkeypatch, kind, attention, settings, logits
):
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", logits)
    model, length = make_model(kind, attention=attention, **settings), 12
    rollouts = draw(model, group_size=8)
    given = model, rollouts.ids, rollouts.attention_mask, length, 0.7
    packing.can_share(model), packing.after_head(model)
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    packed, plain = (packing.forward_responses(*given, share_prompts=share) for share in (True, False))
    hook.remove()
    once = {(i // 8, tuple(ids[-length:][seen[-length:].bool()].tolist()))  # equal responses of a group once
            for i, (ids, seen) in enumerate(zip(rollouts.ids, rollouts.attention_mask))}
    tokens = sum(len(response) for _, response in once) + rollouts.attention_mask[::8, :-length].sum()
    alone = attention == "eager" or kind == "mistral"
    assert shapes[1][0] == 40 > len(once)
    assert shapes[0] == ((len(once), shapes[1][1]) if alone else (1, tokens))
    slow = full_logits(*given)
    for rows in (None, 7):
        simple = grpo.token_logprobs(*given, batch_size=rows)
        torch.testing.assert_close(simple, slow[0], atol=1e-5, rtol=0)
    for mine, theirs in zip(gradients(model, simple), gradients(model, slow[0])):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)
    slow = full_logits(*given)
    expected = gradients(model, slow[0])
    for scores in (packed, plain):
        torch.testing.assert_close(scores.logprobs, slow[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores.entropy, slow[1], atol=1e-5, rtol=0)
        assert not scores.entropy.requires_grad
        for mine, theirs in zip(gradients(model, scores.logprobs), expected):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)


def test_equal_rows_are_computed_once_and_each_has_its_gradient():
    model, length = make_model(), 12
    rollouts = draw(model)
    again = torch.tensor([3, 0, 3, 17, 0, 3])
    ids, mask = rollouts.ids[again].clone(), rollouts.attention_mask[again]
    ids[mask == 0] = torch.randint(4, WORDS, (int((mask == 0).sum()),))  # what stands there is no difference
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    packing.can_share(model), packing.after_head(model)
    shapes.clear()
    scores = packing.forward_responses(model, ids, mask, length, 0.7, hidden=True)
    hook.remove()
    prompts = {tuple(row[seen.bool()].tolist()) for row, seen in zip(ids[:, :-length], mask[:, :-length])}
    tokens = sum(map(len, prompts)) + mask[[0, 1, 3], -length:].sum()
    assert shapes == [(1, tokens)]
    slow = full_logits(model, ids, mask, length, 0.7)
    torch.testing.assert_close(scores.logprobs, slow[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropy, slow[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.hidden[0], scores.hidden[2])
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25, -1.0])[:, None]
    expected = gradients(model, slow[0] * weights)
    for mine, theirs in zip(gradients(model, scores.logprobs * weights), expected):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)


def test_checkpointing_and_autocast_change_nothing_but_rounding():
    model, length = make_model(), 12
    rollouts = draw(model)
    given = rollouts.ids, rollouts.attention_mask, length
    exact = packing.forward_responses(model, *given).logprobs
    expected = gradients(model, exact)
    with torch.autocast("cpu", torch.bfloat16):
        rough = packing.forward_responses(model, *given).logprobs
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.3
    assert (
        torch.cosine_similarity(
            *(torch.cat([g.flatten() for g in grads]) for grads in (gradients(model, rough), expected)), dim=0
        )
        > 0.99
    )
    model.train().activation_checkpointing_enable()
    for mine, theirs in zip(gradients(model, packing.forward_responses(model, *given).logprobs), expected):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "kind, settings, expected",
    [
        ("gemma2", {"final_logit_softcapping": 5.0, "attention": "eager"}, (1.0, 5.0)),
        ("granite", {"logits_scaling": 8.0}, (0.125, None)),
        ("cohere", {"logit_scale": 0.5}, (0.5, None)),
        ("qwen2", {}, (1.0, None)),
    ],
)
def test_what_a_model_does_to_its_logits_is_measured_and_done(monkeypatch, kind, settings, expected):
    model = make_model(kind, **settings)
    assert packing.after_head(model) == pytest.approx(expected)
    model.get_output_embeddings().weight.data.mul_(5)  # large logits, on which a soft cap acts
    rollouts = draw(model, group_size=8)
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", 7 * WORDS)
    given = model, rollouts.ids, rollouts.attention_mask, 12, 0.7
    scores, slow = packing.forward_responses(*given), full_logits(*given)
    torch.testing.assert_close(rollouts.logprobs, slow[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.logprobs, slow[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropy, slow[1], atol=1e-5, rtol=0)
    for mine, theirs in zip(gradients(model, scores.logprobs), gradients(model, slow[0])):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "change", [lambda x: x.flip(-1), lambda x: x.square(), lambda x: x[..., :-1], lambda x: x.clamp(max=5)]
)
def test_other_changes_of_logits_are_refused(change):
    model = make_model()
    rollouts = draw(model, prompts=["w4 w5"], length=4)
    model.register_forward_hook(
        lambda module, given, output: setattr(output, "logits", change(output.logits))
    )
    with pytest.raises(
        ValueError, match="model: Qwen2ForCausalLM makes other logits than .* its output head"
    ):
        packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, 4)
    assert "forward" not in model.get_output_embeddings().__dict__


def test_a_model_whose_attention_is_not_ours_gets_rows_of_its_own(monkeypatch):
    model = make_model()
    rollouts = draw(model)
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: None)
    assert not packing.can_share(model)
    mine = packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, 12)
    torch.testing.assert_close(
        mine.logprobs,
        full_logits(model, rollouts.ids, rollouts.attention_mask, 12, 1.0)[0],
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("kind", ["sliding_attention", "chunked_attention"])
def test_a_model_with_windows_in_some_layers_gets_rows_of_its_own(kind):
    """Whatever the self-check's few tokens say: a window may be longer than they are."""
    model = make_model()
    model.config.layer_types = ["full_attention", kind]
    assert not packing.can_share(model)


def test_a_long_limit_costs_short_responses_nothing():
    """Attention never sees columns that are padding in all rows."""
    model, seen = make_model(), []
    rollouts = draw(model, prompts=["w4 w5 w6", "w7"], length=12)
    wide = (
        torch.nn.functional.pad(rollouts.ids, (5, 9)),
        torch.nn.functional.pad(rollouts.attention_mask, (5, 9)),
    )
    packing.can_share(model), packing.after_head(model)
    inner = packing.ALL_ATTENTION_FUNCTIONS["grouped"]
    packing.ALL_ATTENTION_FUNCTIONS["grouped"] = lambda *args, **kwargs: (
        seen.append(args[4].shape[-2:]),
        inner(*args, **kwargs),
    )[1]
    scores = packing.forward_responses(model, *wide, 12 + 9, hidden=True)
    packing.ALL_ATTENTION_FUNCTIONS["grouped"] = inner
    longest = int(rollouts.mask.sum(1).max())
    assert set(seen) == {(longest, 3 + longest)}
    expected = packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, 12, hidden=True)
    torch.testing.assert_close(scores.logprobs[:, :12], expected.logprobs)
    torch.testing.assert_close(scores.hidden[:, 5:-9], expected.hidden)
    assert (
        scores.logprobs.shape == (8, 21)
        and scores.hidden.shape[1] == wide[0].shape[1]
        and not scores.hidden[:, :5].any()
    )


def test_no_tensor_grows_with_tokens_times_words(monkeypatch):
    """Neither forward nor backward, with 3,000 words and chunks of at most ten tokens."""
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", 30_000)
    model = make_model(vocab_size=3000)
    rollouts = draw(model)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            results = result if isinstance(result, (tuple, list)) else [result]
            self.numel = max([self.numel, *(x.numel() for x in results if torch.is_tensor(x))])
            return result

    packing.can_share(model), packing.after_head(model)
    kept = []
    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
            logprobs = packing.forward_responses(model, rollouts.ids, rollouts.attention_mask, 12).logprobs
        logprobs.sum().backward()
    assert kept and not any(
        shape[-1:] == (3000,) for shape in kept
    )  # no chunk of logits waits for the backward pass
    assert largest.numel == 3000 * 16 < rollouts.mask.sum() * 3000 / 3  # no larger than the head's weights
